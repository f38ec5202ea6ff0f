"""The queue of turns: who may use the one writer connection, in which order, and until when they wait.

This file knows no SQL. A thread that wants to write brings a `Ticket`. One of three things happens to it: it is given
the turn (HOLDING), another thread that has the turn does its work for it (ABOARD, then SERVED), or its deadline passes
while it waits (LATE, or CROWDED if it never got a place in the queue).

**The invariant** that keeps anyone from sleeping for ever:

    queue not empty  ⇒  the turn is held, or exactly one waiter has been woken and has not yet answered

and beside it: *lobby not empty ⇒ the queue is full*. Every method that gives up the turn, or takes a ticket out of
the queue, ends in `_call_next`, which re-establishes both; `check` states them as code, for the tests.

**Order.** Handing the turn to a sleeping thread costs 10 to 40 µs, more than a whole write at synchronous NORMAL. So,
as in WebKit's ParkingLot (https://webkit.org/blog/6161/locking-in-webkit/), a thread that is running anyway may take a
free turn while nobody in the queue has waited longer than `patience`. From then on the turn goes straight to the head
of the queue, and among waiters the order is strict::

    A (has the turn)        B (first in the queue)      C (runs already)
    release: B has waited
      less than patience:
      wake B, turn is free
                                                        take: turn is free, B is not yet
                                                          impatient: C has the turn
                            wakes, finds it held,
                            answers (woken = None),
                            sleeps; its arrival stays
                                                        release: B has waited longer than
                                                          patience: B *is given* the turn
                            wakes, is HOLDING

If C had found B impatient, it would have queued: B, woken and not yet answered, finds the turn free.

**A deadline against a hand-over.** Both happen under the mutex, so one comes first. Either the waiter has left, and the
turn goes to the next; or it has been given the turn, and returns HOLDING although it is late: the caller looks at the
clock and gives the turn back::

    A releases                              B's deadline passes
    mutex: B.state = HOLDING, holder = B    (still inside acquire(timeout))
                                            mutex: state is HOLDING  → returns HOLDING, not LATE

**A wake-up is never lost.** A ticket's signal is a binary semaphore (a lock that is born locked). Whoever changes the
state does so *before* it raises the signal, and the sleeper looks at the state *after* it has consumed it; a signal
raised twice before the sleeper comes is one signal, after which the sleeper sees the newest state.

**Verdicts go round.** After COMMIT a whole group is to be woken. All at once they would only take the interpreter's
lock from each other, and from the next leader: two to three switches of threads more than each write needs. So each
wakes the next, and the next leader waits until all are awake, and in the queue again if they want to be::

    L (has committed)         S1                         S2                       S3 (the next leader)
    all are SERVED
    wakes S1, gives up
      the turn                wakes S2, returns
    writes again: queued      writes again: queued       wakes the next …
                                                                                  the last: writes again, has the turn;
                                                                                    nobody is asleep: the group begins

A thread calls the next as the first thing it does, and all the rest after it: the kernel lets whoever was woken
interrupt whoever woke it, and does so less the earlier in its own run that was. Interrupted, it still has the
interpreter's lock, for which the other falls asleep again: three to four switches in place of one (decision 28).

Who comes late to its call (another thread burns CPU) wakes several, so that they wait together, and the leader waits no
more; whether these come late is no question, for they are in each other's way. A call that an exception has kept from
being passed on is repeated by the keeper (`repair`).

**Interrupts.** An exception can reach a thread between any two bytecodes. The critical sections record the new holder
before anything else, and change the queue by one C call each; `leave` is idempotent, derives from the state what is
to be done, and stands in the ``finally`` of every caller.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

NEW = "new"  # not in the queue
LOBBY = "lobby"  # the queue is full: waits for a place in it
WAITING = "waiting"  # in the queue
HOLDING = "holding"  # has the turn
ABOARD = "aboard"  # out of the queue: whoever has the turn works for it, or it awaits the verdict on its own work
SERVED = "served"  # the verdict is there
LATE = "late"  # gave up at its deadline, out of the queue
CROWDED = "crowded"  # gave up at its deadline, out of the lobby

QUEUED = frozenset({WAITING, LOBBY})
ASLEEP = QUEUED | {ABOARD}
ENDED = frozenset({SERVED, LATE, CROWDED})

FOREVER = -1.0
SLICE = 0.1  # seconds after which a ticket that is ABOARD looks at its state, if nobody wakes it before
CONGESTED = 0.003  # seconds: who took so long to awake had to wait for a thread that does not let go (H22: after 5 ms)
SEVERAL = 15  # so many more are woken then at once: they wait for it together, and not one after the other
MOST_ROUNDS = 1000  # that are looked after
DELIVERY = 0.005  # seconds without anybody else awake, after which the next transaction is put off no more,
LONGEST_DELIVERY = 0.05  # and seconds after which it is not, whoever awakes


class LockLike(Protocol):
    """Be what the queue needs of a lock: `threading.Lock`, or a test's stepped one."""

    def acquire(self, blocking: bool = True, timeout: float = FOREVER) -> bool: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102
    def locked(self) -> bool: ...  # noqa: D102
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class Primitives(Protocol):
    """Be the seam through which locks and the clock come in, so that a scheduler can step through interleavings."""

    def lock(self) -> LockLike:
        """Make an unlocked lock; any thread may release it."""

    def monotonic(self) -> float:
        """Tell the time in seconds."""


