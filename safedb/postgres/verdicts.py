"""What an error of PostgreSQL means: our class, by SQLSTATE alone.

Codes are stable, texts are translated (https://www.postgresql.org/docs/current/errcodes-appendix.html). What carries no
code at all is a link that broke, or a value that the driver refused; those are told apart by the driver's classes and
by the state of the link, never by text.
"""

from __future__ import annotations

from safedb import errors
from safedb.postgres.driver import psycopg

CAST = "say which type is meant: CAST(? AS integer), or ?::integer"

# A whole code first, else its class (the first two characters), else the driver's own class.
CODES: dict[str, type[errors.Error]] = {
    "23505": errors.UniqueViolation,
    "23503": errors.ForeignKeyViolation,
    "23502": errors.NotNullViolation,
    "23514": errors.CheckViolation,
    "40001": errors.SerializationFailure,
    "40P01": errors.DeadlockDetected,
    "55P03": errors.LockTimeout,
    "57014": errors.QueryCanceled,
    "53100": errors.DatabaseFull,
    "25P02": errors.TransactionAborted,
    "42804": errors.DataError,  # a value of another type than the column's: SQLite's STRICT tables say the same
    "25006": errors.ProgrammingError,
    "25001": errors.ProgrammingError,
}
CLASSES: dict[str, type[errors.Error]] = {
    "08": errors.ConnectionLost,
    "0A": errors.NotSupportedError,
    "21": errors.ProgrammingError,
    "22": errors.DataError,
    "23": errors.IntegrityError,
    "25": errors.InternalError,
    "40": errors.OperationalError,
    "42": errors.ProgrammingError,
    "53": errors.OperationalError,
    "57": errors.OperationalError,
    "58": errors.OperationalError,
    "XX": errors.InternalError,
}
DRIVER: dict[type[Exception], type[errors.Error]] = {
    psycopg.DataError: errors.DataError,
    psycopg.IntegrityError: errors.IntegrityError,
    psycopg.ProgrammingError: errors.ProgrammingError,
    psycopg.NotSupportedError: errors.NotSupportedError,
    psycopg.InternalError: errors.InternalError,
    psycopg.OperationalError: errors.OperationalError,
}
REMEDIES: dict[str, str] = {
    "40001": "nothing was kept: run the transaction again; db.run_transaction does that by itself, and "
    "connect(serial_writes=True) avoids it",
    "40P01": "nothing was kept: run the transaction again; db.run_transaction does that by itself",
    "42P18": CAST,
    "42725": CAST,
    "42804": CAST,
    "42883": CAST,
    "22003": CAST,
    "53100": "make room on the server's disk; the transaction was rolled back",
    "53300": "raise the server's max_connections, or lower max_size in PoolConfig",
    "55P03": "another transaction holds the lock; make transactions shorter, or raise the timeout",
    "57014": "the deadline passed while it ran, or it was cancelled; make it smaller, or raise the timeout",
}
SHUTDOWN = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})
"""The server ended the session: it says so, and hangs up."""

DRIVER_ERRORS = (psycopg.Error, ValueError, TypeError, OverflowError)
"""What a call of the driver's may raise: its own, and what Python says of values that it cannot write or read."""

AGAIN = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockTimeout, errors.ConnectionLost)
"""What a transaction is run again for, where it may be."""


def state_of(error: BaseException) -> str:
    """Give the SQLSTATE of a driver's exception, "" where it has none."""
    return getattr(error, "sqlstate", None) or ""


def is_stale_plan(error: BaseException | None) -> bool:
    """Tell whether a prepared statement was made useless by ALTER TABLE ("cached plan must not change result type").

    Its code is that of everything that is not supported, so the function of the server's that raised it is looked at.
    Asking for what is prepared would come too late: a rollback makes the driver forget it all.
    """
    return (
        isinstance(error, psycopg.Error)
        and error.sqlstate == "0A000"
        and error.diag.source_function == "RevalidateCachedQuery"
    )


def classify(error: BaseException, *, doing: str, broken: bool) -> errors.Error:
    """Make our error of the driver's; ``doing`` is what was tried, ``broken`` says that the link is gone.

    The driver's error becomes the cause, but for a link's: its text is the network library's, and may quote what it was
    given to connect with (H51).
    """
    if isinstance(error, errors.Error):
        return error
    state = state_of(error)
    if state in SHUTDOWN or state.startswith("08") or (broken and not state):
        return lost(doing, state)
    cls = CODES.get(state) or CLASSES.get(state[:2]) or _by_driver(error)
    told = _told(error) if isinstance(error, psycopg.Error) else str(error)
    remedy = REMEDIES.get(state)
    ours = cls(f"{doing}: {told}" + (f" ({remedy})" if remedy else ""), sqlstate=state or None)
    if state in ("53300", "53200"):
        ours.retryable = True
    ours.__cause__ = error
    return ours


def lost(doing: str, state: str = "") -> errors.ConnectionLost:
    """Make the error for a link that broke before COMMIT was sent."""
    said = f" (the server said {state})" if state else ""
    return errors.ConnectionLost(
        f"{doing}: the connection broke{said}; nothing of it was kept, so it can be run again", sqlstate=state or None
    )


def unanswered(doing: str) -> errors.QueryCanceled:
    """Make the error for a link that was given up, because no answer came by the deadline, nor word of a limit."""
    return errors.QueryCanceled(
        f"{doing}: it was not sent and answered by the deadline, so the connection was closed; nothing of it was kept. "
        "Look at the server and the network; where it was only slow, or large, raise the timeout"
    )


def _by_driver(error: BaseException) -> type[errors.Error]:
    for theirs, ours in DRIVER.items():
        if isinstance(error, theirs):
            return ours
    return errors.DatabaseError if isinstance(error, psycopg.Error) else errors.ProgrammingError


def _told(error: psycopg.Error) -> str:
    """Give the server's words, with what it tells of the place."""
    diag = error.diag
    if not diag.message_primary:
        return str(error)
    text = diag.message_primary
    if diag.message_detail:
        text += f". {diag.message_detail.rstrip('.')}"
    if diag.message_hint:
        text += f". {diag.message_hint.rstrip('.')}"
    if diag.constraint_name and diag.constraint_name not in text:
        text += f" [constraint {diag.constraint_name}]"
    if diag.table_name and diag.table_name not in text:
        text += f" [table {diag.table_name}]"
    return text
