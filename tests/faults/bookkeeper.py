"""Processes that use safedb in every way and keep book of it, until they are killed, maybe by their own hand.

`keep` is the job of one process: its threads do whatever chance gives them, and each writes into the journal what it
is about to do, and what was acknowledged (see `ledger`). A process that is given an aim kills itself with -9 in one
certain place: in a statement, just before COMMIT, in a checkpoint. `open_once` opens databases that are not there yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ledger import ACCOUNTS, ACKNOWLEDGED, ANNOUNCED, BACKUP, EACH, INSERT, REFUSED, SCHEMA, Journal, Row, row
from support import sqlite3

import safedb
from safedb.sql import parse, split
from safedb.sqlite import backups, connections
from safedb.sqlite import pragmas as pragmas_module
from safedb.stats import Timer

GENEROUS = safedb.RetryPolicy(timeout=60.0)
HERE = "INSERT INTO entries VALUES (?, ?, here('{}', ?), ?, ?)"
HEADER = 48  # bytes of each of the two copies: https://sqlite.org/walformat.html
PAGES = 8  # a step of a backup, so that it has many
BODIES = (0, 0, 20, 200, 3000)  # bytes: a page holds many rows, or none

WEIGHTS: dict[str, float] = {
    "statement": 30,
    "returning": 5,
    "many": 10,
    "function": 15,
    "block": 8,
    "undone": 3,
    "refused": 4,
    "script": 3,
    "read": 6,
    "snapshot": 5,
    "checkpoint": 1,
    "vacuum": 0.3,
    "index": 0.5,
    BACKUP: 0.5,
}
"""The ways to use a database, and how often each is taken."""

# Where a process may kill itself: the ways to get there, and the milliseconds, at the most, until it does: for what is
# under way inside SQLite for a while.
PLACES: dict[str, tuple[str, float]] = {
    "statement": ("statement", 0),
    "executemany": ("many", 0),
    "script": ("script", 0),
    "function": ("function", 0),
    "block": ("block", 0),
    "savepoint": ("refused", 0),
    "rollback": ("undone", 0),
    "before COMMIT": ("function", 0),
    "COMMIT": ("many", 1),
    "after COMMIT": ("many", 0),
    "checkpoint": ("checkpoint", 2),
    "VACUUM": ("vacuum", 4),
    "snapshot": ("snapshot", 0),
    "backup": (BACKUP, 0),
    "end of a backup": (BACKUP, 3),
    "opening": ("statement", 12),
    "closing": ("statement", 6),
}
SURE = ("execute", "returning", "executemany", "block", "script")
"""Kinds of writes that never fail by themselves."""
UNDONE = (
    "statement", "executemany", "script", "function", "block", "savepoint", "rollback", "before COMMIT", "backup",
)  # fmt: skip
"""Where nothing of what the thread is about may ever be seen."""
TEXTS = {
    "COMMIT": ("before COMMIT", "COMMIT"),
    "ROLLBACK": ("rollback",),
    "SAVEPOINT safedb_member": ("savepoint",),
    "VACUUM": ("VACUUM",),
    **{f"PRAGMA wal_checkpoint({mode})": ("checkpoint",) for mode in ("PASSIVE", "RESTART", "TRUNCATE")},
}
"""What SQLite is about to run, and which place that is."""


def warm_up() -> None:
    """Do what each process would do first of all: patterns are compiled at first use."""
    split(SCHEMA)
    parse(INSERT)


class Undo(Exception):
    """Leave a block, so that it is rolled back."""


class Aim:
    """Be the place where this process kills itself, when it comes there for the ``turn``-th time."""

    def __init__(self, journal: Journal, place: str | None, chance: random.Random) -> None:
        self._journal = journal
        self.place = place
        self.way, longest = PLACES[place] if place else ("", 0)
        self._turn = 1 if place in ("opening", "closing") else chance.randint(1, 4)
        self._delay = chance.uniform(0, longest / 1000)
        self._guard = threading.Lock()
        self._come = threading.Event()
        self.about = threading.local()  # what each thread is about: a write's name
        if longest:
            threading.Thread(target=self._strike_later, daemon=True).start()

    def passes(self, *places: str) -> None:
        """Die, if one of these is the place, and it is time."""
        if self.place not in places:
            return
        if self.place == "after COMMIT" and not getattr(self.about, "sure", False):
            return  # what may fail is not in every COMMIT that comes of it: one may have nothing left in it
        with self._guard:
            self._turn -= 1
            if self._turn != 0:
                return
        write = getattr(self.about, "write", None)
        if write is not None and self.place in UNDONE:
            self._journal.note(REFUSED, write)  # it must never be seen
        elif write is not None and self.place == "after COMMIT":
            self._journal.note(ACKNOWLEDGED, write)  # it is never heard of, and yet it must be there
        if PLACES[self.place][1]:
            self._come.set()
        else:
            _die()

    def _strike_later(self) -> None:
        self._come.wait()
        time.sleep(self._delay)
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _AimingTimer(Timer):
    """Be told of each COMMIT when it has just returned, and nobody knows of it yet."""

    def __init__(self, aim: Aim) -> None:
        super().__init__()
        self._aim = aim

    def add(self, seconds: float) -> None:
        super().add(seconds)
        self._aim.passes("after COMMIT")


class Bookkeeper:
    """Be one thread that works, and keeps book of it."""

    def __init__(
        self,
        db: safedb.Database,
        journal: Journal,
        name: str,
        aim: Aim,
        chance: random.Random,
        weights: dict[str, float],
    ) -> None:
        self._db = db
        self._journal = journal
        self._name = name
        self._aim = aim
        self._chance = chance
        self._weights = weights
        self._count = 0
        self._last: tuple[str, int] | None = None  # the last acknowledged write, and its rows

    def work(self) -> None:
        """Do one thing."""
        (way,) = self._chance.choices(list(self._weights), list(self._weights.values()))
        getattr(self, f"_{way}")()

    @contextlib.contextmanager
    def _booked(self, kind: str, parts: int, *, fails: type[Exception] | None = None) -> Iterator[str]:
        """Announce a write, and note what became of it; with ``fails`` it must raise just that."""
        self._count += 1
        name = f"{self._name}.{self._count}"
        self._journal.note(ANNOUNCED, name, kind, parts)
        self._aim.about.write, self._aim.about.sure = name, kind in SURE
        try:
            yield name
        except (safedb.IntegrityError, Undo) as error:
            if not isinstance(error, fails or safedb.CheckViolation):  # of a transfer from an empty account
                raise
            self._journal.note(REFUSED, name)
        else:
            assert fails is None, f"{name} should have failed"
            self._journal.note(ACKNOWLEDGED, name)
            self._last = name, parts
        finally:
            self._aim.about.write, self._aim.about.sure = None, False

    def _row(self, name: str, part: int = 0) -> Row:
        return row(name, part, self._chance.choice(BODIES), self._chance.randint(1, ACCOUNTS))

    def _rows(self, name: str, parts: int) -> list[Row]:
        return [self._row(name, part) for part in range(parts)]

    # -- ways to write ------------------------------------------------------------------------------------------------

    def _statement(self) -> None:
        with self._booked("execute", 1) as name:
            self._db.execute(self._chance.choice((INSERT, INSERT, HERE.format("statement"))), self._row(name))

    def _returning(self) -> None:
        with self._booked("returning", 1) as name:
            assert self._db.execute(f"{INSERT} RETURNING part", self._row(name)).one() == (0,)

    def _many(self) -> None:
        parts = self._chance.randint(1, 12)
        with self._booked("executemany", parts) as name:
            assert self._db.executemany(HERE.format("executemany"), self._rows(name, parts)) == parts

    def _function(self) -> None:
        source, target = self._chance.sample(range(1, ACCOUNTS + 1), 2)
        amount = self._chance.randint(1, 20)
        with self._booked("function", 2) as name:
            self._db.run_transaction(self._transfer, name, source, target, amount)

    def _transfer(self, tx: safedb.Transaction, name: str, source: int, target: int, amount: int) -> None:
        for part, (account, change) in enumerate(((source, -amount), (target, amount))):
            tx.execute(INSERT, row(name, part, 0, account, change))
            tx.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (change, account))
        self._aim.passes("function")

    def _block(self) -> None:
        parts = self._chance.randint(1, 6)
        with self._booked("block", parts) as name, self._db.transaction() as tx:
            for number, line in enumerate(self._rows(name, parts)):
                with tx.savepoint():
                    tx.execute(INSERT, line)
                if number == parts // 2:
                    self._aim.passes("block")

    def _undone(self) -> None:
        with self._booked("undone", 3, fails=Undo) as name, self._db.transaction() as tx:
            tx.executemany(INSERT, self._rows(name, 3))
            raise Undo

    def _refused(self) -> None:
        with self._booked("refused", 1, fails=safedb.NotNullViolation) as name:
            self._db.execute(INSERT, (*self._row(name)[:4], None))

    def _script(self) -> None:
        parts = self._chance.randint(2, 4)
        with self._booked("script", parts) as name:
            rows = [row(name, part) for part in range(parts)]
            texts = [f"INSERT INTO entries VALUES ('{w}', {p}, '{b}', {a}, {m});" for w, p, b, a, m in rows]
            self._db.executescript("".join([*texts[:-1], "SELECT here('script', 1);", texts[-1]]))

    # -- all else -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        if self._last is not None:
            name, parts = self._last
            found = self._db.execute("SELECT count(*) FROM entries WHERE write = ?", (name,)).scalar()
            assert found == parts, f"{name} was acknowledged with {parts} rows, and {found} are seen"
        assert self._db.execute("SELECT open FROM accounts WHERE id = 1").scalar() is True

    def _snapshot(self) -> None:
        with self._db.snapshot() as snap:
            count = snap.execute("SELECT count(*) FROM entries").scalar()
            assert snap.execute("SELECT total(balance) FROM accounts").scalar() == ACCOUNTS * EACH
            self._aim.passes("snapshot")
            seen = sum(1 for _ in snap.iterate("SELECT * FROM entries LIMIT 300", batch=50))
            assert seen == min(count, 300)

    def _checkpoint(self) -> None:
        self._db.checkpoint()

    def _vacuum(self) -> None:
        self._db.execute("VACUUM")

    def _index(self) -> None:
        self._db.execute("DROP INDEX IF EXISTS entries_of_an_account")
        self._db.execute("CREATE INDEX IF NOT EXISTS entries_of_an_account ON entries (account)")

    def _backup(self) -> None:
        with self._booked(BACKUP, 0) as name:
            self._db.backup(self._journal.folder / f"{name}.backup", self._on_page)

    def _on_page(self, done: int, total: int) -> None:
        self._aim.passes("backup")
        if done == total:
            self._aim.passes("end of a backup")


def keep(
    link: Connection,
    *,
    database: str,
    name: str,
    threads: int,
    pragmas: dict[str, Any],
    seed: int,
    aim: str | None = None,
    slice_of: float | None = None,
) -> None:
    """Work with several threads until told to stop, or killed; the folder of the database has journals and backups.

    ``slice_of``: seconds that SQLite itself waits for a lock, so that safedb's own waiting shows.
    """
    backups.PAGES = PAGES
    if slice_of is not None:
        pragmas_module.BUSY_SLICE = connections.SLICE = slice_of
    journal = Journal(Path(database).parent, name)
    logging.getLogger("safedb").addHandler(_Complaints(journal))
    place = Aim(journal, aim, random.Random(f"{seed} {name}"))
    stop, busy = threading.Event(), threading.Event()
    weights = dict(WEIGHTS)
    if aim:
        weights[place.way] += 30
    if pragmas.get("checkpoint_pages") == 0:
        weights["checkpoint"] = 0  # the WAL is to stay as large as it is

    def work(number: int) -> None:
        worker = Bookkeeper(db, journal, f"{name}.{number}", place, random.Random(f"{seed} {name} {number}"), weights)
        while not stop.is_set():
            worker.work()
            busy.set()

    try:
        place.passes("opening")
        db = _open(database, pragmas, place)
        workers = [threading.Thread(target=_guarded, args=(journal, work, number)) for number in range(threads)]
        for worker in workers:
            worker.start()
        if aim == "closing":
            busy.wait()
        else:
            link.recv()
        stop.set()
        for worker in workers:
            worker.join()
        place.passes("closing")
        db.close()
        if aim == "closing":
            threading.Event().wait()  # for the end
    except EOFError:
        raise
    except BaseException:
        journal.complain(traceback.format_exc())


class _Complaints(logging.Handler):
    """Take down what safedb logs as an error: what went wrong in threads of its own."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.ERROR)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.complain(self.format(record))


