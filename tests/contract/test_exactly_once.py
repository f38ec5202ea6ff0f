"""Exactly once: a write is applied once, or not at all with an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import Crew

import safedb


def test_each_of_many_threads_writes_is_there_once(db: safedb.Database, crew: Crew) -> None:
    def work(worker: int) -> list[str]:
        told = []
        for number in range(20):
            value = f"{worker}-{number}"
            match number % 4:
                case 0:
                    db.execute("INSERT INTO t (v) VALUES (?)", (value,))
                case 1:
                    db.executemany("INSERT INTO t (v) VALUES (?)", [(value,)])
                case 2:
                    db.run_transaction(lambda tx, v: tx.execute("INSERT INTO t (v) VALUES (?)", (v,)), value)
                case _:
                    with db.transaction() as tx:
                        tx.execute("INSERT INTO t (v) VALUES (?)", (value,))
            told.append(value)
        return told

    told = [value for part in crew.together(8, work) for value in part]
    assert Counter(row[0] for row in db.execute("SELECT v FROM t")) == Counter(told)


def test_a_write_that_raised_is_not_there_and_one_that_returned_is(db: safedb.Database, crew: Crew) -> None:
    """Eight threads fight for the same values: for each exactly one is told that it won."""

    def work(worker: int) -> list[int]:
        won = []
        for number in range(30):
            try:
                db.execute("INSERT INTO t (id, v) VALUES (?, ?)", (number, f"{worker}-{number}"))
            except safedb.UniqueViolation:
                continue
            won.append(number)
        return won

    results = crew.together(8, work)
    assert Counter(number for won in results for number in won) == Counter(range(30))
    owners = dict(db.execute("SELECT id, v FROM t").fetchall())
    assert owners == {number: f"{worker}-{number}" for worker, won in enumerate(results) for number in won}


def test_counting_up_in_one_statement_counts_every_call(db: safedb.Database, crew: Crew) -> None:
    db.execute("INSERT INTO t (id, v) VALUES (1, '0')")
    update = "UPDATE t SET v = CAST(CAST(v AS INTEGER) + 1 AS TEXT) WHERE id = 1"
    results = crew.together(8, lambda _: [db.execute(update).rowcount for _ in range(25)])
    assert results == [[1] * 25] * 8
    assert db.execute("SELECT v FROM t").scalar() == "200"


class Mishap(Exception):
    pass


def failing_rows() -> Iterator[tuple[str]]:
    yield ("a",)
    raise Mishap


def failing_block(db: safedb.Database) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('a')")
        raise Mishap


def failing_function(db: safedb.Database) -> None:
    def body(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('a')")
        raise Mishap

    db.run_transaction(body)


INSERT = "INSERT INTO t (v) VALUES (?)"
FAILURES: dict[str, tuple[type[Exception], Callable[[safedb.Database], Any]]] = {
    "executemany, a constraint": (safedb.UniqueViolation, lambda db: db.executemany(INSERT, [("a",), ("b",), ("a",)])),
    "executemany, a value": (safedb.DataError, lambda db: db.executemany(INSERT, [("a",), ("b\0",)])),
    "executemany, a count": (safedb.ProgrammingError, lambda db: db.executemany(INSERT, [("a",), ()])),
    "executemany, the caller's generator": (Mishap, lambda db: db.executemany(INSERT, failing_rows())),
    "executescript, a constraint": (
        safedb.UniqueViolation,
        lambda db: db.executescript("INSERT INTO t (v) VALUES ('a'); INSERT INTO t (v) VALUES ('a')"),
    ),
    "executescript, no such table": (
        safedb.ProgrammingError,
        lambda db: db.executescript("CREATE TABLE u (a INTEGER); INSERT INTO t (v) VALUES ('a'); DELETE FROM nowhere"),
    ),
    "executescript, refused": (
        safedb.ProgrammingError,
        lambda db: db.executescript("INSERT INTO t (v) VALUES ('a'); COMMIT; INSERT INTO t (v) VALUES ('b')"),
    ),
    "execute, many rows": (
        safedb.UniqueViolation,
        lambda db: db.execute("INSERT INTO t (v) VALUES ('a'), ('b'), ('a')"),
    ),
    "transaction": (Mishap, failing_block),
    "run_transaction": (Mishap, failing_function),
}


@pytest.mark.parametrize(("error", "fail"), FAILURES.values(), ids=FAILURES.keys())
def test_all_or_nothing(db: safedb.Database, error: type[Exception], fail: Callable[[safedb.Database], Any]) -> None:
    db.execute("INSERT INTO t (v) VALUES ('kept')")
    with pytest.raises(error):
        fail(db)
    assert db.execute("SELECT v FROM t").fetchall() == [("kept",)]
    with pytest.raises(safedb.ProgrammingError):
        db.execute("SELECT * FROM u")
    db.execute("INSERT INTO t (v) VALUES ('a')")  # and nothing is left that would be in the way


def test_a_large_executemany_is_all_or_nothing_too(db: safedb.Database) -> None:
    """Beyond a size the rows run as a block of their own, with the same promise."""
    rows = [(number, f"v{number}") for number in range(60_000)]
    with pytest.raises(safedb.UniqueViolation):
        db.executemany("INSERT INTO t (id, v) VALUES (?, ?)", [*rows, (0, "again")])
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
    assert db.executemany("INSERT INTO t (id, v) VALUES (?, ?)", rows) == 60_000
    assert db.execute("SELECT count(*) FROM t").scalar() == 60_000


def test_executemany_without_rows_does_nothing(db: safedb.Database) -> None:
    assert db.executemany(INSERT, []) == 0
    assert db.executemany(INSERT, iter(())) == 0


def test_a_script_makes_its_tables_and_fills_them_in_one_piece(db: safedb.Database) -> None:
    db.executescript(
        """
        CREATE TABLE a (x TEXT); -- a comment; with a semicolon
        INSERT INTO a VALUES ('1;2');
        CREATE TABLE b (x INTEGER);
        INSERT INTO b SELECT count(*) FROM a;
        """
    )
    assert db.execute("SELECT x FROM a").one() == ("1;2",)
    assert db.execute("SELECT x FROM b").one() == (1,)


def test_an_empty_script_is_no_error(db: safedb.Database) -> None:
    db.executescript("")
    db.executescript("  ; -- nothing\n ;")
