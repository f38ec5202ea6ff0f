"""The budget: what safedb may cost, and what it must gain, beside plain `sqlite3` in the same run.

    python -m benchmarks.budget [--short] [--json FILE] [--folder DIR]

Databases are made in a folder of their own inside ``--folder`` (the current one, if it is not given), so run it on the
disk that is meant. The result is printed as Markdown. It needs some minutes; with ``--short`` less than one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import imports, machine, report, slowflush
from benchmarks.races import BY_HAND, Heats, run_heats
from benchmarks.report import Row
from benchmarks.rivals import OneLock
from benchmarks.singles import Singles, run_singles

SAFEDB, FUNCTIONS, BLOCKS = "safedb", "safedb, run_transaction", "safedb, blocks"
TIMES = "\N{MULTIPLICATION SIGN}"
BEST = f"{TIMES} the best by hand"
# Disks of another kind: seconds by which each flush is slower.
SLOW, ORDINARY = 0.002, 0.0001


@dataclass(frozen=True, slots=True)
class Effort:
    """Be how long it may take: rounds of pairs, heats of races and their seconds, fresh interpreters."""

    rounds: int
    heats: int
    seconds: float
    interpreters: int
    ordinary: bool  # also run what is reported beside the budget: a flush of an ordinary disk


FULL = Effort(rounds=400, heats=7, seconds=1.0, interpreters=41, ordinary=True)
SHORT = Effort(rounds=100, heats=3, seconds=0.4, interpreters=11, ordinary=False)


@dataclass(slots=True)
class Run:
    """Be everything that was measured."""

    machine: machine.Machine
    singles: Singles
    heats: dict[str, Heats] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # which heats could not be run, and why
    imports: list[float] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)


def measure(folder: Path, effort: Effort, say: Callable[[str], None]) -> Run:
    """Measure all of it in ``folder``."""
    say("one thread")
    run = Run(machine.describe(folder), run_singles(folder, rounds=effort.rounds))
    say("16 threads")
    run.heats["16"] = run_heats(
        folder, threads=16, seconds=effort.seconds, repeats=effort.heats, hows=("execute", "function", "block")
    )
    say("64 threads")
    run.heats["64"] = run_heats(folder, threads=64, seconds=effort.seconds, repeats=effort.heats)
    slower = [("64 +2", 64, SLOW)]
    if effort.ordinary:
        slower += [("16 +0.1", 16, ORDINARY), ("64 +0.1", 64, ORDINARY)]
    for name, threads, delay in slower:
        say(f"{threads} threads, every flush {delay * 1e3:g} ms slower")
        try:
            run.heats[name] = _slow_heats(folder, effort, threads=threads, delay=delay)
        except slowflush.NotHere as reason:
            run.missing[name] = str(reason)
    say("imports")
    run.imports, run.modules, run.unwanted = imports.cost(folder, effort.interpreters)
    return run


def _slow_heats(folder: Path, effort: Effort, *, threads: int, delay: float) -> Heats:
    arguments = ["--folder", folder, "--threads", threads, "--seconds", effort.seconds, "--repeats", effort.heats]
    shim = slowflush.build(folder)
    plain = slowflush.run(shim, "benchmarks.races", [str(argument) for argument in arguments], delay=delay)
    heats = Heats.from_json(plain)
    if heats.flush < delay:
        raise slowflush.NotHere(f"the shim had no effect: a flush took {heats.flush * 1e3:.3f} ms")
    return heats


def rows(run: Run) -> list[Row]:
    """Hold what was measured against the budget."""
    fast, many = run.heats["16"], run.heats["64"]
    waits = [race.longest * 1e3 for race in fast.races[SAFEDB]]
    shares = [race.fairness for race in fast.races[SAFEDB]]
    return [
        Row("point read, one thread", "≤", 1.25, f"{TIMES} raw", run.singles.read.ratio),
        *(
            Row(f"single write, one thread, {mode}", "≤", 1.15, f"{TIMES} raw", pair.ratio)
            for mode, pair in run.singles.write.items()
        ),
        Row.of("single-row writes, 16 threads, FULL", "≥", 4, BEST, fast.ratio(SAFEDB)),
        Row.of("the same, 64 threads", "≥", 6, BEST, many.ratio(SAFEDB)),
        _slow_row(run, "64 +2", "64 threads, FULL, every flush 2 ms slower", 20),
        Row.of("worst wait, 16 threads, FULL", "≤", 20, "ms", waits, worst=True),
        Row.of("fairness (Jain), 16 threads, FULL", "≥", 0.99, "", shares, worst=True),
        Row.of("`run_transaction`, 16 threads, FULL", "≥", 2, BEST, fast.ratio(FUNCTIONS)),
        Row.of(
            "`with db.transaction()`, 16 threads, FULL",
            "≥",
            0.9,
            f"{TIMES} {OneLock.name}",
            fast.ratio(BLOCKS, [OneLock.name]),
        ),
        Row.of("`import safedb`", "≤", 40, "ms more than `import sqlite3`", [time * 1e3 for time in run.imports]),
        Row.of(f"modules of {', '.join(imports.UNWANTED)} that it imports", "≤", 0, "", [float(len(run.unwanted))]),
        *_beside(run),
    ]


def _beside(run: Run) -> list[Row]:
    """Show the same where a flush takes what it takes on an ordinary disk; the budget does not ask for it."""
    return [
        _slow_row(run, f"{threads} +0.1", f"(beside the budget) {threads} threads, every flush 0.1 ms slower", None)
        for threads in (16, 64)
        if f"{threads} +0.1" in run.heats
    ]


def _slow_row(run: Run, name: str, work: str, limit: float | None) -> Row:
    if name in run.missing:
        return Row(work, "≥", limit, BEST, None, run.missing[name])
    return Row.of(work, "≥", limit, BEST, run.heats[name].ratio(SAFEDB))


def main() -> None:
    """Measure, print the tables, and write everything as JSON where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="less than a minute, and rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the databases are made (default: here)")
    given = parser.parse_args()
    logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
    with tempfile.TemporaryDirectory(prefix="safedb-budget-", dir=given.folder) as folder:
        run = measure(
            Path(folder).resolve(), SHORT if given.short else FULL, lambda text: print(f"… {text}", file=sys.stderr)
        )
    found = rows(run)
    print(report.markdown(run.machine, found, run.singles, run.heats, BY_HAND))
    if given.json is not None:
        whole = {**asdict(run), "rows": [asdict(row) | {"met": row.met} for row in found]}
        given.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
