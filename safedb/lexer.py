"""SQL text in pieces: the one place that knows where a string, a comment or a parameter begins and ends.

Both dialects are read by the same loop; what differs between them is data (:data:`SQLITE`, :data:`POSTGRESQL`). The
rules are those of the databases' own tokenizers: https://www.sqlite.org/lang_expr.html and
https://www.postgresql.org/docs/current/sql-syntax-lexical.html. Where a database forgives what is most likely a mistake
(SQLite: a comment that never ends), we do not.

Everything here is pure: no state, safe from any thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from safedb.errors import ProgrammingError


@dataclass(frozen=True, slots=True)
class Dialect:
    """Hold what one database's SQL text has of its own."""

    name: str
    identifier_quotes: str  # the marks around a quoted identifier; doubled inside, they stand for themselves
    bracket_identifiers: bool  # [name] is an identifier; else brackets are subscripts, and a colon in them a slice
    blanks: str
    line_comment_end: str  # the characters that end a -- comment
    nested_comments: bool
    escape_strings: bool  # E'...' with backslashes, and $tag$...$tag$
    number_tail: str  # a pattern: what makes a number one piece of nonsense with what stands right behind it
    foreign_parameters: str  # a pattern: the database's own parameter styles, which safedb does not take
    question_operator: bool  # ?? stands for an operator with a question mark
    reuses_values: bool  # a name that comes twice is one value: $1; else each placeholder, ?, has a value of its own
    holds_statements: re.Pattern[str]  # the words outside parentheses that begin what holds statements, up to an END
    semicolons_in_parentheses: bool  # CREATE RULE has them: DO ALSO (…; …); else a semicolon ends a statement anywhere

    def placeholder(self, number: int) -> str:
        """Write the placeholder of the value of this number; the first is 1."""
        return f"${number}" if self.reuses_values else "?"


# Of both databases: whatever is not ASCII belongs to a name. That includes letters, and what Unicode calls blanks.
_NAME_START = r"A-Za-z_\u0080-\U0010ffff"
_NAME_REST = _NAME_START + r"0-9$"

SQLITE = Dialect(
    name="sqlite",
    identifier_quotes='"`',
    bracket_identifiers=True,
    blanks=r" \t\n\r\f\v\ufeff",
    line_comment_end=r"\n",
    nested_comments=False,
    escape_strings=False,
    number_tail=rf"[{_NAME_REST}]++",
    foreign_parameters=rf"[@$#][{_NAME_REST}]++|:[0-9$][{_NAME_REST}]*+",
    question_operator=False,
    # SQLite has ?1 too, but sqlite3 of Python 3.12.0 to 3.12.3 takes it for a name and warns (CPython's gh-117995).
    reuses_values=False,
    holds_statements=re.compile(r"(EXPLAIN (QUERY PLAN )?)?CREATE (TEMP |TEMPORARY )?TRIGGER\b"),
    semicolons_in_parentheses=False,
)
POSTGRESQL = Dialect(
    name="postgresql",
    identifier_quotes='"',
    bracket_identifiers=False,
    blanks=r" \t\n\r\f\v",  # a byte order mark belongs to a name there; \v is a blank from PostgreSQL 16 on
    line_comment_end=r"\n\r",
    nested_comments=True,
    escape_strings=True,
    number_tail=rf"[{_NAME_START}][{_NAME_REST}]*+",  # behind 1, $$ begins a string, and $1 is a parameter
    foreign_parameters=r"\$[0-9]++",
    question_operator=True,
    reuses_values=True,
    holds_statements=re.compile(r"CREATE (OR REPLACE )?(FUNCTION|PROCEDURE)\b.* BEGIN ATOMIC\b"),
    semicolons_in_parentheses=True,
)
DIALECTS = {dialect.name: dialect for dialect in (SQLITE, POSTGRESQL)}


