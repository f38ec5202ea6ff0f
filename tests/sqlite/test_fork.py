"""A fork costs nobody anything: both sides go on, or the parent does and the child is told clearly.

The children here are forked from this very process, with its threads and open databases, and answer through a pipe.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Crew, Gate, sqlite3, wait_until

import safedb
from safedb import errors
from safedb.sqlite import fork
from safedb.sqlite.opening import registry

GENEROUS = safedb.RetryPolicy(timeout=60.0)
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
LIMIT = 30.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture(params=["file", "memory"])
def any_db(request: pytest.FixtureRequest, path: Path, gate: Gate) -> Iterator[safedb.Database]:
    target = path if request.param == "file" else "sqlite://"
    with make(target, gate) as db:
        yield db


@pytest.fixture
def db(path: Path, gate: Gate) -> Iterator[safedb.Database]:
    with make(path, gate) as db:
        yield db


def make(target: Any, gate: Gate) -> safedb.Database:
    db = safedb.connect(
        target, schema="CREATE TABLE IF NOT EXISTS t(x)", retry=GENEROUS, functions={"gate": gate},
        pool=safedb.PoolConfig(fork_wait=0.3),
    )  # fmt: skip
    db.execute("INSERT INTO t VALUES (1)")
    return db


class Child:
    """Be a forked child that does one thing, sends the outcome as text, and leaves at once."""

    def __init__(self, call: Callable[[], Any]) -> None:
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what this is about
            self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            try:
                answer = repr(call())
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(write, answer.encode()[:60_000])
            os._exit(0)
        os.close(write)
        self._read = read

    def answer(self) -> str:
        text, end = b"", time.monotonic() + LIMIT
        while True:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                text = b"it hangs"
                break
            piece = os.read(self._read, 65536)
            if not piece:
                break
            text += piece
        os.close(self._read)
        os.waitpid(self.pid, 0)
        return text.decode()


def in_child(call: Callable[[], Any]) -> str:
    return Child(call).answer()


def refused(answer: str) -> bool:
    return answer.startswith("InterfaceError: ") and "was in use when this process was forked" in answer


def count(db: safedb.Database) -> int:
    number: int = db.execute("SELECT count(*) FROM t").scalar()
    return number


def write(db: safedb.Database) -> str:
    db.execute("INSERT INTO t VALUES (2)")
    return f"{count(db)} rows"


# -- with idle handles ------------------------------------------------------------------------------------------------


def test_with_idle_handles_both_sides_go_on(db: safedb.Database, path: Path) -> None:
    """H34: a row committed by such a child was lost, because it held no locks."""
    assert in_child(lambda: write(db)) == "'2 rows'"
    assert count(db) == 2
    assert write(db) == "3 rows"
    assert in_child(lambda: (write(db), db.check())) == "('4 rows', [])"
    with safedb.connect(path) as other:
        assert count(other) == 4
    assert db.check() == []


def test_a_child_holds_real_locks(db: safedb.Database, path: Path) -> None:
    """H34: its INSERT returned, and was never on the disk; here an outsider sees the lock and the row."""
    outsider = sqlite3.connect(path, timeout=0, isolation_level=None)
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()

    def hold() -> str:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (2)")
            os.write(ready_write, b"x")
            os.read(go_read, 1)
        return "committed"

    child = Child(hold)
    os.read(ready_read, 1)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        outsider.execute("BEGIN IMMEDIATE")
    os.write(go_write, b"x")
    assert child.answer() == "'committed'"
    assert outsider.execute("SELECT count(*) FROM t").fetchone() == (2,)
    outsider.close()
    for number in (ready_read, ready_write, go_read, go_write):
        os.close(number)


def test_both_sides_write_at_once_and_nothing_is_lost(db: safedb.Database, crew: Crew) -> None:
    def many() -> str:
        for _ in range(50):
            db.execute("INSERT INTO t VALUES (3)")
        return "done"

    children = [Child(many) for _ in range(2)]
    crew.together(3, lambda _: many())
    assert [child.answer() for child in children] == ["'done'", "'done'"]
    assert count(db) == 1 + 50 * 5
    assert db.check() == []


def test_a_child_may_fork_again(db: safedb.Database) -> None:
    assert in_child(lambda: (write(db), in_child(lambda: write(db)))) == "('2 rows', \"'3 rows'\")"
    assert count(db) == 3


def test_threads_of_the_parent_that_read_and_write_get_no_error(db: safedb.Database, crew: Crew) -> None:
    end = threading.Event()

    def work(number: int) -> int:
        done = 0
        while not end.is_set():
            if number % 2:
                db.execute("INSERT INTO t VALUES (4)")
                done += 1
            else:
                count(db)
        return done

    workers = [crew(work, number) for number in range(4)]
    answers = [in_child(lambda: count(db) > 0) for _ in range(6)]
    end.set()
    written = sum(worker.result() for worker in workers)
    assert all(answer == "True" or refused(answer) for answer in answers), answers
    assert "True" in answers
    assert count(db) == 1 + written


def test_waiting_writers_of_the_parent_get_no_error(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    writing = crew(db.execute, "INSERT INTO t SELECT gate()")
    gate.wait_until_reached()
    waiting = [crew(db.execute, "INSERT INTO t VALUES (5)") for _ in range(3)]
    wait_until(lambda: db.stats().queue_depth == 3)
    assert refused(in_child(lambda: write(db))), "the statement under way did not end within fork_wait"
    gate.open()
    for worker in (writing, *waiting):
        worker.result()
    assert count(db) == 5


def test_a_read_that_does_not_end_in_time_is_undisturbed(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    reading = crew(db.execute, "SELECT gate(x) FROM t")
    gate.wait_until_reached()
    assert refused(in_child(lambda: count(db)))
    late = crew(count, db)
    gate.open()
    assert reading.result().fetchall() == [(1,)]
    assert late.result() == 1
    assert in_child(lambda: write(db)) == "'2 rows'"


def test_what_lies_in_memory_is_copied(gate: Gate) -> None:
    with make("sqlite://", gate) as db:
        assert in_child(lambda: write(db)) == "'2 rows'"
        assert count(db) == 1, "the child's copy is its own"


# -- while it is in use -----------------------------------------------------------------------------------------------


def test_a_fork_inside_ones_own_transaction_leaves_the_parent_undisturbed(any_db: safedb.Database) -> None:
    """H30, H31: the child shares an open transaction, and locks that are not its own."""
    db = any_db
    started = time.monotonic()
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (2)")
        answers = [
            in_child(call)
            for call in (
                lambda: tx.execute("INSERT INTO t VALUES (3)"),
                lambda: tx.execute("SELECT count(*) FROM t").scalar(),
                lambda: db.execute("INSERT INTO t VALUES (3)"),
                lambda: count(db),
                lambda: db.transaction().__enter__(),
                lambda: db.snapshot().__enter__(),
                db.check,
            )
        ]
        tx.execute("INSERT INTO t VALUES (4)")
    assert all(refused(answer) for answer in answers), answers
    assert time.monotonic() - started < 20, "a child waited for its parent's lock instead of saying what is wrong"
    assert count(db) == 3
    assert db.check() == []


def test_a_fresh_connect_of_the_same_file_is_refused_in_the_child(
    db: safedb.Database, path: Path, tmp_path: Path
) -> None:
    """H34: what the process knows of the file's locks was copied, so a fresh connection is no better."""
    (tmp_path / "link.db").symlink_to(path)
    with db.transaction():
        for name in (path, tmp_path / "link.db"):
            assert refused(in_child(lambda name=name: safedb.connect(name)))  # type: ignore[misc]
        other = tmp_path / "other.db"
        assert in_child(lambda: safedb.connect(other).execute("SELECT 1").scalar()) == "1"
    assert in_child(lambda: safedb.connect(path).execute("SELECT 1").scalar()) == "1", "and only then"


