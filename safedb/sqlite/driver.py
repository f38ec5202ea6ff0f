"""The SQLite module in use, chosen in this one place.

Everything under ``safedb.sqlite`` takes the module and its exception classes from here and nowhere else, so that a
newer SQLite (pysqlite3, say, whose exceptions are not subclasses of the standard library's: H6) can be put in by
changing one line, and no ``except`` clause then watches for the wrong module's errors.
"""

from __future__ import annotations

import sqlite3
from sqlite3 import (
    Connection,
    Cursor,
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)

VERSION: tuple[int, ...] = sqlite3.sqlite_version_info

__all__ = [
    "VERSION",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "sqlite3",
]
