"""`safedb doctor` tells what is so, changes nothing, and its exit code can be relied on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from pgserver import Server
from support import sqlite3, unmeasured, wait_until

import safedb
from safedb.cli import main
from safedb.cli.doctor import file, library
from safedb.cli.doctor.report import Report
from safedb.sqlite import driver, health, location

SECRET = "open-sesame!"
Doctor = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the command in this process; give its exit code and all that it wrote."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["doctor", *arguments])
        output, errors = capsys.readouterr()
        assert bool(errors) is (code == 2)
        return code, " ".join((output + errors).split())

    return run


@pytest.fixture
def path(here: Path) -> Path:
    """Be a database that safedb has made and closed."""
    with safedb.connect(here / "app.db", schema="CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT UNIQUE)") as db:
        db.executemany("INSERT INTO t (v) VALUES (?)", [(f"{number}",) for number in range(1000)])
    return here / "app.db"


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())


# -- the library ------------------------------------------------------------------------------------------------------


def test_the_module_its_version_and_the_reason_are_told(doctor: Doctor) -> None:
    code, told = doctor()
    assert code == 0
    assert f"{driver.MODULE}: {driver.WHY}" in told
    assert driver.sqlite3.sqlite_version in told
    assert "THREADSAFE=" in told
    assert "All is well." in told


@pytest.mark.parametrize("affected", [True, False])
def test_the_wal_reset_race_is_told_with_what_is_done_about_it_and_the_remedy(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, affected: bool
) -> None:
    """H1, H4, H5: safedb avoids it, so it is nothing wrong; other programs do not."""
    monkeypatch.setattr(driver, "VERSION", (3, 40, 1) if affected else (3, 53, 4))
    code, told = doctor()
    assert code == 0
    assert ("WAL-reset race yes, avoided" in told) is affected
    assert ("pip install 'safedb[sqlite-latest]'" in told) is affected
    assert ("Litestream" in told) is affected


def test_an_operator_may_vouch_for_a_mended_sqlite(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """H6: systems that carry the fix keep the number."""
    monkeypatch.setattr(driver, "VERSION", (3, 40, 1))
    monkeypatch.setenv(health.MENDED, "1")
    code, told = doctor()
    assert code == 0
    assert "WAL-reset race no, says SAFEDB_WAL_RESET_FIXED" in told


def test_what_a_module_cannot_switch_is_told(doctor: Doctor) -> None:
    _, told = doctor()
    with closing(driver.connect(":memory:")) as connection:
        assert ("are set by this module" in told) is hasattr(connection, "setconfig")
    assert ("two SQLite libraries" in told) is (driver.MODULE == "pysqlite3")


def test_a_sqlite_that_was_not_built_for_threads_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such build is at hand: the answer of `PRAGMA compile_options` is put in its place."""

    class Single:
        def execute(self, sql: str) -> list[tuple[str]]:
            return [("THREADSAFE=0",)]

        def close(self) -> None: ...

    monkeypatch.setattr(driver, "connect", lambda _: Single())
    report = Report()
    library.look(report)
    assert "THREADSAFE=0" in report.findings[0]


# -- a file -----------------------------------------------------------------------------------------------------------


def test_a_sound_database_is_looked_at_and_nothing_is_left_or_changed(doctor: Doctor, path: Path) -> None:
    before = listing(path.parent)
    code, told = doctor(f"sqlite:///{path}")
    assert code == 0, told
    for part in (
        f"Database {path}",
        "Journal mode wal",
        "of 4,096 bytes",
        "mode 0600",
        "Turn to write free",
        "Check ok",
    ):
        assert part in told
    assert listing(path.parent) == before


def test_a_relative_path_is_taken_and_one_without_scheme_is_told_how(doctor: Doctor, path: Path) -> None:
    assert doctor("sqlite:///app.db")[0] == 0
    code, told = doctor("app.db")
    assert code == 2
    assert "sqlite:///app.db" in told


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("sqlite:///no.db", "there is no file"),
        ("sqlite:///.", "there is no file"),
        ("sqlite://", "in memory"),
        ("sqlite:///app.db?nosuch=1", "nosuch"),
        ("mysql://host/db", "unknown scheme"),
    ],
)
def test_what_cannot_be_looked_at_is_exit_code_2_and_nothing_is_made(
    doctor: Doctor, here: Path, target: str, said: str
) -> None:
    code, told = doctor(target)
    assert code == 2
    assert said in told
    assert list(here.iterdir()) == []


