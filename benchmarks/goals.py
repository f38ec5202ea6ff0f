"""What safedb is held to, and whether it was kept, in runs that were made side by side.

Each ratio is that of one repeat: safedb's figure beside that of the peer that was best at it in this very repeat, among
those that acknowledge what they write and whose rows were all there. Of several repeats the middle one is judged; of
worst waits, errors and shares, the worst. Where safedb itself failed, the goal is missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.case import Case, Outcome, Work
from benchmarks.figures import ADDED, EVENNESS, FAIRNESS, MEGABYTE, REFUSED, THROUGHPUT, Figure, calls, wait
from benchmarks.markup import TIMES, head
from benchmarks.peers import ONE_LOCK, PER_THREAD, SAFEDB
from benchmarks.report import Row
from benchmarks.results import RAW, Pair, Results

SQLALCHEMY = "SQLAlchemy"
KIB = 1024
BEST = f"{TIMES} the best peer"
UNMEASURED = "not part of this run"

Sign = Literal["≤", "≥"]

LONGEST, RARE = wait(1.0, "write"), wait(0.999, "write")


def load(threads: int, work: Work = "write", **more: Any) -> Case:
    """Make a load."""
    return Case("", "", work, threads, **more)


PLAIN = {threads: load(threads) for threads in (16, 64, 1024)}
NORMAL = load(16, synchronous="NORMAL")
BATCH = {threads: load(threads, scheduler="batch") for threads in (16, 64)}
FOUR, EIGHT = load(4, processes=4), load(1, processes=8)


def slower(flush: float) -> Case:
    return load(64, flush=flush)


@dataclass(frozen=True, slots=True)
class Judge:
    """Make rows of the results."""

    results: Results

    def side_by_side(self, wanted: Case) -> list[dict[str, Outcome]]:
        """Give what came of a load, repeat by repeat, by peer."""
        found: dict[int, dict[str, Outcome]] = {}
        for run in self.results.runs:
            if _bare(run.case) == _bare(wanted):
                found.setdefault(run.repeat, {})[run.case.peer] = run.outcome
        return [found[repeat] for repeat in sorted(found)]

    def acknowledging(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Keep the others that acknowledge, and whose rows were all there."""
        return {
            name: outcome
            for name, outcome in outcomes.items()
            if name != SAFEDB
            and not outcome.failed
            and calls(outcome)
            and self.results.peers[name]["kind"] == "acknowledging"
        }

    def beside(
        self,
        work: str,
        sign: Sign,
        limit: float | None,
        wanted: Case,
        *,
        figure: Figure = THROUGHPUT,
        chosen: Callable[[Mapping[str, Outcome]], str] | None = None,
        unit: str = BEST,
        worst: bool = False,
    ) -> Row:
        """Compare with another peer: the one ``chosen`` from all, or else the one that is best at this figure."""
        ratios, names = [], []
        for outcomes in self.side_by_side(wanted):
            others = self.acknowledging(outcomes)
            name = (chosen or _best_at(figure, sign))(others) if others else ""
            if SAFEDB in outcomes and name in others:
                ratios.append(_against(outcomes[SAFEDB], others[name], figure, sign))
                names.append(name)
        if not ratios:
            return Row(work, sign, limit, unit, None, UNMEASURED)
        who = " or ".join(dict.fromkeys(names)) if unit == BEST else ""
        return Row.of(work, sign, limit, unit, ratios, worst=worst, beside=who)

    def alone(
        self, work: str, sign: Sign, limit: float, wanted: Case, figure: Figure, *, unit: str = "", worst: bool = True
    ) -> Row:
        """Look at safedb's own figure."""
        values = [
            _lost(sign) if outcomes[SAFEDB].failed else figure.of(outcomes[SAFEDB])
            for outcomes in self.side_by_side(wanted)
            if SAFEDB in outcomes
        ]
        if not values:
            return Row(work, sign, limit, unit, None, UNMEASURED)
        return Row.of(work, sign, limit, unit, values, worst=worst)

    def paired(
        self, work: str, sign: Sign, limit: float, wanted: tuple[str, int, str], who: str, whom: str, unit: str
    ) -> Row:
        """Compare two sides of a pair: the time of a call of ``who`` as a multiple of that of ``whom``."""
        for pair in self.results.pairs:
            if _key(pair) == wanted and {who, whom} <= pair.times.keys():
                return Row.of(work, sign, limit, unit, pair.ratios(who, whom))
        return Row(work, sign, limit, unit, None, UNMEASURED)

    def many_threads(self) -> list[Row]:
        """Look at 1024 threads: their throughput beside that of 64, and what each of them costs in memory.

        A thread costs memory of its own, whoever writes: its stack, and what a benchmark keeps of its waits. That is
        told by the same threads around one connection and a lock.
        """
        rates, costs = [], []
        many = self.side_by_side(PLAIN[1024])
        for few, lots in zip(self.side_by_side(PLAIN[64]), many, strict=False):
            if SAFEDB in few and SAFEDB in lots:
                rates.append(_against(lots[SAFEDB], few[SAFEDB], THROUGHPUT, "≥"))
        for lots in many:
            if SAFEDB in lots and ONE_LOCK in lots and not lots[ONE_LOCK].failed:
                ours, plain = (ADDED.of(lots[name]) * MEGABYTE / KIB / 1024 for name in (SAFEDB, ONE_LOCK))
                costs.append(math.inf if lots[SAFEDB].failed else ours - plain)
        first, second = "1024 threads, FULL: writes", "1024 threads: memory for each, above that of a plain one"
        return [
            Row.of(first, "≥", 1.0, f"{TIMES} 64 threads", rates)
            if rates
            else Row(first, "≥", 1.0, f"{TIMES} 64 threads", None, UNMEASURED),
            Row.of(second, "≤", 64, "KiB", costs) if costs else Row(second, "≤", 64, "KiB", None, UNMEASURED),
        ]

    def imports(self) -> list[Row]:
        """Look at what `import safedb` costs."""
        found = self.results.imports
        first, unit = "`import safedb`", "ms more than `import sqlite3`"
        second = "modules that it must not import"
        if not found:
            return [Row(first, "≤", 40, unit, None, UNMEASURED), Row(second, "≤", 0, "", None, UNMEASURED)]
        return [
            Row.of(first, "≤", 40, unit, [seconds * 1e3 for seconds in found["seconds"]]),
            Row.of(second, "≤", 0, "", [float(len(found["unwanted"]))]),
        ]


