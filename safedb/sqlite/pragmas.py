"""The pragmas of a connection: each set, each read back, none of them silently weaker.

SQLite accepts what it does not know or cannot do without a word (https://www.sqlite.org/pragma.html), so the answer to
a second question decides, not the absence of an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from safedb.errors import ConfigError
from safedb.options import Pragmas, ResolvedPragmas
from safedb.sqlite.driver import Connection, sqlite3

Role = Literal["writer", "reader", "memory"]

BUSY_SLICE = 0.05
"""Seconds that SQLite itself waits for a lock. Such a wait cannot be interrupted (H13b), so it is only a slice."""

_CODES: Mapping[str, Mapping[object, int]] = {
    "synchronous": {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3},
    "temp_store": {"DEFAULT": 0, "FILE": 1, "MEMORY": 2},
    "auto_vacuum": {"NONE": 0, "FULL": 1, "INCREMENTAL": 2},
    "secure_delete": {False: 0, True: 1, "FAST": 2},
}
"""What SQLite answers for a value that is set by its name."""

_OVERRULED = {"FILE": "TEMP_STORE=3", "MEMORY": "TEMP_STORE=0"}

_REMEDIES = {
    "page_size": "it is fixed once the database has content; leave it out, or copy the database into a new file",
    "auto_vacuum": "it is fixed once the database has content; leave it out, or copy the database into a new file",
    "mmap_size": "this build of SQLite maps no more than it answered; ask for that or less",
    "max_page_count": "the database is larger already; ask for at least what it answered",
    "temp_store": "this build of SQLite is bound to the other kind (TEMP_STORE); leave it out",
    "journal_mode": "WAL needs a local file system with shared memory, and a file that is no rollback-only copy",
}


def apply(connection: Connection, pragmas: ResolvedPragmas, *, role: Role) -> None:
    """Put ``pragmas`` in force on a fresh connection in autocommit mode, and check that they are.

    A ``"writer"`` also switches the file to WAL, which may meet another's lock: SQLite's own error goes through, for
    the caller to retry until its deadline; running ``apply`` again on the same connection is safe. A ``"reader"`` can
    write nothing afterwards. ``"memory"`` is the one connection of a database without a file.

    Raises ``ConfigError`` that names the pragma, what was asked, what the database answered, and the remedy.
    """
    for group in _GROUPS[role]:
        group(connection, pragmas)


def _wait_briefly(connection: Connection, _: ResolvedPragmas) -> None:
    """Wait for locks in short slices, before anything else here can meet one (https://www.sqlite.org/c3ref/busy_timeout.html)."""
    _put(connection, "busy_timeout", round(BUSY_SLICE * 1000))


def _lay_out(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Choose the file's layout while it is empty; switching to WAL fixes it (https://www.sqlite.org/pragma.html#pragma_page_size)."""
    _put_given(connection, pragmas, "page_size", "auto_vacuum")


def _use_wal(connection: Connection, _: ResolvedPragmas) -> None:
    """Let readers and the writer work at the same time; the mode that SQLite answers is the one in force (https://www.sqlite.org/wal.html)."""
    answer = _ask(connection, "journal_mode = WAL")
    if answer != "wal":
        raise _refused("journal_mode", "wal", answer)
    _ask(connection, "schema_version")  # a read: who has made the switch opens the WAL only now, and so keeps it there


def _sync(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Decide what survives a power failure: FULL syncs the WAL at each commit (https://www.sqlite.org/pragma.html#pragma_synchronous)."""
    _put_given(connection, pragmas, "synchronous")


def _leave_checkpoints_to_the_keeper(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Keep checkpoints out of COMMIT, where they would be its slowest part (https://www.sqlite.org/wal.html#ckpt)."""
    _put(connection, "wal_autocheckpoint", 0)
    _put_given(connection, pragmas, "journal_size_limit")


def _guard_data(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Hold the rules that SQLite leaves off, for the sake of old programs (https://www.sqlite.org/foreignkeys.html#fk_enable)."""
    _put_given(connection, pragmas, "foreign_keys", "recursive_triggers", "secure_delete", "max_page_count")


def _distrust_file(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Let nothing that stands in a file run functions or corrupt the file (https://www.sqlite.org/security.html)."""
    _put_given(connection, pragmas, "trusted_schema", "cell_size_check")
    _configure(connection, "DEFENSIVE", on=True)


def _read_strings_strictly(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Make a misspelt column an error instead of a string (https://www.sqlite.org/quirks.html#dblquote)."""
    _configure(connection, "DQS_DDL", on=pragmas.double_quoted_strings)
    _configure(connection, "DQS_DML", on=pragmas.double_quoted_strings)


def _size(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Bound what one connection takes of memory and temporary space (https://www.sqlite.org/pragma.html#pragma_cache_size)."""
    _put_given(connection, pragmas, "cache_size", "temp_store", "analysis_limit")
    # Some builds overrule this pragma, and answer as if they obeyed (https://www.sqlite.org/tempfiles.html#tempstore).
    option = _OVERRULED.get(str(pragmas.temp_store))
    if option and connection.execute("SELECT sqlite_compileoption_used(?)", (option,)).fetchall() == [(1,)]:
        raise _refused("temp_store", pragmas.temp_store, option)


def _map(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Read through a memory map, if asked to; nothing in memory has one (https://www.sqlite.org/mmap.html)."""
    _put_given(connection, pragmas, "mmap_size")


def _mark(connection: Connection, pragmas: ResolvedPragmas) -> None:
    """Mark an unmarked file as this program's, and refuse another program's (https://www.sqlite.org/pragma.html#pragma_application_id)."""
    wanted = pragmas.application_id
    if wanted is None:
        return
    present = _ask(connection, "application_id")
    if present not in (0, wanted):
        raise ConfigError(
            f"the database has the application_id {present}, not {wanted}: it belongs to another program; "
            "open the right file, or leave application_id out"
        )
    _put(connection, "application_id", wanted)


def _write_nothing(connection: Connection, _: ResolvedPragmas) -> None:
    """Refuse every write on a reader, last of all (https://www.sqlite.org/pragma.html#pragma_query_only)."""
    _put(connection, "query_only", 1)


_Group = Callable[[Connection, ResolvedPragmas], None]

_COMMON: tuple[_Group, ...] = (_distrust_file, _read_strings_strictly, _size)

_GROUPS: Mapping[Role, tuple[_Group, ...]] = {
    "writer": (
        _wait_briefly,
        _lay_out,
        _use_wal,
        _sync,
        _leave_checkpoints_to_the_keeper,
        _guard_data,
        _mark,
        _map,
        *_COMMON,
    ),
    "reader": (_wait_briefly, _map, *_COMMON, _write_nothing),
    "memory": (_lay_out, _guard_data, _mark, *_COMMON),
}


def _put_given(connection: Connection, pragmas: ResolvedPragmas, *names: str) -> None:
    """Put in force those of ``names`` that have a value."""
    for name in names:
        value = getattr(pragmas, name)
        if value is not None:
            _put(connection, name, value)


def _put(connection: Connection, name: str, value: bool | int | str) -> None:
    """Set one pragma and read it back. Names and values are this module's and ``Pragmas``' own, never a user's text."""
    expected = _CODES[name][value] if name in _CODES else int(value)
    if _ask(connection, name) == expected:
        return  # setting auto_vacuum or application_id again would wait for whoever is writing
    connection.execute(f"PRAGMA {name} = {value if isinstance(value, str) else int(value)}").fetchall()
    answer = _ask(connection, name)
    if answer != expected:
        raise _refused(name, value, answer)


def _ask(connection: Connection, question: str) -> Any:
    """Return the first value of a pragma's answer, or ``None`` if there is none; no cursor stays open."""
    rows = connection.execute(f"PRAGMA {question}").fetchall()
    return rows[0][0] if rows else None


def check_given(pragmas: Pragmas) -> None:
    """Refuse what was asked for and cannot be put in force here."""
    if pragmas.double_quoted_strings is False and not hasattr(sqlite3.Connection, "setconfig"):
        raise ConfigError(
            "double_quoted_strings = False needs Python 3.12 or newer, and its own sqlite3: here SQLite always takes a "
            "name in double quotes that no column has for a string. Leave it out, or use a newer Python"
        )


def _configure(connection: Connection, name: str, *, on: bool) -> None:
    """Turn one of the switches that no pragma reaches, where this Python can (3.12 and newer)."""
    setconfig = getattr(connection, "setconfig", None)
    if setconfig is None:
        return
    switch: int = getattr(sqlite3, f"SQLITE_DBCONFIG_{name}")
    setconfig(switch, on)
    answer = connection.getconfig(switch)  # type: ignore[attr-defined,unused-ignore]
    if answer is not on:
        raise _refused(name, on, answer)


def _refused(name: str, asked: object, answer: object) -> ConfigError:
    """Say what could not be put in force."""
    remedy = _REMEDIES.get(name, f"SQLite {sqlite3.sqlite_version} cannot do it; leave it out, or use a newer one")
    return ConfigError(f"the pragma {name} = {asked} is not in force: the database answered {answer!r}; {remedy}")


def _remedy(name: str) -> str:
    return f"set it when connecting: Pragmas({name}=…), ?{name}=… in the URL or SAFEDB_{name.upper()}"


_ALL_CONNECTIONS = "it would change one connection and not the others; safedb keeps SQLite's default"

OWNED: Mapping[str, str] = MappingProxyType(
    {
        **{name: _remedy(name) for name in Pragmas.kinds() if name not in ("profile", "application_id")},
        "journal_mode": "it is always WAL; that is what lets readers and the writer work at the same time",
        "locking_mode": "it is always NORMAL; EXCLUSIVE would shut out every reader",
        "busy_timeout": "use RetryPolicy(timeout=…), or timeout=… of the call",
        "wal_autocheckpoint": "use Pragmas(checkpoint_pages=…)",
        "wal_checkpoint": "use db.checkpoint()",
        "query_only": "connect with read_only=True, or use db.snapshot()",
        "read_uncommitted": "use db.snapshot(), which sees one committed state",
        "defer_foreign_keys": "declare the constraint DEFERRABLE INITIALLY DEFERRED",
        "encoding": "safedb's databases are UTF-8",
        "temp_store_directory": "set the environment variable SQLITE_TMPDIR",
        "writable_schema": "use ALTER TABLE",
        "schema_version": "SQLite keeps it; yours is PRAGMA user_version",
        "ignore_check_constraints": "drop the constraint instead; CHECK is a promise to every writer",
        "case_sensitive_like": "use GLOB, or a COLLATE clause",
        **dict.fromkeys(
            (
                "automatic_index",
                "cache_spill",
                "checkpoint_fullfsync",
                "count_changes",
                "empty_result_callbacks",
                "full_column_names",
                "fullfsync",
                "hard_heap_limit",
                "legacy_alter_table",
                "default_cache_size",
                "legacy_file_format",
                "reverse_unordered_selects",
                "short_column_names",
                "soft_heap_limit",
                "threads",
            ),
            _ALL_CONNECTIONS,
        ),
    }
)
"""The pragmas that SQL may read but not set, each with what to use instead (``wal_checkpoint`` acts even when read)."""


def refusal(name: str, *, setting: bool) -> str | None:
    """Return why a user's PRAGMA is refused and what to use instead, or ``None`` if it is allowed.

    ``setting`` says that it gives a value, and does not merely ask for one.
    """
    name = name.lower()
    if name not in OWNED or not (setting or name == "wal_checkpoint"):
        return None
    return f"PRAGMA {name} is safedb's own: {OWNED[name]}"
