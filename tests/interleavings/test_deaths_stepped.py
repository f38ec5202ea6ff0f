"""Threads that die at any step, and every kind of turn beside the others, under thousands of orders of their steps.

A thread dies in two ways. An exception from outside ends it, and a second one falls into its clearing up after the
first. Or one comes at *every* step that it still takes, so that nothing of its clearing up is ever done: then the
keeper alone can free the others (`deserted.py`). Whatever the thread had, waited for or drove at that moment, all the
others come to a true verdict of their own, and nothing is left behind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from reliability import Record
from scheduler import Failure, explore
from stepped import (
    FUNCTIONS,
    INSERT,
    POLICY,
    SHORT,
    Mix,
    SteppedEngine,
    World,
    scenario,
    virtual_clock,
    with_groups,
    with_turns,
)
from steps import DEAD, FAR, Interrupted, Unforgiving, play, unforgiving

from safedb.sqlite.groups import Groups
from safedb.sqlite.jobs import FunctionJob, Group, Job, StatementJob
from safedb.sqlite.session import Session
from safedb.sqlite.turns import HOLDING, LATE, WAITING, Ticket, Turns

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


def twice(mix: Mix) -> Mix:
    """Let one thread be interrupted, and again while it clears up."""
    return replace(mix, interrupts=1, again=(2, 3), gap=(1, 2, 3, 5, 8))


def dying(mix: Mix) -> Mix:
    """Let one thread be interrupted at every step from some step on."""
    return replace(mix, interrupts=1, again=(DEAD,))


DEATHS = {
    "a second interrupt: statements": twice(Mix(kinds=("statement", "row", "many"))),
    "a second interrupt: functions": twice(Mix(kinds=FUNCTIONS, careful=True)),
    "a second interrupt: blocks": twice(Mix(kinds=("block", "block", "row"))),
    "a second interrupt: exclusive work": twice(Mix(kinds=("exclusive", "row"), checkpoints=True)),
    "dead: statements": dying(Mix(kinds=("statement", "row", "many"))),
    "dead: functions": dying(Mix(kinds=FUNCTIONS, careful=True)),
    "dead: slow functions": dying(Mix(kinds=FUNCTIONS, troubles=("", "slow", "sleeps"))),
    "dead: blocks": dying(Mix(kinds=("block", "row", "function"))),
    "dead: exclusive work": dying(Mix(kinds=("exclusive", "row"), checkpoints=True)),
    "dead: failures": dying(Mix(
        kinds=EVERY_KIND, troubles=("", "constraint", "raises", "rolls back", "deferred"), careful=True)),
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
    play(scenario(MIXES[name]), record, seed, short=30, long=800)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEATHS)
def test_a_thread_that_dies_at_any_step_leaves_nobody_behind(name: str, record: Record, seed: int) -> None:
    """Written down: one more interrupt in the clearing up after the first, or one at every step from a point on."""
    play(scenario(DEATHS[name]), record, seed, short=30, long=1200)


class Seeing(Groups):
    """Count what happens seldom."""

    seen: ClassVar[Counter[str]] = Counter()

    def _revoke(self, group: Group, function: FunctionJob) -> None:
        self.seen["a function is revoked"] += 1
        super()._revoke(group, function)

    def _bury(self, suspect: Job) -> None:
        self.seen["the keeper clears up"] += 1
        super()._bury(suspect)


class SeeingWorld(World):
    def begin(self, *, quiet: bool) -> None:
        Seeing.seen["a fork at rest" if quiet else "a fork in the middle of it"] += 1
        super().begin(quiet=quiet)

    def at_the_end(self) -> None:
        super().at_the_end()
        Seeing.seen.update(self.engine.counters.retries)
        Seeing.seen.update(type(write.error).__name__ for write in self.writes)
        Seeing.seen["checkpoints"] += self.checkpointed


def test_the_schedules_reach_what_happens_seldom() -> None:
    """Every outcome, every way to lose a run, revoked functions, graves, checkpoints and both kinds of fork."""
    Seeing.seen.clear()
    explore(scenario(replace(DEATHS["all at once"], forks=1), with_groups(Seeing), SeeingWorld), range(150))
    explore(scenario(MIXES["a queue that is full"], with_groups(Seeing), SeeingWorld), range(30))
    expected = {
        "NoneType", "Interrupted", "Mishap", "UniqueViolation", "ForeignKeyViolation", "IntegrityError", "DatabaseFull",
        "CommitUnknownError", "LockTimeout", "QueryCanceled", "QueueFull", "careful", "lost", "broken up",
        "checkpoints", "a function is revoked", "the keeper clears up", "a fork at rest", "a fork in the middle of it",
    }  # fmt: skip
    assert not expected - {what for what, count in Seeing.seen.items() if count}


# -- what they have found ---------------------------------------------------------------------------------------------


class OnItsWayOut(Turns):
    """Interrupt a function in the queue, and again while it clears up; hand it an open group while it leaves."""

    groups: Groups

    def take(self, ticket: Ticket, deadline: float) -> str:
        if isinstance(ticket, FunctionJob):
            self._enqueue(ticket)
            raise Interrupted
        return super().take(ticket, deadline)

    def wait(self, ticket: Ticket, deadline: float) -> str:
        raise Interrupted

    def leave(self, ticket: Ticket) -> None:
        leader = self.holder
        if leader is not None and leader is not ticket:
            assert self.pass_on(leader, self.groups._open)
        super().leave(ticket)


def test_a_group_that_comes_to_a_thread_on_its_way_out_is_not_lost() -> None:
    """Written down: a second interrupt has kept it from leaving the queue (drawn in `groups.py`).

    The leader's transaction stayed open, with nobody who knew of it, and its members waited for ever.
    """
    engine = World(Unforgiving(0), Mix(), with_turns(OnItsWayOut)).engine
    turns, groups = engine.turns, engine.groups
    assert isinstance(turns, OnItsWayOut)
    turns.groups = groups
    leader = StatementJob(INSERT, ("a",), FAR, POLICY)
    assert turns.take(leader, FAR) is HOLDING
    engine.writer.begin(FAR, POLICY)
    group = groups._open = Group(careful=False, began=0.0)
    group.aboard.append(leader)
    with pytest.raises(Interrupted):
        groups.submit(FunctionJob(lambda session: None, FAR, POLICY))
    assert not engine.writer.in_transaction
    assert groups._open is None
    assert leader.state in (WAITING, HOLDING), "nobody answers for the leader's work"
    turns.check()


# -- the tests find what they are for ---------------------------------------------------------------------------------


class LeavesWithoutHandingOn(Turns):
    def leave(self, ticket: Ticket) -> None:
        with self._mutex:
            if self.holder is ticket:
                self.holder = None
            elif ticket.state is WAITING:
                self._remove(self.queue, ticket)
                ticket.state = LATE

    def repair(self) -> None:
        pass


class ForgetsThePutBack(Groups):
    def _abandon(self, job: Job, group: Group | None) -> None:
        super()._abandon(job, None if group is None or not group.committing else group)


class NeverLooksForTheDead(Groups):
    def mend(self) -> None:
        pass


class BuriesTheLiving(Groups):
    def mend(self) -> None:
        suspect = self._turns.next
        if isinstance(suspect, Job):
            self._bury(suspect)


class TellsOneBeforeCommit(Groups):
    def _commit(self, job: Job, group: Group) -> None:
        group.members[-1].settle()
        super()._commit(job, group)


class TellsTheDeadOnesMembersNothing(Groups):
    def _bury(self, suspect: Job) -> None:
        self._open = None
        super()._bury(suspect)


class LeavesAreNeverMissed(SteppedEngine):
    def rollback(self, lease: Any) -> None:
        if not lease.left:
            super().rollback(lease)

    def _mend(self) -> None:
        pass


class KeepsTheTransactionOfTheDead(Groups):
    def _bury(self, suspect: Job) -> None:
        self._turns.leave(suspect)


TOGETHER = Mix(kinds=("statement", "row"), threads=(3, 5))
PLANTED: list[tuple[type[SteppedEngine], Mix, str]] = [
    (with_turns(LeavesWithoutHandingOn), MIXES["blocks"], "lost wake-up"),
    (with_groups(ForgetsThePutBack), DEATHS["a second interrupt: statements"], "livelock"),
    (with_groups(NeverLooksForTheDead), DEATHS["dead: statements"], "livelock"),
    (with_groups(BuriesTheLiving), MIXES["blocks"], "invariant|is used|raised|acknowledged"),
    (with_groups(TellsOneBeforeCommit), TOGETHER, "is acknowledged"),
    (with_groups(TellsTheDeadOnesMembersNothing), DEATHS["dead: statements"], "livelock"),
    (
        with_groups(KeepsTheTransactionOfTheDead),
        DEATHS["dead: blocks"],
        "a transaction within|left|still open",
    ),
    (LeavesAreNeverMissed, MIXES["blocks that fail"], "livelock"),
]


@pytest.mark.parametrize(("engine", "mix", "what"), PLANTED)
def test_a_planted_bug_is_found(engine: type[SteppedEngine], mix: Mix, what: str) -> None:
    with pytest.raises(Failure, match=what):
        explore(scenario(mix, engine), range(1000), max_steps=6000)


def test_a_planted_statement_after_a_revocation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """See a function whose transaction was taken from it write into that of another."""
    monkeypatch.setattr(Session, "_check", lambda session: None)
    with pytest.raises(Failure, match=r"is used b(eside|y)|outside of a transaction|acknowledged|without|wake-up"):
        explore(scenario(MIXES["functions that never end"]), range(1000))