class RealPrimitives:
    """Use the interpreter's own locks and clock."""

    lock = staticmethod(threading.Lock)
    monotonic = staticmethod(time.monotonic)


def raise_signal(signal: Any) -> None:
    """Let whoever sleeps on this lock go on; raised twice it is still one signal."""
    try:
        signal.release()
    except RuntimeError:  # it is raised already, and its sleeper has yet to look at the state
        pass  # (contextlib.suppress costs ten times as much, on the path of every acknowledgement)


class Ticket:
    """Be one wish to write, of one thread, from its arrival to its verdict.

    ``boards``: whoever has the turn may do the work (a statement). ``joins``: the turn may be given to this ticket's
    thread inside an open transaction (a function). Neither: it takes a turn of its own.
    """

    # Defaults of the class and not of each ticket: most tickets are served without ever having to wait.
    state = NEW
    boards = False
    joins = False
    arrived = 0.0
    thread = 0  # the ident of the one that brought it
    luggage: object = None  # what came with the turn: the open group, or None
    signal: LockLike | None = None  # made when the ticket first has to wait
    follower: Ticket | None = None  # of those who were served together, the one to be woken next
    called = 0.0  # when it was woken; infinite where it was with others, and 0.0 until it is

    def settle(self) -> None:
        """Say that the verdict is there. Called once the work is committed, or is known to be lost."""
        self.state = SERVED
        self.wake()

    def wake(self) -> None:
        """Raise the signal; raised twice it is still one signal."""
        if self.signal is not None:
            raise_signal(self.signal)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state}{' boards' * self.boards}{' joins' * self.joins}>"


