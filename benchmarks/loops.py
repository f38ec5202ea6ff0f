"""What the threads do meanwhile: call as fast as they can, or as calls arrive; and how long each call took.

All times are `time.monotonic`: it is the same clock in every process, so that all begin and end together.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.case import Work
from benchmarks.peers.peer import RANGE, Lane
from benchmarks.verify import Wrong

WRITES = 0.1  # part of the calls, where reads and writes are mixed

_clock, _sleep = time.monotonic, time.sleep


class Actor:
    """Be one thread's calls, and what came of them.

    ``number`` is the next row to write. A number is never used twice: the call that raised may have written its row all
    the same (``doubtful``). ``done``: calls that returned before ``end``. ``waits``, by kind, of all that were begun.
    """

    def __init__(self, lane: Lane, work: Work, thread: int, rows: int) -> None:
        self.thread, self.number, self.end = thread, 0, 0.0
        self.doubtful: list[int] = []
        self.done = self.unserved = 0
        self.errors: Counter[str] = Counter()
        self.writes, self.reads = array("d"), array("d")
        self._chance = random.Random(thread).random
        self._share = {"point": 0.0, "range": 0.0, "mixed": WRITES}.get(work, 1.0)
        self._put: Callable[[int, int], None] = getattr(lane, work if self._share == 1 else "write")
        self._get: Callable[[int], Sequence[Any]] = lane.range if work == "range" else lane.point
        self._right = _right_range if work == "range" else _right_point
        self._keys = rows - RANGE + 1 if work == "range" else rows
        self.call = {0.0: self._read, 1.0: self._write}.get(self._share, self._either)

    def warm_up(self) -> None:
        """Call once of each kind; what it raises is raised here."""
        if self._share > 0:
            self.number += 1
            self._put(self.thread, self.number - 1)
        if self._share < 1:
            self._look(1 + int(self._chance() * self._keys))

    def forget(self) -> None:
        """Let the calls so far not count; the rows that they wrote are there."""
        self.done = 0
        self.errors.clear()
        del self.writes[:], self.reads[:]

    def give_up(self, due: float) -> None:
        """Count a call that was due, and that nobody came to before the end."""
        self.unserved += 1
        (self.writes if self._chance() < self._share else self.reads).append(self.end - due)

    def _either(self, due: float | None = None) -> None:
        (self._write if self._chance() < self._share else self._read)(due)

    def _write(self, due: float | None = None) -> None:
        number = self.number
        self.number = number + 1
        started = _clock() if due is None else due
        try:
            self._put(self.thread, number)
        except Exception as error:
            self.writes.append(_clock() - started)
            self.doubtful.append(number)
            self.errors[type(error).__name__] += 1
            return
        ended = _clock()
        self.writes.append(ended - started)
        if ended <= self.end:
            self.done += 1

    def _read(self, due: float | None = None) -> None:
        key = 1 + int(self._chance() * self._keys)
        started = _clock() if due is None else due
        try:
            self._look(key)
        except Wrong:
            raise
        except Exception as error:
            self.reads.append(_clock() - started)
            self.errors[type(error).__name__] += 1
            return
        ended = _clock()
        self.reads.append(ended - started)
        if ended <= self.end:
            self.done += 1

    def _look(self, key: int) -> None:
        found = self._get(key)
        if not self._right(found, key):
            raise Wrong(f"row {key} was read as {found!r:.200}")


def _right_point(row: Sequence[Any], key: int) -> bool:
    return bool(row[0] == key)


def _right_range(rows: Sequence[Any], key: int) -> bool:
    return bool(len(rows) == RANGE and rows[0][0] == key and rows[-1][1] == key + RANGE - 1)


def closed(actor: Actor, begin: float, end: float) -> None:
    """Do the next call as soon as the last is done; what has ended before ``begin`` does not count.

    So the window finds all threads at work, also where it takes a thousand of them long to get going.
    """
    actor.end = end
    call = actor.call
    while _clock() < begin:
        actor.forget()
        call()
    while _clock() < end:
        call()


def opened(actor: Actor, arrivals: Iterator[float], end: float) -> None:
    """Do one call after the other as they arrive; ``arrivals`` tells when, in order, and is shared with other threads.

    A call waits from its arrival on, also while no thread is free for it: a stall is seen by all that arrive in it.
    """
    actor.end = end
    for due in arrivals:
        if due >= end:
            return
        sleep_until(due)
        if _clock() < end:
            actor.call(due)
        else:
            actor.give_up(due)


def sleep_until(moment: float) -> None:
    """Sleep until then, if that is still to come."""
    left = moment - _clock()
    if left > 0:
        _sleep(left)


@contextmanager
def burning(threads: int) -> Iterator[None]:
    """Let threads compute and do nothing else."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    burners = [threading.Thread(target=burn, name="burner", daemon=True) for _ in range(threads)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        over.set()
        for burner in burners:
            burner.join()
