"""Worker processes for tests: they write, hold and burn as they are told by pipes, and say what was acknowledged.

    with Hands(path) as hands:
        worker = hands.hire()
        worker.tell("write", workers=[1, 2], seconds=1.0)
        done = worker.answer()

Run as a script this file is such a worker: it reads one order a line, as JSON, and answers each with one line. It ends
when its orders end; a parent that is gone leaves nobody behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import safedb
from safedb.sqlite.driver import connect, sqlite3

PATIENCE = 60.0
"""Seconds after which a worker is given up, and that a write may wait where no test is about deadlines."""
SCHEMA = "CREATE TABLE IF NOT EXISTS t (worker INTEGER, number INTEGER, PRIMARY KEY (worker, number))"
INSERT = "INSERT INTO t (worker, number) VALUES (?, ?)"


def open_safe(path: Path, **options: Any) -> safedb.Database:
    """Open the tests' database, durable at each COMMIT."""
    options.setdefault("retry", safedb.RetryPolicy(timeout=PATIENCE))
    return safedb.connect(path, schema=SCHEMA, **options)


def open_raw(path: Path, timeout: float = PATIENCE) -> sqlite3.Connection:
    """Open it as a program does that knows nothing of safedb."""
    connection = connect(str(path), timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def found(path: Path) -> dict[int, int]:
    """Count each worker's rows in a sound file; those of a worker are numbered from 0 without a gap."""
    with contextlib.closing(open_raw(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT worker, count(*), max(number) FROM t GROUP BY worker").fetchall()
    for worker, count, last in rows:
        assert last == count - 1, f"worker {worker} has {count} rows, up to number {last}"
    return {worker: count for worker, count, _ in rows}


def write(db: safedb.Database, how: str, worker: int, number: int, timeout: float | None = None) -> None:
    """Write one row as a statement, as a function that has read before, or in a block."""
    if how == "execute":
        db.execute(INSERT, (worker, number), timeout=timeout)
    elif how == "function":
        db.run_transaction(_read_and_insert, worker, timeout=timeout)
    else:
        with db.transaction(timeout=timeout) as tx:
            tx.execute(INSERT, (worker, number))


def _read_and_insert(tx: safedb.Transaction, worker: int) -> None:
    count = tx.execute("SELECT count(*) FROM t WHERE worker = ?", (worker,)).scalar()
    tx.execute(INSERT, (worker, count))


# -- the test's side --------------------------------------------------------------------------------------------------


class Hand:
    """Be one worker process, as the test sees it."""

    def __init__(self, path: Path) -> None:
        roots = os.pathsep.join(str(folder) for folder in (Path(safedb.__file__).parents[1], Path(__file__).parent))
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": roots},
        )
        self.pid = self._process.pid
        self._read = b""

    def tell(self, order: str, **details: Any) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"order": order, **details}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer."""
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        end = time.monotonic() + 2 * PATIENCE
        while b"\n" not in self._read:
            ready, _, _ = select.select([number], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"process {self.pid} gives no answer"
            more = os.read(number, 1 << 16)
            assert more, f"process {self.pid} is gone: {self._process.poll()}"
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer

    def ask(self, order: str, **details: Any) -> Any:
        """Give an order and wait for its answer."""
        self.tell(order, **details)
        return self.answer()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the process where it is (SIGSTOP), and let it go on."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            os.waitpid(self.pid, os.WUNTRACED)  # the signal is on its way: wait until all threads stand still
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process where it is (SIGKILL), stopped or not."""
        self._process.kill()
        self._process.communicate()


class Hands:
    """Be the worker processes of one test, on one file; none outlives the test."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hired: list[Hand] = []

    def hire(self, count: int = 1) -> list[Hand]:
        """Start worker processes, and wait until each is there."""
        new = []
        for _ in range(count):
            new.append(Hand(self._path))
            self._hired.append(new[-1])
        for hand in new:
            hand.answer()
        return new

    def __enter__(self) -> Hands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hand in self._hired:
            hand.kill()


# -- the worker's side ------------------------------------------------------------------------------------------------


class Worker:
    """Do what is ordered; each method is an order, and returns its answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()  # ends what runs in the background
        self._background: list[threading.Thread] = []
        self._hammered = 0
        self._opened: safedb.Database | None = None
        self._held = threading.Event()
        self._on = threading.Event()

    @property
    def db(self) -> safedb.Database:
        """Open at the first use: who only hammers never knows of safedb."""
        if self._opened is None:
            self._opened = open_safe(self.path, functions={"hold": self._hold})
        return self._opened

    def _hold(self) -> int:
        self._held.set()
        assert self._on.wait(2 * PATIENCE)
        return 0

    def open(self) -> Any:
        """Open the database, so that the next order finds it open."""
        return {"pid": os.getpid(), "version": self.db.execute("SELECT 1").scalar()}

    def write(
        self,
        *,
        workers: list[int],
        hows: list[str],
        seconds: float = 1e9,
        most: int = 1 << 60,
        timeout: float | None = None,
        firsts: list[int] | None = None,
    ) -> Any:
        """Write back to back, a thread for each of ``workers``, until the time is up or each has ``most`` rows.

        Tell how many rows were acknowledged, by worker; every error; the longest wait of all; what the engine counts.
        """
        acknowledged, errors, waits = dict.fromkeys(workers, 0), [], [0.0]
        db, begin = self.db, threading.Barrier(len(workers))
        offsets = firsts or [0] * len(workers)

        def run(worker: int, how: str, number: int) -> None:
            begin.wait(PATIENCE)
            end = time.monotonic() + seconds
            while acknowledged[worker] < most and not self._stop.is_set():
                started = time.monotonic()
                if started >= end:
                    break
                try:
                    write(db, how, worker, number + acknowledged[worker], timeout)
                    acknowledged[worker] += 1
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}")
                waits.append(time.monotonic() - started)

        threads = [
            threading.Thread(target=run, args=(worker, hows[place % len(hows)], offsets[place]))
            for place, worker in enumerate(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"acknowledged": list(acknowledged.items()), "errors": errors, "longest": max(waits), **self._counts()}

    def _counts(self) -> dict[str, Any]:
        stats = self.db.stats()
        return {
            "retries": stats.retries,
            "sizes": list(stats.group_sizes.items()),
            "lock_waits": [stats.lock_waits.count, stats.lock_waits.max],
        }

    def block(self, *, worker: int) -> Any:
        """Open a block, write in it, say so, and commit when told to go on."""
        with self.db.transaction() as tx:
            tx.execute(INSERT, (worker, 0))
            say({"inside": True})
            hear()
        return {"acknowledged": [[worker, 1]]}

    def group(self, *, worker: int) -> Any:
        """Stop in the middle of a group of three statements, say so, and go on when told.

        The first has run, the second is inside SQLite, the third has been taken aboard and waits.
        """
        db = self.db
        groups = db._engine.groups  # type: ignore[attr-defined]
        groups._patience = groups._time_limit = 2 * PATIENCE  # or the third is put back, or all are broken up
        statements = [INSERT, f"{INSERT.partition('VALUES')[0]} SELECT ? + hold(), ?", INSERT]
        threads = [
            threading.Thread(target=db.execute, args=(sql, (worker, number))) for number, sql in enumerate(statements)
        ]
        with db.transaction():
            for place, thread in enumerate(threads):
                thread.start()
                while db.stats().queue_depth <= place:
                    time.sleep(0.0005)
        assert self._held.wait(PATIENCE)
        say({"inside": True})
        hear()
        self._on.set()
        for thread in threads:
            thread.join()
        return {"acknowledged": [[worker, 3]], "sizes": list(db.stats().group_sizes.items())}

    def hammer(self, *, worker: int) -> Any:
        """Write back to back without safedb, by the driver alone, until told to rest; now and then take 0.2 s."""

        def run() -> None:
            with contextlib.closing(open_raw(self.path)) as connection:
                while not self._stop.is_set():
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(INSERT, (worker, self._hammered))
                    if self._hammered % 20 == 10:
                        time.sleep(0.2)
                    connection.execute("COMMIT")
                    self._hammered += 1

        self._start(run)
        while not self._hammered:
            time.sleep(0.0005)
        return {}

    def burn(self, *, threads: int) -> Any:
        """Compute in threads until told to rest."""

        def run() -> None:
            while not self._stop.is_set():
                sum(range(1000))

        for _ in range(threads):
            self._start(run)
        return {}

    def background(self, **details: Any) -> Any:
        """Write until told to rest, which is answered with what `write` has to tell."""

        def run() -> None:
            self._written = self.write(**details)

        self.db.execute("SELECT 1")
        self._start(run)
        return {}

    _written: Any = None

    def rest(self) -> Any:
        """End what runs in the background."""
        self._stop.set()
        for thread in self._background:
            thread.join()
        self._stop.clear()
        self._background.clear()
        return self._written or {"hammered": self._hammered}

    def _start(self, run: Callable[[], None]) -> None:
        self._background.append(threading.Thread(target=run, daemon=True))
        self._background[-1].start()

    def close(self) -> None:
        """End everything."""
        self.rest()
        if self._opened is not None:
            self._opened.close()


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def hear() -> None:
    """Wait for the next line; without one there is nobody left to work for."""
    if not sys.stdin.readline():
        os._exit(1)


def main() -> None:
    logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
    worker = Worker(Path(sys.argv[1]))
    say({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            say(getattr(worker, order.pop("order"))(**order))
        except Exception as error:
            say({"failed": repr(error)})
    worker.close()


if __name__ == "__main__":
    main()
