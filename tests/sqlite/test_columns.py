"""Values come back as the types that their columns were declared with, however they were selected."""

from __future__ import annotations

import datetime
import decimal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import sqlite3, wait_until

import safedb
from safedb.sql import parse
from safedb.sqlite import columns
from safedb.sqlite.columns import Columns, as_select
from safedb.sqlite.engine import SqliteEngine

WHEN = datetime.datetime(2024, 2, 29, 12, 30, 0, 5, tzinfo=datetime.UTC)
ID = uuid.UUID(int=7)
SCHEMA = """
CREATE TABLE t(
    id INTEGER PRIMARY KEY, flag BOOLEAN, at TIMESTAMP WITH TIME ZONE, price DECIMAL(10, 2), doc JSON, day DATE,
    uid UUID, plain TEXT, untyped
);
CREATE VIEW v AS SELECT flag AS f, plain FROM t;
"""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[safedb.Database]:
    with safedb.connect(
        tmp_path / "app.db", schema=SCHEMA, retry=safedb.RetryPolicy(timeout=60.0), functions={"twice": lambda x: 2 * x}
    ) as db:
        db.execute(
            "INSERT INTO t VALUES (1, ?, ?, ?, ?, ?, ?, 'x', 1)",
            (True, WHEN, decimal.Decimal("1.50"), safedb.Json({"a": [1]}), WHEN.date(), ID),
        )
        yield db


def same(got: Any, expected: Any) -> bool:
    return type(got) is type(expected) and bool(got == expected)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT flag FROM t", (True,)),
        ("SELECT at, price, doc, day, uid FROM t", (WHEN, decimal.Decimal("1.5"), {"a": [1]}, WHEN.date(), ID)),
        ("SELECT plain, untyped, id FROM t", ("x", 1, 1)),
        ("SELECT flag AS other, flag, t.* FROM t", (True, True, 1, True)),
        ('SELECT "flag", [flag], `flag`, t."flag" FROM "t"', (True, True, True, True)),
        ("SELECT f FROM v", (True,)),
        ("SELECT a.flag, b.flag FROM t a JOIN t AS b USING (id)", (True, True)),
        ("SELECT b.flag FROM t a LEFT JOIN t b ON b.id = 5", (None,)),
        ("SELECT s.y FROM (SELECT flag AS y FROM t) s", (True,)),
        ("WITH a AS (SELECT flag AS y FROM t), b(z) AS (SELECT y FROM a) SELECT z FROM b", (True,)),
        ("SELECT flag FROM t UNION SELECT flag FROM t", (True,)),
        ("SELECT flag FROM t UNION ALL SELECT flag FROM t ORDER BY 1 LIMIT 1", (True,)),
        (
            "SELECT flag, doc ->> '$.a[0]', doc -> '$.a', 1 <> 2, 1 << 2, 'a' || 'b', 1 <= 2, 1 != 2, 1 == 1 FROM t",
            (True, 1),
        ),
        (
            "SELECT flag, x'00', 1e-5, .5, 0x1F FROM t -- ; a comment\n /* and one more */ ;",
            (True, b"\0", 1e-5, 0.5, 31),
        ),
        ("SELECT flag, twice(id) FROM t", (True, 2)),
        ("SELECT flag, e.value FROM t, json_each(t.doc, '$.a') e", (True, 1)),
        ("SELECT EXISTS (SELECT 1), max(flag), flag AND 1 FROM t", (1, 1, 1)),
        ("SELECT flag, replace(plain, 'x', 'y') FROM t", (True, "y")),
        ("SELECT NOT flag FROM t", (0,)),
    ],
)
def test_declared_types_come_through(db: safedb.Database, sql: str, expected: tuple[Any, ...]) -> None:
    for _ in range(2):  # described, and known
        row = db.execute(sql).fetchall()[0]
        assert all(same(got, want) for got, want in zip(row, expected, strict=False)), row


