"""What every peer can be asked to do, on which tables, and with which rows.

All peers work on the same tables and write the same rows, one transaction for each call. What a call has returned from
is acknowledged: afterwards it must be in the file.

The lanes of the peers look alike, and each is spelled out all the same: what they could share would be called for every
row, and make them slower than what somebody writes by hand.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.case import Dialect, Synchronous, Work

TIMEOUT = 5.0  # seconds that a call may wait for others: the default of sqlite3, SQLAlchemy, peewee and apsw's users
READERS = 16  # connections of a pool at the most, where a peer has one
PAYLOAD = "x" * 100
COUNTERS = 64  # rows of `counter`
RANGE = 100  # rows that a range read gives

TABLES = (
    "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, thread INTEGER, number INTEGER, v TEXT)",
    "CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, n INTEGER, v TEXT)",
    "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, n INTEGER)",
)
INSERT = "INSERT INTO t (thread, number, v) VALUES (?, ?, ?)"
POINT = "SELECT n, v FROM item WHERE id = ?"
SPAN = "SELECT id, n, v FROM item WHERE id >= ? ORDER BY id LIMIT 100"
READ_COUNTER = "SELECT n FROM counter WHERE id = ?"
WRITE_COUNTER = "UPDATE counter SET n = ? WHERE id = ?"


@dataclass(frozen=True, slots=True)
class Place:
    """Be where a peer works: a file that is there and has its tables and rows, or a server's URL with a schema."""

    path: Path
    url: str = ""
    schema: str = ""
    synchronous: Synchronous = "FULL"
    threads: int = 1
    timeout: float = TIMEOUT

    @property
    def pragmas(self) -> dict[str, str | int]:
        """Give what is to be in force on each connection that writes, by name; the log first."""
        return {
            "journal_mode": "wal",
            "synchronous": ("OFF", "NORMAL", "FULL").index(self.synchronous),
            "foreign_keys": 1,
            "busy_timeout": int(self.timeout * 1000),
        }

    def check(self, ask: Callable[[str], Any]) -> None:
        """Ask a connection (a pragma's text gives its value), and raise where something else is in force."""
        for name, value in self.pragmas.items():
            if (found := ask(f"PRAGMA {name}")) != value:
                raise RuntimeError(f"PRAGMA {name} gives {found!r}, where {value!r} was set")


def at_once(count: int, borrow: Callable[[], AbstractContextManager[Any]]) -> None:
    """Borrow so many connections at the same moment, and give them back: then a pool has opened them all."""
    barrier = threading.Barrier(count)

    def one(_: int) -> None:
        with borrow():
            barrier.wait(TIMEOUT)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(count)))


class Lane(ABC):  # noqa: B024  (what a peer cannot do stays as it is here)
    """Be what one thread has of a peer. A call that a peer has no way to do is not offered in its ``works``."""

    def write(self, thread: int, number: int) -> None:
        """Insert row ``number`` of ``thread`` into `t` in a transaction of its own; it is committed on return."""
        raise NotImplementedError

    def function(self, thread: int, number: int) -> None:
        """Read a counter (``number`` modulo `COUNTERS`), add one to what was read, write that, and insert as `write`.

        All in one transaction, by the peer's way of running a function; where it has none, as `block`.
        """
        raise NotImplementedError

    def block(self, thread: int, number: int) -> None:
        """Do what `function` does in a `with` block, or what the peer has for one."""
        raise NotImplementedError

    def point(self, key: int) -> Sequence[Any]:
        """Give the one row (n, v) of `item` with this id."""
        raise NotImplementedError

    def range(self, key: int) -> Sequence[Any]:
        """Give `RANGE` rows (id, n, v) of `item` from this id on, in order."""
        raise NotImplementedError

    def rest(self) -> None:  # noqa: B027
        """Put away what this thread has opened."""


class Peer(ABC):
    """Be one way to work with a database, set up as its own documentation recommends (``source``).

    ``kind``: ``acknowledging`` (a call that returns is committed), ``unacknowledged``, or ``other work`` (``remark``
    tells what it does instead; it is shown, and compared with nobody). ``works``: what it can do. ``many_processes``:
    whether several processes may use one file with it.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[str] = "acknowledging"
    dialect: ClassVar[Dialect] = "sqlite"
    remark: ClassVar[str] = ""
    works: ClassVar[frozenset[Work]] = frozenset({"write", "function", "block", "point", "range", "mixed"})
    many_processes: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, place: Place) -> None:
        """Open everything that the threads share."""

    @abstractmethod
    def lane(self) -> Lane:
        """Give a thread what it needs; called in that thread."""

    def settle(self) -> None:  # noqa: B027
        """Wait until what was accepted is written; for those that acknowledge nothing."""

    def close(self) -> None:  # noqa: B027
        """Close everything."""

    def verify(self, place: Place, acknowledged: dict[int, int], added: int) -> int | None:  # noqa: ARG002
        """Count what is there by the peer's own means, where it does not write into `t`; None: `t` is to be looked at.

        ``acknowledged``: calls that returned, by thread. ``added``: what was added to the counters.
        """
        return None
