"""The WAL is bounded: it is moved when it has grown, cut when it is too large, and whoever holds it up is named."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import JOIN, Crew, Gate, sqlite3, unmeasured, wait_until

import safedb
from safedb import errors
from safedb.sqlite import checkpoints
from safedb.sqlite.checkpoints import Answer, Checkpoints
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.sidelock import SideLock
from safedb.stats import Event, LongSnapshot, SlowCheckpoint

GENEROUS = safedb.RetryPolicy(timeout=60.0)
PAGE = 4096

Connect = Callable[..., tuple[safedb.Database, Checkpoints]]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def open_db(tmp_path: Path, heard: list[Event], gate: Gate) -> Iterator[Connect]:
    """Open the database, by default with a keeper that never looks by itself: the test says when, and at what time."""
    handles: list[safedb.Database] = []

    def connect(*, keeper: bool = False, **pragmas: Any) -> tuple[safedb.Database, Checkpoints]:
        db = safedb.connect(
            tmp_path / "app.db", retry=GENEROUS, on_event=heard.append, pragmas=safedb.Pragmas(**pragmas),
            functions={"gate": gate},
        )  # fmt: skip
        handles.append(db)
        engine = engine_of(db)
        if not keeper:
            engine.checkpointer.close()
        db.executescript("CREATE TABLE t(x BLOB)")
        return db, engine.checkpoints

    yield connect
    for handle in handles:
        handle.close()


def engine_of(db: safedb.Database) -> SqliteEngine:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    return engine


def fill(db: safedb.Database, pages: int) -> None:
    db.execute("INSERT INTO t VALUES (zeroblob(?))", (pages * PAGE,))


# -- when -------------------------------------------------------------------------------------------------------------


def test_nothing_is_done_where_nothing_was_written(open_db: Connect) -> None:
    db, points = open_db()
    db.checkpoint()
    before = db.stats().checkpoints.count
    assert points.look(time.monotonic()) is False
    assert points.look(time.monotonic() + 100) is False
    assert db.stats().checkpoints.count == before


def test_enough_live_frames_are_moved_by_a_passive_checkpoint(open_db: Connect) -> None:
    db, points = open_db(checkpoint_pages=100)
    db.checkpoint()
    for _ in range(20):
        fill(db, 1)
    assert points.look(time.monotonic()) is True, "something is there, and not yet enough"
    count = db.stats().checkpoints.count
    for _ in range(40):
        fill(db, 1)
    points.look(time.monotonic())
    assert not points._left, "all was moved"
    stats = db.stats()
    assert stats.checkpoints.count == count + 1
    assert stats.wal_bytes > 0, "PASSIVE moves; it does not cut"


def test_frames_are_counted_whoever_wrote_them_and_to_the_frame(open_db: Connect, tmp_path: Path) -> None:
    """A second process's commits count towards this one's threshold.

    Written down: this process writes a little, another 99 frames in all, and then the hundredth.
    """
    db, points = open_db(checkpoint_pages=100)
    db.checkpoint()
    fill(db, 0)

    def frames() -> int:
        return (db.stats().wal_bytes - 32) // (PAGE + 24)

    count = db.stats().checkpoints.count
    elsewhere(tmp_path, commits=99 - frames())
    assert frames() == 99
    points.look(time.monotonic())
    assert db.stats().checkpoints.count == count
    elsewhere(tmp_path, commits=1)
    points.look(time.monotonic())
    assert db.stats().checkpoints.count == count + 1


def test_who_comes_second_to_a_checkpoint_leaves_it_out(open_db: Connect, tmp_path: Path) -> None:
    """All keepers find at the same frame that it is time; each checkpoint would hold up the writers, and flush twice.

    Written down: this keeper waits for its turn; another process moves all, and begins the log anew; it has its turn.
    """
    db, points = open_db(checkpoint_pages=100)
    fill(db, 150)
    count = db.stats().checkpoints.count
    alone: Any = points._blocks.alone

    def after_another(*given: Any, **named: Any) -> Any:
        with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as other:
            assert other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
            other.execute("INSERT INTO t VALUES (1)")
        return alone(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points._blocks, "alone", after_another)
        assert points.look(time.monotonic()) is True, "what this process wrote last may still be there"
    assert db.stats().checkpoints.count == count
    assert points.look(time.monotonic() + 2 * checkpoints.QUIET) is False
    assert db.stats().checkpoints.count == count + 1


BLIND = """
import os, resource, sys, time, safedb
db = safedb.connect("sqlite:///" + sys.argv[1], pragmas=safedb.Pragmas(checkpoint_pages=100, wal_limit=0))
db.execute("CREATE TABLE t (x)")
db.execute("INSERT INTO t VALUES (1)")
held = []
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
before = db.stats().checkpoints.count
end = time.monotonic() + 60
while db.stats().checkpoints.count < before + 3 and time.monotonic() < end:
    db.execute("INSERT INTO t VALUES (zeroblob(3000))")  # without a pause in which it would be moved anyway
