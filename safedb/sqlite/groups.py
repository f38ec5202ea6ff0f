"""Running a turn: group commit, its outcomes, and what happens when a member fails, is late, or spoils the group.

A `Job` is a ticket with work. `Groups.submit` brings it to its verdict: it takes a turn and serves itself and whoever
stands behind it, or another thread does its work for it. **No outcome leaves before COMMIT has returned**: results,
database errors and exceptions from functions alike, because each may rest on a neighbour's row.

The life of a group, drawn for a leader L, two statements S1 and S2, and a function F::

    L                              S1, S2 (asleep)          F (asleep)
    take: HOLDING
    side files, BEGIN IMMEDIATE
    own statement
    board: S1                      S1 ABOARD
    S1's statement
    board: nobody … head is F
    pass_on: L ABOARD, sleeps                               HOLDING, with the open group
                                   S2 arrives: queued       SAVEPOINT, the function, RELEASE
                                                            board: S2; SAVEPOINT, statement, RELEASE
                                                            queue empty, or the time is up: COMMIT
    SERVED                         SERVED                   settles all, gives the turn on

**Optimism.** Members run without savepoints at first. If one fails, the transaction is rolled back and the same members
run again with a SAVEPOINT each (`_run_carefully`), so that each has its own verdict; that run takes nobody in. After
such a failure the next groups start with savepoints at once.

**Discarded runs.** There is one way to discard a run, whoever does it: roll back, *then* settle those whose verdict is
certain, *then* put the others back at the front of the queue, *then* give up the turn. Their outcomes are forgotten,
and they take turns like anybody else. Two flags keep it finite:

- a *lost* group (an error that ended the whole transaction, a COMMIT that failed, a deferred constraint): everybody is
  put back to run **alone**; who fails alone has its verdict.
- a *break-up* (a deadline or the group's patience passed before COMMIT began): who is in the way runs alone from then
  on, who is overdue gets `LockTimeout`, the rest form groups as before.

**Break-up, against COMMIT.** The keeper interrupts under the watch's guard, and the phase goes to COMMITTING under the
same guard. So either the interrupt comes first, and the statement under way fails; or COMMIT has begun, and everybody
waits for its verdict::

    driver                                   keeper
                                             guard: RUNNING, overdue → interrupt
    statement raises INTERRUPT
    discard: roll back, put back, …
    ------------------------------------------------------------------------ or
    guard: COMMITTING
                                             guard: COMMITTING → nothing
    COMMIT returns, all are settled
    ------------------------------------------------------------------------ or
    (in the user's function)                 guard: USER, overdue → revoke the function's session, roll back,
                                             put the others back, depose the driver
    next tx call: guard: revoked → Restart
    the function's job takes a turn, alone

**An interrupt, against a group that is passed on.** Where a second interrupt has kept a function's thread from leaving
the queue after the first, an open group may come to it while it gives up what it has. Nobody gives up a turn with
luggage, for others wait for what is in there::

    A (drives a group)                       F (in the queue; interrupted in `take`, and again in `_rescue`)
                                             finally: it has no turn, so nothing to abandon
    pass_on: F is HOLDING, A is ABOARD
                                             leave: there is luggage, so the turn stays
                                             it has the turn: abandons the group, A's work is put back
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from threading import get_ident
from time import monotonic, sleep
from typing import Any, cast

from safedb import errors
from safedb.retry import INTERRUPT, classify, code_of, is_busy, is_unknown_commit
from safedb.sql import shorten
from safedb.sqlite.alike import Alike
from safedb.sqlite.connections import SLICE
from safedb.sqlite.deserted import is_on_own_stack
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.jobs import FunctionJob, Group, Job, StatementJob
from safedb.sqlite.session import Restart, Session
from safedb.sqlite.turns import ABOARD, CROWDED, HOLDING, LOBBY, NEW, SERVED, WAITING, Ticket, Turns
from safedb.sqlite.writer import (
    DRIVER_ERRORS,
    IDLE,
    NO_ROWS,
    RUNNING,
    STUBBORN,
    UNSTOPPABLE,
    USER,
    Outcome,
    Writer,
)
from safedb.stats import Counters, Hooks, Overrun, Retried, SlowWait

SLOW_WAIT = 1.0  # seconds in the queue after which an event tells of it
SLOW_COMMIT = 0.01  # seconds from which on a COMMIT is looked at: was it late for anybody?
SLOW_FLUSH = 0.0005  # seconds: below this nobody waits for company
ONE_ROW: Outcome = (NO_ROWS, None, 1)
SUSPICION = 16  # groups that start with savepoints after one that had to be run again


class _Discarded(Exception):
    """Say, inside this module, that the run was rolled back and its members are back in the queue."""


class _NotOneEach(Exception):
    """Say, inside this module, that statements which were run at once did not change one row each."""


class Groups:
    """Serve jobs by turns, many in one transaction where that is possible.

    ``most``: members of a group; ``time_limit``: seconds after BEGIN from which nobody is taken in; ``patience``:
    seconds after BEGIN from which whoever is in the way of the others is broken off.
    """

    def __init__(
        self,
        turns: Turns,
        writer: Writer,
        counters: Counters,
        hooks: Hooks,
        *,
        most: int = 512,
        time_limit: float = 0.02,
        patience: float = 0.1,
    ) -> None:
        self._turns = turns
        self._writer = writer
        self._counters = counters
        self._hooks = hooks
        self._most = most
        self._time_limit = time_limit
        self._patience = patience
        self._suspicious = 0  # this many groups still start with savepoints
        self._company = 1  # the size of the last group
        self._flush = 0.0  # seconds: a moving average of what COMMIT takes
        self._alike = Alike()
        self._open: Group | None = None  # the group whose transaction is open; for the keeper
        self._seen: Ticket | None = None  # who was next when the keeper looked last
        self._mending = threading.Lock()
        self._main = threading.main_thread().ident  # a forked child makes all this anew

    # -- from a job to its verdict ------------------------------------------------------------------------------------

    def submit(self, job: Job) -> Any:
        """Bring ``job`` to its verdict: return its value, or raise its error."""
        self._writer.check_process()  # before any lock: a fork may have copied it held
        self.refuse_own_queue()
        try:
            state = self._turns.take(job, job.deadline)
            while state is HOLDING:
                self._serve(job)
                if job.state is SERVED:
                    if job.signal is not None:  # it passed the group on, and already has its verdict
                        self._turns.call_follower(job)
                    break
                again = self._turns.take if job.state is NEW else self._turns.wait  # NEW: it was deposed
                state = again(job, job.deadline)
        except BaseException as interrupt:
            try:
                self._rescue(job, interrupt)
            finally:
                self._give_up(job)
            raise
        holder = self._turns.holder
        if holder is job or (holder is None and self._turns.queue):  # somebody was interrupted on the way to the next
            self._give_up(job)
        if job.state is not SERVED:
            raise self.too_late(job)
        if job.error is not None:
            raise job.error
        return job.value

    def _give_up(self, job: Job) -> None:
        """Give up whatever ``job`` still has (the turn, an open group, its place in the queue), and call the next."""
        self._turns.call_follower(job)
        if self._turns.holder is job:
            self._abandon(job, self._open)
        self._turns.leave(job)
        if self._turns.holder is job:  # an open group came in between
            self._abandon(job, self._open)

    def refuse_own_queue(self) -> None:
        """Raise where this thread is inside the queue already, below in its stack: it would wait for itself.

        To look costs as much as a write, so it is done where it may be so: while somebody is in the critical section,
        or while somebody waits and this is the main thread, whose signal handlers run in the middle of its wait.
        """
        turns = self._turns
        if not turns.locked() and not (turns.queue and get_ident() == self._main):
            return
        if is_on_own_stack(self._turns, "self"):
            raise errors.ReentrancyError(
                f"this thread is about to write to {self._writer.name}, or has just done so: a signal handler, or a "
                "__del__ that the garbage collector runs, cannot do the same in between. Let it set a flag, or hand "
                "the work to another thread"
            )

    def too_late(self, job: Job) -> errors.Error:
        """Make the error for a job whose deadline passed before it had its turn."""
        waited = monotonic() - job.arrived if job.arrived else 0.0  # (it never queued: the deadline was over at once)
        if job.state is CROWDED:
            return errors.QueueFull(
                f"the queue of writers of {self._writer.name} stayed full for {waited:.3f} s; write from fewer "
                "threads, or raise the timeout or max_waiting"
            )
        return errors.LockTimeout(
            f"waited {waited:.3f} s for a turn to write to {self._writer.name}, behind {self.behind(job)}; make "
            "transactions shorter, or raise the timeout"
        )

    def behind(self, job: Ticket | None = None) -> str:
        """Describe who has the turn, for messages."""
        holder = self._turns.holder
        if isinstance(holder, Job) and holder is not job:
            return f"{holder.kind} of thread {thread_name(holder.thread)}"
        waiting = self._turns.waiting
        return f"{waiting} waiting writers" if waiting else "nobody: the deadline was over before it began"

    def _rescue(self, job: Job, interrupt: BaseException) -> None:
        """Leave nobody behind when an exception reaches a thread whose job is under way for others too."""
        if job.state in (WAITING, LOBBY, ABOARD):  # leave the queue, unless the turn has come with a group meanwhile;
            self._turns.wait(job, 0.0)  # once aboard, its work may be committed at any moment: wait for the verdict
        if job.state is HOLDING and isinstance(job.luggage, Group):
            group, job.luggage = job.luggage, None
            with contextlib.suppress(_Discarded):
                self._drive(job, group)
        if (job.state is SERVED and job.error is None) or self._was_kept(job):
            interrupt.add_note("safedb: the write that this interrupted is committed")

    def _was_kept(self, job: Job) -> bool:
        """Tell whether a statement that ran alone has changed something: there was no COMMIT to see."""
        writer = self._writer
        if self._turns.holder is not job or job.changes is None or job.error is not None:
            return False
        writer.rollback()  # ends it, where an interrupt came between its rows
        return writer.changes != job.changes

    # -- serving ----------------------------------------------------------------------------------------------------

    def _serve(self, job: Job) -> None:
        """Use the turn that ``job`` has just been given, for itself and for others, and give it up."""
        self.note_turn(job)
        group = job.luggage
        if group is not None:
            job.forget()
            self._lead(job, cast("Group", group))
        elif job.arrived and monotonic() >= job.deadline:
            job.error = self.too_late(job)
            self._finish(job)
        elif type(job) is StatementJob and self._is_lone(job):
            self._run_lone(job)
        else:
            job.forget()
            self._lead(job, None)

    def note_turn(self, job: Job) -> None:
        """Count a turn, and how long it was waited for."""
        self._counters.turns += 1
        if job.arrived:
            self._note_wait(job, monotonic())

    def _note_wait(self, job: Ticket, now: float) -> None:
        waited = now - job.arrived
        self._counters.waits.add(waited)
        if waited > SLOW_WAIT:
            self._hooks.emit(SlowWait(self._writer.name, waited, self.behind(job)))

    def _board(self, group: Group, *, beside: int = 0) -> list[StatementJob]:
        """Take in the statements that wait, and count how long they did; ``beside`` others are in already."""
        boarded = self._turns.board(self._most - len(group.members) - beside, group.aboard)
        if boarded:
            now = monotonic()
            waits = [now - ticket.arrived for ticket in boarded]
            if max(waits) > SLOW_WAIT:
                for ticket in boarded:
                    self._note_wait(ticket, now)
            else:
                self._counters.waits.add_many(waits)
        return cast("list[StatementJob]", boarded)

    def _finish(self, job: Job) -> None:
        """Settle the holder's own job and give up the turn."""
        job.settle()
        self._turns.leave(job)

    def _is_lone(self, job: StatementJob) -> bool:
        """Tell whether to spare BEGIN and COMMIT: nobody waits, and nobody came along last time."""
        return not job.many and (self._company == 1 or job.alone) and not self._turns.queue

    def _run_lone(self, job: StatementJob) -> None:
        """Run one statement as its own transaction (autocommit): BEGIN IMMEDIATE and COMMIT would do no more for it."""
        writer, watch = self._writer, self._writer.watch
        try:
            writer.lock(job.deadline)
            watch.until = job.deadline
            job.changes = writer.changes
            try:
                job.value = writer.run(job.sql, job.values)
            except DRIVER_ERRORS as error:
                self._lone_failed(job, error)
            finally:
                watch.until = math.inf
                writer.unlock()
        except errors.Error as error:
            job.error = error
        if job.error is None:
            self._counters.committed(1)
        self._finish(job)

    def _lone_failed(self, job: StatementJob, error: BaseException) -> None:
        """Run it again where nothing has been done: BUSY comes first of all, and what is interrupted is undone."""
        writer = self._writer
        try:
            if not writer.may_begin_again(error) or monotonic() >= job.deadline:
                raise error
            job.value = writer.wait_for_foreigners(lambda: writer.run(job.sql, job.values), job.deadline, job.policy)
        except sqlite3.Error as final:
            if is_unknown_commit(final):  # in autocommit only the commit syncs
                raise writer.failed_commit(final) from final
            writer.rollback()
            if is_busy(final):  # the first try, in SQLite's own wait, took all the time there was
                raise writer.held_by_foreigners(final, monotonic() - job.arrived if job.arrived else SLICE) from final
            own = _is_interrupt(final)
            job.error = self._canceled(job, final) if own else classify(final, doing=shorten(job.sql))
        except DRIVER_ERRORS as final:
            job.error = classify(final, doing=shorten(job.sql))

    # -- leading a group --------------------------------------------------------------------------------------------

    def _lead(self, job: Job, group: Group | None) -> None:
        """Open a group (or go on with the one that came with the turn), do the own work in it, and drive it on."""
        writer = self._writer
        try:
            job.luggage = None
            if group is None:
                self._turns.await_delivery()
                try:
                    writer.begin(job.deadline, job.policy)
                except errors.Error as error:
                    job.error = error
                    self._finish(job)
                    return
                group = self._open = Group(careful=self._suspicious > 0, began=monotonic())
                group.full = job.alone
                group.aboard.append(job)
            elif monotonic() >= job.deadline:
                job.error = self.too_late(job)
                job.settle()
                self._drive(job, group)
                return
            else:
                group.aboard.append(job)
            if isinstance(job, FunctionJob):
                self._run_function(job, group)
            else:
                own = cast("StatementJob", job)
                self._run_members([own, *(() if group.full else self._board(group, beside=1))], group)
            self._drive(job, group)
        except _Discarded:
            self._turns.leave(job)
        except BaseException:
            self._abandon(job, group)
            raise

    def _drive(self, job: Job, group: Group) -> None:
        """Take in whoever comes, until nobody comes or the time is up; then commit, or let a function drive on."""
        turns = self._turns
        while not (group.full or self._is_full(group)):  # also before the first look: the own work may have taken long
            boarded = self._board(group)
            if boarded:
                self._run_members(boarded, group)
            elif turns.pass_on(job, group):
                return
            elif not self._wait_for_company(group):
                break
        self._commit(job, group)

    def _is_full(self, group: Group) -> bool:
        return len(group.members) >= self._most or monotonic() - group.began > self._time_limit

    def _wait_for_company(self, group: Group) -> bool:
        """Pause a little before COMMIT on a slow disk, while groups were larger of late; return whether to look again.

        As PostgreSQL's commit_delay (https://www.postgresql.org/docs/current/wal-configuration.html), but adaptive.
        """
        if self._flush < SLOW_FLUSH or len(group.members) >= self._company:
            return False
        if monotonic() - group.began > self._flush:
            return False
        sleep(self._flush / 8)
        return True

    def _run_members(self, jobs: list[StatementJob], group: Group) -> None:
        """Run statements of others (or the leader's own) in the open transaction."""
        self._watch_members(jobs, group)
        position = 0
        while position < len(jobs):
            if group.members and self._is_full(group):
                group.full = True
                self._turns.put_back(jobs[position:])
                return
            batch = jobs[position : position + 1] if group.careful else self._alike.run_at(jobs, position)
            position += len(batch)
            group.current = batch[0] if len(batch) == 1 else None
            try:
                self._run_batch(batch, group)
            except (*DRIVER_ERRORS, _NotOneEach) as error:
                if len(batch) > 1:
                    self._alike.forgo(batch[0])
                if group.careful or not self._writer.in_transaction or _is_interrupt(error):
                    self._discard(group, [*group.members, *batch, *jobs[position:]], error)
                self._turns.put_back(jobs[position:])
                self._run_carefully([*group.members, *batch], group)
                return
            group.current = None
            group.members += batch

    def _watch_members(self, jobs: list[StatementJob], group: Group) -> None:
        until = min(group.until, min([job.deadline for job in jobs]))
        if group.members or len(jobs) > 1:
            until = min(until, group.began + self._patience)
        group.until = until
        self._writer.watch.enter(RUNNING, until)

    def _run_batch(self, batch: list[StatementJob], group: Group) -> None:
        """Run one statement, or many INSERTs of one row as one (`alike`)."""
        if len(batch) == 1:
            self._run_member(batch[0], group)
            return
        sql = self._alike.text_of(batch[0], len(batch))
        _, _, count = self._writer.run(sql, [value for job in batch for value in job.values])
        if count != len(batch):  # one was ignored, or a view's trigger took it: who, shows only one by one
            raise _NotOneEach
        for job in batch:
            job.value = ONE_ROW

    def _run_member(self, job: StatementJob, group: Group) -> None:
        if not group.careful:
            job.value = job.run(self._writer)
            return
        run = self._writer.run
        run("SAVEPOINT safedb_member", ())
        try:
            job.value = job.run(self._writer)
            job.error = None
        except DRIVER_ERRORS as error:
            if not self._writer.in_transaction or _is_interrupt(error):
                raise
            run("ROLLBACK TO safedb_member", ())
            job.error = classify(error, doing=shorten(job.sql))
        run("RELEASE safedb_member", ())

    def _run_carefully(self, jobs: list[Job], group: Group) -> None:
        """Run the same members again, each in its savepoint, and take nobody in: one of them is about to fail.

        Functions run in their own threads: with one of them aboard, all take turns again instead, and the groups that
        they form then are careful from the beginning.
        """
        self._counters.retried("careful")
        self._suspicious = SUSPICION
        statements = [job for job in jobs if isinstance(job, StatementJob)]
        if len(statements) < len(jobs):
            self._dissolve(jobs)
        group.members.clear()
        group.careful = group.full = True
        try:
            self._writer.run("ROLLBACK", ())
            self._writer.run("BEGIN IMMEDIATE", ())
            for job in statements:
                job.forget()
                group.current = job
                self._run_member(job, group)
                group.members.append(job)
        except DRIVER_ERRORS as error:
            self._discard(group, jobs, error)
        group.current = None

    def _run_function(self, job: FunctionJob, group: Group) -> None:
        """Run a function in its savepoint; its outcome waits for COMMIT like any other."""
        writer = self._writer
        group.current = job
        group.until = min(group.until, job.deadline)
        if group.members:
            group.until = min(group.until, group.began + self._patience)
        session = group.session = Session(writer, deadline=job.deadline, until=group.until, restartable=True)
        try:
            if group.careful:
                writer.watch.enter(RUNNING, group.until)
                writer.run("SAVEPOINT safedb_member", ())
            session.open()
            self._call(job, session)
            session.end()
            if not writer.in_transaction:
                self._discard(group, [*group.members, job], session.lost)
            if group.careful:
                if job.error is not None:
                    writer.run("ROLLBACK TO safedb_member", ())
                writer.run("RELEASE safedb_member", ())
            elif job.error is not None:
                self._discard_failed(group, job)
        except sqlite3.Error as error:
            self._discard(group, [*group.members, job], error)
        except Restart:
            with contextlib.suppress(Restart):  # raised if the keeper has taken the transaction, also in this moment
                session.end()
                self._discard(group, [*group.members, job], session.lost)
            # The keeper has rolled back and put back everybody else; this job has lost its turn, and takes another.
            late = monotonic() - job.deadline
            if late > 0:
                self._hooks.emit(Overrun(writer.name, "the caller's own code inside a transaction", late))
            job.run_alone()
            job.forget()
            raise _Discarded from None
        group.session = group.current = None
        group.members.append(job)

    def _discard_failed(self, group: Group, job: FunctionJob) -> None:
        """Undo a function that raised outside a savepoint: alone it has its verdict, among others all run again."""
        if group.members:
            self._run_carefully([*group.members, job], group)
        self._discard(group, [job], None)

    def _call(self, job: FunctionJob, session: Session) -> None:
        try:
            job.value = job.body(session)
        except Exception as error:  # noqa: BLE001  (an interrupt is no outcome, which a discarded run would swallow)
            job.error = error

    # -- the end of a group -----------------------------------------------------------------------------------------

    def _commit(self, job: Job, group: Group) -> None:
        started = monotonic()
        group.committing = True
        try:
            self._writer.commit()
        except sqlite3.Error as error:
            group.committing = False  # before anything else: `_abandon` would take it for committed
            group.failure = error
            self._commit_failed(job, group, error)
            return
        ended = monotonic()
        # What it takes beyond a flush is a wait for the interpreter's lock: so down at once, and up by little.
        self._flush = min(ended - started, self._flush + (ended - started) / 16)
        self._committed(group, job)
        self._turns.leave(job)
        if ended - started > SLOW_COMMIT:
            self._tell_of_commit(group, started, ended)

    def _tell_of_commit(self, group: Group, started: float, ended: float) -> None:
        """Tell of a COMMIT that came in time, and ended after the deadline of a member."""
        late = ended - min([member.deadline for member in group.members if member.deadline >= started], default=ended)
        if late > 0:
            self._hooks.emit(Overrun(self._writer.name, "COMMIT", late))

    def _committed(self, group: Group, job: Job) -> None:
        """Deliver every verdict: from here on the writes are acknowledged (unless their file was taken away)."""
        members = group.members
        doubt = self._writer.doubt()
        self._company = len(members)
        self._suspicious = max(0, self._suspicious - 1)
        self._counters.committed(len(members))
        if doubt is not None:
            for member in members:
                if member.error is None:
                    member.value, member.error = None, doubt
        self._turns.deliver(members, job)
        self._open = None

    def _commit_failed(self, job: Job, group: Group, error: sqlite3.Error) -> None:
        if len(group.members) == 1 or is_unknown_commit(error):
            ours = self._writer.failed_commit(error)
            for member in group.members:
                member.value, member.error = None, ours
                member.settle()
            self._open = None
            self._turns.leave(job)
            return
        try:
            self._discard(group, group.members, error)
        except _Discarded:
            self._turns.leave(job)

    def _discard(self, group: Group, jobs: Sequence[Job], error: BaseException | None) -> None:
        """Roll back, settle what is certain, put the others back in the queue; raise `_Discarded`."""
        self._writer.rollback()
        if error is not None and _is_interrupt(error):
            back: Sequence[Job] = self._broken_up(group, jobs, error)
        elif len(jobs) == 1:
            jobs[0].error = jobs[0].error or self._own_error(jobs[0], error)
            jobs[0].settle()
            back = []
        else:
            self._counters.retried("lost")
            self._hooks.emit(Retried(self._writer.name, "lost", 1, monotonic() - group.began))
            for job in jobs:
                job.run_alone()
            back = jobs
        self._dissolve(back)

    def _dissolve(self, jobs: Sequence[Job]) -> None:
        """Roll back and let all of them take turns again."""
        self._writer.rollback()
        self._writer.release()
        self._put_back(jobs)
        self._open = None
        raise _Discarded

    def _own_error(self, job: Job, error: BaseException | None) -> BaseException:
        if error is None:
            return errors.TransactionAborted(f"the transaction on {self._writer.name} was ended by its own SQL")
        return classify(error, doing=shorten(job.sql) if isinstance(job, StatementJob) else job.kind)

    def _broken_up(self, group: Group, jobs: Sequence[Job], error: BaseException | None) -> list[Job]:
        """Settle the overdue members of a group that was interrupted; return the others."""
        self._counters.retried("broken up")
        now = monotonic()
        back = []
        for job in jobs:
            if now >= job.deadline:
                job.forget()
                job.error = self._overdue(job, job is group.current, error)
                job.settle()
            else:
                if job is group.current and len(jobs) > 1:
                    job.run_alone()
                back.append(job)
        return back

    def _overdue(self, job: Job, in_the_way: bool, error: BaseException | None) -> errors.Error:
        if in_the_way:
            return self._canceled(job, error)
        return errors.LockTimeout(
            f"the deadline passed while a write to {self._writer.name} waited for its group's COMMIT; it has no "
            "effect. Make transactions shorter, or raise the timeout"
        )

    def _canceled(self, job: Job, error: BaseException | None) -> errors.Error:
        ours = errors.QueryCanceled(
            f"{shorten(job.sql) if isinstance(job, StatementJob) else job.kind}: the deadline passed while it ran; it "
            "was interrupted and has no effect. Make it smaller, or raise the timeout",
            sqlite_errorname="SQLITE_INTERRUPT",
        )
        ours.__cause__ = error
        return ours

    def _put_back(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.forget()
        self._turns.put_back(jobs)

    def _abandon(self, job: Job, group: Group | None) -> None:
        """Find out from the state what an exception in the driving thread has left, and leave nobody behind.

        It may be interrupted itself, and is run again: by `submit`, and if that fails too by the keeper. So each of its
        steps may be done twice, `_open` is forgotten when nobody waits for it any more, and the turn is given up last.
        """
        writer, watch = self._writer, self._writer.watch
        with watch.guard:
            if self._turns.holder is not job:  # the group is over, or went on with another, or the keeper has taken it
                return
            watch.phase, watch.until = RUNNING, math.inf  # from here on the keeper takes nothing
        if group is not None and group.failure is not None and is_unknown_commit(group.failure):
            self._commit_failed(job, group, group.failure)
            return
        if group is not None and group.committing and not writer.in_transaction:
            writer.release()  # COMMIT returned: an error of SQLite's own would have come here as itself
            if self._open is group:
                self._committed(group, job)
        else:
            if group is not None:
                group.committing = False  # first: a second look would find no transaction, and take it for committed
            writer.rollback()
            writer.release()
            waiting = [member for member in group.aboard if member.state in (ABOARD, WAITING)] if group else []
            self._put_back([member for member in waiting if member is not job])
            self._open = None
        job.luggage = None
        self._turns.leave(job)

    def mend(self) -> None:
        """Give up the turn, or the first place in the queue, of a thread that has left; for each look of the keeper."""
        suspect = self._turns.next
        if self._mending.acquire(blocking=False):  # a second that does the same would do it to the next
            try:
                seen, self._seen = self._seen, suspect
                if isinstance(suspect, Job) and suspect is seen and not suspect.at_work:
                    self._bury(suspect)
            finally:
                self._mending.release()

    def _bury(self, suspect: Job) -> None:
        if self._turns.holder is suspect:
            self._abandon(suspect, self._open)
        elif suspect.state is WAITING:
            self._turns.leave(suspect)

    # -- the keeper's side ------------------------------------------------------------------------------------------

    def break_up(self, now: float) -> None:
        """End what is overdue on the writer's connection; for the keeper, whenever it looks."""
        watch = self._writer.watch
        if now < watch.until:
            return
        with watch.guard:
            overrun = None if now < watch.until else self._end_overdue(now)
        if overrun is not None:  # a hook that takes its time must not keep a writer from its rollback
            self._hooks.emit(overrun)

    def _end_overdue(self, now: float) -> Overrun | None:
        """End what is overdue, or tell why it cannot be ended; the guard is held."""
        watch, group = self._writer.watch, self._open
        if watch.phase is not USER:
            self._writer.interrupt()
            if now - watch.until > STUBBORN and watch.told != watch.until:
                watch.told = watch.until
                return Overrun(self._writer.name, UNSTOPPABLE, now - watch.until)
        elif group is not None and group.members and isinstance(group.current, FunctionJob):
            self._revoke(group, group.current)
        else:
            late, watch.until = now - watch.until, math.inf
            return Overrun(self._writer.name, "the caller's own code inside a transaction", late)
        return None

    def _revoke(self, group: Group, function: FunctionJob) -> None:
        """Take the transaction from a function that is busy in the user's code; the guard is held."""
        watch = self._writer.watch
        cast("Session", group.session).revoked = True
        self._open = None
        self._writer.rollback()
        watch.phase, watch.until = IDLE, math.inf
        self._writer.unlock()
        self._put_back(self._broken_up(group, group.members, None))
        self._turns.depose(function)


def _is_interrupt(error: BaseException) -> bool:
    return code_of(error) == INTERRUPT


def thread_name(ident: int) -> str:
    """Name a thread for a message."""
    names = [thread.name for thread in threading.enumerate() if thread.ident == ident]
    return repr(names[0]) if names else f"{ident} (not started by threading)"