def test_a_fork_inside_ones_own_function(db: safedb.Database) -> None:
    def work(tx: Any) -> str:
        tx.execute("INSERT INTO t VALUES (2)")
        return in_child(lambda: tx.execute("INSERT INTO t VALUES (3)"))

    assert refused(db.run_transaction(work))
    assert count(db) == 2


def test_a_fork_inside_ones_own_snapshot(any_db: safedb.Database) -> None:
    db = any_db
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT x FROM t", batch=1)
        answer = in_child(lambda: snap.execute("SELECT count(*) FROM t").scalar())
        assert "was in use when this process was forked" in answer
        assert refused(in_child(lambda: write(db)))
        assert snap.execute("SELECT count(*) FROM t").scalar() == 1
        assert list(rows) == [(1,)]
    assert write(db) == "2 rows"


def test_a_child_that_leaves_its_parents_snapshot_gets_no_connection_of_it(db: safedb.Database, path: Path) -> None:
    parent = os.getpid()
    answer = ""
    with db.snapshot() as snap:
        read, write_end = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    if os.getpid() != parent:  # the child has left the block
        try:
            outcome = repr(count(db))
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(write_end, outcome.encode())
        os._exit(0)
    os.close(write_end)
    answer = os.read(read, 65536).decode()
    os.close(read)
    os.waitpid(pid, 0)
    assert refused(answer), answer
    assert repr(snap).endswith("ended>")
    assert count(db) == 1


