"""What a turn is for: jobs (tickets with work, and in the end an outcome), and the group that shares a transaction.

Plain data, but for where a job says who has to run it: any thread (a statement), its own (a function), nobody else
beside it (a block, exclusive work).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import get_ident
from typing import Any

from safedb.config import ResolvedRetryPolicy
from safedb.sqlite.deserted import is_on_stack
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.session import Session
from safedb.sqlite.turns import Ticket
from safedb.sqlite.writer import Outcome, Values, Writer


class Job(Ticket):
    """Be a ticket with a deadline (monotonic seconds) and, in the end, an outcome: a value or an error."""

    kind = "a write"
    value: Any = None
    error: BaseException | None = None
    changes: int | None = None  # rows that the connection had changed before this was run alone

    def __init__(self, deadline: float, policy: ResolvedRetryPolicy) -> None:
        self.deadline = deadline
        self.policy = policy
        self.thread = get_ident()

    @property
    def alone(self) -> bool:
        """Tell whether this job shares its transaction with nobody."""
        return not (self.boards or self.joins)

    @property
    def at_work(self) -> bool:
        """Tell whether its thread is still inside the call that this job belongs to; for the keeper."""
        return is_on_stack(self.thread, self, "job", "block")

    def run_alone(self) -> None:
        """Share no more transactions."""
        self.boards = self.joins = False

    def forget(self) -> None:
        """Drop the outcome of a discarded run."""
        self.value = self.error = None


class StatementJob(Job):
    """Be one statement with plain values: no user code, so any thread may run it.

    ``many``: values are those of many rows. ``row``: where in the text of an INSERT its one row of
    plain values stands; it changes one row or none, and returns nothing.
    """

    kind = "a statement"
    boards = True

    def __init__(
        self,
        sql: str,
        values: Values,
        deadline: float,
        policy: ResolvedRetryPolicy,
        *,
        many: bool = False,
        row: tuple[int, int] | None = None,
    ) -> None:
        self.sql = sql
        self.values = values
        self.many = many
        self.row = row
        self.deadline = deadline
        self.policy = policy
        self.thread = get_ident()

    def run(self, writer: Writer) -> Outcome:
        """Run the statement on the writer's connection."""
        return writer.run_many(self.sql, self.values) if self.many else writer.run(self.sql, self.values)


class FunctionJob(Job):
    """Be a function of the user's: it runs in its own thread, and may be run again."""

    kind = "a function"
    joins = True

    def __str__(self) -> str:
        return "a function of run_transaction"

    def __init__(self, body: Callable[[Session], Any], deadline: float, policy: ResolvedRetryPolicy) -> None:
        super().__init__(deadline, policy)
        self.body = body


class Group:
    """Be one open transaction and the jobs that share it: those that ran, and the one that is in the way."""

    __slots__ = (
        "aboard",
        "began",
        "careful",
        "committing",
        "current",
        "failure",
        "full",
        "members",
        "session",
        "until",
    )

    def __init__(self, *, careful: bool, began: float) -> None:
        self.members: list[Job] = []
        self.aboard: list[Job] = []  # everybody who was ever taken in: what they wait for is told by their state
        self.careful = careful
        self.began = began
        self.committing = False  # COMMIT was called, and has not raised
        self.full = False  # takes nobody in any more
        self.failure: sqlite3.Error | None = None  # what COMMIT raised
        self.current: Job | None = None
        self.session: Session | None = None  # lent to the function that runs now
        self.until = math.inf
