"""A process does what it is told and leaves nothing running; its parent outlives whatever happens to it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from safedb.cli.stress import crew, phase, target
from safedb.cli.stress.crew import Crew, Orders
from safedb.cli.stress.interrupts import Interrupts
from safedb.cli.stress.lock_holder import Held
from safedb.cli.stress.phase import Phase
from safedb.cli.stress.source import Row
from safedb.cli.stress.tally import ProcessResult, Tick
from safedb.cli.stress.verify import Findings, verify
from safedb.cli.stress.workload import TOTAL, Outcome, Place, Transfer


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    place = Place(str(tmp_path / "crew.db"), None, "NORMAL")
    target.engine("sqlite").prepare[target.BY_HAND](place)
    return Orders(
        side=target.BY_HAND,
        place=place,
        process=0,
        threads=1,
        readers=1,
        cpu_threads=0,
        slow_reader=0.0,
        seconds=0.5,
        seed=1,
        source=None,
    )


def changed(orders: Orders, **values: object) -> Orders:
    return Orders(**{**{name: getattr(orders, name) for name in Orders.__slots__}, **values})


@pytest.fixture(autouse=True)
def signals_restored() -> Iterator[None]:
    before, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    yield
    signal.signal(signal.SIGINT, before)
    assert threading.active_count() <= threads


def heard(orders: Orders, *words: str) -> list[tuple[str, object]]:
    """Run a process's main function in this process, with all words said beforehand."""
    ours, theirs = Pipe()
    with ours, theirs:
        for word in words:
            ours.send(word)
        crew.main(orders, theirs)
        said = []
        while ours.poll():
            word, *content = ours.recv()
            said.append((word, content[0] if content else None))
    return said


def test_what_one_writer_notes_is_what_the_file_holds(orders: Orders) -> None:
    said = heard(orders, "go")
    assert [word for word, _ in said if word != "tick"] == ["ready", "done"]
    result = said[-1][1]
    assert isinstance(result, ProcessResult)
    [tally] = result.writers
    assert tally.rows.acknowledged > 0
    assert tally.transfers.acknowledged > 0
    assert 0 < tally.in_time <= tally.acknowledged
    assert tally.acknowledged == tally.rows.latency.count + tally.transfers.latency.count
    assert sum(tally.moved) == 0
    assert result.readers[0].reads > 0
    assert result.seconds == pytest.approx(0.5)
    assert verify(orders.place, result.writers, set()) == Findings(checked=tally.acknowledged)


def test_stop_ends_it_early(orders: Orders) -> None:
    result = heard(changed(orders, seconds=60.0, slow_reader=60.0, cpu_threads=1), "go", "stop")[-1][1]
    assert isinstance(result, ProcessResult)
    assert result.seconds < 30


def test_nothing_is_done_without_go(orders: Orders) -> None:
    assert heard(orders, "stop") == [("ready", None)]


def test_a_parent_that_is_gone_ends_it(orders: Orders) -> None:
    ours, theirs = Pipe()
    ours.send("go")
    ours.close()
    with theirs:
        crew.main(changed(orders, seconds=60.0), theirs)


def test_a_parent_that_goes_while_it_works_ends_it(orders: Orders) -> None:
    ours, theirs = Pipe()
    ours.send("go")

    def leave() -> None:
        while ours.recv()[0] != "tick":
            pass
        ours.close()

    leaver = threading.Thread(target=leave)
    leaver.start()
    with theirs:
        crew.main(changed(orders, seconds=60.0), theirs)
    leaver.join()


def test_what_goes_wrong_is_told_to_the_parent(orders: Orders) -> None:
    word, text = heard(changed(orders, side="no such side"), "go")[-1]
    assert word == "failed"
    assert "KeyError: 'no such side'" in str(text)


class FailingSide:
    """A side on which everything fails."""

    def hands(self) -> FailingSide:
        return self

    def insert(self, worker: int, sequence: int, row: Row) -> None:
        raise ValueError("insert")

    def transfer(self, transfer: Transfer) -> bool:
        raise ValueError("transfer")

    def read_row(self, number: int) -> object:
        raise ValueError("read")

    def read_total(self) -> int:
        return TOTAL + 1

    def hold(self, wait: Callable[[], object]) -> None:
        raise ValueError("hold")

    def judge(self, error: Exception) -> Outcome:
        return Outcome.OTHER

    def describe(self) -> dict[str, float | int | str]:
        return {}

    def close(self) -> None:
        pass


