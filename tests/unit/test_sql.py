"""What the lexer says about a statement agrees with SQLite, and changes nothing but how parameters are written."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
from collections import UserList, defaultdict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import sqlite3

from safedb import sql as sql_module
from safedb.errors import DataError, ProgrammingError
from safedb.lexer import DIALECTS, POSTGRESQL, SQLITE, tokenize
from safedb.sql import Route, parse, split

unhurried = settings(deadline=None)  # a busy machine is no failure


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (a, b)")
    yield connection
    connection.close()


# --- The oracle is SQLite --------------------------------------------------------------------------------------------

# Texts that hide every mark a careless lexer would trip over, and the values that SQLite must find in them.
INSIDE = st.text("abE?:;'\"`[]-*/$\n\\é ", max_size=8)
BLANKS = st.sampled_from([" ", "\n", "\t", "/**/", "/* ?:a;' */", "-- ?:a;'\n", "--\r?\n", "/*/ ? */", "/* /* ? */"])
EXPRESSIONS = st.one_of(
    INSIDE.map(lambda text: ("'" + text.replace("'", "''") + "'", text)),
    INSIDE.map(lambda text: ("x'" + text.encode().hex() + "'", text.encode())),
    st.integers(0, 2**63 - 1).map(lambda number: (str(number), number)),
    st.sampled_from([("1.5e3", 1500.0), (".5", 0.5), ("0x1F", 31), ("2.", 2.0), ("(1)", 1), ("1<>2", 1)]),
)
ALIASES = INSIDE.flatmap(
    lambda text: st.sampled_from(
        ['"' + text.replace('"', '""') + '"', "`" + text.replace("`", "``") + "`", "[" + text.replace("]", "") + "]"]
    )
)
NAMES = st.sampled_from(["a", "b", "c1", "_d", "größe", "E", "END", "e$f"])


@unhurried
@given(data=st.data(), named=st.booleans())
def test_sqlite_sees_the_same_parameters_and_the_same_values(
    database: sqlite3.Connection, data: st.DataObject, named: bool
) -> None:
    values: dict[str, object] = {}
    arguments: list[object] = []
    pieces, expected = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            drawn: object = data.draw(st.integers(-5, 5) | st.text("ab?:'", max_size=3))
            name = data.draw(NAMES)
            value: object = values.setdefault(name, drawn) if named else drawn
            arguments.append(value)
            text = f":{name}" if named else "?"
        else:
            text, value = data.draw(EXPRESSIONS)
        pieces.append(f"{data.draw(BLANKS)}{text}{data.draw(BLANKS)}AS {data.draw(ALIASES)}")
        expected.append(value)
    statement = parse(f"SELECT{','.join(pieces)}{data.draw(st.sampled_from(['', ';', ' ; -- ?', ';/* ; */']))}")
    bound = statement.bind(values if named else arguments)
    row = database.execute(statement.sql, bound).fetchone()  # raises if SQLite counts the parameters otherwise
    assert list(row) == expected
    assert statement.parameters == len(bound) == len(arguments)


CHUNKS = st.lists(
    st.one_of(
        INSIDE.map(lambda text: "'" + text.replace("'", "''").replace("\\", "") + "'"),
        INSIDE.map(lambda text: '"' + text.replace('"', '""') + '"'),
        INSIDE.map(lambda text: "/*" + text.replace("*", "").replace("/", "") + "*/"),
        INSIDE.map(lambda text: "--" + text.replace("\n", "") + "\n"),
        st.sampled_from(["word", "größe", "1.5e-3", "=", "->>", "%", "(", ")", "\n", "!=", "<", "||", "x'00'", "+"]),
    ),
    min_size=1,
    max_size=4,
).map(lambda parts: " " + " ".join(parts) + " ")


@pytest.mark.parametrize("dialect", DIALECTS)
@unhurried
@given(chunks=st.lists(CHUNKS, min_size=1, max_size=5), data=st.data())
def test_text_outside_parameters_is_never_changed(dialect: str, chunks: list[str], data: st.DataObject) -> None:
    names = [data.draw(NAMES) for _ in chunks[1:]]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}

    def joined(placeholders: list[str]) -> str:
        return "SELECT" + "".join(
            itertools.chain.from_iterable(itertools.zip_longest(chunks, placeholders, fillvalue=""))
        )

    by_name = parse(joined([f":{name}" for name in names]), dialect)
    assert by_name.sql == joined(["?" if dialect == "sqlite" else f"${numbers[name]}" for name in names])
    assert by_name.names == tuple(numbers)
    by_position = parse(joined(["?"] * len(names)), dialect)
    written = ["?"] * len(names) if dialect == "sqlite" else [f"${number}" for number in range(1, len(chunks))]
    assert by_position.sql == joined(written)
    assert by_position.source == joined(["?"] * len(names))
    assert by_position.parameters == len(names)


@unhurried
@given(st.text("ab'\"`[]-/*\n\r \\;é"))
@example("'a''")
@example("/*/")
@example("a--\r'")
def test_what_never_ends_is_refused_exactly_when_sqlite_finds_no_end(text: str) -> None:
    ends = sqlite3.complete_statement(text + "\n;")
    if ends:
        tokenize(text + "\n;", SQLITE)
    else:
        with pytest.raises(ProgrammingError, match="never ends"):
            tokenize(text + "\n;", SQLITE)


WORDS = st.lists(
    st.sampled_from(["CREATE", "CREATE TEMP", "CREATE temporary TRIGGER", "trigger", "BEGIN", "END", "CASE", "x", "1"])
    | st.sampled_from([";", "; x ;", "; end;", '"END"', "';'", "/*;*/", "--;\n"]),
    max_size=12,
)


def cut_by_sqlite(script: str) -> list[str]:
    pieces, start = [], 0
    for position, character in enumerate(script):
        if character == ";" and sqlite3.complete_statement(script[start : position + 1]):
            pieces.append(script[start:position])
            start = position + 1
    return [*pieces, script[start:]]


@unhurried
@given(WORDS | WORDS.map(lambda words: ["CREATE TRIGGER x BEGIN", *words]))
def test_a_script_is_cut_where_sqlite_cuts_it(words: list[str]) -> None:
    script = "SELECT 1; " + " ".join(words)
    pieces = [[token.text for token in tokenize(piece, SQLITE)] for piece in cut_by_sqlite(script)]
    expected = [piece for piece in pieces if piece]
    if any(piece[0] in {"BEGIN", "END", "end"} for piece in expected):
        with pytest.raises(ProgrammingError, match="is safedb's to say"):
            split(script)
    else:
        found = [[token.text for token in tokenize(statement.source, SQLITE)] for statement in split(script)]
        assert found == expected


@pytest.mark.parametrize("head", ["CREATE", "EXPLAIN CREATE", "explain query plan create temp", "CREATE TEMPORARY"])
def test_a_trigger_is_one_statement(head: str) -> None:
    trigger = f"{head} TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; y; CASE 1 WHEN 1 THEN 2 END END; SELECT 'x'; END"
    assert parse(trigger + " ; -- done").source.startswith(trigger)
    assert [statement.source for statement in split(trigger + ";SELECT 1")] == [trigger, "SELECT 1"]


SCRIPT = """
-- a schema; with everything in it
CREATE TABLE account (id INTEGER PRIMARY KEY, name TEXT DEFAULT 'a;b', total INT);;
CREATE TABLE log (text);
CREATE TRIGGER IF NOT EXISTS noted AFTER UPDATE ON account WHEN new.total <> old.total BEGIN
    INSERT INTO log VALUES (CASE WHEN new.total > 0 THEN 'up; END;' ELSE 'down' END);
    UPDATE account SET name = CASE id WHEN 1 THEN 'x' END WHERE id = new.id;
