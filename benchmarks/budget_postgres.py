"""The budget on PostgreSQL: what safedb may cost beside psycopg_pool used by hand at the same isolation, in one run.

    python -m benchmarks.budget_postgres [--short] [--json FILE] [URL]

Without a URL it starts a server of its own, whose files lie where temporary files do. With one it works in a schema of
its own, which it drops at the end. The result is printed as Markdown. It needs some minutes; with ``--short`` about
one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.measure import Spread, Together, alternate
from benchmarks.pgsides import MANY, ByHand, Safe, Side, about, serving
from benchmarks.report import Row, spread

HAND, SAFEDB, CHECKED, AGAIN = "by hand", "safedb", "by hand, checked", "by hand, again"
TIMES = "\N{MULTIPLICATION SIGN} by hand"
THREADS = 16
PART = 0.05  # of the ratios at either end that is left out: batches that the system stopped


@dataclass(frozen=True, slots=True)
class Work:
    """Be one line of the budget: how a side does it, how many calls a batch has, and what it may cost."""

    name: str
    call: Callable[[Side], Callable[[], None]]
    limit: float | None
    calls: int
    rounds: int
    threads: int = 1

    def measure(self, sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
        """Let the sides do it in turn; give the seconds of a call, batch by batch."""
        works = {name: self.call(side) for name, side in sides.items()}
        if self.threads == 1:
            return alternate(works, calls=self.calls, rounds=rounds)
        teams = {
            name: Together(work, threads=self.threads, each=self.calls // self.threads) for name, work in works.items()
        }
        try:
            times = alternate(teams, calls=1, rounds=rounds)
        finally:
            for team in teams.values():
                team.close()
        return {name: [time / self.calls for time in some] for name, some in times.items()}


WORKS = [
    Work("point read, one thread", lambda side: side.read, 1.10, calls=100, rounds=300),
    Work(f"point read, {THREADS} threads", lambda side: side.read, 1.10, calls=640, rounds=100, threads=THREADS),
    Work("single write, one thread", lambda side: side.write, 1.10, calls=50, rounds=200),
    Work(f"`executemany` of {MANY:,} rows", lambda side: side.many, 1.05, calls=1, rounds=40),
    Work(
        f"(beside the budget) single write, {THREADS} threads",
        lambda side: side.write, None, calls=320, rounds=50, threads=THREADS,
    ),
]  # fmt: skip
SHORTER = 5  # times fewer rounds with --short


def measure(url: str, shorter: int, say: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    """Measure all of it; the rows are counted at the end. Gives seconds of a call by work and side."""
    with (
        closing(ByHand(url, "hand")) as hand,
        closing(Safe(url, "safe")) as safe,
        closing(ByHand(url, "checked", check=True)) as checked,
        closing(ByHand(url, "again")) as again,
    ):
        sides: dict[str, Side] = {HAND: hand, SAFEDB: safe, CHECKED: checked, AGAIN: again}
        found = {}
        for work in WORKS:
            say(work.name)
            found[work.name] = work.measure(sides, max(work.rounds // shorter, 8))
        return found


def ratio(times: dict[str, list[float]], who: str, whom: str) -> Spread:
    """Sum up the ratios of two sides' batches, round by round."""
    ratios = sorted(a / b for a, b in zip(times[who], times[whom], strict=True))
    cut = int(len(ratios) * PART)
    return Spread.of(ratios[cut : len(ratios) - cut])


def rows(found: dict[str, dict[str, list[float]]]) -> list[Row]:
    """Hold what was measured against the budget."""
    return [Row(work.name, "≤", work.limit, TIMES, ratio(found[work.name], SAFEDB, HAND)) for work in WORKS]


def markdown(lines: list[str], budget: list[Row], found: dict[str, dict[str, list[float]]]) -> str:
    """Write everything."""
    return "\n".join(
        [
            *lines,
            "",
            "| work | budget | measured (min … median … max) | met? |",
            "|---|---|---|---|",
            *(row.line() for row in budget),
            "",
            "By hand is psycopg_pool with as many connections at the same isolation: reads in autocommit, writes at "
            "SERIALIZABLE. All take turns in short batches, and each ratio is that of one round; the lowest and the "
            "highest twentieth are left out. Met or not is said of the median. Every row written was counted "
            "afterwards.",
            "",
            "For comparison: safedb beside a pool that tries each connection when it lends it "
            "(`check=ConnectionPool.check_connection`), and by hand beside the very same by hand, which is the noise.",
            "",
            f"| work | safedb, {TIMES} with check (min … median … max) | noise (min … median … max) |",
            "|---|---|---|",
            *(
                f"| {name} | {spread(ratio(times, SAFEDB, CHECKED))} | {spread(ratio(times, AGAIN, HAND))} |"
                for name, times in found.items()
            ),
            "",
            "Microseconds for each call (for each row of `executemany`; all threads together):",
            "",
            "| work | who | min … median … max |",
            "|---|---|---|",
            *(
                f"| {work.name} | {who} | {spread(Spread.of([time * _scale(work) for time in times]))} |"
                for work in WORKS
                for who, times in found[work.name].items()
            ),
        ]
    )


def _scale(work: Work) -> float:
    return 1e6 / MANY if work.name.startswith("`executemany`") else 1e6


def main() -> None:
    """Measure, print the tables, and write everything as JSON where that was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget_postgres", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="about a minute, and rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("url", nargs="?", metavar="URL", help="a server that may be used (default: start one)")
    given = parser.parse_args()
    logging.getLogger("safedb").setLevel(logging.ERROR)
    here = machine.describe(Path(tempfile.gettempdir()))
    with serving(given.url) as url:
        lines = [*here.lines(), *about(url)]
        found = measure(url, SHORTER if given.short else 1, lambda text: print(f"… {text}", file=sys.stderr))
    budget = rows(found)
    print(markdown(lines, budget, found))
    if given.json is not None:
        plain = [asdict(row) | {"met": row.met} for row in budget]
        whole = {"machine": asdict(here), "about": lines, "times": found, "rows": plain}
        given.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
