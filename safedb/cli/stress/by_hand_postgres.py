"""The way people write it by hand: one ``psycopg_pool.ConnectionPool(url)`` for each process, at its defaults.

Nothing here is made worse on purpose. ``with pool.connection() as conn:`` commits or rolls back, as the documentation
of the pool shows (https://www.psycopg.org/psycopg3/docs/advanced/pool.html); the pool keeps its four connections, and
threads wait for one, up to its 30 s. What that code does not see: PostgreSQL's default is READ COMMITTED. Two
transfers may read the same balance, and the second write undoes the first; and two that update the same accounts in
opposite order deadlock, of which the server ends one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool

from safedb.cli.stress import server, workload
from safedb.cli.stress.source import Row, seal
from safedb.cli.stress.workload import Outcome, Place, Transfer

Pool = psycopg_pool.ConnectionPool[psycopg.Connection[tuple[Any, ...]]]

_CONFLICTS = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
_LOCK_NOT_AVAILABLE = "55P03"
_BROKEN = ("08", "57P")  # the link is lost, or the server ends the session


def _marked(statement: str) -> bytes:
    """Write a statement with the driver's own markers."""
    return statement.replace("?", "%s").encode()


_INSERT_ROW, _INSERT_TRANSFER = _marked(workload.INSERT_ROW), _marked(workload.INSERT_TRANSFER)
_READ_ACCOUNT, _SET_ACCOUNT = _marked(workload.READ_ACCOUNT), _marked(workload.SET_ACCOUNT)
_READ_ROW, _HALVES = _marked(workload.READ_ROW), tuple(_marked(half) for half in workload.HALVES)


def prepare(place: Place) -> None:
    """Create the tables and the accounts, all or nothing."""
    with psycopg.connect(server.dsn_of(place).reveal()) as connection:
        for statement in server.preparation(place):
            connection.execute(statement.encode())


class ByHand:
    """Be the side that people write by hand."""

    def __init__(self, place: Place) -> None:
        self._pool: Pool = psycopg_pool.ConnectionPool(server.dsn_of(place).reveal(), open=True)
        try:
            self._pool.wait()
        except BaseException:
            self._pool.close()
            raise

    def hands(self) -> ByHandHands:
        """Use the process's one pool."""
        return ByHandHands(self._pool)

    def judge(self, error: Exception) -> Outcome:
        """Tell by SQLSTATE; an error without one is a link that broke, maybe during COMMIT."""
        if isinstance(error, (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests)):
            return Outcome.LOCKED
        if not isinstance(error, psycopg.Error):
            return Outcome.OTHER
        state = error.sqlstate
        if state == _LOCK_NOT_AVAILABLE:
            return Outcome.LOCKED
        if state in _CONFLICTS:
            return Outcome.CONFLICT
        broken = isinstance(error, psycopg.OperationalError) if state is None else state.startswith(_BROKEN)
        return Outcome.UNKNOWN if broken else Outcome.OTHER

    def describe(self) -> dict[str, float | int | str]:
        """Tell how many connections there were."""
        return {"connections": self._pool.max_size}

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()


class ByHandHands:
    """Read and write through the pool that all threads of the process share."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def insert(self, worker: int, sequence: int, row: Row) -> None:
        """Insert one row in a transaction of its own."""
        values = (worker, sequence, row.path, row.line, row.body, seal(row.crc, worker, sequence))
        with self._pool.connection() as connection:
            connection.execute(_INSERT_ROW, values)

    def transfer(self, transfer: Transfer) -> bool:
        """Read both balances, decide, write both: in one transaction, READ COMMITTED."""
        worker, sequence, source, target, amount = transfer
        with self._pool.connection() as connection:
            balance, version = connection.execute(_READ_ACCOUNT, (source,)).fetchall()[0]
            other_balance, other_version = connection.execute(_READ_ACCOUNT, (target,)).fetchall()[0]
            if balance < amount:
                return False
            connection.execute(_SET_ACCOUNT, (balance - amount, version + 1, source))
            connection.execute(_SET_ACCOUNT, (other_balance + amount, other_version + 1, target))
            connection.execute(_INSERT_TRANSFER, (worker, sequence, source, target, amount))
        return True

    def read_row(self, number: int) -> object:
        """Fetch one row by its id."""
        with self._pool.connection() as connection:
            return connection.execute(_READ_ROW, (number,)).fetchone()

    def read_total(self) -> int:
        """Add up the accounts in two SELECTs of one transaction, each of which sees a state of its own."""
        with self._pool.connection() as connection:
            return sum(int(connection.execute(half).fetchall()[0][0]) for half in _HALVES)

    def hold(self, wait: Callable[[], object]) -> None:
        """Leave a transaction open that sees one state."""
        with self._pool.connection() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.execute(_HALVES[0])
            wait()

    def close(self) -> None:
        """Leave the pool alone: it belongs to the process."""