print(db.stats().checkpoints.count - before)
os._exit(0)
"""


def test_a_process_that_cannot_open_the_log_counts_its_commits(tmp_path: Path) -> None:
    """It has no descriptor left, or has given up its rights; else the log would grow as long as there are writes."""
    order = [sys.executable, "-c", BLIND, str(tmp_path / "app.db")]
    done = subprocess.run(order, capture_output=True, text=True, timeout=2 * JOIN, env=unmeasured())
    assert int(done.stdout) >= 3, done.stderr


def elsewhere(folder: Path, *, commits: int) -> None:
    """Commit from another process, which knows nothing of safedb: one frame each."""
    program = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for n in range(int(sys.argv[2])):
    connection.execute("UPDATE t SET x = ?", (n + 200,))  # what does not change is not written
connection.close()
"""
    order = [sys.executable, "-c", program, str(folder / "app.db"), str(commits)]
    subprocess.run(order, check=True, timeout=JOIN, env=unmeasured())


def test_a_log_that_is_begun_anew_is_counted_from_its_beginning(open_db: Connect) -> None:
    """Neither is what was moved of the old one counted, nor what of it still lies behind the new one."""
    db, points = open_db(checkpoint_pages=100)
    fill(db, 150)
    points.look(time.monotonic())
    count, size = db.stats().checkpoints.count, db.stats().wal_bytes
    fill(db, 60)
    points.look(time.monotonic())
    assert db.stats().checkpoints.count == count
    fill(db, 50)
    points.look(time.monotonic())
    assert db.stats().checkpoints.count == count + 1
    assert db.stats().wal_bytes == size, "it was not begun anew"


def test_what_a_reader_kept_from_being_moved_is_still_counted(open_db: Connect) -> None:
    """Else it would wait for as much again, or for quiet, once the reader has gone."""
    db, points = open_db(checkpoint_pages=100)
    with db.snapshot() as snap:
        snap.execute("SELECT count(*) FROM t")
        fill(db, 150)
        points.look(time.monotonic())
    assert points._left
    fill(db, 0)
    points.look(points._not_before)
    assert not points._left


@pytest.mark.parametrize("before", [0, 150], ids=["a_short_log", "a_long_log"])
def test_what_a_transaction_left_that_was_rolled_back_is_not_looked_for_at_each_look(
    open_db: Connect, tmp_path: Path, before: int
) -> None:
    """It looks like more than it is until the log begins anew, which readers that come and go can put off for long.

    Written down: a reader; a large transaction, which has spilled, is rolled back; before each look there is one small
    commit, and one more reader comes before the other goes.
    """
    db, points = open_db(checkpoint_pages=100, cache_size=10)
    db.checkpoint()
    fill(db, before)
    readers = [sqlite3.connect(tmp_path / "app.db", isolation_level=None) for _ in range(2)]

    def spill(tx: safedb.Transaction) -> None:
        for _ in range(200):
            tx.execute("INSERT INTO t VALUES (zeroblob(4000))")
        raise ZeroDivisionError

    def come_and_go() -> None:
        readers[0].execute("BEGIN")
        readers[0].execute("SELECT count(*) FROM t").fetchall()
        readers.reverse()
        if readers[0].in_transaction:
            readers[0].execute("ROLLBACK")

    try:
        come_and_go()
        points.look(time.monotonic())
        size = db.stats().wal_bytes
        with pytest.raises(ZeroDivisionError):
            db.run_transaction(spill)
        assert db.stats().wal_bytes > size + 100 * PAGE, "nothing has spilled"
        count = db.stats().checkpoints.count
        fill(db, 0)
        come_and_go()
        points.look(time.monotonic())
        assert db.stats().checkpoints.count == count + 1
        assert points._pause == checkpoints.SHORT_PAUSE
        fill(db, 0)
        come_and_go()
        points.look(points._not_before - 0.001)
        assert db.stats().checkpoints.count == count + 1
        fill(db, 0)
        points.look(points._not_before)
        assert db.stats().checkpoints.count == count + 2, "it is never tried again"
        assert points._not_before <= time.monotonic() + checkpoints.QUIET
    finally:
        for reader in readers:
            reader.close()