def _guarded(journal: Journal, work: Callable[[int], None], number: int) -> None:
    try:
        work(number)
    except BaseException:
        journal.complain(traceback.format_exc())


def _open(database: str, pragmas: dict[str, Any], aim: Aim) -> safedb.Database:
    def here(place: str, value: Any) -> Any:
        aim.passes(place)
        return value

    def trace(text: str) -> None:
        aim.passes(*TEXTS.get(text, ()))

    db = safedb.connect(
        Path(database), schema=SCHEMA, retry=GENEROUS, pragmas=safedb.Pragmas(**pragmas), functions={"here": (here, 2)}
    )
    engine: Any = db._engine
    if any(aim.place in places for places in TEXTS.values()):
        engine.writer.connection.set_trace_callback(trace)
    engine.counters.commit_times = _AimingTimer(aim)
    return db


def open_once(link: Connection, *, gate: str) -> None:
    """Open one database after the other as soon as the gate opens; say of each what went wrong, or None."""
    while True:
        database, number, stays = link.recv()
        link.send("at the gate")
        with Path(gate).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        try:
            with safedb.connect(Path(database), schema=SCHEMA, retry=GENEROUS) as db:
                db.execute(INSERT, row(f"w{number}", 0))
                if stays:
                    link.send("open")
                    link.recv()
            link.send(None)
        except EOFError:
            raise
        except BaseException:
            link.send(traceback.format_exc())


def occupy(link: Connection, *, database: str) -> None:
    """Have a database to oneself, as whoever recovers it, until told to let go."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("UPDATE accounts SET open = open")
        link.send("occupied")
        link.recv()
    link.send("left")


def tear(link: Connection, *, database: str) -> None:
    """Leave the WAL's index as one leaves it who is killed between writing the two copies of its header, when told."""
    gate, turn = (os.open(f"{database}-safedb{suffix}", os.O_RDWR) for suffix in (".next", ""))
    while True:
        link.recv()
        for number in (gate, turn):
            fcntl.flock(number, fcntl.LOCK_EX)
        with Path(f"{database}-shm").open("r+b") as file:
            file.write(b"\xff" * HEADER)
        for number in (turn, gate):
            fcntl.flock(number, fcntl.LOCK_UN)
        link.send("torn")
