"""One module of SQLite for all of safedb, chosen once; and what safedb makes of the modules' own surprises."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Connect
from support import Crew, sqlite3, unmeasured, wait_until

import safedb
from safedb.retry import EXTENDED, INTERRUPT, classify, name_of
from safedb.sqlite import driver
from safedb.sqlite.driver import choose

stdlib = driver.stdlib  # type: ignore[attr-defined]
ROOT = Path(__file__).parent.parent.parent
NEWER, SAME = (99, 0, 0), stdlib.sqlite_version_info
ASKED = {driver.VARIABLE: driver.NEWEST}


# -- the choice -------------------------------------------------------------------------------------------------------


class Module(ModuleType):
    """Be what is imported as pysqlite3: the standard library's in other clothes, for the real one may not be here."""

    Error = stdlib.Error

    def __init__(self, version: tuple[int, ...], *, extended: bool = True) -> None:
        super().__init__(driver.NEWEST)
        self.sqlite_version_info = version
        self.sqlite_version = ".".join(map(str, version))
        self.extended = extended

    def connect(self, name: str, *, flags: int) -> Any:
        assert flags & driver.EXRESCODE
        return Connection(name, extended=self.extended)


class Connection:
    def __init__(self, name: str, *, extended: bool) -> None:
        self._connection = stdlib.connect(name)
        self._extended = extended

    def execute(self, sql: str) -> None:
        try:
            self._connection.execute(sql)
        except stdlib.Error as error:
            if not self._extended:
                error.sqlite_errorcode &= 0xFF
            raise

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a module in the place of pysqlite3; None stands for none."""
    return lambda module: monkeypatch.setitem(sys.modules, driver.NEWEST, module)


def test_a_newer_sqlite_is_used_where_it_is_installed(installed: Callable[[Any], None]) -> None:
    newer = Module(NEWER)
    installed(newer)
    assert choose({}) == (newer, f"it is newer than the standard library's SQLite {stdlib.sqlite_version}")


def test_otherwise_the_standard_librarys_is_used_and_the_reason_told(installed: Callable[[Any], None]) -> None:
    for module, why in (
        (None, "is not installed"),
        (Module(SAME), "is not newer"),
        (Module(NEWER, extended=False), "too old to tell SQLite's extended error codes"),
    ):
        installed(module)
        chosen, reason = choose({})
        assert chosen is stdlib
        assert why in reason


def test_the_operator_decides_otherwise(installed: Callable[[Any], None]) -> None:
    installed(Module(NEWER))
    assert choose({driver.VARIABLE: "sqlite3"}) == (stdlib, "SAFEDB_SQLITE asks for it")
    older = Module((3, 40, 0))
    installed(older)
    assert choose(ASKED) == (older, "SAFEDB_SQLITE asks for it")


def test_a_module_that_was_asked_for_and_cannot_be_used_is_refused_with_the_remedy(
    installed: Callable[[Any], None],
) -> None:
    for module, why in ((None, "is not installed"), (Module(NEWER, extended=False), "is too old")):
        installed(module)
        with pytest.raises(safedb.ConfigError, match=rf"{why}.*pip install 'safedb\[sqlite-latest\]'"):
            choose(ASKED)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise ImportError('undefined symbol: sqlite3_open')", "cannot be imported"),
        ("import nosuch_part_of_it", "cannot be imported"),
        ("connect = lambda name: None; sqlite_version_info = (99, 0, 0)", "too old"),
    ],
)
def test_a_broken_module_is_passed_over_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, why: str
) -> None:
    (tmp_path / f"{driver.NEWEST}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, driver.NEWEST, raising=False)
    chosen, reason = choose({})
    assert chosen is stdlib
    assert why in reason
    monkeypatch.delitem(sys.modules, driver.NEWEST, raising=False)
    with pytest.raises(safedb.ConfigError, match=why):
        choose(ASKED)


def run(code: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=unmeasured() | environ, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_a_misspelt_choice_is_refused_by_the_first_connect_and_names_the_word_that_was_meant() -> None:
    code = "import safedb\ntry: safedb.connect('sqlite://')\nexcept safedb.ConfigError as error: print(error)"
    told = run(code, SAFEDB_SQLITE="pysqlite")
    assert "SAFEDB_SQLITE = 'pysqlite' is neither sqlite3 nor pysqlite3" in told
    assert "did you mean 'pysqlite3'?" in told


def test_the_choice_holds_for_a_whole_process() -> None:
    code = "from safedb.sqlite import driver, engine, writer; print(driver.MODULE, engine.sqlite3 is writer.sqlite3)"
    assert run(code, SAFEDB_SQLITE="sqlite3") == "sqlite3 True"
    assert run(code, SAFEDB_SQLITE=driver.MODULE) == f"{driver.MODULE} True"


@pytest.mark.skipif(driver.MODULE != driver.NEWEST, reason="pysqlite3 is not in use here")
def test_a_program_that_puts_pysqlite3_in_the_place_of_sqlite3_has_one_module_too() -> None:
    """H6: a widespread trick; two modules would drop each other's locks (H32), and codes must be extended then too."""
    code = (
        "import sys; __import__('pysqlite3'); sys.modules['sqlite3'] = sys.modules.pop('pysqlite3'); import sqlite3\n"
        "import safedb; from safedb.sqlite import driver\n"
        "assert driver.sqlite3 is sqlite3\n"
        "try: safedb.connect('sqlite://', schema=['CREATE TABLE t (x NOT NULL)', 'INSERT INTO t VALUES (NULL)'])\n"
        "except safedb.NotNullViolation as error: print(error.sqlite_errorname)"
    )
    assert run(f"import warnings; warnings.simplefilter('ignore')\n{code}") == "SQLITE_CONSTRAINT_NOTNULL"