@pytest.mark.parametrize(
    ("sql", "params", "expected"),
    [
        ("SELECT flag, ? FROM t WHERE id=? AND 1=?", ("p", 1, 1), (True, "p")),
        ("SELECT flag, :x FROM t WHERE id = :id LIMIT :x", {"x": 1, "id": 1}, (True, 1)),
        ("SELECT flag FROM t WHERE id=?AND id IN (?,?)", (1, 1, 2), (True,)),
        ("SELECT flag, '?' AS \"?\", ':no' FROM t WHERE plain = ?", ("x",), (True, "?", ":no")),
    ],
)
def test_parameters_do_not_hide_types(db: safedb.Database, sql: str, params: Any, expected: tuple[Any, ...]) -> None:
    row = db.execute(sql, params).fetchall()[0]
    assert all(same(got, want) for got, want in zip(row, expected, strict=True)), row


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("INSERT INTO t(flag) VALUES (1) RETURNING flag", (True,)),
        ("INSERT INTO main.t(flag) VALUES (1) RETURNING flag AS f, id > 0", (True, 1)),
        ('INSERT OR REPLACE INTO "t" AS z (id, flag) VALUES (9, 0) RETURNING flag, *', (False, 9, False)),
        ("REPLACE INTO t(id, flag) VALUES (9, 1) RETURNING flag", (True,)),
        (
            "INSERT INTO t(id, flag) VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET flag = excluded.flag RETURNING flag",
            (False,),
        ),
        ("UPDATE t SET plain = 'RETURNING' WHERE id = 1 RETURNING flag, doc", (True, {"a": [1]})),
        ("UPDATE OR IGNORE t AS u SET flag = 0 WHERE u.id = 1 RETURNING flag, twice(id)", (False, 2)),
        ("WITH c AS (SELECT 1 AS k) UPDATE t SET flag = 0 FROM c WHERE t.id = c.k RETURNING flag", (False,)),
        ("DELETE FROM t WHERE id IN (SELECT id FROM t) RETURNING flag, at;", (True, WHEN)),
    ],
)
def test_declared_types_come_through_returning(db: safedb.Database, sql: str, expected: tuple[Any, ...]) -> None:
    with db.transaction() as tx:
        row = tx.execute(sql).fetchall()[0]
        assert all(same(got, want) for got, want in zip(row, expected, strict=False)), row


def test_multi_word_types_are_read_whole_and_whatever_their_case(tmp_path: Path) -> None:
    """``TIMESTAMP WITH TIME ZONE`` is aware, ``timestamp`` naive; a type that merely begins so is none of them."""
    schema = "CREATE TABLE t(a TIMESTAMP WITH TIME ZONE, b timestamp, c DECIMAL (10, 2), d DATEISH, e boolean)"
    with safedb.connect(tmp_path / "app.db", schema=schema) as db:
        db.execute("INSERT INTO t VALUES (?, ?, 1.5, '2024-01-01', 1)", (WHEN, WHEN))
        row = db.execute("SELECT * FROM t").one()
    assert row == (WHEN, WHEN.replace(tzinfo=None), decimal.Decimal("1.5"), "2024-01-01", True)
    assert isinstance(row[2], decimal.Decimal)


# -- when the schema changes ------------------------------------------------------------------------------------------


def test_a_schema_changed_by_this_process_is_seen_at_once(db: safedb.Database) -> None:
    db.execute("CREATE TABLE u(x TEXT)")
    db.execute("INSERT INTO u VALUES (1)")
    assert db.execute("SELECT x FROM u").scalar() == "1"
    db.executescript("DROP TABLE u; CREATE TABLE u(x BOOLEAN); INSERT INTO u VALUES (1)")
    assert db.execute("SELECT x FROM u").scalar() is True
    with db.transaction() as tx:
        tx.execute("ALTER TABLE u RENAME TO w")
        tx.execute("CREATE TABLE u(x TEXT)")
        tx.execute("INSERT INTO u VALUES ('1')")
    wait_until(lambda: db.execute("SELECT x FROM u").scalar() == "1", "the new types")


def test_a_schema_changed_by_another_program_is_seen_soon(db: safedb.Database, tmp_path: Path) -> None:
    assert db.execute("SELECT plain FROM t").scalar() == "x"
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    other.executescript("DROP TABLE t; CREATE TABLE t(plain BOOLEAN); INSERT INTO t VALUES (1)")
    other.close()

    def seen() -> bool:
        db.execute("INSERT INTO t(plain) VALUES (0)")  # the keeper looks while there is something to look after
        return bool(db.execute("SELECT plain FROM t").fetchone() == (True,))

    wait_until(seen, "the new type")


def test_only_a_change_is_a_change(db: safedb.Database) -> None:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    fresh = Columns(engine.connections.describer)
    assert fresh.schema_changed() is False, "nothing was ever described"
    assert fresh.of(parse("SELECT flag FROM t"), 1) is not None
    assert fresh.schema_changed() is False
    db.execute("CREATE TABLE more(x)")
    assert fresh.schema_changed() is True
    assert fresh.of(parse("SELECT flag FROM t"), 1) is not None
    assert fresh.schema_changed() is False
    fresh.close()
    fresh.close()
    assert fresh.of(parse("SELECT id FROM t"), 1) is None
    assert fresh.of(parse("SELECT flag FROM t"), 1) is not None
    fresh.close()


