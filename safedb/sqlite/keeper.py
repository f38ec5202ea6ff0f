"""Periodic work off the callers' path: ending what is overdue, and checkpoints.

A `Keeper` is one daemon thread that does its chores every ``tick`` seconds while there is something to watch, and
sleeps when all its chores say that they are idle. Whoever begins something that needs watching looks at ``asleep``
(one attribute) and wakes it. Nothing falls between the two, because each writes before it reads::

    caller                                  keeper
    becomes visible (is in use)             asleep = True
    asleep? → wake                          any chore busy? → asleep = False, go on

A caller that looks first, and becomes visible a moment later, is met by a second look, after a second.

The thread is started at first need, and again after a fork.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from time import monotonic

from safedb.stats import logger

Chore = Callable[[float], bool]  # is told the time, does its work, says whether there is still something to watch

QUIET_TICKS = 20
NAP = 5.0  # seconds
REMINDER = 60.0  # seconds after which a failure that lasts is told of again
SECOND_LOOK = 1.0  # seconds


class Bell:
    """Be an event that one thread waits for, and hears once. It has no state that an interrupt could leave locked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Ring."""
        with contextlib.suppress(RuntimeError):  # it is ringing already
            self._lock.release()

    def clear(self) -> None:
        """Forget that it has rung."""
        self._lock.acquire(blocking=False)

    def wait(self, timeout: float) -> bool:
        """Wait until it rings; tell whether it did."""
        return self._lock.acquire(timeout=timeout)


class Keeper:
    """Run chores on a thread of its own."""

    def __init__(self, name: str, chores: list[Chore], *, tick: float) -> None:
        self._name = name
        self._chores = chores
        self._said, self._said_at = "", 0.0  # the last failure that was told of
        self._tick = tick
        self._bell = Bell()
        self._end = Bell()
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._retiring = False
        self.asleep = True

    def __repr__(self) -> str:
        return f"<Keeper {self._name}{' asleep' * self.asleep}>"

    def wake(self) -> None:
        """Make sure that the chores are looked after from now on. Cheap, and safe from any thread."""
        self.asleep = False
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._start()
        self._bell.set()

    def _start(self) -> None:
        with self._mutex:
            if (self._thread is None or not self._thread.is_alive()) and not self._closed:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is shutting down, or has no thread left: callers go on without
                    self.asleep = True
                    self._thread = None

    def _run(self) -> None:
        quiet = 0
        while not self._closed and self._thread is threading.current_thread():  # an interrupted start may leave two
            busy = self._round()
            if self._retiring and not busy:
                return
            quiet = 0 if busy else quiet + 1
            if quiet > QUIET_TICKS:
                self._bell.clear()
                self.asleep = True
                if not (self._round() or self._bell.wait(SECOND_LOOK) or self._round() or self._closed):
                    self._sleep()
                self.asleep = False
                quiet = 0
            else:
                self._bell.clear()
                self._end.wait(self._tick)

    def _sleep(self) -> None:
        while not self._bell.wait(NAP):
            self.asleep = True  # again: an interrupt may have come to who wanted to ring

    def _round(self) -> bool:
        busy = False
        for chore in self._chores:
            try:
                busy = chore(monotonic()) or busy
            except BaseException as error:  # noqa: BLE001 - a chore that fails (a user's hook that calls sys.exit, say)
                if not self._closed:  # must not take the others with it, nor the thread by which deadlines are kept
                    self._tell_of(error)
        return busy

    def _tell_of(self, error: BaseException) -> None:
        """Tell of a failure; of one that comes again and again, once a minute."""
        now, said = monotonic(), f"{type(error).__name__}: {error}"
        if said != self._said or now - self._said_at > REMINDER:
            self._said, self._said_at = said, now
            logger.error("%s: a chore failed; it is tried again", self._name, exc_info=error)

    def retire(self) -> None:
        """Close when there is nothing to watch any more: at once, or after what is still under way."""
        self._retiring = True
        if not self._round():
            self.close()

    def close(self, within: float = 5.0) -> None:
        """End the thread and wait ``within`` seconds for it. Idempotent; in its own thread it only asks for the end."""
        self._closed = True
        self._end.set()
        self._bell.set()
        with self._mutex:
            thread = self._thread
        # At the interpreter's end daemon threads run no more, and Python 3.13 says that they live.
        if thread is not None and thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(timeout=within)
