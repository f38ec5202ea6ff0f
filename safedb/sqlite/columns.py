"""What type a result's columns were declared with: so that a BOOLEAN comes back as bool, a TIMESTAMP as datetime.

Python's sqlite3 does not tell a column's declared type, and its own way of using it (``register_converter``) is global
to the process: other libraries' connections would change their answers. SQLite itself knows: the columns of a *view*
keep the declared types of what they select, also through subqueries, CTEs and UNION. So a statement is described once
by a temporary view of its text with NULL in place of each parameter, on a connection that does nothing else, and
``PRAGMA table_xinfo`` of that view gives the types (https://sqlite.org/pragma.html#pragma_table_xinfo). A RETURNING
clause is described as a SELECT of the same columns from the same table.

What SQLite cannot describe has no types: its values come back as they are stored.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from time import monotonic, sleep

from safedb.config import ResolvedRetryPolicy
from safedb.errors import Error
from safedb.lexer import SQLITE, Token, tokenize
from safedb.retry import classify, is_busy, run_again
from safedb.sql import Statement, shorten
from safedb.sqlite.deserted import is_on_stack
from safedb.sqlite.driver import sqlite3
from safedb.types import Decoder, decode_real, decoder, is_real

Decoders = tuple[Decoder | None, ...]

_POLICY = ResolvedRetryPolicy()
_CACHED = 2048
_LOOK = 0.001  # seconds between two looks whether a fork is over
_VIEW = "safedb_columns"
_TYPES_IN_USE = "SELECT DISTINCT x.type FROM sqlite_schema s, pragma_table_xinfo(s.name) x WHERE s.type = 'table'"
_WRITES = ("INSERT", "REPLACE", "UPDATE", "DELETE")


class Columns:
    """Find the decoders of statements' columns, once for each text while the schema stays as it is.

    ``connect`` opens the connection that describes: read-only, but free to make temporary views. Any thread may ask.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._mutex = threading.Lock()
        self._describing: set[int] = set()  # threads, by ident, that may open a connection which is not the common one
        self._paused = False
        self._connection: sqlite3.Connection | None = None
        self._closings = 0
        self._version = -1
        self._typed = False  # whether any column of the schema has a type that is decoded
        self._known: dict[str, Decoders | None] = {}

    def of(self, statement: Statement, width: int) -> Decoders | None:
        """Give a decoder (or None) for each of ``width`` columns, or None where no column needs one."""
        try:
            found = self._known[statement.source]
        except KeyError:
            found = self._describe(statement)
        if found is not None and len(found) != width:  # the schema has changed since it ran, or was described
            self.forget()
            found = self._describe(statement)
        return found if found is None or len(found) == width else None

    def describe(self, statement: Statement) -> None:
        """Find out about a statement before it runs, so that nothing need be asked afterwards."""
        if statement.source not in self._known:
            self._describe(statement)

    def forget(self) -> None:
        """Forget all statements: the schema has changed."""
        self._known.clear()
        self._version = -1

    def schema_changed(self) -> bool:
        """Look whether another process has changed the schema since the last look, and forget if so."""
        if not self._mutex.acquire(blocking=False):  # a statement is being described: look again at the next tick
            return False
        try:
            changed = self._connection is not None and self._version != self._schema_version(self._connection)
        except sqlite3.Error as error:
            if not is_busy(error):  # else another has the file to itself for a moment, to recover it (H13)
                raise
            return False
        finally:
            self._mutex.release()
        if changed:
            self.forget()
        return changed

    def close(self) -> None:
        """Close the connection; the next question opens another. Idempotent."""
        with self._mutex:
            connection, self._connection = self._connection, None
            self._closings += 1
        if connection is not None:
            connection.close()

    def pause(self, deadline: float) -> bool:
        """Close the connection and let nobody open another before `resume`; say if none was left by ``deadline``."""
        with self._mutex:
            self._paused = True
        self.close()
        self._describing.discard(threading.get_ident())  # an interrupt may have left it there
        while self._is_busy() and monotonic() < deadline:  # no Condition: an interrupt can leave its lock taken
            sleep(_LOOK)
        return not self._is_busy()

    def resume(self) -> None:
        """Let statements be described again."""
        self._paused = False

    def is_describing(self) -> bool:
        """Tell whether a statement may be being described, or a connection for that being opened."""
        return self._mutex.locked() or bool(self._describing)

    def _is_busy(self) -> bool:
        """Tell whether a thread is at it; one that was interrupted may only seem to be."""
        return any(is_on_stack(ident, self, "self") for ident in tuple(self._describing))

    def _begin(self) -> int:
        """Wait for the end of a fork, and count how often the connection was closed so far."""
        while True:
            with self._mutex:
                if not self._paused:
                    self._describing.add(threading.get_ident())
                    return self._closings
            sleep(_LOOK)

    def _describe(self, statement: Statement) -> Decoders | None:
        closings = self._begin()
        opened = None
        try:
            # Without the mutex: it may have to wait for a turn, and who has the turn may want to describe too.
            opened = self._connect() if self._connection is None else None
            with self._mutex:
                if self._connection is None and closings == self._closings:
                    self._connection, opened = opened, None
                if self._connection is not None:
                    return self._describe_by(self._connection, statement)
        finally:
            if opened is not None:
                opened.close()
            self._describing.discard(threading.get_ident())
        return self._describe(statement)  # it was closed meanwhile

    def _describe_by(self, connection: sqlite3.Connection, statement: Statement) -> Decoders | None:
        ask = functools.partial(self._ask, connection, statement)
        try:
            try:
                found = ask()
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise
                # Another has the file to itself for a moment, to recover it (H13). No types would be a wrong answer.
                until = monotonic() + _POLICY.timeout
                found = run_again(ask, policy=_POLICY, deadline=until, may_retry=is_busy, on_retry=lambda *_: None)
        except sqlite3.Error as error:
            if is_busy(error):
                raise classify(error, doing=f"reading the types of {shorten(statement.source)}") from error
            return None  # it cannot be described: PRAGMA, EXPLAIN, a table that only the writer sees yet
        if len(self._known) >= _CACHED:
            self._known.clear()
        self._known[statement.source] = found
        return found

    def _ask(self, connection: sqlite3.Connection, statement: Statement) -> Decoders | None:
        version = self._schema_version(connection)
        if version != self._version:
            in_use = [declared for (declared,) in connection.execute(_TYPES_IN_USE)]
            self._typed = any(decoder(declared) or is_real(declared) for declared in in_use)
            self._version = version
        return self._types(connection, statement) if self._typed else None

    def _schema_version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA schema_version").fetchone()[0]
        return version

    def _types(self, connection: sqlite3.Connection, statement: Statement) -> Decoders | None:
        select = as_select(statement.source)
        if select is None:
            return None
        connection.execute(f"CREATE TEMP VIEW {_VIEW} AS {select}")
        try:
            columns = connection.execute(f"PRAGMA temp.table_xinfo({_VIEW})").fetchall()
        finally:
            connection.execute(f"DROP VIEW temp.{_VIEW}")
        decoders = tuple(decoder(column[2]) or _returned(statement, column[2]) for column in columns)
        return decoders if any(decoders) else None


