"""What bounds durable writes: a formula, its constants fitted to the runs, and how far the runs lie from it.

Writers that each write again as soon as their last write is acknowledged form one group after the other. From one
COMMIT to the next it takes

    F + G + n · c

``F`` for the flush, ``G`` for what a group costs however large it is (BEGIN, the locks between processes, COMMIT's own
work), and ``c`` for each of its n writes: its Python, its share of the statement, and the switch to its thread.
Nothing of this overlaps: a group begins when all who were in the last one are awake (`safedb.sqlite.turns`, "Verdicts
go round"), and while COMMIT flushes all of them wait for it. So n writers make n / (F + G + n · c) writes a second. One
thread alone is no group, and makes 1 / (F + a); under a lock by hand, however many they are, it is 1 / (F + r).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from benchmarks import ink
from benchmarks.case import Case, Synchronous
from benchmarks.figures import THROUGHPUT
from benchmarks.loads import ASPECTS, PLAIN, load, size, tell
from benchmarks.markup import NOTHING, TIMES, head, line, number
from benchmarks.measure import Spread
from benchmarks.peers import ONE_LOCK, PER_THREAD, SAFEDB
from benchmarks.report import short, spread
from benchmarks.results import Results

FEW = 64  # threads up to which those by hand tell of the flush; more of them tell of themselves
MOST = 512  # members of a group at the most; with more threads groups overlap, and nothing is fitted to them
THREADS = (1, 16, 64)
FLUSHES = (0.00003, 0.0001, 0.0002, 0.0005, 0.002, 0.01)
FINE = 8  # places on the lines of the picture for each doubling of the threads
HAND = "one lock"

Key = tuple[int, float]  # threads, and the seconds that every flush was made slower
Points = Mapping[Key, Spread]


@dataclass(frozen=True, slots=True)
class Model:
    """Be the constants, in seconds; None is what nothing was measured of.

    ``flush``: what the flush of a commit takes on the disk of the runs, and ``source``: how that is known.
    """

    flush: float
    source: str
    group: float | None = None
    write: float | None = None
    alone: float | None = None
    hand: float | None = None

    def safedb(self, threads: int, flush: float) -> float | None:
        """Tell how many writes a second that many threads make where a flush takes so long."""
        if threads == 1:
            return _inverse(flush, self.alone)
        if self.group is None or self.write is None:
            return None
        members = min(threads, MOST)
        return members / (flush + self.group + members * self.write)

    def one_lock(self, threads: int, flush: float) -> float | None:  # noqa: ARG002 - however many they are
        """Tell the same of one connection with a lock around it."""
        return _inverse(flush, self.hand)


def _inverse(flush: float, rest: float | None) -> float | None:
    return None if rest is None else 1 / (flush + rest)


# From runs to constants


def measured(results: Results, peer: str, synchronous: Synchronous = "FULL") -> tuple[Points, list[Case]]:
    """Give the writes a second of a peer's plain single writes by load, and the cases of which there are none."""
    plain = replace(PLAIN, synchronous=synchronous)
    rates: dict[Key, list[float]] = {}
    cases: dict[Key, Case] = {}
    for run in results.runs:
        case = run.case
        if case.peer == peer and replace(load(case), scenario="", threads=1, flush=0.0) == plain:
            key = case.threads, case.flush
            cases.setdefault(key, case)
            rate = 0.0 if run.outcome.failed else THROUGHPUT.of(run.outcome)
            rates.setdefault(key, []).extend([rate] if rate else [])
    found = {key: Spread.of(some) for key, some in sorted(rates.items()) if some}
    return found, [cases[key] for key in sorted(cases) if key not in found]


def fit(results: Results) -> Model:
    """Find the constants. Those of groups leave the least squares of relative errors in the time between two commits.

    The others are taken from writes at NORMAL, which flush nothing, where there are some: the disk has no part in them.
    """
    ours, by_hand = measured(results, SAFEDB)[0], measured(results, ONE_LOCK)[0]
    flush, source = commit_flush(results)
    group, write = _two({key: rate for key, rate in ours.items() if 1 < key[0] <= MOST}, flush)
    alone = _unflushed(results, SAFEDB, [1]) or _one({key: rate for key, rate in ours.items() if key[0] == 1}, flush)
    hand = _unflushed(results, ONE_LOCK, range(1, FEW + 1)) or _one(by_hand, flush)
    return Model(flush, source, group, write, alone, hand)


