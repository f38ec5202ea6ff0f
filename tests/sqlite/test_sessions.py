"""A transaction that was taken from a function is never written to again: the function is run anew, alone."""

# ruff: noqa: PT012 - whole blocks are what fails here
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, Worker, wait_until

import safedb
from safedb import errors
from safedb.sqlite.engine import SqliteEngine

GENEROUS = safedb.RetryPolicy(timeout=60.0)


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
def db(tmp_path: Path, gate: Gate) -> Iterator[safedb.Database]:
    with safedb.connect(
        tmp_path / "app.db", schema="CREATE TABLE t(x)", retry=GENEROUS, functions={"gate": gate}
    ) as db:
        yield db


def engine_of(db: safedb.Database) -> SqliteEngine:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    return engine


def share(db: safedb.Database, crew: Crew, function: Any) -> tuple[Worker, Worker]:
    """Let a statement and then ``function`` queue behind a block, so that they share one transaction."""
    with db.transaction():
        statement = crew(db.execute, "INSERT INTO t VALUES ('neighbour')")
        wait_until(lambda: db.stats().queue_depth == 1)
        working = crew(db.run_transaction, function)
        wait_until(lambda: db.stats().queue_depth == 2)
    return statement, working


@pytest.mark.parametrize("touches_it_again", [True, False])
def test_a_function_that_holds_up_its_group_is_run_again(
    db: safedb.Database, crew: Crew, touches_it_again: bool
) -> None:
    """The keeper takes the transaction while its own code runs; it learns so at its next call, or at its end."""
    runs: list[int] = []
    neighbour_is_done = threading.Event()
    tried: list[str] = []

    def function(tx: Any) -> str:
        runs.append(1)
        tx.execute("INSERT INTO t VALUES ('mine')")
        if len(runs) == 1:
            assert neighbour_is_done.wait(30), "its neighbour was never acknowledged"
            if touches_it_again:
                try:
                    tx.execute("INSERT INTO t VALUES ('mine')")
                except Exception:  # what restarts a function is no Exception, so that this swallows nothing
                    tried.append("swallowed")
                tried.append("went on")
        return "value"

    statement, working = share(db, crew, function)
    statement.result()
    neighbour_is_done.set()
    assert working.result() == "value"
    assert len(runs) == 2
    assert tried == [], "nothing behind the call was run"
    assert db.execute("SELECT x FROM t ORDER BY x").fetchall() == [("mine",), ("neighbour",)]
    assert db.stats().retries == {"broken up": 1}


def test_a_statement_of_a_function_that_holds_up_its_group_is_interrupted_and_the_function_run_again(
    db: safedb.Database, crew: Crew, gate: Gate
) -> None:
    runs: list[int] = []
    seen: list[Exception] = []

    def function(tx: Any) -> str:
        runs.append(1)
        try:
            tx.execute("INSERT INTO t SELECT 'mine' FROM json_each('[1,2,3]') WHERE gate(value) = 3")
        except Exception as error:
            seen.append(error)
            raise
        return "value"

    statement, working = share(db, crew, function)
    gate.wait_until_reached()
    watch = engine_of(db).writer.watch
    wait_until(lambda: watch.until < time.monotonic(), "the group's patience to end")
    engine_of(db).groups.break_up(time.monotonic())
    gate.open()
    statement.result()
    assert working.result() == "value"
    assert len(runs) == 2
    assert seen == [], "an interrupt before its own deadline is not its fault, and not for it to see"
    assert db.execute("SELECT x FROM t ORDER BY x").fetchall() == [("mine",), ("neighbour",)]


def test_past_the_deadline_no_statement_is_begun(db: safedb.Database) -> None:
    passed = threading.Event()
    with pytest.raises(errors.QueryCanceled, match="it was not run"), db.transaction(timeout=0.05) as tx:
        tx.execute("INSERT INTO t VALUES (1)")
        passed.wait(0.1)
        tx.execute("INSERT INTO t VALUES (2)")
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
    db.execute("INSERT INTO t VALUES (3)", timeout=5.0)


def test_past_the_deadline_a_savepoint_can_still_be_undone(db: safedb.Database) -> None:
    """House-keeping of ours is no new work: the error that leaves is the user's own."""
    passed = threading.Event()
    with db.transaction(timeout=0.05) as tx:
        tx.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError), tx.savepoint():
            passed.wait(0.1)
            raise ZeroDivisionError
    assert db.execute("SELECT count(*) FROM t").scalar() == 1


def test_a_with_that_writes_counts_its_rows_many_times_too(db: safedb.Database) -> None:
    sql = "WITH a(x) AS (SELECT ?) INSERT INTO t SELECT x FROM a UNION ALL SELECT x FROM a"
    assert db.execute(sql, (1,)).rowcount == 2
    assert db.executemany(sql, [(2,), (3,)]) == 4
    assert db.execute("SELECT count(*) FROM t").scalar() == 6


def test_a_long_statement_is_shortened_in_messages(db: safedb.Database) -> None:
    with pytest.raises(errors.ProgrammingError) as caught:
        db.execute(f"SELECT nothing, {', '.join(['1'] * 500)}\n  FROM   t")
    assert "..." in str(caught.value)
    assert len(str(caught.value)) < 250
