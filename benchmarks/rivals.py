"""The ways to write that are compared: by hand in two forms, and safedb in three. Each counts its rows afterwards.

All write the same row in a transaction of its own, in WAL mode with foreign keys on. By hand, checkpoints are left to
SQLite, which makes them inside a COMMIT.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

import safedb
from safedb.sqlite.driver import sqlite3

PATIENCE = 60.0  # seconds that a write may wait, on every side: nobody is to lose by giving up
SCHEMA = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, thread INTEGER, number INTEGER, v TEXT)"
INSERT = "INSERT INTO t (thread, number, v) VALUES (?, ?, ?)"
PAYLOAD = "x" * 100

Synchronous = Literal["FULL", "NORMAL"]
Write = Callable[[int, int], object]  # writes row ``number`` of ``thread``; when it returns, the row is acknowledged
How = Literal["execute", "function", "block"]


class Wrong(Exception):
    """Say that the rows in the file are not those that were acknowledged: no figure of this run counts."""


class Rival(ABC):
    """Be one way to write into a database of its own. ``acknowledged`` counts rows by thread."""

    name: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acknowledged: Counter[int] = Counter()

    @abstractmethod
    def writer(self) -> Write:
        """Give what writes a row; called in each thread that will write."""

    def rest(self) -> None:  # noqa: B027  (most have nothing to do)
        """Put away what this thread's `writer` has opened."""

    def close(self) -> None:  # noqa: B027
        """Close everything."""

    def verify(self) -> None:
        """Count the rows of a file that nobody else has written to."""
        verify(self.name, self.path, self.acknowledged)


def verify(name: str, path: Path, acknowledged: Mapping[int, int]) -> None:
    """Count the rows: each that was acknowledged is there once, in a sound file, and no other is."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT thread, count(*), count(DISTINCT number), max(number) FROM t GROUP BY 1")
        rows = {thread: (count, distinct, last + 1) for thread, count, distinct, last in found}
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    expected = {thread: (count,) * 3 for thread, count in acknowledged.items() if count}
    if rows != expected or sound != "ok":
        raise Wrong(f"{name}: {path} holds {rows}, acknowledged were {expected}; integrity: {sound}")


class OneLock(Rival):
    """One connection, and a lock around each transaction."""

    name = "one lock"

    def __init__(self, path: Path, synchronous: Synchronous) -> None:
        super().__init__(path)
        self._connection = open_raw(path, synchronous)
        self._lock = threading.Lock()

    def writer(self) -> Write:
        execute, lock = self._connection.execute, self._lock

        def write(thread: int, number: int) -> None:
            with lock:
                execute("BEGIN IMMEDIATE")
                execute(INSERT, (thread, number, PAYLOAD))
                execute("COMMIT")

        return write

    def close(self) -> None:
        self._connection.close()


class BusyTimeout(Rival):
    """A connection for each thread, which waits for the others by SQLite's own polling."""

    name = "busy timeout"

    def __init__(self, path: Path, synchronous: Synchronous, patience: float = PATIENCE) -> None:
        super().__init__(path)
        self._synchronous: Synchronous = synchronous
        self._patience = patience
        self._own = threading.local()
        open_raw(path, synchronous).close()

    def writer(self) -> Write:
        connection = self._own.connection = open_raw(self.path, self._synchronous, self._patience)
        execute = connection.execute

        def write(thread: int, number: int) -> None:
            execute("BEGIN IMMEDIATE")
            execute(INSERT, (thread, number, PAYLOAD))
            execute("COMMIT")

        return write

    def rest(self) -> None:
        self._own.connection.close()


class Safe(Rival):
    """Write through safedb: single statements, functions for `run_transaction`, or blocks."""

    def __init__(self, path: Path, synchronous: Synchronous, how: How = "execute") -> None:
        super().__init__(path)
        self.name = {"execute": "safedb", "function": "safedb, run_transaction", "block": "safedb, blocks"}[how]
        self._how = how
        self.db = open_safe(path, synchronous)

    def writer(self) -> Write:
        return {"execute": self._execute, "function": self._function, "block": self._block}[self._how]

    def _execute(self, thread: int, number: int) -> object:
        return self.db.execute(INSERT, (thread, number, PAYLOAD))

    def _function(self, thread: int, number: int) -> object:
        return self.db.run_transaction(_insert, thread, number)

    def _block(self, thread: int, number: int) -> None:
        with self.db.transaction() as tx:
            tx.execute(INSERT, (thread, number, PAYLOAD))

    def close(self) -> None:
        self.db.close()


def _insert(tx: safedb.Transaction, thread: int, number: int) -> None:
    tx.execute(INSERT, (thread, number, PAYLOAD))


def open_raw(path: Path, synchronous: Synchronous, patience: float = PATIENCE) -> sqlite3.Connection:
    """Open a connection as a careful program does by hand."""
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(SCHEMA)
    return connection


def open_safe(path: Path, synchronous: Synchronous) -> safedb.Database:
    """Open the same by safedb."""
    return safedb.connect(
        path,
        schema=SCHEMA,
        pragmas=safedb.Pragmas(synchronous=synchronous),
        retry=safedb.RetryPolicy(timeout=PATIENCE),
    )
