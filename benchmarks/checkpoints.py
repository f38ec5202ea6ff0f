"""Checkpoints: what they cost single writes, and how large they let the log grow, beside plain `sqlite3`.

    python -m benchmarks.checkpoints [--short] [--json FILE] [--folder DIR]

Four threads insert rows into a table with an index on a random key, so that every checkpoint has many pages to move.
By hand, SQLite checkpoints inside whatever COMMIT passes 1000 pages (its default); safedb's keeper does it beside them.
How much of it shows is told by the same run of safedb with checkpoints off, whose log grows without a bound.

The result is printed as Markdown. It needs two minutes; with ``--short`` some seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import safedb
from benchmarks import machine, verify
from benchmarks.case import Outcome, Synchronous, Waits
from benchmarks.figures import THROUGHPUT, Figure, wait
from benchmarks.loops import Actor, closed
from benchmarks.measure import Spread
from benchmarks.peers.peer import PAYLOAD, Lane, Place
from benchmarks.report import spread
from safedb.sqlite.driver import Connection, connect

PATIENCE = 60.0  # seconds that a write may wait, on every side: nobody is to lose by giving up
HEAD_START = 0.02  # seconds from when all threads are ready until they begin
THREADS = 4
BEFORE = 50_000  # rows that are there already: an index of some hundred pages
OLD = THREADS  # whose they are
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, thread INTEGER, number INTEGER, k INTEGER, v TEXT);"
    "CREATE INDEX IF NOT EXISTS by_k ON t (k)"
)
INSERT = "INSERT INTO t (thread, number, k, v) VALUES (?, ?, ?, ?)"
SAFEDB, OFTEN, OFF = "safedb", "safedb, checkpoint_pages=4000", "safedb, checkpoints off"
SETTINGS: dict[str, dict[str, int]] = {
    SAFEDB: {},
    OFTEN: {"checkpoint_pages": 4_000, "wal_limit": 64 * 1024 * 1024},
    OFF: {"checkpoint_pages": 0, "wal_limit": 0},
}
USUAL, RARE, LONGEST = (wait(part, "write") for part in (0.5, 0.999, 1.0))
LOCK, BUSY = "by hand, one lock", "by hand, busy timeout"


def row(thread: int, number: int) -> tuple[int, int, int, str]:
    """Make a row with a random key."""
    return thread, number, random.getrandbits(40), PAYLOAD


class Rival(ABC):
    """Be one way to write into a database of its own."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place = name, place
        self.written = [verify.Written(thread, 0, []) for thread in range(THREADS)]

    @abstractmethod
    def lane(self) -> Lane:
        """Give a thread what it writes by; called in that thread."""

    def close(self) -> None:  # noqa: B027
        """Close everything."""

    def verify(self) -> None:
        """Look for every row that was acknowledged."""
        with closing(connect(str(self.place.path))) as connection:
            verify.rows(connection, verify.Before(BEFORE, 0), self.written)
            verify.sound(connection)


class HandLane(Lane):
    """Write by hand; SQLite checkpoints at 1000 pages, inside whatever COMMIT passes them."""

    def __init__(self, connection: Connection, turn: AbstractContextManager[Any], rest: Callable[[], None]) -> None:
        self._execute, self._turn, self._rest = connection.execute, turn, rest

    def write(self, thread: int, number: int) -> None:
        execute = self._execute
        with self._turn:
            execute("BEGIN IMMEDIATE")
            execute(INSERT, row(thread, number))
            execute("COMMIT")

    def rest(self) -> None:
        self._rest()


class HandLock(Rival):
    """One connection, and a lock around each transaction."""

    def __init__(self, place: Place) -> None:
        super().__init__(LOCK, place)
        self._connection, self._lock = _open(place), threading.Lock()

    def lane(self) -> Lane:
        return HandLane(self._connection, self._lock, lambda: None)

    def close(self) -> None:
        self._connection.close()


class HandBusy(Rival):
    """A connection for each thread, which waits for the others by SQLite's own polling."""

    def __init__(self, place: Place) -> None:
        super().__init__(BUSY, place)

    def lane(self) -> Lane:
        connection = _open(self.place)
        return HandLane(connection, nullcontext(), connection.close)


def _open(place: Place) -> Connection:
    connection = connect(str(place.path), timeout=place.timeout, isolation_level=None, check_same_thread=False)
    for name, value in place.pragmas.items():
        connection.execute(f"PRAGMA {name} = {value}")
    return connection


class KeptLane(Lane):
    """Write by ``db.execute``."""

    def __init__(self, db: safedb.Database) -> None:
        self._execute = db.execute

    def write(self, thread: int, number: int) -> None:
        self._execute(INSERT, row(thread, number))


class Kept(Rival):
    """Write by safedb; the keeper checkpoints as it does, more rarely, or never."""

    def __init__(self, name: str, place: Place) -> None:
        super().__init__(name, place)
        pragmas = safedb.Pragmas(synchronous=place.synchronous, **SETTINGS[name])  # type: ignore[arg-type]
        self._db = safedb.connect(place.path, pragmas=pragmas, retry=safedb.RetryPolicy(timeout=place.timeout))

    def lane(self) -> Lane:
        return KeptLane(self._db)

    def close(self) -> None:
        self._db.close()


