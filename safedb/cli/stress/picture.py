"""The picture: what share of the writes took longer than a given time, on both sides."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg", force=True)  # no window, whatever the user's settings say
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from safedb.cli.stress.progress import duration
from safedb.cli.stress.report import Report, title
from safedb.cli.stress.summary import PERCENTILES, Summary
from safedb.cli.stress.target import BY_HAND

# Two colours that also differ in lightness: they stay apart in print and for the colour-blind.
_COLOURS = {BY_HAND: "#c2410c"}
_SAFEDB_COLOUR = "#1d4ed8"
_GREY = "#57606a"
_SECONDS = tuple(10.0**power for power in range(-6, 3))


def draw(report: Report, file: Path) -> None:
    """Draw the distribution of the waits for a write to an SVG or PNG file, by its name's ending."""
    figure = Figure(figsize=(9.6, 6.0), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    sides = [side for side in report.sides if side.latency.count]
    for side in sides:
        _curve(axes, side)
    _marks(axes, sides)
    _axes(axes, sides)
    figure.suptitle("How long writes waited", x=0.01, ha="left", fontsize=15, fontweight="bold")
    axes.set_title("\n".join(textwrap.wrap(title(report.options), 100)), loc="left", fontsize=10, color=_GREY)
    figure.supxlabel(_wrapped(str(report.machine)), x=0.01, ha="left", fontsize=8, color=_GREY)
    figure.savefig(file, dpi=150, metadata=None)


def _curve(axes: Axes, side: Summary) -> None:
    """Draw one side as steps: the share of writes that took longer, down to the single worst."""
    colour = _colour(side)
    points = [point for point in side.latency.exceeding() if point[1] > 0]
    times = [points[0][0] if points else side.latency.edge(0), *(seconds for seconds, _ in points)]
    shares = [1.0, *(share for _, share in points)]
    worst = side.latency.maximum or 0.0
    last = shares[-1]
    failed = side.locked + side.conflicts + side.unknown + side.other
    errors = f", errors: {failed:,} (not drawn)" if failed else ""
    label = f"{side.side}: {side.writes:,.0f} writes/s, worst wait {duration(worst)}{errors}"
    axes.plot([*times, worst], [*shares, last], drawstyle="steps-post", color=colour, linewidth=2, label=label)
    axes.plot([worst], [last], marker="X", markersize=9, color=colour, markeredgecolor="white", clip_on=False, zorder=4)


def _marks(axes: Axes, sides: list[Summary]) -> None:
    """Mark the percentiles; of two at one height, the left one is labelled to its left, so that labels never meet."""
    for percent in PERCENTILES:
        points = sorted((side.latency.percentile(percent) or 0.0, _colour(side)) for side in sides)
        for number, (seconds, colour) in enumerate(points):
            leftmost = number < len(points) - 1
            share = 1 - percent / 100
            axes.plot([seconds], [share], marker="o", markersize=7, color=colour, markeredgecolor="white", zorder=3)
            axes.annotate(
                duration(seconds),
                (seconds, share),
                (-7, -12) if leftmost else (7, 5),
                textcoords="offset points",
                ha="right" if leftmost else "left",
                fontsize=9,
                color=colour,
                zorder=5,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )


def _colour(side: Summary) -> str:
    return _COLOURS.get(side.side, _SAFEDB_COLOUR)


def _axes(axes: Axes, sides: list[Summary]) -> None:
    fewest = min((1 / side.latency.count for side in sides), default=1e-3)
    axes.set(xscale="log", yscale="log", ylim=(fewest / 2, 1.4))
    axes.margins(x=0.08)  # room for the leftmost label
    axes.set_xlabel("wait for one write (logarithmic)")
    axes.set_ylabel("share of writes that waited longer (logarithmic)")
    axes.xaxis.set_major_locator(FixedLocator(_SECONDS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _power(seconds)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    shares = [10.0**-power for power in range(10) if 10.0**-power >= fewest / 2]
    axes.yaxis.set_major_locator(FixedLocator([0.5, *shares]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: _share(share)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, which="major", color="#d8dee4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if sides:
        axes.legend(loc="upper right", frameon=True, framealpha=0.95, edgecolor="#d8dee4", fontsize=10)


def _power(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size * 0.999:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _share(share: float) -> str:
    names = {1.0: "all", 0.5: "half (p50)", 0.01: "1 in 100 (p99)", 0.001: "1 in 1,000 (p99.9)"}
    near = [name for value, name in names.items() if abs(share / value - 1) < 1e-6]
    return near[0] if near else f"1 in {1 / share:,.0f}"


def _wrapped(text: str) -> str:
    """Break the line of machine data in two at a comma near its middle."""
    parts = text.split(", ")
    half = (len(parts) + 1) // 2
    return ", ".join(parts[:half]) + ",\n" + ", ".join(parts[half:])
