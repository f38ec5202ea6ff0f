"""Opening connections: the one place that calls ``sqlite3.connect``, for every role."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from safedb import errors
from safedb.config import ResolvedPragmas, ResolvedRetryPolicy
from safedb.retry import Phase, classify, is_busy, name_of, run_again
from safedb.sqlite import location, pragmas
from safedb.sqlite.driver import connect, sqlite3

SLICE = 0.05  # seconds: a busy wait of SQLite's cannot be interrupted (H13b), so ours are short
STATEMENTS = 256  # prepared statements kept by each connection

Function = Callable[..., Any] | tuple[Callable[..., Any], int]
Collation = Callable[[str, str], int]


class CollationFailed(Exception):
    """Say that a collation of the user's raised; its exception is the cause.

    The driver lets it through as it is, where it would look like one that a signal handler has thrown into the thread.
    """


def _guarded(name: str, collation: Collation) -> Collation:
    def compare(one: str, other: str) -> int:
        try:
            return collation(one, other)
        except Exception as error:
            raise CollationFailed(f"the collation {name!r} raised {type(error).__name__}: {error}") from error

    return compare


@dataclass(frozen=True, slots=True)
class Extras:
    """Hold what connections know besides pragmas: SQL functions and collations of the user's.

    A function is a callable of any number of arguments, or a pair of it and their number.
    """

    functions: Mapping[str, Function] = field(default_factory=dict)
    collations: Mapping[str, Collation] = field(default_factory=dict)

    def install(self, connection: sqlite3.Connection) -> None:
        """Make them known to a connection."""
        for name, function in self.functions.items():
            body, count = function if isinstance(function, tuple) else (function, -1)
            connection.create_function(name, count, body)
        for name, collation in self.collations.items():
            connection.create_collation(name, _guarded(name, collation))


class Connections:
    """Open connections to one database, each with every pragma in force and read back.

    ``path`` is the canonical path, or None for a database in memory.
    """

    def __init__(
        self, path: str | None, settings: ResolvedPragmas, extras: Extras, policy: ResolvedRetryPolicy
    ) -> None:
        self._path = path
        self._settings = settings
        self._extras = extras
        self._policy = policy
        self._refusal: str | None = None
        self._closed = False

    def refuse(self, why: str) -> None:
        """Open no more connections: a forked child must not."""
        self._refusal = why

    def close(self) -> None:
        """Open no more connections: the database is closed."""
        self._closed = True

    @property
    def refused(self) -> bool:
        """Tell whether no more connections are opened."""
        return self._refusal is not None

    def writer(self, deadline: float | None = None) -> sqlite3.Connection:
        """Open the connection that writes (in memory: the only one), by the deadline (else that of the policy)."""
        return self._open("memory" if self._path is None else "writer", "rw", deadline)

    def reader(self, deadline: float | None = None) -> sqlite3.Connection:
        """Open a connection that cannot write."""
        return self._open("reader", "ro", deadline)

    def describer(self) -> sqlite3.Connection:
        """Open a read-only connection that may make temporary views; it never reads a table of the user's."""
        with _classified(f"opening {self._path}"):
            connection = self._connect("ro")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA trusted_schema=OFF")
        return connection

    def schema_copy(self, statements: list[str]) -> sqlite3.Connection:
        """Open an empty database in memory with the schema that ``statements`` make; what fails there is left out."""
        connection = self.blank()
        for statement in statements:
            with contextlib.suppress(sqlite3.Error):  # the shadow tables of a virtual table exist already
                connection.execute(statement)
        return connection

    def blank(self) -> sqlite3.Connection:
        """Open an empty database in memory that can take a copy."""
        connection = connect(":memory:", isolation_level=None, check_same_thread=False)
        self._extras.install(connection)
        return connection

    def _connect(self, mode: str) -> sqlite3.Connection:
        if self._refusal is not None:
            raise errors.InterfaceError(self._refusal)
        if self._closed:
            raise errors.DatabaseClosed(f"{self._path or 'a database in memory'} is closed; connect again")
        name = ":memory:" if self._path is None else location.uri(self._path, mode=mode)
        connection = connect(
            name, uri=self._path is not None, timeout=SLICE, isolation_level=None, check_same_thread=False,
            cached_statements=STATEMENTS,
        )  # fmt: skip
        self._extras.install(connection)
        return connection

    def _open(self, role: pragmas.Role, mode: str, deadline: float | None) -> sqlite3.Connection:
        what = f"opening {self._path or 'a database in memory'}"
        with _classified(what):
            connection = self._connect(mode)
        try:
            with _classified(what):
                self._apply(connection, role, time.monotonic() + self._policy.timeout if deadline is None else deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _apply(self, connection: sqlite3.Connection, role: pragmas.Role, deadline: float) -> None:
        """Put the pragmas in force; another's lock (a switch to WAL, a recovery) is waited for (H12, H12b, H13)."""

        def attempt() -> None:
            pragmas.apply(connection, self._settings, role=role)

        try:
            attempt()
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
            run_again(attempt, policy=self._policy, deadline=deadline, may_retry=is_busy, on_retry=lambda *_: None)


@contextlib.contextmanager
def _classified(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_busy(error):
            raise errors.LockTimeout(
                f"{what}: another program held a lock on it until the deadline (a transaction, a backup, or "
                "locking_mode=EXCLUSIVE); end it, or raise the timeout",
                sqlite_errorname=name_of(error),
            ) from error
        raise classify(error, doing=what, phase=Phase.BEGIN) from error
    except UnicodeDecodeError as error:  # the driver cannot read SQLite's message, which quotes the schema
        raise errors.DatabaseError(
            f"{what}: its schema is damaged ({error}); keep a copy of all its files, and restore a backup"
        ) from error


def refuse_lone_memory(path: str | None, *, read_only: bool) -> None:
    """Refuse a database in memory that nobody can write to: it is empty, and stays so."""
    if path is None and read_only:
        raise errors.ConfigError(
            "a database in memory that is read-only stays empty; give a file, or leave out mode=ro"
        )


def keep_for_ever(connections: object) -> None:
    """Never let these connections be deallocated, not even when the interpreter ends: that would close them.

    Those that a forked child inherits: its parent's open transaction would be undone in the shared memory that both
    use, and the database be malformed (H30). And those whose WAL somebody else has made anew: it would be deleted. A
    module's variables are cleared at the end, so this is a reference nobody gives back.
    """
    import ctypes  # here and not above: hardly any process ever comes here

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connections))
