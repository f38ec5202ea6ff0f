"""A link that breaks before, inside and during a write transaction: what becomes of it is known, or said to be unknown.

The promises are "Exactly once" and "Durable acknowledgement". A COMMIT is held open by a deferred trigger that waits
for an advisory lock, so it can be cut at a known point; the line is cut by a proxy, or by killing what holds its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from faults import GENEROUS, Sessions, at_rest, error_of, latched, named, slow_commit, terminate
from pgproxy import CUT_AFTER, CUT_BEFORE, LOSE_ANSWER, Proxy
from pgserver import Server, system_folders, wheel_folders
from support import Crew, wait_until

import safedb
from safedb import errors
from safedb.postgres.opener import IDENTITY

KEY = 4711
INSERT = "INSERT INTO t (v) VALUES (?)"
SCHEMA = "CREATE TABLE t (id bigserial PRIMARY KEY, v text NOT NULL)"

Write = Callable[[safedb.Database, str], Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # What was not flushed by a COMMIT is still in memory when a process is killed: numbers are used again after that.
    with Server(settings={"wal_writer_delay": "10s"}) as server:
        server.start()
        yield server


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


class Bench:
    """Be a handle on a fresh table, by way of a proxy, with all that looks at it."""

    def __init__(self, server: Server, *, slow: bool = True, **options: Any) -> None:
        self.server = server
        self.direct = server.schema()
        rows(self.direct, SCHEMA)
        if slow:
            rows(self.direct, slow_commit(KEY))
        self.proxy = Proxy(self.direct)
        url, name = named(self.proxy.url)
        self.sessions = Sessions(server, name)
        options.setdefault("retry", GENEROUS)
        self.db = safedb.connect(url, **options)
        self.runs = 0
        self.called_back = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()
        self.proxy.close()

    def kept(self) -> list[str]:
        return [v for (v,) in rows(self.direct, "SELECT v FROM t ORDER BY id")]

    def body(self, tx: Any, value: str) -> None:
        self.runs += 1
        tx.after_commit(self.call_back)
        tx.execute(INSERT, (value,))

    def call_back(self) -> None:
        self.called_back += 1

    def statement(self, value: str, **options: Any) -> None:
        self.db.execute(INSERT, (value,), **options)

    def many(self, value: str, **options: Any) -> None:
        self.db.executemany(INSERT, [(value,)], **options)

    def function(self, value: str, **options: Any) -> None:
        self.db.run_transaction(self.body, value, **options)

    def block(self, value: str, **options: Any) -> None:
        with self.db.transaction(**options) as tx:
            self.body(tx, value)

    def write(self, how: str, value: str, **options: Any) -> None:
        getattr(self, how)(value, **options)


AGAIN = ("statement", "many", "function")
ALL = (*AGAIN, "block")


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


# -- before a statement ---------------------------------------------------------------------------------------------


def test_an_idle_link_that_was_ended_is_noticed_by_nobody(server: Server) -> None:
    """Survives its surroundings: the next call of every kind goes on, and each write is applied once."""
    with Bench(server, pool=safedb.PoolConfig(max_size=1)) as bench:

        def ended() -> None:
            bench.db.execute("SELECT 1")
            bench.db.execute("CREATE TABLE IF NOT EXISTS other ()")
            assert len(bench.sessions.pids()) == 2
            bench.sessions.terminate()

        ended()
        assert bench.db.execute("SELECT 7").scalar() == 7
        for how in ALL:
            ended()
            bench.write(how, how)
        ended()
        with bench.db.snapshot() as snap:
            assert snap.execute("SELECT count(*) FROM t").scalar() == 4
        ended()
        bench.db.executescript("INSERT INTO t (v) VALUES ('script')")
        assert bench.kept() == [*ALL, "script"]
        assert bench.runs == bench.called_back == 2
        at_rest(bench.db)


@pytest.mark.parametrize("how", ALL)
def test_a_link_that_breaks_with_its_first_statement_is_replaced(server: Server, how: str) -> None:
    """Survives its surroundings: nobody has seen anything of the transaction yet, so it begins on another link.

    Written down: the link is lent and looks alive; the line is cut as BEGIN is on its way; the same statement runs on
    another link, and the function around it is not run again.
    """
    with Bench(server) as bench:
        rule = bench.proxy.when("BEGIN", CUT_BEFORE)
        bench.write(how, how)
        rule.wait()
        assert bench.kept() == [how]
        assert bench.runs == bench.called_back == (how in ("function", "block"))


def test_a_read_whose_answer_is_lost_is_run_again(server: Server) -> None:
    """Survives its surroundings: a read may always be run again, whatever became of it."""
    with Bench(server) as bench:
        for action in (CUT_BEFORE, LOSE_ANSWER):
            rule = bench.proxy.when("SELECT 42", action)
            assert bench.db.execute("SELECT 42").scalar() == 42
            rule.wait()
        assert bench.db.stats().retries == {"connection": 2}


# -- inside a transaction -------------------------------------------------------------------------------------------


def test_a_function_whose_link_broke_inside_is_run_exactly_once_more(server: Server) -> None:
    """Exactly once: the first run left nothing, and its callbacks are forgotten with it."""
    with Bench(server, slow=False) as bench:

        def body(tx: Any) -> int:
            bench.body(tx, f"run {bench.runs + 1}")
            if bench.runs == 1:
                terminate(server, tx.execute("SELECT pg_backend_pid()").scalar())
            tx.execute(INSERT, ("second",))
            return bench.runs

        assert bench.db.run_transaction(body) == 2
        assert bench.kept() == ["run 2", "second"]
        assert bench.called_back == 1
        assert bench.db.stats().retries == {"connection": 1}


def test_a_function_that_swallows_the_loss_is_run_again(server: Server) -> None:
    """Exactly once: what the body makes of the error does not make the lost half kept, nor the rest acknowledged."""
    with Bench(server, slow=False) as bench:

        def body(tx: Any) -> None:
            bench.body(tx, "first")
            if bench.runs == 1:
                terminate(server, tx.execute("SELECT pg_backend_pid()").scalar())
                error = error_of(lambda: tx.execute("SELECT 1"))
                assert isinstance(error, errors.ConnectionLost)

        bench.db.run_transaction(body)
        assert bench.runs == 2
        assert bench.kept() == ["first"]


def test_a_block_whose_link_broke_inside_raises_and_keeps_nothing(server: Server) -> None:
    """Exactly once: a block is run once, so its user is told that it may be run again."""
    with Bench(server, slow=False) as bench:

        def block() -> None:
            with bench.db.transaction() as tx:
                bench.body(tx, "first")
                terminate(server, tx.execute("SELECT pg_backend_pid()").scalar())
                tx.execute(INSERT, ("second",))

        error = error_of(block)
        assert isinstance(error, safedb.ConnectionLost)
        assert error.retryable
        assert bench.kept() == []
        assert bench.called_back == 0
        at_rest(bench.db)
        bench.block("later")
        assert bench.kept() == ["later"]


def test_a_block_whose_link_broke_between_its_last_statement_and_commit(server: Server) -> None:
    """Exactly once: COMMIT is looked up, and was never there."""
    with Bench(server, slow=False) as bench:

        def block() -> None:
            with bench.db.transaction() as tx:
                bench.body(tx, "first")
                terminate(server, tx.execute("SELECT pg_backend_pid()").scalar())

        error = error_of(block)
        assert isinstance(error, safedb.ConnectionLost)
        assert error.retryable
        assert bench.kept() == []
        assert bench.called_back == 0


# -- during COMMIT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ALL)
def test_a_session_ended_inside_commit_has_committed_nothing(server: Server, crew: Crew, how: str) -> None:
    """Exactly once: the fate is looked up; what can be run again is, and a block is told that it may be.

    Written down: COMMIT waits in a deferred trigger; the session is ended there; pg_xact_status says aborted; only then
    may another COMMIT pass.
    """
    with Bench(server) as bench, latched(server, KEY) as latch:
        worker = crew(bench.write, how, how)
        bench.sessions.terminate(bench.sessions.waiting_in("COMMIT"))
        if how == "block":
            error = worker.error()
            assert isinstance(error, safedb.ConnectionLost)
            assert error.retryable
            latch.open()
            assert bench.kept() == []
            assert bench.called_back == 0
        else:
            bench.sessions.waiting_in("COMMIT")  # of the second run
            latch.open()
            worker.result()
            assert bench.kept() == [how]
            assert bench.db.stats().retries == {"connection": 1}
            assert (bench.runs, bench.called_back) == ((2, 1) if how == "function" else (0, 0))
        at_rest(bench.db)


@pytest.mark.parametrize("how", ALL)
def test_a_commit_whose_answer_is_lost_is_acknowledged(server: Server, how: str) -> None:
    """Durable acknowledgement, exactly once: the server has committed; nothing is run again or raised."""
    with Bench(server) as bench:
        rule = bench.proxy.when("COMMIT", LOSE_ANSWER)
        bench.write(how, how)
        rule.wait()
        assert bench.kept() == [how]
        assert bench.db.stats().retries == {}
        assert bench.runs == bench.called_back == (how in ("function", "block"))
        at_rest(bench.db)


@pytest.mark.parametrize("how", ALL)
def test_a_commit_that_never_arrived_is_run_again_or_said_to_be_lost(server: Server, how: str) -> None:
    """Exactly once: the line breaks in front of COMMIT, and the server rolls back."""
    with Bench(server) as bench:
        rule = bench.proxy.when("COMMIT", CUT_BEFORE)
        error = error_of(lambda: bench.write(how, how))
        rule.wait()
        if how == "block":
            assert isinstance(error, safedb.ConnectionLost)
            assert error.retryable
            assert bench.kept() == []
        else:
            assert error is None
            assert bench.kept() == [how]


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "is ended"])
@pytest.mark.parametrize("how", ["function", "block"])
def test_a_commit_still_in_progress_is_asked_for_until_it_ends(
    server: Server, crew: Crew, how: str, commits: bool
) -> None:
    """Exactly once: nobody takes "in progress" for an answer.

    Written down: COMMIT waits in a trigger; our end of the line breaks, the server's does not; safedb has asked at
    least twice; then the COMMIT goes through, or is ended.
    """
    with Bench(server) as bench, latched(server, KEY) as latch:
        rule = bench.proxy.when("COMMIT", CUT_AFTER)
        worker = crew(bench.write, how, how)
        pid = bench.sessions.waiting_in("COMMIT")
        rule.wait()
        wait_until(lambda: bench.proxy.count("pg_xact_status") >= 2, "two look-ups")
        assert worker.running
        if commits:
            latch.open()
            worker.result()
            assert bench.kept() == [how]
            assert (bench.runs, bench.called_back) == (1, 1)
        else:
            terminate(server, pid)
            if how == "function":
                bench.sessions.waiting_in("COMMIT")
            latch.open()
            error = worker.error()
            assert isinstance(error, safedb.ConnectionLost if how == "block" else type(None))
            assert bench.kept() == ([] if how == "block" else [how])


def test_a_commit_in_progress_past_the_deadline_is_said_to_be_unknown(server: Server, crew: Crew) -> None:
    """Bounded, exactly once: CommitUnknownError, for it may still go either way; here it is committed afterwards.

    Written down: COMMIT waits in a trigger, our end of the line breaks, the deadline passes, and the lock is let go.
    """
    with Bench(server) as bench, latched(server, KEY) as latch:
        rule = bench.proxy.when("COMMIT", CUT_AFTER)
        began = time.monotonic()
        worker = crew(bench.function, "maybe", timeout=1.0)
        bench.sessions.waiting_in("COMMIT")
        rule.wait()
        error = worker.error()
        assert isinstance(error, safedb.CommitUnknownError)
        assert "in progress" in str(error)
        assert not error.retryable
        assert time.monotonic() - began < 10.0
        assert bench.called_back == 0
        assert bench.runs == 1
        latch.open()
        wait_until(lambda: bench.kept() == ["maybe"], "the COMMIT to go through")


def test_a_function_that_only_read_and_lost_its_commit(server: Server) -> None:
    """Exactly once: where nothing can have been written, nothing is unknown."""
    with Bench(server) as bench:
        bench.statement("there")

        def body(tx: Any) -> Any:
            bench.runs += 1
            return tx.execute("SELECT v FROM t").scalar()

        rule = bench.proxy.when("COMMIT", CUT_BEFORE)
        assert bench.db.run_transaction(body) == "there"
        rule.wait()


# -- a standby that is not there --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> Iterator[Server]:
    with Server() as server:
        server.start()
        yield server


class Forsaken:
    """Be a server that can be made to wait, with each COMMIT, for a standby that is not there."""

    def __init__(self, server: Server, crew: Crew) -> None:
        self.server = server
        self._crew = crew

    def forsake(self) -> None:
        """Return when COMMITs wait: a new setting is taken in the server's own time."""
        self._set("SET synchronous_standby_names = 'nobody'")
        wait_until(self._waits, "COMMITs that wait for the standby")

    def restore(self) -> None:
        self._set("RESET synchronous_standby_names")

    def waiting(self) -> list[int]:
        found = self.server.execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        return [pid for (pid,) in found]

    def _set(self, what: str) -> None:
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute("SET synchronous_commit = local")
            connection.execute(f"ALTER SYSTEM {what}".encode())
            connection.execute("SELECT pg_reload_conf()")

    def _waits(self) -> bool:
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            worker = self._crew(connection.execute, "SELECT pg_logical_emit_message(true, 'a write', '')")
            wait_until(lambda: not worker.running or bool(self.waiting()), "a COMMIT, or its wait")
            if worker.running:
                self.server.execute(f"SELECT pg_cancel_backend({connection.info.backend_pid})")
                worker.result()
                return True
        return False


