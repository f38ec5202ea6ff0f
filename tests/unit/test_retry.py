"""Only what is safe is tried again, on a schedule that ends at one deadline; and every error says what it means."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from support import sqlite3

import safedb
from safedb import errors, retry
from safedb.config import ResolvedRetryPolicy
from safedb.retry import Phase, classify, code_of, is_busy, is_unknown_commit, run_again

ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Clock:
    """A clock that stands still while code runs, and moves while it sleeps; every sleep is written down."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def driver_error(code: int, name: str = "SQLITE_SOMETHING", cls: type[sqlite3.Error] = sqlite3.OperationalError) -> Any:
    """Make what the driver raises: most of these codes cannot be had from a sound disk on demand."""
    error = cls("the driver's words")
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


BUSY_ERROR = driver_error(retry.BUSY, "SQLITE_BUSY")


def again(
    attempt: Callable[[], Any],
    clock: Clock,
    *,
    timeout: float = 10.0,
    may_retry: Callable[[BaseException], bool] = is_busy,
    first: BaseException = BUSY_ERROR,
    told: list[tuple[int, float]] | None = None,
    **policy: Any,
) -> Any:
    """Run again after a first failure, as the engine does."""
    noted = [] if told is None else told
    try:
        raise first
    except sqlite3.Error:
        return run_again(
            attempt,
            policy=ResolvedRetryPolicy(**policy),
            deadline=clock.now + timeout,
            may_retry=may_retry,
            on_retry=lambda number, pause: noted.append((number, pause)),
            monotonic=clock.monotonic,
            sleep=clock.sleep,
        )


def failing(times: int, value: Any = "done") -> Callable[[], Any]:
    """Make an attempt that is busy ``times`` times."""
    left = iter(range(times))

    def attempt() -> Any:
        if next(left, None) is not None:
            raise driver_error(retry.BUSY)
        return value

    return attempt


# -- the schedule -----------------------------------------------------------------------------------------------------


def test_a_retry_waits_first_and_returns_what_the_attempt_returns() -> None:
    clock, told = Clock(), list[tuple[int, float]]()
    assert again(failing(0), clock, told=told, jitter=False, initial=0.01) == "done"
    assert clock.slept == [0.01]
    assert told == [(1, 0.01)], "the failure that the caller saw is the schedule's first try"


def test_pauses_grow_exponentially_up_to_the_cap() -> None:
    clock = Clock()
    again(failing(6), clock, jitter=False, initial=0.001, multiplier=2.0, maximum=0.01)
    assert clock.slept == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.01, 0.01, 0.01])


def test_jitter_is_full_between_nothing_and_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    clock = Clock()
    again(failing(5), clock, initial=0.001, multiplier=2.0, maximum=0.008)
    assert all(low <= 0.001 for low, _ in asked)
    assert [high for _, high in asked][-1] == pytest.approx(0.008)
    assert max(clock.slept) <= 0.008


@given(
    st.integers(0, 40),
    st.floats(0.0001, 0.05),
    st.floats(1.0, 10.0),
    st.floats(0.05, 1.0),
    st.booleans(),
    st.integers(),
)
def test_no_pause_is_above_the_cap_and_none_reaches_past_the_deadline(
    failures: int, initial: float, multiplier: float, maximum: float, jitter: bool, seed: int
) -> None:
    random.seed(seed)
    clock = Clock()
    end = clock.now + 0.7
    try:
        again(
            failing(failures),
            clock,
            timeout=0.7,
            initial=initial,
            multiplier=multiplier,
            maximum=maximum,
            jitter=jitter,
        )
    except sqlite3.OperationalError:
        assert clock.now >= end - 1e-9, "gave up before the deadline"
    assert all(0.0 <= pause <= maximum + 1e-9 for pause in clock.slept)
    assert clock.now <= end + 1e-9


