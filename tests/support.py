"""What the tests share: threads that are always joined, and gates that stop a statement where a test wants it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any

import safedb

# The module that safedb uses: another one in this process would drop the locks on a file that both have open (H32).
from safedb.sqlite.driver import sqlite3 as sqlite3

Group = subprocess.Popen[str]

JOIN = 30.0
"""Seconds after which a thread is given up: generous, for nothing here waits for time to pass."""


class Worker:
    """Be one call in a thread of its own."""

    def __init__(self, call: Callable[[], Any], name: str | None = None) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.asked = False  # whether a test looked at the outcome
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def join(self) -> None:
        self.thread.join(JOIN)
        assert not self.running, f"{self.thread.name} hangs"

    def result(self) -> Any:
        """Join, and return what the call returned, or raise what it raised."""
        self.asked = True
        self.join()
        if self._error is not None:
            raise self._error
        return self._value

    def error(self) -> BaseException | None:
        """Join, and return what the call raised, or None."""
        self.asked = True
        self.join()
        return self._error


class Crew:
    """Start threads; `finish` joins every one and raises the errors that no test asked for."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def __call__(self, call: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> Worker:
        worker = Worker(lambda: call(*args, **kwargs), name)
        self._workers.append(worker)
        return worker

    def together(self, count: int, call: Callable[[int], Any]) -> list[Any]:
        """Run ``call(number)`` in ``count`` threads that begin at one moment; return what they return."""
        barrier = threading.Barrier(count)

        def begin(number: int) -> Any:
            barrier.wait(JOIN)
            return call(number)

        workers = [self(begin, number) for number in range(count)]
        return [worker.result() for worker in workers]

    def finish(self) -> None:
        for worker in self._workers:
            worker.join()
        for worker in self._workers:
            if not worker.asked:
                worker.result()


class Gate:
    """Be an SQL function that stops the statement that calls it, inside the database, until it is opened.

    It gives its last argument back (1 without any). Only the first call stops: a statement that is run again passes.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.reached.set()
        assert self._opened.wait(JOIN), "nobody opened the gate"
        return args[-1] if args else 1

    def open(self) -> None:
        self._opened.set()

    def wait_until_reached(self) -> None:
        assert self.reached.wait(JOIN), "nobody came to the gate"


def url_of(target: Any) -> str:
    """Write a test's target as a URL, which can be handed to another process."""
    return target if isinstance(target, str) else f"sqlite:///{target}"


def wait_until(condition: Callable[[], bool], what: str = "the condition", within: float = JOIN) -> None:
    """Wait for what another thread or process is about to bring about; fail after so many seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.0005)


def hold_writes(db: safedb.Database, tx: safedb.Transaction) -> None:
    """Let nobody else write to ``t`` before this block ends: on SQLite that is so, on PostgreSQL a lock does it."""
    if db.dialect == "postgresql":
        tx.execute("LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE")


def waiting_writers(db: safedb.Database, tx: safedb.Transaction) -> int:
    """Count the writers that wait: for the turn or a connection, and on PostgreSQL for the lock of `hold_writes`."""
    waiting = db.stats().queue_depth
    if db.dialect == "postgresql":
        waiting += tx.execute("SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted").scalar()
    return waiting


def wait_for_queue(db: safedb.Database, tx: safedb.Transaction, length: int) -> None:
    """Wait until ``length`` writers stand behind the open block ``tx``."""
    wait_until(lambda: waiting_writers(db, tx) == length, f"{length} to wait")


class Line:
    """Queue writes behind an open block, one after the other; on SQLite that is the order in which they will run."""

    def __init__(self, db: safedb.Database, crew: Crew, tx: safedb.Transaction | None = None) -> None:
        self._db = db
        self._crew = crew
        self._tx = tx
        self.workers: list[Worker] = []

    def add(self, call: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> Worker:
        """Start ``call`` in a thread, and wait until it stands in the queue."""
        depth = self._db.stats().queue_depth
        worker = self._crew(call, *args, name=name, **kwargs)
        self.workers.append(worker)
        if self._tx is not None and self._db.dialect == "postgresql":
            wait_until(self._all_wait, "the queue to grow")  # what has nothing to do with ``t`` is let through
        else:
            wait_until(lambda: self._db.stats().queue_depth > depth or not worker.running, "the queue to grow")
            assert worker.running, f"it did not queue: {worker.error()!r}"
        return worker

    def _all_wait(self) -> bool:
        assert self._tx is not None
        return waiting_writers(self._db, self._tx) >= sum(worker.running for worker in self.workers)


@contextmanager
def line_behind_a_block(db: safedb.Database, crew: Crew) -> Iterator[Line]:
    """Hold the turn (on PostgreSQL: the table ``t``) while writers queue up; leaving lets them go, and waits."""
    with db.transaction() as tx:
        hold_writes(db, tx)
        line = Line(db, crew, tx)
        yield line
    for worker in line.workers:
        worker.join()


def sizes(db: safedb.Database) -> dict[int, int]:
    """Give the group sizes counted so far."""
    return db.stats().group_sizes


@contextmanager
def process_group(
    order: list[str], *, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> Iterator[Group]:
    """Run a command in a process group of its own, as a terminal does; the group is gone at the end, come what may."""
    with subprocess.Popen(
        order, stdin=stdin, stdout=stdout, stderr=stderr, text=True, start_new_session=True, env=unmeasured()
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def unmeasured() -> dict[str, str]:
    """Give this process's environment without coverage's part in it: measuring imports modules of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


class Interrupted(BaseException):
    """Be the exception that is planted."""


def interrupted_at(moment: int, call: Callable[[], Any], *, within: Container[CodeType] | None = None) -> bool:
    """Call something, and raise at one of its lines; tell whether it had so many.

    ``within``: count only the lines of these functions. (Not at one of its bytecodes: Python 3.12 tells of these only
    in frames that began before.)
    """
    left = moment

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if within is not None and frame.f_code not in within:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False
