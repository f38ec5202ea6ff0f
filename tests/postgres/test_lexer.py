"""What the lexer says about a statement is what a PostgreSQL server understands."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pgserver import shared
from psycopg.pq import DiagnosticField, ExecStatus

from safedb.errors import ProgrammingError
from safedb.lexer import POSTGRESQL, tokenize
from safedb.sql import Route, parse, split

LONG = os.environ.get("SAFEDB_TEST_LONG") == "1"


def examples(count: int) -> settings:
    """Give the settings of a property; a busy machine is no failure."""
    return settings(
        deadline=None,
        max_examples=count * 30 if LONG else count,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large] if LONG else [],
    )


@pytest.fixture(scope="module")
def connection() -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(shared().schema(), autocommit=True, client_encoding="UTF8") as made:
        # What the engine makes sure of; the lexer relies on it.
        assert made.execute("SHOW standard_conforming_strings").fetchone() == ("on",)
        yield made


class Refusal(NamedTuple):
    """Be what the server says about a text that it does not take."""

    sqlstate: str
    message: str


def prepare(connection: psycopg.Connection[Any], sql: str) -> int | Refusal:
    """Let the server read a text, and nothing more; return how many parameters it has found.

    Of a text with two statements the protocol's Parse takes none.
    """
    with connection.lock:
        result = connection.pgconn.prepare(b"", sql.encode())
        if result.status == ExecStatus.COMMAND_OK:
            result = connection.pgconn.describe_prepared(b"")
            assert result.status == ExecStatus.COMMAND_OK
            return result.nparams
    sqlstate, message = (
        (result.error_field(field) or b"").decode()
        for field in (DiagnosticField.SQLSTATE, DiagnosticField.MESSAGE_PRIMARY)
    )
    return Refusal(sqlstate, message)


def run(connection: psycopg.Connection[Any], sql: str, values: tuple[Any, ...] = ()) -> tuple[list[str], list[Any]]:
    """Run one statement as the engine does; return the names and the values of its only row."""
    with psycopg.RawCursor(connection) as cursor:
        cursor.execute(sql.encode(), values)
        row = cursor.fetchone()
        assert cursor.description is not None
        assert row is not None
        return [column.name for column in cursor.description], list(row)


# --- Pieces of SQL, each with the value that the server must find in it ----------------------------------------------

# The marks that a careless lexer would trip over; and texts that look like pieces of their own.
MARKS = "abEuUnx01?:;'\"[]()-*/$%@#&|\\!\n\r\t é\ufeff\u3000😀"
INSIDE = st.lists(
    st.sampled_from(MARKS)
    | st.sampled_from(["--", "/*", "*/", "$$", "$a$", ":name", "?", "??", "::", "E'", "''", "\\'", "$1", 'u&"', "%s"]),
    max_size=6,
).map("".join)
GAPS = st.sampled_from(["\n", " \n ", "\r", "\t\r\n", " -- ?:a;'\n", "--\r--'\n\f", "\n\n-- $$\n "])
BLANKS = st.sampled_from(
    [" ", "\n", "\t", "\f", "/**/", "/* ?:a;'$$ */", "-- ?:a;'\n", "--\r", "/*/ ? */", "/* /* ? */ : */", "/*/**/*/"]
)
TAGS = st.sampled_from(["", "a", "_1", "é", "E", "aB2"])
Drawn = Callable[[st.SearchStrategy[Any]], Any]


def escaped(draw: Drawn, text: str) -> str:
    """Write the inside of an E'…', each character in one of the ways that there are."""
    pieces = []
    for character in text:
        ways = [f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08X}"]
        if character not in "'\\":
            ways.append(character)
        if character in "'\\":
            ways += [character * 2, "\\" + character]
        if character in "\n\r\t":
            ways.append({"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character])
        elif not character.isascii() or character in '?:;"$-/*[]() #@%!&|':
            ways.append("\\" + character)  # what is no escape stands for itself
        if character.isascii():
            ways += [f"\\x{ord(character):02x}", f"\\{ord(character):03o}"]
        pieces.append(draw(st.sampled_from(ways)))
    return "".join(pieces)


def unicode_escaped(draw: Drawn, text: str, mark: str, escape: str) -> str:
    pieces = []
    for character in text:
        ways = [f"{escape}+{ord(character):06x}"]
        if ord(character) < 0x10000:
            ways.append(f"{escape}{ord(character):04X}")
        ways.append(character * 2 if character in (mark, escape) else character)
        pieces.append(draw(st.sampled_from(ways)))
    return "".join(pieces)


def string(draw: Drawn) -> tuple[str, str]:
    text = draw(INSIDE)
    return "'" + text.replace("'", "''") + "'", text


def national(draw: Drawn) -> tuple[str, str]:
    literal, text = string(draw)
    return draw(st.sampled_from("nN")) + literal, text


def continued(draw: Drawn) -> tuple[str, str]:
    parts = [string(draw) for _ in range(draw(st.integers(2, 3)))]
    return draw(GAPS).join([literal for literal, _ in parts]), "".join([text for _, text in parts])


def escape_string(draw: Drawn) -> tuple[str, str]:
    parts = [draw(INSIDE) for _ in range(draw(st.integers(1, 3)))]
    literal = draw(GAPS).join(["'" + escaped(draw, text) + "'" for text in parts])
    return draw(st.sampled_from("eE")) + literal, "".join(parts)


def unicode_string(draw: Drawn) -> tuple[str, str]:
    text = draw(INSIDE)
    escape = draw(st.sampled_from(["\\", "!", "?", ":", ";", "$", "-"]))
    literal = "'" + unicode_escaped(draw, text, "'", escape) + "'"
    clause = "" if escape == "\\" else f"{draw(BLANKS)}uescape{draw(BLANKS)}'{escape}'"
    return draw(st.sampled_from(["u&", "U&"])) + literal + clause, text


def bits(draw: Drawn) -> tuple[str, str]:
    number = draw(st.integers(0, 255))
    return draw(st.sampled_from(["b", "B"])) + f"'{number:08b}'", f"{number:08b}"


def hexadecimal_bits(draw: Drawn) -> tuple[str, str]:
    number = draw(st.integers(0, 255))
    return draw(st.sampled_from(["x", "X"])) + f"'{number:02x}'", f"{number:08b}"


def dollar_quoted(draw: Drawn) -> tuple[str, str]:
    delimiter = f"${draw(TAGS)}$"
    text = draw(INSIDE)
    while (text + delimiter).index(delimiter) < len(text):
        text = text.replace("$", "")
    return delimiter + text + delimiter, text


LITERALS = (string, national, continued, escape_string, unicode_string, bits, hexadecimal_bits, dollar_quoted)
PLAIN: list[tuple[str, Any]] = [
    ("5", 5),
    (".5", Decimal("0.5")),
    ("2.", Decimal(2)),
    ("1.5e3", Decimal(1500)),
    ("1e+2", Decimal(100)),
    ("'7'::int", 7),
    ("'7' :: int", 7),
    ("int'7'", 7),
    ("5%3", 2),
    ("@ -5", 5),
    ("- @ -5", -5),
    ("7!=3", True),
    ("2*-3", -6),
    ("2*/* ? */3", 6),
    ("2-- ?\n-3", -1),
    ("make_date(year:=2020,month =>1, day := 2)", datetime.date(2020, 1, 2)),
    ("(ARRAY[10,20,30])[1:2]", [10, 20]),
    ("(ARRAY[10,20,30])[:2]", [10, 20]),
    ("(ARRAY[10,20,30])[2:]", [20, 30]),
    ("(ARRAY[10,20,30])[:]", [10, 20, 30]),
    ("(ARRAY[10,20,30])['1'::int:2]", [10, 20]),
    ("(SELECT a[x:y] FROM (SELECT ARRAY[10,20,30] AS a, 1 AS x, 2 AS y) AS s)", [10, 20]),
    ('(SELECT a["x":b[1]] FROM (SELECT ARRAY[10,20,30] AS a, 1 AS x, ARRAY[2] AS b) AS s)', [10, 20]),
    ("(SELECT a[b[1]:y] FROM (SELECT ARRAY[10,20,30] AS a, ARRAY[1] AS b, 2 AS y) AS s)", [10, 20]),
    ("(SELECT a[(x):y] FROM (SELECT ARRAY[10,20,30] AS a, 1 AS x, 2 AS y) AS s)", [10, 20]),
    ("(SELECT a$b$c$b$ FROM (SELECT 3 AS a$b$c$b$) AS s)", 3),
    ("(SELECT é$1 FROM (SELECT 4 AS é$1) AS s)", 4),
    ("(SELECT e FROM (SELECT 'x' AS e) AS s)", "x"),
]
# The operators that are written with one question mark where there is no safedb.
DOUBLED: list[tuple[str, Any]] = [
    ("""'{"a":1}'::jsonb??'a'""", True),
    ("""'{"a":1}'::jsonb ??| ARRAY['b']""", False),
    ("""'{"a":1}'::jsonb??&ARRAY['a']""", True),
    ("""'[1]'::jsonb @?? '$[*] ? (@ > 0)'""", True),
    ("""'[1]'::jsonb@??'$[*] ? (@ > 1)'""", False),
    ("point '(0,1)' ??| point '(0,2)'", True),
    ("point '(0,1)' ??-/**/point '(2,1)'", True),
    ("lseg '(0,0),(0,1)' ??-| lseg '(0,0),(1,0)'", True),
    ("lseg '(0,0),(0,1)' ??|| lseg '(1,0),(1,1)'", True),
    ("lseg '(0,0),(0,1)'??#lseg '(-1,0),(1,0)'", True),
]
# With parameters: ~ stands for one, and the values are what is passed.
WITH_PARAMETERS: list[tuple[str, list[Any], Any]] = [
    ("~", ["text ? :a $1"], "text ? :a $1"),
    ("~", [70_000], 70_000),
    ("~::int", ["12"], 12),
    ("~ ::int", ["13"], 13),
    ("CAST(~AS int)", ["14"], 14),
    ("-~::int", ["15"], -15),
    ("@~::int", [-16], 16),
    ("5%~::int", [3], 2),
    ("5+~::int", [3], 8),
    ("~::int-~::int", [5, 7], -2),
    ("~::int--?:a\n+~::int", [5, 7], 12),
    ("~::int/*?:a*/+/*?*/~::int", [5, 8], 13),
    ("E'\\''||~::text||$$?:a$$", ["x"], "'x?:a"),
    ("'?\\'||~::text", ["x"], "?\\x"),
    ("U&'?:'||~::text", ["y"], "?:y"),
    ("(ARRAY[10,20,30])[~:~]", [1, 2], [10, 20]),
    ("(ARRAY[10,20,30])[~ : ~]", [2, 3], [20, 30]),
    ("(ARRAY[10,20,30])[~::int:2]", [1], [10, 20]),
    ("(ARRAY[10,20,30])[:~]", [2], [10, 20]),
    ("(ARRAY[10,20,30])[~:]", [3], [30]),
    ("(ARRAY[10,20,30])[1:~]", [2], [10, 20]),
    ("(ARRAY[~::int,~::int])[1:2]", [3, 4], [3, 4]),
    ("(SELECT a[b[~]:y] FROM (SELECT ARRAY[10,20,30] AS a, ARRAY[1] AS b, 2 AS y) AS s)", [1], [10, 20]),
    ("make_date(year:=~,month =>~, day := 2)", [2020, 1], datetime.date(2020, 1, 2)),
    ("""'{"a":1}'::jsonb ?? ~""", ["a"], True),
    ("""'{"a":1}'::jsonb??~""", ["b"], False),
    ("""~::jsonb??&~::text[]""", ['{"a":1}', ["a"]], True),
    ("~::jsonb@??'$[*] ? (@ > 0)'", ["[1]"], True),
    ("~::jsonb@??~::jsonpath", ["[1]", "$[*] ? (@ > 0)"], True),
    ("~::jsonb@>~::jsonb", ["[1, 2]", "[2]"], True),
    ("(SELECT x FROM (VALUES (1),(2),(3)) AS v(x)ORDER BY x LIMIT~OFFSET~)", [1, 2], 3),
    ("(SELECT 5 WHERE~::int IN(~,~)AND~)", [1, 1, 2, True], 5),
    ("CASE WHEN~THEN~::int ELSE~::int END", [True, 1, 2], 1),
    ("x'0F'::int+~::int", [1], 16),
    ("1.5*~::numeric", [2], Decimal("3.0")),
]
NAMES = st.sampled_from(["a", "b", "c1", "_d", "größe", "E", "END", "e$f", "U", "\ufb01", "\ufeff"])
FIRST_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789$"


class Piece(NamedTuple):
    """Be an expression of a SELECT's list: its text for safedb, the values of its parameters, and its own value."""

    text: str
    arguments: list[tuple[str, Any]]
    value: Any


