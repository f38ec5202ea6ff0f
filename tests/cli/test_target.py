"""A database that was there is given back as it was; what cannot be used is refused before anything is made."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from support import sqlite3

from safedb.cli.stress.target import BY_HAND, SAFEDB, Fresh, Given, TargetError, choose, engine
from safedb.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(path: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()


def test_without_a_url_a_fresh_folder_is_made_and_removed(here: Path) -> None:
    where = choose(None)
    assert isinstance(where, Fresh)
    for side in (BY_HAND, SAFEDB):
        where.prepare(side, where.place(side, "FULL"))
        where.clear()
    assert sorted(file.name for file in where.folder.glob("*.db")) == ["by-hand.db", "safedb.db"]
    assert str(where) == str(where.folder)
    where.remove()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_an_existing_database_is_given_back_as_it_was(here: Path, mode: str) -> None:
    file = here / "mine.db"
    ask(file, f"PRAGMA journal_mode={mode}")
    ask(file, "CREATE TABLE mine (x)")
    ask(file, "INSERT INTO mine VALUES (42)")
    where = choose("sqlite:///mine.db")
    assert isinstance(where, Given)
    assert where.folder == here.resolve()
    assert str(where) == str(file.resolve())
    for side in (BY_HAND, SAFEDB):
        where.prepare(side, where.place(side, "FULL"))
        assert (
            len(ask(file, "SELECT name FROM sqlite_schema WHERE name GLOB 'safedb_stress_*' AND type = 'table'")) == 3
        )
        where.clear()
    where.prepare(SAFEDB, where.place(SAFEDB, "FULL"))
    where.remove()
    assert ask(file, "SELECT name, x FROM sqlite_schema, mine") == [("mine", 42)]
    assert ask(file, "PRAGMA journal_mode") == [(mode,)]


def test_a_database_that_was_not_there_is_removed(here: Path) -> None:
    where = choose("sqlite:///new.db")
    where.prepare(SAFEDB, where.place(SAFEDB, "FULL"))
    where.remove()
    assert list(here.iterdir()) == []


def test_the_url_reaches_safedb_alone(here: Path) -> None:
    where = choose("sqlite:///new.db?timeout=3")
    assert where.place(SAFEDB, "FULL").url == "sqlite:///new.db?timeout=3"
    assert where.place(BY_HAND, "FULL").url is None
    assert where.place(BY_HAND, "FULL").path == str((here / "new.db").resolve())


def test_tables_of_another_run_are_neither_used_nor_dropped(here: Path) -> None:
    first = choose("sqlite:///mine.db")
    ask(here / "mine.db", "CREATE TABLE mine (x)")
    second = choose("sqlite:///mine.db")
    first.prepare(BY_HAND, first.place(BY_HAND, "FULL"))
    with pytest.raises(TargetError, match=r"already has the table 'safedb_stress_.*drop the tables"):
        choose("sqlite:///mine.db")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        second.prepare(BY_HAND, second.place(BY_HAND, "FULL"))
    second.remove()
    assert (
        len(ask(here / "mine.db", "SELECT 1 FROM sqlite_schema WHERE name GLOB 'safedb_stress_*' AND type = 'table'"))
        == 3
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "a database in memory"),
        ("sqlite:///:memory:", "a database in memory"),
        ("sqlite:///x.db?mode=ro", "without mode=ro"),
        ("sqlite:///junk.db", "file is not a database"),
        ("sqlite:///folder", "folder"),
        ("sqlite:///nowhere/x.db", "nowhere"),
        ("x.db", "sqlite:///x.db"),
        ("mysql://host/x", "unknown scheme 'mysql'"),
        ("sqlite:///x.db?syncronous=FULL", "synchronous"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_made(here: Path, url: str, said: str) -> None:
    (here / "junk.db").write_text("this is no database, and is longer than a header of one hundred bytes" * 20)
    (here / "folder").mkdir()
    with pytest.raises((TargetError, ConfigError)) as caught:
        choose(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert sorted(file.name for file in here.iterdir()) == ["folder", "junk.db"]


def test_only_one_place_knows_the_engines() -> None:
    for dialect in ("sqlite", "postgresql"):
        assert set(engine(dialect).prepare) == set(engine(dialect).open) == {BY_HAND, SAFEDB}
        assert engine(dialect).words.dialect == dialect


def test_a_folder_that_cannot_be_written_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(TargetError, match="Permission denied; change to a folder"):
        choose(None)
