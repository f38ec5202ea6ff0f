"""Every pragma is in force after ``apply``, or opening fails and says why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import safedb
from safedb.errors import ConfigError
from safedb.options import Pragmas, ResolvedPragmas
from safedb.sqlite.driver import Connection, sqlite3
from safedb.sqlite.pragmas import BUSY_SLICE, OWNED, apply, refusal

EVERYTHING = Pragmas(
    synchronous="EXTRA",
    cache_size=-4000,
    mmap_size=1 << 20,
    temp_store="MEMORY",
    recursive_triggers=True,
    secure_delete="FAST",
    journal_size_limit=1_000_000,
    cell_size_check=True,
    analysis_limit=100,
    max_page_count=10_000,
    auto_vacuum="INCREMENTAL",
    page_size=8192,
    application_id=-7,
).effective()

DEFAULTS = ResolvedPragmas()

Connect = Callable[..., Connection]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def connect(path: Path) -> Iterator[Connect]:
    """Open connections in autocommit mode, as the engine does, and close them all at the end."""
    opened: list[Connection] = []

    def open_one(target: str | Path = path, factory: type[Connection] = Connection, **options: Any) -> Connection:
        opened.append(sqlite3.connect(str(target), isolation_level=None, factory=factory, **options))
        return opened[-1]

    yield open_one
    for connection in reversed(opened):
        connection.close()


def ask(connection: Connection, name: str) -> Any:
    rows = connection.execute(f"PRAGMA {name}").fetchall()
    return rows[0][0] if rows else None


class Liar(Connection):
    """Answer one pragma with something else than is in force: a build, or a file system, that cannot do it."""

    lies: dict[str, list[tuple[Any, ...]]] = {}  # noqa: RUF012 - each test makes a subclass of its own

    def execute(self, sql: str, *args: Any) -> Any:
        lie = self.lies.get(sql.removeprefix("PRAGMA "))
        if lie is None:
            return super().execute(sql, *args)
        return super().execute("SELECT 1 WHERE 0") if not lie else super().execute("SELECT ?", lie[0])


def liar(question: str, *rows: tuple[Any, ...]) -> type[Liar]:
    return type("LiarAboutOne", (Liar,), {"lies": {question: list(rows)}})


# ---- in force


def test_a_writer_has_every_pragma_in_force(connect: Connect) -> None:
    """H37, H39: each is asked back, and SQLite's own checkpoints are off."""
    connection = connect()
    apply(connection, EVERYTHING, role="writer")
    names = [name for name in Pragmas.kinds() if getattr(EVERYTHING, name) is not None]
    theirs = [
        n for n in names if n not in ("profile", "double_quoted_strings", "checkpoint_pages", "wal_limit", "file_mode")
    ]
    assert {name: ask(connection, name) for name in theirs} == {
        "synchronous": 3,
        "cache_size": -4000,
        "mmap_size": 1 << 20,
        "temp_store": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "recursive_triggers": 1,
        "secure_delete": 2,
        "journal_size_limit": 1_000_000,
        "cell_size_check": 1,
        "analysis_limit": 100,
        "max_page_count": 10_000,
        "auto_vacuum": 2,
        "page_size": 8192,
        "application_id": -7,
    }
    assert ask(connection, "journal_mode") == "wal"
    assert ask(connection, "wal_autocheckpoint") == 0
    assert ask(connection, "busy_timeout") == BUSY_SLICE * 1000


