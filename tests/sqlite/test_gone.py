"""Durable acknowledgement, where the file itself is taken away: nothing is written into the void (H41)."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, process_group, sqlite3, wait_until

import safedb
from safedb.sqlite import presence
from safedb.sqlite.presence import Presence
from safedb.sqlite.sidelock import SideLock

SCHEMA = "CREATE TABLE IF NOT EXISTS t(x)"


def refused(db: safedb.Database) -> bool:
    """Say whether writes are refused by now: a busy engine looks once in every tick."""
    try:
        db.execute("INSERT INTO t VALUES (1)")
    except safedb.OperationalError as error:
        return "deleted, moved or replaced" in str(error)
    return False


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t(x)")
    connection.close()
    other.replace(path)


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def delete_wal(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def replace_wal(path: Path) -> None:
    delete_wal(path)
    path.with_name(path.name + "-wal").touch()


def restore(path: Path) -> None:
    """Replace it as programs do that put back the folder's times at the end."""
    before = path.parent.stat()
    replace(path)
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def delete_shm(path: Path) -> None:
    path.with_name(path.name + "-shm").unlink()


TAKEN_AWAY = [delete, move, replace, delete_folder, delete_wal, replace_wal, delete_shm, restore]


def insert(db: safedb.Database) -> Any:
    return db.execute("INSERT INTO t VALUES (1)")


def insert_many(db: safedb.Database) -> Any:
    return db.executemany("INSERT INTO t VALUES (?)", [(1,)])


def insert_in_a_function(db: safedb.Database) -> Any:
    return db.run_transaction(lambda tx: tx.execute("INSERT INTO t VALUES (1)"))


def insert_in_a_block(db: safedb.Database) -> Any:
    with db.transaction() as tx:
        return tx.execute("INSERT INTO t VALUES (1)")


def create_a_table(db: safedb.Database) -> Any:
    return db.execute("CREATE TABLE u(x)")


def vacuum(db: safedb.Database) -> Any:
    return db.execute("VACUUM")


