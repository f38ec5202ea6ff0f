"""SQLite from many threads and processes without "database is locked", lost writes or starvation."""

from __future__ import annotations

from safedb.config import PoolConfig, Pragmas, RetryPolicy
from safedb.database import Database, connect
from safedb.errors import (
    CheckViolation,
    CommitUnknownError,
    ConfigError,
    ConnectionLost,
    DatabaseClosed,
    DatabaseError,
    DatabaseFull,
    DataError,
    DeadlockDetected,
    Error,
    ForeignKeyViolation,
    IntegrityError,
    InterfaceError,
    InternalError,
    LockTimeout,
    NotNullViolation,
    NotSupportedError,
    OperationalError,
    PoolTimeout,
    ProgrammingError,
    QueryCanceled,
    QueueFull,
    ReentrancyError,
    SerializationFailure,
    TransactionAborted,
    UniqueViolation,
)
from safedb.result import Result
from safedb.rows import class_row, dict_row, namedtuple_row, tuple_row
from safedb.stats import (
    Event,
    FailedCheckpoint,
    LongSnapshot,
    Overrun,
    PoolStats,
    Retried,
    SlowCheckpoint,
    SlowWait,
    Stats,
    Waits,
)
from safedb.transaction import Savepoint, Snapshot, Transaction
from safedb.types import Json

__version__ = "0.1.0"

__all__ = [
    "CheckViolation", "CommitUnknownError", "ConfigError", "ConnectionLost", "DataError", "Database", "DatabaseClosed",
    "DatabaseError", "DatabaseFull", "DeadlockDetected", "Error", "Event", "FailedCheckpoint", "ForeignKeyViolation",
    "IntegrityError", "InterfaceError", "InternalError", "Json", "LockTimeout", "LongSnapshot", "NotNullViolation",
    "NotSupportedError", "OperationalError", "Overrun", "PoolConfig", "PoolStats", "PoolTimeout", "Pragmas",
    "ProgrammingError", "QueryCanceled", "QueueFull", "ReentrancyError", "Result", "Retried", "RetryPolicy",
    "Savepoint", "SerializationFailure", "SlowCheckpoint", "SlowWait", "Snapshot", "Stats", "Transaction",
    "TransactionAborted", "UniqueViolation", "Waits", "__version__", "class_row", "connect", "dict_row",
    "namedtuple_row", "tuple_row",
]  # fmt: skip
