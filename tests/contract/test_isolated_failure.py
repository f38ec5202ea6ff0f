"""Isolated failure: a write that fails takes nothing with it, neither its neighbours nor what comes after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import Crew, line_behind_a_block

import safedb


class Mishap(Exception):
    pass


def duplicate(db: safedb.Database) -> None:
    db.execute("INSERT INTO t (v) VALUES ('taken')")


def missing_table(db: safedb.Database) -> None:
    db.execute("INSERT INTO nowhere VALUES (1)")


def duplicates(db: safedb.Database) -> None:
    db.executemany("INSERT INTO t (v) VALUES (?)", [("lost",), ("taken",)])


def failing_function(db: safedb.Database) -> None:
    def body(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('lost')")
        raise Mishap

    db.run_transaction(body)


def failing_block(db: safedb.Database) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('lost')")
        raise Mishap


FAILURES: list[tuple[Callable[[safedb.Database], Any], type[Exception]]] = [
    (duplicate, safedb.UniqueViolation),
    (missing_table, safedb.ProgrammingError),
    (duplicates, safedb.UniqueViolation),
    (failing_function, Mishap),
    (failing_block, Mishap),
]


@pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize(("fail", "error"), FAILURES, ids=[fail.__name__ for fail, _ in FAILURES])
def test_neighbours_in_the_queue_are_untouched(
    db: safedb.Database, crew: Crew, fail: Callable[[safedb.Database], Any], error: type[Exception], place: int
) -> None:
    db.execute("INSERT INTO t (v) VALUES ('taken')")
    with line_behind_a_block(db, crew) as line:
        for number in range(7):
            if number == place:
                guilty = line.add(fail, db)
            elif number % 3 == 2:
                line.add(
                    db.run_transaction, lambda tx, v: tx.execute("INSERT INTO t (v) VALUES (?)", (v,)), f"{number}"
                )
            else:
                line.add(db.execute, "INSERT INTO t (v) VALUES (?)", (f"{number}",))
    assert isinstance(guilty.error(), error)
    there = {row[0] for row in db.execute("SELECT v FROM t")}
    assert there == {"taken", *(f"{number}" for number in range(7) if number != place)}


def test_each_of_many_failures_gets_its_own_error(db: safedb.Database, crew: Crew) -> None:
    db.execute("INSERT INTO t (v) VALUES ('taken')")
    with line_behind_a_block(db, crew) as line:
        workers = [line.add(fail, db) for fail, _ in FAILURES]
    for worker, (_, error) in zip(workers, FAILURES, strict=True):
        assert type(worker.error()) is error
    assert db.execute("SELECT v FROM t").fetchall() == [("taken",)]


def test_a_row_is_refused_because_of_a_neighbour_that_is_there_in_the_end(db: safedb.Database, crew: Crew) -> None:
    """The verdict "duplicate" must rest on what was committed, never on a neighbour that was rolled back."""

    def insert_and_fail(db: safedb.Database) -> None:
        def body(tx: safedb.Transaction) -> None:
            tx.execute("INSERT INTO t (v) VALUES ('x')")
            raise Mishap

        db.run_transaction(body)

    with line_behind_a_block(db, crew) as line:
        lost = line.add(insert_and_fail, db)
        first = line.add(db.execute, "INSERT INTO t (v) VALUES ('x')")
        second = line.add(db.execute, "INSERT INTO t (v) VALUES ('x')")
    outcomes = [first.error(), second.error()]
    # PostgreSQL keeps no line: who fails by itself may come last, and meet the row that is there by then.
    assert isinstance(lost.error(), Mishap if db.dialect == "sqlite" else Mishap | safedb.UniqueViolation)
    assert [type(error) for error in outcomes if error is not None] == [safedb.UniqueViolation]
    assert db.execute("SELECT v FROM t").fetchall() == [("x",)]


def test_two_of_a_kind_fail_again_and_again_and_nobody_else_does(db: safedb.Database, crew: Crew) -> None:
    db.execute("INSERT INTO t (v) VALUES ('taken')")

    def work(worker: int) -> int:
        refused = 0
        for number in range(30):
            value = "taken" if worker < 2 else f"{worker}-{number}"
            try:
                db.execute("INSERT INTO t (v) VALUES (?)", (value,))
            except safedb.UniqueViolation:
                refused += 1
        return refused

    assert crew.together(6, work) == [30, 30, 0, 0, 0, 0]
    assert db.execute("SELECT count(*) FROM t").scalar() == 1 + 4 * 30


def test_a_failed_read_disturbs_nobody(db: safedb.Database) -> None:
    for _ in range(20):  # more often than there are readers
        with pytest.raises(safedb.ProgrammingError):
            db.execute("SELECT nothing FROM t")
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