WRITES = [insert, insert_many, insert_in_a_function, insert_in_a_block, create_a_table, vacuum]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "app.db"


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody look at the files but the call itself: in life a thread of safedb does, now and then."""
    monkeypatch.setattr("safedb.sqlite.engine.SqliteEngine._watch", lambda self, now: True)


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("take_away", TAKEN_AWAY)
def test_the_very_next_write_is_not_acknowledged(
    path: Path, take_away: Callable[[Path], None], write: Callable[[safedb.Database], Any]
) -> None:
    """H41: it would go into a file that has another name, or none."""
    with safedb.connect(path, schema=SCHEMA) as db:
        db.execute("INSERT INTO t VALUES (0)")
        take_away(path)
        with pytest.raises(safedb.OperationalError, match="deleted, moved or replaced"):
            write(db)
        with pytest.raises(safedb.OperationalError, match="connect again"):
            db.execute("INSERT INTO t VALUES (1)")


@pytest.mark.slow
@pytest.mark.parametrize("take_away", TAKEN_AWAY)
def test_no_write_that_began_after_the_file_was_gone_is_acknowledged(
    path: Path, crew: Crew, take_away: Callable[[Path], None]
) -> None:
    """H41, under load: four threads write as fast as they can, in groups and alone."""
    gone = threading.Event()

    def hammer(db: safedb.Database, write: Callable[[safedb.Database], Any]) -> int:
        for acknowledged in itertools.count():
            too_late = gone.is_set()
            try:
                write(db)
            except safedb.OperationalError as error:
                assert "deleted, moved or replaced" in str(error)  # noqa: PT017 - which error it is, is the point
                return acknowledged
            assert not too_late
        raise AssertionError

    with safedb.connect(path, schema=SCHEMA) as db:
        workers = [crew(hammer, db, write) for write in (insert, insert_many, insert_in_a_function, insert_in_a_block)]
        wait_until(lambda: db.stats().writes > 100)
        take_away(path)
        gone.set()
        assert all(worker.result() for worker in workers)


def test_whatever_else_changes_in_the_folder_is_no_reason_to_stop(path: Path) -> None:
    with safedb.connect(path, schema=SCHEMA) as db:
        for number in range(300):
            neighbour = path.with_name(f"neighbour{number % 3}")
            neighbour.touch()
            db.execute("INSERT INTO t VALUES (?)", (number,))
            neighbour.unlink()
        assert db.execute("SELECT count(*) FROM t").scalar() == 300


def test_a_wal_that_sqlite_makes_anew_is_no_reason_to_stop(path: Path) -> None:
    """Written down: a fork closes every connection, so the WAL goes; another process writes; then we write again."""
    other = "import safedb, sys; safedb.connect('sqlite:///' + sys.argv[1]).execute('INSERT INTO t VALUES (2)')"
    with safedb.connect(path, schema=SCHEMA) as db:
        for number in range(3):
            db.execute("INSERT INTO t VALUES (?)", (number,))
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            with process_group([sys.executable, "-W", "ignore", "-c", other, str(path)]) as process:
                assert process.wait(60) == 0
        db.execute("INSERT INTO t VALUES (3)")
        assert db.execute("SELECT count(*) FROM t").scalar() == 7


class TestPresence:
    """What one look costs, and what it may rest on."""

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []
        look = presence._file_id

        def counted(path: str) -> presence.FileId | None:
            seen.append(path)
            return look(path)

        monkeypatch.setattr(presence, "_file_id", counted)
        return seen

    @pytest.fixture
    def watched(self, path: Path) -> Presence:
        path.touch()
        found = path.stat()
        return Presence(str(path), (found.st_dev, found.st_ino))

    def test_a_folder_that_stays_as_it_is_costs_one_look(
        self, watched: Presence, looks: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(presence, "SETTLED", -1)  # as if it had been at rest for long
        assert not watched.is_lost()
        looks.clear()
        assert not watched.is_lost()
        assert looks == []

    def test_a_folder_that_has_just_changed_is_not_relied_on(
        self, path: Path, watched: Presence, looks: list[str]
    ) -> None:
        """Its next change may have the same time."""
        os.utime(path.parent)
        assert not watched.is_lost()
        looks.clear()
        assert not watched.is_lost()
        assert looks == [str(path)]

    def test_a_file_that_may_not_be_looked_at_is_taken_to_be_there(
        self, path: Path, watched: Presence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A daemon that gives up its rights after opening; no test that runs as root can take rights from itself."""
        path.with_name("app.db-wal").touch()
        watched.opened()

        def forbidden(name: str) -> os.stat_result:
            raise PermissionError(errno.EACCES, "Permission denied", name)

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", forbidden)
            assert not watched.look()
            assert not watched.is_lost()
        assert not watched.look()

    def test_a_wal_is_looked_at_only_while_the_connection_is_open(self, path: Path, watched: Presence) -> None:
        wal = path.with_name("app.db-wal")
        wal.touch()
        watched.opened()
        assert not watched.look()
        watched.closing()
        wal.unlink()
        assert not watched.look()
        wal.touch()
        watched.opened()
        assert not watched.look()
        wal.unlink()
        assert watched.look()
        assert "app.db-wal was deleted" in str(watched.gone)
        assert repr(watched).endswith("gone>")


@pytest.mark.parametrize("take_away", TAKEN_AWAY)
def test_a_file_that_goes_away_is_told_of_and_nothing_more_is_acknowledged(
    path: Path, take_away: Callable[[Path], None]
) -> None:
    with safedb.connect(path, schema=SCHEMA) as db:
        db.execute("INSERT INTO t VALUES (0)")
        take_away(path)
        wait_until(lambda: refused(db))
        for call in (
            lambda: db.execute("SELECT x FROM t"),
            lambda: db.executemany("INSERT INTO t VALUES (?)", [(1,)]),
            lambda: db.run_transaction(lambda tx: tx.execute("INSERT INTO t VALUES (1)")),
            lambda: db.transaction().__enter__(),
            lambda: db.snapshot().__enter__(),
            db.checkpoint,
        ):
            with pytest.raises(safedb.OperationalError, match="connect again"):
                call()


def test_a_file_that_has_taken_the_place_of_an_open_one_is_refused_until_that_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    old = safedb.connect(path, schema=SCHEMA)
    path.unlink()
    with pytest.raises(safedb.ConfigError, match="close the handles on the old file"):
        safedb.connect(path, schema=SCHEMA)
    old.close()
    with safedb.connect(path, schema=SCHEMA) as new:
        new.execute("INSERT INTO t VALUES (2)")
        assert new.execute("SELECT x FROM t").fetchall() == [(2,)]