def race(rival: Rival, seconds: float) -> Outcome:
    """Let the threads write as fast as they can for ``seconds``; a write that was begun is finished."""
    actors: list[Actor] = []
    window = [0.0, 0.0]

    def set_window() -> None:
        window[0] = time.monotonic() + HEAD_START
        window[1] = window[0] + seconds

    ready = threading.Barrier(THREADS, set_window)

    def run(thread: int) -> None:
        try:
            lane = rival.lane()
            actor = Actor(lane, "write", thread, 0)
            actor.number = rival.written[thread].number
            actors.append(actor)
            ready.wait()
        except BaseException:
            ready.abort()  # else the others would wait for this thread
            raise
        closed(actor, window[0], window[1])
        lane.rest()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))
    for actor in actors:
        before = rival.written[actor.thread]
        rival.written[actor.thread] = verify.Written(actor.thread, actor.number, [*before.doubtful, *actor.doubtful])
    return Outcome(
        seconds=seconds,
        counts=[[actor.done for actor in actors]],
        waits={"write": Waits.of(itertools.chain.from_iterable(actor.writes for actor in actors))},
        errors=dict(sum((actor.errors for actor in actors), Counter())),
    )


class Peak:
    """Look at the size of a log over and over, and keep the greatest."""

    def __init__(self, path: Path) -> None:
        self._wal = path.with_name(f"{path.name}-wal")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="peak")
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self.bytes = max(self.bytes, self._wal.stat().st_size if self._wal.exists() else 0)


@dataclass(slots=True)
class Heats:
    """Be the outcome of one mode: by rival, its races in their order, and the greatest size of its log in bytes."""

    synchronous: str
    races: dict[str, list[Outcome]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        races = {name: [one.to_json() for one in some] for name, some in self.races.items()}
        return {"synchronous": self.synchronous, "races": races, "peaks": self.peaks}

    def spread(self, name: str, figure: Figure) -> Spread:
        """Sum up one figure of a rival's races."""
        return Spread.of([figure.of(one) for one in self.races[name]])

    def ratio(self, first: str, second: str, figure: Figure) -> Spread:
        """Give, heat by heat, a figure of ``first`` as a multiple of that of ``second``."""
        pairs = zip(self.races[first], self.races[second], strict=True)
        return Spread.of([figure.of(a) / figure.of(b) for a, b in pairs])


@contextmanager
def rivals(folder: Path, synchronous: Synchronous) -> Iterator[list[Rival]]:
    """Open all of them, each on a database of its own that has rows in it; look afterwards whether all are there."""
    made: list[Rival] = []
    makers: list[Callable[[Place], Rival]] = [HandLock, HandBusy, *(partial(Kept, name) for name in SETTINGS)]
    with ExitStack() as stack:
        for number, make in enumerate(makers):
            path = folder / f"{number}-{synchronous}.db"
            with safedb.connect(path, schema=SCHEMA) as db:
                db.executemany(INSERT, [row(OLD, number) for number in range(BEFORE)])
            rival = make(Place(path, synchronous=synchronous, timeout=PATIENCE))
            stack.callback(rival.close)
            made.append(rival)
        yield made
    for rival in made:
        rival.verify()


def run_heats(folder: Path, synchronous: Synchronous, *, heats: int, seconds: float) -> Heats:
    """Let each write alone, one after the other, over and over; every second heat runs in the opposite order."""
    with rivals(folder, synchronous) as all_of_them:
        found = Heats(
            synchronous,
            {rival.name: [] for rival in all_of_them},
            {rival.name: 0 for rival in all_of_them},
        )
        for rival in all_of_them:
            race(rival, 0.2)  # does not count
        for number in range(heats):
            for rival in all_of_them if number % 2 else reversed(all_of_them):
                with Peak(rival.place.path) as peak:
                    found.races[rival.name].append(race(rival, seconds))
                found.peaks[rival.name] = max(found.peaks[rival.name], peak.bytes)
    return found


def markdown(about: machine.Machine, modes: list[Heats]) -> str:
    """Write the tables."""
    lines = [
        *about.lines(),
        "",
        "| synchronous | who | writes/s | p50 ms | p99.9 ms | longest ms | largest log MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for heats in modes:
        for name in heats.races:
            cells = [
                heats.synchronous,
                name,
                *(spread(heats.spread(name, figure)) for figure in (THROUGHPUT, USUAL, RARE, LONGEST)),
                f"{heats.peaks[name] / 1e6:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| synchronous | p99.9 of | as a multiple of | min … median … max |", "|---|---|---|---|"]
    for heats in modes:
        for one, other in ((SAFEDB, LOCK), (SAFEDB, BUSY), (SAFEDB, OFF), (OFTEN, OFF)):
            lines.append(f"| {heats.synchronous} | {one} | {other} | {spread(heats.ratio(one, other, RARE))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, and write everything as JSON where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="some seconds, and rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the databases are made (default: here)")
    given = parser.parse_args()
    logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
    heats, seconds = (2, 0.5) if given.short else (7, 2.0)
    modes = []
    with tempfile.TemporaryDirectory(prefix="safedb-checkpoints-", dir=given.folder) as name:
        folder = Path(name).resolve()
        about = machine.describe(folder)
        both: tuple[Synchronous, ...] = ("FULL", "NORMAL")
        for synchronous in both:
            print(f"… {synchronous}", file=sys.stderr)
            modes.append(run_heats(folder, synchronous, heats=heats, seconds=seconds))
    print(markdown(about, modes))
    if given.json is not None:
        whole = {"machine": asdict(about), "modes": [heats.to_json() for heats in modes]}
        given.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
