"""Bounded: the WAL has a ceiling; whoever keeps it from shrinking is named, and it shrinks when that one has gone.

The files are real, and so are the keeper, the readers and the other processes: nothing here tells the keeper when to
look. Sizes are those of the file, looked at after each write.
"""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from reliability import LONG, Record, form
from support import JOIN, Crew, unmeasured, wait_until

import safedb
from safedb.sqlite import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGES = 250
"""Live pages from which on the keeper moves them."""
LIMIT = 8_000_000
"""Bytes above which it cuts the file."""
FRAME = 4096 + 24
HEADER = 32
SCHEMA = "CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v BLOB); CREATE INDEX by_k ON t (k)"
INSERT = "INSERT INTO t (k, v) VALUES (?, zeroblob(?))"


class Log:
    """Be a database whose WAL is watched: its greatest size, the writes' worst wait, and what was told."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "app.db"
        self.told: list[safedb.Event] = []
        self.peak = self.written = 0
        self.waits: list[float] = []
        self.crew = Crew()
        self._stack = stack

    def open(self, **given: Any) -> safedb.Database:
        pragmas: dict[str, Any] = {"synchronous": "NORMAL", "checkpoint_pages": PAGES, "wal_limit": LIMIT, **given}
        self.db = safedb.connect(
            self.path, schema=SCHEMA, retry=safedb.RetryPolicy(timeout=60.0), pragmas=safedb.Pragmas(**pragmas),
            on_event=self.told.append,
        )  # fmt: skip
        self._stack.callback(self.db.close)
        self._stack.callback(self.crew.finish)
        return self.db

    @property
    def size(self) -> int:
        return self.db.stats().wal_bytes

    def write(self, size: int = 2000) -> None:
        """Write one row, and look at the file."""
        began = time.monotonic()
        self.db.execute(INSERT, (hash((size, self.written)) % 1_000_000, size))
        self.waits.append(time.monotonic() - began)
        self.written += 1
        self.peak = max(self.peak, self.size)

    def write_until(self, reached: Callable[[], bool], what: str) -> None:
        """Go on writing until something has happened."""
        end = time.monotonic() + 2 * JOIN
        while not reached():
            assert time.monotonic() < end, f"wrote in vain for {what}"
            self.write(20_000)
            if self.size > 3 * LIMIT:
                time.sleep(0.02)  # no need to fill the disk while something is awaited

    def of(self, kind: type[safedb.Event]) -> list[Any]:
        return [event for event in self.told if type(event) is kind]

    def small(self) -> bool:
        """Tell whether the file has shrunk to what need not be cut."""
        return self.size <= HEADER + PAGES * FRAME


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with ExitStack() as stack:
        yield Log(tmp_path, stack)


# -- readers that come and go -----------------------------------------------------------------------------------------


def come_and_go(db: safedb.Database, chance: random.Random, over: threading.Event) -> int:
    """Read in every way, and leave things half read."""
    reads = 0
    while not over.is_set():
        way = chance.randrange(4)
        if way == 0:
            db.execute("SELECT count(*) FROM t WHERE k < ?", (chance.randrange(1_000_000),))
        elif way == 1:
            with db.snapshot() as snap:
                for _ in range(3):
                    snap.execute("SELECT max(id) FROM t")
                    over.wait(chance.random() * 0.005)
        elif way == 2:
            with db.snapshot() as snap:
                next(snap.iterate("SELECT id FROM t UNION ALL SELECT 1", batch=1))  # and no further
        else:
            with db.snapshot(max_age=0.005):
                over.wait(chance.random() * 0.02)
        reads += 1
    return reads


def test_an_hour_of_writes_stays_under_the_ceiling_while_readers_come_and_go(
    log: Log, record: Record, seed: int
) -> None:
    """H25, H35, H38: no reader that ends keeps the log from being moved, and begun anew; half-read ones do not either.

    Written down: two threads write what a busy service writes in minutes (in the long form, in an hour), while two
    others read, hold snapshots for moments, leave iterators half read, and outstay their ``max_age``. The file never
    comes near twice its ceiling, though many times as much goes through it; and it shrinks when no more writes come.
    """
    db = log.open()
    chances = [random.Random(f"{seed} {number}") for number in range(4)]
    over = threading.Event()
    readers = [log.crew(come_and_go, db, chance, over) for chance in chances[:2]]

    def write(chance: random.Random) -> None:
        for _ in range(form(1500, 18_000)):
            log.write(chance.choice((200, 2000, 8000)))
            time.sleep(0.001)  # a service that does nothing but write is that of the benchmark

    writers = [log.crew(write, chance) for chance in chances[2:]]
    try:
        for writer in writers:
            writer.thread.join(500)
    finally:
        over.set()
    reads = sum(reader.result() for reader in readers)
    for writer in writers:
        writer.result()
    through = db.execute("SELECT sum(length(v)) FROM t").scalar()
    assert log.peak < 2 * LIMIT, f"{log.peak} bytes"
    wait_until(log.small, "the log to shrink although no more writes come")
    assert db.execute("SELECT count(*) FROM t").scalar() == form(3000, 36_000)
    record.add(rounds=reads, acknowledged=form(3000, 36_000), lost=0)
    record.note(log_peak_bytes=log.peak, written_bytes=through, checkpoints=db.stats().checkpoints.count)


def test_where_every_turn_takes_long_the_keeper_has_its_turn_all_the_same(log: Log, record: Record) -> None:
    """H35: the log grows without a bound where nobody moves it.

    Written down: two threads are inside blocks of a tenth of a second each, one after the other without a pause, so
    that whoever waits for a turn waits for longer than the keeper does at first.
    """
    db = log.open(checkpoint_pages=50, wal_limit=1_000_000)
    over, through = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        while not over.is_set():
            with db.transaction() as tx:
                tx.execute(INSERT, (1, 100_000))
                over.wait(0.1)
            through.release()

    writers = [log.crew(write) for _ in range(2)]
    try:
        for _ in range(form(40, 200)):
            assert through.acquire(timeout=JOIN)
            log.peak = max(log.peak, log.size)
    finally:
        over.set()
    for writer in writers:
        writer.result()
    record.note(log_peak_bytes=log.peak, checkpoints=db.stats().checkpoints.count)
    assert db.stats().checkpoints.count > 1
    assert log.peak < 3_000_000, f"{log.peak} bytes of {form(40, 200) * 100_000}"


# -- a reader that stays ----------------------------------------------------------------------------------------------


def test_a_snapshot_that_stays_is_named_and_the_log_shrinks_when_it_goes(
    log: Log, record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """H35, H36: one open reader, and the log grows; who it is and for how long is told in an event, log and stats.

    Written down: a thread is inside a snapshot while another writes beyond the ceiling; the writes go on without a
    stall, though TRUNCATE would wait for the reader (2.8 s by hand); then the snapshot ends, and no write comes any
    more.
    """
    if not LONG:
        monkeypatch.setattr(checkpoints, "LONG_SNAPSHOT", 0.5)
    db = log.open()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> int:
        with db.snapshot() as snap:
            before: int = snap.execute("SELECT count(*) FROM t").scalar()
            inside.set()
            assert leave.wait(4 * JOIN)
            assert snap.execute("SELECT count(*) FROM t").scalar() == before
            return before

    log.write()
    holder = log.crew(hold, name="the monthly report")
    try:
        assert inside.wait(JOIN)
        with caplog.at_level(logging.WARNING, logger="safedb"):
            log.write_until(
                lambda: log.size > 2 * LIMIT and any(event.wal_bytes > LIMIT for event in log.of(safedb.LongSnapshot)),
                "the snapshot to be told of",
            )
        told = log.of(safedb.LongSnapshot)[-1]
        assert told.holder == "the monthly report"
        assert told.age >= checkpoints.LONG_SNAPSHOT
        assert "the monthly report" in caplog.text
        age = db.stats().oldest_snapshot
        assert age is not None
        assert age >= told.age
        assert any(event.busy for event in log.of(safedb.SlowCheckpoint)), "the ceiling was passed, and nobody was told"
        for _ in range(form(200, 2000)):
            log.write()
        time.sleep(1.5 * checkpoints.QUIET)  # it is quiet when the snapshot ends
    finally:
        leave.set()
    assert holder.result() == 1
    record.note(worst_write=f"{max(log.waits) * 1000:.0f} ms", log_peak_bytes=log.peak)
    slow = sum(wait > 1.0 for wait in log.waits)
    assert slow < 3, f"{slow} writes took more than a second"
    wait_until(log.small, "the log to shrink once the snapshot has gone")
    assert db.stats().oldest_snapshot is None


def test_max_age_ends_a_snapshot_that_stays_and_the_log_shrinks_while_its_thread_goes_on(log: Log) -> None:
    """H35: age-limit readers.

    Written down: a thread falls asleep inside a snapshot with ``max_age``, and half-way through an iterator; the writes
    pass the ceiling; the log is cut although the thread sleeps on, and is told why when it wakes.
    """
    db = log.open()
    log.write()
    log.write()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with db.snapshot(max_age=1.0) as snap:
            rows = snap.iterate("SELECT id FROM t", batch=1)
            next(rows)
            inside.set()
            assert leave.wait(4 * JOIN)
            with pytest.raises(safedb.OperationalError, match="max_age"):
                next(rows)

    holder = log.crew(hold)
    try:
        assert inside.wait(JOIN)
        log.write_until(lambda: log.peak > LIMIT, "the log to pass its ceiling")
        wait_until(log.small, "the log to be cut")
        assert holder.running
        assert db.stats().oldest_snapshot is None
    finally:
        leave.set()
    holder.result()


FOREIGNER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
print(connection.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
sys.stdin.read()
"""


