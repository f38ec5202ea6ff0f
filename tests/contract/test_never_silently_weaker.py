"""Never silently weaker, and a schema that is there: what could not be put in force makes opening fail."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Connect
from support import Crew, Worker

import safedb

SCHEMA = """
    CREATE TABLE IF NOT EXISTS a (id INTEGER PRIMARY KEY, v TEXT);
    CREATE TABLE IF NOT EXISTS b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a (id));
    CREATE INDEX IF NOT EXISTS b_of_a ON b (a);
"""


def test_a_schema_is_there_when_connect_returns(connect: Connect) -> None:
    db = connect(schema=SCHEMA)
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


def test_many_threads_that_open_at_once_all_find_the_schema(connect: Connect, crew: Crew) -> None:
    """The usual "no such table" at a container's first start; and the DDL must run undisturbed, however often."""

    def start(number: int) -> None:
        db = connect(schema=SCHEMA)
        db.execute("INSERT INTO a VALUES (?, 'x')", (number,))
        db.execute("INSERT INTO b VALUES (?, ?)", (number, number))

    crew.together(24, start)
    db = connect()
    assert db.execute("SELECT count(*) FROM b").scalar() == 24
    assert db.check() == []


def test_a_handle_may_be_opened_while_others_close(connect: Connect, target: Any, crew: Crew) -> None:
    """The last handle closes the file, and the next one opens it again: nothing in between gets lost."""
    connect(schema=SCHEMA).close()

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


