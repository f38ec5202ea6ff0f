"""Readers are bounded, each is used by one thread at a time, and none lies idle while somebody waits."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, sqlite3, wait_until

import safedb
from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.sqlite.readers import Reader, Readers, WritesAfterAll

LONG = 30.0
POLICY = ResolvedRetryPolicy(timeout=LONG)

Make = Callable[..., Readers]


def soon(seconds: float = LONG) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t(x)")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.close()
    return path


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """Make pools; close them all at the end. ``prepare`` is given each new connection."""
    pools: list[Readers] = []

    def make(most: int = 2, prepare: Callable[[sqlite3.Connection], Any] = lambda _: None) -> Readers:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA query_only=ON")
            prepare(connection)
            return connection

        pools.append(Readers(connect, name="app.db", most=most))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def is_open(reader: Reader) -> bool:
    try:
        reader.connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False
    return True


# -- lending ----------------------------------------------------------------------------------------------------------


def test_readers_are_opened_at_first_need_and_taken_last_in_first_out(make: Make) -> None:
    pool = make(3)
    assert pool.stats().size == 0
    first, second = pool.check_out(soon()), pool.check_out(soon())
    pool.give_back(first)
    pool.give_back(second)
    assert pool.check_out(soon()) is second
    assert pool.stats() == safedb.stats.PoolStats(size=2, in_use=1, waiting=0, waited=0, max_size=3)
    assert repr(pool) == "<Readers app.db 1 of 2 idle>"
    pool.give_back(second)


def test_a_pool_that_is_exhausted_raises_at_the_deadline_and_names_the_remedy(make: Make) -> None:
    pool = make(1)
    reader = pool.check_out(soon())
    with pytest.raises(errors.PoolTimeout, match=r"all 1 readers of app.db .* max_size"):
        pool.check_out(soon(0.02))
    with pytest.raises(errors.PoolTimeout):
        pool.run("SELECT 1", (), 0.02, POLICY)
    assert pool.stats().waiting == 0, "who gives up leaves the queue"
    pool.give_back(reader)
    assert pool.check_out(soon()) is reader, "nothing was handed to those who gave up"
    pool.give_back(reader)


def test_waiters_are_served_in_their_order(make: Make, crew: Crew) -> None:
    pool = make(1)
    reader = pool.check_out(soon())
    served: list[int] = []

    def wait(number: int) -> None:
        mine = pool.check_out(soon())
        served.append(number)
        pool.give_back(mine)

    for number in range(6):
        crew(wait, number)
        wait_until(lambda number=number: pool.stats().waiting == number + 1)  # type: ignore[misc]
    pool.give_back(reader)
    crew.finish()
    assert served == list(range(6))
    assert pool.stats().waited == 6


def test_a_reader_that_comes_back_before_the_waiter_sleeps_is_not_left_idle(make: Make) -> None:
    """The waiter looks again after it has joined the queue: whichever of the two comes second sees the other."""
    pool = make(1)
    reader = pool.check_out(soon())

    class Waiters(type(pool._waiters)):  # type: ignore[misc]
        def append(self, waiter: Any) -> None:  # between the waiter's failed pop and its place in the queue
            super().append(waiter)
            pool.idle.append(reader)  # what `give_back` does before it looks for waiters

    pool._waiters = Waiters()
    assert pool.check_out(soon()) is reader
    assert pool.idle == []
    pool.give_back(reader)


def test_each_reader_is_used_by_one_thread_at_a_time(make: Make, crew: Crew) -> None:
    """H24: a connection shared by threads returns wrong rows on Python 3.12 and 3.13."""
    using: set[int] = set()
    clashes: list[int] = []
    guard = threading.Lock()

    def enter(number: int) -> int:
        with guard:
            clashes.extend(using & {number})
            using.add(number)
        with guard:
            using.discard(number)
        return number

    numbers = iter(range(100))

    def prepare(connection: sqlite3.Connection) -> None:
        number = next(numbers)
        connection.create_function("me", 0, lambda: enter(number))

    pool = make(3, prepare)

    def read(_: int) -> None:
        for _ in range(60):
            rows, _, count = pool.run("SELECT me(), x FROM t, (VALUES (1), (2), (3))", (), LONG, POLICY)
            assert count == 3
            assert len(set(rows)) == 1, "three rows of one reader"

    crew.together(8, read)
    assert not clashes
    assert pool.stats().size <= 3
    assert pool.stats().in_use == 0


def test_a_reader_that_cannot_be_opened_takes_no_place(make: Make) -> None:
    broken = [True]

    def prepare(connection: sqlite3.Connection) -> None:
        if broken[0]:
            connection.close()
            raise errors.OperationalError("no descriptors left")

    pool = make(1, prepare)
    for _ in range(3):
        with pytest.raises(errors.OperationalError, match="no descriptors"):
            pool.check_out(soon())
    broken[0] = False
    pool.give_back(pool.check_out(soon(0.1)))


def test_a_reader_lost_to_an_exception_is_not_counted_for_long(make: Make) -> None:
    """A KeyboardInterrupt can come between taking a reader and the ``finally`` that gives it back."""
    pool = make(1)
    reader = pool.check_out(soon())
    connection = reader.connection
    del reader
    gc.collect()
    assert pool.stats().size == 0
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
    pool.give_back(pool.check_out(soon(0.1)))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_read_is_complete_and_leaves_nothing_open(make: Make, path: Path) -> None:
    """H25: a half-read cursor would pin the WAL."""
    pool = make(1)
    rows, description, count = pool.run("SELECT x, ? AS y FROM t", (7,), LONG, POLICY)
    assert (rows, [column[0] for column in description], count) == ([(1, 7)], ["x", "y"], 1)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("INSERT INTO t VALUES (2)")
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    connection.close()


@pytest.mark.parametrize("sql", ["WITH a AS (SELECT 5) INSERT INTO t SELECT * FROM a", "CREATE TABLE u(x)"])
def test_a_statement_that_writes_after_all_is_told_apart(make: Make, sql: str) -> None:
    pool = make(1)
    with pytest.raises(WritesAfterAll):
        pool.run(sql, (), LONG, POLICY)
    assert pool.run("SELECT count(*) FROM t", (), LONG, POLICY)[0] == [(1,)]


def test_an_error_of_a_read_is_classified_and_the_reader_comes_back(make: Make) -> None:
    pool = make(1)
    with pytest.raises(errors.ProgrammingError, match="SELECT y FROM t"):
        pool.run("SELECT y FROM t", (), LONG, POLICY)
    with pytest.raises(errors.DataError):
        pool.run("SELECT ?", (2**70,), LONG, POLICY)
    assert pool.stats().in_use == 0


def test_an_overdue_read_is_interrupted(make: Make, crew: Crew) -> None:
    gate = Gate()
    pool = make(1, lambda connection: connection.create_function("gate", 0, gate))
    worker = crew(pool.run, "SELECT gate(), x FROM t", (), 0.05, POLICY)
    gate.wait_until_reached()
    (reader,) = pool.busy()
    wait_until(lambda: reader.until < time.monotonic())
    pool.interrupt_overdue(time.monotonic())
    gate.open()
    error = worker.error()
    assert isinstance(error, errors.QueryCanceled)
    assert "deadline" in str(error)
    assert error.sqlite_errorname == "SQLITE_INTERRUPT"


def test_a_stray_interrupt_is_harmless_the_read_is_run_again(make: Make, crew: Crew) -> None:
    """An interrupt meant for an overdue statement may reach the reader's next one."""
    gate = Gate()
    pool = make(1, lambda connection: connection.create_function("gate", 0, gate))
    worker = crew(pool.run, "SELECT gate(), x FROM t", (), LONG, POLICY)
    gate.wait_until_reached()
    (reader,) = pool.busy()
    pool.interrupt_overdue(time.monotonic())  # not overdue: nothing happens
    reader.connection.interrupt()
    gate.open()
    assert worker.result()[0] == [(1, 1)]


