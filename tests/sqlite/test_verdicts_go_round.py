"""After COMMIT the members of a group wake one another: nobody sleeps on, whatever becomes of the one before it.

Who was awake once while it was aboard looks at its state every `SLICE` seconds from then on. That would cover a wake-up
that was lost, so it is switched off here: then there are the chain, and the keeper.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from conftest import Connect
from support import JOIN, Crew, Worker, interrupted_at, line_behind_a_block, sizes, wait_until

import safedb
from safedb.sqlite import turns as module
from safedb.sqlite.turns import CONGESTED, DELIVERY, FOREVER, LONGEST_DELIVERY, SERVED, SEVERAL, Ticket, Turns

MEMBERS = 12
RETURNING = "INSERT INTO t (v) VALUES (?) RETURNING v"


@pytest.fixture
def db(connect: Connect) -> safedb.Database:
    """Be a database whose groups are not closed early by a slow machine."""
    made = connect(schema="CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)", pool=safedb.PoolConfig(group_time=10.0))
    made._engine.groups._patience = 60.0  # type: ignore[attr-defined]
    return made


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 2 * JOIN)


@pytest.fixture
def no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "repair", lambda _: None)


def write_in_one_group(db: safedb.Database, crew: Crew) -> list[Worker]:
    """Let writers queue up behind a block; all have ended when this returns."""
    before = sizes(db).get(MEMBERS, 0)
    with line_behind_a_block(db, crew) as line:
        for number in range(MEMBERS):
            line.add(lambda number=number: db.execute(RETURNING, (str(number),)).scalar())
    assert sizes(db)[MEMBERS] > before
    return line.workers


def assert_all_there(db: safedb.Database) -> None:
    assert [v for (v,) in db.execute("SELECT v FROM t ORDER BY id")] == [str(number) for number in range(MEMBERS)]


class Strike:
    """Do something else than `Turns.call_follower` does, for the first ticket that has somebody to call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, instead: Callable[[], None], *, times: int = 1) -> None:
        self.struck: list[Ticket] = []
        call = Turns.call_follower

        def call_follower(turns: Turns, ticket: Ticket) -> None:
            if ticket.follower is not None and len(self.struck) < times and self.struck[:1] in ([], [ticket]):
                self.struck.append(ticket)
                instead()
            else:
                call(turns, ticket)

        monkeypatch.setattr(Turns, "call_follower", call_follower)


def interrupt() -> None:
    raise KeyboardInterrupt


# -- real threads -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_second_look", "no_repair")
def test_all_members_of_a_group_are_told_and_each_its_own(db: safedb.Database, crew: Crew) -> None:
    """Bounded: nobody but the one before wakes a member."""
    workers = write_in_one_group(db, crew)
    assert [worker.result() for worker in workers] == [str(number) for number in range(MEMBERS)]
    assert_all_there(db)
    assert not db._engine.turns.is_delivering  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_second_look")
