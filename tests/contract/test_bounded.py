"""Bounded: every wait has a deadline, and the error at its end says how long, behind whom, and what to do."""

# What raises here is a block, with what came before in it.
# ruff: noqa: PT012
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Connect
from support import Crew, hold_writes, wait_for_queue, wait_until

import safedb

FOREVER = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000000000) SELECT count(*) FROM c"
SHORT = 0.2
EARLY = 0.05
"""Seconds by which a wait may end before its time: a try that has so little left is not begun on PostgreSQL."""

TOO_LONG = 20.0
"""Seconds that no wait here may come near, on however slow a machine."""


class Elapsed:
    """Measure a with block."""

    def __enter__(self) -> Elapsed:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        assert self.seconds + EARLY >= SHORT, f"it gave up early, after {self.seconds} s"
        assert self.seconds < TOO_LONG, f"it waited {self.seconds} s"


def enter(manager: Any) -> None:
    with manager:
        pass


INSERT = "INSERT INTO t (v) VALUES ('late')"


def in_a_block(db: safedb.Database, timeout: float) -> None:
    with db.transaction(timeout=timeout) as tx:
        tx.execute(INSERT)


WAITING_WRITES: dict[str, Callable[[safedb.Database, float], Any]] = {
    "execute": lambda db, timeout: db.execute(INSERT, timeout=timeout),
    "execute, DDL": lambda db, timeout: db.execute("ALTER TABLE t ADD COLUMN w INTEGER", timeout=timeout),
    "executemany": lambda db, timeout: db.executemany("INSERT INTO t (v) VALUES (?)", [("late",)], timeout=timeout),
    "executescript": lambda db, timeout: db.executescript(INSERT, timeout=timeout),
    "transaction": in_a_block,
    "run_transaction": lambda db, timeout: db.run_transaction(lambda tx: tx.execute(INSERT), timeout=timeout),
    "optimize": lambda db, timeout: optimize(db, timeout),
}


def optimize(db: safedb.Database, timeout: float) -> None:
    """Optimise; on PostgreSQL only one table, for the others of the tests' server would take the time of the wait."""
    if db.dialect == "sqlite":
        db.optimize(timeout=timeout)
    else:
        db.execute("ANALYZE t", timeout=timeout)


@pytest.mark.parametrize("write", WAITING_WRITES.values(), ids=WAITING_WRITES.keys())
def test_a_write_that_waits_for_its_turn_gives_up_at_its_deadline(
    db: safedb.Database, crew: Crew, write: Callable[[safedb.Database, float], Any]
) -> None:
    def give_up() -> None:
        with Elapsed(), pytest.raises(safedb.LockTimeout) as caught:
            write(db, SHORT)
        assert caught.value.retryable
        assert caught.value.sqlstate == "55P03"
        # Only SQLite's queue is ours, so only there is it known who was in the way, and how long.
        known = ("waited 0.", "the holder") if db.dialect == "sqlite" else ("another transaction",)
        for told in (*known, "raise the timeout"):
            assert told in str(caught.value)

    def hold() -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t (v) VALUES ('held')")
            hold_writes(db, tx)
            crew(give_up).result()

    crew(hold, name="the holder").result()
    assert db.stats().queue_depth == 0
    assert db.execute("SELECT v FROM t").fetchall() == [("held",)]  # and the late one came not later
    write(db, 30.0)


def test_the_policys_timeout_holds_where_a_call_gives_none(connect: Connect, db: safedb.Database, crew: Crew) -> None:
    hurried = connect(retry=safedb.RetryPolicy(timeout=SHORT))
    with db.transaction() as tx:
        hold_writes(db, tx)
        with Elapsed():
            error = crew(hurried.execute, INSERT).error()
    assert isinstance(error, safedb.LockTimeout)


def test_who_gives_up_leaves_its_place_to_those_behind_it(db: safedb.Database, crew: Crew) -> None:
    with db.transaction() as tx:
        hold_writes(db, tx)
        late = crew(db.execute, INSERT, timeout=SHORT)
        wait_for_queue(db, tx, 1)
        patient = crew(db.execute, "INSERT INTO t (v) VALUES ('patient')")
        assert isinstance(late.error(), safedb.LockTimeout)
        wait_for_queue(db, tx, 1)
    assert patient.result().rowcount == 1
    assert db.execute("SELECT v FROM t").one() == ("patient",)