def piece(draw: Drawn, named: bool, number: int) -> Piece:
    """Draw the piece of this number; ``named`` says how its parameters are written."""
    kind = draw(st.sampled_from(["literal", "literal", "plain", "doubled", "parameters", "parameters"]))
    if kind == "literal":
        text, value = draw(st.sampled_from(LITERALS))(draw)
        return Piece(text, [], value)
    if kind in {"plain", "doubled"}:
        text, value = draw(st.sampled_from(PLAIN if kind == "plain" else DOUBLED))
        return Piece(text, [], value)
    template, values, value = draw(st.sampled_from(WITH_PARAMETERS))
    text, *rest = template.split("~")
    arguments = []
    for place, after in enumerate(rest):
        name = f"{draw(NAMES)}_{number}_{place}"
        arguments.append((name, values[place]))
        if named:
            # A name ends where it is seen to end; and two colons would be a cast.
            text += " " * text.endswith(":") + f":{name}" + " " * after.startswith(tuple(FIRST_LETTERS)) + after
        else:
            text += "?" + after
    return Piece(text, arguments, value)


def aliased(draw: Drawn) -> tuple[str, str]:
    text = "n" + draw(INSIDE)
    if draw(st.booleans()):
        return '"' + text.replace('"', '""') + '"', text
    escape = draw(st.sampled_from(["\\", "!", "?"]))
    clause = "" if escape == "\\" else f" UESCAPE '{escape}'"
    return 'U&"' + unicode_escaped(draw, text, '"', escape) + '"' + clause, text


