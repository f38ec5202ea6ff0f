"""What user code holds inside a block: `Transaction`, its savepoints, and `Snapshot`. The same on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from safedb import errors
from safedb.engine import Engine, SessionLike, SnapshotLike
from safedb.result import Result
from safedb.rows import RowFactory, tuple_row
from safedb.sql import Statement


class Transaction:
    """Write in one transaction: all of it is kept, or nothing.

    It belongs to the thread that entered it, and ends with its block. After an error from the database it accepts
    nothing more (`TransactionAborted`), until it is rolled back, or to a savepoint; leaving the block then raises. What
    is refused before it is sent (a wrong parameter, BEGIN, …) does no harm.
    """

    def __init__(self, engine: Engine, session: SessionLike, factory: RowFactory[Any]) -> None:
        self._engine = engine
        self._session = session
        self._factory = factory
        self._ident = threading.get_ident()
        self._names = 0
        self._open = True
        self._callbacks: list[Callable[[], Any]] = []
        self._savepoints: list[Savepoint] = []  # the open ones, the innermost last
        self._poison: BaseException | None = None

    def __repr__(self) -> str:
        state = "ended" if not self._open else "aborted" if self._poison else "open"
        return f"<Transaction on {self._engine.name}, {state}>"

    def execute(self, sql: str, params: Any = None) -> Result:
        """Run one statement. Its rows are there at once; they are durable only when the block has been left."""
        self._check()
        statement = self._engine.statement(sql)
        values = statement.bind(params)
        fetched = self._run(statement, values, many=False)
        return Result(self._engine.decoded(statement, fetched), self._factory)

    def executemany(self, sql: str, params_seq: Iterable[Any]) -> int:
        """Run one statement for each of ``params_seq``; return the sum of the row counts."""
        self._check()
        statement = self._engine.many(sql)
        check_rows(params_seq)
        rows = [statement.bind(params) for params in params_seq]
        return self._run(statement, rows, many=True)[2] if rows else 0

    def savepoint(self) -> Savepoint:
        """Open a part that rolls back alone: ``with tx.savepoint(): …``."""
        self._check()
        return Savepoint(self)

    def after_commit(self, callback: Callable[[], Any]) -> None:
        """Call ``callback`` once, in this thread, after the commit is acknowledged; never for a run that is discarded.

        The place for side effects of functions that may be run again. What is registered inside a savepoint goes with
        it when it is rolled back.
        """
        self._check()
        if not callable(callback):
            raise errors.InterfaceError(f"after_commit takes a callable, not {callback!r}")
        self._callbacks.append(callback)

    # -- for the owner of the block -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """End it; raise `TransactionAborted` where an error was swallowed."""
        self._open = False
        self._check_thread()
        if self._poison is not None:
            raise errors.TransactionAborted(
                f"the transaction on {self._engine.name} was rolled back, because a statement in it had failed "
                f"({self._poison}); let the error leave the block, or catch it outside of a tx.savepoint()"
            ) from self._poison

    def close(self) -> None:
        """End it without a word."""
        self._open = False

    def call_back(self) -> None:
        """Run what `after_commit` was given. Each is run, whatever the others raise; the first error is raised."""
        first: BaseException | None = None
        for callback in self._callbacks:
            try:
                callback()
            except BaseException as error:  # noqa: BLE001 - the others are run all the same
                first = first or error
        if first is not None:
            first.add_note("safedb: this came from an after_commit callback; the transaction itself is committed")
            raise first

    def _run(self, statement: Statement, values: Sequence[Any], *, many: bool) -> Any:
        try:
            return self._session.run(statement, values, many=many)
        except errors.ReentrancyError:  # nothing was sent
            raise
        except BaseException as error:  # after an interrupt nobody knows whether the statement has run
            self._poison = error
            raise

    def _check(self) -> None:
        self._check_thread()
        if not self._open:
            raise errors.DatabaseClosed(f"this transaction on {self._engine.name} has ended; open another")
        if self._poison is not None:
            raise errors.TransactionAborted(
                f"an earlier statement of this transaction on {self._engine.name} failed ({self._poison}): it accepts "
                "nothing more until it is rolled back, or to a savepoint"
            ) from self._poison

    def _check_thread(self) -> None:
        if threading.get_ident() != self._ident:
            raise errors.InterfaceError(
                "this transaction belongs to the thread that entered it; open one in the thread that needs it"
            )


class Savepoint:
    """Be a part of a transaction that can be rolled back alone."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._name = ""
        self._callbacks = 0  # how many there were when it was set

    def __enter__(self) -> Savepoint:
        tx = self._transaction
        tx._check()
        if self in tx._savepoints:
            raise errors.InterfaceError("this savepoint is open already: make another with tx.savepoint()")
        tx._names += 1
        self._name = f"safedb_{tx._names}"  # unique: a reused name would nest (H46a)
        try:
            tx._session.savepoint(self._name)
        except errors.Error as error:
            tx._poison = error
            raise
        self._callbacks = len(tx._callbacks)
        tx._savepoints.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tx = self._transaction
        tx._check_thread()
        if not tx._open:
            return
        if not tx._savepoints or tx._savepoints[-1] is not self:
            raise errors.InterfaceError("this savepoint is not the innermost open one: leave each once, the last first")
        tx._savepoints.pop()
        poison = tx._poison
        if error is None and poison is None:
            self._end(tx, tx._session.release)
            return
        del tx._callbacks[self._callbacks :]
        if tx._session.lost is not None:
            return  # the whole transaction goes
        if not isinstance(error, Exception | None):
            self._undo_after_interrupt(tx)
            return
        self._end(tx, tx._session.rollback_to)
        tx._poison = None
        if error is None:
            raise errors.TransactionAborted(
                f"the savepoint was rolled back, because a statement in it had failed ({poison}) and the error did not "
                "leave it; the transaction around it can be used"
            ) from poison

    def _undo_after_interrupt(self, tx: Transaction) -> None:
        """Roll back as after any error; where that fails the whole transaction goes, whoever catches the interrupt."""
        try:
            tx._session.rollback_to(self._name)
        except errors.Error as failure:
            tx._poison = failure
        else:
            tx._poison = None

    def _end(self, tx: Transaction, how: Callable[[str], None]) -> None:
        try:
            how(self._name)
        except errors.Error as error:
            tx._poison = error
            raise


