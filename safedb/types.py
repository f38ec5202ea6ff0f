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
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from safedb.errors import DataError, ProgrammingError

T = TypeVar("T")
SqliteValue = None | int | float | str | bytes
Adapter = Callable[[Any], Any]
Decoder = Callable[[Any], Any]

# The types that bind() need not look at, besides None, int, float and str.
PLAIN: frozenset[type] = frozenset({bytes})
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
        adapter = find_adapter(type(value), _ADAPTERS)
    adapted: SqliteValue = adapter(value)
    return adapted


# --- The checks: what no database may be given. They give back plain values, without what a subclass adds ------------


def find_adapter(kind: type, adapters: dict[type, Adapter]) -> Adapter:
    """Find what adapts the values of a subclass. Raises ``ProgrammingError`` for a type that has no agreed form."""
    for base in kind.__mro__:
        if base in adapters:
            return adapters[base]
    raise ProgrammingError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be a parameter: convert it first (str(x), "
        "int(x), an enum's .value), or wrap lists and dicts in safedb.Json(x)"
    )


def same(value: T) -> T:
    """Give back what needs no check."""
    return value


def plain_int(value: int) -> int:
    """Refuse what does not fit into 64 bits."""
    if not INT_MIN <= value <= INT_MAX:
        raise DataError("an int that does not fit into 64 bits: store it as text with str(x)")
    return value if type(value) is int else int.__int__(value)


def plain_float(value: float) -> float:
    """Refuse NaN; infinities travel."""
    if value != value:  # only NaN differs from itself
        raise DataError("NaN: SQLite would store NULL, so neither database takes it; pass None where NULL is meant")
    return value if type(value) is float else float.__float__(value)


def plain_str(value: str) -> str:
    """Refuse NUL, which PostgreSQL cannot hold, and lone surrogates, which have no UTF-8."""
    if "\0" in value:
        raise DataError(f"a str of {len(value)} characters with a NUL in it: pass such data as bytes")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"a str with a lone surrogate at position {error.start}: pass such data as bytes") from None
    return value if type(value) is str else str.__str__(value)


def plain_bytes(value: bytes | bytearray | memoryview) -> bytes:
    """Copy what may change."""
    return value if type(value) is bytes else bytes(memoryview(value))


def plain_datetime(value: datetime) -> datetime:
    """Give an aware time in UTC, a naive one as it is. Refuse what has no UTC time within the years 1 to 9999."""
    if type(value) is not datetime:
        value = _without_subclass(value)
    if value.utcoffset() is None:
        return value.replace(tzinfo=None)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise DataError(f"{value} is outside the years 1 to 9999 in UTC") from None


def _without_subclass(value: datetime) -> datetime:
    """Drop a subclass, but nothing that it holds beyond a datetime (nanoseconds; a "not a time")."""
    try:
        plain = datetime.combine(date(value.year, value.month, value.day), value.timetz()).replace(fold=value.fold)
    except (TypeError, ValueError):
        _refuse_subclass(value)
    return plain if plain == value else _refuse_subclass(value)


def check_time(value: time) -> None:
    """Refuse a zone."""
    if value.tzinfo is not None:
        raise DataError("a time with a zone: without a date its offset is not known; pass a datetime, or a naive time")


def plain_timedelta(value: timedelta) -> timedelta:
    """Refuse what SQLite's integers could not count in microseconds."""
    plain = timedelta(value.days, value.seconds, value.microseconds)
    if plain != value:
        _refuse_subclass(value)
    if not _TIMEDELTA_MIN <= plain <= _TIMEDELTA_MAX:
        raise DataError("a timedelta beyond 292,271 years: its microseconds do not fit into 64 bits")
    return plain


_MICROSECOND = timedelta(microseconds=1)
_TIMEDELTA_MIN, _TIMEDELTA_MAX = INT_MIN * _MICROSECOND, INT_MAX * _MICROSECOND


def _refuse_subclass(value: object) -> NoReturn:
    raise DataError(f"a {type(value).__name__} that holds more (or less) than microseconds: round it first")


def plain_decimal(value: Decimal) -> Decimal:
    """Refuse NaN and the infinities."""
    if not value.is_finite():
        raise DataError(f"Decimal('{value}') is not a number that can be stored")
    return Decimal(value)


def _significant_digits(value: Decimal) -> int:
    # Not normalize(): it rounds to the caller's decimal context.
    return len("".join(map(str, value.as_tuple().digits)).strip("0"))


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_text(value: object) -> str:
    """Write JSON. Refuse what would not come back from both databases, in a column of whatever type."""
    text = _encode_json(value)
    _check_json(value)
    # SQLite's column is sent a bare number, not its text (see below), and a TEXT column would round it.
    if isinstance(value, float) and _significant_digits(Decimal(float.__repr__(value))) > _FLOAT_DIGITS:
        raise DataError(f"Json of a bare float with more than {_FLOAT_DIGITS} digits: put it into a list or a dict")
    return text


def _encode_json(value: object) -> str:
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
            plain_str(item)
        elif isinstance(item, int):
            plain_int(item)
        elif isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise DataError("Json of a dict with a key that is no str: it would come back as one")
            waiting += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item


# --- The five kinds --------------------------------------------------------------------------------------------------


def _adapt_datetime(value: datetime) -> str:
    # Always six digits, and always the same offset: so the texts sort as the times do.
    return plain_datetime(value).isoformat(sep=" ", timespec="microseconds")


def _adapt_date(value: date) -> str:
    return date.isoformat(value)


def _adapt_time(value: time) -> str:
    check_time(value)
    return time.isoformat(value, timespec="microseconds")


def _adapt_timedelta(value: timedelta) -> int:
    return plain_timedelta(value) // _MICROSECOND


def _adapt_decimal(value: Decimal) -> int | float:
    value = plain_decimal(value)
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


def _adapt_uuid(value: UUID) -> str:
    return UUID.__str__(value)


def _adapt_json(wrapped: Json) -> str | int | float:
    value, text = wrapped.value, json_text(wrapped.value)
    # A column declared JSON has NUMERIC affinity, which reads the text of a bare number its own way: send the number.
    if isinstance(value, float):
        return float.__float__(value)
    return int.__int__(value) if isinstance(value, int) and not isinstance(value, bool) else text


_ADAPTERS: dict[type, Adapter] = {
    type(None): same,
    bool: int,
    int: plain_int,
    float: plain_float,
    str: plain_str,
    bytes: plain_bytes,
    bytearray: plain_bytes,
    memoryview: plain_bytes,
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


def decode_real(value: Any) -> Any:
    """Give an integer as the float that it was stored for."""
    return float(value) if type(value) is int else value


def is_real(declared: str | None) -> bool:
    """Tell whether a declared type has REAL affinity (https://www.sqlite.org/datatype3.html#determination_of_column_affinity)."""
    name = (declared or "").upper()
    if any(part in name for part in ("INT", "CHAR", "CLOB", "TEXT", "BLOB")):
        return False
    return any(part in name for part in ("REAL", "FLOA", "DOUB"))


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
