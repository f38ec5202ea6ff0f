"""The readers: a bounded pool of read-only connections, each used by one thread at a time.

A connection shared by threads returns wrong rows on Python 3.12 and 3.13 (H24), so a reader is checked out, used to
the last row, and given back: nothing stays open after a call. Readers are taken last in, first out, so that the warm
ones are used and the cold ones can be closed.

The free readers are a list, whose ``pop`` and ``append`` are atomic: the common case takes no lock. The rare one, all
readers in use, is guarded so that no reader lies idle while somebody waits::

    giver                                   waiter
    idle.append(reader)                     under the mutex: waiters.append(me)
    waiters? → under the mutex: match       under the mutex: match

Whichever comes second sees what the first has done, and `_match` gives idle readers to waiters in their order. To hand
every reader to a sleeping thread would cost a switch of threads for every read, ten times what a point read takes. So
one is handed over every `PATIENCE` seconds; in between, threads that are running anyway take what lies idle, and the
first waiter looks for itself now and then: nobody may come any more.

A reader lost to an exception between two bytecodes is not counted for long: the pool knows its readers weakly.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic

from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.retry import INTERRUPT, READONLY, classify, code_of, is_busy, run_again
from safedb.sql import shorten
from safedb.sqlite.deserted import is_on_stack
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.turns import raise_signal
from safedb.sqlite.writer import DRIVER_ERRORS, STUBBORN, Outcome, Values
from safedb.stats import PoolStats

PATIENCE = 0.001  # seconds: so often a reader is handed to a waiter; in between, running threads are faster


class WritesAfterAll(Exception):
    """Say that a statement which looked like a read turned out to write: it belongs to the writer."""


class Reader:
    """Be one read-only connection with its one cursor; overdue at ``until`` (monotonic seconds) while it is in use."""

    __slots__ = ("__weakref__", "connection", "cursor", "execute", "told", "until")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.cursor = connection.cursor()
        self.execute = self.cursor.execute
        self.until = 0.0
        self.told = 0.0  # the deadline that was told to be overrun

    def renew(self) -> None:
        """Take another cursor: an interrupt may have left the old one half read, and it would pin its state (H25)."""
        used, self.cursor = self.cursor, self.connection.cursor()
        self.execute = self.cursor.execute
        used.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.connection.close()

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # a statement is being interrupted on it: it is closed with that
            self.connection.close()


class _Waiter:
    __slots__ = ("reader", "reopen", "signal", "waiting")

    def __init__(self) -> None:
        self.waiting = True  # in the queue
        self.reopen = False  # look again: readers may be opened
        self.reader: Reader | None = None
        self.signal = threading.Lock()
        self.signal.acquire()


class Readers:
    """Lend readers: ``most`` at the most, opened by ``connect`` at first need."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, name: str, most: int, least: int = 0) -> None:
        self._connect = connect
        self._name = name
        self._most = most
        self._least = least
        self._mutex = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self._all: dict[int, weakref.ref[Reader]] = {}  # by id
        self.opening: dict[int, float] = {}  # the deadlines of threads that open a reader, by ident
        self._waited = 0
        self._lent = 0.0  # when a reader was handed to a waiter last
        self._closed = False
        self._paused = False  # nobody is lent a reader, and those that come back are closed
        self._attention = False  # whether a reader that comes back must not simply lie idle: one look on the fast path
        self._home = threading.Condition(self._mutex)
        self.idle: list[Reader] = []

    def __repr__(self) -> str:
        return f"<Readers {self._name} {len(self.idle)} of {len(self._all)} idle>"

    # -- lending ----------------------------------------------------------------------------------------------------

    def check_out(self, deadline: float) -> Reader:
        """Lend a reader, at once or by the deadline, else raise `PoolTimeout`. It must come back by `give_back`."""
        try:
            reader = self.idle.pop()
        except IndexError:
            reader = self._open_or_wait(deadline)
        reader.until = deadline
        return reader

    def give_back(self, reader: Reader) -> None:
        """Take a reader back, with nothing open on it."""
        if id(reader) not in self._all:  # in a forked child: it is the parent's
            return
        if reader.connection.in_transaction:  # an interrupt has kept a snapshot from ending it: it would read the past
            self._close(reader)
            return
        self.idle.append(reader)
        if self._attention:
            self._match()

    def _open_or_wait(self, deadline: float) -> Reader:
        waiter = _Waiter()
        with self._mutex:
            if self._closed:
                raise errors.DatabaseClosed(f"{self._name} is closed; connect again")
            may_open = not self._paused and len(self._all) + len(self.opening) < self._most
            if may_open:
                self.opening[threading.get_ident()] = deadline
            else:
                self._waited += 1
                self._waiters.append(waiter)
                self._attention = True
        if may_open:
            return self._open()
        try:
            self._match()
            self._wait(waiter, deadline)
        finally:
            with self._mutex:
                if waiter.waiting or (self._waiters and self._waiters[0] is waiter):  # an interrupt kept it there
                    self._waiters.remove(waiter)
                    self._call_first()
        reader, waiter.reader = waiter.reader, None
        if reader is None:
            if self._closed:
                raise errors.DatabaseClosed(f"{self._name} is closed; connect again")
            if waiter.reopen:
                return self._open_or_wait(deadline)
            raise errors.PoolTimeout(
                f"all {self._most} readers of {self._name} were in use until the deadline; finish snapshots sooner, "
                "read from fewer threads, or raise max_size in PoolConfig"
            )
        return reader

    def _wait(self, waiter: _Waiter, deadline: float) -> None:
        """Wait until somebody lends a reader; who is first looks for itself too, for maybe nobody comes any more."""
        while waiter.waiting and (remaining := deadline - monotonic()) > 0:
            with self._mutex:
                is_first = waiter.waiting and self._waiters[0] is waiter
                if is_first and self.idle and not self._paused:
                    self._lend()
            waiter.signal.acquire(timeout=min(remaining, PATIENCE) if is_first else remaining)

    def _lend(self) -> None:
        """Give an idle reader to the first waiter; the mutex is held."""
        try:
            reader = self.idle.pop()
        except IndexError:  # a running thread was faster
            return
        self._lent = monotonic()
        self._dismiss(reader=reader)
        self._call_first()

    def _dismiss(self, *, reader: Reader | None = None, reopen: bool = False) -> None:
        """Let the first waiter go, with what it has got; the mutex is held."""
        waiter = self._waiters[0]
        waiter.reader, waiter.reopen = reader, reopen
        waiter.waiting = False  # before it leaves the queue: an interrupt in between would let it wait for nothing
        self._waiters.popleft()
        raise_signal(waiter.signal)

    def _call_first(self) -> None:
        """Tell a waiter that it is the first now; the mutex is held."""
        if self._waiters:
            raise_signal(self._waiters[0].signal)

    def _open(self) -> Reader:
        try:
            reader = Reader(self._connect())
            self._know(reader)
            return reader
        finally:
            self.opening.pop(threading.get_ident(), None)

    def _know(self, reader: Reader) -> None:
        key, everyone = id(reader), self._all
        everyone[key] = weakref.ref(reader, lambda _: everyone.pop(key, None))

    def _match(self) -> None:
        """Give idle readers to those who wait, or close them where nobody is to have them."""
        with self._mutex:
            if self._closed:
                while self._waiters:
                    self._dismiss()
            if self._closed or self._paused:
                self._close_idle()
            elif self._waiters and monotonic() - self._lent > PATIENCE:
                self._lend()
            self._attention = bool(self._waiters) or self._closed or self._paused

    # -- reading ----------------------------------------------------------------------------------------------------

    def run(self, sql: str, values: Values, timeout: float, policy: ResolvedRetryPolicy) -> Outcome:
        """Run one read to its last row within ``timeout`` seconds, on a reader of its own."""
        deadline = monotonic() + timeout
        try:
            reader = self.idle.pop()
        except IndexError:
            reader = self._open_or_wait(deadline)
        reader.until = deadline
        try:
            cursor = reader.execute(sql, values)
            rows = cursor.fetchall()
            outcome = rows, cursor.description, len(rows)
        except DRIVER_ERRORS as error:
            return self._second_try(reader, sql, values, error, policy)
        except BaseException:  # half read it would pin its state, and the WAL with it (H25)
            reader.renew()
            self._close(reader)
            raise
        self.idle.append(reader)
        if self._attention:
            self._match()
        return outcome

    def _second_try(
        self, reader: Reader, sql: str, values: Values, error: BaseException, policy: ResolvedRetryPolicy
    ) -> Outcome:
        """Run a read again after what another caused: a lock in recovery, an interrupt that was meant for another."""

        def attempt() -> Outcome:
            rows = reader.execute(sql, values).fetchall()
            return rows, reader.cursor.description, len(rows)

        def may_retry(problem: BaseException) -> bool:
            return (is_busy(problem) or code_of(problem) == INTERRUPT) and monotonic() < reader.until

        try:
            if not may_retry(error):
                raise error
            outcome = run_again(
                attempt, policy=policy, deadline=reader.until, may_retry=may_retry, on_retry=lambda *_: None
            )
        except DRIVER_ERRORS as final:
            self.give_back(reader)
            raise read_error(final, sql) from final
        self.give_back(reader)
        return outcome

    # -- the keeper's side, and the end -----------------------------------------------------------------------------

    def interrupt_overdue(self, now: float) -> list[float]:
        """Interrupt every statement that is past its deadline. A stray interrupt is harmless: the read is run again.

        Give by how much those are late that do not end, each once: an SQL function of the user's, say.
        """
        stubborn = []
        for reader in self.busy():
            until = reader.until
            if until < now:
                with contextlib.suppress(sqlite3.ProgrammingError):  # it is being closed
                    reader.connection.interrupt()
                if now - until > STUBBORN and reader.told != until:
                    reader.told = until
                    stubborn.append(now - until)
        return stubborn

    def mend(self) -> None:
        """Let nobody wait for what an interrupt has kept another thread from giving; for the keeper, now and then."""
        for ident in list(self.opening):
            if not is_on_stack(ident, self, "self"):
                self.opening.pop(ident, None)
        for key, reference in list(self._all.items()):
            if reference() is None:  # an interrupt came into the callback that takes it out
                self._all.pop(key, None)
        if not self._waiters:
            return
        self._match()
        with self._mutex:
            if self._waiters and not self._paused and len(self._all) + len(self.opening) < self._most:
                self._dismiss(reopen=True)

    def everyone(self) -> list[Reader]:
        """List all readers, in use or not."""
        # One C call, which no other thread can come between.
        return [reader for reference in list(self._all.values()) if (reader := reference()) is not None]

    def busy(self) -> list[Reader]:
        """List the readers that are in use at this moment."""
        idle = self.idle.copy()
        return [reader for reader in self.everyone() if reader not in idle]

    def are_reading(self) -> bool:
        """Tell whether a statement may be under way, or a reader being opened."""
        return bool(self.opening) or any(reader.until < math.inf for reader in self.busy())

    def trim(self, before: float) -> None:
        """Close idle readers whose last deadline lies before ``before``: the coldest lie at the bottom."""
        while len(self._all) > self._least:
            try:
                if self.idle[0].until >= before:
                    return
                reader = self.idle.pop(0)
            except IndexError:  # other threads take readers meanwhile
                return
            self._close(reader)

    def stats(self) -> PoolStats:
        """Show the pool at this moment."""
        size = len(self.everyone())
        return PoolStats(size, max(0, size - len(self.idle)), len(self._waiters), self._waited, self._most)

    def close(self) -> None:
        """Close what is idle now, and each other reader when it comes back. Idempotent."""
        self._closed = self._attention = True
        self._match()

    def pause(self, deadline: float) -> bool:
        """Lend no more readers and close all; wait for those in use until ``deadline``; say if all came home."""
        with self._home:
            self._paused = self._attention = True
            self._close_idle()
            return self._home.wait_for(lambda: not (self._all or self.opening), max(0.0, deadline - monotonic()))

    def resume(self) -> None:
        """Lend readers again."""
        with self._mutex:
            self._paused, self._attention = False, self._closed
            while self._waiters:
                self._dismiss(reopen=True)

    def _close_idle(self) -> None:
        while True:
            try:
                reader = self.idle.pop()
            except IndexError:
                break
            self._close(reader)
        self._home.notify_all()

    def _close(self, reader: Reader) -> None:
        reader.close()
        self._all.pop(id(reader), None)


def read_error(error: BaseException, sql: str) -> BaseException:
    """Classify what a read raised; a refusal to write (plain SQLITE_READONLY only) is `WritesAfterAll`."""
    if code_of(error) == READONLY:
        return WritesAfterAll()
    if code_of(error) == INTERRUPT:
        return errors.QueryCanceled(
            f"{shorten(sql)}: the deadline passed while it ran, and it was interrupted; read less at once, add an "
            "index, or raise the timeout",
            sqlite_errorname="SQLITE_INTERRUPT",
        )
    return classify(error, doing=shorten(sql))
