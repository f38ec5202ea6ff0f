"""The turnstile between processes: who gets the turn, who never does, and what a death, a fork or an interrupt leaves.

Two `SideLock` objects of one process exclude each other as two processes do, because each has descriptions of its
own; real processes are used where dying, stopping and forking matter, and are led by their pipes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

import safedb
from safedb.errors import ConfigError, DatabaseClosed, DatabaseFull, InterfaceError, OperationalError
from safedb.sqlite import sidelock
from safedb.sqlite.sidelock import SideLock

LONG = 30.0

WORKER = """
import os, sys, threading, time
from safedb.sqlite.sidelock import SideLock

path, anchor = sys.argv[1], int(sys.argv[2])
lock = SideLock(path)

def compete(rounds):
    for _ in range(rounds):
        assert lock.acquire(time.monotonic() + 60)
        with open(path + ".count", "r+") as file:      # read, then write: lost without exclusion
            count = int(file.read() or 0) + 1
            file.seek(0)
            file.write(str(count))
        lock.release()
    return rounds

def fork():
    if os.fork() == 0:
        held = lock.held
        lock.release()
        print(held, lock.try_acquire(), flush=True)
        lock.release()
        lock.close()
        os.read(anchor, 1)      # live, with whatever was inherited, until the test lets go
        os._exit(0)
    return None                 # the child answers

for line in sys.stdin:
    command, *arguments = line.split()
    if command == "acquire":
        answer = lock.acquire(time.monotonic() + float(arguments[0]))
    elif command == "background":
        threading.Thread(target=lock.acquire, args=(time.monotonic() + 60,), daemon=True).start()
        answer = "started"
    elif command == "compete":
        answer = compete(int(arguments[0]))
    elif command == "fork":
        answer = fork()
    else:
        answer = getattr(lock, command)()
    if command != "fork":
        print(answer, flush=True)
"""


class Worker:
    """Another process with a lock on the same database, which does what it is told."""

    def __init__(self, database: str, anchor: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, database, str(anchor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[anchor],
            env={**os.environ, "PYTHONPATH": str(Path(safedb.__file__).parents[1])},
        )
        self.pid = self.process.pid

    def begin(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, command: str) -> str:
        self.begin(command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "app.db"
    path.touch(mode=0o600)
    return os.path.realpath(path)


@pytest.fixture
def hire(database: str) -> Iterator[Callable[[], Worker]]:
    """Return a maker of workers; none of them, nor any child of theirs, outlives the test."""
    workers: list[Worker] = []
    anchor, release = os.pipe()

    def make() -> Worker:
        workers.append(Worker(database, anchor))
        return workers[-1]

    yield make
    os.close(release)
    os.close(anchor)
    for worker in workers:
        worker.kill()


@pytest.fixture
def make_lock(database: str) -> Iterator[Callable[[], SideLock]]:
    locks: list[SideLock] = []

    def make() -> SideLock:
        locks.append(SideLock(database))
        return locks[-1]

    yield make
    for lock in locks:
        lock.close()


def soon() -> float:
    return time.monotonic() + 0.02


def later() -> float:
    return time.monotonic() + LONG


def see(condition: Callable[[], bool]) -> None:
    """Look until ``condition`` holds: for what no pipe can tell, such as a thread's being inside flock."""
    give_up = later()
    while not condition():
        assert time.monotonic() < give_up, "never came about"
        time.sleep(0.0005)


def gate_is_taken(database: str) -> bool:
    """Say whether somebody waits with the gate in hand: a try takes it as well, but only for microseconds."""
    if not is_taken_now(database):
        return False
    time.sleep(0.005)
    return is_taken_now(database)


