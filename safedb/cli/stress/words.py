"""What the report calls things, by database."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """Be what the report says differently: a failure to get a lock, the lock holder's doing, what was kept."""

    dialect: str
    store: str
    locked: str
    locked_key: str
    held: str
    kept: str
    shorter: str


FILE = Words(
    dialect="sqlite",
    store="file",
    locked='"database is locked" errors',
    locked_key="database_is_locked",
    held="held the write lock",
    kept="in the file exactly once, every account is right, and the file is sound.",
    shorter="by hand the usual wait is short because whoever has the lock keeps it while the others sleep; see the"
    " worst wait, and the slowest thread.",
)
SERVER = Words(
    dialect="postgresql",
    store="database",
    locked="waited in vain for a lock or a connection",
    locked_key="waited_in_vain",
    held="locked the tables against writing",
    kept="in the database exactly once, and every account is right.",
    shorter="by hand nobody looks whether what a transaction has read still holds when it writes (READ COMMITTED);"
    " safedb's transactions are SERIALIZABLE, and run again after a conflict. See the lost updates, and the errors.",
)
