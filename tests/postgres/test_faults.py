"""Conflicts, exhaustion, deadlines, stopped processes, frozen networks, changed schemas, interrupts.

The promises are "Bounded", "Isolated failure" and "Survives its surroundings": a call ends at its own deadline with an
error that says why, and no other call, nor the next one, is the worse for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from faults import GENEROUS, LONG, Sessions, at_rest, error_of, in_use, latched, named, slow_commit
from pgproxy import FREEZE, Proxy
from pgserver import Server
from support import Crew, unmeasured, wait_until

import safedb
from safedb.postgres import limits
from safedb.postgres.opener import Link

PAST = 1.0
"""Seconds by which a call may end after its deadline: twice what is meant, for a loaded machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        server.start()
        yield server


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def url(server: Server) -> str:
    """Give the URL of a schema with a hot row and a table."""
    found = server.schema()
    run(found, "CREATE TABLE hot (id integer PRIMARY KEY, n integer NOT NULL)")
    run(found, "INSERT INTO hot VALUES (1, 0)")
    run(found, "CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
    return found


@pytest.fixture
def db(url: str) -> Iterator[safedb.Database]:
    with safedb.connect(url, retry=GENEROUS) as db:
        yield db


def run(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def ends(call: Callable[[], object], timeout: float) -> BaseException:
    """Give what a call raises, which must end about its deadline."""
    began = time.monotonic()
    error = error_of(call)
    took = time.monotonic() - began
    assert error is not None
    assert timeout * 0.9 - 0.01 <= took < timeout + PAST, f"{took:.3f} s: {error!r}"
    return error


# -- storms ---------------------------------------------------------------------------------------------------------


def increment(tx: Any) -> None:
    n = tx.execute("SELECT n FROM hot WHERE id = 1").scalar()
    tx.execute("UPDATE hot SET n = ? WHERE id = 1", (n + 1,))


STORMS: dict[str, Callable[[safedb.Database], object]] = {
    "function": lambda db: db.run_transaction(increment),
    "statement": lambda db: db.execute("UPDATE hot SET n = n + 1 WHERE id = 1"),
}


@pytest.mark.parametrize("how", STORMS)
def test_a_storm_on_one_row_loses_nothing(url: str, crew: Crew, how: str) -> None:
    """Exactly once, bounded: of 32 threads each succeeds by its (generous) deadline; the sum is exact."""
    times = 20 if LONG else 4
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=32)) as db:

        def work(_: int) -> None:
            for _ in range(times):
                STORMS[how](db)

        began = time.monotonic()
        crew.together(32, work)
        took = time.monotonic() - began
        stats = db.stats()
        print(f"{how}: {32 * times} in {took:.2f} s, {stats.retries}")
        assert db.execute("SELECT n FROM hot").scalar() == 32 * times
        at_rest(db)


def test_a_storm_past_its_deadline_ends_with_retryable_errors(url: str, crew: Crew) -> None:
    """Bounded: where time does not suffice, the error says that it may be run again, and nothing of it was kept."""
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=32)) as db:

        def work(_: int) -> tuple[int, float, list[safedb.Error]]:
            done, longest, failures = 0, 0.0, []
            for _ in range(6):
                began = time.monotonic()
                try:
                    db.run_transaction(increment, timeout=0.2)
                except safedb.Error as error:
                    failures.append(error)
                else:
                    done += 1
                longest = max(longest, time.monotonic() - began)
            return done, longest, failures

        outcomes = crew.together(32, work)
        failures = [failure for _, _, some in outcomes for failure in some]
        # A deadline that passes between two statements is QueryCanceled: nothing tells it from code that is too slow.
        assert not [one for one in failures if not one.retryable and not isinstance(one, safedb.QueryCanceled)]
        assert max(longest for _, longest, _ in outcomes) < 0.2 + PAST
        assert db.execute("SELECT n FROM hot").scalar() == sum(done for done, _, _ in outcomes)
        at_rest(db)


# -- exhaustion -----------------------------------------------------------------------------------------------------