def test_when_no_more_writes_come_the_rest_is_moved(open_db: Connect) -> None:
    db, points = open_db()
    fill(db, 1)
    now = time.monotonic()
    assert points.look(now) is True
    assert points.look(now + checkpoints.QUIET / 2) is True
    count = db.stats().checkpoints.count
    assert points.look(now + checkpoints.QUIET * 2) is False
    assert db.stats().checkpoints.count == count + 1


def test_when_no_more_writes_come_a_large_wal_is_cut(open_db: Connect) -> None:
    db, points = open_db(checkpoint_pages=10)
    fill(db, 50)
    now = time.monotonic()
    points.look(now)  # enough for PASSIVE
    assert db.stats().wal_bytes > 10 * PAGE
    assert points.look(now + checkpoints.QUIET * 3) is False
    assert db.stats().wal_bytes == 0


def test_the_keeper_does_all_that_by_itself(open_db: Connect) -> None:
    db, _ = open_db(keeper=True, checkpoint_pages=10)
    fill(db, 50)
    wait_until(lambda: db.stats().wal_bytes == 0, "the WAL to shrink although no more writes come")
    wait_until(lambda: engine_of(db).checkpointer.asleep, "the keeper to sleep")
    fill(db, 50)
    wait_until(lambda: db.stats().wal_bytes == 0, "the keeper to be woken by a commit")


def test_above_the_ceiling_the_wal_is_cut_at_once(open_db: Connect) -> None:
    db, points = open_db(wal_limit=100 * PAGE)
    fill(db, 50)
    now = time.monotonic()
    points.look(now)
    assert db.stats().wal_bytes > 0
    fill(db, 100)
    points.look(time.monotonic())
    assert db.stats().wal_bytes == 0


def test_what_vacuum_leaves_in_the_wal_is_cut_too(open_db: Connect) -> None:
    """VACUUM writes the whole database into the WAL, outside of every transaction that is counted."""
    db, _ = open_db(keeper=True, wal_limit=100 * PAGE)
    fill(db, 300)
    wait_until(lambda: db.stats().wal_bytes == 0)
    wait_until(lambda: engine_of(db).checkpointer.asleep)
    db.execute("VACUUM")
    wait_until(lambda: db.stats().wal_bytes == 0, "the keeper to cut what VACUUM wrote")


def test_litestream_checkpoints_itself(open_db: Connect) -> None:
    db, points = open_db(profile="litestream")
    fill(db, 300)
    now = time.monotonic()
    count = db.stats().checkpoints.count
    assert points.look(now) is True
    assert points.look(now + 100.0) is True
    assert db.stats().checkpoints.count == count
    assert db.stats().wal_bytes > 300 * PAGE


# -- who is in the way ------------------------------------------------------------------------------------------------


def test_a_reader_in_the_way_is_not_waited_for_long_and_the_rest_is_moved_later(
    open_db: Connect, heard: list[Event]
) -> None:
    """H36: TRUNCATE blocks writers for as long as it waits for readers."""
    db, points = open_db(wal_limit=10 * PAGE)
    with db.snapshot():
        fill(db, 20)
        started = time.monotonic()
        assert points.look(started) is True, "there is something left"
        (event,) = [event for event in heard if isinstance(event, SlowCheckpoint)]
        assert event.busy
        assert event.wal_bytes > 20 * PAGE
        fill(db, 1)
        count = db.stats().checkpoints.count
        points.look(started)
        assert db.stats().checkpoints.count == count, "it does not try again at once: each try holds up writers"
    assert points.look(time.monotonic() + checkpoints.QUIET * 2) is False
    assert db.stats().wal_bytes == 0


