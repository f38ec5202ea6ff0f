"""Cases in real processes: what they promise is looked for afterwards, and nobody who breaks it goes unnoticed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pgserver
import pytest
from support import unmeasured

from benchmarks import beside, lab, peers, places
from benchmarks.case import Case, Outcome, Work
from benchmarks.children import Child, Message
from safedb.sqlite.driver import sqlite3

SECONDS = 0.2  # of a window


Run = Callable[..., Outcome]


@pytest.fixture
def heard() -> list[Message]:
    """Be what all processes of a case have said."""
    return []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[Message]) -> Run:
    """Run a case whose processes find `crooked`, and look whether it leaves a process or a file.

    Where the machine stood still in the window, so that next to nothing was called, it is run again.
    """
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    for name in set(os.environ) - set(unmeasured()):
        monkeypatch.delenv(name)
    groups: list[int] = []

    class Watched(Child):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            groups.append(self._process.pid)

        def hear(self, end: float) -> Message:
            message = super().hear(end)
            heard.append(message)
            return message

    monkeypatch.setattr(lab, "Child", Watched)

    def run_case(peer: str, work: Work = "write", *, threads: int = 2, **more: Any) -> Outcome:
        how = {name: more.pop(name) for name in ("patience", "url") if name in more}
        case = Case("test", peer, work, threads, **{"seconds": SECONDS, **more})
        for _ in range(10):
            outcome = lab.run(case, tmp_path, **how)
            assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("rows-")] == []
            assert groups
            for group in groups:
                with pytest.raises(ProcessLookupError):
                    os.killpg(group, 0)
            calls = sum(waits.count for waits in outcome.waits.values())
            if "not to be had" not in outcome.failed and (outcome.failed or calls >= 2 * threads * case.processes):
                break
        return outcome

    return run_case


def test_every_acknowledged_row_of_threads_and_processes_is_found(run: Run) -> None:
    """Written down: 2 processes with 4 threads each add to counters and insert; each addition and row is looked for."""
    outcome = run(peers.SAFEDB, "function", threads=4, processes=2)
    assert outcome.failed == ""
    assert [len(counts) for counts in outcome.counts] == [4, 4]
    assert outcome.verified == outcome.acknowledged >= sum(map(sum, outcome.counts))
    assert outcome.verified > 0
    assert outcome.memory >= outcome.before > 0
    assert outcome.wal > 0


def test_reads_and_writes_at_a_rate_are_counted_as_they_arrive(run: Run) -> None:
    outcome = run(peers.PER_THREAD, "mixed", rate=100.0, threads=4, processes=2)
    assert outcome.failed == ""
    assert 19 <= sum(waits.count for waits in outcome.waits.values()) <= 21  # 0.2 s, and what is due at the very end


@pytest.mark.parametrize(
    ("peer", "work", "why"),
    [
        ("Losing", "write", "acknowledged rows are lost"),
        ("Doubling", "write", "are there twice"),
        ("Overwriting", "function", "additions to the counters are lost"),
        ("Misreading", "point", "was read as"),
        ("Closed", "write", "PermissionError: not today"),
        ("Elsewhere", "write", "1 of .* acknowledged rows are lost"),
        ("Dying", "write", "ended in the middle, with 7"),
    ],
)
def test_a_peer_that_breaks_its_promise_has_failed(run: Run, peer: str, work: Work, why: str) -> None:
    """Written down: see `crooked`; each of its peers breaks one promise in one call of three, or dies at work."""
    outcome = run(f"crooked:{peer}", work)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(outcome.failed)
    assert outcome.counts == []


def test_a_process_that_hangs_is_ended(run: Run) -> None:
    """Written down: all threads of one of the processes block for ever in their second call."""
    outcome = run("crooked:Hanging", processes=2, patience=2.0)
    assert "hangs" in outcome.failed


def test_a_call_that_raised_may_have_written_its_row_or_not(run: Run) -> None:
    """Written down: of three calls one returns, one writes and raises, one only raises."""
    outcome = run("crooked:Doubtful")
    assert outcome.failed == ""
    assert outcome.errors["ConnectionError"] > 0
    assert outcome.verified == outcome.acknowledged > 0


def test_what_was_not_promised_is_counted_and_is_no_failure(run: Run) -> None:
    outcome = run("crooked:Promising")
    assert outcome.failed == ""
    assert 0 < outcome.verified < outcome.acknowledged


def test_another_program_holds_the_lock_in_the_middle(run: Run, heard: list[Message]) -> None:
    """Written down: it is to hold the lock for 0.4 s of 0.6, while two threads write back to back."""
    outcome = run(peers.SAFEDB, beside="lock held", seconds=0.6)
    assert outcome.failed == ""
    assert all(0.4 <= message["held"] < 30 for message in heard if "held" in message)
    assert any("held" in message for message in heard)


@pytest.mark.parametrize("other", ["reader held", "burning", "busy"])
def test_others_beside_let_the_writers_work(run: Run, other: str) -> None:
    outcome = run(peers.SAFEDB, beside=other)
    assert outcome.failed == ""
    assert outcome.verified > 0


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system's scheduler cannot be asked")
@pytest.mark.parametrize(("peer", "scheduler"), [("Interrupted", "batch"), ("Roaming", "one core")])
def test_the_kernel_is_asked_for_what_the_case_says(run: Run, peer: str, scheduler: str) -> None:
    """Written down: the peer's threads look at how they are scheduled, after each write, and raise unless it is so."""
    if peer == "Interrupted" or len(os.sched_getaffinity(0)) > 1:
        assert " may " in run(f"crooked:{peer}").failed  # its own words
    outcome = run(f"crooked:{peer}", scheduler=scheduler)
    assert (outcome.failed, outcome.errors) == ("", {})
    assert outcome.verified == outcome.acknowledged > 0