END;
create temp trigger "BEGIN" after delete on account begin select 1; /* END; */ end /* done */ ;
INSERT INTO account VALUES (1, 'END;', 5), (2, "--", 6);
UPDATE account SET total = total + 1 -- and no semicolon at the end
"""


def test_a_script_with_triggers_does_statement_by_statement_what_sqlite_makes_of_the_whole() -> None:
    results = []
    for run in ("whole", "split"):
        connection = sqlite3.connect(":memory:", isolation_level=None)
        if run == "whole":
            connection.executescript(SCRIPT)
        else:
            for statement in split(SCRIPT):
                connection.execute(statement.sql)
        schema = connection.execute("SELECT sql FROM sqlite_master UNION ALL SELECT sql FROM sqlite_temp_master")
        results.append(
            (schema.fetchall(), *(connection.execute(f"SELECT * FROM {t}").fetchall() for t in ("account", "log")))
        )
        connection.close()
    assert results[0] == results[1]
    assert len(split(SCRIPT)) == 6
    assert results[0][2] == [("up; END;",), ("up; END;",)]


@pytest.mark.parametrize("dialect", DIALECTS)
@unhurried
@given(st.text("aE?:;'\"`[]()-*/$@#1.\n\\é\ufeff\0\ud800 ") | st.text())
def test_no_text_does_worse_than_programming_error(dialect: str, text: str) -> None:
    statements = []
    with contextlib.suppress(ProgrammingError):
        statements.append(parse(text, dialect))
    with contextlib.suppress(ProgrammingError):
        statements += split(text, dialect)
    for statement in statements:
        assert statement.parameters or "??" in text or statement.sql == statement.source


@pytest.mark.parametrize("opening", ["'", '"', "/*", "[", "'a''", "/*a*/ 'b"])
def test_a_long_text_that_never_ends_is_refused_in_linear_time(opening: str) -> None:
    with pytest.raises(ProgrammingError, match="never ends"):
        parse("SELECT " + opening + "a''b``*" * 200_000 + "'`x\"" * (opening[-1] in "*["))


@pytest.mark.parametrize(
    "text", ["E'a'\n'b'" + "\n'b'" * 100_000 + "\n'", "E'a'\n" * 100_000 + "'", "$a$ $b$ $a " * 100_000]
)
def test_a_long_text_of_postgresql_that_never_ends_is_refused_in_linear_time(text: str) -> None:
    with pytest.raises(ProgrammingError, match="never ends"):
        parse("SELECT " + text, "postgresql")


# --- Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "sql", "names"),
    [
        ("SELECT :a, :b, :a", "SELECT ?, ?, ?", ("a", "b")),
        ("SELECT a FROM t LIMIT:n", "SELECT a FROM t LIMIT?", ("n",)),
        ("SELECT ?, '?', \"?\", [?], `?` -- ?", None, ()),
        ("SELECT a->':x', x':y' FROM t", None, ()),
        ("SELECT '%s', 5 % 2", None, ()),
        ("SELECT /* a /*/ :a, '*/'", "SELECT /* a /*/ ?, '*/'", ("a",)),
    ],
)
def test_sqlite_parameters(source: str, sql: str | None, names: tuple[str, ...]) -> None:
    statement = parse(source)
    assert statement.sql == (sql or source)
    assert statement.names == names
    assert statement.source == source


@pytest.mark.parametrize(
    ("source", "sql"),
    [
        ("SELECT ?, ?", "SELECT $1, $2"),
        ("SELECT :a, :b, :a", "SELECT $1, $2, $1"),
        ("SELECT :a::int, x::text", "SELECT $1::int, x::text"),
        ("SELECT j ?? ? AND j ??| ?", "SELECT j ? $1 AND j ?| $2"),
        ('SELECT a[1:2], a[x:y], a[f(1):y], a[b[1]:y], a["q":y]', None),
        ("SELECT a[:low : :high], a[(:low)]", "SELECT a[$1 : $2], a[($1)]"),
        ("SELECT ARRAY[:a, :b], c", "SELECT ARRAY[$1, $2], c"),
        ("SELECT f(a := 1, b => :b)", "SELECT f(a := 1, b => $1)"),
        ("SELECT E'\\'?' , e'\\\\', ?", "SELECT E'\\'?' , e'\\\\', $1"),
        ("SELECT E'a' -- ?\n '\\'?', ?", "SELECT E'a' -- ?\n '\\'?', $1"),
        ("SELECT 'a\\', ?", "SELECT 'a\\', $1"),
        ("SELECT $$ ? 'x $$, $a$ $$ :b $a$, ?", "SELECT $$ ? 'x $$, $a$ $$ :b $a$, $1"),
        ("SELECT a$1, b$$ FROM t", None),
        ("SELECT /* a /* b */ ? */ ?", "SELECT /* a /* b */ ? */ $1"),
        ("SELECT 1 -- ?\r, ?", "SELECT 1 -- ?\r, $1"),
        ("SELECT 1 LIMIT?OFFSET?", "SELECT 1 LIMIT $1 OFFSET $2"),
        ("SELECT 1 LIMIT:n OFFSET(:m)", "SELECT 1 LIMIT $1 OFFSET($2)"),
        ("SELECT 5 @> ?, @ -5, a#>?", "SELECT 5 @> $1, @ -5, a#>$2"),
        ("SELECT j@??'$.a', j @???, j??", "SELECT j@?'$.a', j @?$1, j?"),
        ("SELECT JSON_OBJECT('k':v, 'l': :m)", "SELECT JSON_OBJECT('k':v, 'l': $1)"),
        ("SELECT 1?, .5?, 'a'?", "SELECT 1 $1, .5 $2, 'a'$3"),
        ("SELECT a\ufeff?", "SELECT a\ufeff $1"),
        ("SELECT 1$$ ? $$, 1E5$a$ ? $a$, a$b$c$b$", None),
        ("SELECT a$b$ ?, $b$ $1$b$", "SELECT a$b$ $1, $b$ $1$b$"),
        ("SELECT U&'\\' ?, U&\"?\" UESCAPE '?'", "SELECT U&'\\' $1, U&\"?\" UESCAPE '?'"),
        ("SELECT `?", "SELECT `$1"),
    ],
)
def test_postgresql_parameters(source: str, sql: str | None) -> None:
    assert parse(source, "postgresql").sql == (sql or source)


@pytest.mark.parametrize(
    ("source", "dialect", "said"),
    [
        ("SELECT ?1", "sqlite", r"\?1 in line 1, column 8"),
        ("SELECT @x", "sqlite", "@x"),
        ("SELECT\n $x", "sqlite", r"\$x in line 2, column 2"),
        ("SELECT :1", "sqlite", ":1"),
        ("SELECT #1", "sqlite", "#1"),
        ("SELECT $1", "postgresql", r"\$1"),
        ("SELECT ?1", "postgresql", r"\?1"),
        ("SELECT 1$1", "postgresql", r"\$1 in line 1, column 9"),
        ("SELECT $1abc", "postgresql", r"\$1 in"),
        ("SELECT ???1", "postgresql", r"\?1 in line 1, column 10"),
        ("SELECT (1; SELECT 2); x", "postgresql", "executescript"),
        ("CREATE FUNCTION f() RETURN 1; END", "postgresql", "executescript"),
        ("CREATE FUNCTION f() BEGIN ATOMIC END; END", "postgresql", "executescript"),
        ("CREATE FUNCTION f(begin atomic) RETURN 1; END", "postgresql", "executescript"),
        ("SELECT 1 AS begin, atomic; END", "postgresql", "executescript"),
        ("SELECT ??", "sqlite", r"\?\? in line 1, column 8.*PostgreSQL"),
        ("SELECT ?, :a", "sqlite", "one style"),
        ("SELECT :a, ?", "postgresql", "one style"),
        ("", "sqlite", "no statement"),
        (" -- nothing\n/* at all */", "sqlite", "no statement"),
        (";", "sqlite", "no statement"),
        ("SELECT 1; SELECT 2", "sqlite", "executescript"),
        ("SELECT 1;;", "sqlite", "executescript"),
        ("; SELECT 1", "sqlite", "executescript"),
        ("SELECT 1; x", "sqlite", "executescript"),
        ("SELECT '\0'", "sqlite", "NUL.*column 9"),
        ("SELECT '\ud800'", "sqlite", "surrogate.*column 9"),
        ("SELECT 'a", "sqlite", "column 8.*never ends"),
        ('SELECT "a', "sqlite", "never ends"),
        ("SELECT [a", "sqlite", "never ends"),
        ("SELECT `a", "sqlite", "never ends"),
        ("SELECT /* a", "sqlite", "column 8 never ends"),
        ("SELECT /* /* */", "postgresql", "never ends"),
        ("SELECT E'\\'", "postgresql", "never ends"),
        ("SELECT $a$ $b$", "postgresql", "never ends"),
    ],
)
def test_a_wrong_text_is_refused_and_its_place_named(source: str, dialect: str, said: str) -> None:
    with pytest.raises(ProgrammingError, match=said):
        parse(source, dialect)


@pytest.mark.parametrize("source", [b"SELECT 1", None, 5])
def test_sql_that_is_no_text_is_refused(source: Any) -> None:
    for read in (parse, split):
        with pytest.raises(ProgrammingError, match="SQL is a str"):
            read(source)


# --- What safedb says itself -----------------------------------------------------------------------------------------

CONTROL = {
    "BEGIN": "transaction",
    "begin immediate": "transaction",
    "START TRANSACTION": "transaction",
    "COMMIT": "leave the",
    "End": "leave the",
    "ROLLBACK TO x": "raise",
    "ABORT": "raise",
    "SAVEPOINT x": "savepoint",
    "RELEASE x": "savepoint",
}


@pytest.mark.parametrize("text", CONTROL)
@pytest.mark.parametrize("before", ["", "/*x*/ ", "-- x\n", "\ufeff", "\v\f", "EXPLAIN ", "EXPLAIN QUERY PLAN "])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_transaction_control_is_refused_with_the_call_to_use(text: str, before: str, dialect: str) -> None:
    if dialect == "postgresql" and before == "\ufeff":
        assert parse(before + text, dialect).keyword.startswith("\ufeff")  # a name to it, and so a syntax error
        return
    with pytest.raises(ProgrammingError, match=f"safedb's to say.*{CONTROL[text]}"):
        parse(before + text, dialect)
    with pytest.raises(ProgrammingError, match=r"line \d+, column \d+: .*safedb's to say"):
        split(f"SELECT 1;\n{before}{text}", dialect)


def test_a_script_takes_no_parameters_and_may_be_empty() -> None:
    with pytest.raises(ProgrammingError, match="line 2, column 2: a script takes no parameters"):
        split("SELECT 1;\n SELECT ?")
    assert split(" ;; -- nothing\n;") == []


def test_words_inside_a_statement_are_no_transaction_control() -> None:
    assert parse("SELECT \"BEGIN\", 'COMMIT', a AS rollback FROM t").route is Route.READ
    assert parse("CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END;").route is Route.EXCLUSIVE
    assert parse("INSERT OR ROLLBACK INTO t VALUES (1)").route is Route.WRITE


# --- Routing ---------------------------------------------------------------------------------------------------------

ROUTES = {
    "SELECT 1": Route.READ,
    "  /* x */ select 1": Route.READ,
    "VALUES (1)": Route.READ,
    "EXPLAIN INSERT INTO t VALUES (1, 2)": Route.READ,
    "EXPLAIN QUERY PLAN DELETE FROM t": Route.READ,
    "INSERT INTO t VALUES (1, 2)": Route.WRITE,
    "REPLACE INTO t VALUES (1, 2)": Route.WRITE,
    "UPDATE t SET a = 1": Route.WRITE,
    "DELETE FROM t": Route.WRITE,
    "WITH x AS (SELECT 1) SELECT * FROM x": Route.READ,
    "WITH x AS (SELECT 1) VALUES (2)": Route.READ,
    "WITH x AS (SELECT 1), y (c) AS (SELECT 2) INSERT INTO t SELECT * FROM x, y": Route.WRITE,
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION SELECT n + 1 FROM x WHERE n < 3) DELETE FROM t WHERE a IN x": Route.WRITE,
    "WITH x AS MATERIALIZED (SELECT 1) UPDATE t SET a = 2": Route.WRITE,
    "WITH x AS (SELECT 1) REPLACE INTO t SELECT 1, 2": Route.WRITE,
    "WITH x AS (SELECT 'a' AS s) SELECT replace(s, 'a', 'b') FROM x": Route.READ,
    "WITH replace AS (SELECT 1) SELECT * FROM replace": Route.READ,
    "CREATE TABLE u (a)": Route.EXCLUSIVE,
    "ALTER TABLE t ADD COLUMN c": Route.EXCLUSIVE,
    "DROP TABLE IF EXISTS u": Route.EXCLUSIVE,
    "ANALYZE": Route.EXCLUSIVE,
    "REINDEX": Route.EXCLUSIVE,
    "VACUUM": Route.EXCLUSIVE,
    "PRAGMA user_version": Route.READ,
    "PRAGMA table_info(t)": Route.READ,
    "PRAGMA user_version = 3": Route.EXCLUSIVE,
}


@pytest.mark.parametrize("text", ROUTES)
def test_a_statement_is_routed_by_what_it_does(text: str) -> None:
    assert parse(text).route is ROUTES[text]


@pytest.mark.parametrize("text", [text for text in ROUTES if text not in {"VACUUM", "ANALYZE", "REINDEX"}])
def test_sqlite_agrees_with_the_route(text: str) -> None:
    """A reader takes what is routed to one, and refuses what is not (but for DDL that finds nothing to do)."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (a, b)")
    connection.execute("PRAGMA query_only = ON")
    try:
        if parse(text).route is Route.READ or "IF EXISTS" in text:
            connection.execute(text).fetchall()
        else:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute(text).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("(SELECT 1) UNION (SELECT 2)", Route.READ),
        ("SHOW TimeZone", Route.READ),
        ("TABLE t", Route.READ),
        ("EXPLAIN (ANALYZE, COSTS OFF) SELECT 1", Route.READ),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", Route.WRITE),
        ("WITH x AS (SELECT 1) SEARCH DEPTH FIRST BY a SET b MERGE INTO t", Route.WRITE),
        ("WITH x AS (TABLE t)", Route.READ),
        ("WITH x AS (SELECT 1) SEARCH DEPTH FIRST BY update SET delete SELECT 1", Route.READ),
        ("WITH x AS (SELECT 1) CYCLE update SET insert TO 1 DEFAULT 2 USING delete DELETE FROM t", Route.WRITE),
        ("SELECT * FROM t FOR UPDATE", Route.READ),
        ("SELECT 1 INTO x", Route.READ),
        ("CREATE TABLE t (a)", Route.EXCLUSIVE),
        ("CALL p()", Route.EXCLUSIVE),
        ("DO $$ BEGIN DELETE FROM t; END $$", Route.EXCLUSIVE),
        ("COPY t TO '/x'", Route.EXCLUSIVE),
        ("NOTIFY x", Route.EXCLUSIVE),
        ("VACUUM t", Route.EXCLUSIVE),
        ("1", Route.EXCLUSIVE),
    ],
)
def test_postgresql_statements_are_routed_too(text: str, route: Route) -> None:
    assert parse(text, "postgresql").route is route


