"""Same answer on both: values, errors and transactions agree with the parity table, row by row.

Where the engines cannot agree, a test pins what each does.
"""

# What raises here is a block, with what came before in it.
# ruff: noqa: PT012
from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from conftest import Backend, Connect

import safedb

COLUMNS = """
    CREATE TABLE vals (
        id {serial}, boolean BOOLEAN, bigint BIGINT, float DOUBLE PRECISION, text TEXT, blob {blob},
        date DATE, time TIME, naive TIMESTAMP, aware TIMESTAMPTZ, spelt TIMESTAMP WITH TIME ZONE, interval INTERVAL,
        decimal DECIMAL(30, 10), numeric NUMERIC, uuid UUID, json JSON, jsonb JSONB
    )
"""


class Colour(IntEnum):
    RED = 3


class Word(StrEnum):
    YES = "yes"


PLUS_TWO = timezone(timedelta(hours=2))
TRAVELLERS: list[tuple[str, Any, Any]] = [
    ("boolean", True, True),
    ("boolean", False, False),
    ("bigint", 0, 0),
    ("bigint", 2**63 - 1, 2**63 - 1),
    ("bigint", -(2**63), -(2**63)),
    ("bigint", Colour.RED, 3),
    ("float", 0.1, 0.1),
    ("float", 1e308, 1e308),
    ("float", 5e-324, 5e-324),
    ("float", math.inf, math.inf),
    ("float", -math.inf, -math.inf),
    ("text", "", ""),
    ("text", "it's; -- 100 % ?:x \N{SNOWMAN} \U0001f600", "it's; -- 100 % ?:x \N{SNOWMAN} \U0001f600"),
    ("text", Word.YES, "yes"),
    ("blob", b"", b""),
    ("blob", b"\0\xff'", b"\0\xff'"),
    ("blob", bytearray(b"ab"), b"ab"),
    ("blob", memoryview(b"abcd")[::2], b"ac"),
    ("date", date(2024, 2, 29), date(2024, 2, 29)),
    ("date", date.min, date.min),
    ("time", time(23, 59, 59, 999999), time(23, 59, 59, 999999)),
    ("time", time(0), time(0)),
    ("naive", datetime(2024, 1, 2, 3, 4, 5, 6), datetime(2024, 1, 2, 3, 4, 5, 6)),
    ("aware", datetime(2024, 1, 2, 3, 4, 5, 6, UTC), datetime(2024, 1, 2, 3, 4, 5, 6, UTC)),
    ("aware", datetime(2024, 1, 2, 3, tzinfo=PLUS_TWO), datetime(2024, 1, 2, 1, tzinfo=UTC)),
    ("aware", datetime(2024, 1, 2, 3), datetime(2024, 1, 2, 3, tzinfo=UTC)),
    ("spelt", datetime(2024, 1, 2, 3, tzinfo=PLUS_TWO), datetime(2024, 1, 2, 1, tzinfo=UTC)),
    ("interval", timedelta(days=-1, microseconds=1), timedelta(days=-1, microseconds=1)),
    ("interval", timedelta(0), timedelta(0)),
    ("decimal", Decimal("1234567890.12345"), Decimal("1234567890.12345")),
    ("decimal", Decimal("-0.1"), Decimal("-0.1")),
    ("numeric", Decimal("9223372036854775807"), Decimal("9223372036854775807")),
    ("uuid", UUID(int=1), UUID(int=1)),
    ("json", safedb.Json({"a": [1, 2.5, None, True, "\N{SNOWMAN}"]}), {"a": [1, 2.5, None, True, "\N{SNOWMAN}"]}),
    ("json", safedb.Json([]), []),
    ("json", safedb.Json("text"), "text"),
    ("json", safedb.Json(12), 12),
    ("json", safedb.Json(True), True),
    ("jsonb", safedb.Json({}), {}),
]


@pytest.fixture
def vals(connect: Connect, backend: Backend) -> safedb.Database:
    return connect(schema=backend.schema(COLUMNS))


