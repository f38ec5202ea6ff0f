"""Reads: one statement in a READ ONLY session, on a link that is lent for just that."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from safedb import errors
from safedb.engine import Fetched
from safedb.postgres import limits
from safedb.postgres.again import Again
from safedb.postgres.driver import psycopg
from safedb.postgres.links import Links
from safedb.postgres.opener import Link
from safedb.postgres.results import fetched
from safedb.postgres.verdicts import DRIVER_ERRORS, classify, is_stale_plan, state_of, unanswered
from safedb.sql import Statement, shorten

RETRIED = frozenset({"40001", "40P01"})  # a reader meets these on a replica, whose state moves on under it


class WritesAfterAll(Exception):
    """Tell that a statement that looked like a read was refused by the READ ONLY session: it writes (25006)."""


def read(
    links: Links,
    statement: Statement,
    values: Sequence[Any],
    deadline: float,
    *,
    lend_by: float | None = None,
) -> Fetched:
    """Run one read to its last row.

    A deadline that the session does not know is told to the server in a transaction around the statement. Raises
    `Again` where another try may do.
    """
    link = links.lend(deadline if lend_by is None else lend_by)
    link.until = deadline + limits.GRACE
    try:
        cursor = link.cursor()
        if not link.knows(deadline):
            _with_limits(link, cursor, statement.sql, values, deadline)
        else:
            cursor.execute(statement.sql, values)
        return fetched(cursor)
    except DRIVER_ERRORS as error:
        failure = _failure(link, error, statement)
    except BaseException:  # an interrupt: nobody knows what is still to come on this link
        link.close()
        raise
    finally:
        links.give_back(link)
    raise failure


def _with_limits(link: Link, cursor: Any, sql: str, values: Sequence[Any], deadline: float) -> None:
    with link.one_trip():
        for command, args in link.preamble(limits.READ, deadline):
            link.execute(command, args)
        cursor.execute(sql, values)
        link.execute("COMMIT")


def _failure(link: Link, error: Exception, statement: Statement) -> Exception:
    """Classify, and bring the link to rest or close it."""
    doing = shorten(statement.source)
    if link.cut:
        return unanswered(doing)
    failure = classify(error, doing=doing, broken=link.closed)
    state = state_of(error)
    again: Exception = failure
    if isinstance(failure, errors.ConnectionLost) or state in RETRIED:
        again = Again(failure)
    elif state == "25006":
        again = WritesAfterAll()
    try:
        link.until = monotonic() + limits.CLEANING
        link.rollback()
        if is_stale_plan(error):  # on this link it would come for ever
            again = Again(failure)
            link.close()
    except psycopg.Error:
        link.close()
    return again
