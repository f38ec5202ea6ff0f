"""The queue of turns under thousands of orders of its steps: nobody is forgotten, nobody is let in twice.

The clients are a small copy of what `Groups` does with a turn: take it, board others, pass it on inside an open
transaction, put everybody back, lose it to the keeper; and their ``finally`` is the one that `Turns` asks for.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from reliability import Record
from scheduler import Failure, Plan, Scheduler, explore
from steps import FAR, Interrupted, Unforgiving, play, unforgiving

from safedb.sqlite import turns as module
from safedb.sqlite.turns import (
    ABOARD,
    CROWDED,
    HOLDING,
    LATE,
    LOBBY,
    NEW,
    SERVED,
    WAITING,
    LockLike,
    Ticket,
    Turns,
)

__all__ = ["unforgiving"]

PATIENCE = 2e-4  # virtual seconds; a step takes 5e-6 on the average


class Wish(Ticket):
    """Be a ticket that counts what became of it."""

    signal: LockLike | None

    def __init__(self, name: str, kind: str, deadline: float) -> None:
        self.name = name
        self.boards = kind == "boards"
        self.joins = kind == "joins"
        self.deadline = deadline
        self.commits = 0
        self.revoked = False

    def __repr__(self) -> str:
        return f"{self.name} {self.state}"


@dataclass
class Transaction:
    """Be what is passed from holder to holder."""

    members: list[Ticket] = field(default_factory=list)


class Restart(BaseException):
    """Unwind user code whose turn was taken from it."""


@dataclass(frozen=True)
class Mix:
    """Say what a scenario's threads do. ``discards``: the chance that a run is discarded."""

    kinds: tuple[str, ...] = ("plain", "boards", "joins")
    threads: tuple[int, int] = (2, 5)
    wishes: int = 2
    limit: int = 100
    patience: tuple[float, ...] = (0.0, PATIENCE, FAR)
    deadlines: tuple[float, ...] = (FAR,)
    discards: float = 0.0
    interrupts: int = 0
    keeper: bool = False
    repairs: bool = False
    rounds: bool = False  # verdicts go round, and the next leader awaits that


