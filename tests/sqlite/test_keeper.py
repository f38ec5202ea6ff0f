"""The keeper misses nobody who wakes it, sleeps when there is nothing to watch, and survives its chores."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import process_group, wait_until

import safedb
from safedb.sqlite.keeper import QUIET_TICKS, Keeper

TICK = 0.001
Make = Callable[..., Keeper]


@pytest.fixture
def make() -> Iterator[Make]:
    keepers: list[Keeper] = []

    def make(*chores: Callable[[float], bool], tick: float = TICK) -> Keeper:
        keepers.append(Keeper("test-keeper", list(chores), tick=tick))
        return keepers[-1]

    yield make
    for keeper in keepers:
        keeper.close()


class Chore:
    """Work that is there to be done until it has been done."""

    def __init__(self) -> None:
        self.work = threading.Event()
        self.done = threading.Event()
        self.rounds = 0
        self.last = 0.0

    def __call__(self, now: float) -> bool:
        self.rounds += 1
        self.last = now
        if self.work.is_set():
            self.work.clear()
            self.done.set()
            return True
        return False


def test_no_thread_is_started_before_there_is_something_to_watch(make: Make) -> None:
    chore = Chore()
    keeper = make(chore)
    assert keeper.asleep
    assert repr(keeper) == "<Keeper test-keeper asleep>"
    assert chore.rounds == 0
    keeper.close()  # nothing to join


def test_it_looks_until_it_has_been_quiet_for_a_while_and_then_sleeps(make: Make) -> None:
    chore = Chore()
    keeper = make(chore)
    keeper.wake()
    assert repr(keeper) == "<Keeper test-keeper>"
    wait_until(lambda: keeper.asleep, "the keeper to fall asleep")
    assert chore.rounds > QUIET_TICKS
    assert chore.last <= time.monotonic()


def test_while_a_chore_is_busy_it_goes_on_looking(make: Make) -> None:
    seen = threading.Semaphore(0)
    busy = [True]

    def chore(_: float) -> bool:
        seen.release()
        return busy[0]

    keeper = make(chore)
    keeper.wake()
    for _ in range(3 * QUIET_TICKS):
        assert seen.acquire(timeout=30)
    busy[0] = False
    wait_until(lambda: keeper.asleep)


def test_whoever_wakes_it_is_looked_after_however_often_it_falls_asleep(make: Make) -> None:
    chore = Chore()
    keeper = make(chore)
    for _ in range(8):
        chore.done.clear()
        chore.work.set()
        if keeper.asleep:
            keeper.wake()
        assert chore.done.wait(30), "a lost wake-up"
        wait_until(lambda: keeper.asleep)


def test_who_comes_between_the_last_look_and_the_sleep_is_seen(make: Make) -> None:
    """Each writes before it reads: the caller is visible and finds the keeper awake; the keeper looks once more."""
    done = threading.Event()
    arrived = [False]

    def chore(_: float) -> bool:
        if keeper.asleep and not arrived[0]:  # this is the look after ``asleep = True``
            arrived[0] = True  # a caller became visible just now, and had seen ``asleep`` False before
            return True
        if arrived[0]:
            done.set()
        return False

    keeper = make(chore)
    keeper.asleep = False
    keeper._start()  # awake, although nobody rings the bell afterwards
    assert done.wait(30), "it went to sleep on somebody"
    wait_until(lambda: keeper.asleep)


def test_a_bell_that_rings_while_it_falls_asleep_is_heard(make: Make) -> None:
    woken, entered = threading.Event(), [False]

    def chore(_: float) -> bool:
        if entered[0]:
            woken.set()
        elif keeper.asleep:
            entered[0] = True
            keeper.wake()  # from here on nobody rings again
        return False

    keeper = make(chore)
    keeper.asleep = False
    keeper._start()
    assert woken.wait(30)


def test_a_chore_that_fails_takes_no_other_with_it_and_is_tried_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    failures, other = threading.Semaphore(0), Chore()

    def fail(_: float) -> bool:
        failures.release()
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, logger="safedb"):
        keeper = make(fail, other)
        keeper.wake()
        assert failures.acquire(timeout=30)
        assert failures.acquire(timeout=30)
        keeper.close()
    assert "test-keeper: a chore failed; it is tried again" in caplog.text
    assert other.rounds >= 1


def test_what_fails_because_all_is_closed_is_not_worth_a_word(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    begun, closed = threading.Event(), threading.Event()

    def fail(_: float) -> bool:
        begun.set()
        closed.wait(30)
        raise ZeroDivisionError

    keeper = make(fail)
    keeper.wake()
    begun.wait(30)
    closer = threading.Thread(target=keeper.close)
    closer.start()
    wait_until(lambda: keeper._closed)
    closed.set()
    closer.join(30)
    assert caplog.text == ""


def test_closing_ends_the_thread_and_is_idempotent(make: Make) -> None:
    keeper = make(Chore())
    keeper.wake()
    thread = keeper._thread
    assert thread is not None
    keeper.close()
    keeper.close()
    assert not thread.is_alive()
    keeper.wake()
    assert keeper._thread is thread, "a closed keeper starts no thread"


def test_it_can_be_closed_from_its_own_thread(make: Make) -> None:
    ended = threading.Event()

    def chore(_: float) -> bool:
        keeper.close()  # a handle that is collected in this thread
        ended.set()
        return False

    keeper = make(chore)
    keeper.wake()
    assert ended.wait(30)
    thread = keeper._thread
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()


def test_two_callers_start_one_thread(make: Make) -> None:
    keeper = make(Chore())
    barrier = threading.Barrier(4)

    def wake() -> None:
        barrier.wait(30)
        keeper.wake()

    callers = [threading.Thread(target=wake) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert len([thread for thread in threading.enumerate() if thread.name == "test-keeper"]) <= 1
    keeper._start()
    assert keeper._thread is not None


def test_where_no_thread_can_be_started_callers_go_on_without(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the interpreter's exit, and at the system's limit of threads: neither can be had here without harm."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    chore = Chore()
    keeper = make(chore)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        keeper.wake()
        assert keeper.asleep, "so that the next caller tries again"
    chore.work.set()
    keeper.wake()
    assert chore.done.wait(30)


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_hook_that_raises_whatever_it_may_ends_no_watch(
    tmp_path: Path, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Bounded. Written down: an event comes on the watcher's thread, its hook says sys.exit(); deadlines still hold."""
    told = threading.Event()

    def hook(event: safedb.Event) -> None:
        if isinstance(event, safedb.Overrun) and threading.current_thread().name == "safedb-watch":
            told.set()
            raise raised

    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with safedb.connect(tmp_path / "app.db", schema="CREATE TABLE t (v)", on_event=hook) as db:
        with db.transaction(timeout=0.05) as tx:
            tx.execute("INSERT INTO t VALUES (1)")
            assert told.wait(30)
        with pytest.raises(safedb.QueryCanceled):
            db.execute(forever, timeout=0.3)


LOOK = """
import gc, sys, threading, time
from safedb.sqlite.deserted import frames

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        time.sleep(0)  # lets another thread run, as closing a connection does

end = time.monotonic() + 3
def look():
    while time.monotonic() < end:
        assert threading.get_ident() in frames()
        for _ in range(20):
            Cycle()
def start():
    while time.monotonic() < end:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
gc.set_threshold(5, 2, 2)
threads = [threading.Thread(target=call) for call in (look, start, start)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done", gc.isenabled())
"""


@pytest.mark.slow
def test_to_look_at_threads_hangs_nobody_whatever_is_collected_meanwhile(tmp_path: Path) -> None:
    """Before Python 3.12 a collection inside `sys._current_frames` may hang the process (gh-106883).

    Written down: threads begin and end, rubbish is collected at every turn, and its end lets another thread run.
    """
    with process_group([sys.executable, "-c", LOOK], stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=90)[0] == "done True\n"