def test_a_foreign_reader_is_reported_without_a_name_and_the_log_shrinks_when_it_is_killed(
    log: Log, record: Record
) -> None:
    """H35, H36: another program's reader pins the log, and nobody but its own process can end it.

    Written down: another process, which knows nothing of safedb, is inside a read transaction while this one writes
    beyond the ceiling. `SlowCheckpoint` says that a reader is in the way, and how large the log is; `stats()` knows no
    snapshot of ours, so it is not one. The process is killed, and the log is cut although no more writes come.
    """
    db = log.open()
    log.write()
    reader = subprocess.Popen(
        [sys.executable, "-c", FOREIGNER, str(log.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=unmeasured(),
    )  # fmt: skip
    with reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "1\n"
            log.write_until(
                lambda: any(event.busy and event.wal_bytes > LIMIT for event in log.of(safedb.SlowCheckpoint)),
                "the reader to be told of",
            )
            assert db.stats().oldest_snapshot is None
            assert not log.of(safedb.LongSnapshot)
            for _ in range(form(200, 2000)):
                log.write()
            time.sleep(1.5 * checkpoints.QUIET)
        finally:
            reader.kill()
    record.add(kills=1)
    record.note(worst_write=f"{max(log.waits) * 1000:.0f} ms", log_peak_bytes=log.peak)
    assert sum(wait > 1.0 for wait in log.waits) < 3
    wait_until(log.small, "the log to shrink once the process has gone")


# -- what SQLite itself would do --------------------------------------------------------------------------------------


def test_journal_size_limit_trims_when_the_log_begins_anew(log: Log) -> None:
    """H38: it trims at the next reset only; the keeper sees to it that there is one.

    Written down: one large transaction makes the file large, with no ceiling to cut it; small writes go on, so it is
    never quiet. The keeper moves all, the next write begins the log anew, and SQLite trims the file.
    """
    db = log.open(checkpoint_pages=100, wal_limit=0, journal_size_limit=100_000)
    log.write(2_000_000)
    assert log.peak > 2_000_000
    end = time.monotonic() + JOIN
    while log.size > 1_000_000:
        assert time.monotonic() < end, f"the log has still {log.size} bytes"
        log.write(100)
        time.sleep(0.005)
    assert db.stats().checkpoints.count > 0