def test_a_full_queue_pushes_back(connect: Connect, crew: Crew) -> None:
    # One connection that writes: on SQLite there is never more than one, on PostgreSQL the rest waits for it.
    db = connect(schema="CREATE TABLE t (v TEXT)", pool=safedb.PoolConfig(max_size=1, max_waiting=2))
    with db.transaction() as tx:
        waiting = []
        for number in range(2):
            waiting.append(crew(db.execute, "INSERT INTO t VALUES (?)", (f"{number}",)))
            wait_for_queue(db, tx, number + 1)
        with Elapsed():
            error = crew(db.execute, "INSERT INTO t VALUES ('crowded')", timeout=SHORT).error()
        assert isinstance(error, safedb.QueueFull)
        assert error.retryable
        assert "max_waiting" in str(error)
        patient = crew(db.execute, "INSERT INTO t VALUES ('patient')")  # a place may become free in time
        if db.dialect == "sqlite":  # PostgreSQL's looks from time to time whether there is room in the queue
            wait_for_queue(db, tx, 3)
    assert [worker.result().rowcount for worker in [*waiting, patient]] == [1, 1, 1]
    assert {row[0] for row in db.execute("SELECT v FROM t")} == {"0", "1", "patient"}


def test_readers_are_bounded(connect: Connect, crew: Crew) -> None:
    db = connect(schema="CREATE TABLE t (v TEXT)", pool=safedb.PoolConfig(max_size=2))
    free = threading.Event()

    def hold() -> None:
        with db.snapshot():
            assert free.wait(30)

    holders = [crew(hold) for _ in range(2)]
    wait_until(lambda: db.stats().readers.in_use == 2)
    for read in (
        lambda: db.execute("SELECT 1", timeout=SHORT),
        lambda: enter(db.snapshot(timeout=SHORT)),
    ):
        with Elapsed(), pytest.raises(safedb.PoolTimeout, match="max_size"):
            read()
    patient = crew(db.execute, "SELECT 1")
    wait_until(lambda: db.stats().readers.waiting > 0)
    db.execute("INSERT INTO t VALUES ('a write needs no reader')")
    free.set()
    assert patient.result().scalar() == 1
    for holder in holders:
        holder.result()
    stats = db.stats().readers
    assert (stats.in_use, stats.waiting, stats.max_size) == (0, 0, 2)
    assert stats.waited >= 3
    assert stats.size <= 2


def test_readers_are_used_again(db: safedb.Database) -> None:
    def snapshot() -> None:
        with db.snapshot() as snap:
            snap.execute("SELECT count(*) FROM t")

    db.execute("SELECT count(*) FROM t")
    waited = db.stats().readers.waited
    assert waited == 0
    for read in (lambda: db.execute("SELECT count(*) FROM t"), snapshot):
        for _ in range(50):
            read()
            stats = db.stats().readers
            assert (stats.size, stats.in_use, stats.waited) == (1, 0, waited)


ENDLESS: dict[str, Callable[[safedb.Database], Any]] = {
    "a read": lambda db: db.execute(FOREVER, timeout=SHORT),
    "a write": lambda db: db.execute(f"INSERT INTO t (v) {FOREVER}", timeout=SHORT),
    "DDL": lambda db: db.execute(f"CREATE TABLE u AS {FOREVER}", timeout=SHORT),
    "many": lambda db: db.executemany(f"INSERT INTO t (v) SELECT ? || ({FOREVER})", [("a",)], timeout=SHORT),
    "a script": lambda db: db.executescript(
        f"INSERT INTO t (v) VALUES ('x'); INSERT INTO t (v) {FOREVER}", timeout=SHORT
    ),
    "a function": lambda db: db.run_transaction(lambda tx: tx.execute(FOREVER), timeout=SHORT),
}


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_statement_that_never_ends_is_interrupted(
    db: safedb.Database, call: Callable[[safedb.Database], Any]
) -> None:
    with Elapsed(), pytest.raises(safedb.QueryCanceled, match="deadline") as caught:
        call(db)
    assert caught.value.sqlstate == "57014"
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
    db.execute("INSERT INTO t (v) VALUES ('next')")
    assert db.execute("SELECT v FROM t").one() == ("next",)


