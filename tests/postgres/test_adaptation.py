"""Values through a real PostgreSQL and psycopg: what is given comes back equal, and of the same type."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pgserver import shared
from psycopg.types.json import set_json_loads

from safedb.errors import DataError
from safedb.postgres.adaptation import context
from safedb.typed import adapt
from safedb.types import Json

TEXT = psycopg.pq.Format.TEXT
unhurried = settings(deadline=None)  # a busy machine is no failure

ZONES = st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)).map(timezone)
AWARE = st.datetimes(timezones=ZONES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SHORT_DECIMALS = st.decimals(places=2, allow_nan=False, allow_infinity=False)
# The values that travel, and the types of the columns they travel in.
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "bigint": st.integers(),
    "double precision": st.floats(),
    "numeric": st.decimals() | SHORT_DECIMALS,
    "text": st.text(st.characters()),
    "varchar": st.text(st.characters()),
    "bytea": st.binary(),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": st.datetimes(),
    "timestamptz": AWARE,
    "interval": st.timedeltas(),
    "uuid": st.uuids(),
    "json": JSON.map(Json),
    "jsonb": JSON.map(Json),
}


def connected(url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(
        url, autocommit=True, context=context(), cursor_factory=psycopg.RawCursor, client_encoding="UTF8"
    )
    connection.execute("SET TimeZone = 'UTC'")
    return connection


@pytest.fixture(scope="module")
def connection() -> Iterator[psycopg.Connection[Any]]:
    with connected(shared().schema()) as connection:
        for name in COLUMNS:
            connection.execute(f'CREATE TABLE "{name}" (x {name}, many {name}[])')
        yield connection


def unwrapped(value: Any) -> Any:
    if isinstance(value, list):
        return [unwrapped(item) for item in value]
    return value.value if isinstance(value, Json) else value


def check_same(back: Any, value: Any) -> None:
    """See that it is equal, and of the same types all the way down: 1.0 is no 1."""
    assert back == value
    assert type(back) is type(value)
    if isinstance(value, dict):
        for key in value:
            check_same(back[key], value[key])
    elif isinstance(value, list):
        for one, other in zip(back, value, strict=True):
            check_same(one, other)
    elif isinstance(value, datetime):
        assert back.tzinfo is (None if value.tzinfo is None else UTC)
        assert back.utcoffset() == (None if value.tzinfo is None else timedelta())


@pytest.mark.parametrize("declared", COLUMNS)
@unhurried
@given(data=st.data())
def test_a_value_comes_back_equal_or_is_refused(
    connection: psycopg.Connection[Any], declared: str, data: st.DataObject
) -> None:
    value = data.draw(COLUMNS[declared])
    try:
        given_value = adapt(value)
    except DataError:
        return
    sql = f'INSERT INTO "{declared}" (x) VALUES ($1) RETURNING x'
    try:
        row = connection.execute(sql, (given_value,)).fetchone()
    except psycopg.errors.NumericValueOutOfRange:
        # numeric has 131,072 digits before the point and 16,383 behind it: refused, not rounded.
        assert isinstance(value, Decimal)
        assert not -16383 <= value.adjusted() < 131072 or value.as_tuple().exponent < -16383  # type: ignore[operator]
        return
    assert row is not None
    check_same(row[0], unwrapped(value))


@pytest.mark.parametrize("declared", COLUMNS)
@unhurried
@given(data=st.data())
def test_an_array_comes_back_equal_or_is_refused(
    connection: psycopg.Connection[Any], declared: str, data: st.DataObject
) -> None:
    strategy = SHORT_DECIMALS if declared == "numeric" else COLUMNS[declared]
    flat = st.lists(st.none() | strategy, max_size=5)
    square = st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(st.none() | strategy, min_size=width, max_size=width), min_size=1, max_size=3)
    )
    value = data.draw(flat | square)
    try:
        given_value = adapt(value)
    except DataError:
        return
    row = connection.execute(f'INSERT INTO "{declared}" (many) VALUES ($1) RETURNING many', (given_value,)).fetchone()
    assert row is not None
    check_same(row[0], unwrapped(value))


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("bigint", -(2**63)),
        ("bigint", 2**63 - 1),
        ("double precision", -math.inf),
        ("double precision", 5e-324),
        ("double precision", 0.1 + 0.2),
        ("numeric", Decimal("0.1234567890123456789012345678901234567890")),
        ("numeric", Decimal("1E+131071")),
        ("numeric", Decimal("1E-16383")),
        ("numeric", Decimal("-0.00")),
        ("text", "\x01\U0010ffff'\\"),
        ("bytea", bytes(range(256))),
        ("date", date.min),
        ("date", date.max),
        ("time", time.max),
        ("timestamp", datetime.min),
        ("timestamp", datetime.max),
        ("timestamptz", datetime.min.replace(tzinfo=UTC)),
        ("timestamptz", datetime.max.replace(tzinfo=UTC)),
        ("timestamptz", datetime(2024, 6, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("interval", timedelta(microseconds=2**63 - 1)),
        ("interval", timedelta(microseconds=-(2**63))),
        ("interval", timedelta(days=-1, microseconds=1)),
        ("interval", timedelta(microseconds=-1)),
        ("interval", timedelta(days=400, hours=30)),
        ("uuid", UUID(int=0)),
        ("json", Json({"b": [1e308, 1e16, -0.0, 5e-324, 1e-7, 2.5e20], "a": None})),
        ("jsonb", Json({"b": [1e308, 1e16, -0.0, 5e-324, 1e-7, 2.5e20], "a": None})),
        ("jsonb", Json([1.7976931348623157e308, 1.5e300, 123456789012345680.0, 0.1 + 0.2])),
        ("jsonb", Json(1e308)),
        ("jsonb", Json(-5e-324)),
        ("jsonb", Json([2**63 - 1, -(2**63)])),
        ("jsonb", Json("1e+16")),
        ("jsonb", Json('1e+16" \\u0000 1e+16')),
    ],
    ids=repr,
)
def test_the_ends_of_the_ranges_come_back(connection: psycopg.Connection[Any], declared: str, value: Any) -> None:
    sql = f'INSERT INTO "{declared}" (x, many) VALUES ($1, $2) RETURNING x, many'
    row = connection.execute(sql, (adapt(value), adapt([value, None]))).fetchone()
    assert row is not None
    check_same(row[0], unwrapped(value))
    check_same(row[1], [unwrapped(value), None])


@unhurried
@given(st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", bits.to_bytes(8, "little"))[0]))
@example(1e16)
@example(1.5e16)
def test_a_float_in_jsonb_comes_back_a_float(connection: psycopg.Connection[Any], value: float) -> None:
    assume(math.isfinite(value))
    row = connection.execute("SELECT $1::jsonb", (adapt(Json([value])),)).fetchone()
    assert row is not None
    check_same(row[0], [value])


@unhurried
@given(AWARE)
def test_a_zone_counts_where_the_column_has_none_and_utc_where_the_value_has_none(
    connection: psycopg.Connection[Any], value: datetime
) -> None:
    try:
        utc = adapt(value)
    except DataError:
        return
    naive = utc.replace(tzinfo=None)
    stamp = connection.execute('INSERT INTO "timestamp" (x) VALUES ($1) RETURNING x', (utc,)).fetchone()
    zoned = connection.execute('INSERT INTO "timestamptz" (x) VALUES ($1) RETURNING x', (adapt(naive),)).fetchone()
    assert stamp is not None
    assert zoned is not None
    check_same(stamp[0], naive)
    check_same(zoned[0], utc)


@pytest.mark.parametrize("text", ["infinity", "-infinity", "10000-01-01 00:00:00+00", "0001-12-31 00:00:00+00 BC"])
def test_a_time_that_no_datetime_can_hold_says_what_to_do(connection: psycopg.Connection[Any], text: str) -> None:
    for sql in ("SELECT $1::timestamptz", "SELECT ARRAY[NULL, $1::timestamptz]"):
        with pytest.raises(psycopg.DataError, match=r"CAST\(x AS TEXT\)"):
            connection.execute(sql, (text,)).fetchone()
    assert connection.execute("SELECT $1::timestamptz::text", (text,)).fetchone() == (text,)


def test_a_session_in_another_zone_changes_no_value() -> None:
    with connected(shared().schema()) as other:
        for zone in ("Europe/Berlin", "America/St_Johns", "Asia/Kathmandu"):
            other.execute(f"SET TimeZone = '{zone}'")
            for year in (1850, 2024):  # before there were zones their offsets had seconds
                value = datetime(year, 7, 1, 12, tzinfo=UTC)
                row = other.execute("SELECT $1::timestamptz", (value,)).fetchone()
                assert row is not None
                check_same(row[0], value)
        # The last zone is east of Greenwich: there the year 1 begins before it does in UTC.
        with pytest.raises(psycopg.DataError, match="in UTC"):
            other.execute("SELECT '0001-01-01 00:00:00'::timestamptz").fetchone()


def test_the_other_types_come_back_as_the_documentation_says(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    connection.execute("CREATE DOMAIN amount AS numeric CHECK (VALUE > 0)")
    row = connection.execute(
        "SELECT 'ok'::mood, 1.50::amount, 7::smallint, 7::integer, 'a'::name, 'ab'::char(3),"
        " '-1 day 02:00'::interval, '2 mon'::interval, tstzrange('2024-01-01', NULL), sum(7::bigint), NULL::json"
    ).fetchone()
    assert row is not None
    *plain, span, total, null = row
    assert plain == ["ok", Decimal("1.50"), 7, 7, "a", "ab ", timedelta(hours=-22), timedelta(days=60)]
    assert span.lower == datetime(2024, 1, 1, tzinfo=UTC)
    assert type(total) is Decimal
    assert null is None


def test_json_that_python_cannot_read_comes_back_as_text(connection: psycopg.Connection[Any]) -> None:
    """How deep Python reads depends on its version: newer ones go deeper than a server does."""
    for text in ("[" + "1" * 5000 + "]", "[" * 3000 + "]" * 3000):
        row = connection.execute("SELECT $1::json, ARRAY[$1]::jsonb[]", (text,)).fetchone()
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            assert row == (text, [text])
        else:
            assert row is not None
            assert type(row[0]) is type(row[1][0]) is list


def test_what_belongs_to_the_process_is_neither_changed_nor_minded() -> None:
    context()
    kept = {
        name: psycopg.adapters.get_loader(psycopg.adapters.types[name].oid, TEXT) for name in ("timestamptz", "json")
    }
    assert all(loader is not None and loader.__module__.startswith("psycopg") for loader in kept.values())
    url = shared().schema()
    try:
        set_json_loads(lambda data: "another library's")
        with psycopg.connect(url) as theirs, psycopg.connect(url, context=context.__wrapped__()) as ours:
            assert theirs.execute("SELECT '[1]'::json").fetchone() == ("another library's",)
            assert ours.execute("SELECT '[1]'::json").fetchone() == ([1],)
    finally:
        set_json_loads(json.loads)


def test_threads_share_one_context() -> None:
    url, barrier, found = shared().schema(), threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        with connected(url) as connection:
            found.append(connection.execute("SELECT '2024-01-01'::timestamptz, '[1]'::jsonb").fetchone())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [(datetime(2024, 1, 1, tzinfo=UTC), [1])] * 8