class Snapshot:
    """Read one committed state, however long and however many statements. It belongs to the thread that entered it."""

    def __init__(self, engine: Engine, session: SnapshotLike, factory: RowFactory[Any], timeout: float) -> None:
        self._engine = engine
        self._session = session
        self._factory = factory
        self._timeout = timeout
        self._ident = threading.get_ident()
        self._open = True

    def __repr__(self) -> str:
        return f"<Snapshot of {self._engine.name}{', ended' * (not self._open)}>"

    def execute(self, sql: str, params: Any = None) -> Result:
        """Run one read, to its last row, within the snapshot's ``timeout`` for each statement."""
        self._check()
        statement = self._engine.statement(sql)
        fetched = self._session.run(statement, statement.bind(params), self._timeout)
        return Result(self._engine.decoded(statement, fetched), self._factory)

    def iterate(self, sql: str, params: Any = None, *, batch: int = 1000) -> Iterator[Any]:
        """Give the rows of one read one by one, holding ``batch`` of them in memory.

        Close the iterator, or read it to its end, before the snapshot ends; it must stay in its thread.
        """
        self._check()
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise errors.InterfaceError(f"batch = {batch!r} is no number of rows; give 1 or more")
        statement = self._engine.statement(sql)
        values = statement.bind(params)
        return Rows(self._check, self._rows(statement, values, batch))

    def _rows(self, statement: Statement, values: Sequence[Any], batch: int) -> Iterator[Any]:
        batches = self._session.iterate(statement, values, batch, self._timeout)
        try:
            for rows, description in batches:
                fetched = self._engine.decoded(statement, (rows, description, len(rows)))
                yield from Result(fetched, self._factory).fetchall()
        finally:
            batches.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        """End it."""
        self._open = False

    def _check(self) -> None:
        if threading.get_ident() != self._ident:
            raise errors.InterfaceError(
                "this snapshot belongs to the thread that entered it; open one in the thread that needs it"
            )
        if not self._open:
            raise errors.DatabaseClosed(f"this snapshot of {self._engine.name} has ended; open another")


class Rows(Iterator[Any]):
    """Give rows one by one.

    What is refused is refused before the generator is entered: an error in there would end it, and the owner would see
    a result that is shorter and looks whole.
    """

    def __init__(self, check: Callable[[], None], rows: Iterator[Any]) -> None:
        self._check = check
        self._rows = rows
        self._failure: BaseException | None = None

    def __next__(self) -> Any:
        self._check()
        if self._failure is not None:  # the generator has ended with it, and would now say that there are no more rows
            raise self._failure
        try:
            return next(self._rows)
        except errors.Error as error:
            self._failure = error
            raise

    def close(self) -> None:
        """Read no more, and let go of what is open."""
        self._rows.close()  # type: ignore[attr-defined]


def check_rows(params_seq: object) -> None:
    """Refuse what `executemany` cannot take rows of parameters from."""
    if not isinstance(params_seq, Iterable):
        raise errors.ProgrammingError(
            f"executemany takes an iterable of parameters, one for each row, not {type(params_seq).__name__}"
        )


__all__ = ["Savepoint", "Snapshot", "Transaction", "check_rows", "tuple_row"]
