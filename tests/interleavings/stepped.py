"""One engine, whole but for SQLite, under the step-by-step scheduler: its threads, and everything that must be true.

The engine, its queue, groups, blocks, sessions and writer are the real ones. Only the connection under the writer is a
stand-in (`Connection`), because SQLite cannot be stepped: inside one of its calls no other thread can be let go on. It
keeps what groups rely on: a transaction, savepoints, which errors end the transaction, and that an interrupt reaches
only what runs. The keeper is a thread of the schedule, and does what the engine's does at each of its looks.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock, get_ident
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scheduler import Plan, Scheduler
from steps import DEAD, FAR, Interrupted, Unforgiving
from support import sqlite3

from safedb import errors
from safedb.config import Pragmas, ResolvedPoolConfig, RetryPolicy
from safedb.retry import FULL, INTERRUPT, IOERR_FSYNC
from safedb.sql import parse
from safedb.sqlite import blocks as blocks_module
from safedb.sqlite import engine as engine_module
from safedb.sqlite import fork as fork_module
from safedb.sqlite import groups as groups_module
from safedb.sqlite import session as session_module
from safedb.sqlite.blocks import Block, Blocks
from safedb.sqlite.columns import Columns
from safedb.sqlite.connections import Connections, Extras
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.groups import Groups
from safedb.sqlite.jobs import Job, StatementJob
from safedb.sqlite.log import Log
from safedb.sqlite.opening import Entry, Registry
from safedb.sqlite.readers import Readers
from safedb.sqlite.session import Session
from safedb.sqlite.sidelock import SideLock
from safedb.sqlite.snapshots import Snapshots
from safedb.sqlite.turns import Turns
from safedb.sqlite.writer import USER, Writer
from safedb.stats import Counters

INSERT = "INSERT INTO t VALUES (?)"
ROW = (INSERT.index("("), len(INSERT))
POLICY = RetryPolicy().effective()
CONSTRAINT_UNIQUE, CONSTRAINT_FOREIGNKEY, CONSTRAINT_TRIGGER = 2067, 787, 1811


BODIES = ("function", "block", "left_block")
OF_FUNCTIONS = ("raises", "sleeps", "swallows", "hangs", "forks")
TAKEN_AWAY = "what a run gives that may have been taken away"

CURRENT: list[World] = []


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
        assert self.world.engine.writer.watch.guard.locked()
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

    def pragma(self, sql: str, values: Sequence[str]) -> None:
        assert not self.in_transaction, "exclusive work within a transaction"

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

    def close(self) -> None:
        assert not self.taken, "the lock between processes is held while its files are closed"


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
    again: tuple[int, ...] = (1,)  # interrupts of one victim: the second one falls into the clearing up after the first
    gap: tuple[int, ...] = (1,)  # steps between them
    first: int = 80  # the first one comes within so many steps
    checkpoints: bool = False
    forks: int = 0  # threads that do nothing but fork
    forks_interrupted: bool = False


@dataclass
class Write:
    """Be one call of a client, and what became of it."""

    name: str
    kind: str
    trouble: str
    deadline: float
    value: Any = None
    error: BaseException | None = None
    ended: bool = False
    runs: int = 0


class Clock:
    """Be the modules' clock: that of the schedule that runs."""

    @staticmethod
    def monotonic() -> float:
        return CURRENT[-1].scheduler.monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        CURRENT[-1].scheduler.sleep(seconds)


class SteppedBlock(Block):
    """Ask the schedule whether a thread lives: in truth it ends a moment later."""

    __slots__ = ()

    @property
    def lives(self) -> bool:
        return not CURRENT[-1].scheduler.ended(self.thread)


class SteppedConnections(Connections):
    """Open stand-ins."""

    world: World

    def writer(self, deadline: float | None = None) -> sqlite3.Connection:
        if self._refusal is not None:
            raise errors.InterfaceError(self._refusal)
        return self.world.store.connect()


