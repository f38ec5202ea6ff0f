"""Bounded: once a transaction's deadline has passed no statement is begun in it; what undoes it still runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sqlite3

import safedb
from safedb.config import RetryPolicy
from safedb.sql import parse
from safedb.sqlite.session import Session
from safedb.sqlite.writer import Writer
from safedb.stats import Counters, Hooks


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer(
        lambda: sqlite3.connect(":memory:", isolation_level=None),
        name="a test",
        side=None,
        counters=Counters(),
        hooks=Hooks(),
    )
    made.run("CREATE TABLE t (x)", ())
    made.begin(time.monotonic() + 30, RetryPolicy().effective())
    yield made
    made.close()


def test_past_the_deadline_no_statement_is_begun_however_short(writer: Writer) -> None:
    session = Session(writer, deadline=time.monotonic())

    with pytest.raises(safedb.QueryCanceled, match=r"INSERT INTO t VALUES \(1\): the deadline of this tr"):
        session.run(parse("INSERT INTO t VALUES (1)"), ())

    assert writer.run("SELECT * FROM t", ())[0] == []
    assert session.lost is None, "nothing has been sent, so nothing has ended the transaction"


def test_past_the_deadline_savepoints_can_still_be_undone_and_released(writer: Writer) -> None:
    session = Session(writer, deadline=time.monotonic())
    writer.run("SAVEPOINT a", ())
    writer.run("SAVEPOINT b", ())
    writer.run("INSERT INTO t VALUES (1)", ())

    session.rollback_to("b")
    session.release("a")

    assert writer.in_transaction
    assert writer.run("SELECT * FROM t", ())[0] == []


def test_a_value_that_a_strict_table_refuses_is_a_data_error_as_on_postgresql(tmp_path: Path) -> None:
    schema = "CREATE TABLE t (x INTEGER) STRICT"

    with safedb.connect(tmp_path / "app.db", schema=schema) as db, pytest.raises(safedb.DataError) as caught:
        db.execute("INSERT INTO t VALUES ('text')")

    assert caught.value.sqlite_errorname == "SQLITE_CONSTRAINT_DATATYPE"
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