def test_a_slow_checkpoint_is_told_of(open_db: Connect, heard: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    db, points = open_db()
    monkeypatch.setattr(checkpoints, "SLOW", 0.0)  # no disk is slow on demand
    fill(db, 1)
    points.run("PASSIVE", time.monotonic() + 30)
    (event,) = [event for event in heard if isinstance(event, SlowCheckpoint)]
    assert event.seconds > 0.0
    assert not event.busy
    assert event.database == engine_of(db).name


def test_a_long_snapshot_is_reported_with_its_holder_and_its_age(
    open_db: Connect, heard: list[Event], crew: Crew
) -> None:
    """H35: one open reader, and the WAL grows without end."""
    db, points = open_db(wal_limit=10 * PAGE)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with db.snapshot():
            inside.set()
            leave.wait(30)

    holder = crew(hold, name="the reporter")
    inside.wait(30)
    fill(db, 20)
    now = time.monotonic()
    points.look(now)
    assert not [event for event in heard if isinstance(event, LongSnapshot)]
    points.look(now + 60.0)
    points.look(now + 61.0)
    (event,) = [event for event in heard if isinstance(event, LongSnapshot)]
    assert event.holder == "the reporter"
    assert event.age == pytest.approx(60.0, abs=5.0)
    assert event.wal_bytes > 20 * PAGE
    points.look(now + 60.0 + 2 * checkpoints.LONG_SNAPSHOT)
    assert len([event for event in heard if isinstance(event, LongSnapshot)]) == 2, "told again, not at each look"
    leave.set()
    holder.result()


def test_a_checkpoint_on_a_slow_disk_is_not_cut_short(open_db: Connect) -> None:
    """One that is interrupted again and again is never done, and the WAL grows without a limit."""
    db, points = open_db(checkpoint_pages=10)
    engine = engine_of(db)
    fill(db, 50)
    statements: list[str] = []

    def later(statement: str) -> None:
        if "wal_checkpoint" in statement:
            statements.append(statement)
            engine.groups.break_up(time.monotonic() + 5.0)  # the watcher looks, five seconds later

    connection = engine.writer.connection
    assert connection is not None
    connection.set_trace_callback(later)
    count = db.stats().checkpoints.count
    points.look(time.monotonic())
    points.look(time.monotonic() + 2 * checkpoints.QUIET)
    connection.set_trace_callback(None)
    assert statements
    assert db.stats().checkpoints.count > count


def test_the_keeper_waits_for_nobody_else(open_db: Connect) -> None:
    """A block may be open for long: the keeper looks again later."""
    db, points = open_db(wal_limit=10 * PAGE)
    fill(db, 20)
    looked: list[bool] = []
    with db.transaction():
        looker = threading.Thread(target=lambda: looked.append(points.look(time.monotonic())))
        looker.start()
        looker.join(30)
    assert looked == [True]
    assert db.stats().wal_bytes > 0
    assert points.look(time.monotonic()) is False
    assert db.stats().wal_bytes == 0


def test_a_checkpoint_never_overlaps_a_transaction(open_db: Connect, gate: Gate, crew: Crew) -> None:
    """H1, H2, H4: what races is a checkpoint beside a commit. It takes a turn like any writer."""
    db, _ = open_db()
    writing = crew(db.execute, "INSERT INTO t SELECT gate()")
    gate.wait_until_reached()
    moving = crew(db.checkpoint)
    wait_until(lambda: db.stats().queue_depth == 1, "the checkpoint to queue behind the writer")
    gate.open()
    writing.result()
    moving.result()
    assert db.stats().wal_bytes == 0


def test_a_checkpoint_never_overlaps_a_transaction_of_another_process(open_db: Connect, tmp_path: Path) -> None:
    """H4: it takes the lock that every process holds from before BEGIN until after COMMIT.

    Written down: somebody with descriptors of its own holds that lock, as another process that writes would; a
    checkpoint gives up at its deadline and has moved nothing; once the lock is given back it moves all.
    """
    db, _ = open_db()
    fill(db, 10)
    other = SideLock(str(tmp_path / "app.db"))
    assert other.try_acquire()
    try:
        with pytest.raises(errors.LockTimeout):
            db.checkpoint(timeout=0.2)
        assert db.stats().wal_bytes > 0
    finally:
        other.close()
    db.checkpoint()
    assert db.stats().wal_bytes == 0


def test_a_checkpoint_that_was_asked_for_has_a_deadline(open_db: Connect, crew: Crew) -> None:
    db, _ = open_db()
    with db.transaction():
        error = crew(db.checkpoint, timeout=0.05).error()
    assert isinstance(error, errors.LockTimeout)
    assert "a transaction block of thread" in str(error)


def test_the_answer_of_sqlite_tells_whether_anything_is_left() -> None:
    assert Answer(busy=False, frames=5, moved=5).complete
    assert Answer(busy=False, frames=-1, moved=-1).complete, "no WAL at all"
    assert not Answer(busy=False, frames=5, moved=4).complete
    assert not Answer(busy=True, frames=5, moved=5).complete
