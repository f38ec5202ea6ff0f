"""Snapshot reads: one committed state, never blocked, never in the way, and never behind what was acknowledged."""

from __future__ import annotations

import threading

import pytest
from conftest import Connect
from support import JOIN, Crew

import safedb


def values(source: safedb.Database | safedb.Snapshot | safedb.Transaction) -> list[str]:
    return [row[0] for row in source.execute("SELECT v FROM t ORDER BY id")]


def insert(db: safedb.Database, value: str) -> None:
    db.execute("INSERT INTO t (v) VALUES (?)", (value,))


def test_a_snapshot_sees_one_state_however_long_it_lasts(db: safedb.Database, crew: Crew) -> None:
    insert(db, "before")
    with db.snapshot() as snap:
        assert values(snap) == ["before"]
        crew(insert, db, "meanwhile").result()
        db.execute("UPDATE t SET v = 'changed' WHERE v = 'before'")
        assert values(snap) == ["before"]
        assert snap.execute("SELECT count(*) FROM t").scalar() == 1
    assert values(db) == ["changed", "meanwhile"]


def test_the_state_is_fixed_when_the_block_is_entered_not_at_the_first_read(db: safedb.Database, crew: Crew) -> None:
    with db.snapshot() as snap:
        crew(insert, db, "later").result()
        assert values(snap) == []


def test_a_snapshot_sees_everything_acknowledged_before_it(db: safedb.Database, connect: Connect, crew: Crew) -> None:
    handles = [db, connect()]

    def work(worker: int) -> None:
        for number in range(20):
            insert(handles[worker % 2], f"{worker}-{number}")
            with handles[(worker + 1) % 2].snapshot() as snap:
                assert f"{worker}-{number}" in values(snap)

    crew.together(6, work)


def test_a_plain_read_sees_every_write_that_was_acknowledged_to_any_thread(db: safedb.Database, crew: Crew) -> None:
    acknowledged: list[str] = []
    finished = threading.Event()

    def read() -> int:
        reads = 0
        while not finished.is_set() or not reads:
            expected = set(acknowledged)
            assert expected <= set(values(db))
            reads += 1
        return reads

    def write(worker: int) -> None:
        for number in range(40):
            insert(db, f"{worker}-{number}")
            acknowledged.append(f"{worker}-{number}")

    readers = [crew(read) for _ in range(2)]
    try:
        crew.together(3, write)
    finally:
        finished.set()
    assert all(reader.result() for reader in readers)


def test_an_open_write_transaction_blocks_no_reader_and_shows_nothing(db: safedb.Database, crew: Crew) -> None:
    insert(db, "before")
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('open')")
        assert values(tx) == ["before", "open"]

        def read() -> tuple[list[str], list[str]]:
            with db.snapshot() as snap:
                return values(snap), ["end"]

        assert crew(values, db).result() == ["before"]
        assert crew(read).result()[0] == ["before"]
    assert values(db) == ["before", "open"]


def test_a_statement_under_way_blocks_no_reader(db: safedb.Database, crew: Crew) -> None:
    entered, release = threading.Event(), threading.Event()

    def hold(tx: safedb.Transaction) -> None:
        tx.execute("DELETE FROM t")
        entered.set()
        assert release.wait(JOIN)

    insert(db, "before")
    holder = crew(db.run_transaction, hold)
    assert entered.wait(JOIN)
    try:
        assert values(db) == ["before"]
    finally:
        release.set()
    holder.result()
    assert values(db) == []


def test_an_open_snapshot_blocks_no_writer(db: safedb.Database, crew: Crew) -> None:
    with db.snapshot() as snap:
        for number in range(10):
            crew(insert, db, f"{number}").result()
        with db.transaction() as tx:  # the thread of the snapshot may write as well
            tx.execute("INSERT INTO t (v) VALUES ('own')")
        db.execute("CREATE TABLE u (a INTEGER)")
        assert values(snap) == []
    assert len(values(db)) == 11


def test_many_readers_read_at_once(db: safedb.Database, crew: Crew) -> None:
    """Each holds its snapshot until all have one: were they served one by one, this would never end."""
    all_inside = threading.Barrier(6)

    def read(_: int) -> list[str]:
        with db.snapshot() as snap:
            all_inside.wait(JOIN)
            return values(snap)

    insert(db, "x")
    assert crew.together(6, read) == [["x"]] * 6


