"""What the slow and violent tests share: their two forms, their seeds, and the figures they report.

Each runs in a short form by default and in a long one where ``SAFEDB_TEST_LONG=1``. What it drew by chance follows from
its seed, which it prints; ``SAFEDB_TEST_SEED`` sets one. What it counted goes, as one line of JSON, into the file that
``SAFEDB_TEST_REPORT`` names; ``python tests/reliability.py FILE`` makes the table of ``docs/reliability.md`` of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

LONG = os.environ.get("SAFEDB_TEST_LONG") == "1"

COLUMNS = ("rounds", "kills", "faults", "acknowledged", "lost")
"""What the table shows of each test, in this order."""


def form(short: int, long: int) -> int:
    """Choose how much is done: in the short form, or in the long one."""
    return long if LONG else short


def draw_seed() -> int:
    """Return the seed that was set; else 1 in the short form, so that it repeats, and any in the long one."""
    given = os.environ.get("SAFEDB_TEST_SEED")
    if given is not None:
        return int(given)
    return SystemRandom().randrange(1, 1_000_000) if LONG else 1


class Record:
    """Be what one test counted; counts add up, so a test may tell of each round as it ends."""

    def __init__(self, test: str, seed: int) -> None:
        self._line: dict[str, Any] = {"test": test, "seed": seed}
        self._begun = time.monotonic()

    def add(self, **counts: int) -> None:
        """Count: ``rounds``, ``kills``, ``faults``, ``acknowledged`` writes that were checked, ``lost`` ones."""
        for name, count in counts.items():
            self._line[name] = self._line.get(name, 0) + count

    def note(self, **figures: Any) -> None:
        """Keep further figures (a worst wait, a share), shown as they are."""
        self._line.setdefault("figures", {}).update(figures)

    def close(self, passed: bool) -> None:
        """Write the line, if anything was counted and somebody wants it."""
        self._line["seconds"] = round(time.monotonic() - self._begun, 1)
        self._line["passed"] = passed
        path = os.environ.get("SAFEDB_TEST_REPORT")
        if path and len(self._line) > 4:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._line) + "\n")


@pytest.fixture
def seed() -> int:
    """Be the seed of a test's chances; a failing test shows it."""
    drawn = draw_seed()
    print(f"seed: {drawn} (SAFEDB_TEST_SEED={drawn} runs it again)")
    return drawn


@pytest.fixture
def record(request: pytest.FixtureRequest, seed: int) -> Iterator[Record]:
    """Be where a test notes what it counted."""
    made = Record(request.node.nodeid, seed)
    failed = request.session.testsfailed
    yield made
    made.close(passed=request.session.testsfailed == failed)


def table(lines: list[dict[str, Any]]) -> str:
    """Return the Markdown tables of a report, one for each file of tests; variants of one test are one row."""
    files: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        files.setdefault(line["test"].partition("::")[0], []).append(line)
    return "\n\n".join(f"`{file}`\n\n{_table(_merged(found))}" for file, found in files.items())


def _merged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up the variants of each test; the seed is the first one's."""
    tests: dict[str, dict[str, Any]] = {}
    for line in lines:
        name = line["test"].partition("::")[2].partition("[")[0]
        known = tests.setdefault(
            name, {"test": name, "seed": line["seed"], "variants": 0, "seconds": 0, "passed": True}
        )
        known["variants"] += 1
        known["passed"] = known["passed"] and line["passed"]
        for count in (*COLUMNS, "seconds"):
            if count in line:
                known[count] = known.get(count, 0) + line[count]
    return list(tests.values())


def _table(lines: list[dict[str, Any]]) -> str:
    rows = ["| test | variants | " + " | ".join(COLUMNS) + " | seed | seconds |", "|---" * (len(COLUMNS) + 4) + "|"]
    for line in lines:
        counts = " | ".join(f"{line[name]:,}" if name in line else "" for name in COLUMNS)
        passed = "" if line["passed"] else " **FAILED**"
        words = line["test"].removeprefix("test_").replace("_", " ")
        rows.append(f"| {words}{passed} | {line['variants']} | {counts} | {line['seed']} | {line['seconds']:,.0f} |")
    return "\n".join(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Read a report."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]))))