def commit_flush(results: Results) -> tuple[float, str]:
    """Give the seconds that the flush of a commit takes: of a log that grows, and not of a block that is overwritten.

    By hand each write waits for a flush of its own, so with as many threads FULL differs from NORMAL by that alone. A
    disk has its moods: the median of several loads is taken. Without them there is only the machine's probe.
    """
    found = []
    for peer in (PER_THREAD, ONE_LOCK):
        full, normal = (measured(results, peer, synchronous)[0] for synchronous in ("FULL", "NORMAL"))
        both = [key for key in full if key in normal and key[0] <= FEW]
        found += [1 / full[key].middle - 1 / normal[key].middle for key in both]
    if found and median(found) > 0:
        return median(found), "by hand, a write at FULL less one at NORMAL"
    return float(results.machine["flush"]), "the machine's probe: at NORMAL nothing was measured by hand"


def _unflushed(results: Results, peer: str, threads: Iterable[int]) -> float | None:
    """Give the seconds of a write that flushes nothing: among the other runs, or else in turn with others."""
    found = measured(results, peer, "NORMAL")[0].items()
    times = [1 / rate.middle for key, rate in found if key[0] in threads]
    for pair in results.pairs:
        if not times and peer in pair.times and (pair.work, pair.threads, pair.synchronous) == ("write", 1, "NORMAL"):
            times = [median(pair.times[peer])]
    return median(times) if times else None


def _two(points: Points, flush: float) -> tuple[float | None, float | None]:
    """Fit what a group and each write in it take; neither is less than nothing. It needs two sizes of groups."""
    if len({threads for threads, _ in points}) < 2:
        return None, None
    aa = ab = bb = ay = by = 0.0
    for (threads, added), rate in points.items():
        cycle = threads / rate.middle
        a, b, y = 1 / cycle, threads / cycle, 1 - (flush + added) / cycle
        aa, ab, bb, ay, by = aa + a * a, ab + a * b, bb + b * b, ay + a * y, by + b * y
    spare = aa * bb - ab * ab
    group, write = (ay * bb - by * ab) / spare, (by * aa - ay * ab) / spare
    if group < 0:
        group, write = 0.0, by / bb
    return (group, write) if write > 0 else (None, None)


def _one(points: Points, flush: float) -> float | None:
    """Fit what a transaction of one write takes beside its flush."""
    times = [(1 / rate.middle, flush + added) for (_, added), rate in points.items()]
    if not times:
        return None
    weights = sum(1 / time**2 for time, _ in times)
    return max(0.0, sum((time - flushed) / time**2 for time, flushed in times) / weights)


# From constants to words


def markdown(results: Results) -> str:
    """Write the constants, the runs beside what they foretell, and what they foretell for other disks.

    Nothing is written where no single write of safedb's was measured.
    """
    (ours, missing), (by_hand, missing_too) = measured(results, SAFEDB), measured(results, ONE_LOCK)
    if not ours:
        return ""
    found = fit(results)
    parts = [_constants(results, found), _beside(found, ours, by_hand), _left_out(found, [*missing, *missing_too])]
    return "\n\n".join(part for part in [*parts, _elsewhere(found)] if part)