def importers() -> Iterator[str]:
    for folder in ("safedb", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if {name.partition(".")[0] for name in names} & {"sqlite3", "pysqlite3"}:
                    yield path.relative_to(ROOT).as_posix()


def test_nobody_but_the_driver_imports_a_sqlite_module() -> None:
    """H6, H32: an except clause for the other one's errors catches nothing, and its connections drop our locks."""
    assert set(importers()) == {"safedb/sqlite/driver.py"}


def test_safedb_uses_nothing_that_one_of_the_modules_lacks() -> None:
    """H6: switches are asked of the connection (`getattr`), never of Python's version."""
    lacking = {"autocommit", "blobopen", "deserialize", "getlimit", "iterdump", "serialize", "setlimit"}
    for path in (ROOT / "safedb" / "sqlite").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in lacking, path.name
                asked = (node.attr, getattr(node.value, "id", "")) == ("version_info", "sys")
                assert not asked or path.name == "deserted.py", path.name  # (there it is about the interpreter)


# -- what the modules have in common, and what not --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "error", "name"),
    [
        ("INSERT INTO t VALUES (NULL, 1)", safedb.NotNullViolation, "SQLITE_CONSTRAINT_NOTNULL"),
        ("INSERT INTO t VALUES (1, 1)", safedb.UniqueViolation, "SQLITE_CONSTRAINT_PRIMARYKEY"),
        ("INSERT INTO t VALUES (2, 9)", safedb.ForeignKeyViolation, "SQLITE_CONSTRAINT_FOREIGNKEY"),
        ("INSERT INTO t VALUES (2, -1)", safedb.CheckViolation, "SQLITE_CONSTRAINT_CHECK"),
        ("INSERT INTO t VALUES (2, 'x')", safedb.DataError, "SQLITE_CONSTRAINT_DATATYPE"),
        ("SELECT nosuch FROM t", safedb.ProgrammingError, "SQLITE_ERROR"),
    ],
)
def test_errors_are_told_apart_by_their_extended_codes_whatever_the_module(
    connect: Connect, sql: str, error: type[safedb.Error], name: str
) -> None:
    """H6: pysqlite3 tells only the first byte unless it is asked, and has one class and no name for all the others."""
    schema = "CREATE TABLE t (id INT PRIMARY KEY NOT NULL, p INT REFERENCES t CHECK (p >= 0)) STRICT"
    db = connect(schema=[schema, "INSERT INTO t VALUES (1, NULL)"])
    with pytest.raises(error) as caught:
        db.execute(sql)
    assert type(caught.value) is error
    assert caught.value.sqlite_errorname == name
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


def test_the_names_of_extended_codes_are_sqlites() -> None:
    known = {name: code for name, code in vars(stdlib).items() if isinstance(code, int) and code in EXTENDED}
    assert len(known) > 50
    assert {name: EXTENDED[code] for name, code in known.items()} == {name: name for name in known}
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = 1034, "SQLITE_UNKNOWN"
    assert classify(error, doing="x").sqlite_errorname == name_of(error) == "SQLITE_IOERR_FSYNC"


def test_a_statement_can_be_interrupted_from_another_thread(crew: Crew) -> None:
    """H28: the watcher's means. Written down: the statement runs in one thread, and is interrupted from this one."""
    running = threading.Event()
    with closing(driver.connect(":memory:", check_same_thread=False)) as connection:
        connection.create_function("here", 0, lambda: running.set() or 1)  # type: ignore[func-returns-value]
        endless = "WITH RECURSIVE c(x) AS (SELECT here() UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
        worker = crew(lambda: connection.execute(endless).fetchall())
        assert running.wait(30)
        while worker.running:
            connection.interrupt()
        error = worker.error()
    assert isinstance(error, sqlite3.OperationalError)
    assert error.sqlite_errorcode == INTERRUPT


def test_sqlite_is_built_for_threads() -> None:
    """pysqlite3 says ``threadsafety`` 1 whatever its SQLite is; safedb hands connections from thread to thread."""
    with closing(driver.connect(":memory:")) as connection:
        assert connection.execute("SELECT sqlite_compileoption_used('THREADSAFE=0')").fetchone() == (0,)


# -- transactions and cursors -----------------------------------------------------------------------------------------


@pytest.fixture
def db(connect: Connect) -> safedb.Database:
    made: safedb.Database = connect(schema="CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT UNIQUE)")
    return made


