"""Same answer on both: what becomes of transactions that meet, of connections that break, and of a fork."""

# What raises here is a block, with what came before in it.
# ruff: noqa: PT012
from __future__ import annotations

import os
import signal
import threading
import traceback
from typing import Any

import pgserver
import psycopg
import pytest
from conftest import Backend, Connect
from support import JOIN, Crew, wait_until

import safedb

ACCOUNTS = "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)"
ADD = "UPDATE account SET balance = balance + 1 WHERE id = ?"


@pytest.fixture
def accounts(connect: Connect) -> safedb.Database:
    db = connect(schema=ACCOUNTS)
    db.executemany("INSERT INTO account VALUES (?, 0)", [(1,), (2,)])
    return db


def balances(db: safedb.Database) -> list[int]:
    return [row[0] for row in db.execute("SELECT balance FROM account ORDER BY id")]


def test_a_block_that_meets_another_write_fails_on_postgresql_alone(accounts: safedb.Database, crew: Crew) -> None:
    def interfere() -> None:
        accounts.execute("UPDATE account SET balance = 100 WHERE id = 1")

    def block() -> Any:
        with accounts.transaction() as tx:
            before = tx.execute("SELECT balance FROM account WHERE id = 1").scalar()
            other = crew(interfere)
            if accounts.dialect == "postgresql":  # on SQLite it waits for this block's end
                other.result()
            tx.execute("UPDATE account SET balance = ? WHERE id = 1", (before + 1,))
        return other

    if accounts.dialect == "sqlite":
        block().result()
    else:
        with pytest.raises(safedb.SerializationFailure, match="run_transaction") as caught:
            block()
        assert caught.value.retryable
        assert caught.value.sqlstate == "40001"
    assert balances(accounts)[0] == 100


def test_a_function_that_meets_another_write_is_run_again(accounts: safedb.Database, crew: Crew) -> None:
    runs: list[int] = []

    def body(tx: safedb.Transaction) -> None:
        before = tx.execute("SELECT balance FROM account WHERE id = 1").scalar()
        runs.append(before)
        if accounts.dialect == "postgresql" and len(runs) == 1:
            crew(accounts.execute, ADD, (1,)).result()
        tx.execute("UPDATE account SET balance = ? WHERE id = 1", (before + 1,))

    if accounts.dialect == "sqlite":
        accounts.execute(ADD, (1,))
    accounts.run_transaction(body)
    assert runs == ([1] if accounts.dialect == "sqlite" else [0, 1])
    assert balances(accounts)[0] == 2
    assert accounts.stats().retries.get("serialization", 0) == len(runs) - 1


def test_two_that_read_what_the_other_writes_are_never_both_right(accounts: safedb.Database, crew: Crew) -> None:
    """Write skew: neither touches the other's row, and yet no serial order has both."""
    first_reads = threading.Barrier(2)

    def work(worker: int) -> None:
        tries: list[int] = []

        def body(tx: safedb.Transaction) -> None:
            tries.append(worker)
            total = tx.execute("SELECT sum(balance) FROM account").scalar()
            if accounts.dialect == "postgresql" and len(tries) == 1:  # SQLite runs one after the other anyway
                first_reads.wait(JOIN)
            if total == 0:
                tx.execute(ADD, (worker + 1,))

        accounts.run_transaction(body)

    crew.together(2, work)
    assert sum(balances(accounts)) == 1


def test_with_serial_writes_a_block_never_meets_another(connect: Connect, backend: Backend, crew: Crew) -> None:
    """SQLite's writes are serial anyway, so there the option is refused."""
    if backend.name == "sqlite":
        with pytest.raises(safedb.ConfigError, match="serial_writes"):
            connect(serial_writes=True)
        db = connect(schema=ACCOUNTS)
    else:
        db = connect(schema=ACCOUNTS, serial_writes=True)
    db.execute("INSERT INTO account VALUES (1, 0)")

    def work(worker: int) -> None:
        for _ in range(10):
            with db.transaction() as tx:
                before = tx.execute("SELECT balance FROM account WHERE id = 1").scalar()
                tx.execute("UPDATE account SET balance = ? WHERE id = 1", (before + 1,))

    crew.together(4, work)
    assert balances(db) == [40]


def test_functions_that_lock_each_other_out_are_run_again(accounts: safedb.Database, crew: Crew) -> None:
    """Each holds what the other needs next. On SQLite the second one begins after the first has ended."""
    both_hold_one = threading.Barrier(2)
    runs = [0, 0]

    def work(worker: int) -> None:
        def body(tx: safedb.Transaction) -> None:
            runs[worker] += 1
            tx.execute(ADD, (worker + 1,))
            if accounts.dialect == "postgresql" and runs[worker] == 1:
                both_hold_one.wait(JOIN)
            tx.execute(ADD, (2 - worker,))

        accounts.run_transaction(body)

    crew.together(2, work)
    assert balances(accounts) == [2, 2]
    if accounts.dialect == "sqlite":
        assert runs == [1, 1]
    else:
        assert max(runs) > 1


