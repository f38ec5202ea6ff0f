"""From runs to pictures: how long writes waited, and how many there were by threads, by flush time, by processes.

Everybody who acknowledges is drawn. What failed cannot be, and is named below.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks import ink
from benchmarks.case import Case, Run
from benchmarks.figures import THROUGHPUT, Cell, Figure, cells, wait
from benchmarks.loads import PLAIN, apart, by_scenario, load, tell
from benchmarks.markup import TIMES
from benchmarks.measure import Spread
from benchmarks.tables import ACKNOWLEDGING, Peers, kind_of

THREADS = 64  # where the number of threads is not what varies
FEWEST = 1e-4  # the smallest part of the calls that is drawn
POINTS = 80  # of a distribution, at the most
PANELS = 3
MARKED = 16  # every so many points are marked
PARTS = {1.0: "all", 0.1: "1 in 10 (p90)", 0.01: "1 in 100 (p99)", 1e-3: "1 in 1,000 (p99.9)", 1e-4: "1 in 10,000"}
KIND = "write"
RATE = "acknowledged writes/s"
RANGE = "median; upright lines: least to most of the repeats"

Place = Callable[[Case], float]


@dataclass(frozen=True, slots=True)
class Lines:
    """Be what is drawn: cells by peer, and by their place on the x axis."""

    cells: Mapping[str, Mapping[float, Cell]]

    @classmethod
    def of(cls, some: Iterable[Cell], wanted: Callable[[Case], bool], place: Place) -> Lines:
        """Take what is wanted. What stands at one place comes from one scenario: only that was taken side by side."""
        found: dict[str, dict[float, Cell]] = {}
        filled: set[float] = set()
        scenarios = by_scenario(cell for cell in some if wanted(cell.case)).values()
        for group in sorted(scenarios, key=lambda group: -len({place(cell.case) for cell in group})):
            new = [cell for cell in group if place(cell.case) not in filled]
            filled |= {place(cell.case) for cell in new}
            for cell in new:
                found.setdefault(cell.case.peer, {})[place(cell.case)] = cell
        return cls(found)

    @property
    def places(self) -> list[float]:
        """Give the places, from left to right."""
        return sorted({place for line in self.cells.values() for place in line})

    def only(self, places: Iterable[float]) -> Lines:
        """Keep some places."""
        kept = set(places)
        return Lines({peer: {x: line[x] for x in line if x in kept} for peer, line in self.cells.items()})

    def good(self, peer: str) -> list[tuple[float, Cell]]:
        """Give those cells of a peer that there is something to draw of, from left to right."""
        return [(place, cell) for place, cell in sorted(self.cells[peer].items()) if _done(cell)]

    def names(self) -> list[str]:
        """Give the peers that are drawn, in the order in which their lines end at the right, the fastest first."""
        return sorted((peer for peer in self.cells if self.good(peer)), key=lambda peer: -_done(self.good(peer)[-1][1]))

    def missing(self) -> str:
        """Tell what there is nothing to draw of."""
        every = [cell for line in self.cells.values() for _, cell in sorted(line.items())]
        differ, _ = apart([load(cell.case) for cell in every])
        said: dict[str, list[str]] = {}
        for cell in (cell for cell in every if not _done(cell)):
            which = f" ({tell(cell.case, differ)})" if differ else ""
            said.setdefault("No write done in the time" if cell.good else "Failed", []).append(cell.case.peer + which)
        return "; ".join(f"{word}: {', '.join(which)}" for word, which in said.items())


def _done(cell: Cell) -> float:
    """Give the throughput, 0.0 where nothing was done or every run failed."""
    found = cell.spread(THROUGHPUT)
    return found.middle if found else 0.0


def draw(runs: Sequence[Run], folder: Path, peers: Peers | None = None, flush: float = 0.0) -> list[Path]:
    """Draw every picture that there are runs for, into a folder that is there, and give the files.

    ``peers`` tells of each by name its ``kind`` (see `Peer`). ``flush``: the seconds that a flush takes on this disk.
    """
    some = [cell for cell in cells(runs) if kind_of(cell, peers or {}) == ACKNOWLEDGING and _usual(cell.case)]
    pictures = {"waits": _closed, "waits-open": _open, "threads": _threads, "processes": _processes}
    with ink.look():
        drawn = {name: picture(some) for name, picture in pictures.items()} | {"flush": _flush(some, flush)}
        return [ink.save(figure, folder / f"{name}.svg") for name, figure in drawn.items() if figure is not None]


# The pictures


def _closed(some: Sequence[Cell]) -> ink.Figure | None:
    lines = _by_threads(some)
    if not lines.names():
        return None
    threads = THREADS if THREADS in lines.places else lines.places[-1]
    lines = lines.only([threads])
    about = f"{threads:g} threads, each the next write as soon as its last is done; FULL"
    figure, axes = ink.sheet("How long writes waited", [about])
    _waits(axes, lines)
    return _finish(figure, axes, lines)


def _open(some: Sequence[Cell]) -> ink.Figure | None:
    lines = Lines.of(some, _is_open, lambda case: case.rate or 0.0)
    if not lines.names():
        return None
    lines = lines.only(lines.places[-PANELS:])
    threads = max(cell.case.threads for line in lines.cells.values() for cell in line.values())
    about = [f"{rate:,.0f} writes/s arrive" for rate in lines.places]
    figure, axes = ink.sheet(f"How long writes waited that arrive at a fixed rate, {threads} threads, FULL", about)
    _waits(axes, lines)
    return _finish(figure, axes, lines)


def _threads(some: Sequence[Cell]) -> ink.Figure | None:
    lines = _by_threads(some)
    return _throughput(lines, "Throughput by threads", "one process, FULL", "threads (logarithmic)")


def _flush(some: Sequence[Cell], flush: float) -> ink.Figure | None:
    several = _several(some)

    def wanted(case: Case) -> bool:
        known = flush + case.flush > 0
        return known and case.threads == THREADS and case.rate is None and case.scenario not in several

    lines = Lines.of(some, wanted, lambda case: 1e3 * (flush + case.flush))
    label = f"time of one flush, ms (measured: {flush * 1e3:.3g}, and what was added; logarithmic)"
    return _throughput(lines, "Throughput by flush time", f"{THREADS} threads, FULL", label)


def _throughput(lines: Lines, title: str, about: str, label: str) -> ink.Figure | None:
    if len(lines.places) < 2 or not lines.names():
        return None
    figure, axes = ink.sheet(title, [f"{about}; {RANGE}"])
    _curves(axes[0], lines, THROUGHPUT, lambda place: place)
    axes[0].set(xlabel=label, ylabel=f"{RATE} (logarithmic)")
    ink.logarithmic(axes[0], "x", lines.places)
    ink.logarithmic(axes[0], "y")
    return _finish(figure, axes, lines)


def _processes(some: Sequence[Cell]) -> ink.Figure | None:
    several = _several(some)
    lines = Lines.of(some, lambda case: _is_closed(case) and case.scenario in several, _crowd)
    if not lines.names():
        return None
    cases = {_crowd(cell.case): cell.case for line in lines.cells.values() for cell in line.values()}
    sizes = [f"{cases[place].processes} {TIMES} {cases[place].threads}" for place in lines.places]
    figure, axes = ink.sheet("Throughput and longest wait by processes, FULL", [RANGE, "the longest of all repeats"])
    for one, measured, name in zip(axes, (THROUGHPUT, wait(1.0, KIND)), (RATE, "longest wait, ms"), strict=True):
        _curves(one, lines, measured, lines.places.index)
        one.set(xlabel=f"processes {TIMES} threads of each", ylabel=f"{name} (logarithmic)")
        one.set_xticks(range(len(sizes)), sizes)
        one.margins(x=0.12)
        ink.logarithmic(one, "y")
    return _finish(figure, axes, lines)


# What they are made of


def _usual(case: Case) -> bool:
    """Tell whether nothing of a case is special but its threads, processes, arrivals and flushes."""
    return replace(load(case), scenario="", threads=1, processes=1, flush=0.0, rate=None) == PLAIN


def _by_threads(some: Sequence[Cell]) -> Lines:
    several = _several(some)
    return Lines.of(some, lambda case: _is_closed(case) and case.scenario not in several, lambda case: case.threads)


def _is_closed(case: Case) -> bool:
    return case.rate is None and not case.flush


def _is_open(case: Case) -> bool:
    return case.rate is not None and not case.flush


def _crowd(case: Case) -> float:
    """Give a place by processes, and where these are as many by threads."""
    return case.processes + case.threads / 1e6


def _several(some: Sequence[Cell]) -> set[str]:
    """Name the scenarios that are about several processes."""
    return {cell.case.scenario for cell in some if cell.case.processes > 1}


def _curves(axes: Axes, lines: Lines, figure: Figure, x: Callable[[float], float]) -> None:
    """Draw a figure by place: the median and how far the repeats lie apart; of waits, the longest of all."""
    nothing = Spread(math.nan, math.nan, math.nan)  # where a line breaks
    for peer in lines.names():
        some = lines.cells[peer].items()
        spreads = {x(at): (cell.spread(figure) if _done(cell) else None) or nothing for at, cell in some}
        at = sorted(spreads)
        style = ink.style(peer)
        axes.plot(at, [spreads[one].middle if figure.more else spreads[one].high for one in at], label=peer, **style)
        if figure.more:
            ends = [spreads[one].low or spreads[one].middle for one in at], [spreads[one].high for one in at]
            axes.vlines(at, *ends, color=style["color"], linewidth=1, zorder=2)


def _waits(panels: Sequence[Axes], lines: Lines) -> None:
    """Draw the distributions of each place: what part of the writes waited longer, down to one in ten thousand."""
    names = lines.names()
    for axes, place in zip(panels, lines.places, strict=True):
        for peer in names:
            found = [cell.waits(KIND) for at, cell in lines.good(peer) if at == place]
            if found and found[0].count:
                parts = _parts(found[0].count)
                waits = [1e3 * found[0].quantile(1 - part) for part in parts]
                axes.plot(waits, parts, label=peer, markevery=(ink.offset(peer) % MARKED, MARKED), **ink.style(peer))
        axes.set(xlabel="wait, ms (logarithmic)")
    _axes_of_waits(panels)


def _parts(count: int) -> list[float]:
    """Give the parts that are drawn: down to one call, and not below `FEWEST`."""
    fewest = max(FEWEST, 1 / count)
    return [fewest ** (step / POINTS) for step in range(POINTS + 1)]


def _axes_of_waits(panels: Sequence[Axes]) -> None:
    """Give all panels the same axes, so that they can be compared, and words for the parts at the first."""
    for axes in panels:
        axes.set_xscale("log")
    limits = [axes.get_xlim() for axes in panels]
    for axes in panels:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
        ink.logarithmic(axes, "x", narrow=len(panels) > 2)
        ink.logarithmic(axes, "y", list(PARTS))
        axes.set_ylim(FEWEST * 0.8, 1.3)
        axes.yaxis.set_ticklabels(list(PARTS.values()) if axes is panels[0] else [""] * len(PARTS))
    panels[0].set_ylabel("part of the writes that waited longer")


def _finish(figure: ink.Figure, axes: Sequence[Axes], lines: Lines) -> ink.Figure:
    """Add who is who, and what is not there."""
    ink.legend(figure, axes, lines.names(), "\n".join(textwrap.wrap(lines.missing(), 120)))
    return figure
