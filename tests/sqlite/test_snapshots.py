"""A snapshot shows one committed state, never holds up a writer, and ends when it is too old."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, sqlite3, wait_until

import safedb
from safedb import errors
from safedb.sql import parse
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.readers import Reader
from safedb.sqlite.snapshots import Snapshots, SnapshotSession

GENEROUS = safedb.RetryPolicy(timeout=60.0)


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def db(tmp_path: Path, gate: Gate) -> Iterator[safedb.Database]:
    schema = "CREATE TABLE t(x INTEGER PRIMARY KEY, y TEXT)"
    with safedb.connect(tmp_path / "app.db", schema=schema, retry=GENEROUS, functions={"gate": gate}) as db:
        db.executemany("INSERT INTO t(x) VALUES (?)", [(number,) for number in range(10)])
        yield db


def engine_of(db: safedb.Database) -> SqliteEngine:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    return engine


def truncate(path: str) -> tuple[int, int, int]:
    """Let another program empty the WAL, and tell what SQLite answers: busy, frames, frames moved."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    answer: tuple[int, int, int] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    connection.close()
    return answer


def test_the_state_is_fixed_before_the_block_begins(db: safedb.Database, crew: Crew) -> None:
    """``BEGIN DEFERRED`` alone pins nothing: a write between it and the first read would be seen."""
    with db.snapshot() as snap:
        crew(db.execute, "INSERT INTO t(x) VALUES (100)").result()
        assert snap.execute("SELECT count(*) FROM t").scalar() == 10
        assert [row[0] for row in snap.iterate("SELECT x FROM t ORDER BY x", batch=3)] == list(range(10))
    assert db.execute("SELECT count(*) FROM t").scalar() == 11