@pytest.mark.parametrize(("column", "value", "expected"), TRAVELLERS, ids=[f"{c}-{v!r}" for c, v, _ in TRAVELLERS])
def test_values_come_back_as_they_went(vals: safedb.Database, column: str, value: Any, expected: Any) -> None:
    """By every way in and out: parameters by place and name, one and many, RETURNING, CTE, UNION, snapshot."""
    select = f"SELECT {column} FROM vals WHERE id = ?"

    def same(found: Any) -> None:
        assert found == expected
        assert type(found) is type(expected)
        if isinstance(expected, datetime):
            assert found.tzinfo == expected.tzinfo

    same(vals.execute(f"INSERT INTO vals (id, {column}) VALUES (1, ?) RETURNING {column}", (value,)).scalar())
    vals.execute(f"INSERT INTO vals (id, {column}) VALUES (2, :value)", {"value": value})
    vals.executemany(f"INSERT INTO vals (id, {column}) VALUES (?, ?)", [(3, value), (4, None)])
    with vals.transaction() as tx:
        tx.execute(f"INSERT INTO vals (id, {column}) VALUES (?, ?)", (5, value))
        same(tx.execute(select, (5,)).scalar())
        same(tx.execute(f"UPDATE vals SET {column} = ? WHERE id = 5 RETURNING {column}", (value,)).scalar())
    for row in (1, 2, 3, 5):
        same(vals.execute(select, (row,)).scalar())
    assert vals.execute(select, (4,)).scalar() is None
    same(vals.execute(f"WITH a AS (SELECT {column} AS x FROM vals WHERE id = 1) SELECT x FROM a").scalar())
    union = f"SELECT {column} FROM vals WHERE id = 1 UNION ALL SELECT {column} FROM vals WHERE id = 2"
    for row in vals.execute(union):
        same(row[0])
    with vals.snapshot() as snap:
        same(snap.execute(select, (3,)).scalar())
        same(next(snap.iterate(select, (3,)))[0])


def test_null_is_none_in_every_column(vals: safedb.Database) -> None:
    vals.execute("INSERT INTO vals (id) VALUES (1)")
    assert set(vals.execute("SELECT * FROM vals").one()[1:]) == {None}


REFUSED: list[tuple[str, Any]] = [
    ("float", math.nan),
    ("bigint", 2**63),
    ("bigint", -(2**63) - 1),
    ("text", "a\0b"),
    ("text", "\ud800"),
    ("decimal", Decimal("NaN")),
    ("decimal", Decimal("Infinity")),
    ("time", time(1, tzinfo=UTC)),
    ("json", safedb.Json({"a": math.nan})),
    ("json", safedb.Json("a\0")),
    ("json", safedb.Json(2**64)),
]


@pytest.mark.parametrize(("column", "value"), REFUSED, ids=[f"{c}-{v!r}" for c, v in REFUSED])
def test_what_would_not_come_back_is_a_data_error_before_anything_is_written(
    vals: safedb.Database, column: str, value: Any
) -> None:
    insert = f"INSERT INTO vals ({column}) VALUES (?)"
    attempts: list[Callable[[], Any]] = [
        lambda: vals.execute(insert, (value,)),
        lambda: vals.execute(insert.replace("?", ":x"), {"x": value}),
        lambda: vals.executemany(insert, [(None,), (value,)]),
    ]
    for attempt in attempts:
        with pytest.raises(safedb.DataError, match="parameter"):
            attempt()
    with vals.transaction() as tx:
        with pytest.raises(safedb.DataError):
            tx.execute(insert, (value,))
        assert tx.execute("SELECT count(*) FROM vals").scalar() == 0


def test_a_decimal_that_would_be_rounded_is_refused_or_exact(vals: safedb.Database) -> None:
    value = Decimal("12345678901234567.123456789")
    if vals.dialect == "sqlite":
        with pytest.raises(safedb.DataError, match=r"str\(x\)"):
            vals.execute("INSERT INTO vals (numeric) VALUES (?)", (value,))
    else:
        assert vals.execute("INSERT INTO vals (numeric) VALUES (?) RETURNING numeric", (value,)).scalar() == value


