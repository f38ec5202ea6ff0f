"""apsw: a connection for each thread, with the settings of `apsw.bestpractice` and explicit transactions.

Its documentation says that several threads on one connection give no concurrency, and several connections do. Its
`with connection:` is not used here: it runs BEGIN without letting go of the interpreter's lock, so while it waits for
another writer that writer cannot go on either, until the busy timeout is over. `execute` lets go of it. Statements are
kept by apsw, 100 for each connection.

The functions of `bestpractice` are called one by one, as it allows: all of them together set a busy timeout of 0.1 s,
and then run PRAGMA optimize, which may write, and so fails while others do ("database is locked").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
from apsw import bestpractice

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

PRACTICES = (
    bestpractice.connection_wal,
    bestpractice.connection_enable_foreign_keys,
    bestpractice.connection_dqs,
    bestpractice.connection_recursive_triggers,
)


class _Own(Lane):
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._execute = connection.execute

    def write(self, thread: int, number: int) -> None:
        execute = self._execute
        execute("BEGIN IMMEDIATE")
        try:
            execute(INSERT, (thread, number, PAYLOAD))
            execute("COMMIT")
        except BaseException:
            self._undo()
            raise

    def function(self, thread: int, number: int) -> None:
        execute, key = self._execute, number % COUNTERS
        execute("BEGIN IMMEDIATE")
        try:
            found = execute(READ_COUNTER, (key,)).get
            execute(WRITE_COUNTER, (found + 1, key))
            execute(INSERT, (thread, number, PAYLOAD))
            execute("COMMIT")
        except BaseException:
            self._undo()
            raise

    def block(self, thread: int, number: int) -> None:
        self.function(thread, number)

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._execute(POINT, (key,)).get
        return row

    def range(self, key: int) -> Sequence[Any]:
        rows: Sequence[Any] = self._execute(SPAN, (key,)).get
        return rows

    def rest(self) -> None:
        self._connection.close()


class WithApsw(Peer):
    """Give each thread a connection."""

    name = "apsw"
    package = "apsw"
    source = "https://rogerbinns.github.io/apsw/execution.html#multi-threading"
    remark = "brings its own SQLite; its `with connection:` waits holding the interpreter's lock, so BEGIN is explicit"

    def __init__(self, place: Place) -> None:
        self._place = place

    def lane(self) -> Lane:
        connection = apsw.Connection(str(self._place.path))
        connection.set_busy_timeout(int(self._place.timeout * 1000))
        connection.pragma("synchronous", self._place.synchronous)
        for practice in PRACTICES:
            practice(connection)
        self._place.check(lambda pragma: connection.execute(pragma).get)
        return _Own(connection)
