"""What a statement is, told by its words: where it may run, and what is refused before a database sees it.

The words tell enough to send nearly every statement the right way at once. What only the database knows (a SELECT that
calls a function that writes) is learnt by the engine from its refusal, never guessed here. What is a database's own is
data (`_sqlite`, `_postgresql`): a statement that only the other one knows gets its database's own syntax error.

Everything here is pure: safe from any thread.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from safedb.errors import ProgrammingError
from safedb.lexer import POSTGRESQL, SQLITE, Dialect, Token


class Route(enum.Enum):
    """Say where a statement runs: on a reader, in the writers' queue, or alone on the writer's connection."""

    READ = "read"
    WRITE = "write"
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True, slots=True)
class Traits:
    """Hold what the words of a statement tell; the fields are those of :class:`safedb.sql.Statement`."""

    keyword: str
    route: Route
    transactional: bool
    connection_bound: str | None
    outlives: str | None
    pragma: tuple[str, bool] | None
    row: tuple[Token, Token] | None
    returning: bool


def examine(tokens: list[Token], dialect: Dialect) -> Traits:
    """Tell what one statement is, by its tokens.

    Raises ``ProgrammingError`` for what begins or ends a transaction, naming the call to use. An EXPLAIN is refused
    with what it explains: nobody means it.
    """
    vocabulary = _VOCABULARIES[dialect.name]()
    keyword, inner, outer = _keywords(tokens)
    told = " ".join([token.keyword or _sign(token) for token in outer])
    two_phase = _TWO_PHASE.match(told)
    if two_phase:
        raise ProgrammingError(f"{two_phase[1]} is safedb's to say: {_NO_TWO_PHASE}")
    for word in (keyword, inner):
        if word in _REFUSED:
            raise ProgrammingError(f"{word} is safedb's to say: {_REFUSED[word]}")
    pragma = _pragma(tokens) if vocabulary.pragmas and inner == "PRAGMA" else None
    route = _route(keyword, tokens, pragma, vocabulary)
    bonds = list(_bonds(told, keyword, tokens, vocabulary))
    return Traits(
        keyword=keyword,
        route=route,
        transactional=inner not in vocabulary.not_in_a_transaction,
        connection_bound=next((bond.remedy for bond in bonds), None),
        outlives=next((bond.remedy for bond in bonds if bond.outlives), None),
        pragma=pragma,
        returning=route is Route.WRITE and any(token.keyword == "RETURNING" for token in outer),
        row=_one_row(tokens) if keyword in {"INSERT", "REPLACE"} else None,
    )


_TRANSACTION = "use `with db.transaction() as tx:` or db.run_transaction(fn)"
_ROLLBACK = "raise an exception inside the `with db.transaction()` block, and it rolls back"
_SAVEPOINT = "use `with tx.savepoint():`"
_REFUSED = {
    "BEGIN": _TRANSACTION,
    "START": _TRANSACTION,
    "COMMIT": "leave the `with db.transaction()` block, and it commits",
    "END": "leave the `with db.transaction()` block, and it commits",
    "ROLLBACK": _ROLLBACK,
    "ABORT": _ROLLBACK,
    "SAVEPOINT": _SAVEPOINT,
    "RELEASE": _SAVEPOINT,
}
_TWO_PHASE = re.compile(r"(PREPARE TRANSACTION|COMMIT PREPARED|ROLLBACK PREPARED) '")
_NO_TWO_PHASE = "two-phase commit is not offered; a transaction ends where its `with` block does"
_READS = frozenset({"SELECT", "VALUES", "EXPLAIN", "SHOW", "TABLE"})
# They tell about the database, not about a connection: any reader gives the right answer.
_READ_PRAGMAS = frozenset(
    {
        "application_id",
        "auto_vacuum",
        "collation_list",
        "compile_options",
        "encoding",
        "foreign_key_check",
        "foreign_key_list",
        "freelist_count",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "journal_mode",
        "module_list",
        "page_count",
        "page_size",
        "pragma_list",
        "quick_check",
        "schema_version",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
    }
)
# What stands in parentheses behind these is what they are asked about, not a value to set.
_ASKING_PRAGMAS = frozenset(
    {
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
_DOING_PRAGMAS = frozenset({"incremental_vacuum", "optimize", "shrink_memory", "wal_checkpoint"})
_EXPLAIN_OPTIONS = frozenset({"QUERY", "PLAN", "ANALYZE", "ANALYSE", "VERBOSE"})
# The last six: SEARCH … BY column SET column; CYCLE column SET column TO value DEFAULT value USING column.
_BEFORE_A_NAME_IN_WITH = frozenset({"WITH", "RECURSIVE", ",", "BY", "SET", "CYCLE", "TO", "DEFAULT", "USING"})


def _keywords(tokens: list[Token]) -> tuple[str, str, list[Token]]:
    """Give the first word of the statement, and that of what an EXPLAIN explains (else the same).

    Third come the statement's tokens that stand outside parentheses, from the second of these words on.
    """
    keyword = next((token.keyword for token in tokens if token.kind != "left"), "")
    outer = list(outside_parentheses(tokens))
    if keyword != "EXPLAIN":
        return keyword, keyword, outer
    options = 1
    while options < len(outer) and (outer[options].kind != "word" or outer[options].keyword in _EXPLAIN_OPTIONS):
        options += 1
    return keyword, outer[options].keyword if options < len(outer) else "", outer[options:]


def _sign(token: Token) -> str:
    """Write what is no word in a way that cannot be taken for one."""
    return {"string": "'", "quoted": '"'}.get(token.kind, token.text)


def _route(keyword: str, tokens: list[Token], pragma: tuple[str, bool] | None, vocabulary: _Vocabulary) -> Route:
    # SQLite carries out some pragmas while it prepares them, so an EXPLAIN of one is one.
    if pragma is not None:
        name, is_setting = pragma
        return Route.READ if name in _READ_PRAGMAS and not is_setting else Route.EXCLUSIVE
    if keyword == "WITH":
        keyword = _body_of_with(tokens, vocabulary)
        return Route.WRITE if keyword in vocabulary.writes else Route.READ
    if keyword in _READS:
        return Route.READ
    return Route.WRITE if keyword in vocabulary.writes else Route.EXCLUSIVE


def _body_of_with(tokens: list[Token], vocabulary: _Vocabulary) -> str:
    """Find what a WITH does in the end: the first SELECT, INSERT … that is not a name."""
    before = ""
    for token in outside_parentheses(tokens):
        word = token.keyword
        if (word in _READS or word in vocabulary.writes) and before not in _BEFORE_A_NAME_IN_WITH:
            return word
        before = word or token.text
    return ""


def outside_parentheses(tokens: list[Token]) -> Iterator[Token]:
    """Give the tokens that stand in no parentheses, and the parentheses themselves."""
    depth = 0
    for token in tokens:
        depth -= token.kind == "right"
        if depth == 0:
            yield token
        depth += token.kind == "left"


def _one_row(tokens: list[Token]) -> tuple[Token, Token] | None:
    """Find the parentheses around the values of an INSERT of one row, of plain values, that returns nothing.

    Such statements of one text can be run as one statement of many rows, with the same effect. An expression might read
    what an earlier row has written, so only parameters and literals are plain.
    """
    start = next((i for i, token in enumerate(tokens) if token.keyword == "VALUES"), len(tokens)) + 1
    end = next((i for i, token in enumerate(tokens[start:], start) if token.kind == "right"), len(tokens))
    rest = [token.keyword or token.kind for token in tokens[end + 1 :]]
    if end == len(tokens) or tokens[start].kind != "left" or rest[:1] not in ([], ["ON"], ["semicolon"]):
        return None
    if (
        "RETURNING" in rest
        or "SELECT" in [token.keyword for token in tokens]
        or not all(map(_is_plain, tokens[start + 1 : end]))
    ):
        return None
    return tokens[start], tokens[end]


def _is_plain(token: Token) -> bool:
    return token.kind in {"positional", "number", "string"} or token.keyword == "NULL" or token.text in ",+-"


def _pragma(tokens: list[Token]) -> tuple[str, bool]:
    """Read ``PRAGMA [schema.]name [= value | (value)]``."""
    rest = tokens[1 + next(i for i, token in enumerate(tokens) if token.keyword == "PRAGMA") :]
    if len(rest) > 2 and rest[1].text == ".":
        rest = rest[2:]
    name = rest[0].name if rest else ""
    if name in _ASKING_PRAGMAS:
        return name, False
    return name, len(rest) > 1 or name in _DOING_PRAGMAS


# --- What only one connection can answer -----------------------------------------------------------------------------


class _Bond(NamedTuple):
    """Be a reason why a statement belongs to one connection.

    ``remedy`` says what to do instead of calling ``db.*``. ``outlives``: what the statement leaves on the connection
    does not end with a transaction, so that it is refused inside one too: the connection's next user would find it.
    """

    remedy: str
    outlives: bool


_IN_TX = "inside `with db.transaction() as tx:`"
_ROWID = f"ask for ids with RETURNING, or run both statements in one {_IN_TX[7:]}"
_CHANGES = f"use the result's rowcount, or run both statements in one {_IN_TX[7:]}"
TEMPORARY = "temporary objects belong to one connection, and db uses several: use an ordinary table"
ATTACHED = (
    "an attached database belongs to one connection, and a commit over two files is atomic for each alone: open it "
    "with a safedb.connect() of its own"
)
_VACUUM_INTO = (
    "it takes its name for a URI, gives the copy whatever mode the umask leaves, and may overwrite a file that this "
    "database needs: use db.backup(dest)"
)
_ON_COMMIT_DROP = f"{TEMPORARY}, or CREATE TEMP TABLE … ON COMMIT DROP {_IN_TX}"
_SETTING = (
    "it would outlive the transaction, on a connection that others use next: write SET LOCAL "
    f"{_IN_TX}, or ALTER ROLE … SET for every connection"
)
_SET_CONFIG = f"write a plain true as its third argument, {_IN_TX}: else {_SETTING}"
_FOR_ONE_TRANSACTION = f"it holds for one transaction: run it {_IN_TX}"
_STRINGS = "safedb reads SQL text with this setting on: write E'…' where backslashes are to be escapes"
_LOCK = f"the lock would end at once: take it {_IN_TX}"
_ADVISORY = (
    "the lock would outlive the transaction, on a connection that others use next: take pg_advisory_xact_lock "
    f"(pg_try_advisory_xact_lock) {_IN_TX}"
)
_NOTIFICATIONS = "notifications reach one connection, and db uses several: listen on a connection of psycopg's own"
_PREPARED = (
    "a prepared statement belongs to one connection, and db uses several: pass parameters; the driver prepares what "
    "runs often"
)
_DISCARDED = "connections are used by turns, and what they hold is the pool's to keep or discard"
_LOADED = "a library is loaded into one connection, and db uses several: set session_preload_libraries on the server"
_CURSOR = "a cursor belongs to one connection, and db uses several: use snap.iterate() of `with db.snapshot() as snap:`"
_COPY = "the COPY protocol is not offered: use executemany, or psql's \\copy"


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Hold what the words of one database's statements mean.

    ``heads`` are patterns for the words outside parentheses; the first that matches counts. Those of ``anywhere``
    are looked for in all words. ``calls`` are functions by name, ``bare_calls`` those that count without arguments
    only, ``calls_unless_true`` those that do not count where the last argument is TRUE. ``temporary_schema`` is what
    the schema of temporary objects is called; nothing else is, where it ``schema_is_reserved``.
    """

    writes: frozenset[str]
    not_in_a_transaction: frozenset[str]
    pragmas: bool
    heads: tuple[tuple[re.Pattern[str], _Bond], ...]
    anywhere: tuple[tuple[re.Pattern[str], _Bond], ...]
    calls: Mapping[str, _Bond]
    bare_calls: Mapping[str, _Bond]
    calls_unless_true: Mapping[str, _Bond]
    temporary_names: frozenset[str]
    temporary_schema: re.Pattern[str]
    schema_is_reserved: bool


