"""run_transaction, transactional and after_commit: what may run twice, what runs once."""

# What raises here is a block, with what came before in it.
# ruff: noqa: PT012
from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest

import safedb


def values(db: safedb.Database) -> list[str]:
    return [row[0] for row in db.execute("SELECT v FROM t ORDER BY id")]


def insert(tx: safedb.Transaction, value: str, *, suffix: str = "") -> str:
    """Insert a value."""
    tx.execute("INSERT INTO t (v) VALUES (?)", (value + suffix,))
    return value + suffix


def test_run_transaction_passes_arguments_and_gives_back_what_the_function_returns(db: safedb.Database) -> None:
    assert db.run_transaction(insert, "a", suffix="!") == "a!"
    assert values(db) == ["a!"]


def test_timeout_is_safedbs_own_and_partial_carries_the_functions(db: safedb.Database) -> None:
    def body(tx: safedb.Transaction, timeout: float) -> float:
        return timeout

    assert db.run_transaction(partial(body, timeout=7.0), timeout=5.0) == 7.0
    with pytest.raises(safedb.ConfigError, match="timeout"):
        db.run_transaction(body, timeout=-1)


def test_transactional_keeps_the_functions_face_and_takes_its_arguments(db: safedb.Database) -> None:
    decorated = db.transactional(insert)
    assert decorated("a", suffix="?") == "a?"
    assert (decorated.__name__, decorated.__doc__) == ("insert", "Insert a value.")

    @db.transactional
    def with_timeout(tx: safedb.Transaction, timeout: float) -> float:
        return timeout

    assert with_timeout(timeout=9.0) == 9.0


def test_an_exception_of_the_functions_comes_through_and_undoes_all(db: safedb.Database) -> None:
    error = KeyError("mine")

    def body(tx: safedb.Transaction) -> None:
        insert(tx, "lost")
        raise error

    with pytest.raises(KeyError) as caught:
        db.run_transaction(body)
    assert caught.value is error
    assert values(db) == []


def test_a_coroutine_function_is_refused_and_does_nothing(db: safedb.Database) -> None:
    async def body(tx: safedb.Transaction) -> None:
        insert(tx, "never")

    kept: list[Any] = []

    def plain(tx: safedb.Transaction) -> Any:
        kept.append(body(tx))
        return kept[0]

    with pytest.raises(safedb.InterfaceError, match="coroutine"):
        db.run_transaction(plain)
    assert inspect.getcoroutinestate(kept[0]) == inspect.CORO_CLOSED  # or Python warns that it was never awaited
    assert values(db) == []


def test_callbacks_run_in_order_after_the_commit(db: safedb.Database) -> None:
    called: list[str] = []

    def body(tx: safedb.Transaction) -> str:
        tx.after_commit(lambda: called.append(f"first, {values(db)}"))
        insert(tx, "x")
        tx.after_commit(lambda: called.append("second"))
        assert called == []
        return "value"

    assert db.run_transaction(body) == "value"
    assert called == ["first, ['x']", "second"]


def test_a_callback_that_fails_says_that_the_transaction_is_committed_and_stops_no_other(db: safedb.Database) -> None:
    called: list[str] = []

    def fail() -> None:
        raise KeyError("in the callback")

    def body(tx: safedb.Transaction) -> None:
        insert(tx, "kept")
        tx.after_commit(fail)
        tx.after_commit(lambda: called.append("second"))

    with pytest.raises(KeyError, match="in the callback") as caught:
        db.run_transaction(body)
    assert any("committed" in note for note in caught.value.__notes__)
    assert called == ["second"]
    assert values(db) == ["kept"]

    with pytest.raises(KeyError), db.transaction() as tx:
        insert(tx, "block")
        tx.after_commit(fail)
    assert values(db) == ["kept", "block"]


def test_a_callback_cannot_use_its_transaction_any_more(db: safedb.Database) -> None:
    def body(tx: safedb.Transaction) -> None:
        tx.after_commit(lambda: tx.execute("SELECT 1"))

    with pytest.raises(safedb.DatabaseClosed, match="has ended"):
        db.run_transaction(body)


def test_a_block_is_run_once_and_is_kept_when_it_is_left_by_return(db: safedb.Database) -> None:
    def leave() -> str:
        with db.transaction() as tx:
            return insert(tx, "returned")

    assert leave() == "returned"
    for value in ("a", "b"):
        with db.transaction() as tx:
            insert(tx, value)
            if value == "a":
                continue
    assert values(db) == ["returned", "a", "b"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_leaves_a_block_undoes_it(db: safedb.Database, error: type[BaseException]) -> None:
    with pytest.raises(error), db.transaction() as tx:
        insert(tx, "lost")
        raise error
    assert values(db) == []
    db.execute("INSERT INTO t (v) VALUES ('next')")
