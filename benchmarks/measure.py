"""How calls are measured whose ratio is near 1: in batches, in turn, in one process.

The machine's pace changes from second to second (other programs, its clock, its disk). So no two figures are compared
that were not taken one right after the other: a ratio is that of a pair, and what is reported is the median of many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median


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
        try:
            with self._working() as work:
                self._begin.wait()
                while not self._over:
                    for _ in range(self._each):
                        work()
                    self._end.wait()
                    self._begin.wait()
        except threading.BrokenBarrierError:
            pass  # another has said why
        except BaseException:
            self._end.abort()  # else the others would wait for this thread
            self._begin.abort()
            raise

    @contextmanager
    def _working(self) -> Iterator[Callable[[], object]]:
        """Give a thread, in which this is called, what it has to do."""
        yield self._work


def _batch(work: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def jain(shares: Sequence[float]) -> float:
    """Give Jain's fairness index: 1.0 is equal shares, 1/n is one that has it all (https://arxiv.org/abs/cs/9809099)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