def select(draw: Drawn, pieces: list[Piece]) -> tuple[str, list[str]]:
    """Write a SELECT of pieces; give its text, and the names of its columns."""
    texts, names = [], []
    for each in pieces:
        before = draw(BLANKS)
        if not each.text.startswith(tuple(FIRST_LETTERS)) and each.text.isascii() and draw(st.booleans()):
            before = ""
        alias, name = aliased(draw)
        texts.append(f"{before}{each.text}{draw(BLANKS)}AS{draw(BLANKS)}{alias}")
        names.append(name)
    end = draw(st.sampled_from(["", ";", " ; -- ?", ";/* ; */", "\n--;\r"]))
    return f"SELECT{','.join(texts)}{end}", names


@examples(100)
@given(data=st.data(), named=st.booleans())
def test_the_server_sees_the_same_parameters_and_the_same_values(
    connection: psycopg.Connection[Any], data: st.DataObject, named: bool
) -> None:
    pieces = [piece(data.draw, named, number) for number in range(data.draw(st.integers(1, 5)))]
    sql, names = select(data.draw, pieces)
    arguments = [argument for each in pieces for argument in each.arguments]
    statement = parse(sql, "postgresql")
    assert statement.parameters == len(arguments)
    assert statement.order == (tuple(name for name, _ in arguments) if named else ())
    assert prepare(connection, statement.sql) == len(arguments)
    found = run(connection, statement.sql, tuple(value for _, value in arguments))
    assert found == (names, [each.value for each in pieces])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("template", "values", "value"), WITH_PARAMETERS)