class Holders:
    """Hold snapshots or transactions in threads of their own, until the test lets them go."""

    def __init__(self, crew: Crew, count: int, hold: Callable[[], Any]) -> None:
        self._end = threading.Event()
        held = threading.Semaphore(0)

        def work() -> None:
            with hold() as one:
                one.execute("SELECT 1")
                held.release()
                assert self._end.wait(60)

        self._workers = [crew(work) for _ in range(count)]
        for _ in range(count):
            assert held.acquire(timeout=30)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for worker in self._workers:
            worker.join()


def test_an_exhausted_pool_is_told_at_the_deadline_and_leaks_nothing(url: str, crew: Crew) -> None:
    """Bounded: PoolTimeout with a remedy, for reads and for writes; the other pool is not concerned."""
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=2)) as db:
        with Holders(crew, 2, db.snapshot):
            reads: tuple[Callable[[], object], ...] = (
                lambda: db.execute("SELECT 1", timeout=0.3),
                lambda: db.snapshot(timeout=0.3).__enter__(),
            )
            for call in reads:
                error = ends(call, 0.3)
                assert isinstance(error, safedb.PoolTimeout), repr(error)
                assert error.retryable
                assert "max_size" in str(error)
            db.execute("INSERT INTO t (v) VALUES ('written')", timeout=5.0)
            assert in_use(db) == (2, 0)
        with Holders(crew, 2, db.transaction):
            writes: tuple[Callable[[], object], ...] = (
                lambda: db.execute("INSERT INTO t (v) VALUES ('late')", timeout=0.3),
                lambda: db.run_transaction(increment, timeout=0.3),
                lambda: db.transaction(timeout=0.3).__enter__(),
            )
            for call in writes:
                error = ends(call, 0.3)
                assert isinstance(error, safedb.PoolTimeout), repr(error)
            assert db.execute("SELECT v FROM t", timeout=5.0).scalar() == "written"
            assert in_use(db) == (0, 2)
        assert in_use(db) == (0, 0)
        assert db.execute("SELECT count(*) FROM t").scalar() == 1


def test_a_full_queue_is_told_at_the_deadline(url: str, crew: Crew) -> None:
    """Bounded: no more calls wait than max_waiting; the others are told so, and those that wait are served."""
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=1, max_waiting=2)) as db:
        with Holders(crew, 1, db.snapshot):
            waiting = [crew(db.execute, "SELECT 1") for _ in range(2)]
            wait_until(lambda: db.stats().readers.waiting == 2, "two that wait")
            error = ends(lambda: db.execute("SELECT 1", timeout=0.3), 0.3)
            assert isinstance(error, safedb.QueueFull), repr(error)
            assert error.retryable
            assert "max_waiting" in str(error)
        assert [worker.result().scalar() for worker in waiting] == [1, 1]
        at_rest(db)


def test_every_thread_inside_a_snapshot_may_write(url: str, crew: Crew) -> None:
    """No self-deadlock: as many threads as there are links each hold a snapshot, and each writes inside it."""
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=4)) as db:
        inside = threading.Barrier(4)

        def work(number: int) -> int:
            with db.snapshot() as snap:
                snap.execute("SELECT 1")
                inside.wait(30)
                db.execute("INSERT INTO t (v) VALUES (?)", (str(number),))
                db.run_transaction(increment)
                return int(snap.execute("SELECT count(*) FROM t").scalar())

        assert crew.together(4, work) == [0, 0, 0, 0]
        assert db.execute("SELECT count(*) FROM t").scalar() == 4
        assert db.execute("SELECT n FROM hot").scalar() == 4
        at_rest(db)


# -- deadlines ------------------------------------------------------------------------------------------------------


