"""Results are complete when they are returned, and rows are what the factory makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Connect
from support import Crew

import safedb

TEN = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 10) SELECT x FROM c ORDER BY x"


def test_fetching_goes_on_where_it_ended(db: safedb.Database) -> None:
    result = db.execute(TEN)
    assert len(result) == result.rowcount == 10
    assert result.fetchone() == (1,)
    assert result.fetchmany(3) == [(2,), (3,), (4,)]
    assert result.fetchmany() == [(5,)]
    assert result.fetchmany(0) == []
    assert next(iter(result)) == (6,)
    assert [row[0] for row in result] == [7, 8, 9, 10]
    assert result.fetchone() is None
    assert result.fetchall() == []
    assert len(result) == 10
    assert result.scalar() == 1


def test_fetchall_gives_a_list_of_its_callers_own(db: safedb.Database) -> None:
    result = db.execute(TEN)
    rows = result.fetchall()
    rows.clear()
    assert len(result) == 10
    assert db.execute(TEN).fetchmany(100) == [(number,) for number in range(1, 11)]


def test_one_and_scalar(db: safedb.Database) -> None:
    assert db.execute("SELECT 1, 2").one() == (1, 2)
    assert db.execute("SELECT 1, 2").scalar() == 1
    assert db.execute("SELECT id FROM t").scalar() is None
    with pytest.raises(safedb.ProgrammingError, match="exactly one row, and there are 0"):
        db.execute("SELECT id FROM t").one()
    with pytest.raises(safedb.ProgrammingError, match="exactly one row, and there are 10"):
        db.execute(TEN).one()
    assert db.execute("INSERT INTO t (v) VALUES ('x')").scalar() is None


@pytest.mark.parametrize(
    ("sql", "columns", "count"),
    [
        ("SELECT id, v AS value FROM t", ("id", "value"), 3),
        ("SELECT id FROM t WHERE id > 99", ("id",), 0),
        ("INSERT INTO t (v) VALUES ('x'), ('y')", (), 2),
        ("INSERT INTO t (v) VALUES ('x'), ('y') RETURNING id, v", ("id", "v"), 2),
        ("UPDATE t SET v = v", (), 3),
        ("UPDATE t SET v = v WHERE id > 99", (), 0),
        ("UPDATE t SET v = v WHERE id < 3 RETURNING id", ("id",), 2),
        ("DELETE FROM t", (), 3),
        ("DELETE FROM t WHERE id > 1 RETURNING v", ("v",), 2),
        ("INSERT INTO t (id, v) VALUES (1, 'a') ON CONFLICT DO NOTHING", (), 0),
        ("CREATE TABLE u (a INTEGER)", (), -1),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])
def test_counts_and_columns(db: safedb.Database, inside: bool, sql: str, columns: tuple[str, ...], count: int) -> None:
    db.execute("INSERT INTO t (v) VALUES ('a'), ('b'), ('c')")
    if inside:
        with db.transaction() as tx:
            result = tx.execute(sql)
    else:
        result = db.execute(sql)
    assert result.columns == columns
    assert result.rowcount == count
    assert len(result) == (count if columns else 0)


def test_executemany_counts_all_rows(db: safedb.Database) -> None:
    assert db.executemany("INSERT INTO t (v) VALUES (:v)", ({"v": f"{number}"} for number in range(7))) == 7
    assert db.executemany("UPDATE t SET v = v || '!' WHERE id <= ?", [(2,), (3,)]) == 5
    assert db.executemany("DELETE FROM t WHERE id = ?", [(99,)]) == 0
    with db.transaction() as tx:
        assert tx.executemany("INSERT INTO t (v) VALUES (?)", [("a",), ("b",)]) == 2
        assert tx.executemany("INSERT INTO t (v) VALUES (?)", []) == 0


def test_a_result_is_true_whatever_it_holds_and_shows_itself(db: safedb.Database) -> None:
    result = db.execute("SELECT id FROM t")
    assert result
    assert "0 rows" in repr(result)


def test_a_result_outlives_its_transaction_its_handle_and_its_thread(connect: Connect, crew: Crew) -> None:
    db = connect(schema="CREATE TABLE t (v TEXT)")
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES ('x')")
        inside = tx.execute("SELECT v FROM t")
    with db.snapshot() as snap:
        seen = snap.execute("SELECT v FROM t")
    plain = crew(db.execute, "SELECT v FROM t").result()
    db.close()
    assert [result.fetchall() for result in (inside, seen, plain)] == [[("x",)]] * 3


@dataclasses.dataclass
class Point:
    x: int
    y: int


FACTORIES: dict[str, tuple[Any, Any]] = {
    "tuple_row": (safedb.tuple_row, (1, 2)),
    "dict_row": (safedb.dict_row, {"x": 1, "y": 2}),
    "class_row": (safedb.class_row(Point), Point(1, 2)),
    "one's own": (lambda columns: lambda row: list(zip(columns, row, strict=True)), [("x", 1), ("y", 2)]),
}


@pytest.mark.parametrize(("factory", "row"), FACTORIES.values(), ids=FACTORIES.keys())
def test_every_way_to_fetch_gives_the_factorys_rows(connect: Connect, factory: Any, row: Any) -> None:
    db = connect(schema="CREATE TABLE p (x INTEGER, y INTEGER)", row_factory=factory)
    db.execute("INSERT INTO p VALUES (1, 2)")
    ways: list[Callable[[safedb.Result], Any]] = [
        lambda result: result.one(),
        lambda result: result.fetchone(),
        lambda result: result.fetchall()[0],
        lambda result: result.fetchmany(1)[0],
        lambda result: next(iter(result)),
    ]
    for way in ways:
        assert way(db.execute("SELECT x, y FROM p")) == row
        with db.transaction() as tx:
            assert way(tx.execute("UPDATE p SET x = x RETURNING x, y")) == row
        with db.snapshot() as snap:
            assert way(snap.execute("SELECT x, y FROM p")) == row
    assert db.execute("SELECT x, y FROM p").scalar() == 1


def test_named_tuples_have_their_columns_as_fields(connect: Connect) -> None:
    db = connect(row_factory=safedb.namedtuple_row)
    row = db.execute("SELECT 1 AS x, 2 AS y").one()
    assert (row.x, row.y) == (1, 2)
    assert row == (1, 2)


def test_a_row_factory_belongs_to_its_handle(db: safedb.Database, connect: Connect) -> None:
    other = connect(row_factory=safedb.dict_row)
    assert db.execute("SELECT 1 AS x").one() == (1,)
    assert other.execute("SELECT 1 AS x").one() == {"x": 1}


def test_a_factory_that_fails_fails_at_the_fetch_and_the_write_is_kept(connect: Connect) -> None:
    db = connect(schema="CREATE TABLE p (x INTEGER, z INTEGER)", row_factory=safedb.class_row(Point))
    result = db.execute("INSERT INTO p VALUES (1, 2) RETURNING x, z")
    with pytest.raises(TypeError):
        result.fetchall()
    assert db.execute("SELECT count(*) FROM p").scalar() == 1
