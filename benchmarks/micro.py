"""What one call costs beside the same by hand, and whether that has got worse: ``python -m benchmarks.micro``.

Times of another machine are no baseline, so what is kept (`baseline.json`) and compared is the *ratio* of safedb to
raw, both measured here. pytest-benchmark measures one after the other, in several passes, and a pace that changes
meanwhile moves a ratio; so a time counts as worse only where the ratio of the medians and that of the shortest rounds
both do. ``--instructions`` counts instead, which load does not disturb (see `instructions`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks import instructions, machine
from benchmarks.peers import SAFEDB
from benchmarks.report import short
from benchmarks.results import RAW

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benchmarks" / "baseline.json"
FILES = ("test_bench_single.py", "test_bench_threads.py")
OPTIONS = (
    "--benchmark-only", "--benchmark-quiet", "--benchmark-warmup=on", "--benchmark-warmup-iterations=20",
    "--benchmark-max-time=0.5", "-q", "-p", "no:cacheprovider",
)  # fmt: skip
MATTERS = ("cores", "processor", "python", "sqlite")  # of the machine: what a ratio may depend on

Kind = Literal["times", "instructions"]
THRESHOLDS: dict[Kind, float] = {"times": 15.0, "instructions": 5.0}  # per cent
UNITS: dict[Kind, str] = {"times": "µs", "instructions": "instructions"}
RATIOS: dict[Kind, str] = {"times": "ratio (medians, shortest)", "instructions": "ratio"}


class Unusable(Exception):
    """Say why there is nothing to compare, or nothing to compare with."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Be what one call takes by hand and by safedb (microseconds, or instructions), and the ratios that are judged."""

    raw: float
    safedb: float
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, raw: Sequence[float], safedb: Sequence[float]) -> Figure:
        """Take the figures of both sides that belong together, the one to be shown first."""
        return cls(raw[0], safedb[0], tuple(ours / theirs for theirs, ours in zip(raw, safedb, strict=True)))


@dataclass(frozen=True, slots=True)
class Kept:
    """Be what was measured of one kind, and on what."""

    machine: Mapping[str, Any]
    figures: Mapping[str, Figure]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Kept:
        """Read what `dataclasses.asdict` gave."""
        figures = {
            work: Figure(float(one["raw"]), float(one["safedb"]), tuple(map(float, one["ratios"])))
            for work, one in plain["figures"].items()
        }
        return cls(dict(plain["machine"]), figures)


def load(path: Path, kind: Kind) -> Kept:
    """Read one half of a baseline."""
    kept = load_all(path)
    if kind not in kept:
        raise Unusable(f"{path} has no {kind}; --save puts them there")
    return kept[kind]


