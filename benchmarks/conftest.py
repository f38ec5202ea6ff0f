"""Fixtures of the pytest-benchmark files: a folder on the disk that is meant, and the label of a benchmark."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Label = Callable[..., None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder inside the current one: pytest's own often lies in memory."""
    with tempfile.TemporaryDirectory(prefix="safedb-bench-", dir=Path()) as name:
        yield Path(name)


@pytest.fixture
def label(benchmark: BenchmarkFixture) -> Label:
    """Give what names the group that both sides of one work are in, and the facts that `micro` reads."""

    def put(work: str, side: str, *, rows: int, threads: int = 1, synchronous: str = "") -> None:
        """Put it on. ``rows``: how many rows one call of the benchmark reads or writes."""
        number = f"{threads} threads" if threads > 1 else "one thread"
        benchmark.group = ", ".join(filter(None, [work, number, synchronous]))
        benchmark.extra_info.update(side=side, rows=rows, threads=threads, synchronous=synchronous)

    return put
