"""What a failed COMMIT means is told exactly, others' locks are waited for, a broken connection is replaced."""

# ruff: noqa: PT012 - whole blocks are what fails here
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, sqlite3, wait_until

import safedb
from safedb import errors
from safedb.sql import parse
from safedb.sqlite import pragmas
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.writer import Writer
from safedb.stats import Counters, Event, Hooks, Overrun, Retried

GENEROUS = safedb.RetryPolicy(timeout=60.0)
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
SCHEMA = """
CREATE TABLE parent(id INTEGER PRIMARY KEY);
CREATE TABLE child(id INTEGER PRIMARY KEY, parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE t(x UNIQUE);
"""


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def db(path: Path, heard: list[Event], gate: Gate) -> Iterator[safedb.Database]:
    with safedb.connect(path, schema=SCHEMA, retry=GENEROUS, on_event=heard.append, functions={"gate": gate}) as db:
        yield db


@pytest.fixture
def outsider(path: Path, db: safedb.Database) -> Iterator[sqlite3.Connection]:
    """Be a program that does not use safedb."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    yield connection
    connection.close()


def engine_of(db: safedb.Database) -> SqliteEngine:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    return engine


def block(db: safedb.Database, *statements: str) -> None:
    with db.transaction() as tx:
        for statement in statements:
            tx.execute(statement)


WAYS: dict[str, Callable[[safedb.Database, str], Any]] = {
    "a statement": lambda db, sql: db.execute(sql),
    "a block": block,
    "a function": lambda db, sql: db.run_transaction(lambda tx: tx.execute(sql).rowcount),
    "many": lambda db, sql: db.executemany(sql, [()]),
    "a script": lambda db, sql: db.executescript(sql),
}


# -- COMMIT fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_deferred_reference_that_is_broken_at_commit_keeps_nothing(db: safedb.Database, way: str) -> None:
    """H46e: the COMMIT fails and leaves the transaction open."""
    with pytest.raises(errors.ForeignKeyViolation) as caught:
        WAYS[way](db, "INSERT INTO child VALUES (1, 77)")
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert db.execute("SELECT count(*) FROM child").scalar() == 0
    assert not engine_of(db).writer.in_transaction
    db.execute("INSERT INTO t VALUES (1)", timeout=5.0)


def test_a_deferred_reference_that_is_mended_before_commit_is_kept(db: safedb.Database) -> None:
    block(db, "INSERT INTO child VALUES (1, 77)", "INSERT INTO parent VALUES (77)")
    assert db.execute("SELECT parent FROM child").scalar() == 77


@pytest.mark.parametrize("way", WAYS)
def test_a_full_database_is_told_and_nothing_is_half_done(path: Path, way: str) -> None:
    with safedb.connect(
        path, schema="CREATE TABLE t(x)", pragmas=safedb.Pragmas(max_page_count=20), retry=GENEROUS
    ) as db:
        with pytest.raises(errors.DatabaseFull, match="max_page_count") as caught:
            WAYS[way](db, "INSERT INTO t SELECT zeroblob(200000)")
        assert caught.value.sqlite_errorname == "SQLITE_FULL"
        db.execute("INSERT INTO t VALUES (1)")
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]
        assert db.check() == []


def run_child(code: str, *arguments: str, **environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**ENVIRON, **environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


CALLS = """
def call(way, sql):
    if way == "a statement":
        db.execute(sql)
    elif way == "a block":
        with db.transaction() as tx:
            tx.execute(sql)
    else:
        db.run_transaction(lambda tx: tx.execute(sql).rowcount)
"""

TOO_LARGE = (
    """
import resource, signal, sys, safedb
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
db = safedb.connect("sqlite:///" + sys.argv[1], schema="CREATE TABLE t(x)")
db.execute("INSERT INTO t VALUES (1)")
"""
    + CALLS
    + """