@pytest.fixture
def forsaken(alone: Server, crew: Crew) -> Iterator[Forsaken]:
    forsaken = Forsaken(alone, crew)
    yield forsaken
    forsaken.restore()


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("how", ALL)
def test_a_commit_that_did_not_wait_for_its_standby_is_said_to_be_unknown(
    forsaken: Forsaken, crew: Crew, how: str, end: str
) -> None:
    """Durable acknowledgement: what only the primary has may be lost with it, so it is not acknowledged.

    Written down: COMMIT has been carried out and waits for the standby; somebody cancels the wait, or ends the session;
    the server says so in a notice alone, and calls the transaction committed.
    """
    with Bench(forsaken.server, slow=False, pool=safedb.PoolConfig(max_size=1)) as bench:
        bench.write(how, "before")
        forsaken.forsake()
        worker = crew(bench.write, how, "alone")
        wait_until(lambda: len(forsaken.waiting()) == 1, "a COMMIT that waits for the standby")
        assert worker.running
        [pid] = forsaken.waiting()
        forsaken.server.execute(f"SELECT {end}({pid})")
        error = worker.error()
        assert isinstance(error, safedb.CommitUnknownError)
        assert not error.retryable
        assert "synchronous standby" in str(error)
        assert "was carried out" in str(error)
        assert "Idempotency keys" in str(error)
        assert bench.kept() == ["before", "alone"]  # run once, and there
        assert bench.runs == 2 * (how in ("function", "block"))
        assert bench.called_back == (how in ("function", "block"))  # for the first alone
        assert bench.db.stats().retries == {}
        assert bench.db.stats().commits == 1
        forsaken.restore()
        bench.write(how, "later")  # the link that was warned of once is as good as any other
        assert bench.kept() == ["before", "alone", "later"]
        at_rest(bench.db)


