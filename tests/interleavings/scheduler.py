"""Run real threads one step at a time, in an order drawn from a seed; the same seed is the same order.

In the manner of Rust's loom and shuttle: code that takes its locks and its clock from a `Primitives` gets a
`Scheduler` instead. Every ``acquire``, ``release`` and ``monotonic`` is a point at which another thread may go on, so
a few hundred seeds visit interleavings that production meets once a month. What happens between two such points is
one step; exactly one thread is inside a step at any time.

    def scenario(scheduler):
        lock = scheduler.lock()
        ...
        return [first, second], invariant, final_check

    explore(scenario, seeds=range(500))     # raises Failure, which names the seed
    run(scenario, seed=137)                 # that schedule again

Time is virtual: a step takes up to ``tick`` seconds, and a timed ``acquire`` ends when the scheduler chooses to let
its deadline pass, sometimes early in the schedule and always when nothing else can go on.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

Check = Callable[[], object]
Plan = tuple[Sequence[Callable[[], object]], Check | None, Check | None]

TIMEOUT_CHANCE = 0.05  # a step, while somebody else could go on
STUCK = 30.0  # real seconds: a thread blocks on something that is no lock of the scheduler's


class Failure(AssertionError):
    """Report a schedule that went wrong, with its seed and its trace."""

    def __init__(self, seed: int, what: str, trace: object) -> None:
        super().__init__(f"seed {seed}: {what}\ntrace:\n{trace}")
        self.seed = seed


class _Abort(BaseException):
    """Unwind the threads of a schedule that has failed."""


@dataclass(slots=True)
class Trace:
    """What happened, in order: (thread, what it did), of one seed."""

    seed: int
    events: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(
            f"{step:5}  {'    ' * thread}{thread}: {what}" for step, (thread, what) in enumerate(self.events)
        )


class _Worker:
    """One scheduled thread; it runs while it is the current one, and sleeps on its baton otherwise."""

    __slots__ = (
        "after",
        "at",
        "baton",
        "deadline",
        "done",
        "exception",
        "gap",
        "ident",
        "index",
        "points",
        "times",
        "wants",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.ident = -1
        self.baton = threading.Lock()
        self.baton.acquire()
        self.done = False
        self.wants: VirtualLock | None = None
        self.deadline: float | None = None
        self.points = 0
        self.exception: BaseException | None = None
        self.at = 0
        self.after = False
        self.times = 1
        self.gap = 0

    def due(self) -> bool:
        """Say whether an interrupt is to be raised now."""
        return self.exception is not None and self.points >= self.at

    def take(self) -> BaseException:
        """Return the interrupt; that was the last one, or another follows later."""
        exception, self.exception = self.exception, None
        assert exception is not None
        self.times -= 1
        if self.times:
            self.exception, self.at = type(exception)(*exception.args), self.points + self.gap
        return exception


class VirtualLock:
    """Behave as `threading.Lock`, and let the scheduler choose who goes on."""

    __slots__ = ("_scheduler", "name", "taken")

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self.name = name
        self.taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0 and timeout != -1:
            raise ValueError("timeout value must be a non-negative number")
        return self._scheduler._acquire(self, blocking, timeout)

    def release(self) -> None:
        self._scheduler._release(self)

    def locked(self) -> bool:
        return self.taken

    # As in CPython, an interrupt falls before a `with` has its lock or after it has let go, never between.
    def __enter__(self) -> bool:
        return self._scheduler._acquire(self, True, -1, atomic=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scheduler._release(self, atomic=True)

    def __repr__(self) -> str:
        return f"<{self.name} {'locked' if self.taken else 'free'}>"


class Scheduler:
    """Give out locks and time, and decide at each use of them who goes on; runs one schedule."""

    def __init__(self, seed: int, *, max_steps: int = 20_000, tick: float = 1e-5) -> None:
        self.trace = Trace(seed)
        self._random = random.Random(seed)
        # Some seeds switch at every point, some seldom: both kinds of bugs are found.
        self._stay = self._random.choice((0.0, 0.5, 0.9))
        self._max_steps = max_steps
        self._tick = tick
        self._now = 1000.0
        self._locks = 0
        self._steps = 0
        self._workers: list[_Worker] = []
        self._early: list[tuple[int, BaseException, int, bool, int, int]] = []
        self._planted: list[BaseException] = []
        self._current: _Worker | None = None
        self._invariant: Check | None = None
        self._checking = False
        self._failure: Failure | None = None
        self._finished = threading.Lock()

    # -- what the code under test uses -------------------------------------------------------------------------

    def lock(self) -> VirtualLock:
        """Make a lock; its name in traces is its number."""
        self._locks += 1
        return VirtualLock(self, f"lock {self._locks}")

    def monotonic(self) -> float:
        """Return the virtual time, in seconds."""
        me = self._arrive()
        if me is not None:
            self._yield(me)
            self._log(me, "reads the clock")
        now = self._now
        self._leave(me)
        return now

    # -- what the test uses ------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """Add a line to the trace; no yield point."""
        if self._current is not None:
            self.trace.events.append((self._current.index, what))

    def interrupt(
        self, thread: int, exc: BaseException, *, at: int = 0, after: bool = False, times: int = 1, gap: int = 1
    ) -> None:
        """Raise ``exc`` in thread number ``thread``, at its yield point number ``at`` (from 1) or the next one.

        Before what it does there, or ``after`` it: then the result is lost, as with a signal. A thread that waits is
        woken. The one after, of ``times`` in all, comes ``gap`` points later: into the clearing up after the first.
        May be called before the run, or by any thread within it.
        """
        if self._workers:
            self._plant(thread, exc, at, after, times, gap)
        else:
            self._early.append((thread, exc, at, after, times, gap))

    def run(self, threads: Sequence[Callable[[], object]], invariant: Check | None = None) -> Trace:
        """Run ``threads`` to their ends, and ``invariant`` after every step; raise `Failure`.

        A thread fails the schedule by raising anything but what `interrupt` planted; an invariant by raising or by
        returning False.
        """
        self._invariant = invariant
        self._workers = [_Worker(index) for index in range(len(threads))]
        for planted in self._early:
            self._plant(*planted)
        real = [
            threading.Thread(target=self._live, args=(worker, call), daemon=True)
            for worker, call in zip(self._workers, threads, strict=True)
        ]
        self._finished.acquire()
        for thread in real:
            thread.start()
        self._hand_on(None)
        if not self._finished.acquire(timeout=STUCK):
            self._fail("a thread blocks on something that the scheduler does not know")
        for thread in real:
            thread.join(min(1.0, STUCK) if self._failure else STUCK)
        self._current = None
        if self._failure is not None:
            raise self._failure
        return self.trace

    # -- the locks ---------------------------------------------------------------------------------------------

    def _acquire(self, lock: VirtualLock, blocking: bool, timeout: float, *, atomic: bool = False) -> bool:
        me = self._arrive()
        if me is None:
            if lock.taken and blocking:
                raise RuntimeError(f"{lock!r} would block for ever: no scheduled thread is running")
            taken, lock.taken = not lock.taken, True
            return taken
        self._yield(me)
        if lock.taken and blocking and timeout != 0:
            self._log(me, f"waits for {lock.name}")
            self._wait(me, lock, timeout)
        taken = not lock.taken
        lock.taken = True
        self._log(me, f"takes {lock.name}" if taken else f"does not get {lock.name}")
        if not atomic:
            self._leave(me)
        return taken

    def _wait(self, me: _Worker, lock: VirtualLock, timeout: float) -> None:
        """Sleep until the lock is free, the deadline is let pass, or an interrupt comes."""
        me.wants = lock
        me.deadline = self._now + timeout if timeout >= 0 else None
        try:
            self._switch(me)
        finally:
            me.wants = me.deadline = None
        if me.due() and (lock.taken or not me.after):
            self._raise(me)

    def _release(self, lock: VirtualLock, *, atomic: bool = False) -> None:
        if self._failure is not None:
            lock.taken = False  # whatever a failed schedule's `finally` clauses let go of
            return
        me = self._arrive()
        if me is not None:
            self._yield(me, interruptible=not atomic)
        if not lock.taken:
            raise RuntimeError("release unlocked lock")
        lock.taken = False
        if me is not None:
            self._log(me, f"lets go of {lock.name}")
            if atomic and me.due():
                self._raise(me)
        self._leave(me)

    # -- the steps ---------------------------------------------------------------------------------------------

    def _plant(self, thread: int, exc: BaseException, at: int, after: bool, times: int, gap: int) -> None:
        worker = self._workers[thread]
        worker.exception, worker.at, worker.after, worker.times, worker.gap = exc, at, after, times, gap

    def _raise(self, me: _Worker) -> None:
        exception = me.take()
        self._planted.append(exception)
        self._log(me, f"is interrupted by {exception!r}")
        raise exception

    def _log(self, me: _Worker, what: str) -> None:
        self.trace.events.append((me.index, what))

    def _arrive(self) -> _Worker | None:
        """Return the running thread; None for the test's own, before, after and in checks."""
        if self._failure is not None:
            raise _Abort
        me = self._current
        if me is None or self._checking:
            return None
        if me.ident != threading.get_ident():
            raise RuntimeError("a thread that is not scheduled uses a scheduler's lock or clock")
        return me

    def _yield(self, me: _Worker, *, interruptible: bool = True) -> None:
        """End one step of ``me``, and return when the next may begin."""
        me.points += 1
        self._steps += 1
        self._check()
        if self._failure is None and self._steps > self._max_steps:
            self._fail(f"livelock: no end after {self._max_steps} steps")
        self._switch(me)
        if interruptible and me.due() and not me.after:
            self._raise(me)

    def _leave(self, me: _Worker | None) -> None:
        """Raise an interrupt that was to come after what has just been done."""
        if me is not None and me.due() and me.after:
            self._raise(me)

    def _switch(self, me: _Worker) -> None:
        if self._hand_on(me) is not me:
            me.baton.acquire()
        if self._failure is not None:
            raise _Abort

    def _hand_on(self, me: _Worker | None) -> _Worker | None:
        """Choose who goes on, and wake it; return it."""
        chosen = None if self._failure else self._choose(me)
        if chosen is not None:
            self._current = chosen
            if chosen is not me:
                chosen.baton.release()
        return chosen

    def _choose(self, me: _Worker | None) -> _Worker | None:
        self._now += self._tick * self._random.random()
        ready: list[_Worker] = []
        timed: list[_Worker] = []
        for worker in self._workers:
            if worker.done:
                continue
            if worker.wants is None or not worker.wants.taken or worker.due():
                ready.append(worker)
            elif worker.deadline is not None:
                timed.append(worker)
        if timed and (not ready or self._random.random() < TIMEOUT_CHANCE):
            late = min(timed, key=lambda worker: worker.deadline or 0.0)
            self._now = max(self._now, late.deadline or 0.0)
            return late
        if me is not None and me in ready and self._random.random() < self._stay:
            return me
        if ready:
            return self._random.choice(ready)
        if all(worker.done for worker in self._workers):
            self._finished.release()
        else:
            self._fail("deadlock: nobody can go on")
        return None

    def _live(self, me: _Worker, call: Callable[[], object]) -> None:
        me.ident = threading.get_ident()
        me.baton.acquire()
        try:
            if self._failure is None:
                call()
        except _Abort:
            pass
        except BaseException as error:
            if not any(error is planted for planted in self._planted):
                self._fail(f"thread {me.index} raised {error!r}", error)
        me.done = True
        if self._failure is None:
            self._log(me, "ends")
            self._check()
            self._hand_on(None)

    def _check(self) -> None:
        """Ask the invariant; it may use locks and clock, and is no step."""
        if self._invariant is None or self._failure is not None:
            return
        self._checking = True
        try:
            if self._invariant() is False:
                self._fail("the invariant does not hold")
        except Exception as error:
            self._fail(f"the invariant does not hold: {error}", error)
        finally:
            self._checking = False

    def _fail(self, what: str, cause: BaseException | None = None) -> None:
        """Record the first failure, and wake everybody to unwind."""
        if self._failure is not None:
            return
        waits = [
            f"  thread {w.index} waits for {w.wants!r}" for w in self._workers if w.wants is not None and not w.done
        ]
        self._failure = Failure(self.trace.seed, "\n".join([what, *waits]), self.trace)
        self._failure.__cause__ = cause
        for worker in self._workers:
            if worker.baton.locked():
                worker.baton.release()
        self._finished.release()


def run(scenario: Callable[[Scheduler], Plan], seed: int, *, max_steps: int = 20_000) -> Trace:
    """Run the one schedule of ``scenario`` that belongs to ``seed``; raise `Failure`."""
    scheduler = Scheduler(seed, max_steps=max_steps)
    threads, invariant, final_check = scenario(scheduler)
    trace = scheduler.run(threads, invariant)
    if final_check is not None:
        try:
            held = final_check()
        except Exception as error:
            raise Failure(seed, f"at the end: {error}", trace) from error
        if held is False:
            raise Failure(seed, "at the end the final check does not hold", trace)
    return trace


def explore(
    scenario: Callable[[Scheduler], Plan], seeds: Iterable[int] = range(300), *, max_steps: int = 20_000
) -> int:
    """Run ``scenario``, which builds everything afresh, under each seed; return how many; raise the first `Failure`."""
    count = 0
    for seed in seeds:
        run(scenario, seed, max_steps=max_steps)
        count += 1
    return count
