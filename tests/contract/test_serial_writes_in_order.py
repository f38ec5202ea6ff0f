"""Serial writes, in order: nobody reads what another is about to change, and who came first goes first."""

from __future__ import annotations

import threading

import pytest
from conftest import Connect
from support import Crew, line_behind_a_block

import safedb

ACCOUNTS = "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)"


def add_one(tx: safedb.Transaction) -> int:
    before: int = tx.execute("SELECT balance FROM account WHERE id = 1").scalar()
    tx.execute("UPDATE account SET balance = ? WHERE id = 1", (before + 1,))
    return before


def add_one_in_a_block(db: safedb.Database) -> int:
    """Run the block again where PostgreSQL asks for it: nobody else does it for a block."""
    while True:
        try:
            with db.transaction() as tx:
                return add_one(tx)
        except (safedb.SerializationFailure, safedb.DeadlockDetected):
            if db.dialect == "sqlite":
                raise


@pytest.mark.parametrize("how", ["functions", "blocks", "both"])
def test_reading_and_then_writing_loses_no_update(connect: Connect, crew: Crew, how: str) -> None:
    db = connect(schema=ACCOUNTS)
    db.execute("INSERT INTO account VALUES (1, 0)")
    handles = [db, connect()]

    def work(worker: int) -> list[int]:
        handle = handles[worker % 2]
        block = how == "blocks" or (how == "both" and worker % 3 == 0)
        return [add_one_in_a_block(handle) if block else handle.run_transaction(add_one) for _ in range(20)]

    seen = [before for part in crew.together(8, work) for before in part]
    assert db.execute("SELECT balance FROM account").scalar() == 160
    assert sorted(seen) == list(range(160)), "two transactions saw the same balance"


def test_transfers_keep_the_sum_in_every_snapshot(connect: Connect, crew: Crew) -> None:
    db = connect(schema=ACCOUNTS)
    db.executemany("INSERT INTO account VALUES (?, 100)", [(number,) for number in range(4)])

    def move(tx: safedb.Transaction, source: int, target: int) -> None:
        if tx.execute("SELECT balance FROM account WHERE id = ?", (source,)).scalar() >= 10:
            tx.execute("UPDATE account SET balance = balance - 10 WHERE id = ?", (source,))
            tx.execute("UPDATE account SET balance = balance + 10 WHERE id = ?", (target,))

    finished = threading.Event()

    def watch() -> set[int]:
        sums = set()
        while not finished.is_set():
            sums.add(db.execute("SELECT sum(balance) FROM account").scalar())
            with db.snapshot() as snap:
                sums.add(sum(snap.execute("SELECT balance FROM account WHERE id = ?", (n,)).scalar() for n in range(4)))
        return sums

    watcher = crew(watch)
    try:
        crew.together(4, lambda worker: [db.run_transaction(move, worker, (worker + n) % 4) for n in range(1, 30)])
    finally:
        finished.set()
    assert watcher.result() == {400}
    assert db.execute("SELECT min(balance) FROM account").scalar() >= 0


def test_writers_that_wait_are_served_in_the_order_of_their_arrival(db: safedb.Database, crew: Crew) -> None:
    """Statements, functions, blocks and many-row writes stand in one queue, whatever each of them is."""

    def statement(value: str) -> None:
        db.execute("INSERT INTO t (v) VALUES (?)", (value,))

    def many(value: str) -> None:
        db.executemany("INSERT INTO t (v) VALUES (?)", [(value,)])

    def function(value: str) -> None:
        db.run_transaction(lambda tx: tx.execute("INSERT INTO t (v) VALUES (?)", (value,)))

    def block(value: str) -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t (v) VALUES (?)", (value,))

    def script(value: str) -> None:
        db.executescript(f"INSERT INTO t (v) VALUES ('{value}')")

    kinds = [statement, statement, function, function, many, block, statement, script, function, block, many, statement]
    with line_behind_a_block(db, crew) as line:
        for number, kind in enumerate(kinds):
            line.add(kind, f"{number:02}")
    arrived = [row[0] for row in db.execute("SELECT v FROM t ORDER BY id")]
    assert sorted(arrived) == [f"{number:02}" for number in range(len(kinds))]
    if db.dialect == "sqlite":  # PostgreSQL promises serialisable transactions, not an order
        assert arrived == sorted(arrived)


def test_each_threads_own_writes_stay_in_their_order(db: safedb.Database, crew: Crew) -> None:
    def work(worker: int) -> None:
        for number in range(25):
            db.execute("INSERT INTO t (v) VALUES (?)", (f"{worker}-{number:02}",))

    crew.together(6, work)
    rows = [row[0] for row in db.execute("SELECT v FROM t ORDER BY id")]
    for worker in range(6):
        own = [value for value in rows if value.startswith(f"{worker}-")]
        assert own == sorted(own)
