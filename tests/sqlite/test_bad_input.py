"""Bad input: each gives a clear error of ours that names the thing and the remedy, and loses nothing."""

# What raises here is a block, with what came before in it.
# ruff: noqa: PT012
from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Connect
from support import JOIN, Crew, sqlite3, unmeasured

import safedb


@pytest.fixture
def db(db: safedb.Database) -> Iterator[safedb.Database]:
    """Be a database with one row, which is there in the end whatever was asked of it; and it still works."""
    db.execute("INSERT INTO t (v) VALUES ('kept')")
    yield db
    assert db.execute("SELECT v FROM t WHERE v = 'kept'").fetchall() == [("kept",)]
    assert db.execute("INSERT INTO t (v) VALUES ('works')").rowcount == 1
    assert db.check() == []


def refused(call: Callable[[], Any], error: type[safedb.Error], *told: str) -> safedb.Error:
    """Check that a call raises exactly this error, and that its text tells all of this."""
    with pytest.raises(safedb.Error) as caught:
        call()
    assert type(caught.value) is error, repr(caught.value)
    for text in told:
        assert text in str(caught.value)
    return caught.value


# -- targets and settings ---------------------------------------------------------------------------------------------

TARGETS: list[tuple[Any, tuple[str, ...]]] = [
    ("mysql://host/db", ("'mysql'", "sqlite:///")),
    ("sqlte:///app.db", ("'sqlte'", "sqlite")),
    ("app.db", ("no scheme", "sqlite:///app.db", "Path")),
    ("", ("sqlite:///",)),
    ("sqlite://app.db", ("three slashes",)),
    ("sqlite:///app.db?syncronous=FULL", ("'syncronous'", "synchronous")),
    ("sqlite:///app.db?vfs=unix-none", ("'vfs'",)),
    ("sqlite:///app.db?nolock=1", ("'nolock'",)),
    ("sqlite:///app.db?synchronous=MAYBE", ("synchronous", "MAYBE", "FULL")),
    ("sqlite:///app.db?timeout=0", ("timeout", "0")),
    ("sqlite:///app.db?timeout=1e10", ("timeout",)),
    ("sqlite:///app.db?mode=rwc", ("mode", "rwc", "ro")),
    ("sqlite:///app.db?timeout=1&timeout=2", ("timeout", "twice")),
    ("sqlite:///a%00b.db", ("NUL",)),
    ("sqlite:///a\0b.db", ("NUL",)),
    ("sqlite:///100%.db", ("%25",)),
    (Path("a\0b.db"), ("NUL",)),
    (b"app.db", ()),
    (7, ()),
]


@pytest.mark.parametrize(("target", "told"), TARGETS, ids=[repr(target) for target, _ in TARGETS])
def test_a_target_that_is_none(target: Any, told: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: safedb.connect(target), safedb.ConfigError, *told)
    assert list(tmp_path.iterdir()) == [], "it left something behind"


def test_no_target_at_all() -> None:
    refused(safedb.connect, safedb.ConfigError, "SAFEDB_URL", "DATABASE_URL")


def test_a_password_never_shows() -> None:
    for url in (
        "postgresql://user:s3cr3t@host/db?nosuch=1",
        "postgres://user:s3c@r3t@host/db",
        "pg://user:s3cr3t@host",
    ):
        with pytest.raises(safedb.Error) as caught:
            safedb.connect(url)
        assert "s3c" not in str(caught.value)
        assert "r3t" not in str(caught.value)


