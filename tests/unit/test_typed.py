"""What PostgreSQL is given: plain values that come back equal, or DataError before anything is sent."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safedb import typed, types
from safedb.errors import DataError, ProgrammingError
from safedb.sql import parse
from safedb.typed import adapt
from safedb.types import Json

unhurried = settings(deadline=None)  # a busy machine is no failure


class Colour(enum.IntEnum):
    RED = 3


class Fruit(enum.StrEnum):
    APPLE = "apple"


class LoudFloat(float):
    def __float__(self) -> float:
        return 0.0


class LoudDate(date):
    def __str__(self) -> str:
        return "other"


class LoudTime(time):
    def __str__(self) -> str:
        return "other"


class LoudUuid(UUID):
    def __str__(self) -> str:
        return "other"


class LoudDecimal(Decimal):
    def __str__(self) -> str:
        return "0"


class LoudDelta(timedelta):
    def __str__(self) -> str:
        return "other"


class Stamp(datetime):
    def __str__(self) -> str:
        return "other"


class Nanos(datetime):
    """As pandas.Timestamp: more than a datetime holds, and equal only to what has it too."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nanos)

    __hash__ = datetime.__hash__


Point = namedtuple("Point", "x y")

EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (Colour.RED, 3),
        (-(2**63), -(2**63)),
        (Fruit.APPLE, "apple"),
        ("é\n", "é\n"),
        (LoudFloat(1.5), 1.5),
        (-math.inf, -math.inf),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (LoudDate(2024, 2, 29), date(2024, 2, 29)),
        (LoudTime(1, 2, 3, 4), time(1, 2, 3, 4)),
        (datetime(2024, 2, 29, 1, 2, 3), datetime(2024, 2, 29, 1, 2, 3)),
        (datetime(2024, 2, 29, 1, 2, 3, tzinfo=EAST), datetime(2024, 2, 28, 23, 2, 3, tzinfo=UTC)),
        (Stamp(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)),
        (LoudDelta(-1, 5, 7), timedelta(-1, 5, 7)),
        (LoudDecimal("0.12345678901234567890"), Decimal("0.12345678901234567890")),
        (LoudUuid(int=5), UUID(int=5)),
        (Json((1, "é", Fruit.APPLE, Colour.RED)), '[1,"é","apple",3]'),
        (Json(None), "null"),
        (Json(12), "12"),
        (Json("12"), '"12"'),
        (Json(OrderedDict(a=0.25)), '{"a":0.25}'),
        ((), []),
        ([1, None, Colour.RED], [1, None, 3]),
        (Point(1, 2), [1, 2]),
        (((1, 2), [3, 4]), [[1, 2], [3, 4]]),
        ([[None], [None]], [[None], [None]]),
        ([[[[[[1]]]]]], [[[[[[1]]]]]]),
        ([bytearray(b"a"), memoryview(b"b")], [b"a", b"b"]),
        ([Json({}), Json([1e16])], ["{}", "[10000000000000000.0]"]),
    ],
    ids=repr,
)
def test_a_value_becomes_a_plain_one(value: object, expected: Any) -> None:
    adapted = adapt(value)
    assert adapted == expected
    assert type(adapted) is type(expected)
    if isinstance(expected, datetime):
        assert type(adapted.tzinfo) is type(expected.tzinfo)
    if isinstance(expected, list):
        assert repr(adapted) == repr(expected)  # the types of the elements too


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63) - 1,
        math.nan,
        "a\0b",
        "ä\udfff",
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("-Infinity"),
        time(12, tzinfo=UTC),
        timedelta.max,
        timedelta.min,
        datetime.min.replace(tzinfo=EAST),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        Nanos(2024, 1, 1),
        Json(math.nan),
        Json([math.inf]),
        Json([2**63]),
        Json("a\0b"),
        Json({"\ud800": 1}),
        Json({1: "a"}),
        Json(0.1 + 0.2),
    ],
    ids=repr,
)
def test_what_sqlite_refuses_too_is_refused_with_the_same_words(value: object) -> None:
    with pytest.raises(DataError) as here:
        adapt(value)
    with pytest.raises(DataError) as there:
        types.adapt(value)
    assert str(here.value) == str(there.value)
    with pytest.raises(DataError) as within:
        adapt([value])
    assert str(within.value) == str(here.value)


