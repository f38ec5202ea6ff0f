"""`sqlite3` by hand, in the two forms that are advised: a connection for each thread, or one with a lock around it.

Transactions are explicit, and write transactions take the lock when they begin: one that reads first and then writes
would otherwise fail at once where another has written meanwhile (https://sqlite.org/lang_transaction.html), however
long the busy timeout. Statements are kept by `sqlite3` itself, 128 for each connection.

The module is the one that safedb has chosen, so both have the same SQLite. The other peers work through the standard
library's `sqlite3`, and have the same SQLite too where safedb has chosen that; where it has chosen `pysqlite3`, because
that is installed and newer, ``SAFEDB_SQLITE=sqlite3`` makes the comparison fair. Only apsw brings a SQLite of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.peer import (
    COUNTERS,
    INSERT,
    PAYLOAD,
    POINT,
    READ_COUNTER,
    SPAN,
    WRITE_COUNTER,
    Lane,
    Peer,
    Place,
)
from safedb.sqlite.driver import Connection, connect


def _open(place: Place, *, shared: bool = False) -> Connection:
    connection = connect(str(place.path), timeout=place.timeout, isolation_level=None, check_same_thread=not shared)
    for name, value in place.pragmas.items():
        connection.execute(f"PRAGMA {name} = {value}")
    place.check(lambda pragma: connection.execute(pragma).fetchone()[0])
    return connection


class _Own(Lane):
    """Have a connection; nobody else uses it meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._execute = connection.execute

    def write(self, thread: int, number: int) -> None:
        execute = self._execute
        execute("BEGIN IMMEDIATE")
        try:
            execute(INSERT, (thread, number, PAYLOAD))
            execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def function(self, thread: int, number: int) -> None:
        execute, key = self._execute, number % COUNTERS
        execute("BEGIN IMMEDIATE")
        try:
            found = execute(READ_COUNTER, (key,)).fetchone()[0]
            execute(WRITE_COUNTER, (found + 1, key))
            execute(INSERT, (thread, number, PAYLOAD))
            execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def block(self, thread: int, number: int) -> None:
        self.function(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._execute(POINT, (key,)).fetchone()
        return row

    def range(self, key: int) -> Sequence[Any]:
        return self._execute(SPAN, (key,)).fetchall()

    def rest(self) -> None:
        self._connection.close()


class PerThread(Peer):
    """Give each thread a connection; they wait for each other by SQLite's busy timeout."""

    name = "sqlite3, a connection per thread"
    package = "sqlite3"
    source = "https://docs.python.org/3/library/sqlite3.html#sqlite3.connect"
    remark = "waits by trying again after up to 0.1 s, so who waits long may be overtaken for ever"

    def __init__(self, place: Place) -> None:
        self._place = place

    def lane(self) -> Lane:
        return _Own(_open(self._place))


class _Locked(_Own):
    """Take the lock around everything: reads too, they would otherwise see the transaction of another thread."""

    def __init__(self, connection: Connection, lock: threading.Lock) -> None:
        super().__init__(connection)
        self._lock = lock

    def write(self, thread: int, number: int) -> None:
        with self._lock:
            super().write(thread, number)

    def function(self, thread: int, number: int) -> None:
        with self._lock:
            super().function(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        with self._lock:
            return super().point(key)

    def range(self, key: int) -> Sequence[Any]:
        with self._lock:
            return super().range(key)

    def rest(self) -> None:
        """Leave the connection to the others."""


class OneLock(Peer):
    """Share one connection, with a lock around each transaction and each read."""

    name = "sqlite3, one lock"
    package = "sqlite3"
    source = "https://docs.python.org/3/library/sqlite3.html#sqlite3.connect"
    remark = "reads wait for writes; the lock has no limit of time and is not fair"

    def __init__(self, place: Place) -> None:
        self._connection = _open(place, shared=True)
        self._lock = threading.Lock()

    def lane(self) -> Lane:
        return _Locked(self._connection, self._lock)

    def close(self) -> None:
        self._connection.close()
