"""One thread: what one call costs, by hand and by safedb. `python -m benchmarks.micro` compares both.

python -m pytest benchmarks/test_bench_single.py --benchmark-only
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.calls import MANY, READS, SIDES, WRITES, calls
from benchmarks.case import Synchronous
from benchmarks.conftest import Label
from benchmarks.peers.peer import RANGE


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("work", READS)
def test_bench_read(benchmark: BenchmarkFixture, folder: Path, label: Label, side: str, work: str) -> None:
    label(work, side, rows=RANGE if work == "range read" else 1)
    with calls(side, folder, "FULL") as works:
        assert benchmark(works[work])


@pytest.mark.parametrize("side", SIDES)  # the last to change: a pair stands together
@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
@pytest.mark.parametrize("work", WRITES)
def test_bench_write(
    benchmark: BenchmarkFixture, folder: Path, label: Label, side: str, work: str, synchronous: Synchronous
) -> None:
    label(work, side, rows=MANY if work == "executemany" else 1, synchronous=synchronous)
    with calls(side, folder, synchronous) as works:
        benchmark(works[work])
