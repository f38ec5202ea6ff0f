"""How a promise and what was measured of it are written, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.measure import Spread


@dataclass(frozen=True, slots=True)
class Row:
    """Be one line of the budget. ``limit`` of None: nothing is promised. ``why``: why it was not measured.

    ``beside``: whom it was compared with.
    """

    work: str
    sign: Literal["≤", "≥"]
    limit: float | None
    unit: str
    measured: Spread | None
    why: str = ""
    worst: bool = False  # judged by the worst of all runs and not by the middle one
    beside: str = ""

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
        beside: str = "",
    ) -> Row:
        """Make a line of single values."""
        return cls(work, sign, limit, unit, Spread.of(values), worst=worst, beside=beside)

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
        measured += f" ({self.beside})" if self.beside else ""
        return f"| {self.work} | {budget} | {measured} | {verdict} |"


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