class SteppedEngine(SqliteEngine):
    """Be the engine, with a scheduler's locks, on stand-ins for connections and side files."""

    groups_class: type[Groups] = Groups
    turns_class: type[Turns] = Turns

    def __init__(self, world: World) -> None:
        self.world = world
        pool = cast("ResolvedPoolConfig", SimpleNamespace(fork_wait=world.random.choice((0.01, 1.0))))
        pragmas = Pragmas().effective()
        super().__init__("stepped", pragmas=pragmas, pool=pool, policy=POLICY, extras=Extras(), read_only=False)
        self.identity = (1, 1)  # only now: with it there would be files to watch over

    def _build(self) -> None:
        world = self.world
        mix, scheduler = world.mix, world.scheduler
        self.counters = Counters()
        self.connections = SteppedConnections("stepped", self.pragmas, self.extras, self.policy)
        self.connections.world = world
        self.side = cast("SideLock", Side(world))
        self.writer = SteppedWriter(
            lambda: self.connections.writer(), name="stepped", side=self.side, counters=self.counters, hooks=self.hooks
        )
        self.writer.world = world
        self.writer.watch.guard = scheduler.lock()  # type: ignore[assignment]
        self.turns = self.turns_class(limit=world.limit, patience=world.patience, primitives=scheduler)
        self.groups = self.groups_class(
            self.turns, self.writer, self.counters, self.hooks, most=mix.most, time_limit=world.time_limit, patience=0.1
        )
        self.blocks = Blocks(self.turns, self.groups, self.writer, self.counters, self.hooks)
        self.readers = Readers(cast("Any", None), name="stepped", most=1)
        self.snapshots = Snapshots()
        self.columns = Columns(cast("Any", None))
        self.log = Log("", Pragmas().effective())
        self.watcher = self.checkpointer = cast("Any", SimpleNamespace(asleep=False))


