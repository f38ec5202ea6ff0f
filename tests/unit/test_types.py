"""A value comes back equal to what was given, or DataError says so before anything is written."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import sqlite3

from safedb.errors import DataError, ProgrammingError
from safedb.types import Json, adapt, decode_rows, decoder

unhurried = settings(deadline=None)  # a busy machine is no failure

ZONES = st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)).map(timezone)
AWARE = st.datetimes(timezones=ZONES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
# The values that travel, and the declared types they travel in.
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "INTEGER": st.integers(),
    "REAL": st.floats(),
    "TEXT": st.text(st.characters()),
    "BLOB": st.binary(),
    "BOOLEAN": st.booleans(),
    "DATE": st.dates(),
    "TIME": st.times(),
    "TIME WITHOUT TIME ZONE": st.times(),
    "TIMESTAMP": st.datetimes(),
    "DATETIME": st.datetimes(),
    "TIMESTAMP WITHOUT TIME ZONE": st.datetimes(),
    "TIMESTAMPTZ": AWARE,
    "timestamp with time zone": AWARE,
    "INTERVAL": st.timedeltas(),
    "DECIMAL(10, 2)": st.decimals(),
    "NUMERIC": st.decimals() | st.decimals(places=2),
    "UUID": st.uuids(),
    "JSON": JSON.map(Json),
    "JSONB": JSON.map(Json),
}


def stored(declared: str, value: object) -> Any:
    """Send a value through a real column, and decode what SQLite made of it."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE TABLE t (x {declared})")
        connection.execute("INSERT INTO t VALUES (?)", (adapt(value),))
        rows = connection.execute("SELECT x FROM t").fetchall()
    finally:
        connection.close()
    return decode_rows(rows, (decoder(declared),))[0][0]


@pytest.mark.parametrize("declared", COLUMNS)
@unhurried
@given(data=st.data())
def test_a_value_comes_back_equal_or_is_refused(declared: str, data: st.DataObject) -> None:
    value = data.draw(COLUMNS[declared])
    try:
        back = stored(declared, value)
    except DataError:
        return
    given_value = value.value if isinstance(value, Json) else value
    assert back == given_value
    if not isinstance(given_value, float | int):  # a whole float may come back an int from a NUMERIC column: equal
        assert type(back) is type(given_value)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", 2**63 - 1),
        ("INTEGER", -(2**63)),
        ("REAL", math.inf),
        ("REAL", -math.inf),
        ("REAL", 5e-324),
        ("TEXT", "ä😀"),
        ("DECIMAL", Decimal("0.1")),
        ("DECIMAL", Decimal("12345678.9012345")),
        ("DECIMAL", Decimal("-9223372036854775808")),
        ("DECIMAL", Decimal("9223372036854775807")),
        ("DECIMAL", Decimal("1E+30")),
        ("DECIMAL", Decimal("0E+100")),
        ("DECIMAL", Decimal("1.10")),
        ("INTERVAL", timedelta(days=-1, microseconds=1)),
        ("TIMESTAMP", datetime.min),
        ("TIMESTAMP", datetime.max),
        ("TIMESTAMPTZ", datetime(2024, 6, 1, 12, tzinfo=timezone(timedelta(hours=2)))),
        ("JSON", Json({"a": [1, 2.5, None, True, "\\u0000"]})),
        ("JSON", Json("12")),
        ("JSON", Json(12)),
        ("JSON", Json(0.5)),
        ("JSON", Json(True)),
        ("JSON", Json(None)),
    ],
)
def test_what_fits_is_not_refused(declared: str, value: object) -> None:
    assert stored(declared, value) == (value.value if isinstance(value, Json) else value)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        math.nan,
        "a\0b",
        "\ud800",
        "ä\udfff",
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal("0.1234567890123456"),
        Decimal(2**63),
        Decimal("1E+400"),
        Decimal("1E-400"),
        Decimal("1E+1000000"),
        Decimal("-9223372036854775809"),
        time(12, tzinfo=UTC),
        timedelta.max,
        timedelta.min,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        Json(math.nan),
        Json([math.inf]),
        Json([2**63]),
        Json(2**63),
        Json("a\0b"),
        Json({"\ud800": 1}),
        Json({"a": ["\udfff"]}),
        Json({1: "a"}),
        Json({None: "a"}),
        Json(0.1 + 0.2),
    ],
    ids=repr,
)
def test_what_would_change_is_refused_before_it_is_written(value: object) -> None:
    with pytest.raises(DataError):
        adapt(value)


