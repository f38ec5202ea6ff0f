"""Durable acknowledgement, where the file itself is taken away: nothing is written into the void (H41)."""

from __future__ import annotations

import shutil
import sqlite3 as stdlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import wait_until

import safedb

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
    connection = stdlib.connect(other)
    connection.execute("CREATE TABLE t(x)")
    connection.close()
    other.replace(path)


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("take_away", [delete, move, replace, delete_folder])
def test_a_file_that_goes_away_is_told_of_and_nothing_more_is_acknowledged(
    tmp_path: Path, take_away: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "app.db"
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