@pytest.mark.parametrize("what", ["transaction", "snapshot"])
def test_a_fork_while_another_thread_holds_a_block_is_not_held_up(db: safedb.Database, crew: Crew, what: str) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> int:
        with getattr(db, what)() as held:
            inside.set()
            leave.wait(LIMIT)
            number: int = held.execute("SELECT count(*) FROM t").scalar()
            return number

    holder = crew(hold)
    inside.wait(LIMIT)
    waiting = crew(db.execute, "INSERT INTO t VALUES (2)")
    assert refused(in_child(lambda: count(db)))
    leave.set()
    assert holder.result() == 1
    waiting.result()
    assert count(db) == 2


def test_a_fork_while_another_thread_opens_the_file(path: Path, crew: Crew) -> None:
    """H34: its connection is open already, and the engine is not yet known."""
    safedb.connect(path, schema="CREATE TABLE t(x)").close()
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("PRAGMA journal_mode=DELETE")
    holder.execute("BEGIN IMMEDIATE")  # so that the switch to WAL has to wait
    connecting = crew(safedb.connect, path, retry=GENEROUS)
    wait_until(lambda: any(entry.lock.locked() for entry in registry.entries.values()))
    try:
        assert refused(in_child(lambda: safedb.connect(path, retry=safedb.RetryPolicy(timeout=1.0))))
    finally:
        holder.execute("COMMIT")
        holder.close()
    with connecting.result() as db:
        assert count(db) == 0
    assert not fork._preparations


PARENT = """
import os, sys, safedb
db = safedb.connect("sqlite:///" + sys.argv[1], schema="CREATE TABLE t(x)", pragmas=safedb.Pragmas(cache_size=10))
db.execute("INSERT INTO t VALUES (1)")
with {block} as held:
    for number in range(200 if {spill} else 0):
        held.execute("INSERT INTO t VALUES (zeroblob(4000))")
    pid = os.fork()
    if pid == 0:
        sys.exit(0)                # not os._exit: the interpreter takes everything down
    assert os.waitpid(pid, 0)[1] in (0, 256, 120 << 8), "the child was killed"
    print(held.execute("SELECT count(*) FROM t").scalar())
print(db.execute("SELECT count(*) FROM t").scalar(), db.check())
db.execute("INSERT INTO t VALUES (2)")
print(db.execute("SELECT count(*) FROM t").scalar())
db.close()
"""


