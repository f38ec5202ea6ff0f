"""The tables, in Markdown, ready for `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.machine import Machine
from benchmarks.measure import Paired, Spread
from benchmarks.races import Heats
from benchmarks.singles import Singles


@dataclass(frozen=True, slots=True)
class Row:
    """Be one line of the budget. ``limit`` of None: nothing is promised. ``why``: why it was not measured."""

    work: str
    sign: Literal["≤", "≥"]
    limit: float | None
    unit: str
    measured: Spread | None
    why: str = ""
    worst: bool = False  # judged by the worst of all runs and not by the middle one

    @classmethod
    def of(
        cls,
        work: str,
        sign: Literal["≤", "≥"],
        limit: float | None,
        unit: str,
        values: Sequence[float],
        *,
        worst: bool = False,
    ) -> Row:
        """Make a line of single values."""
        return cls(work, sign, limit, unit, Spread.of(values), worst=worst)

    @property
    def met(self) -> bool | None:
        """Tell whether the budget was kept; None where that is not known."""
        if self.measured is None or self.limit is None:
            return None
        if self.sign == "≤":
            return (self.measured.high if self.worst else self.measured.middle) <= self.limit
        return (self.measured.low if self.worst else self.measured.middle) >= self.limit

    def line(self) -> str:
        """Write it."""
        budget = "—" if self.limit is None else f"{self.sign} {self.limit:g} {self.unit}".strip()
        verdict = {None: "—", True: "yes", False: "**no**"}[self.met]
        measured = f"not measured: {self.why}" if self.measured is None else spread(self.measured)
        return f"| {self.work} | {budget} | {measured} | {verdict} |"


def markdown(
    machine: Machine, rows: Sequence[Row], singles: Singles, heats: Mapping[str, Heats], by_hand: Sequence[str]
) -> str:
    """Write everything."""
    return "\n".join(
        [
            *machine.lines(),
            "",
            "| work | budget | measured (min … median … max) | met? |",
            "|---|---|---|---|",
            *(row.line() for row in rows),
            "",
            f"The best by hand is, heat by heat, the faster of *{'* and *'.join(by_hand)}*. Met or not is said of the "
            "median; of the worst wait and of fairness, of the worst heat. Every row written was counted afterwards.",
            "Of the ratios of one thread, the lowest and the highest twentieth are left out.",
            "",
            "One thread, microseconds for each call:",
            "",
            "| work | by hand (min … median … max) | safedb (min … median … max) |",
            "|---|---|---|",
            _single("point read", singles.read),
            *(_single(f"single write, {mode}", pair) for mode, pair in singles.write.items()),
            "",
            "Many threads, FULL. Waits are those of single writes, in milliseconds: medians of the heats, and the "
            "longest of all.",
            "",
            "| threads | a flush | who | acknowledged writes/s (min … median … max) | p50 | p99 | p99.9 | longest | "
            "fairness | errors |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(line for some in heats.values() for line in _heats(some)),
        ]
    )


def _single(work: str, pair: Paired) -> str:
    return f"| {work} | {spread(_scaled(pair.first, 1e6))} | {spread(_scaled(pair.second, 1e6))} |"


def _heats(heats: Heats) -> list[str]:
    lines = []
    for name, races in heats.races.items():
        waits = [heats.spread(name, figure).middle * 1e3 for figure in ("p50", "p99", "p999")]
        longest = heats.spread(name, "longest").high * 1e3
        cells = [
            str(heats.threads),
            f"{heats.flush * 1e3:.2f} ms",
            name,
            spread(heats.spread(name, "rate")),
            *(short(wait) for wait in (*waits, longest)),
            f"{heats.spread(name, 'fairness').middle:.3f}",
            str(sum(race.failed for race in races)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.low * factor, spread.middle * factor, spread.high * factor)


def spread(found: Spread) -> str:
    """Write it in one cell: the least, the median, the greatest."""
    if found.low == found.high:
        return short(found.middle)
    return f"{short(found.low)} … {short(found.middle)} … {short(found.high)}"


def short(value: float) -> str:
    """Write three figures of it, thousands apart."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"