class World:
    """Be one schedule: the turns, the threads that use them, and everything that must be true."""

    def __init__(self, scheduler: Scheduler, mix: Mix, turns: type[Turns] = Turns) -> None:
        assert isinstance(scheduler, Unforgiving)
        self.scheduler = scheduler
        self.mix = mix
        self.random = random.Random(scheduler.trace.seed)
        self.patience = self.random.choice(mix.patience)
        self.turns = turns(limit=mix.limit, patience=self.patience, primitives=scheduler)
        self.guard = scheduler.lock()
        self.lent: tuple[Wish, Transaction] | None = None  # to user code: the keeper may take it
        self.inside: Ticket | None = None
        self.wishes: list[Wish] = []
        self.ended: dict[str, str] = {}
        self.line: list[Ticket] = []
        self.holder: Ticket | None = None
        self.running = 0

    def plan(self) -> Plan:
        count = self.random.randint(*self.mix.threads)
        threads = [self.client(number) for number in range(count)]
        self.running = count
        for victim in self.random.sample(range(count), min(self.mix.interrupts, count)):
            after = self.random.random() < 0.5
            self.scheduler.interrupt(victim, Interrupted(), at=self.random.randint(1, 60), after=after)
        if self.mix.keeper or self.mix.repairs:
            threads.append(self.keeper)
        return threads, self.invariant, self.at_the_end

    # -- the threads --------------------------------------------------------------------------------------------------

    def client(self, number: int) -> Callable[[], None]:
        kinds = [self.random.choice(self.mix.kinds) for _ in range(self.random.randint(1, self.mix.wishes))]

        def live() -> None:
            try:
                for index, kind in enumerate(kinds):
                    self.wish(f"{kind} {number}.{index}", kind)
            except Interrupted:
                self.scheduler.recovered(number)
                raise
            finally:
                self.running -= 1

        return live

    def wish(self, name: str, kind: str) -> None:
        wish = Wish(name, kind, self.scheduler.now + self.random.choice(self.mix.deadlines))
        self.wishes.append(wish)
        self.ended[name] = "interrupted"
        state = self.submit(wish)
        self.scheduler.note(f"{name} ends {state}")
        assert state in (SERVED, HOLDING, LATE, CROWDED), f"{wish} ended {state}"
        assert self.ended[name] == "interrupted", "it ended twice"
        self.ended[name] = state
        assert wish.commits == (state in (SERVED, HOLDING)), f"{wish} was told {state} after {wish.commits} commits"
        assert state in (SERVED, HOLDING) or self.scheduler.now >= wish.deadline, f"{wish} was told {state} too early"

    def submit(self, wish: Wish) -> str:
        """Do as `Groups.submit` does."""
        turns = self.turns
        try:
            state = turns.take(wish, wish.deadline)
            while state is HOLDING:
                self.serve(wish)
                if wish.state is SERVED or not (wish.boards or wish.joins):
                    turns.call_follower(wish)  # it passed its group on, perhaps, and already has its verdict
                    break
                again = turns.take if wish.state is NEW else turns.wait
                state = again(wish, wish.deadline)
            else:
                return state
        except BaseException:
            self.rescue(wish)
            turns.call_follower(wish)
            raise
        finally:
            turns.leave(wish)
        return SERVED if wish.state is SERVED else HOLDING

    def rescue(self, wish: Wish) -> None:
        if wish.state in (WAITING, LOBBY, ABOARD):
            self.turns.wait(wish, 0.0)
        if wish.state is HOLDING and isinstance(wish.luggage, Transaction):
            transaction, wish.luggage = wish.luggage, None
            self.enter(wish)
            self.drive(wish, transaction)  # for the others; its own work is not done

    def serve(self, wish: Wish) -> None:
        transaction = wish.luggage if isinstance(wish.luggage, Transaction) else Transaction()
        try:
            wish.luggage = None
            if self.mix.rounds and not transaction.members:
                self.turns.await_delivery()
            self.enter(wish)
            transaction.members.append(wish)
            if wish.joins:
                self.user_code(wish, transaction)
            else:
                self.step()
            if wish.boards or wish.joins:
                self.drive(wish, transaction)
            else:
                self.commit(transaction)
                self.exit(wish)
                self.turns.leave(wish)
        except Restart:
            wish.revoked = False
        except BaseException:
            self.abandon(wish, transaction)
            raise

    def drive(self, wish: Wish, transaction: Transaction) -> None:
        while len(transaction.members) < 4:
            boarded = self.board(transaction)
            if boarded:
                for _ in boarded:
                    self.step()
                if self.random.random() < self.mix.discards:
                    self.discard(wish, transaction, transaction.members)
                    return
                if self.random.random() < self.mix.discards:  # the time is up: the last ones are not taken along
                    self.turns.put_back(transaction.members[-1:])
                    transaction.members.pop()
                    break
            else:
                self.exit(wish)
                if self.turns.pass_on(wish, transaction):
                    return
                self.enter(wish)
                break
        self.commit(transaction)
        self.tell(wish, transaction.members)
        self.exit(wish)
        self.turns.leave(wish)

    def tell(self, wish: Wish, members: list[Ticket]) -> None:
        if self.mix.rounds:
            self.turns.deliver(members, wish)
        else:
            for member in members:
                member.settle()

    def board(self, transaction: Transaction) -> list[Ticket]:
        return self.turns.board(2, transaction.members)

    def discard(self, wish: Wish, transaction: Transaction, members: Iterable[Ticket]) -> None:
        self.exit(wish)
        self.turns.put_back(members)
        self.turns.leave(wish)

    def abandon(self, wish: Wish, transaction: Transaction) -> None:
        """Do what an exception in the middle of it all asks for: see what was reached, leave nobody behind."""
        with self.guard:
            if self.turns.holder is not wish:
                return
            self.lent = None
        self.inside = None
        committed: list[Ticket] = [m for m in transaction.members if isinstance(m, Wish) and m.commits]
        self.tell(wish, committed)
        if not committed:
            waiting = [m for m in transaction.members if m is not wish and m.state in (ABOARD, WAITING)]
            self.turns.put_back(waiting)
        self.turns.leave(wish)

    def user_code(self, wish: Wish, transaction: Transaction) -> None:
        with self.guard:
            self.lent = wish, transaction
        for _ in range(3):
            self.step()
        with self.guard:
            if wish.revoked:
                raise Restart
            self.lent = None

    def keeper(self) -> None:
        """Repair, and take turns from user code, while there are clients."""
        while self.running:
            if self.mix.repairs:
                self.turns.repair()
            if self.mix.keeper:
                self.revoke()
            self.scheduler.sleep(0.05)

    def revoke(self) -> None:
        with self.guard:
            if self.lent is None:
                return
            (wish, transaction), self.lent = self.lent, None
            wish.revoked = True
            self.inside = None
            self.turns.put_back([member for member in transaction.members if member is not wish])
            self.turns.depose(wish)

    # -- what must be true --------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.scheduler.monotonic()

    def enter(self, wish: Wish) -> None:
        assert self.inside is None, f"{wish} and {self.inside} have the turn"
        assert self.turns.holder is wish, f"{wish} uses a turn of {self.turns.holder}"
        self.inside = wish

    def exit(self, wish: Wish) -> None:
        assert self.inside is wish, f"{wish} was inside, and finds {self.inside}"
        self.inside = None

    def commit(self, transaction: Transaction) -> None:
        self.step()
        for member in transaction.members:
            assert isinstance(member, Wish)
            assert member.state in (HOLDING, ABOARD), f"{member} is committed"
            member.commits += 1
        self.step()

    def invariant(self) -> None:
        """Hold at every moment, but for the order of an interrupted thread's own clearing up."""
        self.in_order()
        if not self.turns._mutex.locked() and not self.scheduler.unwinding:
            self.turns.check()

    def in_order(self) -> None:
        """Assert that no waiter was overtaken who had waited longer than ``patience``."""
        holder, queue = self.turns.holder, list(self.turns.queue)
        if holder is not None and holder is not self.holder:
            ahead = self.line[: self.line.index(holder)] if holder in self.line else self.line
            impatient = [
                ticket for ticket in ahead if ticket in queue and self.scheduler.now - ticket.arrived > self.patience
            ]
            assert not impatient, f"{holder} overtook {impatient}"
        self.holder, self.line = holder, queue

    def at_the_end(self) -> None:
        turns = self.turns
        turns.check()
        assert turns.holder is None, f"{turns.holder} still has the turn"
        assert turns.waiting == 0
        assert turns._woken is None
        assert self.inside is None
        assert all(wish.commits <= 1 for wish in self.wishes)
        left = [wish for wish in self.wishes if wish.state in (WAITING, LOBBY, HOLDING)]
        assert not left, f"left behind: {left}"
        if not self.mix.interrupts:
            assert "interrupted" not in self.ended.values()


