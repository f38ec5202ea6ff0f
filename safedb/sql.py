"""Statements: their parameters, where they may run, and what is refused before a database sees it.

:func:`parse` looks at one statement, :func:`split` at a script. What is learnt is kept by text: a statement that is run
a thousand times is read once. No statement is ever translated: all that changes is how a parameter is written.

Everything here is safe from any thread: statements are frozen, and the cache is the standard library's.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from time import monotonic
from typing import Any

from safedb import typed, types
from safedb.errors import DatabaseError, ProgrammingError, QueryCanceled
from safedb.lexer import DIALECTS, Dialect, Token, place, tokenize
from safedb.routing import Route, examine, outside_parentheses
from safedb.types import Adapter

__all__ = ["Params", "Route", "Statement", "check_many", "check_stale", "parse", "prepare", "shorten", "split"]

Params = Sequence[Any] | Mapping[str, Any] | None

CACHED_STATEMENTS = 1024
MANY = 1000  # rows whose parameters are read between two looks at the clock
CACHED_LENGTH = 100_000  # characters; a longer text is read every time, so that the cache has a bound in bytes too


@dataclass(frozen=True, slots=True)
class Statement:
    """Be one statement, as its text tells it.

    ``source`` is the user's text, ``sql`` what the database gets: the same text, with parameters written its way.
    ``names`` are those of the parameters, in the order in which they first appear; ``order`` has a name for each value
    that the database is given; both are empty where parameters have no names. ``parameters`` is the number of these
    values. ``keyword`` is the first word, in upper case.
    ``transactional`` is False for what has to run outside a transaction. ``connection_bound`` is the remedy where the
    answer depends on the connection, so that only a transaction's owner may ask. ``outlives`` is the remedy where a
    transaction's owner may not either: what the statement does to the connection would not end with the transaction.
    ``pragma`` is the lower-case name, and whether it is set (or done: ``wal_checkpoint``) and not merely read. ``row``
    is where in ``sql`` an INSERT of one row of plain values has it, in parentheses: None for all other statements.
    ``returning``: it writes, and has a RETURNING clause.
    ``adapt`` turns a value into one that the database stores unchanged, or refuses it; those of the ``plain`` types,
    besides None, int, float and str, need not be looked at.
    """

    source: str
    sql: str
    route: Route
    keyword: str
    names: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    parameters: int = 0
    transactional: bool = True
    connection_bound: str | None = None
    outlives: str | None = None
    pragma: tuple[str, bool] | None = None
    row: tuple[int, int] | None = None
    returning: bool = False
    adapt: Adapter = types.adapt
    plain: frozenset[type] = types.PLAIN

    def bind(self, params: Params) -> tuple[Any, ...]:
        """Arrange parameters in the order of the placeholders, as values that the database stores unchanged.

        Raises ``ProgrammingError`` where number, names or style do not fit the statement, ``DataError`` for a value
        that would not come back as it is. What is returned is immutable and shares nothing with its caller.
        """
        if type(params) is not tuple or self.names or len(params) != self.parameters:
            params = self._arrange(params)
        # The types that need no conversion, here and now: a call for each would cost more than all the rest.
        for value in params:
            kind = type(value)
            if kind is int:
                if -0x8000_0000_0000_0000 <= value <= 0x7FFF_FFFF_FFFF_FFFF:
                    continue
            elif kind is str:
                if value.isascii() and "\0" not in value:
                    continue
            elif value is None or (kind is float and value == value) or kind in self.plain:
                continue
            return self._adapt(params)
        return params

    def _adapt(self, params: tuple[Any, ...]) -> tuple[Any, ...]:
        values: list[Any] = []
        adapt, keep = self.adapt, values.append
        try:
            for value in params:
                keep(adapt(value))
        except DatabaseError as error:
            label = f":{self.order[len(values)]}" if self.order else f"{len(values) + 1}"
            raise type(error)(f"parameter {label}: {error}") from None
        return tuple(values)

    def _arrange(self, params: Params) -> tuple[Any, ...]:
        if params is None:
            params = {} if self.names else ()
        # The usual types first: asking an abstract class costs three times as much as all else here.
        if isinstance(params, (list, tuple)):
            return self._by_position(params)
        if isinstance(params, (dict, Mapping)):
            return self._by_name(params)
        if isinstance(params, str | bytes | bytearray | memoryview) or not isinstance(params, Sequence):
            raise ProgrammingError(f"parameters are a tuple, a list or a mapping, not {_type_name(params)}: write (x,)")
        return self._by_position(params)

    def _by_position(self, params: Sequence[Any]) -> tuple[Any, ...]:
        if self.names:
            raise ProgrammingError(
                f"the statement has named parameters ({_colons(self.names)}): pass a mapping, not {_type_name(params)}"
            )
        values = tuple(params)  # first of all: a list may grow under our eyes
        if len(values) != self.parameters:
            raise ProgrammingError(f"the statement takes {_count(self.parameters)}, {len(values)} given")
        return values

    def _by_name(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        if self.parameters and not self.names:
            raise ProgrammingError("the statement has positional parameters (?): pass a sequence, not a mapping")
        if type(params) is dict and len(params) == len(self.names):  # not a defaultdict: looking would add to it
            try:
                return tuple([params[name] for name in self.order])
            except KeyError:
                pass  # and now say which
        missing = [name for name in self.names if name not in params]
        if missing:
            raise ProgrammingError(f"no value given for {_colons(missing)}")
        if len(params) != len(self.names):
            known = set(self.names)
            unknown = reprlib.repr([name for name in params if name not in known])
            raise ProgrammingError(f"the statement has no such parameters: {unknown}; it has {_colons(self.names)}")
        return tuple([params[name] for name in self.order])


def _type_name(value: object) -> str:
    return type(value).__name__


def _count(number: int) -> str:
    return "1 parameter" if number == 1 else f"{number} parameters"


def _colons(names: Sequence[str]) -> str:
    return ", ".join(f":{name}" for name in names) or "none"


def prepare(dialect: str) -> None:
    """Compile what reads SQL, here and once: many threads would do it all at once, and each would wait for all."""
    _parse(DIALECTS[dialect], "SELECT 1")


def parse(sql: str, dialect: str = "sqlite") -> Statement:
    """Read one statement; the same text gives the same object while it is in the cache.

    ``dialect`` is ``"sqlite"`` or ``"postgresql"``. Raises ``ProgrammingError`` for an empty text, for two statements,
    for parameters of another or of two styles, for what never ends, and for BEGIN, COMMIT and their like: it names the
    call to use.
    """
    if not isinstance(sql, str):
        raise ProgrammingError(f"SQL is a str, not {_type_name(sql)}")
    if len(sql) > CACHED_LENGTH:
        return _parse(DIALECTS[dialect], sql)
    return _CACHED[dialect](sql)


def bind_many(statement: Statement, rows: Iterable[Any], deadline: float) -> list[Any]:
    """Read the parameters of many rows; raise `QueryCanceled` where that is not done by ``deadline``."""
    bind, source, values = statement.bind, iter(rows), list[Any]()
    while some := [bind(row) for row in islice(source, MANY)]:
        values += some
        _check_time(deadline, f"{shorten(statement.source)}: its rows of parameters")
    return values


def _check_time(deadline: float, what: str) -> None:
    if monotonic() > deadline:
        raise QueryCanceled(f"{what} could not be read by the deadline; nothing has an effect. Raise the timeout")


def split(script: str, dialect: str = "sqlite", deadline: float = math.inf) -> list[Statement]:
    """Read a script by ``deadline``: statements with semicolons between them, and no parameters.

    Knows the bodies of triggers. Refuses, statement by statement, what :func:`parse` refuses, and names the line.
    """
    if not isinstance(script, str):
        raise ProgrammingError(f"SQL is a str, not {_type_name(script)}")
    chosen = DIALECTS[dialect]
    statements: list[Statement] = []
    for tokens in _statements(tokenize(script, chosen), chosen):
        if not tokens:
            continue
        if len(statements) % MANY == MANY - 1:
            _check_time(deadline, "the script")
        try:
            statements.append(_read_scripted(script, tokens, chosen))
        except ProgrammingError as error:
            raise ProgrammingError(f"{place(script, tokens[0].start)}: {error}") from None
    return statements


def _read_scripted(script: str, tokens: list[Token], dialect: Dialect) -> Statement:
    statement = _read(script, tokens, dialect, tokens[0].start, tokens[-1].end)
    if statement.parameters:
        raise ProgrammingError("a script takes no parameters: use execute, statement by statement")
    return statement


def _parse(dialect: Dialect, sql: str) -> Statement:
    found = list(_statements(tokenize(sql, dialect), dialect))
    if not any(found):
        raise ProgrammingError("the SQL text holds no statement")
    if len(found) > 1:
        raise ProgrammingError(
            "execute takes one statement, and there is something behind a semicolon: use executescript, which runs "
            "all of them or none"
        )
    return _read(sql, found[0], dialect, 0, len(sql))


_CACHED: dict[str, Callable[[str], Statement]] = {
    name: lru_cache(maxsize=CACHED_STATEMENTS)(partial(_parse, dialect)) for name, dialect in DIALECTS.items()
}


def _statements(tokens: list[Token], dialect: Dialect) -> Iterator[list[Token]]:
    """Cut at each semicolon; the pieces come without it, and are empty where nothing is before one.

    The statements that a trigger or a function holds end with semicolons too. The last word is the END that follows
    one (no END of a CASE can), which is how SQLite itself finds it: https://www.sqlite.org/c3ref/complete.html
    """
    piece: list[Token] = []
    depth, holds = 0, False
    for token in tokens:
        if dialect.semicolons_in_parentheses:
            depth = max(0, depth + (token.kind == "left") - (token.kind == "right"))
        if token.kind != "semicolon" or depth:
            piece.append(token)
            continue
        holds = holds or _holds_statements(piece, dialect)
        if holds and not _is_complete(piece):
            piece.append(token)
            continue
        yield piece
        piece, holds = [], False
    if piece:
        yield piece


def _holds_statements(piece: list[Token], dialect: Dialect) -> bool:
    if piece and piece[0].keyword not in {"CREATE", "EXPLAIN"}:
        return False
    return bool(dialect.holds_statements.match(" ".join([token.keyword for token in outside_parentheses(piece)])))


def _is_complete(piece: list[Token]) -> bool:
    if piece[-1].keyword != "END":
        return False
    return piece[-2].kind == "semicolon" or [token.keyword for token in piece[-3:-1]] == ["BEGIN", "ATOMIC"]


def _read(source: str, tokens: list[Token], dialect: Dialect, start: int, end: int) -> Statement:
    """Read one statement: ``tokens`` are its own, and ``source[start:end]`` is its text."""
    order, parameters, sql = _number(source, tokens, dialect, start, end)
    traits = examine(tokens, dialect)
    return Statement(
        source=source[start:end],
        sql=sql,
        route=traits.route,
        keyword=traits.keyword,
        names=tuple(dict.fromkeys(order)),
        order=tuple(order),
        parameters=parameters,
        transactional=traits.transactional,
        connection_bound=traits.connection_bound,
        outlives=traits.outlives,
        pragma=traits.pragma,
        returning=traits.returning,
        row=_row(traits.row, tokens, start) if sql == source[start:end] else None,
        adapt=_VALUES[dialect.name][0],
        plain=_VALUES[dialect.name][1],
    )


_VALUES = {"sqlite": (types.adapt, types.PLAIN), "postgresql": (typed.adapt, typed.PLAIN)}


def _row(row: tuple[Token, Token] | None, tokens: list[Token], start: int) -> tuple[int, int] | None:
    """Give the place of an INSERT's one row, if all parameters stand in it."""
    if row is None:
        return None
    first, last = row
    if any(token.kind == "positional" and not first.start < token.start < last.start for token in tokens):
        return None
    return first.start - start, last.end - start


