"""The histogram of waits: what the tables and pictures are made of."""

from __future__ import annotations

import json
import random
from math import ceil

import pytest

from benchmarks.case import Case, Outcome, Run, Waits


@pytest.mark.parametrize("part", [0.001, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_a_quantile_of_waits_is_right_within_one_percent(part: float) -> None:
    """Written down: 10,000 waits from microseconds to seconds, held against the sorted list."""
    draw = random.Random(4)
    waits = sorted(draw.lognormvariate(-7, 2) for _ in range(10_000))
    exact = waits[ceil(part * len(waits)) - 1]
    assert exact * 0.9999 <= Waits.of(waits).quantile(part) <= exact * 1.0101


def test_the_longest_wait_is_kept_exactly_and_parts_add_up() -> None:
    first, second = Waits.of([0.001, 0.0123456789]), Waits.of([0.5, 0.0])
    both = first + second
    assert both.count == 4
    assert both.longest == 0.5
    assert both == Waits.of([0.5, 0.001, 0.0, 0.0123456789])
    assert Waits().quantile(0.5) == 0.0


def test_a_run_comes_back_from_the_file_as_it_was() -> None:
    outcome = Outcome(1.5, [[3, 4], [5]], {"write": Waits.of([0.1, 0.2])}, {"Busy": 2}, 1, 0.5, 10, 5, 7, 12, 12)
    run = Run(Case("threads", "safedb", "write", 2, rate=100.0, beside="lock held"), 3, outcome)
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run
