"""Threads that die at any step, and every kind of turn beside the others, under thousands of orders of their steps.

A thread dies in two ways. An exception from outside ends it, and a second one falls into its clearing up after the
first. Or one comes at *every* step that it still takes, so that nothing of its clearing up is ever done: then the
keeper alone can free the others (`deserted.py`). Whatever the thread had, waited for or drove at that moment, all others
come to a true verdict of their own, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from reliability import Record
from scheduler import Failure, explore
from stepped import FUNCTIONS, SHORT, Mix, SteppedEngine, scenario, virtual_clock, with_groups, with_turns
from steps import DEAD, FAR, play, unforgiving

from safedb.sqlite.blocks import Blocks
from safedb.sqlite.groups import FunctionJob, Group, Groups, Job
from safedb.sqlite.session import Session
from safedb.sqlite.turns import LATE, WAITING, Ticket, Turns
from safedb.sqlite.writer import IDLE

__all__ = ["unforgiving", "virtual_clock"]

EVERY_KIND = ("statement", "row", "many", "function", "block", "exclusive")
MIXES = {
    "blocks": Mix(kinds=("block", "row", "function"), threads=(2, 5)),
    "blocks that fail": Mix(
        kinds=("block", "row"), troubles=("", "constraint", "raises", "rolls back", "deferred"), careful=True
    ),
    "exclusive work": Mix(kinds=("exclusive", "row", "function"), troubles=("", "", "constraint"), careful=True),
    "checkpoints": Mix(kinds=EVERY_KIND, checkpoints=True),
    "a queue that is full": Mix(
        kinds=EVERY_KIND, threads=(4, 6), deadlines=(0.01, 0.1), troubles=("", "slow", "sleeps"), careful=True
    ),
    "functions that never end": Mix(
        kinds=("function", "row", "row"), threads=(3, 5), troubles=("hangs", ""), deadlines=(0.2, 0.5)
    ),
    "blocks that never end": Mix(
        kinds=("block", "function", "row"), threads=(3, 5), troubles=("hangs", ""), deadlines=(0.2, 0.5)
    ),
    "blocks left open by a thread that ended": Mix(kinds=("left_block", "row", "function"), threads=(2, 5)),
    "all at once": Mix(
        kinds=(*EVERY_KIND, "left_block"), threads=(3, 5), deadlines=SHORT, commits=("", "", "full", "fsync"),
        troubles=("", "", "constraint", "same key", "rolls back", "deferred", "slow", "sleeps", "raises", "ignored"),
        checkpoints=True, careful=True,
    ),
}  # fmt: skip
TWICE = {"interrupts": 1, "again": (2, 3), "gap": (1, 2, 3, 5, 8)}
DYING = {"interrupts": 1, "again": (DEAD,)}
DEATHS = {
    "a second interrupt: statements": Mix(kinds=("statement", "row", "many"), **TWICE),
    "a second interrupt: functions": Mix(kinds=FUNCTIONS, careful=True, **TWICE),
    "a second interrupt: blocks": Mix(kinds=("block", "block", "row"), **TWICE),
    "a second interrupt: exclusive work": Mix(kinds=("exclusive", "row"), checkpoints=True, **TWICE),
    "dead: statements": Mix(kinds=("statement", "row", "many"), **DYING),
    "dead: functions": Mix(kinds=FUNCTIONS, careful=True, **DYING),
    "dead: slow functions": Mix(kinds=FUNCTIONS, troubles=("", "slow", "sleeps"), **DYING),
    "dead: blocks": Mix(kinds=("block", "row", "function"), **DYING),
    "dead: exclusive work": Mix(kinds=("exclusive", "row"), checkpoints=True, **DYING),
    "dead: failures": Mix(
        kinds=EVERY_KIND, troubles=("", "constraint", "raises", "rolls back", "deferred"), careful=True, **DYING
    ),
    "all at once": Mix(
        kinds=EVERY_KIND, threads=(3, 5), deadlines=SHORT, commits=("", "full", "fsync"), interrupts=2,
        troubles=("", "constraint", "same key", "rolls back", "deferred", "slow", "sleeps", "raises"),
        again=(1, 2, DEAD), gap=(1, 3, 8), checkpoints=True, careful=True,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXES)
def test_every_kind_of_turn_is_true_beside_the_others(name: str, record: Record, seed: int) -> None:
    """Written down: blocks, exclusive work, checkpoints, threads that hang in the user's code or end in a block."""
    play(scenario(MIXES[name]), record, seed, short=40, long=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEATHS)
def test_a_thread_that_dies_at_any_step_leaves_nobody_behind(name: str, record: Record, seed: int) -> None:
    """Written down: one more interrupt in the clearing up after the first, or one at every step from a point on."""
    play(scenario(DEATHS[name]), record, seed, short=50, long=1500)