def rows(results: Results) -> list[Row]:
    """Hold what was measured against the goals, and against the older budget."""
    judge = Judge(results)
    return [*_goals(judge), *_budget(judge)]


def _goals(judge: Judge) -> list[Row]:
    beside, alone, paired = judge.beside, judge.alone, judge.paired
    four = f"4 processes {TIMES} 4 threads, FULL"
    return [
        beside("acknowledged writes, FULL, 16 threads", "≥", 5, PLAIN[16]),
        beside("acknowledged writes, FULL, 64 threads", "≥", 8, PLAIN[64]),
        beside("64 threads, every flush 2 ms slower", "≥", 40, slower(0.002)),
        beside("NORMAL, 16 threads", "≥", 0.9, NORMAL, chosen=_always(PER_THREAD), unit=_than(PER_THREAD)),
        beside(
            "NORMAL, 16 threads: worst wait", "≤", 1 / 50, NORMAL,
            figure=LONGEST, chosen=_always(PER_THREAD), unit=_than(PER_THREAD), worst=True,
        ),
        beside("p99.9, FULL, 64 threads", "≤", 1 / 4, PLAIN[64], figure=RARE),
        beside(four, "≥", 2, FOUR),
        beside(f"{four}: worst wait", "≤", 1 / 50, FOUR, figure=LONGEST, chosen=_fastest, worst=True),
        alone(f"{four}: slowest process", "≥", 0.9, FOUR, EVENNESS, unit=f"{TIMES} the fastest"),
        paired("point read, 1 thread", "≤", 1.15, ("point", 1, ""), SAFEDB, RAW, f"{TIMES} raw time"),
        paired("point read, 16 threads", "≥", 1.0, ("point", 16, ""), RAW, SAFEDB, f"{TIMES} raw throughput"),
        paired("point read, 1 thread", "≥", 5, ("point", 1, ""), SQLALCHEMY, SAFEDB, f"{TIMES} {SQLALCHEMY}"),
        paired("point read, 16 threads", "≥", 5, ("point", 16, ""), SQLALCHEMY, SAFEDB, f"{TIMES} {SQLALCHEMY}"),
        *judge.many_threads(),
    ]  # fmt: skip