@pytest.mark.parametrize(
    "text",
    ["PRAGMA user_version", "PRAGMA user_version = 3", "ATTACH 'x' AS y", "DETACH y", "REPLACE INTO t VALUES (1)"],
)
def test_what_only_sqlite_knows_is_left_to_postgresql_to_refuse(text: str) -> None:
    statement = parse(text, "postgresql")
    assert statement.route is Route.EXCLUSIVE
    assert statement.transactional
    assert (statement.pragma, statement.connection_bound, statement.outlives) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "returning"),
    [
        ("INSERT INTO t VALUES (1) RETURNING a", True),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE RETURNING t.a", True),
        ("WITH x AS (SELECT 1) DELETE FROM t RETURNING a", True),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x", False),
        ("CREATE RULE r AS ON DELETE TO v DO INSTEAD DELETE FROM t RETURNING a", False),
        ("EXPLAIN DELETE FROM t RETURNING a", False),
        ("INSERT INTO t VALUES ('RETURNING')", False),
    ],
)
def test_a_returning_clause_is_found(text: str, returning: bool) -> None:
    assert parse(text, "postgresql").returning is returning


@pytest.mark.parametrize("text", ["PREPARE TRANSACTION 'x'", "commit prepared 'x'", "ROLLBACK PREPARED 'x'"])
def test_two_phase_commit_is_refused(text: str) -> None:
    with pytest.raises(ProgrammingError, match="safedb's to say: two-phase commit"):
        parse(text, "postgresql")