def test_a_statement_over_its_deadline_is_cancelled(db: safedb.Database, crew: Crew) -> None:
    """Bounded, isolated failure: QueryCanceled for it; calls beside it and after it are untouched."""
    calls: list[Callable[[], object]] = [
        lambda: db.execute("SELECT pg_sleep(30)", timeout=0.4),
        lambda: db.execute("INSERT INTO t (v) SELECT 'late' FROM pg_sleep(30)", timeout=0.4),
        lambda: db.run_transaction(lambda tx: tx.execute("SELECT pg_sleep(30)"), timeout=0.4),
        lambda: db.executemany("INSERT INTO t (v) SELECT ? FROM pg_sleep(30)", [("late",)], timeout=0.4),
        lambda: db.executescript("INSERT INTO t (v) VALUES ('late'); SELECT pg_sleep(30)", timeout=0.4),
    ]
    end = threading.Event()

    def beside() -> int:
        done = 0
        while not end.is_set():
            db.execute("SELECT 1")
            db.execute("INSERT INTO hot VALUES (2, 0) ON CONFLICT (id) DO UPDATE SET n = hot.n + 1")
            done += 1
        return done

    other = crew(beside)
    for call in calls:
        assert isinstance(ends(call, 0.4), safedb.QueryCanceled)
    with db.snapshot(timeout=0.4) as snap:
        assert isinstance(ends(lambda: snap.execute("SELECT pg_sleep(30)"), 0.4), safedb.QueryCanceled)
    with pytest.raises(safedb.QueryCanceled), db.transaction(timeout=0.4) as tx:
        tx.execute("INSERT INTO t (v) SELECT 'late' FROM pg_sleep(30)")
    end.set()
    assert other.result() > 0
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
    at_rest(db)


def test_a_wait_for_a_lock_over_its_deadline_says_so(db: safedb.Database, url: str) -> None:
    """Bounded: LockTimeout and not QueryCanceled, for it was a lock that was in the way."""
    with psycopg.connect(url) as other:
        other.execute("UPDATE hot SET n = 5 WHERE id = 1")
        for call in (
            lambda: db.execute("UPDATE hot SET n = 6 WHERE id = 1", timeout=0.4),
            lambda: db.run_transaction(increment, timeout=0.4),
            lambda: db.run_transaction(lambda tx: tx.execute("LOCK TABLE hot"), timeout=0.4),
        ):
            error = ends(call, 0.4)
            assert isinstance(error, safedb.LockTimeout), repr(error)
            assert error.retryable
        assert db.execute("SELECT n FROM hot").scalar() == 0
        other.rollback()
    db.run_transaction(increment)
    assert db.execute("SELECT n FROM hot").scalar() == 1
    at_rest(db)