@pytest.mark.parametrize("sql", ["CREATE TEMP TABLE t(x)", "INSERT INTO temp.t VALUES (1)", "ATTACH 'other.db' AS o"])
def test_a_transaction_leaves_nothing_behind_on_the_connection_that_all_writers_share(tmp_path: Path, sql: str) -> None:
    """A temporary table would stand before the real one, for every later writer: their rows would be lost."""
    with safedb.connect(tmp_path / "app.db", schema=SCHEMA) as db:
        with db.transaction() as tx, pytest.raises(safedb.ProgrammingError, match="connection"):
            tx.execute(sql)
        with pytest.raises(safedb.ProgrammingError, match="connection"):
            db.run_transaction(lambda tx: tx.execute(sql))
        db.execute("INSERT INTO t VALUES (1)")
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_whoever_comes_when_the_last_handle_is_closed_is_told_that_and_opens_nothing(path: Path) -> None:
    """Written down: a call has found the engine and reads its rows; the last handle is closed; the call goes on."""
    db = safedb.connect(path, schema=SCHEMA)
    db.execute("INSERT INTO t VALUES (1)")

    def rows() -> Iterator[tuple[int]]:
        yield (2,)
        db.close()
        yield (3,)

    with pytest.raises(safedb.DatabaseClosed):
        db.executemany("INSERT INTO t VALUES (?)", rows())
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith(("-wal", "-shm"))] == []
    with safedb.connect(path) as again:
        assert again.execute("SELECT x FROM t").fetchall() == [(1,)]


SHARE = """
import sys, safedb
db = safedb.connect("sqlite:///" + sys.argv[1])
for line in sys.stdin:
    try:
        db.execute("INSERT INTO t VALUES (?)", (int(line),))
        print("acknowledged", flush=True)
    except safedb.OperationalError as error:
        print("refused" if "deleted, moved or replaced" in str(error) else repr(error), flush=True)
db.close()
"""


LOOK = """
import sys, safedb
with safedb.connect("sqlite:///" + sys.argv[1]) as db:
    print([x for (x,) in db.execute("SELECT x FROM t ORDER BY x")], db.check())
"""


def test_without_its_shm_two_processes_do_not_write_over_each_others_commits(path: Path) -> None:
    """Written down: somebody deletes our -shm; another process opens the file, makes a new one and writes; so do we.

    By the old one we would write to where the other has just written; and closing would cut off the other's WAL.
    """
    with safedb.connect(path, schema=SCHEMA) as db:
        db.execute("INSERT INTO t VALUES (0)")
        delete_shm(path)
        order = [sys.executable, "-W", "ignore", "-c", SHARE, str(path)]
        with process_group(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            for number in range(1, 6):
                other.stdin.write(f"{number}\n")
                other.stdin.flush()
                assert other.stdout.readline() == "acknowledged\n"
                with pytest.raises(safedb.OperationalError, match="-shm was deleted"):
                    db.execute("INSERT INTO t VALUES (-1)")
            other.stdin.close()
            assert other.wait(60) == 0
    with pytest.raises(safedb.InterfaceError, match="start it anew"):
        safedb.connect(path)
    with process_group([sys.executable, "-W", "ignore", "-c", LOOK, str(path)], stdout=subprocess.PIPE) as fresh:
        assert fresh.communicate(timeout=60)[0] == "[0, 1, 2, 3, 4, 5] []\n"


def test_side_files_that_were_removed_are_made_anew_and_shared_again(path: Path) -> None:
    """Written down: somebody removes them for leftovers; another process, here a lock of its own, makes them anew."""
    with safedb.connect(path, schema=SCHEMA) as db:
        db.execute("INSERT INTO t VALUES (0)")
        for suffix in ("-safedb", "-safedb.next"):
            path.with_name(path.name + suffix).unlink()
        other = SideLock(str(path))
        assert other.try_acquire()
        with pytest.raises(safedb.LockTimeout, match="another process"):
            db.execute("INSERT INTO t VALUES (1)", timeout=0.2)
        other.release()
        db.execute("INSERT INTO t VALUES (2)")
        assert not other.is_gone()
        other.close()
        assert db.execute("SELECT x FROM t").fetchall() == [(0,), (2,)]


def test_the_wal_of_a_database_that_was_replaced_is_not_read_into_its_successor(path: Path) -> None:
    """Written down: the database is replaced, its -wal stays; the handle is closed, as the error says."""
    db = safedb.connect(path, schema=SCHEMA)
    db.execute("INSERT INTO t VALUES ('old')")
    other = sqlite3.connect(path.with_suffix(".other"))
    other.executescript("CREATE TABLE t(x); INSERT INTO t VALUES ('new')")
    other.close()
    path.with_suffix(".other").replace(path)
    with pytest.raises(safedb.OperationalError, match="connect again"):
        db.execute("INSERT INTO t VALUES ('old')")
    db.close()
    with safedb.connect(path) as again:
        assert again.execute("SELECT x FROM t").fetchall() == [("new",)]
        assert again.check() == []
    assert len(list(path.parent.glob("app.db-wal.lost-*"))) == 1
