"""What the lexer says about a statement is what a PostgreSQL server understands."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pgserver import shared
from psycopg.pq import DiagnosticField, ExecStatus

from safedb.errors import ProgrammingError
from safedb.lexer import POSTGRESQL, tokenize
from safedb.sql import parse, split

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
        (result.error_field(field) or b"").decode() for field in (DiagnosticField.SQLSTATE, DiagnosticField.MESSAGE_PRIMARY)
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
    | st.sampled_from(["--", "/*", "*/", "$$", "$a$", ":name", "?", "??", "::", "E'", "''", "\\'", "$1", "u&\"", "%s"]),
    max_size=6,
).map("".join)
GAPS = st.sampled_from(["\n", " \n ", "\r", "\t\r\n", " -- ?:a;'\n", "--\r--'\n\f", "\n\n-- $$\n "])
BLANKS = st.sampled_from(
    [" ", "\n", "\t", "\f", "/**/", "/* ?:a;'$$ */", "-- ?:a;'\n", "--\r", "/*/ ? */ */", "/* /* ? */ : */", "/*/**/*/"]
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
        elif not character.isascii() or character in "?:;\"$-/*[]() #@%!&|":
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
    return draw(st.sampled_from([(f"b'{number:08b}'", f"{number:08b}"), (f"X'{number:02x}'", f"{number:08b}")]))  # type: ignore[no-any-return]


def dollar_quoted(draw: Drawn) -> tuple[str, str]:
    delimiter = f"${draw(TAGS)}$"
    text = draw(INSIDE)
    while (text + delimiter).index(delimiter) < len(text):
        text = text.replace("$", "")
    return delimiter + text + delimiter, text


LITERALS = (string, national, continued, escape_string, unicode_string, bits, dollar_quoted)
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
    ("@-5", 5),
    ("-@-5", -5),
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
# With parameters: P stands for one, and the values are what is passed.
WITH_PARAMETERS: list[tuple[str, list[Any], Any]] = [
    ("P", ["text ? :a $1"], "text ? :a $1"),
    ("P", [70_000], 70_000),
    ("P::int", ["12"], 12),
    ("P ::int", ["13"], 13),
    ("CAST(P AS int)", ["14"], 14),
    ("-P::int", ["15"], -15),
    ("@P::int", [-16], 16),
    ("5%P::int", [3], 2),
    ("5+P::int", [3], 8),
    ("P::int-P::int", [5, 7], -2),
    ("P::int--P\n+P::int", [5, 7], 12),
    ("P::int/*P*/+/*P*/P::int", [5, 8], 13),
    ("E'\\''||P::text||$$P$$", ["x"], "'xP"),
    ("'P'||P::text", ["x"], "Px"),
    ("U&'P'||P::text", ["y"], "Py"),
    ("(ARRAY[10,20,30])[P:P]", [1, 2], [10, 20]),
    ("(ARRAY[10,20,30])[P : P]", [2, 3], [20, 30]),
    ("(ARRAY[10,20,30])[P::int:2]", [1], [10, 20]),
    ("(ARRAY[10,20,30])[:P]", [2], [10, 20]),
    ("(ARRAY[10,20,30])[P:]", [3], [30]),
    ("(ARRAY[10,20,30])[1:P]", [2], [10, 20]),
    ("(ARRAY[P::int,P::int])[1:2]", [3, 4], [3, 4]),
    ("(SELECT a[b[P]:y] FROM (SELECT ARRAY[10,20,30] AS a, ARRAY[1] AS b, 2 AS y) AS s)", [1], [10, 20]),
    ("make_date(year:=P,month =>P, day := 2)", [2020, 1], datetime.date(2020, 1, 2)),
    ("""'{"a":1}'::jsonb ?? P""", ["a"], True),
    ("""'{"a":1}'::jsonb???""", ["b"], False),
    ("""P::jsonb??&P::text[]""", ['{"a":1}', ["a"]], True),
    ("P::jsonb@??'$[*] ? (@ > 0)'", ["[1]"], True),
    ("P::jsonb@>P::jsonb", ["[1, 2]", "[2]"], True),
    ("(SELECT x FROM (VALUES (1),(2),(3)) AS v(x)ORDER BY x LIMIT P OFFSET P)", [1, 2], 3),
    ("(SELECT 5 WHERE P::int IN(P,P)AND P)", [1, 1, 2, True], 5),
    ("CASE WHEN P THEN P::int ELSE P::int END", [True, 1, 2], 1),
    ("x'0F'::int+P::int", [1], 16),
    ("1.5*P::numeric", [2], Decimal("3.0")),
]
NAMES = st.sampled_from(["a", "b", "c1", "_d", "größe", "E", "END", "e$f", "U", "ﬁ"])


class Piece(NamedTuple):
    """Be an expression of a SELECT's list: its text for safedb, the values of its parameters, and its own value."""

    text: str
    arguments: list[tuple[str, Any]]
    value: Any


def written(draw: Drawn, names: Iterator[str] | None) -> Piece:
    """Draw a piece; parameters are named where there are names, which never run out."""
    kind = draw(st.sampled_from(["literal", "literal", "plain", "doubled", "parameters", "parameters"]))
    if kind == "literal":
        text, value = draw(st.sampled_from(LITERALS))(draw)
        return Piece(text, [], value)
    if kind in {"plain", "doubled"}:
        text, value = draw(st.sampled_from(PLAIN if kind == "plain" else DOUBLED))
        return Piece(text, [], value)
    template, values, value = draw(st.sampled_from(WITH_PARAMETERS))
    arguments = []
    # A P that is a parameter has no letter beside it, and stands in no string and no comment.
    text, done = "", 0
    for token in tokenize(template.replace("???", "??P"), POSTGRESQL):
        source = template.replace("???", "??P")
        if token.text == "P" and token.kind == "word":
            name = next(names) if names is not None else ""
            arguments.append((name, values[len(arguments)]))
            # Right behind its lower bound, a slice's colon is no parameter's.
            apart = " " if names is not None and text.endswith(":") and not text.endswith("[:") else ""
            text += source[done : token.start] + apart + (f":{name}" if names is not None else "?")
            done = token.end
    assert len(arguments) == len(values)
    return Piece(text + source[done:], arguments, value)


