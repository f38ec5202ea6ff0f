"""What user code holds inside a write transaction: statements and savepoints, watched and revocable."""

from __future__ import annotations

import math
import time

from safedb import errors
from safedb.retry import INTERRUPT, classify, code_of
from safedb.sql import Statement, shorten
from safedb.sqlite.writer import DRIVER_ERRORS, RUNNING, USER, Outcome, Values, Writer


class Restart(BaseException):
    """Unwind a function whose transaction was taken from it: it is run again. Not for user code to see.

    A BaseException, so that ``except Exception`` in the function does not swallow it; if it is swallowed all the same,
    the next call raises it again, and so does the function's end.
    """


class Session:
    """Run statements in the open transaction, for the thread that has the turn.

    Each statement tells the watch that it runs (so that the keeper may interrupt it when it is overdue) and, when it is
    done, that the thread is back in user code (so that the keeper may revoke the session, where the transaction is
    shared).
    """

    __slots__ = ("_busy", "_deadline", "_restartable", "_until", "_writer", "lost", "revoked")

    def __init__(
        self, writer: Writer, *, deadline: float, until: float | None = None, restartable: bool = False
    ) -> None:
        self._writer = writer
        self._deadline = deadline  # the job's own
        self._until = deadline if until is None else until  # the group's, which may be earlier
        self._restartable = restartable  # in a group an interrupt before the own deadline is not this job's fault
        self._busy = False  # a statement is under way
        self.revoked = False
        self.lost: BaseException | None = None  # what ended the whole transaction, if anything did

    def open(self) -> None:
        """Hand the transaction over to user code."""
        self._writer.watch.enter(USER, self._until)

    def end(self) -> None:
        """Take the transaction back from user code, or raise `Restart` if the keeper has taken it already."""
        watch = self._writer.watch
        with watch.guard:
            self._check()
            watch.phase, watch.until = RUNNING, math.inf

    def _check(self) -> None:
        if self.revoked:
            if self._restartable:
                raise Restart
            raise errors.TransactionAborted(
                f"this transaction on {self._writer.name} was rolled back: another thread has left its block"
            )

    def run(self, statement: Statement, values: Values, *, many: bool = False) -> Outcome:
        """Run one statement of the user's; past the deadline none is begun, however short it would be."""
        if time.monotonic() >= self._deadline:
            raise errors.QueryCanceled(
                f"{shorten(statement.source)}: the deadline of this transaction on {self._writer.name} had passed "
                "before it began, so it was not run. Do slow work before or after the transaction, or raise the "
                "timeout",
                retryable=True,
            )
        return self._run(statement.sql, values, many=many)

    def _run(self, sql: str, values: Values, *, many: bool = False) -> Outcome:
        """Run one statement; an error comes classified, and `lost` says whether it ended the transaction."""
        if self._busy:
            raise errors.ReentrancyError(
                f"a statement of this transaction on {self._writer.name} is under way: an SQL function or a signal "
                "handler that runs inside it cannot run another. Let it only compute"
            )
        self._busy = True
        try:
            return self._run_watched(sql, values, many=many)
        finally:
            self._busy = False

    def _run_watched(self, sql: str, values: Values, *, many: bool) -> Outcome:
        writer, watch = self._writer, self._writer.watch
        with watch.guard:
            self._check()
            watch.phase, watch.until = RUNNING, self._until
        try:
            return writer.run_many(sql, values) if many else writer.run(sql, values)
        except DRIVER_ERRORS as error:
            self._failed(error)
            raise classify(error, doing=shorten(sql)) from error
        finally:
            with watch.guard:
                watch.phase = USER

    def _failed(self, error: BaseException) -> None:
        interrupted = code_of(error) == INTERRUPT
        if interrupted or not self._writer.in_transaction:
            self.lost = error
        if interrupted and self._restartable and time.monotonic() < self._deadline:
            raise Restart from None

    def savepoint(self, name: str) -> None:
        """Set a savepoint; the caller nests them properly and chooses unique names (H46a)."""
        self._run(f"SAVEPOINT {name}", ())

    def rollback_to(self, name: str) -> None:
        """Undo what came since the savepoint, and remove it."""
        if self._writer.in_transaction:
            self._run(f"ROLLBACK TO {name}", ())
            self._run(f"RELEASE {name}", ())

    def release(self, name: str) -> None:
        """Remove the savepoint and keep what came since."""
        self._run(f"RELEASE {name}", ())
