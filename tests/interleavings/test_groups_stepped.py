"""Groups under thousands of orders of their steps: no verdict before its COMMIT, none lost, none twice, nobody hangs.

The groups, the queue, the sessions and the writer are the real ones. Only the connection under the writer is a stand-in
(`Connection`), because SQLite cannot be stepped: inside one of its calls no other thread can be let go on. It keeps
what groups rely on: a transaction, savepoints, which errors end the transaction, and that an interrupt reaches only
what runs.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, cast

import pytest
from scheduler import Failure, Plan, Scheduler, explore
from steps import FAR, Interrupted, Unforgiving, schedules, unforgiving
from support import sqlite3

from safedb import errors
from safedb.config import RetryPolicy
from safedb.retry import FULL, INTERRUPT, IOERR_FSYNC
from safedb.sql import parse
from safedb.sqlite import groups as groups_module
from safedb.sqlite import session as session_module
from safedb.sqlite.groups import FunctionJob, Group, Groups, Job, StatementJob
from safedb.sqlite.session import Restart, Session
from safedb.sqlite.sidelock import SideLock
from safedb.sqlite.turns import Turns
from safedb.sqlite.writer import RUNNING, USER, Writer
from safedb.stats import Counters, Hooks

__all__ = ["unforgiving"]

INSERT = "INSERT INTO t VALUES (?)"
ROW = (INSERT.index("("), len(INSERT))
POLICY = RetryPolicy().effective()
CONSTRAINT_UNIQUE, CONSTRAINT_FOREIGNKEY, CONSTRAINT_TRIGGER = 2067, 787, 1811


OF_FUNCTIONS = ("raises", "sleeps", "swallows")
TAKEN_AWAY = "what a run gives that may have been taken away"


class Mishap(Exception):
    """Be what a user's function raises."""


def failure(code: int, text: str) -> sqlite3.Error:
    """Make an error as the driver does."""
    error = (sqlite3.IntegrityError if code & 0xFF == 19 else sqlite3.OperationalError)(text)
    error.sqlite_errorcode, error.sqlite_errorname = code, text
    return error


class Store:
    """Be the database file: what is committed, in order, and the troubles that wait for those who write.

    ``troubles``: member → what its statement meets. ``commits``: what the next COMMITs meet.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.committed: list[str] = []
        self.troubles: dict[str, str] = {}
        self.commits: list[str] = []

    def connect(self) -> sqlite3.Connection:
        return cast("sqlite3.Connection", Connection(self))


class Connection:
    """Stand for `sqlite3.Connection` and for its cursor."""

    description = None
    rowcount = -1
    total_changes = 0

    def __init__(self, store: Store) -> None:
        self.store = store
        self.world = store.world
        self.in_transaction = False
        self.pending: list[str] = []
        self.mark = 0
        self.running = self.interrupted = False

    def cursor(self) -> Connection:
        return self

    def fetchall(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.end()

    def interrupt(self) -> None:
        assert self.world.writer.watch.guard.locked()
        self.interrupted = self.running

    def executemany(self, sql: str, rows: Sequence[Sequence[str]]) -> Connection:
        return self.execute(sql, [value for row in rows for value in row])

    def execute(self, sql: str, values: Sequence[str] = ()) -> Connection:
        """Run one statement: a step before what it does, what it does, and a step after."""
        self.world.has_the_turn()
        assert not self.running, "two threads use the connection"
        self.running, self.interrupted = True, False
        try:
            self.work(values)
            getattr(self, sql.split()[0].lower())(sql, values)
        finally:
            self.running = False
        self.world.step()
        return self

    def work(self, values: Sequence[str]) -> None:
        """Let time pass, and be interrupted where that is asked for."""
        slow = any(self.store.troubles.get(value) == "slow" for value in values)
        for _ in range(8 if slow else 1):
            self.world.scheduler.sleep(0.05) if slow else self.world.step()
            if self.interrupted:
                if values:  # what writes takes the whole transaction with it
                    self.end()
                raise failure(INTERRUPT, "interrupted")

    def end(self) -> None:
        self.pending.clear()
        self.in_transaction = False

    def begin(self, sql: str, values: Sequence[str]) -> None:
        assert not self.in_transaction, "a transaction within a transaction"
        assert self.world.side.taken, "a transaction without the lock between processes"
        self.in_transaction = True

    def rollback(self, sql: str, values: Sequence[str]) -> None:
        assert self.in_transaction, "nothing to roll back"
        if sql == "ROLLBACK":
            self.end()
        else:
            del self.pending[self.mark :]

    def savepoint(self, sql: str, values: Sequence[str]) -> None:
        assert self.in_transaction, "a savepoint outside of a transaction"
        self.mark = len(self.pending)

    def release(self, sql: str, values: Sequence[str]) -> None:
        assert self.in_transaction, "a savepoint outside of a transaction"

    def insert(self, sql: str, values: Sequence[str]) -> None:
        assert all(isinstance(value, str) for value in values), f"no values: {values}"
        self.rowcount = 0
        for value in values:
            trouble = self.store.troubles.get(value)
            if trouble == "constraint" or self.is_taken(value):
                raise failure(CONSTRAINT_UNIQUE, "unique")
            if trouble == "rolls back":
                self.end()
                raise failure(CONSTRAINT_TRIGGER, "RAISE(ROLLBACK)")
            if trouble == "deferred" and not self.in_transaction:
                raise failure(CONSTRAINT_FOREIGNKEY, "foreign key")
            self.rowcount += trouble != "ignored"
        kept = [value for value in values if self.store.troubles.get(value) != "ignored"]
        if self.in_transaction:
            self.pending += kept
        else:
            assert self.world.side.taken, "a write without the lock between processes"
            self.store.committed += kept

    def is_taken(self, value: str) -> bool:
        """Tell whether another row has the value's key: the part before the slash."""
        key = value.split("/")[0] + "/"
        others = [row for row in (*self.pending, *self.store.committed) if row.strip(".!") != value.strip(".!")]
        return any(row.startswith(key) for row in others)

    def commit(self, sql: str, values: Sequence[str]) -> None:
        assert self.in_transaction, "COMMIT of nothing: somebody else has ended the transaction"
        assert not self.interrupted, "an interrupt reached a COMMIT"
        if any(self.store.troubles.get(value) == "deferred" for value in self.pending):
            raise failure(CONSTRAINT_FOREIGNKEY, "foreign key")
        trouble = self.store.commits.pop() if self.store.commits else None
        if trouble != "full" and not (trouble == "fsync" and self.world.random.random() < 0.5):
            self.store.committed += self.pending
        self.end()
        if trouble == "full":
            self.world.troubled += 1
            raise failure(FULL, "disk full")
        if trouble == "fsync":
            raise failure(IOERR_FSYNC, "fsync")


