"""A fork costs nobody anything: the child opens links of its own, and says no goodbye in its parent's name.

The children are forked from this very process, with its threads and open handles, and answer through a pipe.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import GENEROUS, Sessions, at_rest, named
from pgserver import Server
from support import Crew

import safedb

LIMIT = 30.0


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
    return named(server.schema())[0]


@pytest.fixture
def db(url: str) -> Iterator[safedb.Database]:
    with safedb.connect(url, retry=GENEROUS, schema="CREATE TABLE t (x integer)") as db:
        yield db


def forked(call: Callable[[], Any], *, clean: bool = False) -> str:
    """Run a call in a forked child; give its outcome as text. ``clean``: the child ends by way of Python's own exit."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what this is about
        pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            answer = repr(call())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        if clean:
            import gc

            gc.collect()
        os.write(write, answer.encode()[:60_000])
        os._exit(0)
    os.close(write)
    text, end = b"", time.monotonic() + LIMIT
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            text = b"it hangs"
            break
        piece = os.read(read, 65536)
        if not piece:
            break
        text += piece
    os.close(read)
    os.waitpid(pid, 0)
    return text.decode()


def backend(db: safedb.Database) -> int:
    return int(db.execute("SELECT pg_backend_pid()").scalar())


def work(db: safedb.Database) -> int:
    """Do something of every kind; give the number of rows."""
    db.execute("INSERT INTO t VALUES (1)")
    db.run_transaction(lambda tx: tx.execute("INSERT INTO t VALUES (2)"))
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (3)")
    with db.snapshot() as snap:
        return int(snap.execute("SELECT count(*) FROM t").scalar())


def test_with_an_idle_handle_both_sides_go_on(db: safedb.Database) -> None:
    """Survives its surroundings: the child has sessions of its own, and the parent keeps those that it had."""
    assert work(db) == 3
    mine = backend(db)
    theirs = forked(lambda: backend(db))
    assert theirs.isdigit()
    assert int(theirs) != mine
    assert forked(lambda: work(db)) == "6"
    assert backend(db) == mine
    assert work(db) == 9
    at_rest(db)


def test_a_child_that_closes_everything_says_no_goodbye_for_its_parent(
    db: safedb.Database, server: Server, url: str
) -> None:
    """Survives its surroundings: a child that closes the handle and collects garbage leaves the parent's links."""
    work(db)
    mine = backend(db)

    def close() -> str:
        work(db)
        db.close()
        return "closed"

    assert forked(close, clean=True) == "'closed'"
    assert backend(db) == mine
    assert work(db) == 9


def test_a_transaction_survives_what_its_child_does(db: safedb.Database) -> None:
    """Survives its surroundings, exactly once: the child gets a clear error, and its exit does not touch the parent's.

    Written down: the parent writes, forks, the child tries the inherited transaction and then a call of its own; the
    parent goes on in the same transaction and commits.
    """
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (1)")
        pid = tx.execute("SELECT pg_backend_pid()").scalar()
        answer = forked(lambda: tx.execute("INSERT INTO t VALUES (2)"), clean=True)
        assert answer.startswith("InterfaceError: ")
        assert "belongs to the process that began it" in answer
        assert forked(lambda: db.execute("SELECT count(*) FROM t").scalar(), clean=True) == "0"
        assert tx.execute("SELECT pg_backend_pid()").scalar() == pid
        tx.execute("INSERT INTO t VALUES (3)")
    assert db.execute("SELECT x FROM t ORDER BY x").fetchall() == [(1,), (3,)]
    at_rest(db)


def test_a_child_that_leaves_the_inherited_block_commits_nothing(db: safedb.Database) -> None:
    """Exactly once: leaving the block in the child, with or without an error, is an error and touches no link."""

    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    outcomes: list[str] = []
    for leave in ("normally", "by an error"):
        parent = os.getpid()
        read, write = os.pipe()
        try:
            with db.transaction() as tx:
                tx.execute("INSERT INTO t VALUES (1)")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if pid == 0 and leave == "by an error":
                    stop()
                if pid != 0:
                    os.close(write)
                    with open(read, "rb") as pipe:
                        outcomes.append(pipe.read().decode())
                    os.waitpid(pid, 0)
        except BaseException as error:
            if os.getpid() != parent:
                os.write(write, type(error).__name__.encode())
                os._exit(0)
            raise
        if os.getpid() != parent:
            os.write(write, b"committed")
            os._exit(0)
    assert outcomes == ["InterfaceError", "Stop"]
    assert db.execute("SELECT count(*) FROM t").scalar() == 2
    at_rest(db)


def test_a_function_that_forks_is_committed_by_its_parent_alone(db: safedb.Database) -> None:
    """Exactly once: a child forked inside run_transaction is told, and the parent's run is its first and only one."""
    runs = []

    def body(tx: Any) -> str:
        runs.append(1)
        tx.execute("INSERT INTO t VALUES (1)")
        return forked(lambda: tx.execute("SELECT 1"), clean=True)

    assert db.run_transaction(body).startswith("InterfaceError: ")
    assert len(runs) == 1
    assert db.execute("SELECT count(*) FROM t").scalar() == 1


def test_a_snapshot_survives_what_its_child_does(db: safedb.Database) -> None:
    """Snapshot reads: the child is refused the inherited snapshot and has others; the parent's stays as it was."""
    db.execute("INSERT INTO t VALUES (1)")
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT generate_series(1, 50)", batch=10)
        assert next(rows) == (1,)
        answer = forked(lambda: snap.execute("SELECT 1"), clean=True)
        assert answer.startswith("InterfaceError: ")
        assert "belongs to the process that opened it" in answer
        assert forked(lambda: next(rows) and [next(rows) for _ in range(20)], clean=True).startswith("InterfaceError: ")
        assert forked(lambda: work(db), clean=True) == "4"
        assert snap.execute("SELECT count(*) FROM t").scalar() == 1
        assert len(list(rows)) == 49
    assert db.execute("SELECT count(*) FROM t").scalar() == 4
    at_rest(db)


def test_with_busy_threads_both_sides_go_on(db: safedb.Database, crew: Crew) -> None:
    """Survives its surroundings: forks while other threads read and write; no call of anybody's fails or is doubled."""
    end = threading.Event()

    def busy(number: int) -> int:
        done = 0
        while not end.is_set():
            db.execute("INSERT INTO t VALUES (?)", (100 + number,))
            db.execute("SELECT count(*) FROM t")
            done += 1
        return done

    workers = [crew(busy, number) for number in range(4)]
    try:
        answers = [forked(lambda: work(db) > 0, clean=True) for _ in range(10)]
    finally:
        end.set()
    done = sum(worker.result() for worker in workers)
    assert answers == ["True"] * 10
    assert db.execute("SELECT count(*) FROM t WHERE x >= 100").scalar() == done
    assert db.execute("SELECT count(*) FROM t WHERE x < 100").scalar() == 30
    at_rest(db)


def test_a_child_leaves_no_session_behind(server: Server) -> None:
    """Bounded: the child's links go with the child, the parent's stay."""
    own, name = named(server.schema())
    with safedb.connect(own, retry=GENEROUS, schema="CREATE TABLE t (x integer)") as db:
        work(db)
        sessions = Sessions(server, name)
        before = sessions.pids()
        forked(lambda: work(db))
        end = time.monotonic() + LIMIT
        while sessions.pids() != before:
            assert time.monotonic() < end, (sessions.pids(), before)
            time.sleep(0.01)
