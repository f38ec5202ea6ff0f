"""Values that travel: what may be given to SQLite, and what comes back from columns of a declared type.

SQLite stores five kinds of values; the rest is agreement (https://www.sqlite.org/datatype3.html). The rule here is that
a value comes back equal to what was given, or :class:`~safedb.errors.DataError` says so before anything is written.
Nothing is registered with the ``sqlite3`` module: its adapters and converters belong to the whole process, and other
libraries' answers would change.

Everything here is pure: safe from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, NoReturn
from uuid import UUID

from safedb.errors import DataError, ProgrammingError

SqliteValue = None | int | float | str | bytes
Decoder = Callable[[Any], Any]

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
# SQLite promises that so many significant digits survive its conversions between text and float.
_FLOAT_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Json:
    """Mark a parameter as JSON: what ``json.dumps`` takes, with strings as keys. A tuple comes back as a list."""

    value: Any


def adapt(value: object) -> SqliteValue:
    """Turn a value into one of the five kinds that SQLite stores.

    Raises ``DataError`` where it would not come back equal, ``ProgrammingError`` for a type that has no agreed form.
    """
    adapter = _ADAPTERS.get(type(value))
    if adapter is None:
        adapter = _inherited_adapter(type(value))
    return adapter(value)


def _inherited_adapter(kind: type) -> Callable[[Any], SqliteValue]:
    for base in kind.__mro__:
        if base in _ADAPTERS:
            return _ADAPTERS[base]
    raise ProgrammingError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be a parameter: convert it first (str(x), "
        "int(x), an enum's .value), or wrap lists and dicts in safedb.Json(x)"
    )


def _adapt_none(value: None) -> None:
    return value


def _adapt_int(value: int) -> int:
    if not INT_MIN <= value <= INT_MAX:
        raise DataError("an int that does not fit into 64 bits: store it as text with str(x)")
    return int.__int__(value)


def _adapt_float(value: float) -> float:
    if value != value:  # only NaN differs from itself
        raise DataError("NaN: SQLite would store NULL; pass None where NULL is meant")
    return float.__float__(value)


def _adapt_str(value: str) -> str:
    if "\0" in value:
        raise DataError(f"a str of {len(value)} characters with a NUL in it: pass such data as bytes")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"a str with a lone surrogate at position {error.start}: pass such data as bytes") from None
    return str.__str__(value)


def _adapt_bytes(value: bytes | bytearray | memoryview) -> bytes:
    return value if type(value) is bytes else bytes(memoryview(value))


def _adapt_datetime(value: datetime) -> str:
    if type(value) is not datetime:
        value = _plain_datetime(value)
    if value.utcoffset() is not None:
        try:
            value = value.astimezone(UTC)
        except OverflowError:
            raise DataError(f"{value} is outside the years 1 to 9999 in UTC") from None
    else:
        value = value.replace(tzinfo=None)
    # Always six digits, and always the same offset: so the texts sort as the times do.
    return value.isoformat(sep=" ", timespec="microseconds")


def _plain_datetime(value: datetime) -> datetime:
    """Drop a subclass, but nothing that it holds beyond a datetime (nanoseconds; a "not a time")."""
    try:
        plain = datetime.combine(date(value.year, value.month, value.day), value.timetz()).replace(fold=value.fold)
    except (TypeError, ValueError):
        _refuse_subclass(value)
    return plain if plain == value else _refuse_subclass(value)


def _adapt_date(value: date) -> str:
    return date.isoformat(value)


def _adapt_time(value: time) -> str:
    if value.tzinfo is not None:
        raise DataError("a time with a zone: without a date its offset is not known; pass a datetime, or a naive time")
    return time.isoformat(value, timespec="microseconds")


def _adapt_timedelta(value: timedelta) -> int:
    plain = timedelta(value.days, value.seconds, value.microseconds)
    if plain != value:
        _refuse_subclass(value)
    microseconds = plain // timedelta(microseconds=1)
    if not INT_MIN <= microseconds <= INT_MAX:
        raise DataError("a timedelta beyond 292,271 years: its microseconds do not fit into 64 bits")
    return microseconds


def _refuse_subclass(value: object) -> NoReturn:
    raise DataError(f"a {type(value).__name__} that holds more (or less) than microseconds: round it first")


def _adapt_decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise DataError(f"Decimal('{value}') is not a number that can be stored")
    # The range first: int() of Decimal("1E+1000000") would have a million digits.
    if INT_MIN <= value <= INT_MAX and value == value.to_integral_value():
        return int(value)
    if _significant_digits(value) <= _FLOAT_DIGITS:
        number = float(value)
        if Decimal(repr(number)) == value:
            return number
    raise DataError(
        f"a Decimal that SQLite would round: it has no exact decimals, and floats keep {_FLOAT_DIGITS} digits; store "
        "text, str(x) in a TEXT column, or count in the smallest unit, as an int"
    )


def _significant_digits(value: Decimal) -> int:
    # Not normalize(): it rounds to the caller's decimal context.
    return len("".join(map(str, value.as_tuple().digits)).strip("0"))


def _adapt_uuid(value: UUID) -> str:
    return UUID.__str__(value)


def _adapt_json(wrapped: Json) -> str | int | float:
    value = wrapped.value
    text = _json_text(value)
    _check_json(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text
    # A column declared JSON has NUMERIC affinity, which reads the text of a bare number its own way: send the number.
    if isinstance(value, int):
        return int.__int__(value)
    # And a TEXT column would round it.
    if _significant_digits(Decimal(float.__repr__(value))) > _FLOAT_DIGITS:
        raise DataError(f"Json of a bare float with more than {_FLOAT_DIGITS} digits: put it into a list or a dict")
    return float.__float__(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json_text(value: object) -> str:
    try:
        return _ENCODER.encode(value)
    except TypeError as error:
        raise ProgrammingError(f"Json cannot hold this value: {error}") from None
    except (ValueError, RecursionError) as error:  # NaN, infinity, a circle, a nesting without end
        raise DataError(f"Json cannot hold this value: {error}") from None


def _check_json(value: object) -> None:
    """Refuse what JSON would carry but one of the databases would not. A stack of our own: nesting may be deep."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            _adapt_str(item)
        elif isinstance(item, int):
            _adapt_int(item)
        elif isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise DataError("Json of a dict with a key that is no str: it would come back as one")
            waiting += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item


