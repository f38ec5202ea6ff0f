"""What is run again, when, and what is raised in the end: the schedule by itself, with attempts that a test writes.

No server is needed here: what a real conflict or a broken link becomes is in the other files. The promises are
"Isolated failure" (nobody waits for another's re-run for ever) and "Bounded".
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from faults import error_of
from support import JOIN, Crew, wait_until

import safedb
from safedb import errors
from safedb.postgres.again import CONFLICTS, ENOUGH, Again, Retries
from safedb.stats import Counters, Event, Hooks, Retried

NAME = "postgresql://somewhere/db"
QUICK = safedb.RetryPolicy(initial=0.001, maximum=0.001, jitter=False).effective()
SLOW = safedb.RetryPolicy(initial=30.0, maximum=30.0, jitter=False).effective()
AWAY = 60.0  # seconds to a deadline that a test is not about


class Bench:
    """Be a `Retries` with all that it counts and tells."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.events: list[Event] = []
        hooks = Hooks()
        hooks.add(self.events.append)
        self.retries = Retries(self.counters, threading.Lock(), hooks, name=NAME)

    def persist(self, attempt: Callable[[], Any], timeout: float = AWAY, **policy: Any) -> Any:
        how = safedb.RetryPolicy(initial=0.001, maximum=0.001, jitter=False, **policy).effective()
        return self.retries.persist(attempt, monotonic() + timeout, how)


class Script:
    """Be an attempt that does one thing after the other: raises what is an error, calls what can be called."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.runs = 0

    def __call__(self) -> Any:
        step = self.steps[self.runs]
        self.runs += 1
        if isinstance(step, BaseException):
            raise step
        return step() if callable(step) else step


class Lane:
    """Be a lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waited_for = threading.Event()

    def acquire(self, timeout: float) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        self.waited_for.set()
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()


def conflict(text: str = "conflict") -> errors.SerializationFailure:
    return errors.SerializationFailure(text, sqlstate="40001")


def wait(event: threading.Event) -> None:
    assert event.wait(JOIN), "an event that never came"


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


class Holder:
    """Keep the lane of a bench, from inside a re-run in a thread of its own, until `let_go`."""

    def __init__(self, bench: Bench, crew: Crew) -> None:
        self._inside, self._end = threading.Event(), threading.Event()
        self.worker = crew(bench.persist, Script(Again(conflict()), self._hold))
        wait(self._inside)

    def _hold(self) -> str:
        self._inside.set()
        wait(self._end)
        return "held"

    def let_go(self) -> None:
        self._end.set()
        assert self.worker.result() == "held"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()


# -- the schedule -----------------------------------------------------------------------------------------------------


def test_what_goes_well_is_run_once(bench: Bench) -> None:
    """A first run costs nothing: no lane, no count, no event."""
    bench.retries._lane = None  # type: ignore[assignment]
    attempt = Script("done")
    assert bench.persist(attempt) == "done"
    assert attempt.runs == 1
    assert bench.counters.retries == {}
    assert bench.events == []


@pytest.mark.parametrize(
    ("cls", "cause"),
    [
        (errors.SerializationFailure, "serialization"),
        (errors.DeadlockDetected, "deadlock"),
        (errors.LockTimeout, "lock"),
        (errors.ConnectionLost, "connection"),
        (errors.NotSupportedError, "plan"),
        (errors.OperationalError, "other"),
    ],
)
def test_every_cause_is_counted_under_its_name_and_told(bench: Bench, cls: type[errors.Error], cause: str) -> None:
    """One count and one event for each re-run, numbered from 1, with the pause before it."""
    attempt = Script(Again(cls("first")), Again(cls("second")), "done")
    assert bench.persist(attempt) == "done"
    assert attempt.runs == 3
    assert bench.counters.retries == {cause: 2}
    assert bench.events == [Retried(NAME, cause, 1, 0.001), Retried(NAME, cause, 2, 0.001)]