def test_many_processes_that_open_at_once_all_find_the_schema(connect: Connect, target: Any) -> None:
    starters = [
        subprocess.Popen([sys.executable, "-c", STARTER, str(target), SCHEMA], stdin=subprocess.PIPE, text=True)
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


PRAGMAS = [
    ("journal_mode", "wal"),
    ("synchronous", 2),
    ("foreign_keys", 1),
    ("trusted_schema", 0),
    ("wal_autocheckpoint", 0),
    ("locking_mode", "normal"),
]


@pytest.mark.parametrize(("pragma", "value"), PRAGMAS)
def test_safe_settings_are_in_force_without_being_asked_for(db: safedb.Database, pragma: str, value: object) -> None:
    if db.dialect == "sqlite":
        with db.transaction() as tx:
            assert tx.execute(f"PRAGMA {pragma}").scalar() == value


def test_given_settings_are_in_force(connect: Connect) -> None:
    db = connect(
        pragmas=safedb.Pragmas(synchronous="NORMAL", cache_size=-1234, page_size=8192, recursive_triggers=True)
    )
    if db.dialect == "sqlite":
        with db.transaction() as tx:
            for pragma, value in (
                ("synchronous", 1),
                ("cache_size", -1234),
                ("page_size", 8192),
                ("recursive_triggers", 1),
            ):
                assert tx.execute(f"PRAGMA {pragma}").scalar() == value


def test_what_cannot_be_put_in_force_makes_opening_fail(connect: Connect) -> None:
    db = connect(schema="CREATE TABLE t (v TEXT)")
    if db.dialect == "sqlite":
        db.execute("INSERT INTO t VALUES ('x')")
        db.close()
        with pytest.raises(safedb.ConfigError, match=r"page_size.*answered"):
            connect(pragmas=safedb.Pragmas(page_size=16384))
        with pytest.raises(safedb.ConfigError, match="max_page_count"):
            connect(pragmas=safedb.Pragmas(max_page_count=1))
        assert connect().execute("SELECT v FROM t").one() == ("x",)  # and nothing is left in the way


def test_handles_of_one_file_must_not_contradict_each_other(connect: Connect) -> None:
    connect(pragmas=safedb.Pragmas(synchronous="FULL"), pool=safedb.PoolConfig(max_size=3))
    connect()  # silence agrees
    connect(pragmas=safedb.Pragmas(synchronous="FULL"))
    for options, named in (
        ({"pragmas": safedb.Pragmas(synchronous="NORMAL")}, "synchronous"),
        ({"pool": safedb.PoolConfig(max_size=4)}, "max_size"),
        ({"functions": {"f": len}}, "functions"),
        ({"collations": {"c": lambda a, b: 0}}, "collations"),
    ):
        with pytest.raises(safedb.ConfigError, match=named):
            connect(**options)


def test_what_belongs_to_a_handle_may_differ(connect: Connect) -> None:
    connect(retry=safedb.RetryPolicy(timeout=1.0), row_factory=safedb.tuple_row)
    connect(retry=safedb.RetryPolicy(timeout=2.0), row_factory=safedb.dict_row, schema=SCHEMA)


def test_a_read_only_handle_reads_and_writes_nothing(db: safedb.Database, connect: Connect) -> None:
    db.execute("INSERT INTO t (v) VALUES ('x')")
    reader = connect(read_only=True)
    assert reader.execute("SELECT v FROM t").one() == ("x",)
    db.execute("INSERT INTO t (v) VALUES ('y')")
    assert reader.execute("SELECT count(*) FROM t").scalar() == 2
    with reader.snapshot() as snap:
        assert snap.execute("SELECT count(*) FROM t").scalar() == 2
    for write in (
        lambda: reader.execute("DELETE FROM t"),
        lambda: reader.execute("WITH a AS (SELECT 1) DELETE FROM t"),
        lambda: reader.execute("DROP TABLE t"),
        lambda: reader.execute("PRAGMA user_version = 1"),
        lambda: reader.executemany("DELETE FROM t WHERE id = ?", [(1,)]),
        lambda: reader.executescript("DELETE FROM t"),
        lambda: reader.run_transaction(lambda tx: None),
        lambda: reader.transaction().__enter__(),
        lambda: connect(read_only=True, schema=SCHEMA),
    ):
        with pytest.raises(safedb.ProgrammingError, match="read-only") as caught:
            write()
        assert caught.value.sqlstate == "25006"
    assert db.execute("SELECT count(*) FROM t").scalar() == 2


def test_a_database_in_memory_works_from_many_threads_and_says_that_it_will_not_last(
    connect: Connect, crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "safedb"):
        db = connect("sqlite://", schema="CREATE TABLE t (v TEXT, flag BOOLEAN)")
    assert "last" in caplog.text

    def work(worker: int) -> None:
        for number in range(20):
            db.execute("INSERT INTO t (v) VALUES (?)", (f"{worker}-{number}",))
            assert db.execute("SELECT count(*) FROM t WHERE v = ?", (f"{worker}-{number}",)).scalar() == 1
            with db.snapshot() as snap:
                assert snap.execute("SELECT count(*) FROM t").scalar() >= number + 1
            db.run_transaction(lambda tx: tx.execute("UPDATE t SET flag = 1 WHERE v LIKE '0-%'"))

    crew.together(6, work)
    assert db.execute("SELECT count(*) FROM t").scalar() == 120
    other = connect("sqlite://")
    with pytest.raises(safedb.ProgrammingError):
        other.execute("SELECT * FROM t")  # each has its own


def test_a_database_in_memory_can_be_kept_by_a_backup(connect: Connect, tmp_path: Path) -> None:
    db = connect("sqlite://", schema="CREATE TABLE t (v TEXT)")
    db.execute("INSERT INTO t VALUES ('x')")
    db.backup(tmp_path / "kept.db")
    assert connect(tmp_path / "kept.db").execute("SELECT v FROM t").one() == ("x",)


def test_a_temporary_place_is_told_of(connect: Connect, target: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "safedb"):
        db = connect()
    if db.dialect == "sqlite" and str(target).startswith("/tmp/"):
        assert "may not last" in caplog.text


def test_a_forgotten_handle_is_told_of(target: Any) -> None:
    db = safedb.connect(target)
    close = db._close
    with pytest.warns(ResourceWarning, match=r"close\(\)"):
        db.__del__()
    close(5.0)
    db._open = False


def test_functions_and_collations_are_known_to_every_connection(connect: Connect) -> None:
    db = connect(
        schema="CREATE TABLE t (v TEXT)",
        functions={"twice": lambda value: value * 2, "plus": (lambda a, b: a + b, 2)},
        collations={"backwards": lambda a, b: (a < b) - (a > b)},
    )
    db.execute("INSERT INTO t VALUES (twice(?)), ('z')", ("ab",))
    assert [row[0] for row in db.execute("SELECT v FROM t ORDER BY v COLLATE backwards")] == ["z", "abab"]
    with db.transaction() as tx:
        assert tx.execute("SELECT plus(1, 2)").scalar() == 3
    with db.snapshot() as snap:
        assert snap.execute("SELECT twice(v) FROM t WHERE v = 'z'").scalar() == "zz"


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