# Refused through db.*, for the answer or the effect belongs to one transaction; fine inside one.
BOUND = {
    "SELECT lastval()": "RETURNING",
    "SELECT pg_catalog.currval('s')": "RETURNING",
    "LOCK t IN SHARE MODE": "take it inside `with db.transaction",
    "SET LOCAL x.y = 1": "one transaction",
    'SET LOCAL "x.y" = 1': "one transaction",
    "set transaction READ ONLY": "one transaction",
    "SET CONSTRAINTS ALL DEFERRED": "one transaction",
    "CREATE TEMP TABLE x (a int) ON COMMIT DROP": "ordinary table",
    "CREATE TEMPORARY TABLE IF NOT EXISTS x ON COMMIT DROP AS SELECT 1": "ordinary table",
}
# Refused inside a transaction too: it would outlive it.
OUTLIVING = {
    "SET x.y = 1": "SET LOCAL",
    "SET local.x = 1": "SET LOCAL",
    "SET SESSION x.y = 1": "SET LOCAL",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY": "SET LOCAL",
    "SET TIME ZONE 'UTC'": "SET LOCAL",
    "SET LOCAL standard_conforming_strings = off": "backslashes",
    "SET ROLE x": "SET LOCAL",
    "RESET ALL": "SET LOCAL",
    "UPDATE pg_settings SET setting = '1' WHERE name = 'x.y'": "SET LOCAL",
    "SELECT set_config('x.y', '1', false)": "plain true",
    "SELECT set_config('x.y', '1', ?)": "plain true",
    "SELECT set_config('x.y', '1', NOT true)": "plain true",
    "LISTEN x": "notifications",
    "UNLISTEN *": "notifications",
    "PREPARE x AS SELECT 1": "pass parameters",
    "PREPARE transaction AS SELECT 1": "pass parameters",
    "EXECUTE x": "pass parameters",
    "EXPLAIN (ANALYZE) EXECUTE x": "pass parameters",
    "EXPLAIN ANALYSE VERBOSE EXECUTE x": "pass parameters",
    "DEALLOCATE ALL": "pass parameters",
    "DISCARD ALL": "pool",
    "LOAD 'auto_explain'": "session_preload_libraries",
    "DECLARE x CURSOR FOR SELECT 1": r"snap\.iterate",
    "DECLARE x CURSOR WITH HOLD FOR SELECT 1": r"snap\.iterate",
    "FETCH x": r"snap\.iterate",
    "MOVE x": r"snap\.iterate",
    "CLOSE x": r"snap\.iterate",
    "SELECT pg_advisory_lock(1)": "pg_advisory_xact_lock",
    "SELECT lastval(), pg_catalog . PG_ADVISORY_LOCK_shared (1, 2)": "pg_advisory_xact_lock",
    'SELECT "pg_try_advisory_lock"(1)': "pg_advisory_xact_lock",
    "SELECT pg_try_advisory_lock_shared(1)": "pg_advisory_xact_lock",
    "SELECT pg_advisory_unlock(1)": "pg_advisory_xact_lock",
    "SELECT pg_advisory_unlock_shared(1)": "pg_advisory_xact_lock",
    "SELECT pg_advisory_unlock_all()": "pg_advisory_xact_lock",
    "CREATE TEMP TABLE x (a int)": "ON COMMIT DROP",
    "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1": "ON COMMIT DROP",
    "create local temporary table x (a int) on commit delete rows": "ON COMMIT DROP",
    "CREATE OR REPLACE TEMP VIEW x AS SELECT 1": "ON COMMIT DROP",
    "CREATE TEMP SEQUENCE x": "ON COMMIT DROP",
    "SELECT 1 INTO TEMP x": "ordinary table",
    "SELECT 1 INTO LOCAL TEMPORARY TABLE x FROM t": "ordinary table",
    'WITH x AS (SELECT 1) (SELECT * INTO TEMP "x" FROM x)': "ordinary table",
    "CREATE TABLE pg_temp.x (a int)": "ordinary table",
    "SELECT pg_temp.f()": "ordinary table",
    'DROP TABLE "pg_temp_3" . x': "ordinary table",
    "COPY t FROM STDIN": "executemany",
    "COPY (SELECT 1) TO STDOUT (FORMAT csv)": "executemany",
}


