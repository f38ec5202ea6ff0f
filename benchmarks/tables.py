"""From runs to Markdown: a table for each scenario, and one of everything in which safedb loses.

Nothing is hidden: a run that failed is told with its reason, and so are errors and calls that were not served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import losses
from benchmarks.case import Run
from benchmarks.figures import (
    ADDED,
    EVENNESS,
    FAIRNESS,
    LOG,
    MEMORY,
    OURS,
    PROCESSOR,
    REFUSED,
    THROUGHPUT,
    UNSERVED,
    Cell,
    Figure,
    cells,
    ratio,
    wait,
)
from benchmarks.loads import Aspect, apart, by_load, by_scenario, tell
from benchmarks.markup import NOTHING, TIMES, greatest, head, line, middle, plain, times
from benchmarks.report import spread

LOSSES = "Where safedb loses"
UNACKNOWLEDGED = "Unacknowledged writes"
OTHER_WORK = "Other work"

ACKNOWLEDGING = "acknowledging"
OURS_MARK = "→ "
FEW = 1000  # calls

Peers = Mapping[str, Mapping[str, str]]


def markdown(runs: Sequence[Run], peers: Peers) -> dict[str, str]:
    """Write every section by its name, without its heading: the losses, the scenarios, and what is not comparable.

    ``peers`` tells of each by name its ``kind`` and ``remark`` (see `Peer`).
    """
    found = cells(runs)
    rivals = [cell for cell in found if kind_of(cell, peers) == ACKNOWLEDGING]
    sections = {LOSSES: losses.markdown(rivals)}
    sections |= {scenario: _scenario(some, ranked=True) for scenario, some in by_scenario(rivals).items()}
    for section, kind in ((UNACKNOWLEDGED, "unacknowledged"), (OTHER_WORK, "other work")):
        others = [cell for cell in found if kind_of(cell, peers) == kind]
        if others:
            sections[section] = _remarked(others, peers)
    return sections


def kind_of(cell: Cell, peers: Peers) -> str:
    """Tell of what kind a case's peer is; one that nothing is known of is taken for a rival."""
    return peers.get(cell.case.peer, {}).get("kind", ACKNOWLEDGING)


def _remarked(others: Sequence[Cell], peers: Peers) -> str:
    names = dict.fromkeys(cell.case.peer for cell in others)
    remarks = [f"- **{name}**: {peers[name].get('remark') or NOTHING}" for name in names]
    scenarios = by_scenario(others)
    tables = [
        (f"**{scenario}**\n\n" if len(scenarios) > 1 else "") + _scenario(some, ranked=False)
        for scenario, some in scenarios.items()
    ]
    return "\n\n".join(["\n".join(remarks), *tables])


@dataclass(frozen=True, slots=True)
class Row:
    """Be one line: a case, or one kind of its calls. ``first``: the case's first line; ``top``: the load's first."""

    cell: Cell
    kind: str
    first: bool
    top: bool
    ours: Cell | None


@dataclass(frozen=True, slots=True)
class Column:
    """Be a column. ``figure``: that of which the best is to be seen; ``each``: each kind of calls has its own.

    ``high``: the greatest of the repeats is told and not the median.
    """

    name: str
    figure: Callable[[Row], Figure] | None = None
    text: Callable[[Row], str] | None = None
    high: bool = False
    each: bool = False

    def cell(self, row: Row) -> str:
        """Write the cell of a line."""
        if not (row.first or self.each):
            return ""
        if self.text is not None or self.figure is None:
            return self.text(row) if self.text is not None else NOTHING
        return (greatest if self.high else middle)(row.cell, self.figure(row))

    def best(self, rows: Sequence[Row]) -> set[int]:
        """Find the lines that have the best value, of each kind of calls; none where all have the same."""
        values: dict[str, dict[int, float]] = {}
        for number, row in enumerate(rows):
            if self.figure is not None and (row.first or self.each):
                figure = self.figure(row)
                found = row.cell.spread(figure)
                if found is not None:
                    value = float(f"{found.high if self.high else found.middle:.3g}")  # as exactly as it is written
                    values.setdefault(row.kind if self.each else "", {})[number] = -value if figure.more else value
        return {
            number
            for some in values.values()
            if len(set(some.values())) > 1
            for number, value in some.items()
            if value == min(some.values())
        }


def _scenario(some: Sequence[Cell], *, ranked: bool) -> str:
    """Write the tables of one scenario; ``ranked``: who acknowledges is compared with others, the rest with nobody."""
    loads = by_load(some)
    differ, shared = apart(list(loads))
    rows, single = ([_rows(group, split=split) for group in loads.values()] for split in (True, False))
    who = [
        *([Column("load", text=lambda row: tell(row.cell.case, differ) if row.top else "")] if differ else []),
        Column("who", text=_who, each=True),
    ]
    seconds = sorted({cell.case.seconds for cell in some})
    repeats = max(len(cell.runs) for cell in some)
    lasted = f"{' or '.join(f'{one:g}' for one in seconds)} s a run, {repeats} repeat{'s' if repeats > 1 else ''}"
    parts = [
        " ".join([f"{tell(some[0].case, shared)}; {lasted}.", *_caveats(some)]),
        _table([*who, *_speed(some, ranked=ranked)], rows, ranked=ranked),
        "\n".join(_notes(some, differ)),
        "<details><summary>CPU, memory, WAL and rows verified</summary>",
        _table([*who, *_cost(some)], single, ranked=ranked),
        "</details>",
    ]
    return "\n\n".join(part for part in parts if part)