def test_each_rerun_is_counted_under_what_made_it_necessary(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Not the first error counts but the last: a conflict, then a lock, then a link that broke."""
    caplog.set_level(logging.INFO, "safedb")
    attempt = Script(Again(conflict()), Again(errors.LockTimeout("lock")), Again(errors.ConnectionLost("link")), "done")
    assert bench.persist(attempt) == "done"
    assert bench.counters.retries == {"serialization": 1, "lock": 1, "connection": 1}
    assert [(event.cause, event.attempt) for event in bench.events if isinstance(event, Retried)] == [
        ("serialization", 1),
        ("lock", 2),
        ("connection", 3),
    ]
    assert caplog.text.count("Retried(") == 3


@pytest.mark.parametrize("first", [conflict, lambda: errors.ConnectionLost("link")], ids=["conflict", "link"])
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_the_policys_attempts_are_all_runs_together(
    bench: Bench, attempts: int, first: Callable[[], errors.Error]
) -> None:
    """After as many runs the last error is raised as it is, and not the `Again` around it."""
    failures = [first() for _ in range(4)]
    attempt = Script(*map(Again, failures))
    error = error_of(lambda: bench.persist(attempt, attempts=attempts))
    assert error is failures[attempts - 1]
    assert attempt.runs == attempts
    assert sum(bench.counters.retries.values()) == len(bench.events) == attempts - 1


@pytest.mark.parametrize("before", [[], [Again(conflict())], [Again(errors.ConnectionLost("link"))]])
@pytest.mark.parametrize("raised", [ValueError("the body's own"), errors.UniqueViolation("there"), KeyboardInterrupt()])
def test_what_is_not_to_be_run_again_goes_through(bench: Bench, before: list[Again], raised: BaseException) -> None:
    """An exception of the body's, and an interrupt, come out as they are, from the first run and from any other."""
    attempt = Script(*before, raised)
    assert error_of(lambda: bench.persist(attempt)) is raised
    assert attempt.runs == len(before) + 1
    assert not bench.retries._lane.locked()
    assert bench.persist(Script(Again(conflict()), "next")) == "next"


# -- the deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [conflict(), errors.LockTimeout("lock")], ids=["conflict", "lock"])
def test_no_run_begins_when_hardly_any_time_is_left(bench: Bench, error: errors.Error) -> None:
    """A run that would only be cut off is not begun, for its own error would tell less than the first."""
    attempt = Script(Again(error))
    assert error_of(lambda: bench.persist(attempt, timeout=ENOUGH / 2)) is error
    assert attempt.runs == 1
    assert bench.counters.retries == {}


@pytest.mark.parametrize("error", [conflict(), errors.ConnectionLost("link")], ids=["conflict", "link"])
def test_no_run_begins_after_a_pause_that_lasted_until_the_deadline(bench: Bench, error: errors.Error) -> None:
    """Bounded: the pause of 30 s is cut short, and the deadline that has come is noticed after it."""
    attempt = Script(Again(error))
    began = monotonic()
    assert error_of(lambda: bench.retries.persist(attempt, began + 0.2, SLOW)) is error
    assert monotonic() - began < 10.0
    assert attempt.runs == 1


@pytest.mark.parametrize("cut", [errors.QueryCanceled("cut off"), errors.PoolTimeout("none free")], ids=repr)
def test_a_run_that_the_deadline_cut_off_gives_the_conflicts_error(bench: Bench, cut: errors.Error) -> None:
    """Time was used up by the conflict: that is what happened, and it says that the same can be tried later."""
    error = conflict()
    deadline = monotonic() + 0.2

    def second() -> None:
        while monotonic() < deadline:
            time.sleep(0.005)
        raise cut

    attempt = Script(Again(error), second)
    raised = error_of(lambda: bench.retries.persist(attempt, deadline, QUICK))
    assert raised is error
    assert error.retryable
    assert attempt.runs == 2
    assert bench.counters.retries == {"serialization": 1}
    assert cut not in chain(raised)


@pytest.mark.parametrize("cut", [errors.QueryCanceled("by hand"), errors.PoolTimeout("none free")], ids=repr)
def test_a_run_that_was_cancelled_before_the_deadline_tells_that(bench: Bench, cut: errors.Error) -> None:
    """What somebody cancelled by hand is no matter of the conflict before it."""
    attempt = Script(Again(conflict()), cut)
    assert error_of(lambda: bench.persist(attempt)) is cut
    assert attempt.runs == 2


def chain(error: BaseException | None) -> list[BaseException]:
    """List an exception with all that would be printed above it."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


# -- the lane ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONFLICTS, ids=lambda cls: cls.__name__)
def test_what_met_a_conflict_is_run_again_one_at_a_time(bench: Bench, crew: Crew, cls: type[errors.Error]) -> None:
    """Written down: the first thread is inside its re-run; the second meets a conflict, and its re-run waits."""
    bench.retries._lane = lane = Lane()  # type: ignore[assignment]
    order: list[str] = []
    ran_beside = threading.Event()

    def second() -> None:
        order.append("second")
        ran_beside.set()

    with Holder(bench, crew) as holder:
        attempt = Script(Again(cls("conflict")), second)
        worker = crew(bench.persist, attempt)
        wait(lane.waited_for)
        assert not ran_beside.wait(0.1)
        assert attempt.runs == 1
        order.append("first")
        holder.let_go()
        worker.result()
    assert order == ["first", "second"]


def test_first_runs_and_other_causes_wait_for_no_lane(bench: Bench, crew: Crew) -> None:
    """Isolated failure: while one is inside the lane, others run, and run again what has met no conflict."""
    with Holder(bench, crew) as holder:
        assert crew(bench.persist, Script("done")).result() == "done"
        for error in (errors.LockTimeout("lock"), errors.ConnectionLost("link"), errors.NotSupportedError("plan")):
            assert crew(bench.persist, Script(Again(error), "done")).result() == "done"
        assert holder.worker.running
        holder.let_go()


def test_the_lane_of_another_database_is_another(bench: Bench, crew: Crew) -> None:
    """A conflict here is no matter of the database there."""
    other = Bench()
    with Holder(bench, crew) as holder:
        assert crew(other.persist, Script(Again(conflict()), "done")).result() == "done"
        holder.let_go()


def test_nobody_waits_long_for_one_that_is_stuck(bench: Bench, crew: Crew) -> None:
    """Isolated failure: the holder of the lane is stuck, and who has waited for a while is run beside it."""
    with Holder(bench, crew) as holder:
        attempt = Script(Again(conflict()), "ran beside it")
        assert bench.persist(attempt, timeout=30.0) == "ran beside it"
        assert attempt.runs == 2
        assert holder.worker.running
        assert bench.retries._lane.locked()  # who ran beside has not given it back
        holder.let_go()
    wait_until(lambda: not bench.retries._lane.locked(), "the holder to leave the lane")


def test_many_threads_in_one_lane_all_come_through(bench: Bench, crew: Crew) -> None:
    """Each of 16 threads is run again once, never two of them at a time."""
    alone = threading.Lock()

    def run(number: int) -> int:
        def again() -> int:
            assert alone.acquire(blocking=False), "two at a time"
            time.sleep(0)
            alone.release()
            return number

        result: int = bench.persist(Script(Again(conflict()), again))
        return result

    assert crew.together(16, run) == list(range(16))
    assert bench.counters.retries == {"serialization": 16}
    assert len(bench.events) == 16