@pytest.mark.parametrize("text", BOUND)
def test_what_postgresql_ends_with_the_transaction_is_for_its_owner(text: str) -> None:
    statement = parse(text, "postgresql")
    assert BOUND[text] in (statement.connection_bound or "")
    assert statement.outlives is None


@pytest.mark.parametrize("text", OUTLIVING)
def test_what_would_outlive_the_transaction_carries_its_remedy(text: str) -> None:
    statement = parse(text, "postgresql")
    assert re.search(OUTLIVING[text], statement.outlives or "")
    assert statement.connection_bound


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'pg_advisory_lock(1)', lastval FROM t",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1)",
        "SELECT set_config('x.y', coalesce('1', (SELECT '2')), true)",
        "SELECT last_insert_rowid(), changes()",
        "SELECT * FROM temp.x, pg_temp",
        "INSERT INTO temp (a) VALUES (1)",
        "INSERT INTO temp AS x VALUES (1)",
        "MERGE INTO temp USING x ON true WHEN MATCHED THEN DELETE",
        "SELECT 1 AS a INTO temp",
        "SELECT 1 AS a INTO temp FROM t",
        "CREATE TABLE temp (a int)",
        "CREATE TABLE x (a int DEFAULT currval('s'))",
        "DROP FUNCTION pg_advisory_lock(int)",
        "CREATE FUNCTION f() RETURNS bigint RETURN lastval()",
        "COPY t TO '/x'",
        "COPY (SELECT stdin FROM stdin) TO 'STDOUT'",
        "UPDATE t SET setting = (SELECT setting FROM pg_settings)",
        "SHOW x.y",
        "TRUNCATE t",
    ],
)
def test_what_only_looks_so_on_postgresql_does_not(text: str) -> None:
    statement = parse(text, "postgresql")
    assert (statement.connection_bound, statement.outlives) == (None, None)


