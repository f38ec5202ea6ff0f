"""Row factories make of a row what their name says, and of an awkward column name something usable."""

from __future__ import annotations

import keyword
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safedb.rows import class_row, dict_row, namedtuple_row, tuple_row

NAMES = st.lists(st.text() | st.sampled_from(["id", "id", "class", "_x", "1st", "count(*)", ""]), max_size=6)


@dataclass
class Point:
    x: int
    y: int


def test_tuple_rows_are_the_rows_themselves() -> None:
    row = (1, 2)
    assert tuple_row(("x", "y"))(row) is row


def test_dict_rows_are_keyed_by_column_and_the_last_of_a_name_stays() -> None:
    assert dict_row(("x", "y"))((1, 2)) == {"x": 1, "y": 2}
    assert dict_row(("x", "x"))((1, 2)) == {"x": 2}


def test_class_rows_are_made_by_the_class() -> None:
    assert class_row(Point)(("y", "x"))((1, 2)) == Point(x=2, y=1)


def test_a_column_that_the_class_does_not_take_is_its_error() -> None:
    with pytest.raises(TypeError, match="z"):
        class_row(Point)(("x", "y", "z"))((1, 2, 3))


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("name", "name"),
        ("count(*)", "count___"),
        ("1st", "f1st"),
        ("_x", "f_x"),
        ("", "f"),
        ("größe", "größe"),
        ("class", "_0"),
        ("²", "f²"),
    ],
)
def test_a_named_tuples_field_resembles_its_column(column: str, field: str) -> None:
    if not field.isidentifier():
        field = "_0"
    assert namedtuple_row((column,))((5,))._fields == (field,)


def test_a_name_that_is_taken_becomes_its_position() -> None:
    row = namedtuple_row(("id", "id", "id"))((1, 2, 3))
    assert (row.id, row._1, row._2) == (1, 2, 3)


@settings(deadline=None)  # a busy machine is no failure
@given(NAMES)
def test_any_columns_make_a_named_tuple(names: list[str]) -> None:
    values = tuple(range(len(names)))
    row = namedtuple_row(tuple(names))(values)
    assert row == values
    for position, field in enumerate(row._fields):
        assert field.isidentifier()
        assert not keyword.iskeyword(field)
        assert getattr(row, field) == position


def test_the_class_of_a_named_tuple_is_made_once() -> None:
    columns = ("a", "b")
    assert type(namedtuple_row(columns)((1, 2))) is type(namedtuple_row(columns)((3, 4)))
