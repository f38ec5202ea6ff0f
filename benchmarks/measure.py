"""How it is measured: pairs of batches in turn, and races of many threads for a fixed time.

The machine's pace changes from second to second (other programs, its clock, its disk). So no two figures are compared
that were not taken one right after the other: a ratio is that of a pair, and what is reported is the median of many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.rivals import Rival


@dataclass(frozen=True, slots=True)
class Spread:
    """Be the smallest, the middle and the largest of several values."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up ``values``."""
        return cls(min(values), median(values), max(values))


@dataclass(frozen=True, slots=True)
class Paired:
    """Be two works done in turn: seconds for each call of both, and the ratio of each pair (second to first)."""

    first: Spread
    second: Spread
    ratio: Spread


def paired(
    first: Callable[[], object], second: Callable[[], object], *, calls: int, rounds: int, part: float = 0.05
) -> Paired:
    """Do batches of ``calls`` calls in turn, A B B A A B …, so that neither has the better place.

    Of the ratios the ``part`` at either end is left out of the spread: single batches that the system stopped.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for work in (first, second):
        _batch(work, calls)  # caches, prepared statements, the first pages of the WAL
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            times[which].append(_batch((first, second)[which], calls))
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    cut = int(len(ratios) * part)
    return Paired(Spread.of(times[0]), Spread.of(times[1]), Spread.of(ratios[cut : len(ratios) - cut]))


def alternate(works: Mapping[str, Callable[[], object]], *, calls: int, rounds: int) -> dict[str, list[float]]:
    """Do batches of ``calls`` calls of each work in turn, each round beginning with the next one; give seconds a call.

    The first two batches of each are not counted: connections have statements to prepare.
    """
    names = list(works)
    for name in names * 2:
        _batch(works[name], calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_batch(works[name], calls))
    return times


class Together:
    """Let threads that are there already do ``work`` ``each`` times apiece, as often as it is called."""

    def __init__(self, work: Callable[[], object], *, threads: int, each: int) -> None:
        self._work, self._each = work, each
        self._begin, self._end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        self._over = False
        self._threads = [threading.Thread(target=self._run, name=f"lane-{number}") for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def __call__(self) -> None:
        """Do it, and wait until all have done it."""
        self._begin.wait()
        self._end.wait()

    def close(self) -> None:
        """Let the threads go."""
        self._over = True
        self._begin.wait()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        self._begin.wait()
        while not self._over:
            try:
                for _ in range(self._each):
                    self._work()
            except BaseException:
                self._end.abort()  # else the others would wait for this thread
                self._begin.abort()
                raise
            self._end.wait()
            self._begin.wait()


def _batch(work: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


@dataclass(frozen=True, slots=True)
class Race:
    """Be what many threads did in a fixed time. Times are seconds; ``rate`` is acknowledged writes a second.

    ``longest`` is the longest wait of all, also of those that ended in an error.
    """

    rate: float
    p50: float
    p99: float
    p999: float
    longest: float
    fairness: float
    failed: int

    @classmethod
    def of(cls, laps: Sequence[Lap], shares: Sequence[int]) -> Race:
        """Sum up what one process or several did at the same time; ``shares``: between whom it was to be fair."""
        ordered = sorted(wait for lap in laps for waits in lap.waits for wait in waits) or [0.0]
        return cls(
            rate=sum(lap.rate for lap in laps),
            p50=ordered[len(ordered) // 2],
            p99=ordered[int(len(ordered) * 0.99)],
            p999=ordered[int(len(ordered) * 0.999)],
            longest=max(ordered[-1], *(wait for lap in laps for wait in lap.refused), 0.0),
            fairness=jain(shares),
            failed=sum(len(lap.refused) for lap in laps),
        )


@dataclass(frozen=True, slots=True)
class Lap:
    """Be what the threads of one process did: how many writes each in ``seconds``, and how long every write took.

    ``refused``: how long those took that failed.
    """

    seconds: float
    counts: list[int]
    waits: list[list[float]]
    refused: list[float]

    @property
    def rate(self) -> float:
        """Give the acknowledged writes a second."""
        return sum(self.counts) / self.seconds


def race(rival: Rival, *, threads: int, seconds: float) -> Race:
    """Let ``threads`` threads write as fast as they can for ``seconds``; a write that was begun is finished."""
    lap = run_lap(rival, threads=threads, seconds=seconds)
    return Race.of([lap], lap.counts)


def run_lap(rival: Rival, *, threads: int, seconds: float, first: int = 0, begin: float = 0.0) -> Lap:
    """Do what `race` says; the threads are numbered from ``first``, and begin at ``begin`` (`time.monotonic`)."""
    barrier = threading.Barrier(threads + 1)
    waits: list[list[float]] = [[] for _ in range(threads)]
    refused: list[float] = []
    over = threading.Event()
    lanes = [
        threading.Thread(
            target=_lane, args=(rival, first + number, barrier, wait, refused, over), name=f"lane-{number}"
        )
        for number, wait in enumerate(waits)
    ]
    for lane in lanes:
        lane.start()
    time.sleep(max(0.0, begin - time.monotonic()))
    barrier.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    counts = [len(wait) for wait in waits]
    elapsed = time.perf_counter() - started
    over.set()
    for lane in lanes:
        lane.join()
    for number, wait in enumerate(waits):
        rival.acknowledged[first + number] += len(wait)
    return Lap(elapsed, counts, waits, refused)


def _lane(
    rival: Rival,
    number: int,
    barrier: threading.Barrier,
    waits: list[float],
    refused: list[float],
    over: threading.Event,
) -> None:
    write = rival.writer()
    clock, is_over, first = time.perf_counter, over.is_set, rival.acknowledged[number]
    barrier.wait()
    try:
        while not is_over():
            started = clock()
            try:
                write(number, first + len(waits))
            except Exception:
                refused.append(clock() - started)
                continue
            waits.append(clock() - started)
    finally:
        rival.rest()


def jain(shares: Sequence[float]) -> float:
    """Give Jain's fairness index: 1.0 is equal shares, 1/n is one that has it all (https://arxiv.org/abs/cs/9809099)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