def test_a_read_waits_for_a_lock_that_only_recovery_or_a_mode_switch_takes(make: Make, path: Path, crew: Crew) -> None:
    """H13: a reader may meet BUSY too, and runs again until its deadline."""
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("INSERT INTO t VALUES (2)")
    asked = threading.Event()

    def prepare(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout=0")
        connection.set_trace_callback(lambda _: asked.set())

    pool = make(1, prepare)
    with pytest.raises(errors.LockTimeout):
        pool.run("SELECT count(*) FROM t", (), 0.02, POLICY)
    worker = crew(pool.run, "SELECT count(*) FROM t", (), LONG, POLICY)
    holder.execute("COMMIT")
    holder.close()
    assert worker.result()[0] == [(2,)]


def test_a_read_that_may_be_tried_once_raises_the_databases_own_error(make: Make, path: Path) -> None:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    pool = make(1, lambda connection: connection.execute("PRAGMA busy_timeout=0"))
    with pytest.raises(errors.LockTimeout) as caught:
        pool.run("SELECT 1 FROM t", (), LONG, ResolvedRetryPolicy(timeout=LONG, attempts=1))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    holder.close()


# -- the keeper's side ------------------------------------------------------------------------------------------------


def test_cold_readers_are_closed_and_warm_ones_stay(make: Make) -> None:
    pool = make(3)
    readers = [pool.check_out(soon()) for _ in range(3)]
    for reader, until in zip(readers, (1.0, 2.0, 3.0), strict=True):
        reader.until = until
        pool.give_back(reader)
    pool.trim(2.5)
    assert [is_open(reader) for reader in readers] == [False, False, True]
    assert pool.stats().size == 1
    pool.trim(2.5)
    assert pool.stats().size == 1


class Raced(list[Reader]):
    """One idle reader that another thread takes between two bytecodes: no test can stop a thread just there."""

    gone = False

    def __len__(self) -> int:
        return 0 if self.gone else 1

    def pop(self, *_: Any) -> Reader:
        self.gone = True
        raise IndexError

    def __getitem__(self, _: Any) -> Any:
        return self.pop()


def test_another_thread_may_be_faster_than_the_trimming(make: Make) -> None:
    pool = make(1)
    pool.idle = Raced()
    pool.trim(5.0)


def test_another_thread_may_be_faster_than_the_closing_of_idle_readers(make: Make) -> None:
    """`pause` runs before a fork: an exception from it would leave the connections open in the child (H34)."""
    pool = make(1)
    pool.idle = Raced()
    assert pool.pause(soon())


def test_another_thread_may_be_faster_than_the_match(make: Make, crew: Crew) -> None:
    pool = make(1)
    reader = pool.check_out(soon())
    worker = crew(pool.check_out, soon())
    wait_until(lambda: pool.stats().waiting == 1)
    pool.idle = Raced()
    pool._match()
    assert pool.stats().waiting == 1, "who waits, waits on"
    pool.idle = []
    pool.give_back(reader)
    assert worker.result() is reader
    pool.give_back(reader)


def test_the_keeper_may_look_while_readers_are_opened(make: Make, crew: Crew) -> None:
    """A set that grows while it is listed raises RuntimeError."""
    pool = make(64)
    end = threading.Event()
    looks: list[int] = []

    def look() -> None:
        while not end.is_set():
            looks.append(len(pool.busy()))

    keeper = crew(look)
    try:
        for _ in range(20):
            out = [pool.check_out(soon()) for _ in range(64)]
            for reader in out:
                reader.until = 0.0
                pool.give_back(reader)
            pool.trim(1.0)
    finally:
        end.set()
    keeper.result()
    assert looks


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_pause_closes_all_readers_and_lends_none_until_it_ends(make: Make, crew: Crew) -> None:
    pool = make(2)
    reader = pool.check_out(soon())
    other = pool.check_out(soon())
    pool.give_back(other)
    pausing = crew(pool.pause, soon())
    wait_until(lambda: pool._paused)
    waiting = crew(pool.check_out, soon())
    wait_until(lambda: pool.stats().waiting == 1)
    assert pausing.running
    pool.give_back(reader)
    assert pausing.result() is True
    assert not is_open(reader)
    assert not is_open(other)
    assert pool.stats().size == 0
    assert waiting.running, "a reader is lent in the pause"
    pool.resume()
    late = waiting.result()
    assert is_open(late), "who waited gets no error"
    pool.give_back(late)


def test_a_pause_that_is_not_over_in_time_says_so(make: Make) -> None:
    pool = make(1)
    reader = pool.check_out(soon())
    assert pool.pause(soon(0.02)) is False
    pool.resume()
    pool.give_back(reader)
    assert pool.check_out(soon()) is reader
    pool.give_back(reader)


def test_a_closed_pool_closes_its_readers_and_refuses_waiters(make: Make, crew: Crew) -> None:
    pool = make(2)
    used, idle = pool.check_out(soon()), pool.check_out(soon())
    full = crew(pool.check_out, soon())
    wait_until(lambda: pool.stats().waiting == 1)
    assert full.running
    pool.close()
    with pytest.raises(errors.DatabaseClosed, match=r"app\.db is closed"):
        full.result()
    pool.give_back(idle)
    pool.close()
    assert not is_open(idle)
    assert is_open(used), "who reads may finish"
    pool.give_back(used)
    assert not is_open(used)
    with pytest.raises(errors.DatabaseClosed):
        pool.check_out(soon())
    with pytest.raises(errors.DatabaseClosed):
        pool.run("SELECT 1", (), LONG, POLICY)


def test_what_cannot_be_prepared_has_one_class_also_on_a_connection_that_has_read_no_schema(tmp_path: Path) -> None:
    """SQLite 3.40 tells SQLITE_SCHEMA of the first one, with the words of an ordinary error."""
    with safedb.connect(tmp_path / "app.db", schema="CREATE TABLE t (v)") as db:
        for _ in range(2):
            with pytest.raises(safedb.ProgrammingError, match="no such column: nosuch"):
                db.execute("SELECT nosuch")
            db.execute("SELECT v FROM t")
