"""The way people write it by hand: ``sqlite3``, a connection for each thread, and the default timeout of 5 s.

Nothing here is made worse on purpose. WAL is switched on once, as every guide says; ``with connection:`` commits or
rolls back, as the documentation of ``sqlite3`` shows (https://docs.python.org/3/library/sqlite3.html#how-to-use-the-connection-context-manager).
What that code does not see: ``with connection:`` begins nothing. The SELECT of a transfer runs before the transaction
that its UPDATE opens, so two threads may read the same balance and the second write undoes the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from safedb.cli.stress import workload
from safedb.cli.stress.source import Row, seal
from safedb.cli.stress.workload import Outcome, Place, Transfer
from safedb.sqlite.driver import sqlite3


def prepare(place: Place) -> None:
    """Create the tables and the accounts, and switch WAL on."""
    with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")  # all or nothing; closing rolls back what an error left
        for statement in workload.PREPARATION:
            connection.execute(statement)
        connection.execute("COMMIT")


class ByHand:
    """Be the side that people write by hand."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def hands(self) -> ByHandHands:
        """Open the calling thread's own connection."""
        connection = sqlite3.connect(self._place.path)
        connection.execute(f"PRAGMA synchronous={self._place.synchronous}")
        return ByHandHands(connection)

    def judge(self, error: Exception) -> Outcome:
        """Call every kind of SQLITE_BUSY and SQLITE_LOCKED "database is locked", as SQLite's own text does."""
        code = getattr(error, "sqlite_errorcode", None) or 0
        return Outcome.LOCKED if code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} else Outcome.OTHER

    def describe(self) -> dict[str, float | int | str]:
        """Know nothing: nobody counts by hand."""
        return {}

    def close(self) -> None:
        """Hold nothing: each thread closes its own connection."""


class ByHandHands:
    """Read and write through the thread's own connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def insert(self, worker: int, sequence: int, row: Row) -> None:
        """Insert one row in a transaction of its own."""
        values = (worker, sequence, row.path, row.line, row.body, seal(row.crc, worker, sequence))
        with self._connection:
            self._connection.execute(workload.INSERT_ROW, values)

    def transfer(self, transfer: Transfer) -> bool:
        """Read both balances, decide, write both: in what looks like one transaction."""
        worker, sequence, source, target, amount = transfer
        with self._connection as connection:
            balance, version = connection.execute(workload.READ_ACCOUNT, (source,)).fetchone()
            other_balance, other_version = connection.execute(workload.READ_ACCOUNT, (target,)).fetchone()
            if balance < amount:
                return False
            connection.execute(workload.SET_ACCOUNT, (balance - amount, version + 1, source))
            connection.execute(workload.SET_ACCOUNT, (other_balance + amount, other_version + 1, target))
            connection.execute(workload.INSERT_TRANSFER, (worker, sequence, source, target, amount))
        return True

    def read_row(self, number: int) -> object:
        """Fetch one row by its id."""
        return self._connection.execute(workload.READ_ROW, (number,)).fetchone()

    def read_total(self) -> int:
        """Add up the accounts in two SELECTs, one after the other."""
        return sum(int(self._connection.execute(half).fetchone()[0]) for half in workload.HALVES)

    def hold(self, wait: Callable[[], object]) -> None:
        """Leave a read transaction open."""
        self._connection.execute("BEGIN")
        self.read_total()
        wait()
        self._connection.rollback()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
