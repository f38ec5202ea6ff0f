"""Each statement goes where it belongs, what safedb owns is refused, and nothing remembered is stale."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, sqlite3, wait_until

import safedb
from safedb import errors
from safedb.routing import Route
from safedb.sql import parse
from safedb.sqlite import engine as engine_module
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.pragmas import OWNED

GENEROUS = safedb.RetryPolicy(timeout=60.0)
SCHEMA = "CREATE TABLE t(x INTEGER, y TEXT)"


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def db(path: Path, gate: Gate) -> Iterator[safedb.Database]:
    with safedb.connect(path, schema=SCHEMA, retry=GENEROUS, functions={"gate": gate}) as db:
        yield db


def engine_of(db: safedb.Database) -> SqliteEngine:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    return engine


def count(db: safedb.Database) -> int:
    number: int = db.execute("SELECT count(*) FROM t").scalar()
    return number


# -- routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1", "VALUES (1)", "EXPLAIN SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "PRAGMA table_info(t)",
     "-- a comment\n SELECT 1", "PRAGMA user_version"],
)  # fmt: skip
def test_a_read_takes_no_turn(db: safedb.Database, crew: Crew, sql: str) -> None:
    turns = db.stats().turns
    with db.transaction():
        crew(db.execute, sql, timeout=20.0).result()  # not behind the block
    assert db.stats().turns == turns + 1


@pytest.mark.parametrize(
    "sql",
    ["INSERT INTO t VALUES (1, 'a')", "UPDATE t SET x = 2", "DELETE FROM t", "REPLACE INTO t VALUES (1, 'a')",
     "WITH a AS (SELECT 1) INSERT INTO t SELECT 1, 'a'", "CREATE TABLE u(x)", "PRAGMA user_version = 5", "VACUUM",
     "ANALYZE", "REINDEX"],
)  # fmt: skip
def test_a_write_takes_a_turn(db: safedb.Database, sql: str) -> None:
    turns = db.stats().turns
    db.execute(sql)
    assert db.stats().turns == turns + 1


def test_what_only_sqlite_knows_to_write_is_learnt_from_its_refusal(db: safedb.Database) -> None:
    """A pragma of a form that reads, and yet writes, looks like a read until a reader refuses it."""
    engine = engine_of(db)
    db.execute("SELECT 1")
    engine._plans["SELECT 1"].writes = True
    turns = db.stats().turns
    assert db.execute("SELECT 1").fetchall() == [(1,)]
    assert db.stats().turns == turns + 1, "it is known to write, and goes to the writer"


def test_a_statement_that_a_reader_refuses_goes_to_the_writer_and_is_remembered(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(db)
    sql = "WITH a AS (SELECT 7 AS x) INSERT INTO t SELECT x, 'a' FROM a"
    real = parse
    # The lexer itself finds every WITH that writes that we know of.
    monkeypatch.setattr(engine_module, "parse", lambda text: as_read(real(text)))
    assert db.execute(sql).rowcount == 1
    assert engine._plans[sql].writes
    with monkeypatch.context() as patch:
        patch.setattr(engine.readers, "run", lambda *_: pytest.fail("a reader was asked again"))
        assert db.execute(sql).rowcount == 1
    assert count(db) == 2


def as_read(statement: Any) -> Any:
    import dataclasses

    return dataclasses.replace(statement, route=Route.READ)


def test_on_a_read_only_handle_what_writes_after_all_is_refused(
    db: safedb.Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parse
    monkeypatch.setattr(engine_module, "parse", lambda text: as_read(real(text)))
    with (
        safedb.connect(path, read_only=True) as reader,
        pytest.raises(errors.ProgrammingError, match="read-only") as caught,
    ):
        reader.execute("INSERT INTO t VALUES (1, 'a')")
    assert caught.value.sqlstate == "25006"
    assert count(db) == 0


def test_what_is_remembered_of_statements_is_bounded(db: safedb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "LEARNT", 4)
    monkeypatch.setattr(engine_module, "LONGEST_LEARNT", 40)
    engine = engine_of(db)
    for number in range(12):
        assert db.execute(f"SELECT {number}").scalar() == number
        assert db.execute(f"SELECT {number}").scalar() == number
        db.execute("INSERT INTO t VALUES (?, ?)" + " " * number, (number, "a"))
    long = f"SELECT '{'x' * 50}'"
    assert len(db.execute(long).scalar()) == 50
    assert len(engine._plans) <= 4
    assert long not in engine._plans


def test_what_depends_on_the_connection_is_refused_with_the_remedy(db: safedb.Database) -> None:
    """H43: what is attached would stay, and commit apart from the rest."""
    for call in (
        lambda: db.execute("SELECT last_insert_rowid()"),
        lambda: db.execute("CREATE TEMP TABLE z(x)"),
        lambda: db.execute("ATTACH 'x.db' AS x"),
        lambda: db.executemany("INSERT INTO t SELECT last_insert_rowid(), ?", [("a",)]),
        lambda: db.executescript("INSERT INTO t VALUES (1, 'a'); CREATE TEMP TABLE z(x)"),
    ):
        with pytest.raises(errors.ProgrammingError):
            call()
    assert count(db) == 0
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (1, 'a')")
        assert tx.execute("SELECT changes()").scalar() == 1


@pytest.mark.parametrize("name", sorted(OWNED))
def test_a_pragma_that_safedb_owns_is_refused_with_the_remedy(db: safedb.Database, name: str) -> None:
    """H46h: it would outlast its transaction, or do nothing and not say so."""
    with pytest.raises(errors.ProgrammingError, match=name):
        db.execute(f"PRAGMA {name} = 1")
    with db.transaction() as tx, pytest.raises(errors.ProgrammingError, match=name):
        tx.execute(f"PRAGMA main.{name}(1)")
    with pytest.raises(errors.ProgrammingError):
        db.executescript(f"INSERT INTO t VALUES (1, 'a'); PRAGMA {name} = 1")
    assert count(db) == 0


def test_a_pragma_of_the_users_is_kept(db: safedb.Database) -> None:
    db.execute("PRAGMA user_version = 12")
    assert db.execute("PRAGMA user_version").scalar() == 12


def test_what_cannot_run_inside_a_transaction_is_refused_there(db: safedb.Database) -> None:
    with db.transaction() as tx:
        with pytest.raises(errors.ProgrammingError, match="VACUUM cannot run inside"):
            tx.execute("VACUUM")
        tx.execute("INSERT INTO t VALUES (1, 'a')")  # a refusal does not poison
    with pytest.raises(errors.ProgrammingError, match="VACUUM cannot run inside"):
        db.executescript("VACUUM")
    with db.snapshot() as snap, pytest.raises(errors.ProgrammingError):
        snap.execute("VACUUM")
    assert count(db) == 1
    db.execute("VACUUM")


# -- executemany ------------------------------------------------------------------------------------------------------


def test_many_rows_are_all_or_nothing_as_a_group_and_as_a_block(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute("CREATE UNIQUE INDEX u ON t(x)")
    blocks: list[int] = []
    real = engine_of(db).blocks.begin

    def begin(*arguments: Any) -> Any:
        blocks.append(1)
        return real(*arguments)

    monkeypatch.setattr(engine_of(db).blocks, "begin", begin)
    sql = "INSERT INTO t VALUES (?, 'a')"
    for limit, as_blocks in ((1000, 0), (10, 2)):
        monkeypatch.setattr(engine_module, "MANY_VALUES", limit)
        blocks.clear()
        assert db.executemany(sql, ((number,) for number in range(50))) == 50
        with pytest.raises(errors.UniqueViolation):
            db.executemany(sql, [(number,) for number in range(100, 50, -1)] + [(49,)])
        assert count(db) == 50
        assert len(blocks) == as_blocks
        db.execute("DELETE FROM t")


def test_no_rows_are_no_transaction(db: safedb.Database) -> None:
    turns = db.stats().turns
    assert db.executemany("INSERT INTO t VALUES (?, ?)", iter(())) == 0
    assert db.stats().turns == turns


def test_a_wrong_row_is_found_before_anything_is_done(db: safedb.Database) -> None:
    turns = db.stats().turns
    with pytest.raises(errors.ProgrammingError):
        db.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a"), (2,)])
    for sql in ("SELECT ?", "CREATE TABLE u(x)", "PRAGMA user_version"):
        with pytest.raises(errors.ProgrammingError, match="executemany takes"):
            db.executemany(sql, [(1,)])
        with db.transaction() as tx, pytest.raises(errors.ProgrammingError, match="executemany takes"):
            tx.executemany(sql, [(1,)])
    assert db.stats().turns == turns + 3
    assert count(db) == 0


def test_a_script_is_all_or_nothing(db: safedb.Database) -> None:
    with pytest.raises(errors.ProgrammingError):
        db.executescript("CREATE TABLE u(x); INSERT INTO u VALUES (1); INSERT INTO nothing VALUES (1)")
    with pytest.raises(errors.ProgrammingError, match="no such table"):
        db.execute("SELECT * FROM u")
    db.executescript("CREATE TABLE u(x); INSERT INTO u VALUES (1)")
    assert db.execute("SELECT x FROM u").scalar() == 1


# -- the schema -------------------------------------------------------------------------------------------------------


def test_what_is_known_of_a_read_is_forgotten_when_the_schema_changes(db: safedb.Database, path: Path) -> None:
    engine = engine_of(db)
    sql = "SELECT * FROM t"
    for change in (
        lambda: db.execute("ALTER TABLE t ADD COLUMN a BOOLEAN"),
        lambda: db.executescript("ALTER TABLE t ADD COLUMN b BOOLEAN"),
    ):
        wait_until(
            lambda: bool(db.execute(sql)) and sql in engine._plans, "the watcher to have forgotten the last change"
        )
        change()
        assert sql not in engine._plans
    db.execute("INSERT INTO t(a, b) VALUES (1, 0)")
    assert db.execute(sql).fetchall() == [(None, None, True, False)]
    other = sqlite3.connect(path)
    other.execute("ALTER TABLE t ADD COLUMN c BOOLEAN")
    other.close()
    assert len(db.execute(sql).one()) == 5


# -- reentrance -------------------------------------------------------------------------------------------------------


def test_a_call_through_db_inside_ones_own_transaction_is_refused_at_once(db: safedb.Database, path: Path) -> None:
    def refused_inside(_: Any) -> None:
        with pytest.raises(errors.ReentrancyError, match="run_transaction"):
            db.execute("SELECT 1")

    with safedb.connect(path) as other, safedb.connect(path, read_only=True) as reader:
        calls: list[Callable[[], Any]] = [
            lambda: other.execute("INSERT INTO t VALUES (1, 'a')"),
            lambda: reader.execute("SELECT 1"),
            lambda: db.execute("SELECT 1"),
            lambda: db.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a")]),
            lambda: db.executescript("DELETE FROM t"),
            lambda: db.transaction().__enter__(),
            lambda: db.snapshot().__enter__(),
            lambda: db.run_transaction(lambda tx: None),
            db.checkpoint,
            db.optimize,
            db.check,
            lambda: db.backup(path.parent / "copy.db"),
        ]
        with db.transaction():
            for call in calls:
                with pytest.raises(errors.ReentrancyError, match="Use tx"):
                    call()
        db.run_transaction(refused_inside)
    db.execute("SELECT 1")


def test_inside_a_snapshot_reads_through_db_are_refused_and_writes_are_not(db: safedb.Database) -> None:
    with db.snapshot():
        for call in (lambda: db.execute("SELECT 1"), lambda: db.snapshot().__enter__(), db.check):
            with pytest.raises(errors.ReentrancyError, match="Use snap"):
                call()
        db.execute("INSERT INTO t VALUES (1, 'a')")
        db.executemany("INSERT INTO t VALUES (?, 'a')", [(2,)])
        db.executescript("INSERT INTO t VALUES (3, 'a')")
        db.checkpoint()
    assert count(db) == 3


def test_another_threads_transaction_is_none_of_our_own(db: safedb.Database, crew: Crew) -> None:
    with db.transaction():
        assert crew(count, db).result() == 0


def test_in_memory_the_description_of_columns_waits_for_nobody_inside_a_transaction(crew: Crew) -> None:
    """Who describes takes a turn to read the schema; who has the turn may want to describe as well."""
    schema = "CREATE TABLE t(flag BOOLEAN); INSERT INTO t VALUES (1)"
    with safedb.connect("sqlite://", schema=schema, retry=GENEROUS) as db:
        columns = engine_of(db).columns
        describing, begun = threading.Event(), threading.Event()
        real = columns._connect

        def connect() -> Any:
            if not describing.is_set():
                describing.set()
                begun.wait(30)
            return real()

        columns._connect = connect
        outside = crew(lambda: db.execute("SELECT flag FROM t").scalar())
        describing.wait(30)
        done: list[object] = []

        def inside() -> None:
            with db.transaction() as tx:
                begun.set()
                wait_until(lambda: db.stats().queue_depth == 1, "the other to want a turn")
                done.append(tx.execute("SELECT flag FROM t WHERE 1 = 1").scalar())

        working = crew(inside)
        working.result()
        assert done == [True]
        assert outside.result() is True


def test_in_memory_a_transaction_inside_a_snapshot_works_on_the_database(crew: Crew) -> None:
    with safedb.connect("sqlite://", schema=SCHEMA) as db:
        with db.snapshot() as snap:
            db.execute("INSERT INTO t VALUES (1, 'a')")
            assert snap.execute("SELECT count(*) FROM t").scalar() == 0
        assert repr(engine_of(db)) == "<SqliteEngine a database in memory>"


# -- house-keeping ----------------------------------------------------------------------------------------------------


def test_check_finds_broken_references_and_damage(db: safedb.Database, path: Path) -> None:
    assert db.check() == []
    db.executescript("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p)")
    other = sqlite3.connect(path)
    other.execute("INSERT INTO c VALUES (5)")  # a plain connection does not enforce references
    other.commit()
    other.close()
    assert db.check(timeout=30.0) == ["row 1 of c refers to a row of p that is not there"]


def test_optimize_and_checkpoint_take_a_turn_of_their_own(db: safedb.Database) -> None:
    db.executemany("INSERT INTO t VALUES (?, 'a')", [(number,) for number in range(100)])
    turns = db.stats().turns
    db.optimize()
    db.checkpoint()
    assert db.stats().turns == turns + 2
    assert db.stats().wal_bytes == 0


def test_a_snapshot_that_cannot_be_fixed_gives_its_reader_back(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(db)
    count(db)

    def fail(*_: Any, **__: Any) -> None:
        raise errors.OperationalError("cannot be fixed")

    monkeypatch.setattr(engine.snapshots, "open", fail)
    with pytest.raises(errors.OperationalError, match="cannot be fixed"), db.snapshot():
        pass
    assert db.stats().readers.in_use == 0
    assert not engine.snapping


def test_stats_show_the_engine_at_work(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    writing = crew(db.execute, "INSERT INTO t SELECT gate(), 'a'")
    gate.wait_until_reached()
    waiting = crew(db.execute, "INSERT INTO t VALUES (2, 'b')")
    wait_until(lambda: db.stats().queue_depth == 1)
    with db.snapshot():
        stats = db.stats()
        assert stats.readers.in_use == 1
        assert stats.oldest_snapshot is not None
    gate.open()
    writing.result()
    waiting.result()
    stats = db.stats()
    assert stats.waits.count >= 1
    assert stats.wal_bytes > 0
    assert stats.readers.in_use == 0


def test_the_watcher_ends_what_is_overdue_by_itself(db: safedb.Database) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(errors.QueryCanceled):
        db.execute(endless, timeout=0.1)
    with pytest.raises(errors.QueryCanceled):
        db.execute(f"INSERT INTO t SELECT x, 'a' FROM ({endless.replace('count(*)', 'count(*) AS x')})", timeout=0.1)
    with pytest.raises(errors.QueryCanceled), db.transaction(timeout=0.1) as tx:
        tx.execute(endless)
    with db.snapshot(timeout=0.1) as snap, pytest.raises(errors.QueryCanceled):
        snap.execute(endless)
    assert count(db) == 0


def test_closing_past_its_deadline_says_so_and_can_be_repeated(path: Path, crew: Crew) -> None:
    db = safedb.connect(path, schema=SCHEMA, retry=safedb.RetryPolicy(timeout=0.1))
    engine = engine_of(db)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with db.transaction(timeout=60.0):
            inside.set()
            leave.wait(30)

    holder = crew(hold)
    inside.wait(30)
    with pytest.raises(errors.LockTimeout, match="a transaction block"):
        db.close()
    db.close()
    leave.set()
    holder.join()
    assert holder.error() is None or isinstance(holder.error(), errors.Error)
    engine.close(30.0)
    engine.close(30.0)
    with safedb.connect(path) as again:
        assert count(again) == 0


def test_a_close_that_fails_is_classified(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = safedb.connect(path, schema=SCHEMA)
    engine = engine_of(db)
    real = engine.writer.close

    def fail() -> None:
        real()
        raise sqlite3.OperationalError("disk I/O error")  # no sound disk fails on demand

    monkeypatch.setattr(engine.writer, "close", fail)
    with pytest.raises(errors.OperationalError, match=r"closing .*app\.db"):
        db.close()