def test_at_the_deadline_the_last_error_is_raised() -> None:
    clock = Clock()
    raised: list[sqlite3.Error] = []

    def attempt() -> None:
        raised.append(driver_error(retry.BUSY))
        raise raised[-1]

    with pytest.raises(sqlite3.OperationalError) as caught:
        again(attempt, clock, timeout=1.0, initial=0.4, maximum=0.4, jitter=False)
    assert caught.value is raised[-1]
    assert clock.slept == pytest.approx([0.4, 0.4, 0.2]), "the last pause is cut at the deadline"


def test_no_attempt_is_made_after_a_deadline_that_has_passed() -> None:
    clock = Clock()
    with pytest.raises(sqlite3.OperationalError) as caught:
        again(lambda: pytest.fail("tried"), clock, timeout=-1.0)
    assert caught.value is BUSY_ERROR
    assert clock.slept == []


@pytest.mark.parametrize(("attempts", "tried"), [(1, 0), (2, 1), (4, 3)])
def test_attempts_counts_the_first_failure_and_bounds_the_tries(attempts: int, tried: int) -> None:
    clock, count = Clock(), [0]

    def attempt() -> None:
        count[0] += 1
        raise driver_error(retry.BUSY)

    with pytest.raises(sqlite3.OperationalError):
        again(attempt, clock, attempts=attempts)
    assert count == [tried]
    assert len(clock.slept) == tried


def test_with_one_attempt_the_error_raised_is_the_callers_own() -> None:
    with pytest.raises(sqlite3.OperationalError) as caught:
        again(failing(0), Clock(), attempts=1)
    assert caught.value is BUSY_ERROR


def test_what_may_not_be_retried_ends_the_schedule_at_once() -> None:
    clock = Clock()
    other = driver_error(retry.IOERR)

    def attempt() -> None:
        raise other

    with pytest.raises(sqlite3.OperationalError) as caught:
        again(attempt, clock)
    assert caught.value is other
    assert len(clock.slept) == 1