# -- the server crashes ---------------------------------------------------------------------------------------------


def binaries() -> list[Path]:
    return [folder for folders in (system_folders(), wheel_folders()) for folder in folders[:1]]


@pytest.mark.parametrize("folder", binaries(), ids=lambda folder: "wheel" if folder in wheel_folders() else "system")
def test_the_identity_changes_with_every_crash_and_every_start(folder: Path) -> None:
    """Exactly once: what a look-up rests on, on each version of the server that is at hand."""
    with Server(folder=folder) as server:
        server.start()

        def identity() -> Any:
            return server.execute(f"SELECT {IDENTITY}")[0][0]

        seen = [identity()]
        assert identity() == seen[0]
        with psycopg.connect(server.url(), autocommit=True) as connection:
            server.kill_backend(connection.info.backend_pid)
        server.wait_ready()
        seen.append(identity())
        [started, again] = [one.split()[0] for one in seen]
        assert started == again  # the postmaster is the same, and its start alone would tell nothing
        for how in ("fast", "immediate"):
            server.restart(how)
            seen.append(identity())
        server.kill()
        server.start()
        seen.append(identity())
        server.kill_postmaster()
        server.start()
        seen.append(identity())
        assert None not in seen
        assert len(set(seen)) == len(seen) == 6


def crash_backend(server: Server, pid: int) -> None:
    server.kill_backend(pid)
    server.wait_ready()