class Side:
    """Stand for the lock between processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken = False

    def try_acquire(self) -> bool:
        self.world.has_the_turn()
        self.taken = True
        return True

    def release(self) -> None:
        if self.taken:
            self.world.has_the_turn()
        self.taken = False


class SteppedWriter(Writer):
    """Wait for others by the virtual clock."""

    world: World

    def wait_for_foreigners(self, attempt: Callable[[], Any], deadline: float, policy: Any) -> Any:
        while True:
            try:
                return attempt()
            except sqlite3.Error as error:
                if not self.may_begin_again(error) or self.world.scheduler.monotonic() >= deadline:
                    raise


@dataclass(frozen=True)
class Mix:
    """Say what a scenario's threads do; ``troubles`` are drawn from for each write, ``commits`` for each schedule."""

    kinds: tuple[str, ...] = ("statement", "row", "many", "function")
    threads: tuple[int, int] = (2, 4)
    writes: int = 2
    troubles: tuple[str, ...] = ("",)
    commits: tuple[str, ...] = ("",)
    deadlines: tuple[float, ...] = (FAR,)
    careful: bool = False
    interrupts: int = 0
    most: int = 512
    company: bool = False


@dataclass
class Write:
    """Be one call of a client, and what became of it."""

    name: str
    kind: str
    trouble: str
    deadline: float
    rows: list[str] = field(default_factory=list)
    value: Any = None
    error: BaseException | None = None
    ended: bool = False
    runs: int = 0


CURRENT: list[Unforgiving] = []


class Clock:
    """Be the modules' clock: that of the schedule that runs."""

    @staticmethod
    def monotonic() -> float:
        return CURRENT[-1].monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        CURRENT[-1].sleep(seconds)