def load_all(path: Path) -> dict[Kind, Kept]:
    """Read a baseline, by kind."""
    remedy = "`python -m benchmarks.micro --save` makes one, and with --instructions the other half of it"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {kind: Kept.from_json(plain[kind]) for kind in THRESHOLDS if kind in plain}
    except FileNotFoundError:
        raise Unusable(f"there is no baseline at {path}; {remedy}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unusable(f"{path} is not a baseline ({type(error).__name__}: {error}); {remedy}") from None


def save(path: Path, kind: Kind, found: Kept) -> None:
    """Put what was measured in the place of what was kept of its kind."""
    try:
        kept = load_all(path)
    except Unusable:
        kept = {}
    plain = {name: asdict(one) for name, one in sorted((kept | {kind: found}).items())}
    path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def reduce(reports: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Figure], list[str]]:
    """Make figures of pytest-benchmark's reports, one of each pass; and say what has no counterpart.

    A figure is the median of the passes' medians, with the shortest round of all beside it.
    """
    times: defaultdict[str, defaultdict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        for one in report["benchmarks"]:
            told, stats = one["extra_info"], one["stats"]
            scale = 1e6 / (told["rows"] if told["threads"] > 1 else 1)  # a crew's call is one of each row
            times[one["group"]][told["side"]].append((stats["median"] * scale, stats["min"] * scale))
    figures, lone = {}, []
    for work, sides in times.items():
        if {RAW, SAFEDB} <= sides.keys():
            figures[work] = Figure.of(*(_summed(sides[side]) for side in (RAW, SAFEDB)))
        else:
            lone.append(f"{work}: only {' and '.join(sides)} was measured, so there is no ratio")
    return figures, lone


def _summed(passes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return median(middle for middle, _ in passes), min(least for _, least in passes)


def compare(now: Kept, kept: Kept, threshold: float) -> tuple[list[str], list[str], list[str]]:
    """Give the rows of the table, what got worse by more than ``threshold`` per cent, and what else is to be said."""
    rows, worse, remarks = [], [], []
    for work, figure in now.figures.items():
        before = kept.figures.get(work)
        if before is None:
            rows.append(_row(work, figure, "—", "—", ""))
            remarks.append(f"{work}: not in the baseline")
            continue
        changes = [(a / b - 1) * 100 for a, b in zip(figure.ratios, before.ratios, strict=True)]
        bad = min(changes) > threshold
        if bad:
            worse.append(work)
        shown = ", ".join(f"{change:+.1f} %" for change in changes)
        rows.append(_row(work, figure, _ratios(before), shown, "**worse**" if bad else ""))
    remarks += [f"{work}: in the baseline, and not measured now" for work in kept.figures if work not in now.figures]
    remarks += [
        f"the baseline was taken with another {name} ({kept.machine.get(name)}; here {now.machine.get(name)})"
        for name in MATTERS
        if kept.machine.get(name) != now.machine.get(name)
    ]
    return rows, worse, remarks


def _row(work: str, figure: Figure, *cells: str) -> str:
    return f"| {' | '.join((work, short(figure.raw), short(figure.safedb), _ratios(figure), *cells))} |"


def _ratios(figure: Figure) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in figure.ratios)


def measure_times(passes: int, say: Callable[[str], None]) -> tuple[dict[str, Figure], list[str]]:
    """Run the files of pytest-benchmark so often."""
    reports, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="safedb-bench-") as name:
        for number in range(1, passes + 1):
            left = (time.monotonic() - began) / (number - 1) * (passes - number + 1) if number > 1 else 0.0
            say(f"pass {number} of {passes}" + (f", about {left:.0f} s left" if left else ""))
            path = Path(name) / f"{number}.json"
            files = [f"benchmarks/{file}" for file in FILES]
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *files, *OPTIONS, f"--benchmark-json={path}"],
                cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise Unusable(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
            reports.append(json.loads(path.read_text(encoding="utf-8")))
    return reduce(reports)


def measure_instructions(say: Callable[[str], None]) -> tuple[dict[str, Figure], list[str]]:
    """Count the instructions of everything that is counted."""
    found = instructions.count(list(instructions.COUNTED), say)
    return {work: Figure.of([sides[RAW]], [sides[SAFEDB]]) for work, sides in found}, []


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare and tell; give the exit code."""
    asked = _parser().parse_args(arguments)
    kind: Kind = "instructions" if asked.instructions else "times"
    try:
        kept = None if asked.save else load(asked.baseline, kind)
        figures, lone = measure_instructions(_say) if asked.instructions else measure_times(asked.passes, _say)
        with tempfile.TemporaryDirectory(prefix="safedb-bench-", dir=Path()) as name:
            now = Kept(asdict(machine.describe(Path(name))), figures)
    except (Unusable, instructions.NotHere) as error:
        print(error, file=sys.stderr)
        return 2
    if asked.save:
        save(asked.baseline, kind, now)
    threshold = THRESHOLDS[kind] if asked.threshold is None else asked.threshold
    rows, worse, remarks = compare(now, kept or now, threshold)
    unit, ratio = UNITS[kind], RATIOS[kind]
    print(f"| one call | raw, {unit} | safedb, {unit} | {ratio} | in the baseline | change | |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows), end="\n\n")
    for remark in lone + remarks:
        print(f"- {remark}")
    print(f"Worse by more than {threshold:g} %: {'; '.join(worse) or 'nothing'}.")
    return 1 if asked.strict and (worse or lone) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.micro", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instructions", action="store_true", help="count instructions (needs valgrind), not times")
    parser.add_argument("--passes", type=int, default=3, help="how often pytest-benchmark runs (default: 3)")
    parser.add_argument(
        "--threshold", type=float, help="per cent: worse than that is marked (times 15, instructions 5)"
    )
    parser.add_argument(
        "--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: benchmarks/baseline.json"
    )
    parser.add_argument("--save", action="store_true", help="make what is measured the baseline")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where something is worse")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
