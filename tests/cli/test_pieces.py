"""The small parts: signals, the foreign lock holder, words for people, and the two ways of writing."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest
from rich.console import Console
from support import sqlite3

import safedb
from safedb.cli.stress import by_hand, lock_holder, machine, target, with_safedb
from safedb.cli.stress.interrupts import Interrupts
from safedb.cli.stress.lock_holder import Held, Task
from safedb.cli.stress.progress import Live, Plain, duration, follower
from safedb.cli.stress.source import Row
from safedb.cli.stress.tally import Tick
from safedb.cli.stress.workload import OPENING_BALANCE, TOTAL, Outcome, Place, Side, Transfer


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "pieces.db"), None, "NORMAL")


@pytest.fixture(params=[target.BY_HAND, target.SAFEDB])
def side(request: pytest.FixtureRequest, place: Place) -> Iterator[Side]:
    engine = target.engine("sqlite")
    engine.prepare[request.param](place)
    opened = engine.open[request.param](place)
    yield opened
    opened.close()


def test_both_sides_do_the_same_to_the_file(side: Side, place: Place) -> None:
    hands = side.hands()
    hands.insert(3, 0, Row("a.py", 1, "text", 9))
    assert hands.transfer(Transfer(3, 0, 1, 60, 30))
    assert hands.read_row(1) == ("a.py", 1, "text")
    assert hands.read_row(2) is None
    assert hands.read_total() == TOTAL
    hands.close()
    with contextlib.closing(sqlite3.connect(place.path)) as connection:
        balances = "SELECT balance, version FROM safedb_stress_accounts WHERE id IN (1, 60) ORDER BY id"
        assert connection.execute(balances).fetchall() == [(OPENING_BALANCE - 30, 1), (OPENING_BALANCE + 30, 1)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_transfer_without_funds_is_declined_and_changes_nothing(side: Side) -> None:
    hands = side.hands()
    assert not hands.transfer(Transfer(3, 0, 1, 2, OPENING_BALANCE + 1))
    assert hands.read_total() == TOTAL
    hands.close()


def test_a_reader_that_is_held_open_still_lets_others_write(side: Side) -> None:
    reader, writer = side.hands(), side.hands()
    written: list[bool] = []

    def write() -> None:
        own = side.hands()
        own.insert(1, 0, Row("a.py", 1, "text", 9))
        own.close()
        written.append(True)

    def wait() -> None:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    reader.hold(wait)
    assert written == [True]
    reader.close()
    writer.close()


def test_errors_are_judged_by_their_kind(place: Place) -> None:
    by_hand.prepare(place)
    hand, library = by_hand.ByHand(place), with_safedb.WithSafedb(place)
    one, other = (sqlite3.connect(place.path, timeout=0, isolation_level=None) for _ in range(2))
    with contextlib.closing(one), contextlib.closing(other):
        one.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("BEGIN IMMEDIATE")
    assert hand.judge(caught.value) is Outcome.LOCKED
    assert hand.judge(ValueError("x")) is Outcome.OTHER
    assert library.judge(safedb.LockTimeout("x")) is Outcome.LOCKED
    assert library.judge(safedb.CommitUnknownError("x")) is Outcome.UNKNOWN
    assert library.judge(safedb.ProgrammingError("x")) is Outcome.OTHER
    library.close()


def test_the_deadline_is_the_users_own(place: Place) -> None:
    assert with_safedb.deadline(place) == 10.0
    assert with_safedb.deadline(Place(place.path, f"sqlite:///{place.path}?timeout=3", "FULL")) == 3.0


def test_the_first_signal_is_noted_and_the_second_raises() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert (interrupts.noticed, interrupts.exit_code) == (signal.SIGINT, 130)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the third does nothing: cleaning up is under way
        assert interrupts.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_signal_disturbs_the_cleaning_up() -> None:
    with Interrupts() as interrupts:
        interrupts.settle()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.exit_code == 143


@pytest.fixture
def signals_restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("signals_restored")
class TestLockHolder:
    def run(self, task: Task, *words: str) -> object:
        ours, theirs = Pipe()
        with ours, theirs:
            for word in words:
                ours.send(word)
            lock_holder.main(task, theirs)
            heard = []
            while ours.poll():
                heard.append(ours.recv())
        assert heard[0] == ("ready",)
        return heard[1][1] if len(heard) > 1 else None

    def test_holds_the_lock_as_long_as_told(self, place: Place) -> None:
        held = self.run(Task(place, 0.01, 0.2), "go")
        assert isinstance(held, Held)
        assert 0.2 <= held.held < 5

    def test_stops_when_told(self, place: Place) -> None:
        held = self.run(Task(place, 60, 60), "go", "stop")
        assert held == Held(0, 0)

    def test_stops_holding_when_told(self, place: Place) -> None:
        ours, theirs = Pipe()
        with ours, theirs:
            told = iter([False, True])
            held = lock_holder._hold(Task(place, 0, 60), lambda _: next(told))
        assert held.held < 30

    def test_gives_up_trying_when_told(self, place: Place) -> None:
        with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told = iter([False, False, True])
            held = lock_holder._hold(Task(place, 0, 60), lambda _: next(told))
        assert held.held == 0

    def test_does_nothing_without_go(self, place: Place) -> None:
        assert self.run(Task(place, 0, 60), "stop") is None

    def test_ends_when_its_parent_is_gone(self, place: Place) -> None:
        ours, theirs = Pipe()
        ours.close()
        with theirs:
            lock_holder.main(Task(place, 0, 60), theirs)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.00 µs"),
        (1.234e-6, "1.23 µs"),
        (0.000123, "123 µs"),
        (0.0009999, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.9996, "1.00 s"),
        (61.0, "61.0 s"),
        (600.0, "600 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_elsewhere_than_on_a_terminal_plain_lines_come_now_and_then() -> None:
    written = io.StringIO()
    with follower(Console(file=written, width=20), "by hand", 2.0) as shown:
        assert isinstance(shown, Plain)
        shown.say("starting")
        for tenth in range(1, 26):
            shown.follow(tenth / 10, Tick(1_000 * tenth, tenth // 20, 2_500_000))
    assert written.getvalue().splitlines() == [
        "by hand: starting",
        "by hand: 1 of 2 s, 10,000 writes/s, worst wait 2.50 ms",
        "by hand: 2 of 2 s, 10,000 writes/s, worst wait 2.50 ms, errors: 1",
    ]


def test_on_a_terminal_there_is_a_live_line() -> None:
    written = io.StringIO()
    with follower(Console(file=written, width=120, force_terminal=True), "safedb", 2.0) as shown:
        assert isinstance(shown, Live)
        shown.say("starting")
        shown.follow(1.0, Tick(5_000, 0, 2_500_000))
        shown.follow(3.0, Tick(9_000, 0, 2_500_000))
    assert "2 of 2 s" in written.getvalue()
    assert "waiting for writes under way" in written.getvalue()


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = machine.examine(machine.examine_disk(tmp_path))
    assert found.cores >= 1
    assert isinstance(found.storage, machine.Disk)
    assert found.storage.flush > 0
    assert sqlite3.sqlite_version in str(found)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_tells_little_is_described_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nothing)
    assert machine._processor()