@pytest.mark.parametrize(
    "text", ["CREATE TEMP TABLE x (a)", "ATTACH 'x' AS y", "DROP TABLE temp.x", "SELECT changes()"]
)
def test_what_outlives_a_transaction_of_sqlite_is_known_too(text: str) -> None:
    statement = parse(text)
    assert statement.connection_bound
    assert statement.outlives == (None if "changes" in text else statement.connection_bound)


@pytest.mark.parametrize(
    ("text", "pragma", "route"),
    [
        ("PRAGMA journal_mode", ("journal_mode", False), Route.READ),
        ("PRAGMA journal_mode = DELETE", ("journal_mode", True), Route.EXCLUSIVE),
        ("pragma Main . Journal_Mode(delete)", ("journal_mode", True), Route.EXCLUSIVE),
        ("PRAGMA \"main\".'journal_mode' = x", ("journal_mode", True), Route.EXCLUSIVE),
        ("PRAGMA [journal_mode] = x", ("journal_mode", True), Route.EXCLUSIVE),
        ("/**/ EXPLAIN PRAGMA journal_mode = x", ("journal_mode", True), Route.EXCLUSIVE),
        ("PRAGMA main.table_info('t')", ("table_info", False), Route.READ),
        ("PRAGMA table_info = t", ("table_info", False), Route.READ),
        ("PRAGMA synchronous", ("synchronous", False), Route.EXCLUSIVE),
        ("PRAGMA wal_checkpoint", ("wal_checkpoint", True), Route.EXCLUSIVE),
        ("PRAGMA optimize", ("optimize", True), Route.EXCLUSIVE),
        ("PRAGMA", ("", False), Route.EXCLUSIVE),
        ("PRAGMA 5", ("", False), Route.EXCLUSIVE),
        ("SELECT 1", None, Route.READ),
    ],
)
def test_a_pragma_is_known_by_its_name_and_by_whether_it_sets(
    text: str, pragma: tuple[str, bool] | None, route: Route
) -> None:
    statement = parse(text)
    assert (statement.pragma, statement.route) == (pragma, route)


