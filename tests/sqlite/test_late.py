"""Bounded: what a deadline's error says is true, also when the deadline was over before anything began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import safedb


@pytest.fixture
def db(tmp_path: Path) -> Iterator[safedb.Database]:
    with safedb.connect(tmp_path / "app.db", schema="CREATE TABLE t(x)") as database:
        yield database


CALLS: dict[str, Callable[[safedb.Database], object]] = {
    "a script": lambda db: db.executescript("DELETE FROM t", timeout=1e-9),
    "a block": lambda db: db.transaction(timeout=1e-9).__enter__(),
    "a checkpoint": lambda db: db.checkpoint(timeout=1e-9),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_deadline_that_was_over_at_once_is_told_as_that(db: safedb.Database, call: str) -> None:
    """A ticket that never queued has no time of arrival: its wait was once counted from the machine's start."""
    with pytest.raises(safedb.LockTimeout, match=r"waited 0\.000 s .* before it began"):
        CALLS[call](db)
    db.execute("INSERT INTO t VALUES (1)")