# --- Parameters ------------------------------------------------------------------------------------------------------


def _number(source: str, tokens: list[Token], dialect: Dialect, start: int, end: int) -> tuple[list[str], int, str]:
    """Find the parameters, and write them the way the database wants them.

    Gives the names (one for each value; none for ``?``), the number of values and the text.
    """
    order: list[str] = []
    numbers: dict[str, int] = {}
    positional, pieces, done = 0, [], start
    for token in tokens:
        if token.kind == "positional":
            positional += 1
            written = dialect.placeholder(positional)
        elif token.kind == "named":
            name = token.text[1:]
            if name not in numbers or not dialect.reuses_values:
                order.append(name)
                numbers[name] = len(order)
            written = dialect.placeholder(numbers[name])
        elif token.kind == "doubled":
            written = _operator(source, token, dialect)
        else:
            continue
        pieces += [source[done : token.start], _apart(written, source, token)]
        done = token.end
    if positional and order:
        raise ProgrammingError("? and :name in one statement: use one style of parameters")
    return order, positional or len(order), "".join([*pieces, source[done:end]])


def _operator(source: str, token: Token, dialect: Dialect) -> str:
    if dialect.question_operator:
        return "?"
    raise ProgrammingError(f"?? in {place(source, token.start)} stands for PostgreSQL's operator ?: SQLite has none")


