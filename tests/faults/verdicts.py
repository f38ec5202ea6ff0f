"""What a child does on a disk that fails, what it is told, and what is compared with that afterwards.

Each write puts in `PARTS` rows of its own number, so that a lost one, a half one and one that was made twice all show.
The functions of a `World` run in a child (`shim.py`); the others in the test, which has no database open.
"""

from __future__ import annotations

import functools
import itertools
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import FOREVER, Faults, World, say
from support import Crew, Worker, line_behind_a_block

import safedb
from safedb import errors
from safedb.sqlite.driver import sqlite3

GENEROUS = safedb.RetryPolicy(timeout=60.0)
SCHEMA = "CREATE TABLE IF NOT EXISTS t(w INTEGER, part INTEGER, v BLOB, PRIMARY KEY (w, part))"
INSERT = "INSERT INTO t VALUES (?, ?, zeroblob(?))"
BOTH = "INSERT INTO t VALUES (:w, 0, zeroblob(:size)), (:w, 1, zeroblob(:size))"
PARTS = 2
"""Rows of each write, so that half of one would show."""
SMALL, LARGE = 50, 60_000
"""Bytes of a row: one that is written at COMMIT, and one that a small cache cannot hold until then."""
NO_CHECKPOINTS = {"checkpoint_pages": 0, "wal_limit": 0}

OK, FULL, UNKNOWN, FAILED = "ok", "DatabaseFull", "CommitUnknownError", "OperationalError"
Told = dict[int, str]


# -- what a child does ------------------------------------------------------------------------------------------------


def open_db(world: World, /, path: Path, **pragmas: Any) -> None:
    world.clear()
    world.heard = []
    world.db = safedb.connect(
        path, schema=SCHEMA, retry=GENEROUS, pragmas=safedb.Pragmas(**pragmas), on_event=world.heard.append
    )


def block(db: safedb.Database, w: int, size: int) -> None:
    with db.transaction() as tx:
        function(tx, w, size)


def function(tx: safedb.Transaction, w: int, size: int) -> None:
    for part in range(PARTS):
        tx.execute(INSERT, (w, part, size))


WAYS: dict[str, Callable[[safedb.Database, int, int], Any]] = {
    "a statement": lambda db, w, size: db.execute(BOTH, {"w": w, "size": size}),
    "RETURNING": lambda db, w, size: db.execute(f"{BOTH} RETURNING w", {"w": w, "size": size}),
    "many rows": lambda db, w, size: db.executemany(INSERT, [(w, part, size) for part in range(PARTS)]),
    "a script": lambda db, w, size: db.executescript(BOTH.replace(":w", str(w)).replace(":size", str(size))),
    "a block": block,
    "a function": lambda db, w, size: db.run_transaction(function, w, size),
}
SHARING = ["a statement", "RETURNING", "many rows", "a function", "a statement", "a function"]
"""Ways that meet in one group."""


def told(call: Callable[[], Any]) -> str:
    """Name what a caller is told."""
    try:
        call()
    except errors.Error as error:
        return type(error).__name__
    return OK


def write(world: World, way: str, w: int, size: int = SMALL) -> str:
    return told(lambda: WAYS[way](world.db, w, size))


def seen(world: World) -> dict[int, int]:
    """Count the rows of each write, as this process sees them."""
    return dict(world.db.execute("SELECT w, count(*) FROM t GROUP BY w").fetchall())


def damage(world: World) -> list[str]:
    return world.db.check()


def checkpoint(world: World) -> str:
    return told(world.db.checkpoint)


def execute(world: World, sql: str) -> str:
    return told(lambda: world.db.execute(sql))


def scalar(world: World, sql: str) -> Any:
    return world.db.execute(sql).scalar()


def close(world: World) -> str:
    return told(world.db.close)


def stats(world: World) -> safedb.Stats:
    return world.db.stats()


def start(world: World, name: str, function: Callable[..., str], *args: Any) -> None:
    """Call ``function(world, …)`` in a thread of the child's; `finish` tells what it was told."""
    world.workers[name] = Worker(lambda: function(world, *args), name)


