"""Row factories: what one row of a result is made into.

A factory is called once a result with the names of its columns, and returns the function that makes each row. The
names are psycopg's. Factories keep no state that calls share, so any thread may use any of them at any time.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]
RowMaker = Callable[[Row], T]
RowFactory = Callable[[tuple[str, ...]], RowMaker[T]]


def tuple_row(columns: tuple[str, ...]) -> RowMaker[Row]:  # noqa: ARG001 - every factory is told the columns
    """Make rows the tuples that they are: the default."""
    return _unchanged


def dict_row(columns: tuple[str, ...]) -> RowMaker[dict[str, Any]]:
    """Make each row a dict keyed by column name.

    Of two columns of one name the last one stays: give them names of their own with AS.
    """

    def make(row: Row) -> dict[str, Any]:
        return dict(zip(columns, row, strict=False))

    return make


def namedtuple_row(columns: tuple[str, ...]) -> RowMaker[Any]:
    """Make each row a named tuple whose fields are the columns.

    A column whose name is no Python identifier gets a similar one: other characters become ``_``, and a leading digit
    or underscore gets an ``f`` in front (``count(*)`` is ``count___``, ``1st`` is ``f1st``). A keyword, or a name that
    is taken already, becomes ``_`` and its position.
    """
    make: RowMaker[Any] = _named_tuple(columns)._make
    return make


def class_row(cls: Callable[..., T]) -> RowFactory[T]:
    """Make a factory of rows that are made by ``cls(column=value, ...)``: a dataclass, for example.

    A column that ``cls`` does not take is its ``TypeError``.
    """

    def factory(columns: tuple[str, ...]) -> RowMaker[T]:
        def make(row: Row) -> T:
            return cls(**dict(zip(columns, row, strict=False)))

        return make

    return factory


def _unchanged(row: Row) -> Row:
    return row


@lru_cache(maxsize=512)  # making a class takes a tenth of a millisecond
def _named_tuple(columns: tuple[str, ...]) -> Any:
    return namedtuple("Row", [_identifier(name) for name in columns], rename=True)


def _identifier(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    return "f" + name if not name or name[0] == "_" or name[0].isdigit() else name