@pytest.mark.parametrize("profile", ["durable", "balanced", "litestream"])
def test_a_profile_is_in_force(profile: str, connect: Connect) -> None:
    """H45: builds differ in their default, so it is always set."""
    connection = connect()
    apply(connection, Pragmas(profile=profile).effective(), role="writer")
    assert ask(connection, "synchronous") == (2 if profile == "durable" else 1)
    assert ask(connection, "wal_autocheckpoint") == 0


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *itertools.product(["synchronous"], ["OFF", "NORMAL", "FULL", "EXTRA"]),
        ("temp_store", "DEFAULT"),  # the other words may depend on the build: see the last test here
        *itertools.product(["auto_vacuum"], ["NONE", "FULL", "INCREMENTAL"]),
        *itertools.product(["secure_delete"], [True, False, "FAST"]),
    ],
)
def test_every_word_of_every_pragma_can_be_put_in_force(name: str, word: object, connect: Connect) -> None:
    given: dict[str, Any] = {name: word}
    apply(connect(), Pragmas(**given).effective(), role="writer")


def test_layout_and_mark_stay_in_the_file(connect: Connect) -> None:
    apply(connect(), EVERYTHING, role="writer")
    later = connect()
    assert [ask(later, name) for name in ("page_size", "auto_vacuum", "application_id", "journal_mode")] == [
        8192,
        2,
        -7,
        "wal",
    ]


def test_applying_twice_changes_nothing_and_fails_nowhere(connect: Connect) -> None:
    connection = connect()
    apply(connection, EVERYTHING, role="writer")
    before = connection.total_changes
    apply(connection, EVERYTHING, role="writer")
    assert connection.total_changes == before
    assert not connection.in_transaction


def test_a_reader_has_what_concerns_it_in_force_and_writes_nothing(connect: Connect) -> None:
    writer, reader = connect(), connect()
    apply(writer, EVERYTHING, role="writer")
    writer.execute("CREATE TABLE t (x)")
    apply(reader, EVERYTHING, role="reader")
    for name in ("cache_size", "mmap_size", "temp_store", "trusted_schema", "cell_size_check", "analysis_limit"):
        assert ask(reader, name) == ask(writer, name)
    assert ask(reader, "query_only") == 1
    with pytest.raises(sqlite3.OperationalError) as caught:
        reader.execute("INSERT INTO t VALUES (1)")
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_READONLY


def test_a_database_in_memory_has_what_concerns_it_in_force(connect: Connect) -> None:
    connection = connect(":memory:")
    apply(connection, EVERYTHING, role="memory")
    for name, value in (("foreign_keys", 1), ("trusted_schema", 0), ("page_size", 8192), ("max_page_count", 10_000)):
        assert ask(connection, name) == value


@pytest.mark.parametrize("role", ["writer", "reader", "memory"])
def test_no_cursor_stays_open(role: Any, connect: Connect) -> None:
    apply(connect(), DEFAULTS, role="writer")
    connection = connect()
    apply(connection, DEFAULTS, role=role)
    if role != "reader":
        connection.execute("VACUUM")  # SQLite refuses it while any statement is under way


# ---- safe by default


def test_foreign_keys_hold_by_default(connect: Connect) -> None:
    connection = connect()
    apply(connection, DEFAULTS, role="writer")
    connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE b (a REFERENCES a)")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO b VALUES (1)")


@pytest.mark.parametrize("role", ["writer", "reader", "memory"])
def test_a_misspelt_column_is_an_error_where_python_can_switch_it(role: Any, connect: Connect) -> None:
    """H49: by default it is a string."""
    connection = connect()
    if role == "reader":
        apply(connect(), DEFAULTS, role="writer")
    apply(connection, DEFAULTS, role="memory" if role == "memory" else role)
    if hasattr(connection, "setconfig"):
        with pytest.raises(sqlite3.OperationalError, match="no such column"):
            connection.execute('SELECT "nosuch"')
    else:  # Python 3.11 cannot; the documentation says so
        assert connection.execute('SELECT "nosuch"').fetchall() == [("nosuch",)]


def test_what_this_python_cannot_switch_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    """Never silently weaker: where nobody asks, the table of settings says so."""
    asked = Pragmas(double_quoted_strings=False)
    if hasattr(sqlite3.Connection, "setconfig"):
        with safedb.connect(tmp_path / "app.db", pragmas=asked) as db, pytest.raises(safedb.ProgrammingError):
            db.execute('SELECT "nosuch"')
    else:
        with pytest.raises(ConfigError, match=r"double_quoted_strings = False needs Python 3\.12"):
            safedb.connect(tmp_path / "app.db", pragmas=asked)