def is_taken_now(database: str) -> bool:
    try:
        number = os.open(f"{database}-safedb.next", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run ``call`` in a thread; return it and the list that gets what it returns or raises."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def descriptors(database: str) -> list[str]:
    folder = Path("/proc/self/fd")
    found = []
    for link in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = str(link.readlink())
            if target.startswith(f"{database}-safedb"):
                found.append(target)
    return found


linux_only = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")


class TestTaking:
    def test_only_one_holds_the_turn(self, make_lock: Callable[[], SideLock]) -> None:
        first, second = make_lock(), make_lock()
        assert first.try_acquire()
        assert first.held
        assert not second.try_acquire()
        assert not second.held
        first.release()
        assert not first.held
        assert second.try_acquire()

    def test_a_refusal_leaves_the_gate_open(self, make_lock: Callable[[], SideLock], database: str) -> None:
        first, second = make_lock(), make_lock()
        first.try_acquire()
        assert not second.try_acquire()
        assert not gate_is_taken(database)

    def test_a_free_turn_is_not_taken_past_one_who_stands_in_the_gate(
        self, make_lock: Callable[[], SideLock], database: str
    ) -> None:
        lock = make_lock()
        assert lock.try_acquire()
        lock.release()
        with open(f"{database}-safedb.next", "r+b") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            assert not lock.try_acquire()
        assert lock.try_acquire()

    def test_release_is_idempotent_and_allowed_before_anything_was_taken(
        self, make_lock: Callable[[], SideLock]
    ) -> None:
        lock = make_lock()
        lock.release()
        assert lock.try_acquire()
        lock.release()
        lock.release()
        assert not lock.held

    def test_taking_twice_is_refused_and_keeps_the_turn(self, make_lock: Callable[[], SideLock]) -> None:
        lock, other = make_lock(), make_lock()
        lock.try_acquire()
        with pytest.raises(InterfaceError, match="held already"):
            lock.acquire(later())
        assert lock.held
        assert not other.try_acquire()

    def test_a_deadline_that_has_passed_still_tries_once(self, make_lock: Callable[[], SideLock]) -> None:
        lock, other = make_lock(), make_lock()
        assert lock.acquire(0.0)
        assert not other.acquire(0.0)

    def test_repr_tells_state_and_database(self, make_lock: Callable[[], SideLock], database: str) -> None:
        lock = make_lock()
        assert repr(lock) == f"<SideLock {database!r} free>"
        lock.try_acquire()
        assert "held" in repr(lock)


class TestWaiting:
    def test_a_waiter_gets_the_turn_when_it_is_released(self, make_lock: Callable[[], SideLock], database: str) -> None:
        first, second = make_lock(), make_lock()
        first.try_acquire()
        thread, outcome = in_thread(lambda: second.acquire(later()))
        see(lambda: gate_is_taken(database))
        assert not outcome
        first.release()
        thread.join()
        assert outcome == [True]
        assert second.held
        assert second.holder() == os.getpid()
        assert not gate_is_taken(database)

    def test_the_one_that_lets_go_cannot_barge_in_before_the_one_that_waits(
        self, make_lock: Callable[[], SideLock], database: str
    ) -> None:
        """H19: the reason for two locks."""
        for _ in range(20):
            first, second = make_lock(), make_lock()
            first.try_acquire()
            thread, outcome = in_thread(lambda lock=second: lock.acquire(later()))  # type: ignore[misc]
            # Its first try takes the gate for a moment too: only the one that waits keeps it.
            see(lambda lock=second: lock._helper is not None and lock._helper._busy)  # type: ignore[misc]
            see(lambda: gate_is_taken(database))
            first.release()
            barged = first.try_acquire()
            thread.join()
            assert not barged
            assert outcome == [True]
            second.release()

    def test_a_waiter_that_leaves_at_its_deadline_gives_back_what_comes_later(
        self, make_lock: Callable[[], SideLock], database: str
    ) -> None:
        first, second, third = make_lock(), make_lock(), make_lock()
        first.try_acquire()
        assert not second.acquire(soon())
        assert not second.held
        assert gate_is_taken(database), "the helper cannot be called off"
        first.release()
        assert third.acquire(later()), "nobody wanted it"
        third.release()
        assert second.acquire(later())

    def test_a_new_call_adopts_the_wait_under_way(self, make_lock: Callable[[], SideLock], database: str) -> None:
        first, second = make_lock(), make_lock()
        first.try_acquire()
        helpers = set()
        for _ in range(3):
            assert not second.acquire(soon())
            assert not second.try_acquire()
            second.release()
            helpers |= {thread.ident for thread in threading.enumerate() if thread.name == "safedb-sidelock"}
        assert len(helpers) == 1
        thread, outcome = in_thread(lambda: second.acquire(later()))
        see(lambda: second._helper is not None and second._helper._wanted)
        first.release()
        thread.join()
        assert outcome == [True]
        assert second.held

    def test_a_turn_granted_while_its_caller_gives_up_is_taken_not_lost(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, database: str
    ) -> None:
        first, second, third = make_lock(), make_lock(), make_lock()
        first.try_acquire()
        waited = sidelock._Helper.wait

        def wait_too_long(helper: sidelock._Helper, deadline: float) -> bool:
            first.release()
            see(lambda: not helper._busy)
            granted = waited(helper, 0.0)
            sidelock._ring(helper._bell)  # as if it had rung a moment after the deadline
            return granted

        monkeypatch.setattr(sidelock._Helper, "wait", wait_too_long)
        assert second.acquire(later())
        assert second.held
        assert not third.try_acquire()
        second.release()
        monkeypatch.undo()
        assert third.try_acquire()
        thread, outcome = in_thread(lambda: second.acquire(later()))
        see(lambda: gate_is_taken(database))
        third.release()
        thread.join()
        assert outcome == [True], "a ring that nobody heard ended the next wait"

    def test_the_helper_ends_when_no_wait_follows(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sidelock, "_LINGER", 0.001)
        first, second = make_lock(), make_lock()
        for _ in range(3):
            first.try_acquire()
            assert not second.acquire(soon())
            first.release()
            helper = second._helper
            assert helper is not None
            see(lambda helper=helper: helper._thread is None)  # type: ignore[misc]
        assert first.try_acquire()

    def test_an_endless_deadline_is_no_overflow(self, make_lock: Callable[[], SideLock], database: str) -> None:
        first, second = make_lock(), make_lock()
        first.try_acquire()
        thread, outcome = in_thread(lambda: second.acquire(float("inf")))
        see(lambda: gate_is_taken(database))
        first.release()
        thread.join()
        assert outcome == [True]


class TestProcesses:
    def test_processes_exclude_each_other(self, hire: Callable[[], Worker]) -> None:
        first, second = hire(), hire()
        assert first.tell("try_acquire") == "True"
        assert second.tell("try_acquire") == "False"
        assert second.tell("holder") == str(first.pid)
        first.tell("release")
        assert second.tell("try_acquire") == "True"

    def test_no_update_is_lost_and_nobody_starves(self, hire: Callable[[], Worker], database: str) -> None:
        Path(database + ".count").touch()
        workers = [hire() for _ in range(3)]
        for worker in workers:
            worker.begin("compete 200")
        assert [worker.answer() for worker in workers] == ["200"] * 3
        assert Path(database + ".count").read_text() == "600"

    def test_a_release_wakes_the_process_that_waits(self, hire: Callable[[], Worker], database: str) -> None:
        first, second = hire(), hire()
        first.tell("try_acquire")
        second.begin("acquire 60")
        see(lambda: gate_is_taken(database))
        first.tell("release")
        assert second.answer() == "True"

    def test_a_killed_holder_frees_the_turn_at_once(
        self, hire: Callable[[], Worker], make_lock: Callable[[], SideLock]
    ) -> None:
        lock, worker = make_lock(), hire()
        worker.tell("try_acquire")
        thread, outcome = in_thread(lambda: lock.acquire(later()))
        worker.kill()
        thread.join()
        assert outcome == [True]

    def test_a_killed_waiter_leaves_the_gate_open(self, hire: Callable[[], Worker], database: str) -> None:
        first, second, third = hire(), hire(), hire()
        first.tell("try_acquire")
        second.begin("acquire 60")
        see(lambda: gate_is_taken(database))
        second.kill()
        third.begin("acquire 60")
        see(lambda: gate_is_taken(database))
        first.tell("release")
        assert third.answer() == "True"

    def test_a_stopped_holder_is_named_at_the_deadline_and_goes_on_when_continued(
        self, hire: Callable[[], Worker], make_lock: Callable[[], SideLock]
    ) -> None:
        lock, worker = make_lock(), hire()
        worker.tell("try_acquire")
        os.kill(worker.pid, signal.SIGSTOP)
        assert not lock.acquire(soon())
        assert lock.holder() == worker.pid
        lock.release()
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.tell("release") == "None"
        assert lock.acquire(later())
        assert lock.holder() == os.getpid()


class TestFork:
    def test_a_child_neither_has_nor_frees_its_parents_turn(
        self, hire: Callable[[], Worker], make_lock: Callable[[], SideLock]
    ) -> None:
        """H19, H30: ``flock`` belongs to the description, which the child shares."""
        lock, worker = make_lock(), hire()
        worker.tell("try_acquire")
        assert worker.tell("fork") == "False False"  # not held, not to be had; then it released and closed
        assert not lock.try_acquire()
        worker.tell("release")
        assert lock.acquire(later())

    def test_a_living_child_does_not_keep_a_dead_parents_turn(
        self, hire: Callable[[], Worker], make_lock: Callable[[], SideLock]
    ) -> None:
        lock, worker = make_lock(), hire()
        worker.tell("try_acquire")
        worker.tell("fork")
        worker.process.kill()
        assert lock.acquire(later())

    def test_nor_does_it_keep_a_turn_that_the_parents_helper_got(
        self, hire: Callable[[], Worker], make_lock: Callable[[], SideLock], database: str
    ) -> None:
        """The helper lingers, and what it refers to is never collected in the child."""
        lock, worker = make_lock(), hire()
        assert lock.try_acquire()
        worker.begin("acquire 60")
        see(lambda: gate_is_taken(database))
        lock.release()
        assert worker.answer() == "True"
        worker.tell("fork")
        worker.process.kill()
        assert lock.acquire(later())

    @pytest.mark.parametrize("closed", [False, True])
    def test_a_living_child_does_not_keep_a_dead_parents_place_in_the_gate(
        self, hire: Callable[[], Worker], make_lock: Callable[[], SideLock], database: str, closed: bool
    ) -> None:
        """Though only a helper thread, which the child does not have, refers to the descriptors."""
        lock, worker = make_lock(), hire()
        assert lock.try_acquire()
        assert worker.tell("background") == "started"
        see(lambda: gate_is_taken(database))
        if closed:
            worker.tell("close")
        worker.tell("fork")
        worker.process.kill()
        worker.process.wait()
        lock.release()
        assert lock.acquire(later())
        assert not gate_is_taken(database)

    def test_an_unannounced_child_opens_files_of_its_own(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock = make_lock()
        assert lock.try_acquire()
        lock.release()
        monkeypatch.setattr(sidelock, "_getpid", lambda: os.getpid() + 1)
        before = lock._files
        assert lock.try_acquire()
        assert lock._files is not before

    def test_forgetting_means_nothing_in_the_parent(self, make_lock: Callable[[], SideLock]) -> None:
        lock, other = make_lock(), make_lock()
        lock.forget_after_fork()
        lock.try_acquire()
        lock.forget_after_fork()
        assert lock.held
        assert not other.try_acquire()

    @linux_only
    def test_forgetting_closes_every_inherited_descriptor(
        self, make_lock: Callable[[], SideLock], database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock, orphan = make_lock(), make_lock()
        lock.try_acquire()
        assert not orphan.acquire(soon())
        lock.release()
        see(lambda: orphan._helper is not None and not orphan._helper._busy)
        helper, orphan._helper, orphan._files = orphan._helper, None, None  # only its thread refers to it
        lock.try_acquire()
        monkeypatch.setattr(sidelock, "_getpid", lambda: os.getpid() + 1)
        sidelock._after_fork_in_child()
        assert not lock.held
        # Descriptions of a map carry no lock; those of the two files are gone.
        assert f"{database}-safedb.next" not in descriptors(database)
        assert helper is not None
        helper.dismiss()

    def test_close_in_a_child_does_not_unlock(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock, other = make_lock(), make_lock()
        lock.try_acquire()
        files = lock._files  # as the parent would
        monkeypatch.setattr(sidelock, "_getpid", lambda: os.getpid() + 1)
        lock.close()
        assert not other.try_acquire()
        del files
        assert other.try_acquire()


class TestClose:
    def test_close_releases_is_idempotent_and_leaves_the_files(
        self, make_lock: Callable[[], SideLock], database: str
    ) -> None:
        lock, other = make_lock(), make_lock()
        lock.close()
        lock.try_acquire()
        lock.close()
        lock.close()
        assert not lock.held
        assert lock.holder() is None
        assert other.try_acquire()
        assert Path(f"{database}-safedb").exists()
        assert Path(f"{database}-safedb.next").exists()
        lock.release()
        assert other.held

    @linux_only
    def test_close_leaves_no_descriptor(self, make_lock: Callable[[], SideLock], database: str) -> None:
        lock = make_lock()
        lock.try_acquire()
        assert descriptors(database)
        lock.close()
        assert not descriptors(database)

    @linux_only
    def test_a_forgotten_lock_closes_its_files(self, database: str) -> None:
        lock = SideLock(database)
        lock.try_acquire()
        del lock
        gc.collect()
        assert not descriptors(database)

    def test_a_closed_lock_opens_again_when_it_is_wanted(self, make_lock: Callable[[], SideLock]) -> None:
        lock, other = make_lock(), make_lock()
        lock.try_acquire()
        lock.close()
        assert lock.try_acquire()
        assert not other.try_acquire()

    @linux_only
    def test_close_ends_a_wait_and_the_helper_gives_back_and_closes(
        self, make_lock: Callable[[], SideLock], database: str
    ) -> None:
        first, second, third = make_lock(), make_lock(), make_lock()
        first.try_acquire()
        thread, outcome = in_thread(lambda: second.acquire(later()))
        see(lambda: gate_is_taken(database))
        second.close()
        thread.join()
        assert isinstance(outcome.pop(), DatabaseClosed)
        assert not second.held
        assert first.held, "the helper still waits; its descriptors are open and its own"
        first.release()
        assert third.acquire(later())
        third.close()
        first.close()
        see(lambda: not descriptors(database))

    @pytest.mark.parametrize("call", [1, 2, 3])
    def test_close_during_a_take_is_noticed(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, call: int
    ) -> None:
        lock, other = make_lock(), make_lock()
        assert lock.try_acquire()
        lock.release()
        calls = 0

        def flock(number: int, operation: int) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                monkeypatch.undo()
                lock.close()
            fcntl.flock(number, operation)

        monkeypatch.setattr(sidelock, "_flock", flock)
        with pytest.raises(DatabaseClosed) as caught:
            lock.acquire(later())
        assert other.try_acquire(), "though the traceback keeps the descriptors"
        assert caught.traceback

    def test_close_just_before_the_wait_is_noticed(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, third = make_lock(), make_lock(), make_lock()
        first.try_acquire()
        make_helper, made = sidelock._Helper, []

        def closed_meanwhile(files: sidelock._Files) -> sidelock._Helper:
            second.close()
            made.append(make_helper(files))
            return made[-1]

        monkeypatch.setattr(sidelock, "_Helper", closed_meanwhile)
        monkeypatch.setattr(sidelock, "_LINGER", 2 * LONG)  # a helper that ends gives back in any case
        with pytest.raises(DatabaseClosed):
            second.acquire(later())
        first.release()
        see(lambda: made[0]._dismissed or not made[0]._busy)
        assert third.acquire(later())

    def test_close_between_try_and_wait_is_noticed(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = make_lock(), make_lock()
        first.try_acquire()
        tried = SideLock.try_acquire

        def try_then_close(lock: SideLock) -> bool:
            taken = tried(lock)
            lock.close()
            return taken

        monkeypatch.setattr(SideLock, "try_acquire", try_then_close)
        with pytest.raises(DatabaseClosed):
            second.acquire(later())


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt, which pytest would take for its own."""


class TestInterrupts:
    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("call", range(1, 5))
    def test_release_undoes_an_acquisition_interrupted_at_any_lock(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, call: int, before: bool, database: str
    ) -> None:
        lock, other = make_lock(), make_lock()
        lock.try_acquire()
        lock.release()
        calls = 0

        def flock(number: int, operation: int) -> None:
            nonlocal calls
            calls += 1
            if calls == call and before:
                raise Interrupted
            fcntl.flock(number, operation)
            if calls == call:
                raise Interrupted

        monkeypatch.setattr(sidelock, "_flock", flock)
        with contextlib.suppress(Interrupted):
            try:
                lock.try_acquire()
            finally:
                lock.release()
        assert calls >= call
        monkeypatch.undo()
        lock.release()
        assert not lock.held
        assert other.try_acquire()
        assert not gate_is_taken(database)
        other.release()
        assert lock.try_acquire()

    def test_a_wait_that_was_interrupted_gives_back_what_comes_later(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, third = make_lock(), make_lock(), make_lock()
        first.try_acquire()

        def interrupted(helper: sidelock._Helper, deadline: float) -> bool:
            raise Interrupted

        monkeypatch.setattr(sidelock._Helper, "wait", interrupted)
        with pytest.raises(Interrupted):
            second.acquire(later())
        monkeypatch.undo()
        second.release()
        first.release()
        assert third.acquire(later())

    def test_a_wait_interrupted_after_the_grant_gives_it_back(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, third = make_lock(), make_lock(), make_lock()
        first.try_acquire()

        def interrupted(helper: sidelock._Helper, deadline: float) -> bool:
            first.release()
            see(lambda: helper._granted)
            raise Interrupted

        monkeypatch.setattr(sidelock._Helper, "wait", interrupted)
        with pytest.raises(Interrupted):
            second.acquire(later())
        assert not third.try_acquire()
        second.release()
        assert third.try_acquire()

    def test_a_helper_that_was_never_started_is_started_by_the_next_call(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, database: str
    ) -> None:
        first, second = make_lock(), make_lock()
        first.try_acquire()

        def interrupted(thread: threading.Thread) -> None:
            raise Interrupted

        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(Interrupted):
            second.acquire(later())
        monkeypatch.undo()
        second.release()
        thread, outcome = in_thread(lambda: second.acquire(later()))
        see(lambda: gate_is_taken(database))
        first.release()
        thread.join()
        assert outcome == [True]

    @pytest.mark.skipif(sys.gettrace() is not None, reason="the signal may hit the tracer inside a lock of its own")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some come inside Python's own
    def test_signals_at_any_moment_leave_nothing_locked(self, make_lock: Callable[[], SideLock]) -> None:
        seed = 7
        chance = random.Random(seed)
        lock, other = make_lock(), make_lock()

        armed: list[bool] = []

        def interrupt(number: int, frame: FrameType | None) -> None:
            if armed:  # else it comes late, when the test itself puts things right
                armed.clear()
                raise Interrupted

        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            for turn in range(1500):
                busy = turn % 3 == 0 and other.acquire(later())
                try:
                    armed.append(True)
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 60e-6 if not busy else 300e-6))
                    try:
                        lock.acquire(time.monotonic() + (0.0002 if busy else LONG))
                    finally:
                        lock.release()
                    armed.clear()
                except Interrupted:
                    pass
                except RuntimeError as error:  # of `threading`, interrupted between a lock and its `try`
                    assert isinstance(error.__context__, Interrupted)  # noqa: PT017
                signal.setitimer(signal.ITIMER_REAL, 0)
                lock.release()  # the interrupt may have hit the release
                other.release()
                assert other.acquire(later()), f"seed {seed}, turn {turn}"
                other.release()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert lock.acquire(later())


class TestHolder:
    def test_nobody_is_named_before_anybody_held_it(self, make_lock: Callable[[], SideLock]) -> None:
        assert make_lock().holder() is None

    def test_oneself_is_named_only_while_holding(self, make_lock: Callable[[], SideLock]) -> None:
        lock = make_lock()
        lock.try_acquire()
        assert lock.holder() == os.getpid()
        lock.release()
        assert lock.holder() is None

    @pytest.mark.parametrize("number", [0, -1, (2**22 + 1) << 32, 2**22 + 1])
    def test_no_process_that_does_not_live_is_named(
        self, make_lock: Callable[[], SideLock], database: str, number: int
    ) -> None:
        lock = make_lock()
        lock.try_acquire()
        lock.release()
        Path(f"{database}-safedb").write_bytes(number.to_bytes(8, sys.byteorder, signed=True))
        assert lock.holder() is None

    def test_a_process_of_another_user_is_named(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock = make_lock()
        lock.try_acquire()

        def kill(pid: int, number: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", kill)
        assert lock.holder() == os.getpid()


class TestFiles:
    def test_files_appear_at_the_first_acquisition_with_the_databases_mode(
        self, make_lock: Callable[[], SideLock], database: str
    ) -> None:
        Path(database).chmod(0o640)
        lock = make_lock()
        side, gate = Path(f"{database}-safedb"), Path(f"{database}-safedb.next")
        assert not side.exists()
        assert not gate.exists()
        lock.try_acquire()
        assert [stat.S_IMODE(path.stat().st_mode) for path in (side, gate)] == [0o640, 0o640]
        assert [path.stat().st_size for path in (side, gate)] == [8, 0]

    def test_without_a_database_the_given_mode_counts_whatever_the_umask(self, tmp_path: Path) -> None:
        lock = SideLock(str(tmp_path / "new.db"), mode=0o660)
        old = os.umask(0o077)
        try:
            lock.try_acquire()
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "new.db-safedb").stat().st_mode) == 0o660
        assert not (tmp_path / "new.db").exists()
        lock.close()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_root_makes_them_the_database_owners(self, make_lock: Callable[[], SideLock], database: str) -> None:
        os.chown(database, 65534, 65534)
        make_lock().try_acquire()
        for name in (f"{database}-safedb", f"{database}-safedb.next"):
            made = Path(name).stat()
            assert (made.st_uid, made.st_gid) == (65534, 65534)

    def test_a_symbolic_link_to_the_database_leads_to_the_same_lock(
        self, make_lock: Callable[[], SideLock], database: str, tmp_path: Path
    ) -> None:
        (tmp_path / "link.db").symlink_to(database)
        lock, other = make_lock(), SideLock(str(tmp_path / "link.db"))
        lock.try_acquire()
        assert not other.try_acquire()
        other.close()

    @pytest.mark.parametrize("kind", ["link", "symlink", "full", "folder"])
    def test_what_is_no_side_file_is_refused_before_it_is_opened(
        self, make_lock: Callable[[], SideLock], database: str, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """H32: closing any descriptor of a live database drops its locks."""
        side = Path(f"{database}-safedb")
        if kind == "link":
            side.hardlink_to(database)
        elif kind == "symlink":
            side.symlink_to(database)
        elif kind == "full":
            side.write_bytes(b"SQLite format 3\0")
        else:
            side.mkdir()
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
        with pytest.raises(ConfigError, match="not a side file"):
            make_lock().try_acquire()

    def test_a_missing_folder_is_a_configuration_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot lock"):
            SideLock(str(tmp_path / "nowhere" / "app.db")).acquire(later())

    def test_a_file_that_another_process_makes_first_is_used(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, database: str
    ) -> None:
        opened = os.open

        def race(path: str, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_EXCL:
                Path(path).touch()
            return opened(path, flags, mode)

        monkeypatch.setattr(os, "open", race)
        assert make_lock().try_acquire()

    def test_a_file_that_cannot_be_dressed_is_closed(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, database: str
    ) -> None:
        def fchmod(number: int, mode: int) -> None:
            raise PermissionError(errno.EPERM, "not yours")

        monkeypatch.setattr(os, "fchmod", fchmod)
        with pytest.raises(ConfigError, match="not yours"):
            make_lock().try_acquire()
        if Path("/proc/self/fd").exists():
            assert not descriptors(database)

    @pytest.mark.parametrize(
        ("number", "expected"),
        [(errno.ENOSPC, DatabaseFull), (errno.ENOLCK, OperationalError), (errno.EACCES, ConfigError)],
    )
    def test_a_failing_lock_is_told_apart_in_call_and_helper(
        self, make_lock: Callable[[], SideLock], monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
    ) -> None:
        lock, other = make_lock(), make_lock()
        other.try_acquire()
        failing = fcntl.LOCK_EX | fcntl.LOCK_NB

        def flock(descriptor: int, operation: int) -> None:
            if operation == failing:
                raise OSError(number, os.strerror(number))
            fcntl.flock(descriptor, operation)

        monkeypatch.setattr(sidelock, "_flock", flock)
        with pytest.raises(expected):
            lock.acquire(later())
        failing = fcntl.LOCK_EX
        with pytest.raises(expected):
            lock.acquire(later())
        monkeypatch.undo()
        other.release()
        assert lock.acquire(later())

    def test_a_system_without_flock_is_refused_plainly(self, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
        monkeypatch.setattr(sidelock, "_AVAILABLE", False)
        with pytest.raises(ConfigError, match="no flock"):
            SideLock(database)