@pytest.fixture
def stopped() -> Iterator[Callable[[int], None]]:
    """Stop processes (SIGSTOP); they go on at the end."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)

    yield stop
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_backend_that_stops_answering_costs_one_call_its_deadline(
    server: Server, url: str, crew: Crew, stopped: Callable[[int], None]
) -> None:
    """Bounded: the answer never comes, so the call ends by itself; its link is replaced, and the next call goes on."""
    own, name = named(url)
    sessions = Sessions(server, name)
    with safedb.connect(own, retry=GENEROUS, pool=safedb.PoolConfig(max_size=1)) as db:
        calls: dict[str, Callable[[], object]] = {
            "SELECT pg_sleep": lambda: db.execute("SELECT pg_sleep(1000)", timeout=0.7),
            "INSERT": lambda: db.execute("INSERT INTO t (v) SELECT 'no' FROM pg_sleep(1000)", timeout=0.7),
            "SELECT 1, ": lambda: db.run_transaction(lambda tx: tx.execute("SELECT 1, pg_sleep(1000)"), timeout=0.7),
        }
        for text, call in calls.items():
            worker = crew(ends, call, 0.7)
            stopped(sessions.running(text))
            error = worker.result()
            assert isinstance(error, safedb.OperationalError), repr(error)
            assert db.execute("SELECT 1", timeout=10.0).scalar() == 1
            db.execute("INSERT INTO t (v) VALUES ('yes')", timeout=10.0)
        # An idle session is stopped: nothing shows that until it is asked something.
        idle = sessions.pids("state = 'idle'")
        assert len(idle) == 2
        for pid in idle:
            stopped(pid)
        for statement in ("SELECT 2", "INSERT INTO t (v) VALUES ('no')"):
            error = ends(lambda statement=statement: db.execute(statement, timeout=0.7), 0.7)  # type: ignore[misc]
            assert isinstance(error, safedb.OperationalError), repr(error)
        assert db.execute("SELECT count(*) FROM t WHERE v = 'yes'", timeout=10.0).scalar() == 3
        at_rest(db)
    assert run(url, "SELECT DISTINCT v FROM t") == [("yes",)]


class Frozen:
    """Be a handle by way of a proxy that can freeze."""

    def __init__(self, server: Server, url: str) -> None:
        self.proxy = Proxy(url)
        own, name = named(self.proxy.url)
        self.sessions = Sessions(server, name)
        self.db = safedb.connect(own, retry=GENEROUS)


@pytest.fixture
def frozen(server: Server, url: str) -> Iterator[Frozen]:
    made = Frozen(server, url)
    yield made
    made.proxy.thaw()
    made.db.close()
    made.proxy.close()


def test_a_hung_network_ends_every_call_at_its_deadline(frozen: Frozen, url: str) -> None:
    """Bounded: reads, writes, snapshots and blocks end with an error; when it is over, all goes on."""
    db = frozen.db
    db.execute("SELECT 1")
    with db.snapshot(timeout=0.5) as snap:
        snap.execute("SELECT 1")

        def block() -> None:
            with db.transaction(timeout=0.5) as tx:
                tx.execute("INSERT INTO t (v) VALUES ('block')")
                frozen.proxy.freeze()
                tx.execute("SELECT 1")

        assert isinstance(ends(block, 0.5), safedb.OperationalError)
        assert isinstance(ends(lambda: snap.execute("SELECT 1"), 0.5), safedb.OperationalError)
    for call in (
        lambda: db.execute("SELECT 1", timeout=0.5),
        lambda: db.execute("INSERT INTO t (v) VALUES ('write')", timeout=0.5),
        lambda: db.run_transaction(increment, timeout=0.5),
    ):
        error = ends(call, 0.5)
        assert isinstance(error, safedb.OperationalError), repr(error)
        assert error.retryable
    frozen.proxy.thaw()
    db.execute("INSERT INTO t (v) VALUES ('after')")
    wait_until(lambda: run(url, "SELECT v FROM t") == [("after",)], "what was under way to be rolled back")
    at_rest(db)


def test_a_network_that_hangs_in_commit_is_bounded_and_looked_up(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded: COMMIT has its own grace past the deadline; then it is given up, and its fate looked up on another link.

    Only the one line freezes, in front of COMMIT; the server sees the line close, and rolls back.
    """
    if not LONG:
        monkeypatch.setattr(limits, "COMMIT_GRACE", 0.8)
    grace = limits.COMMIT_GRACE
    frozen.proxy.when("COMMIT", FREEZE)
    began = time.monotonic()
    error = error_of(lambda: frozen.db.execute("INSERT INTO t (v) VALUES ('one')", timeout=0.3))
    took = time.monotonic() - began
    assert isinstance(error, safedb.ConnectionLost | safedb.CommitUnknownError), repr(error)
    assert grace <= took < grace + 2.0 + PAST
    frozen.db.execute("INSERT INTO t (v) VALUES ('two')")
    assert frozen.db.execute("SELECT v FROM t").fetchall() == [("two",)]
    at_rest(frozen.db)