class World:
    """Be one schedule, and everything that must be true of it."""

    def __init__(self, scheduler: Scheduler, mix: Mix, engine: type[SteppedEngine] = SteppedEngine) -> None:
        assert isinstance(scheduler, Unforgiving)
        CURRENT[:] = [self]
        self.scheduler = scheduler
        self.mix = mix
        self.random = random.Random(scheduler.trace.seed)
        self.store = Store(self)
        self.patience = self.random.choice((0.0, 2e-4, FAR))
        self.limit = self.random.choice((1, 2, 100))
        self.time_limit = self.random.choice((1e-4, FAR))
        self.engine = engine(self)
        if mix.forks or "forks" in mix.troubles:
            self.make_known()
        groups = self.engine.groups
        groups._company = self.random.choice((1, 8))
        groups._suspicious = 16 * self.random.choice((0, mix.careful))
        if mix.company:
            groups._flush = 0.001
        self.writes: list[Write] = []
        self.keeper_ident = 0
        self.running = 0  # clients that have not ended
        self.hanging = 0  # those of them that are in the user's code for as long as anybody else is at work
        self.troubled = 0
        self.checkpointed = 0
        self.began = scheduler.now
        self.lost: set[int] = set()  # threads that were killed
        self.untidy: set[int] = set()  # threads that ended, and that the keeper may still have to clear up after
        self.forkers: set[int] = set()  # threads whose interrupts nobody is told of

    def make_known(self) -> None:
        """Let a fork find this engine, and no other."""
        registry = Registry()
        registry.mutex = cast("Lock", self.scheduler.lock())
        registry.entries[1, 1] = Entry(lock=cast("Lock", self.scheduler.lock()), engines={False: self.engine})
        vars(fork_module)["registry"] = registry
        fork_module._one_at_a_time = cast("Lock", self.scheduler.lock())
        fork_module._preparations.clear()

    def plan(self) -> Plan:
        count = self.random.randint(*self.mix.threads)
        threads = [self.client(number) for number in range(count)]
        self.store.commits = [trouble for trouble in [self.random.choice(self.mix.commits)] if trouble]
        threads += [self.forker(count + number) for number in range(self.mix.forks)]
        self.running = len(threads)
        for victim in self.random.sample(range(count), min(self.mix.interrupts, count)):
            self.strike(victim)
        if self.mix.forks_interrupted:
            self.forkers = {count}
            self.strike(count)
        if self.mix.checkpoints:
            threads.append(self.checkpointer)
        return [*threads, self.keeper], self.invariant, self.at_the_end

    def strike(self, victim: int) -> None:
        """Let a thread be interrupted, once, more often, or at every step from there on."""
        times = self.random.choice(self.mix.again)
        at, gap = self.random.randint(1, self.mix.first), 1 if times == DEAD else self.random.choice(self.mix.gap)
        self.scheduler.interrupt(victim, Interrupted(), at=at, after=self.random.random() < 0.5, times=times, gap=gap)
        if times > 1:
            self.lost.add(victim)

    # -- the threads --------------------------------------------------------------------------------------------------

    def client(self, number: int) -> Callable[[], None]:
        writes = [self.draw(f"{number}{index}") for index in range(self.random.randint(1, self.mix.writes))]

        def live() -> None:
            try:
                for write in writes:
                    self.write(write)
                    if write.kind == "left_block":
                        break
            except Interrupted:
                if number in self.lost or write.kind in ("block", "left_block", "exclusive"):
                    self.untidy.add(number)  # it leaves once, so the keeper does it again
                else:
                    self.scheduler.recovered(number)
                raise
            finally:
                self.running -= 1

        return live

    def draw(self, name: str) -> Write:
        trouble = self.random.choice(self.mix.troubles)
        kind = self.random.choice(self.mix.kinds)
        if trouble in OF_FUNCTIONS and kind not in BODIES:
            trouble = ""
        if trouble == "same key":
            name = f"key/{name}"
        write = Write(name, kind, trouble, self.random.choice(self.mix.deadlines))
        if trouble not in ("", "same key", *OF_FUNCTIONS):
            self.store.troubles[name] = trouble
        self.writes.append(write)
        return write

    def write(self, write: Write) -> None:
        try:
            write.value = getattr(self, write.kind)(write)
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
        second = [f"{write.name}."] if write.kind in ("many", *BODIES) else []
        return second if write.trouble == "ignored" else [write.name, *second]

    def statement(self, write: Write, **options: Any) -> Any:
        deadline = self.scheduler.now + write.deadline
        return self.engine.groups.submit(StatementJob(INSERT, (write.name,), deadline, POLICY, **options))

    def row(self, write: Write) -> Any:
        return self.statement(write, row=ROW)

    def many(self, write: Write) -> Any:
        rows = [(write.name,), (f"{write.name}.",)]
        return self.engine.groups.submit(
            StatementJob(INSERT, rows, self.scheduler.now + write.deadline, POLICY, many=True)
        )

    def function(self, write: Write) -> str:
        return self.engine.run_function(lambda session: self.body(write, session), write.deadline, POLICY)

    def block(self, write: Write) -> str:
        """Do as `Database.transaction` does."""
        engine = self.engine
        lease = engine.block(write.deadline, POLICY)
        try:
            value = self.body(write, engine.begin(lease))
            engine.commit(lease)
        except BaseException:
            lease.left = True
            engine.rollback(lease)
            raise
        return value

    def left_block(self, write: Write) -> None:
        """Enter a block by hand, and end the thread in it."""
        lease = self.engine.block(write.deadline, POLICY)
        self.kept_for_ever = lease
        self.body(write, self.engine.begin(lease))
        raise Mishap

    def exclusive(self, write: Write) -> Any:
        return self.engine.blocks.alone(
            self.scheduler.now + write.deadline,
            POLICY,
            lambda writer: writer.run(INSERT, (write.name,)),
            doing="a statement alone",
            commits=True,
        )

    def body(self, write: Write, session: Session) -> str:
        write.runs += 1
        self.scheduler.note(f"{write.name} runs")
        session.run(parse(INSERT), (write.name,))
        self.step()
        if write.trouble == "sleeps" and write.runs == 1:
            self.scheduler.sleep(0.5)
        if write.trouble == "hangs" and write.runs == 1:
            self.hang()
        if write.trouble == "forks" and write.runs == 1:
            self.fork()
        if write.trouble == "swallows" and write.kind == "function" and write.runs == 1:
            self.scheduler.sleep(0.5)
            with contextlib.suppress(BaseException):
                session.run(parse(INSERT), (f"{write.name}!",))
            return TAKEN_AWAY
        if write.trouble == "raises":
            raise Mishap
        session.run(parse(INSERT), (f"{write.name}.",))
        return write.name

    def hang(self) -> None:
        """Be not scheduled again until everybody else has come to an end: nobody may be waiting for this."""
        self.hanging += 1
        try:
            while self.running > self.hanging:
                self.scheduler.sleep(0.05)
        finally:
            self.hanging -= 1

    def keeper(self) -> None:
        """Look as the engine's keeper does, and go on until nothing is left that a dead thread had."""
        self.keeper_ident = get_ident()
        turns = self.engine.turns
        while self.running or turns.holder is not None or turns.waiting:
            ended = self.untidy - self.lost
            self.engine._watch(self.scheduler.monotonic())
            for number in ended:
                self.scheduler.recovered(number)
            self.untidy -= ended
            if self.random.random() < 0.5:
                self.scheduler.sleep(0.04)

    def checkpointer(self) -> None:
        """Take turns of its own for a short time, as the engine's checkpoints do, and give up soon."""
        while self.running:
            with contextlib.suppress(errors.LockTimeout, errors.QueryCanceled, errors.QueueFull):
                now = self.scheduler.monotonic()
                self.engine.blocks.alone(
                    now + 0.05, POLICY, lambda writer: writer.run("PRAGMA wal_checkpoint(PASSIVE)", ()),
                    doing="a checkpoint", until=now + 60.0,
                )  # fmt: skip
                self.checkpointed += 1
            self.scheduler.sleep(0.02)

    def forker(self, number: int) -> Callable[[], None]:
        """Fork, once or more often, at any step of the others."""

        def live() -> None:
            try:
                for _ in range(self.random.randint(1, 2)):
                    for _ in range(self.random.randint(0, 10)):
                        self.step()
                    self.fork()
            finally:
                self.running -= 1

        return live

    def fork(self) -> None:
        """Do as `os.fork` does, hooks and all; be the child in between, as a copy beside the parent.

        An exception in a hook is told of by Python, and forgotten: the process is forked all the same.
        """
        with self.forgotten():
            fork_module._before()
        with self.forgotten():
            self.scheduler.note("forks")
            child = self.copied()
            child.begin(quiet=self.engine.quiet_for(get_ident()))
        with self.forgotten():
            fork_module._after_in_parent()

    def forgotten(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.suppress(Interrupted) if self.mix.forks_interrupted else contextlib.nullcontext()

    # -- the child of a fork ------------------------------------------------------------------------------------------

    def copied(self) -> World:
        """Copy what a fork copies: the file as it is at this moment, and the engine with all that it knows."""
        child = copy.copy(self)
        child.store = Store(child)
        child.store.committed = self.store.committed.copy()
        engine = child.engine = copy.copy(self.engine)
        engine.world, engine.inside, engine.snapping = child, dict(engine.inside), dict(engine.snapping)
        engine.writer, engine.connections = copy.copy(engine.writer), copy.copy(engine.connections)
        child.writes = []
        return child

    def begin(self, *, quiet: bool) -> None:
        """Be the child: begin with an empty queue, or refuse the file; nothing of the parent's runs or is told here."""
        engine, before = self.engine, self.store.committed.copy()
        if quiet:
            assert engine.writer.connection is None, "a connection was open while the process was copied"
            assert not self.side.taken, "a lock between processes was held while it was copied"
            assert engine.groups._open is None, "a group was open while the process was copied"
            engine.begin_anew()
        else:
            engine.refuse_after_fork("it was in use")
        self.go_on(before, quiet=quiet)

    def go_on(self, before: list[str], *, quiet: bool) -> None:
        """Write in the child, and see that this is all that happens there."""
        engine = self.engine
        assert engine.turns.holder is None, "the child began with a turn of the parent's"
        assert engine.turns.waiting == 0, "the child began with waiters of the parent's"
        assert engine.groups._open is None, "the child began with a group of the parent's"
        assert not engine.inside, "the child began inside of a transaction of the parent's"
        name = f"child {len(before)}"
        try:
            self.statement(Write(name, "statement", "", 60.0))
        except errors.InterfaceError:
            assert not quiet, "the child refused a file that nobody used"
            name = ""
        else:
            assert quiet, "the child wrote over what the parent had open"
        assert self.store.committed == [*before, *([name] if name else [])], "a write of the parent's ran in the child"
        engine.turns.check()
        assert engine.turns.holder is None

    @property
    def side(self) -> Side:
        """Give the engine's stand-in for the lock between processes."""
        return cast("Side", self.engine.side)

    def step(self) -> None:
        self.scheduler.monotonic()

    # -- what must be true --------------------------------------------------------------------------------------------

    def has_the_turn(self) -> None:
        """Assert that the calling thread may use the connection: the holder, or the keeper in its place."""
        holder = self.engine.turns.holder
        if get_ident() == self.keeper_ident:
            if isinstance(holder, Job) and not holder.at_work:
                return  # its thread has died, or lost its job to an interrupt
            watch = self.engine.writer.watch
            assert watch.guard.locked(), "the keeper uses the connection without the guard"
            assert watch.phase == USER or self.engine.groups._open is None, "the keeper uses what is in use"
            return
        assert isinstance(holder, Job), "the connection is used by who has no turn"
        assert holder.thread == get_ident(), f"the connection is used beside {holder}, who has the turn"

    def invariant(self) -> None:
        if not self.engine.turns._mutex.locked() and not self.scheduler.unwinding:
            self.engine.turns.check()

    def at_the_end(self) -> None:
        engine = self.engine
        engine.turns.check()
        assert engine.turns.holder is None, "the turn is still held"
        assert engine.turns.waiting == 0, "somebody still waits"
        assert engine.groups._open is None, "a group is still open"
        assert not engine.writer.in_transaction, "a transaction was left open"
        assert not self.side.taken, "the lock between processes was left taken"
        assert len(set(self.store.committed)) == len(self.store.committed), f"twice: {self.store.committed}"
        full = [write for write in self.writes if isinstance(write.error, errors.DatabaseFull)]
        interrupted = [write for write in self.writes if isinstance(write.error, Interrupted)]
        assert engine.counters.waits.longest <= self.scheduler.now - self.began, "a wait from before the beginning"
        told = [write for write in self.writes if write.ended]
        assert interrupted or engine.counters.writes <= len(told), "a write was counted twice"
        assert len(full) <= self.troubled, "who was not alone was told of a COMMIT that failed"
        assert len(interrupted) == len(self.scheduler.struck - self.forkers), "an interrupt was swallowed"
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
        if write.kind == "left_block" and isinstance(error, Mishap):
            return True
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


def scenario(
    mix: Mix, engine: type[SteppedEngine] = SteppedEngine, world: type[World] = World
) -> Callable[[Scheduler], Plan]:
    """Make the scenario of a mix; with another engine it has a planted bug."""
    return lambda scheduler: world(scheduler, mix, engine).plan()


def with_groups(groups: type[Groups]) -> type[SteppedEngine]:
    """Make an engine whose groups have a planted bug."""
    return type(groups.__name__, (SteppedEngine,), {"groups_class": groups})


def with_turns(turns: type[Turns]) -> type[SteppedEngine]:
    """Make an engine whose queue has a planted bug."""
    return type(turns.__name__, (SteppedEngine,), {"turns_class": turns})


SHORT = (0.01, 0.1, 0.3, FAR)
FUNCTIONS = ("function", "function", "row")


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine's parts read the schedule's clock, and sleep by it."""
    for module in (engine_module, groups_module):
        monkeypatch.setattr(module, "monotonic", Clock.monotonic)
    monkeypatch.setattr(groups_module, "sleep", Clock.sleep)
    for module in (session_module, blocks_module):
        monkeypatch.setattr(module, "time", Clock)
    for name in ("registry", "_one_at_a_time"):  # put back what `World.make_known` sets
        monkeypatch.setattr(fork_module, name, getattr(fork_module, name))
    monkeypatch.setattr(fork_module, "monotonic", Clock.monotonic)
    monkeypatch.setattr(engine_module, "Block", SteppedBlock)
    monkeypatch.setattr(engine_module, "SideLock", lambda path, mode: Side(CURRENT[-1]))
