"""diskcache: a cache in a SQLite file of its own, beside ours; its `set` stands for a write, `get` for a point read.

One `Cache` is shared by all threads, as its tutorial says; inside, each thread has a connection. Nothing may be evicted
here (``eviction_policy="none"``, ``cull_limit=0``), and ``sqlite_synchronous`` is as asked for: its default is NORMAL.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from diskcache import Cache

from benchmarks.case import Work
from benchmarks.peers.peer import PAYLOAD, Lane, Peer, Place
from safedb.sqlite.driver import connect


class _Keys(Lane):
    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._set, self._get = cache.set, cache.get

    def write(self, thread: int, number: int) -> None:
        self._set(f"{thread} {number}", PAYLOAD)

    def point(self, key: int) -> Sequence[Any]:
        row: Sequence[Any] = self._get(key)
        return row

    def rest(self) -> None:
        self._cache.close()  # this thread's connection


class WithDiskcache(Peer):
    """Set keys in a cache."""

    name = "diskcache"
    package = "diskcache"
    source = "https://grantjenks.com/docs/diskcache/tutorial.html#settings"
    kind = "other work"
    works: ClassVar[frozenset[Work]] = frozenset({"write", "point"})
    remark = "sets a key in a schema of its own, with an index and triggers that count; NORMAL unless told otherwise"

    def __init__(self, place: Place) -> None:
        self._cache = _open(place)
        with closing(connect(str(place.path))) as file, self._cache.transact():
            for key, n, v in file.execute("SELECT id, n, v FROM item"):
                self._cache.set(key, (n, v))
        found = self._cache.reset("sqlite_synchronous")
        if found != place.pragmas["synchronous"]:
            raise RuntimeError(f"synchronous = {found}")

    def lane(self) -> Lane:
        return _Keys(self._cache)

    def close(self) -> None:
        self._cache.close()

    def verify(self, place: Place, acknowledged: dict[int, int], added: int) -> int | None:  # noqa: ARG002
        with _open(place) as cache:
            return sum(isinstance(key, str) and bool(cache[key] == PAYLOAD) for key in cache)


def _open(place: Place) -> Any:
    folder: Path = place.path.with_suffix(".diskcache")
    return Cache(
        str(folder),
        timeout=place.timeout,
        eviction_policy="none",
        cull_limit=0,
        sqlite_synchronous=place.pragmas["synchronous"],
    )