def _constants(results: Results, found: Model) -> str:
    probe = float(results.machine["flush"])
    rows = [
        (
            "F",
            f"the flush of a commit ({found.source}); {number(found.flush / probe)} {TIMES} the probe's",
            found.flush,
        ),
        ("G", "a group: BEGIN, the locks between processes, COMMIT's own work, waits for the interpreter", found.group),
        ("c", "a write in a group: its Python, its share of the statement, switches of threads", found.write),
        ("a", "a write of one thread alone, but for its flush", found.alone),
        ("r", "a transaction by hand under one lock, but for its flush", found.hand),
    ]
    lines = [
        *head(["constant", "what it is", "found"]),
        *(line([f"*{a}*", b, _time(seconds)]) for a, b, seconds in rows),
    ]
    if found.group is None or found.write is None:
        return "\n".join(lines)
    half = (found.flush + found.group) / found.write
    return "\n".join(
        [
            *lines,
            "",
            f"The bound, 1 / *c*: {short(1 / found.write)} writes a second. Half of it is reached with "
            f"(*F* + *G*) / *c* = {short(half)} threads.",
        ]
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{number(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{number(seconds * 1e6)} µs"


def _beside(found: Model, ours: Points, by_hand: Points) -> str:
    names = [f"{who}: {what}" for who in (SAFEDB, HAND) for what in ("predicted", "measured", "difference")]
    lines = head(["threads", "flush, ms", *names])
    for key in sorted({*ours, *by_hand}):
        threads, added = key
        flush = found.flush + added
        cells = [
            *_compared(found.safedb(threads, flush), ours.get(key)),
            *_compared(found.one_lock(threads, flush), by_hand.get(key)),
        ]
        lines.append(line([f"{threads:,}", number(flush * 1e3), *cells]))
    off = [
        abs(rate.middle / predicted - 1)
        for points, foretell in ((ours, found.safedb), (by_hand, found.one_lock))
        for (threads, added), rate in points.items()
        if threads <= MOST and (predicted := foretell(threads, found.flush + added))
    ]
    told = (
        f"\n\nDifferences up to {MOST} threads: {median(off):.0%} in the median, {max(off):.0%} at the most."
        if off
        else ""
    )
    return "Writes a second, min … median … max of the repeats:\n\n" + "\n".join(lines) + told


def _compared(predicted: float | None, rate: Spread | None) -> list[str]:
    return [
        NOTHING if predicted is None else short(predicted),
        NOTHING if rate is None else spread(rate),
        NOTHING if predicted is None or rate is None else f"{rate.middle / predicted - 1:+.0%}",
    ]


def _left_out(found: Model, missing: Sequence[Case]) -> str:
    told = []
    if missing:
        which = "; ".join(tell(case, [lambda case: case.peer, size, ASPECTS[5]]) for case in missing)
        told.append(f"- Left out, for there is no run that went well: {which}.")
    if found.group is None:
        told.append(
            "- *G* and *c* could not be fitted: that needs safedb's writes with two numbers of threads above one."
        )
    for constant, what in ((found.alone, "*a*: one thread of safedb's"), (found.hand, f"*r*: {ONE_LOCK}")):
        told += [] if constant is not None else [f"- Not measured, for {what}."]
    return "\n".join(told)


def _elsewhere(found: Model) -> str:
    if found.group is None:
        return ""
    sizes = [f"{threads} thread{'s' if threads > 1 else ''}" for threads in THREADS]
    lines = head(["flush, ms", *sizes, f"{HAND}, any number"])
    for flush in FLUSHES:
        rates = [*(found.safedb(threads, flush) for threads in THREADS), found.one_lock(1, flush)]
        lines.append(line([f"{flush * 1e3:g}", *(NOTHING if one is None else short(one) for one in rates)]))
    return "The same constants where the flush of a commit takes another time, writes a second:\n\n" + "\n".join(lines)


# From constants to a picture


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what is foretold as lines, and what was measured as marks, by threads: a colour for each time of a flush.

    The lines end with the largest group that there is.
    """
    found = fit(results)
    sides = [
        (SAFEDB, measured(results, SAFEDB)[0], found.safedb),
        (HAND, measured(results, ONE_LOCK)[0], found.one_lock),
    ]
    every = {key for _, points, _ in sides for key in points}
    if found.group is None:
        return []
    threads = sorted({one for one, _ in every})
    steps = {round(2 ** (step / FINE)) for step in range(FINE * threads[-1].bit_length())}
    places = sorted(place for place in {*threads, *steps} if threads[0] <= place <= min(threads[-1], MOST))
    with ink.look():
        about = f"lines: predicted, up to {MOST} threads; marks: median, least and most of the repeats; FULL"
        figure, panels = ink.sheet("Durable writes by threads, predicted and measured", [about])
        colours = dict(zip(sorted({added for _, added in every}), (ink.BLUE, *ink.COLOURS), strict=False))
        names = []
        for added, colour in colours.items():
            flush = found.flush + added
            for who, points, foretell in sides:
                some = {one: rate for (one, slower), rate in points.items() if slower == added}
                if some:
                    names.append(f"{who}, flush {flush * 1e3:.3g} ms")
                    rates = {place: rate for place in places if (rate := foretell(place, flush))}
                    _curve(panels[0], names[-1], some, rates, _style(who, colour))
        panels[0].set(xlabel="threads (logarithmic)", ylabel="acknowledged writes/s (logarithmic)")
        ink.logarithmic(panels[0], "x", threads)
        ink.logarithmic(panels[0], "y")
        ink.legend(figure, panels, names)
        return [ink.save(figure, folder / "model.svg")]


def _style(who: str, colour: str) -> dict[str, Any]:
    if who == SAFEDB:
        return {"color": colour, "linestyle": "-", "marker": "o", "markersize": 7, "linewidth": 2.4}
    return {"color": colour, "linestyle": ink.DASHES[1], "marker": "s", "markerfacecolor": "none", "linewidth": 1.2}


def _curve(
    axes: Axes, name: str, some: Mapping[int, Spread], rates: Mapping[int, float], style: Mapping[str, Any]
) -> None:
    """Draw the line of what is foretold, and the marks of what was measured."""
    axes.plot(list(rates), list(rates.values()), **{**style, "marker": ""})
    spreads = some.values()
    axes.vlines(
        list(some), [rate.low for rate in spreads], [rate.high for rate in spreads], style["color"], linewidth=1
    )
    axes.plot(list(some), [rate.middle for rate in spreads], **{**style, "linestyle": ""})
    axes.plot([], [], label=name, **style)