size = db.stats().wal_bytes
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 2000, hard))
try:
    call(sys.argv[2], "INSERT INTO t VALUES (zeroblob(50000))")
except safedb.Error as error:
    print(type(error).__name__, error.sqlite_errorname)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
db.execute("INSERT INTO t VALUES (2)")
print(db.execute("SELECT sum(length(x)) FROM t").scalar(), db.check())
db.close()
"""
)


@pytest.mark.parametrize("way", ["a statement", "a block", "a function"])
def test_a_commit_that_could_not_be_written_is_not_committed(path: Path, way: str) -> None:
    """H14: no room for the frames (here: a limit on the file's size) means not committed, for certain."""
    assert run_child(TOO_LARGE, str(path), way) == ["OperationalError SQLITE_IOERR_WRITE", "2 []"]


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int broken(void) { const char *flag = getenv("SAFEDB_TEST_BROKEN"); return flag && access(flag, F_OK) == 0; }
int fsync(int number) {
    static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (broken()) { errno = EIO; return -1; } return real(number);
}
int fdatasync(int number) {
    static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (broken()) { errno = EIO; return -1; } return real(number);
}
"""

BROKEN_SYNC = (
    """
import os, sys, threading, pathlib, safedb
flag = pathlib.Path(os.environ["SAFEDB_TEST_BROKEN"])
db = safedb.connect("sqlite:///" + sys.argv[1], schema="CREATE TABLE t(x)")
db.execute("INSERT INTO t VALUES (1)")
writer = db._engine.writer
before = writer.connection
"""
    + CALLS
    + """
if sys.argv[2] == "a group":
    outcomes, waiting = [], []
    def write(number):
        try:
            db.execute("INSERT INTO t VALUES (?)", (number,))
            outcomes.append("committed")
        except safedb.Error as error:
            outcomes.append(type(error).__name__)
    with db.transaction():
        for number in range(4):
            thread = threading.Thread(target=write, args=(number,))
            thread.start()
            waiting.append(thread)
        while db.stats().queue_depth < 4:
            pass
        flag.touch()  # this block has written nothing, so its COMMIT syncs nothing
    for thread in waiting:
        thread.join()
    print(len(outcomes), sorted(set(outcomes)))
else:
    flag.touch()
    try:
        call(sys.argv[2], "INSERT INTO t VALUES (2)")
    except safedb.Error as error:
        print(type(error).__name__, error.sqlite_errorname, error.retryable)
flag.unlink()
print(writer.connection is before, db.stats().retries)
db.execute("INSERT INTO t VALUES (33)")
print(writer.connection is before, db.execute("SELECT count(*) FROM t WHERE x = 33").scalar(), db.check())
db.close()
"""
)


@pytest.fixture(scope="session")
def broken_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a library that makes fsync fail while a file is there: no disk fails on demand."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "shim.c"), "-ldl"], check=True, timeout=60
    )
    return library


@pytest.mark.parametrize("way", ["a statement", "a block", "a function"])
def test_after_a_failed_fsync_nobody_can_know_and_the_connection_is_replaced(
    path: Path, tmp_path: Path, broken_disk: Path, way: str
) -> None:
    """H14: the row may be found after a crash, so it is neither a success nor a failure, and nothing is run again."""
    lines = run_child(
        BROKEN_SYNC, str(path), way, LD_PRELOAD=str(broken_disk), SAFEDB_TEST_BROKEN=str(tmp_path / "broken")
    )
    assert lines == ["CommitUnknownError SQLITE_IOERR_FSYNC False", "False {}", "False 1 []"]


def test_after_a_failed_fsync_no_member_of_the_group_is_told_more_than_is_known(
    path: Path, tmp_path: Path, broken_disk: Path
) -> None:
    lines = run_child(
        BROKEN_SYNC, str(path), "a group", LD_PRELOAD=str(broken_disk), SAFEDB_TEST_BROKEN=str(tmp_path / "broken")
    )
    assert lines == ["4 ['CommitUnknownError']", "False {}", "False 1 []"]


# -- another program --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_another_programs_transaction_is_waited_for(
    db: safedb.Database, outsider: sqlite3.Connection, crew: Crew, way: str, heard: list[Event]
) -> None:
    """H9, H17: SQLite's own waiting starves; ours is retried in short slices, and counted."""
    outsider.execute("BEGIN IMMEDIATE")
    waiting = crew(WAYS[way], db, "INSERT INTO t VALUES (5)")
    wait_until(lambda: db.stats().retries.get("busy", 0) >= 2, "two retries")
    outsider.execute("INSERT INTO t VALUES (4)")
    outsider.execute("COMMIT")
    waiting.result()
    assert db.execute("SELECT x FROM t ORDER BY x").fetchall() == [(4,), (5,)]
    told = [event for event in heard if isinstance(event, Retried)]
    assert {event.cause for event in told} == {"busy"}
    assert [event.attempt for event in told] == list(range(1, len(told) + 1)), "each try that failed is told of"
    assert len(told) == db.stats().retries["busy"]


@pytest.mark.parametrize("sql", ["PRAGMA user_version = 7", "VACUUM", "CREATE TABLE more(x)"])
def test_exclusive_work_waits_for_another_program_too(
    db: safedb.Database, outsider: sqlite3.Connection, crew: Crew, sql: str
) -> None:
    outsider.execute("BEGIN IMMEDIATE")
    waiting = crew(db.execute, sql)
    wait_until(lambda: db.stats().retries.get("busy", 0) >= 1, "a retry")
    outsider.execute("COMMIT")
    waiting.result()


@pytest.mark.parametrize("way", WAYS)
def test_at_the_deadline_the_error_names_what_was_waited_for(
    db: safedb.Database, outsider: sqlite3.Connection, way: str
) -> None:
    outsider.execute("BEGIN IMMEDIATE")
    short = safedb.connect(Path(engine_of(db).name), retry=safedb.RetryPolicy(timeout=0.15))
    started = time.monotonic()
    with pytest.raises(errors.LockTimeout, match=r"waited \d.* does not use safedb .* raise the timeout") as caught:
        WAYS[way](short, "INSERT INTO t VALUES (5)")
    assert 0.1 < time.monotonic() - started < 10.0
    assert caught.value.retryable
    assert caught.value.sqlite_errorname == "SQLITE_BUSY"
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    outsider.execute("ROLLBACK")
    short.execute("INSERT INTO t VALUES (5)", timeout=30.0)
    short.close()
    assert db.stats().writes >= 1


def test_another_process_that_holds_the_turn_is_named(db: safedb.Database, path: Path) -> None:
    code = (
        "import safedb, sys\n"
        "db = safedb.connect('sqlite:///' + sys.argv[1])\n"
        "with db.transaction():\n    print('inside', flush=True); sys.stdin.readline()\n"
        "db.close()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=ENVIRON,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "inside\n"
    with pytest.raises(errors.LockTimeout, match=rf"another process \(pid {holder.pid}\)"):
        db.execute("INSERT INTO t VALUES (1)", timeout=0.1)
    holder.communicate("go\n", timeout=30)
    db.execute("INSERT INTO t VALUES (1)")
    assert db.stats().lock_waits.count >= 1


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_a_waiter_behind_a_block_is_told_whose_it_is(db: safedb.Database, crew: Crew) -> None:
    with db.transaction():
        error = crew(db.execute, "INSERT INTO t VALUES (1)", timeout=0.05).error()
        other = crew(lambda: block_with_timeout(db)).error()
    assert isinstance(error, errors.LockTimeout)
    assert f"a transaction block of thread {threading.current_thread().name!r}" in str(error)
    assert isinstance(other, errors.LockTimeout)


def block_with_timeout(db: safedb.Database) -> None:
    with db.transaction(timeout=0.05):
        pass


def test_a_body_that_is_late_is_reported_and_still_committed(db: safedb.Database, heard: list[Event]) -> None:
    passed = threading.Event()
    with db.transaction(timeout=0.1) as tx:
        tx.execute("INSERT INTO t VALUES (1)")
        passed.wait(0.15)
    assert db.execute("SELECT count(*) FROM t").scalar() == 1
    assert any(isinstance(event, Overrun) and event.what == "the body of a transaction block" for event in heard)


def test_a_statement_after_the_deadline_of_its_block_is_interrupted(
    db: safedb.Database, gate: Gate, crew: Crew
) -> None:
    def work() -> None:
        with db.transaction(timeout=0.1) as tx:
            tx.execute("INSERT INTO t SELECT gate(value) FROM json_each('[1,2,3]')")

    working = crew(work)
    gate.wait_until_reached()
    watch = engine_of(db).writer.watch
    wait_until(lambda: watch.until < time.monotonic())
    engine_of(db).groups.break_up(time.monotonic())
    gate.open()
    assert isinstance(working.error(), errors.QueryCanceled)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


@pytest.mark.parametrize("how", ["INSERT OR ROLLBACK INTO t VALUES (1)", "DELETE FROM t"])
def test_a_statement_that_ends_the_whole_transaction_leaves_nothing_of_it(db: safedb.Database, how: str) -> None:
    """H46d: the next statement would be committed alone."""
    db.execute("INSERT INTO t VALUES (1)")
    db.executescript("CREATE TRIGGER no BEFORE DELETE ON t BEGIN SELECT RAISE(ROLLBACK, 'no'); END")
    with pytest.raises(errors.TransactionAborted), db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (2)")
        with pytest.raises(errors.IntegrityError):
            tx.execute(how)
        with pytest.raises(errors.TransactionAborted):
            tx.execute("INSERT INTO t VALUES (3)")
    with pytest.raises(errors.IntegrityError), db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (2)")
        with tx.savepoint():
            tx.execute(how)
    assert db.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_savepoints_keep_and_undo_and_nest(db: safedb.Database) -> None:
    """H46a: ROLLBACK TO keeps the savepoint, and a reused name nests."""
    with db.transaction() as tx:
        with tx.savepoint():
            tx.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(ZeroDivisionError), tx.savepoint():
                tx.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        with pytest.raises(errors.UniqueViolation), tx.savepoint():
            tx.execute("INSERT INTO t VALUES (1)")
        tx.execute("INSERT INTO t VALUES (3)")
    assert db.execute("SELECT x FROM t").fetchall() == [(1,), (3,)]


def test_a_rollback_to_after_the_transaction_is_lost_does_nothing(db: safedb.Database) -> None:
    engine = engine_of(db)
    held = engine.block(30.0, engine.policy)
    session = engine.begin(held)
    session.run(parse("INSERT INTO t VALUES (1)"), ())
    engine.writer.rollback()  # as SQLite does by itself
    session.rollback_to("anything")
    with pytest.raises(errors.TransactionAborted, match="nothing of it was kept"):
        engine.commit(held)
    engine.rollback(held)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_an_interrupt_after_commit_says_that_it_is_committed(db: safedb.Database) -> None:
    """A KeyboardInterrupt between COMMIT's return and the end of the block: no signal can be timed so."""

    class Interrupting(Counters):
        def committed(self, writes: int) -> None:
            raise KeyboardInterrupt

    engine = engine_of(db)
    real, engine.blocks._counters = engine.blocks._counters, Interrupting()
    with pytest.raises(KeyboardInterrupt) as caught, db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (1)")
    assert any("is committed" in note for note in caught.value.__notes__)
    engine.blocks._counters = real
    assert db.execute("SELECT count(*) FROM t").scalar() == 1
    db.execute("INSERT INTO t VALUES (2)", timeout=5.0)


def test_exclusive_work_that_fails_is_classified(db: safedb.Database) -> None:
    for sql, cls in (
        ("PRAGMA nonsense(", errors.ProgrammingError),
        ("ATTACH 'x' AS y", errors.ProgrammingError),
        ("REINDEX nothing", errors.ProgrammingError),
        ("CREATE TABLE t(x)", errors.ProgrammingError),
    ):
        with pytest.raises(cls):
            db.execute(sql)
    db.execute("INSERT INTO t VALUES (1)", timeout=5.0)


def test_exclusive_work_past_its_deadline_is_interrupted(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    working = crew(db.execute, "CREATE TABLE u AS SELECT gate(value) FROM json_each('[1,2,3]')", timeout=0.1)
    gate.wait_until_reached()
    watch = engine_of(db).writer.watch
    wait_until(lambda: watch.until < time.monotonic())
    engine_of(db).groups.break_up(time.monotonic())
    gate.open()
    assert isinstance(working.error(), errors.QueryCanceled)
    with pytest.raises(errors.ProgrammingError, match="no such table"):
        db.execute("SELECT * FROM u")


# -- the writer alone -------------------------------------------------------------------------------------------------


class Breaking(sqlite3.Connection):
    """A connection whose ROLLBACK, BEGIN or close fails: a sound disk and sound memory give none of these."""

    failing: frozenset[str] = frozenset()

    def cursor(self, *_: Any, **__: Any) -> Any:
        return BreakingCursor(self)

    def close(self) -> None:
        if "close" in self.failing:
            raise sqlite3.OperationalError("unable to close")
        super().close()


class BreakingCursor(sqlite3.Cursor):
    def execute(self, sql: str, *values: Any) -> Any:
        connection: Any = self.connection
        if sql.split()[0] in connection.failing:
            raise sqlite3.OperationalError(f"cannot {sql}")
        return super().execute(sql, *values)


def lone_writer(path: Path, opened: list[Breaking]) -> Writer:
    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(path, isolation_level=None, factory=Breaking))
        return opened[-1]

    return Writer(connect, name="app.db", side=None, counters=Counters(), hooks=Hooks())


def test_a_rollback_that_fails_costs_the_connection_and_nothing_else(tmp_path: Path) -> None:
    opened: list[Breaking] = []
    writer = lone_writer(tmp_path / "a.db", opened)
    policy = GENEROUS.effective()
    writer.begin(time.monotonic() + 30, policy)
    writer.run("CREATE TABLE t(x)", ())
    opened[0].failing = frozenset({"ROLLBACK"})
    writer.rollback()
    assert writer.connection is None
    writer.begin(time.monotonic() + 30, policy)
    assert len(opened) == 2
    opened[1].failing = frozenset({"ROLLBACK", "close"})
    writer.rollback()
    assert writer.connection is None
    opened[1].failing = frozenset()
    opened[1].close()
    assert repr(writer) == "<Writer app.db idle>"
    writer.interrupt()
    writer.close()
    assert not writer.in_transaction


def test_a_begin_that_fails_leaves_nothing_held(tmp_path: Path) -> None:
    opened: list[Breaking] = []
    writer = lone_writer(tmp_path / "a.db", opened)
    writer.cursor()
    opened[0].failing = frozenset({"BEGIN"})
    with pytest.raises(errors.OperationalError, match=r"BEGIN IMMEDIATE on app\.db"):
        writer.begin(time.monotonic() + 30, GENEROUS.effective())
    assert not writer.in_transaction
    writer.discard()


def test_a_wait_that_is_interrupted_gives_the_lock_back(db: safedb.Database, path: Path) -> None:
    """A KeyboardInterrupt while the side files are waited for: raised here by the side lock itself."""
    released: list[bool] = []

    class Side:
        def try_acquire(self) -> bool:
            return False

        def acquire(self, deadline: float) -> bool:
            raise KeyboardInterrupt

        def release(self) -> None:
            released.append(True)

    side: Any = Side()
    writer = Writer(lambda: sqlite3.connect(path), name="app.db", side=side, counters=Counters(), hooks=Hooks())
    with pytest.raises(KeyboardInterrupt):
        writer.lock(time.monotonic() + 30)
    assert released


def busy() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = 5
    return error


def test_what_was_not_busy_comes_through_from_waiting(tmp_path: Path) -> None:
    writer = lone_writer(tmp_path / "a.db", [])

    def fail() -> None:
        raise sqlite3.OperationalError("another")

    with pytest.raises(sqlite3.OperationalError, match="another"):
        try:
            raise busy()
        except sqlite3.OperationalError:
            writer.wait_for_foreigners(fail, time.monotonic() + 30, GENEROUS.effective())


@pytest.mark.parametrize("ends", ["well", "another", "closed"])
def test_who_leaves_the_lock_for_a_moment_only_is_knocked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """H17. Written down: BUSY a hundred times within one slice; SQLite's own steps would not have come to ten.

    Its own patience is back afterwards, however it ended, and where there is still the same connection.
    """
    monkeypatch.setattr(pragmas, "BUSY_SLICE", 60.0)
    writer = lone_writer(tmp_path / "a.db", [])
    connection = writer.cursor().connection
    seen: list[int] = []

    def attempt() -> str:
        seen.append(connection.execute("PRAGMA busy_timeout").fetchone()[0])
        if len(seen) <= 100:
            raise busy()
        if ends == "another":
            raise sqlite3.OperationalError("another")
        if ends == "closed":
            writer.close()
        return "well"

    try:
        raise busy()
    except sqlite3.OperationalError:
        with contextlib.suppress(sqlite3.OperationalError):
            assert writer.wait_for_foreigners(attempt, time.monotonic() + 30, GENEROUS.effective()) == "well"
    assert seen == 101 * [0]
    assert writer._counters.retries == {"busy": 1}
    if ends != "closed":
        assert writer.run("PRAGMA busy_timeout", ())[0] == [(60_000,)]
    writer.close()


def test_to_close_from_a_signal_handler_inside_ones_own_write_is_refused_at_once(path: Path) -> None:
    """No self-deadlock. Written down: a signal comes while the main thread has the turn; its handler calls close."""
    refused: list[BaseException] = []
    handle: list[safedb.Database] = []

    def close(*_: object) -> None:
        try:
            handle[0].close()
        except safedb.Error as error:
            refused.append(error)

    def signalled() -> int:
        signal.raise_signal(signal.SIGUSR1)  # its handler runs in here, between two steps of Python's
        return 1

    before = signal.signal(signal.SIGUSR1, close)
    try:
        with safedb.connect(path, schema="CREATE TABLE t (v)", functions={"signalled": (signalled, 0)}) as db:
            handle.append(db)
            db.execute("INSERT INTO t VALUES (signalled())")
            assert [type(error) for error in refused] == [safedb.ReentrancyError]
            assert db.execute("SELECT count(*) FROM t").scalar() == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_statement_inside_a_statement_of_its_own_transaction_or_snapshot_is_refused_at_once(path: Path) -> None:
    """No self-deadlock. Written down: an SQL function uses the block, or the snapshot, whose statement called it."""
    inner: list[Any] = []

    def again() -> int:
        with pytest.raises(safedb.ReentrancyError, match="under way"):
            inner[0].execute("SELECT 1")
        return 1

    with safedb.connect(path, schema="CREATE TABLE t (v)", functions={"again": (again, 0)}) as db:
        with db.transaction() as tx:
            inner.append(tx)
            tx.execute("INSERT INTO t VALUES (again())")
        with db.snapshot() as snap:
            inner[0] = snap
            assert snap.execute("SELECT again()").scalar() == 1
            assert list(snap.iterate("SELECT again() FROM t")) == [(1,)]
            assert snap.execute("SELECT v FROM t").scalar() == 1