def test_each_way_to_write_a_parameter(
    connection: psycopg.Connection[Any], template: str, values: list[Any], value: Any, named: bool
) -> None:
    text, *rest = template.split("~")
    for number, after in enumerate(rest):
        gap = " " * (named and text.endswith(":"))
        name = f":x{number}" + " " * after.startswith(tuple(FIRST_LETTERS)) if named else "?"
        text += gap + name + after
    statement = parse(f"SELECT {text}", "postgresql")
    assert run(connection, statement.sql, tuple(values))[1] == [value]


@pytest.mark.parametrize(("text", "value"), PLAIN + DOUBLED)
def test_each_expression_without_parameters(connection: psycopg.Connection[Any], text: str, value: Any) -> None:
    statement = parse(f"SELECT {text}", "postgresql")
    assert statement.sql == f"SELECT {text}".replace("??", "?")
    assert statement.parameters == 0
    assert run(connection, statement.sql)[1] == [value]


@examples(60)
@given(data=st.data())
def test_a_text_without_parameters_reaches_the_server_as_it_is(
    connection: psycopg.Connection[Any], data: st.DataObject
) -> None:
    literals = [data.draw(st.sampled_from(LITERALS))(data.draw) for _ in range(data.draw(st.integers(1, 5)))]
    sql, names = select(data.draw, [Piece(text, [], value) for text, value in literals])
    statement = parse(sql, "postgresql")
    assert (statement.sql, statement.parameters) == (sql, 0)
    assert run(connection, sql) == (names, [value for _, value in literals])


