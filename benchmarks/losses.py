"""Where safedb loses: found in the runs, and not chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.case import Case
from benchmarks.figures import FAIRNESS, MEMORY, OURS, PROCESSOR, REFUSED, THROUGHPUT, UNSERVED, Cell, ratio, wait
from benchmarks.loads import QUIET, apart, by_load, by_scenario, tell
from benchmarks.markup import head, line, middle, times

MARGIN = 1.1  # how many times better another must be to be told: repeats of one case differ by about as much


@dataclass(frozen=True, slots=True)
class Loss:
    """Be one figure of one load in which others are better than safedb; ``by``: how many times the best of them is."""

    by: float
    scenario: str
    load: str
    figure: str
    ours: str
    theirs: str

    def line(self) -> str:
        """Write it."""
        return line([self.scenario, self.load, self.figure, self.ours, self.theirs])


def losses(rivals: Sequence[Cell]) -> list[Loss]:
    """Find every figure of every load in which one of ``rivals`` is better by more than a tenth, the worst first.

    Where safedb did not run or failed, and another ran, that is the worst.
    """
    found: list[Loss] = []
    for some in by_scenario(rivals).values():
        loads = by_load(some)
        differ, shared = apart(list(loads))
        told = [*shared[:4], *(aspect for aspect in shared[4:] if aspect in QUIET)]
        for case, group in loads.items():
            found += _losses(case, group, tell(case, differ or told))
    return sorted(found, key=lambda loss: -loss.by)


def markdown(rivals: Sequence[Cell]) -> str:
    """Write the table of them."""
    found = losses(rivals)
    if not found:
        return "Nowhere in this run: no acknowledging peer is better by more than 10 % in any figure of any load."
    return "\n".join(
        [
            "Every figure of every load in which an acknowledging peer is better than safedb by more than 10 % (median "
            "of the ratios within a repeat), found by the program and not chosen, the worst first. Looked at are "
            "throughput, p50, p99.9, the longest wait, fairness, processor time, memory, errors, and whether it ran at "
            "all.",
            "",
            *head(["scenario", "load", "figure", "safedb", "theirs (how many times better)"]),
            *(loss.line() for loss in found),
        ]
    )


def _losses(case: Case, group: Sequence[Cell], load: str) -> Iterable[Loss]:
    ours = next((cell for cell in group if cell.case.peer == OURS[case.dialect]), Cell(case, []))
    others = [cell for cell in group if cell is not ours]
    ran = [cell.case.peer for cell in others if cell.good]
    if ran and (ours.failed or not ours.runs):
        text = f"failed {len(ours.failed)} of {len(ours.runs)} times" if ours.runs else "was not run"
        yield Loss(math.inf, case.scenario, load, "whether it ran", text, ", ".join(ran))
    kinds = sorted({kind for cell in group for kind in cell.kinds})
    waits = [
        wait(part, kind, of=f" of {kind}s" if len(kinds) > 1 else "") for part in (0.5, 0.999, 1.0) for kind in kinds
    ]
    for figure in (THROUGHPUT, *waits, FAIRNESS, PROCESSOR, MEMORY, REFUSED, UNSERVED):
        found = [(ratio(cell, ours, figure) or 0.0, cell) for cell in others]
        better = sorted(((by, cell) for by, cell in found if by > MARGIN), key=lambda one: -one[0])
        if better:
            theirs = ", ".join(f"{cell.case.peer}: {middle(cell, figure)} ({times(by)})" for by, cell in better)
            yield Loss(better[0][0], case.scenario, load, figure.name, middle(ours, figure), theirs)