class Turns:
    """Hand out the one turn. ``holder`` and ``queue`` may be looked at by anybody, and are changed here only.

    ``limit``: how many tickets may wait in the queue; further ones wait in the lobby. ``patience``: seconds after which
    a waiter is no longer overtaken by running threads.
    """

    def __init__(
        self,
        *,
        limit: int = 10_000,
        patience: float = 0.001,
        primitives: Primitives | None = None,
    ) -> None:
        primitives = primitives or RealPrimitives()
        self._mutex = primitives.lock()
        self.locked = self._mutex.locked  # whether some thread is in here; perhaps one whose signal handler asks
        self._new_lock = primitives.lock
        self._now = primitives.monotonic
        self._limit = limit
        self._patience = patience
        self.queue: deque[Ticket] = deque()  # who waits
        self._lobby: deque[Ticket] = deque()
        self.holder: Ticket | None = None  # who has the turn
        self._woken: Ticket | None = None  # has been woken, and has not yet answered
        self._served: Sequence[Ticket] = ()  # those who were served together last, while not all of them are awake
        self._awake = 0.0  # when the last of them has awoken (and not who: that would keep its result)
        self._seen: Sequence[Ticket] = ()  # the same, at the last look of `repair`
        self._overtaken = deque[Sequence[Ticket]](maxlen=MOST_ROUNDS)  # had not ended when the next began
        self._forsaken = self._overtaken.copy()  # the same, since before the last look of `repair`
        self._delivered = primitives.lock()  # a signal, raised or not: `await_delivery` clears it first

    def __repr__(self) -> str:
        return f"<Turns holder={self.holder!r} waiting={self.waiting}>"

    @property
    def waiting(self) -> int:
        """Count the tickets that wait, in the queue and in the lobby."""
        return len(self.queue) + len(self._lobby)

    @property
    def next(self) -> Ticket | None:
        """Tell who is to answer: who has the turn, or else the head of the queue; for the keeper."""
        holder = self.holder
        if holder is not None:
            return holder
        try:
            return self.queue[0]
        except IndexError:
            return None

    # -- the waiter's side ----------------------------------------------------------------------------------------

    def take(self, ticket: Ticket, deadline: float) -> str:
        """Take the turn, or wait for it or for the verdict until ``deadline`` (monotonic seconds).

        Return HOLDING, SERVED, LATE or CROWDED. A ticket that is ABOARD has no deadline of its own: who works for it
        answers for that.
        """
        with self._mutex:
            # Critical section: grant or queue. The common case is the first line alone.
            if self.holder is None and (not self.queue or not self._impatient(self.queue[0])):
                self.holder = ticket
                ticket.state = HOLDING
                return HOLDING
            called = self._enqueue(ticket)
        if called is not None:
            called.wake()
        return self.wait(ticket, deadline)

    def wait(self, ticket: Ticket, deadline: float) -> str:
        """Sleep until the ticket is HOLDING or SERVED, or its deadline has passed while it waited in the queue."""
        signal: Any = ticket.signal  # `_enqueue` made it
        state = ticket.state
        while state in ASLEEP:
            aboard = state is ABOARD
            remaining = SLICE if aboard else deadline - self._now()
            late = remaining <= 0 or not signal.acquire(True, remaining)
            state = ticket.state
            if state is SERVED:
                break
            if state in QUEUED:
                state = self._answer(ticket, late and not aboard)  # a slice is no deadline
        if state is SERVED:
            self.call_follower(ticket)
        return state

    def _answer(self, ticket: Ticket, late: bool) -> str:
        """Answer a wake-up: take the free turn, sleep again, or leave at the deadline. Return the state."""
        called = None
        with self._mutex:
            # Critical section: one of the three, whole.
            if self._woken is ticket:
                self._woken = None
                if self.holder is None:
                    self.holder = ticket
                    ticket.luggage = None
                    ticket.state = HOLDING
                    self._remove(self.queue, ticket)
                    self._fill_queue()
            if late and ticket.state in (WAITING, LOBBY):
                called = self._drop(ticket)
            state = ticket.state
        if called is not None:
            called.wake()
        return state

    def leave(self, ticket: Ticket) -> None:
        """Give up whatever the ticket still has: the turn, or its place. Idempotent; for ``finally``.

        A ticket that is ABOARD has nothing to give up: it must wait for its verdict. A turn that has come with luggage,
        which nobody has taken yet, is not given up: others have their work in there.
        """
        if (
            self.holder is not ticket
            and ticket.state not in (WAITING, LOBBY)
            and not (self.queue and self._forgotten())
        ):
            return
        with self._mutex:
            # Critical section: from the state follows what is to be done.
            if self.holder is ticket:
                if ticket.luggage is not None:
                    return
                self.holder = None
                if ticket.state is HOLDING:
                    ticket.state = NEW
                called = self._call_next()
            elif ticket.state in (WAITING, LOBBY):
                called = self._drop(ticket)
            else:
                called = self._call_next()
        if called is not None:
            called.wake()

    def repair(self) -> None:
        """Raise again the signals that must be raised by now; for the keeper, now and then.

        An exception between a change of state and the signal that tells of it leaves a sleeper who does not know. A
        signal too many does no harm: its sleeper looks at the state, and sleeps again. An exception between giving up
        the turn and calling the next leaves nobody who will.
        """
        called = None
        if self.queue and self._forgotten():
            with self._mutex:
                called = self._call_next()
        for ticket in (self.holder, self._woken, called):
            if ticket is not None:
                ticket.wake()
        late, self._seen = self._seen, self._served
        if late and late is self._served:  # since the last look, and not all are awake
            self._served = ()
            self._forsaken.append(late)
        while self._forsaken:
            for ticket in self._forsaken.popleft():
                ticket.wake()
        if self._overtaken:  # the call still goes round; woken all at once they would be in each other's way
            self._forsaken = self._overtaken
            self._overtaken = deque(maxlen=MOST_ROUNDS)

    # -- the verdicts ---------------------------------------------------------------------------------------------

    def deliver(self, tickets: Sequence[Ticket], driver: Ticket) -> None:
        """Say of all that the verdict is there, and wake the first of them but for the driver, who is awake.

        The others are woken by `call_follower`, each by the one before it.
        """
        asleep = [ticket for ticket in tickets if ticket is not driver and ticket.signal is not None]
        if self._served:
            self._overtaken.append(self._served)
        self._served, self._awake = asleep, 0.0
        follower = None
        for ticket in reversed(asleep):
            ticket.follower = follower
            follower = ticket
        for ticket in tickets:
            ticket.state = SERVED
        if follower is not None:
            follower.called = self._now()
            follower.wake()

    def call_follower(self, ticket: Ticket) -> None:
        """Wake the next of those who were served together; several, where this one has come late itself."""
        follower = ticket.follower
        if follower is not None:
            self._awake = follower.called = now = self._now()
            try:
                follower.signal.release()  # type: ignore[union-attr]  # (`raise_signal`, without the call)
            except RuntimeError:
                pass
            if ticket.called and now - ticket.called > CONGESTED:
                self._call_several(follower)
            ticket.follower = None
        elif (served := self._served) and served[-1] is ticket and ticket.called:  # else an old signal has woken it
            self._served = ()
            raise_signal(self._delivered)

    def _call_several(self, ticket: Ticket) -> None:
        """Wake some of those behind ``ticket``, of whom the last goes on; nobody is to wait for their delivery."""
        ticket.called = math.inf
        for _ in range(SEVERAL):
            follower = ticket.follower
            if follower is None:
                break
            follower.called = math.inf
            raise_signal(follower.signal)
            ticket.follower = None  # not before: an interrupt would lose all who follow
            ticket = follower
        raise_signal(self._delivered)

    @property
    def is_delivering(self) -> bool:
        """Tell whether some of those who were served together may be asleep."""
        return bool(self._served or self._overtaken or self._forsaken)

    def await_delivery(self) -> None:
        """Wait until all who were served together last are awake, or it is slow to go on; for the holder only."""
        self._delivered.acquire(False)  # raised before, while nobody waited
        awake, until = None, self._now() + LONGEST_DELIVERY
        while self._served and self._awake != awake and self._now() < until:
            awake = self._awake
            if self._delivered.acquire(True, DELIVERY):
                return

    # -- the holder's side ----------------------------------------------------------------------------------------

    def board(self, most: int, aboard: list[Any]) -> list[Ticket]:
        """Take the run of boarding tickets at the head of the queue, ``most`` at the most. For the holder only.

        They are also appended to ``aboard``, each before it leaves the queue: an interrupt loses none.
        """
        if not self.queue:  # a look without the mutex: who comes later is seen by the next look, or by `leave`
            return []
        first = len(aboard)
        with self._mutex:
            # Critical section: the holder answers for a ticket before its state says so.
            queue = self.queue
            while queue and most and (ticket := queue[0]).boards:
                aboard.append(ticket)
                ticket.state = ABOARD
                queue.popleft()
                most -= 1
            if self._woken is not None and self._woken.state is ABOARD:
                self._woken = None  # the turn is held: nobody need be awake
            self._fill_queue()
        return aboard[first:]

    def pass_on(self, ticket: Ticket, luggage: object) -> bool:
        """Give the turn with ``luggage`` to the head of the queue if it joins; the giver is ABOARD from then on.

        Return whether it was given. The luggage (an open group) never lies about without a holder.
        """
        if not self.queue:
            return False
        with self._mutex:
            # Critical section: one holder, then the other.
            if self.holder is not ticket or not self.queue or not self.queue[0].joins:
                return False
            if ticket.signal is None:
                ticket.signal = self._closed_signal()
            if ticket.state is HOLDING:  # else it has had its verdict, and only drove on for the others
                ticket.state = ABOARD
            called = self._give(self.queue[0], luggage)
        called.wake()
        return True

    def put_back(self, tickets: Iterable[Ticket]) -> None:
        """Queue tickets again at the front, in their order, with the arrival they had: their run was discarded.

        For the holder, or for who has just deposed it; `leave` or `depose` must follow. Those that stand in the queue
        already stay where they are, and those that have since been told their end stay out of it: this may be called
        again after it was interrupted.
        """
        with self._mutex:
            # Critical section: the queue changes by one C call.
            queued = set(map(id, self.queue))
            back = [ticket for ticket in tickets if id(ticket) not in queued and ticket.state not in ENDED]
            back.reverse()
            behind = self.queue[0].arrived if self.queue else self._now()
            for ticket in back:
                if ticket.signal is None:
                    ticket.signal = self._closed_signal()
                if not ticket.arrived:  # it had found the turn free; nobody before another has waited for less long
                    ticket.arrived = behind
                behind = ticket.arrived
                ticket.state = WAITING
            self.queue.extendleft(back)
            for ticket in back:
                ticket.wake()  # it sleeps without a deadline, and has one again

    def depose(self, ticket: Ticket) -> None:
        """Take the turn from a holder whose thread is busy elsewhere (user code); it must `take` again."""
        with self._mutex:
            if self.holder is ticket:
                self.holder = None
                ticket.state = NEW
            called = self._call_next()
        if called is not None:
            called.wake()

    # -- inside the mutex -----------------------------------------------------------------------------------------

    def _forgotten(self) -> bool:
        """Tell whether the queue, if there is one, waits for nobody: an interrupt came before `_call_next`."""
        return self.holder is None and self._woken is None

    def _impatient(self, head: Ticket) -> bool:
        return self._now() - head.arrived > self._patience

    def _closed_signal(self) -> LockLike:
        signal: LockLike = self._new_lock()
        signal.acquire()
        return signal

    def _enqueue(self, ticket: Ticket) -> Ticket | None:
        if ticket.signal is None:
            ticket.signal = self._closed_signal()
        ticket.arrived = self._now()
        if len(self.queue) < self._limit:
            ticket.state = WAITING
            self.queue.append(ticket)
        else:
            ticket.state = LOBBY
            self._lobby.append(ticket)
        return self._call_next() if self.holder is None else None

    def _drop(self, ticket: Ticket) -> Ticket | None:
        """Take a waiter out of the queue or the lobby at its deadline, and pass on a wake-up that it had."""
        if self._woken is ticket:
            self._woken = None
        if ticket.state is WAITING:
            ticket.state = LATE
            self._remove(self.queue, ticket)
        else:
            ticket.state = CROWDED
            self._remove(self._lobby, ticket)
        return self._call_next()

    def _remove(self, where: deque[Ticket], ticket: Ticket) -> None:
        """Take a ticket out; an interrupt may have kept it from ever getting in."""
        try:
            where.remove(ticket)
        except ValueError:
            pass

    def _fill_queue(self) -> None:
        while self._lobby and len(self.queue) < self._limit:
            ticket = self._lobby[0]
            if ticket.state is LOBBY:  # else an interrupt came before the last line
                ticket.state = WAITING
                self.queue.append(ticket)
            self._lobby.popleft()

    def _give(self, ticket: Ticket, luggage: object) -> Ticket:
        """Make the head of the queue the holder, whether or not it is awake; the caller wakes it."""
        ticket.luggage = luggage
        self.holder = ticket
        ticket.state = HOLDING
        self.queue.popleft()
        if self._woken is ticket:
            self._woken = None
        self._fill_queue()
        return ticket

    def _call_next(self) -> Ticket | None:
        """Re-establish the invariant: give the free turn to an impatient head, else wake the head once.

        Return who is to be woken, outside of the mutex: it would only wake up to wait for that.
        """
        self._fill_queue()
        if self.holder is not None or not self.queue:
            return None
        head = self.queue[0]
        if self._impatient(head):
            return self._give(head, None)
        if self._woken is None:
            self._woken = head
            return head
        return None

    def check(self) -> None:
        """Assert the invariants; the caller makes sure that no critical section is under way."""
        if self.queue and self.holder is None:
            assert self._woken is not None, f"a lost wake-up: {self.queue}"
            assert self._woken in self.queue, f"{self._woken} was woken, and is not in the queue"
        assert not self._lobby or len(self.queue) >= self._limit, "a place in the queue, and someone in the lobby"
        assert self.holder is None or self.holder.state in (HOLDING, SERVED, WAITING), f"holder {self.holder}"
        assert all(ticket.state is WAITING for ticket in self.queue), f"in the queue: {self.queue}"
        assert all(ticket.state is LOBBY for ticket in self._lobby), f"in the lobby: {self._lobby}"