def test_a_name_that_comes_twice_is_one_value(connection: psycopg.Connection[Any]) -> None:
    statement = parse("SELECT :a::text, :b::text || :a::text", "postgresql")
    assert statement.names == ("a", "b")
    assert run(connection, statement.sql, ("x", "y"))[1] == ["x", "yx"]


# --- What ends, and what does not ------------------------------------------------------------------------------------

SOUP = st.lists(
    st.sampled_from(["'", '"', "$$", "$a$", "$b$", "$", "E'", "e'", "U&'", 'U&"', "N'", "b'", "X'", "\\", "\\'", "''"])
    | st.sampled_from(["--", "/*", "*/", "/", "*", "\n", "\r", "\t", " ", "-", "+", "@", "?", "??", ":", "::", ":a"])
    | st.sampled_from(["a", "E", "e", "é", "_1", "1", "0", "1.", ".5", "1e", "=", "<", "|", "#", "\ufeff", "'a'\n'"]),
    max_size=12,
).map("".join)


def scan(connection: psycopg.Connection[Any], text: str) -> str:
    """Let the server's own lexer cut a text into tokens; return its complaint, which is empty where there is none.

    PL/pgSQL reads an expression token by token, and looks at its grammar when it is first run.
    """
    body = f"BEGIN IF false THEN PERFORM 1 {text}\n; END IF; END"
    try:
        connection.execute(f"SET check_function_bodies = off; DO $the_body_${body}$the_body_$".encode())
    except psycopg.Error as error:
        return error.diag.message_primary or ""
    return ""


@examples(300)
@given(SOUP)
@example("E'a'\n'\\''")
@example("E'a' 'b\\'")
@example("E'a' -- '\n'\\'")
@example("E'a' /**/\n'\\'")
@example("1$$'$$")
@example("a$$'$$")
@example("1E'\\'")
@example("\ufeffE'\\'")
@example("/*/**/")
@example("$a$ $b$a$")
@example("$é$ ' $é$")
@example("$1$a$")
@example("U&'\\'")
def test_what_never_ends_is_refused_exactly_when_the_server_finds_no_end(
    connection: psycopg.Connection[Any], text: str
) -> None:
    complaint = scan(connection, text)
    try:
        tokenize(text + "\n", POSTGRESQL)
    except ProgrammingError as error:
        assume("never ends" in str(error))  # and not a parameter that is not ours
        ends = False
    else:
        ends = True
    if "unterminated" in complaint:
        assert not ends
    elif not complaint:
        assert ends
    if not ends:
        assert complaint
        assert isinstance(prepare(connection, text + "\n"), Refusal)


# --- How many parameters, and how many statements --------------------------------------------------------------------


