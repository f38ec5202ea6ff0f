"""Poisoned, not half done: after an error a transaction accepts nothing more until it is rolled back, as a whole."""

# What raises here is a block, with what came before in it.
# ruff: noqa: PT012
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
from support import Crew

import safedb

Body = Callable[[safedb.Transaction], Any]


def in_a_block(db: safedb.Database, body: Body) -> Any:
    with db.transaction() as tx:
        return body(tx)


def in_a_function(db: safedb.Database, body: Body) -> Any:
    return db.run_transaction(body)


def beside_others(db: safedb.Database, body: Body) -> Any:
    """Run it as a function that shares its transaction: other threads write all the time."""
    crew = Crew()
    workers = [crew(db.execute, "UPDATE t SET v = v WHERE id = -1") for _ in range(3)]
    try:
        return db.run_transaction(body)
    finally:
        for worker in workers:
            worker.result()


EVERY_KIND = pytest.mark.parametrize("run", [in_a_block, in_a_function, beside_others], ids=lambda run: run.__name__)


@pytest.fixture
def db(db: safedb.Database) -> safedb.Database:
    db.execute("INSERT INTO t (v) VALUES ('taken')")
    return db


def values(db: safedb.Database) -> list[str]:
    return [row[0] for row in db.execute("SELECT v FROM t ORDER BY id")]


def insert(tx: safedb.Transaction, value: str) -> None:
    tx.execute("INSERT INTO t (v) VALUES (?)", (value,))


def swallow(tx: safedb.Transaction, value: str = "taken") -> None:
    with pytest.raises(safedb.UniqueViolation):
        insert(tx, value)


