"""Datasette's `Database`: one thread writes, what is to be written stands in a queue; awaiting it waits for the commit.

The calls are coroutines. As in the server there is one event loop; it runs in a thread of its own, and the lanes wait
for what they have handed to it. Several statements are given as a function to `execute_write_fn`, which wraps it into a
transaction that takes the lock when it begins. Settings of a connection come from the documented plugin hook
`prepare_connection`. Reads have a pool of threads, ``num_sql_threads``, by default 3.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

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


class _Waiting(Lane):
    def __init__(self, db: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._db, self._loop = db, loop

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def write(self, thread: int, number: int) -> None:
        self._wait(self._db.execute_write(INSERT, (thread, number, PAYLOAD)))

    def function(self, thread: int, number: int) -> None:
        key = number % COUNTERS

        def add(conn: Any) -> None:
            found = conn.execute(READ_COUNTER, (key,)).fetchone()[0]
            conn.execute(WRITE_COUNTER, (found + 1, key))
            conn.execute(INSERT, (thread, number, PAYLOAD))

        self._wait(self._db.execute_write_fn(add))

    def block(self, thread: int, number: int) -> None:
        self.function(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._wait(self._db.execute(POINT, (key,))).first()
        return row

    def range(self, key: int) -> Sequence[Any]:
        rows: Sequence[Any] = self._wait(self._db.execute(SPAN, (key,))).rows
        return rows


class _Settings:
    """Be the plugin that sets up connections; those that only read cannot change the journal mode, nor need to."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @hookimpl  # type: ignore[untyped-decorator]
    def prepare_connection(self, conn: Any, database: str) -> None:
        if database == self._place.path.stem:
            for name, value in list(self._place.pragmas.items())[1:]:
                conn.execute(f"PRAGMA {name} = {value}")
            self._place.check(lambda pragma: conn.execute(pragma).fetchone()[0])


class WithDatasette(Peer):
    """Use the queue of writes of Datasette's server without the server."""

    name = "Datasette"
    package = "datasette"
    source = "https://docs.datasette.io/en/latest/internals.html#await-db-execute-write-sql-params-none-block-true"
    many_processes: ClassVar[bool] = False
    remark = "asynchronous: each call goes through an event loop; meant for one server process"

    def __init__(self, place: Place) -> None:
        self._plugin = _Settings(place)
        pm.register(self._plugin)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
        self._thread.start()
        self._server = Datasette([str(place.path)])
        self._db = self._server.get_database(place.path.stem)

    def lane(self) -> Lane:
        return _Waiting(self._db, self._loop)

    def close(self) -> None:
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        pm.unregister(self._plugin)
