"""litequeue: a queue of messages in a SQLite file of its own, beside ours; its `put` stands for a write.

One queue is shared by all threads, which its connection allows. It sets synchronous = NORMAL itself and has no option
for it, so what is asked for is set on its connection afterwards.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, ClassVar

from litequeue import LiteQueue

from benchmarks.case import Work
from benchmarks.peers.peer import PAYLOAD, Lane, Peer, Place


class _Messages(Lane):
    def __init__(self, queue: Any) -> None:
        self._put = queue.put

    def write(self, thread: int, number: int) -> None:  # noqa: ARG002
        self._put(PAYLOAD)


class WithLitequeue(Peer):
    """Put messages into a queue."""

    name = "litequeue"
    package = "litequeue"
    source = "https://github.com/litements/litequeue#readme"
    kind = "other work"
    works: ClassVar[frozenset[Work]] = frozenset({"write"})
    remark = "puts a message, with two indexes; NORMAL unless set by hand on its connection"

    def __init__(self, place: Place) -> None:
        self._queue = _open(place)
        execute = self._queue.conn.execute
        for name, value in place.pragmas.items():
            execute(f"PRAGMA {name} = {value}")
        place.check(lambda pragma: execute(pragma).fetchone()[0])

    def lane(self) -> Lane:
        return _Messages(self._queue)

    def close(self) -> None:
        self._queue.close()

    def verify(self, place: Place, acknowledged: dict[int, int], added: int) -> int | None:  # noqa: ARG002
        with closing(_open(place)) as queue:
            found: int = queue.qsize()
        return found


def _open(place: Place) -> Any:
    return LiteQueue(str(place.path.with_suffix(".litequeue")), timeout=place.timeout)
