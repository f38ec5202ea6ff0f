"""Your code, your thread: whatever of the caller's is called, is called in the thread that gave it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from conftest import Backend, Connect
from support import Crew, line_behind_a_block

import safedb


class Seen:
    """Note the threads that came by."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def note(self, *_: Any) -> None:
        self.threads.add(threading.get_ident())

    def only_here(self) -> bool:
        return self.threads == {threading.get_ident()}


def test_functions_blocks_and_callbacks_run_in_their_callers_thread_while_others_lead(
    db: safedb.Database, crew: Crew
) -> None:
    def work() -> bool:
        seen = Seen()

        def body(tx: safedb.Transaction) -> None:
            seen.note()
            tx.after_commit(seen.note)
            tx.execute("UPDATE t SET v = v WHERE id = -1")

        db.run_transaction(body)
        db.transactional(body)()
        return seen.only_here()

    with line_behind_a_block(db, crew) as line:
        workers = [line.add(work) for _ in range(4)]
    assert all(worker.result() for worker in workers)


class Tracing(Mapping[str, Any]):
    """Be parameters that note who reads them."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def __getitem__(self, name: str) -> Any:
        self._seen.note()
        return f"{name} {threading.get_ident()}"

    def __iter__(self) -> Iterator[str]:
        self._seen.note()
        return iter(["v"])

    def __len__(self) -> int:
        return 1


def test_parameters_are_read_in_their_callers_thread_before_it_waits(db: safedb.Database, crew: Crew) -> None:
    """Whoever leads the group finds plain values: a slow or failing generator holds up nobody but its owner."""

    def single() -> bool:
        seen = Seen()
        db.execute("INSERT INTO t (v) VALUES (:v)", Tracing(seen))
        return seen.only_here()

    def many() -> bool:
        seen = Seen()

        def rows() -> Iterator[tuple[str]]:
            for number in range(3):
                seen.note()
                yield (f"many {threading.get_ident()} {number}",)

        assert db.executemany("INSERT INTO t (v) VALUES (?)", rows()) == 3
        return seen.only_here()

    with line_behind_a_block(db, crew) as line:
        workers = [line.add(call) for call in (single, many, single, many, single)]
    assert all(worker.result() for worker in workers)
    assert db.execute("SELECT count(*) FROM t").scalar() == 9


def test_a_list_that_changes_while_the_write_waits_changes_nothing(
    db: safedb.Database, backend: Backend, crew: Crew
) -> None:
    db.execute(backend.schema("ALTER TABLE t ADD COLUMN b {blob}"))
    values = ["given"]
    buffer = bytearray(b"given")
    rows = [("row",)]
    with line_behind_a_block(db, crew) as line:
        line.add(db.execute, "INSERT INTO t (v) VALUES (?)", values)
        line.add(db.execute, "INSERT INTO t (b) VALUES (?)", (buffer,))
        line.add(db.executemany, "INSERT INTO t (v) VALUES (?)", rows)
        values[0] = "changed"
        buffer[:] = b"wrong"
        rows.append(("more",))
    assert set(db.execute("SELECT v, b FROM t")) == {("given", None), (None, b"given"), ("row", None)}


def test_rows_are_made_in_their_callers_thread(connect: Connect, crew: Crew) -> None:
    seen = Seen()
    threads: list[bool] = []

    def factory(columns: tuple[str, ...]) -> Callable[[tuple[Any, ...]], Any]:
        threads.append(True)
        seen.note()

        def make(row: tuple[Any, ...]) -> Any:
            seen.note()
            return row

        return make

    db = connect(schema="CREATE TABLE t (v TEXT)", row_factory=factory)
    with line_behind_a_block(db, crew) as line:
        workers = [line.add(db.execute, "INSERT INTO t VALUES ('x') RETURNING v") for _ in range(3)]
    for worker in workers:
        assert worker.result().fetchall() == [("x",)]
    assert threads
    assert seen.only_here()  # the rows are made where they are fetched