def test_json_that_never_ends_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, deep):
        with pytest.raises(DataError, match="Json cannot hold"):
            adapt(Json(value))
    while deep:  # or its own end would nest as deeply
        deep = deep.pop()


class Colour(enum.IntEnum):
    RED = 3


class Fruit(enum.StrEnum):
    APPLE = "apple"


class Plain(enum.Enum):
    ONE = 1


class LoudInt(int):
    def __int__(self) -> int:
        return 0


class LoudStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "other"


class LoudFloat(float):
    def __float__(self) -> float:
        return 0.0


class LoudUuid(UUID):
    def __str__(self) -> str:
        return "other"


class ShortBytes(bytes):
    def __bytes__(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, 1),
        (False, 0),
        (Colour.RED, 3),
        (Fruit.APPLE, "apple"),
        (LoudInt(7), 7),
        (LoudStr("mine"), "mine"),
        (LoudFloat(1.5), 1.5),
        (ShortBytes(b"mine"), b"mine"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (LoudUuid(int=5), "00000000-0000-0000-0000-000000000005"),
        (date(2024, 2, 29), "2024-02-29"),
        (time(1, 2, 3), "01:02:03.000000"),
        (datetime(2024, 2, 29, 1, 2, 3), "2024-02-29 01:02:03.000000"),
        (datetime(2024, 2, 29, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))), "2024-02-28 23:02:03.000000+00:00"),
        (timedelta(seconds=1), 1_000_000),
        (Decimal("3.0"), 3),
        (Decimal("2.5"), 2.5),
        (Json((1, "é")), '[1,"é"]'),
        (Json(LoudInt(4)), 4),
        (Json(LoudFloat(0.25)), 0.25),
    ],
    ids=repr,
)
def test_a_value_becomes_one_of_the_five_plain_kinds(value: object, expected: object) -> None:
    adapted = adapt(value)
    assert adapted == expected
    assert type(adapted) is type(expected)


def test_a_mutable_value_is_copied() -> None:
    buffer = bytearray(b"before")
    adapted = adapt(buffer)
    buffer[:] = b"after!"
    assert adapted == b"before"


@pytest.mark.parametrize("value", [object(), {}, [], (1,), {1}, 1j, Plain.ONE, int, Ellipsis], ids=repr)
def test_an_unknown_type_is_named_with_the_remedy(value: object) -> None:
    with pytest.raises(ProgrammingError, match=rf"{type(value).__name__}.*safedb\.Json"):
        adapt(value)


def test_json_names_what_it_cannot_hold() -> None:
    with pytest.raises(ProgrammingError, match="set"):
        adapt(Json({"a": {1}}))
    assert adapt(Json(OrderedDict(a=1))) == '{"a":1}'


def test_an_error_does_not_repeat_the_value() -> None:
    with pytest.raises(DataError) as caught:
        adapt("secret\0" * 1000)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


class Nanos(datetime):
    """As pandas.Timestamp: more than a datetime holds, and equal only to what has it too."""

    nanosecond = 7

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nanos)

    __hash__ = datetime.__hash__


class NotATime(datetime):
    """As pandas.NaT: a datetime by its class alone."""

    year = property(lambda self: math.nan)


class NanoDelta(timedelta):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, NanoDelta)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = timedelta.__hash__


class Stamp(datetime):
    def isoformat(self, *args: Any, **kwargs: Any) -> str:
        return "other"


@pytest.mark.parametrize("value", [Nanos(2024, 1, 1), NotATime(2024, 1, 1), NanoDelta(1)], ids=["ns", "nat", "delta"])
def test_a_subclass_that_holds_more_than_its_class_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="round it first"):
        adapt(value)


def test_a_subclass_that_holds_the_same_travels() -> None:
    assert adapt(Stamp(2024, 1, 1, tzinfo=UTC)) == "2024-01-01 00:00:00.000000+00:00"


@unhurried
@given(st.lists(AWARE, min_size=2, max_size=2))
def test_the_texts_of_aware_datetimes_sort_as_the_times_do(pair: list[datetime]) -> None:
    try:
        texts = [adapt(value) for value in pair]
    except DataError:
        assume(False)
    assert (texts[0] < texts[1]) == (pair[0] < pair[1])  # type: ignore[operator]


