"""How pictures look: in SVG, legible on white and on black, and the same bytes for the same data.

What is drawn in ink (words, axes, grid) is dark, and light where the reader prefers dark pages. The lines keep their
colours, which have enough contrast with both; each has a mark and a dash of its own besides, for whoever cannot tell
the colours apart. Words stay words, in whatever sans-serif font the reader has.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.figures import OURS
from benchmarks.peers import PEERS

WIDTH, HEIGHT = 800, 450  # pixels
INK, MUTED, GRID = "#24292f", "#57606a", "#d0d7de"
DARK = {INK: "#e6edf3", MUTED: "#9ea7b1", GRID: "#3d444d"}
PAGES = "#ffffff", "#0d1117"

# Okabe and Ito's colours for the colour-blind; those too light for a white page are darker here.
BLUE = "#0072b2"
COLOURS = ("#d55e00", "#008f68", "#b0609a", "#a87400", "#2f8fc7", "#7a7f87", "#8a7f00", "#8474d4")
MARKS = "osD^vPXd<>"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (7, 1.5, 1.5, 1.5)))

LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safedb",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: what is measured, wherever it is drawn
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.markersize": 5,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in this look, whatever the user's own settings are."""
    with matplotlib.style.context(["default", LOOK]):
        yield


def offset(name: str) -> int:
    """Give a number of a peer's own, so that what depends on it is the same in every picture."""
    others = [peer for peer in PEERS if peer not in OURS.values()]
    return others.index(name) if name in others else len(others) + sum(map(ord, name))


def style(name: str) -> dict[str, Any]:
    """Give the line of a peer: the same in every picture, and safedb's thicker than any other."""
    if name in OURS.values():
        return {"color": BLUE, "marker": "o", "linestyle": "-", "linewidth": 3.2, "markersize": 7, "zorder": 4}
    place = offset(name)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKS[(place + 1) % len(MARKS)],
        "linestyle": DASHES[place % len(DASHES)],
        "linewidth": 1.5,
        "zorder": 3,
    }


def sheet(title: str, panels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Make an empty picture with a title, and room for panels side by side, each with what it is about."""
    figure = Figure(figsize=(WIDTH / 96, HEIGHT / 96), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for one, about in zip(axes, panels, strict=True):
        one.set_title(about, loc="left", fontsize=9, color=MUTED)
    return figure, axes


def legend(figure: Figure, axes: Sequence[Axes], names: Sequence[str], note: str = "") -> None:
    """Tell the lines apart: beside one panel, or below several; ``note``: what else is to be told, at the bottom."""
    found = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    handles = [found[name] for name in names]
    if len(axes) == 1:
        figure.legend(handles, names, loc="outside right center", labelspacing=0.9)
    else:
        figure.legend(handles, names, loc="outside lower left", ncols=3)
    if note:
        figure.supxlabel(note, x=0.012, ha="left", fontsize=8, color=MUTED)


def logarithmic(axes: Axes, which: str, at: Sequence[float] = (), *, narrow: bool = False) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks: ``at`` these values, or at round ones.

    ``narrow``: there is room for few.
    """
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    round_ones = LogLocator(
        base=100 if narrow else 10, subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,), numticks=12
    )
    axis.set_major_locator(FixedLocator(at) if at else round_ones)
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """Write a number without an exponent."""
    return f"{value:,.0f}" if value >= 1 and value == round(value) else f"{value:.3g}"


def save(figure: Figure, path: Path) -> Path:
    """Write it, with ink that follows the reader's preference."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    path.write_text(_themed(drawn.getvalue()), encoding="utf-8")
    return path


def _themed(svg: str) -> str:
    """Put the rules for dark pages in; a program that knows no such rules shows the picture for white ones."""
    rules = "".join(
        f'[style*="{use}: {light}"]{{{use}:{dark}!important}}'
        for light, dark in DARK.items()
        for use in ("fill", "stroke")
    )
    sheet = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    svg = re.sub(r"'DejaVu Sans'(, '[^']*')*, sans-serif|'DejaVu Sans'", "sans-serif", svg)
    return re.sub(r"(<svg [^>]*>)", lambda found: f"{found[0]}\n {sheet}", svg, count=1)
