"""PostgreSQL, one thread: point read, single write and `executemany`, each beside psycopg_pool used by hand.

python -m pytest benchmarks/test_bench_postgres.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.pgsides import ByHand, Safe, Side, serving

KINDS = ("by hand", "safedb")


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, Side]]:
    """Give both sides, on a server of their own; afterwards the rows are counted."""
    with serving(None) as url, closing(ByHand(url, "hand")) as hand, closing(Safe(url, "safe")) as safe:
        yield {"by hand": hand, "safedb": safe}


@pytest.mark.parametrize("who", KINDS)
def test_bench_point_read(benchmark: BenchmarkFixture, sides: dict[str, Side], who: str) -> None:
    benchmark.group = "PostgreSQL, point read, one thread"
    benchmark(sides[who].read)


@pytest.mark.parametrize("who", KINDS)
def test_bench_single_write(benchmark: BenchmarkFixture, sides: dict[str, Side], who: str) -> None:
    benchmark.group = "PostgreSQL, single write, one thread"
    benchmark(sides[who].write)


@pytest.mark.parametrize("who", KINDS)
def test_bench_executemany(benchmark: BenchmarkFixture, sides: dict[str, Side], who: str) -> None:
    benchmark.group = "PostgreSQL, executemany of 10,000 rows"
    benchmark.pedantic(sides[who].many, rounds=10, warmup_rounds=1)  # type: ignore[no-untyped-call]