def _caveats(some: Sequence[Cell]) -> Iterator[str]:
    """Tell what some figures of these cases do not say by themselves."""
    counts = [waits.count for cell in some for outcome in cell.good for waits in outcome.waits.values()]
    if counts and min(counts) < FEW:
        yield f"Of fewer than {FEW:,} calls in a run, p99.9 is the longest wait."
    if any(cell.case.beside == "burning" for cell in some):
        yield "CPU is with that of the threads that compute."
    if any(cell.case.dialect == "postgresql" for cell in some):
        yield "CPU and memory are without the server's."


def _rows(group: Sequence[Cell], *, split: bool) -> list[Row]:
    """Give the lines of one load, the fastest first and what failed last; ``split``: each kind of calls has its own."""
    ours = next((cell for cell in group if cell.case.peer == OURS[cell.case.dialect]), None)
    ordered = sorted(group, key=lambda cell: -found.middle if (found := cell.spread(THROUGHPUT)) else 1.0)
    return [
        Row(cell, kind, first=not number, top=not (place or number), ours=ours)
        for place, cell in enumerate(ordered)
        for number, kind in enumerate((cell.kinds if split else []) or [""])
    ]


def _speed(some: Sequence[Cell], *, ranked: bool) -> list[Column]:
    """Give the columns about calls and their waits."""
    opened = any(cell.case.rate is not None for cell in some)
    return [
        Column("calls/s (min … median … max)", lambda _: THROUGHPUT, _rate),
        *([Column(f"safedb is … {TIMES} as fast", text=_compared)] if ranked else []),
        *(_waits(part) for part in (0.5, 0.9, 0.99, 0.999, 1.0)),
        Column(FAIRNESS.name, lambda _: FAIRNESS),
        Column("errors + unserved", text=_missed) if opened else Column("errors", text=_refused),
    ]


def _waits(part: float) -> Column:
    return Column(wait(part, "").name, lambda row: wait(part, row.kind), high=part == 1.0, each=True)


def _cost(some: Sequence[Cell]) -> list[Column]:
    several = any(cell.case.processes > 1 for cell in some)
    return [
        *map(_figure, (PROCESSOR, MEMORY, ADDED)),
        Column(LOG.name, text=_log),  # who writes less has less of it: no merit
        *([_figure(EVENNESS)] if several else []),
        Column("rows verified", text=_verified),
    ]


def _log(row: Row) -> str:
    return greatest(row.cell, LOG) if row.cell.case.dialect == "sqlite" else NOTHING  # a server's is not looked at


def _verified(row: Row) -> str:
    if row.cell.case.work in {"point", "range"}:
        return NOTHING  # each is looked at as it is read
    return f"{sum(outcome.verified for outcome in row.cell.good):,}"


def _figure(figure: Figure) -> Column:
    return Column(figure.name, lambda _: figure)


def _who(row: Row) -> str:
    mark = OURS_MARK if row.cell is row.ours else ""
    return f"{mark}{row.cell.case.peer}{f': {row.kind}s' if row.kind and len(row.cell.kinds) > 1 else ''}"


def _rate(row: Row) -> str:
    cell = row.cell
    found = cell.spread(THROUGHPUT)
    if found is None:
        return "failed"
    return spread(found) + (f" ({len(cell.failed)} of {len(cell.runs)} failed)" if cell.failed else "")


def _compared(row: Row) -> str:
    found = None if row.ours is None or row.cell is row.ours else ratio(row.ours, row.cell, THROUGHPUT)
    return NOTHING if found is None else times(found)


def _refused(row: Row) -> str:
    return f"{sum(row.cell.values(REFUSED).values()):,.0f}" if row.cell.good else NOTHING


def _missed(row: Row) -> str:
    return f"{_refused(row)} + {sum(row.cell.values(UNSERVED).values()):,.0f}" if row.cell.good else NOTHING


def _notes(some: Sequence[Cell], differ: Sequence[Aspect]) -> list[str]:
    """Tell what failed and why, and which errors there were."""
    notes = []
    for cell in some:
        name = tell(cell.case, [lambda case: case.peer, *differ])
        for why in dict.fromkeys(run.outcome.failed for run in cell.failed):
            repeats = ", ".join(str(run.repeat + 1) for run in cell.failed if run.outcome.failed == why)
            notes.append(f"- {name}: failed in repeat {repeats}: {plain(why)}")
        errors = sum((Counter(outcome.errors) for outcome in cell.good), Counter[str]())
        if errors:
            notes.append(
                f"- {name}: " + ", ".join(f"{count:,} {TIMES} {plain(what)}" for what, count in sorted(errors.items()))
            )
    return notes


def _table(columns: Sequence[Column], groups: Sequence[Sequence[Row]], *, ranked: bool) -> str:
    lines = head([column.name for column in columns])
    for rows in groups:
        best = [column.best(rows) if ranked else set() for column in columns]
        for number, row in enumerate(rows):
            texts = zip((column.cell(row) for column in columns), best, strict=True)
            lines.append(line([f"**{text}**" if number in leaders else text for text, leaders in texts]))
    return "\n".join(lines)
