"""peewee in the two forms that its documentation has for many threads: a queue with a writer, and a pool.

`SqliteQueueDatabase` sends every statement but SELECT to one thread, which runs it in autocommit. What `execute_sql`
gives there is not yet written: asking it for its row count waits for the writer, and raises what went wrong. It has no
transactions. The queue's limit and the limit of the wait are those of the documentation's example.

`PooledSqliteDatabase` lends a connection for as long as one is open, and transactions take the lock as they begin:
``atomic("IMMEDIATE")``. SQL is given as text, which is less work than building it from models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from playhouse.pool import PooledSqliteDatabase
from playhouse.sqliteq import SqliteQueueDatabase

from benchmarks.case import Work
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
    at_once,
)

WAITING = 64  # writes in the queue at the most, as in the documentation's example


class _ByQueue(Lane):
    def __init__(self, db: Any) -> None:
        self._db = db
        self._execute = db.execute_sql

    def write(self, thread: int, number: int) -> None:
        if self._execute(INSERT, (thread, number, PAYLOAD)).rowcount != 1:
            raise RuntimeError("the writer has not inserted the row")

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._execute(POINT, (key,)).fetchone()
        return row

    def range(self, key: int) -> Sequence[Any]:
        rows: Sequence[Any] = self._execute(SPAN, (key,)).fetchall()
        return rows

    def rest(self) -> None:
        self._db.close()


class Queued(Peer):
    """Send writes to one thread, and wait for each; reads have a connection for each thread."""

    name = "peewee, SqliteQueueDatabase"
    package = "peewee"
    source = "https://docs.peewee-orm.com/en/latest/peewee/sqlite.html#sqlitequeuedatabase"
    works: ClassVar[frozenset[Work]] = frozenset({"write", "point", "range", "mixed"})
    remark = "no transactions; a write is acknowledged only to who asks for its result, here always"

    def __init__(self, place: Place) -> None:
        self._db = SqliteQueueDatabase(
            str(place.path),
            autostart=True,
            queue_max_size=WAITING,
            results_timeout=place.timeout,
            timeout=place.timeout,
            pragmas=dict(place.pragmas),
        )
        place.check(lambda pragma: self._db.execute_sql(pragma).fetchone()[0])  # not a SELECT: the writer answers

    def lane(self) -> Lane:
        self._db.connect(reuse_if_open=True)
        return _ByQueue(self._db)

    def close(self) -> None:
        self._db.stop()
        self._db.close()


class _ByPool(Lane):
    def __init__(self, db: Any) -> None:
        self._execute, self._open, self._atomic = db.execute_sql, db.connection_context, db.atomic

    def write(self, thread: int, number: int) -> None:
        with self._open(), self._atomic("IMMEDIATE"):
            self._execute(INSERT, (thread, number, PAYLOAD))

    def block(self, thread: int, number: int) -> None:
        execute, key = self._execute, number % COUNTERS
        with self._open(), self._atomic("IMMEDIATE"):
            found = execute(READ_COUNTER, (key,)).fetchone()[0]
            execute(WRITE_COUNTER, (found + 1, key))
            execute(INSERT, (thread, number, PAYLOAD))

    def function(self, thread: int, number: int) -> None:
        self.block(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        with self._open():
            row: Sequence[Any] = self._execute(POINT, (key,)).fetchone()
        return row

    def range(self, key: int) -> Sequence[Any]:
        with self._open():
            rows: Sequence[Any] = self._execute(SPAN, (key,)).fetchall()
        return rows


class Pooled(Peer):
    """Borrow a connection from the pool for each call."""

    name = "peewee, pooled"
    package = "peewee"
    source = "https://docs.peewee-orm.com/en/latest/peewee/db_tools.html#connection-pooling"
    remark = "needs check_same_thread=False, which the pool does not set; its timeout= is the pool's, not SQLite's"

    def __init__(self, place: Place) -> None:
        self._db = PooledSqliteDatabase(
            str(place.path),
            max_connections=READERS,
            timeout=place.timeout,
            check_same_thread=False,
            pragmas={"busy_timeout": place.pragmas["busy_timeout"]} | place.pragmas,  # the timeout first
        )
        at_once(READERS, self._db.connection_context)
        with self._db.connection_context():
            place.check(lambda pragma: self._db.execute_sql(pragma).fetchone()[0])

    def lane(self) -> Lane:
        return _ByPool(self._db)

    def close(self) -> None:
        self._db.close_all()
