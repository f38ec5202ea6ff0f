"""What can be wrong with SQLite, and with a file: asked at opening, by `Database.check` and by `safedb doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from safedb import errors
from safedb.options import checked
from safedb.sqlite.driver import REMEDY, VERSION
from safedb.values import Flag

FIXED = (3, 51, 3)  # the WAL-reset race ended here, and in these backports (https://sqlite.org/wal.html#walresetbug)
BACKPORTS = {(3, 44): 6, (3, 50): 7}
MENDED = "SAFEDB_WAL_RESET_FIXED"
RACE_REMEDY = f"for a newer SQLite: {REMEDY}; if your system has mended its own: {MENDED}=1"


def wal_reset_race(version: tuple[int, ...] = VERSION) -> bool:
    """Tell whether this version of SQLite has the race between a checkpoint and a commit (H1)."""
    major, minor, patch = version[:3]
    if (major, minor) in BACKPORTS:
        return patch < BACKPORTS[major, minor]
    return (3, 7, 0) <= version < FIXED


def said_to_be_mended(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the operator vouches for this SQLite: some systems mend theirs, and keep its number (H6)."""
    mended = checked(Flag().parse, environ.get(MENDED, "0"), f"the environment variable {MENDED}")
    return bool(mended)


def damage(ask: Callable[[str], list[tuple[Any, ...]]]) -> list[str]:
    """Look for damage and for broken references in what ``ask`` reads; it must be one committed state.

    Damage that keeps SQLite from looking any further is a finding like any other.
    """
    found = []
    try:
        found += [row[0] for row in ask("PRAGMA integrity_check") if row != ("ok",)]
        for table, row, parent, _ in ask("PRAGMA foreign_key_check"):
            found.append(f"row {row} of {table} refers to a row of {parent} that is not there")
    except errors.DatabaseError as error:
        if not str(error.sqlite_errorname).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise
        found.append(str(error))
    return found
