"""Promises that only SQLite can keep, or that are about a file: one queue, in order; settings; backups; in memory."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Connect
from support import Crew, line_behind_a_block

import safedb

SHORT = 0.2


def insert(db: safedb.Database, value: str) -> None:
    db.execute("INSERT INTO t (v) VALUES (?)", (value,))


def test_only_one_block_is_open_at_a_time(db: safedb.Database, crew: Crew) -> None:
    inside = threading.Lock()

    def work(worker: int) -> None:
        for number in range(10):
            with db.transaction() as tx:
                assert inside.acquire(blocking=False), "two write transactions are open"
                tx.execute("INSERT INTO t (v) VALUES (?)", (f"{worker}-{number}",))
                inside.release()

    crew.together(6, work)


def test_two_handles_share_one_queue(db: safedb.Database, connect: Connect, crew: Crew) -> None:
    other = connect()
    with line_behind_a_block(db, crew) as line:
        for number in range(4):
            handle = (db, other)[number % 2]
            line.add(partial(handle.execute, "INSERT INTO t (v) VALUES (?)", (f"{number}",)))
    assert [row[0] for row in db.execute("SELECT v FROM t ORDER BY id")] == ["0", "1", "2", "3"]


def test_the_function_runs_once_where_nothing_happens(db: safedb.Database, crew: Crew) -> None:
    runs: list[int] = []

    def body(tx: safedb.Transaction, worker: int) -> None:
        runs.append(worker)
        tx.execute("INSERT INTO t (v) VALUES (?)", (f"{worker}",))

    crew.together(6, lambda worker: db.run_transaction(body, worker))
    assert sorted(runs) == list(range(6))


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
    with db.transaction() as tx:
        assert tx.execute(f"PRAGMA {pragma}").scalar() == value


def test_given_settings_are_in_force(connect: Connect) -> None:
    db = connect(
        pragmas=safedb.Pragmas(synchronous="NORMAL", cache_size=-1234, page_size=8192, recursive_triggers=True)
    )
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
        connect()
    if str(target).startswith("/tmp/"):
        assert "may not last" in caplog.text


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


def test_backups_and_checks_have_deadlines_where_they_are_given(db: safedb.Database, tmp_path: Any) -> None:
    blob = "x" * 100_000
    db.executemany("INSERT INTO t (v) VALUES (?)", [(f"{number}{blob}",) for number in range(200)])

    def slowly(done: int, total: int) -> None:
        time.sleep(SHORT)

    with pytest.raises(safedb.QueryCanceled, match="backup"):
        db.backup(tmp_path / "copy.db", slowly, timeout=SHORT)
    assert not list(tmp_path.glob("copy*"))
    assert db.check(timeout=30.0) == []


def test_a_backup_is_one_state_while_writes_go_on(
    db: safedb.Database, connect: Connect, crew: Crew, tmp_path: object
) -> None:
    copy = f"{tmp_path}/copy.db"
    db.executemany("INSERT INTO t (v) VALUES (?)", [(f"{number}" + "x" * 2000,) for number in range(4000)])
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        crew(insert, db, f"meanwhile {len(told)}").result()

    db.backup(copy, progress)
    assert told[-1][0] == told[-1][1] > 0
    assert len(told) > 1
    other = connect(f"sqlite:///{copy}")
    assert other.execute("SELECT count(*) FROM t").scalar() == 4000
    assert other.check() == []


def test_a_backups_progress_is_told_in_its_callers_thread(db: safedb.Database, tmp_path: Path) -> None:
    threads: set[int] = set()
    db.backup(tmp_path / "copy.db", lambda *_: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


def test_another_database_may_be_used_inside_a_transaction(
    db: safedb.Database, connect: Connect, tmp_path: Path
) -> None:
    other = connect(tmp_path / "other.db", schema="CREATE TABLE t (v TEXT)")
    with db.transaction() as tx:
        other.execute("INSERT INTO t VALUES ('other')")
        tx.execute("INSERT INTO t (v) VALUES ('this')")
        with other.snapshot() as snap:
            assert snap.execute("SELECT v FROM t").one() == ("other",)
