"""A backup is one committed state, restarts for nobody, and appears under its name only when it is complete."""

# ruff: noqa: PT012 - whole blocks are what fails here
from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, sqlite3

import safedb
from safedb import errors
from safedb.sqlite import backups

ROWS = 400
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[safedb.Database]:
    with safedb.connect(
        tmp_path / "app.db", schema="CREATE TABLE t(x, y)", retry=safedb.RetryPolicy(timeout=60.0)
    ) as db:
        db.executemany("INSERT INTO t VALUES (?, zeroblob(4000))", [(number,) for number in range(ROWS)])
        yield db


def content(path: Path) -> tuple[Any, ...]:
    connection = sqlite3.connect(path)
    row: tuple[Any, ...] = connection.execute("SELECT count(*), min(x), max(x) FROM t").fetchone()
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return row


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)


def test_a_backup_restarts_for_nobody_and_is_the_state_at_its_beginning(
    db: safedb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H29: an unpinned paged backup begins anew at every commit of another connection."""
    monkeypatch.setattr(backups, "PAGES", 20)
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        db.execute("INSERT INTO t VALUES (?, zeroblob(4000))", (ROWS + len(steps),))  # nobody is blocked either

    db.backup(tmp_path / "copy.db", progress)
    assert content(tmp_path / "copy.db") == (ROWS, 0, ROWS - 1)
    assert len(steps) > 5
    assert steps == sorted(steps), "it never went back"
    assert len({total for _, total in steps}) == 1
    assert steps[-1][0] == steps[-1][1]
    assert db.execute("SELECT count(*) FROM t").scalar() == ROWS + len(steps)


def test_it_appears_only_when_it_is_complete(db: safedb.Database, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    there: list[bool] = []
    db.backup(copy, lambda *_: there.append(copy.exists()))
    assert there
    assert not any(there)
    assert copy.exists()
    assert leftovers(tmp_path) == []


def test_an_old_backup_stays_until_the_new_one_is_complete(db: safedb.Database, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    db.backup(copy)
    db.execute("DELETE FROM t WHERE x < 100")
    seen: list[Any] = []
    db.backup(os.fspath(copy), lambda *_: seen.append(content(copy)))
    assert set(seen) == {(ROWS, 0, ROWS - 1)}
    assert content(copy) == (ROWS - 100, 100, ROWS - 1)


def test_the_copy_has_the_databases_mode(db: safedb.Database, tmp_path: Path) -> None:
    """H50: what is private stays private."""
    db.backup(tmp_path / "copy.db")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


def test_what_is_raised_by_progress_leaves_nothing_behind(db: safedb.Database, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        db.backup(tmp_path / "copy.db", stop)
    assert not (tmp_path / "copy.db").exists()
    assert leftovers(tmp_path) == []
    assert db.stats().oldest_snapshot is None


def test_a_deadline_ends_it_and_leaves_nothing_behind(
    db: safedb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PAGES", 20)
    passed = threading.Event()

    def progress(*_: int) -> None:
        passed.wait(0.06)  # the deadline passes in the user's code

    with pytest.raises(errors.QueryCanceled, match=r"\d+ of \d+ pages"):
        db.backup(tmp_path / "copy.db", progress, timeout=0.05)
    assert not (tmp_path / "copy.db").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("how", ["itself", "hard link", "symbolic link", "relative"])
def test_the_database_itself_is_refused_under_any_name(
    db: safedb.Database, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, name = tmp_path / "app.db", tmp_path / "other.db"
    if how == "hard link":
        name.hardlink_to(source)
    elif how == "symbolic link":
        name.symlink_to(source)
    else:
        name = source if how == "itself" else Path("./app.db")
    with pytest.raises(errors.ConfigError, match="the database itself"):
        db.backup(name)
    if how == "hard link":
        name.unlink()
    assert content_of(db) == ROWS


def content_of(db: safedb.Database) -> int:
    count: int = db.execute("SELECT count(*) FROM t").scalar()
    return count


def test_a_missing_folder_is_named(db: safedb.Database, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"no folder .*missing"):
        db.backup(tmp_path / "missing" / "copy.db")


def test_a_folder_is_no_file(db: safedb.Database, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.ConfigError, match="is no file"):
        db.backup(tmp_path / "folder")


def test_a_database_in_use_is_not_overwritten(db: safedb.Database, tmp_path: Path) -> None:
    with (
        safedb.connect(tmp_path / "live.db", schema="CREATE TABLE t(x, y)") as live,
        pytest.raises(errors.ConfigError, match="in use"),
    ):
        live.execute("INSERT INTO t VALUES (1, 2)")
        db.backup(tmp_path / "live.db")
    assert content(tmp_path / "live.db") == (1, 1, 1)


def test_a_folder_where_nothing_can_be_made_is_a_clear_error(db: safedb.Database, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path / "closed"  # root may write anywhere but there
    with pytest.raises(errors.ConfigError, match="cannot create"):
        db.backup(folder / "copy.db")


def test_a_folder_that_goes_away_meanwhile_is_a_clear_error(db: safedb.Database, tmp_path: Path) -> None:
    folder = tmp_path / "going"
    folder.mkdir()

    def take_away(*_: int) -> None:
        if folder.exists():
            folder.rename(tmp_path / "gone")

    with pytest.raises(errors.OperationalError, match="look at the folder"):
        db.backup(folder / "copy.db", take_away)


def test_a_full_disk_is_a_classified_error(db: safedb.Database, tmp_path: Path) -> None:
    """/dev/full cannot hold a database: a limit on the file's size in a child process stands for the disk."""
    read, write = os.pipe()
    code = (
        "import resource, signal, safedb, sys\n"
        "from safedb import errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "db = safedb.connect(f'sqlite:///{sys.argv[1]}/app.db', read_only=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    db.backup(f'{sys.argv[1]}/copy.db')\n"
        "except errors.OperationalError as error:\n"
        "    print(type(error).__name__, 'backup to' in str(error))\n"
        "db.close()\n"
    )
    os.close(read)
    os.close(write)
    assert run_python(code, str(tmp_path)) in ("OperationalError True", "DatabaseFull True")
    assert not (tmp_path / "copy.db").exists()
    assert leftovers(tmp_path) == []


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, env=ENVIRON, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_a_killed_process_left_is_no_hindrance(db: safedb.Database, tmp_path: Path) -> None:
    """H29: it lies beside the target, and never under its name."""
    old = tmp_path / f"copy.db.partial-{os.getpid()}-{threading.get_ident()}"
    old.write_bytes(b"half a page of something" * 1000)
    db.backup(tmp_path / "copy.db")
    assert content(tmp_path / "copy.db") == (ROWS, 0, ROWS - 1)
    assert leftovers(tmp_path) == []


def test_two_backups_to_one_name_do_not_disturb_each_other(
    db: safedb.Database, tmp_path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PAGES", 50)
    barrier = threading.Barrier(2)
    met = threading.local()

    def together(*_: int) -> None:
        if not hasattr(met, "once"):
            met.once = True
            barrier.wait(30)  # both are under way

    workers = [crew(db.backup, tmp_path / "copy.db", together) for _ in range(2)]
    for worker in workers:
        worker.result()
    assert content(tmp_path / "copy.db") == (ROWS, 0, ROWS - 1)
    assert leftovers(tmp_path) == []


def test_a_database_in_memory_can_be_kept(tmp_path: Path) -> None:
    with safedb.connect("sqlite://", schema="CREATE TABLE t(x, y)") as db:
        db.execute("INSERT INTO t VALUES (5, 5)")
        db.backup(tmp_path / "copy.db")
    assert content(tmp_path / "copy.db") == (1, 5, 5)


def test_a_read_only_handle_can_be_backed_up(db: safedb.Database, tmp_path: Path) -> None:
    with safedb.connect(tmp_path / "app.db", read_only=True) as reader:
        reader.backup(tmp_path / "copy.db")
    assert content(tmp_path / "copy.db") == (ROWS, 0, ROWS - 1)


@pytest.mark.parametrize("beside", ["-safedb", "-journal", "-wal"])
def test_another_database_is_not_taken_for_an_earlier_backup(tmp_path: Path, beside: str) -> None:
    """A copy cannot be told from any other database, but by what lies beside one that is used."""
    other = tmp_path / "other.db"
    with safedb.connect(other, schema="CREATE TABLE dear (v TEXT)"):
        pass
    for entry in tmp_path.glob("other.db-*"):
        entry.unlink()
    other.with_name(f"other.db{beside}").touch()
    content = other.read_bytes()
    with safedb.connect(tmp_path / "app.db") as db, pytest.raises(safedb.ConfigError, match="give the backup another"):
        db.backup(other)
    assert other.read_bytes() == content


def test_a_database_that_this_process_has_open_by_other_means_is_not_looked_into(tmp_path: Path) -> None:
    """H32: to close what was opened to look would drop the locks of whoever has it open."""
    other = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    other.execute("CREATE TABLE dear (v TEXT)")
    with safedb.connect(tmp_path / "app.db") as db, pytest.raises(safedb.ConfigError, match="open in this process"):
        db.backup(tmp_path / "other.db")
    other.close()


def test_a_copy_is_no_more_open_to_others_than_its_database(tmp_path: Path) -> None:
    """H50: the mode asked for is that of new databases, and this one keeps its own."""
    path = tmp_path / "app.db"
    path.touch(mode=0o600)
    with safedb.connect(path, schema="CREATE TABLE t (v)", pragmas=safedb.Pragmas(file_mode=0o666)) as db:
        db.backup(tmp_path / "copy.db")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
