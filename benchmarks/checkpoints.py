"""Checkpoints: what they cost single writes, and how large they let the log grow, beside plain `sqlite3`.

    python -m benchmarks.checkpoints [--short] [--json FILE] [--folder DIR]

Four threads insert rows into a table with an index on a random key, so that every checkpoint has many pages to move.
By hand, SQLite checkpoints inside whatever COMMIT passes 1000 pages (its default); safedb's keeper does it beside them.
How much of it shows is told by the same run of safedb with checkpoints off, whose log grows without a bound.

The result is printed as Markdown. It needs two minutes; with ``--short`` some seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import safedb
from benchmarks import machine
from benchmarks.measure import Race, Spread, race
from benchmarks.report import spread
from benchmarks.rivals import PATIENCE, PAYLOAD, BusyTimeout, OneLock, Rival, Safe, Synchronous, Write

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
LOCK, BUSY = "by hand, one lock", "by hand, busy timeout"


def row(thread: int, number: int) -> tuple[int, int, int, str]:
    """Make a row with a random key."""
    return thread, number, random.getrandbits(40), PAYLOAD


class HandLock(OneLock):
    """One connection, and a lock around each transaction; SQLite checkpoints at 1000 pages."""

    name = LOCK

    def writer(self) -> Write:
        execute, lock = self._connection.execute, self._lock

        def write(thread: int, number: int) -> None:
            with lock:
                execute("BEGIN IMMEDIATE")
                execute(INSERT, row(thread, number))
                execute("COMMIT")

        return write


class HandBusy(BusyTimeout):
    """A connection for each thread, which waits for the others by SQLite's own polling."""

    name = BUSY

    def writer(self) -> Write:
        super().writer()
        execute = self._own.connection.execute

        def write(thread: int, number: int) -> None:
            execute("BEGIN IMMEDIATE")
            execute(INSERT, row(thread, number))
            execute("COMMIT")

        return write


class Kept(Safe):
    """Write by ``db.execute``; the keeper checkpoints as it does, more rarely, or never."""

    def __init__(self, path: Path, synchronous: Synchronous, name: str) -> None:
        Rival.__init__(self, path)
        self.name = name
        settings = SETTINGS[name]
        pragmas = safedb.Pragmas(synchronous=synchronous, **settings)  # type: ignore[arg-type]
        self.db = safedb.connect(path, pragmas=pragmas, retry=safedb.RetryPolicy(timeout=PATIENCE))

    def writer(self) -> Write:
        execute = self.db.execute
        return lambda thread, number: execute(INSERT, row(thread, number))


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
    races: dict[str, list[Race]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def ratio(self, first: str, second: str, figure: str = "p999") -> Spread:
        """Give, heat by heat, a figure of ``first`` as a multiple of that of ``second``."""
        pairs = zip(self.races[first], self.races[second], strict=True)
        return Spread.of([getattr(a, figure) / getattr(b, figure) for a, b in pairs])


@contextmanager
def rivals(folder: Path, synchronous: Synchronous) -> Iterator[list[Rival]]:
    """Open all of them, each on a database of its own that has rows in it; look afterwards whether all are there."""
    made: list[Rival] = []
    makers: Mapping[str, Callable[[Path], Rival]] = {
        "lock": lambda path: HandLock(path, synchronous),
        "busy": lambda path: HandBusy(path, synchronous),
        "safe": lambda path: Kept(path, synchronous, SAFEDB),
        "often": lambda path: Kept(path, synchronous, OFTEN),
        "off": lambda path: Kept(path, synchronous, OFF),
    }
    with ExitStack() as stack:
        for name, make in makers.items():
            path = folder / f"{name}-{synchronous}.db"
            with safedb.connect(path, schema=SCHEMA) as db:
                db.executemany(INSERT, [row(OLD, number) for number in range(BEFORE)])
            rival = make(path)
            stack.callback(rival.close)
            rival.acknowledged[OLD] = BEFORE
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
            race(rival, threads=1, seconds=0.2)  # does not count
        for number in range(heats):
            for rival in all_of_them if number % 2 else reversed(all_of_them):
                with Peak(rival.path) as peak:
                    found.races[rival.name].append(race(rival, threads=THREADS, seconds=seconds))
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
        for name, races in heats.races.items():
            cells = [
                heats.synchronous,
                name,
                *(
                    spread(Spread.of([getattr(one, figure) * factor for one in races]))
                    for figure, factor in (("rate", 1), ("p50", 1e3), ("p999", 1e3), ("longest", 1e3))
                ),
                f"{heats.peaks[name] / 1e6:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| synchronous | p99.9 of | as a multiple of | min … median … max |", "|---|---|---|---|"]
    for heats in modes:
        for one, other in ((SAFEDB, LOCK), (SAFEDB, BUSY), (SAFEDB, OFF), (OFTEN, OFF)):
            lines.append(f"| {heats.synchronous} | {one} | {other} | {spread(heats.ratio(one, other))} |")
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
        for synchronous in ("FULL", "NORMAL"):
            print(f"… {synchronous}", file=sys.stderr)
            modes.append(run_heats(folder, synchronous, heats=heats, seconds=seconds))
    print(markdown(about, modes))
    if given.json is not None:
        whole = {"machine": asdict(about), "modes": [asdict(heats) for heats in modes]}
        given.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