def finish(world: World, name: str) -> Any:
    return world.workers.pop(name).result()


def running(world: World, name: str) -> bool:
    return world.workers[name].running


@dataclass(frozen=True)
class Fault:
    """Be what the disk does to the WAL, and what a writer is told of it, at whose COMMIT it does it."""

    told: str
    rules: tuple[tuple[int, str, int, dict[str, int]], ...]

    def arm(self, faults: Faults, times: int = FOREVER) -> None:
        for calls, pattern, error, how in self.rules:
            faults.arm(calls, pattern, error, **{"times": times, **how})

    @contextmanager
    def broken(self, faults: Faults) -> Iterator[None]:
        """Let it happen while the block runs; something must have come of it."""
        self.arm(faults)
        try:
            yield
        finally:
            hits = faults.mend()
        assert hits, "the fault has hit nothing"


def group(world: World, first: int, size: int, fault: Fault | None = None, times: int = FOREVER) -> Told:
    """Let writers gather behind a block, and break the disk before it lets them go."""
    crew, verdicts = Crew(), {}

    def one(way: str, w: int, size: int) -> None:
        verdicts[w] = write(world, way, w, size)

    with line_behind_a_block(world.db, crew) as line:
        for number, way in enumerate(SHARING):
            line.add(one, way, first + number, size if number else SMALL)
        if fault is not None:
            fault.arm(world.faults, times)
    crew.finish()
    assert fault is None or world.faults.mend(), "the fault has hit nothing"
    return verdicts


def backup(world: World, dest: Path) -> str:
    return told(lambda: world.db.backup(dest))


def open_once(world: World, path: Path) -> str:
    return told(lambda: open_db(world, path))


WRITERS = 4


def storm(world: World, seed: int) -> None:
    """Write in every way from several threads, and say so before and after, until this process is killed."""

    def writer(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        for w in itertools.count(number, WRITERS):
            way, size = chance.choice(list(WAYS)), chance.choice([SMALL] * 6 + [3000] * 3 + [LARGE])
            say(f"{w} begun")
            say(f"{w} {write(world, way, w, size)}")

    for number in range(WRITERS):
        Worker(functools.partial(writer, number), f"writer-{number}")
    signal.pause()


# -- in the test -------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> dict[int, int]:
    """Recover a database, look for damage, and count the rows of each write."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return dict(connection.execute("SELECT w, count(*) FROM t GROUP BY w").fetchall())


numbers = itertools.count(1)


def copied(path: Path, place: Path | None = None) -> Path:
    """Copy a database and its WAL at this moment; nobody in this process has it open, for closing drops locks (H32)."""
    folder = (place or path.parent) / f"copy{next(numbers)}"
    folder.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        if (path.parent / name).exists():
            shutil.copyfile(path.parent / name, folder / name)
    return folder / path.name


def after_kill(path: Path, place: Path | None = None) -> dict[int, int]:
    """Count the rows of each write, as the next process would find them, were all killed now."""
    return rows_of(copied(path, place))


def true(told: Told, found: dict[int, int]) -> None:
    """Compare what writers were told with what is there."""
    for w, verdict in told.items():
        possible = {OK: {PARTS}, UNKNOWN: {0, PARTS}}.get(verdict, {0})
        assert found.get(w, 0) in possible, f"the write {w} was told {verdict}: {found.get(w, 0)} rows of it are there"
    assert set(found) <= set(told), "nobody wrote that"


class Ledger:
    """Keep what writers were told: "begun" is what the kill has left without an answer."""

    def __init__(self) -> None:
        self.told: Told = {}

    def note(self, line: str) -> int:
        """Note one line of a writer's; return whose it is."""
        w, verdict = line.split()
        self.told[int(w)] = verdict
        return int(w) % WRITERS

    def settle(self, found: dict[int, int]) -> None:
        """Compare it with what is there; who has had no answer may be there or not, but whole."""
        true({w: UNKNOWN if verdict == "begun" else verdict for w, verdict in self.told.items()}, found)
