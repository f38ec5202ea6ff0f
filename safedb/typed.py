"""Values for a database that has types of its own: what may be given to PostgreSQL, as plain Python values.

The rule is that of :mod:`safedb.types`, and so are the checks: a value comes back equal to what was given, or
:class:`~safedb.errors.DataError` says so before anything is sent. Where PostgreSQL could hold more than SQLite it is
refused all the same, so that a program may change its database; only decimals are exact here, which SQLite rounds.

Everything here is pure: safe from any thread.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from safedb import types
from safedb.errors import DataError
from safedb.types import Adapter, Json

PLAIN: frozenset[type] = frozenset({bool, bytes, date, UUID})
# PostgreSQL's MAXDIM. It also ends a list that holds itself.
_DIMENSIONS = 6


def adapt(value: object) -> Any:
    """Turn a value into a plain one, of a type that psycopg sends without a loss. What may change is copied.

    Raises ``DataError`` where it would not come back equal, ``ProgrammingError`` for a type that has no agreed form.
    """
    adapter = _ADAPTERS.get(type(value))
    if adapter is None:
        adapter = types.find_adapter(type(value), _ADAPTERS)
    return adapter(value)


def _adapt_date(value: date) -> date:
    return value if type(value) is date else date.fromordinal(date.toordinal(value))


def _adapt_time(value: time) -> time:
    types.check_time(value)
    return value if type(value) is time else time.fromisoformat(time.isoformat(value, timespec="microseconds"))


def _adapt_uuid(value: UUID) -> UUID:
    return value if type(value) is UUID else UUID(int=value.int)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _adapt_json(wrapped: Json) -> str:
    """Give the text: sent without a type, it fits columns of JSON, JSONB and TEXT alike."""
    text = types.json_text(wrapped.value)
    # JSONB holds numbers as numeric, and 1e+16 would come back as an int: write all the digits, and a fraction.
    return _STRING_OR_LARGE.sub(_write_out, text) if "e+" in text else text


_STRING_OR_LARGE = re.compile(r'"(?:[^"\\]|\\.)*+"|-?[0-9.]++e\+[0-9]++')


def _write_out(found: re.Match[str]) -> str:
    text = found[0]
    return text if text.startswith('"') else f"{Decimal(text):f}.0"


# --- Arrays ----------------------------------------------------------------------------------------------------------


def _adapt_array(value: list[Any] | tuple[Any, ...]) -> list[Any]:
    """Give an array as lists. Its elements are of one type, and its rows of one length: PostgreSQL has no others."""
    kinds: set[type] = set()
    array, _ = _adapt_dimension(value, kinds, 1)
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"an array of mixed types ({names}): make its elements all of one type")
    return array


def _adapt_dimension(
    value: list[Any] | tuple[Any, ...], kinds: set[type], dimension: int
) -> tuple[list[Any], tuple[int, ...]]:
    """Give a list of adapted elements, and the lengths of its dimensions; note the elements' types."""
    if dimension > _DIMENSIONS:
        raise DataError(f"an array of more than {_DIMENSIONS} dimensions, or one that holds itself")
    items = tuple(value)  # first of all: a list may grow under our eyes
    nested = [isinstance(item, list | tuple) for item in items]
    if not any(nested):
        elements = [adapt(item) for item in items]
        kinds.update(type(element) for element in elements if element is not None)
        return elements, (len(elements),)
    if not all(nested):
        raise DataError("an array that has both rows and single elements, or NULL for a row")
    rows = [_adapt_dimension(item, kinds, dimension + 1) for item in items]
    shapes = {shape for _, shape in rows}
    if len(shapes) > 1 or 0 in min(shapes):
        raise DataError("an array with rows of different lengths, or of none")
    return [row for row, _ in rows], (len(rows), *shapes.pop())


_ADAPTERS: dict[type, Adapter] = {
    type(None): types.same,
    bool: types.same,
    int: types.plain_int,
    float: types.plain_float,
    str: types.plain_str,
    bytes: types.plain_bytes,
    bytearray: types.plain_bytes,
    memoryview: types.plain_bytes,
    datetime: types.plain_datetime,
    date: _adapt_date,
    time: _adapt_time,
    timedelta: types.plain_timedelta,
    Decimal: types.plain_decimal,
    UUID: _adapt_uuid,
    Json: _adapt_json,
    list: _adapt_array,
    tuple: _adapt_array,
}
