"""Write transactions: single statements, functions and blocks, and what is run again when.

=====================  ==============================================  ==============================================
what                   run again by safedb                             else
=====================  ==============================================  ==============================================
a single statement     conflict, deadlock, lock, a link that broke     the error, once the deadline is over
a function             the same, with the function's own run           its own exception, rolled back
a block                only its first statement, on another link, if   the error; ``.retryable`` where the block may
                       the link broke                                  be run again by its user
=====================  ==============================================  ==============================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.engine import Fetched
from safedb.postgres import commits, limits
from safedb.postgres.again import Again, Retries
from safedb.postgres.driver import psycopg
from safedb.postgres.links import Links
from safedb.postgres.opener import Link
from safedb.postgres.results import fetched
from safedb.postgres.session import Session
from safedb.postgres.verdicts import AGAIN, classify, is_stale_plan
from safedb.sql import Statement, shorten
from safedb.stats import Counters, Hooks, Overrun

T = TypeVar("T")

NOT_IN_A_TRANSACTION = "25001"


class Writes:
    """Run write transactions; safe from any thread."""

    def __init__(
        self,
        links: Links,
        retries: Retries,
        counters: Counters,
        mutex: threading.Lock,
        hooks: Hooks,
        *,
        name: str,
        serial: bool,
    ) -> None:
        self._links = links
        self._retries = retries
        self._counters = counters
        self._mutex = mutex
        self._hooks = hooks
        self._name = name
        self._serial = serial

    # -- what is run again --------------------------------------------------------------------------------------------

    def statement(
        self,
        statement: Statement,
        values: Sequence[Any],
        deadline: float,
        policy: ResolvedRetryPolicy,
        *,
        many: bool = False,
    ) -> Fetched:
        """Run one statement in a transaction of its own."""
        return self.function(lambda session: session.run(statement, values, many=many), deadline, policy)

    def function(self, body: Callable[[Session], T], deadline: float, policy: ResolvedRetryPolicy) -> T:
        """Run ``body`` in a transaction, in this thread; again where its transaction is lost."""
        return self._retries.persist(lambda: self._once(body, deadline), deadline, policy)

    def _once(self, body: Callable[[Session], T], deadline: float) -> T:
        with self._open(deadline) as session:
            try:
                value = body(session)
                session.check()
                self.commit(session)
            except Exception as error:
                # Whatever the body made of it: outcomes of a run that is discarded are discarded.
                failure = session.lost if session.lost is not None else error
                if not self._may_run_again(session, failure):
                    raise
            else:
                return value
        raise Again(failure)  # type: ignore[arg-type]

    def _may_run_again(self, session: Session, failure: Exception) -> bool:
        """Tell whether a failure is this transaction's own, and one that another run may not meet."""
        if failure is not session.lost and failure is not session.failure:
            return False
        return isinstance(failure, AGAIN) or is_stale_plan(failure.__cause__)  # rolling back forgets all plans

    # -- blocks -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self, deadline: float) -> Iterator[Session]:
        session = self.begin(deadline)
        try:
            yield session
        finally:
            session.end()

    def begin(self, deadline: float) -> Session:
        """Open a transaction; `commit`, and in any case `Session.end`, must follow in the same thread."""
        began = monotonic()
        session = Session(self._links, name=self._name, deadline=deadline, serial=self._serial)
        try:
            session.take_serial_lock()
        except BaseException:
            session.end()
            raise
        with self._mutex:
            self._counters.turns += 1
            self._counters.waits.add(monotonic() - began)
        return session

    def commit(self, session: Session) -> None:
        """Commit; when this returns the transaction is durable."""
        began = monotonic()
        commits.commit(session, self._links, name=self._name)
        ended = monotonic()
        with self._mutex:
            self._counters.committed(1)
            self._counters.commit_times.add(ended - began)
        if began > session.deadline:
            self._hooks.emit(Overrun(self._name, "the body of a transaction", began - session.deadline))
        elif ended > session.deadline:
            self._hooks.emit(Overrun(self._name, "COMMIT", ended - session.deadline))

    # -- outside of a transaction -------------------------------------------------------------------------------------

    def alone(self, statement: Statement, values: Sequence[Any], deadline: float) -> Fetched:
        """Run what cannot run inside a transaction (VACUUM, CREATE INDEX CONCURRENTLY, …), once: nobody can undo it."""
        link = self._links.lend(deadline)
        try:
            return _alone(link, statement, values, deadline)
        except BaseException:
            link.close()
            raise
        finally:
            self._links.give_back(link)


def _alone(link: Link, statement: Statement, values: Sequence[Any], deadline: float) -> Fetched:
    try:
        if not link.pooled:  # a session that is lent to others after this statement is left as it is
            link.execute(*limits.session(limits.milliseconds(deadline)))
        cursor = link.execute(statement.sql, values)
        result = fetched(cursor)
        if not link.pooled:
            link.execute(*limits.session(link.ceiling))
    except psycopg.Error as error:
        failure = classify(error, doing=shorten(statement.source), broken=link.closed)
    else:
        return result
    if isinstance(failure, errors.ConnectionLost):
        how = "no answer came by the deadline" if link.cut else "the connection broke"
        failure = errors.OperationalError(
            f"{shorten(statement.source)}: {how} while it ran outside of a transaction, so it may have been done or "
            "not: look, and run it again",
            sqlstate=failure.sqlstate,
        )
    raise failure


__all__ = ["NOT_IN_A_TRANSACTION", "Writes"]
