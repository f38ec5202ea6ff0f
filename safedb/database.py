"""`connect` and `Database`: the one API, and nothing about any engine."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

from safedb import errors
from safedb.config import (
    PoolConfig,
    Pragmas,
    ResolvedRetryPolicy,
    RetryPolicy,
    Settings,
    check_timeout,
    load_settings,
)
from safedb.engine import Engine
from safedb.result import Result
from safedb.rows import RowFactory, tuple_row
from safedb.sql import prepare, split
from safedb.stats import Event, Stats
from safedb.transaction import Snapshot, Transaction, check_rows

T = TypeVar("T")
P = ParamSpec("P")

Progress = Callable[[int, int], Any]

_MOMENT = 0.001  # seconds: for what finds its deadline over, and is to say so


def connect(
    target: str | os.PathLike[str] | None = None,
    *,
    pragmas: Pragmas | None = None,
    retry: RetryPolicy | None = None,
    pool: PoolConfig | None = None,
    schema: str | Iterable[str] | None = None,
    row_factory: RowFactory[Any] = tuple_row,
    read_only: bool | None = None,
    functions: Mapping[str, Any] | None = None,
    collations: Mapping[str, Callable[[str, str], int]] | None = None,
    replicas: str | Sequence[str] | None = None,
    serial_writes: bool = False,
    on_event: Callable[[Event], Any] | None = None,
) -> Database:
    """Open a database and give a handle that any number of threads may use.

    ``target``: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` (in memory), a path (SQLite), or
    None (``SAFEDB_URL``, then ``DATABASE_URL``). ``schema``: DDL to be run in one transaction under the writer's lock,
    however many threads and processes open at once; write it so that it can be run again (``IF NOT EXISTS``).
    ``functions``: SQL functions by name, a callable or ``(callable, number of arguments)``. ``on_event``: told of every
    event of this database (see `safedb.stats`).

    ``postgresql://user@host/name`` opens a server's database, which needs ``pip install 'safedb[postgres]'``; the rest
    of the URL is libpq's. ``replicas``: URLs of servers that follow this one, for what is read with ``stale=True`` and
    nothing else. ``serial_writes``: one write transaction at a time, among all that ask for it, so that a block never
    fails for a conflict with another. ``pragmas`` tune SQLite, and mean nothing on PostgreSQL.

    Handles of one process on one file share one writer and one queue, so ``pragmas``, ``pool``, ``functions`` and
    ``collations`` must agree with those in force; what is not given agrees. Where each setting may stand, and which
    goes first, is told in `safedb.config`. Raises `ConfigError` for what cannot be put in force, `LockTimeout` where
    another program holds the file until ``retry.timeout``.
    """
    began = monotonic()
    settings, failure = _settings(target, pragmas=pragmas, retry=retry, pool=pool, read_only=read_only)
    del target  # it may hold a password, and some tools show the variables of every frame that an error has passed
    if settings is None:
        raise failure
    if on_event is not None and not callable(on_event):
        raise errors.ConfigError(f"on_event= takes a callable of one event, not {on_event!r}")
    if not callable(row_factory):
        raise errors.ConfigError(f"row_factory= takes a callable such as safedb.dict_row, not {row_factory!r}")
    if schema is not None and (isinstance(schema, bytes) or not isinstance(schema, Iterable)):
        raise errors.ConfigError(f"schema= takes DDL as a str, or several of them, not {schema!r}")
    foreign = {"functions": functions, "collations": collations, "replicas": replicas, "serial_writes": serial_writes}
    _refuse_foreign(settings.target.dialect, foreign)
    prepare(settings.target.dialect)
    # The imports are here and not above: `import safedb` loads no driver and no tenacity.
    if settings.target.dialect == "sqlite":
        from safedb import sqlite

        engine, close = sqlite.open_engine(settings, functions, collations)
    else:
        from safedb import postgres

        engine, close = postgres.open_engine(settings, replicas, serial_writes=serial_writes)
    retry_policy = settings.retry.effective()
    database = Database(engine, retry_policy, row_factory, close)
    try:
        if on_event is not None:
            database._listen(on_event)
        if schema is not None:
            database._create(schema, max(began + retry_policy.timeout - monotonic(), _MOMENT))
    except BaseException:
        database.close()
        raise
    return database


def _settings(
    target: str | os.PathLike[str] | None, **given: Any
) -> tuple[Settings, errors.Error] | tuple[None, errors.Error]:
    """Load the settings, or give the error without the frames that have seen the URL."""
    try:
        return load_settings(target, **given), errors.ConfigError()
    except errors.Error as error:
        return None, error.with_traceback(None)


_FOREIGN = {
    "sqlite": {
        "replicas": "a SQLite file has no replicas; leave it out",
        "serial_writes": "SQLite's writes are serial always; leave it out",
    },
    "postgresql": {
        "functions": "SQL functions in Python are SQLite's; create the function on the server",
        "collations": "collations in Python are SQLite's; create the collation on the server",
    },
}
"""What only the other database has."""


def _refuse_foreign(dialect: str, given: Mapping[str, object]) -> None:
    for name, remedy in _FOREIGN[dialect].items():
        if given[name]:
            raise errors.ConfigError(f"{name}=: {remedy}")
    if not isinstance(given["serial_writes"], bool):
        raise errors.ConfigError(f"serial_writes= takes True or False, not {given['serial_writes']!r}")


class Database:
    """Be a handle on a database. Made by `connect`; every method may be called from any thread at any time.

    ``timeout=`` of each call is the total deadline in seconds, waiting and running again included; without it
    `RetryPolicy.timeout` holds. A COMMIT under way and the caller's own code cannot be cut short, and are reported.
    """

    def __init__(
        self, engine: Engine, retry: ResolvedRetryPolicy, factory: RowFactory[Any], close: Callable[[float], None]
    ) -> None:
        self._engine = engine
        self._retry = retry
        self._timeout = retry.timeout
        self._factory = factory
        self._close = close
        self._closing = threading.Lock()
        self._hook: Callable[[Event], Any] | None = None
        self._open = True
        self.dialect = engine.dialect

    def __repr__(self) -> str:
        return f"<Database {self._engine.name}{', closed' * (not self._open)}>"

    # -- single statements --------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: Any = None, *, timeout: float | None = None, stale: bool = False) -> Result:
        """Run one statement in a transaction of its own.

        A read sees one committed state and every write acknowledged before it began. A write is durable when this
        returns; if it raises, it has had no effect, but for `CommitUnknownError`. Writes of several threads are
        committed together where they meet, each with its own verdict. ``params``: a sequence for ``?``, a
        mapping for ``:name``. ``stale=True`` says of a read that it may miss the latest writes: where there are
        ``replicas=``, one of them answers.
        """
        limit = self._timeout if timeout is None else check_timeout(timeout)
        if stale:
            return Result(self._engine.execute_stale(sql, params, limit, self._retry), self._factory)
        return Result(self._engine.execute(sql, params, limit, self._retry), self._factory)

    def executemany(self, sql: str, params_seq: Iterable[Any], *, timeout: float | None = None) -> int:
        """Run one statement for each of ``params_seq``, all or nothing; return the sum of the row counts."""
        check_rows(params_seq)
        return self._engine.execute_many(sql, params_seq, self._limit(timeout), self._retry)

    def executescript(self, sql: str, *, timeout: float | None = None) -> None:
        """Run several statements without parameters in one transaction, all or nothing."""
        limit = self._limit(timeout)
        deadline = monotonic() + limit
        statements = split(sql, self.dialect, deadline)
        self._engine.execute_script(statements, deadline - monotonic(), self._retry)

    # -- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, timeout: float | None = None) -> Iterator[Transaction]:
        """Open a write transaction: ``with db.transaction() as tx: …``. The body is run once.

        It is committed when the block is left, and rolled back when an exception leaves it. Nobody else writes
        meanwhile, so keep it short; readers are not held up. The deadline covers the wait and every statement; after it
        the next statement raises. Where the work can be run again, `run_transaction` is faster under contention.
        """
        engine = self._engine
        block = engine.block(self._limit(timeout), self._retry)
        tx: Transaction | None = None
        try:
            tx = Transaction(engine, engine.begin(block), self._factory)
            yield tx
            tx.finish()
            engine.commit(block)
        except BaseException:
            block.left = True  # first, by a statement that no interrupt can come before
            if tx is not None:
                tx.close()
            engine.rollback(block)
            raise
        tx.call_back()

    def run_transaction(self, fn: Callable[..., T], /, *args: Any, timeout: float | None = None, **kwargs: Any) -> T:
        """Call ``fn(tx, *args, **kwargs)`` in a write transaction, in this thread; return its value, once committed.

        It may be run more than once before that (its transaction may be lost to a neighbour's fault), so it must have
        no effects but through ``tx``; others belong into ``tx.after_commit``. ``timeout`` is safedb's own: one meant
        for ``fn`` goes through `functools.partial`.
        """
        if not callable(fn):
            raise errors.InterfaceError(f"run_transaction takes a function of a transaction, not {fn!r}")
        engine, factory = self._engine, self._factory
        last: list[Transaction] = []

        def body(session: Any) -> T:
            tx = Transaction(engine, session, factory)
            last[:] = [tx]
            try:
                value = fn(tx, *args, **kwargs)
                if hasattr(value, "__await__") or hasattr(value, "gi_frame"):
                    getattr(value, "close", int)()  # else Python warns of a coroutine that was never awaited
                    raise errors.InterfaceError(
                        f"{fn!r} is a coroutine or generator function, whose call runs nothing: give a plain one"
                    )
                tx.finish()
                return value
            finally:
                tx.close()

        value = engine.run_function(body, self._limit(timeout), self._retry)
        last[0].call_back()
        return value

    def transactional(self, fn: Callable[Concatenate[Transaction, P], T]) -> Callable[P, T]:
        """Decorate ``fn(tx, …)``, so that calling it without ``tx`` runs it by `run_transaction`."""

        @functools.wraps(fn)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.run_transaction(functools.partial(fn, **kwargs), *args)

        return run

    @contextmanager
    def snapshot(
        self,
        *,
        max_age: float | None = None,
        serializable: bool = False,
        stale: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Snapshot]:
        """Fix one committed state and read it: ``with db.snapshot() as snap: …``.

        It never blocks a writer, nor waits for one; but while it is open the WAL cannot shrink. After ``max_age``
        seconds it is ended, and later reads raise. ``timeout`` holds for getting a reader, and for each statement.

        On PostgreSQL it is REPEATABLE READ, in which a report may show a state that no serial order of the writers has
        had; ``serializable=True`` is free of that, and may have to wait for those that write when it begins. On SQLite
        each state is serialisable. ``stale=True`` takes the state of a replica, where there is one.
        """
        engine, limit = self._engine, self._limit(timeout)
        age = None if max_age is None else check_timeout(max_age)
        ident = threading.get_ident()
        session = engine.open_snapshot(limit, age, serializable=serializable, stale=stale)
        try:
            with contextlib.closing(Snapshot(engine, session, self._factory, limit)) as snap:
                yield snap
        finally:
            session.left = True  # first, by a statement that no interrupt can come before
            engine.close_snapshot(session, ident)

    # -- house-keeping ------------------------------------------------------------------------------------------------

    def backup(
        self, dest: str | os.PathLike[str], progress: Progress | None = None, *, timeout: float | None = None
    ) -> None:
        """Copy one committed state into the file ``dest`` while reads and writes go on.

        An earlier backup of that name is replaced, at once and whole; any other file is refused.

        ``progress(done, total)`` is called with pages. The copy appears under its name only when it is complete.
        Without ``timeout`` it may take as long as it takes.
        """
        if not isinstance(dest, str | os.PathLike) or "\0" in os.fsdecode(dest):
            raise errors.ConfigError(f"backup takes the path of a file, without NUL characters, not {dest!r}")
        self._engine.backup(os.fsdecode(dest), progress, None if timeout is None else check_timeout(timeout))

    def checkpoint(self, *, timeout: float | None = None) -> None:
        """Move the log's content into the database now, and shrink the log as far as open snapshots allow."""
        self._engine.checkpoint(self._limit(timeout))

    def check(self, *, timeout: float | None = None) -> list[str]:
        """Look for damage and for broken references; return the findings (empty: all is well)."""
        return self._engine.check(None if timeout is None else check_timeout(timeout))

    def optimize(self, *, timeout: float | None = None) -> None:
        """Renew the statistics of the query planner; once a day, say, or after large changes."""
        self._engine.optimize(self._limit(timeout))

    def stats(self) -> Stats:
        """Show the database's engine at this moment."""
        return self._engine.stats()

    def close(self) -> None:
        """Close the handle; the last one on a file closes it. Idempotent.

        Calls under way in other threads are finished first, within `RetryPolicy.timeout`. Raises `ReentrancyError`, and
        leaves the handle as it was, where that would wait for the calling thread's own transaction.
        """
        with self._closing:
            if not self._open:
                return
            self._open = False
            engine, self._engine = self._engine, cast("Engine", _Closed(self._engine))
        try:
            self._close(self._timeout)
        except errors.ReentrancyError:
            self._engine, self._open = engine, True
            raise
        finally:
            if self._hook is not None and not self._open:
                engine.hooks.remove(self._hook)

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise errors.InterfaceError(
            f"{self!r} cannot be copied or pickled: its locks and threads belong to this process. Give the other "
            "process the URL, and let it connect; a forked child may use the handle that it inherits"
        )

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            warnings.warn(
                f"{self!r} was not closed: call close(), or use it in a with block", ResourceWarning, stacklevel=1
            )

    def _limit(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)

    def _listen(self, hook: Callable[[Event], Any]) -> None:
        self._hook = hook
        self._engine.hooks.add(hook)

    def _create(self, schema: str | Iterable[str], timeout: float) -> None:
        scripts = [schema] if isinstance(schema, str) else list(schema)
        statements = [statement for script in scripts for statement in split(script, self.dialect)]
        self._engine.execute_script(statements, timeout, self._retry)


class _Closed:
    """Stand where the engine was, and refuse every call."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.dialect = engine.dialect

    def __getattribute__(self, name: str) -> Any:
        if name in ("name", "dialect") or name.startswith("__"):
            return object.__getattribute__(self, name)
        raise errors.DatabaseClosed(f"this handle on {self.name} is closed; connect again")