def test_a_writer_is_never_held_up_and_may_be_the_same_thread(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        db.execute("INSERT INTO t(x) VALUES (100)", timeout=5.0)
        assert snap.execute("SELECT max(x) FROM t").scalar() == 9


def test_the_oldest_snapshot_is_known_by_its_holder(db: safedb.Database, crew: Crew) -> None:
    engine, inside, leave = engine_of(db), threading.Event(), threading.Event()

    def hold() -> None:
        with db.snapshot():
            inside.set()
            leave.wait(30)

    assert db.stats().oldest_snapshot is None
    holder = crew(hold, name="the holder")
    inside.wait(30)
    with db.snapshot():
        oldest = engine.snapshots.oldest()
        assert oldest is not None
        assert oldest.holder == "the holder"
        age = db.stats().oldest_snapshot
        assert age is not None
        assert age >= 0.0
        leave.set()
        holder.result()
        newest = engine.snapshots.oldest()
        assert newest is not None
        assert newest.holder == threading.current_thread().name
    assert db.stats().oldest_snapshot is None


def test_half_read_iterators_do_not_pin_the_wal_once_the_snapshot_has_ended(db: safedb.Database) -> None:
    """H25: an abandoned cursor would hold the WAL until it is collected."""
    with db.snapshot() as snap:
        rows = [iter(snap.iterate("SELECT x FROM t", batch=2)) for _ in range(3)]
        for row in rows:
            next(row)
    db.execute("INSERT INTO t(x) VALUES (100)")
    assert truncate(engine_of(db).name) == (0, 0, 0)
    with pytest.raises(errors.DatabaseClosed):
        list(rows[0])
    for row in rows:
        row.close()  # type: ignore[attr-defined]


def test_an_iterator_that_is_closed_early_leaves_the_snapshot_usable(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT x FROM t", batch=1)
        assert next(rows) == (0,)
        rows.close()  # type: ignore[attr-defined]
        assert snap.execute("SELECT count(*) FROM t").scalar() == 10
        assert list(snap.iterate("SELECT x FROM t WHERE x < 0")) == []


def test_a_write_is_refused_and_does_no_harm(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        for sql in ("INSERT INTO t(x) VALUES (7)", "WITH a AS (SELECT 1) DELETE FROM t"):
            with pytest.raises(errors.ProgrammingError, match="read-only") as caught:
                snap.execute(sql)
            assert caught.value.sqlstate == "25006"
        with pytest.raises(errors.ProgrammingError, match="read-only"):
            list(snap.iterate("DELETE FROM t RETURNING x"))
        assert snap.execute("SELECT count(*) FROM t").scalar() == 10


def test_after_an_error_of_the_database_later_statements_raise_and_leaving_does_not(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        with pytest.raises(errors.ProgrammingError):
            snap.execute("SELECT nothing FROM t")
        with pytest.raises(errors.TransactionAborted, match="begin another"):
            snap.execute("SELECT 1")
        with pytest.raises(errors.TransactionAborted):
            list(snap.iterate("SELECT 1"))
    with db.snapshot() as snap, pytest.raises(errors.ProgrammingError):
        list(snap.iterate("SELECT nothing FROM t"))
    with db.snapshot() as snap:
        assert snap.execute("SELECT 1").scalar() == 1


# -- max_age ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_past_its_age_is_ended_while_its_thread_is_in_its_own_code(db: safedb.Database) -> None:
    with db.snapshot(max_age=0.05) as snap:
        assert snap.execute("SELECT count(*) FROM t").scalar() == 10
        db.execute("INSERT INTO t(x) VALUES (100)")
        wait_until(lambda: db.stats().oldest_snapshot is None, "the keeper to end the snapshot")
        assert truncate(engine_of(db).name) == (0, 0, 0), "the WAL can shrink although the block is open"
        with pytest.raises(errors.OperationalError, match="older than its max_age"):
            snap.execute("SELECT 1")
        with pytest.raises(errors.OperationalError, match="older than its max_age"):
            list(snap.iterate("SELECT 1"))
    assert db.execute("SELECT count(*) FROM t").scalar() == 11


def test_a_half_read_iterator_of_a_snapshot_past_its_age_pins_nothing(db: safedb.Database) -> None:
    with db.snapshot(max_age=0.05) as snap:
        rows = snap.iterate("SELECT x FROM t", batch=1)
        next(rows)
        wait_until(lambda: db.stats().oldest_snapshot is None, "the keeper to end the snapshot")
        db.execute("INSERT INTO t(x) VALUES (100)")
        assert truncate(engine_of(db).name) == (0, 0, 0)
        with pytest.raises(errors.OperationalError, match="max_age"):
            next(rows)


def test_a_snapshot_past_its_age_is_interrupted_inside_a_statement(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    engine, session = engine_of(db), list[SnapshotSession]()

    def read() -> None:
        with db.snapshot(max_age=3600.0) as snap:
            session.extend(engine.snapshots.all())
            snap.execute("SELECT gate(x) FROM t, (SELECT 1 UNION SELECT 2)")

    reading = crew(read)
    gate.wait_until_reached()
    session[0].expires = time.monotonic()  # so that it is overdue now and not at some time before the gate
    assert engine.snapshots.expire(time.monotonic() + 1)
    assert session[0].ended is None, "the keeper does not touch a connection that is in use"
    gate.open()
    assert isinstance(reading.error(), errors.OperationalError)
    assert engine.snapshots.oldest() is None


def test_an_iterator_past_the_deadline_of_its_batch_is_interrupted(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    engine = engine_of(db)

    def read() -> None:
        with db.snapshot(timeout=0.05) as snap:
            list(snap.iterate("SELECT gate(x) FROM t, (SELECT 1 UNION SELECT 2)"))

    reading = crew(read)
    gate.wait_until_reached()
    (reader,) = engine.readers.busy()
    wait_until(lambda: reader.until < time.monotonic())
    engine.readers.interrupt_overdue(time.monotonic())
    gate.open()
    assert isinstance(reading.error(), errors.QueryCanceled)


def test_a_snapshot_that_is_not_old_enough_is_left_alone(db: safedb.Database) -> None:
    engine = engine_of(db)
    assert engine.snapshots.expire(time.monotonic()) is False
    with db.snapshot(max_age=3600.0) as snap:
        assert engine.snapshots.expire(time.monotonic()) is True
        assert snap.execute("SELECT 1").scalar() == 1
    with db.snapshot():
        assert engine.snapshots.expire(time.monotonic() + 1e6) is False, "without max_age it lasts"


def test_the_keeper_does_not_interrupt_a_snapshot_that_is_being_opened(db: safedb.Database) -> None:
    """The reader still carries the deadline of its last read, which has passed."""
    engine = engine_of(db)
    reader = engine.readers.check_out(time.monotonic() + 30)
    reader.until = 0.0
    reader.connection.set_trace_callback(lambda _: engine.readers.interrupt_overdue(time.monotonic()))
    session = engine.snapshots.open(reader, name="app.db", max_age=None)
    reader.connection.set_trace_callback(None)
    assert engine.snapshots.close(session) is reader
    engine.readers.give_back(reader)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_state_that_cannot_be_fixed_leaves_the_reader_usable(tmp_path: Path) -> None:
    """A file that became junk fails at the first read; the BEGIN before it has succeeded."""
    path = tmp_path / "junk.db"
    path.write_bytes(b"this is no database at all, but long enough to be one" * 40)
    reader = Reader(sqlite3.connect(path, isolation_level=None))
    with pytest.raises(errors.DatabaseError) as caught:
        Snapshots().open(reader, name="junk.db", max_age=None)
    assert caught.value.sqlite_errorname == "SQLITE_NOTADB"
    assert not reader.connection.in_transaction
    reader.connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)  # now BEGIN itself is refused
    with pytest.raises(errors.ProgrammingError, match="not authorized"):
        Snapshots().open(reader, name="junk.db", max_age=None)
    reader.close()


def test_ending_twice_is_ending_once(db: safedb.Database) -> None:
    engine = engine_of(db)
    session = engine.open_snapshot(30.0, 0.001)
    wait_until(lambda: session.ended is not None)
    why = session.ended
    session.expire(time.monotonic())
    engine.close_snapshot(session, threading.get_ident())
    assert session.ended == why
    with pytest.raises(errors.OperationalError):
        session.backup(lambda _: None)


def test_a_disowned_snapshot_never_touches_its_connection_again(tmp_path: Path) -> None:
    """H30: in a forked child the connection is the parent's."""
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    snapshots = Snapshots()
    session = snapshots.open(Reader(connection), name="a.db", max_age=None)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    assert snapshots.disown("it was inherited") == [session]
    assert snapshots.oldest() is None
    with pytest.raises(errors.OperationalError, match="it was inherited"):
        session.run(parse("SELECT 1"), (), 1.0)
    session.close()
    assert statements == []
    connection.close()


# -- in memory --------------------------------------------------------------------------------------------------------


def test_in_memory_a_snapshot_is_a_copy_that_writers_cannot_change(
    crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="safedb"),
        safedb.connect("sqlite://", schema="CREATE TABLE t(x)") as db,
    ):
        assert "nothing in it will last" in caplog.text
        db.execute("INSERT INTO t VALUES (1)")
        with db.snapshot() as snap:
            db.execute("INSERT INTO t VALUES (2)")
            crew(db.execute, "INSERT INTO t VALUES (3)").result()
            assert snap.execute("SELECT count(*) FROM t").scalar() == 1
            with pytest.raises(errors.ProgrammingError, match="read-only"):
                snap.execute("DELETE FROM t")
        assert db.execute("SELECT count(*) FROM t").scalar() == 3


def test_a_statement_during_which_a_snapshot_becomes_too_old_says_that(tmp_path: Path) -> None:
    """Written down: one statement runs past the snapshot's age; the deadline of the call is far."""
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with safedb.connect(tmp_path / "app.db") as db, db.snapshot(max_age=0.2) as snap:
        for sql in (forever, "SELECT 1"):
            with pytest.raises(safedb.OperationalError, match="older than its max_age"):
                snap.execute(sql)
