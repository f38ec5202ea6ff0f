"""Readers that all are in use: waiters are served in their order, in time, and none sleeps beside an idle reader."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Connect
from support import JOIN, Crew, Worker, wait_until

import safedb
from safedb.sqlite.readers import Readers, _Waiter

SUM = "SELECT sum(v) FROM t WHERE v <= ?"
ROWS = 100


@pytest.fixture
def shared(connect: Connect) -> Callable[[int], safedb.Database]:
    """Open a database of ``ROWS`` numbers with so many readers."""

    def shared(readers: int) -> safedb.Database:
        db = connect(schema="CREATE TABLE t (v INTEGER)", pool=safedb.PoolConfig(max_size=readers))
        db.executemany("INSERT INTO t VALUES (?)", [(v,) for v in range(1, ROWS + 1)])
        return db

    return shared


def pool_of(db: safedb.Database) -> Readers:
    return db._engine.readers  # type: ignore[attr-defined, no-any-return]


def soon() -> float:
    return time.monotonic() + 2 * JOIN


def read(db: safedb.Database, up_to: int) -> bool:
    assert db.execute(SUM, (up_to,)).scalar() == up_to * (up_to + 1) // 2
    return True


@contextmanager
def snapshots(db: safedb.Database, crew: Crew, count: int) -> Iterator[list[Worker]]:
    """Hold a snapshot in each of ``count`` threads."""
    begun, end = threading.Barrier(count + 1), threading.Event()

    def hold() -> Any:
        with db.snapshot() as snapshot:
            first = snapshot.execute(SUM, (ROWS,)).scalar()
            begun.wait(JOIN)
            assert end.wait(JOIN)
            return first, snapshot.execute(SUM, (ROWS,)).scalar()

    try:
        holders = [crew(hold) for _ in range(count)]
        begun.wait(JOIN)
        yield holders
    finally:
        end.set()


def test_who_waits_gets_a_reader_beside_threads_that_read_without_a_pause(
    shared: Callable[[int], safedb.Database], crew: Crew
) -> None:
    """Written down: one reader, two threads that take it again as soon as they have given it back; a third comes."""
    db = shared(1)
    end = threading.Event()

    def hurry() -> int:
        count = 0
        while not end.is_set():
            read(db, 7)
            count += 1
        return count

    hurried = [crew(hurry) for _ in range(2)]
    try:
        wait_until(lambda: db.stats().readers.waited > 0, "the two to be in each other's way")
        crew(lambda: [read(db, number) for number in range(1, 21)]).result()
    finally:
        end.set()
    assert all(worker.result() for worker in hurried)


def test_sixteen_threads_share_two_readers(shared: Callable[[int], safedb.Database], crew: Crew) -> None:
    """Bounded. Nobody gets `PoolTimeout`, everybody its own rows."""
    db = shared(2)
    crew.together(16, lambda number: [read(db, (number * step) % ROWS + 1) for step in range(60)])
    seen = db.stats().readers
    assert (seen.size, seen.in_use, seen.waiting) == (2, 0, 0)


def test_who_waits_finds_an_idle_reader_though_nobody_gives_it(
    shared: Callable[[int], safedb.Database], crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: the reader comes back, and all matches are lost, the keeper's too; each is first in its turn."""
    db = shared(1)
    pool = pool_of(db)
    reader = pool.check_out(soon())
    served: list[int] = []

    def wait(number: int) -> None:
        mine = pool.check_out(soon())
        served.append(number)
        pool.idle.append(mine)  # and says nothing

    workers = []
    for number in range(5):
        workers.append(crew(wait, number))
        wait_until(lambda number=number: pool.stats().waiting == number + 1)  # type: ignore[misc]
    monkeypatch.setattr(pool, "_match", lambda: None)
    pool.give_back(reader)
    for worker in workers:
        worker.result()
    monkeypatch.undo()  # closing matches too: it closes what lies idle
    assert served == list(range(5)), "first come, first served"


def test_who_waits_takes_nothing_in_a_pause(shared: Callable[[int], safedb.Database]) -> None:
    """H34: a reader lent in the pause before a fork would be open in the child, or make the fork fail.

    Written down: in the pause a reader comes back, and before it is closed the first waiter looks for itself.
    """
    pool = pool_of(shared(1))
    reader = pool.check_out(soon())
    waiter = _Waiter()
    pool._waiters.append(waiter)
    pool._paused = pool._attention = True
    pool.idle.append(reader)  # what `give_back` does first
    pool._wait(waiter, time.monotonic() + 0.05)
    assert waiter.reader is None
    pool._match()  # the keeper may have done so before
    assert pool.stats().size == 0, "it is closed"
    pool._waiters.clear()
    pool.resume()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_in_the_hand_over_loses_no_waiter(
    shared: Callable[[int], safedb.Database], crew: Crew, when: str
) -> None:
    """Written down: KeyboardInterrupt reaches who gives a reader, just before or after the waiter leaves the queue."""
    db = shared(1)
    pool = pool_of(db)

    class Interrupted(deque[_Waiter]):
        left = 1

        def popleft(self) -> _Waiter:
            self.left, struck = 0, self.left
            if struck and when == "before":
                raise KeyboardInterrupt
            waiter = super().popleft()
            if struck:
                raise KeyboardInterrupt
            return waiter

    pool._waiters = Interrupted()
    reader = pool.check_out(soon())
    waiters = []
    for number in range(3):
        waiters.append(crew(read, db, number + 1))
        wait_until(lambda number=number: pool.stats().waiting == number + 1)  # type: ignore[misc]
    pool.idle.append(reader)
    struck: BaseException | None = None
    try:
        pool._match()
    except KeyboardInterrupt as error:
        struck = error
    for worker in waiters:
        raised = worker.error()
        assert raised is None or isinstance(raised, KeyboardInterrupt), f"{raised!r}"
    assert struck is not None or sum(worker.error() is not None for worker in waiters) == 1
    del struck
    read(db, 5)
    assert pool.stats().waiting == 0
    db.close()
    reader.close()  # where an exception's frames still know it


def test_snapshots_on_all_readers_keep_nobody_beyond_its_deadline(
    shared: Callable[[int], safedb.Database], crew: Crew
) -> None:
    """Median of three, each with a margin of many times the deadline: the promise itself is a time."""
    db = shared(2)
    took = []
    with snapshots(db, crew, 2) as holders:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(safedb.PoolTimeout, match="max_size"):
                db.execute(SUM, (1,), timeout=0.3)
            took.append(time.monotonic() - began)
        assert db.stats().readers.waiting == 0
        late = crew(read, db, 3)
        wait_until(lambda: db.stats().readers.waiting == 1)
    assert min(took) >= 0.3
    assert sorted(took)[1] < 5.0
    late.result()
    total = ROWS * (ROWS + 1) // 2
    assert [holder.result() for holder in holders] == [(total, total)] * 2


def test_who_waits_while_the_pool_is_closed_is_told_at_once(
    shared: Callable[[int], safedb.Database], crew: Crew
) -> None:
    """Not at its deadline of sixty seconds: the first waiter, and those behind it."""
    db = shared(1)
    with snapshots(db, crew, 1) as (holder,):
        waiters = [crew(db.execute, SUM, (1,), timeout=2 * JOIN) for _ in range(6)]
        wait_until(lambda: db.stats().readers.waiting == 6)
        db.close()
        assert all(isinstance(worker.error(), safedb.DatabaseClosed) for worker in waiters)
        assert holder.running
    total = ROWS * (ROWS + 1) // 2
    assert holder.result() == (total, total)
