"""The figures of a case: what its runs gave, and how many times better another peer's are.

Runs of one repeat were taken side by side: a ratio is that of one repeat, and what is told is the median of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.case import Case, Dialect, Outcome, Run, Waits
from benchmarks.measure import Spread, jain
from benchmarks.peers import SAFEDB

OURS: dict[Dialect, str] = {"sqlite": SAFEDB, "postgresql": "safedb on PostgreSQL"}
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Figure:
    """Be one figure of an outcome: its name with the unit, where it is found, and whether more of it is better."""

    name: str
    of: Callable[[Outcome], float]
    more: bool = False

    def better(self, theirs: float, ours: float) -> float:
        """Tell how many times better ``theirs`` is."""
        good, bad = (theirs, ours) if self.more else (ours, theirs)
        if bad == 0:
            return math.inf if good else 1.0
        return good / bad if math.isfinite(bad) else float(not math.isfinite(good))


def calls(outcome: Outcome) -> int:
    """Count the calls that ended well."""
    return sum(map(sum, outcome.counts))


def _rate(outcome: Outcome) -> float:
    return calls(outcome) / outcome.seconds if outcome.seconds else 0.0


def _fairness(outcome: Outcome) -> float:
    if not calls(outcome):
        return 0.0  # equal shares of nothing are no merit
    return jain([count for process in outcome.counts for count in process])


def _evenness(outcome: Outcome) -> float:
    shares = [sum(process) for process in outcome.counts]
    return min(shares) / max(shares) if any(shares) else 0.0


def _processor(outcome: Outcome) -> float:
    done = calls(outcome)
    return 1000 * outcome.cpu / done if done else math.inf


THROUGHPUT = Figure("calls/s", _rate, more=True)
FAIRNESS = Figure("fairness (Jain)", _fairness, more=True)
EVENNESS = Figure("slowest / fastest process", _evenness, more=True)
PROCESSOR = Figure("CPU, s per 1,000 calls", _processor)
MEMORY = Figure("peak memory, MB", lambda outcome: outcome.memory / MEGABYTE)
ADDED = Figure("added by the threads, MB", lambda outcome: (outcome.memory - outcome.before) / MEGABYTE)
LOG = Figure("largest WAL, MB", lambda outcome: outcome.wal / MEGABYTE)
REFUSED = Figure("errors", lambda outcome: sum(outcome.errors.values()))
UNSERVED = Figure("unserved", lambda outcome: outcome.unserved)


def wait(part: float, kind: str, *, of: str = "") -> Figure:
    """Give the wait in milliseconds that ``part`` of the calls of a kind do not exceed; 1.0: the longest."""

    def value(outcome: Outcome) -> float:
        waits = outcome.waits.get(kind, Waits())
        if not waits.count:
            return math.nan
        return 1e3 * (waits.longest if part >= 1.0 else waits.quantile(part))

    name = "longest" if part >= 1.0 else f"p{100 * part:g}"
    return Figure(f"{name}{of}, ms", value)


@dataclass(frozen=True, slots=True)
class Cell:
    """Be all runs of one case."""

    case: Case
    runs: Sequence[Run]

    @property
    def good(self) -> list[Outcome]:
        """Give what the runs that count gave."""
        return [run.outcome for run in self.runs if not run.outcome.failed]

    @property
    def failed(self) -> list[Run]:
        """Give the runs that do not count."""
        return [run for run in self.runs if run.outcome.failed]

    @property
    def kinds(self) -> list[str]:
        """Give the kinds of calls."""
        return sorted({kind for outcome in self.good for kind in outcome.waits})

    def waits(self, kind: str) -> Waits:
        """Give the waits of all runs together."""
        return sum((outcome.waits.get(kind, Waits()) for outcome in self.good), Waits())

    def values(self, figure: Figure) -> dict[int, float]:
        """Give a figure by repeat, where there is one."""
        found = {run.repeat: figure.of(run.outcome) for run in self.runs if not run.outcome.failed}
        return {repeat: value for repeat, value in found.items() if not math.isnan(value)}

    def spread(self, figure: Figure) -> Spread | None:
        """Give the least, the median and the greatest of a figure."""
        values = self.values(figure)
        return Spread.of(list(values.values())) if values else None


def ratio(theirs: Cell, ours: Cell, figure: Figure) -> float | None:
    """Tell how many times better ``theirs`` is: the median of the repeats that both have; None where there is none."""
    first, second = theirs.values(figure), ours.values(figure)
    both = [figure.better(first[repeat], second[repeat]) for repeat in first if repeat in second]
    return median(both) if both else None


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Gather the runs of each case, in the order in which the cases first came."""
    found: dict[Case, list[Run]] = {}
    for run in runs:
        found.setdefault(run.case, []).append(run)
    return [Cell(case, some) for case, some in found.items()]