def test_a_misspelt_setting_of_the_environment_is_told(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEDB_TIMOUT", "3")
    code, told = doctor()
    assert code == 2
    assert "SAFEDB_TIMEOUT" in told


def test_a_database_in_use_is_read_beside_its_writer_who_keeps_its_locks(doctor: Doctor, path: Path) -> None:
    """H32: another process looks, while this one is inside a write transaction and names itself as who has the turn."""
    with safedb.connect(path) as db, db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('open')")
        done = subprocess.run(
            [sys.executable, "-m", "safedb", "doctor", f"sqlite:///{path}"],
            capture_output=True, text=True, timeout=60, env=unmeasured(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"process {os.getpid()} has it" in done.stdout
        assert "-wal" in done.stdout
        exit_code, told = doctor(f"sqlite:///{path}")  # and in this very process, whose locks it must not drop
        assert exit_code == 0, told
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        intruder = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, env=unmeasured()
        )
        assert "database is locked" in intruder.stderr


def test_damage_and_broken_references_are_findings(doctor: Doctor, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE c (p REFERENCES t)")
        connection.execute("INSERT INTO c VALUES (9999)")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE type = 'index'").fetchone()
    code, told = doctor(f"sqlite:///{path}")
    assert code == 1
    assert "row 1 of c refers to a row of t that is not there" in told
    assert "1 finding." in told
    with path.open("r+b") as raw:
        raw.seek((root - 1) * 4096)
        raw.write(bytes(4096))
    code, told = doctor(f"sqlite:///{path}")
    assert code == 1
    assert "malformed" in told or "missing from index" in told  # as the version of SQLite says it


@pytest.mark.parametrize("content", [b"no database at all" * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_a_finding(doctor: Doctor, here: Path, content: bytes) -> None:
    junk = here / "junk.db"
    junk.write_bytes(content)
    junk.chmod(0o600)
    code, told = doctor("sqlite:///junk.db")
    assert code == 1
    assert "not a database" in told
    assert listing(here)[0][:2] == ("junk.db", len(content))


def test_an_index_by_the_programs_own_collation_cannot_be_checked_here(doctor: Doctor, here: Path) -> None:
    with safedb.connect(here / "own.db", collations={"own": lambda a, b: (a > b) - (a < b)}) as db:
        db.executescript("CREATE TABLE t (v TEXT COLLATE own); CREATE INDEX i ON t (v); INSERT INTO t VALUES ('a')")
    code, told = doctor("sqlite:///own.db")
    assert code == 0, told
    assert "could not be checked here (PRAGMA integrity_check: no such collation sequence: own" in told


def test_side_files_that_others_may_use_are_a_finding(doctor: Doctor, path: Path) -> None:
    Path(f"{path}-safedb").chmod(0o666)
    path.chmod(0o604)
    code, told = doctor(f"sqlite:///{path}")
    assert code == 1
    assert f"{path}-safedb has another mode or owner" in told
    assert "Every user of this machine" in told


def test_a_second_hard_link_is_a_finding_and_the_file_is_left_alone(doctor: Doctor, path: Path) -> None:
    """H41."""
    path.with_name("twin.db").hardlink_to(path)
    code, told = doctor(f"sqlite:///{path}")
    assert code == 1
    assert "2 hard links" in told
    assert "Journal mode" not in told


def test_a_network_file_system_is_a_finding(doctor: Doctor, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H44: no test can mount one, so the table of mounts says that the folder is one."""
    table = f"21 1 0:1 / / rw - ext4 /dev/sda rw\n22 21 0:2 / {path.parent} rw - nfs4 server:/export rw\n"
    monkeypatch.setattr(location, "_mountinfo", lambda: table)
    code, told = doctor(f"sqlite:///{path}")
    assert code == 1
    assert "nfs4" in told


def test_a_rollback_journal_is_told_and_a_hot_one_is_a_finding(doctor: Doctor, here: Path) -> None:
    """Written down: a process in DELETE mode is killed in the middle of a spilled transaction; its journal stays."""
    with closing(sqlite3.connect(here / "old.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    (here / "old.db").chmod(0o600)
    code, told = doctor("sqlite:///old.db")
    assert code == 0, told
    assert "Journal mode not wal" in told
    assert "Turn to write never taken by safedb" in told
    killed = (
        "import os, signal, sqlite3; c = sqlite3.connect('old.db', isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN')\n"
        "c.executemany('INSERT INTO t VALUES (zeroblob(4000))', [()] * 500); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed], check=False, timeout=60, env=unmeasured())
    before = listing(here)
    code, told = doctor("sqlite:///old.db?mode=ro")
    assert code == 1
    assert "There is a rollback journal" in told
    assert listing(here) == before


def test_a_wal_that_has_outgrown_its_limit_is_a_finding(doctor: Doctor, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t").fetchall()
        with safedb.connect(path) as db:
            db.execute("INSERT INTO t (v) VALUES (zeroblob(100000))")
            code, told = doctor(f"sqlite:///{path}?wal_limit=10000")
    assert code == 1
    assert "wal_limit is 10,000" in told


def test_a_writer_that_comes_meanwhile_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down: the file lay idle and is read without locks; before that is over a writer has opened it."""
    looks: list[bool] = []
    read = file._read

    def meanwhile(path: str, settings: object, *, alone: bool) -> Report:
        looks.append(alone)
        seen = read(path, settings, alone=alone)  # type: ignore[arg-type]
        if alone:
            writer.execute("INSERT INTO t (v) VALUES ('meanwhile')")
        return seen

    monkeypatch.setattr(file, "_read", meanwhile)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        assert main(["doctor", f"sqlite:///{path}"]) == 0
    assert looks == [True, False]


# -- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Be a server set up as one should be; the tests' shared one never flushes."""
    with Server(settings={"fsync": "on"}) as made:
        made.start()
        yield made


def test_a_server_is_described(doctor: Doctor, server: Server) -> None:
    code, told = doctor(f"{server.url()}&max_size=2")
    assert code == 0, told
    for part in (
        "Server PostgreSQL",
        "a primary",
        "Identity",
        "Isolation read committed by default",
        "synchronous_commit on",
        "max_connections",
        "each process takes up to 4",
        "for safedb's sessions 10,000 ms and less",
    ):
        assert part in told


def test_what_puts_a_server_at_risk_is_a_finding(doctor: Doctor, server: Server) -> None:
    url = server.database()
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        server.execute(f"ALTER SYSTEM SET {setting} = off")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (column1)")
    server.execute("SELECT pg_reload_conf()")
    try:
        wait_until(lambda: server.execute("SHOW fsync") == [("off",)], "the settings to be read")
        code, told = doctor(f"{url}&max_size=1000")
    finally:
        server.execute("ALTER SYSTEM RESET ALL")
        server.execute("SELECT pg_reload_conf()")
    assert code == 1
    for part in (
        "fsync is off",
        "full_page_writes is off",
        "synchronous_commit is off by default; safedb switches it on",
        "may ask for 2000 connections",
        "broken is not valid",
        "4 findings.",
    ):
        assert part in told


def test_a_standby_is_a_finding_unless_it_is_only_read(doctor: Doctor, server: Server) -> None:
    with server.standby() as follower:
        code, told = doctor(follower.url())
        assert code == 1
        assert "is a standby, which refuses every write" in told
        code, told = doctor(f"{follower.url()}&mode=ro")
        assert code == 0, told
        assert "a standby" in told


def test_a_server_that_is_not_there_is_a_finding_and_shows_no_password(doctor: Doctor) -> None:
    """H51."""
    code, told = doctor(f"postgresql://user:{SECRET}@127.0.0.1:1/db?timeout=1")
    assert code == 1
    assert "cannot connect" in told
    assert SECRET not in told
    code, told = doctor(f"postgresql://user:{SECRET}@host@other/db")
    assert code == 2
    assert SECRET not in told
