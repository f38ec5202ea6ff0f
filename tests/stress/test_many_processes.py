"""Many processes on one file: shares, a holder that is stopped or killed, and programs that know nothing of safedb.

All processes are real, write at synchronous FULL, and are led by pipes (`processes.py`). By hand, SQLite's own waiting
gives one process 25,940 turns while another gets one (H17).
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import INSERT, PATIENCE, Hands, found, open_raw, open_safe
from reliability import Record, form
from support import Crew, sqlite3, wait_until

import safedb
from safedb.retry import BUSY, BUSY_SNAPSHOT
from safedb.stats import Event, Retried

SHORT = 0.3  # seconds: a deadline that is meant to pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def db(path: Path, told: list[Event]) -> Iterator[safedb.Database]:
    with open_safe(path, on_event=told.append) as database:
        yield database


@pytest.fixture
def hands(path: Path, db: safedb.Database) -> Iterator[Hands]:
    """Be the other processes; they are gone before this one closes the database."""
    with Hands(path) as made:
        yield made


def rows_of(*answers: dict[str, list[list[int]]]) -> dict[int, int]:
    """Give what was acknowledged, by worker."""
    return {worker: count for answer in answers for worker, count in answer["acknowledged"] if count}


# -- shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_processes_back_to_back_all_write_without_an_error(hands: Hands, path: Path, record: Record) -> None:
    """H17, H18, H19: nobody starves, no error, and exactly what was acknowledged is there.

    Written down: eight processes with one thread each write single rows at FULL for some seconds, with nothing between
    two writes. The shares are judged with a wide margin (they are 0.95 and more; by SQLite's polling the least is 0.0):
    the machine may run other things.
    """
    crew = hands.hire(8)
    for hand in crew:
        hand.ask("open")
    for number, hand in enumerate(crew):
        hand.tell("write", workers=[number], hows=["execute"], seconds=form(2, 30))
    answers = [hand.answer() for hand in crew]
    acknowledged = rows_of(*answers)
    assert [answer["errors"] for answer in answers] == [[]] * 8
    assert [answer["retries"] for answer in answers] == [{}] * 8, "nobody meets SQLite's own lock"
    assert found(path) == acknowledged
    share = min(acknowledged.values()) / max(acknowledged.values())
    assert len(acknowledged) == 8
    assert share > 0.25, acknowledged
    record.add(rounds=1, acknowledged=sum(acknowledged.values()), lost=0)
    record.note(least_share=f"{share:.2f}", worst_wait_ms=round(max(answer["longest"] for answer in answers) * 1e3))


@pytest.mark.slow
def test_processes_of_many_threads_that_write_in_every_way_lose_nothing(
    hands: Hands, path: Path, record: Record
) -> None:
    """H17, H18, H19: four processes of four threads: statements, functions that read before they write, and blocks."""
    crew = hands.hire(4)
    for hand in crew:
        hand.ask("open")
    for number, hand in enumerate(crew):
        workers = [4 * number + thread for thread in range(4)]
        hand.tell("write", workers=workers, hows=["execute", "function", "block"], seconds=form(1, 30))
    answers = [hand.answer() for hand in crew]
    assert [answer["errors"] for answer in answers] == [[]] * 4
    assert not any("busy" in answer["retries"] for answer in answers), "nobody meets SQLite's own lock"
    acknowledged = rows_of(*answers)
    assert len(acknowledged) == 16, "a thread had no turn at all"
    assert found(path) == acknowledged
    record.add(rounds=1, acknowledged=sum(acknowledged.values()), lost=0)
    record.note(worst_wait_ms=round(max(answer["longest"] for answer in answers) * 1e3))


# -- a holder that is stopped, or killed ------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["block", "group"])
def test_a_stopped_holder_is_named_at_the_deadline_and_nothing_is_lost(
    hands: Hands, db: safedb.Database, path: Path, inside: str
) -> None:
    """H19: who holds the turn and does not run stops all writers; they are told who it is.

    Written down: one process is inside a transaction (a block; or a group of three statements of which the first has
    run, the second is inside SQLite and the third waits) and is stopped with SIGSTOP. Two threads of this process wait
    with a short deadline, another process with a long one. Then it may go on.
    """
    holder, patient = hands.hire(2)
    patient.ask("open")
    holder.ask(inside, worker=1)
    patient.tell("write", workers=[2], hows=["execute"], most=1)
    with holder.stopped(), joined() as crew:
        started = time.monotonic()
        workers = [crew(db.execute, INSERT, (3, number), timeout=SHORT) for number in range(2)]
        late = [worker.error() for worker in workers]
        waited = time.monotonic() - started
        assert db.execute("SELECT count(*) FROM t").scalar() == 0, "readers go on"
    assert all(isinstance(error, safedb.LockTimeout) for error in late), late
    assert any(f"another process (pid {holder.pid})" in str(error) for error in late), late
    assert 0.9 * SHORT < waited < 30, waited  # (the promise is a tenth of a second; the machine may be busy)
    holder.tell("on")
    answers = [holder.answer(), patient.answer()]
    assert answers[1]["errors"] == []
    if inside == "group":
        assert 3 in dict(answers[0]["sizes"]), "the group was committed whole"
    db.execute(INSERT, (4, 0))
    assert found(path) == {**rows_of(*answers), 4: 1}


def test_a_process_that_is_stopped_next_in_line_is_named_too(hands: Hands, db: safedb.Database) -> None:
    """H19: who stands in the gate and does not run lets nobody past, although nobody has the turn.

    Written down: B waits behind A's block, so B stands in the gate; B is stopped, and A ends its block.
    """
    first, second = hands.hire(2)
    second.ask("open")
    first.ask("block", worker=1)
    second.tell("write", workers=[2], hows=["execute"], most=1)
    wait_until(lambda: gate_of(db) == second.pid, "the second to stand in the gate")
    with second.stopped():
        first.ask("on")
        with pytest.raises(safedb.LockTimeout, match=rf"another process \(pid {second.pid}\)"):
            db.execute(INSERT, (3, 0), timeout=SHORT)
    assert second.answer()["errors"] == []
    db.execute(INSERT, (3, 0))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_stops_at_random_moments_lose_nothing_and_name_who_was_stopped(
    hands: Hands, db: safedb.Database, path: Path, seed: int, record: Record
) -> None:
    """H19: wherever a stop falls (a statement, a group, COMMIT, the hand-over between processes).

    Written down: a process of four threads writes back to back; again and again it is stopped at a moment drawn by
    chance, this process tries to write with a short deadline, and the other goes on. What is refused is refused with
    LockTimeout; most of these name the process (it may stand between taking the lock and signing for it).
    """
    chance = random.Random(seed)
    (busy,) = hands.hire()
    busy.ask("background", workers=[1, 2, 3, 4], hows=["execute", "function", "block"])
    mine = refused = named = 0
    rounds = form(10, 150)
    for _ in range(rounds):
        time.sleep(chance.uniform(0, 0.03))
        with busy.stopped():
            try:
                db.execute(INSERT, (9, mine), timeout=0.1)
                mine += 1
            except safedb.LockTimeout as error:
                refused += 1
                named += f"(pid {busy.pid})" in str(error)
        db.execute(INSERT, (9, mine))
        mine += 1
    answer = busy.ask("rest")
    assert answer["errors"] == []
    assert found(path) == {**rows_of(answer), 9: mine}
    assert named >= refused // 2 - 2, f"{named} of {refused}"  # few are refused in the short form
    record.add(rounds=rounds, acknowledged=sum(rows_of(answer).values()) + mine, lost=0)
    record.note(refused=refused, named=named)


@pytest.mark.parametrize("inside", ["block", "group"])
def test_after_a_killed_holder_the_next_goes_on_at_once(
    hands: Hands, db: safedb.Database, path: Path, inside: str, record: Record
) -> None:
    """H19: a dead process holds no lock, and what it had not committed is not there.

    Written down: one process is killed (SIGKILL) inside a block, or inside a group; another process and a thread of
    this one have been waiting for it.
    """
    holder, patient = hands.hire(2)
    patient.ask("open")
    holder.ask(inside, worker=1)
    patient.tell("write", workers=[2], hows=["execute"], most=1)
    wait_until(lambda: gate_of(db) == patient.pid, "it to stand in the gate")
    with joined() as crew:
        mine = crew(db.execute, INSERT, (3, 0))
        wait_until(lambda: db._engine.turns.holder is not None, "it to wait")  # type: ignore[attr-defined]
        killed = time.monotonic()
        holder.kill()
        assert mine.result().rowcount == 1
        waited = time.monotonic() - killed
    assert patient.answer()["errors"] == []
    assert waited < 30, waited  # (milliseconds)
    assert found(path) == {2: 1, 3: 1}
    record.add(rounds=1, kills=1, acknowledged=2, lost=0)
    record.note(**{f"went_on_after_ms_{inside}": round(waited * 1e3, 1)})


# -- programs that know nothing of safedb -----------------------------------------------------------------------------


class Shell:
    """Be SQLite's own shell, fed with transactions for as long as it swallows them."""

    def __init__(self, path: Path, worker: int) -> None:
        self.fed = 0
        self._worker = worker
        self._over = threading.Event()
        self._process = subprocess.Popen(
            [*shell(), str(path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def _feed(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("PRAGMA busy_timeout = 60000;\nPRAGMA synchronous = FULL;\n")
            while not self._over.is_set():
                values = f"INSERT INTO t VALUES ({self._worker}, {self.fed});"
                self._process.stdin.write(f"BEGIN IMMEDIATE;\n{values}\nCOMMIT;\n")
                self._process.stdin.flush()
                self.fed += 1

    def rest(self) -> int:
        """Let it work off what it was fed with, and give how many rows that were."""
        self._over.set()
        self._thread.join()
        _, said = self._process.communicate(timeout=2 * PATIENCE)
        assert "rror" not in said, said
        return self.fed


def shell() -> list[str]:
    """Give the command of SQLite's shell, or of Python's, which came with 3.12."""
    if found := shutil.which("sqlite3"):
        return [found]
    if sys.version_info >= (3, 12):
        return [sys.executable, "-m", "sqlite3"]
    pytest.skip("neither the sqlite3 program nor Python 3.12's is here")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", ["module", "shell"])
def test_programs_that_do_not_know_safedb_are_waited_for_and_starve_nobody(
    hands: Hands, db: safedb.Database, path: Path, told: list[Event], program: str, record: Record
) -> None:
    """H9, H17: the side files mean nothing to them, so SQLite's lock is met busy: waited for, counted, and had.

    Written down: the `sqlite3` module in another process (which now and then takes 0.2 s), or SQLite's shell, writes
    back to back at FULL, with BEGIN IMMEDIATE and a long busy timeout. Beside it write threads of this process and of
    another with safedb.
    """
    rows = form(12, 150)
    (colleague,) = hands.hire()
    colleague.ask("open")
    with foreigner(program, hands, path) as rest, ThreadPoolExecutor(2) as pool:
        colleague.tell("write", workers=[1, 2], hows=["execute", "function"], most=rows)

        def work(worker: int) -> float:
            longest = 0.0
            for number in range(rows):
                started = time.monotonic()
                db.execute(INSERT, (worker, number))
                longest = max(longest, time.monotonic() - started)
            return longest

        waits = list(pool.map(work, (3, 4)))
        answer = colleague.answer()
        foreign = rest()
    assert answer["errors"] == []
    assert found(path) == {**rows_of(answer), 3: rows, 4: rows, 9: foreign}
    retried = [event for event in told if isinstance(event, Retried) and event.cause == "busy"]
    assert len(retried) == db.stats().retries.get("busy", 0)
    both = len(retried) + answer["retries"].get("busy", 0)
    assert both or program == "shell", "the module holds the lock for longer than one try lasts"
    record.add(rounds=1, acknowledged=4 * rows, lost=0)
    record.note(**{f"{program}_worst_wait_s": round(max(waits), 2), f"{program}_retries": both})


@contextlib.contextmanager
def foreigner(program: str, hands: Hands, path: Path) -> Iterator[Callable[[], int]]:
    """Let a program write beside us; gives what ends it and tells how many rows it wrote."""
    if program == "module":
        (hand,) = hands.hire()
        hand.ask("hammer", worker=9)
        yield lambda: hand.ask("rest")["hammered"]
        return
    made = Shell(path, 9)
    rest: list[int] = []

    def end() -> int:
        rest.append(made.rest())
        return rest[0]

    try:
        yield end
    finally:
        if not rest:
            made.rest()


# -- what can no longer happen ----------------------------------------------------------------------------------------


@pytest.fixture
def outsider(path: Path, db: safedb.Database) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(open_raw(path, timeout=0)) as connection:
        yield connection


def test_a_transaction_that_reads_first_never_finds_its_snapshot_stale(
    db: safedb.Database, outsider: sqlite3.Connection, path: Path
) -> None:
    """H7: by hand, BEGIN; SELECT; then another's commit: the first write is refused for good (BUSY_SNAPSHOT, 517).

    Written down: the same steps with safedb. Its transactions begin with BEGIN IMMEDIATE, so that nobody can commit
    between their read and their write; the other is refused, and not we.
    """
    with contextlib.closing(open_raw(path, timeout=0)) as by_hand:
        by_hand.execute("BEGIN")
        by_hand.execute("SELECT count(*) FROM t").fetchall()
        outsider.execute(INSERT, (1, 0))
        with pytest.raises(sqlite3.Error) as stale:
            by_hand.execute(INSERT, (2, 0))
        assert stale.value.sqlite_errorcode == BUSY_SNAPSHOT

    def read_and_write(tx: safedb.Transaction, number: int) -> None:
        count = tx.execute("SELECT count(*) FROM t").scalar()
        with pytest.raises(sqlite3.Error) as refused:
            outsider.execute(INSERT, (1, 9))
        assert refused.value.sqlite_errorcode == BUSY
        tx.execute(INSERT, (3, number))
        assert tx.execute("SELECT count(*) FROM t").scalar() == count + 1

    with db.transaction() as tx:
        read_and_write(tx, 0)
    db.run_transaction(read_and_write, 1)
    assert db.stats().retries == {}
    assert found(path) == {1: 1, 3: 2}


def test_a_thread_that_holds_a_snapshot_writes_and_waits_like_any_other(
    db: safedb.Database, outsider: sqlite3.Connection, path: Path, crew_of_one: Crew
) -> None:
    """H8, H8b: by hand, who has read in a transaction, or not to the end, gets BUSY at once and is not made to wait.

    Written down: a thread is in the middle of `iterate` in a snapshot while another program commits, then holds the
    write lock; the same thread writes, is made to wait, and goes on reading the old state.
    """
    outsider.executemany(INSERT, [(1, number) for number in range(3)])
    reached = threading.Event()

    def read_and_write() -> list[int]:
        with db.snapshot() as snap:
            rows = snap.iterate("SELECT number FROM t ORDER BY number")
            seen = [next(iter(rows))[0]]
            outsider.execute(INSERT, (1, 3))
            outsider.execute("BEGIN IMMEDIATE")
            reached.set()
            db.execute(INSERT, (2, 0))
            return seen + [number for (number,) in rows]

    worker = crew_of_one(read_and_write)
    assert reached.wait(PATIENCE)
    wait_until(lambda: db.stats().retries.get("busy", 0) >= 1, "it to be made to wait")
    outsider.execute("COMMIT")
    assert worker.result() == [0, 1, 2]
    assert found(path) == {1: 4, 2: 1}


def test_a_function_is_not_called_before_its_transaction_is_open(
    db: safedb.Database, outsider: sqlite3.Connection, crew_of_one: Crew
) -> None:
    """H16: what failed at BEGIN is tried again without anybody's having to be run twice."""
    calls = []
    outsider.execute("BEGIN IMMEDIATE")
    worker = crew_of_one(db.run_transaction, lambda tx: calls.append(tx.execute(INSERT, (1, 0)).rowcount))
    wait_until(lambda: db.stats().retries.get("busy", 0) >= 2, "two retries")
    assert calls == []
    outsider.execute("COMMIT")
    worker.result()
    assert calls == [1]


def test_a_table_is_dropped_while_it_is_being_read(db: safedb.Database) -> None:
    """H10, H11: by hand one's own open cursor makes that LOCKED; readers here have connections of their own.

    Written down: a snapshot is in the middle of `iterate` when the table is dropped, and reads it to its end.
    """
    db.execute("CREATE TABLE u (x INTEGER)")
    db.executemany("INSERT INTO u VALUES (?)", [(number,) for number in range(3)])
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT x FROM u")
        first = next(iter(rows))
        db.execute("DROP TABLE u")
        assert [first, *rows] == [(0,), (1,), (2,)]
    with pytest.raises(safedb.ProgrammingError, match="no such table"):
        db.execute("SELECT * FROM u")


# -- support ----------------------------------------------------------------------------------------------------------


def gate_of(db: safedb.Database) -> int | None:
    """Tell who stands in the gate between processes."""
    files = db._engine.side._files  # type: ignore[attr-defined]
    return None if files is None else files.signs[1]


@contextlib.contextmanager
def joined() -> Iterator[Crew]:
    """Start threads that are joined at the end."""
    crew = Crew()
    try:
        yield crew
    finally:
        crew.finish()


@pytest.fixture
def crew_of_one(outsider: sqlite3.Connection) -> Iterator[Crew]:
    crew = Crew()
    yield crew
    if outsider.in_transaction:
        outsider.execute("ROLLBACK")
    crew.finish()


def test_a_handle_is_closed_while_another_process_has_the_turn(hands: Hands, path: Path) -> None:
    """Bounded: who only ends his own work need not wait for a neighbour's.

    Written down: A is inside a block; B, here, writes nothing and closes; A ends its block; its rows are there.
    """
    [other] = hands.hire(1)
    other.ask("open")
    db = open_safe(path)
    db.execute("SELECT 1")
    other.ask("block", worker=1)
    with pytest.raises(safedb.LockTimeout):
        db.execute(INSERT, (2, 0), timeout=SHORT)
    db.close()
    other.ask("on")
    with open_safe(path) as again:
        assert again.execute("SELECT count(*) FROM t WHERE worker = 1").scalar() > 0
        assert again.check() == []