@unhurried
@given(st.lists(st.datetimes(), min_size=2, max_size=2))
def test_the_texts_of_naive_datetimes_sort_as_the_times_do(pair: list[datetime]) -> None:
    assert (adapt(pair[0]) < adapt(pair[1])) == (pair[0] < pair[1])  # type: ignore[operator]


@unhurried
@given(st.decimals(allow_nan=False, allow_infinity=False))
@example(Decimal("123456789.123456"))
def test_the_callers_decimal_context_changes_nothing(value: Decimal) -> None:
    def outcome() -> object:
        try:
            return adapt(value)
        except DataError:
            return DataError

    wide = outcome()
    with localcontext(prec=2):
        assert outcome() == wide
        assert adapt(Json(0.123456789)) == 0.123456789


@pytest.mark.parametrize("declared", [name for name in COLUMNS if decoder(name) is not None])
@unhurried
@given(value=st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary())
@example(value="[" * 100_000)
@example(value="NaN")
@example(value="0001-01-01T00:00:00+23:00")
@example(value="12:00:00+01:00")
@example(value=2)
@example(value="9" * 5000)
def test_a_decoder_never_fails_and_leaves_what_is_not_of_its_form(declared: str, value: Any) -> None:
    decode = decoder(declared)
    assert decode is not None
    back = decode(value)
    if isinstance(value, bytes):
        assert back is value
    if declared == "BOOLEAN" and value not in (0, 1):
        assert back is value
    if isinstance(value, str) and value == "12:00:00+01:00":
        assert not isinstance(back, time)


@pytest.mark.parametrize(
    ("declared", "held", "expected"),
    [
        ("BOOL", 1, True),
        ("bool", 0, False),
        ("BOOLEAN", 1.0, 1.0),
        ("BOOLEAN", "yes", "yes"),
        ("TIMESTAMP", "2024-01-01 00:00:00", datetime(2024, 1, 1)),
        ("TIMESTAMP", "2024-01-01T02:00:00+02:00", datetime(2024, 1, 1)),
        ("TIMESTAMP", 1704067200, 1704067200),
        ("TIMESTAMPTZ", "2024-01-01 00:00:00", datetime(2024, 1, 1, tzinfo=UTC)),
        ("TIMESTAMPTZ", "2024-01-01T02:00:00+02:00", datetime(2024, 1, 1, tzinfo=UTC)),
        ("TIMESTAMPTZ", "soon", "soon"),
        ("DATE", "2024-01-01 00:00:00", "2024-01-01 00:00:00"),
        ("INTERVAL", "1 day", "1 day"),
        ("NUMERIC(5)", 1.5, Decimal("1.5")),
        ("NUMERIC", "many", "many"),
        ("JSON", "{oops", "{oops"),
        ("JSON", "Infinity", "Infinity"),
        ("JSON", 5, 5),
        ("UUID", "none", "none"),
    ],
)
def test_a_column_is_read_by_its_declared_type(declared: str, held: Any, expected: Any) -> None:
    decode = decoder(declared)
    assert decode is not None
    assert decode(held) == expected
    assert type(decode(held)) is type(expected)


@pytest.mark.parametrize(
    ("declared", "same"),
    [
        ("timestamp  (3)\twith\ntime zone", "TIMESTAMPTZ"),
        ("Decimal(10,2)", "DECIMAL"),
        (" json ", "JSON"),
    ],
)
def test_case_blanks_and_sizes_make_no_difference(declared: str, same: str) -> None:
    assert decoder(declared) is decoder(same)


@pytest.mark.parametrize(
    "declared", [None, "", "INTEGER", "TEXT", "TIMESTAMP WITH", "DATE TIME", "JSON TEXT", "VARCHAR(5)"]
)
def test_other_types_stay_as_sqlite_holds_them(declared: str | None) -> None:
    assert decoder(declared) is None


def test_rows_are_decoded_column_by_column_and_null_is_none() -> None:
    rows = [(1, "2024-01-01", '{"a":1}'), (0, None, None)]
    decoders = (None, decoder("DATE"), decoder("JSON"))
    assert decode_rows(rows, decoders) == [(1, date(2024, 1, 1), {"a": 1}), (0, None, None)]
    assert rows[0] == (1, "2024-01-01", '{"a":1}')
    assert decode_rows(rows, (None, None, None)) is rows


def test_json_text_is_compact_and_plain() -> None:
    text = adapt(Json({"key": ["é", 1]}))
    assert text == '{"key":["é",1]}'
    assert json.loads(text) == {"key": ["é", 1]}
