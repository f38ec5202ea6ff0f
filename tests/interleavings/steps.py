"""What the stepped tests of queue, groups and engine share: how many schedules, and a scheduler that never forgives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import scheduler as module
from reliability import Record, form
from scheduler import Failure, Plan, Scheduler, VirtualLock, explore

FAR = 1e9
"""Seconds: a deadline that no schedule lets pass. Who is woken by nothing else has been forgotten: a deadlock."""
DEAD = 1_000_000
"""Interrupts: one at every step that a thread still takes, so that nothing of its clearing up is ever done."""
APART = 1_000_000
"""Schedules between those of one seed and those of the next."""


class Interrupted(BaseException):
    """Stand for KeyboardInterrupt, and for whatever else reaches a thread from outside."""


class Unforgiving(Scheduler):
    """Let deadlines beyond half of `FAR` never pass, so that no timeout covers a wake-up that was lost."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unwinding: set[int] = set()  # threads that were interrupted, until they say that they have cleaned up
        self.struck: set[int] = set()  # threads that were interrupted

    def _acquire(self, lock: VirtualLock, blocking: bool, timeout: float, *, atomic: bool = False) -> bool:
        return super()._acquire(lock, blocking, -1 if timeout > FAR / 2 else timeout, atomic=atomic)

    def _raise(self, me: Any) -> None:
        self.unwinding.add(me.index)
        self.struck.add(me.index)
        super()._raise(me)

    def recovered(self, thread: int) -> None:
        """Let a thread say that it has cleaned up after its interrupt."""
        self.unwinding.discard(thread)

    def ended(self, ident: int) -> bool:
        """Tell whether the thread of this number (`threading.get_ident`) has ended, as the schedule has it."""
        return any(worker.done for worker in self._workers if worker.ident == ident)

    def outside(self) -> None:
        """Let the running thread use locks without a step from now on: in a forked child there is no other thread."""
        self._current = None

    @property
    def now(self) -> float:
        """Look at the clock, which is no step."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let at least ``seconds`` pass."""
        bed = self.lock()
        bed.acquire()
        bed.acquire(timeout=seconds)


def play(scenario: Callable[[Scheduler], Plan], record: Record, seed: int, *, short: int, long: int) -> None:
    """Run ``short`` schedules, or ``long`` ones in the long form, and count them; tell how to see a bad one again."""
    again = os.environ.get("SAFEDB_TEST_SCHEDULE")
    first = seed * APART if again is None else int(again)
    try:
        record.add(rounds=explore(scenario, range(first, first + (form(short, long) if again is None else 1))))
    except Failure as failure:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        failure.add_note(f"this schedule again: SAFEDB_TEST_SCHEDULE={failure.seed} pytest '{test}'")
        raise


@pytest.fixture(autouse=True)
def unforgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `scheduler.run` make the scheduler above."""
    monkeypatch.setattr(module, "Scheduler", Unforgiving)