class World:
    """Be one schedule, and everything that must be true of it."""

    def __init__(self, scheduler: Scheduler, mix: Mix, groups: type[Groups] = Groups) -> None:
        assert isinstance(scheduler, Unforgiving)
        CURRENT[:] = [scheduler]
        self.scheduler = scheduler
        self.mix = mix
        self.random = random.Random(scheduler.trace.seed)
        self.store = Store(self)
        self.side = Side(self)
        counters = Counters()
        self.writer = SteppedWriter(
            self.store.connect, name="stepped", side=cast("SideLock", self.side), counters=counters, hooks=Hooks()
        )
        self.writer.world = self
        self.writer.watch.guard = scheduler.lock()  # type: ignore[assignment]
        patience = self.random.choice((0.0, 2e-4, FAR))
        self.turns = Turns(limit=self.random.choice((1, 2, 100)), patience=patience, primitives=scheduler)
        limit = self.random.choice((1e-4, FAR))
        self.groups = groups(self.turns, self.writer, counters, Hooks(), most=mix.most, time_limit=limit, patience=0.1)
        self.groups._company = self.random.choice((1, 8))
        self.groups._suspicious = 16 * self.random.choice((0, mix.careful))
        if mix.company:
            self.groups._flush = 0.001
        self.writes: list[Write] = []
        self.keeper_ident = 0
        self.running = 0
        self.troubled = 0
        self.counters = counters
        self.began = scheduler.now

    def plan(self) -> Plan:
        count = self.random.randint(*self.mix.threads)
        clients = [self.client(number) for number in range(count)]
        self.running = count
        self.store.commits = [trouble for trouble in [self.random.choice(self.mix.commits)] if trouble]
        for victim in self.random.sample(range(count), min(self.mix.interrupts, count)):
            after = self.random.random() < 0.5
            self.scheduler.interrupt(victim, Interrupted(), at=self.random.randint(1, 80), after=after)
        return [*clients, self.keeper], self.invariant, self.at_the_end

    # -- the threads --------------------------------------------------------------------------------------------------

    def client(self, number: int) -> Callable[[], None]:
        writes = [self.draw(f"{number}{index}") for index in range(self.random.randint(1, self.mix.writes))]

        def live() -> None:
            try:
                for write in writes:
                    self.write(write)
            except Interrupted:
                self.scheduler.unwinding -= 1
                raise
            finally:
                self.running -= 1

        return live

    def draw(self, name: str) -> Write:
        trouble = self.random.choice(self.mix.troubles)
        kind = self.random.choice(self.mix.kinds)
        if trouble in OF_FUNCTIONS and kind != "function":
            trouble = ""
        if trouble == "same key":
            name = f"key/{name}"
        write = Write(name, kind, trouble, self.random.choice(self.mix.deadlines))
        if trouble not in ("", "same key", *OF_FUNCTIONS):
            self.store.troubles[name] = trouble
        self.writes.append(write)
        return write

    def write(self, write: Write) -> None:
        job = self.job(write)
        try:
            write.value = self.groups.submit(job)
        except (errors.Error, Mishap) as error:
            write.error = error
        except BaseException as error:
            write.error = error
            raise
        finally:
            self.scheduler.note(f"{write.name} ends: {write.error!r}")
        assert not write.ended
        write.ended = True
        if write.error is None:
            for row in self.rows(write):
                assert self.store.committed.count(row) == 1, f"{write} is acknowledged: {self.store.committed}"

    def rows(self, write: Write) -> list[str]:
        if write.value == TAKEN_AWAY:  # it was not: nobody else was in the way
            return [write.name, f"{write.name}!"]
        if write.trouble == "ignored":
            return [f"{write.name}."] if write.kind in ("many", "function") else []
        return [write.name, f"{write.name}."] if write.kind in ("many", "function") else [write.name]

    def job(self, write: Write) -> Job:
        deadline = self.scheduler.now + write.deadline
        if write.kind == "function":
            return FunctionJob(lambda session: self.body(write, session), deadline, POLICY)
        if write.kind == "many":
            return StatementJob(INSERT, [(write.name,), (f"{write.name}.",)], deadline, POLICY, many=True)
        return StatementJob(INSERT, (write.name,), deadline, POLICY, row=ROW if write.kind == "row" else None)

    def body(self, write: Write, session: Session) -> str:
        write.runs += 1
        self.scheduler.note(f"{write.name} runs")
        session.run(parse(INSERT), (write.name,))
        self.step()
        if write.trouble == "sleeps" and write.runs == 1:
            self.scheduler.sleep(0.5)
        if write.trouble == "swallows" and write.runs == 1:
            self.scheduler.sleep(0.5)
            with contextlib.suppress(BaseException):
                session.run(parse(INSERT), (f"{write.name}!",))
            return TAKEN_AWAY
        if write.trouble == "raises":
            raise Mishap
        session.run(parse(INSERT), (f"{write.name}.",))
        return write.name

    def keeper(self) -> None:
        self.keeper_ident = get_ident()
        while self.running:
            self.groups.break_up(self.scheduler.monotonic())
            self.turns.repair()
            if self.random.random() < 0.5:
                self.scheduler.sleep(0.04)

    def step(self) -> None:
        self.scheduler.monotonic()

    # -- what must be true --------------------------------------------------------------------------------------------

    def has_the_turn(self) -> None:
        """Assert that the calling thread may use the connection: the holder, or the keeper in the user's place."""
        if get_ident() == self.keeper_ident:
            watch = self.writer.watch
            assert watch.guard.locked(), "the keeper uses the connection without the guard"
            assert watch.phase == USER or self.groups._open is None, "the keeper uses a connection that is in use"
            return
        holder = self.turns.holder
        assert isinstance(holder, Job), "the connection is used by who has no turn"
        assert holder.thread == get_ident(), f"the connection is used beside {holder}, who has the turn"

    def invariant(self) -> None:
        if not self.turns._mutex.locked() and not self.scheduler.unwinding:  # type: ignore[attr-defined]
            self.turns.check()

    def at_the_end(self) -> None:
        self.turns.check()
        assert self.turns.holder is None
        assert self.turns.waiting == 0
        assert self.groups._open is None
        assert not self.writer.in_transaction, "a transaction was left open"
        assert not self.side.taken, "the lock between processes was left taken"
        assert len(set(self.store.committed)) == len(self.store.committed), f"twice: {self.store.committed}"
        full = [write for write in self.writes if isinstance(write.error, errors.DatabaseFull)]
        interrupted = [write for write in self.writes if isinstance(write.error, Interrupted)]
        assert self.counters.waits.longest <= self.scheduler.now - self.began, "a wait from before the beginning"
        told = [write for write in self.writes if write.ended]
        assert interrupted or self.counters.writes <= len(told), "a write was counted twice"
        assert len(full) <= self.troubled, "who was not alone was told of a COMMIT that failed"
        assert len(interrupted) == self.scheduler.raised, "an interrupt was swallowed"
        for write in self.writes:
            self.judge(write)

    def judge(self, write: Write) -> None:
        """Assert that the outcome is the truth, and a right one for this write."""
        error = write.error
        kept = [row for row in self.store.committed if row in (write.name, f"{write.name}.", f"{write.name}!")]
        if isinstance(error, Interrupted):
            assert kept in ([], self.rows(write)), f"{write}: half of it is there"
            noted = "is committed" in "".join(getattr(error, "__notes__", ()))
            if write.trouble != "ignored":
                assert kept or not noted, f"{write}: the note says that it is committed"
        elif isinstance(error, errors.CommitUnknownError):
            assert kept in ([], self.rows(write)), f"{write}: half of it is there"
        elif error is not None:
            assert not kept, f"{write} failed, and {kept} is there"
            assert self.may_fail(write, error), f"{write}: {error!r} is not its own"
        elif write.ended:
            assert kept == self.rows(write), f"{write} is acknowledged, and {kept} is there"
            assert write.trouble not in ("constraint", "rolls back", "deferred", "raises"), f"{write} was to fail"

    def may_fail(self, write: Write, error: BaseException) -> bool:
        """Tell whether the error is one of the write's own, and not a neighbour's or of a discarded run."""
        if isinstance(error, errors.LockTimeout | errors.QueryCanceled | errors.QueueFull):
            return write.deadline < FAR
        if isinstance(error, errors.DatabaseFull):
            return True
        if write.trouble == "same key":
            others = any(row.startswith("key/") for row in self.store.committed)
            return others and isinstance(error, errors.UniqueViolation)
        own: dict[str, type[BaseException] | tuple[()]] = {
            "constraint": errors.UniqueViolation,
            "rolls back": errors.IntegrityError,
            "deferred": errors.ForeignKeyViolation,
            "raises": Mishap,
        }
        return isinstance(error, own.get(write.trouble, ()))


def scenario(mix: Mix, groups: type[Groups] = Groups) -> Callable[[Scheduler], Plan]:
    return lambda scheduler: World(scheduler, mix, groups).plan()


SHORT = (0.01, 0.1, 0.3, FAR)
FUNCTIONS = ("function", "function", "row")
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


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let groups and sessions read the schedule's clock, and sleep by it."""
    monkeypatch.setattr(groups_module, "monotonic", Clock.monotonic)
    monkeypatch.setattr(groups_module, "sleep", Clock.sleep)
    monkeypatch.setattr(session_module, "time", Clock)


@pytest.mark.parametrize("name", [*MIXES, "all at once"])
def test_every_verdict_is_true_and_none_comes_before_its_commit(name: str) -> None:
    explore(scenario(MIXES.get(name, ALL)), schedules(40))


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_at_any_point_leaves_nobody_behind(name: str) -> None:
    explore(scenario(INTERRUPTED[name]), schedules(40))


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
        explore(scenario(mix, groups), range(1000))


def test_a_planted_blind_retry_of_a_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "is_unknown_commit", lambda error: False)
    with pytest.raises(Failure, match=r"== 1|twice"):
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
    with pytest.raises(Failure, match=r"is used by|is used beside|acknowledged|invariant"):
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
