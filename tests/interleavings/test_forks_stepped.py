"""A fork at any step of everybody else: the parent goes on as if nothing had been, and the child begins with nothing.

The hooks, `quiesce`, `resume` and `begin_anew` are the real ones, and so is the queue that the fork waits in. In most
schedules the child is a copy beside the parent, so that the others can do *their* steps between any two of its own. In
some the process is really forked, at the same step: then the child, in which the other threads have vanished, looks at
what it was left with, writes, and tells by a pipe.
"""

from __future__ import annotations

import copy
import os
import select
import signal
import traceback
from typing import Any

import pytest
from reliability import Record
from scheduler import Failure, explore
from stepped import FUNCTIONS, SHORT, Mix, SteppedEngine, World, scenario, virtual_clock
from steps import DEAD, play, unforgiving

import safedb
from safedb.sqlite.blocks import Exclusive

__all__ = ["unforgiving", "virtual_clock"]

HANGS = 25.0  # seconds after which a child that tells nothing is taken to hang; the scheduler waits for 30

MIXES = {
    "statements": Mix(kinds=("statement", "row", "many"), forks=1),
    "functions": Mix(kinds=FUNCTIONS, forks=1),
    "blocks": Mix(kinds=("block", "exclusive", "row"), forks=1, checkpoints=True),
    "two at once": Mix(forks=2),
    "inside a transaction": Mix(kinds=("function", "block", "row"), troubles=("forks", ""), forks=1),
    "interrupted in a hook": Mix(
        kinds=("statement", "function", "block"), forks=2, forks_interrupted=True, again=(1, 2), gap=(1, 2, 3)
    ),
    "threads that die": Mix(
        kinds=("statement", "row", "function", "block"), forks=1, interrupts=1, again=(1, 2, DEAD), gap=(1, 3)
    ),
    "all at once": Mix(
        kinds=("statement", "row", "many", "function", "block", "exclusive"), deadlines=SHORT, forks=2,
        troubles=("", "constraint", "rolls back", "deferred", "slow", "sleeps", "forks"), checkpoints=True,
        careful=True,
    ),
}  # fmt: skip
IN_TRUTH = ("statements", "functions", "blocks", "two at once", "inside a transaction", "threads that die")


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXES)
def test_a_fork_at_any_step_disturbs_nobody(name: str, record: Record, seed: int) -> None:
    """H34: no connection is open while the process is copied; nobody's write fails for it, or runs in the child."""
    play(scenario(MIXES[name]), record, seed, short=30, long=750)


# -- in truth ---------------------------------------------------------------------------------------------------------


class Forking(World):
    """Fork the process, at a step."""

    def fork(self) -> None:
        writer = self.engine.writer
        from_child, to_parent = os.pipe()
        child = os.fork()  # Python runs the hooks, whose steps are steps like all others
        if child == 0:
            self.be_child(writer, to_parent)
        os.close(to_parent)
        told = hear(from_child, child)
        self.scheduler.note("has forked")
        assert told == "", told

    def be_child(self, writer: Any, pipe: int) -> None:
        try:
            self.scheduler.outside()
            quiet = not self.engine.connections.refused
            assert not quiet or writer.connection is None, "a connection was open while the process was copied"
            self.go_on(self.store.committed.copy(), quiet=quiet)
        except BaseException:
            os.write(pipe, traceback.format_exc().encode())
        finally:
            os._exit(0)


def hear(pipe: int, child: int) -> str:
    """Read what a child has to say until it ends, and reap it."""
    told = b""
    try:
        while True:
            if not select.select([pipe], [], [], HANGS)[0]:
                os.kill(child, signal.SIGKILL)
                return "the child hangs"
            piece = os.read(pipe, 65_536)
            if not piece:
                return told.decode()
            told += piece
    finally:
        os.close(pipe)
        os.waitpid(child, 0)


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let Python know of safedb's hooks, as after any opening of a database."""
    safedb.connect(tmp_path_factory.mktemp("hooks") / "any.db").close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("name", IN_TRUTH)
def test_a_child_begins_with_an_empty_queue_or_refuses_the_file(name: str, record: Record, seed: int) -> None:
    """H34: the process is forked at a step; its child finds no turn, waiter or group, and only its own write runs."""
    play(scenario(MIXES[name], world=Forking), record, seed, short=6, long=50)


# -- the tests find what they are for ---------------------------------------------------------------------------------


class KeepsTheWaiters(SteppedEngine):
    def begin_anew(self) -> None:
        turns = self.turns
        super().begin_anew()
        self.turns = self.groups._turns = self.blocks._turns = turns


class KeepsTheWaitersAndLeaves(SteppedEngine):
    """Give up the parent's turn in the child, so that the parent's waiters are served there."""

    def begin_anew(self) -> None:
        turns, job = copy.copy(self.turns), self._forking
        turns.queue, turns._lobby = turns.queue.copy(), turns._lobby.copy()
        super().begin_anew()
        self.turns = self.groups._turns = self.blocks._turns = turns
        if job is not None:
            turns.leave(job)


class KeepsTheGroup(SteppedEngine):
    def begin_anew(self) -> None:
        groups = self.groups
        super().begin_anew()
        self.groups = groups


class KeepsTheConnection(SteppedEngine):
    def quiesce(self, deadline: float) -> bool:
        connection = self.writer.connection
        quiet = super().quiesce(deadline)
        self.writer.connection = connection
        return quiet


class DoesNotWaitForTheTurn(SteppedEngine):
    def quiesce(self, deadline: float) -> bool:
        self._forking = Exclusive(deadline, self.policy)
        self.writer.discard()
        return True


class ForgetsTheRestAfterAnInterrupt(SteppedEngine):
    def resume(self) -> None:
        job, self._forking = self._forking, None
        if job is not None:
            self._go_on(job)


PLANTED: list[tuple[type[SteppedEngine], str, type[World], str]] = [
    (KeepsTheWaiters, "statements", World, "the child began with"),
    (KeepsTheWaiters, "statements", Forking, "the child began with"),
    (KeepsTheWaitersAndLeaves, "statements", World, "the child began with|does not hold"),
    (KeepsTheGroup, "statements", World, "of the parent's|by who has no turn|is used beside|QueueFull|LockTimeout"),
    (KeepsTheConnection, "statements", World, "a connection was open"),
    (DoesNotWaitForTheTurn, "statements", World, "was open while|was held while|used|raised"),
    (ForgetsTheRestAfterAnInterrupt, "interrupted in a hook", World, "livelock"),
]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize(("engine", "name", "world", "what"), PLANTED)
def test_a_planted_bug_is_found(engine: type[SteppedEngine], name: str, world: type[World], what: str) -> None:
    with pytest.raises(Failure, match=what):
        explore(scenario(MIXES[name], engine, world), range(1000), max_steps=6000)
