"""What can be counted, what can be told: `Stats` (a frozen snapshot), events, and who hears of them.

Counters of the writer's side are changed only by the thread that has the turn, so they are exact without a lock of
their own. A hook (``connect(on_event=…)``) is any callable that takes one frozen event; it runs in the thread that met
the event, must be quick, and must not call the database. What it raises is logged and goes no further. Every event is
logged on the ``safedb`` logger as well: what slows things down at WARNING, what is merely worth knowing at INFO.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("safedb")

BUCKETS = 28  # the last one begins at 2**26 µs, 67 s


@dataclass(frozen=True, slots=True)
class Waits:
    """Sum up how long something took: seconds, and a histogram.

    ``histogram[k]`` counts what took less than ``2**k`` microseconds (and not less than half of that); the last bucket
    holds all that is longer.
    """

    count: int = 0
    total: float = 0.0
    max: float = 0.0
    histogram: tuple[int, ...] = (0,) * BUCKETS

    @property
    def mean(self) -> float:
        """Give the mean in seconds, 0.0 where nothing was counted."""
        return self.total / self.count if self.count else 0.0


class Timer:
    """Gather what `Waits` shows."""

    __slots__ = ("histogram", "longest", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.longest = 0.0
        self.histogram = [0] * BUCKETS

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds
        self.histogram[min(int(seconds * 1e6).bit_length(), BUCKETS - 1)] += 1

    def add_many(self, durations: Sequence[float]) -> None:
        """Count several."""
        self.total += sum(durations)
        self.longest = max(self.longest, *durations)
        histogram, last = self.histogram, BUCKETS - 1
        for seconds in durations:
            histogram[min(int(seconds * 1e6).bit_length(), last)] += 1

    def snapshot(self) -> Waits:
        """Freeze the present state."""
        histogram = tuple(self.histogram)
        return Waits(sum(histogram), self.total, self.longest, histogram)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Show the readers: how many are open, how many are in use, how many calls wait for one, how many ever waited."""

    size: int = 0
    in_use: int = 0
    waiting: int = 0
    waited: int = 0
    max_size: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """Show one database's engine at one moment. All handles on one file in one process share it.

    Times are seconds, sizes bytes. ``turns`` counts turns taken, ``commits`` transactions committed, ``group_sizes``
    how many writes each commit acknowledged (size → count), ``retries`` what was run again, by cause (``busy``: another
    program held SQLite's lock; ``careful``: a group run again with savepoints; ``lost``: a transaction that an error
    ended; ``broken up``: a group that held a member past its time), ``lock_waits`` the waits for other processes'
    turns, ``oldest_snapshot`` the age of the oldest open snapshot or None.

    On PostgreSQL ``queue_depth`` are the calls that wait for a connection that writes, ``waits`` how long they did,
    ``turns`` the write transactions begun, ``retries`` by ``serialization``, ``deadlock``, ``lock``, ``connection`` and
    ``plan`` (ALTER TABLE has made a prepared statement useless); ``readers`` and ``writers`` are its two pools of
    connections, as they tell it themselves. What only SQLite has (the WAL, checkpoints, groups larger than one) stays
    at its default.
    """

    dialect: str
    queue_depth: int = 0
    waits: Waits = Waits()
    turns: int = 0
    commits: int = 0
    writes: int = 0
    group_sizes: dict[int, int] = field(default_factory=dict)
    commit_times: Waits = Waits()
    retries: dict[str, int] = field(default_factory=dict)
    lock_waits: Waits = Waits()
    readers: PoolStats = PoolStats()
    writers: PoolStats = PoolStats()
    wal_bytes: int = 0
    checkpoints: Waits = Waits()
    oldest_snapshot: float | None = None


class Counters:
    """Gather the writer's figures; changed only by the thread that has the turn."""

    __slots__ = (
        "checkpoints",
        "commit_times",
        "commits",
        "group_sizes",
        "lock_waits",
        "retries",
        "turns",
        "waits",
        "writes",
    )

    def __init__(self) -> None:
        self.turns = 0
        self.commits = 0
        self.writes = 0
        self.waits = Timer()
        self.commit_times = Timer()
        self.lock_waits = Timer()
        self.checkpoints = Timer()
        self.group_sizes: dict[int, int] = {}
        self.retries: dict[str, int] = {}

    def retried(self, cause: str) -> None:
        """Count one retry."""
        self.retries[cause] = self.retries.get(cause, 0) + 1

    def committed(self, writes: int) -> None:
        """Count one commit that acknowledged ``writes`` writes."""
        self.commits += 1
        self.writes += writes
        self.group_sizes[writes] = self.group_sizes.get(writes, 0) + 1


# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Be the base of all events; ``database`` names the file (or the host), never a password."""

    database: str

    level = logging.INFO


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """Tell that something was run again. ``cause`` as in `Stats.retries`; ``attempt`` counts from 1."""

    cause: str
    attempt: int
    waited: float


@dataclass(frozen=True, slots=True)
class SlowWait(Event):
    """Tell that a writer waited long for its turn. ``seconds``: how long; ``behind``: whom, where known."""

    seconds: float
    behind: str

    level = logging.WARNING


@dataclass(frozen=True, slots=True)
class SlowCheckpoint(Event):
    """Tell that a checkpoint took long, or could not finish. ``busy``: a reader held it up."""

    seconds: float
    wal_bytes: int
    busy: bool

    level = logging.WARNING


@dataclass(frozen=True, slots=True)
class FailedCheckpoint(Event):
    """Tell that the disk failed under a checkpoint of the keeper's, which is tried again. Nothing is lost by it."""

    error: str
    wal_bytes: int

    level = logging.WARNING


@dataclass(frozen=True, slots=True)
class LongSnapshot(Event):
    """Tell that an open snapshot keeps the WAL from shrinking. ``holder``: the thread's name; ``age`` in seconds."""

    holder: str
    age: float
    wal_bytes: int

    level = logging.WARNING


@dataclass(frozen=True, slots=True)
class Overrun(Event):
    """Tell that a deadline passed where nothing could be cut short: ``what`` is a COMMIT or the caller's own code."""

    what: str
    seconds: float

    level = logging.WARNING


Hook = Callable[[Event], Any]


class Hooks:
    """Pass events on to the logger and to every hook; a hook that fails disturbs nobody."""

    def __init__(self) -> None:
        self._hooks: list[Hook] = []

    def add(self, hook: Hook) -> None:
        """Let ``hook`` hear of every event from now on."""
        self._hooks.append(hook)

    def remove(self, hook: Hook) -> None:
        """Let ``hook`` hear no more; unknown ones are ignored."""
        if hook in self._hooks:
            self._hooks.remove(hook)

    def emit(self, event: Event) -> None:
        """Tell everybody."""
        logger.log(event.level, "%s", event)
        for hook in tuple(self._hooks):
            try:
                hook(event)
            except Exception:
                logger.exception("the on_event hook %r failed on %r", hook, event)