def test_a_network_that_hangs_for_everybody_in_commit_leaves_it_unknown(
    frozen: Frozen, server: Server, url: str, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, exactly once: nobody can be asked, so CommitUnknownError; here it turns out to have been committed.

    Written down: COMMIT waits in a trigger; the network freezes; the lock is let go, and the answer never arrives.
    """
    if not LONG:
        monkeypatch.setattr(limits, "COMMIT_GRACE", 0.8)
    run(url, slow_commit(4712))
    with latched(server, 4712) as latch:
        worker = crew(frozen.db.execute, "INSERT INTO t (v) VALUES ('maybe')", timeout=0.3)
        frozen.sessions.waiting_in("COMMIT")
        frozen.proxy.freeze()
        latch.open()
        error = worker.error()
    assert isinstance(error, safedb.CommitUnknownError), repr(error)
    frozen.proxy.thaw()
    assert run(url, "SELECT v FROM t") == [("maybe",)]
    at_rest(frozen.db)


# -- schemas that change under prepared statements ------------------------------------------------------------------


def test_a_schema_that_changes_under_prepared_statements_is_noticed_by_nobody(url: str, crew: Crew) -> None:
    """Survives its surroundings: "cached plan must not change result type" reaches no user outside of blocks.

    Four threads have run the same texts until all their links had them prepared; then the table changes, several times.
    """
    run(url, "INSERT INTO t (v) VALUES ('first')")
    with safedb.connect(url, retry=GENEROUS) as db, safedb.connect(url, retry=GENEROUS) as changing:
        end = threading.Event()
        rounds = Counter[int]()

        def everything(tx: Any) -> int:
            return len(tx.execute("SELECT * FROM t WHERE id = 1").columns)

        def work(number: int) -> None:
            while not end.is_set():
                db.execute("SELECT * FROM t WHERE id = 1").one()
                db.execute("INSERT INTO t (v) VALUES ('more') RETURNING *").one()
                db.execute("SELECT * FROM t WHERE id = 1", timeout=30.0).one()  # in a transaction, for its own limits
                db.run_transaction(everything)
                with db.snapshot() as snap:
                    snap.execute("SELECT count(*) FROM t").scalar()
                rounds[number] += 1

        workers = [crew(work, number) for number in range(4)]

        def all_went_on(more: int) -> None:
            before = dict(rounds)
            wait_until(
                lambda: all(rounds[number] >= before.get(number, 0) + more or not workers[number].running
                            for number in range(4)),
                "all threads to go on",
            )  # fmt: skip

        try:
            for change in (
                "ALTER TABLE t ADD COLUMN w integer",
                "ALTER TABLE t ALTER COLUMN w TYPE text",
                "ALTER TABLE t DROP COLUMN w",
                "ALTER TABLE t ADD COLUMN w timestamptz DEFAULT now()",
            ):
                all_went_on(8)
                changing.execute(change)
            all_went_on(8)
        finally:
            end.set()
        for worker in workers:
            worker.result()
        assert "w" in db.execute("SELECT * FROM t WHERE id = 1").columns
        at_rest(db)


def test_a_schema_that_changes_under_a_block_is_told_and_gone_with_the_next(url: str) -> None:
    """Poisoned, not half done: a block cannot be run again by us; the next one does not meet the same error."""
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=1)) as db:

        def block() -> None:
            with db.transaction() as tx:
                tx.execute("INSERT INTO t (v) VALUES ('x') RETURNING *")

        for _ in range(8):
            block()
        run(url, "ALTER TABLE t ADD COLUMN w integer")
        first = error_of(block)
        assert first is None or isinstance(first, safedb.Error)
        block()
        assert db.execute("SELECT count(*) FROM t").scalar() == (9 if first else 10)


# -- interrupts -----------------------------------------------------------------------------------------------------


INTERRUPTED = """
import os, signal, sys, threading, time
import safedb, psycopg

url, how = sys.argv[1:]
db = safedb.connect(url, retry=safedb.RetryPolicy(timeout=60.0), pool=safedb.PoolConfig(max_size=1))
watcher = psycopg.connect(url, autocommit=True)

def interrupt(text):
    while not watcher.execute(
        "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()", (text,)
    ).fetchall():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)

def read():
    db.execute("SELECT 1, pg_sleep(50)")

def write():
    db.execute("INSERT INTO t (v) SELECT 'no' FROM pg_sleep(50)")