def _returned(statement: Statement, declared: str) -> Decoder | None:
    """Mend what RETURNING gives of a REAL column: 2.0 comes as the integer that SQLite stores to save room."""
    return decode_real if statement.returning and is_real(declared) else None


def as_select(source: str) -> str | None:
    """Give a SELECT without parameters that has the same columns, or None where the statement has none."""
    try:
        tokens = tokenize(source, SQLITE)
    except Error:  # it has been refused, or will be, where it is run
        return None
    while tokens and tokens[-1].kind == "semicolon":
        tokens.pop()
    depth = 0
    write = returning = None
    for number, token in enumerate(tokens):
        depth += (token.kind == "left") - (token.kind == "right")
        if depth == 0 and write is None and token.keyword in _WRITES and not _is_call(tokens, number):
            write = number
        if depth == 0 and token.keyword == "RETURNING":
            returning = number
    if write is None:
        return _text(tokens)
    if returning is None:
        return None
    target = _target(tokens[write + 1 : returning])
    return None if target is None else f"SELECT {_text(tokens[returning + 1 :])} FROM {target}"  # noqa: S608


def _is_call(tokens: list[Token], number: int) -> bool:
    """Tell ``replace(x, 'a', 'b')`` from ``REPLACE INTO``."""
    return number + 1 < len(tokens) and tokens[number + 1].kind == "left"


def _text(tokens: list[Token]) -> str:
    """Give the text of the tokens with NULL for each parameter; comments go."""
    pieces, end = [], -1
    for token in tokens:
        gap = " " if token.start > end else ""  # ->> comes as three tokens, and must stay together
        pieces.append(" NULL " if token.kind in ("positional", "named") else gap + token.text)
        end = token.end
    return "".join(pieces).strip()


def _target(tokens: list[Token]) -> str | None:
    """Find the table (and its alias) that an INSERT, UPDATE or DELETE writes to."""
    rest = list(tokens)
    while rest and rest[0].keyword in ("OR", "REPLACE", "IGNORE", "ABORT", "FAIL", "ROLLBACK", "INTO", "FROM"):
        rest.pop(0)
    name: list[str] = []
    while rest and (rest[0].kind in ("word", "quoted", "string") or rest[0].text == "."):
        if name and name[-1] != "." and rest[0].text != ".":
            break
        name.append(rest.pop(0).text)
    if not name:
        return None
    alias = f" AS {rest[1].text}" if len(rest) > 1 and rest[0].keyword == "AS" else ""
    return "".join(name) + alias