@EVERY_KIND
def test_after_a_swallowed_error_every_call_raises_and_leaving_raises(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    def body(tx: safedb.Transaction) -> None:
        insert(tx, "before")
        swallow(tx)
        uses: list[Callable[[], Any]] = [
            lambda: insert(tx, "after"),
            lambda: tx.execute("SELECT 1"),
            lambda: tx.executemany("INSERT INTO t (v) VALUES (?)", [("after",)]),
            lambda: tx.savepoint(),
            lambda: tx.after_commit(print),
        ]
        for use in uses:
            with pytest.raises(safedb.TransactionAborted) as caught:
                use()
            assert isinstance(caught.value.__cause__, safedb.UniqueViolation)
        assert "aborted" in repr(tx)

    with pytest.raises(safedb.TransactionAborted) as caught:
        run(db, body)
    assert isinstance(caught.value.__cause__, safedb.UniqueViolation)
    assert values(db) == ["taken"]
    insert_and_keep = in_a_block
    insert_and_keep(db, lambda tx: insert(tx, "afterwards"))
    assert values(db) == ["taken", "afterwards"]


@EVERY_KIND
def test_an_error_that_leaves_the_block_is_raised_as_it_is(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    def body(tx: safedb.Transaction) -> None:
        insert(tx, "before")
        insert(tx, "taken")

    with pytest.raises(safedb.UniqueViolation):
        run(db, body)
    assert values(db) == ["taken"]


@EVERY_KIND
def test_another_exception_than_the_databases_is_not_replaced(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    def body(tx: safedb.Transaction) -> None:
        swallow(tx)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(db, body)
    assert values(db) == ["taken"]


REFUSED: dict[str, tuple[type[safedb.Error], Callable[[safedb.Database, safedb.Transaction], Any]]] = {
    "re-entrance": (safedb.ReentrancyError, lambda db, tx: db.execute("SELECT 1")),
    "COMMIT": (safedb.ProgrammingError, lambda db, tx: tx.execute("COMMIT")),
    "two statements": (safedb.ProgrammingError, lambda db, tx: tx.execute("SELECT 1; SELECT 2")),
    "too few parameters": (safedb.ProgrammingError, lambda db, tx: tx.execute("SELECT ?", ())),
    "a value out of range": (safedb.DataError, lambda db, tx: tx.execute("SELECT ?", (2**63,))),
    "a row out of range": (
        safedb.DataError,
        lambda db, tx: tx.executemany("INSERT INTO t (v) VALUES (?)", [("new",), ("\0",)]),
    ),
    "executemany of a SELECT": (safedb.ProgrammingError, lambda db, tx: tx.executemany("SELECT ?", [(1,)])),
    "no callable": (safedb.InterfaceError, lambda db, tx: tx.after_commit("print")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("error", "call"), REFUSED.values(), ids=REFUSED.keys())
@EVERY_KIND
def test_what_is_refused_before_it_is_sent_does_no_harm(
    db: safedb.Database,
    run: Callable[[safedb.Database, Body], Any],
    error: type[safedb.Error],
    call: Callable[[safedb.Database, safedb.Transaction], Any],
) -> None:
    def body(tx: safedb.Transaction) -> None:
        insert(tx, "before")
        with pytest.raises(error):
            call(db, tx)
        insert(tx, "after")

    run(db, body)
    assert values(db) == ["taken", "before", "after"]


@EVERY_KIND
def test_a_savepoint_rolls_back_alone(db: safedb.Database, run: Callable[[safedb.Database, Body], Any]) -> None:
    def body(tx: safedb.Transaction) -> None:
        insert(tx, "before")
        with pytest.raises(safedb.UniqueViolation), tx.savepoint():
            insert(tx, "inside")
            insert(tx, "taken")
        with pytest.raises(KeyError), tx.savepoint():
            insert(tx, "inside")
            raise KeyError
        with tx.savepoint():
            insert(tx, "kept")
        insert(tx, "after")

    run(db, body)
    assert values(db) == ["taken", "before", "kept", "after"]


@EVERY_KIND
def test_a_savepoint_whose_error_was_swallowed_inside_it_rolls_back_and_raises_at_its_end(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    def body(tx: safedb.Transaction) -> None:
        insert(tx, "before")
        with pytest.raises(safedb.TransactionAborted, match="savepoint was rolled back") as caught, tx.savepoint():
            insert(tx, "inside")
            swallow(tx)
        assert isinstance(caught.value.__cause__, safedb.UniqueViolation)
        insert(tx, "after")

    run(db, body)
    assert values(db) == ["taken", "before", "after"]


@EVERY_KIND
def test_a_savepoint_recovers_however_long_its_user_thinks_about_the_error(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    """Longer than the server is left without word of what remains of the deadline."""

    def body(tx: safedb.Transaction) -> None:
        with pytest.raises(safedb.UniqueViolation), tx.savepoint():
            try:
                insert(tx, "taken")
            except safedb.UniqueViolation:
                time.sleep(0.05)
                raise
        insert(tx, "after")

    run(db, body)
    assert values(db) == ["taken", "after"]


@EVERY_KIND
def test_savepoints_nest_and_each_undoes_its_own(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    def body(tx: safedb.Transaction) -> None:
        with tx.savepoint():
            insert(tx, "1")
            with pytest.raises(KeyError), tx.savepoint():
                insert(tx, "2")
                with tx.savepoint():
                    insert(tx, "3")
                raise KeyError
            with tx.savepoint():
                insert(tx, "4")
                with pytest.raises(safedb.UniqueViolation), tx.savepoint():
                    insert(tx, "taken")
                insert(tx, "5")

    run(db, body)
    assert values(db) == ["taken", "1", "4", "5"]


@EVERY_KIND
def test_a_savepoint_inside_a_poisoned_one_is_refused(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    def body(tx: safedb.Transaction) -> None:
        with pytest.raises(safedb.TransactionAborted), tx.savepoint():
            swallow(tx)
            with tx.savepoint():
                pytest.fail("it was let in")
        insert(tx, "after")

    run(db, body)
    assert values(db) == ["taken", "after"]


def test_a_savepoint_that_is_left_after_its_transaction_does_nothing(db: safedb.Database) -> None:
    with db.transaction() as tx:
        savepoint = tx.savepoint()
        savepoint.__enter__()
        insert(tx, "x")
    savepoint.__exit__(None, None, None)
    assert values(db) == ["taken", "x"]


@EVERY_KIND
def test_callbacks_go_with_the_savepoint_they_were_given_in(
    db: safedb.Database, run: Callable[[safedb.Database, Body], Any]
) -> None:
    called: list[str] = []

    def body(tx: safedb.Transaction) -> None:
        tx.after_commit(lambda: called.append("before"))
        with pytest.raises(KeyError), tx.savepoint():
            tx.after_commit(lambda: called.append("lost"))
            raise KeyError
        with tx.savepoint():
            tx.after_commit(lambda: called.append("kept"))

    run(db, body)
    assert called == ["before", "kept"]


def test_no_callback_runs_for_what_was_rolled_back(db: safedb.Database) -> None:
    def body(tx: safedb.Transaction) -> None:
        tx.after_commit(lambda: pytest.fail("it was called"))
        insert(tx, "taken")

    for run in (in_a_block, in_a_function):
        with pytest.raises(safedb.UniqueViolation):
            run(db, body)


def test_a_snapshot_ends_with_an_error_but_has_nothing_to_lose(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        assert snap.execute("SELECT v FROM t").fetchall() == [("taken",)]
        with pytest.raises(safedb.ProgrammingError):
            snap.execute("SELECT nothing FROM nowhere")
        for use in (lambda: snap.execute("SELECT 1"), lambda: list(snap.iterate("SELECT 1"))):
            with pytest.raises(safedb.TransactionAborted):
                use()
    assert values(db) == ["taken"]  # leaving did not raise, and the reader is as good as new


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (v) VALUES ('x')",
        "DELETE FROM t",
        "CREATE TABLE u (a INTEGER)",
        "WITH a AS (SELECT 1) DELETE FROM t",
    ],
)
def test_a_refused_write_does_not_poison_a_snapshot(db: safedb.Database, sql: str) -> None:
    with db.snapshot() as snap:
        with pytest.raises(safedb.ProgrammingError, match="read-only") as caught:
            snap.execute(sql)
        assert caught.value.sqlstate == "25006"
        with pytest.raises(safedb.ProgrammingError, match="read-only"):
            list(snap.iterate(sql))
        with pytest.raises(safedb.ProgrammingError):
            snap.execute("SELECT ?", ())
        assert snap.execute("SELECT v FROM t").fetchall() == [("taken",)]
    assert values(db) == ["taken"]


def test_an_interrupt_that_was_swallowed_inside_the_block_poisons_it_too(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can know whether the statement that it came through has run: so nothing of the block is kept."""

    def interrupted(*_: object, **__: object) -> None:  # a real one comes at no certain place
        raise KeyboardInterrupt

    insert = "INSERT INTO t (v) VALUES (?)"
    with pytest.raises(safedb.TransactionAborted), db.transaction() as tx:
        tx.execute(insert, ("first",))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(tx._session), "run", interrupted)
            tx.execute(insert, ("second",))
        with pytest.raises(safedb.TransactionAborted):
            tx.execute(insert, ("third",))
    assert db.execute("SELECT v FROM t").fetchall() == [("taken",)]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_savepoint_is_rolled_back_by_whatever_leaves_it(db: safedb.Database, raised: type[BaseException]) -> None:
    """Caught around the savepoint, inside the transaction: its part is undone, and the rest goes on."""

    def body(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('kept')")
        with contextlib.suppress(raised), tx.savepoint():
            tx.execute("INSERT INTO t (v) VALUES ('undone')")
            raise raised
        tx.execute("INSERT INTO t (v) VALUES ('kept too')")

    with db.transaction() as tx:
        body(tx)
    assert [v for (v,) in db.execute("SELECT v FROM t ORDER BY v")] == ["kept", "kept too", "taken"]


def test_a_generator_that_is_not_read_to_its_end_undoes_its_savepoint(db: safedb.Database) -> None:
    def parts(tx: safedb.Transaction) -> Generator[int, None, None]:
        with tx.savepoint():
            for number in range(3):
                tx.execute("INSERT INTO t (v) VALUES (?)", (f"part {number}",))
                yield number

    with db.transaction() as tx:
        for _ in (reading := parts(tx)):
            break
        reading.close()
    assert db.execute("SELECT v FROM t").fetchall() == [("taken",)]