@pytest.mark.parametrize("value", [object(), {}, {1}, 1j, int, Ellipsis], ids=repr)
def test_an_unknown_type_is_named_with_the_remedy(value: object) -> None:
    for given_value in (value, [value], ([value],)):
        with pytest.raises(ProgrammingError, match=rf"{type(value).__name__}.*safedb\.Json"):
            adapt(given_value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2.5], "mixed types .float, int."),
        ([True, 1], "mixed types .bool, int."),
        ([[1], ["a"]], "mixed types .int, str."),
        ([date(2024, 1, 1), datetime(2024, 1, 1)], "mixed types"),
        ([[1], 2], "both rows and single elements"),
        ([None, [1]], "NULL for a row"),
        ([[1], [2, 3]], "different lengths"),
        ([[[1]], [[2], [3]]], "different lengths"),
        ([[1], [[2]]], "different lengths"),
        ([[]], "or of none"),
        ([[], []], "or of none"),
        ([[[]], [[]]], "or of none"),
        ([[[[[[[1]]]]]]], "6 dimensions"),
    ],
    ids=repr,
)
def test_what_is_no_array_is_refused(value: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        adapt(value)


def test_an_array_that_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(DataError, match="holds itself"):
        adapt(circle)


def test_what_may_change_is_copied() -> None:
    buffer, row = bytearray(b"before"), [1]
    adapted = adapt(buffer), adapt(row), adapt([row])
    buffer[:] = b"after!"
    row[0] = 2
    assert adapted == (b"before", [1], [[1]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e15, "1000000000000000.0"),
        (1e16, "10000000000000000.0"),
        (-1e16, "-10000000000000000.0"),
        (2.5e20, "250000000000000000000.0"),
        (1e-7, "1e-07"),
        (-0.0, "-0.0"),
        ({"1e+16": ["\\", '"1e+16', 1e16, "\\1e+16"]}, r'{"1e+16":["\\","\"1e+16",10000000000000000.0,"\\1e+16"]}'),
    ],
)
def test_a_large_float_in_json_has_a_fraction(value: object, text: str) -> None:
    assert adapt(Json(value)) == text
    assert json.loads(text) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet='e+1"\\.ä'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='e+1"\\.ä'), inner, max_size=4),
    max_leaves=12,
)


@unhurried
@given(JSON)
@example([1.7976931348623157e308, -5e-324])
def test_json_says_the_same_without_a_large_exponent(value: object) -> None:
    try:
        text = adapt(Json(value))
    except DataError:
        return
    assert repr(json.loads(text)) == repr(value)
    numbers: list[str] = []
    json.loads(text, parse_float=numbers.append)
    assert not any("e+" in number for number in numbers)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.dates()
    | st.uuids()
    | st.decimals()
    | st.datetimes()
    | st.timedeltas()
    | JSON.map(Json)
)


@pytest.mark.parametrize(("dialect", "module"), [("sqlite", types), ("postgresql", typed)])
@unhurried
@given(values=st.lists(VALUES, min_size=3, max_size=3))
def test_a_statement_binds_what_its_database_adapts(dialect: str, module: Any, values: list[Any]) -> None:
    def outcome(bind: Any) -> str:
        try:
            return repr(bind())
        except DataError as error:
            return str(error).partition(": ")[2] if str(error).startswith("parameter ") else str(error)

    statement = parse("SELECT ?, ?, ?", dialect)
    assert outcome(lambda: statement.bind(values)) == outcome(lambda: tuple([module.adapt(value) for value in values]))
    for value in values:
        if type(value) in module.PLAIN:  # bind() does not look at these
            assert module.adapt(value) is value


def test_an_error_names_the_parameter() -> None:
    with pytest.raises(DataError, match=r"^parameter 2: an array"):
        parse("SELECT ?, ?", "postgresql").bind((True, [[1], 2]))
    with pytest.raises(ProgrammingError, match=r"^parameter :b: .*list"):
        parse("SELECT :a, :b").bind({"a": True, "b": [1]})
