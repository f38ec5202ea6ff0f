"""Tables in Markdown, cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.figures import Cell, Figure
from benchmarks.report import short

NOTHING = "—"
TIMES = "\N{MULTIPLICATION SIGN}"


def head(names: Sequence[str]) -> list[str]:
    """Write the first two lines of a table."""
    return [line(names), "|" + "---|" * len(names)]


def line(texts: Sequence[str]) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(texts)} |"


def plain(text: str, width: int = 300) -> str:
    """Write somebody else's words so that they cannot be taken for Markdown, in one line, and not without end."""
    words = " ".join(text.replace("`", "'").split())
    return f"`{words if len(words) <= width else words[: width - 1] + '…'}`"


def number(value: float) -> str:
    """Write three figures of it."""
    if math.isinf(value):
        return "∞"
    if 0 < abs(value) < 0.1:
        return f"{value:.3g}"
    return "1" if round(value, 3) == 1 else short(value)


def times(ratio: float) -> str:
    """Write how many times."""
    return f"{number(ratio)} {TIMES}"


def middle(cell: Cell, figure: Figure) -> str:
    """Write the median of a figure."""
    found = cell.spread(figure)
    return NOTHING if found is None else number(found.middle)


def greatest(cell: Cell, figure: Figure) -> str:
    """Write the greatest of a figure."""
    found = cell.spread(figure)
    return NOTHING if found is None else number(found.high)
