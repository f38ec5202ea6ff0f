"""Turns that share nothing: ``with db.transaction()`` blocks, and exclusive work (PRAGMA, VACUUM, DDL, scripts).

A block has the connection to itself from BEGIN to COMMIT and commits alone, so a slow body delays only those behind it
and holds back nobody's acknowledgement.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from safedb import errors
from safedb.config import ResolvedRetryPolicy
from safedb.retry import classify, is_unknown_commit
from safedb.sqlite.deserted import frames, is_on_stack
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.groups import Groups
from safedb.sqlite.jobs import Job
from safedb.sqlite.session import Session
from safedb.sqlite.turns import HOLDING, Turns
from safedb.sqlite.writer import DRIVER_ERRORS, RUNNING, Writer
from safedb.stats import Counters, Hooks, Overrun

T = TypeVar("T")


class Block(Job):
    """Be one block: a turn, an open transaction and the session that the user's code works with."""

    kind = "a transaction block"
    session: Session | None = None
    lent: weakref.ref[Lease] | None = None  # to user code, whose thread then is inside no call of safedb's
    left = False  # another thread left it
    owner: threading.Thread  # where it is lent

    def __str__(self) -> str:
        return "a transaction"

    @property
    def at_work(self) -> bool:
        """Tell whether its thread is in a call for it, or may come back to it; for the keeper."""
        wanted = self._is_wanted()
        if self.lent is not None and not wanted and self.session is not None:
            self.session.revoked = True  # before the look at the stack: what is not on it now will not begin any more
        if wanted or super().at_work:
            return True
        return self.session is not None and is_on_stack(self.thread, self.session, "self")

    def _is_wanted(self) -> bool:
        """Tell whether user code may come back to it."""
        lease = None if self.lent is None else self.lent()
        return lease is not None and not (lease.left or self.left) and self.lives

    @property
    def lives(self) -> bool:
        """Tell whether the thread that entered it lives; another may have its number by now."""
        return self.owner.is_alive() and self.thread in frames()

    def lend(self) -> Lease:
        """Give what user code holds."""
        self.owner = threading.current_thread()
        lease = Lease(self)
        self.lent = weakref.ref(lease)
        return lease


class Lease:
    """Be the one reference of user code to a block: when it goes, nobody will leave the block any more.

    ``left``: it is being left, and user code will not come back to it.
    """

    __slots__ = ("__weakref__", "block", "left")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.left = False


class Exclusive(Job):
    """Be one piece of exclusive work."""

    kind = "exclusive work (DDL, PRAGMA, a script, a checkpoint)"
    kept = False  # across a fork, while its thread is inside no call of safedb's

    @property
    def at_work(self) -> bool:
        """Tell whether its thread is still in the call that this is for; for the keeper."""
        return self.kept or super().at_work


class Blocks:
    """Give blocks and exclusive work their turns."""

    def __init__(self, turns: Turns, groups: Groups, writer: Writer, counters: Counters, hooks: Hooks) -> None:
        self._turns = turns
        self._groups = groups
        self._writer = writer
        self._counters = counters
        self._hooks = hooks

    def begin(self, block: Block) -> Session:
        """Take a turn and open a transaction; `commit` or `rollback` must follow in the same thread, whatever comes.

        The caller makes the block before it calls this, inside its ``try``: so there is no moment in which an interrupt
        could leave a turn with nobody who knows of it.
        """
        self.take(block)
        self._writer.begin(block.deadline, block.policy)
        session = block.session = Session(self._writer, deadline=block.deadline)
        session.open()
        return session

    def commit(self, block: Block) -> None:
        """Commit, and give up the turn in any case. When this returns the block's writes are durable.

        An exception from outside (KeyboardInterrupt) that comes after COMMIT has succeeded carries a note that says so.
        """
        writer = self._writer
        committing = False
        try:
            if block.session is not None:
                block.session.end()
            self._check_open()
            late = time.monotonic() - block.deadline
            committing = True
            writer.commit()
            doubt = writer.doubt()
            self._counters.committed(1)
        except sqlite3.Error as error:
            committing = False
            raise writer.failed_commit(error) from error
        except BaseException as interrupt:
            if committing and not writer.in_transaction:
                interrupt.add_note("safedb: the transaction that this interrupted is committed")
            raise
        finally:
            self._abandon(block)
        if doubt is not None:
            raise doubt
        what = "the body of a transaction block" if late > 0 else "COMMIT"
        late = time.monotonic() - block.deadline
        if late > 0:
            self._hooks.emit(Overrun(writer.name, what, late))

    def _check_open(self) -> None:
        if not self._writer.in_transaction:
            raise errors.TransactionAborted(
                f"an error ended the transaction on {self._writer.name}; nothing of it was kept"
            )

    def rollback(self, block: Block) -> None:
        """Roll back and give up the turn. Never raises; idempotent.

        In another thread than that which entered it (it was left there, or forgotten, and is collected) the keeper is
        asked to: that thread may be in the middle of anything.
        """
        if block.lent is not None and block.owner is not threading.current_thread():
            block.left = True
        else:
            self._abandon(block)

    @contextmanager
    def exclusive(self, job: Exclusive, *, until: float | None = None, closing: bool = False) -> Iterator[Writer]:
        """Lend the writer's connection, outside a transaction, by the job's deadline, watched ``until`` (or that).

        The caller keeps the job in a variable for as long as it uses the connection: by that the keeper knows.
        ``closing``: the connection is only closed, for which another process is not waited for longer than a moment.
        """
        writer = self._writer
        try:
            self.take(job)
            if closing:
                writer.lock_for_a_moment()
            else:
                writer.lock(job.deadline)
            writer.watch.enter(RUNNING, job.deadline if until is None else until)
            yield writer
        finally:
            self._abandon(job)

    def alone(
        self,
        deadline: float,
        policy: ResolvedRetryPolicy,
        work: Callable[[Writer], T],
        *,
        doing: str,
        until: float | None = None,
        commits: bool = False,
    ) -> T:
        """Run ``work`` outside a transaction; wait for programs that do not know safedb, and classify errors.

        ``commits``: the work is a statement that commits by itself, so its failure may be one of COMMIT (H14).
        """
        job = Exclusive(deadline, policy)
        with self.exclusive(job, until=until) as writer:
            try:
                try:
                    return work(writer)
                except sqlite3.Error as error:
                    if not writer.may_begin_again(error) or time.monotonic() >= deadline:
                        raise
                    result: T = writer.wait_for_foreigners(lambda: work(writer), deadline, policy)
                    return result
            except errors.Error:
                raise
            except DRIVER_ERRORS as error:
                if commits and is_unknown_commit(error):
                    raise writer.failed_commit(error) from error
                raise classify(error, doing=doing) from error

    def take(self, job: Job) -> None:
        """Take a turn by the job's deadline, or raise."""
        self._writer.check_process()
        self._groups.refuse_own_queue()
        if self._turns.take(job, job.deadline) is not HOLDING or time.monotonic() >= job.deadline:
            raise self._groups.too_late(job)
        self._groups.note_turn(job)

    def _abandon(self, job: Job) -> None:
        """Roll back what is open, let others write. Idempotent; does nothing for a job that has no turn.

        The turn goes last, and only if all went well: where an interrupt comes first, the keeper does it again.
        """
        if self._turns.holder is job:
            self._writer.rollback()
            self._writer.release()
        self._turns.leave(job)
