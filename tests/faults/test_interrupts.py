"""Interrupts at any moment: nobody hangs, no acknowledgement is lost, nothing is half there, and all can go on.

Real signals to main threads, in processes of their own; exceptions that one thread puts into another at moments drawn
by chance; and exceptions planted just where one has to clear up after another.
"""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import interrupting
import pytest
from reliability import Record, form
from support import JOIN, Crew, wait_until

import safedb

PROGRAM = Path(interrupting.__file__)
PATIENCE = 90.0  # seconds: a program that says nothing for longer hangs
SIGNALS = {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "SystemExit"}
KEPT = {"alone", "alone_in_a_group", "aboard"}  # what has run by the time that the signal comes through is committed


class Interrupted(BaseException):
    """Be the exception that is planted."""


@contextmanager
def program(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run one of the programs; it has ended when this is left."""
    command = [sys.executable, str(PROGRAM), name, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    killer = threading.Timer(PATIENCE, child.kill)
    killer.start()
    try:
        with child:
            yield child
            child.communicate(input="\n")
    finally:
        killer.cancel()
        child.kill()


def hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, "it has ended, or was killed because it hung"
    return line.strip()


def report_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Hear what it found; it says other things before."""
    while not (line := hear(child)).startswith("{"):
        pass
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", range(4))
def test_exceptions_at_any_moment_lose_and_hang_nothing(tmp_path: Path, seed: int, record: Record, number: int) -> None:
    """H15, H28: whatever comes between two bytecodes, also into the clearing up after another.

    Written down: 2 to 8 threads write in all ways, read, and checkpoint; KeyboardInterrupt and another exception are
    put into them at moments drawn by chance, half of them followed by more within 0.3 ms. Afterwards every thread can
    do everything, nobody waits, nothing is held, and the file has what was acknowledged, whole.
    """
    with program("storm", tmp_path / "app.db", seed * 100 + number, form(2, 22)) as child:
        report = report_of(child)
    assert not report["found"], report
    assert report["hits"], "nobody was hit"
    assert report["acknowledged"]
    assert child.returncode == 0
    record.add(rounds=1, faults=report["injected"], acknowledged=report["acknowledged"], lost=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number"),
    [(place, signal.SIGINT) for place in interrupting.PLACES]
    + [(place, signal.SIGTERM) for place in ("leader", "waiting", "in_function", "in_block", "in_iterate")],
)
def test_a_signal_to_the_main_thread_leaves_nobody_behind(tmp_path: Path, place: str, number: signal.Signals) -> None:
    """H15, H13b: KeyboardInterrupt by Ctrl-C, and SystemExit by a handler of SIGTERM, wherever the main thread is.

    Written down: `interrupting.PLACES` tells of each place. A signal that comes inside a call of SQLite's takes effect
    when that has ended. The exception says so where the write is committed; else it is there, whole, or it is not.
    Other threads, and another process, then go on while the program lives.
    """
    path = tmp_path / "app.db"
    with safedb.connect(path) as db, program("signalled", path, place) as child:
        wait_to_hear(child, "open")
        with db.transaction() if place == "between_processes" else contextlib.nullcontext():
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            wait_to_hear(child, "ready")
            child.send_signal(number)
            wait_to_hear(child, "interrupted")
        report = report_of(child)
        assert not report["found"], report
        assert report["outcome"] == SIGNALS[number], report
        assert report["committed"] or place not in KEPT, report
        interrupting.statement(db, "another process")
    assert child.returncode == 0


def wait_to_hear(child: subprocess.Popen[str], word: str) -> None:
    while hear(child) != word:
        pass


# -- a second exception, inside the clearing up after the first -------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[safedb.Database]:
    with safedb.connect(tmp_path / "app.db", schema=interrupting.SCHEMA, retry=safedb.RetryPolicy(timeout=60.0)) as db:
        yield db


STEPS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "roll back": lambda engine: (engine.writer, "rollback"),
    "release": lambda engine: (engine.writer, "release"),
    "put back": lambda engine: (engine.turns, "put_back"),
    "abandon": lambda engine: (engine.groups, "_abandon"),
    "leave": lambda engine: (engine.turns, "leave"),
    "unlock": lambda engine: (engine.writer, "unlock"),
}
WAYS = {way.__name__: way for way in interrupting.WRITES}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
def test_an_exception_in_the_clearing_up_after_another_leaves_nobody_behind(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch, way: str, step: str
) -> None:
    """No ``finally`` can answer an exception that comes inside it: the keeper finds who has left without a word.

    Written down: an exception comes when the statement has run, and then at each later call of one step of the clearing
    up, in that thread. Others who queue meanwhile are served, and the thread itself can write again.
    """
    engine: Any = db._engine
    crew, me = Crew(), threading.get_ident()
    run, (owner, name) = engine.writer.run, STEPS[step](engine)
    real, planted = getattr(owner, name), [True]
    followers = []

    def interrupted_run(sql: str, values: Any) -> Any:
        outcome = run(sql, values)
        if threading.get_ident() == me and planted[0] and sql.startswith("INSERT"):
            followers.append(crew(interrupting.statement, db, "follower"))
            wait_until(lambda: db.stats().queue_depth == 1)
            monkeypatch.setattr(owner, name, interrupted_step)
            raise Interrupted
        return outcome

    def interrupted_step(*arguments: Any) -> Any:
        if threading.get_ident() == me and planted[0]:
            raise Interrupted
        return real(*arguments)

    def interrupted_many(sql: str, rows: Any) -> Any:
        return [interrupted_run(sql, row) for row in rows]

    monkeypatch.setattr(engine.writer, "run", interrupted_run)
    monkeypatch.setattr(engine.writer, "run_many", interrupted_many)
    with pytest.raises(Interrupted):
        WAYS[way](db, "main")
    planted[0] = False
    monkeypatch.undo()
    assert len(followers) == 1
    followers[0].join()
    crew.finish()
    assert not interrupting.findings(db)
    parts = {part for (part,) in db.execute("SELECT part FROM t WHERE k = 'main'").fetchall()}
    assert parts in (set(), interrupting.WHOLE[WAYS[way]])


