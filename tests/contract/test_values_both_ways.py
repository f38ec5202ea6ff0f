"""Same answer on both: what one database takes and gives back, the other takes and gives back equal.

Each example goes into a column of its declared type on both databases at once, by every way in. Either both give back
the same value of the same type, or one refuses with `DataError` where the parity table says so; neither ever gives back
another value than it was given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pgserver
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import safedb

LONG = os.environ.get("SAFEDB_TEST_LONG") == "1"
EXAMPLES = 1000 if LONG else 40

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
BARE_JSON = st.none() | st.booleans() | INT64 | TEXT | st.integers(-1000, 1000).map(lambda n: n + 0.375)
CONTAINERS = st.lists(JSON, max_size=4) | st.dictionaries(TEXT, JSON, max_size=4)


def in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def same(value: Any) -> Any:
    return value


# What a column is called and declared as, what goes in, and what has to come back.
COLUMNS: dict[str, tuple[str, str, st.SearchStrategy[Any], Callable[[Any], Any]]] = {
    "boolean": ("BOOLEAN", "BOOLEAN", st.booleans(), same),
    "bigint": ("BIGINT", "BIGINT", INT64, same),
    "double": ("DOUBLE PRECISION", "DOUBLE PRECISION", st.floats(allow_nan=False), same),
    "text": ("TEXT", "TEXT", TEXT, same),
    "bytes": ("BLOB", "BYTEA", st.binary(), same),
    "date": ("DATE", "DATE", st.dates(), same),
    "time": ("TIME", "TIME", st.times(), same),
    "naive": ("TIMESTAMP", "TIMESTAMP", st.datetimes(), same),
    "aware": ("TIMESTAMPTZ", "TIMESTAMPTZ", st.datetimes(timezones=st.none() | ZONES), in_utc),
    "interval": ("INTERVAL", "INTERVAL", st.timedeltas(), same),
    "numeric": ("NUMERIC", "NUMERIC", st.decimals(allow_nan=False, allow_infinity=False), same),
    "uuid": ("UUID", "UUID", st.uuids(), same),
    "json": ("JSON", "JSON", CONTAINERS | BARE_JSON, same),
    "jsonb": ("JSONB", "JSONB", CONTAINERS | BARE_JSON, same),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[safedb.Database, safedb.Database]]:
    """Open one database of each kind, with one table that has a column of each type."""
    folder: Path = tmp_path_factory.mktemp("both")
    handles = []
    targets: list[str | Path] = [folder / "both.db", pgserver.shared().schema()]
    for index, target in enumerate(targets):
        columns = ", ".join(f"c_{name} {types[index]}" for name, types in COLUMNS.items())
        schema = f"CREATE TABLE vals (id BIGINT PRIMARY KEY, {columns})"
        options: dict[str, Any] = {"pragmas": safedb.Pragmas(synchronous="OFF")}
        handles.append(safedb.connect(target, schema=schema, retry=safedb.RetryPolicy(timeout=60), **options))
    yield handles[0], handles[1]
    for handle in handles:
        handle.close()


def outcome(db: safedb.Database, column: str, value: Any) -> Any:
    """Send a value by each way and get it back; give what came, or the class of the refusal."""
    name = f"c_{column}"
    db.execute("DELETE FROM vals")
    try:
        first = db.execute(f"INSERT INTO vals (id, {name}) VALUES (1, ?) RETURNING {name}", (value,)).scalar()
    except safedb.DataError:
        assert db.execute("SELECT count(*) FROM vals").scalar() == 0
        return safedb.DataError
    db.executemany(f"INSERT INTO vals (id, {name}) VALUES (:id, :value)", [{"id": 2, "value": value}])
    with db.transaction() as tx:
        tx.execute(f"INSERT INTO vals (id, {name}) SELECT 3, {name} FROM vals WHERE id = 1")
        tx.execute("INSERT INTO vals (id) VALUES (4)")
        tx.execute(f"UPDATE vals SET {name} = ? WHERE id = 4", (value,))
    with db.snapshot() as snap:
        found = [row[0] for row in snap.iterate(f"SELECT {name} FROM vals ORDER BY id", batch=2)]
    found += [row[0] for row in db.execute(f"SELECT {name} FROM vals ORDER BY id")]
    for other in found:
        assert type(other) is type(first)
        assert other == first
    assert len(found) == 8
    return first


@pytest.mark.parametrize("column", COLUMNS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_value_is_the_same_on_both_or_refused(
    both: tuple[safedb.Database, safedb.Database], column: str, data: st.DataObject
) -> None:
    plain = data.draw(COLUMNS[column][2])
    value = safedb.Json(plain) if column.startswith("json") else plain
    on_sqlite, on_postgresql = (outcome(db, column, value) for db in both)
    if on_sqlite is safedb.DataError and column == "numeric":
        return  # SQLite has no exact decimals, and refuses what it would round
    try:
        expected = COLUMNS[column][3](plain)
    except OverflowError:
        expected = safedb.DataError  # outside of the years 1 to 9999 in UTC
    if column == "interval" and abs(plain) > timedelta(microseconds=2**63 - 1):
        expected = safedb.DataError
    for found in (on_sqlite, on_postgresql):
        assert type(found) is type(expected)
        assert found == expected
        if isinstance(found, float) and column == "double" and (found or found is on_postgresql):
            assert math.copysign(1, found) == math.copysign(1, expected)
        if isinstance(found, datetime):
            assert found.tzinfo is (UTC if column == "aware" else None)


def test_only_postgresql_keeps_the_sign_of_zero(both: tuple[safedb.Database, safedb.Database]) -> None:
    """SQLite keeps a whole number in a REAL column as an integer, which has no -0."""
    for db, sign in zip(both, (1.0, -1.0), strict=True):
        db.execute("DELETE FROM vals")
        db.execute("INSERT INTO vals (id, c_double) VALUES (1, ?)", (-0.0,))
        assert math.copysign(1, db.execute("SELECT c_double FROM vals").scalar()) == sign


REFUSED: list[tuple[str, Any]] = [
    ("double", math.nan),
    ("bigint", 2**63),
    ("bigint", -(2**63) - 1),
    ("bigint", 10**30),
    ("text", "a\0b"),
    ("text", "\ud800"),
    ("text", "ok\udfff"),
    ("numeric", Decimal("NaN")),
    ("numeric", Decimal("sNaN")),
    ("numeric", Decimal("-Infinity")),
    ("time", time(1, tzinfo=UTC)),
    ("aware", datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
    ("aware", datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))),
    ("json", safedb.Json([math.nan])),
    ("json", safedb.Json({"a": math.inf})),
    ("json", safedb.Json("\0")),
    ("jsonb", safedb.Json({"\ud800": 1})),
    ("jsonb", safedb.Json([2**64])),
    ("jsonb", safedb.Json({1: 2})),
]


@pytest.mark.parametrize(("column", "value"), REFUSED, ids=[f"{c}-{v!r}" for c, v in REFUSED])
def test_what_one_could_not_give_back_both_refuse(
    both: tuple[safedb.Database, safedb.Database], column: str, value: Any
) -> None:
    for db in both:
        assert outcome(db, column, value) is safedb.DataError


UNKNOWN: list[Any] = [object(), {"a": 1}, {1}, 1j, range(3), Exception(), b"x".__class__, date]


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_types_without_an_agreed_form_are_refused_by_both(
    both: tuple[safedb.Database, safedb.Database], value: Any
) -> None:
    for db in both:
        with pytest.raises(safedb.ProgrammingError, match="parameter"):
            db.execute("INSERT INTO vals (id, c_text) VALUES (1, ?)", (value,))
