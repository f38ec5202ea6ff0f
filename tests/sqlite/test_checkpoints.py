"""The WAL is bounded: it is moved when it has grown, cut when it is too large, and whoever holds it up is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, wait_until

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
    assert points._left == 0, "all was moved"
    stats = db.stats()
    assert stats.checkpoints.count == count + 1
    assert stats.wal_bytes > 0, "PASSIVE moves; it does not cut"


def test_it_learns_how_many_frames_a_commit_writes(open_db: Connect) -> None:
    db, points = open_db(checkpoint_pages=1000)
    db.checkpoint()
    for _ in range(4):
        fill(db, 200)
    points.run("PASSIVE", time.monotonic() + 30)
    assert points._each == pytest.approx(200, rel=0.1)
    for _ in range(5):
        fill(db, 200)
    count = db.stats().checkpoints.count
    points.look(time.monotonic())
    assert db.stats().checkpoints.count == count + 1, "5 commits of 200 frames are 1000 frames"


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


def test_without_a_wal_file_its_size_is_nothing(open_db: Connect, tmp_path: Path) -> None:
    _, points = open_db()
    assert points.wal_bytes() > 0
    points._path = str(tmp_path / "nothing.db")
    assert points.wal_bytes() == 0


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
