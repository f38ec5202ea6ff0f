"""Snapshots: one read-only transaction that sees one committed state, on a link of its own."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

from safedb import errors
from safedb.engine import Fetched
from safedb.postgres import limits
from safedb.postgres.driver import psycopg
from safedb.postgres.links import Links
from safedb.postgres.opener import Link
from safedb.postgres.results import fetched
from safedb.postgres.verdicts import DRIVER_ERRORS, classify, unanswered
from safedb.sql import Route, Statement, shorten

_STREAMED = frozenset({"SELECT", "VALUES", "TABLE", "WITH"})
"""What a cursor of the server's can be declared for."""


class SnapshotSession:
    """Read one committed state; for the thread that opened it."""

    left = False  # its block is being left

    def __init__(
        self,
        links: Links,
        *,
        name: str,
        timeout: float,
        max_age: float | None = None,
        serializable: bool = False,
        lend_by: float | None = None,
    ) -> None:
        deadline = monotonic() + timeout
        self._links = links
        self._name = name
        self._pid = os.getpid()
        self._failed = False
        self._cursors = 0
        self._declared: set[str] = set()  # cursors on the server
        self._left: deque[str] = deque()  # those that nobody reads any more
        self.thread = threading.get_ident()
        link = links.lend(deadline if lend_by is None else lend_by)
        link.until = deadline + limits.GRACE
        try:
            self._open(link, timeout, max_age, serializable=serializable)
        except BaseException:
            links.discard(link)
            raise
        self.began = monotonic()
        self._expires = None if max_age is None else self.began + max_age
        self._link: Link | None = link

    def _open(self, link: Link, timeout: float, max_age: float | None, *, serializable: bool) -> None:
        """Open the transaction and fix its state: BEGIN alone fixes nothing, its first statement does."""
        idle = 0 if max_age is None else limits.in_milliseconds(max_age)
        commands = link.preamble(limits.REPEATABLE, monotonic() + timeout, idle=idle)
        if serializable:  # may wait until those that write now have ended: the limits have to be told before that
            commands = [(limits.DEFERRABLE, ()), *limits.utility(link.until - limits.GRACE), *commands[1:]]
        try:
            with link.one_trip():
                for sql, args in commands:
                    link.execute(sql, args)
        except psycopg.Error as error:
            if link.cut:
                failure: errors.Error = unanswered("opening a snapshot")
            else:
                failure = classify(error, doing="opening a snapshot", broken=link.closed)
        else:
            return
        if serializable and isinstance(failure, errors.QueryCanceled):
            failure = errors.LockTimeout(
                f"waited {timeout:.3f} s for a moment at which a serialisable snapshot of {self._name} can be had, "
                "behind transactions that write; make these shorter, or raise the timeout"
            )
        raise failure

    def run(self, statement: Statement, values: Sequence[Any], timeout: float) -> Fetched:
        """Run one read to its last row."""
        link = self._ready(statement)
        try:
            cursor = link.cursor()
            self._limit(link, timeout)
            cursor.execute(statement.sql, values)
            return fetched(cursor)
        except DRIVER_ERRORS as error:
            failure = self._classified(error, statement.source)
        raise failure

    def iterate(
        self, statement: Statement, values: Sequence[Any], batch: int, timeout: float
    ) -> Iterator[tuple[list[tuple[Any, ...]], Any]]:
        """Read in batches through a cursor on the server, ``timeout`` seconds for each."""
        if statement.keyword not in _STREAMED:  # EXPLAIN, SHOW: short, and no cursor can be declared for them
            rows, description, _ = self.run(statement, values, timeout)
            for start in range(0, len(rows), batch):
                yield rows[start : start + batch], description
            return
        self._cursors += 1
        name = f"safedb_{self._cursors}"
        try:
            rows, description = self._fetch(name, statement, values, batch, timeout)
            while rows:
                yield rows, description
                rows, description = self._fetch(name, statement, None, batch, timeout)
        finally:
            # Maybe Python's garbage collector is here, in any thread and in the middle of anything: touch nothing now.
            if name in self._declared:
                self._left.append(name)

    def _fetch(
        self, name: str, statement: Statement, values: Sequence[Any] | None, batch: int, timeout: float
    ) -> tuple[list[tuple[Any, ...]], Any]:
        """Get the next rows of a cursor on the server, which is declared where ``values`` are given."""
        link = self._ready(statement)
        try:
            self._limit(link, timeout)
            cursor = link.cursor()
            if values is not None:
                cursor.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {statement.sql}", values, prepare=False)
                self._declared.add(name)
            cursor.execute(f"FETCH FORWARD {batch} FROM {name}", prepare=False)
            return fetched(cursor)[:2]
        except DRIVER_ERRORS as error:
            failure = self._classified(error, statement.source)
        raise failure

    @property
    def is_over(self) -> bool:
        """Tell whether it keeps a state no more: it has ended, or is older than it may be."""
        return self._link is None or (self._expires is not None and monotonic() >= self._expires)

    def close(self) -> None:
        """End the transaction and give the link back. Idempotent, and raises nothing."""
        link, self._link = self._link, None
        if link is None or self._pid != os.getpid():
            return
        try:
            if not link.closed and link.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                link.until = monotonic() + limits.CLEANING
                link.rollback()
            else:
                link.close()
        except psycopg.Error:
            link.close()
        self._links.give_back(link)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _ready(self, statement: Statement) -> Link:
        if self._pid != os.getpid():
            raise errors.InterfaceError(
                f"this snapshot of {self._name} belongs to the process that opened it, and this one is forked from it"
            )
        link = self._link
        if link is None:
            raise errors.DatabaseClosed(f"this snapshot of {self._name} has ended; open another")
        if self._expires is not None and monotonic() >= self._expires:
            raise self._too_old()
        if self._failed:
            raise errors.TransactionAborted(
                f"an error has ended this snapshot of {self._name}: leave the block and begin another"
            )
        if statement.route is not Route.READ:  # refused before it is sent, so that it does no harm
            raise errors.ProgrammingError(
                "a snapshot is read-only: write through db.execute, or read and write in db.transaction()",
                sqlstate="25006",
            )
        return link

    def _limit(self, link: Link, timeout: float) -> None:
        """Limit the next statement. The server knows the limit already, but where the snapshot has an age."""
        deadline, expires = monotonic() + timeout, self._expires
        link.until = deadline + limits.GRACE
        while self._left:
            name = self._left.popleft()
            self._declared.discard(name)
            link.execute(f"CLOSE {name}")
        if expires is not None:
            deadline = min(deadline, expires)
            sql, args = limits.local(deadline, idle=limits.milliseconds(expires))
            link.until = deadline + limits.GRACE
            link.execute(sql, args)
        link.until = deadline + limits.GRACE

    def _too_old(self) -> errors.OperationalError:
        return errors.OperationalError(
            f"this snapshot of {self._name} cannot be used: it was older than its max_age, and was ended; begin another"
        )

    def _classified(self, error: Exception, sql: str) -> errors.Error:
        self._failed = True
        link = self._link
        if self._expires is not None and monotonic() >= self._expires:
            return self._too_old()
        if link is not None and link.cut:
            return unanswered(shorten(sql))
        return classify(error, doing=shorten(sql), broken=link is None or link.closed)
