"""Checking the file finds each kind of broken promise, and nothing where none was broken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sqlite3

from safedb.cli.stress import by_hand
from safedb.cli.stress.source import Row, checksum
from safedb.cli.stress.tally import WriterTally
from safedb.cli.stress.verify import Findings, verify
from safedb.cli.stress.workload import ACCOUNTS, JOURNAL, ROWS, Outcome, Place, Transfer

ROW = Row("a.py", 7, "text\n", checksum("a.py", 7, "text\n"))


class Bench:
    """A file, and one writer whose work is all acknowledged: three rows and two transfers."""

    def __init__(self, place: Place) -> None:
        self.place, self.path = place, place.path
        by_hand.prepare(place)
        self.side = by_hand.ByHand(place)
        self.hands = self.side.hands()
        self.tally = WriterTally(4)
        for sequence in range(3):
            self.hands.insert(4, sequence, ROW)
            self.tally.rows.done(1_000, in_time=True)
        for sequence in range(2):
            self.transfer(Transfer(4, sequence, 1, 2, 100))

    def transfer(self, transfer: Transfer) -> None:
        assert self.hands.transfer(transfer)
        self.tally.transfers.done(1_000, in_time=True)
        self.tally.transferred(transfer)

    def spoil(self, sql: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute(sql)

    def findings(self, absent: frozenset[int] = frozenset()) -> Findings:
        return verify(self.place, [self.tally], absent)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(Place(str(tmp_path / "bench.db"), None, "NORMAL"))
    yield made
    made.hands.close()


def test_a_sound_file_has_no_findings(bench: Bench) -> None:
    assert bench.findings() == Findings(checked=5)
    assert bench.findings().violations() == []


def test_an_acknowledged_row_that_is_gone_is_lost(bench: Bench) -> None:
    bench.spoil(f"DELETE FROM {ROWS} WHERE sequence = 1")
    found = bench.findings()
    assert found.lost == 1
    assert found.examples == ["row 4/1 was acknowledged, and is not there"]
    assert found.violations() == ["1 acknowledged writes lost"]


def test_a_row_that_is_there_twice_is_doubled(bench: Bench) -> None:
    bench.hands.insert(4, 2, ROW)
    assert bench.findings().doubled == 1


def test_a_row_with_other_content_is_damaged(bench: Bench) -> None:
    bench.spoil(f"UPDATE {ROWS} SET body = 'other' WHERE sequence = 0")
    assert bench.findings().damaged == 1


@pytest.mark.parametrize("number", ["(4, 3)", "(4, -1)", "(5, 0)"])
def test_a_row_that_nobody_wrote_is_a_stray(bench: Bench, number: str) -> None:
    bench.spoil(f"UPDATE {ROWS} SET (worker, sequence) = {number} WHERE sequence = 0")
    found = bench.findings()
    assert (found.stray, found.lost) == (1, 1)


def test_rows_of_a_process_that_died_are_no_strays(bench: Bench) -> None:
    bench.hands.insert(5, 0, ROW)
    bench.hands.transfer(Transfer(5, 0, 1, 2, 100))
    assert bench.findings(absent=frozenset({5})) == Findings(checked=5)
    assert bench.findings().stray == 2


@pytest.mark.parametrize("outcome", [Outcome.LOCKED, Outcome.OTHER])
def test_a_write_that_is_there_although_its_writer_got_an_error_is_found(bench: Bench, outcome: Outcome) -> None:
    bench.hands.insert(4, 3, ROW)
    bench.tally.rows.failed(outcome)
    assert bench.findings().applied == 1


def test_a_write_that_nobody_could_know_about_may_be_there_or_not(bench: Bench) -> None:
    bench.hands.insert(4, 3, ROW)
    bench.hands.transfer(Transfer(4, 2, 5, 6, 10))
    for ledger in (bench.tally.rows, bench.tally.transfers):
        ledger.failed(Outcome.UNKNOWN)
        ledger.failed(Outcome.UNKNOWN)
    assert bench.findings() == Findings(checked=5, settled=2)


def test_a_transfer_that_is_only_half_there_is_found(bench: Bench) -> None:
    bench.spoil(f"DELETE FROM {JOURNAL} WHERE sequence = 0")
    assert bench.findings().lost == 1
    bench.hands.transfer(Transfer(4, 2, 5, 6, 10))
    bench.spoil(f"DELETE FROM {JOURNAL} WHERE sequence = 2")
    assert bench.findings().wrong_accounts == 2


def test_an_update_from_an_older_state_is_a_lost_update(bench: Bench) -> None:
    before = "SELECT balance, version FROM {} WHERE id = 1"
    with contextlib.closing(sqlite3.connect(bench.path)) as connection:
        balance, version = connection.execute(before.format(ACCOUNTS)).fetchone()
    bench.transfer(Transfer(4, 2, 1, 3, 10))
    bench.transfer(Transfer(4, 3, 1, 3, 20))
    bench.spoil(f"UPDATE {ACCOUNTS} SET balance = {balance - 20}, version = {version + 1} WHERE id = 1")
    found = bench.findings()
    assert (found.lost_updates, found.wrong_accounts, found.missing_money) == (1, 1, 10)
    assert "is what the total of all accounts is off by" in found.violations()[-1]


def test_a_balance_that_nobody_moved_is_found(bench: Bench) -> None:
    bench.spoil(f"UPDATE {ACCOUNTS} SET balance = balance + 1 WHERE id = 9")
    assert bench.findings().wrong_accounts == 1


def test_a_damaged_file_is_a_finding_and_no_crash(bench: Bench) -> None:
    bench.hands.close()
    size = Path(bench.path).stat().st_size
    with open(bench.path, "r+b") as file:
        file.seek(4096)
        file.write(os_noise(size - 4096))
    assert bench.findings().integrity
    assert bench.findings().violations()[-1].startswith("integrity_check: ")


def os_noise(count: int) -> bytes:
    return b"\xa5" * count