@pytest.mark.parametrize(
    ("text", "transactional"),
    [
        ("VACUUM", False),
        ("vacuum INTO 'x'", False),
        ("PRAGMA user_version", False),
        ("ATTACH 'x' AS y", False),
        ("DETACH y", False),
        ("CREATE TABLE x (a)", True),
        ("SELECT 1", True),
    ],
)
def test_what_runs_outside_a_transaction_is_known(text: str, transactional: bool) -> None:
    assert parse(text).transactional is transactional


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("SELECT last_insert_rowid()", "RETURNING"),
        ("SELECT 1, LAST_INSERT_ROWID ( ) FROM t", "RETURNING"),
        ("INSERT INTO t VALUES (1, last_insert_rowid())", "RETURNING"),
        ('SELECT "changes"()', "rowcount"),
        ("SELECT total_changes/**/()", "rowcount"),
        ("SELECT lastval()", "RETURNING"),
        ("SELECT currval('s')", "RETURNING"),
        ("CREATE TEMP TABLE x (a)", "ordinary table"),
        ("create temporary view x as select 1", "ordinary table"),
        ("CREATE TABLE IF NOT EXISTS temp.x (a)", "ordinary table"),
        ("DROP TABLE [temp] . x", "ordinary table"),
        ("SELECT * FROM temp.x", "ordinary table"),
        ("SELECT * FROM t, sqlite_temp_master", "ordinary table"),
        ("ATTACH 'x' AS y", "connect"),
        ("DETACH y", "connect"),
    ],
)
def test_what_depends_on_the_connection_carries_its_remedy(text: str, remedy: str) -> None:
    assert remedy in (parse(text).connection_bound or "")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'last_insert_rowid()', changes FROM t",
        "INSERT INTO changes (a) VALUES (1)",
        "SELECT temp.x FROM readings AS temp",
        "SELECT * FROM temp",
        "SELECT 'sqlite_temp_master'",
        "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT changes(); END",
        "CREATE TABLE temporary_things (a)",
        "CREATE",
    ],
)
def test_what_only_looks_so_does_not(text: str) -> None:
    assert parse(text).connection_bound is None


# --- Binding ---------------------------------------------------------------------------------------------------------


class Mapped(dict[str, int]):
    pass


@pytest.mark.parametrize(
    ("text", "params", "bound"),
    [
        ("SELECT 1", None, ()),
        ("SELECT 1", (), ()),
        ("SELECT 1", [], ()),
        ("SELECT 1", {}, ()),
        ("SELECT ?, ?", (1, "a"), (1, "a")),
        ("SELECT ?, ?", [None, b"x"], (None, b"x")),
        ("SELECT ?, ?", UserList([1.5, 2]), (1.5, 2)),
        ("SELECT ?, ?", (True, bytearray(b"y")), (1, b"y")),
        ("SELECT ?", ("é",), ("é",)),
        ("SELECT :a, :b, :a", {"b": 1, "a": 2}, (2, 1, 2)),
        ("SELECT :a", MappingProxyType({"a": 2}), (2,)),
        ("SELECT :a", Mapped(a=2), (2,)),
    ],
)
def test_parameters_are_arranged_and_made_plain(text: str, params: Any, bound: tuple[object, ...]) -> None:
    result = parse(text).bind(params)
    assert result == bound
    assert [type(value) for value in result] == [type(value) for value in bound]
    assert type(result) is tuple


