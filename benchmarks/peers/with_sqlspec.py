"""sqlspec: its adapter for `sqlite3`, whose pool has a connection for each thread.

Each thread has a session of the pool for as long as it works; transactions take the lock when they begin, by the
documented driver feature ``default_transaction_mode``, with `begin` and `commit` of the session or its `transaction()`.
The pool sets synchronous = NORMAL and a busy timeout by itself, which the documented feature ``pragmas`` comes after.
Rows are read from a result's ``data``, as the driver gave them, which is faster than the dicts of `select`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from sqlspec import SQLSpec
from sqlspec.adapters.sqlite import SqliteConfig

from benchmarks.peers.peer import (
    COUNTERS,
    INSERT,
    PAYLOAD,
    POINT,
    READ_COUNTER,
    SPAN,
    WRITE_COUNTER,
    Lane,
    Peer,
    Place,
)


class _Session(Lane):
    def __init__(self, opened: Any) -> None:
        self._stack = ExitStack()
        self._session = session = self._stack.enter_context(opened)
        self._execute, self._transaction = session.execute, session.transaction

    def write(self, thread: int, number: int) -> None:
        with self._transaction():
            self._execute(INSERT, (thread, number, PAYLOAD))

    def block(self, thread: int, number: int) -> None:
        execute, key = self._execute, number % COUNTERS
        with self._transaction():
            found = execute(READ_COUNTER, (key,)).data[0][0]
            execute(WRITE_COUNTER, (found + 1, key))
            execute(INSERT, (thread, number, PAYLOAD))

    def function(self, thread: int, number: int) -> None:
        self.block(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._execute(POINT, (key,)).data[0]
        return row

    def range(self, key: int) -> Sequence[Any]:
        rows: Sequence[Any] = self._execute(SPAN, (key,)).data
        return rows

    def rest(self) -> None:
        self._stack.close()


class WithSqlspec(Peer):
    """Use the adapter with its pool."""

    name = "sqlspec"
    package = "sqlspec"
    source = "https://sqlspec.dev/usage/drivers_and_querying.html#transactions"
    remark = "its pool sets synchronous = NORMAL unless told otherwise; rows are taken as the driver gives them"

    def __init__(self, place: Place) -> None:
        self._spec = SQLSpec()
        self._config = self._spec.add_config(
            SqliteConfig(
                connection_config={
                    "database": str(place.path),
                    "timeout": place.timeout,
                    "isolation_level": None,
                    "enable_foreign_keys": True,
                },
                driver_features={"default_transaction_mode": "IMMEDIATE", "pragmas": dict(place.pragmas)},
            )
        )
        with self._spec.provide_session(self._config) as session:
            place.check(session.select_value)

    def lane(self) -> Lane:
        return _Session(self._spec.provide_session(self._config))

    def close(self) -> None:
        self._config.close_pool()