def crash_postmaster(server: Server, pid: int) -> None:
    server.kill_postmaster()
    server.start()


def crash_all(server: Server, pid: int) -> None:
    server.kill()
    server.start()


def stop_at_once(server: Server, pid: int) -> None:
    server.restart("immediate")


CRASHES = [crash_backend, crash_postmaster, crash_all, stop_at_once]


@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: crash.__name__)
def test_a_server_that_crashes_inside_commit_leaves_nobody_a_false_answer(
    server: Server, crew: Crew, crash: Callable[[Server, int], None]
) -> None:
    """Exactly once: a block, a function and a statement at once; each is told that nobody can know, and none is rerun.

    Written down: three COMMITs wait in a trigger; the server, or one of its backends, is killed and recovers.
    """
    with Bench(server) as bench, latched(server, KEY) as latch:
        workers = {how: crew(bench.write, how, how) for how in ("statement", "function", "block")}
        where = "wait_event = 'advisory' AND query LIKE 'COMMIT%'"
        wait_until(lambda: len(bench.sessions.pids(where)) == 3, "three COMMITs")
        crash(server, bench.sessions.pids(where)[0])
        latch.open()  # the lock went with the server
        for worker in workers.values():
            assert isinstance(worker.error(), safedb.CommitUnknownError)
        assert bench.kept() == []  # which safedb could not know
        assert bench.runs == 2
        assert bench.called_back == 0
        bench.statement("later")
        assert bench.kept() == ["later"]
        at_rest(bench.db)


