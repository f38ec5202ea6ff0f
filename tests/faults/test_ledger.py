"""The check that the tests with kills rely on finds whatever they are to find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger import ACKNOWLEDGED, ANNOUNCED, BACKUP, INSERT, RECORD, REFUSED, SCHEMA, Journal, Ledger, row
from support import sqlite3

PLANTED = {
    "a lost row": ("DELETE FROM entries WHERE write = 'p1.1'", ["lost: p1.1"]),
    "a lost write of many rows": ("DELETE FROM entries WHERE write = 'p1.2'", ["lost: p1.2"]),
    "a doubled row": (
        "INSERT INTO entries SELECT * FROM entries WHERE write = 'p1.2' AND part = 1",
        ["doubled: p1.2 (many, 3 rows) has 4 rows"],
    ),
    "a doubled write that was not acknowledged": (
        "INSERT INTO entries SELECT * FROM entries WHERE write = 'p1.4'",
        ["doubled: p1.4"],
    ),
    "a write without its first row": ("DELETE FROM entries WHERE write = 'p1.2' AND part = 0", ["half: p1.2"]),
    "a write without its last row": ("DELETE FROM entries WHERE write = 'p1.2' AND part = 2", ["half: p1.2"]),
    "half a write that was not acknowledged": ("DELETE FROM entries WHERE write = 'p1.4' AND part = 0", ["half: p1.4"]),
    "a write that was refused": ("INSERT INTO entries VALUES ('p1.5', 0, 'p1.5/0 ', 1, 0)", ["refused: p1.5"]),
    "a write that nobody announced": ("INSERT INTO entries VALUES ('p9.9', 0, 'p9.9/0 ', 1, 0)", ["unknown: nobody"]),
    "a wrong total": (
        "UPDATE accounts SET balance = balance + 7 WHERE id = 3",
        ["wrong total: 20007", "wrong balance: account 3 has 1007, its entries make 1000"],
    ),
    "a transfer that nobody booked": (
        "UPDATE accounts SET balance = balance + CASE id WHEN 1 THEN 5 ELSE -5 END WHERE id IN (1, 2)",
        ["wrong balance: account 1", "wrong balance: account 2"],
    ),
    "another's body": ("UPDATE entries SET body = 'p1.2/1 ' WHERE write = 'p1.1'", ["damaged: part 0 of p1.1"]),
    "a broken reference": ("UPDATE entries SET account = 99 WHERE write = 'p1.1'", ["damaged: a reference"]),
    "a broken index": (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = "
        "(SELECT rootpage FROM sqlite_schema WHERE name = 'accounts') WHERE name = 'entries_of_a_write'",
        ["damaged: "],
    ),
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Be a journal: of what was acknowledged, of what was under way (it is there, or it is not), and of a failure."""
    journal = Journal(tmp_path, "p1")
    for write, parts in (("p1.1", 1), ("p1.2", 3)):
        journal.note(ANNOUNCED, write, "many", parts)
        journal.note(ACKNOWLEDGED, write)
    journal.note(ANNOUNCED, "p1.3", "many", 2)
    journal.note(ANNOUNCED, "p1.4", "many", 2)
    journal.note(ANNOUNCED, "p1.5", "one", 1)
    journal.note(REFUSED, "p1.5")
    return journal


@pytest.fixture
def database(tmp_path: Path, journal: Journal) -> Path:
    """Be a database that has what the journal says."""
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        for write, parts in (("p1.1", 1), ("p1.2", 3), ("p1.4", 2)):
            connection.executemany(INSERT, [row(write, part) for part in range(parts)])
        connection.commit()
    return path