def test_blocks_that_lock_each_other_out_are_told_so(accounts: safedb.Database, crew: Crew) -> None:
    both_hold_one = threading.Barrier(2)

    def work(worker: int) -> type[safedb.Error] | None:
        try:
            with accounts.transaction() as tx:
                tx.execute(ADD, (worker + 1,))
                if accounts.dialect == "postgresql":
                    both_hold_one.wait(JOIN)
                tx.execute(ADD, (2 - worker,))
        except (safedb.DeadlockDetected, safedb.SerializationFailure) as failure:
            return type(failure) if failure.retryable else safedb.Error
        return None

    told = crew.together(2, work)
    if accounts.dialect == "sqlite":
        assert told == [None, None]
        assert balances(accounts) == [2, 2]
    else:
        # Who is not chosen to fall goes on; it may then meet what the other had read.
        assert safedb.DeadlockDetected in told
        assert safedb.Error not in told


def test_a_link_that_breaks_before_commit_costs_another_run(db: safedb.Database) -> None:
    """There is no link on SQLite, so nothing breaks, and nothing is run again."""
    runs: list[int] = []

    def body(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('x')")
        if db.dialect == "postgresql":
            runs.append(tx.execute("SELECT pg_backend_pid()").scalar())
            if len(runs) == 1:
                pgserver.shared().execute(f"SELECT pg_terminate_backend({runs[0]}, 10000)")
        else:
            runs.append(0)
        tx.execute("UPDATE t SET v = 'y'")

    db.run_transaction(body)
    assert len(runs) == (2 if db.dialect == "postgresql" else 1)
    assert len(set(runs)) == len(runs)  # on a fresh connection
    assert db.execute("SELECT v FROM t").fetchall() == [("y",)]


def test_a_block_whose_link_breaks_says_that_nothing_was_kept(db: safedb.Database) -> None:
    if db.dialect == "postgresql":
        with pytest.raises(safedb.ConnectionLost) as caught, db.transaction() as tx:
            tx.execute("INSERT INTO t (v) VALUES ('lost')")
            pid = tx.execute("SELECT pg_backend_pid()").scalar()
            pgserver.shared().execute(f"SELECT pg_terminate_backend({pid}, 10000)")
            tx.execute("INSERT INTO t (v) VALUES ('lost too')")
        assert caught.value.retryable
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
    db.execute("INSERT INTO t (v) VALUES ('next')")


SLOW_COMMIT = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock({key}); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait();
"""


def test_a_link_that_breaks_during_commit_is_looked_up(db: safedb.Database, target: Any, crew: Crew) -> None:
    """The server knows what became of it: here, that it did not happen, so that the function may run again."""
    runs: list[int] = []

    def body(tx: safedb.Transaction) -> None:
        runs.append(tx.execute("SELECT pg_backend_pid()").scalar() if db.dialect == "postgresql" else 0)
        tx.execute("INSERT INTO t (v) VALUES ('once')")

    if db.dialect == "sqlite":
        db.run_transaction(body)
        assert runs == [0]
    else:
        key = os.getpid()
        db.executescript(SLOW_COMMIT.format(key=key))
        with psycopg.connect(target) as other:
            other.execute(f"SELECT pg_advisory_xact_lock({key})")
            waiting = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {key} AND NOT granted"
            worker = crew(db.run_transaction, body)
            wait_until(lambda: other.execute(waiting).fetchone() == (1,), "COMMIT to be under way")
            pgserver.shared().execute(f"SELECT pg_terminate_backend({runs[0]}, 10000)")
        worker.result()
        assert len(runs) == 2
    assert db.execute("SELECT v FROM t").fetchall() == [("once",)]


def connections(db: safedb.Database) -> tuple[Any, Any]:
    """Tell which sessions of the server read and write; on SQLite there is nothing of the kind."""
    ask = "SELECT pg_backend_pid()" if db.dialect == "postgresql" else "SELECT NULL"
    reading = db.execute(ask).scalar()
    with db.transaction() as tx:
        return reading, tx.execute(ask).scalar()


def in_the_child(db: safedb.Database, parents: tuple[Any, Any]) -> bool:
    db.execute("INSERT INTO t (v) VALUES ('child')")
    with db.transaction() as tx:
        tx.execute("UPDATE t SET v = v || '!'")
    count = db.execute("SELECT count(*) FROM t").scalar()
    own = connections(db)
    db.close()
    return count == 2 and (db.dialect == "sqlite" or not set(own) & set(parents))


def test_a_forked_child_works_on_connections_of_its_own(db: safedb.Database) -> None:
    db.execute("INSERT INTO t (v) VALUES ('before')")
    before = connections(db)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # it must not outlive the test
        status = 1
        try:
            status = 0 if in_the_child(db, before) else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connections(db) == before, "the child's end was the end of the parent's connections"
    assert {row[0] for row in db.execute("SELECT v FROM t")} == {"before!", "child!"}
    db.execute("DELETE FROM t")
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