OPTIONS: list[tuple[Callable[[], Any], tuple[str, ...]]] = [
    (lambda: safedb.Pragmas(syncronous="FULL"), ("syncronous", "synchronous")),  # type: ignore[call-arg]
    (lambda: safedb.Pragmas(synchronous="SOMETIMES"), ("synchronous", "SOMETIMES", "NORMAL")),
    (lambda: safedb.Pragmas(page_size=1000), ("page_size", "1000")),
    (lambda: safedb.Pragmas(foreign_keys="yes"), ("foreign_keys",)),  # type: ignore[arg-type]
    (lambda: safedb.Pragmas(profile="fast"), ("profile", "fast", "durable")),
    (lambda: safedb.RetryPolicy(timeout=0), ("timeout", "0")),
    (lambda: safedb.RetryPolicy(timeout=math.nan), ("timeout", "nan")),
    (lambda: safedb.RetryPolicy(timout=1), ("timout", "timeout")),  # type: ignore[call-arg]
    (lambda: safedb.PoolConfig(max_size=0), ("max_size", "0")),
    (lambda: safedb.PoolConfig(min_size=9, max_size=2).effective(), ("min_size", "max_size")),
    (lambda: safedb.connect("sqlite://", pragmas=safedb.RetryPolicy()), ("RetryPolicy", "Pragmas")),  # type: ignore[arg-type]
    (lambda: safedb.connect("sqlite://", read_only="yes"), ("read_only",)),  # type: ignore[arg-type]
    (lambda: safedb.connect("sqlite://", read_only=True), ("memory", "mode=ro")),
    (lambda: safedb.connect("sqlite://", on_event=7), ("on_event",)),  # type: ignore[arg-type]
    (lambda: safedb.connect("sqlite://", row_factory="dict"), ("row_factory", "dict_row")),  # type: ignore[arg-type]
    (lambda: safedb.connect("sqlite://", functions={"f": 7}), ("functions", "'f'", "callable")),
    (lambda: safedb.connect("sqlite://", collations=[len]), ("collations", "mapping")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "told"), OPTIONS, ids=[" ".join(told) for _, told in OPTIONS])
def test_settings_that_are_none(make: Callable[[], Any], told: tuple[str, ...]) -> None:
    refused(make, safedb.ConfigError, *told)


def test_a_misspelt_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEDB_SYNCRONOUS", "FULL")
    refused(lambda: safedb.connect("sqlite://"), safedb.ConfigError, "SAFEDB_SYNCRONOUS", "SAFEDB_SYNCHRONOUS")


def test_a_schema_that_is_no_sql(connect: Connect) -> None:
    for schema in (7, b"CREATE TABLE t (v TEXT)"):
        refused(lambda schema=schema: connect(schema=schema), safedb.ConfigError, "schema", "str")  # type: ignore[misc]
    refused(lambda: connect(schema=[7]), safedb.ProgrammingError, "str", "int")


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_folder_as_database(connect: Connect, tmp_path: Path) -> None:
    refused(lambda: connect(tmp_path), safedb.ConfigError, str(tmp_path), "folder", "add the database's name")


