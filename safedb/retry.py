"""What an error means, and when the same thing may be tried again.

`classify` goes by ``sqlite_errorcode`` alone, never by text: SQLite's extended result codes are stable, its messages
are not (https://sqlite.org/rescode.html). Whether a retry is safe depends on the *phase* in which the error came:

=========  =====================================================  =========================================
phase      what is known                                          so
=========  =====================================================  =========================================
BEGIN      nothing was done                                       BUSY: wait and try again
INSIDE     nothing is committed; SQLite may have rolled back      run the whole transaction again, if it may
                                                                  be run twice
COMMIT     BUSY, FULL, a failed write: not committed;             say so; never a blind retry
           a failed fsync, or an index of the WAL that cannot
           grow: nobody can know (`CommitUnknownError`)
=========  =====================================================  =========================================

tenacity holds the schedule (exponential backoff, full jitter, one total deadline). It is entered only after a first
failure: its own success path costs more than a whole read.
"""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from safedb import errors
from safedb.config import ResolvedRetryPolicy

T = TypeVar("T")

# https://sqlite.org/rescode.html; the stdlib has them as constants only from Python 3.11 on, and not all of them.
ERROR, PERM, ABORT, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT = 1, 3, 4, 5, 6, 7, 8, 9, 10, 11
FULL, CANTOPEN, SCHEMA, TOOBIG, CONSTRAINT, MISMATCH, MISUSE, AUTH, RANGE, NOTADB = (
    13,
    14,
    17,
    18,
    19,
    20,
    21,
    23,
    25,
    26,
)
IOERR_FSYNC = IOERR | 4 << 8
IOERR_DIR_FSYNC = IOERR | 5 << 8
IOERR_NOMEM = IOERR | 12 << 8
IOERR_SHMSIZE = IOERR | 19 << 8
IOERR_SHMMAP = IOERR | 21 << 8
BUSY_SNAPSHOT = BUSY | 2 << 8

CONSTRAINTS: dict[int, type[errors.IntegrityError]] = {
    CONSTRAINT | 1 << 8: errors.CheckViolation,
    CONSTRAINT | 3 << 8: errors.ForeignKeyViolation,
    CONSTRAINT | 5 << 8: errors.NotNullViolation,
    CONSTRAINT | 6 << 8: errors.UniqueViolation,  # PRIMARY KEY
    CONSTRAINT | 8 << 8: errors.UniqueViolation,
    CONSTRAINT | 10 << 8: errors.UniqueViolation,  # ROWID
}
CLASSES: dict[int, type[errors.Error]] = {
    ERROR: errors.ProgrammingError,
    # With the text of an ERROR: told of a statement that cannot be prepared, by a connection that has not read the
    # schema as it is now (SQLite itself tries again where the schema is all that is wrong).
    SCHEMA: errors.ProgrammingError,
    BUSY: errors.LockTimeout,
    LOCKED: errors.OperationalError,
    INTERRUPT: errors.QueryCanceled,
    FULL: errors.DatabaseFull,
    TOOBIG: errors.DataError,
    CONSTRAINT: errors.IntegrityError,
    CONSTRAINT | 12 << 8: errors.DataError,  # DATATYPE: a STRICT table, and a value of another type
    MISMATCH: errors.DataError,
    RANGE: errors.ProgrammingError,
    AUTH: errors.ProgrammingError,
    CORRUPT: errors.DatabaseError,
    NOTADB: errors.DatabaseError,
}
REMEDIES: dict[int, str] = {
    CORRUPT: "stop writing, keep a copy of all its files, and restore a backup or run sqlite3's .recover",
    NOTADB: "the file is no SQLite database; look at the path",
    FULL: "make room on the disk, or raise max_page_count; the transaction was rolled back",
    READONLY: "look at the rights of the file and its folder",
    CANTOPEN: "look at the folder's existence and rights, and at the limit of open files",
    IOERR: "look at the disk, at quotas and ulimit -f, and at the system's log",
    NOMEM: "free memory",
    INTERRUPT: "the deadline passed while it ran; make it smaller, or raise the timeout",
}


def _extended() -> Iterator[tuple[int, str]]:
    for primary, name, words in (
        (ERROR, "ERROR", "MISSING_COLLSEQ RETRY SNAPSHOT"),
        (ABORT, "ABORT", "- ROLLBACK"),
        (BUSY, "BUSY", "RECOVERY SNAPSHOT TIMEOUT"),
        (LOCKED, "LOCKED", "SHAREDCACHE VTAB"),
        (READONLY, "READONLY", "RECOVERY CANTLOCK ROLLBACK DBMOVED CANTINIT DIRECTORY"),
        (
            IOERR,
            "IOERR",
            "READ SHORT_READ WRITE FSYNC DIR_FSYNC TRUNCATE FSTAT UNLOCK RDLOCK DELETE BLOCKED NOMEM ACCESS"
            " CHECKRESERVEDLOCK LOCK CLOSE DIR_CLOSE SHMOPEN SHMSIZE SHMLOCK SHMMAP SEEK DELETE_NOENT MMAP GETTEMPPATH"
            " CONVPATH VNODE AUTH BEGIN_ATOMIC COMMIT_ATOMIC ROLLBACK_ATOMIC DATA CORRUPTFS IN_PAGE",
        ),
        (CORRUPT, "CORRUPT", "VTAB SEQUENCE INDEX"),
        (CANTOPEN, "CANTOPEN", "NOTEMPDIR ISDIR FULLPATH CONVPATH DIRTYWAL SYMLINK"),
        (
            CONSTRAINT,
            "CONSTRAINT",
            "CHECK COMMITHOOK FOREIGNKEY FUNCTION NOTNULL PRIMARYKEY TRIGGER UNIQUE VTAB ROWID PINNED DATATYPE",
        ),
        (AUTH, "AUTH", "USER"),
    ):
        for number, word in enumerate(words.split(), 1):
            yield primary | number << 8, f"SQLITE_{name}_{word}"