def test_a_call_that_is_lost_is_repeated_by_the_keeper(
    db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: the first to be woken does not wake the next, and goes. The deadlines are far away."""
    strike = Strike(monkeypatch, lambda: None)
    workers = write_in_one_group(db, crew)
    assert len(strike.struck) == 1
    assert [worker.result() for worker in workers] == [str(number) for number in range(MEMBERS)]


@pytest.mark.usefixtures("no_second_look", "no_repair")
def test_an_interrupt_at_the_call_is_raised_and_the_call_made(
    db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: KeyboardInterrupt reaches a member that has its verdict, and is about to wake the next."""
    strike = Strike(monkeypatch, interrupt)
    workers = write_in_one_group(db, crew)
    (struck,) = strike.struck
    errors = {str(number): error for number, worker in enumerate(workers) if (error := worker.error()) is not None}
    assert list(errors) == list(struck.values)  # type: ignore[attr-defined]
    (error,) = errors.values()
    assert isinstance(error, KeyboardInterrupt)
    assert "is committed" in "".join(error.__notes__)
    assert_all_there(db)


@pytest.mark.usefixtures("no_second_look")
def test_interrupts_at_the_call_and_in_the_clearing_up_lose_nobody_else(
    db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: KeyboardInterrupt, and another one while it is made up for. The keeper calls the next."""
    Strike(monkeypatch, interrupt, times=2)
    workers = write_in_one_group(db, crew)
    errors = [error for worker in workers if (error := worker.error()) is not None]
    assert [type(error) for error in errors] == [KeyboardInterrupt]
    assert_all_there(db)


@pytest.mark.parametrize("when", ["before", "in the middle", "after"])
@pytest.mark.usefixtures("no_second_look")
def test_an_interrupt_while_the_verdicts_are_given_out_loses_nobody(
    db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Written down: COMMIT has returned, and KeyboardInterrupt reaches the leader; the verdicts are given out again."""
    deliver, now = Turns.deliver, time.monotonic
    struck: list[str] = []

    def strike(turns: Turns, thread: int) -> float:
        if threading.get_ident() == thread:
            turns._now = now
            raise KeyboardInterrupt
        return now()

    def interrupted(turns: Turns, tickets: Sequence[Ticket], driver: Ticket) -> None:
        first = len(tickets) == MEMBERS and not struck
        struck.extend([when] * first)
        if first and when == "before":
            raise KeyboardInterrupt
        if first and when == "in the middle":  # all are served, and the first is about to be woken
            turns._now = lambda: strike(turns, driver.thread)
        deliver(turns, tickets, driver)
        if first:
            raise KeyboardInterrupt

    monkeypatch.setattr(Turns, "deliver", interrupted)
    workers = write_in_one_group(db, crew)
    assert struck == [when]
    first, *others = workers
    error = first.error()
    assert isinstance(error, KeyboardInterrupt)
    assert "is committed" in "".join(error.__notes__)
    assert [worker.result() for worker in others] == [str(number) for number in range(1, MEMBERS)]
    assert_all_there(db)


@pytest.mark.usefixtures("no_second_look", "no_repair")
def test_who_passed_its_group_on_and_finds_its_verdict_there_wakes_the_next(
    db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: a leader gives its group to a function, which commits before the leader can go to sleep."""
    pass_on = Turns.pass_on
    passed: list[Ticket] = []

    def pass_on_and_dawdle(turns: Turns, ticket: Ticket, luggage: object) -> bool:
        given = pass_on(turns, ticket, luggage)
        if given:
            passed.append(ticket)
            wait_until(lambda: ticket.state is SERVED, "the verdict")
        return given

    monkeypatch.setattr(Turns, "pass_on", pass_on_and_dawdle)
    with line_behind_a_block(db, crew) as line:
        for number in range(4):
            line.add(lambda number=number: db.execute(RETURNING, (str(number),)).scalar())
        line.add(db.run_transaction, lambda tx: tx.execute(RETURNING, ("4",)).scalar())
    assert len(passed) == 1
    assert [worker.result() for worker in line.workers] == list("01234")


def test_the_keeper_stays_awake_while_somebody_may_be_asleep(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = db._engine
    turns: Turns = engine.turns
    wait_until(lambda: not engine._watch(time.monotonic()), "the keeper to have nothing to do")
    with monkeypatch.context() as patch:
        patch.setattr(turns, "repair", lambda: None)
        turns.deliver([asleep(turns), asleep(turns)], Ticket())
        assert engine._watch(time.monotonic())
    wait_until(lambda: not engine._watch(time.monotonic()), "the keeper to end the round")


def test_nothing_of_a_round_is_kept(db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict may hold many rows: they must not stay in memory until somebody writes again."""
    deliver = Turns.deliver
    known: list[weakref.ref[Ticket]] = []

    def note(turns: Turns, tickets: Sequence[Ticket], driver: Ticket) -> None:
        known.extend(map(weakref.ref, tickets))
        deliver(turns, tickets, driver)

    monkeypatch.setattr(Turns, "deliver", note)
    for worker in write_in_one_group(db, crew):
        worker.result()
    assert len(known) >= MEMBERS

    def all_gone() -> bool:
        gc.collect()
        return all(ticket() is None for ticket in known)

    wait_until(all_gone, "the tickets to be forgotten")


# -- by a clock of the test's -----------------------------------------------------------------------------------------


class Clock:
    """Be the primitives of one thread: whoever waits lets the time pass, in which ``meanwhile`` happens."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.meanwhile: list[Callable[[], None]] = []

    def monotonic(self) -> float:
        return self.now

    def lock(self) -> Signal:
        return Signal(self)


class Signal:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.locked = self._lock.locked
        self.release = self._lock.release

    def acquire(self, blocking: bool = True, timeout: float = FOREVER) -> bool:
        if self._lock.acquire(False):
            return True
        if blocking and self._clock.meanwhile:
            self._clock.meanwhile.pop(0)()
        if self._lock.acquire(False):
            return True
        assert not blocking or timeout > 0, "this thread would wait for ever"
        self._clock.now += timeout if blocking else 0.0
        return False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Turns:
    return Turns(primitives=clock)


def asleep(turns: Turns) -> Ticket:
    ticket = Ticket()
    ticket.signal = turns._closed_signal()
    return ticket


def awake(tickets: Sequence[Ticket]) -> list[int]:
    """Tell whose signal is raised."""
    return [number for number, ticket in enumerate(tickets) if ticket.signal is None or not ticket.signal.locked()]


def round_of(turns: Turns, count: int) -> list[Ticket]:
    """Begin a round of so many who are asleep, and a driver who is not."""
    driver, tickets = asleep(turns), [asleep(turns) for _ in range(count)]
    turns.deliver([driver, *tickets], driver)
    assert all(ticket.state is SERVED for ticket in (driver, *tickets))
    assert awake([driver]) == [], "the driver is awake as it is"
    return tickets


def test_each_wakes_the_next(turns: Turns) -> None:
    tickets = round_of(turns, 3)
    for number, ticket in enumerate(tickets):
        assert turns.is_delivering
        assert awake(tickets) == list(range(number + 1))
        turns.call_follower(ticket)
    assert not turns.is_delivering


def test_who_comes_late_wakes_several_and_the_last_of_them_goes_on(turns: Turns, clock: Clock) -> None:
    tickets = round_of(turns, SEVERAL + 5)
    clock.now += 2 * CONGESTED
    turns.call_follower(tickets[0])
    last = SEVERAL + 1
    assert awake(tickets) == list(range(last + 1))
    for ticket in tickets[1:last]:
        turns.call_follower(ticket)
        assert awake(tickets) == list(range(last + 1)), "who was woken together wakes nobody else"
    clock.now += 2 * CONGESTED
    turns.call_follower(tickets[last])
    assert awake(tickets) == list(range(last + 2)), "one only: those woken together were in each other's way"
    for ticket in tickets[last + 1 :]:
        turns.call_follower(ticket)
    assert awake(tickets) == list(range(SEVERAL + 5))
    assert not turns.is_delivering


def test_who_awakes_without_a_call_wakes_one(turns: Turns, clock: Clock) -> None:
    """Written down: a thousand threads look at their state, as each does after `SLICE`, and go on with the round."""
    tickets = round_of(turns, 3 * SEVERAL)
    clock.now += 2 * CONGESTED
    turns.call_follower(tickets[5])
    assert awake(tickets) == [0, 6]


PASSING_ON = {Turns.call_follower.__code__, Turns._call_several.__code__, module.raise_signal.__code__}


@pytest.mark.parametrize("late", [0.0, 2 * CONGESTED])
def test_an_interrupt_before_any_line_of_a_call_loses_nobody(clock: Clock, late: float) -> None:
    """Written down: an exception before each line in turn; who was struck calls again, as it clears up."""
    for moment in itertools.count():
        turns = Turns(primitives=clock)
        tickets = round_of(turns, SEVERAL + 3)
        clock.now += late
        came = interrupted_at(moment, partial(turns.call_follower, tickets[0]), within=PASSING_ON)
        called: set[int] = set()
        turns.call_follower(tickets[0])
        while fresh := set(awake(tickets)) - called - {0}:
            for number in fresh:
                turns.call_follower(tickets[number])
            called |= fresh
        assert awake(tickets) == list(range(SEVERAL + 3)), f"without the keeper, struck before line {moment}"
        assert not turns.is_delivering
        if not came:
            break
    assert moment > 5


def test_a_round_that_stands_still_is_ended_by_the_keeper_at_its_second_look(turns: Turns) -> None:
    tickets = round_of(turns, 4)
    turns.repair()
    assert awake(tickets) == [0], "it has only begun"
    turns.repair()
    assert awake(tickets) == [0, 1, 2, 3]
    assert not turns.is_delivering


def test_a_round_that_stands_still_is_not_forgotten_for_the_next_ones(turns: Turns) -> None:
    """Written down: nobody goes on with a round, and others begin and end, faster than the keeper looks.

    Else those would sleep until their deadlines, although they have their verdicts.
    """
    left = round_of(turns, 4)
    for looks in range(3):
        for ticket in round_of(turns, 2):
            turns.call_follower(ticket)
        assert looks or turns.is_delivering, "the keeper must stay awake"
        turns.repair()
    assert awake(left) == [0, 1, 2, 3]
    assert not turns.is_delivering


def test_a_round_that_the_next_has_overtaken_is_left_alone_until_the_keeper_looks_again(turns: Turns) -> None:
    """Woken all at once, hundreds would take the interpreter's lock from each other."""
    first, second = round_of(turns, 5), round_of(turns, 1)
    turns.call_follower(first[0])
    turns.call_follower(second[0])
    turns.repair()
    assert awake(first) == [0, 1]
    assert turns.is_delivering, "the keeper must stay awake"
    turns.repair()
    assert awake(first) == [0, 1, 2, 3, 4]
    assert not turns.is_delivering


def test_the_last_of_a_round_that_awakes_too_soon_does_not_end_it(turns: Turns) -> None:
    """Written down: an old signal wakes the last one; then nobody goes on."""
    tickets = round_of(turns, 3)
    turns.call_follower(tickets[2])
    assert turns.is_delivering
    turns.repair()
    turns.repair()
    assert awake(tickets) == [0, 1, 2]


def test_a_round_goes_on_beside_the_next_and_does_not_end_it(turns: Turns) -> None:
    first, second = round_of(turns, 3), round_of(turns, 2)
    for ticket in first:
        turns.call_follower(ticket)
    assert awake(first) == [0, 1, 2]
    assert turns.is_delivering
    assert awake(second) == [0]
    for ticket in second:
        turns.call_follower(ticket)
    assert not turns._served


def test_the_next_leader_waits_for_nobody_where_all_are_awake(turns: Turns, clock: Clock) -> None:
    before = clock.now
    turns.await_delivery()
    (only,) = round_of(turns, 1)
    turns.call_follower(only)
    turns.await_delivery()
    round_of(turns, 0)
    turns.await_delivery()
    assert clock.now == before


def test_the_next_leader_goes_on_where_nobody_awakes_any_more(turns: Turns, clock: Clock) -> None:
    before = clock.now
    round_of(turns, 3)
    turns.await_delivery()
    assert clock.now == pytest.approx(before + DELIVERY)


def test_the_next_leader_waits_for_as_long_as_somebody_awakes_and_for_the_last(turns: Turns, clock: Clock) -> None:
    tickets = round_of(turns, 5)

    def wake(ticket: Ticket) -> None:
        ticket.called = clock.now  # it was quick
        turns.call_follower(ticket)

    clock.meanwhile = [lambda ticket=ticket: wake(ticket) for ticket in tickets]  # type: ignore[misc]
    before = clock.now
    turns.await_delivery()
    assert not clock.meanwhile
    assert clock.now == pytest.approx(before + 4 * DELIVERY), "the last one ends it at once"


def test_the_next_leader_does_not_wait_for_ever_for_those_who_come_slowly(turns: Turns, clock: Clock) -> None:
    """Written down: hundreds awake, each nearly late to its call; all the while the turn is held."""
    tickets = round_of(turns, 100)

    def come(ticket: Ticket) -> None:
        ticket.called = clock.now  # not late enough to be noticed
        turns.call_follower(ticket)

    clock.meanwhile = [lambda ticket=ticket: come(ticket) for ticket in tickets]  # type: ignore[misc]
    before = clock.now
    turns.await_delivery()
    assert clock.meanwhile, "it has waited for all of them"
    assert clock.now == pytest.approx(before + LONGEST_DELIVERY, abs=2 * DELIVERY)


def test_the_next_leader_does_not_wait_beside_a_thread_that_burns_time(turns: Turns, clock: Clock) -> None:
    """Written down: the first of the round comes late to its call, for another thread had the interpreter's lock."""
    tickets = round_of(turns, 5)

    def come_late() -> None:
        clock.now += 2 * CONGESTED
        turns.call_follower(tickets[0])

    clock.meanwhile = [come_late]
    before = clock.now
    turns.await_delivery()
    assert clock.now == pytest.approx(before + 2 * CONGESTED)
    assert awake(tickets) == list(range(5))
