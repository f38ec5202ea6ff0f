"""Opening enforces what was asked or says why not, and handles on one file share one engine by whatever path."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, sqlite3, wait_until

import safedb
from safedb import errors
from safedb.sqlite import connections, location, opening
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.health import RACE_REMEDY, wal_reset_race
from safedb.sqlite.opening import registry

GENEROUS = safedb.RetryPolicy(timeout=60.0)
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
SCHEMA = "CREATE TABLE IF NOT EXISTS t(x INTEGER PRIMARY KEY)"

Connect = Callable[..., safedb.Database]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def connect(path: Path) -> Iterator[Connect]:
    handles: list[safedb.Database] = []

    def connect(target: Any = path, **options: Any) -> safedb.Database:
        handles.append(safedb.connect(target, **{"retry": GENEROUS, **options}))
        return handles[-1]

    yield connect
    for handle in handles:
        handle.close()


def engine_of(db: safedb.Database) -> SqliteEngine:
    engine: Any = db._engine
    assert isinstance(engine, SqliteEngine)
    return engine


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_handles_on_one_file_share_one_engine_by_whatever_path(
    connect: Connect, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H41: two engines on one inode would be two writers in one process."""
    first = connect()
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    others = [
        connect(tmp_path / "link.db"),
        connect(tmp_path / "folder" / "app.db"),
        connect("sqlite:///app.db"),
        connect(f"sqlite:////{path}"),
        connect(tmp_path / "folder" / ".." / tmp_path.name / "app.db"),
    ]
    assert {id(handle._engine) for handle in others} == {id(first._engine)}


def test_different_files_have_different_engines(connect: Connect, tmp_path: Path) -> None:
    assert connect()._engine is not connect(tmp_path / "other.db")._engine
    assert connect("sqlite://")._engine is not connect("sqlite://")._engine


def test_many_threads_that_open_at_once_get_one_engine_and_one_schema(connect: Connect, crew: Crew) -> None:
    handles = crew.together(8, lambda _: connect(schema=SCHEMA))
    assert len({id(handle._engine) for handle in handles}) == 1
    crew.together(8, lambda number: handles[number].execute("INSERT INTO t VALUES (?)", (number,)))
    assert handles[0].execute("SELECT count(*) FROM t").scalar() == 8


def test_many_processes_that_open_at_once_all_succeed(path: Path) -> None:
    """H12b: with a plain busy timeout some of them fail in the switch to WAL."""
    code = (
        "import safedb, sys; sys.stdin.readline();"
        f"db = safedb.connect({str(path)!r} and __import__('pathlib').Path({str(path)!r}), schema={SCHEMA!r});"
        "db.execute('INSERT INTO t VALUES (NULL)'); db.close()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    with safedb.connect(path) as db:
        assert db.execute("SELECT count(*) FROM t").scalar() == 6


def test_the_engine_is_closed_with_the_last_handle(connect: Connect, path: Path) -> None:
    first, second = connect(schema=SCHEMA), connect()
    engine = engine_of(first)
    first.execute("INSERT INTO t VALUES (1)")
    first.close()
    first.close()
    assert second.execute("SELECT count(*) FROM t").scalar() == 1
    assert Path(f"{path}-wal").exists()
    second.close()
    assert engine not in registry.engines()
    assert not Path(f"{path}-wal").exists(), "the last connection moves the WAL"
    third = connect()
    assert engine_of(third) is not engine
    assert third.execute("SELECT count(*) FROM t").scalar() == 1


def test_a_share_is_given_back_once(connect: Connect) -> None:
    first = connect()
    engine = engine_of(first)
    first.close()
    registry.close(engine, 1.0)
    second = connect()
    registry.close(engine, 1.0)
    assert second.execute("SELECT 1").scalar() == 1, "an old engine's end is not the new one's"


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({}, {"pragmas": safedb.Pragmas(synchronous="NORMAL")}, "synchronous"),
        ({"pragmas": safedb.Pragmas(cache_size=100)}, {"pragmas": safedb.Pragmas(cache_size=200)}, "cache_size"),
        ({}, {"pool": safedb.PoolConfig(max_size=3)}, "max_size"),
        ({}, {"functions": {"f": len}}, "functions"),
        ({"collations": {"c": lambda *_: 0}}, {"collations": {"c": lambda *_: 1}}, "collations"),
    ],
)
def test_settings_that_contradict_those_in_force_are_refused(
    connect: Connect, first: dict[str, Any], second: dict[str, Any], name: str
) -> None:
    db = connect(**first)
    with pytest.raises(errors.ConfigError, match=f"(?s){name} = .*Give the same value, or none"):
        connect(**second)
    assert db.execute("SELECT 1").scalar() == 1


