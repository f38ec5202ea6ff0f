"""Who gets a link: first come, first served, until the deadline, and nobody is counted who has left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pgserver
import pytest
from psycopg_pool.pool import WaitingClient
from support import JOIN, Crew, wait_until

import safedb
from safedb.postgres.admission import Admission


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.finish()


def soon() -> float:
    return monotonic() + JOIN


def test_as_many_as_there_are_links_go_straight_in() -> None:
    admission = Admission(2, 10)
    assert admission.enter(soon()) is True
    assert admission.enter(soon()) is True
    assert admission.enter(monotonic() + 0.01) is False
    assert admission.waiting == 0
    admission.leave()
    assert admission.enter(monotonic()) is True  # even where no time is left
    assert admission.waited == 1


def test_who_waits_is_let_in_in_order(crew: Crew) -> None:
    """Bounded, and fair: who comes later, and finds the door open for a moment, does not overtake."""
    admission = Admission(1, 100)
    assert admission.enter(soon()) is True
    order: list[int] = []

    def wait(number: int) -> None:
        assert admission.enter(soon()) is True
        order.append(number)
        admission.leave()

    for number in range(5):
        crew(wait, number)
        wait_until(lambda number=number: admission.waiting == number + 1, "the queue to grow")  # type: ignore[misc]
    admission.leave()
    crew.finish()
    assert order == [0, 1, 2, 3, 4]
    assert admission.waiting == 0
    assert admission.enter(monotonic()) is True


def test_a_full_queue_is_told_apart(crew: Crew) -> None:
    admission = Admission(1, 1)
    assert admission.enter(soon()) is True
    waiter = crew(admission.enter, soon())
    wait_until(lambda: admission.waiting == 1, "the queue to fill")
    assert admission.enter(monotonic() + 0.05) is None
    late = crew(admission.enter, soon())  # waits for room in the queue, then in it
    admission.leave()
    assert waiter.result() is True
    admission.leave()
    assert late.result() is True
    assert admission.waiting == 0


@pytest.mark.parametrize("handed", [False, True], ids=["still waiting", "let in at that moment"])
def test_an_interrupt_leaves_no_place_behind(monkeypatch: pytest.MonkeyPatch, handed: bool) -> None:
    """A signal lands in the main thread alone, so here the wait itself raises, before or after it was let in."""
    admission = Admission(1, 10)
    assert admission.enter(soon()) is True

    class Ticket:
        def __init__(self) -> None:
            self._first = True

        def acquire(self, timeout: float = -1) -> bool:
            if self._first:
                self._first = False
                return True
            if handed:
                admission.leave()
            raise KeyboardInterrupt

        def release(self) -> None:
            """Be let in."""

    monkeypatch.setattr("safedb.postgres.admission.threading.Lock", Ticket)
    with pytest.raises(KeyboardInterrupt):
        admission._wait(soon())
    monkeypatch.undo()
    assert admission.waiting == 0
    if not handed:
        admission.leave()
    assert admission.enter(monotonic()) is True
    assert admission.enter(monotonic()) is False


def test_who_gave_up_is_not_counted_any_more() -> None:
    """The pool's own queue would keep them, and be full of them in the end."""
    options = {"pool": safedb.PoolConfig(max_size=1, max_waiting=2), "retry": safedb.RetryPolicy(timeout=60)}
    with safedb.connect(pgserver.shared().schema(), **options) as db, db.snapshot():  # type: ignore[arg-type]
        raised: list[safedb.Error | None] = []

        def read() -> None:
            for _ in range(5):
                with pytest.raises(safedb.PoolTimeout) as caught:
                    db.execute("SELECT 1", timeout=0.05)
                raised.append(caught.value)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(JOIN)
        assert len(raised) == 5
        assert db.stats().readers.waiting == 0


@pytest.mark.parametrize("handed", [False, True], ids=["not yet opened", "opened at that moment"])
def test_an_interrupt_while_a_connection_is_opened_loses_none(monkeypatch: pytest.MonkeyPatch, handed: bool) -> None:
    """The pool would hand a connection to who has left. No signal can be sent so exactly, so the wait itself raises."""
    wait = WaitingClient.wait
    interrupts = [True]

    def interrupted(self: Any, timeout: float) -> Any:
        if not interrupts:
            return wait(self, timeout)
        interrupts.pop()
        if handed:
            wait(self, timeout)
        raise KeyboardInterrupt

    options: dict[str, Any] = {"pool": safedb.PoolConfig(max_size=1), "retry": safedb.RetryPolicy(timeout=60)}
    with safedb.connect(pgserver.shared().schema(), **options) as db:
        monkeypatch.setattr(WaitingClient, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            db.execute("SELECT 1")  # the first read: its pool has no connection yet
        for _ in range(3):
            assert db.execute("SELECT 1").scalar() == 1
        stats = db.stats().readers
        assert (stats.size, stats.in_use, stats.waiting) == (1, 0, 0)
