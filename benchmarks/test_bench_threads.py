"""Single-row writes of 1, 4, 16 and 64 threads, by hand in two ways and by safedb. One round writes `ROWS` rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Crew
from benchmarks.rivals import BusyTimeout, OneLock, Rival, Safe, Synchronous

ROWS = 1024
ROUNDS = 7

pytestmark = pytest.mark.timeout(900)  # 64 threads that poll, on a slow disk


@pytest.mark.parametrize("kind", [BusyTimeout, OneLock, Safe], ids=["busy-timeout", "one-lock", "safedb"])
@pytest.mark.parametrize("threads", [1, 4, 16, 64])
@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_bench_group_write(
    benchmark: BenchmarkFixture,
    folder: Path,
    crew: Callable[[Rival, int, int], Crew],
    synchronous: Synchronous,
    threads: int,
    kind: Callable[[Path, Synchronous], Rival],
) -> None:
    benchmark.group = f"{ROWS} single-row writes, {threads:2} threads, {synchronous}"
    rival = kind(folder / "write.db", synchronous)
    pedantic: Any = benchmark.pedantic  # (it has no types)
    pedantic(crew(rival, threads, ROWS // threads), rounds=ROUNDS, warmup_rounds=1)
    assert rival.acknowledged.total() == ROWS * (ROUNDS + 1)