@pytest.mark.parametrize(("block", "spill", "rows"), [("db.transaction()", True, 201), ("db.snapshot()", False, 1)])
def test_a_child_that_ends_its_interpreter_does_not_undo_what_its_parent_does(
    path: Path, block: str, spill: bool, rows: int
) -> None:
    """H30: to deallocate an inherited connection is to close it; the parent's database was malformed after that."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARENT.format(block=block, spill=spill), str(path)],
        capture_output=True,
        env=ENVIRON,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n")[:3] == [f"{rows}", f"{rows} []", f"{rows + 1}"], done.stderr
    outsider = sqlite3.connect(path)
    assert outsider.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert outsider.execute("SELECT count(*) FROM t").fetchone() == (rows + 1,)
    outsider.close()


def test_a_closed_handle_is_closed_in_the_child_too(db: safedb.Database, path: Path) -> None:
    other = safedb.connect(path)
    other.close()
    assert in_child(lambda: other.execute("SELECT 1")).startswith("DatabaseClosed")

    def reopen() -> int:
        db.close()
        return count(safedb.connect(path))

    assert in_child(reopen) == "1"
    assert count(db) == 1


def test_a_subprocess_runs_no_hooks(db: safedb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.transaction() as tx:
        subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=LIMIT)
        tx.execute("INSERT INTO t VALUES (2)")
    assert count(db) == 2


def test_where_there_is_no_fork_there_are_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: registered.append(hooks))
    fork.install()
    monkeypatch.delattr(os, "register_at_fork")
    fork.install()
    assert len(registered) == 1


def test_a_fork_waits_for_no_more_than_its_share(db: safedb.Database, gate: Gate, crew: Crew) -> None:
    reading = crew(db.execute, "SELECT gate(x) FROM t")
    gate.wait_until_reached()
    started = time.monotonic()
    in_child(lambda: None)
    assert time.monotonic() - started < 10.0
    gate.open()
    reading.result()
    assert isinstance(crew(write, db).result(), str)


def test_the_refusal_is_an_error_of_the_interface() -> None:
    assert issubclass(errors.InterfaceError, errors.Error)
    assert "spawn" in fork._refusal("app.db")
    assert "app.db" in fork._refusal("app.db")


@pytest.mark.parametrize("how", ["a statement", "a read", "a snapshot"])
def test_a_fork_in_the_middle_of_a_call_to_sqlite_leaves_a_child_that_uses_none(
    tmp_path: Path, crew: Crew, gate: Gate, how: str
) -> None:
    """SQLite's locks in memory are copied as they are: held. Any call of the child's may wait for them for ever.

    Written down: another thread's statement stands still inside SQLite and outlasts `fork_wait`; this one forks.
    """
    functions, pool, schema = {"gate": gate}, safedb.PoolConfig(fork_wait=0.1), "CREATE TABLE t (v)"
    with (
        safedb.connect(tmp_path / "app.db", schema=schema, functions=functions, pool=pool) as db,
        safedb.connect(tmp_path / "quiet.db", schema=schema) as quiet,
    ):

        def stand_still() -> None:
            if how == "a statement":
                db.execute("INSERT INTO t VALUES (gate())")
            elif how == "a read":
                db.execute("SELECT gate()")
            else:
                with db.snapshot() as snap:
                    snap.execute("SELECT gate()")

        worker = crew(stand_still)
        gate.wait_until_reached()

        def child() -> str:
            answers = []
            for call in (
                lambda: db.execute("SELECT 1"),
                lambda: quiet.execute("INSERT INTO t VALUES (1)"),
                lambda: safedb.connect(tmp_path / "other.db"),
                lambda: safedb.connect("sqlite://"),
            ):
                with pytest.raises(safedb.InterfaceError) as caught:
                    call()
                answers.append("spawn" in str(caught.value))
            return str(answers)

        assert in_child(child) == repr("[True, True, True, True]")
        gate.open()
        worker.result()
        quiet.execute("INSERT INTO t VALUES (2)")
        assert quiet.execute("SELECT v FROM t").fetchall() == [(2,)]