def test_what_is_not_given_and_what_is_the_same_agrees(connect: Connect) -> None:
    options: dict[str, Any] = {
        "pragmas": safedb.Pragmas(synchronous="NORMAL"),
        "pool": safedb.PoolConfig(max_size=3),
        "functions": {"f": len},
    }
    first = connect(**options)
    assert connect()._engine is first._engine
    assert connect(**options)._engine is first._engine
    assert connect(retry=safedb.RetryPolicy(timeout=1.0))._engine is first._engine, "the policy is the handle's"


@pytest.mark.parametrize(
    "options",
    [
        {"functions": [len]},
        {"functions": {"f": 5}},
        {"functions": {"": len}},
        {"functions": {"f": (len, 1, 2)}},
        {"collations": {"c": (len, 1)}},
        {"collations": {5: len}},
    ],
)
def test_functions_and_collations_are_checked(connect: Connect, options: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=r"(functions|collations)="):
        connect(**options)


def test_functions_and_collations_are_known_everywhere(connect: Connect) -> None:
    options: dict[str, Any] = {
        "functions": {"plus": (lambda a, b: a + b, 2), "count_of": lambda *values: len(values)},
        "collations": {"backwards": lambda a, b: (a < b) - (a > b)},
    }
    for target in ({}, {"target": "sqlite://"}):
        db = connect(**target, **options)
        assert db.execute("SELECT plus(1, 2), count_of(1, 2, 3)").one() == (3, 3)
        db.execute("CREATE TABLE w AS SELECT plus(3, 4) AS x, 'a' AS y UNION SELECT 1, 'b'")
        query = "SELECT y FROM w ORDER BY y COLLATE backwards"
        assert db.execute(query).fetchall() == [("b",), ("a",)]
        with db.snapshot() as snap:
            assert snap.execute(query).fetchall() == [("b",), ("a",)]


# -- read-only --------------------------------------------------------------------------------------------------------


def test_a_read_only_handle_reads_and_writes_nothing(connect: Connect, path: Path) -> None:
    writer = connect(schema=SCHEMA)
    writer.execute("INSERT INTO t VALUES (1)")
    reader = connect(read_only=True)
    assert connect(f"sqlite:////{path}?mode=ro")._engine is reader._engine
    assert reader._engine is not writer._engine
    assert reader.execute("SELECT x FROM t").fetchall() == [(1,)]
    writer.execute("INSERT INTO t VALUES (2)")
    with reader.snapshot() as snap:
        assert snap.execute("SELECT count(*) FROM t").scalar() == 2
    for call in (
        lambda: reader.execute("INSERT INTO t VALUES (3)"),
        lambda: reader.execute("WITH a AS (SELECT 5) INSERT INTO t SELECT * FROM a"),
        lambda: reader.execute("CREATE TABLE u(x)"),
        lambda: reader.executemany("INSERT INTO t VALUES (?)", [(3,)]),
        lambda: reader.executescript("DELETE FROM t"),
        lambda: reader.run_transaction(lambda tx: None),
        reader.checkpoint,
        reader.optimize,
    ):
        with pytest.raises(errors.ProgrammingError, match="read-only") as caught:
            call()
        assert caught.value.sqlstate == "25006"
    with pytest.raises(errors.ProgrammingError, match="read-only"), reader.transaction():
        pass
    assert reader.check() == []
    reader.close()
    assert writer.execute("SELECT count(*) FROM t").scalar() == 2


def test_the_handles_of_both_kinds_know_of_each_others_transactions(connect: Connect) -> None:
    writer, reader = connect(schema=SCHEMA), connect(read_only=True)
    with writer.transaction(), pytest.raises(errors.ReentrancyError):
        reader.execute("SELECT 1")


def test_a_read_only_database_that_is_not_there_is_refused(connect: Connect) -> None:
    with pytest.raises(errors.ConfigError, match="there is no database"):
        connect(read_only=True)
    with pytest.raises(errors.ConfigError, match="stays empty"):
        connect("sqlite://", read_only=True)


# -- the order, and what cannot be put in force -----------------------------------------------------------------------