def test_a_missing_parent_folder(connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "app.db"
    refused(lambda: connect(path), safedb.ConfigError, str(path.parent), "mkdir")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("junk", [b"this is no database, but a letter\n" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_junk_file_as_database(connect: Connect, tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(junk)
    for options in ({}, {"read_only": True}, {"schema": "CREATE TABLE t (v TEXT)"}):
        error = refused(lambda options=options: connect(path, **options), safedb.DatabaseError, str(path), "database")  # type: ignore[misc]
        assert error.sqlite_errorname in ("SQLITE_NOTADB", "SQLITE_CORRUPT")
    assert path.read_bytes() == junk, "the file was changed"


def test_another_programs_database(connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    theirs = sqlite3.connect(path)
    theirs.executescript("PRAGMA application_id = 7; CREATE TABLE t (v TEXT)")
    theirs.close()
    ours = safedb.Pragmas(application_id=8)
    refused(lambda: connect(path, pragmas=ours), safedb.ConfigError, "application_id 7, not 8")


def test_a_side_file_as_database(db: safedb.Database, connect: Connect, tmp_path: Path) -> None:
    refused(lambda: connect(tmp_path / "test.db-wal"), safedb.ConfigError, "side file", "test.db")


def test_a_device_or_a_pipe_as_database(connect: Connect, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: connect(tmp_path / "pipe"), safedb.ConfigError, "pipe", "no regular file")
    refused(lambda: connect(Path("/dev/null")), safedb.ConfigError, "/dev/null")


def test_a_database_with_two_hard_links(db: safedb.Database, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "twin.db").hardlink_to(tmp_path / "test.db")
    refused(lambda: connect(tmp_path / "twin.db"), safedb.ConfigError, "hard links", "remove the others")
    (tmp_path / "twin.db").unlink()


AS_NOBODY = """
import logging, os, sys, safedb
logging.disable()
with safedb.connect("sqlite://") as db:  # imports what it needs, while it may read the interpreter's own files
    db.execute("SELECT 1")
os.chdir("/")
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
"""
OPEN = """
import pathlib, safedb
try:
    with safedb.connect(pathlib.Path(sys.argv[1]), read_only=sys.argv[2] == "ro") as db:
        print(db.execute("SELECT v FROM t").fetchall())
        db.execute("INSERT INTO t VALUES ('written')")
except safedb.Error as error:
    print(type(error).__name__, error)
"""


def open_as_nobody(path: Path, mode: str = "rw") -> str:
    """Open a database in a process without the rights of root, which may write everywhere."""
    command = [sys.executable, "-c", AS_NOBODY + OPEN, str(path), mode]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=JOIN, env=unmeasured())
    assert answer.stderr == ""
    return answer.stdout


@pytest.fixture
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Be a database that others may read and nobody but its owner may write, in a folder of the same kind."""
    folder = tmp_path_factory.mktemp("foreign")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and str(parent).startswith(("/tmp/", "/var/")):
            parent.chmod(0o755)
    path = folder / "app.db"
    with safedb.connect(path, schema="CREATE TABLE t (v TEXT)", pragmas=safedb.Pragmas(file_mode=0o644)) as db:
        db.execute("INSERT INTO t VALUES ('kept')")
    return path


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_read_only_file_or_folder(foreign: Path) -> None:
    answer = open_as_nobody(foreign)
    assert answer.startswith("ConfigError"), answer
    for told in (str(foreign), "may not be written", "read_only=True"):
        assert told in answer
    foreign.chmod(0o666)
    answer = open_as_nobody(foreign)
    assert answer.startswith("ConfigError"), answer
    assert f"the folder {str(foreign.parent)!r}" in answer
    foreign.chmod(0o600)
    assert "may not be read" in open_as_nobody(foreign, "ro")
    with safedb.connect(foreign) as db:
        assert db.execute("SELECT v FROM t").one() == ("kept",)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_reading_where_nothing_may_be_written(foreign: Path) -> None:
    """SQLite wants a -shm beside the file (H42): a writer has made it, without one the error says what is missing."""
    answer = open_as_nobody(foreign, "ro")
    assert answer.split()[0] in ("ConfigError", "OperationalError"), answer
    assert "rights" in answer or "-shm" in answer or "folder" in answer, answer
    with safedb.connect(foreign) as db:
        db.execute("INSERT INTO t VALUES ('new')")
        answer = open_as_nobody(foreign, "ro")
    assert "[('kept',), ('new',)]" in answer
    assert "ProgrammingError" in answer
    assert "read-only" in answer


def test_a_network_file_system(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H44: no test can mount one: the table of mounts says that the test's folder is one."""
    from safedb.sqlite import location

    table = f"21 1 0:1 / / rw - ext4 /dev/sda rw\n22 21 0:2 / {tmp_path} rw - nfs4 server:/export rw\n"
    monkeypatch.setattr(location, "_mountinfo", lambda: table)
    refused(lambda: connect(tmp_path / "app.db"), safedb.ConfigError, str(tmp_path), "nfs4", "local disk")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_not_there_cannot_be_read(connect: Connect, tmp_path: Path) -> None:
    refused(lambda: connect(tmp_path / "no.db", read_only=True), safedb.ConfigError, "no.db", "check the path")
    assert list(tmp_path.iterdir()) == []


# -- SQL --------------------------------------------------------------------------------------------------------------

SQL: list[tuple[Any, tuple[str, ...]]] = [
    ("", ("no statement",)),
    (" ; -- nothing", ("no statement",)),
    ("SELECT 1\0", ("NUL",)),
    ("SELECT '\ud800'", ("surrogate",)),
    ("SELECT 'never ends", ("never end",)),
    ("SELECT 1 /* never ends", ("never end",)),
    ("SELECT 1; SELECT 2", ("executescript",)),
    ("INSERT INTO t (v) VALUES ('a'); DROP TABLE t", ("executescript",)),
    ("BEGIN", ("BEGIN", "db.transaction()")),
    ("begin immediate", ("BEGIN", "db.transaction()")),
    ("/* hidden */ BEGIN", ("BEGIN", "db.transaction()")),
    ("-- hidden\n COMMIT", ("COMMIT", "leave the")),
    ("COMMIT", ("COMMIT", "leave the")),
    ("END", ("END", "leave the")),
    ("ROLLBACK", ("ROLLBACK", "raise an exception")),
    ("SAVEPOINT x", ("SAVEPOINT", "tx.savepoint()")),
    ("RELEASE x", ("RELEASE", "tx.savepoint()")),
    ("/**/ROLLBACK TO x", ("ROLLBACK",)),
    ("EXPLAIN COMMIT", ("COMMIT",)),
    ("SELECT ?1", ("?1",)),
    ("SELECT @a", ("@a",)),
    ("SELECT $a", ("$a",)),
    ("SELECT ? + :a", ("one style",)),
    ("SELECT 1 ?? 2", ("??", "PostgreSQL")),
    ("PRAGMA journal_mode = DELETE", ("journal_mode", "always WAL")),
    ("PRAGMA journal_mode(DELETE)", ("journal_mode", "always WAL")),
    ("PRAGMA main.journal_mode = DELETE", ("journal_mode", "always WAL")),
    ("PRAGMA locking_mode = EXCLUSIVE", ("locking_mode",)),
    ("PRAGMA busy_timeout = 5000", ("busy_timeout", "RetryPolicy")),
    ("PRAGMA wal_autocheckpoint = 1", ("wal_autocheckpoint", "checkpoint_pages")),
    ("PRAGMA wal_checkpoint", ("wal_checkpoint", "db.checkpoint()")),
    ("PRAGMA synchronous = OFF", ("synchronous", "Pragmas(synchronous")),
    ("/* x */ PRAGMA foreign_keys = OFF", ("foreign_keys", "Pragmas(foreign_keys")),
    ("PRAGMA query_only = ON", ("query_only", "read_only=True")),
    ("PRAGMA writable_schema = ON", ("writable_schema", "ALTER TABLE")),
    ("ATTACH 'other.db' AS other", ("safedb.connect()",)),
    ("VACUUM INTO 'copy.db'", ("db.backup",)),
    ("VACUUM main INTO 'copy.db'", ("db.backup",)),
    (b"SELECT 1", ("str", "bytes")),
    (None, ("str",)),
]


@pytest.mark.parametrize(("sql", "told"), SQL, ids=[repr(sql) for sql, _ in SQL])
def test_sql_that_is_refused_is_refused_by_every_call(db: safedb.Database, sql: Any, told: tuple[str, ...]) -> None:
    refused(lambda: db.execute(sql), safedb.ProgrammingError, *told)
    refused(lambda: db.executemany(sql, [()]), safedb.ProgrammingError)
    with db.transaction() as tx:
        refused(lambda: tx.execute(sql), safedb.ProgrammingError)
        tx.execute("UPDATE t SET v = v")
    with db.snapshot() as snap:
        refused(lambda: snap.execute(sql), safedb.ProgrammingError)
        assert snap.execute("SELECT v FROM t").one() == ("kept",)
    several = isinstance(sql, str) and (";" in sql or not sql)  # a script may hold several statements, or none
    if not several:
        refused(lambda: db.executescript(sql), safedb.ProgrammingError)
    refused(lambda: db.execute(sql), safedb.ProgrammingError, *told)  # also when it was seen before


@pytest.mark.parametrize("sql", ["VACUUM", "PRAGMA optimize"])
def test_what_cannot_run_inside_a_transaction_says_where_it_can(db: safedb.Database, sql: str) -> None:
    if sql != "PRAGMA optimize":
        with db.transaction() as tx:
            refused(lambda: tx.execute(sql), safedb.ProgrammingError, "inside a transaction", "db.execute")
    db.execute(sql)


PARAMETERS: list[tuple[str, Any, tuple[str, ...]]] = [
    ("SELECT ?", None, ("1 parameter", "0 given")),
    ("SELECT ?", (), ("1 parameter", "0 given")),
    ("SELECT ?", (1, 2), ("1 parameter", "2 given")),
    ("SELECT ?, ?", (1,), ("2 parameters", "1 given")),
    ("SELECT 1", (1,), ("0 parameters", "1 given")),
    ("SELECT ?", {"a": 1}, ("positional", "sequence")),
    ("SELECT :a", (1,), (":a", "mapping")),
    ("SELECT :a", {}, (":a",)),
    ("SELECT :a", {"a": 1, "b": 2}, ("'b'", ":a")),
    ("SELECT :a", {"A": 1}, (":a",)),
    ("SELECT ?", "x", ("str", "(x,)")),
    ("SELECT ?", b"x", ("bytes", "(x,)")),
    ("SELECT ?", 1, ("int", "(x,)")),
    ("SELECT ?", {1}, ("set", "(x,)")),
    ("SELECT ?", iter([1]), ("list_iterator", "(x,)")),
]


@pytest.mark.parametrize(("sql", "params", "told"), PARAMETERS, ids=[f"{s} {p!r}" for s, p, _ in PARAMETERS])
def test_parameters_that_do_not_fit(db: safedb.Database, sql: str, params: Any, told: tuple[str, ...]) -> None:
    refused(lambda: db.execute(sql, params), safedb.ProgrammingError, *told)
    with db.transaction() as tx:
        refused(lambda: tx.execute(sql, params), safedb.ProgrammingError, *told)
        tx.execute("UPDATE t SET v = v")
    with db.snapshot() as snap:
        refused(lambda: snap.execute(sql, params), safedb.ProgrammingError, *told)
        refused(lambda: snap.iterate(sql, params), safedb.ProgrammingError, *told)


def test_executemany_of_what_it_does_not_run(db: safedb.Database) -> None:
    insert = "INSERT INTO t (v) VALUES (?)"
    for sql in ("SELECT ?", "CREATE TABLE u (a INTEGER)", "PRAGMA user_version = 1"):
        refused(lambda sql=sql: db.executemany(sql, [()]), safedb.ProgrammingError, "INSERT")  # type: ignore[misc]
    no_rows: list[Any] = [None, 7, "ab", [1], [("a",), "b"], [{"v": "a"}], [("a",), ()]]
    for rows in no_rows:
        refused(lambda rows=rows: db.executemany(insert, rows), safedb.ProgrammingError)  # type: ignore[misc]
        with db.transaction() as tx:
            refused(lambda tx=tx, rows=rows: tx.executemany(insert, rows), safedb.ProgrammingError)  # type: ignore[misc]


# -- values -----------------------------------------------------------------------------------------------------------


OUT_OF_RANGE = {
    "an int above 64 bit": 2**63,
    "an int below 64 bit": -(2**63) - 1,
    "a huge int": 10**400,
    "NaN": math.nan,
    "a NUL": "a\0b",
    "a lone surrogate": "\ud800",
    "NaN in JSON": safedb.Json(math.nan),
    "a NUL in JSON": safedb.Json("\0"),
}


@pytest.mark.parametrize("value", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE.keys())
def test_values_out_of_range(db: safedb.Database, value: Any) -> None:
    """H26: each module raises something else for each of them, or stores another value."""
    refused(lambda: db.execute("INSERT INTO t (v) VALUES (?)", (value,)), safedb.DataError, "parameter 1")
    refused(lambda: db.execute("INSERT INTO t (v) VALUES (:x)", {"x": value}), safedb.DataError, "parameter :x")


def test_a_value_of_a_hundred_megabytes(db: safedb.Database) -> None:
    """It is large, and it is none of our business to refuse it."""
    blob = bytes(100_000_000)
    assert db.execute("INSERT INTO t (v) VALUES (?) RETURNING id", (blob,)).scalar() == 2
    assert db.execute("SELECT length(v) FROM t WHERE id = 2").scalar() == len(blob)
    assert db.execute("SELECT v FROM t WHERE id = 2").scalar() == blob
    db.execute("DELETE FROM t WHERE id = 2")


def test_a_value_beyond_sqlites_own_limit(db: safedb.Database) -> None:
    make = "INSERT INTO t (v) VALUES (zeroblob(2000000000))"
    refused(lambda: db.execute(make), safedb.DataError, "too big")
    with pytest.raises(safedb.DataError), db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('lost')")
        tx.execute(make)
    assert db.execute("SELECT count(*) FROM t").scalar() == 1


def test_ten_thousand_parameters(db: safedb.Database) -> None:
    marks = ", ".join(["?"] * 10_000)
    values = list(range(10_000))
    assert db.execute(f"SELECT count(*) FROM t WHERE id IN ({marks})", values).scalar() == 1
    names = {f"n{number}": number for number in values}
    named = ", ".join(f":{name}" for name in names)
    assert db.execute(f"SELECT count(*) FROM t WHERE id IN ({named})", names).scalar() == 1
    rows = ", ".join(["(?)"] * 10_000)
    assert db.execute(f"INSERT INTO t (v) VALUES {rows}", [f"v{number}" for number in values]).rowcount == 10_000


def test_more_parameters_than_sqlite_takes(db: safedb.Database) -> None:
    many = 300_000
    marks = ", ".join(["?"] * many)
    refused(
        lambda: db.execute(f"SELECT count(*) FROM t WHERE id IN ({marks})", range(many)),
        safedb.ProgrammingError,
        "too many SQL variables",
    )


def test_a_text_of_a_megabyte_is_read_each_time_and_runs(db: safedb.Database) -> None:
    text = "x" * 1_000_000
    assert db.execute(f"SELECT length('{text}')").scalar() == 1_000_000
    refused(lambda: db.execute(f"SELECT '{text}"), safedb.ProgrammingError)


# -- deadlines --------------------------------------------------------------------------------------------------------


def enter(manager: Any) -> None:
    with manager:
        pytest.fail("it was entered")


TIMED: dict[str, Callable[[safedb.Database, Any], Any]] = {
    "execute": lambda db, timeout: db.execute("INSERT INTO t (v) VALUES ('x')", timeout=timeout),
    "execute, a read": lambda db, timeout: db.execute("SELECT 1", timeout=timeout),
    "executemany": lambda db, timeout: db.executemany("INSERT INTO t (v) VALUES (?)", [("x",)], timeout=timeout),
    "executescript": lambda db, timeout: db.executescript("INSERT INTO t (v) VALUES ('x')", timeout=timeout),
    "transaction": lambda db, timeout: enter(db.transaction(timeout=timeout)),
    "run_transaction": lambda db, timeout: db.run_transaction(lambda tx: pytest.fail("it was run"), timeout=timeout),
    "snapshot": lambda db, timeout: enter(db.snapshot(timeout=timeout)),
    "max_age": lambda db, timeout: enter(db.snapshot(max_age=timeout)),
    "backup": lambda db, timeout: db.backup("never.db", timeout=timeout),
    "checkpoint": lambda db, timeout: db.checkpoint(timeout=timeout),
    "check": lambda db, timeout: db.check(timeout=timeout),
    "optimize": lambda db, timeout: db.optimize(timeout=timeout),
}


@pytest.mark.parametrize(
    "timeout", [0, 0.0, -1, -0.001, math.nan, math.inf, 1e10, True, "5", 10**400], ids=lambda value: repr(value)[:8]
)
@pytest.mark.parametrize("call", TIMED.values(), ids=TIMED.keys())
def test_a_deadline_that_is_none(
    connect: Connect, call: Callable[[safedb.Database, Any], Any], timeout: Any, tmp_path: Path
) -> None:
    db = connect("sqlite://", schema="CREATE TABLE t (v TEXT)")
    refused(lambda: call(db, timeout), safedb.ConfigError, "timeout")
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


# -- wrong time, wrong place ------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[safedb.Database], Any]] = {
    "execute": lambda db: db.execute("SELECT 1"),
    "executemany": lambda db: db.executemany("INSERT INTO t (v) VALUES (?)", [("x",)]),
    "executescript": lambda db: db.executescript("DELETE FROM t"),
    "transaction": lambda db: enter(db.transaction()),
    "run_transaction": lambda db: db.run_transaction(lambda tx: None),
    "transactional": lambda db: db.transactional(lambda tx: None)(),
    "snapshot": lambda db: enter(db.snapshot()),
    "backup": lambda db: db.backup("never.db"),
    "checkpoint": lambda db: db.checkpoint(),
    "check": lambda db: db.check(),
    "optimize": lambda db: db.optimize(),
    "stats": lambda db: db.stats(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_use_after_close(db: safedb.Database, connect: Connect, call: Callable[[safedb.Database], Any]) -> None:
    closed = connect()
    closed.close()
    refused(lambda: call(closed), safedb.DatabaseClosed, "closed", "connect again", "test.db")
    closed.close()


def test_every_public_method_is_tried_after_close() -> None:
    public = {name for name in dir(safedb.Database) if not name.startswith("_")}
    assert public - set(CALLS) == {"close"}


def test_a_write_inside_a_snapshot(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        refused(lambda: snap.execute("DELETE FROM t"), safedb.ProgrammingError, "read-only", "db.execute")


def test_a_nested_transaction(db: safedb.Database) -> None:
    with db.transaction() as tx:
        refused(lambda: enter(db.transaction()), safedb.ReentrancyError, "inside a transaction", "Use tx")
        refused(lambda: db.run_transaction(lambda tx: None), safedb.ReentrancyError, "inside a transaction", "Use tx")
        tx.execute("UPDATE t SET v = v")
    db.run_transaction(lambda _: refused(lambda: enter(db.transaction()), safedb.ReentrancyError, "Use tx"))


def test_a_backup_to_where_something_would_be_lost(db: safedb.Database, connect: Connect, tmp_path: Path) -> None:
    other = connect(tmp_path / "other.db", schema="CREATE TABLE t (v TEXT)")
    refused(lambda: db.backup(tmp_path / "test.db"), safedb.ConfigError, "the database itself")
    refused(lambda: db.backup(tmp_path / "other.db"), safedb.ConfigError, "in use")
    refused(lambda: db.backup(tmp_path / "no" / "copy.db"), safedb.ConfigError, "no folder")
    refused(lambda: db.backup(tmp_path), safedb.ConfigError, "no file")
    assert other.execute("SELECT count(*) FROM t").scalar() == 0

    def fail(done: int, total: int) -> None:
        raise KeyError("the user's own")

    with pytest.raises(KeyError):
        db.backup(tmp_path / "copy.db", fail)
    assert not list(tmp_path.glob("copy.db*"))


def test_a_thousand_threads_at_once(db: safedb.Database, crew: Crew) -> None:
    """Each writes and reads: all are served, none gets "database is locked", nothing is lost or doubled."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and soft < 2000:
        pytest.skip(f"this machine allows {soft} threads")

    def work(number: int) -> int:
        new = db.execute("INSERT INTO t (v) VALUES (?) RETURNING id", (f"{number}",)).scalar()
        assert db.execute("SELECT v FROM t WHERE id = ?", (new,)).scalar() == f"{number}"
        return int(new)

    ids = crew.together(1000, work)
    assert len(set(ids)) == 1000
    assert db.execute("SELECT count(*) FROM t").scalar() == 1001
    assert db.stats().readers.size <= db.stats().readers.max_size
