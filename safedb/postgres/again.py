"""Running again what may be: on the policy's schedule, until the deadline, and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.retry import run_again
from safedb.stats import Counters, Hooks, Retried

T = TypeVar("T")

ENOUGH = 0.03  # seconds that another try must have: in less it would only be cut off, and its error would tell less
PATIENCE = 1.0  # seconds that a re-run waits for others that are run again: after that it is run beside them
SHARE = 0.25  # of what is left of the deadline, if that is less

CAUSES: dict[type[errors.Error], str] = {
    errors.SerializationFailure: "serialization",
    errors.DeadlockDetected: "deadlock",
    errors.LockTimeout: "lock",
    errors.ConnectionLost: "connection",
    errors.NotSupportedError: "plan",
}

CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)


class Again(Exception):
    """Carry an error after which the same thing may be tried again."""

    def __init__(self, error: errors.Error) -> None:
        super().__init__()
        self.error = error


class Retries:
    """Try again, count it and tell of it; safe from any thread.

    What has met a conflict is run again one at a time in each process: transactions that fail over one hot row would
    only fail each other once more. (32 threads that count one row up to 640 over 8 connections: 4.5 s and 2,251 re-runs
    where each waited only for its pause, 1.5 s and 280 so.) First runs wait for nothing. Nobody waits long: one that is
    stuck, behind a lock or in its user's code, holds up the others by `PATIENCE` alone.
    """

    def __init__(self, counters: Counters, mutex: threading.Lock, hooks: Hooks, *, name: str) -> None:
        self._counters = counters
        self._mutex = mutex
        self._hooks = hooks
        self._name = name
        self._lane = threading.Lock()

    def persist(self, attempt: Callable[[], T], deadline: float, policy: ResolvedRetryPolicy) -> T:
        """Run ``attempt``, and again as long as it raises `Again`; in the end raise the error that this carries."""
        try:
            return attempt()
        except Again as again:
            first = again
        try:
            if isinstance(first.error, CONFLICTS):
                return self._one_at_a_time(first, attempt, deadline, policy)
            return self._run_again(first, attempt, deadline, policy)
        except Again as again:
            failure = again.error
        raise failure

    def _one_at_a_time(self, first: Again, attempt: Callable[[], T], deadline: float, policy: ResolvedRetryPolicy) -> T:
        patience = min(PATIENCE, max(0.0, SHARE * (deadline - ENOUGH - monotonic())))
        alone = self._lane.acquire(timeout=patience)
        try:
            return self._run_again(first, attempt, deadline, policy)
        finally:
            if alone:
                self._lane.release()

    def _run_again(self, last: Again, attempt: Callable[[], T], deadline: float, policy: ResolvedRetryPolicy) -> T:
        end = deadline - ENOUGH
        if monotonic() >= end:
            raise last

        def once() -> T:
            nonlocal last
            if monotonic() >= end:
                raise last
            try:
                return attempt()
            except Again as again:
                last = again
                raise
            except (errors.QueryCanceled, errors.PoolTimeout):
                if monotonic() < end:
                    raise
                raise last from None  # time was used up by what made it be run again, and that can be tried later

        def tell(attempts: int, waited: float) -> None:
            cause = CAUSES.get(type(last.error), "other")
            with self._mutex:
                self._counters.retried(cause)
            self._hooks.emit(Retried(self._name, cause, attempts, waited))

        try:
            raise last  # the schedule takes the failure that is being handled for its first
        except Again:
            return run_again(once, policy=policy, deadline=end, may_retry=_is_again, on_retry=tell)


def _is_again(error: BaseException) -> bool:
    return isinstance(error, Again)