def test_a_description_that_does_not_fit_the_rows_is_made_anew(db: safedb.Database) -> None:
    """Another program changes ``SELECT *`` between the statement and its description."""
    engine: Any = db._engine
    fresh = Columns(engine.connections.describer)
    statement = parse("SELECT * FROM t")
    assert fresh.of(statement, 9) is not None
    db.execute("ALTER TABLE t ADD COLUMN more BOOLEAN")
    found = fresh.of(statement, 10)
    assert found is not None
    assert len(found) == 10
    assert fresh.of(statement, 9) is None, "rows of a schema that is gone come back as they are stored"
    fresh.close()


def test_a_connection_that_was_opened_before_a_closing_is_not_kept(db: safedb.Database) -> None:
    """In memory the description rests on a copy of the schema: one that was made before a change must not stay."""
    engine: Any = db._engine
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(engine.connections.describer())
        if len(opened) == 1:
            fresh.close()  # another thread has changed the schema meanwhile
        return opened[-1]

    fresh = Columns(connect)
    assert fresh.of(parse("SELECT flag FROM t"), 1) is not None
    assert len(opened) == 2
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
    fresh.close()


def test_without_typed_columns_nothing_is_described(tmp_path: Path) -> None:
    with safedb.connect(tmp_path / "app.db", schema="CREATE TABLE t(a INTEGER, b TEXT)") as db:
        engine: Any = db._engine
        db.execute("INSERT INTO t VALUES (1, 'x')")
        statements: list[str] = []
        real = engine.connections.describer

        def watched() -> Any:
            connection = real()
            connection.set_trace_callback(statements.append)
            return connection

        engine.columns = Columns(watched)
        assert db.execute("SELECT a, b FROM t").one() == (1, "x")
        assert statements
        assert not any("VIEW" in statement for statement in statements)


# -- what cannot be described -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["PRAGMA table_info(t)", "EXPLAIN SELECT flag FROM t", "VALUES (1)", "SELECT 1 -- x"])
def test_what_has_no_declared_types_comes_back_as_it_is_stored(db: safedb.Database, sql: str) -> None:
    assert len(db.execute(sql)) >= 1
    assert len(db.execute(sql)) >= 1


def test_a_table_that_only_the_transaction_sees_has_no_types_yet(db: safedb.Database) -> None:
    with db.transaction() as tx:
        tx.execute("CREATE TABLE u(x BOOLEAN)")
        assert tx.execute("INSERT INTO u VALUES (1) RETURNING x").scalar() in (1, True)
    assert db.execute("INSERT INTO u VALUES (1) RETURNING x").scalar() is True


@pytest.mark.parametrize(
    ("sql", "select"),
    [
        ("SELECT a FROM t;", "SELECT a FROM t"),
        ("SELECT 'a", None),
        ("DELETE FROM t", None),
        ("INSERT INTO t VALUES (?)", None),
        ("INSERT INTO t(x) VALUES (?) RETURNING x , y", "SELECT x , y FROM t"),
        ("INSERT OR IGNORE INTO main.t VALUES (1) RETURNING *", "SELECT * FROM main.t"),
        ("UPDATE t AS u SET x = 1 RETURNING x", "SELECT x FROM t AS u"),
        ("DELETE FROM 'a b' RETURNING \"c d\"", "SELECT \"c d\" FROM 'a b'"),
        ("UPDATE ? SET x = 1 RETURNING x", None),
        ("SELECT replace(a, ?, 'x') FROM t", "SELECT replace(a, NULL , 'x') FROM t"),
        ("", ""),
    ],
)
def test_a_statement_is_described_as_a_select_without_parameters(sql: str, select: str | None) -> None:
    assert as_select(sql) == select


def test_what_is_known_of_statements_is_bounded(db: safedb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CACHED", 5)
    engine: Any = db._engine
    for number in range(12):
        assert db.execute(f"SELECT flag, {number} FROM t").one() == (True, number)
        assert len(engine.columns._known) <= 5


def test_any_thread_may_ask(db: safedb.Database) -> None:
    errors: list[object] = []

    def ask(number: int) -> None:
        for turn in range(20):
            row = db.execute(f"SELECT flag, {number * 100 + turn} FROM t").one()
            if row[0] is not True:
                errors.append(row)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors


def test_who_reads_while_another_finds_out_the_types_has_them_too(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: the first read of a statement counts its columns; just then another thread has read it whole."""
    sql = "SELECT at FROM t"
    run = type(db._engine.readers).run  # type: ignore[attr-defined]
    others: list[Any] = []

    class Counted(tuple[Any, ...]):
        __slots__ = ()

        def __len__(self) -> int:
            if not others:
                monkeypatch.undo()
                others.append(db.execute(sql).scalar())
            return super().__len__()

    def first(*args: Any) -> Any:
        rows, description, count = run(*args)
        return rows, Counted(description), count

    monkeypatch.setattr(type(db._engine.readers), "run", first)  # type: ignore[attr-defined]
    assert db.execute(sql).scalar() == WHEN
    assert others == [WHEN]