_ADAPTERS: dict[type, Callable[[Any], SqliteValue]] = {
    type(None): _adapt_none,
    bool: int,
    int: _adapt_int,
    float: _adapt_float,
    str: _adapt_str,
    bytes: _adapt_bytes,
    bytearray: _adapt_bytes,
    memoryview: _adapt_bytes,
    datetime: _adapt_datetime,
    date: _adapt_date,
    time: _adapt_time,
    timedelta: _adapt_timedelta,
    Decimal: _adapt_decimal,
    UUID: _adapt_uuid,
    Json: _adapt_json,
}


# --- The way back ----------------------------------------------------------------------------------------------------
# A decoder takes any value that is not NULL, and gives back unchanged what is not of its form.


def _decode_bool(value: Any) -> Any:
    return bool(value) if type(value) is int and value in (0, 1) else value


def _decode_interval(value: Any) -> Any:
    return timedelta(microseconds=value) if type(value) is int else value


def _decode_decimal(value: Any) -> Any:
    if type(value) is int:
        return Decimal(value)
    return Decimal(repr(value)) if type(value) is float else value


def _from_text(parse: Callable[[str], Any]) -> Decoder:
    def decode(value: Any) -> Any:
        if type(value) is not str:
            return value
        try:
            return parse(value)
        except (ValueError, OverflowError, RecursionError):
            return value

    return decode


def _parse_time(text: str) -> time:
    value = time.fromisoformat(text)
    if value.tzinfo is not None:
        raise ValueError("TIME has no zone")
    return value


def _parse_timestamp(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _parse_timestamptz(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_TIMESTAMP, _TIMESTAMPTZ = _from_text(_parse_timestamp), _from_text(_parse_timestamptz)
_TIME, _JSON = _from_text(_parse_time), _from_text(json.JSONDecoder(parse_constant=_refuse_constant).decode)
_DECODERS: dict[str, Decoder] = {
    "BOOL": _decode_bool,
    "BOOLEAN": _decode_bool,
    "DATE": _from_text(date.fromisoformat),
    "TIME": _TIME,
    "TIME WITHOUT TIME ZONE": _TIME,
    "DATETIME": _TIMESTAMP,
    "TIMESTAMP": _TIMESTAMP,
    "TIMESTAMP WITHOUT TIME ZONE": _TIMESTAMP,
    "TIMESTAMPTZ": _TIMESTAMPTZ,
    "TIMESTAMP WITH TIME ZONE": _TIMESTAMPTZ,
    "INTERVAL": _decode_interval,
    "DECIMAL": _decode_decimal,
    "NUMERIC": _decode_decimal,
    "UUID": _from_text(UUID),
    "JSON": _JSON,
    "JSONB": _JSON,
}


@lru_cache(maxsize=512)
def decoder(declared: str | None) -> Decoder | None:
    """Find what turns a column's values into Python's, by the column's whole declared type.

    Upper and lower case, blanks and anything in parentheses make no difference: ``decimal(10, 2)`` is ``DECIMAL``. None
    where values stay as SQLite holds them.
    """
    if declared is None:
        return None
    return _DECODERS.get(" ".join(re.sub(r"\([^)]*\)", " ", declared).upper().split()))


def decode_rows(rows: list[tuple[Any, ...]], decoders: tuple[Decoder | None, ...]) -> list[tuple[Any, ...]]:
    """Decode the columns that have a decoder (NULL is None in all of them); without any, give the same list back."""
    wanted = [(position, decode) for position, decode in enumerate(decoders) if decode is not None]
    if not wanted:
        return rows
    decoded = []
    for row in rows:
        values = list(row)
        for position, decode in wanted:
            if values[position] is not None:
                values[position] = decode(values[position])
        decoded.append(tuple(values))
    return decoded