def run(database: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(sql)


def assert_found(findings: list[str], beginnings: list[str]) -> None:
    assert len(findings) >= len(beginnings)
    for beginning in beginnings:
        assert [text for text in findings if text.startswith(beginning)], findings


def test_what_is_as_the_journals_say_is_right(tmp_path: Path, database: Path) -> None:
    assert Ledger(tmp_path).check(database) == []


@pytest.mark.parametrize(("sql", "beginnings"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_wrong_is_found(tmp_path: Path, database: Path, sql: str, beginnings: list[str]) -> None:
    run(database, sql)
    assert_found(Ledger(tmp_path).check(database), beginnings)


def test_a_torn_file_is_found(tmp_path: Path, database: Path) -> None:
    data = database.read_bytes()
    database.write_bytes(data[: len(data) // 2])
    assert_found(Ledger(tmp_path).check(database), ["damaged: "])


def test_a_file_that_is_gone_has_lost_everything(tmp_path: Path, database: Path) -> None:
    database.unlink()
    assert_found(Ledger(tmp_path).check(database), ["lost: p1.1", "lost: p1.2"])


def test_an_empty_file_has_lost_everything(tmp_path: Path, database: Path) -> None:
    database.write_bytes(b"")
    assert_found(Ledger(tmp_path).check(database), ["lost: p1.1", "lost: p1.2"])


def test_an_error_that_a_process_met_is_found(tmp_path: Path, database: Path, journal: Journal) -> None:
    journal.complain("LockTimeout: …")
    assert Ledger(tmp_path).check(database) == ["LockTimeout: …"]


def test_what_is_acknowledged_while_the_database_is_read_need_not_be_seen(
    tmp_path: Path, database: Path, journal: Journal
) -> None:
    ledger = Ledger(tmp_path)
    ledger.read()
    journal.note(ACKNOWLEDGED, "p1.3")
    assert ledger.acknowledged() == {"p1.1", "p1.2"}
    assert_found(ledger.check(database), ["lost: p1.3"])


def test_a_record_that_was_torn_is_not_read_before_it_is_whole(
    tmp_path: Path, database: Path, journal: Journal
) -> None:
    ledger = Ledger(tmp_path)
    journal.note(ACKNOWLEDGED, "p1.3")
    path = tmp_path / "p1.journal"
    data = path.read_bytes()
    path.write_bytes(data[: -RECORD // 2])
    assert ledger.check(database) == []
    path.write_bytes(data)
    assert_found(ledger.check(database), ["lost: p1.3"])


class TestBackups:
    @pytest.fixture
    def backup(self, tmp_path: Path, database: Path, journal: Journal) -> Iterator[Path]:
        """Be a backup that was made when all of the journal had been written."""
        journal.note(ANNOUNCED, "p1.6", BACKUP)
        journal.note(ACKNOWLEDGED, "p1.6")
        copy = tmp_path / "p1.6.backup"
        copy.touch(0o600)
        copy.write_bytes(database.read_bytes())
        yield copy
        assert not list(tmp_path.glob("p1.6.backup-*")), "the check left a trace"

    def check(self, tmp_path: Path, backup: Path) -> list[str]:
        ledger = Ledger(tmp_path)
        ledger.read()
        return ledger.check_backup(backup, "p1.6")

    def test_a_right_one_is_right(self, tmp_path: Path, backup: Path) -> None:
        assert self.check(tmp_path, backup) == []

    def test_what_was_acknowledged_after_its_beginning_need_not_be_there(
        self, tmp_path: Path, backup: Path, journal: Journal
    ) -> None:
        journal.note(ACKNOWLEDGED, "p1.3")
        assert self.check(tmp_path, backup) == []

    @pytest.mark.parametrize(("sql", "beginnings"), PLANTED.values(), ids=PLANTED.keys())
    def test_what_is_wrong_is_found(self, tmp_path: Path, backup: Path, sql: str, beginnings: list[str]) -> None:
        run(backup, sql)
        assert_found(self.check(tmp_path, backup), [f"p1.6.backup: {text}" for text in beginnings])

    def test_half_a_copy_is_found(self, tmp_path: Path, backup: Path) -> None:
        data = backup.read_bytes()
        backup.write_bytes(data[: len(data) // 2])
        assert_found(self.check(tmp_path, backup), ["p1.6.backup: damaged"])

    def test_one_that_is_not_there_is_found(self, tmp_path: Path, backup: Path) -> None:
        backup.unlink()
        assert_found(self.check(tmp_path, backup), ["p1.6.backup was reported complete"])

    def test_one_that_all_may_read_is_found(self, tmp_path: Path, backup: Path) -> None:
        backup.chmod(0o644)
        assert_found(self.check(tmp_path, backup), ["p1.6.backup may be read"])

    def test_one_that_was_never_complete_is_found(self, tmp_path: Path, backup: Path, journal: Journal) -> None:
        journal.note(REFUSED, "p1.6")
        assert_found(self.check(tmp_path, backup), ["p1.6.backup was never complete"])
