"""The one connection that writes: begin, commit, roll back, and the watch over what runs on it.

Whoever has the turn (`turns.py`) calls these methods; nobody else does. The order is always: turn, side files, BEGIN.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.retry import INTERRUPT, Phase, classify, code_of, is_busy, is_unknown_commit, name_of, run_again
from safedb.sqlite import pragmas
from safedb.sqlite.connections import CollationFailed
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.presence import Presence
from safedb.sqlite.sidelock import SideLock
from safedb.stats import Counters, Hooks, Retried, logger

Values = Sequence[Any]
Outcome = tuple[list[tuple[Any, ...]], Any, int]  # rows, the cursor's description or None, rowcount

IDLE = "idle"  # nothing runs on the connection
RUNNING = "running"  # a statement may be under way: it can be interrupted
USER = "user code"  # the transaction is open, and its thread is in a function of the user's
COMMITTING = "committing"  # COMMIT is under way: nobody may disturb it

STUBBORN = 0.1  # seconds past its deadline after which a statement that does not end, interrupted or not, is told of
UNSTOPPABLE = "a statement that SQLite cannot interrupt (an SQL function in Python, DROP TABLE), or its COMMIT"

_WITH = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*WITH\b", re.IGNORECASE | re.DOTALL)
MOMENT = 0.1  # seconds that closing waits for another process
TICK = 0.0001  # seconds between two tries for a lock that another program leaves for microseconds only
NO_ROWS: list[tuple[Any, ...]] = []
# What running a statement may raise: the driver's errors, Python's for values that it cannot bind, and what a collation
# of the user's raised. Nothing else: an exception that a signal handler throws into the thread (a task queue's time
# limit, say) is no verdict of the database's, and may come when the statement has been committed.
DRIVER_ERRORS = (
    sqlite3.Error,
    sqlite3.Warning,
    CollationFailed,
    ValueError,
    TypeError,
    OverflowError,
    BufferError,
    MemoryError,
)


class Watch:
    """Tell the keeper what runs, and until when it may; let it interrupt that and nothing else.

    The phase changes under ``guard``, and an interrupt is sent under it: so it never reaches a COMMIT, nor a statement
    of a later transaction. (A lone autocommitted statement sets only ``until``: it can be run again.)
    """

    __slots__ = ("guard", "phase", "told", "until")

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.phase = IDLE
        self.until = math.inf
        self.told = math.inf  # the deadline that was told to be overrun

    def enter(self, phase: str, until: float = math.inf) -> None:
        """Go over to another phase, overdue at ``until`` (monotonic seconds)."""
        with self.guard:
            self.phase = phase
            self.until = until


class Writer:
    """Own the writer's connection, and what must be held while it writes.

    ``connect`` opens a connection with every pragma in force. ``side`` is the lock between processes (None in memory).
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        name: str,
        side: SideLock | None,
        presence: Presence | None = None,
        counters: Counters,
        hooks: Hooks,
    ) -> None:
        self._connect = connect
        self.side = side
        self._counters = counters
        self._hooks = hooks
        self.name = name
        self.watch = Watch()
        self.presence = presence
        self.deadline: float | None = None  # of who has the turn: a connection that it opens may wait so long
        self.connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Writer {self.name} {self.watch.phase}>"

    # -- the connection ---------------------------------------------------------------------------------------------

    def cursor(self) -> sqlite3.Cursor:
        """Give the one cursor; open the connection where there is none: at first, after a fork or a broken disk."""
        cursor = self._cursor
        if cursor is None:
            self.connection = self._connect()
            cursor = self._cursor = self.connection.cursor()
            if self.presence is not None:
                self.presence.opened()
        return cursor

    def adopt(self, connection: sqlite3.Connection) -> None:
        """Use a connection that is there already."""
        self.connection = connection
        self._cursor = connection.cursor()
        if self.presence is not None:
            self.presence.opened()

    def disown(self) -> object:
        """Let go of the connection without closing it: it is another process's. Never close what is returned."""
        inherited = self.connection, self._cursor
        self.connection = self._cursor = None
        return inherited

    @property
    def in_transaction(self) -> bool:
        """Ask SQLite whether a transaction is open: after an error only it knows."""
        return self.connection is not None and self.connection.in_transaction

    @property
    def changes(self) -> int:
        """Count the rows that were ever changed over this connection, but for what failed."""
        return self.connection.total_changes if self.connection is not None else 0

    def close(self) -> None:
        """Close the connection; the next use opens another. Idempotent."""
        connection, self.connection, self._cursor = self.connection, None, None
        if connection is not None:
            if self.presence is not None:
                self.presence.closing()
            connection.close()

    def interrupt(self) -> None:
        """End the statement under way from another thread; for the keeper, under the watch's guard."""
        connection = self.connection
        if connection is not None:
            connection.interrupt()

    # -- the lock between processes ---------------------------------------------------------------------------------

    def lock(self, deadline: float) -> None:
        """Take the side files' lock, or raise `LockTimeout` at the deadline; refuse to write to a file that is gone."""
        self.deadline = deadline
        side = self.side
        if side is not None and not side.try_acquire():
            self._wait_for(side, deadline)
        # Here and not before: another process that opens the file, and makes what was taken away anew, has the lock.
        presence = self.presence
        if presence is None:
            return
        if presence.is_lost():
            self.unlock()
            raise errors.OperationalError(str(presence.gone))
        if presence.looked:
            presence.looked = False
            if side is not None and side.is_gone():
                logger.warning("safedb: the side files of %s were removed; they are made anew", self.name)
                side.close()
                self.lock(deadline)

    def _wait_for(self, side: SideLock, deadline: float) -> None:
        started = time.monotonic()
        try:
            acquired = side.acquire(deadline)
        except BaseException:
            side.release()
            raise
        waited = time.monotonic() - started
        self._counters.lock_waits.add(waited)
        if not acquired:
            pid = side.holder()
            raise errors.LockTimeout(
                f"waited {waited:.3f} s for another process{f' (pid {pid})' if pid else ''} that writes to "
                f"{self.name}; see what it does, make its transactions shorter, or raise the timeout"
            )

    def lock_for_a_moment(self) -> None:
        """Take the side files' lock if it can be had at once or nearly so, to close the connection.

        Who has it has the file open, so that closing ours neither cuts nor removes the WAL; and where ours is the last
        connection after all, SQLite sees to that under a lock of its own (H4).
        """
        if self.side is not None and not self.side.try_acquire():
            self.side.acquire(time.monotonic() + MOMENT)

    def check_process(self) -> None:
        """Raise in a child that was forked without Python's hooks: it has connections, and none of their locks."""
        if os.getpid() != self._pid:
            raise errors.InterfaceError(
                f"{self.name} was open when this process was forked by something that runs none of Python's hooks, and "
                "SQLite's locks do not survive that: open it after the fork (uWSGI: lazy-apps)"
            )

    def unlock(self) -> None:
        """Let the next process write. Idempotent."""
        if self.side is not None:
            self.side.release()

    # -- transactions -----------------------------------------------------------------------------------------------

    def begin(self, deadline: float, policy: ResolvedRetryPolicy) -> None:
        """Take the lock between processes and open a transaction that may write, or raise with nothing held."""
        self.lock(deadline)
        try:
            try:
                self.cursor().execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if not self.may_begin_again(error):
                    raise classify(error, doing=f"BEGIN IMMEDIATE on {self.name}", phase=Phase.BEGIN) from error
                self.wait_for_foreigners(lambda: self.cursor().execute("BEGIN IMMEDIATE"), deadline, policy)
        except BaseException:
            self.rollback()
            self.unlock()
            raise

    def may_begin_again(self, error: BaseException) -> bool:
        """Tell whether nothing has been done yet: another's lock was in the way, or an interrupt meant for another."""
        return is_busy(error) or code_of(error) == INTERRUPT

    def wait_for_foreigners(self, attempt: Callable[[], Any], deadline: float, policy: ResolvedRetryPolicy) -> Any:
        """Try again on the policy's schedule while a program that does not know the side files holds SQLite's lock.

        Each of the schedule's tries is a slice of many (`_knock`).
        """
        started = time.monotonic()

        def note(number: int, _pause: float) -> None:
            self._counters.retried("busy")
            self._hooks.emit(Retried(self.name, "busy", number, time.monotonic() - started))

        try:
            return run_again(
                lambda: self._knock(attempt, deadline),
                policy=policy,
                deadline=deadline,
                may_retry=self.may_begin_again,
                on_retry=note,
            )
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
            raise self.held_by_foreigners(error, time.monotonic() - started) from error

    def _knock(self, attempt: Callable[[], Any], deadline: float) -> Any:
        """Try every tenth of a millisecond for a slice, where SQLite would in growing steps of 1 to 15 ms (H17).

        A program that writes back to back has the lock all the time but for microseconds; who looks seldom finds it
        taken for minutes. Nobody else of safedb's does so meanwhile: the turn between processes is held.
        """
        end = min(deadline, time.monotonic() + pragmas.BUSY_SLICE)
        connection = self.connection
        self._be_patient(connection, 0.0)
        try:
            while True:
                try:
                    return attempt()
                except sqlite3.Error as error:
                    if not is_busy(error) or time.monotonic() >= end:
                        raise
                time.sleep(TICK)
        finally:
            self._be_patient(connection, pragmas.BUSY_SLICE)

    def _be_patient(self, connection: sqlite3.Connection | None, seconds: float) -> None:
        """Let SQLite itself wait for so long; what raises here must not hide what the statement before it has done."""
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def held_by_foreigners(self, error: BaseException, waited: float) -> errors.LockTimeout:
        """Make the error for a wait in vain for a program that does not know the side files."""
        return errors.LockTimeout(
            f"waited {waited:.3f} s for the write lock of {self.name}, which a program that does not use safedb holds "
            "(the sqlite3 shell, a backup tool, a plain connection); end its transaction, or raise the timeout",
            sqlite_errorname=name_of(error),
        )

    def run(self, sql: str, values: Values) -> Outcome:
        """Run one statement to its end; the driver's errors come through as they are."""
        cursor = (self._cursor or self.cursor()).execute(sql, values)
        description = cursor.description
        if description is None:
            count = cursor.rowcount
            if count < 0 and _WITH.match(sql):  # the driver counts only for what begins with INSERT, UPDATE, …
                count = cursor.execute("SELECT changes()").fetchone()[0]
            return NO_ROWS, None, count
        rows = cursor.fetchall()
        return rows, description, len(rows)  # not rowcount: pysqlite3's is the statement's before this one

    def run_many(self, sql: str, rows: Sequence[Values]) -> Outcome:
        """Run one statement once for each of ``rows``; the count is their sum."""
        if _WITH.match(sql):  # which the driver does not take for a statement that writes
            return NO_ROWS, None, sum(max(self.run(sql, row)[2], 0) for row in rows)
        cursor = self.cursor().executemany(sql, rows)
        return NO_ROWS, None, max(cursor.rowcount, 0)

    def commit(self) -> None:
        """Commit, and let go of the lock between processes once COMMIT has succeeded; errors come through."""
        self.watch.enter(COMMITTING)
        started = time.perf_counter()
        self.cursor().execute("COMMIT")
        self._counters.commit_times.add(time.perf_counter() - started)
        self.release()

    def doubt(self) -> errors.CommitUnknownError | None:
        """Give the error for what has just been committed, if its file was taken away: nobody is told it is kept."""
        presence = self.presence
        if presence is None or not presence.is_lost():
            return None
        return errors.CommitUnknownError(str(presence.gone))

    def release(self) -> None:
        """End the watch and let the next process write."""
        self.watch.enter(IDLE)
        self.unlock()

    def rollback(self) -> None:
        """Roll back what is open. Never raises: a rollback that fails costs the connection, which undoes it as well.

        Outside a transaction it ends what an interrupt has left half read: until then it would hold SQLite's locks.
        """
        try:
            if self.in_transaction:
                self.cursor().execute("ROLLBACK")
            elif self._cursor is not None and self.connection is not None:
                used, self._cursor = self._cursor, self.connection.cursor()
                used.close()
        except sqlite3.Error:
            self.discard()

    def discard(self) -> None:
        """Give up a connection that can no longer be trusted; the next use opens another."""
        try:
            self.close()
        except sqlite3.Error:
            self.connection = self._cursor = None

    def failed_commit(self, error: Exception) -> errors.Error:
        """Clear up after a COMMIT that raised: roll back; after a failed fsync give up the connection (H14)."""
        ours = classify(error, doing=f"COMMIT on {self.name}", phase=Phase.COMMIT)
        self.rollback()
        if is_unknown_commit(error):
            self._replace()
        self.release()
        return ours

    def _replace(self) -> None:
        """Give up the connection for another, which is opened first: nobody may be the last to close the file now.

        Whoever opened it next would recover the WAL, and find there the transaction whose flush has failed. The kernel
        counts its pages as written and never writes them again, so a power failure would take it, and all that was
        committed behind it. As it is, the next transaction overwrites it. Where none can be opened the old one stays.
        """
        try:
            connection = self._connect()
        except (errors.Error, sqlite3.Error):
            return
        self.discard()
        self.adopt(connection)