@cache  # when it is first needed: the patterns take milliseconds, and most programs use one database
def _sqlite() -> _Vocabulary:
    return _Vocabulary(
        writes=frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE"}),
        not_in_a_transaction=frozenset({"VACUUM", "PRAGMA", "ATTACH", "DETACH"}),
        pragmas=True,
        heads=(
            (re.compile(r"(ATTACH|DETACH)\b"), _Bond(ATTACHED, outlives=True)),
            (re.compile(r"VACUUM\b.* INTO\b"), _Bond(_VACUUM_INTO, outlives=True)),
            (re.compile(r"CREATE (TEMP|TEMPORARY)\b"), _Bond(TEMPORARY, outlives=True)),
        ),
        anywhere=(),
        calls={"currval": _Bond(_ROWID, outlives=False)},
        bare_calls={
            "last_insert_rowid": _Bond(_ROWID, outlives=False),
            "changes": _Bond(_CHANGES, outlives=False),
            "total_changes": _Bond(_CHANGES, outlives=False),
            "lastval": _Bond(_ROWID, outlives=False),
        },
        calls_unless_true={},
        temporary_names=frozenset({"sqlite_temp_schema", "sqlite_temp_master"}),
        temporary_schema=re.compile("temp"),
        schema_is_reserved=False,
    )