def test_tenacity_is_entered_only_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its success path costs more than a whole read."""

    def entered(*_: Any, **__: Any) -> None:
        pytest.fail("tenacity was entered without a failure")

    monkeypatch.setattr(tenacity.Retrying, "__init__", entered)
    with safedb.connect(tmp_path / "a.db", schema="CREATE TABLE t(x)") as db:
        db.execute("INSERT INTO t VALUES (1)")
        with db.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (2)")
        assert db.execute("SELECT sum(x) FROM t").scalar() == 3
        with pytest.raises(errors.ProgrammingError):
            db.execute("SELECT nothing FROM t")


def test_connect_imports_tenacity_and_the_package_does_not() -> None:
    code = (
        "import sys, safedb; assert 'tenacity' not in sys.modules;"
        "db = safedb.connect('sqlite://'); assert 'tenacity' in sys.modules; db.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True, env=ENVIRON)


# -- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (retry.ERROR, errors.ProgrammingError),
        (retry.BUSY, errors.LockTimeout),
        (retry.BUSY_SNAPSHOT, errors.LockTimeout),
        (retry.LOCKED, errors.OperationalError),
        (retry.INTERRUPT, errors.QueryCanceled),
        (retry.FULL, errors.DatabaseFull),
        (retry.TOOBIG, errors.DataError),
        (retry.MISMATCH, errors.DataError),
        (retry.RANGE, errors.ProgrammingError),
        (retry.AUTH, errors.ProgrammingError),
        (retry.CORRUPT, errors.DatabaseError),
        (retry.NOTADB, errors.DatabaseError),
        (retry.IOERR | 2 << 8, errors.OperationalError),
        (retry.READONLY, errors.OperationalError),
        (retry.CANTOPEN, errors.OperationalError),
        (retry.NOMEM, errors.OperationalError),
        (retry.CONSTRAINT, errors.IntegrityError),
        (retry.CONSTRAINT | 1 << 8, errors.CheckViolation),
        (retry.CONSTRAINT | 3 << 8, errors.ForeignKeyViolation),
        (retry.CONSTRAINT | 5 << 8, errors.NotNullViolation),
        (retry.CONSTRAINT | 6 << 8, errors.UniqueViolation),
        (retry.CONSTRAINT | 7 << 8, errors.IntegrityError),
        (retry.CONSTRAINT | 8 << 8, errors.UniqueViolation),
        (retry.CONSTRAINT | 10 << 8, errors.UniqueViolation),
        (250, errors.OperationalError),
    ],
)
def test_an_error_is_classified_by_its_code_alone(code: int, cls: type[errors.Error]) -> None:
    error = driver_error(code, "SQLITE_NAME", cls=sqlite3.DatabaseError)
    ours = classify(error, doing="INSERT INTO t")
    assert type(ours) is cls
    assert ours.__cause__ is error
    assert ours.sqlite_errorname == "SQLITE_NAME"
    assert str(ours).startswith("INSERT INTO t: the driver's words")


def test_a_code_that_the_driver_has_no_name_for_has_none() -> None:
    assert classify(driver_error(250, "unknown"), doing="x").sqlite_errorname is None


@pytest.mark.parametrize("code", sorted(retry.REMEDIES))
def test_an_error_of_the_surroundings_names_its_remedy(code: int) -> None:
    assert retry.REMEDIES[code] in str(classify(driver_error(code), doing="x"))


@pytest.mark.parametrize("code", [retry.IOERR_FSYNC, retry.IOERR_DIR_FSYNC])
def test_a_failed_fsync_is_unknown_at_commit_and_only_there(code: int) -> None:
    """H14: after a crash the transaction may be found committed."""
    error = driver_error(code)
    assert is_unknown_commit(error)
    assert type(classify(error, doing="COMMIT", phase=Phase.COMMIT)) is errors.CommitUnknownError
    assert type(classify(error, doing="x", phase=Phase.INSIDE)) is errors.OperationalError
    assert type(classify(error, doing="x", phase=Phase.BEGIN)) is errors.OperationalError


@pytest.mark.parametrize(
    ("code", "cls"), [(retry.FULL, errors.DatabaseFull), (retry.IOERR | 3 << 8, errors.OperationalError)]
)
def test_what_certainly_did_not_commit_is_no_unknown_commit(code: int, cls: type[errors.Error]) -> None:
    assert type(classify(driver_error(code), doing="COMMIT", phase=Phase.COMMIT)) is cls


def test_locked_is_not_busy() -> None:
    """H11: LOCKED is our own doing; to try again would never end it."""
    assert not is_busy(driver_error(retry.LOCKED))
    assert is_busy(driver_error(retry.BUSY_SNAPSHOT))
    assert not is_busy(ValueError())


def test_an_error_of_ours_is_classified_already() -> None:
    ours = errors.QueueFull("full")
    assert classify(ours, doing="x") is ours


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (OverflowError("int too large"), errors.DataError),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "why"), errors.DataError),
        (sqlite3.DataError("too big"), errors.DataError),
        (sqlite3.InterfaceError("bad"), errors.InterfaceError),
        (sqlite3.OperationalError("Could not decode to UTF-8"), errors.OperationalError),
        (sqlite3.NotSupportedError("no"), errors.NotSupportedError),
        (sqlite3.InternalError("no"), errors.InternalError),
        (sqlite3.ProgrammingError("no"), errors.ProgrammingError),
        (sqlite3.Warning("no"), errors.ProgrammingError),
        (ValueError("no"), errors.ProgrammingError),
    ],
)
def test_what_the_driver_raises_by_itself_is_told_apart_by_its_type(error: Exception, cls: type[errors.Error]) -> None:
    ours = classify(error, doing="SELECT x")
    assert type(ours) is cls
    assert ours.__cause__ is error
    assert "SELECT x" in str(ours)


def test_an_exception_without_a_code_has_none() -> None:
    error = ValueError()
    error.sqlite_errorcode = "5"  # type: ignore[attr-defined]
    assert code_of(error) == 0
    assert code_of(driver_error(retry.FULL)) == retry.FULL