class Token(NamedTuple):
    """Be one piece of SQL text that is neither blank nor comment.

    ``kind`` is one of ``word``, ``quoted`` (an identifier in quotes), ``string``, ``number``, ``positional`` (``?``),
    ``named`` (``:name``), ``doubled`` (``??``), ``semicolon``, ``left`` and ``right`` (parentheses), ``other``.
    """

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """Give the offset of the first character behind the token."""
        return self.start + len(self.text)

    @property
    def keyword(self) -> str:
        """Give the word in upper case; nothing where the token is no word."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def name(self) -> str:
        """Give the name that a word or a quoted identifier spells, in lower case."""
        if self.kind == "word":
            return self.text.lower()
        # SQLite takes a string for a name where only a name can stand: PRAGMA 'user_version'.
        if self.kind not in {"quoted", "string"}:
            return ""
        mark = self.text[0]
        return self.text[1:-1].replace(mark * 2, mark).lower()


def tokenize(sql: str, dialect: Dialect) -> list[Token]:
    """Cut SQL text into tokens, leaving out blanks and comments.

    Raises ``ProgrammingError`` for what never ends (a string, a quoted name, a comment), for NUL and lone surrogates,
    and for the parameter styles that are not ours.
    """
    refuse_unprintable(sql)
    match = _pattern(dialect).match
    tokens: list[Token] = []
    position, depth, length = 0, 0, len(sql)
    while position < length:
        found = match(sql, position)
        if found is None or found.lastgroup is None:  # the last alternative takes any character
            raise AssertionError(f"no token at {position}")
        kind, text = found.lastgroup, found.group(found.lastgroup)
        start, position = position, found.end()
        if kind == "blank":
            continue
        if kind == "comment":
            position = _comment_end(sql, position, dialect)
            continue
        if kind == "unended":
            raise ProgrammingError(f"{text} in {place(sql, start)} opens a string, a name or a comment that never ends")
        if kind == "foreign":
            raise _foreign_parameter(sql, text, start)
        if not dialect.bracket_identifiers:
            depth += (text == "[") - (text == "]")
            if kind == "named" and _is_colon(tokens, start, in_brackets=depth > 0):
                kind, text, position = "other", ":", start + 1
        tokens.append(Token(kind, text, start))
    return tokens


def refuse_unprintable(sql: str) -> None:
    """Refuse the two characters that no database can be sent: NUL (its text would end there) and lone surrogates."""
    if "\0" in sql:
        raise ProgrammingError(f"NUL in the SQL text, in {place(sql, sql.index(chr(0)))}: pass such data as bytes")
    if sql.isascii():
        return
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise ProgrammingError(f"a lone surrogate, which is no character, in {place(sql, error.start)}") from None


def place(sql: str, offset: int) -> str:
    """Say where an offset is, the way an editor counts."""
    return f"line {sql.count(chr(10), 0, offset) + 1}, column {offset - sql.rfind(chr(10), 0, offset)}"


def _is_colon(tokens: list[Token], start: int, *, in_brackets: bool) -> bool:
    """Tell the colon of ``a[low:high]`` from that of ``a[:high]``: a slice's stands right behind its lower bound.

    Outside of brackets it is that of ``JSON_OBJECT('key':value)``. Words are left out there, for ``LIMIT:n``.
    """
    if not tokens or tokens[-1].end != start:
        return False
    return tokens[-1].kind in (_OPERANDS if in_brackets else _VALUES) or (in_brackets and tokens[-1].text == "]")


def _comment_end(sql: str, position: int, dialect: Dialect) -> int:
    start, depth = position - 2, 1
    while depth:
        found = _COMMENT_MARK.search(sql, position)
        if found is None:
            raise ProgrammingError(f"the comment that begins in {place(sql, start)} never ends")
        position = found.end()
        if found.group() == "*/":
            depth -= 1
        elif dialect.nested_comments:
            depth += 1
        else:
            position -= 1  # of "/*/" the last two characters may still end the comment
    return position


def _foreign_parameter(sql: str, text: str, start: int) -> ProgrammingError:
    return ProgrammingError(
        f"{text} in {place(sql, start)} is not a parameter of safedb: write ? (and pass a sequence) or :name (and pass "
        "a mapping)"
    )


_VALUES = frozenset({"quoted", "string", "number", "positional", "right"})
_OPERANDS = _VALUES | {"word", "named"}
_COMMENT_MARK = re.compile(r"/\*|\*/")


def _quoted(mark: str) -> str:
    # Possessive: once '' was taken as a quote inside, it may not be given back to end the string early.
    return f"{mark}[^{mark}]*+(?:{mark}{mark}[^{mark}]*+)*+{mark}"


def _escape_string() -> str:
    # A string goes on behind a line break ('a'⏎'b' is one), and what follows an E'' still knows backslashes.
    body = r"'[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+'"
    gap = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*+[\n\r])*+"
    return f"[eE]{body}(?:{gap}{body})*+(?!{gap}')"  # what goes on has to end, too


@cache  # there are two dialects
def _pattern(dialect: Dialect) -> re.Pattern[str]:
    strings, names = [_quoted("'")], [_quoted(mark) for mark in dialect.identifier_quotes]
    unended = "['" + dialect.identifier_quotes + "]"
    foreign = rf"\?[0-9]++|{dialect.foreign_parameters}"
    if dialect.bracket_identifiers:
        names.append(r"\[[^\]]*+\]")
        unended += r"|\["
    if dialect.escape_strings:
        tag = rf"\$(?:[{_NAME_START}][{_NAME_START}0-9]*+)?\$"
        strings = [_escape_string(), rf"(?P<tag>{tag}).*?(?P=tag)", *strings]
        unended += f"|[eE]'|{tag}"
    digits = r"0[xX][0-9a-fA-F]*+|[0-9][0-9_]*+(?:\.[0-9]*+)?|\.[0-9]++"
    alternatives = {
        "blank": rf"[{dialect.blanks}]++|--[^{dialect.line_comment_end}]*+",
        "comment": r"/\*",
        "string": "|".join(strings),
        "quoted": "|".join(names),
        "unended": unended,
        "word": f"[{_NAME_START}][{_NAME_REST}]*+",
        "number": rf"(?:{digits})(?:[eE][+-]?[0-9]++)?(?:{dialect.number_tail})?",
        "foreign": foreign,
        "doubled": r"\?\?",
        "positional": r"\?",
        "named": f":[{_NAME_START}][{_NAME_REST}]*+",
        "semicolon": ";",
        "left": r"\(",
        "right": r"\)",
        "other": "::|.",
    }
    return re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in alternatives.items()), re.DOTALL)
