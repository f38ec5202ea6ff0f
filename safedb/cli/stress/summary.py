"""One side's numbers, from what its threads noted and what the database says; and the verdict over safedb."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from safedb.cli.stress.lock_holder import Held
from safedb.cli.stress.measure import Histogram, jain, slowest_to_fastest
from safedb.cli.stress.phase import PhaseResult
from safedb.cli.stress.tally import RETRIES, Errors, ProcessResult, ReaderTally, WriterTally
from safedb.cli.stress.verify import Findings
from safedb.cli.stress.words import Words
from safedb.cli.stress.workload import Outcome

_MOST_TEXTS = 10
PERCENTILES = (50.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Fairness:
    """Say how evenly writes were shared out: 1.0 is even in both measures. None where nothing was written."""

    jain: float | None
    slowest_to_fastest: float | None


@dataclass(slots=True)
class Summary:
    """Be one side of the table. Times are seconds, rates are per second, sizes bytes."""

    side: str
    seconds: float
    acknowledged: int
    writes: float
    transfers: float
    reads: float
    latency: Histogram
    transfer_latency: Histogram
    read_latency: Histogram
    longest_error: float | None
    locked: int
    conflicts: int
    unknown: int
    other: int
    read_errors: int
    wrong_totals: int
    totals: int
    threads: Fairness
    processes: Fairness
    wal: dict[str, int]
    held: Held | None
    findings: Findings
    broken: list[str]
    texts: list[tuple[str, int]] = field(default_factory=list)
    described: list[dict[str, float | int | str]] = field(default_factory=list)

    @property
    def connections(self) -> int:
        """Count the connections that all processes had open; 0 where nobody tells."""
        return sum(int(known.get("connections", 0)) for known in self.described)

    @property
    def longest_process_wait(self) -> float | None:
        """Give the seconds that a process waited for another's turn, at the most; None where nobody tells."""
        waits = [float(known["longest_process_wait"]) for known in self.described if "longest_process_wait" in known]
        return max(waits, default=None)

    @property
    def retries(self) -> dict[str, int]:
        """Count what was run again in all processes, by cause."""
        every: Counter[str] = Counter()
        for known in self.described:
            every.update({name: int(count) for name, count in known.items() if name.startswith(RETRIES)})
        return {name.removeprefix(RETRIES): count for name, count in every.items()}

    def problems(self, excused: bool) -> list[str]:
        """Say everything that this side must not do; ``excused``: giving up at the deadline has a reason outside."""
        said = self.findings.violations() + self.broken
        if self.wrong_totals:
            said.append(f"{self.wrong_totals:,} of {self.totals:,} readings of all accounts did not add up")
        if self.locked and not excused:
            said.append(f"{self.locked:,} writes failed behind a lock")
        if self.conflicts and not excused:  # who met a conflict and then the lock may tell either
            said.append(f"{self.conflicts:,} writes failed in conflict with others, however often they were run again")
        if self.unknown:
            said.append(f"{self.unknown:,} writes ended without anybody knowing whether they were committed")
        if self.other:
            said.append(f"{self.other:,} writes failed with other errors")
        if self.read_errors:
            said.append(f"{self.read_errors:,} reads failed")
        return said

    def as_dict(self, words: Words) -> dict[str, object]:
        """Return all numbers by name, for JSON."""
        errors: dict[str, object] = {words.locked_key: self.locked}
        if words.dialect == "postgresql":
            errors["conflict"] = self.conflicts
        return {
            "seconds": self.seconds,
            "acknowledged_writes": self.acknowledged,
            "writes_per_second": self.writes,
            "transfers_per_second": self.transfers,
            "reads_per_second": self.reads,
            "write_latency": _latency(self.latency),
            "transfer_latency": _latency(self.transfer_latency),
            "read_latency": _latency(self.read_latency),
            "longest_wait_for_an_error": self.longest_error,
            "errors": {
                **errors,
                "commit_unknown": self.unknown,
                "other": self.other,
                "reads": self.read_errors,
                "texts": [{"text": text, "count": count} for text, count in self.texts],
            },
            "wrong_totals_read": self.wrong_totals,
            "totals_read": self.totals,
            "fairness": {"threads": asdict(self.threads), "processes": asdict(self.processes)},
            **{f"{name}_bytes": size for name, size in self.wal.items()},
            "lock_holder": None if self.held is None else asdict(self.held),
            "findings": asdict(self.findings),
            "broken": self.broken,
            "described": self.described,
        }


def summarise(result: PhaseResult, findings: Findings) -> Summary:
    """Put one side's numbers together."""
    processes = result.processes
    writers = [tally for process in processes for tally in process.writers]
    readers = [tally for process in processes for tally in process.readers]
    rows = Histogram().merge(tally.rows.latency for tally in writers)
    transfers = Histogram().merge(tally.transfers.latency for tally in writers)
    return Summary(
        side=result.side,
        seconds=max((process.seconds for process in processes), default=0.0),
        acknowledged=sum(tally.acknowledged for tally in writers),
        writes=sum(_rate(process, [tally.in_time for tally in process.writers]) for process in processes),
        transfers=sum(_rate(process, [tally.transfers.in_time for tally in process.writers]) for process in processes),
        reads=sum(_rate(process, [tally.reads for tally in process.readers]) for process in processes),
        latency=rows.merge([transfers]),
        transfer_latency=transfers,
        read_latency=Histogram().merge(tally.latency for tally in readers),
        longest_error=max((tally.errors.longest for tally in writers), default=0) / 1e9 or None,
        locked=sum(tally.failures(Outcome.LOCKED) for tally in writers),
        conflicts=sum(tally.failures(Outcome.CONFLICT) for tally in writers),
        unknown=sum(tally.failures(Outcome.UNKNOWN) for tally in writers),
        other=sum(tally.failures(Outcome.OTHER) for tally in writers),
        read_errors=sum(tally.errors.texts.total() for tally in readers),
        wrong_totals=sum(tally.wrong_totals for tally in readers),
        totals=sum(tally.totals for tally in readers),
        threads=_fairness([tally.in_time for tally in writers]),
        processes=_fairness([sum(tally.in_time for tally in process.writers) for process in processes]),
        wal=result.wal,
        held=result.held,
        findings=findings,
        broken=result.broken + [trouble for process in processes for trouble in process.trouble],
        texts=_texts([*writers, *readers]),
        described=[process.described for process in processes if process.described],
    )


def _rate(process: ProcessResult, counts: list[int]) -> float:
    return sum(counts) / process.seconds if process.seconds > 0 else 0.0


def _fairness(shares: list[int]) -> Fairness:
    return Fairness(jain(shares), slowest_to_fastest(shares))


def _texts(tallies: list[WriterTally | ReaderTally]) -> list[tuple[str, int]]:
    every = [_errors(tally).texts for tally in tallies]
    return sum(every, Counter[str]()).most_common(_MOST_TEXTS)


def _errors(tally: WriterTally | ReaderTally) -> Errors:
    return tally.errors


def _latency(histogram: Histogram) -> dict[str, object]:
    return {
        "count": histogram.count,
        "mean": histogram.mean,
        **{f"p{percent:g}": histogram.percentile(percent) for percent in PERCENTILES},
        "max": histogram.maximum,
        "buckets": [[histogram.edge(bucket), count] for bucket, count in histogram.occupied()],
    }
