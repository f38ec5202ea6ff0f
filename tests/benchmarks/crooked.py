"""Peers that do not keep what they promise, each in one way; `lab` is to notice every one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.peer import COUNTERS, INSERT, PAYLOAD, Lane, Peer, Place
from safedb.sqlite.driver import sqlite3


class Honest(Lane):
    """Write with a connection of its own. The crooked ones do otherwise where ``number`` modulo 3 is 1."""

    def __init__(self, place: Place) -> None:
        self.connection = sqlite3.connect(place.path, timeout=60.0, isolation_level=None)

    def write(self, thread: int, number: int) -> None:
        self.connection.execute(INSERT, (thread, number, PAYLOAD))

    def function(self, thread: int, number: int) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("UPDATE counter SET n = n + 1 WHERE id = ?", (number % COUNTERS,))
        self.write(thread, number)
        self.connection.execute("COMMIT")

    def point(self, key: int) -> Sequence[Any]:
        return self.connection.execute("SELECT n, v FROM item WHERE id = ?", (key,)).fetchone()  # type: ignore[no-any-return]

    def rest(self) -> None:
        self.connection.close()


class Straight(Peer):
    """Keep everything."""

    name = "straight"
    package = source = ""
    lanes: type[Honest] = Honest

    def __init__(self, place: Place) -> None:
        self.place = place

    def lane(self) -> Lane:
        return self.lanes(self.place)


class _Loses(Honest):
    def write(self, thread: int, number: int) -> None:
        if number % 3 != 1:
            super().write(thread, number)


class Losing(Straight):
    """Forget a third of the rows."""

    lanes = _Loses


class Promising(Losing):
    """Forget a third of the rows, and have never said that they are kept."""

    kind = "unacknowledged"


class _Doubles(Honest):
    def write(self, thread: int, number: int) -> None:
        for _ in range(2 if number % 3 == 1 else 1):
            super().write(thread, number)


class Doubling(Straight):
    """Write a third of the rows twice."""

    lanes = _Doubles


class _Overwrites(Honest):
    def function(self, thread: int, number: int) -> None:
        if number % 3 == 1:
            self.write(thread, number)
        else:
            super().function(thread, number)


class Overwriting(Straight):
    """Write all rows, and lose what should have been added to a counter."""

    lanes = _Overwrites


class _Misreads(Honest):
    def point(self, key: int) -> Sequence[Any]:
        return super().point(key % 1000 + 1)


class Misreading(Straight):
    """Give the row beside."""

    lanes = _Misreads


class _Doubts(Honest):
    def write(self, thread: int, number: int) -> None:
        if number % 3 != 2:
            super().write(thread, number)
        if number % 3:
            raise ConnectionError("the answer did not come")


class Doubtful(Straight):
    """Say of two thirds of the calls that they failed; half of these rows are there all the same."""

    lanes = _Doubts


class _Dies(Honest):
    def write(self, thread: int, number: int) -> None:
        if number == 1:
            os._exit(7)
        super().write(thread, number)


class Dying(Straight):
    """Die at work."""

    lanes = _Dies


class _Hangs(Honest):
    def write(self, thread: int, number: int) -> None:
        if number == 1:
            threading.Event().wait()
        super().write(thread, number)


class Hanging(Straight):
    """Never come back, and do not go when asked."""

    lanes = _Hangs

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Interrupted(Honest):
    def write(self, thread: int, number: int) -> None:
        super().write(thread, number)
        if os.sched_getscheduler(0) != os.SCHED_BATCH:
            raise BlockingIOError("may be interrupted by whom it wakes")


class Interrupted(Straight):
    """Refuse to be scheduled as usual."""

    lanes = _Interrupted


class _Roams(Honest):
    def write(self, thread: int, number: int) -> None:
        super().write(thread, number)
        if len(os.sched_getaffinity(0)) > 1:
            raise ChildProcessError("may run on another core")


class Roaming(Straight):
    """Refuse to run on more than one core."""

    lanes = _Roams


class Closed(Straight):
    """Do not open."""

    def __init__(self, place: Place) -> None:
        raise PermissionError("not today")


class Elsewhere(Straight):
    """Write what `t` does not show, and count it with means of its own: one less than there should be."""

    lanes = _Loses

    def verify(self, place: Place, acknowledged: dict[int, int], added: int) -> int | None:
        return sum(acknowledged.values()) - 1