def test_double_quoted_strings_are_there_for_those_who_ask(connect: Connect) -> None:
    connection = connect()
    apply(connection, Pragmas(double_quoted_strings=True).effective(), role="writer")
    assert connection.execute('SELECT "nosuch"').fetchall() == [("nosuch",)]


def test_the_schema_cannot_be_overwritten_where_python_can_switch_it(connect: Connect) -> None:
    """H48: by default it can."""
    connection = connect()
    apply(connection, DEFAULTS, role="writer")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA writable_schema = ON")
    if hasattr(connection, "setconfig"):
        with pytest.raises(sqlite3.OperationalError, match="may not be modified"):
            connection.execute("DELETE FROM sqlite_master")
    else:
        assert OWNED["writable_schema"]  # Python 3.11: the pragma is refused before it comes here


def test_what_stands_in_a_file_runs_no_function_of_the_program(connect: Connect) -> None:
    """H48: by default it does."""
    writer = connect()
    apply(writer, DEFAULTS, role="writer")
    writer.create_function("spy", 0, lambda: 1)
    writer.execute("CREATE VIEW v AS SELECT spy()")
    with pytest.raises(sqlite3.OperationalError, match="unsafe use of spy"):
        writer.execute("SELECT * FROM v")


# ---- never silently weaker


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"page_size": 4096}, r"page_size = 4096 is not in force: the database answered 8192; .*copy the database"),
        ({"auto_vacuum": "NONE"}, r"auto_vacuum = NONE is not in force: the database answered 2; .*copy the database"),
        ({"application_id": 8}, r"has the application_id -7, not 8: it belongs to another program"),
        (
            {"mmap_size": 1 << 50},
            r"mmap_size = 1125899906842624 is not in force: the database answered \d+; this build",
        ),
        (
            {"max_page_count": 1},
            r"max_page_count = 1 is not in force: the database answered \d+; the database is larger",
        ),
    ],
)
def test_what_the_file_or_the_build_cannot_do_is_refused(given: dict[str, Any], message: str, connect: Connect) -> None:
    first = connect()
    apply(first, EVERYTHING, role="writer")
    first.execute("CREATE TABLE t (x)")
    first.execute("CREATE TABLE u (x)")
    with pytest.raises(ConfigError, match=message):
        apply(connect(), Pragmas(**given).effective(), role="writer")


QUESTIONS = [
    *(("writer", name) for name in ("busy_timeout", "page_size", "auto_vacuum", "synchronous", "wal_autocheckpoint")),
    *(("writer", name) for name in ("journal_size_limit", "foreign_keys", "recursive_triggers", "secure_delete")),
    *(("writer", name) for name in ("max_page_count", "trusted_schema", "cell_size_check", "cache_size", "temp_store")),
    *(("writer", name) for name in ("analysis_limit", "mmap_size")),
    *(("reader", name) for name in ("query_only", "trusted_schema", "cache_size", "mmap_size", "temp_store")),
    *(("memory", name) for name in ("foreign_keys", "trusted_schema", "page_size")),
]


@pytest.mark.parametrize(("role", "name"), QUESTIONS)
@pytest.mark.parametrize("rows", [[], [(77,)]], ids=["no answer", "another answer"])
def test_a_pragma_that_is_not_in_force_makes_opening_fail(
    role: Any, name: str, rows: list[tuple[int]], connect: Connect
) -> None:
    with pytest.raises(ConfigError, match=rf"the pragma {name} = .+ is not in force: the database answered"):
        apply(connect(factory=liar(name, *rows)), EVERYTHING, role=role)


