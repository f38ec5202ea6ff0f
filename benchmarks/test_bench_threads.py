"""Single writes of 16 threads that are there already, by hand and by safedb. One call writes `ROWS` rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.calls import SIDES, crew
from benchmarks.case import Synchronous
from benchmarks.conftest import Label

THREADS = 16
ROWS = 1024
ROUNDS = 7

pytestmark = pytest.mark.timeout(900)  # by hand they poll, which takes long on a slow disk


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
@pytest.mark.parametrize("side", SIDES)
def test_bench_writes(
    benchmark: BenchmarkFixture, folder: Path, label: Label, side: str, synchronous: Synchronous
) -> None:
    label("single writes", side, rows=ROWS, threads=THREADS, synchronous=synchronous)
    with crew(side, folder, synchronous, threads=THREADS, each=ROWS // THREADS) as work:
        benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
