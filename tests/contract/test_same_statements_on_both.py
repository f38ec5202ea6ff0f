"""Same answer on both: what SQL text may say, and the differences in SQL itself, which safedb does not translate.

Where the engines cannot agree, a test pins what each of them does, and what can be written for both.
"""

# What raises here is a block, with what came before in it.
from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from conftest import Backend, Connect
from support import sqlite3

import safedb

Ways = dict[str, Callable[[safedb.Database, str], Any]]


def in_a_block(db: safedb.Database, sql: str) -> Any:
    with db.transaction() as tx:
        return tx.execute(sql)


def in_a_snapshot(db: safedb.Database, sql: str) -> Any:
    with db.snapshot() as snap:
        return snap.execute(sql)


WAYS: Ways = {
    "alone": lambda db, sql: db.execute(sql),
    "in a transaction": in_a_block,
    "in a snapshot": in_a_snapshot,
    "in a script": lambda db, sql: db.executescript(f"SELECT 1; {sql}"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(
    ("sql", "remedy"),
    [
        ("BEGIN", r"db\.transaction\(\)"),
        ("begin immediate", r"db\.transaction\(\)"),
        ("START TRANSACTION", r"db\.transaction\(\)"),
        ("COMMIT", "it commits"),
        ("/* so */ END", "it commits"),
        ("ROLLBACK", "raise an exception"),
        ("ROLLBACK TO a", "raise an exception"),
        ("ABORT", "raise an exception"),
        ("SAVEPOINT a", r"tx\.savepoint\(\)"),
        ("RELEASE a", r"tx\.savepoint\(\)"),
        ("COMMIT PREPARED 'a'", "two-phase"),
    ],
)
def test_what_begins_or_ends_a_transaction_is_refused_and_the_call_to_use_is_named(
    db: safedb.Database, way: Callable[[safedb.Database, str], Any], sql: str, remedy: str
) -> None:
    """H46b, c: it is read off the text, for an authorizer is not asked again about a cached statement."""
    with pytest.raises(safedb.ProgrammingError, match=remedy):
        way(db, sql)


@pytest.mark.parametrize("way", [WAYS["alone"], in_a_block, in_a_snapshot], ids=["alone", "block", "snapshot"])
def test_two_statements_in_one_call_are_refused_and_a_script_runs_them(
    db: safedb.Database, way: Callable[[safedb.Database, str], Any]
) -> None:
    with pytest.raises(safedb.ProgrammingError, match="executescript"):
        way(db, "SELECT 1; SELECT 2")
    db.executescript("INSERT INTO t (v) VALUES ('a'); INSERT INTO t (v) VALUES ('b')")
    assert db.execute("SELECT count(*) FROM t").scalar() == 2


def test_a_doubled_question_mark_is_one_that_is_no_parameter(db: safedb.Database) -> None:
    """It is an operator of PostgreSQL's; SQLite has none of that kind, and says so itself."""
    sql = "SELECT CAST(? AS JSONB) ?? 'a'"
    if db.dialect == "postgresql":
        assert db.execute(sql, (safedb.Json({"a": 1}),)).scalar() is True
    else:
        with pytest.raises(safedb.ProgrammingError):
            db.execute(sql, (safedb.Json({"a": 1}),))


def test_a_boolean_is_compared_with_booleans(connect: Connect) -> None:
    db = connect(schema="CREATE TABLE b (flag BOOLEAN)")
    db.executemany("INSERT INTO b VALUES (?)", [(True,), (False,), (None,)])
    for condition, params in (("flag = ?", (True,)), ("flag", ()), ("flag = TRUE", ()), ("NOT NOT flag", ())):
        assert db.execute(f"SELECT count(*) FROM b WHERE {condition}", params).scalar() == 1
    if db.dialect == "sqlite":
        assert db.execute("SELECT count(*) FROM b WHERE flag = 1").scalar() == 1
    else:
        with pytest.raises(safedb.ProgrammingError, match="CAST"):
            db.execute("SELECT count(*) FROM b WHERE flag = 1")


def test_the_sum_of_two_small_parameters(db: safedb.Database) -> None:
    """PostgreSQL is given the smallest type that holds each."""
    if db.dialect == "sqlite":
        assert db.execute("SELECT ? + ?", (30000, 30000)).scalar() == 60000
    else:
        with pytest.raises(safedb.DataError, match="CAST") as caught:
            db.execute("SELECT ? + ?", (30000, 30000))
        assert caught.value.sqlstate == "22003"
    both = "SELECT CAST(? AS INTEGER) + CAST(? AS INTEGER)"
    assert db.execute(both, (30000, 30000)).scalar() == 60000


def test_a_parameter_whose_type_nothing_tells(db: safedb.Database) -> None:
    if db.dialect == "sqlite":
        assert db.execute("SELECT ? IS NULL", (None,)).scalar() == 1
    else:
        with pytest.raises(safedb.ProgrammingError, match="CAST") as caught:
            db.execute("SELECT ? IS NULL", (None,))
        assert caught.value.sqlstate == "42P18"
    assert db.execute("SELECT CAST(? AS TEXT) IS NULL", (None,)).scalar() == 1


TYPED = "CREATE TABLE s (number INTEGER, text TEXT) {strict}"


def test_a_value_of_the_wrong_type_is_a_data_error(connect: Connect, backend: Backend) -> None:
    db = connect(schema=backend.schema(TYPED))
    with pytest.raises(safedb.DataError) as caught:
        db.execute("INSERT INTO s (number) VALUES (?)", ("no number",))
    assert caught.value.sqlstate == ("22000" if db.dialect == "sqlite" else "22P02")
    with pytest.raises(safedb.DataError):
        db.execute("INSERT INTO s (number) VALUES (?)", (b"bytes",))
    assert db.execute("SELECT count(*) FROM s").scalar() == 0


@pytest.mark.parametrize(
    ("column", "value", "sqlstate", "kept"),
    [("number", True, "42804", 1), ("number", 2**40, "22003", 2**40)],
)
def test_where_sqlite_finds_a_way_postgresql_asks_for_a_cast(
    connect: Connect, backend: Backend, column: str, value: Any, sqlstate: str, kept: Any
) -> None:
    db = connect(schema=backend.schema(TYPED))
    insert = f"INSERT INTO s ({column}) VALUES (?) RETURNING {column}"
    if db.dialect == "sqlite":
        assert db.execute(insert, (value,)).scalar() == kept
        return
    with pytest.raises(safedb.DataError, match="CAST") as caught:
        db.execute(insert, (value,))
    assert caught.value.sqlstate == sqlstate
    if value != 2**40:
        assert db.execute(insert.replace("?", "CAST(? AS INTEGER)"), (value,)).scalar() == kept


def test_a_number_goes_into_a_text_column_as_its_digits(connect: Connect, backend: Backend) -> None:
    db = connect(schema=backend.schema(TYPED))
    insert = "INSERT INTO s (text) VALUES (?) RETURNING text"
    assert db.execute(insert, (12,)).scalar() == "12"
    assert db.execute(insert, (True,)).scalar() == ("1" if db.dialect == "sqlite" else "true")


def test_a_column_of_postgresqls_rounds_to_what_it_was_declared_to_hold(connect: Connect, backend: Backend) -> None:
    """The server converts what it stores, without a word; SQLite refuses, or keeps more than was declared."""
    db = connect(schema=[backend.schema(TYPED), "CREATE TABLE d (price DECIMAL(10, 2))"])
    insert = "INSERT INTO s (number) VALUES (?) RETURNING number"
    if db.dialect == "sqlite":
        with pytest.raises(safedb.DataError):
            db.execute(insert, (1.5,))
    else:
        assert db.execute(insert, (1.5,)).scalar() == 2
    price = db.execute("INSERT INTO d VALUES (?) RETURNING price", (Decimal("9.876"),)).scalar()
    assert price == (Decimal("9.876") if db.dialect == "sqlite" else Decimal("9.88"))


def test_like_tells_capitals_apart_on_postgresql(db: safedb.Database) -> None:
    db.executemany("INSERT INTO t (v) VALUES (?)", [("a_b",), ("A_B",), ("axb",)])
    assert db.execute("SELECT count(*) FROM t WHERE v LIKE 'A%'").scalar() == (3 if db.dialect == "sqlite" else 1)
    # The backslash is a character of its own on SQLite, unless ESCAPE says otherwise.
    assert db.execute(r"SELECT count(*) FROM t WHERE v LIKE 'a\_b'").scalar() == (0 if db.dialect == "sqlite" else 1)
    both = r"SELECT count(*) FROM t WHERE lower(v) LIKE lower(?) ESCAPE '\'"
    assert db.execute(both, (r"A\_B",)).scalar() == 2


def test_nulls_are_sorted_first_on_sqlite_and_last_on_postgresql(db: safedb.Database) -> None:
    db.executemany("INSERT INTO t (v) VALUES (?)", [("a",), (None,)])
    assert [row[0] for row in db.execute("SELECT v FROM t ORDER BY v")] == (
        [None, "a"] if db.dialect == "sqlite" else ["a", None]
    )
    assert [row[0] for row in db.execute("SELECT v FROM t ORDER BY v NULLS FIRST")] == [None, "a"]
    assert [row[0] for row in db.execute("SELECT v FROM t ORDER BY v NULLS LAST")] == ["a", None]


def test_a_division_by_zero_is_null_on_sqlite_and_an_error_on_postgresql(db: safedb.Database) -> None:
    if db.dialect == "sqlite":
        assert db.execute("SELECT 1 / 0").scalar() is None
    else:
        with pytest.raises(safedb.DataError) as caught:
            db.execute("SELECT 1 / 0")
        assert caught.value.sqlstate == "22012"
    assert db.execute("SELECT 1 / nullif(0, 0)").scalar() is None


def test_a_column_without_a_name_is_called_differently(db: safedb.Database) -> None:
    sqlite = db.dialect == "sqlite"
    assert db.execute("SELECT max(v), 1 + 1 FROM t").columns == (("max(v)", "1 + 1") if sqlite else ("max", "?column?"))
    assert db.execute("SELECT max(v) AS most, 1 + 1 AS two FROM t").columns == ("most", "two")


def test_the_case_of_an_alias_is_kept_by_quotes_alone(connect: Connect) -> None:
    db = connect(row_factory=safedb.dict_row)
    assert db.execute("SELECT 1 AS userId").one() == {"userId" if db.dialect == "sqlite" else "userid": 1}
    assert db.execute('SELECT 1 AS "userId"').one() == {"userId": 1}
    assert db.execute("SELECT 1 AS user_id").one() == {"user_id": 1}


def test_double_quotes_are_for_names(db: safedb.Database) -> None:
    """SQLite takes an unknown name in them for a string, unless it is told not to, which needs Python 3.12."""
    db.execute("INSERT INTO t (v) VALUES ('x')")
    assert db.execute('SELECT "v" FROM t').one() == ("x",)
    if db.dialect == "sqlite" and not hasattr(sqlite3.Connection, "setconfig"):
        assert db.execute('SELECT "abc" FROM t').one() == ("abc",)
    else:
        with pytest.raises(safedb.ProgrammingError, match="abc"):
            db.execute('SELECT "abc" FROM t')


def test_a_value_without_a_declared_column_is_untyped_on_sqlite(connect: Connect) -> None:
    db = connect(schema="CREATE TABLE u (flag BOOLEAN, at TIMESTAMP WITH TIME ZONE, number BIGINT)")
    at = datetime(2024, 1, 2, tzinfo=UTC)
    db.execute("INSERT INTO u VALUES (?, ?, ?)", (True, at, 3))
    computed = db.execute("SELECT coalesce(flag, FALSE), max(at), sum(number), avg(number) FROM u GROUP BY flag").one()
    if db.dialect == "sqlite":
        assert computed == (1, "2024-01-02 00:00:00.000000+00:00", 3, 3.0)
        assert [type(value) for value in computed] == [int, str, int, float]
    else:
        assert computed == (True, at, Decimal(3), Decimal(3))
        assert [type(value) for value in computed] == [bool, datetime, Decimal, Decimal]
    # For both: the column itself, not what an expression makes of it; and a cast of what is counted.
    assert db.execute("SELECT at FROM u ORDER BY at DESC LIMIT 1").scalar() == at
    total = db.execute("SELECT CAST(sum(number) AS BIGINT) FROM u").scalar()
    assert (total, type(total)) == (3, int)


FAULTS = {
    "syntax": ("SELEC 1", "SELEC 1", safedb.ProgrammingError),
    "missing table": ("SELECT * FROM nowhere", "SELECT * FROM nowhere", safedb.ProgrammingError),
    "missing column": ("SELECT nothing FROM t", "SELECT nothing FROM t", safedb.ProgrammingError),
    "overflow": ("SELECT abs(-9223372036854775807 - 1)", "SELECT 9223372036854775807 + 1", safedb.DataError),
    "bad JSON": ("SELECT json('{')", "SELECT CAST('{' AS JSON)", safedb.DataError),
}


@pytest.mark.parametrize(("on_sqlite", "on_postgresql", "error"), FAULTS.values(), ids=FAULTS.keys())
def test_what_sqlite_calls_an_error_of_the_statement_may_be_one_of_the_data(
    db: safedb.Database, on_sqlite: str, on_postgresql: str, error: type[safedb.Error]
) -> None:
    """SQLite has one code for all of these."""
    with pytest.raises(safedb.DatabaseError) as caught:
        db.execute(on_sqlite if db.dialect == "sqlite" else on_postgresql)
    if db.dialect == "sqlite":
        assert type(caught.value) is safedb.ProgrammingError
        assert caught.value.sqlite_errorname == "SQLITE_ERROR"
    else:
        assert type(caught.value) is error


def test_a_read_that_turns_out_to_write_is_rerouted_and_remembered(db: safedb.Database) -> None:
    """To the eye both are reads: a pragma's table, and a function that counts."""
    if db.dialect == "sqlite":
        for _ in range(2):
            db.execute("SELECT * FROM pragma_optimize").fetchall()
        assert db.execute("PRAGMA user_version = 7").fetchall() == []
        assert db.execute("PRAGMA user_version").scalar() == 7
    else:
        db.execute("CREATE SEQUENCE counter")
        turns = db.stats().turns
        assert [db.execute("SELECT nextval('counter')").scalar() for _ in range(2)] == [1, 2]
        assert db.stats().turns == turns + 2


CONNECTION_BOUND = {
    "sqlite": [
        "SELECT last_insert_rowid()",
        "SELECT changes()",
        "SELECT total_changes()",
        "INSERT INTO t (v) SELECT changes()",
        "CREATE TEMP TABLE x (a INTEGER)",
        "SELECT * FROM temp.x",
        "ATTACH 'other.db' AS other",
        "DETACH other",
    ],
    "postgresql": [
        "SELECT lastval()",
        "SELECT currval('t_id_seq')",
        "INSERT INTO t (v) SELECT lastval()",
        "CREATE TEMP TABLE x (a INTEGER)",
        "CREATE TEMPORARY TABLE x AS SELECT 1",
        "SELECT * FROM pg_temp.x",
        "SELECT 1 AS a INTO TEMP x",
    ],
}


def test_what_depends_on_the_connection_is_refused_with_the_remedy(db: safedb.Database) -> None:
    for sql in CONNECTION_BOUND[db.dialect]:
        with pytest.raises(safedb.ProgrammingError, match=r"RETURNING|rowcount|ordinary table|connect\(\)"):
            db.execute(sql)
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('x')")
        last = "SELECT last_insert_rowid()" if db.dialect == "sqlite" else "SELECT lastval()"
        assert tx.execute(last).scalar() == tx.execute("SELECT id FROM t").scalar()


OUTLIVING = {
    "sqlite": ["CREATE TEMP TABLE x (a INTEGER)", "ATTACH 'other.db' AS other"],
    "postgresql": [
        "SET search_path = public",
        "RESET ALL",
        "LISTEN news",
        "PREPARE p AS SELECT 1",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "SELECT pg_advisory_lock(1)",
        "SELECT set_config('search_path', 'public', false)",
        "CREATE TEMP TABLE x (a INTEGER)",
        "DECLARE c CURSOR FOR SELECT 1",
    ],
}


def test_what_would_outlive_its_transaction_is_refused_inside_one_too(db: safedb.Database) -> None:
    """Its connection is the next caller's."""
    for sql in OUTLIVING[db.dialect]:
        for way in (WAYS["alone"], WAYS["in a script"], in_a_block):
            with pytest.raises(safedb.ProgrammingError):
                way(db, sql)
    if db.dialect == "postgresql":
        with db.transaction() as tx:  # what ends with the transaction is the user's
            tx.execute("SET LOCAL lock_timeout = '1s'")
            tx.execute("SELECT pg_advisory_xact_lock(1)")
            tx.execute("CREATE TEMP TABLE x (a INTEGER) ON COMMIT DROP")


def test_ids_come_from_returning(db: safedb.Database) -> None:
    ids = [db.execute("INSERT INTO t (v) VALUES (?) RETURNING id", (value,)).scalar() for value in "abc"]
    assert ids == [1, 2, 3]
    db.execute("DELETE FROM t WHERE id = 3")
    again = db.execute("INSERT INTO t (v) VALUES ('d') RETURNING id").scalar()
    assert again == (3 if db.dialect == "sqlite" else 4)  # without AUTOINCREMENT, SQLite may give the largest again


def test_an_id_that_was_given_is_known_to_sqlite_alone(db: safedb.Database) -> None:
    """PostgreSQL counts on where it was: ids that are given and ids that are counted do not mix."""
    db.execute("INSERT INTO t (id, v) VALUES (1, 'given')")
    insert = "INSERT INTO t (v) VALUES ('counted') RETURNING id"
    if db.dialect == "sqlite":
        assert db.execute(insert).scalar() == 2
    else:
        with pytest.raises(safedb.UniqueViolation):
            db.execute(insert)


def test_upsert_counts_and_returns(db: safedb.Database) -> None:
    upsert = "INSERT INTO t (id, v) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
    assert db.execute(f"{upsert} RETURNING v", (1, "a")).one() == ("a",)
    assert db.execute(f"{upsert} RETURNING v", (1, "b")).one() == ("b",)
    assert db.executemany(upsert, [(1, "c"), (1, "d")]) == 2  # one after the other, on both
    assert db.execute("SELECT v FROM t").one() == ("d",)


def test_an_upsert_names_its_target_and_each_row_once(db: safedb.Database) -> None:
    without = "INSERT INTO t (id, v) VALUES (1, 'a') ON CONFLICT DO UPDATE SET v = excluded.v"
    twice = "INSERT INTO t (id, v) VALUES (1, 'a'), (1, 'b') ON CONFLICT (id) DO UPDATE SET v = excluded.v"
    if db.dialect == "sqlite":
        assert db.execute(without).rowcount == 1
        assert db.execute(twice).rowcount == 2
        assert db.execute("SELECT v FROM t").one() == ("b",)
    else:
        for sql, sqlstate in ((without, "42601"), (twice, "21000")):
            with pytest.raises(safedb.ProgrammingError) as caught:
                db.execute(sql)
            assert caught.value.sqlstate == sqlstate
    assert db.execute("INSERT INTO t (id, v) VALUES (7, 'z'), (7, 'y') ON CONFLICT DO NOTHING").rowcount == 1


def test_house_keeping(db: safedb.Database, tmp_path: Any) -> None:
    db.execute("INSERT INTO t (v) VALUES ('x')")
    db.optimize()
    assert db.check() == []
    if db.dialect == "sqlite":
        db.checkpoint()
        db.backup(tmp_path / "copy.db")
        return
    with pytest.raises(safedb.NotSupportedError, match="PostgreSQL does that by itself"):
        db.checkpoint()
    with pytest.raises(safedb.NotSupportedError, match="pg_dump"):
        db.backup(tmp_path / "copy.db")
    assert not list(tmp_path.iterdir())
