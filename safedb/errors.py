"""The errors, and the one tree they hang on.

The first two levels carry PEP 249's names (https://peps.python.org/pep-0249/#exceptions), so that code written for
the DB-API keeps its ``except`` clauses; what safedb adds stands beneath them::

    Error
    ├── ConfigError                 a setting, a target or a limit that cannot be put in force
    ├── InterfaceError              the library is used in a way that it does not allow
    │   ├── ReentrancyError         a data call inside one's own transaction or snapshot
    │   └── DatabaseClosed          a call on a handle, transaction or snapshot that has ended
    └── DatabaseError
        ├── DataError               a value that would not come back as it went in
        ├── OperationalError        the surroundings: locks, limits, links, disks
        │   ├── LockTimeout         the deadline passed while waiting for the turn or a lock
        │   ├── QueueFull           the deadline passed while the queue of writers was full
        │   ├── PoolTimeout         the deadline passed while every reader was in use
        │   ├── QueryCanceled       the deadline passed while the statement ran
        │   ├── SerializationFailure, DeadlockDetected      run the transaction again
        │   ├── ConnectionLost      the link broke, and nothing was committed
        │   ├── CommitUnknownError  COMMIT may or may not have taken effect
        │   └── DatabaseFull        no room on the disk, or below the configured limit
        ├── IntegrityError
        │   ├── UniqueViolation, ForeignKeyViolation, NotNullViolation, CheckViolation
        ├── InternalError
        │   └── TransactionAborted  an earlier error has ended this transaction
        ├── ProgrammingError        the SQL or its parameters are wrong
        └── NotSupportedError       this database cannot do that; the text says what to use

Every error says what happened, to what, why, and what to do next. The driver's own exception is its ``__cause__``.
"""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Be the base of everything that safedb raises.

    ``sqlstate`` is the five-character SQLSTATE (on SQLite: that of the class, where one exists), ``sqlite_errorname``
    SQLite's own name such as ``"SQLITE_CONSTRAINT_UNIQUE"``, and ``retryable`` says that the same transaction may
    succeed when it is run again from its beginning.
    """

    sqlstate: str | None = None
    sqlite_errorname: str | None = None
    retryable: bool = False

    def __init__(
        self,
        message: str = "",
        *,
        sqlstate: str | None = None,
        sqlite_errorname: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        if sqlstate is not None:
            self.sqlstate = sqlstate
        if sqlite_errorname is not None:
            self.sqlite_errorname = sqlite_errorname
        if retryable is not None:
            self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments are lost by BaseException's own pickling; errors do cross process borders.
        return type(self), self.args, self.__dict__


class ConfigError(Error):
    """Refuse a setting, a target or a limit; the text names the one meant, where it can be guessed."""


class InterfaceError(Error):
    """Refuse a use of the library that it does not allow."""


class ReentrancyError(InterfaceError):
    """Refuse a data call inside one's own transaction or snapshot: it would wait for itself."""


class DatabaseClosed(InterfaceError):
    """Refuse a call on a handle, a transaction or a snapshot that has ended."""


class DatabaseError(Error):
    """Be the base of what concerns the data and the database."""


class DataError(DatabaseError):
    """Refuse a value that the database would not give back as it was given."""

    sqlstate = "22000"


class OperationalError(DatabaseError):
    """Report what the surroundings did: locks, limits, links, disks."""


class LockTimeout(OperationalError):
    """Report that the deadline passed while waiting for the turn to write, or for another program's lock."""

    sqlstate = "55P03"
    retryable = True


class QueueFull(OperationalError):
    """Report that the queue of writers was full until the deadline: backpressure, instead of memory."""

    sqlstate = "53000"
    retryable = True


class PoolTimeout(OperationalError):
    """Report that every reader was in use until the deadline."""

    sqlstate = "53300"
    retryable = True


class QueryCanceled(OperationalError):
    """Report that the deadline passed while the statement ran; it was interrupted and has no effect."""

    sqlstate = "57014"


class SerializationFailure(OperationalError):
    """Report that the transaction could not be serialised with others; run it again."""

    sqlstate = "40001"
    retryable = True


class DeadlockDetected(OperationalError):
    """Report that the transaction was chosen to end a deadlock; run it again."""

    sqlstate = "40P01"
    retryable = True


class ConnectionLost(OperationalError):
    """Report that the link broke before COMMIT was sent: nothing was committed."""

    sqlstate = "08006"
    retryable = True


class CommitUnknownError(OperationalError):
    """Report that COMMIT was under way when it failed: the transaction may or may not have taken effect.

    Nothing is retried on its own. Look for the transaction's own traces (an idempotency key) before running it again.
    """

    sqlstate = "08007"


class DatabaseFull(OperationalError):
    """Report that there was no room; the transaction was rolled back."""

    sqlstate = "53100"


class IntegrityError(DatabaseError):
    """Report a constraint that the change would break; the change was not made."""

    sqlstate = "23000"


class UniqueViolation(IntegrityError):
    """Report a duplicate where UNIQUE or PRIMARY KEY allows none."""

    sqlstate = "23505"


class ForeignKeyViolation(IntegrityError):
    """Report a reference to a row that is not there."""

    sqlstate = "23503"


class NotNullViolation(IntegrityError):
    """Report a NULL where none is allowed."""

    sqlstate = "23502"


class CheckViolation(IntegrityError):
    """Report a row that a CHECK constraint refuses."""

    sqlstate = "23514"


class InternalError(DatabaseError):
    """Report a state that the database cannot go on from."""


class TransactionAborted(InternalError):
    """Report that an earlier error has ended the transaction: nothing of it is kept, nothing more is accepted."""

    sqlstate = "25P02"


class ProgrammingError(DatabaseError):
    """Report wrong SQL, or parameters that do not fit it."""

    sqlstate = "42601"


class NotSupportedError(DatabaseError):
    """Report what this database cannot do; the text says what to use instead."""

    sqlstate = "0A000"
