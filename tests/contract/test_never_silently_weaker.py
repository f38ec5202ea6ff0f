"""Never silently weaker, and a schema that is there: what could not be put in force makes opening fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Backend, Connect
from support import Crew, Worker, url_of

import safedb

SCHEMA = """
    CREATE TABLE IF NOT EXISTS a (id {serial}, v TEXT);
    CREATE TABLE IF NOT EXISTS b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a (id));
    CREATE INDEX IF NOT EXISTS b_of_a ON b (a);
"""


@pytest.fixture
def schema(backend: Backend) -> str:
    return backend.schema(SCHEMA)


def test_a_schema_is_there_when_connect_returns(connect: Connect, schema: str) -> None:
    db = connect(schema=schema)
    assert db.execute("SELECT count(*) FROM b").scalar() == 0


def test_a_schema_may_come_in_parts(connect: Connect) -> None:
    db = connect(schema=["CREATE TABLE a (x INTEGER); CREATE TABLE b (x INTEGER)", "INSERT INTO a VALUES (1)"])
    assert db.execute("SELECT x FROM a").one() == (1,)


def test_a_schema_that_fails_leaves_nothing_and_no_handle(connect: Connect) -> None:
    with pytest.raises(safedb.ProgrammingError, match="nowhere"):
        connect(schema="CREATE TABLE a (x INTEGER); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(safedb.ProgrammingError, match="COMMIT"):
        connect(schema="CREATE TABLE a (x INTEGER); COMMIT")
    with pytest.raises(safedb.ProgrammingError):
        connect().execute("SELECT * FROM a")


def test_many_threads_that_open_at_once_all_find_the_schema(connect: Connect, crew: Crew, schema: str) -> None:
    """The usual "no such table" at a container's first start; and the DDL must run undisturbed, however often."""

    def start(number: int) -> None:
        db = connect(schema=schema)
        db.execute("INSERT INTO a VALUES (?, 'x')", (number,))
        db.execute("INSERT INTO b VALUES (?, ?)", (number, number))

    crew.together(24, start)
    db = connect()
    assert db.execute("SELECT count(*) FROM b").scalar() == 24
    assert db.check() == []


def test_a_handle_may_be_opened_while_others_close(connect: Connect, target: Any, crew: Crew, schema: str) -> None:
    """The last handle closes the file, and the next one opens it again: nothing in between gets lost."""
    connect(schema=schema).close()

    def come_and_go(worker: int) -> None:
        for number in range(8):
            with safedb.connect(target) as db:
                db.execute("INSERT INTO a (v) VALUES (?)", (f"{worker}-{number}",))

    crew.together(4, come_and_go)
    assert connect().execute("SELECT count(*) FROM a").scalar() == 32


STARTER = """
import sys, safedb
sys.stdin.readline()
with safedb.connect(sys.argv[1], schema=sys.argv[2]) as db:
    db.execute("INSERT INTO a (v) VALUES ('x')")
"""


