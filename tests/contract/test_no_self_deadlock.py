"""No self-deadlock: a call that would wait for its own thread raises at once, on whatever handle of the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Connect
from support import Crew

import safedb

Call = Callable[[safedb.Database, Path], Any]


def enter(manager: Any) -> None:
    with manager:
        pass


def only_sqlite(db: safedb.Database, call: Callable[[], Any], otherwise: str) -> Any:
    """Call what PostgreSQL refuses wherever it is called; there another statement of its kind takes its place."""
    if db.dialect == "sqlite":
        return call()
    with pytest.raises(safedb.NotSupportedError, match="PostgreSQL"):
        call()
    return db.execute(otherwise)


WRITES: dict[str, Call] = {
    "execute, a write": lambda db, _: db.execute("INSERT INTO t (v) VALUES ('inner')"),
    "execute, DDL": lambda db, _: db.execute("CREATE TABLE u (a INTEGER)"),
    "executemany": lambda db, _: db.executemany("INSERT INTO t (v) VALUES (?)", [("inner",)]),
    "executemany, no rows": lambda db, _: db.executemany("INSERT INTO t (v) VALUES (?)", []),
    "executescript": lambda db, _: db.executescript("INSERT INTO t (v) VALUES ('inner')"),
    "transaction": lambda db, _: enter(db.transaction()),
    "run_transaction": lambda db, _: db.run_transaction(lambda tx: None),
    "transactional": lambda db, _: db.transactional(lambda tx: None)(),
    "checkpoint": lambda db, _: only_sqlite(db, db.checkpoint, "DELETE FROM t WHERE 1 = 0"),
    "optimize": lambda db, _: db.optimize(),
}
READS: dict[str, Call] = {
    "execute, a read": lambda db, _: db.execute("SELECT count(*) FROM t"),
    "execute, a WITH": lambda db, _: db.execute("WITH a AS (SELECT 1) SELECT * FROM a"),
    "snapshot": lambda db, _: enter(db.snapshot()),
    "backup": lambda db, folder: only_sqlite(db, lambda: db.backup(folder / "copy.db"), "SELECT 1"),
    "check": lambda db, _: db.check(),
}
CALLS = READS | WRITES


@contextmanager
def in_a_block(db: safedb.Database) -> Iterator[safedb.Transaction]:
    with db.transaction() as tx:
        yield tx


@contextmanager
def in_a_savepoint(db: safedb.Database) -> Iterator[safedb.Transaction]:
    with db.transaction() as tx, tx.savepoint():
        yield tx


def run_inside(how: str, db: safedb.Database, check: Callable[[safedb.Transaction], None]) -> None:
    """Call ``check`` inside a write transaction of the given kind."""
    if how == "a function":
        db.run_transaction(check)
    else:
        with (in_a_block if how == "a block" else in_a_savepoint)(db) as tx:
            check(tx)


@pytest.fixture
def handles(db: safedb.Database, connect: Connect, target: Any, tmp_path: Path) -> dict[str, safedb.Database]:
    """Give handles of several kinds on one database."""
    found = {"the same": db, "a second": connect(), "a read-only one": connect(read_only=True)}
    if db.dialect == "sqlite":
        link = tmp_path / "link.db"
        link.symlink_to(target)
        found["one by a symbolic link"] = connect(link)
    return found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("how", ["a block", "a savepoint", "a function"])
def test_every_call_on_every_handle_inside_a_transaction_raises_at_once(
    db: safedb.Database, handles: dict[str, safedb.Database], tmp_path: Path, how: str, call: Call
) -> None:
    def check(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t (v) VALUES ('outer')")
        for name, handle in handles.items():
            if name == "a read-only one" and call in WRITES.values():
                continue  # refused anyway, and says so
            with pytest.raises(safedb.ReentrancyError, match="Use tx"):
                call(handle, tmp_path)
        tx.execute("INSERT INTO t (v) VALUES ('still usable')")

    run_inside(how, db, check)
    assert db.execute("SELECT v FROM t ORDER BY id").fetchall() == [("outer",), ("still usable",)]
    call(db, tmp_path)  # outside it works


@pytest.mark.parametrize("call", READS.values(), ids=READS.keys())
def test_reads_inside_a_snapshot_raise_on_every_handle(
    db: safedb.Database, handles: dict[str, safedb.Database], tmp_path: Path, call: Call
) -> None:
    with db.snapshot() as snap:
        for handle in handles.values():
            with pytest.raises(safedb.ReentrancyError, match="Use snap"):
                call(handle, tmp_path)
        assert snap.execute("SELECT count(*) FROM t").scalar() == 0


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES.keys())
def test_writes_inside_a_snapshot_are_allowed(db: safedb.Database, tmp_path: Path, call: Call) -> None:
    db.execute("INSERT INTO t (v) VALUES ('before')")
    with db.snapshot() as snap:
        call(db, tmp_path)
        assert snap.execute("SELECT v FROM t").fetchall() == [("before",)]


def test_closing_the_last_handle_inside_its_own_transaction_raises_at_once(
    connect: Connect, db: safedb.Database
) -> None:
    """Closing waits for transactions to end, so this one would wait for itself."""
    with db.transaction() as tx:
        with pytest.raises(safedb.ReentrancyError):
            db.close()
        tx.execute("INSERT INTO t (v) VALUES ('kept')")
    assert db.execute("SELECT v FROM t").one() == ("kept",)  # it is open as before

    with db.transaction() as tx:
        connect().close()  # not the last one: nobody waits
        tx.execute("INSERT INTO t (v) VALUES ('kept too')")


def test_a_handle_that_is_opened_inside_a_transaction_is_refused_like_the_others(
    db: safedb.Database, connect: Connect
) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('x')")
        late = connect()
        with pytest.raises(safedb.ReentrancyError):
            late.execute("SELECT 1")
        with pytest.raises(safedb.ReentrancyError):
            connect(schema="CREATE TABLE IF NOT EXISTS u (a INTEGER)")
        with pytest.raises(safedb.ReentrancyError):
            connect(read_only=True).execute("SELECT 1")
    assert late.execute("SELECT count(*) FROM t").scalar() == 1


def test_stats_may_be_asked_anywhere(db: safedb.Database) -> None:
    with db.transaction():
        assert db.stats().dialect == db.dialect
    with db.snapshot():
        assert db.stats().oldest_snapshot is not None


def test_other_threads_are_not_concerned(db: safedb.Database, crew: Crew) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('x')")
        assert crew(db.execute, "SELECT count(*) FROM t").result().scalar() == 0
    with db.snapshot():
        assert crew(db.execute, "SELECT count(*) FROM t").result().scalar() == 1


@pytest.mark.parametrize("how", ["a block", "a function"])
def test_a_thread_is_free_again_whatever_ended_its_transaction(db: safedb.Database, how: str) -> None:
    class Mishap(BaseException):
        pass

    def fail(tx: safedb.Transaction) -> None:
        raise Mishap

    with pytest.raises(Mishap):
        run_inside(how, db, fail)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0
    with pytest.raises(Mishap), db.snapshot():
        raise Mishap
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_a_callback_after_the_commit_may_use_the_database(db: safedb.Database) -> None:
    def insert(tx: safedb.Transaction) -> None:
        tx.after_commit(lambda: db.execute("INSERT INTO t (v) VALUES ('afterwards')"))

    db.run_transaction(insert)
    with db.transaction() as tx:
        tx.after_commit(lambda: db.run_transaction(lambda tx: tx.execute("INSERT INTO t (v) VALUES ('again')")))
    assert db.execute("SELECT v FROM t ORDER BY id").fetchall() == [("afterwards",), ("again",)]


def test_a_transaction_belongs_to_the_thread_that_entered_it(db: safedb.Database, crew: Crew) -> None:
    uses: list[Callable[[safedb.Transaction], Any]] = [
        lambda tx: tx.execute("INSERT INTO t (v) VALUES ('stolen')"),
        lambda tx: tx.executemany("INSERT INTO t (v) VALUES (?)", [("stolen",)]),
        lambda tx: tx.savepoint(),
        lambda tx: tx.after_commit(print),
    ]
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('own')")
        for use in uses:
            error = crew(use, tx).error()
            assert type(error) is safedb.InterfaceError
            assert "belongs to the thread" in str(error)
        tx.execute("INSERT INTO t (v) VALUES ('still own')")
    assert db.execute("SELECT v FROM t ORDER BY id").fetchall() == [("own",), ("still own",)]


def test_a_snapshot_belongs_to_the_thread_that_entered_it(db: safedb.Database, crew: Crew) -> None:
    db.execute("INSERT INTO t (v) VALUES ('a'), ('b'), ('c')")
    with db.snapshot() as snap:
        assert "belongs to the thread" in str(crew(snap.execute, "SELECT 1").error())
        assert "belongs to the thread" in str(crew(lambda: list(snap.iterate("SELECT 1"))).error())
        rows = snap.iterate("SELECT v FROM t", batch=1)
        assert next(rows) == ("a",)
        assert isinstance(crew(next, rows).error(), safedb.InterfaceError)
        assert snap.execute("SELECT count(*) FROM t").scalar() == 3


@pytest.mark.parametrize("how", ["a block", "a function"])
def test_a_transaction_that_has_ended_is_of_no_more_use(db: safedb.Database, how: str) -> None:
    kept: list[safedb.Transaction] = []
    run_inside(how, db, kept.append)
    (tx,) = kept
    for use in (
        lambda: tx.execute("INSERT INTO t (v) VALUES ('late')"),
        lambda: tx.executemany("INSERT INTO t (v) VALUES (?)", [("late",)]),
        lambda: tx.savepoint(),
        lambda: tx.after_commit(print),
    ):
        with pytest.raises(safedb.DatabaseClosed, match="has ended"):
            use()
    assert "ended" in repr(tx)


def test_a_snapshot_that_has_ended_is_of_no_more_use(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT 1")
    with pytest.raises(safedb.DatabaseClosed, match="has ended"):
        snap.execute("SELECT 1")
    with pytest.raises(safedb.DatabaseClosed, match="has ended"):
        snap.iterate("SELECT 1")
    with pytest.raises(safedb.DatabaseClosed, match="has ended"):
        next(rows)
