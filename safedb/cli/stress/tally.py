"""What each thread notes about its own work: the acknowledgements that the database is checked against afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from safedb.cli.stress.measure import Histogram
from safedb.cli.stress.workload import HOW_MANY_ACCOUNTS, Outcome, Transfer

RETRIES = "retries_"  # begins the names under which a side tells what it ran again


@dataclass(slots=True)
class Ledger:
    """Note every write of one kind: numbered 0, 1, 2 …; what is not among the failures was acknowledged."""

    attempts: int = 0
    failures: dict[int, Outcome] = field(default_factory=dict)
    in_time: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def acknowledged(self) -> int:
        """Count the writes that returned without an error."""
        return self.attempts - len(self.failures)

    def done(self, nanoseconds: int, *, in_time: bool) -> None:
        """Note that the next write was acknowledged after so long."""
        self.attempts += 1
        self.in_time += in_time
        self.latency.add(nanoseconds)

    def failed(self, outcome: Outcome) -> None:
        """Note that the next write failed."""
        self.failures[self.attempts] = outcome
        self.attempts += 1


@dataclass(slots=True)
class Errors:
    """Count the errors by their text, and keep the longest wait that ended in one."""

    texts: Counter[str] = field(default_factory=Counter)
    longest: int = 0

    def add(self, error: Exception, nanoseconds: int = 0) -> None:
        """Count one error that came after so long."""
        self.texts[f"{type(error).__name__}: {error}"[:200]] += 1
        self.longest = max(self.longest, nanoseconds)


@dataclass(slots=True)
class WriterTally:
    """Be all that one writer thread knows afterwards; ``moved`` and ``touched`` are by account, acknowledged only."""

    worker: int
    rows: Ledger = field(default_factory=Ledger)
    transfers: Ledger = field(default_factory=Ledger)
    declined: int = 0
    moved: list[int] = field(default_factory=lambda: [0] * HOW_MANY_ACCOUNTS)
    touched: list[int] = field(default_factory=lambda: [0] * HOW_MANY_ACCOUNTS)
    errors: Errors = field(default_factory=Errors)
    gave_up: bool = False

    @property
    def acknowledged(self) -> int:
        """Count this writer's acknowledged writes of both kinds."""
        return self.rows.acknowledged + self.transfers.acknowledged

    @property
    def in_time(self) -> int:
        """Count those acknowledged before the time was up."""
        return self.rows.in_time + self.transfers.in_time

    @property
    def longest(self) -> int:
        """Give the longest wait so far in nanoseconds, whether it ended well or not."""
        return max(self.rows.latency.longest, self.transfers.latency.longest, self.errors.longest)

    def failures(self, outcome: Outcome) -> int:
        """Count this writer's failures of one kind."""
        return sum(kind is outcome for ledger in (self.rows, self.transfers) for kind in ledger.failures.values())

    def transferred(self, transfer: Transfer) -> None:
        """Note an acknowledged transfer in the account ledger."""
        self.moved[transfer.source] -= transfer.amount
        self.moved[transfer.target] += transfer.amount
        self.touched[transfer.source] += 1
        self.touched[transfer.target] += 1


@dataclass(slots=True)
class ReaderTally:
    """Be all that one reader thread knows afterwards."""

    reads: int = 0
    totals: int = 0
    wrong_totals: int = 0
    latency: Histogram = field(default_factory=Histogram)
    errors: Errors = field(default_factory=Errors)


@dataclass(slots=True)
class ProcessResult:
    """Be all that one process hands over at its end; ``seconds`` is the time in which writes counted for the rate."""

    process: int
    seconds: float
    writers: list[WriterTally]
    readers: list[ReaderTally]
    trouble: list[str]
    described: dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Tick:
    """Be a process's word on how it is getting on."""

    writes: int
    errors: int
    longest: int
