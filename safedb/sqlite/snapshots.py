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

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, cast

from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.retry import INTERRUPT, code_of, is_busy, name_of, run_again
from safedb.sql import Statement
from safedb.sqlite.deserted import frames
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.readers import Reader, WritesAfterAll, read_error
from safedb.sqlite.writer import DRIVER_ERRORS, Outcome, Values

Row = tuple[Any, ...]

_DEFAULT = ResolvedRetryPolicy()

AGED = "it was older than its max_age, and was ended so that the WAL can shrink; begin another"


class SnapshotSession:
    """Read one committed state on one connection; for the thread that opened it."""

    left = False  # its block is being left
    _busy = False  # its thread is reading

    def __init__(self, reader: Reader, *, name: str, max_age: float | None) -> None:
        self._reader = reader
        self._name = name
        self._guard = threading.Lock()
        self._cursors: set[sqlite3.Cursor] = set()
        self._failed = False
        self.began = monotonic()
        self.expires = None if max_age is None else self.began + max_age
        self.owner = threading.current_thread()
        self.ident = threading.get_ident()
        self.holder = self.owner.name
        self.ended: str | None = None  # why no more is read from it

    def run(self, statement: Statement, values: Values, timeout: float) -> Outcome:
        """Run one read to its last row."""
        self._refuse_own_read()
        with self._guard:
            self._check()
            self._busy = True
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
                self._busy = False

    def iterate(
        self, statement: Statement, values: Values, batch: int, timeout: float
    ) -> Iterator[tuple[list[Row], Any]]:
        """Read in batches, ``timeout`` seconds for each; give each batch with the cursor's description."""
        cursor = self._reader.connection.cursor()
        try:
            description: Any = None
            while True:
                self._refuse_own_read()
                with self._guard:
                    self._check()
                    self._busy = True
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
                        self._busy = False
                if not rows:
                    return
                yield rows, description
        finally:
            with self._guard:
                if cursor in self._cursors:  # else the snapshot's end has closed it, and the connection may be gone
                    self._cursors.discard(cursor)
                    cursor.close()

    def _refuse_own_read(self) -> None:
        if self._busy:
            raise errors.ReentrancyError(
                f"a read of this snapshot of {self._name} is under way: an SQL function or a signal handler that runs "
                "inside it cannot begin another"
            )

    def backup(self, copy: Callable[[sqlite3.Connection], None]) -> None:
        """Let ``copy`` read the whole state page by page."""
        with self._guard:
            self._check()
            copy(self._reader.connection)

    def is_reading(self) -> bool:
        """Tell whether it may be inside a call to SQLite."""
        return self._guard.locked()

    @property
    def wanted(self) -> bool:
        """Tell whether its block is not left, and its thread lives; another may have its number by now."""
        return not self.left and self.owner.is_alive() and self.ident in frames()

    def close(self) -> Reader | None:
        """End the read transaction and give the reader up, once."""
        with self._guard:
            self._end("it has ended")
            reader, self._reader = self._reader, cast("Reader", None)  # nobody uses it once it has ended
        return reader

    def expire(self, now: float) -> None:
        """End the snapshot if it is past its age; for the keeper."""
        if self.expires is None or now < self.expires or self.ended:
            return
        reader = self._reader
        if self._guard.acquire(blocking=False):
            try:
                self._end(AGED)
            finally:
                self._guard.release()
        elif reader is not None:
            reader.connection.interrupt()

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
        try:
            for cursor in tuple(self._cursors):  # a half-read cursor would keep the state pinned after ROLLBACK
                cursor.close()
            self._cursors.clear()
            self._reader.renew()
            if self._reader.connection.in_transaction:
                self._reader.connection.execute("ROLLBACK")
        finally:
            self.ended = why  # not before: others, who look without the guard, take it that nothing is pinned any more

    def _classified(self, error: BaseException, sql: str) -> BaseException:
        ours = read_error(error, sql)
        if isinstance(ours, WritesAfterAll):
            return errors.ProgrammingError(
                "a snapshot is read-only: write through db.execute, or read and write in db.transaction()",
                sqlstate="25006",
            )
        if self.expires is not None and code_of(error) == INTERRUPT and monotonic() >= self.expires:
            self._end(AGED)
            return errors.OperationalError(f"this snapshot of {self._name} cannot be used: {AGED}")
        self._failed = True
        return ours


class Snapshots:
    """Know the open snapshots of one database."""

    def __init__(self) -> None:
        self._open: dict[int, weakref.ref[SnapshotSession]] = {}  # by id; weakly, so that an interrupt leaves none open

    def open(
        self,
        reader: Reader,
        *,
        name: str,
        max_age: float | None,
        deadline: float = 0.0,
        policy: ResolvedRetryPolicy = _DEFAULT,
    ) -> SnapshotSession:
        """Fix a state on ``reader``, and know it until `close`. Another's lock is waited for until the deadline."""
        reader.until = _NEVER  # what stands there is the deadline of whoever had it before
        pin = functools.partial(_pin, reader.connection)
        began = monotonic()
        try:
            try:
                pin()
            except sqlite3.Error as error:
                if code_of(error) == INTERRUPT:
                    pin()  # it was meant for whoever had the reader before
                elif is_busy(error):  # a recovery (H13), or somebody who has the file to himself
                    run_again(pin, policy=policy, deadline=deadline, may_retry=is_busy, on_retry=lambda *_: None)
                else:
                    raise
        except DRIVER_ERRORS as error:
            if not is_busy(error):
                raise read_error(error, f"reading {name}") from error
            raise errors.LockTimeout(
                f"waited {monotonic() - began:.3f} s to read {name}, which another program has to itself (it recovers "
                "it after a crash, closes it as the last one, or has locking_mode=EXCLUSIVE); see what it does, or "
                "raise the timeout",
                sqlite_errorname=name_of(error),
            ) from error
        session = SnapshotSession(reader, name=name, max_age=max_age)
        self._know(session)
        return session

    def _know(self, session: SnapshotSession) -> None:
        key, sessions = id(session), self._open
        sessions[key] = weakref.ref(session, lambda _: sessions.pop(key, None))

    def close(self, session: SnapshotSession) -> Reader | None:
        """End a snapshot and get its reader back, if nobody has it yet."""
        try:
            return session.close()
        finally:
            self._open.pop(id(session), None)

    def all(self) -> list[SnapshotSession]:
        """List those that are open."""
        # One C call, which no other thread can come between.
        return [session for known in list(self._open.values()) if (session := known()) is not None]

    def are_reading(self) -> bool:
        """Tell whether one of them may be inside a call to SQLite."""
        return any(session.is_reading() for session in self.all())

    def oldest(self) -> SnapshotSession | None:
        """Find the oldest that still pins its state."""
        pinned = [session for session in self.all() if not session.ended]
        return min(pinned, key=lambda session: session.began, default=None)

    def expire(self, now: float) -> bool:
        """End those past their age; tell whether any is open that has one."""
        limited = [session for session in self.all() if session.expires is not None and not session.ended]
        for session in limited:
            session.expire(now)
        return bool(limited)

    def disown(self, why: str) -> list[SnapshotSession]:
        """End all without touching their connections, which are another process's; for a forked child."""
        inherited = self.all()
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
