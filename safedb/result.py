"""What a statement gave: complete, in memory, with no cursor left open anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safedb import errors
from safedb.rows import RowFactory, tuple_row

Row = tuple[Any, ...]


class Result:
    """Hold the rows and the row count of one statement. It is complete when it is returned; it may change threads.

    ``rowcount`` is the number of rows changed, or for rows returned their number (-1 for statements that have none,
    such as DDL). Fetching goes on where the last fetch ended; `len` counts all rows, fetched or not.
    """

    _next = 0  # (a default of the class, and no __slots__: results are made on the fastest path there is)

    def __init__(
        self, rows: list[Row], description: Any = None, rowcount: int = -1, factory: RowFactory[Any] = tuple_row
    ) -> None:
        self._rows = rows
        self._description = description
        self.rowcount = rowcount
        self._factory = factory

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns; empty where there are no rows to return."""
        return tuple([column[0] for column in self._description or ()])

    def fetchall(self) -> list[Any]:
        """Give all rows that have not been fetched."""
        rows = self._rows
        start, self._next = self._next, len(rows)
        if start or self._factory is not tuple_row:
            return self._made(rows[start:])
        return rows.copy()

    def fetchmany(self, size: int = 1) -> list[Any]:
        """Give up to ``size`` more rows."""
        start = self._next
        self._next = min(start + max(size, 0), len(self._rows))
        return self._made(self._rows[start : self._next])

    def fetchone(self) -> Any:
        """Give the next row, or None where there is none left."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def one(self) -> Any:
        """Give the only row; raise `ProgrammingError` unless there is exactly one."""
        if len(self._rows) != 1:
            raise errors.ProgrammingError(
                f"one() expects exactly one row, and there are {len(self._rows)}; narrow the statement, or use "
                "fetchone()"
            )
        return self._made(self._rows)[0]

    def scalar(self) -> Any:
        """Give the first value of the first row, or None where there is no row."""
        return self._rows[0][0] if self._rows else None

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        return True  # a result without rows is a result all the same

    def __repr__(self) -> str:
        return f"<Result {len(self._rows)} rows, rowcount {self.rowcount}>"

    def _made(self, rows: list[Row]) -> list[Any]:
        return rows if self._factory is tuple_row else list(map(self._factory(self.columns), rows))
