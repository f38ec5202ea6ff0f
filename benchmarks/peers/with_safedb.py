"""safedb, on a file and on PostgreSQL: the defaults, but for the time that a call may wait and the size of the pools.

On a file it has `READERS` connections that read, as many as the pools of other peers have; on PostgreSQL half of them
read and half write, which is its default. It looks by itself whether its settings are in force, and refuses to open
where one is not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import safedb
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
    at_once,
)

HALF = READERS // 2


class _Lane(Lane):
    def __init__(self, db: safedb.Database) -> None:
        self._execute, self._run, self._transaction = db.execute, db.run_transaction, db.transaction

    def write(self, thread: int, number: int) -> None:
        self._execute(INSERT, (thread, number, PAYLOAD))

    def function(self, thread: int, number: int) -> None:
        self._run(_add, thread, number)

    def block(self, thread: int, number: int) -> None:
        with self._transaction() as tx:
            _add(tx, thread, number)

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._execute(POINT, (key,)).one()
        return row

    def range(self, key: int) -> Sequence[Any]:
        return self._execute(SPAN, (key,)).fetchall()


def _add(tx: safedb.Transaction, thread: int, number: int) -> None:
    key = number % COUNTERS
    found = tx.execute(READ_COUNTER, (key,)).scalar()
    tx.execute(WRITE_COUNTER, (found + 1, key))
    tx.execute(INSERT, (thread, number, PAYLOAD))


class WithSafedb(Peer):
    """Use safedb on a file."""

    name = "safedb"
    package = "safedb"
    source = "docs/tutorial.md"
    remark = "checkpoints from 16,000 pages of log on, which few runs reach, with room ahead; the others from 1,000 on"

    def __init__(self, place: Place) -> None:
        self._db = self._open(place)

    def _open(self, place: Place) -> safedb.Database:
        logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
        return safedb.connect(
            place.path,
            pragmas=safedb.Pragmas(synchronous=place.synchronous),
            pool=safedb.PoolConfig(max_size=READERS),
            retry=safedb.RetryPolicy(timeout=place.timeout),
        )

    def lane(self) -> Lane:
        return _Lane(self._db)

    def close(self) -> None:
        self._db.close()


class _Again(_Lane):
    """Run a block again that has lost to another, as its error says: on a server blocks are not queued."""

    def block(self, thread: int, number: int) -> None:
        while True:
            try:
                return super().block(thread, number)
            except safedb.SerializationFailure:
                continue


class OnPostgres(WithSafedb):
    """Use safedb on a server: writes are SERIALIZABLE, and what loses to another is run again."""

    name = "safedb on PostgreSQL"
    source = "docs/postgresql.md"
    dialect: ClassVar[Dialect] = "postgresql"
    remark = "SERIALIZABLE, where the other two work at READ COMMITTED with FOR UPDATE"

    def _open(self, place: Place) -> safedb.Database:
        db = safedb.connect(
            place.url,
            pool=safedb.PoolConfig(min_size=HALF, max_size=HALF),  # open from the start, as those of the other peers
            retry=safedb.RetryPolicy(timeout=place.timeout),
        )
        at_once(HALF, db.snapshot)
        at_once(HALF, db.transaction)
        return db

    def lane(self) -> Lane:
        return _Again(self._db)
