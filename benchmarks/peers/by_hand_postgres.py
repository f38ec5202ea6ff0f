"""PostgreSQL by hand: psycopg's pool, with connections in autocommit, where a statement alone is one round trip.

Several statements stand in `connection.transaction()`, at READ COMMITTED, the server's default; a row that is read to
be changed is locked by FOR UPDATE. All peers on PostgreSQL have `READERS` connections, open from the start; by hand
these are one pool, while safedb has one half to read and one to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg_pool

from benchmarks.case import Dialect
from benchmarks.peers.peer import (
    COUNTERS,
    INSERT,
    PAYLOAD,
    POINT,
    READ_COUNTER,
    READERS,
    SPAN,
    WRITE_COUNTER,
    Lane,
    Peer,
    Place,
)

ADD, ONE, SOME, LOCK, SET = (
    sql.replace("?", "%s").encode() for sql in (INSERT, POINT, SPAN, f"{READ_COUNTER} FOR UPDATE", WRITE_COUNTER)
)


class _Pooled(Lane):
    def __init__(self, pool: psycopg_pool.ConnectionPool) -> None:
        self._borrow = pool.connection

    def write(self, thread: int, number: int) -> None:
        with self._borrow() as connection:
            connection.execute(ADD, (thread, number, PAYLOAD))

    def block(self, thread: int, number: int) -> None:
        key = number % COUNTERS
        with self._borrow() as connection, connection.transaction():
            found: Any = connection.execute(LOCK, (key,)).fetchone()
            connection.execute(SET, (found[0] + 1, key))
            connection.execute(ADD, (thread, number, PAYLOAD))

    def function(self, thread: int, number: int) -> None:
        self.block(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        with self._borrow() as connection:
            row: Any = connection.execute(ONE, (key,)).fetchone()
        found: Sequence[Any] = row
        return found

    def range(self, key: int) -> Sequence[Any]:
        with self._borrow() as connection:
            return connection.execute(SOME, (key,)).fetchall()


class ByHand(Peer):
    """Use psycopg_pool."""

    name = "psycopg_pool by hand"
    package = "psycopg-pool"
    source = "https://www.psycopg.org/psycopg3/docs/advanced/pool.html"
    dialect: ClassVar[Dialect] = "postgresql"
    remark = "READ COMMITTED, with FOR UPDATE in functions and blocks"

    def __init__(self, place: Place) -> None:
        self._pool = psycopg_pool.ConnectionPool(
            place.url,
            kwargs={"autocommit": True},
            min_size=READERS,
            max_size=READERS,
            timeout=place.timeout,
            open=True,
        )
        self._pool.wait()

    def lane(self) -> Lane:
        return _Pooled(self._pool)

    def close(self) -> None:
        self._pool.close()
