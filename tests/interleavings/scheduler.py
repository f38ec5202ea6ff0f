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


class _Abort(BaseException):
    """Unwind the threads of a schedule that has failed."""


@dataclass(slots=True)
class Trace:
    """What happened, in order: (thread, what it did), of one seed."""

    seed: int
    events: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(f"{step:5}  {'    ' * thread}{thread}: {what}" for step, (thread, what) in enumerate(self.events))


class _Worker:
    """One scheduled thread; it runs while its baton is not locked."""

    __slots__ = ("after", "at", "baton", "deadline", "done", "exception", "ident", "index", "points", "wants")

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

    @property
    def interrupted(self) -> bool:
        return self.exception is not None and self.points >= self.at


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
        self._workers: list[_Worker] = []
        self._interrupts: list[tuple[int, BaseException, int, bool]] = []
        self._current: _Worker | None = None
        self._invariant: Check | None = None
        self._failure: Failure | None = None
        self._finished = threading.Lock()

    # -- what the code under test uses -------------------------------------------------------------------------

    def lock(self) -> VirtualLock:
        """Make a lock; its name in traces is its number."""
        self._locks += 1
        return VirtualLock(self, f"lock {self._locks}")

    def monotonic(self) -> float:
        """Return the virtual time, in seconds."""
        me = self._point("time")
        now = self._now
        self._interrupt_after(me)
        return now

    # -- what the test uses ------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """Add a line to the trace; no yield point."""
        if self._current is not None:
            self.trace.events.append((self._current.index, what))

    def interrupt(self, thread: int, exc: BaseException, *, at: int = 0, after: bool = False) -> None:
        """Raise ``exc`` once in thread number ``thread``, at its yield point number ``at`` (from 1) or the next one.

        Before what it does there, or ``after`` it: then the result is lost, as with a signal. A thread that waits is
        woken. May be called before the run, or by any thread within it.
        """
        if self._workers:
            self._plant(thread, exc, at, after)
        else:
            self._interrupts.append((thread, exc, at, after))

    def run(self, threads: Sequence[Callable[[], object]], invariant: Check | None = None) -> Trace:
        """Run ``threads`` to their ends, and ``invariant`` after every step; raise `Failure`.

        A thread fails the schedule by raising anything but what `interrupt` planted; an invariant by raising or by
        returning False.
        """
        self._invariant = invariant
        self._workers = [_Worker(index) for index in range(len(threads))]
        for planted in self._interrupts:
            self._plant(*planted)
        real = [
            threading.Thread(target=self._live, args=(worker, call), daemon=True)
            for worker, call in zip(self._workers, threads, strict=True)
        ]
        self._finished.acquire()
        for thread in real:
            thread.start()
        self._hand_on()
        if not self._finished.acquire(timeout=STUCK):
            self._fail("a thread blocks on something that the scheduler does not know")
        else:
            for thread in real:
                thread.join(STUCK)
        self._current = None
        if self._failure is not None:
            raise self._failure
        return self.trace

    # -- the steps ---------------------------------------------------------------------------------------------

    def _plant(self, thread: int, exc: BaseException, at: int, after: bool) -> None:
        worker = self._workers[thread]
        worker.exception, worker.at, worker.after = exc, at, after

    def _live(self, me: _Worker, call: Callable[[], object]) -> None:
        me.ident = threading.get_ident()
        me.baton.acquire()
        planted = None
        try:
            if self._failure is None:
                planted = me.exception
                call()
        except _Abort:
            pass
        except BaseException as error:
            planted = planted or me.exception
            if not self._was_planted(error):
                self._fail(f"thread {me.index} raised {error!r}", error)
        me.done = True
        if self._failure is None:
            self._check()
        if self._failure is None:
            self._hand_on()

    def _was_planted(self, error: BaseException) -> bool:
        return any(error is planted for _, planted, _, _ in self._interrupts) or error in self._raised

    def _point(self, what: str) -> _Worker | None:
        """End the step, let somebody go on, and come back when it is our turn; None outside of the threads."""
        me = self._current
        if me is None:
            return None
        return self._yield(me, what)