def _apart(written: str, source: str, token: Token) -> str:
    """Keep ``$1`` from growing into its neighbours: of ``LIMIT?`` PostgreSQL would make the name ``LIMIT$1``."""
    if not written.startswith("$"):
        return written
    before, after = source[token.start - 1 : token.start], source[token.end : token.end + 1]
    return " " * _in_name(before) + written + " " * _in_name(after)


def _in_name(character: str) -> bool:
    return character.isalnum() or character in ("_", "$") or character > "\x7f"


# --- What engines share ----------------------------------------------------------------------------------------------


def check_many(statement: Statement) -> None:
    """Refuse what `executemany` does not run."""
    if statement.route is not Route.WRITE:
        raise ProgrammingError(
            "executemany takes INSERT, UPDATE, DELETE, REPLACE or MERGE; use execute, or executescript"
        )
    if statement.returning:
        raise ProgrammingError(
            "executemany returns a row count and no rows: leave out RETURNING, or call execute for each"
        )


def check_stale(statement: Statement) -> None:
    """Refuse what cannot be answered by a replica."""
    if statement.route is not Route.READ:
        raise ProgrammingError(f"{shorten(statement.source)}: stale=True is for reads; leave it out to write")


def shorten(sql: str) -> str:
    """Give one line of the statement's text for a message; values are never shown."""
    text = " ".join(sql[:400].split())
    return text if len(text) <= 120 else text[:117] + "..."
