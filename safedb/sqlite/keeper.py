"""Periodic work off the callers' path: ending what is overdue, and checkpoints.

A `Keeper` is one daemon thread that does its chores every ``tick`` seconds while there is something to watch, and
sleeps when all its chores say that they are idle. Whoever begins something that needs watching looks at ``asleep``
(one attribute) and wakes it. Nothing falls between the two, because each writes before it reads::

    caller                                  keeper
    becomes visible (is in use)             asleep = True
    asleep? → wake                          any chore busy? → asleep = False, go on

The thread is started at first need, and again after a fork.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from safedb.stats import logger

Chore = Callable[[float], bool]  # is told the time, does its work, says whether there is still something to watch

QUIET_TICKS = 20


class Keeper:
    """Run chores on a thread of its own."""

    def __init__(self, name: str, chores: list[Chore], *, tick: float) -> None:
        self._name = name
        self._chores = chores
        self._tick = tick
        self._bell = threading.Event()
        self._end = threading.Event()
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.asleep = True

    def __repr__(self) -> str:
        return f"<Keeper {self._name}{' asleep' * self.asleep}>"

    def wake(self) -> None:
        """Make sure that the chores are looked after from now on. Cheap, and safe from any thread."""
        self.asleep = False
        if self._thread is None:
            self._start()
        self._bell.set()

    def _start(self) -> None:
        with self._mutex:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down, or has no thread left: callers go on without
                    self.asleep = True
                    return
                self._thread = thread

    def _run(self) -> None:
        quiet = 0
        while not self._closed:
            busy = self._round()
            quiet = 0 if busy else quiet + 1
            if quiet > QUIET_TICKS:
                self._bell.clear()
                self.asleep = True
                if not self._round() and not self._closed:
                    self._bell.wait()
                self.asleep = False
                quiet = 0
            else:
                self._bell.clear()
                self._end.wait(self._tick)

    def _round(self) -> bool:
        busy = False
        for chore in self._chores:
            try:
                busy = chore(monotonic()) or busy
            except Exception:  # noqa: BLE001 - a chore that fails must not take the others with it
                if not self._closed:
                    logger.exception("%s: a chore failed; it is tried again", self._name)
        return busy

    def close(self) -> None:
        """End the thread and wait for it. Idempotent; from its own thread it only asks for the end."""
        self._closed = True
        self._end.set()
        self._bell.set()
        with self._mutex:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)
