"""Who is inside a transaction or a snapshot: a call that would wait for its own thread is refused at once."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping

from safedb import errors


class Inside:
    """Know the threads inside one database, whatever handle they came by. Each thread changes only its own entries."""

    def __init__(self) -> None:
        self.writing: dict[int, str] = {}  # inside a write transaction, by ident: what it is
        self.reading: set[int] = set()  # inside a snapshot

    def refuse(self, name: str, *, reading: bool) -> None:
        """Raise `ReentrancyError` if the calling thread is inside a transaction, or reads inside a snapshot."""
        refuse(name, self.writing, self.reading, reading=reading)


def refuse(name: str, inside: Mapping[int, object], snapping: Container[int], *, reading: bool) -> None:
    """Raise `ReentrancyError` if the calling thread is ``inside`` a transaction, or reads while it is ``snapping``."""
    ident = threading.get_ident()
    what = inside.get(ident)
    if what is not None:
        raise errors.ReentrancyError(
            f"this thread is inside {what} on {name}: a call through db would wait for itself. Use tx"
        )
    if reading and ident in snapping:
        raise errors.ReentrancyError(
            f"this thread is inside a snapshot of {name}: a read through db would see another state. Use snap"
        )