def _budget(judge: Judge) -> list[Row]:
    beside, alone, paired = judge.beside, judge.alone, judge.paired
    eight = f"8 processes {TIMES} 1 thread, FULL"
    four = f"4 processes {TIMES} 4 threads, FULL"
    function, block = load(16, "function"), load(16, "block")
    return [
        paired("single write, 1 thread, FULL", "≤", 1.15, ("write", 1, "FULL"), SAFEDB, RAW, f"{TIMES} raw time"),
        paired("single write, 1 thread, NORMAL", "≤", 1.15, ("write", 1, "NORMAL"), SAFEDB, RAW, f"{TIMES} raw time"),
        alone("worst wait, 16 threads, FULL", "≤", 20, PLAIN[16], LONGEST, unit="ms"),
        alone("fairness (Jain), 16 threads, FULL", "≥", 0.99, PLAIN[16], FAIRNESS),
        beside("`run_transaction`, 16 threads, FULL", "≥", 2, function),
        beside(
            "`with db.transaction()`, 16 threads, FULL", "≥", 0.9, block,
            chosen=_always(ONE_LOCK), unit=_than(ONE_LOCK),
        ),
        alone(f"{eight}: errors", "≤", 0, EIGHT, REFUSED),
        alone(f"{eight}: slowest process", "≥", 0.8, EIGHT, EVENNESS, unit=f"{TIMES} the fastest"),
        alone(f"{eight}: worst wait", "≤", 50, EIGHT, LONGEST, unit="ms"),
        beside(eight, "≥", 0.5, EIGHT, chosen=_always(PER_THREAD), unit=_than(PER_THREAD)),
        alone(f"{four}: errors", "≤", 0, FOUR, REFUSED),
        *judge.imports(),
        *(
            beside(f"(no goal) acknowledged writes under `SCHED_BATCH`, FULL, {threads} threads", "≥", None, wanted)
            for threads, wanted in BATCH.items()
        ),
        beside(
            "(no goal) acknowledged writes under `SCHED_BATCH`, NORMAL, 16 threads", "≥", None,
            replace(NORMAL, scheduler="batch"), chosen=_always(PER_THREAD), unit=_than(PER_THREAD),
        ),
        beside("(no goal) 64 threads, every flush 0.5 ms slower", "≥", None, slower(0.0005)),
        beside(f"(no goal) {four}: worst wait, beside the shortest", "≤", None, FOUR, figure=LONGEST, worst=True),
    ]  # fmt: skip


def markdown(found: Sequence[Row]) -> str:
    """Write the table; what was not part of the run is told below it."""
    present = [row.line() for row in found if row.why != UNMEASURED]
    absent = dict.fromkeys(row.work for row in found if row.why == UNMEASURED)
    if not present:
        return "Nothing that there is a goal for was part of this run."
    lines = [*head(["work", "goal", "measured (min … median … max)", "met?"]), *present, ""]
    if absent:
        lines.append(f"Not part of this run: {'; '.join(absent)}.")
    return "\n".join(lines).rstrip()


# -- who is compared --------------------------------------------------------------------------------------------------


def _best_at(figure: Figure, sign: Sign) -> Callable[[Mapping[str, Outcome]], str]:
    pick = max if sign == "≥" else min
    return lambda outcomes: pick(outcomes, key=lambda name: figure.of(outcomes[name]))


def _fastest(outcomes: Mapping[str, Outcome]) -> str:
    return _best_at(THROUGHPUT, "≥")(outcomes)


def _always(name: str) -> Callable[[Mapping[str, Outcome]], str]:
    return lambda _: name


def _than(name: str) -> str:
    return f"{TIMES} {name}"


def _against(ours: Outcome, theirs: Outcome, figure: Figure, sign: Sign) -> float:
    if ours.failed:
        return _lost(sign)
    return figure.of(ours) / figure.of(theirs) if figure.of(theirs) else math.inf


def _lost(sign: Sign) -> float:
    return 0.0 if sign == "≥" else math.inf


def _bare(case: Case) -> Case:
    return replace(case, scenario="", peer="", seconds=0.0)


def _key(pair: Pair) -> tuple[str, int, str]:
    return pair.work, pair.threads, pair.synchronous