def test_a_server_that_is_stopped_in_good_order_inside_commit_leaves_nobody_a_false_answer(
    server: Server, crew: Crew
) -> None:
    """Exactly once: here the server itself may live to say "aborted", which is true: then what may be run again is.

    Written down: three COMMITs wait in a trigger; the server ends every client's transaction, stops and starts again.
    """
    with Bench(server) as bench, latched(server, KEY) as latch:
        workers = {how: crew(bench.write, how, how) for how in ("statement", "function", "block")}
        where = "wait_event = 'advisory' AND query LIKE 'COMMIT%'"
        wait_until(lambda: len(bench.sessions.pids(where)) == 3, "three COMMITs")
        server.restart("fast")
        latch.open()
        told = {how: worker.error() for how, worker in workers.items()}
        kept = bench.kept()
        for how, error in told.items():
            assert kept.count(how) == (error is None), (how, error)
            expected = (safedb.CommitUnknownError, safedb.ConnectionLost)[: 2 if how == "block" else 1]
            assert error is None or isinstance(error, expected)
        assert told["block"] is not None
        assert bench.called_back == (told["function"] is None)
        bench.statement("later")
        assert bench.kept() == [*kept, "later"]
        at_rest(bench.db)


@pytest.mark.parametrize("crash", [crash_backend, crash_all], ids=lambda crash: crash.__name__)
def test_a_reused_number_is_never_taken_for_ours(server: Server, crash: Callable[[Server, int], None]) -> None:
    """Exactly once: after a crash the same number is another client's, and the server truly says "committed" of it.

    Written down: our transaction has number N and nothing of it on the disk; the server crashes; another client commits
    a transaction with the number N; then our COMMIT finds its link broken, and looks N up.
    """
    for _ in range(5):
        with Bench(server, slow=False) as bench:
            server.execute("CHECKPOINT")
            error: BaseException | None = None
            reused = False
            try:
                with bench.db.transaction() as tx:
                    tx.execute(INSERT, ("ours",))
                    number = int(tx.execute("SELECT pg_current_xact_id()::text").scalar())
                    crash(server, tx.execute("SELECT pg_backend_pid()").scalar())
                    reused = burn(server, number)
            except safedb.Error as raised:
                error = raised
            if not reused:
                continue  # its WAL was written before the crash by chance: the number is not given out again
            assert server.execute(f"SELECT pg_xact_status('{number}'::xid8)") == [("committed",)]
            assert bench.kept() == []
            assert isinstance(error, safedb.CommitUnknownError)
            return
    pytest.fail("no number was used again, in five tries")


def burn(server: Server, number: int) -> bool:
    """Commit transactions of another client until one of them has this number; False where it is beyond them."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        while True:
            row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
            assert row is not None
            if int(row[0]) >= number:
                return int(row[0]) == number