def test_aware_times_of_different_zones_sort_as_times(vals: safedb.Database) -> None:
    start = datetime(2024, 3, 31, 0, 30, tzinfo=UTC)
    moments = [start + timedelta(minutes=20 * number) for number in range(10)]
    shifted = [moment.astimezone(timezone(timedelta(hours=number - 5))) for number, moment in enumerate(moments)]
    vals.executemany("INSERT INTO vals (aware) VALUES (?)", [(moment,) for moment in reversed(shifted)])
    assert [row[0] for row in vals.execute("SELECT aware FROM vals ORDER BY aware")] == moments
    found = vals.execute("SELECT count(*) FROM vals WHERE aware >= ?", (shifted[4],)).scalar()
    assert found == 6


@pytest.mark.parametrize("value", [object(), {"a": 1}, {1}, 1j, range(3)], ids=lambda v: type(v).__name__)
def test_a_type_that_has_no_agreed_form_is_refused_with_the_remedy(vals: safedb.Database, value: Any) -> None:
    with pytest.raises(safedb.ProgrammingError, match="Json"):
        vals.execute("INSERT INTO vals (json) VALUES (?)", (value,))


def test_a_list_is_an_array_on_postgresql_and_refused_on_sqlite(vals: safedb.Database) -> None:
    if vals.dialect == "sqlite":
        with pytest.raises(safedb.ProgrammingError, match="Json"):
            vals.execute("SELECT ?", ([1, 2],))
    else:
        assert vals.execute("SELECT CAST(? AS INTEGER[])", ([1, 2],)).scalar() == [1, 2]
        with pytest.raises(safedb.DataError, match="CAST"):
            vals.execute("INSERT INTO vals (json) VALUES (?)", ([1, 2],))


SCHEMA = """
    CREATE TABLE parent (id {serial}, name TEXT NOT NULL, email TEXT UNIQUE, age INTEGER CHECK (age >= 0));
    CREATE TABLE child (id {serial}, parent INTEGER NOT NULL REFERENCES parent (id));
"""


@pytest.fixture
def family(connect: Connect, backend: Backend) -> safedb.Database:
    db = connect(schema=backend.schema(SCHEMA))
    db.executescript("INSERT INTO parent VALUES (100, 'a', 'a@b', 3); INSERT INTO child VALUES (100, 100)")
    return db


VIOLATIONS: list[tuple[str, type[safedb.Error], str, str]] = [
    ("INSERT INTO parent (id, name) VALUES (100, 'x')", safedb.UniqueViolation, "23505", "parent"),
    ("INSERT INTO parent (name, email) VALUES ('x', 'a@b')", safedb.UniqueViolation, "23505", "email"),
    ("INSERT INTO parent (email) VALUES ('c@d')", safedb.NotNullViolation, "23502", "name"),
    ("INSERT INTO parent (name, age) VALUES ('x', -1)", safedb.CheckViolation, "23514", "age"),
    ("INSERT INTO child (parent) VALUES (999)", safedb.ForeignKeyViolation, "23503", ""),
    ("DELETE FROM parent WHERE id = 100", safedb.ForeignKeyViolation, "23503", ""),
    ("SELECT * FROM nowhere", safedb.ProgrammingError, "", "nowhere"),
    ("SELECT nothing FROM parent", safedb.ProgrammingError, "", "nothing"),
    ("SELEC 1", safedb.ProgrammingError, "", "SELEC"),
    ("INSERT INTO parent (name) VALUES ('x', 'y')", safedb.ProgrammingError, "", ""),
    ("CREATE TABLE parent (id INTEGER)", safedb.ProgrammingError, "", "parent"),
]


@pytest.mark.parametrize(("sql", "error", "sqlstate", "named"), VIOLATIONS, ids=[sql for sql, *_ in VIOLATIONS])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])
def test_errors_are_the_same(
    family: safedb.Database, sql: str, error: type[safedb.Error], sqlstate: str, named: str, inside: bool
) -> None:
    db = family

    def attempt() -> None:
        if inside:
            with db.transaction() as tx:
                tx.execute(sql)
        else:
            db.execute(sql)

    with pytest.raises(error) as caught:
        attempt()
    assert type(caught.value) is error
    assert not sqlstate or caught.value.sqlstate == sqlstate
    assert named in str(caught.value)
    assert caught.value.__cause__ is not None, "the driver's own exception is the cause"
    assert isinstance(caught.value, safedb.DatabaseError)
    assert not caught.value.retryable
    if db.dialect == "sqlite":
        assert (caught.value.sqlite_errorname or "").startswith("SQLITE_")
    else:
        assert caught.value.sqlstate


