"""Snapshots: a reader checked out for a while, inside one read transaction.

``BEGIN DEFERRED`` alone pins nothing (https://sqlite.org/lang_transaction.html): the state is fixed by the first read,
so `Snapshots.open` reads once before it hands over. A snapshot keeps the WAL from being reset, so it is known by its
holder's name and age, and one with a ``max_age`` is ended by the keeper: under the snapshot's guard, so that the
keeper never uses a connection that its thread is using::

    holder                                  keeper
    guard: statement runs                   guard is taken → interrupt; look again at the next tick
    (in user code)                          guard: cursors closed, ROLLBACK, ended = True
    next call: guard: ended → error
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from safedb import errors
from safedb.retry import INTERRUPT, code_of
from safedb.sql import Statement
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.readers import Reader, WritesAfterAll, read_error
from safedb.sqlite.writer import DRIVER_ERRORS, Outcome, Values

Row = tuple[Any, ...]


class SnapshotSession:
    """Read one committed state on one connection; for the thread that opened it."""

    def __init__(self, reader: Reader, *, name: str, max_age: float | None) -> None:
        self._reader = reader
        self._name = name
        self._guard = threading.Lock()
        self._cursors: set[sqlite3.Cursor] = set()
        self._failed = False
        self.began = monotonic()
        self.expires = None if max_age is None else self.began + max_age
        self.holder = threading.current_thread().name
        self.ended: str | None = None  # why no more is read from it

    def run(self, statement: Statement, values: Values, timeout: float) -> Outcome:
        """Run one read to its last row."""
        with self._guard:
            self._check()
            reader = self._reader
            reader.until = monotonic() + timeout
            try:
                cursor = reader.execute(statement.sql, values)
                rows = cursor.fetchall()
                return rows, cursor.description, len(rows)
            except DRIVER_ERRORS as error:
                raise self._classified(error, statement.sql) from error
            finally:
                reader.until = _NEVER

    def iterate(
        self, statement: Statement, values: Values, batch: int, timeout: float
    ) -> Iterator[tuple[list[Row], Any]]:
        """Read in batches, ``timeout`` seconds for each; give each batch with the cursor's description."""
        cursor = self._reader.connection.cursor()
        try:
            description: Any = None
            while True:
                with self._guard:
                    self._check()
                    self._reader.until = monotonic() + timeout
                    try:
                        if description is None:
                            self._cursors.add(cursor)
                            description = cursor.execute(statement.sql, values).description
                        rows = cursor.fetchmany(batch)
                    except DRIVER_ERRORS as error:
                        raise self._classified(error, statement.sql) from error
                    finally:
                        self._reader.until = _NEVER
                if not rows:
                    return
                yield rows, description
        finally:
            with self._guard:
                if cursor in self._cursors:  # else the snapshot's end has closed it, and the connection may be gone
                    self._cursors.discard(cursor)
                    cursor.close()

    def backup(self, copy: Callable[[sqlite3.Connection], None]) -> None:
        """Let ``copy`` read the whole state page by page."""
        with self._guard:
            self._check()
            copy(self._reader.connection)

    def close(self) -> Reader:
        """End the read transaction and give the reader up."""
        with self._guard:
            self._end("it has ended")
        return self._reader

    def expire(self, now: float) -> None:
        """End the snapshot if it is past its age; for the keeper."""
        if self.expires is None or now < self.expires or self.ended:
            return
        if self._guard.acquire(blocking=False):
            try:
                self._end("it was older than its max_age, and was ended so that the WAL can shrink; begin another")
            finally:
                self._guard.release()
        else:
            self._reader.connection.interrupt()

    def _check(self) -> None:
        if self.ended:
            raise errors.OperationalError(f"this snapshot of {self._name} cannot be used: {self.ended}")
        if self._failed:
            raise errors.TransactionAborted(
                f"an error has ended this snapshot of {self._name}: leave the block and begin another"
            )

    def _end(self, why: str) -> None:
        if self.ended:
            return
        self.ended = why
        for cursor in tuple(self._cursors):  # a half-read cursor would keep the state pinned after ROLLBACK
            cursor.close()
        self._cursors.clear()
        if self._reader.connection.in_transaction:
            self._reader.connection.execute("ROLLBACK")

    def _classified(self, error: BaseException, sql: str) -> BaseException:
        ours = read_error(error, sql)
        if isinstance(ours, WritesAfterAll):
            return errors.ProgrammingError(
                "a snapshot is read-only: write through db.execute, or read and write in db.transaction()",
                sqlstate="25006",
            )
        self._failed = True
        return ours


class Snapshots:
    """Know the open snapshots of one database."""

    def __init__(self) -> None:
        self._open: set[SnapshotSession] = set()

    def open(self, reader: Reader, *, name: str, max_age: float | None) -> SnapshotSession:
        """Fix a state on ``reader``, and know it until `close`."""
        reader.until = _NEVER  # what stands there is the deadline of whoever had it before
        try:
            try:
                _pin(reader.connection)
            except sqlite3.Error as error:
                if code_of(error) != INTERRUPT:
                    raise
                _pin(reader.connection)  # it was meant for whoever had the reader before
        except DRIVER_ERRORS as error:
            raise read_error(error, f"reading {name}") from error
        session = SnapshotSession(reader, name=name, max_age=max_age)
        self._open.add(session)
        return session

    def close(self, session: SnapshotSession) -> Reader:
        """End a snapshot and get its reader back."""
        try:
            return session.close()
        finally:
            self._open.discard(session)

    def oldest(self) -> SnapshotSession | None:
        """Find the oldest that still pins its state."""
        pinned = [session for session in tuple(self._open) if not session.ended]
        return min(pinned, key=lambda session: session.began, default=None)

    def expire(self, now: float) -> bool:
        """End those past their age; tell whether any is open that has one."""
        limited = [session for session in tuple(self._open) if session.expires is not None and not session.ended]
        for session in limited:
            session.expire(now)
        return bool(limited)

    def disown(self, why: str) -> list[SnapshotSession]:
        """End all without touching their connections, which are another process's; for a forked child."""
        inherited = list(self._open)
        self._open.clear()
        for session in inherited:
            session.ended = why
        return inherited


def _pin(connection: sqlite3.Connection) -> None:
    """Begin a read transaction and fix its state; leave none open if that fails."""
    try:
        connection.execute("BEGIN DEFERRED")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


_NEVER = float("inf")
