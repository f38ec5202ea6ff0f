"""Groups under thousands of orders of their steps: no verdict before COMMIT, none lost, none twice, nobody hangs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from reliability import Record
from scheduler import Failure, explore
from stepped import FUNCTIONS, SHORT, Mix, scenario, virtual_clock, with_groups
from steps import play, unforgiving

from safedb.sqlite import groups as groups_module
from safedb.sqlite.groups import Groups
from safedb.sqlite.jobs import Group, Job
from safedb.sqlite.session import Restart, Session
from safedb.sqlite.writer import RUNNING

__all__ = ["unforgiving", "virtual_clock"]

MIXES = {
    "statements": Mix(kinds=("statement", "row", "many"), threads=(2, 5)),
    "rows that are inserted at once": Mix(kinds=("row",), threads=(3, 5), troubles=("", "", "ignored", "constraint")),
    "functions": Mix(kinds=FUNCTIONS),
    "small groups": Mix(most=2),
    "company": Mix(company=True),
    "constraints": Mix(troubles=("", "", "constraint", "raises"), careful=True),
    "keys": Mix(troubles=("", "same key", "same key", "constraint"), careful=True),
    "lost transactions": Mix(troubles=("", "", "rolls back"), careful=True),
    "deferred constraints": Mix(troubles=("", "", "deferred"), careful=True),
    "a full disk": Mix(commits=("full",), troubles=("", "", "constraint"), careful=True),
    "a failed fsync": Mix(commits=("fsync",), troubles=("", "", "constraint"), careful=True),
    "slow statements": Mix(troubles=("", "slow"), careful=True),
    "slow functions": Mix(kinds=FUNCTIONS, troubles=("", "slow", "sleeps", "swallows"), careful=True),
    "deadlines": Mix(deadlines=SHORT, troubles=("", "slow", "sleeps", "constraint"), careful=True),
}
TROUBLES = ("", "", "constraint", "same key", "rolls back", "deferred", "slow", "sleeps", "raises", "ignored")
ALL = Mix(troubles=TROUBLES, deadlines=SHORT, commits=("", "", "full", "fsync"), careful=True, threads=(2, 5))
INTERRUPTED = {
    "statements": Mix(kinds=("statement", "row", "many"), interrupts=1),
    "functions": Mix(kinds=FUNCTIONS, interrupts=1, careful=True),
    "failures": Mix(troubles=("", "", "constraint", "raises", "rolls back", "deferred"), interrupts=1, careful=True),
    "slowness": Mix(troubles=("", "", "slow", "sleeps"), interrupts=1, deadlines=SHORT),
    "a failed fsync": Mix(commits=("fsync",), interrupts=1),
    "all at once": Mix(
        troubles=TROUBLES, deadlines=SHORT, commits=("", "full", "fsync"), careful=True, interrupts=2, threads=(2, 5)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MIXES, "all at once"])
def test_every_verdict_is_true_and_none_comes_before_its_commit(name: str, record: Record, seed: int) -> None:
    play(scenario(MIXES.get(name, ALL)), record, seed, short=30, long=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_at_any_point_leaves_nobody_behind(name: str, record: Record, seed: int) -> None:
    play(scenario(INTERRUPTED[name]), record, seed, short=30, long=1000)


# -- the tests find what they are for ---------------------------------------------------------------------------------


class AcknowledgesEarly(Groups):
    def _commit(self, job: Job, group: Group) -> None:
        for member in group.members:
            member.settle()
        super()._commit(job, group)


class ForgetsWhoWasAboard(Groups):
    def _abandon(self, job: Job, group: Group | None) -> None:
        if group is not None:
            group.aboard[:] = group.members
        super()._abandon(job, group)


class KeepsOutcomesOfDiscardedRuns(Groups):
    def _put_back(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.error is not None:
                job.settle()
        self._turns.put_back([job for job in jobs if job.error is None])


GONE_NEIGHBOURS = Mix(
    troubles=("same key", "same key", "rolls back", "slow"), deadlines=(0.1, 0.3), careful=True, threads=(3, 5)
)
PLANTED = [
    (AcknowledgesEarly, MIXES["statements"], "is acknowledged"),
    (ForgetsWhoWasAboard, INTERRUPTED["statements"], "livelock"),
    (KeepsOutcomesOfDiscardedRuns, GONE_NEIGHBOURS, "is not its own"),
]


@pytest.mark.parametrize(("groups", "mix", "what"), PLANTED)
def test_a_planted_bug_is_found(groups: type[Groups], mix: Mix, what: str) -> None:
    with pytest.raises(Failure, match=what):
        explore(scenario(mix, with_groups(groups)), range(1000), max_steps=6000)


def test_a_planted_blind_retry_of_a_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "is_unknown_commit", lambda error: False)
    with pytest.raises(Failure, match=r"is acknowledged|twice"):
        explore(scenario(MIXES["a failed fsync"]), range(1000))


def test_a_planted_verdict_for_a_neighbour_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "is_unknown_commit", lambda error: True)
    with pytest.raises(Failure, match="is not its own"):
        explore(scenario(MIXES["deferred constraints"]), range(1000))


def test_a_planted_function_that_goes_on_after_its_turn_was_taken_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(session: Session) -> None:
        watch = session._writer.watch
        with watch.guard:
            watch.phase, watch.until = RUNNING, math.inf

    monkeypatch.setattr(Session, "end", end)
    with pytest.raises(Failure, match=r"is used by|is used beside|acknowledged|invariant|LockTimeout"):
        explore(scenario(MIXES["slow functions"]), range(1000))


def test_a_planted_check_of_a_revocation_outside_of_the_guard_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """See what a Restart of its own does to a group that the keeper takes in the same moment."""
    taken_back = Session.end

    def end(session: Session) -> None:
        if session.lost is None:
            taken_back(session)
        elif session.revoked:
            raise Restart

    monkeypatch.setattr(Session, "end", end)
    with pytest.raises(Failure):
        explore(scenario(MIXES["slow functions"]), range(3000))