@pytest.fixture
def witness(db: safedb.Database, target: Path) -> Iterator[Callable[[], int]]:
    """Count the rows as another connection sees them."""
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        yield lambda: int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


@pytest.mark.parametrize(
    "work",
    [
        lambda tx: tx.execute("CREATE TABLE u (x)"),
        lambda tx: tx.execute("WITH w(v) AS (VALUES ('w')) INSERT INTO t (v) SELECT v FROM w"),
        lambda tx: tx.executemany("INSERT INTO t (v) VALUES (?)", [("a",), ("b",)]),
        lambda tx: tx.execute("SELECT * FROM t").fetchall(),
        lambda tx: tx.execute("INSERT INTO t (v) VALUES ('r') RETURNING id").scalar(),
        lambda tx: tx.savepoint().__enter__(),
        lambda tx: tx.execute("PRAGMA user_version = 3"),
    ],
    ids=["DDL", "WITH … INSERT", "executemany", "SELECT", "RETURNING", "a savepoint", "PRAGMA"],
)
def test_nothing_that_runs_inside_a_transaction_commits_it(
    db: safedb.Database, witness: Callable[[], int], work: Callable[[Any], Any]
) -> None:
    """H20: the modules' own handling of transactions commits, or begins none, for some of these."""

    def run(end: Callable[[], object]) -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t (v) VALUES ('first')")
            work(tx)
            assert witness() == 0
            end()

    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    assert witness() == 0
    run(int)
    assert witness() >= 1


def test_a_script_is_one_transaction_and_never_commits_anothers(
    db: safedb.Database, witness: Callable[[], int]
) -> None:
    """H20: the modules' own ``executescript`` commits what is open, and then each statement alone."""

    def inside(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('open')")
        db.executescript("INSERT INTO t (v) VALUES ('script')")

    with pytest.raises(safedb.ReentrancyError):
        db.run_transaction(inside)
    assert witness() == 0
    with pytest.raises(safedb.UniqueViolation):
        db.executescript("INSERT INTO t (v) VALUES ('a'); INSERT INTO t (v) VALUES ('a')")
    assert witness() == 0
    for path in (ROOT / "safedb" / "sqlite").glob("*.py"):
        assert ".executescript(" not in path.read_text("utf-8"), path.name


@pytest.mark.parametrize("many", [1, 5000])
def test_returning_is_committed_when_it_is_acknowledged_though_no_row_is_fetched(
    db: safedb.Database, witness: Callable[[], int], many: int
) -> None:
    """H21: by the modules' own cursor it is committed with the last row fetched, and rowcount is 0 until then.

    pysqlite3's rowcount even stays that of the statement before.
    """
    values = "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c WHERE x < ?)"
    result = db.execute(f"{values} INSERT INTO t (v) SELECT x FROM c RETURNING id", (many,))
    assert witness() == many
    assert result.rowcount == many
    assert len(result) == many


def test_what_was_ignored_counts_for_nothing(db: safedb.Database) -> None:
    """H27: ``lastrowid`` and ``changes()`` keep what an earlier statement, perhaps another thread's, left there."""
    assert db.execute("INSERT INTO t VALUES (7, 'a')").rowcount == 1
    assert db.execute("INSERT OR IGNORE INTO t (v) VALUES ('a')").rowcount == 0
    assert db.execute("INSERT OR IGNORE INTO t (v) VALUES ('a') RETURNING id").fetchall() == []
    assert db.executemany("INSERT OR IGNORE INTO t (v) VALUES (?)", [("a",), ("b",), ("b",)]) == 1
    assert not hasattr(db.execute("SELECT 1"), "lastrowid")
    with pytest.raises(safedb.ProgrammingError, match="RETURNING"):
        db.execute("SELECT last_insert_rowid()")


def test_text_that_is_not_utf_8_is_an_error_and_not_a_guess(db: safedb.Database) -> None:
    """H26: it can be stored by a cast; the modules raise an error without a code when it is read."""
    db.execute("INSERT INTO t VALUES (1, CAST(x'ff' AS TEXT))")
    with pytest.raises(safedb.OperationalError, match="UTF-8"):
        db.execute("SELECT v FROM t")
    assert db.execute("SELECT CAST(v AS BLOB) FROM t").scalar() == b"\xff"


def test_no_connection_is_left_open_by_a_handle_that_is_closed(db: safedb.Database, target: Path) -> None:
    """H28: not every module warns of a connection that was not closed: so the descriptors are counted."""
    folder = Path("/proc/self/fd")
    if not folder.exists():  # macOS
        pytest.skip("this system does not list a process's descriptors")

    def opened() -> int:
        links = [str(entry.readlink()) for entry in folder.iterdir() if entry.is_symlink()]
        return sum(link.startswith(str(target)) for link in links)

    db.execute("INSERT INTO t (v) VALUES ('a')")
    with db.snapshot() as snap:
        snap.execute("SELECT * FROM t")
    assert opened() > 0
    db.close()
    wait_until(lambda: opened() == 0, "the descriptors to be closed")
