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

CAUSES: dict[type[errors.Error], str] = {
    errors.SerializationFailure: "serialization",
    errors.DeadlockDetected: "deadlock",
    errors.LockTimeout: "lock",
    errors.ConnectionLost: "connection",
    errors.NotSupportedError: "plan",
}


class Again(Exception):
    """Carry an error after which the same thing may be tried again."""

    def __init__(self, error: errors.Error) -> None:
        super().__init__()
        self.error = error


class Retries:
    """Try again, count it and tell of it; safe from any thread."""

    def __init__(self, counters: Counters, mutex: threading.Lock, hooks: Hooks, *, name: str) -> None:
        self._counters = counters
        self._mutex = mutex
        self._hooks = hooks
        self._name = name

    def persist(self, attempt: Callable[[], T], deadline: float, policy: ResolvedRetryPolicy) -> T:
        """Run ``attempt``, and again as long as it raises `Again`; in the end raise the error that this carries."""
        causes: list[str] = []
        last: Again | None = None
        end = deadline - ENOUGH

        def once() -> T:
            nonlocal last
            if last is not None and monotonic() >= end:
                raise last
            try:
                return attempt()
            except Again as again:
                last = again
                causes.append(CAUSES.get(type(again.error), "other"))
                raise

        def tell(attempts: int, waited: float) -> None:
            with self._mutex:
                self._counters.retried(causes[-1])
            self._hooks.emit(Retried(self._name, causes[-1], attempts, waited))

        try:
            try:
                return once()
            except Again:
                if monotonic() >= end:
                    raise
                return run_again(once, policy=policy, deadline=end, may_retry=_is_again, on_retry=tell)
        except Again as again:
            failure = again.error
        raise failure


def _is_again(error: BaseException) -> bool:
    return isinstance(error, Again)
