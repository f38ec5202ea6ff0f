"""SQLite behind the one API: routes each call to a reader, to the writer, or to a turn of its own.

One engine serves all handles on one file in one process (the same device and inode, whatever the path), so there is one
queue. What is tuned for the file (pragmas, pool, functions) must agree among the handles; what belongs to a handle
(retry policy, row factory, schema) comes with each call.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeVar, cast

from safedb import errors
from safedb.config import ResolvedPoolConfig, ResolvedPragmas, ResolvedRetryPolicy
from safedb.engine import Fetched
from safedb.reentry import refuse
from safedb.retry import classify
from safedb.routing import Route
from safedb.sql import Statement, bind_many, check_many, check_stale, parse, shorten
from safedb.sqlite import backups, location
from safedb.sqlite import pragmas as pragma_rules
from safedb.sqlite.blocks import Block, Blocks, Exclusive, Lease
from safedb.sqlite.checkpoints import Checkpoints
from safedb.sqlite.columns import Columns, Decoders
from safedb.sqlite.connections import Connections, Extras, keep_for_ever
from safedb.sqlite.driver import connect, sqlite3
from safedb.sqlite.groups import Groups
from safedb.sqlite.health import damage
from safedb.sqlite.jobs import FunctionJob, Job, StatementJob
from safedb.sqlite.keeper import Keeper
from safedb.sqlite.log import Log
from safedb.sqlite.presence import FileId, Presence
from safedb.sqlite.readers import Reader, Readers, WritesAfterAll
from safedb.sqlite.session import Session
from safedb.sqlite.sidelock import SideLock
from safedb.sqlite.snapshots import Snapshots, SnapshotSession
from safedb.sqlite.turns import Turns
from safedb.sqlite.writer import DRIVER_ERRORS, IDLE, STUBBORN, UNSTOPPABLE, USER, Outcome, Writer
from safedb.stats import Counters, Hooks, Overrun, Stats
from safedb.types import decode_rows
from safedb.values import suggest

T = TypeVar("T")

WATCH_TICK = 0.04  # seconds: so a deadline is overstayed by less than 100 ms
CHECKPOINT_TICK = 0.02  # while there is something to do
SCHEMA = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
LONG = 86_400.0  # seconds: for checks and backups that were given no deadline
MANY_VALUES = 100_000  # an executemany of more values than this runs as a block, not in a group
LEARNT = 4096  # texts of statements that something is remembered of
LONGEST_LEARNT = 10_000  # characters of such a text


class Plan:
    """Be what is known of a statement that was run before: where it goes, and how its columns are decoded."""

    __slots__ = ("decoders", "statement", "width", "writes")

    def __init__(self, statement: Statement, *, writes: bool) -> None:
        self.statement = statement
        self.writes = writes  # it goes to the writer: a reader may turn out to refuse it
        self.width = 0  # columns of a read, once it has been run
        self.decoders: Decoders | None = None


class SqliteEngine:
    """Keep one database. Made by `safedb.sqlite.opening`; every method may be called from any thread."""

    dialect = "sqlite"

    def __init__(
        self,
        path: str | None,
        *,
        pragmas: ResolvedPragmas,
        pool: ResolvedPoolConfig,
        policy: ResolvedRetryPolicy,
        extras: Extras,
        read_only: bool,
        identity: FileId | None = None,
    ) -> None:
        self.path = path
        self.name = path or "a database in memory"
        self.pragmas = pragmas
        self.pool = pool
        self.policy = policy
        self.extras = extras
        self.read_only = read_only
        self.hooks = Hooks()
        self.inside: dict[int, Job] = {}  # threads inside a write transaction, by ident: what it is
        self.snapping: dict[int, weakref.ref[SnapshotSession]] = {}  # threads inside a snapshot
        self.identity = identity
        self.presence = Presence(path, identity) if path and identity else None
        self.left_open: str | None = None  # why a connection stays open for as long as the process lives
        self._forking: Exclusive | None = None  # holds the turn while the process is copied
        self._plans: dict[str, Plan] = {}  # by text
        self._describe_by: dict[int, float] = {}  # deadlines of threads that find out about columns, by ident
        self._changing: set[int] = set()  # threads whose open transaction has changed the schema
        self._build()

    def _build(self) -> None:
        """Make all parts anew: at first, and in a forked child."""
        path, pool = self.path, self.pool
        self.counters = Counters()
        self.connections = Connections(path, self.pragmas, self.extras, self.policy)
        self.side = SideLock(path, mode=self.pragmas.file_mode) if path and not self.read_only else None
        self.turns = Turns(limit=pool.max_waiting)
        self.writer = Writer(
            lambda: self.connections.writer(self.writer.deadline), name=self.name, side=self.side,
            presence=self.presence, counters=self.counters, hooks=self.hooks,
        )  # fmt: skip
        self.groups = Groups(
            self.turns, self.writer, self.counters, self.hooks, most=pool.max_group, time_limit=pool.group_time
        )
        self.blocks = Blocks(self.turns, self.groups, self.writer, self.counters, self.hooks)
        self.readers = Readers(self._open_reader, name=self.name, most=pool.max_size, least=pool.min_size)
        self.snapshots = Snapshots()
        self.columns = Columns(self._schema_copy if path is None else self.connections.describer)
        self.log = Log(path or "", self.pragmas)
        self.checkpoints = Checkpoints(
            path or "", self.log, self.blocks, self.snapshots, self.pragmas, self.policy, self.counters, self.hooks
        )
        self.watcher = Keeper("safedb-watch", [self._watch], tick=WATCH_TICK)
        self.checkpointer = Keeper("safedb-checkpoints", [self._tend], tick=CHECKPOINT_TICK)

    def __repr__(self) -> str:
        return f"<SqliteEngine {self.name}>"

    def _open_reader(self) -> sqlite3.Connection:
        return self.connections.reader(self.readers.opening.get(threading.get_ident()))

    # -- statements -------------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run one statement in a transaction of its own."""
        plan = self._plans.get(sql)
        if plan is None or self.inside or self.snapping or self.watcher.asleep:
            plan = self._plan(sql)
        if plan.writes:
            return self._write(plan.statement, params, timeout, policy)
        statement = plan.statement
        try:
            outcome = self.readers.run(statement.sql, statement.bind(params), timeout, policy)
        except WritesAfterAll:  # refused at once: nothing of the timeout is used up
            return self._write_after_all(plan, params, timeout, policy)
        if len(outcome[1]) == plan.width and plan.decoders is None:  # in this order: see `_typed`
            return outcome
        rows, description, count = outcome
        return self._typed(plan, rows, len(description)), description, count

    def execute_stale(self, sql: str, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run one read: there is one file, and no copy of it that lags behind."""
        check_stale(parse(sql))
        return self.execute(sql, params, timeout, policy)

    def _plan(self, sql: str) -> Plan:
        """Find out where a statement goes; refuse what may not be run here and now."""
        statement = parse(sql)
        if self.inside or self.snapping:
            self.refuse_reentry(reading=statement.route is Route.READ)
        if statement.connection_bound:
            raise errors.ProgrammingError(f"{shorten(sql)}: {statement.connection_bound}")
        self._check_file()
        if self.watcher.asleep:
            self.watcher.wake()
        plan = self._plans.get(sql)
        if plan is None:
            plan = Plan(statement, writes=statement.route is not Route.READ or self.path is None)
            if len(self._plans) >= LEARNT:
                self._plans.clear()
            if len(sql) <= LONGEST_LEARNT:
                self._plans[sql] = plan
        return plan

    def _typed(self, plan: Plan, rows: list[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
        """Decode rows; at first, and when another process has changed the table, find out how."""
        if plan.width == width:
            decoders = plan.decoders
        else:
            if plan.width:
                self._forget_schema()
            plan.decoders = decoders = self.columns.of(plan.statement, width)
            plan.width = width  # last: who finds it finds the decoders too
        return rows if decoders is None else decode_rows(rows, decoders)

    def _write_after_all(self, plan: Plan, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run a statement that looked like a read where it can write, and remember that it does."""
        if self.read_only:
            raise self._read_only_error(plan.statement)
        plan.writes = True
        return self._write(plan.statement, params, timeout, policy)

    def _forget_schema(self) -> None:
        """Forget what rests on the schema: it has changed, or may have."""
        self.columns.forget()
        if self.path is None:
            self.columns.close()  # it describes by a copy
        self._plans.clear()

    def _write(self, statement: Statement, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        if self.read_only:
            raise self._read_only_error(statement)
        values = statement.bind(params)
        deadline = monotonic() + timeout
        if self.checkpointer.asleep or self.watcher.asleep:
            self._wake()
        self.refuse_own_turn()
        if statement.route is Route.EXCLUSIVE:
            return self.decoded(statement, self._exclusive(statement, values, deadline, policy))
        if statement.returning:
            self._describe(statement, deadline)
        outcome: Outcome = self.groups.submit(StatementJob(statement.sql, values, deadline, policy, row=statement.row))
        return self.decoded(statement, outcome) if outcome[1] else outcome

    def _describe(self, statement: Statement, deadline: float) -> None:
        """Find out how columns are decoded now, where it may fail: after COMMIT nothing may."""
        ident = threading.get_ident()
        self._describe_by[ident] = deadline  # in memory it takes a turn
        try:
            self.columns.describe(statement)
        finally:
            self._describe_by.pop(ident, None)

    def _exclusive(
        self, statement: Statement, values: Sequence[Any], deadline: float, policy: ResolvedRetryPolicy
    ) -> Outcome:
        check_pragma(statement)
        try:
            if not statement.transactional:
                return self.blocks.alone(
                    deadline,
                    policy,
                    lambda writer: writer.run(statement.sql, values),
                    doing=shorten(statement.source),
                    commits=True,
                )
            return self._in_block(deadline, policy, lambda session: session.run(statement, values))
        finally:
            self._forget_schema()

    def _in_block(self, deadline: float, policy: ResolvedRetryPolicy, work: Callable[[Session], T]) -> T:
        block = Block(deadline, policy)
        try:
            result = work(self.blocks.begin(block))
            self.blocks.commit(block)
        finally:
            self.blocks.rollback(block)
        return result

    def execute_many(self, sql: str, rows: Any, timeout: float, policy: ResolvedRetryPolicy) -> int:
        """Run one statement for each of ``rows``, all or nothing; return the sum of the row counts."""
        statement = self._parse_many(sql)
        if self.inside or self.snapping:
            self.refuse_reentry(reading=False)
        deadline = monotonic() + timeout
        values = bind_many(statement, rows, deadline)
        if not values:
            return 0
        self._wake()
        self.refuse_own_turn()
        if len(values) * max(statement.parameters, 1) > MANY_VALUES:
            return self._in_block(deadline, policy, lambda session: session.run(statement, values, many=True)[2])
        outcome: Outcome = self.groups.submit(StatementJob(statement.sql, values, deadline, policy, many=True))
        return outcome[2]

    def _parse_many(self, sql: str) -> Statement:
        statement = parse(sql)
        if self.read_only:
            raise self._read_only_error(statement)
        check_many(statement)
        if statement.connection_bound:
            raise errors.ProgrammingError(f"{shorten(sql)}: {statement.connection_bound}")
        return statement

    def execute_script(self, statements: list[Statement], timeout: float, policy: ResolvedRetryPolicy) -> None:
        """Run the statements of a script in one transaction."""
        if self.inside or self.snapping:
            self.refuse_reentry(reading=False)
        for statement in statements:
            if self.read_only:
                raise self._read_only_error(statement)
            check_in_transaction(statement)
            if statement.connection_bound:
                raise errors.ProgrammingError(f"{shorten(statement.source)}: {statement.connection_bound}")
        self._wake()
        self.refuse_own_turn()
        deadline = monotonic() + timeout

        def work(session: Session) -> None:
            for statement in statements:
                session.run(statement, ())

        try:
            self._in_block(deadline, policy, work)
        finally:
            self._forget_schema()

    def statement(self, sql: str) -> Statement:
        """Read a statement that is to run inside a transaction or a snapshot, or refuse it."""
        statement = parse(sql)
        if statement.route is Route.EXCLUSIVE or statement.connection_bound:
            check_in_transaction(statement)
        if statement.route is Route.EXCLUSIVE:
            self._touch_schema()
        return statement

    def many(self, sql: str) -> Statement:
        """Read a statement for `executemany` inside a transaction, or refuse it."""
        statement = parse(sql)
        check_many(statement)
        return statement

    def decoded(self, statement: Statement, outcome: Outcome) -> Fetched:
        """Turn stored values into those of the declared types; in the caller's thread, after COMMIT."""
        rows, description, count = outcome
        if description is not None and rows:
            decoders = self._decoders(statement, len(description))
            if decoders is not None:
                rows = decode_rows(rows, decoders)
        return rows, description, count

    def _decoders(self, statement: Statement, width: int) -> Decoders | None:
        """Describe a statement; inside a transaction that has changed the schema, by the schema as it is in there."""
        if threading.get_ident() in self._changing:
            columns = Columns(self._schema_copy)
            try:
                return columns.of(statement, width)
            finally:
                columns.close()
        return self.columns.of(statement, width)

    def _schema_copy(self) -> sqlite3.Connection:
        """Open an empty database that has the schema which the writer sees at this moment."""
        if threading.get_ident() in self.inside:
            rows = self.writer.run(SCHEMA, ())[0]
        else:
            deadline = self._describe_by.pop(threading.get_ident(), None) or monotonic() + self.policy.timeout
            rows = self.blocks.alone(deadline, self.policy, lambda w: w.run(SCHEMA, ())[0], doing="reading the schema")
        return self.connections.schema_copy([sql for (sql,) in rows])

    def _touch_schema(self) -> None:
        """Note that this thread changes the schema in its transaction."""
        ident = threading.get_ident()
        if ident in self.inside:
            self._changing.add(ident)

    def _settle_schema(self) -> None:
        """Forget the schema as it was before this thread's transaction, if that has changed it."""
        ident = threading.get_ident()
        if ident in self._changing:
            self._changing.discard(ident)
            self._forget_schema()

    # -- transactions -----------------------------------------------------------------------------------------------

    def block(self, timeout: float, policy: ResolvedRetryPolicy) -> Lease:
        """Make a block for the calling thread; nothing is held yet."""
        self._enter_check()
        self._wake()
        return Block(monotonic() + timeout, policy).lend()

    def begin(self, lease: Lease) -> Session:
        """Open a block; `commit` or `rollback` must follow, whatever comes."""
        block = lease.block
        session = self.blocks.begin(block)
        self.inside[block.thread] = block
        return session

    def commit(self, lease: Lease) -> None:
        """Commit a block; it is over, whatever this raises."""
        block = lease.block
        try:
            self.blocks.commit(block)
        finally:
            self.inside.pop(block.thread, None)
            self._settle_schema()

    def rollback(self, lease: Lease) -> None:
        """Roll a block back, whether or not it was opened. Idempotent."""
        block = lease.block
        if self.inside.get(block.thread) is block:
            self.inside.pop(block.thread, None)
        self.blocks.rollback(block)
        self._settle_schema()

    def run_function(self, body: Callable[[Session], T], timeout: float, policy: ResolvedRetryPolicy) -> T:
        """Run ``body`` in this thread inside a write transaction, again if its transaction is lost."""
        self._enter_check()
        self._wake()
        ident = threading.get_ident()

        def inside(session: Session) -> T:
            self.inside[ident] = job
            try:
                return body(session)
            finally:
                self.inside.pop(ident, None)

        job = FunctionJob(inside, monotonic() + timeout, policy)
        try:
            result: T = self.groups.submit(job)
        finally:
            self._settle_schema()
        return result

    def refuse_own_turn(self) -> None:
        """Raise where this thread has the turn already: an SQL function or a hook calls from inside it."""
        holder = self.turns.holder
        if holder is not None and holder.thread == threading.get_ident() and cast("Job", holder).at_work:
            raise errors.ReentrancyError(
                f"this thread is running a statement on {self.name}: to write to it, or to close it, from an SQL "
                "function, a collation, an on_event hook or a signal handler would wait for itself"
            )

    def _enter_check(self) -> None:
        if self.inside:
            self.refuse_reentry(reading=False)
        self.refuse_own_turn()
        if self.read_only:
            raise errors.ProgrammingError(f"{self.name} was opened read-only: read in db.snapshot()", sqlstate="25006")
        if self.path is None and self.snapping:
            self.refuse_reentry(reading=False)

    # -- snapshots --------------------------------------------------------------------------------------------------

    def open_snapshot(
        self, timeout: float, max_age: float | None, *, serializable: bool = False, stale: bool = False
    ) -> SnapshotSession:
        """Fix one committed state for the calling thread. With one writer each is serialisable, and the latest."""
        del serializable, stale
        if self.inside or self.snapping:
            self.refuse_reentry(reading=True)
        self._wake()
        deadline = monotonic() + timeout
        reader = self._copy_of_memory(deadline) if self.path is None else self.readers.check_out(deadline)
        try:
            session = self.snapshots.open(
                reader, name=self.name, max_age=max_age, deadline=deadline, policy=self.policy
            )
        except Exception:  # what comes from outside may leave it in any state: it is not used again
            self._return(reader)
            raise
        self.snapping[session.ident] = weakref.ref(session)
        return session

    def close_snapshot(self, session: SnapshotSession, ident: int) -> None:
        """End a snapshot that the thread ``ident`` opened."""
        self.snapping.pop(ident, None)
        reader = self.snapshots.close(session)
        if reader is not None:
            self._return(reader)

    def _return(self, reader: Reader) -> None:
        if self.path is None:
            reader.close()
        else:
            self.readers.give_back(reader)

    def _copy_of_memory(self, deadline: float) -> Reader:
        """Copy a database in memory: with one connection, nothing else keeps a state from its writers."""
        copy = self.connections.blank()
        self.blocks.alone(
            deadline,
            self.policy,
            lambda writer: backups.copy_memory(writer.cursor().connection, copy, deadline),
            doing="copying for a snapshot",
        )
        copy.execute("PRAGMA query_only=ON")
        return Reader(copy)

    # -- house-keeping ----------------------------------------------------------------------------------------------

    def checkpoint(self, timeout: float) -> None:
        """Move the WAL's content into the database and empty the WAL, as far as readers allow."""
        self._enter_check()
        if self.path is not None:
            self.checkpoints.run("TRUNCATE", monotonic() + timeout)

    def check(self, timeout: float | None) -> list[str]:
        """Look for damage and for broken references in one committed state."""
        limit = timeout or LONG
        deadline = monotonic() + limit
        session = self.open_snapshot(limit, None)
        try:
            return damage(lambda sql: session.run(parse(sql), (), deadline - monotonic())[0])
        finally:
            self.close_snapshot(session, threading.get_ident())

    def backup(self, dest: str, progress: Callable[[int, int], Any] | None, timeout: float | None) -> None:
        """Copy one committed state into a new file."""
        limit = timeout or LONG
        deadline = monotonic() + limit
        session = self.open_snapshot(min(limit, self.policy.timeout), None)
        try:
            mode = location.mode(self.path) if self.path else self.pragmas.file_mode
            backups.copy(session, dest, source=self.path, mode=mode, progress=progress, deadline=deadline)
        finally:
            if monotonic() - deadline > STUBBORN:
                self.hooks.emit(Overrun(self.name, "a backup's progress=, or its flush", monotonic() - deadline))
            self.close_snapshot(session, threading.get_ident())

    def optimize(self, timeout: float) -> None:
        """Let SQLite renew the statistics that its query planner uses."""
        self._enter_check()
        self.blocks.alone(
            monotonic() + timeout,
            self.policy,
            lambda writer: writer.run("PRAGMA optimize", ()),
            doing="PRAGMA optimize",
            commits=True,
        )

    def stats(self) -> Stats:
        """Show the engine at this moment."""
        counters, oldest = self.counters, self.snapshots.oldest()
        return Stats(
            dialect=self.dialect,
            queue_depth=self.turns.waiting,
            waits=counters.waits.snapshot(),
            turns=counters.turns,
            commits=counters.commits,
            writes=counters.writes,
            group_sizes=dict(counters.group_sizes),
            commit_times=counters.commit_times.snapshot(),
            retries=dict(counters.retries),
            lock_waits=counters.lock_waits.snapshot(),
            readers=self.readers.stats(),
            wal_bytes=self.log.size() if self.path else 0,
            checkpoints=counters.checkpoints.snapshot(),
            oldest_snapshot=monotonic() - oldest.began if oldest else None,
        )

    def refuse_reentry(self, *, reading: bool) -> None:
        """Raise `ReentrancyError` if the calling thread is inside a transaction, or reads inside a snapshot."""
        ident = threading.get_ident()
        noted, known = self.inside.get(ident), self.snapping.get(ident)
        if noted is not None and not noted.at_work:  # it is over, by an interrupt, or is that of a thread that has died
            self.inside.pop(ident, None)
            self._settle_schema()
        if known is not None:
            session = known()
            if session is None or session.left or session.owner is not threading.current_thread():
                self.snapping.pop(ident, None)
        refuse(self.name, self.inside, self.snapping, reading=reading)

    def _read_only_error(self, statement: Statement) -> errors.Error:
        return errors.ProgrammingError(
            f"{shorten(statement.source)}: {self.name} was opened read-only; open it without mode=ro to write",
            sqlstate="25006",
        )

    def _check_file(self) -> None:
        """Refuse to go on where the file was deleted or replaced: writes would go into the void (H41)."""
        self.writer.check_process()
        if self.presence is not None and self.presence.look():
            why = str(self.presence.gone)
            self.connections.refuse(why)
            self._plans.clear()  # a read of a known text is sent on without a look
            raise errors.OperationalError(why)

    def _wake(self) -> None:
        if self.watcher.asleep or (self.presence is not None and self.presence.gone):
            self._check_file()
        if self.watcher.asleep:
            self.watcher.wake()
        if self.checkpointer.asleep and self.path is not None and not self.read_only:
            self.checkpointer.wake()

    def _watch(self, now: float) -> bool:
        """End what is overdue; the watcher's chore."""
        with contextlib.suppress(errors.OperationalError):  # the callers are told
            self._check_file()
        self.turns.repair()
        self._mend()
        if self.path is not None and self.columns.schema_changed():
            self._plans.clear()
        self.groups.break_up(now)
        for late in self.readers.interrupt_overdue(now):
            self.hooks.emit(Overrun(self.name, UNSTOPPABLE, late))
        limited = self.snapshots.expire(now)
        watched = self.writer.watch
        # Who has the turn, and waits with it for another process, is about to run a statement that must be watched.
        waiting = self.turns.holder is not None or self.turns.waiting > 0 or bool(self.readers.opening)
        running = watched.phase is not IDLE or watched.until < math.inf
        return limited or waiting or running or self.turns.is_delivering or bool(self.readers.busy())

    def _mend(self) -> None:
        """Give up what threads have left that died, or were interrupted while they cleared up."""
        self.groups.mend()
        self.readers.mend()
        for session in self.snapshots.all():
            if not session.wanted:
                self.close_snapshot(session, session.ident)
        for ident, known in list(self.snapping.items()):
            if known() is None and self.snapping.get(ident) is known:
                self.snapping.pop(ident, None)

    def _tend(self, now: float) -> bool:
        """Look after the WAL and the readers; the checkpointer's chore."""
        if self.presence is not None and self.presence.gone:
            return False
        self.readers.trim(now - self.pool.max_idle)
        self.log.make_room()
        return self.checkpoints.look(now)

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, timeout: float) -> None:
        """Close readers first and the writer last: that one can remove the WAL. Idempotent.

        What is still under way in other threads is watched until it ends: it has its own deadline.
        """
        deadline = monotonic() + timeout
        self.checkpointer.close(within=timeout)
        self.readers.close()
        self.columns.close()
        try:
            gone = self.presence is not None and self.presence.gone
            job = Exclusive(deadline, self.policy)
            with self.blocks.exclusive(job, closing=True) as writer:
                if self.path and not (gone or self.connections.refused) and self.log.size():
                    writer.cursor()
                self.connections.close()  # for whoever has found this engine, and comes only now
                if self.presence is not None:
                    self.presence.set_aside()
                    if self.presence.is_taken_over():
                        self.left_open = gone or None
                        keep_for_ever(writer.disown())
                writer.close()
        except errors.LockTimeout as error:
            raise errors.LockTimeout(
                f"this handle on {self.name} is closed, but its file is still open, for a write did not end: {error}"
            ) from error
        except DRIVER_ERRORS as error:
            raise classify(error, doing=f"closing {self.name}") from error
        finally:
            self.watcher.retire()
            if self.side is not None:
                self.side.close()

    def abandon(self) -> None:
        """Give up an engine that could not be opened; nobody else knows it yet."""
        self.readers.close()
        self.writer.discard()
        if self.side is not None:
            self.side.close()

    def quiesce(self, deadline: float) -> bool:
        """Close every connection and the side files for a fork, and keep the turn; `resume` gives it up.

        Return False, with everything as it was, where somebody is inside a transaction or a snapshot, or did not finish
        in time.
        """
        if any(noted.at_work for noted in list(self.inside.values())) or self.snapping:
            return False
        job = Exclusive(deadline, self.policy)
        try:
            self.blocks.take(job)
            if self.readers.pause(deadline) and (self.path is None or self._pause_files(deadline)):
                if self.path is None:  # what lies in memory is copied whole, and has no locks
                    self.columns.close()
                else:
                    self.writer.discard()
                if self.side is not None:
                    self.side.close()
                job.kept = True
                self._forking = job
        except errors.Error:
            return False
        finally:
            if self._forking is not job:  # also after an interrupt
                self._go_on(job)
        return self._forking is job

    def is_inside_sqlite(self) -> bool:
        """Tell whether a thread may be in the middle of a call to SQLite; asked of what a fork has copied."""
        writing = self.turns.holder is not None and self.writer.watch.phase is not USER
        return writing or self.readers.are_reading() or self.snapshots.are_reading() or self.columns.is_describing()

    def quiet_for(self, thread: int) -> bool:
        """Tell whether `quiesce` has prepared this engine for a fork by that thread."""
        return self._forking is not None and self._forking.thread == thread

    def resume(self) -> None:
        """Go on after a fork, in the parent. May be called again where an interrupt has ended it."""
        job = self._forking
        if job is None:
            return
        if self.path and not self.read_only and self.turns.holder is job:  # else others are using it already
            self.side = self.writer.side = SideLock(self.path, mode=self.pragmas.file_mode)
        job.kept = False  # from here on the keeper gives up the turn, where an interrupt comes before this does
        self._resume_files()
        self.readers.resume()
        self._forking = None  # before another thread's fork can have the turn
        self.turns.leave(job)

    def _pause_files(self, deadline: float) -> bool:
        return self.columns.pause(deadline) and self.log.pause(deadline)

    def _resume_files(self) -> None:
        self.log.resume()
        self.columns.resume()

    def _go_on(self, job: Exclusive) -> None:
        self._resume_files()
        self.readers.resume()
        self.turns.leave(job)

    def begin_anew(self) -> None:
        """Go on after a fork, in the child: no lock and no thread of the parent's is of any use here."""
        self._forking = None
        self.inside.clear()
        self.snapping.clear()
        if self.presence is not None:
            self.presence.closing()  # the WAL that the parent knows is none of ours
        memory = self.writer.connection
        self._build()
        if self.path is None and memory is not None:  # the child's own copy
            self.writer.adopt(memory)

    def refuse_after_fork(self, why: str) -> object:
        """Refuse every call from now on; return what must never be closed nor deallocated in this process."""
        inherited = (
            self.writer.disown(), self.readers, self.readers.everyone(), self.snapshots.disown(why), self.columns,
            self.connections,
        )  # fmt: skip
        self.connections.refuse(why)  # a session that this thread is inside of asks its writer, and that one asks these
        self.begin_anew()
        self.connections.refuse(why)
        self.side = self.writer.side = None  # nothing will be opened, so nobody need wait for the parent
        return inherited


@functools.cache
def known_pragmas() -> frozenset[str]:
    """List the pragmas that this build of SQLite has."""
    connection = connect(":memory:")
    try:
        return frozenset(name for (name,) in connection.execute("PRAGMA pragma_list"))
    finally:
        connection.close()


def check_pragma(statement: Statement) -> None:
    """Refuse a pragma that safedb owns."""
    if statement.pragma is not None:
        name, setting = statement.pragma
        known = known_pragmas()
        if name not in known:
            raise errors.ProgrammingError(
                f"there is no PRAGMA {name}{suggest(name, known)}; SQLite itself would ignore it in silence"
            )
        reason = pragma_rules.refusal(name, setting=setting)
        if reason:
            raise errors.ProgrammingError(reason)


def check_in_transaction(statement: Statement) -> None:
    """Refuse what cannot run inside a transaction, or would outlive it on the connection that all writers share."""
    check_pragma(statement)
    if statement.outlives:
        raise errors.ProgrammingError(f"{shorten(statement.source)}: {statement.outlives}")
    if not statement.transactional and statement.pragma is None:
        raise errors.ProgrammingError(
            f"{statement.keyword} cannot run inside a transaction: call it through db.execute"
        )