def test_a_lone_statement_that_was_interrupted_after_it_was_committed_says_so(
    db: safedb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H15: a statement alone is committed by SQLite itself, so there is no COMMIT whose end could be seen."""
    writer = db._engine.writer  # type: ignore[attr-defined]
    run = writer.run

    def interrupted_run(sql: str, values: Any) -> Any:
        run(sql, values)
        raise Interrupted

    for sql, committed in ((interrupting.INSERT, True), ("UPDATE t SET part = part WHERE k = ?||?", False)):
        monkeypatch.setattr(writer, "run", interrupted_run)
        with pytest.raises(Interrupted) as caught:
            db.execute(sql, ("main", 0))
        monkeypatch.undo()
        assert any("is committed" in note for note in getattr(caught.value, "__notes__", [])) is committed
    assert db.execute("SELECT count(*) FROM t").scalar() == 1


def test_a_statement_that_was_interrupted_between_its_rows_holds_nobody_up(db: safedb.Database, tmp_path: Path) -> None:
    """RETURNING: what is half read has SQLite's write lock until it is reset.

    Written down: the exception comes when the first row is there, before the others are fetched. Another program, which
    does not know safedb, can write at once; the interrupted statement is whole.
    """
    sql = f"{interrupting.INSERT}, (?, ?) RETURNING part"

    class Cursor:
        def __init__(self, real: Any) -> None:
            self.real = real

        def execute(self, sql: str, values: Any = ()) -> Any:
            self.real.execute(sql, values)
            raise Interrupted

        def close(self) -> None:
            self.real.close()

    writer = db._engine.writer  # type: ignore[attr-defined]
    writer._cursor = Cursor(writer.cursor())
    with pytest.raises(Interrupted) as caught:
        db.execute(sql, ("main", 0, "main", 1))
    assert any("is committed" in note for note in caught.value.__notes__)
    command = [sys.executable, "-c", OTHER, str(tmp_path / "app.db")]
    subprocess.run(command, check=True, timeout=PATIENCE)
    assert db.execute("SELECT count(*) FROM t WHERE k = 'main'").scalar() == 2


OTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30.0)
with connection:
    connection.execute("INSERT INTO t (k, part) VALUES ('other', 0)")
connection.close()
"""


def test_a_read_that_was_interrupted_pins_no_state(db: safedb.Database) -> None:
    """H25: what is half read keeps the WAL from shrinking.

    Written down: a read, and then a snapshot, are interrupted when their first row is there. The WAL can be emptied.
    """
    engine: Any = db._engine
    interrupting.many(db, "main")
    for use in (interrupting.read, interrupting.snapshot):
        reader = engine.readers.check_out(1e9)
        execute = reader.execute

        def interrupted_execute(sql: str, values: Any, execute: Any = execute) -> Any:
            execute("SELECT * FROM t", ())
            raise Interrupted

        reader.execute = interrupted_execute
        engine.readers.give_back(reader)
        with pytest.raises(Interrupted):
            use(db, "main")
        interrupting.statement(db, use.__name__)
        db.checkpoint()
        assert db.stats().wal_bytes == 0
    assert not interrupting.findings(db)


def test_a_snapshot_that_was_opened_for_nobody_is_closed(db: safedb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception can come between `open_snapshot` and the block that would close it: at its very return."""
    engine: Any = db._engine
    for name in ("open_snapshot", "close_snapshot"):
        real = getattr(engine, name)

        def interrupted(*arguments: Any, name: str = name, real: Any = real, **options: Any) -> None:
            if name == "open_snapshot":
                real(*arguments, **options)
            raise Interrupted

        with monkeypatch.context() as patched:
            patched.setattr(engine, name, interrupted)
            with pytest.raises(Interrupted), db.snapshot():
                pass
        interrupting.snapshot(db, "again")  # this thread is not inside one any more
        gc.collect()  # the traceback that pytest keeps refers to it
        assert not interrupting.findings(db)


# -- threads that die -------------------------------------------------------------------------------------------------


def in_a_thread_that_dies(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(JOIN)
    assert not thread.is_alive()


def test_what_a_dead_thread_holds_is_given_up(db: safedb.Database) -> None:
    """A block, a snapshot and an iterator that were entered by hand, are referred to, and will never be left.

    Written down: the thread ends inside of them. The block's writes are rolled back, others are served, the WAL can be
    emptied; a thread that got the dead one's number is not taken for it.
    """
    kept: list[Any] = []

    def die() -> None:
        reading = db.snapshot()
        rows = reading.__enter__().iterate("SELECT * FROM t", batch=1)
        next(rows)
        kept.extend((reading, rows))
        writing = db.transaction()
        kept.extend((writing, writing.__enter__()))
        kept[-1].execute(interrupting.INSERT, ("dead", 0))

    interrupting.many(db, "main")
    for _ in range(3):
        in_a_thread_that_dies(die)
        in_a_thread_that_dies(lambda: interrupting.block(db, f"next {len(kept)}"))
    assert not interrupting.findings(db)
    db.checkpoint()
    assert db.stats().wal_bytes == 0
    assert db.execute("SELECT count(*) FROM t WHERE k = 'dead'").scalar() == 0
    with pytest.raises(safedb.Error):
        kept[-1].execute(interrupting.INSERT, ("dead", 0))
    kept[0].__exit__(None, None, None)  # left by another, late
    with pytest.raises(safedb.InterfaceError):
        kept[2].__exit__(None, None, None)
    assert not interrupting.findings(db)


def test_a_block_that_another_thread_leaves_is_rolled_back(db: safedb.Database) -> None:
    """Its own thread may be in the middle of anything, so the keeper does it."""
    context = db.transaction()
    tx = context.__enter__()
    tx.execute(interrupting.INSERT, ("main", 0))
    crew = Crew()
    assert isinstance(crew(context.__exit__, None, None, None).error(), safedb.InterfaceError)
    crew(interrupting.statement, db, "other").result()
    with pytest.raises(safedb.DatabaseClosed):
        tx.execute(interrupting.INSERT, ("main", 1))
    interrupting.statement(db, "again")  # this thread is not inside it any more
    assert db.execute("SELECT count(*) FROM t WHERE k = 'main'").scalar() == 0
