"""sqlite3worker: one thread has the connection, all others put statements into its queue and do not wait.

It commits when its queue is empty or after 100 statements. Nobody is told: an error is logged, the row is lost, and
`execute` has returned long before. So it acknowledges nothing, and is not compared with what does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sqlite3worker import Sqlite3Worker

from benchmarks.case import Work
from benchmarks.peers.peer import INSERT, PAYLOAD, POINT, SPAN, Lane, Peer, Place


class _Queue(Lane):
    def __init__(self, worker: Any) -> None:
        self._execute = worker.execute

    def write(self, thread: int, number: int) -> None:
        self._execute(INSERT, (thread, number, PAYLOAD))

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._execute(POINT, (key,))[0]
        return row

    def range(self, key: int) -> Sequence[Any]:
        rows: Sequence[Any] = self._execute(SPAN, (key,))
        return rows


class WithSqlite3worker(Peer):
    """Hand statements to the worker."""

    name = "sqlite3worker"
    package = "sqlite3worker"
    source = "https://github.com/palantir/sqlite3worker#readme"
    kind = "unacknowledged"
    works: ClassVar[frozenset[Work]] = frozenset({"write", "point", "range", "mixed"})
    many_processes: ClassVar[bool] = False  # "If you need multiple applications to write …": its README
    remark = "a write returns before it is run; what fails is logged and lost; a failed SELECT gives a string"

    def __init__(self, place: Place) -> None:
        self._worker = Sqlite3Worker(str(place.path))
        for name, value in place.pragmas.items():
            self._worker.execute(f"PRAGMA {name} = {value}")
        place.check(lambda pragma: self._worker.execute(f"SELECT * FROM {pragma.replace(' ', '_')}")[0][0])

    def lane(self) -> Lane:
        return _Queue(self._worker)

    def settle(self) -> None:
        self._worker.execute("SELECT 1")  # the last in the queue: what was before it is committed when it answers

    def close(self) -> None:
        self._worker.close()