def test_a_large_file_is_used_again_and_each_run_finds_its_own_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: the limit is lowered to the file of the test; two runs use the same threads' numbers in it."""
    monkeypatch.setattr(places, "LARGE", 1000)
    runs = [run(peers.PER_THREAD, "function") for _ in range(2)]
    assert [outcome.failed for outcome in runs] == ["", ""]
    with closing(sqlite3.connect(tmp_path / "rows-1000.db")) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] >= sum(one.verified for one in runs)


def test_a_server_s_schema_is_made_filled_and_dropped(run: Run) -> None:
    url = pgserver.shared().schema()
    outcome = run("safedb on PostgreSQL", "function", dialect="postgresql", url=url)
    assert outcome.failed == ""
    assert outcome.verified == outcome.acknowledged > 0
    left = pgserver.shared().execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'bench%'")
    assert left == []


# -- the program beside -----------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    """Be two connections to one file; the first holds the write lock."""
    with (
        closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None, check_same_thread=False)) as first,
        closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None, timeout=0.0)) as second,
    ):
        first.execute("PRAGMA journal_mode = WAL")
        first.execute("BEGIN IMMEDIATE")
        yield first, second


class Asking:
    """Pass statements on, and note when one was refused."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self.refused = connection, threading.Event()

    def execute(self, sql: str) -> None:
        try:
            self._connection.execute(sql)
        except sqlite3.OperationalError:
            self.refused.set()
            raise


def test_the_program_beside_asks_until_the_lock_is_free(
    locked: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: it begins to ask while another holds the lock, who lets go when it has been refused."""
    monkeypatch.setattr(beside, "HOLD", 0.01)
    first, second = locked
    asking = Asking(second)

    def let_go() -> None:
        asking.refused.wait(60.0)
        first.execute("COMMIT")

    holder = threading.Thread(target=let_go)
    holder.start()
    try:
        assert beside.hold(asking, time.monotonic() - 60.0, 120.0) >= 0.01
        assert asking.refused.is_set()
    finally:
        asking.refused.set()
        holder.join()


def test_a_lock_that_is_not_to_be_had_is_said_so(locked: tuple[sqlite3.Connection, sqlite3.Connection]) -> None:
    with pytest.raises(TimeoutError, match="not to be had"):
        beside.hold(locked[1], time.monotonic() - 1.0, 0.5)
