"""The scheduler finds what is planted, finds nothing where nothing is, and repeats itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import scheduler as module
from reliability import Record
from scheduler import Failure, Plan, Scheduler, VirtualLock, explore, run
from steps import play


class Interrupted(BaseException):
    pass


def counter(scheduler: Scheduler, *, guarded: bool) -> Plan:
    """Add one in three threads, by reading, yielding and writing."""
    lock, count = scheduler.lock(), [0]

    def bare() -> None:
        read = count[0]
        scheduler.monotonic()
        count[0] = read + 1

    def safe() -> None:
        with lock:
            bare()

    return [safe if guarded else bare] * 3, None, lambda: count == [3]


def double_grant(scheduler: Scheduler) -> Plan:
    """Take a turn by looking first and taking then."""
    owners: list[int] = []
    free = [True]

    def taker(number: int) -> Callable[[], None]:
        def take() -> None:
            scheduler.monotonic()
            if free[0]:
                scheduler.monotonic()
                free[0] = False
                owners.append(number)
                scheduler.monotonic()
                owners.remove(number)
                free[0] = True

        return take

    return [taker(0), taker(1)], lambda: len(owners) < 2, None


def lost_wakeup(scheduler: Scheduler, *, timeout: float = -1) -> Plan:
    """Sleep after having looked, though the only wake-up may come between the two."""
    guard, sleeping, bell = scheduler.lock(), [False], scheduler.lock()
    bell.acquire()
    ready = [False]

    def waiter() -> None:
        with guard:
            done = ready[0]
        if not done:
            with guard:
                sleeping[0] = True
            bell.acquire(timeout=timeout)

    def waker() -> None:
        with guard:
            ready[0] = True
            if sleeping[0]:
                bell.release()

    return [waiter, waker], None, None


def lock_order(scheduler: Scheduler) -> Plan:
    first, second = scheduler.lock(), scheduler.lock()

    def take(outer: VirtualLock, inner: VirtualLock) -> Callable[[], None]:
        def call() -> None:
            with outer, inner:
                pass

        return call

    return [take(first, second), take(second, first)], None, None


class TestFinding:
    def test_a_planted_lost_update_is_found(self) -> None:
        with pytest.raises(Failure, match="at the end"):
            explore(lambda scheduler: counter(scheduler, guarded=False), range(50))

    def test_a_planted_double_grant_is_found_by_the_invariant(self) -> None:
        with pytest.raises(Failure, match="invariant does not hold"):
            explore(double_grant, range(100))

    def test_a_planted_lost_wakeup_is_found_as_a_deadlock_that_names_the_sleeper(self) -> None:
        with pytest.raises(Failure, match=r"deadlock(.|\n)*thread 0 waits for <lock 2 locked>(.|\n)*trace:"):
            explore(lost_wakeup, range(100))

    def test_a_planted_lock_order_is_found_as_a_deadlock(self) -> None:
        with pytest.raises(Failure, match=r"thread 0 waits for <lock 2(.|\n)*thread 1 waits for <lock 1"):
            explore(lock_order, range(100))

    def test_a_thread_that_never_ends_is_found(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            def spin() -> None:
                while True:
                    scheduler.monotonic()

            return [spin, spin], None, None

        with pytest.raises(Failure, match="livelock"):
            run(scenario, 0, max_steps=200)

    def test_what_a_thread_raises_fails_the_schedule_and_is_its_cause(self) -> None:
        def broken() -> None:
            raise KeyError("mine")

        with pytest.raises(Failure, match="thread 0 raised") as caught:
            run(lambda scheduler: ([broken], None, None), 0)
        assert isinstance(caught.value.__cause__, KeyError)

    def test_an_invariant_may_raise_and_may_use_locks_without_being_a_step(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            lock = scheduler.lock()

            def invariant() -> None:
                if lock.acquire(blocking=False):
                    lock.release()
                raise AssertionError("seen")

            return [scheduler.monotonic], invariant, None

        with pytest.raises(Failure, match="does not hold: seen"):
            run(scenario, 0)

    def test_a_final_check_may_raise(self) -> None:
        def check() -> None:
            raise AssertionError("seen")

        with pytest.raises(Failure, match="at the end: seen"):
            run(lambda scheduler: ([scheduler.monotonic], None, check), 0)

    def test_a_thread_that_blocks_on_a_foreign_lock_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        foreign = threading.Lock()
        foreign.acquire()
        monkeypatch.setattr(module, "STUCK", 0.02)
        with pytest.raises(Failure, match="does not know"):
            run(lambda scheduler: ([foreign.acquire, scheduler.monotonic], None, None), 0)
        foreign.release()

    def test_clauses_that_clean_up_do_not_hide_a_failure(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            mine, never = scheduler.lock(), scheduler.lock()
            never.acquire()

            def sleeper() -> None:
                with mine:
                    try:
                        never.acquire()
                    finally:
                        scheduler.note("cleans up")
                        scheduler.monotonic()

            return [sleeper], None, None

        with pytest.raises(Failure, match="deadlock"):
            run(scenario, 0)


class TestTruth:
    def test_right_code_is_found_right(self) -> None:
        assert explore(lambda scheduler: counter(scheduler, guarded=True), range(100)) == 100

    def test_the_same_seed_is_the_same_trace_and_others_differ(self) -> None:
        def trace(seed: int) -> list[tuple[int, str]]:
            return run(lambda scheduler: counter(scheduler, guarded=True), seed).events

        assert [trace(seed) for seed in range(20)] == [trace(seed) for seed in range(20)]
        assert len({str(trace(seed)) for seed in range(20)}) > 5

    def test_a_failure_is_found_again_by_its_seed(self) -> None:
        with pytest.raises(Failure) as first:
            explore(double_grant, range(100))
        seed = int(str(first.value).split(":")[0].removeprefix("seed "))
        with pytest.raises(Failure) as second:
            run(double_grant, seed)
        assert str(first.value) == str(second.value)

    def test_a_failure_says_by_which_command_it_is_run_again(
        self, monkeypatch: pytest.MonkeyPatch, record: Record, seed: int
    ) -> None:
        with pytest.raises(Failure) as first:
            play(double_grant, record, seed, short=100, long=100)
        (note,) = first.value.__notes__
        variable, _, value = note.split()[3].partition("=")
        assert "test_scheduler.py::TestTruth::test_a_failure_says_by_which" in note
        monkeypatch.setenv(variable, value)
        with pytest.raises(Failure) as second:
            play(double_grant, record, seed, short=100, long=100)
        assert second.value.seed == first.value.seed
        assert str(first.value) == str(second.value)

    @pytest.mark.parametrize("times", [2, 3])
    def test_a_second_interrupt_falls_into_the_clearing_up_after_the_first(self, times: int) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            caught: list[int] = []

            def victim() -> None:
                for _ in range(10):
                    try:
                        scheduler.monotonic()
                    except Interrupted:
                        caught.append(len(caught))

            scheduler.interrupt(0, Interrupted(), at=2, times=times, gap=3)
            return [victim], None, lambda: len(caught) == times

        explore(scenario, range(10))

    def test_only_one_thread_is_inside_a_step(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            inside: list[int] = []

            def step() -> None:
                for _ in range(5):
                    inside.append(1)
                    time.sleep(0)  # a real switch, for whoever is not held back
                    assert len(inside) == 1
                    inside.pop()
                    scheduler.monotonic()

            return [step] * 4, None, None

        explore(scenario, range(30))


class TestTime:
    def test_a_timed_wait_ends_when_nothing_else_can_go_on(self) -> None:
        explore(lambda scheduler: lost_wakeup(scheduler, timeout=5.0), range(50))

    def test_a_timed_wait_is_sometimes_ended_while_others_could_go_on_and_never_before_its_deadline(self) -> None:
        outcomes = set()

        def scenario(scheduler: Scheduler) -> Plan:
            lock = scheduler.lock()
            lock.acquire()

            def waiter() -> None:
                start = scheduler.monotonic()
                got = lock.acquire(timeout=5.0)
                assert got or scheduler.monotonic() >= start + 5.0
                outcomes.add(got)

            def holder() -> None:
                for _ in range(10):
                    scheduler.monotonic()
                lock.release()

            return [waiter, holder], None, None

        explore(scenario, range(60))
        assert outcomes == {True, False}


class TestInterrupts:
    @pytest.mark.parametrize("after", [False, True])
    def test_an_exception_lands_once_at_the_chosen_point(self, after: bool) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            lock = scheduler.lock()
            caught: list[int] = []

            def victim() -> None:
                for round_ in range(4):
                    try:
                        lock.acquire()
                    except Interrupted:
                        caught.append(round_)
                        assert lock.locked() is after
                    if lock.locked():
                        lock.release()

            scheduler.interrupt(0, Interrupted(), at=3, after=after)
            return [victim], None, lambda: caught == [1]

        explore(scenario, range(20))

    def test_a_sleeper_is_woken(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            lock = scheduler.lock()
            lock.acquire()
            return [lock.acquire, lambda: scheduler.interrupt(0, Interrupted())], None, lock.locked

        explore(scenario, range(20))

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("at", range(1, 6))
    def test_a_with_statement_never_loses_its_lock(self, at: int, after: bool) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            lock = scheduler.lock()

            def user() -> None:
                for _ in range(2):
                    with lock:
                        scheduler.monotonic()

            scheduler.interrupt(0, Interrupted(), at=at, after=after)
            return [user, user], None, lambda: not lock.locked()

        explore(scenario, range(30))


class TestLocks:
    def test_a_lock_behaves_as_the_real_one(self) -> None:
        for lock in (threading.Lock(), Scheduler(0).lock()):
            assert lock.acquire()
            assert lock.locked()
            assert not lock.acquire(blocking=False)
            lock.release()
            assert not lock.locked()
            with pytest.raises(RuntimeError):
                lock.release()
            with pytest.raises(ValueError, match="timeout"):
                lock.acquire(False, 1.0)
            with pytest.raises(ValueError, match="timeout"):
                lock.acquire(True, -2.0)
            with lock as taken:
                assert taken

    def test_another_thread_may_release(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            lock = scheduler.lock()
            lock.acquire()
            return [lock.acquire, lock.release], None, lock.locked

        explore(scenario, range(30))

    def test_outside_of_a_run_a_taken_lock_is_refused_not_waited_for(self) -> None:
        lock = Scheduler(0).lock()
        lock.acquire()
        with pytest.raises(RuntimeError, match="no scheduled thread"):
            lock.acquire()

    def test_a_thread_of_nobody_is_refused(self) -> None:
        def scenario(scheduler: Scheduler) -> Plan:
            def call() -> None:
                errors: list[object] = []

                def foreign() -> None:
                    try:
                        scheduler.monotonic()
                    except RuntimeError as error:
                        errors.append(error)

                thread = threading.Thread(target=foreign)
                thread.start()
                thread.join()
                assert errors

            return [call], None, None

        run(scenario, 0)
