"""What a statement is, told by its words: where it may run, and what is refused before a database sees it.

The words tell enough to send nearly every statement the right way at once. What only the database knows (a SELECT that
calls a function that writes) is learnt by the engine from its refusal, never guessed here.

Everything here is pure: safe from any thread.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from safedb.errors import ProgrammingError
from safedb.lexer import Token


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
    pragma: tuple[str, bool] | None
    row: tuple[Token, Token] | None
    returning: bool


def examine(tokens: list[Token]) -> Traits:
    """Tell what one statement is, by its tokens.

    Raises ``ProgrammingError`` for what begins or ends a transaction, naming the call to use. An EXPLAIN is refused
    with what it explains: nobody means it.
    """
    keyword, inner = _keywords(tokens)
    for word in (keyword, inner):
        if word in _REFUSED:
            raise ProgrammingError(f"{word} is safedb's to say: {_REFUSED[word]}")
    pragma = _pragma(tokens) if inner == "PRAGMA" else None
    return Traits(
        keyword=keyword,
        route=_route(keyword, tokens, pragma),
        transactional=inner not in _NOT_IN_A_TRANSACTION,
        connection_bound=_connection_bound(keyword, tokens),
        pragma=pragma,
        returning=any(token.keyword == "RETURNING" for token in _outside_parentheses(tokens)),
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
_READS = frozenset({"SELECT", "VALUES", "EXPLAIN", "SHOW", "TABLE"})
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE"})
_NOT_IN_A_TRANSACTION = frozenset({"VACUUM", "PRAGMA", "ATTACH", "DETACH"})
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
_EXPLAIN_OPTIONS = frozenset({"", "QUERY", "PLAN", "ANALYZE", "VERBOSE"})


def _keywords(tokens: list[Token]) -> tuple[str, str]:
    """Give the first word of the statement, and that of what an EXPLAIN explains (else the same)."""
    keyword = next((token.keyword for token in tokens if token.kind != "left"), "")
    if keyword != "EXPLAIN":
        return keyword, keyword
    words = (token.keyword for token in _outside_parentheses(tokens[1:]))
    return keyword, next((word for word in words if word not in _EXPLAIN_OPTIONS), "")


def _route(keyword: str, tokens: list[Token], pragma: tuple[str, bool] | None) -> Route:
    # SQLite carries out some pragmas while it prepares them, so an EXPLAIN of one is one.
    if pragma is not None:
        name, is_setting = pragma
        return Route.READ if name in _READ_PRAGMAS and not is_setting else Route.EXCLUSIVE
    if keyword == "WITH":
        keyword = _body_of_with(tokens)
        return Route.WRITE if keyword in _WRITES else Route.READ
    if keyword in _READS:
        return Route.READ
    return Route.WRITE if keyword in _WRITES else Route.EXCLUSIVE


def _body_of_with(tokens: list[Token]) -> str:
    """Find what a WITH does in the end: the first SELECT, INSERT … that is not the name of a table expression."""
    before = ""
    for token in _outside_parentheses(tokens):
        word = token.keyword
        if (word in _READS or word in _WRITES) and before not in {"WITH", "RECURSIVE", ","}:
            return word
        before = word or token.text
    return ""


def _outside_parentheses(tokens: list[Token]) -> Iterator[Token]:
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

_ROWID = "ask for ids with RETURNING, or run both statements in one `with db.transaction() as tx:`"
_CHANGES = "use the result's rowcount, or run both statements in one `with db.transaction() as tx:`"
TEMPORARY = "temporary objects belong to one connection, and db uses several: use an ordinary table"
ATTACHED = (
    "an attached database belongs to one connection, and a commit over two files is atomic for each alone: open it "
    "with a safedb.connect() of its own"
)
_NO_ARGUMENTS = {"last_insert_rowid": _ROWID, "changes": _CHANGES, "total_changes": _CHANGES, "lastval": _ROWID}
_BEFORE_A_TABLE = frozenset({"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "VIEW", "TRIGGER", "INDEX", "EXISTS"})


def _connection_bound(keyword: str, tokens: list[Token]) -> str | None:
    """Say what to do instead, where another connection would give another answer."""
    if keyword in {"ATTACH", "DETACH"}:
        return ATTACHED
    if keyword == "CREATE" and len(tokens) > 1 and tokens[1].keyword in {"TEMP", "TEMPORARY"}:
        return TEMPORARY
    texts = [token.text for token in tokens] + ["", ""]
    before = ""
    for position, token in enumerate(tokens):
        # SQLite takes a string for a name where only a name can stand: CREATE TABLE 'temp'.t.
        if token.kind in {"word", "quoted"} or (token.kind == "string" and texts[position + 1] == "."):
            remedy = _bound_name(token.name, before, texts[position + 1 : position + 3], keyword)
            if remedy:
                return remedy
        before = token.keyword
    return None


def _bound_name(name: str, before: str, after: list[str], keyword: str) -> str | None:
    """Look at one name, the word in front of it and the two pieces of text behind it."""
    if name in {"sqlite_temp_schema", "sqlite_temp_master"}:
        return TEMPORARY
    # Anyone may call a table's alias "temp": only where a table is named is it the schema of that name.
    if name == "temp" and after[0] == "." and before in _BEFORE_A_TABLE:
        return TEMPORARY
    if keyword == "CREATE":  # a trigger's changes() is asked by the connection that fires it
        return None
    if name == "currval" and after[0] == "(":
        return _ROWID
    return _NO_ARGUMENTS.get(name) if after == ["(", ")"] else None