def test_a_read_is_consistent_within_itself(db: safedb.Database, crew: Crew) -> None:
    """Pairs are written together and never seen apart, not even by one statement that looks twice."""
    finished = threading.Event()

    def watch() -> set[tuple[int, int]]:
        sql = "SELECT (SELECT count(*) FROM t WHERE v LIKE 'a%'), (SELECT count(*) FROM t WHERE v LIKE 'b%')"
        seen = set()
        while not finished.is_set():
            seen.add(db.execute(sql).one())
        return seen

    watcher = crew(watch)
    try:
        for number in range(60):
            db.execute("INSERT INTO t (v) VALUES (?), (?)", (f"a{number}", f"b{number}"))
    finally:
        finished.set()
    assert all(a == b for a, b in watcher.result())


def test_iterate_gives_every_row_once_in_batches_while_writes_go_on(db: safedb.Database, crew: Crew) -> None:
    db.executemany("INSERT INTO t (id, v) VALUES (?, ?)", [(number, f"{number}") for number in range(500)])
    with db.snapshot() as snap:
        seen = []
        for position, row in enumerate(
            snap.iterate("SELECT id FROM t WHERE id >= :low ORDER BY id", {"low": 0}, batch=7)
        ):
            seen.append(row[0])
            if position % 100 == 0:
                crew(db.execute, "DELETE FROM t WHERE id = ?", (499 - position,)).result()
                crew(db.execute, "INSERT INTO t (id, v) VALUES (?, ?)", (1000 + position, f"new {position}")).result()
    assert seen == list(range(500))


def test_several_iterators_and_reads_go_on_side_by_side(db: safedb.Database) -> None:
    db.executemany("INSERT INTO t (id, v) VALUES (?, ?)", [(number, f"{number}") for number in range(20)])
    with db.snapshot() as snap:
        up = snap.iterate("SELECT id FROM t ORDER BY id", batch=3)
        down = snap.iterate("SELECT id FROM t ORDER BY id DESC", batch=4)
        pairs = [(a[0], b[0], snap.execute("SELECT count(*) FROM t").scalar()) for a, b in zip(up, down, strict=True)]
    assert pairs == [(number, 19 - number, 20) for number in range(20)]


def test_an_iterator_that_is_left_half_read_holds_nothing_back(db: safedb.Database) -> None:
    db.executemany("INSERT INTO t (id, v) VALUES (?, ?)", [(number, f"{number}") for number in range(100)])
    for _ in range(20):  # more often than there are readers
        with db.snapshot() as snap:
            rows = snap.iterate("SELECT id FROM t ORDER BY id", batch=2)
            assert next(rows) == (0,)
    db.execute("DELETE FROM t")
    if db.dialect == "sqlite":
        db.checkpoint()
        assert db.stats().wal_bytes == 0
    assert db.stats().oldest_snapshot is None
    assert db.stats().readers.in_use == 0


@pytest.mark.parametrize("batch", [0, -1, True, 1.5, "10"])
def test_a_batch_is_a_number_of_rows(db: safedb.Database, batch: object) -> None:
    with db.snapshot() as snap, pytest.raises(safedb.InterfaceError, match="batch"):
        snap.iterate("SELECT 1", batch=batch)  # type: ignore[arg-type]


def test_row_factories_hold_for_iterators_too(connect: Connect) -> None:
    db = connect(schema="CREATE TABLE b (flag BOOLEAN)", row_factory=safedb.dict_row)
    db.executemany("INSERT INTO b VALUES (?)", [(True,), (False,), (None,)])
    with db.snapshot() as snap:
        assert list(snap.iterate("SELECT flag FROM b", batch=2)) == [{"flag": True}, {"flag": False}, {"flag": None}]


def test_a_reader_never_sees_part_of_a_transaction(db: safedb.Database, crew: Crew) -> None:
    finished = threading.Event()

    def watch() -> set[int]:
        seen = set()
        while not finished.is_set():
            seen.add(db.execute("SELECT count(*) FROM t").scalar())
        return seen

    watcher = crew(watch)
    try:
        for number in range(15):
            with db.transaction() as tx:
                for part in range(10):
                    tx.execute("INSERT INTO t (v) VALUES (?)", (f"{number}-{part}",))
            db.executemany("INSERT INTO t (v) VALUES (?)", [(f"many {number}-{part}",) for part in range(10)])
    finally:
        finished.set()
    assert {count % 10 for count in watcher.result()} <= {0}