@cache
def _postgresql() -> _Vocabulary:
    return _Vocabulary(
        writes=frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"}),
        not_in_a_transaction=frozenset({"VACUUM"}),
        pragmas=False,
        heads=(
            (re.compile(r"SET ((LOCAL|SESSION) )?STANDARD_CONFORMING_STRINGS\b"), _Bond(_STRINGS, outlives=True)),
            # Behind a point or a sign, LOCAL is part of a setting's name: SET local.x = 1.
            (re.compile(r'SET (LOCAL|TRANSACTION|CONSTRAINTS) [\w"]'), _Bond(_FOR_ONE_TRANSACTION, outlives=False)),
            (re.compile(r"(SET|RESET)\b"), _Bond(_SETTING, outlives=True)),
            (re.compile(r"UPDATE (ONLY )?(PG_CATALOG \. )?PG_SETTINGS\b"), _Bond(_SETTING, outlives=True)),
            (re.compile(r"LOCK\b"), _Bond(_LOCK, outlives=False)),
            (re.compile(r"(LISTEN|UNLISTEN)\b"), _Bond(_NOTIFICATIONS, outlives=True)),
            (re.compile(r"(PREPARE|EXECUTE|DEALLOCATE)\b"), _Bond(_PREPARED, outlives=True)),
            (re.compile(r"DISCARD\b"), _Bond(_DISCARDED, outlives=True)),
            (re.compile(r"LOAD\b"), _Bond(_LOADED, outlives=True)),
            (re.compile(r"(DECLARE|FETCH|MOVE|CLOSE)\b"), _Bond(_CURSOR, outlives=True)),
            (re.compile(r"COPY\b.* (FROM|TO) (STDIN|STDOUT)\b", re.DOTALL), _Bond(_COPY, outlives=True)),
            (
                re.compile(r"CREATE ((GLOBAL|LOCAL) )?(TEMP|TEMPORARY) TABLE\b.* ON COMMIT DROP\b", re.DOTALL),
                _Bond(_ON_COMMIT_DROP, outlives=False),
            ),
            (
                re.compile(r"CREATE (OR REPLACE )?((GLOBAL|LOCAL) )?(TEMP|TEMPORARY)\b"),
                _Bond(_ON_COMMIT_DROP, outlives=True),
            ),
        ),
        # Not behind INSERT INTO or MERGE INTO, and not where TEMP is the table's own name: SELECT 1 INTO temp FROM t.
        anywhere=(
            (
                re.compile(
                    r"(?<!INSERT )(?<!MERGE )\bINTO ((GLOBAL|LOCAL) )?(TEMP|TEMPORARY) (?!(EXCEPT|FETCH|FOR|FROM|GROUP"
                    r"|HAVING|INTERSECT|LIMIT|OFFSET|ORDER|UNION|WHERE|WINDOW)\b)[\w\"]"
                ),
                _Bond(TEMPORARY, outlives=True),
            ),
        ),
        calls={
            "currval": _Bond(_ROWID, outlives=False),
            **dict.fromkeys(
                [
                    "pg_advisory_lock",
                    "pg_advisory_lock_shared",
                    "pg_try_advisory_lock",
                    "pg_try_advisory_lock_shared",
                    "pg_advisory_unlock",
                    "pg_advisory_unlock_shared",
                    "pg_advisory_unlock_all",
                ],
                _Bond(_ADVISORY, outlives=True),
            ),
        },
        bare_calls={"lastval": _Bond(_ROWID, outlives=False)},
        calls_unless_true={"set_config": _Bond(_SET_CONFIG, outlives=True)},
        temporary_names=frozenset(),
        temporary_schema=re.compile("pg_temp(_[0-9]+)?"),
        schema_is_reserved=True,
    )


