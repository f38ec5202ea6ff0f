"""Fixtures of all tests: an engine, a fresh database, handles that are closed, threads that are joined.

Contract tests take `db` or `connect` and run once for each engine in `ENGINES`, where another may be added. Every test
has a folder of its own, so none sees what another left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate

import safedb

GENEROUS = safedb.RetryPolicy(timeout=60.0)
"""The policy where a test is not about deadlines: a loaded machine must not fail it."""


@dataclass(frozen=True)
class Backend:
    """Be one engine, and the words of its dialect that a schema needs."""

    name: str
    make_target: Callable[[Path], Any]
    types: dict[str, str] = field(default_factory=dict)

    def schema(self, text: str) -> str:
        """Write a schema in this engine's words: ``{blob}`` and its like are replaced."""
        return text.format(**self.types)


SQLITE = Backend("sqlite", lambda folder: folder / "test.db", {"blob": "BLOB", "serial": "INTEGER PRIMARY KEY"})
ENGINES = [SQLITE]

Connect = Callable[..., safedb.Database]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the settings of the machine that runs the tests."""
    for name in list(os.environ):
        ours = name.startswith("SAFEDB_") and not name.startswith(("SAFEDB_TEST_", "SAFEDB_BENCH_"))
        if ours or name == "DATABASE_URL":
            monkeypatch.delenv(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that needs a database once for each engine; those in a folder named after one, for that one."""
    if "backend" in metafunc.fixturenames:
        alone = [backend for backend in ENGINES if backend.name in metafunc.definition.path.parts]
        metafunc.parametrize("backend", alone or ENGINES, ids=lambda backend: backend.name)


@pytest.fixture
def target(backend: Backend, tmp_path: Path) -> Any:
    """Name a database that nobody has used."""
    return backend.make_target(tmp_path)


@pytest.fixture
def connect(target: Any) -> Iterator[Connect]:
    """Open handles on the test's database; all are closed at the end, the last one first."""
    handles: list[safedb.Database] = []

    def open_handle(where: Any = None, /, **options: Any) -> safedb.Database:
        options.setdefault("retry", GENEROUS)
        handles.append(safedb.connect(target if where is None else where, **options))
        return handles[-1]

    yield open_handle
    for handle in reversed(handles):
        handle.close()


@pytest.fixture
def db(connect: Connect) -> safedb.Database:
    """Be a handle on a database with the table ``t (id, v)``, whose ``v`` are all different."""
    return connect(schema="CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT UNIQUE)")


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Be a gate for one statement; it is open when the test ends."""
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def crew(gate: Gate, connect: Connect) -> Iterator[Crew]:
    """Start threads. They are joined before the database is closed; what they raise and nobody asked for is raised."""
    made = Crew()
    yield made
    gate.open()
    made.finish()
