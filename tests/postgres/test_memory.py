"""`iterate` holds a batch in memory and not the result: a short form of ``python -m benchmarks.memory``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from pgserver import shared
from support import unmeasured

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = 300_000
WHOLE = 40.0
"""Megabytes that these rows need at least when all are held at once: 300,000 strings of more than 100 characters."""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Be the benchmark, which has no place among the installed modules."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.memory")


def test_iterating_over_many_rows_needs_no_more_memory_than_over_a_few(memory: Any) -> None:
    target = memory.fill_postgres(shared().schema(), ROWS)
    found = memory.measure(target, ROWS, unmeasured())
    assert found.rows == ROWS
    assert found.after - found.before < WHOLE / 4


def test_so_it_is_on_sqlite(memory: Any, tmp_path: Path) -> None:
    target = memory.fill_sqlite(tmp_path / "numbers.db", ROWS)
    found = memory.measure(target, ROWS, unmeasured())
    assert found.rows == ROWS
    assert found.after - found.before < WHOLE / 4
