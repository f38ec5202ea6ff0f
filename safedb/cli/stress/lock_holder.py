"""A foreign program that knows nothing of safedb: in the middle of the run it takes the write lock and keeps it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from safedb.cli.stress import target
from safedb.cli.stress.workload import Place

_GLANCE = 0.05  # seconds between two looks at whether to stop


@dataclass(frozen=True, slots=True)
class Task:
    """Say which database to lock, after how many seconds, and for how many."""

    place: Place
    after: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Held:
    """Tell how long it took to get the lock, and for how long it was held: seconds."""

    waited: float
    held: float


def main(task: Task, parent: Connection) -> None:
    """Hold the lock as told; ends early on "stop", or when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):
        parent.send(("ready",))
        if parent.recv() == "go":
            parent.send(("done", _hold(task, lambda seconds: parent.poll(seconds))))


def _hold(task: Task, stopped: Callable[[float], bool]) -> Held:
    """Take the lock, keep it, give it back; ``stopped(seconds)`` waits so long and tells whether to stop."""
    if stopped(task.after):
        return Held(0.0, 0.0)
    with target.engine(task.place.dialect).lock(task.place) as lock:
        begun = time.monotonic()
        while not lock.take():
            if stopped(lock.pause):
                return Held(time.monotonic() - begun, 0.0)
        taken = time.monotonic()
        while time.monotonic() < taken + task.seconds and not stopped(_GLANCE):
            pass
        lock.release()
        return Held(taken - begun, time.monotonic() - taken)