EXTENDED = dict(_extended())
"""The names of the extended result codes."""


class Phase(enum.Enum):
    """Name where in its transaction an error came."""

    BEGIN = "BEGIN"
    INSIDE = "a statement"
    COMMIT = "COMMIT"


def code_of(error: BaseException) -> int:
    """Give SQLite's extended result code of a driver's exception, 0 where it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return code if isinstance(code, int) else 0


def name_of(error: BaseException) -> str | None:
    """Give the name of SQLite's result code; some codes are newer than the driver's list of names (H6)."""
    name = getattr(error, "sqlite_errorname", None)
    return name if name not in ("unknown", "SQLITE_UNKNOWN") else EXTENDED.get(code_of(error))


def is_busy(error: BaseException) -> bool:
    """Tell whether another connection's lock was in the way (BUSY and its kin, never LOCKED: that is our own)."""
    return code_of(error) & 0xFF == BUSY


def is_unknown_commit(error: BaseException) -> bool:
    """Tell whether a COMMIT that failed so may still be found committed after a crash (H14).

    After a failed fsync nobody knows what is on the disk. The others come when the WAL's index cannot be made larger,
    which is tried after the transaction is in the WAL, whole and flushed: a recovery would find it there.
    """
    return code_of(error) in (IOERR_FSYNC, IOERR_DIR_FSYNC, IOERR_SHMSIZE, IOERR_SHMMAP, IOERR_NOMEM)


def classify(error: BaseException, *, doing: str, phase: Phase = Phase.INSIDE) -> errors.Error:
    """Make our error of a driver's, with the driver's as its cause; ``doing`` is what was tried ("INSERT INTO t …")."""
    if isinstance(error, errors.Error):
        return error
    code = code_of(error)
    name = name_of(error)
    if not code:
        ours: errors.Error = _without_code(error, doing)
    elif phase is Phase.COMMIT and is_unknown_commit(error):
        ours = errors.CommitUnknownError(
            f"{doing}: {error}. The disk failed while COMMIT was under way: after a crash the transaction may be found "
            "committed or not. Look for its own traces before you run it again",
            sqlite_errorname=name,
        )
    else:
        cls = CONSTRAINTS.get(code) or CLASSES.get(code) or CLASSES.get(code & 0xFF, errors.OperationalError)
        remedy = REMEDIES.get(code & 0xFF)
        ours = cls(f"{doing}: {error}" + (f" ({remedy})" if remedy else ""), sqlite_errorname=name)
    ours.__cause__ = error
    return ours


def _without_code(error: BaseException, doing: str) -> errors.Error:
    """Map what the driver raises by itself, before SQLite is asked: told apart by its type."""
    if isinstance(error, OverflowError):
        return errors.DataError(f"{doing}: {error}")
    if isinstance(error, UnicodeError):
        return errors.DataError(f"{doing}: {error}. Store bytes where the text is not UTF-8")
    name = type(error).__name__
    if name in ("DataError", "NotSupportedError", "InterfaceError", "InternalError", "OperationalError"):
        cls: type[errors.Error] = getattr(errors, name)
        return cls(f"{doing}: {error}")
    return errors.ProgrammingError(f"{doing}: {error}")


def prepare() -> None:
    """Import tenacity now: `connect` calls this, so that no held turn ever pays for the import (35 ms)."""
    import tenacity  # noqa: F401


def run_again(
    attempt: Callable[[], T],
    *,
    policy: ResolvedRetryPolicy,
    deadline: float,
    may_retry: Callable[[BaseException], bool],
    on_retry: Callable[[int, float], None],
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Run ``attempt`` on the policy's schedule, after a first failure; call it in the ``except`` clause of that.

    Wait first, then try; stop at ``deadline`` (monotonic seconds) or after ``policy.attempts`` tries in all (the first
    failure counts as one), and raise what the last try raised. No wait reaches beyond the deadline. ``on_retry`` is
    told the number of the try that failed and the seconds until the next one.
    """
    import tenacity

    failure = sys.exception()  # the schedule's first try; raised where no second one is allowed

    schedule: Callable[[tenacity.RetryCallState], float]
    if policy.jitter:
        schedule = tenacity.wait_random_exponential(policy.initial, policy.maximum, policy.multiplier)
    else:
        schedule = tenacity.wait_exponential(policy.initial, policy.maximum, policy.multiplier)

    def clipped(state: tenacity.RetryCallState) -> float:
        return max(0.0, min(schedule(state), deadline - monotonic()))

    def over(state: tenacity.RetryCallState) -> bool:
        tries = state.attempt_number
        return monotonic() >= deadline or (policy.attempts is not None and tries >= policy.attempts)

    def once() -> T:
        nonlocal failure
        if failure is not None:
            first, failure = failure, None
            raise first
        return attempt()

    def before_sleep(state: tenacity.RetryCallState) -> None:
        on_retry(state.attempt_number, state.next_action.sleep if state.next_action else 0.0)

    return tenacity.Retrying(
        stop=over,
        wait=clipped,
        retry=tenacity.retry_if_exception(may_retry),
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )(once)
