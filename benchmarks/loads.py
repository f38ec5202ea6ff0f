"""What may stand side by side: cases grouped by scenario and load, and a load told in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from benchmarks.case import Case
from benchmarks.figures import OURS, Cell
from benchmarks.markup import TIMES

Aspect = Callable[[Case], str]

WORKS = {
    "write": "single writes",
    "function": "function transactions",
    "block": "blocks",
    "point": "point reads",
    "range": "range reads",
    "mixed": "9 reads to 1 write",
}
BESIDE = {
    "": "nothing beside",
    "lock held": "another program holds the lock for 1 s",
    "reader held": "another program holds a reader open",
    "burning": "2 threads compute beside",
    "busy": "another program computes on every core",
}
SCHEDULERS = {
    "": "the kernel's usual scheduling",
    "batch": "SCHED_BATCH",
    "one core": "on one core",
}


def load(case: Case) -> Case:
    """Give the load without the peer: what may stand side by side has the same."""
    return replace(case, peer="", seconds=0.0)


def by_load(some: Iterable[Cell]) -> dict[Case, list[Cell]]:
    """Group cells by load, the lighter loads first."""
    found: dict[Case, list[Cell]] = {}
    for cell in some:
        found.setdefault(load(cell.case), []).append(cell)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def by_scenario(some: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Group cells by scenario."""
    found: dict[str, list[Cell]] = {}
    for cell in some:
        found.setdefault(cell.case.scenario, []).append(cell)
    return found


def _order(case: Case) -> tuple[object, ...]:
    return (
        list(OURS).index(case.dialect),
        list(WORKS).index(case.work),
        list(BESIDE).index(case.beside),
        case.synchronous,
        case.rows,
        case.flush,
        case.rate or 0.0,
        case.processes,
        case.threads,
        -case.switch,
        list(SCHEDULERS).index(case.scheduler),
    )


def size(case: Case) -> str:
    """Tell how many threads of how many processes."""
    threads = f"{case.threads:,} thread{'s' if case.threads > 1 else ''}"
    return threads if case.processes == 1 else f"{case.processes} processes {TIMES} {threads}"


ASPECTS: tuple[Aspect, ...] = (
    lambda case: {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[case.dialect],
    lambda case: WORKS[case.work],
    lambda case: case.synchronous,
    size,
    lambda case: "closed loop" if case.rate is None else f"open loop of {case.rate:,.0f} calls/s",
    lambda case: f"every flush {case.flush * 1e3:g} ms slower" if case.flush else "flush not slowed",
    lambda case: BESIDE[case.beside],
    lambda case: f"threads switch every {case.switch * 1e3:g} ms",
    lambda case: SCHEDULERS[case.scheduler],
    lambda case: f"{case.rows:,} rows",
)


# What is told only where it is not so.
PLAIN = load(Case("", "", "write", 1))
QUIET = ASPECTS[5:9]


def apart(loads: Sequence[Case]) -> tuple[list[Aspect], list[Aspect]]:
    """Part the aspects of loads: those in which they differ, and those that they share and that are worth telling."""
    differ = [aspect for aspect in ASPECTS if len({aspect(case) for case in loads}) > 1]
    dull = [aspect for aspect in QUIET if aspect(loads[0]) == aspect(PLAIN)]
    return differ, [aspect for aspect in ASPECTS if aspect not in (*differ, *dull)]


def tell(case: Case, aspects: Iterable[Aspect]) -> str:
    """Tell some aspects of a load."""
    return ", ".join(aspect(case) for aspect in aspects)
