"""PostgreSQL: the same work by psycopg_pool used by hand and by safedb, on one server.

All sides have as many connections, in one pool for reads and one for writes. By hand, reads are single statements in
autocommit, and writes run at SERIALIZABLE, as safedb's do: at the default, READ COMMITTED, they would promise less.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool

import safedb
from benchmarks import machine
from benchmarks.peers.peer import PAYLOAD
from benchmarks.verify import Wrong

PATIENCE = 60.0  # seconds that a write may wait: nobody is to lose by giving up
SIZE = 8  # connections in each pool
ROWS = 1000  # of the table that is read
MANY = 10_000  # rows of one executemany
TESTS = Path(__file__).resolve().parent.parent / "tests"


@contextmanager
def serving(url: str | None) -> Iterator[str]:
    """Give the URL of an empty schema, on the server of ``url`` or on one that lives as long as this.

    One of our own flushes what it commits, as any server does that holds data of worth.
    """
    if url is None:
        with _runner().Server(settings={"fsync": "on"}) as server:
            server.start()
            yield server.schema()
        return
    os.environ["SAFEDB_TEST_POSTGRES"] = url
    server = _runner().shared()
    try:
        yield server.schema()
    finally:
        server.close()


def _runner() -> Any:
    """Import what runs the servers of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module("pgserver")


class Side(ABC):
    """Do the work one way. Reads and single writes may come from any thread; ``written`` counts rows."""

    def __init__(self, url: str, table: str) -> None:
        self.table = table
        self.written = 0  # by `many`
        self._url = url
        self._numbers = itertools.count()
        self._keys = itertools.cycle(random.Random(4).choices(range(1, ROWS + 1), k=997))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                f"CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, thread integer,"
                " number integer, v text)".encode()
            )
            connection.execute(
                f"INSERT INTO {table} (thread, number, v)"
                " SELECT -1, n, n || ' ' || repeat('x', 100) FROM generate_series(1, %s) AS n".encode(),
                (ROWS,),
            )
            connection.execute(f"ANALYZE {table}".encode())

    def read(self) -> None:
        """Read one row by its key."""
        key = next(self._keys)
        if self._read(key) != [(f"{key} {PAYLOAD}",)]:
            raise Wrong(f"row {key} of {self.table}")

    def write(self) -> None:
        """Write one row in a transaction of its own."""
        self._write((0, next(self._numbers), PAYLOAD))

    def many(self) -> None:
        """Write `MANY` rows in one transaction."""
        self._many([(1, self.written + number, PAYLOAD) for number in range(MANY)])
        self.written += MANY

    @abstractmethod
    def _read(self, key: int) -> list[Any]: ...

    @abstractmethod
    def _write(self, row: tuple[Any, ...]) -> None: ...

    @abstractmethod
    def _many(self, rows: Sequence[tuple[Any, ...]]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def close(self) -> None:
        """Close everything, and count the rows: each that was acknowledged is there once."""
        self._close()
        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(
                f"SELECT thread, count(*), count(DISTINCT number) FROM {self.table} WHERE thread >= 0"
                " GROUP BY 1 ORDER BY 1".encode()
            )
            found = cursor.fetchall()
        expected = [(thread, n, n) for thread, n in ((0, next(self._numbers)), (1, self.written)) if n]
        if found != expected:
            raise Wrong(f"{self.table} holds {found}, acknowledged were {expected}")


class ByHand(Side):
    """Use psycopg_pool as its documentation shows; with ``check``, each connection is tried when it is lent."""

    def __init__(self, url: str, table: str, *, check: bool = False) -> None:
        super().__init__(url, table)
        how: dict[str, Any] = {"min_size": SIZE, "max_size": SIZE, "timeout": PATIENCE, "open": True}
        if check:
            how["check"] = psycopg_pool.ConnectionPool.check_connection
        self._readers = psycopg_pool.ConnectionPool(url, kwargs={"autocommit": True}, **how)
        self._writers = psycopg_pool.ConnectionPool(url, configure=_serializable, **how)
        self._readers.wait()
        self._writers.wait()
        self._select = f"SELECT v FROM {table} WHERE id = %s".encode()
        self._insert = f"INSERT INTO {table} (thread, number, v) VALUES (%s, %s, %s)".encode()

    def _read(self, key: int) -> list[Any]:
        with self._readers.connection() as connection:
            rows: list[Any] = connection.execute(self._select, (key,)).fetchall()
        return rows

    def _write(self, row: tuple[Any, ...]) -> None:
        with self._writers.connection() as connection:
            connection.execute(self._insert, row)

    def _many(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._writers.connection() as connection, connection.cursor() as cursor:
            cursor.executemany(self._insert, rows)

    def _close(self) -> None:
        self._readers.close()
        self._writers.close()


def _serializable(connection: psycopg.Connection[Any]) -> None:
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


class Safe(Side):
    """Use safedb."""

    def __init__(self, url: str, table: str) -> None:
        super().__init__(url, table)
        self._db = safedb.connect(
            url,
            pool=safedb.PoolConfig(min_size=SIZE, max_size=SIZE),
            retry=safedb.RetryPolicy(timeout=PATIENCE),
        )
        self._select = f"SELECT v FROM {table} WHERE id = ?"
        self._insert = f"INSERT INTO {table} (thread, number, v) VALUES (?, ?, ?)"

    def _read(self, key: int) -> list[Any]:
        return self._db.execute(self._select, (key,)).fetchall()

    def _write(self, row: tuple[Any, ...]) -> None:
        self._db.execute(self._insert, row)

    def _many(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._db.executemany(self._insert, rows)

    def _close(self) -> None:
        self._db.close()


def server(url: str) -> str:
    """Tell what server the figures were taken with; of one on this machine, also what its data lies on."""
    with psycopg.connect(url, autocommit=True) as connection:
        told = {
            name: connection.execute("SELECT current_setting(%s, true)", (name,)).fetchone()
            for name in ("server_version", "fsync", "synchronous_commit", "data_directory")
        }
        here = connection.info.host.startswith("/")
    version, flush, wait, data = (row[0] if row else "unknown" for row in told.values())
    place = f"Unix socket, its data on {machine.filesystem(Path(data))}" if here else "TCP"
    return f"PostgreSQL {version} by {place}, fsync {flush}, synchronous_commit {wait}"


def about(url: str) -> list[str]:
    """Tell in Markdown what server and driver the figures were taken with."""
    return [
        f"- {server(url)}; {SIZE} connections in each pool",
        f"- psycopg {psycopg.__version__} ({psycopg.pq.__impl__}, libpq {psycopg.pq.version()}), "
        f"psycopg_pool {psycopg_pool.__version__}",
    ]