def scenario(mix: Mix, turns: type[Turns] = Turns) -> Callable[[Scheduler], Plan]:
    return lambda scheduler: World(scheduler, mix, turns).plan()


SHORT = (1e-5, 1e-4, 1e-3, FAR)
MIXES = {
    "plain takers": Mix(kinds=("plain",), wishes=3),
    "a leader and who boards": Mix(kinds=("boards",)),
    "statements and plain takers": Mix(kinds=("boards", "plain")),
    "functions that drive on": Mix(kinds=("joins", "boards", "boards")),
    "all kinds": Mix(),
    "deadlines that pass": Mix(deadlines=SHORT, wishes=3),
    "discarded runs": Mix(kinds=("boards", "joins"), discards=0.3),
    "discarded runs and deadlines": Mix(discards=0.3, deadlines=SHORT),
    "a lobby of one": Mix(limit=1, threads=(3, 5)),
    "a lobby of two with deadlines": Mix(limit=2, threads=(4, 5), deadlines=SHORT),
    "a lobby with discarded runs": Mix(limit=1, threads=(3, 5), deadlines=SHORT, discards=0.3),
    "functions that lose their turn": Mix(kinds=("joins", "boards"), keeper=True),
    "all at once": Mix(deadlines=SHORT, discards=0.2, keeper=True, repairs=True, limit=2),
    "repairs at any time": Mix(repairs=True),
    "verdicts that go round": Mix(kinds=("boards",), rounds=True, threads=(4, 6), wishes=3),
    "verdicts of functions that go round": Mix(kinds=("joins", "boards", "boards"), rounds=True, threads=(3, 6)),
    "verdicts of all kinds": Mix(rounds=True, threads=(3, 6), deadlines=SHORT, discards=0.2, keeper=True, repairs=True),
}
INTERRUPTED = {
    "plain takers": Mix(kinds=("plain",), interrupts=1, repairs=True),
    "statements": Mix(kinds=("boards", "plain"), interrupts=1, repairs=True),
    "functions": Mix(kinds=("joins", "boards"), interrupts=1, repairs=True),
    "discarded runs": Mix(kinds=("joins", "boards"), interrupts=1, repairs=True, discards=0.3),
    "functions that lose their turn": Mix(kinds=("joins", "boards"), interrupts=1, repairs=True, keeper=True),
    "a lobby": Mix(interrupts=2, repairs=True, limit=1, deadlines=SHORT),
    "all at once": Mix(interrupts=2, repairs=True, discards=0.2, deadlines=SHORT, keeper=True, limit=2),
    "verdicts that go round": Mix(kinds=("boards",), interrupts=2, repairs=True, rounds=True, threads=(4, 6)),
    "verdicts of functions that go round": Mix(
        kinds=("joins", "boards", "boards"), interrupts=2, repairs=True, rounds=True, threads=(4, 6), discards=0.1
    ),
}


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no ticket that is aboard look at its state unless it is woken: that would cover a signal not raised."""
    monkeypatch.setattr(module, "SLICE", FAR)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXES)
@pytest.mark.usefixtures("no_second_look")
def test_nobody_is_forgotten_and_nobody_let_in_twice(name: str, record: Record, seed: int) -> None:
    play(scenario(MIXES[name]), record, seed, short=50, long=2500)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_at_any_point_leaves_nobody_behind(name: str, record: Record, seed: int) -> None:
    play(scenario(INTERRUPTED[name]), record, seed, short=50, long=2500)


class LosesSomeCalls(Turns):
    """Be a queue whose users now and then die before they have called the next: as after two interrupts in a row."""

    calls = 0

    def call_follower(self, ticket: Ticket) -> None:
        self.calls += ticket.follower is not None
        if ticket.follower is None or self.calls % 3:
            super().call_follower(ticket)


LOSSES = Mix(kinds=("boards",), rounds=True, threads=(4, 6), wishes=3, repairs=True)


@pytest.mark.slow
@pytest.mark.usefixtures("no_second_look")
def test_the_keeper_calls_whoever_was_not_called(record: Record, seed: int) -> None:
    play(scenario(LOSSES, LosesSomeCalls), record, seed, short=50, long=2500)


def test_who_has_given_up_meanwhile_is_not_put_back_a_second_time() -> None:
    """No write comes after its `LockTimeout`.

    Written down: a run is discarded, an interrupt comes, and it is discarded again::

    holder                                  member
    board: ABOARD
    put_back: WAITING
    (interrupted; notes who is to be put back)
                                            its deadline passes: LATE, its caller is told
    put_back: not in the queue, and left out
    """
    turns, holder, member = Turns(), Ticket(), Ticket()
    member.boards = True
    assert turns.take(holder, FAR) is HOLDING
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(turns.take(member, time.monotonic() + 0.3)))
    thread.start()
    while not turns.queue:
        time.sleep(0.001)
    aboard: list[Ticket] = []
    turns.board(5, aboard)
    turns.put_back(aboard)
    thread.join()
    turns.put_back(aboard)
    assert told == [LATE]
    assert (member.state, list(turns.queue), turns.board(5, [])) == (LATE, [], [])


def test_a_ticket_that_was_put_back_has_its_deadline_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", FAR)
    explore(put_back_under_a_holder_who_stays, range(30))


def put_back_under_a_holder_who_stays(scheduler: Scheduler, turns_class: type[Turns] = Turns) -> Plan:
    """Board a ticket, put it back, and keep the turn until it has given up."""
    assert isinstance(scheduler, Unforgiving)
    turns = turns_class(primitives=scheduler)
    holder, waiter = Ticket(), Wish("waiter", "boards", scheduler.now + 0.01)
    ended: list[str] = []

    def hold() -> None:
        assert turns.take(holder, FAR) is HOLDING
        while not turns.waiting and not ended:
            scheduler.monotonic()
        turns.put_back(turns.board(1, []))
        while not ended:
            scheduler.monotonic()
        turns.leave(holder)

    def wait() -> None:
        while turns.holder is not holder:
            scheduler.monotonic()
        ended.append(turns.take(waiter, waiter.deadline))

    return [hold, wait], None, lambda: ended == [LATE] and turns.holder is None


# -- the tests find what they are for ---------------------------------------------------------------------------------


class LosesWakeUps(Turns):
    def _call_next(self) -> Ticket | None:
        return None


class GrantsTwice(Turns):
    def take(self, ticket: Ticket, deadline: float) -> str:
        if self.holder is None:
            self._now()  # a look without the mutex, and another thread in between
            self.holder = ticket
            ticket.state = HOLDING
            return HOLDING
        return super().take(ticket, deadline)


class AcknowledgesEarly(Turns):
    def board(self, most: int, aboard: list[Any]) -> list[Ticket]:
        taken = super().board(most, aboard)
        for ticket in taken:
            ticket.settle()
        return taken


class LeavesWithItsWakeUp(Turns):
    def _answer(self, ticket: Ticket, late: bool) -> str:
        with self._mutex:
            if late and ticket.state is WAITING:
                self.queue.remove(ticket)
                ticket.state = LATE
                return LATE
        return super()._answer(ticket, late)


class PutsBackSilently(Turns):
    def put_back(self, tickets: Iterable[Ticket]) -> None:
        with self._mutex:
            for ticket in reversed(list(tickets)):
                ticket.state = WAITING
                self.queue.appendleft(ticket)


class IsOvertaken(Turns):
    def _impatient(self, head: Ticket) -> bool:
        super()._impatient(head)
        return False


class TakesASliceForTheDeadline(Turns):
    def wait(self, ticket: Ticket, deadline: float) -> str:
        signal: LockLike | None = ticket.signal
        assert signal is not None
        while True:
            remaining = module.SLICE if ticket.state is ABOARD else deadline - self._now()
            late = remaining <= 0 or not signal.acquire(True, remaining)
            state = ticket.state if ticket.state in (HOLDING, SERVED, ABOARD) else self._answer(ticket, late)
            if state not in (ABOARD, WAITING, LOBBY):
                return state


class NeverMindsAnInterruptedLeave(Turns):
    def _forgotten(self) -> bool:
        return False


class LosesWhomItHasTaken(Turns):
    def board(self, most: int, aboard: list[Any]) -> list[Ticket]:
        taken = super().board(most, [])
        aboard += taken
        return taken


class WakesNoFollower(Turns):
    def call_follower(self, ticket: Ticket) -> None:
        pass


class ForgetsFollowers(WakesNoFollower):
    def repair(self) -> None:
        pass


class WakesBeforeTheVerdictIsThere(Turns):
    def deliver(self, tickets: Sequence[Ticket], driver: Ticket) -> None:
        for ticket in tickets:
            if ticket is not driver:
                ticket.wake()
        for ticket in tickets:
            ticket.state = SERVED


class ForgetsRoundsThatAreOvertaken(LosesSomeCalls):
    def deliver(self, tickets: Sequence[Ticket], driver: Ticket) -> None:
        super().deliver(tickets, driver)
        self._overtaken.clear()


class RepairsNoRounds(LosesSomeCalls):
    def repair(self) -> None:
        self._seen = ()
        self._overtaken.clear()
        super().repair()


ROUNDS = MIXES["verdicts that go round"]
PLANTED_IN_ROUNDS = [
    (WakesNoFollower, ROUNDS, "deadlock"),
    (ForgetsFollowers, LOSSES, "livelock"),
    (WakesBeforeTheVerdictIsThere, ROUNDS, "deadlock"),
    (ForgetsRoundsThatAreOvertaken, LOSSES, "livelock"),
    (RepairsNoRounds, LOSSES, "livelock"),
]
PLANTED = [
    (LosesWakeUps, MIXES["plain takers"], "lost wake-up"),
    (GrantsTwice, MIXES["plain takers"], "have the turn|uses a turn of|overtook|does not hold"),
    (AcknowledgesEarly, MIXES["a leader and who boards"], "after 0 commits|is committed"),
    (LeavesWithItsWakeUp, MIXES["deadlines that pass"], "lost wake-up|not in the queue|at the end"),
    (IsOvertaken, MIXES["plain takers"], "overtook"),
    (TakesASliceForTheDeadline, Mix(kinds=("joins", "boards"), keeper=True, discards=0.5), "too early"),
    (NeverMindsAnInterruptedLeave, INTERRUPTED["a lobby"], "lost wake-up|deadlock|livelock"),
    (LosesWhomItHasTaken, INTERRUPTED["functions"], "livelock|deadlock"),
]


@pytest.mark.parametrize(("turns", "mix", "what"), PLANTED)
def test_a_planted_bug_is_found(turns: type[Turns], mix: Mix, what: str) -> None:
    with pytest.raises(Failure, match=what):
        explore(scenario(mix, turns), range(1000), max_steps=6000)


@pytest.mark.parametrize(("turns", "mix", "what"), PLANTED_IN_ROUNDS)
@pytest.mark.usefixtures("no_second_look")
def test_a_planted_bug_in_the_round_of_verdicts_is_found(turns: type[Turns], mix: Mix, what: str) -> None:
    with pytest.raises(Failure, match=what):
        explore(scenario(mix, turns), range(1000), max_steps=6000)


@pytest.mark.usefixtures("no_second_look")
def test_a_planted_put_back_without_a_wake_up_is_found() -> None:
    with pytest.raises(Failure, match="livelock"):
        explore(lambda scheduler: put_back_under_a_holder_who_stays(scheduler, PutsBackSilently), range(30))