_VOCABULARIES = {SQLITE.name: _sqlite, POSTGRESQL.name: _postgresql}
_BEFORE_A_TABLE = frozenset({"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "VIEW", "TRIGGER", "INDEX", "EXISTS"})
# Their names and bodies call nothing now: a trigger's changes() is asked by the connection that fires it.
_DEFINES = frozenset({"CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "SECURITY"})


def _bonds(told: str, keyword: str, tokens: list[Token], vocabulary: _Vocabulary) -> Iterator[_Bond]:
    """Find all that binds a statement to one connection."""
    yield from [bond for pattern, bond in vocabulary.heads if pattern.match(told)][:1]
    if vocabulary.anywhere:
        everything = " ".join([token.keyword or _sign(token) for token in tokens])
        yield from [bond for pattern, bond in vocabulary.anywhere if pattern.search(everything)]
    texts = [token.text for token in tokens] + ["", ""]
    before = ""
    for position, token in enumerate(tokens):
        # SQLite takes a string for a name where only a name can stand: CREATE TABLE 'temp'.t.
        if token.kind in {"word", "quoted"} or (token.kind == "string" and texts[position + 1] == "."):
            after = texts[position + 1 : position + 3]
            bond = _temporary(token.name, before, after, vocabulary)
            if bond is None and after[0] == "(" and keyword not in _DEFINES:
                bond = vocabulary.calls.get(token.name)
                if bond is None and after[1] == ")":
                    bond = vocabulary.bare_calls.get(token.name)
                if bond is None and token.name in vocabulary.calls_unless_true and not _last_is_true(tokens, position):
                    bond = vocabulary.calls_unless_true[token.name]
            if bond is not None:
                yield bond
        before = token.keyword


def _temporary(name: str, before: str, after: list[str], vocabulary: _Vocabulary) -> _Bond | None:
    """Look at one name, the word in front of it and the two pieces of text behind it."""
    if name in vocabulary.temporary_names:
        return _Bond(TEMPORARY, outlives=True)
    # Anyone may call a table's alias "temp": only where a table is named is it the schema of that name.
    if (
        after[0] == "."
        and (vocabulary.schema_is_reserved or before in _BEFORE_A_TABLE)
        and vocabulary.temporary_schema.fullmatch(name)
    ):
        return _Bond(TEMPORARY, outlives=True)
    return None


def _last_is_true(tokens: list[Token], position: int) -> bool:
    """Tell whether the last argument of the call whose name is at this position is a plain TRUE."""
    depth = 0
    for place in range(position + 1, len(tokens)):
        depth += (tokens[place].kind == "left") - (tokens[place].kind == "right")
        if depth == 0:
            return tokens[place - 1].keyword == "TRUE" and tokens[place - 2].text == ","
    return False