def test_another_journal_mode_than_wal_makes_opening_fail(connect: Connect) -> None:
    """H39: SQLite answers with the mode it took, and raises nothing."""
    with pytest.raises(ConfigError, match="journal_mode = wal is not in force: the database answered 'delete'"):
        apply(connect(factory=liar("journal_mode = WAL", ("delete",))), DEFAULTS, role="writer")


def test_a_database_in_memory_is_no_writers(connect: Connect) -> None:
    with pytest.raises(ConfigError, match="the database answered 'memory'"):
        apply(connect(":memory:"), DEFAULTS, role="writer")


@pytest.mark.parametrize("stuck", ["DEFENSIVE", "DQS_DDL", "DQS_DML"])
def test_a_switch_that_is_not_in_force_makes_opening_fail(
    stuck: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DEFENSIVE", "DQS_DDL", "DQS_DML"):  # Python 3.11 has neither the names nor the switches
        monkeypatch.setattr(sqlite3, f"SQLITE_DBCONFIG_{name}", name, raising=False)

    class Switched(Connection):
        def setconfig(self, op: Any, enable: bool = True, /) -> None:
            setattr(self, op, enable)

        def getconfig(self, op: Any, /) -> bool:
            answer: bool = getattr(self, op)
            return answer if op != stuck else not answer

    with pytest.raises(ConfigError, match=f"the pragma {stuck} = "):
        apply(connect(factory=Switched), DEFAULTS, role="memory")


def test_another_programs_lock_goes_through_as_sqlites_own_error(connect: Connect) -> None:
    blocker = connect()
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError) as caught:
        apply(connect(), DEFAULTS, role="writer")
    assert caught.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    blocker.execute("ROLLBACK")
    apply(connect(), DEFAULTS, role="writer")


def test_opening_a_database_that_is_as_it_should_be_waits_for_no_writer(connect: Connect) -> None:
    writer = connect()
    apply(writer, EVERYTHING, role="writer")
    writer.execute("BEGIN IMMEDIATE")
    apply(connect(), EVERYTHING, role="writer")
    apply(connect(), EVERYTHING, role="reader")


def test_a_junk_file_goes_through_as_sqlites_own_error(connect: Connect, path: Path) -> None:
    path.write_bytes(b"junk" * 1000)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        apply(connect(), DEFAULTS, role="writer")
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_NOTADB


# ---- what SQL may not set


@pytest.mark.parametrize("name", sorted(OWNED))
def test_what_safedb_owns_may_be_read_but_not_set_and_the_remedy_is_named(name: str) -> None:
    text = refusal(name.upper(), setting=True)
    assert text is not None
    assert text == f"PRAGMA {name} is safedb's own: {OWNED[name]}"
    assert refusal(name, setting=False) == (text if name == "wal_checkpoint" else None)


@pytest.mark.parametrize("name", ["user_version", "application_id", "table_info", "optimize", "incremental_vacuum"])
def test_what_belongs_to_the_user_may_be_set(name: str) -> None:
    assert refusal(name, setting=True) is None


def test_every_pragma_that_can_be_configured_is_owned() -> None:
    assert set(Pragmas.kinds()) - set(OWNED) == {"profile", "application_id"}


@pytest.mark.parametrize(("asked", "build"), [("FILE", "TEMP_STORE=3"), ("MEMORY", "TEMP_STORE=0")])
def test_a_temp_store_that_this_build_overrules_is_refused(connect: Connect, asked: Any, build: str) -> None:
    """H6: pysqlite3's SQLite keeps temporary tables in memory, whatever it is told, and says that it obeys."""
    connection = connect()
    present = connection.execute("SELECT sqlite_compileoption_used(?)", (build,)).fetchone() == (1,)
    if not present:
        apply(connection, Pragmas(temp_store=asked).effective(), role="writer")
        connection.create_function("sqlite_compileoption_used", 1, build.__eq__)
    with pytest.raises(ConfigError, match=f"temp_store = {asked} is not in force: the database answered '{build}'"):
        apply(connection, Pragmas(temp_store=asked).effective(), role="writer")