def test_writers_that_only_fail_give_up_and_every_error_is_counted(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MOST_FAILURES", 100)
    made = Crew(changed(orders, seconds=20.0, slow_reader=1.0), FailingSide())
    made.start()
    while made.busy():
        made.watch()
        time.sleep(0.01)
    result = made.result()
    assert result.seconds < 20
    assert result.writers[0].gave_up
    assert result.writers[0].failures(Outcome.OTHER) == sum(result.writers[0].errors.texts.values()) == 100
    assert set(result.writers[0].errors.texts) == {"ValueError: insert", "ValueError: transfer"}
    assert result.readers[0].errors.texts["ValueError: read"] == 100
    assert result.readers[0].wrong_totals == result.readers[0].totals > 0


def test_a_thread_that_cannot_begin_is_reported(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    side = FailingSide()
    monkeypatch.setattr(side, "hands", lambda: 1 / 0)
    made = Crew(orders, side)
    made.start()
    made.join()
    assert sorted(made.result().trouble) == [
        f"{who} failed: ZeroDivisionError: division by zero" for who in ("reader 0", "writer 0")
    ]
    made.watch()
    assert made.over.is_set()


def test_threads_that_cannot_be_started_leave_none_running(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    start, before = threading.Thread.start, threading.active_count()

    def refuse(self: threading.Thread) -> None:
        if threading.active_count() > before + 1:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert heard(changed(orders, threads=5), "go")[-1][0] == "failed"


# The parent.


def run(orders: list[Orders], hold: float = 0.0, interrupts: Interrupts | None = None) -> phase.PhaseResult:
    return Phase(orders, hold, interrupts or Interrupts(), lambda _elapsed, _tick: None).run()


def test_processes_come_home_with_what_they_did(orders: Orders) -> None:
    result = run([orders, changed(orders, process=1, cpu_threads=1, slow_reader=0.1)], hold=0.1)
    assert result.broken == []
    assert sorted(process.process for process in result.processes) == [0, 1]
    assert {tally.worker for process in result.processes for tally in process.writers} == {0, 1}
    assert isinstance(result.held, Held)
    assert result.held.held >= 0.1
    assert result.wal["largest_wal"] > 0


def test_a_process_that_fails_at_its_start_is_reported_and_ends_the_run(orders: Orders) -> None:
    result = run([changed(orders, seconds=60.0), changed(orders, process=1, side="no such side")])
    assert result.processes == []
    assert "process 2 failed" in result.broken[0]


def kill_itself(_orders: Orders, parent: Connection) -> None:
    parent.send(("ready",))
    parent.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def never_end(_orders: Orders, parent: Connection) -> None:
    parent.send(("ready",))
    parent.recv()
    threading.Event().wait()


def never_be_ready(_orders: Orders, _parent: Connection) -> None:
    threading.Event().wait()


def tell_whether_ctrl_c_reaches_it(_orders: Orders, parent: Connection) -> None:
    parent.send(("ready",))
    parent.recv()
    parent.send(("failed", "out of reach" if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()) else "hit"))


def test_ctrl_c_reaches_no_process_from_its_first_instruction(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "main", tell_whether_ctrl_c_reaches_it)
    assert run([orders]).broken == ["process 1 failed:\nout of reach"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_that_dies_is_reported(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "main", kill_itself)
    assert run([orders]).broken == ["process 1 died (signal 9)"]


def test_a_process_that_does_not_end_is_killed_and_reported(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "main", never_end)
    monkeypatch.setattr(phase, "ENDING", 0.2)
    [broken] = run([orders]).broken
    assert broken.startswith("process 1: still busy")


def test_a_process_that_is_never_ready_is_killed_and_reported(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "main", never_be_ready)
    monkeypatch.setattr(phase, "STARTING", 0.2)
    [broken] = run([orders]).broken
    assert "not ready" in broken


def test_an_interrupt_ends_all_processes_early(orders: Orders) -> None:
    interrupts = Interrupts()

    def follow(_elapsed: float, tick: Tick) -> None:
        if tick.writes:
            interrupts.noticed = signal.SIGINT

    every = [changed(orders, process=number, seconds=60.0) for number in range(2)]
    result = Phase(every, 30.0, interrupts, follow).run()
    assert result.broken == []
    assert len(result.processes) == 2
    assert all(process.seconds < 30 for process in result.processes)
    tallies = [tally for process in result.processes for tally in process.writers]
    findings = verify(orders.place, tallies, set())
    assert (findings.lost, findings.doubled) == (0, 0)


def test_an_interrupt_before_the_start_starts_nothing(orders: Orders) -> None:
    interrupts = Interrupts()
    interrupts.noticed = signal.SIGINT
    result = run([orders], interrupts=interrupts)
    assert (result.processes, result.broken) == ([], [])