def expressions(parameter: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Write expressions of text, with as little between their parts as may be."""
    atoms = parameter.map(lambda text: text + "::text") | st.sampled_from(
        [
            "'?'",
            "E'\\'?'",
            "$$?:a$$",
            "$a$?$$$a$",
            "x",
            '"y?"',
            "U&'?'",
            "'a'\n'?'",
            "/*?*/'z'",
            "--?:a\n'z'",
            "1::text",
        ]
    )
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["||", " || ", "||\n", "|| -- ?\n"]), inner).map("".join),
            inner.map(lambda text: f"({text})"),
            inner.map(lambda text: f"(ARRAY[{text},'?'])[1:2]::text"),
            inner.map(lambda text: f"(ARRAY[{text}])[ :1]::text"),
            st.tuples(inner, inner).map(lambda texts: f"CASE WHEN({texts[0]})<>{texts[1]} THEN({texts[1]})END"),
            inner.map(lambda text: f"lower({text})"),
            inner.map(lambda text: f"(to_jsonb({text}::text)??'a')::text"),
        ),
        max_leaves=6,
    )


@examples(50)
@given(data=st.data(), named=st.booleans())
def test_the_server_counts_as_many_parameters(
    connection: psycopg.Connection[Any], data: st.DataObject, named: bool
) -> None:
    parameter = st.sampled_from([":a", ":b$1", ":é", ":E"] if named else ["?"])
    text = data.draw(expressions(parameter))
    statement = parse(f"SELECT {text} FROM (SELECT 'x' AS x, 'y' AS \"y?\") AS s", "postgresql")
    assert prepare(connection, statement.sql) == statement.parameters


TOKENS = st.lists(
    st.sampled_from(["?", "?", ":a", ":b", "??", "::int", "::text", ":", "::", ":=", "=>", "1", "1.5", ".", "a", "'x'"])
    | st.sampled_from(["(", ")", "[", "]", ",", "*", "-", "+", "=", "@", "|", "AS", "AND", "NOT", "END", "NULL", '"q"'])
    | st.sampled_from(
        [" ", "\n", "--\n", "/**/", "E'\\''", "$$;$$", "';'", ";", "; SELECT 1", "U&'x'", "x'1'", "\ufeff"]
    ),
    max_size=8,
).map("".join)


@examples(300)
@given(TOKENS)
@example("1;SELECT 2")
@example("(1;SELECT 2)")
@example("?::int+?::int")
@example("(ARRAY[1])[:a::int:2]")
def test_what_is_taken_for_one_statement_is_one(connection: psycopg.Connection[Any], text: str) -> None:
    try:
        statement = parse(f"SELECT {text}", "postgresql")
    except ProgrammingError:
        return
    answer = prepare(connection, statement.sql)
    if isinstance(answer, Refusal):
        assert "unterminated" not in answer.message
        assert "multiple commands" not in answer.message
        assert "there is no parameter" not in answer.message
    else:
        assert answer == statement.parameters


BODIES = [
    "SELECT 1",
    "SELECT",
    "SELECT 1 end",
    "SELECT 1 AS end",
    "SELECT 1 case",
    "SELECT CASE 1 WHEN 1 THEN 2 END",
    "SELECT CASE WHEN true THEN CASE 1 WHEN 2 THEN 3 END END AS begin",
    "INSERT INTO log VALUES ('END;')",
    "SELECT 1 AS atomic",
    "/* END; */ SELECT 'a' -- ; END;\n",
]
FUNCTION_BODIES = st.lists(st.sampled_from(BODIES), max_size=4).map(
    lambda bodies: "BEGIN ATOMIC " + "".join([body + ";" for body in bodies]) + " END"
)
STATEMENTS = st.one_of(
    FUNCTION_BODIES.map(lambda body: f"CREATE FUNCTION f(begin int, atomic int) RETURNS SETOF int {body}"),
    FUNCTION_BODIES.map(lambda body: f"create or replace procedure p() LANGUAGE sql {body}"),
    st.lists(st.sampled_from(["DELETE FROM log", "INSERT INTO log VALUES (';')", "NOTIFY x"]), min_size=1).map(
        lambda actions: f"CREATE RULE r AS ON INSERT TO log DO ALSO ({'; '.join(actions)})"
    ),
    st.sampled_from(
        [
            "SELECT 1",
            "CREATE FUNCTION f() RETURNS int RETURN 1",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$SELECT 1; SELECT 2;$$",
            "DO $a$ BEGIN PERFORM 1; END $a$",
            "CREATE TRIGGER x AFTER INSERT ON log EXECUTE FUNCTION f()",
            "SELECT 1 AS begin, 2 AS atomic",
            "INSERT INTO log VALUES ('a;b'), (E'\\';'), (\";\")",
        ]
    ),
)


@examples(100)
@given(st.lists(STATEMENTS, min_size=1, max_size=4), st.sampled_from(["", ";", "; -- ;\n"]))
def test_a_script_is_cut_where_the_server_cuts_it(
    connection: psycopg.Connection[Any], statements: list[str], end: str
) -> None:
    found = [statement.source for statement in split(" ;; ".join(statements) + end, "postgresql")]
    assert found == [tidy(statement) for statement in statements]
    for source in found:
        answer = prepare(connection, source)
        # Its grammar is right, and it is one statement: what is wrong, if anything, is found later.
        assert not isinstance(answer, Refusal) or answer.sqlstate in {"42P01", "42703"}, answer


def tidy(text: str) -> str:
    """Leave out what stands behind the last token."""
    return text[: tokenize(text, POSTGRESQL)[-1].end]


SCRIPT = """
CREATE TABLE log (text text DEFAULT 'a;b');;
CREATE TABLE t (id int);
CREATE FUNCTION twice(x int) RETURNS SETOF int BEGIN ATOMIC
    SELECT CASE x WHEN 1 THEN 10 ELSE 20 END; -- END;
    SELECT x end;
END;
CREATE FUNCTION one() RETURNS int RETURN 1;
CREATE PROCEDURE nothing() BEGIN ATOMIC END;
create or replace function noted() returns trigger language plpgsql as $body$
begin insert into log values ('noted; END;'); return new; end; $body$;
CREATE TRIGGER noting BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION noted();
CREATE RULE "BEGIN" AS ON DELETE TO t DO ALSO (INSERT INTO log VALUES ('gone;'); INSERT INTO log VALUES (E'\\';'));
INSERT INTO t SELECT twice(3);
DELETE FROM t -- and no semicolon at the end
"""


def test_a_script_does_statement_by_statement_what_the_server_makes_of_the_whole() -> None:
    results = []
    for whole in (True, False):
        with psycopg.connect(shared().schema(), autocommit=True) as made:
            if whole:
                made.execute(SCRIPT.encode())
            else:
                for statement in split(SCRIPT, "postgresql"):
                    run_alone(made, statement.sql)
            results.append(
                (
                    made.execute("SELECT text FROM log").fetchall(),
                    made.execute("SELECT twice(1)").fetchall(),
                    made.execute(
                        "SELECT proname, prosrc, prosqlbody IS NULL FROM pg_proc "
                        "WHERE pronamespace = current_schema()::regnamespace ORDER BY 1"
                    ).fetchall(),
                )
            )
    assert results[0] == results[1]
    assert results[0][0] == [("noted; END;",), ("gone;",), ("';",)]
    assert len(split(SCRIPT, "postgresql")) == 10


def run_alone(connection: psycopg.Connection[Any], sql: str) -> None:
    with connection.lock:
        result = connection.pgconn.exec_params(sql.encode(), None)
    assert result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK), result.error_message


# --- Routes ----------------------------------------------------------------------------------------------------------

ROUTES = {
    "SELECT a FROM t": Route.READ,
    "(SELECT 1) UNION (SELECT 2)": Route.READ,
    "VALUES (1)": Route.READ,
    "TABLE t": Route.READ,
    "SHOW TimeZone": Route.READ,
    "EXPLAIN INSERT INTO t VALUES (1)": Route.READ,
    "EXPLAIN (ANALYZE, COSTS OFF) SELECT 1": Route.READ,
    "WITH x AS (SELECT 1) TABLE x": Route.READ,
    "WITH insert AS (SELECT 1) SELECT 1 FROM insert": Route.READ,
    "WITH RECURSIVE x(update) AS (SELECT 1 UNION ALL SELECT update + 1 FROM x WHERE update < 3) "
    "SEARCH DEPTH FIRST BY update SET delete SELECT 1 FROM x": Route.READ,
    "INSERT INTO t VALUES (1)": Route.WRITE,
    "UPDATE t SET a = 1": Route.WRITE,
    "DELETE FROM t": Route.WRITE,
    "MERGE INTO t USING t AS s ON t.a = s.a WHEN MATCHED THEN DELETE": Route.WRITE,
    "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x": Route.WRITE,
    "WITH RECURSIVE x(update) AS (SELECT 1 UNION ALL SELECT update + 1 FROM x WHERE update < 3) "
    "CYCLE update SET insert TO 1 DEFAULT 0 USING merge DELETE FROM t USING x WHERE a = update": Route.WRITE,
    "CREATE TABLE u (a int)": Route.EXCLUSIVE,
    "TRUNCATE t": Route.EXCLUSIVE,
    "DROP TABLE t": Route.EXCLUSIVE,
    # What its first word does not tell is learnt from the refusal.
    "SELECT a FROM t FOR UPDATE": Route.READ,
    "SELECT 1 AS a INTO u": Route.READ,
    "WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x": Route.READ,
    "EXPLAIN ANALYZE DELETE FROM t": Route.READ,
}
LEARNT = frozenset(list(ROUTES)[-4:])


@pytest.mark.parametrize("text", ROUTES)
def test_the_server_agrees_with_the_route(text: str) -> None:
    """A read-only session takes what is routed to one, and refuses what is not."""
    statement = parse(text, "postgresql")
    assert statement.route is ROUTES[text]
    with psycopg.connect(shared().schema(), autocommit=True) as made:
        made.execute("CREATE TABLE t (a int)")
        made.read_only = True
        made.autocommit = False
        if statement.route is Route.READ and text not in LEARNT:
            run_alone(made, statement.sql)
        else:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                made.execute(statement.sql.encode())


# Each leaves something behind on its connection: what, is told by the query.
TEMPORARIES = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"
ADVISORY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
OUTLIVING = {
    "SET x.y = 'z'": "SELECT current_setting('x.y', true)",
    "SET local.x = 'z'": "SELECT current_setting('local.x', true)",
    "SET transaction.x = 'z'": "SELECT current_setting('transaction.x', true)",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE": "SHOW default_transaction_isolation",
    "SELECT set_config('x.y', 'z', false)": "SELECT current_setting('x.y', true)",
    "UPDATE pg_settings SET setting = '77s' WHERE name = 'statement_timeout'": "SHOW statement_timeout",
    "LISTEN x": "SELECT count(*) FROM pg_listening_channels()",
    "PREPARE x AS SELECT 1": "SELECT count(*) FROM pg_prepared_statements WHERE name = 'x'",
    "DECLARE x CURSOR WITH HOLD FOR SELECT 1": "SELECT count(*) FROM pg_cursors WHERE name = 'x'",
    "SELECT pg_advisory_lock(1)": ADVISORY_LOCKS,
    "CREATE TEMP TABLE x (a int)": TEMPORARIES,
    "CREATE OR REPLACE TEMP VIEW x AS SELECT 1 AS a": TEMPORARIES,
    "SELECT 1 AS a INTO TEMP x": TEMPORARIES,
    "SELECT 1 AS a INTO LOCAL TEMPORARY TABLE x": TEMPORARIES,
    "CREATE TABLE pg_temp.x (a int)": TEMPORARIES,
    "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1 AS a": TEMPORARIES,
}
ENDING = {
    "SET LOCAL x.y = 'z'": "SELECT nullif(current_setting('x.y', true), '')",
    "SELECT set_config('x.y', 'z', true)": "SELECT nullif(current_setting('x.y', true), '')",
    "SELECT pg_advisory_xact_lock(1)": ADVISORY_LOCKS,
    "CREATE TEMP TABLE x (a int) ON COMMIT DROP": TEMPORARIES,
    "SELECT 1 AS a INTO temp FROM (SELECT) AS s": TEMPORARIES,
}


@pytest.mark.parametrize(("text", "query"), [*OUTLIVING.items(), *ENDING.items()])
def test_what_outlives_a_transaction_is_known(text: str, query: str) -> None:
    statement = parse(text, "postgresql")
    with psycopg.connect(shared().schema()) as made:
        before = made.execute(query.encode()).fetchall()
        run_alone(made, statement.sql)
        made.commit()
        left = made.execute(query.encode()).fetchall() != before
    assert left is (statement.outlives is not None) is (text in OUTLIVING)
