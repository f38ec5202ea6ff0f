"""What is measured, and what came of it: plain data, the same in memory and in the JSON file of results.

A *case* is one peer doing one work under one load. It is run in processes of its own, several times, in turn with the
same case of every other peer; each such run gives an *outcome*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Work = Literal["write", "function", "block", "point", "range", "mixed"]
Beside = Literal["", "lock held", "reader held", "burning", "busy"]
Synchronous = Literal["FULL", "NORMAL"]
Scheduler = Literal["", "batch", "one core"]
Dialect = Literal["sqlite", "postgresql"]

# Widths of the histogram's buckets: each is 1 % wider than the one before it, from a tenth of a microsecond on.
FINEST, WIDER = 1e-7, math.log(1.01)


@dataclass(frozen=True, slots=True)
class Case:
    """Be one peer's work under one load. Times are seconds.

    ``scenario`` groups what belongs into one table. ``flush``: by how much every flush is made slower. ``rows``: how
    many rows ``item`` has. ``rate``: arrivals a second of an open loop, None where every thread does the next as soon
    as the last is done. ``beside``: what else goes on: another program holds the write lock for a second in the middle;
    another holds a read transaction open all the time; two threads of the same process only compute (``burning``), or
    another program does on every core (``busy``). ``switch``: how often the interpreter asks a running thread for its
    lock (`sys.setswitchinterval`). ``scheduler``: what the case's processes ask of the kernel: that no thread
    interrupts another when it is woken (``SCHED_BATCH``), or to run on one core only.
    """

    scenario: str
    peer: str
    work: Work
    threads: int
    processes: int = 1
    synchronous: Synchronous = "FULL"
    flush: float = 0.0
    rows: int = 1000
    rate: float | None = None
    beside: Beside = ""
    dialect: Dialect = "sqlite"
    seconds: float = 1.5
    switch: float = 0.005
    scheduler: Scheduler = ""

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Case:
        """Read what `dataclasses.asdict` gave."""
        return cls(**plain)


@dataclass(slots=True)
class Waits:
    """Be how long calls took: a histogram with buckets 1 % wide, and the longest exactly. Seconds."""

    buckets: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0

    @classmethod
    def of(cls, waits: Iterable[float]) -> Waits:
        """Sort waits into buckets."""
        made = cls()
        for wait in waits:
            made.buckets[max(0, int(math.log(max(wait, FINEST) / FINEST) / WIDER))] += 1
            made.longest = max(made.longest, wait)
        return made

    @property
    def count(self) -> int:
        """Count them."""
        return self.buckets.total()

    def quantile(self, part: float) -> float:
        """Give the wait that ``part`` of all do not exceed; 0.0 where there are none."""
        left = part * self.count
        for bucket, number in sorted(self.buckets.items()):
            left -= number
            if left <= 0:
                return min(FINEST * math.exp((bucket + 1) * WIDER), self.longest)
        return self.longest

    def __add__(self, other: Waits) -> Waits:
        return Waits(self.buckets + other.buckets, max(self.longest, other.longest))

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {"buckets": {str(key): number for key, number in sorted(self.buckets.items())}, "longest": self.longest}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Waits:
        """Read what `to_json` gave."""
        return cls(Counter({int(key): number for key, number in plain["buckets"].items()}), plain["longest"])


@dataclass(slots=True)
class Outcome:
    """Be what one run of a case gave.

    ``counts``: calls that ended well within ``seconds``, by process and thread. ``waits``: by kind of call (``write``,
    ``read``), errors included; in an open loop each counts from when it was due, and what was due and not begun at the
    end is in there with the time it had waited, and counted as ``unserved``. ``errors``: by the type's name.
    ``cpu``: processor seconds (user and system) of the case's processes meanwhile. ``memory``: the sum of their peaks,
    ``before``: the same before the threads were started; bytes. ``wal``: the largest size of the log, bytes.
    ``acknowledged``: writes that returned, also while warming up; ``verified``: how many of them were found afterwards.
    ``failed``: why it could not be run, or what was wrong afterwards; then nothing else counts.
    """

    seconds: float = 0.0
    counts: list[list[int]] = field(default_factory=list)
    waits: dict[str, Waits] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    unserved: int = 0
    cpu: float = 0.0
    memory: int = 0
    before: int = 0
    wal: int = 0
    acknowledged: int = 0
    verified: int = 0
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self) | {"waits": {kind: waits.to_json() for kind, waits in self.waits.items()}}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Outcome:
        """Read what `to_json` gave."""
        return cls(**{**plain, "waits": {kind: Waits.from_json(some) for kind, some in plain["waits"].items()}})


@dataclass(frozen=True, slots=True)
class Run:
    """Be one run of a case; runs of one ``repeat`` were taken side by side, and only these may be compared."""

    case: Case
    repeat: int
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {"case": asdict(self.case), "repeat": self.repeat, "outcome": self.outcome.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Run:
        """Read what `to_json` gave."""
        return cls(Case.from_json(plain["case"]), plain["repeat"], Outcome.from_json(plain["outcome"]))