def test_the_side_files_are_held_before_the_file_is_touched(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """H12b: processes that start at once must not race for WAL; and ``busy_timeout`` goes first."""
    order: list[str] = []
    real = connections.Connections._connect

    def watched(self: connections.Connections, mode: str) -> sqlite3.Connection:
        engines = [frame for frame in made if frame.connections is self]
        order.append(f"{mode} {engines[0].side is not None and engines[0].side.held}")
        connection = real(self, mode)
        connection.set_trace_callback(order.append)
        return connection

    made: list[SqliteEngine] = []
    build = SqliteEngine._build

    def building(self: SqliteEngine) -> None:
        made.append(self)
        build(self)

    monkeypatch.setattr(connections.Connections, "_connect", watched)
    monkeypatch.setattr(SqliteEngine, "_build", building)
    connect()
    text = [step.lower().replace(" ", "") for step in order]
    assert text[0] == "rwtrue"
    assert "busy_timeout" in text[1]
    wal = next(number for number, step in enumerate(text) if "journal_mode=wal" in step)
    synchronous = next(number for number, step in enumerate(text) if "synchronous" in step)
    assert wal < synchronous
    made[0].writer.connection.set_trace_callback(None)  # type: ignore[union-attr]


def test_what_cannot_be_put_in_force_is_said_and_nothing_stays_open(connect: Connect, path: Path) -> None:
    connect(pragmas=safedb.Pragmas(application_id=5)).close()
    with pytest.raises(errors.ConfigError, match="application_id 5"):
        connect(pragmas=safedb.Pragmas(application_id=6))
    with pytest.raises(errors.ConfigError, match="application_id"):
        connect(pragmas=safedb.Pragmas(application_id=6))
    assert connect(pragmas=safedb.Pragmas(application_id=5)).execute("SELECT 1").scalar() == 1


@pytest.mark.parametrize("what", ["junk", "truncated", "text"])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(connect: Connect, path: Path, what: str) -> None:
    """H48: SQLite itself says so only at the first statement."""
    if what == "truncated":
        connect(schema="CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(100000))").close()
        data = path.read_bytes()[:5000]
    else:
        data = b"\x00\x01\x02" * 5000 if what == "junk" else b"hello, I am a text\n" * 100
    path.write_bytes(data)
    with pytest.raises(errors.DatabaseError, match=r"restore a backup|no SQLite database") as caught:
        connect()
    assert caught.value.sqlite_errorname == ("SQLITE_CORRUPT" if what == "truncated" else "SQLITE_NOTADB")
    assert path.read_bytes() == data


def test_a_new_file_is_private(connect: Connect, path: Path) -> None:
    """H50: and its side files with it."""
    connect(schema=SCHEMA).execute("INSERT INTO t VALUES (1)")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_file_that_goes_away_while_it_is_opened_is_a_clear_error(
    connect: Connect, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = location.create

    def create(name: str, mode: int) -> bool:
        done = real(name, mode)
        Path(name).unlink()  # another program, between two system calls: no test can time that
        return done

    monkeypatch.setattr(location, "create", create)
    with pytest.raises(errors.ConfigError, match="was deleted"):
        connect()


def test_another_programs_lock_is_waited_for(connect: Connect, path: Path, crew: Crew) -> None:
    """H12: the switch to WAL does not use SQLite's own busy timeout."""
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("CREATE TABLE t(x)")
    holder.execute("BEGIN IMMEDIATE")
    holder.execute("INSERT INTO t VALUES (1)")
    opening_it = crew(connect)
    wait_until(lambda: bool(location.identity(f"{path}-safedb")), "the opening to begin")
    with pytest.raises(errors.LockTimeout):
        connections.Connections(
            str(path), safedb.Pragmas().effective(), connections.Extras(), safedb.RetryPolicy(timeout=0.2).effective()
        ).writer()
    assert opening_it.running
    holder.execute("COMMIT")
    holder.close()
    assert opening_it.result().execute("SELECT x FROM t").fetchall() == [(1,)]


def test_no_descriptors_left_is_a_classified_error() -> None:
    code = (
        "import resource, safedb, sys, os\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "held = []\n"
        "db = safedb.connect('sqlite:///' + sys.argv[1], schema='CREATE TABLE t(x)')\n"
        "try:\n"
        "    while True: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "try: db.execute('SELECT * FROM t')\n"
        "except safedb.Error as error: print(error.sqlite_errorname, 'limit of open files' in str(error))\n"
        "for number in held: os.close(number)\n"
        "print(len(db.execute('SELECT * FROM t'))); db.close()\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{folder}/a.db"], capture_output=True, env=ENVIRON, text=True, timeout=60
        )
    assert done.stdout.split() == ["SQLITE_CANTOPEN", "True", "0"], done.stderr


def test_what_describes_columns_fails_with_a_classified_error(connect: Connect) -> None:
    db = connect(schema="CREATE TABLE t(flag BOOLEAN); INSERT INTO t VALUES (1)")
    engine = engine_of(db)

    path, engine.connections._path = engine.connections._path, "/nowhere/at/all.db"
    with pytest.raises(errors.OperationalError) as caught:
        engine.connections.describer()
    assert caught.value.sqlite_errorname == "SQLITE_CANTOPEN"
    engine.connections._path = path
    assert db.execute("SELECT flag FROM t").scalar() is True


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((3, 53, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_race_are_known(version: tuple[int, ...], affected: bool) -> None:
    """H1, H6: and its backports."""
    assert wal_reset_race(version) is affected


@pytest.mark.parametrize("affected", [True, False])
def test_the_wal_reset_race_is_told_of(
    connect: Connect, affected: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "VERSION", (3, 40, 1) if affected else (3, 53, 0))
    with caplog.at_level(logging.INFO, logger="safedb"):
        connect()
    assert ("WAL-reset race" in caplog.text) is affected
    assert (RACE_REMEDY in caplog.text) is affected


def test_an_operator_can_vouch_for_a_sqlite_that_was_mended(
    connect: Connect, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H6: some systems carry the fix and keep the number. A misspelt word is refused, and leaves nothing open."""
    monkeypatch.setattr(opening, "VERSION", (3, 40, 1))
    monkeypatch.setenv("SAFEDB_WAL_RESET_FIXED", "1")
    with caplog.at_level(logging.INFO, logger="safedb"):
        connect()
    assert "WAL-reset race" not in caplog.text
    monkeypatch.setenv("SAFEDB_WAL_RESET_FIXED", "perhaps")
    other = path.with_name("other.db")
    with pytest.raises(safedb.ConfigError, match="SAFEDB_WAL_RESET_FIXED = 'perhaps' is no switch"):
        connect(other)
    assert not any(engine.path == str(other) for engine in registry.engines())
    assert not other.with_name("other.db-wal").exists(), "its connection was closed"


def test_a_temporary_place_is_warned_of_once(
    connect: Connect, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(path.parent))
    with caplog.at_level(logging.WARNING, logger="safedb"):
        connect()
        connect()
    assert caplog.text.count("may not last") == 1
    assert str(path) in caplog.text


def test_a_place_that_lasts_is_not_worth_a_word(
    connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "_temporary", lambda *_: None)  # all that tests may write to is temporary
    with caplog.at_level(logging.WARNING, logger="safedb"):
        connect()
    assert "may not last" not in caplog.text


# -- in memory --------------------------------------------------------------------------------------------------------


def test_a_database_in_memory_works_from_many_threads_and_says_that_nothing_lasts(
    connect: Connect, crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    """H40, H10. H40: one connection, serialised; every shared-cache trick has its own kind of BUSY."""
    with caplog.at_level(logging.WARNING, logger="safedb"):
        db = connect("sqlite://", schema=SCHEMA)
    assert "nothing in it will last" in caplog.text

    def work(number: int) -> None:
        for turn in range(20):
            db.execute("INSERT INTO t VALUES (?)", (number * 1000 + turn,))
            assert db.execute("SELECT count(*) FROM t WHERE x / 1000 = ?", (number,)).scalar() == turn + 1
            db.run_transaction(lambda tx: tx.execute("SELECT count(*) FROM t").scalar())

    crew.together(6, work)
    assert db.execute("SELECT count(*) FROM t").scalar() == 120
    db.checkpoint()
    assert db.check() == []
    assert db.stats().wal_bytes == 0
    engine = engine_of(db)
    assert engine in registry.engines()
    db.close()
    assert engine not in registry.engines()


def test_opening_gives_up_at_its_deadline_and_names_who_holds_the_file(connect: Connect, path: Path) -> None:
    db = connect(schema=SCHEMA)
    code = (
        "import safedb, sys\n"
        "try: safedb.connect('sqlite:///' + sys.argv[1], retry=safedb.RetryPolicy(timeout=0.2))\n"
        "except safedb.LockTimeout as error: print(error)\n"
    )
    with db.transaction():
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, env=ENVIRON, text=True, timeout=60
        )
    assert f"pid {os.getpid()}" in done.stdout, done


def test_a_connection_in_the_making_is_closed_when_it_fails(path: Path) -> None:
    opened: list[sqlite3.Connection] = []
    made = connections.Connections(str(path), safedb.Pragmas().effective(), connections.Extras(), GENEROUS.effective())
    location.create(str(path), 0o600)

    class Interrupted(BaseException):
        pass

    def apply(connection: sqlite3.Connection, role: Any, deadline: float) -> None:
        opened.append(connection)
        raise Interrupted

    made._apply = apply  # type: ignore[method-assign]  # a KeyboardInterrupt that comes just here
    with pytest.raises(Interrupted):
        made.reader()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_closing_waits_for_calls_under_way(connect: Connect, crew: Crew) -> None:
    db = connect(schema=SCHEMA)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (1)")
            inside.set()
            leave.wait(30)

    holder = crew(hold)
    inside.wait(30)
    closing = crew(db.close)
    wait_until(lambda: repr(db).endswith("closed>"))
    time.sleep(0)
    assert closing.running
    leave.set()
    holder.result()
    closing.result()
    assert connect().execute("SELECT count(*) FROM t").scalar() == 1
