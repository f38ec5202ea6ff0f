"""One thread: point read, snapshot read and single write, each beside raw `sqlite3`.

python -m pytest benchmarks --benchmark-only
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.rivals import INSERT, PAYLOAD, Synchronous, open_raw, open_safe
from benchmarks.singles import POINT_READ, ROWS

KEY = 77
EXPECTED = [(PAYLOAD,)]
KINDS = ("raw", "safedb")

Read = Callable[[], list[Any]]


@pytest.fixture
def reads(folder: Path) -> Iterator[dict[tuple[str, str], Read]]:
    """Give the reads by what is read, and by whom: both from one file."""
    path = folder / "read.db"
    with closing(open_safe(path, "FULL")) as db, closing(open_raw(path, "FULL")) as raw:
        db.executemany(INSERT, [(0, number, PAYLOAD) for number in range(ROWS)])

        def raw_point() -> list[Any]:
            return raw.execute(POINT_READ, (KEY,)).fetchall()

        def raw_snapshot() -> list[Any]:
            raw.execute("BEGIN")
            rows = raw.execute(POINT_READ, (KEY,)).fetchall()
            raw.execute("COMMIT")
            return rows

        def safe_point() -> list[Any]:
            return db.execute(POINT_READ, (KEY,)).fetchall()

        def safe_snapshot() -> list[Any]:
            with db.snapshot() as snap:
                return snap.execute(POINT_READ, (KEY,)).fetchall()

        yield {
            ("point", "raw"): raw_point,
            ("snapshot", "raw"): raw_snapshot,
            ("point", "safedb"): safe_point,
            ("snapshot", "safedb"): safe_snapshot,
        }


@pytest.mark.parametrize("who", KINDS)
@pytest.mark.parametrize("what", ["point", "snapshot"])
def test_bench_read(benchmark: BenchmarkFixture, reads: dict[tuple[str, str], Read], what: str, who: str) -> None:
    benchmark.group = f"{what} read, one thread"
    assert benchmark(reads[what, who]) == EXPECTED


@pytest.mark.parametrize("who", KINDS)
@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_bench_single_write(benchmark: BenchmarkFixture, folder: Path, synchronous: Synchronous, who: str) -> None:
    benchmark.group = f"single write, one thread, {synchronous}"
    path = folder / "write.db"
    numbers = itertools.count()
    if who == "raw":
        with closing(open_raw(path, synchronous)) as raw:

            def by_hand() -> None:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute(INSERT, (0, next(numbers), PAYLOAD))
                raw.execute("COMMIT")

            benchmark(by_hand)
    else:
        with closing(open_safe(path, synchronous)) as db:
            benchmark(lambda: db.execute(INSERT, (0, next(numbers), PAYLOAD)))
    written = next(numbers)
    with closing(open_raw(path, synchronous)) as check:
        assert check.execute("SELECT count(*), count(DISTINCT number) FROM t").fetchone() == (written, written)
