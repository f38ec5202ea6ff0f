"""What the run must know of SQLite beside the two sides: the file as evidence, its write lock, the size of its WAL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safedb.cli.stress.workload import Place
from safedb.sqlite.driver import sqlite3


class Evidence:
    """Answer questions about what the file holds, all of them about one state."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def ask(self, sql: str) -> Iterable[tuple[Any, ...]]:
        """Return the rows of a SELECT."""
        return self._connection.execute(sql)

    def integrity(self) -> list[str]:
        """Return what SQLite itself finds wrong with the file."""
        answers = [str(answer) for (answer,) in self._connection.execute("PRAGMA integrity_check")]
        return [answer for answer in answers if answer != "ok"]


@contextlib.contextmanager
def evidence(place: Place) -> Iterator[Evidence]:
    """Open the file for checking, without safedb, in a read transaction."""
    with contextlib.closing(sqlite3.connect(place.path, timeout=60)) as connection:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        yield Evidence(connection)


class Lock:
    """Be the write lock of a file, taken as a program does that knows nothing of safedb."""

    pause = 0.0005  # seconds between two tries

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def take(self) -> bool:
        """Try once.

        Asked for again and again: SQLite's busy handler sleeps so long that beside busy writers it may never get it.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        self._connection.execute("ROLLBACK")


@contextlib.contextmanager
def lock(place: Place) -> Iterator[Lock]:
    """Open a connection of its own to take the lock with."""
    with contextlib.closing(sqlite3.connect(place.path, timeout=0, isolation_level=None)) as connection:
        yield Lock(connection)


class WalSize:
    """Watch how large the WAL file gets."""

    def __init__(self, place: Place) -> None:
        self._wal = Path(f"{place.path}-wal")
        self._largest = 0

    def look(self) -> None:
        """Look at it now."""
        with contextlib.suppress(OSError):
            self._largest = max(self._largest, self._wal.stat().st_size)

    def result(self) -> dict[str, int]:
        """Return the largest size seen, in bytes."""
        return {"largest_wal": self._largest}