def test_many_processes_that_open_at_once_all_find_the_schema(connect: Connect, target: Any, schema: str) -> None:
    starters = [
        subprocess.Popen([sys.executable, "-c", STARTER, url_of(target), schema], stdin=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    assert [starter.wait(30) for starter in starters] == [0] * 4
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.close()
    assert connect().execute("SELECT count(*) FROM a").scalar() == 4


SAFE: dict[str, dict[str, Any]] = {
    "sqlite": {
        "PRAGMA journal_mode": "wal",
        "PRAGMA synchronous": 2,
        "PRAGMA foreign_keys": 1,
        "PRAGMA trusted_schema": 0,
    },
    "postgresql": {
        "SHOW transaction_isolation": "serializable",
        "SHOW synchronous_commit": "on",
        "SHOW TimeZone": "UTC",
        "SHOW standard_conforming_strings": "on",
    },
}


def test_safe_settings_are_in_force_without_being_asked_for(db: safedb.Database) -> None:
    with db.transaction() as tx:
        found = {question: tx.execute(question).scalar() for question in SAFE[db.dialect]}
    assert found == SAFE[db.dialect]


def test_what_only_the_other_database_has_makes_opening_fail(connect: Connect, backend: Backend) -> None:
    foreign: dict[str, list[dict[str, Any]]] = {
        "sqlite": [{"replicas": ["postgresql://standby/name"]}, {"serial_writes": True}],
        "postgresql": [{"functions": {"f": len}}, {"collations": {"c": lambda a, b: 0}}],
    }
    for options in foreign[backend.name]:
        with pytest.raises(safedb.ConfigError, match=f"{next(iter(options))}=.*"):
            connect(**options)
    # Settings of SQLite's that change no answer may stay where they are when a program moves.
    connect(pragmas=safedb.Pragmas(synchronous="FULL", cache_size=-4000))


def test_what_belongs_to_a_handle_may_differ(connect: Connect, schema: str) -> None:
    connect(retry=safedb.RetryPolicy(timeout=1.0), row_factory=safedb.tuple_row)
    connect(retry=safedb.RetryPolicy(timeout=2.0), row_factory=safedb.dict_row, schema=schema)


def test_a_read_only_handle_reads_and_writes_nothing(db: safedb.Database, connect: Connect, schema: str) -> None:
    db.execute("INSERT INTO t (v) VALUES ('x')")
    reader = connect(read_only=True)
    assert reader.execute("SELECT v FROM t").one() == ("x",)
    db.execute("INSERT INTO t (v) VALUES ('y')")
    assert reader.execute("SELECT count(*) FROM t").scalar() == 2
    with reader.snapshot() as snap:
        assert snap.execute("SELECT count(*) FROM t").scalar() == 2
    writes: list[Callable[[], Any]] = [
        lambda: reader.execute("DELETE FROM t"),
        lambda: reader.execute("WITH a AS (SELECT 1) DELETE FROM t"),
        lambda: reader.execute("DROP TABLE t"),
        lambda: reader.executemany("DELETE FROM t WHERE id = ?", [(1,)]),
        lambda: reader.executescript("DELETE FROM t"),
        lambda: reader.run_transaction(lambda tx: None),
        lambda: reader.transaction().__enter__(),
        lambda: connect(read_only=True, schema=schema),
    ]
    if db.dialect == "sqlite":
        writes.append(lambda: reader.execute("PRAGMA user_version = 1"))
    for write in writes:
        with pytest.raises(safedb.ProgrammingError, match="read-only") as caught:
            write()
        assert caught.value.sqlstate == "25006"
    assert db.execute("SELECT count(*) FROM t").scalar() == 2


def test_a_forgotten_handle_is_told_of(target: Any) -> None:
    """H28: the modules themselves tell of it from Python 3.13 on, or never."""
    db = safedb.connect(target)
    close = db._close
    with pytest.warns(ResourceWarning, match=r"close\(\)"):
        db.__del__()
    close(5.0)
    db._open = False


def test_a_handle_that_is_closed_twice_or_by_many_threads_is_closed_once(db: safedb.Database, crew: Crew) -> None:
    crew.together(4, lambda _: db.close())
    db.close()
    assert "closed" in repr(db)


def test_closing_waits_for_calls_under_way(connect: Connect, crew: Crew) -> None:
    db = connect(schema="CREATE TABLE t (v TEXT)")
    workers: list[Worker] = []
    with db.transaction() as tx:
        closing = crew(db.close)
        tx.execute("INSERT INTO t VALUES ('under way')")
        workers.append(closing)
    closing.result()
    assert connect().execute("SELECT v FROM t").one() == ("under way",)


def test_one_handle_closes_and_the_other_goes_on(db: safedb.Database, connect: Connect) -> None:
    other = connect()
    db.close()
    other.execute("INSERT INTO t (v) VALUES ('x')")
    assert other.execute("SELECT v FROM t").one() == ("x",)
