"""A foreign program that knows nothing of safedb: in the middle of the run it takes the write lock and keeps it."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

_PAUSE = 0.0005  # seconds between two tries to get the lock
_GLANCE = 0.05  # seconds between two looks at whether to stop


@dataclass(frozen=True, slots=True)
class Task:
    """Say which file to lock, after how many seconds, and for how many."""

    path: str
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
    with contextlib.closing(sqlite3.connect(task.path, timeout=0, isolation_level=None)) as connection:
        begun = time.monotonic()
        # Asked for again and again: SQLite's busy handler sleeps so long that beside busy writers it may never get it.
        while not _got(connection):
            if stopped(_PAUSE):
                return Held(time.monotonic() - begun, 0.0)
        taken = time.monotonic()
        while time.monotonic() < taken + task.seconds and not stopped(_GLANCE):
            pass
        connection.execute("ROLLBACK")
        return Held(taken - begun, time.monotonic() - taken)


def _got(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True
