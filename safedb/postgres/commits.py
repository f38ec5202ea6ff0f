"""COMMIT, and what is known of it when its answer did not come.

While COMMIT is under way nobody on this side knows its fate. The server does: ``pg_xact_status()`` tells it by the
transaction's number. It is believed only from the same run of the same server, for after a crash the same number may
be another client's (seen: a reused number said "committed")::

    identity at opening = identity now?    pg_xact_status    so
    no, or not known                       (any)             CommitUnknownError
    yes                                    committed         the write is acknowledged
    yes                                    aborted           ConnectionLost: it may be run again
    yes                                    in progress       ask again, until the deadline; then CommitUnknownError

The identity is the server's start and the time at which its statistics were last thrown away, which happens whenever
it recovers from a crash (`safedb.postgres.opener.IDENTITY`).
"""

from __future__ import annotations

import time
from time import monotonic

from safedb import errors
from safedb.postgres import limits
from safedb.postgres.driver import psycopg
from safedb.postgres.links import Links
from safedb.postgres.opener import IDENTITY, Link
from safedb.postgres.session import Session
from safedb.postgres.verdicts import classify

# Asked only where it can be believed: of a number that a crash has taken back it is an error, and no answer.
STATUS = f"SELECT CASE WHEN {IDENTITY} = $2 THEN pg_xact_status($1::text::xid8) END, {IDENTITY}, pg_is_in_recovery()"
POLL = 0.02  # seconds between two looks at a transaction that is still in progress
LEAST = 2.0  # seconds that a look-up has at least: an answer is worth more than a deadline kept
RECIPE = (
    "Look for the transaction's own traces (an idempotency key that it writes) before you run it again: see "
    '"Idempotency keys" in the recipes'
)


def commit(session: Session, links: Links, *, name: str) -> None:
    """Commit, and look up what became of it where the answer is lost. When this returns the writes are durable.

    Raises what the server says against it (`SerializationFailure`, a deferred constraint, …: nothing is kept),
    `ConnectionLost` where it is known not to be committed, and `CommitUnknownError` where nobody can know.
    """
    session.check_process()
    link = session.link
    if link is None or not session.begun:
        return
    link.until = max(session.deadline + limits.GRACE, monotonic() + limits.COMMIT_GRACE)
    session.settle()
    if link.pgconn.transaction_status != psycopg.pq.TransactionStatus.INTRANS:
        # The server would answer such a COMMIT with a ROLLBACK, and call that a success.
        raise errors.TransactionAborted(
            f"an error had ended the transaction on {name} before COMMIT; nothing of it was kept"
        )
    try:
        link.commit()
    except psycopg.Error as error:
        refusal = None if link.closed else session.failed(error, "COMMIT")
    except BaseException as interrupt:
        interrupt.add_note(f"safedb: this came while COMMIT was under way on {name}: it may be committed or not")
        link.close()
        raise
    else:
        if link.alone:
            raise _alone(link, name)
        return
    if link.alone:
        raise _alone(link, name)
    if refusal is not None:
        raise refusal
    look_up(session, link, links, name=name)


def look_up(session: Session, link: Link, links: Links, *, name: str) -> None:
    """Find out what became of a COMMIT whose link broke; return only if it is committed."""
    number, identity = session.number, link.identity
    if number is None:
        session.lost = errors.ConnectionLost(
            f"the connection to {name} broke while COMMIT was under way; it had written nothing, so it can be run again"
        )
        raise session.lost
    if identity is None:
        raise unknown(name, "the server does not tell which run of it this is")
    deadline = max(session.deadline, monotonic() + LEAST)
    why = "the server could not be asked until the deadline"
    while monotonic() < deadline:
        try:
            status, present, standby = _ask(links, number, identity, deadline)
        except errors.Error as error:
            why = f"the server could not be asked ({error})"
            time.sleep(POLL)
            continue
        if present != identity or standby:
            raise unknown(name, "the server has been restarted, has crashed, or another one has taken its place")
        if status == "committed":
            return
        if status == "aborted":
            session.lost = errors.ConnectionLost(
                f"the connection to {name} broke while COMMIT was under way, and the server says that it did not "
                "happen; nothing was kept, so it can be run again"
            )
            raise session.lost
        why = f"the server calls transaction {number} {status or 'too old to know'}"
        if status is None:
            break
        time.sleep(POLL)
    raise unknown(name, why)


def _ask(links: Links, number: str, identity: str, deadline: float) -> tuple[str | None, str | None, bool]:
    link = links.lend(deadline)
    try:
        row = link.execute(STATUS, (number, identity)).fetchone()
    except psycopg.Error as error:
        broken = link.closed
        failure = classify(error, doing="looking up a COMMIT", broken=broken)
    else:
        return row  # type: ignore[return-value]
    finally:
        links.give_back(link)
    raise failure


def _alone(link: Link, name: str) -> errors.CommitUnknownError:
    """Make the error for a COMMIT whose wait for a synchronous standby was cancelled."""
    link.alone = False
    return errors.CommitUnknownError(
        f"COMMIT was carried out on {name}, but its wait for the synchronous standby was cancelled: if this server is "
        f"lost now, so may be the transaction. {RECIPE}"
    )


def unknown(name: str, why: str) -> errors.CommitUnknownError:
    """Make the error for a COMMIT whose fate nobody can know."""
    return errors.CommitUnknownError(
        f"the connection to {name} broke while COMMIT was under way, and nobody can know whether it was committed: "
        f"{why}. {RECIPE}"
    )
