"""A write transaction: SERIALIZABLE, with the call's deadline told to the server, and a COMMIT whose fate is known.

What opens the transaction travels with its first statement, in one round trip; COMMIT is a round trip of its own. The
number of the transaction is asked for along with what may be its first write, so that a COMMIT whose answer never came
can be looked up (`safedb.postgres.commits`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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

STALE = 0.02  # seconds after which the server is told anew what is left of the deadline
NUMBER = "SELECT pg_current_xact_id_if_assigned()::text"
NEW_NUMBER = "SELECT pg_current_xact_id()::text"
TAINTING = frozenset({"DO", "CALL"})  # their code may SET what outlives the transaction, unseen
SCHEMA_LOCK = 0x5AFEDB01  # advisory locks, the same in every process that uses safedb
SERIAL_LOCK = 0x5AFEDB02


class Session:
    """Run statements in one write transaction, for the thread that opened it.

    ``lost`` is the error that ended the whole transaction, if one did: a conflict, a deadlock, a broken link.
    ``failure`` is the last error of a statement.
    """

    def __init__(self, links: Links, *, name: str, deadline: float, serial: bool = False) -> None:
        self._links = links
        self._name = name
        self.deadline = deadline
        self._serial = serial
        self._pid = os.getpid()
        self._tainted = False  # whether something of it may stay in the session
        self._settled = False  # whether it is known if anything was written
        self.number: str | None = None  # the transaction's, once it has written and was asked
        self._told = 0.0  # when the server was told what is left
        self.begun = False
        self.lost: errors.Error | None = None
        self.failure: errors.Error | None = None
        self.link: Link | None = links.lend_primary(deadline)

    # -- statements -------------------------------------------------------------------------------------------------

    def run(self, statement: Statement, values: Sequence[Any], *, many: bool = False) -> Fetched:
        """Run one statement; past the deadline none is begun, however short it would be."""
        if monotonic() >= self.deadline:
            raise errors.QueryCanceled(
                f"{shorten(statement.source)}: the deadline of this transaction on {self._name} had passed before it "
                "began, so it was not run. Do slow work before or after the transaction, or raise the timeout",
                retryable=True,
            )
        writes = statement.route is not Route.READ or notifies(statement.sql)
        self._tainted = self._tainted or statement.keyword in TAINTING
        return self._run(statement.sql, values, doing=statement.source, many=many, writes=writes)

    def savepoint(self, name: str) -> None:
        """Set a savepoint; the caller nests them properly and chooses unique names."""
        self._run(f"SAVEPOINT {name}", ())

    def rollback_to(self, name: str) -> None:
        """Undo what came since the savepoint, and remove it; past the deadline too: an exception is on its way."""
        for sql in (f"ROLLBACK TO {name}", f"RELEASE {name}"):
            self._take_back(sql)

    def release(self, name: str) -> None:
        """Remove the savepoint and keep what came since."""
        self._run(f"RELEASE {name}", ())

    def lock_schema(self) -> None:
        """Wait for whoever else sets up the schema: several processes may start at once."""
        self._run(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})", ())

    def take_serial_lock(self) -> None:
        """Wait until no other serial transaction is open. Before BEGIN: the lock's own wait would fix an old state."""
        while self._serial:
            failure = self._try_serial_lock(self._own_link())
            if failure is None:
                return
            if not isinstance(failure, errors.ConnectionLost) or not self._change_link():
                raise failure

    def _try_serial_lock(self, link: Link) -> errors.Error | None:
        lock: limits.Command = (f"SELECT pg_advisory_lock({SERIAL_LOCK})", ())
        commands = [("BEGIN", ()), *limits.utility(self.deadline), lock, ("COMMIT", ())]
        try:
            link.until = self.deadline + limits.GRACE
            with link.one_trip():
                for sql, args in commands:
                    link.execute(sql, args)
        except psycopg.Error as error:
            return self.failed(error, "waiting for other serial transactions")
        return None

    def _run(
        self, sql: str, values: Sequence[Any], *, doing: str = "", many: bool = False, writes: bool = False
    ) -> Fetched:
        while True:
            link, first = self._own_link(), not self.begun
            try:
                return self._send(link, sql, values, many=many, writes=writes)
            except DRIVER_ERRORS as error:
                failure = self.failed(error, shorten(doing or sql))
            # Nothing of the transaction has been seen by anybody yet, so it may as well begin on another link.
            if not first or self._serial or not isinstance(failure, errors.ConnectionLost) or not self._change_link():
                raise failure

    def _take_back(self, sql: str) -> None:
        """Run what must work after an error, when the server takes no new limits, and after the deadline."""
        link = self._own_link()
        link.until = max(self.deadline + limits.GRACE, monotonic() + limits.CLEANING)
        try:
            link.execute(sql)
        except DRIVER_ERRORS as error:
            failure = self.failed(error, sql)
        else:
            return
        raise failure

    def _send(self, link: Link, sql: str, values: Sequence[Any], *, many: bool, writes: bool) -> Fetched:
        ahead = self._ahead(link)
        asks = writes and self.number is None
        self._settled = False
        link.until = self.deadline + limits.GRACE
        cursor = link.cursor()
        if not ahead and not asks:
            _execute(cursor, sql, values, many=many)
        else:
            with link.one_trip(streaming=many):
                for command, args in ahead:
                    link.command(command, args)
                _execute(cursor, sql, values, many=many)
                answer = link.command(NEW_NUMBER if notifies(sql) else NUMBER) if asks else None
            if answer is not None:
                row = answer.fetchone()
                self.number = row[0] if row else None
        self._settled = asks or self.number is not None
        return fetched(cursor)

    def _ahead(self, link: Link) -> list[limits.Command]:
        """List what is to be sent ahead of the next statement."""
        now = monotonic()
        if not self.begun:
            self.begun, self._told = True, now
            known = link.knows(self.deadline)
            return [(limits.SERIALIZABLE, ())] if known else link.preamble(limits.SERIALIZABLE, self.deadline)
        if now - self._told > STALE:
            self._told = now
            return [limits.local(self.deadline)]
        return []

    def check_process(self) -> None:
        """Refuse to touch the link in a forked child: it is its parent's."""
        if self._pid != os.getpid():
            raise errors.InterfaceError(
                f"this transaction on {self._name} belongs to the process that began it, and this one is forked from it"
            )

    def _own_link(self) -> Link:
        self.check_process()
        if self.link is None:
            raise self.lost or errors.DatabaseClosed(f"this transaction on {self._name} has ended")
        return self.link

    def _change_link(self) -> bool:
        """Go on with another link, if there is time for it."""
        link, self.link = self.link, None
        if link is not None:
            self._links.discard(link)
        if monotonic() >= self.deadline:
            return False
        self.link = self._links.lend_primary(self.deadline)
        self.begun, self.lost, self.failure = False, None, None
        return True

    def failed(self, error: Exception, doing: str) -> errors.Error:
        """Make our error, and note what it means for the transaction."""
        link = self.link
        broken = link is None or link.closed
        if link is not None and link.cut:
            ours: errors.Error = unanswered(doing)
        else:
            ours = classify(error, doing=doing, broken=broken)
        if broken or isinstance(ours, errors.SerializationFailure | errors.DeadlockDetected):
            self.lost = ours
        self.failure = ours
        return ours

    def settle(self) -> None:
        """Find out before COMMIT whether anything was written, and under which number: afterwards it may be too late.

        Mostly that is known already. It is not after statements that look like reads: a function of theirs may write.
        """
        if self._settled:
            return
        link = self._own_link()
        try:
            row = link.execute(NUMBER).fetchone()
        except psycopg.Error as error:
            failure = self.failed(error, "before COMMIT")
        else:
            self.number, self._settled = (row[0] if row else None), True
            return
        raise failure

    def check(self) -> None:
        """Raise what has ended the transaction, if its user has swallowed that."""
        if self.lost is not None:
            raise self.lost

    # -- the end ----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Give the link back, rolled back if need be. Idempotent, and raises nothing."""
        link, self.link = self.link, None
        if link is None or self._pid != os.getpid():
            return
        if not self._clean(link):
            link.close()
        if self._tainted:
            self._links.retire(link)
        else:
            self._links.give_back(link)

    def _clean(self, link: Link) -> bool:
        """Bring a link to rest; False where it cannot be used again."""
        status = link.pgconn.transaction_status
        if status == psycopg.pq.TransactionStatus.IDLE and not self._serial:
            return True
        if link.closed or status == psycopg.pq.TransactionStatus.ACTIVE:
            return False
        try:
            link.until = monotonic() + limits.CLEANING
            link.rollback()
            if self._serial:
                link.execute(f"SELECT pg_advisory_unlock({SERIAL_LOCK})")
        except psycopg.Error:
            return False
        return True


def notifies(sql: str) -> bool:
    """Tell whether a text has to do with NOTIFY, which gets its transaction a number only while COMMIT is under way."""
    return "notify" in sql.lower()


def _execute(cursor: Any, sql: str, values: Sequence[Any], *, many: bool) -> None:
    if many:
        cursor.executemany(sql, values)
    else:
        cursor.execute(sql, values)
