"""A fork at any step of everybody else: the parent goes on as if nothing had been, and the child begins with nothing.

The hooks, `quiesce`, `resume` and `begin_anew` are the real ones, and so is the queue that the fork waits in. In most
schedules the child is a copy beside the parent, so that the others can do *their* steps between any two of its own. In
some the process is really forked, at the same step: then the child, in which the other threads have vanished, looks at
what it was left with, writes, and tells by a pipe.
"""

from __future__ import annotations

import pytest
from reliability import Record
from stepped import FAR, FUNCTIONS, SHORT, Mix, scenario, virtual_clock
from steps import play, unforgiving

__all__ = ["unforgiving", "virtual_clock"]

MIXES = {
    "statements": Mix(kinds=("statement", "row", "many"), forks=1),
    "functions": Mix(kinds=FUNCTIONS, forks=1),
    "blocks": Mix(kinds=("block", "exclusive", "row"), forks=1, checkpoints=True),
    "two at once": Mix(forks=2),
    "inside a transaction": Mix(kinds=("function", "block", "row"), troubles=("forks", ""), forks=1),
    "all at once": Mix(
        kinds=("statement", "row", "many", "function", "block", "exclusive"), deadlines=SHORT, forks=2,
        troubles=("", "constraint", "rolls back", "deferred", "slow", "sleeps", "forks"), checkpoints=True, careful=True,
    ),
    "threads that die": Mix(
        kinds=("statement", "row", "function", "block"), forks=1, interrupts=1, again=(1, 2, 1_000_000), gap=(1, 3)
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXES)
def test_a_fork_at_any_step_disturbs_nobody(name: str, record: Record, seed: int) -> None:
    """H34: no connection is open while the process is copied; nobody's write fails for it, or runs in the child."""
    play(scenario(MIXES[name]), record, seed, short=40, long=1000)
