"""What a statement gave: complete, in memory, with no cursor left open anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safedb import errors
from safedb.engine import Fetched
from safedb.rows import RowFactory, tuple_row

Row = tuple[Any, ...]


class Result:
    """Hold the rows and the row count of one statement. It is complete when it is returned; it may change threads.

    ``rowcount`` is the number of rows changed, or for rows returned their number (-1 for statements that have none,
    such as DDL). Fetching goes on where the last fetch ended; `len` counts all rows, fetched or not.
    """

    __slots__ = ("_factory", "_fetched", "_next")

    def __init__(self, fetched: Fetched, factory: RowFactory[Any] = tuple_row) -> None:
        self._fetched = fetched
        self._factory = factory
        self._next = 0

    @property
    def rowcount(self) -> int:
        """Give the number of rows changed or returned; -1 for statements that have none."""
        return self._fetched[2]

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns; empty where there are no rows to return."""
        return tuple([column[0] for column in self._fetched[1] or ()])

    def fetchall(self) -> list[Any]:
        """Give all rows that have not been fetched."""
        rows = self._fetched[0]
        if self._next or self._factory is not tuple_row:
            return self.fetchmany(len(rows))
        self._next = len(rows)
        return rows.copy()

    def fetchmany(self, size: int = 1) -> list[Any]:
        """Give up to ``size`` more rows."""
        rows, start = self._fetched[0], self._next
        self._next = min(start + max(size, 0), len(rows))
        return self._made(rows[start : self._next])

    def fetchone(self) -> Any:
        """Give the next row, or None where there is none left."""
        rows, start = self._fetched[0], self._next
        if start >= len(rows):
            return None
        self._next = start + 1
        return rows[start] if self._factory is tuple_row else self._factory(self.columns)(rows[start])

    def one(self) -> Any:
        """Give the only row; raise `ProgrammingError` unless there is exactly one."""
        if len(self._fetched[0]) != 1:
            raise errors.ProgrammingError(
                f"one() expects exactly one row, and there are {len(self._fetched[0])}; narrow the statement, or use "
                "fetchone()"
            )
        return self._made(self._fetched[0])[0]

    def scalar(self) -> Any:
        """Give the first value of the first row, or None where there is no row."""
        return self._fetched[0][0][0] if self._fetched[0] else None

    def __iter__(self) -> Iterator[Any]:
        rows, make = self._fetched[0], self._factory(self.columns)
        while self._next < len(rows):
            row = rows[self._next]
            self._next += 1
            yield make(row)

    def __len__(self) -> int:
        return len(self._fetched[0])

    def __bool__(self) -> bool:
        return True  # a result without rows is a result all the same

    def __repr__(self) -> str:
        return f"<Result {len(self._fetched[0])} rows, rowcount {self._fetched[2]}>"

    def _made(self, rows: list[Row]) -> list[Any]:
        return rows if self._factory is tuple_row else list(map(self._factory(self.columns), rows))
