"""The calls of the micro level: one of each kind, by hand and by safedb, each on a file of its own.

By hand is what the peers by hand are: a connection for each thread. What every peer can do goes through its `Lane`, so
that both sides bear the same cost of being called; a snapshot and `executemany` stand here, as not every peer has them.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safedb
from benchmarks import places, verify
from benchmarks.case import Case, Synchronous
from benchmarks.measure import Together
from benchmarks.peers import PER_THREAD, SAFEDB, peer
from benchmarks.peers.peer import INSERT, PAYLOAD, POINT, Peer, Place
from benchmarks.results import RAW
from benchmarks.verify import Before, Written
from safedb.sqlite.driver import connect

PATIENCE = 60.0  # seconds that a call may wait for others, on both sides: one that gives up would end the measurement
KEY = 77
MANY = 1000  # rows of one executemany

SIDES = {RAW: PER_THREAD, SAFEDB: SAFEDB}

READS = ("point read", "range read", "snapshot read")
WRITES = ("single write", "executemany", "function", "block")

Call = Callable[[], object]


@contextmanager
def calls(side: str, folder: Path, synchronous: Synchronous) -> Iterator[dict[str, Call]]:
    """Give what one thread can call, by kind; afterwards every row is looked for."""
    with _worked_on(side, folder, synchronous) as (opened, place, numbers), ExitStack() as stack:
        snapshot, many = stack.enter_context(_BESIDES[side](place))
        lane = opened.lane()
        stack.callback(lane.rest)
        singles, functions, blocks, rows = (numbers[thread].__next__ for thread in range(4))
        yield {
            "point read": lambda: lane.point(KEY),
            "range read": lambda: lane.range(KEY),
            "snapshot read": snapshot,
            "single write": lambda: lane.write(0, singles()),
            "function": lambda: lane.function(1, functions()),
            "block": lambda: lane.block(2, blocks()),
            "executemany": lambda: many([(3, rows(), PAYLOAD) for _ in range(MANY)]),
        }


@contextmanager
def crew(side: str, folder: Path, synchronous: Synchronous, *, threads: int, each: int) -> Iterator[Call]:
    """Give what lets threads that are there already write ``each`` rows apiece; afterwards all are looked for."""
    with (
        _worked_on(side, folder, synchronous) as (opened, _, numbers),
        closing(_Crew(opened, numbers, threads=threads, each=each)) as made,
    ):
        yield made


class _Crew(Together):
    """Let threads write, each by a lane of its own."""

    def __init__(self, opened: Peer, numbers: _Numbers, *, threads: int, each: int) -> None:
        self._peer, self._numbers = opened, numbers
        self._threads_left = iter(range(threads))
        super().__init__(lambda: None, threads=threads, each=each)

    @contextmanager
    def _working(self) -> Iterator[Call]:
        thread = next(self._threads_left)
        lane = self._peer.lane()
        write, following = lane.write, self._numbers[thread].__next__
        try:
            yield lambda: write(thread, following())
        finally:
            lane.rest()


class _Numbers(dict[int, "itertools.count[int]"]):
    """Number the rows of every thread."""

    def __missing__(self, thread: int) -> itertools.count[int]:
        return self.setdefault(thread, itertools.count())


@contextmanager
def _worked_on(side: str, folder: Path, synchronous: Synchronous) -> Iterator[tuple[Peer, Place, _Numbers]]:
    numbers = _Numbers()
    with (
        tempfile.TemporaryDirectory(prefix="calls-", dir=folder) as name,
        places.made(Case("", SIDES[side], "write", 1, synchronous=synchronous), folder, Path(name), "") as place,
    ):
        place = replace(place, timeout=PATIENCE)
        with closing(peer(SIDES[side])(place)) as opened:
            yield opened, place, numbers
        _look(place, numbers)


def _look(place: Place, numbers: _Numbers) -> None:
    written = [Written(thread, next(count), ()) for thread, count in numbers.items()]
    with places.connect(place) as connection:
        verify.sound(connection)
        verify.rows(connection, Before(0, 0), written)


Besides = tuple[Call, Callable[[list[Any]], object]]


@contextmanager
def _by_hand(place: Place) -> Iterator[Besides]:
    with closing(connect(str(place.path), timeout=place.timeout, isolation_level=None)) as connection:
        execute = connection.execute
        for name, value in place.pragmas.items():
            execute(f"PRAGMA {name} = {value}")

        def snapshot() -> object:
            execute("BEGIN")
            row = execute(POINT, (KEY,)).fetchone()
            execute("COMMIT")
            return row

        def many(rows: list[Any]) -> None:
            execute("BEGIN IMMEDIATE")
            connection.executemany(INSERT, rows)
            execute("COMMIT")

        yield snapshot, many


@contextmanager
def _by_safedb(place: Place) -> Iterator[Besides]:
    with safedb.connect(place.path, retry=safedb.RetryPolicy(timeout=place.timeout)) as db:

        def snapshot() -> object:
            with db.snapshot() as snap:
                return snap.execute(POINT, (KEY,)).one()

        yield snapshot, lambda rows: db.executemany(INSERT, rows)


_BESIDES = {RAW: _by_hand, SAFEDB: _by_safedb}