@pytest.mark.parametrize(
    ("text", "params", "said"),
    [
        ("SELECT ?", None, "takes 1 parameter, 0 given"),
        ("SELECT ?, ?", (1,), "takes 2 parameters, 1 given"),
        ("SELECT 1", (1,), "takes 0 parameters, 1 given"),
        ("SELECT ?", [1, 2], "takes 1 parameter, 2 given"),
        ("SELECT ?", {"a": 1}, "positional.*not a mapping"),
        ("SELECT :a, :b", (1, 2), r"named parameters \(:a, :b\).*not tuple"),
        ("SELECT :a", [], "not list"),
        ("SELECT :a, :b", {"a": 1}, "no value given for :b"),
        ("SELECT :a", None, "no value given for :a"),
        ("SELECT :a", {"b": 1}, "no value given for :a"),
        ("SELECT :a", {"a": 1, "b": 2}, r"no such parameters: \['b'\]; it has :a"),
        ("SELECT 1", {"b": 2}, "no such parameters.*it has none"),
        ("SELECT ?", "x", "not str"),
        ("SELECT ?", b"x", "not bytes"),
        ("SELECT ?", bytearray(b"x"), "not bytearray"),
        ("SELECT ?", 5, r"not int: write \(x,\)"),
        ("SELECT ?", {5}, "not set"),
        ("SELECT ?", iter([5]), "not list_iterator"),
        ("SELECT ?, ?", (1, object()), "parameter 2: .*object"),
        ("SELECT :a, :b", {"a": 1, "b": object()}, "parameter :b: .*object"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(text: str, params: Any, said: str) -> None:
    with pytest.raises(ProgrammingError, match=said):
        parse(text).bind(params)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, float("nan"), "a\0", "é\0", "\ud800"], ids=ascii)
def test_a_value_that_would_change_is_refused_by_the_name_of_its_parameter(value: object) -> None:
    with pytest.raises(DataError, match="parameter 2: "):
        parse("SELECT ?, ?").bind((1, value))
    with pytest.raises(DataError, match="parameter :b: "):
        parse("SELECT :a, :b").bind({"a": 1, "b": value})


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()


@unhurried
@given(st.lists(PLAIN, max_size=5))
def test_what_is_bound_is_what_sqlite_stores(database: sqlite3.Connection, values: list[object]) -> None:
    statement = parse(f"SELECT 0{', ?' * len(values)}")
    try:
        bound = statement.bind(values)
    except DataError:
        return
    assert database.execute(statement.sql, bound).fetchone()[1:] == tuple(values)


def test_looking_for_a_name_adds_nothing_to_a_defaultdict() -> None:
    params: defaultdict[str, int] = defaultdict(int, b=1)
    with pytest.raises(ProgrammingError, match="no value given for :a"):
        parse("SELECT :a").bind(params)
    assert dict(params) == {"b": 1}


def test_what_is_bound_shares_nothing_with_the_caller() -> None:
    params: list[Any] = [1, bytearray(b"x")]
    bound = parse("SELECT ?, ?").bind(params)
    params[0], params[1][:] = 2, b"y"
    assert bound == (1, b"x")


def test_ten_thousand_parameters_are_taken(database: sqlite3.Connection) -> None:
    statement = parse("SELECT ? IN (" + ",".join("?" * 9_999) + ")")
    assert statement.parameters == 10_000
    assert database.execute(statement.sql, statement.bind(range(10_000))).fetchone() == (0,)
    named = parse("SELECT :p0 IN (" + ",".join(f":p{number}" for number in range(10_000)) + ")")
    params = {f"p{number}": number for number in range(10_000)}
    assert database.execute(named.sql, named.bind(params)).fetchone() == (1,)


# --- The cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_once_prepared_no_statement_compiles_a_pattern(dialect: str) -> None:
    """Written down: sixteen threads that begin at once would each compile what the first statement needs."""
    work = f"""
import re
from safedb.sql import parse, prepare
prepare({dialect!r})
def refuse(*_):
    raise AssertionError("compiled too late")
re._compiler.compile = refuse
for sql in ("SELECT a FROM t WHERE b = ?", "INSERT INTO t VALUES (:a)", "WITH c AS (SELECT 1) SELECT 1"):
    parse(sql, {dialect!r})
"""
    subprocess.run([sys.executable, "-c", work], check=True)


def test_a_statement_is_read_once() -> None:
    assert parse("SELECT 'read once', ?") is parse("SELECT 'read once', ?")
    assert parse("SELECT ?", "postgresql") is not parse("SELECT ?")


def test_the_cache_has_a_bound_in_number_and_in_length() -> None:
    text = f"SELECT '{'x' * sql_module.CACHED_LENGTH}'"
    assert parse(text) is not parse(text)
    assert parse(text) == parse(text)
    first = parse("SELECT 'pushed out'")
    for number in range(sql_module.CACHED_STATEMENTS):
        parse(f"SELECT {number}, 'pushing'")
    assert parse("SELECT 'pushed out'") is not first


def test_postgresql_has_no_trigger_bodies() -> None:
    script = "CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f(); SELECT 1"
    assert [statement.keyword for statement in split(script, POSTGRESQL.name)] == ["CREATE", "SELECT"]