def function():
    db.run_transaction(lambda tx: (tx.execute("INSERT INTO t (v) VALUES ('no')"), tx.execute("SELECT 2, pg_sleep(50)")))

def block():
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('no')")
        tx.execute("SELECT 3, pg_sleep(50)")

def snapshot():
    with db.snapshot() as snap:
        snap.execute("SELECT 4, pg_sleep(50)")

def iterate():
    with db.snapshot() as snap:
        list(snap.iterate("SELECT 5, pg_sleep(50)"))

for call, text in ((read, "SELECT 1, %"), (write, "INSERT INTO t (v) SELECT%"), (function, "SELECT 2, %"),
                   (block, "SELECT 3, %"), (snapshot, "SELECT 4, %"), (iterate, "FETCH %")):
    thread = threading.Thread(target=interrupt, args=(text,))
    thread.start()
    began = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit(f"{call} was not interrupted")
    thread.join()
    assert time.monotonic() - began < 20, call
    assert db.execute("SELECT 7", timeout=10.0).scalar() == 7, call
    db.execute("INSERT INTO t (v) VALUES ('yes')", timeout=10.0)
    end = time.monotonic() + 10
    while db.stats().readers.in_use or db.stats().writers.in_use:
        assert time.monotonic() < end, (call, db.stats())
        time.sleep(0.01)
assert db.execute("SELECT v, count(*) FROM t GROUP BY v").fetchall() == [("yes", 6)]
db.close()
print("all is well")
"""


def test_an_interrupt_leaves_no_link_lent_and_none_out_of_step(url: str, tmp_path: Path) -> None:
    """Survives its surroundings: Ctrl-C in a statement of each kind, on pools of one link that the next call needs."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, str(script), url, ""], capture_output=True, text=True, timeout=60, check=False,
        env={**unmeasured(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert done.stdout.strip() == "all is well", done.stderr


IN_COMMIT = """
import os, signal, sys, threading, time
import safedb, psycopg

url, _ = sys.argv[1:]
db = safedb.connect(url, retry=safedb.RetryPolicy(timeout=60.0), pool=safedb.PoolConfig(max_size=1))
watcher = psycopg.connect(url, autocommit=True)

def interrupt():
    while not watcher.execute(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE 'COMMIT%'"
    ).fetchall():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)

thread = threading.Thread(target=interrupt)
thread.start()
try:
    db.execute("INSERT INTO t (v) VALUES ('maybe')")
except KeyboardInterrupt as error:
    print("".join(error.__notes__))
thread.join()
end = time.monotonic() + 10
while db.stats().writers.in_use:
    assert time.monotonic() < end, db.stats()
    time.sleep(0.01)
print(db.execute("SELECT 7", timeout=10.0).scalar())
db.close()
"""


def test_an_interrupt_inside_commit_says_that_nobody_knows(server: Server, url: str, tmp_path: Path) -> None:
    """Exactly once: the interrupt is let through at once, with a note that the COMMIT may have happened or not."""
    run(url, slow_commit(4713))
    script = tmp_path / "interrupted.py"
    script.write_text(IN_COMMIT)
    with latched(server, 4713):
        done = subprocess.run(
            [sys.executable, str(script), url, ""], capture_output=True, text=True, timeout=60, check=False,
            env={**unmeasured(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
    note, rest = done.stdout.splitlines()
    assert "it may be committed or not" in note, done
    assert rest == "7"


def test_an_interrupt_while_a_link_is_looked_at_does_not_lose_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Survives its surroundings: the pool has lent the link, and nobody has it yet who would bring it back."""
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=1)) as db:
        looks = iter([True, False, True])
        real = Link.is_alive

        def interrupted(link: Link) -> bool:
            if next(looks, False):
                raise KeyboardInterrupt
            return real(link)

        monkeypatch.setattr(Link, "is_alive", interrupted)
        for sql in ("SELECT 1", "INSERT INTO t (v) VALUES ('x')"):
            with pytest.raises(KeyboardInterrupt):
                db.execute(sql)
            db.execute(sql, timeout=10.0)
        at_rest(db)
