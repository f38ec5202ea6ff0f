"""What the stepped tests of queue and groups share: how many schedules, and a scheduler that never forgives."""

from __future__ import annotations

import os
from typing import Any

import pytest
import scheduler as module
from scheduler import Scheduler, VirtualLock

FAR = 1e9
"""Seconds: a deadline that no schedule lets pass. Who is woken by nothing else has been forgotten: a deadlock."""


class Interrupted(BaseException):
    """Stand for KeyboardInterrupt, and for whatever else reaches a thread from outside."""


class Unforgiving(Scheduler):
    """Let deadlines beyond half of `FAR` never pass, so that no timeout covers a wake-up that was lost."""

    unwinding = 0  # interrupts that were raised; a thread that has cleaned up counts itself out
    raised = 0  # interrupts that were raised

    def _acquire(self, lock: VirtualLock, blocking: bool, timeout: float, *, atomic: bool = False) -> bool:
        return super()._acquire(lock, blocking, -1 if timeout > FAR / 2 else timeout, atomic=atomic)

    def _raise(self, me: Any) -> None:
        self.unwinding += 1
        self.raised += 1
        super()._raise(me)

    @property
    def now(self) -> float:
        """Look at the clock, which is no step."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let at least ``seconds`` pass."""
        bed = self.lock()
        bed.acquire()
        bed.acquire(timeout=seconds)


def schedules(count: int) -> range:
    """Give the seeds of a test: ``count`` of them, or fifty times as many in the long form."""
    return range(count * 50 if os.environ.get("SAFEDB_TEST_LONG") == "1" else count)


@pytest.fixture(autouse=True)
def unforgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `scheduler.run` make the scheduler above."""
    monkeypatch.setattr(module, "Scheduler", Unforgiving)