def test_an_endless_statement_of_a_block_is_interrupted(db: safedb.Database) -> None:
    with Elapsed(), pytest.raises(safedb.QueryCanceled), db.transaction(timeout=SHORT) as tx:
        tx.execute("INSERT INTO t (v) VALUES ('lost')")
        tx.execute(FOREVER)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_an_endless_statement_of_a_snapshot_is_interrupted(db: safedb.Database) -> None:
    with db.snapshot(timeout=SHORT) as snap, Elapsed(), pytest.raises(safedb.QueryCanceled):
        snap.execute(FOREVER)
    with db.snapshot(timeout=SHORT) as snap, Elapsed(), pytest.raises(safedb.QueryCanceled):
        list(snap.iterate(FOREVER))
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


@pytest.mark.parametrize("how", ["a block", "a function"])
def test_after_the_deadline_the_next_statement_raises_and_nothing_is_kept(db: safedb.Database, how: str) -> None:
    def dawdle(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('early')")
        time.sleep(0.3)  # the user's own code: nothing can cut it short
        with pytest.raises(safedb.QueryCanceled, match="deadline"):
            tx.execute("INSERT INTO t (v) VALUES ('late')")
        with pytest.raises(safedb.TransactionAborted):
            tx.execute("SELECT 1")

    def block() -> None:
        with db.transaction(timeout=SHORT) as tx:
            dawdle(tx)

    with pytest.raises(safedb.TransactionAborted):
        block() if how == "a block" else db.run_transaction(dawdle, timeout=SHORT)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_a_savepoint_is_still_rolled_back_after_the_deadline(db: safedb.Database) -> None:
    """The exception that leaves it is not replaced by one about the deadline."""
    with pytest.raises(KeyError, match="mine"), db.transaction(timeout=SHORT) as tx, tx.savepoint():
        tx.execute("INSERT INTO t (v) VALUES ('x')")
        time.sleep(0.3)
        raise KeyError("mine")
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_user_code_that_outstays_its_deadline_is_reported(connect: Connect, db: safedb.Database) -> None:
    events: list[safedb.Event] = []
    listening = connect(on_event=events.append)
    with listening.transaction(timeout=SHORT) as tx:
        tx.execute("INSERT INTO t (v) VALUES ('kept')")
        if db.dialect == "sqlite":  # while it lasts
            wait_until(lambda: any(isinstance(event, safedb.Overrun) for event in events))
        else:  # when it ends: nobody waits for it
            time.sleep(2 * SHORT)
    (overrun, *_) = [event for event in events if isinstance(event, safedb.Overrun)]
    assert ("code" if db.dialect == "sqlite" else "body") in overrun.what
    assert db.execute("SELECT v FROM t").one() == ("kept",)  # no statement came late: COMMIT is not cut short


def test_a_snapshot_past_its_age_is_ended_so_that_the_log_can_shrink(db: safedb.Database) -> None:
    with db.snapshot(max_age=SHORT) as snap:
        assert snap.execute("SELECT count(*) FROM t").scalar() == 0
        rows = snap.iterate("SELECT 1 UNION ALL SELECT 2", batch=1)
        assert next(rows) == (1,)
        if db.dialect == "sqlite":
            wait_until(lambda: db.stats().oldest_snapshot is None)
        else:  # the server ends its session
            time.sleep(2 * SHORT)
        with pytest.raises(safedb.OperationalError, match="max_age"):
            snap.execute("SELECT count(*) FROM t")
        with pytest.raises(safedb.OperationalError, match="max_age"):
            next(rows)
    db.execute("INSERT INTO t (v) VALUES ('x')")


def test_a_statement_under_way_when_the_snapshot_gets_too_old_is_interrupted(db: safedb.Database) -> None:
    with db.snapshot(max_age=SHORT) as snap, Elapsed(), pytest.raises(safedb.OperationalError):
        snap.execute(FOREVER)


def test_a_check_has_a_deadline_where_it_is_given_one(db: safedb.Database) -> None:
    db.execute("INSERT INTO t (v) VALUES ('x')")
    assert db.check(timeout=30.0) == []


def test_rows_of_parameters_are_read_within_the_deadline_too(db: safedb.Database) -> None:
    """Written down: a generator gives rows for ever; nobody would ever send any of them."""

    def rows() -> Iterator[tuple[str]]:
        while True:
            yield ("x",)

    with pytest.raises(safedb.QueryCanceled, match="rows of parameters could not be read by the deadline"):
        db.executemany("INSERT INTO t (v) VALUES (?)", rows(), timeout=0.1)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_a_script_is_read_within_the_deadline_too(db: safedb.Database) -> None:
    with pytest.raises(safedb.QueryCanceled, match="script could not be read by the deadline"):
        db.executescript("INSERT INTO t (v) VALUES ('x');" * 50_000, timeout=0.05)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