def test_foreign_keys_are_enforced_without_being_asked_for(family: safedb.Database) -> None:
    with pytest.raises(safedb.ForeignKeyViolation), family.transaction() as tx:
        tx.execute("INSERT INTO child (parent) VALUES (1)")
    assert family.check() == []


PARAMETERS: list[tuple[str, Any, Any]] = [
    ("SELECT ?", (1,), 1),
    ("SELECT ?", [1], 1),
    ("SELECT :a", {"a": 1}, 1),
    ("SELECT :a || :b || :a", {"a": "x", "b": "y"}, "xyx"),
    ("SELECT '?:a' || ?", ("x",), "?:ax"),
    ("SELECT 'it''s ?' || ?", ("x",), "it's ?x"),
    ("SELECT /* ? :a */ ? -- :b ?", ("x",), "x"),
    ("SELECT '100 %' || ? || '%s'", ("x",), "100 %x%s"),
    ("SELECT 7 % ?", (4,), 3),
    ("SELECT 1", None, 1),
    ("SELECT 1", (), 1),
    ("SELECT 1", {}, 1),
    ("SELECT 1;", None, 1),
    ("SELECT 1 ; -- the end", None, 1),
]


@pytest.mark.parametrize(("sql", "params", "expected"), PARAMETERS, ids=[f"{s} {p}" for s, p, _ in PARAMETERS])
def test_parameters_are_the_same(db: safedb.Database, sql: str, params: Any, expected: Any) -> None:
    assert db.execute(sql, params).scalar() == expected
    with db.transaction() as tx:
        assert tx.execute(sql, params).scalar() == expected
    with db.snapshot() as snap:
        assert snap.execute(sql, params).scalar() == expected


def test_ddl_is_part_of_a_transaction(db: safedb.Database) -> None:
    with pytest.raises(KeyError), db.transaction() as tx:
        tx.execute("CREATE TABLE u (a INTEGER)")
        tx.execute("INSERT INTO u VALUES (1)")
        raise KeyError
    with pytest.raises(safedb.ProgrammingError):
        db.execute("SELECT * FROM u")
    with db.transaction() as tx:
        tx.execute("CREATE TABLE u (a BOOLEAN)")
        tx.execute("INSERT INTO u VALUES (?)", (True,))
    assert db.execute("SELECT a FROM u").scalar() is True


def test_types_follow_a_schema_that_changes(db: safedb.Database) -> None:
    """What is known of a statement's columns must not outlive them."""
    db.execute("CREATE TABLE u (a BOOLEAN)")
    db.execute("INSERT INTO u VALUES (?)", (True,))
    assert db.execute("SELECT a FROM u").scalar() is True
    with db.transaction() as tx:
        tx.execute("DROP TABLE u")
        tx.execute("CREATE TABLE u (a INTEGER)")
        tx.execute("INSERT INTO u VALUES (1)")
        found = tx.execute("SELECT a FROM u").scalar()
        assert (found, type(found)) == (1, int)
    found = db.execute("SELECT a FROM u").scalar()
    assert (found, type(found)) == (1, int)


@pytest.mark.parametrize("comment", ["", "-- WITH a comment\n", "/* and */ "])
def test_a_with_that_writes_counts_its_rows_like_any_write(db: safedb.Database, comment: str) -> None:
    write = f"{comment}WITH a (v) AS (SELECT ?) INSERT INTO t (v) SELECT v FROM a"
    assert db.execute(write, ("x",)).rowcount == 1
    assert db.executemany(write, [("y",), ("z",)]) == 2
    with db.transaction() as tx:
        assert tx.execute(f"{comment}WITH a AS (SELECT 1) UPDATE t SET v = v || '!'").rowcount == 3
        assert tx.execute(f"{comment}WITH a AS (SELECT 1) DELETE FROM t WHERE v = 'nothing'").rowcount == 0
    assert db.execute(f"{comment}WITH a AS (SELECT 1) DELETE FROM t RETURNING v").rowcount == 3
