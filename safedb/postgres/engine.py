"""PostgreSQL behind the one API: routes each call to a reading or to a writing link.

Reads go to a pool of READ ONLY sessions, one autocommit statement each; writes to a pool of their own, each in a
SERIALIZABLE transaction. Two pools, so that a thread inside a snapshot, which may write, never waits for a link that
another such thread holds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, TypeVar

from safedb import errors
from safedb.config import ResolvedPoolConfig, ResolvedRetryPolicy
from safedb.engine import Fetched
from safedb.postgres.again import Again, Retries
from safedb.postgres.links import Links
from safedb.postgres.opener import Opener
from safedb.postgres.reads import WritesAfterAll, read
from safedb.postgres.session import Session, notifies
from safedb.postgres.snapshots import SnapshotSession
from safedb.postgres.writes import NOT_IN_A_TRANSACTION, Writes
from safedb.reentry import Inside
from safedb.sql import Route, Statement, bind_many, check_many, check_stale, parse, shorten
from safedb.stats import Counters, Hooks, Stats
from safedb.targets import Dsn

T = TypeVar("T")

LEARNT = 4096  # texts of statements that something is remembered of
LONGEST_LEARNT = 10_000  # characters of such a text
LONG = 86_400.0  # seconds: for checks that were given no deadline
DRAINING = 0.005  # seconds between two looks at calls that are still under way
REPLICA_SHARE = 0.25  # of a stale read's time that it may wait for a link to one replica
RESTING = 5.0  # seconds for which a replica that gave no answer is passed over

CHECKS = (
    "SELECT format('index %s is not valid: REINDEX it', indexrelid::regclass) FROM pg_index WHERE NOT indisvalid"
    " UNION ALL SELECT format('constraint %s of %s is not validated: run ALTER TABLE with VALIDATE CONSTRAINT',"
    " conname, conrelid::regclass) FROM pg_constraint WHERE NOT convalidated"
    " UNION ALL SELECT format('%s blocks of this database have failed their checksum', checksum_failures)"
    " FROM pg_stat_database WHERE datname = current_database() AND checksum_failures > 0"
)


class Plan:
    """Be what is known of a statement that was run before: where it goes."""

    __slots__ = ("alone", "statement", "writes")

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        # A READ ONLY session may turn out to refuse it; but it would notify, and again when it is run again.
        self.writes = statement.route is not Route.READ or notifies(statement.sql)
        self.alone = not statement.transactional  # it runs outside of a transaction: the server may turn out to say so


class Block:
    """Be one ``with db.transaction()`` block."""

    __slots__ = ("deadline", "left", "session", "thread")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.thread = threading.get_ident()
        self.session: Session | None = None


class PostgresEngine:
    """Keep one database on a server. Every method may be called from any thread."""

    dialect = "postgresql"

    def __init__(
        self,
        dsn: Dsn,
        *,
        replicas: Sequence[Dsn] = (),
        pool: ResolvedPoolConfig,
        policy: ResolvedRetryPolicy,
        read_only: bool = False,
        serial_writes: bool = False,
    ) -> None:
        self._dsn, self._replica_dsns = dsn, replicas
        self.pool = pool
        self.policy = policy
        self.read_only = read_only
        self.serial_writes = serial_writes
        self.hooks = Hooks()
        self.inside = Inside()
        self.name = ""
        self._build()

    def _build(self) -> None:
        """Make all parts anew: at first, and in a forked child."""
        self._plans: dict[str, Plan] = {}  # by text
        self._snapshots: set[SnapshotSession] = set()
        self._writing: set[int] = set()  # threads inside a transaction of this very handle
        self._turn = 0
        self._counters, self._mutex = Counters(), threading.Lock()
        self._readers = self._links(self._dsn, read_only=True)
        self._writers = self._links(self._dsn, read_only=False)
        self._replicas = [self._links(dsn, read_only=True, stale=True) for dsn in self._replica_dsns]
        self._retries = Retries(self._counters, self._mutex, self.hooks, name=self.name)
        self._writes = Writes(
            self._writers, self._retries, self._counters, self._mutex, self.hooks,
            name=self.name, serial=self.serial_writes,
        )  # fmt: skip

    def _links(self, dsn: Dsn, *, read_only: bool, stale: bool = False) -> Links:
        opener = Opener(
            dsn,
            read_only=read_only,
            timeout=self.policy.timeout,
            prepare_threshold=self.pool.prepare_threshold,
            stale=stale,
        )
        self.name = self.name or opener.name
        return Links(opener, self.pool, name=opener.name)

    def __repr__(self) -> str:
        return f"<PostgresEngine {self.name}>"

    def open(self, timeout: float, places: dict[Any, Inside]) -> None:
        """Connect for the first time, so that what is wrong is said now; find who else has this database open."""
        links = self._readers if self.read_only else self._writers
        link = links.first(monotonic() + timeout)
        try:
            if self.serial_writes and link.pooled:
                raise errors.ConfigError(
                    f"serial_writes=True holds a lock of the session, and what stands before {self.name} gives each "
                    "transaction another session: connect to the server itself, or leave it out"
                )
            self.inside = places.setdefault(link.place, self.inside)
        finally:
            links.give_back(link)

    # -- statements -------------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run one statement in a transaction of its own."""
        plan = self._plans.get(sql)
        inside = self.inside
        if plan is None or inside.writing or inside.reading:
            plan = self._plan(sql)
        values = plan.statement.bind(params)
        deadline = monotonic() + timeout
        if plan.writes:
            return self._write(plan, values, deadline, policy)
        return self._read(plan, values, deadline, policy)

    def execute_stale(self, sql: str, params: Any, timeout: float, policy: ResolvedRetryPolicy) -> Fetched:
        """Run one read on a replica, which may not have the latest writes yet; on the primary where none answers."""
        plan = self._plan(sql)
        check_stale(plan.statement)
        values = plan.statement.bind(params)
        deadline = monotonic() + timeout
        for links in self._next_replicas() if not plan.writes else ():
            with self._passing_over(links):
                soon = monotonic() + REPLICA_SHARE * timeout
                return read(links, plan.statement, values, deadline, lend_by=soon)
        return self._read(plan, values, deadline, policy)

    def _next_replicas(self) -> list[Links]:
        """List the replicas that are not known to be away, each time beginning with the next one."""
        now = monotonic()
        found = [links for links in self._replicas if links.resting <= now]
        self._turn += 1
        start = self._turn % max(len(found), 1)
        return found[start:] + found[:start]

    @contextlib.contextmanager
    def _passing_over(self, links: Links) -> Iterator[None]:
        """Go on with the next where a replica gives no answer, and leave it alone for a while."""
        try:
            yield
        except WritesAfterAll:
            pass
        except (Again, errors.ConnectionLost, errors.PoolTimeout):
            links.resting = monotonic() + RESTING

    def _plan(self, sql: str) -> Plan:
        """Find out where a statement goes; refuse what may not be run here and now."""
        statement = parse(sql, self.dialect)
        self.inside.refuse(self.name, reading=statement.route is Route.READ)
        if statement.connection_bound:
            raise errors.ProgrammingError(f"{shorten(sql)}: {statement.connection_bound}")
        plan = self._plans.get(sql)
        if plan is None:
            plan = Plan(statement)
            if len(self._plans) >= LEARNT:
                self._plans.clear()
            if len(sql) <= LONGEST_LEARNT:
                self._plans[sql] = plan
        return plan

    def _read(self, plan: Plan, values: Sequence[Any], deadline: float, policy: ResolvedRetryPolicy) -> Fetched:
        links, statement = self._readers, plan.statement
        try:
            return self._retries.persist(lambda: read(links, statement, values, deadline), deadline, policy)
        except WritesAfterAll:
            plan.writes = True
        return self._write(plan, values, deadline, policy)

    def _write(self, plan: Plan, values: Sequence[Any], deadline: float, policy: ResolvedRetryPolicy) -> Fetched:
        self._refuse_read_only(plan.statement)
        if not plan.alone:
            try:
                return self._writes.statement(plan.statement, values, deadline, policy)
            except errors.ProgrammingError as error:
                if error.sqlstate != NOT_IN_A_TRANSACTION:
                    raise
                plan.alone = True
        return self._writes.alone(plan.statement, values, deadline)

    def execute_many(self, sql: str, rows: Any, timeout: float, policy: ResolvedRetryPolicy) -> int:
        """Run one statement for each of ``rows``, all or nothing; return the sum of the row counts."""
        statement = self.many(sql)
        self._refuse_read_only(statement)
        if statement.connection_bound:
            raise errors.ProgrammingError(f"{shorten(sql)}: {statement.connection_bound}")
        self.inside.refuse(self.name, reading=False)
        deadline = monotonic() + timeout
        values = bind_many(statement, rows, deadline)
        if not values:
            return 0
        return self._writes.statement(statement, values, deadline, policy, many=True)[2]

    def execute_script(self, statements: list[Statement], timeout: float, policy: ResolvedRetryPolicy) -> None:
        """Run the statements of a script in one transaction; scripts wait for each other, in all processes."""
        self.inside.refuse(self.name, reading=False)
        for statement in statements:
            self._refuse_read_only(statement)
            _refuse_in_transaction(statement)

        def body(session: Session) -> None:
            session.lock_schema()
            for statement in statements:
                session.run(statement, ())

        self._writes.function(body, monotonic() + timeout, policy)

    def statement(self, sql: str) -> Statement:
        """Read a statement that is to run inside a transaction or a snapshot, or refuse it."""
        statement = parse(sql, self.dialect)
        _refuse_in_transaction(statement)
        return statement

    def many(self, sql: str) -> Statement:
        """Read a statement for `executemany` inside a transaction, or refuse it."""
        statement = parse(sql, self.dialect)
        check_many(statement)
        return statement

    def decoded(self, statement: Statement, fetched: Fetched) -> Fetched:  # noqa: ARG002 - the driver has done it
        """Give back what came: PostgreSQL's values are typed."""
        return fetched

    # -- transactions -----------------------------------------------------------------------------------------------

    def block(self, timeout: float, policy: ResolvedRetryPolicy) -> Block:  # noqa: ARG002 - a block is run once
        """Make a block for the calling thread; nothing is held yet."""
        self._enter_check()
        return Block(monotonic() + timeout)

    def begin(self, block: Block) -> Session:
        """Open a block; `commit` or `rollback` must follow, whatever comes."""
        block.session = session = self._writes.begin(block.deadline)
        self.inside.writing[block.thread] = "a transaction"
        self._writing.add(block.thread)
        return session

    def commit(self, block: Block) -> None:
        """Commit a block; it is over, whatever this raises."""
        session = block.session
        if session is None:
            raise errors.InterfaceError("this block was not begun")
        try:
            self._writes.commit(session)
        finally:
            self.rollback(block)

    def rollback(self, block: Block) -> None:
        """Roll back what is still open of a block. Idempotent."""
        if block.session is not None:
            self.inside.writing.pop(block.thread, None)
            self._writing.discard(block.thread)
            block.session.end()

    def run_function(self, body: Callable[[Session], T], timeout: float, policy: ResolvedRetryPolicy) -> T:
        """Run ``body`` in this thread inside a write transaction, again if its transaction is lost."""
        self._enter_check()
        inside, ident = self.inside.writing, threading.get_ident()

        def run(session: Session) -> T:
            inside[ident] = "a function of run_transaction"
            self._writing.add(ident)
            try:
                return body(session)
            finally:
                inside.pop(ident, None)
                self._writing.discard(ident)

        return self._writes.function(run, monotonic() + timeout, policy)

    def _enter_check(self) -> None:
        self.inside.refuse(self.name, reading=False)
        if self.read_only:
            raise errors.ProgrammingError(f"{self.name} was opened read-only: read in db.snapshot()", sqlstate="25006")

    def _refuse_read_only(self, statement: Statement) -> None:
        if self.read_only:
            raise errors.ProgrammingError(
                f"{shorten(statement.source)}: {self.name} was opened read-only; open it without mode=ro to write",
                sqlstate="25006",
            )

    # -- snapshots --------------------------------------------------------------------------------------------------

    def open_snapshot(
        self, timeout: float, max_age: float | None, *, serializable: bool = False, stale: bool = False
    ) -> SnapshotSession:
        """Fix one committed state for the calling thread."""
        self.inside.refuse(self.name, reading=True)
        session = self._open_snapshot(timeout, max_age, serializable=serializable, stale=stale)
        self._snapshots.add(session)
        self.inside.reading.add(threading.get_ident())
        return session

    def _open_snapshot(
        self, timeout: float, max_age: float | None, *, serializable: bool, stale: bool
    ) -> SnapshotSession:
        deadline = monotonic() + timeout
        for links in self._next_replicas() if stale and not serializable else ():  # no replica has serialisable ones
            with self._passing_over(links):
                soon = monotonic() + REPLICA_SHARE * timeout
                return SnapshotSession(links, name=self.name, timeout=timeout, max_age=max_age, lend_by=soon)

        def attempt() -> SnapshotSession:
            left = max(deadline - monotonic(), 0.0)
            try:
                return SnapshotSession(
                    self._readers, name=self.name, timeout=left, max_age=max_age, serializable=serializable
                )
            except errors.ConnectionLost as error:
                raise Again(error) from None

        return self._retries.persist(attempt, deadline, self.policy)

    def close_snapshot(self, session: SnapshotSession, ident: int) -> None:
        """End a snapshot that the thread ``ident`` opened."""
        self.inside.reading.discard(ident)
        self._snapshots.discard(session)
        session.close()

    # -- house-keeping ----------------------------------------------------------------------------------------------

    def backup(self, dest: str, progress: object, timeout: float | None) -> None:  # noqa: ARG002 - refused
        """Refuse: the server's own tools do it."""
        raise errors.NotSupportedError(
            "backup() copies a SQLite file: on PostgreSQL use pg_dump (one database) or pg_basebackup (the server)"
        )

    def checkpoint(self, timeout: float) -> None:  # noqa: ARG002 - refused
        """Refuse: the server does it by itself."""
        raise errors.NotSupportedError(
            "checkpoint() empties SQLite's WAL: PostgreSQL does that by itself (checkpoint_timeout, max_wal_size)"
        )

    def check(self, timeout: float | None) -> list[str]:
        """List invalid indexes, constraints that were never validated and blocks that have failed their checksum."""
        return [row[0] for row in self.execute(CHECKS, None, timeout or LONG, self.policy)[0]]

    def optimize(self, timeout: float) -> None:
        """Renew the statistics of the server's query planner, table by table, each in a transaction of its own."""
        self._enter_check()
        self._writes.alone(parse("ANALYZE", self.dialect), (), monotonic() + timeout)

    def stats(self) -> Stats:
        """Show the engine at this moment."""
        counters, writers = self._counters, self._writers.stats()
        began = [session.began for session in tuple(self._snapshots) if not session.is_over]
        with self._mutex:
            return Stats(
                dialect=self.dialect,
                queue_depth=writers.waiting,
                waits=counters.waits.snapshot(),
                turns=counters.turns,
                commits=counters.commits,
                writes=counters.writes,
                group_sizes=dict(counters.group_sizes),
                commit_times=counters.commit_times.snapshot(),
                retries=dict(counters.retries),
                readers=self._readers.stats(),
                writers=writers,
                oldest_snapshot=monotonic() - min(began) if began else None,
            )

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self, timeout: float) -> None:
        """Close all links, once the calls under way have come to their end, or after ``timeout``. Idempotent."""
        if threading.get_ident() in self._writing:  # closing another handle waits for nothing of this thread's
            self.inside.refuse(self.name, reading=False)
        for session in tuple(self._snapshots):
            if session.thread == threading.get_ident():
                session.close()  # it would wait for itself
        pools = [self._readers, self._writers, *self._replicas]
        deadline = monotonic() + timeout
        while any(links.stats().in_use for links in pools) and monotonic() < deadline:
            time.sleep(DRAINING)
        for links in pools:
            links.close(deadline - monotonic())

    def begin_anew(self) -> object:
        """Go on after a fork, in the child; give what must never be closed in here: it is the parent's."""
        inherited = (self._readers, self._writers, self._replicas, self._snapshots)
        self.inside.writing.clear()
        self.inside.reading.clear()
        self._build()
        return inherited


def _refuse_in_transaction(statement: Statement) -> None:
    """Refuse what cannot run inside a transaction, or would outlive it on a link that others use after it."""
    if statement.outlives:
        raise errors.ProgrammingError(f"{shorten(statement.source)}: {statement.outlives}")
    if not statement.transactional:
        raise errors.ProgrammingError(
            f"{statement.keyword} cannot run inside a transaction: call it through db.execute"
        )
