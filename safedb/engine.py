"""The protocol between the one API and the engines beneath it: `database` knows this, and nothing else of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from safedb.config import ResolvedRetryPolicy
from safedb.sql import Statement
from safedb.stats import Hooks, Stats

T = TypeVar("T")

Fetched = tuple[list[tuple[Any, ...]], Any, int]
"""Rows, the cursor's description (or None), and the row count."""


class SessionLike(Protocol):
    """Run statements inside an open write transaction, in the thread that opened it."""

    lost: BaseException | None

    def run(self, statement: Statement, values: Sequence[Any], *, many: bool = False) -> Fetched:
        """Run one statement; errors come classified."""

    def savepoint(self, name: str) -> None:
        """Set a savepoint."""

    def rollback_to(self, name: str) -> None:
        """Undo what came since, and remove it."""

    def release(self, name: str) -> None:
        """Keep what came since, and remove it."""


class SnapshotLike(Protocol):
    """Read one fixed state."""

    def run(self, statement: Statement, values: Sequence[Any], timeout: float) -> Fetched:
        """Run one read."""

    def iterate(
        self, statement: Statement, values: Sequence[Any], batch: int, timeout: float
    ) -> Iterator[tuple[list[tuple[Any, ...]], Any]]:
        """Read in batches."""


class Engine(Protocol):
    """Keep one database. Timeouts are seconds; every method may be called from any thread."""

    dialect: str
    name: str
    hooks: Hooks

    def execute(self, sql: str, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run one statement in a transaction of its own."""

    def execute_stale(self, sql: str, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run one read that may miss the latest writes."""

    def execute_many(self, sql: str, rows: Any, timeout: float, policy: ResolvedRetryPolicy) -> int:
        """Run one statement for many rows, all or nothing."""

    def execute_script(self, statements: list[Statement], timeout: float, policy: ResolvedRetryPolicy) -> None:
        """Run several statements, all or nothing."""

    def statement(self, sql: str) -> Statement:
        """Read a statement that is to run inside a transaction or a snapshot, or refuse it."""

    def many(self, sql: str) -> Statement:
        """Read a statement for `executemany`, or refuse it."""

    def decoded(self, statement: Statement, fetched: Fetched) -> Fetched:
        """Turn stored values into those of the declared types."""

    def block(self, timeout: float, policy: ResolvedRetryPolicy) -> Any:
        """Make a block for the calling thread; nothing is held yet. Its ``left`` is set when it is being left."""

    def begin(self, block: Any) -> SessionLike:
        """Open a block; `commit` or `rollback` must follow, whatever comes."""

    def commit(self, block: Any) -> None:
        """Commit a block."""

    def rollback(self, block: Any) -> None:
        """Roll a block back."""

    def run_function(self, body: Callable[[Any], T], timeout: float, policy: ResolvedRetryPolicy) -> T:
        """Run ``body`` in this thread inside a write transaction, again if its transaction is lost."""

    def open_snapshot(
        self, timeout: float, max_age: float | None, *, serializable: bool = False, stale: bool = False
    ) -> Any:
        """Fix one committed state for the calling thread. Its ``left`` is set when it is being left."""

    def close_snapshot(self, session: Any, ident: int) -> None:
        """End a snapshot."""

    def backup(self, dest: str, progress: Callable[[int, int], Any] | None, timeout: float | None) -> None:
        """Copy one committed state into a new file."""

    def checkpoint(self, timeout: float) -> None:
        """Move the log's content into the database."""

    def check(self, timeout: float | None) -> list[str]:
        """Look for damage; give the findings."""

    def optimize(self, timeout: float) -> None:
        """Renew what the query planner knows."""

    def stats(self) -> Stats:
        """Show the engine at this moment."""
