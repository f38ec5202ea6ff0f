"""Groups: many writes in one transaction, and what happens when one of them fails, is late, or spoils it for all.

A group is forced by a line behind an open block: when the block is left, the first in the line leads and finds the
others waiting. How large the groups were is told by ``stats().group_sizes``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Connect
from support import Crew, Gate, Line, Worker, line_behind_a_block, sizes, wait_until

import safedb

INSERT = "INSERT INTO t (v) VALUES (?)"
FOREVER = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000000000) SELECT count(*) FROM c"
SCHEMA = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT UNIQUE);
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE trap (v TEXT);
    CREATE TRIGGER spring BEFORE INSERT ON trap BEGIN SELECT RAISE(ROLLBACK, 'it was a trap'); END;
"""


class Mishap(Exception):
    pass


@pytest.fixture
def db(connect: Connect, gate: Gate) -> safedb.Database:
    """Be a database whose groups are not closed early by a slow machine."""
    made = connect(schema=SCHEMA, functions={"gate": gate}, pool=safedb.PoolConfig(group_time=10.0))
    made.execute("INSERT INTO t (v) VALUES ('taken')")
    return made


@pytest.fixture
def patient(db: safedb.Database) -> safedb.Database:
    """Be one that breaks no group off before a member's own deadline."""
    db._engine.groups._patience = 60.0  # type: ignore[attr-defined]
    return db


def insert(db: safedb.Database, value: str, timeout: float | None = None) -> safedb.Result:
    return db.execute(INSERT, (value,), timeout=timeout)


def function(db: safedb.Database, value: str) -> int:
    """Write in a function job; return the ident of the thread that ran it."""

    def body(tx: safedb.Transaction) -> int:
        tx.execute(INSERT, (value,))
        return threading.get_ident()

    return db.run_transaction(body)


def values(db: safedb.Database) -> list[str]:
    return [row[0] for row in db.execute("SELECT v FROM t WHERE v <> 'taken' ORDER BY id")]


def new_sizes(db: safedb.Database, before: dict[int, int]) -> dict[int, int]:
    """Give the groups that were committed since, without the block that held the line."""
    found = Counter(sizes(db)) - Counter(before)
    found[1] -= 1
    return dict(+found)


def queue(line: Line, db: safedb.Database, count: int, prefix: str = "") -> list[Worker]:
    return [line.add(insert, db, f"{prefix}{number}") for number in range(count)]


# -- that there are groups, and what they share ----------------------------------------------------------------------


def test_statements_that_wait_together_are_committed_together(patient: safedb.Database, crew: Crew) -> None:
    before = sizes(patient)
    with line_behind_a_block(patient, crew) as line:
        workers = queue(line, patient, 8)
    assert [worker.result().rowcount for worker in workers] == [1] * 8
    assert new_sizes(patient, before) == {8: 1}
    assert values(patient) == [f"{number}" for number in range(8)]


def test_many_row_writes_join_as_one_member(patient: safedb.Database, crew: Crew) -> None:
    before = sizes(patient)
    with line_behind_a_block(patient, crew) as line:
        queue(line, patient, 2)
        many = line.add(patient.executemany, INSERT, [("a",), ("b",), ("c",)])
        queue(line, patient, 2, "x")
    assert many.result() == 3
    assert new_sizes(patient, before) == {5: 1}


def test_functions_join_in_their_own_threads(patient: safedb.Database, crew: Crew) -> None:
    before = sizes(patient)
    with line_behind_a_block(patient, crew) as line:
        queue(line, patient, 2, "a")
        functions = [line.add(function, patient, f"f{number}") for number in range(3)]
        queue(line, patient, 2, "b")
        functions.append(line.add(function, patient, "f3"))
    assert [worker.result() for worker in functions] == [worker.thread.ident for worker in functions]
    assert new_sizes(patient, before) == {8: 1}
    assert values(patient) == ["a0", "a1", "f0", "f1", "f2", "b0", "b1", "f3"]


def test_rows_and_ids_belong_to_each_members_own_statement(patient: safedb.Database, crew: Crew) -> None:
    """H46f, g: what is returned and counted is taken from each statement, and told after COMMIT."""
    with line_behind_a_block(patient, crew) as line:
        workers = [line.add(patient.execute, f"{INSERT} RETURNING id, v", (f"{n}",)) for n in range(6)]
        update = line.add(patient.execute, "UPDATE t SET v = v || '!' WHERE v IN ('1', '3')")
    rows = [worker.result().one() for worker in workers]
    assert [row[1] for row in rows] == [f"{n}" for n in range(6)]
    assert update.result().rowcount == 2
    stored = dict(patient.execute("SELECT id, v FROM t").fetchall())
    assert [stored[row[0]].rstrip("!") for row in rows] == [row[1] for row in rows]


def test_a_block_and_exclusive_work_share_with_nobody(patient: safedb.Database, crew: Crew) -> None:
    """H46h, i: PRAGMA, VACUUM and DDL run alone."""

    def block() -> None:
        with patient.transaction() as tx:
            tx.execute(INSERT, ("block",))

    before = sizes(patient)
    with line_behind_a_block(patient, crew) as line:
        queue(line, patient, 2, "a")
        line.add(block)
        queue(line, patient, 3, "b")
        line.add(patient.executescript, "INSERT INTO t (v) VALUES ('script')")
        queue(line, patient, 4, "c")
    assert new_sizes(patient, before) == {2: 1, 1: 2, 3: 1, 4: 1}


def test_a_group_is_bounded_in_number(connect: Connect, crew: Crew) -> None:
    db = connect(schema=SCHEMA, pool=safedb.PoolConfig(max_group=4))
    before = sizes(db)
    with line_behind_a_block(db, crew) as line:
        queue(line, db, 10)
    found = new_sizes(db, before)
    assert max(found) <= 4
    assert sum(size * count for size, count in found.items()) == 10
    assert values(db) == [f"{number}" for number in range(10)]


def test_a_group_is_bounded_in_time(connect: Connect, crew: Crew, gate: Gate) -> None:
    """A statement that outlasts the bound is the last: those behind it form a group of their own."""
    db = connect(schema=SCHEMA, functions={"gate": gate}, pool=safedb.PoolConfig(group_time=0.01))
    db._engine.groups._patience = 60.0  # type: ignore[attr-defined]
    before = sizes(db)
    with line_behind_a_block(db, crew) as line:
        first = line.add(db.execute, "INSERT INTO t (v) SELECT gate('slow')")
        queue(line, db, 3)

        def open_late() -> None:
            gate.wait_until_reached()
            time.sleep(0.05)  # longer than the bound
            gate.open()

        crew(open_late)
    assert first.result().rowcount == 1
    found = new_sizes(db, before)
    assert found.get(1) == 1, found
    assert sum(size * count for size, count in found.items()) == 4


def test_who_comes_while_the_group_runs_still_joins_it(patient: safedb.Database, crew: Crew, gate: Gate) -> None:
    before = sizes(patient)
    line = Line(patient, crew)
    with patient.transaction():
        queue(line, patient, 1, "a")
        line.add(patient.execute, "INSERT INTO t (v) SELECT gate('slow')")
    gate.wait_until_reached()
    queue(line, patient, 3, "late")
    line.add(function, patient, "late function")
    gate.open()
    for worker in line.workers:
        worker.result()
    assert new_sizes(patient, before) == {6: 1}


def test_nothing_is_acknowledged_and_nothing_seen_before_the_groups_commit(
    patient: safedb.Database, crew: Crew, gate: Gate
) -> None:
    """H46f. Results and errors alike wait: each may rest on a neighbour's row."""
    with line_behind_a_block(patient, crew) as line:  # from here on groups start with savepoints, and admit newcomers
        queue(line, patient, 1, "first")
        line.add(insert, patient, "taken").asked = True
    line = Line(patient, crew)
    with patient.transaction():
        queue(line, patient, 2, "a")
        duplicate = line.add(insert, patient, "taken")
        line.add(function, patient, "function")
        line.add(patient.execute, "INSERT INTO t (v) SELECT gate('slow')")
    gate.wait_until_reached()
    assert all(worker.running for worker in line.workers)
    assert values(patient) == ["first0"]
    gate.open()
    assert isinstance(duplicate.error(), safedb.UniqueViolation)
    assert len([worker for worker in line.workers if worker.error() is None]) == 4


# -- one member fails -------------------------------------------------------------------------------------------------


def test_a_failing_member_costs_one_rerun_with_savepoints_and_nobody_else(patient: safedb.Database, crew: Crew) -> None:
    """H46a: each savepoint is rolled back and released."""
    before, retries = sizes(patient), patient.stats().retries
    with line_behind_a_block(patient, crew) as line:
        good = queue(line, patient, 3, "a")
        bad = line.add(insert, patient, "taken")
        good += queue(line, patient, 3, "b")
    assert [worker.result().rowcount for worker in good] == [1] * 6
    assert isinstance(bad.error(), safedb.UniqueViolation)
    assert values(patient) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert patient.stats().retries.get("careful", 0) - retries.get("careful", 0) == 1
    assert sum(size * count for size, count in new_sizes(patient, before).items()) == 7


def test_after_a_failure_groups_start_with_savepoints_and_need_no_rerun(patient: safedb.Database, crew: Crew) -> None:
    before = None
    for round_ in range(3):
        with line_behind_a_block(patient, crew) as line:
            good = queue(line, patient, 2, f"{round_}a")
            bad = [line.add(insert, patient, "taken") for _ in range(2)]
            good += queue(line, patient, 2, f"{round_}b")
        assert all(isinstance(worker.error(), safedb.UniqueViolation) for worker in bad)
        assert all(worker.error() is None for worker in good)
        if before is None:
            before = patient.stats().retries
    assert patient.stats().retries == before
    assert len(values(patient)) == 12


def test_a_member_of_many_rows_that_fails_at_the_last_is_undone_whole(patient: safedb.Database, crew: Crew) -> None:
    """Its first rows had succeeded: only its savepoint takes them back."""
    with line_behind_a_block(patient, crew) as line:
        good = queue(line, patient, 2)
        bad = line.add(patient.executemany, INSERT, [("lost",), ("lost too",), ("taken",)])
        good += queue(line, patient, 2, "x")
    assert isinstance(bad.error(), safedb.UniqueViolation)
    assert [worker.error() for worker in good] == [None] * 4
    assert values(patient) == ["0", "1", "x0", "x1"]


def test_a_verdict_never_rests_on_a_neighbour_that_was_undone(patient: safedb.Database, crew: Crew) -> None:
    """Both insert 'x'; the first is undone with its function. The second must then succeed."""

    def fail() -> None:
        def body(tx: safedb.Transaction) -> None:
            tx.execute(INSERT, ("x",))
            raise Mishap

        patient.run_transaction(body)

    with line_behind_a_block(patient, crew) as line:
        queue(line, patient, 1, "a")
        lost = line.add(fail)
        second = line.add(insert, patient, "x")
    assert isinstance(lost.error(), Mishap)
    assert second.result().rowcount == 1


def test_an_interrupt_inside_a_function_is_its_own_outcome(patient: safedb.Database, crew: Crew) -> None:
    def interrupted(tx: safedb.Transaction) -> None:
        tx.execute(INSERT, ("lost",))
        raise KeyboardInterrupt

    with line_behind_a_block(patient, crew) as line:
        good = queue(line, patient, 2, "a")
        bad = line.add(patient.run_transaction, interrupted)
        good += queue(line, patient, 2, "b")
    assert isinstance(bad.error(), KeyboardInterrupt)
    assert all(worker.error() is None for worker in good)
    assert values(patient) == ["a0", "a1", "b0", "b1"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("driver", ["statement", "function"])
def test_an_interrupt_in_the_thread_that_commits_leaves_nobody_behind(
    patient: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch, driver: str, when: str
) -> None:
    """KeyboardInterrupt can come between any two bytecodes; here it comes just before COMMIT, or just after it."""
    writer = patient._engine.writer  # type: ignore[attr-defined]
    commit = writer.commit
    commits: list[int] = []

    def interrupted() -> None:
        commits.append(1)
        group = len(commits) == 2  # the first is that of the block which holds the line
        if group and when == "before":
            raise KeyboardInterrupt
        commit()
        if group:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "commit", interrupted)
    with line_behind_a_block(patient, crew) as line:
        workers = queue(line, patient, 3)
        if driver == "function":
            workers.append(line.add(function, patient, "3"))
    hit = workers.pop(0 if driver == "statement" else -1)
    error = hit.error()
    assert isinstance(error, KeyboardInterrupt)
    assert [worker.error() for worker in workers] == [None] * len(workers)
    everything = {"0", "1", "2"} | ({"3"} if driver == "function" else set())
    if when == "after":
        assert any("is committed" in note for note in error.__notes__)
        assert set(values(patient)) == everything
    else:
        assert not getattr(error, "__notes__", [])
        assert set(values(patient)) == everything - {"0" if driver == "statement" else "3"}
    assert len(values(patient)) == len(set(values(patient)))
    assert insert(patient, "later").rowcount == 1


# -- the whole transaction is lost ------------------------------------------------------------------------------------


def orphan(db: safedb.Database) -> Any:
    return db.execute("INSERT INTO child VALUES (1, 99)")


def orphans(db: safedb.Database) -> Any:
    return db.executemany("INSERT INTO child VALUES (?, ?)", [(1, 98), (2, 99)])


def orphan_in_a_function(db: safedb.Database) -> Any:
    return db.run_transaction(lambda tx: tx.execute("INSERT INTO child VALUES (1, 99)"))


def trapped(db: safedb.Database) -> Any:
    return db.execute("INSERT INTO trap VALUES ('x')")


def trapped_in_a_function(db: safedb.Database) -> Any:
    return db.run_transaction(lambda tx: tx.execute("INSERT INTO trap VALUES ('x')"))


def trapped_in_silence(db: safedb.Database) -> Any:
    """Swallow the error that has ended everybody's transaction."""

    def body(tx: safedb.Transaction) -> None:
        with pytest.raises(safedb.IntegrityError):
            tx.execute("INSERT INTO trap VALUES ('x')")

    return db.run_transaction(body)


def trapped_in_a_savepoint(db: safedb.Database) -> Any:
    def body(tx: safedb.Transaction) -> None:
        with tx.savepoint():
            tx.execute("INSERT INTO trap VALUES ('x')")

    return db.run_transaction(body)


def conflict(db: safedb.Database) -> Any:
    return db.execute("INSERT OR ROLLBACK INTO t (v) VALUES ('taken')")


def conflicts(db: safedb.Database) -> Any:
    return db.executemany("INSERT OR ROLLBACK INTO t (v) VALUES (?)", [("lost",), ("taken",)])


SPOILERS: list[tuple[Callable[[safedb.Database], Any], type[safedb.Error]]] = [
    (orphan, safedb.ForeignKeyViolation),
    (orphans, safedb.ForeignKeyViolation),
    (orphan_in_a_function, safedb.ForeignKeyViolation),
    (trapped, safedb.IntegrityError),
    (trapped_in_a_function, safedb.IntegrityError),
    (trapped_in_silence, safedb.TransactionAborted),
    (trapped_in_a_savepoint, safedb.IntegrityError),
    (conflict, safedb.UniqueViolation),
    (conflicts, safedb.UniqueViolation),
]


@pytest.mark.parametrize("place", [0, 2, 5], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize(("spoil", "error"), SPOILERS, ids=[spoil.__name__ for spoil, _ in SPOILERS])
def test_who_spoils_the_whole_transaction_alone_gets_the_error(
    patient: safedb.Database, crew: Crew, spoil: Callable[[safedb.Database], Any], error: type[safedb.Error], place: int
) -> None:
    """Deferred keys are checked at COMMIT only; RAISE(ROLLBACK) and OR ROLLBACK end the transaction (H46d, e)."""
    good: list[Worker] = []
    with line_behind_a_block(patient, crew) as line:
        for number in range(6):
            if number == place:
                guilty = line.add(spoil, patient)
            elif number == 4:
                good.append(line.add(function, patient, f"{number}"))
            else:
                good.append(line.add(insert, patient, f"{number}"))
    assert type(guilty.error()) is error
    assert [worker.error() for worker in good] == [None] * 5
    assert values(patient) == [f"{number}" for number in range(6) if number != place]
    assert patient.execute("SELECT count(*) FROM child").scalar() == 0
    assert patient.check() == []


def test_a_lost_group_is_counted_and_told(connect: Connect, crew: Crew) -> None:
    events: list[safedb.Event] = []
    db = connect(schema=SCHEMA, on_event=events.append, pool=safedb.PoolConfig(group_time=10.0))
    with line_behind_a_block(db, crew) as line:
        queue(line, db, 2)
        line.add(orphan, db).asked = True
    assert db.stats().retries["lost"] == 1
    assert [event.cause for event in events if isinstance(event, safedb.Retried)] == ["lost"]


def test_a_deferred_key_that_a_neighbour_satisfies_by_accident_is_no_violation(
    patient: safedb.Database, crew: Crew
) -> None:
    """The parent comes behind the child, in one group: at COMMIT both are there."""
    with line_behind_a_block(patient, crew) as line:
        queue(line, patient, 1)
        child = line.add(patient.execute, "INSERT INTO child VALUES (1, 7)")
        parent = line.add(patient.execute, "INSERT INTO parent VALUES (7)")
    assert parent.error() is None
    if child.error() is not None:  # run alone it is one: what counts is that the answer is true
        assert isinstance(child.error(), safedb.ForeignKeyViolation)
    assert patient.execute("SELECT count(*) FROM child").scalar() == (child.error() is None)
    assert patient.check() == []


def test_functions_of_a_lost_group_are_run_again_and_called_back_once(patient: safedb.Database, crew: Crew) -> None:
    runs: list[str] = []
    called: list[str] = []

    def body(tx: safedb.Transaction, name: str) -> str:
        runs.append(name)
        tx.execute(INSERT, (f"{name} {runs.count(name)}",))
        run = runs.count(name)
        tx.after_commit(lambda: called.append(f"{name} {run}"))
        return f"{name} {run}"

    with line_behind_a_block(patient, crew) as line:
        queue(line, patient, 1)
        workers = [line.add(patient.run_transaction, body, name) for name in ("f", "g")]
        line.add(orphan, patient).asked = True
    assert [worker.result() for worker in workers] == ["f 2", "g 2"]
    assert sorted(called) == ["f 2", "g 2"], "a discarded run was called back, or a kept one was not"
    assert sorted(values(patient)) == ["0", "f 2", "g 2"]


# -- break-up ---------------------------------------------------------------------------------------------------------


def test_a_slow_statement_in_the_way_is_broken_off_and_runs_alone(db: safedb.Database, crew: Crew) -> None:
    """An UPDATE that takes ten seconds and more must not hold back what ran before it in its group."""
    line = Line(db, crew)
    with db.transaction():
        quick = queue(line, db, 3)
        slow = line.add(db.execute, f"UPDATE t SET v = ({FOREVER})", timeout=2.0)
        behind = line.add(insert, db, "behind")
    for worker in quick:
        worker.result()
    assert slow.running, "the quick ones were held back until the slow one ended"
    assert isinstance(slow.error(), safedb.QueryCanceled)
    assert behind.result().rowcount == 1
    assert db.stats().retries["broken up"] >= 1
    assert values(db) == ["0", "1", "2", "behind"]


def test_a_member_that_becomes_overdue_in_its_group_gets_lock_timeout_and_the_others_go_on(
    patient: safedb.Database, crew: Crew
) -> None:
    line = Line(patient, crew)
    with patient.transaction():
        overdue = line.add(insert, patient, "overdue", 1.0)
        good = queue(line, patient, 2)
        slow = line.add(patient.execute, f"UPDATE t SET v = ({FOREVER})", timeout=2.5)
        good.append(line.add(insert, patient, "behind"))
    error = overdue.error()
    assert isinstance(error, safedb.LockTimeout)
    assert "no effect" in str(error)
    assert isinstance(slow.error(), safedb.QueryCanceled)
    assert [worker.error() for worker in good] == [None] * 3
    assert values(patient) == ["0", "1", "behind"]


@pytest.mark.parametrize("quick", [1, 3])
def test_a_function_that_sleeps_in_the_way_holds_back_nobody(db: safedb.Database, crew: Crew, quick: int) -> None:
    """Its transaction is taken from it: the others are acknowledged while it sleeps, and it is run again."""
    awake, asleep = threading.Event(), threading.Event()
    runs: list[int] = []

    def sleepy(tx: safedb.Transaction) -> str:
        runs.append(threading.get_ident())
        tx.execute(INSERT, ("sleepy",))
        asleep.set()
        assert awake.wait(30)
        tx.execute(INSERT, ("awake",))
        return "done"

    line = Line(db, crew)
    with db.transaction():
        good = queue(line, db, quick)
        sleeper = line.add(db.run_transaction, sleepy)
        good.append(line.add(insert, db, "behind"))
    try:
        assert [worker.result().rowcount for worker in good] == [1] * (quick + 1)
        assert asleep.is_set()
        assert sleeper.running
        assert insert(db, "later").rowcount == 1  # the turn is free
    finally:
        awake.set()
    assert sleeper.result() == "done"
    assert runs == [sleeper.thread.ident] * 2
    assert values(db) == [*(f"{number}" for number in range(quick)), "behind", "later", "sleepy", "awake"]


@pytest.mark.parametrize("swallow", [Exception, BaseException])
def test_a_function_that_swallows_everything_is_run_again_all_the_same(
    db: safedb.Database, crew: Crew, swallow: type[BaseException]
) -> None:
    awake = threading.Event()
    runs: list[int] = []

    def stubborn(tx: safedb.Transaction) -> int:
        runs.append(1)
        assert awake.wait(30)
        try:
            tx.execute(INSERT, ("stubborn",))
        except swallow:
            return -1
        return len(runs)

    line = Line(db, crew)
    with db.transaction():
        good = queue(line, db, 2)
        worker = line.add(db.run_transaction, stubborn)
    try:
        assert [member.result().rowcount for member in good] == [1, 1]
    finally:
        awake.set()
    assert worker.result() == 2
    assert values(db) == ["0", "1", "stubborn"]


def test_a_function_that_never_calls_tx_is_run_again_at_its_end(db: safedb.Database, crew: Crew) -> None:
    awake = threading.Event()
    runs: list[int] = []

    def idle(tx: safedb.Transaction) -> int:
        runs.append(1)
        assert awake.wait(30)
        return len(runs)

    line = Line(db, crew)
    with db.transaction():
        queue(line, db, 2)
        worker = line.add(db.run_transaction, idle)
    try:
        assert [member.result().rowcount for member in line.workers[:2]] == [1, 1]
    finally:
        awake.set()
    assert worker.result() == 2


def test_a_function_whose_deadline_passes_while_it_sleeps_is_given_up(db: safedb.Database, crew: Crew) -> None:
    awake = threading.Event()

    def sleepy(tx: safedb.Transaction) -> None:
        tx.execute(INSERT, ("sleepy",))
        assert awake.wait(30)
        tx.execute(INSERT, ("awake",))

    line = Line(db, crew)
    with db.transaction():
        good = queue(line, db, 2)
        sleeper = line.add(db.run_transaction, sleepy, timeout=0.5)
    assert [member.result().rowcount for member in good] == [1, 1]
    time.sleep(0.6)  # past its deadline
    awake.set()
    assert isinstance(sleeper.error(), safedb.LockTimeout | safedb.QueryCanceled)
    assert values(db) == ["0", "1"]


def test_a_slow_statement_of_a_function_in_the_way_is_broken_off(db: safedb.Database, crew: Crew) -> None:
    runs: list[int] = []

    def slow(tx: safedb.Transaction) -> int:
        runs.append(1)
        tx.execute(INSERT, ("slow",))
        if len(runs) == 1:
            tx.execute(FOREVER)
        return len(runs)

    line = Line(db, crew)
    with db.transaction():
        good = queue(line, db, 2)
        worker = line.add(db.run_transaction, slow)
        good.append(line.add(insert, db, "behind"))
    assert [member.result().rowcount for member in good] == [1] * 3
    assert worker.result() == 2
    assert sorted(values(db)) == ["0", "1", "behind", "slow"]


def test_an_empty_queue_and_a_free_turn_are_left_after_every_kind_of_trouble(db: safedb.Database, crew: Crew) -> None:
    with line_behind_a_block(db, crew) as line:
        queue(line, db, 2)
        for spoil, _ in SPOILERS:
            line.add(spoil, db).asked = True
        line.add(db.execute, f"UPDATE t SET v = ({FOREVER})", timeout=1.0).asked = True
        queue(line, db, 2, "x")
    wait_until(lambda: db.stats().queue_depth == 0)
    db._engine.turns.check()  # type: ignore[attr-defined]
    assert insert(db, "free").rowcount == 1
    assert values(db) == ["0", "1", "x0", "x1", "free"]


# -- statements of one text -------------------------------------------------------------------------------------------

ALIKE = {
    "a subquery": "INSERT INTO log (n, v) VALUES ((SELECT count(*) FROM log), ?)",
    "a subquery in lower case": "insert into log (n, v) values ((select max(n) from log) + 1, ?)",
    "or ignore": "INSERT OR IGNORE INTO log (n, v) VALUES (?, 'same')",
    "on conflict do nothing": "INSERT INTO log (n, v) VALUES (?, 'same') ON CONFLICT DO NOTHING",
    "upsert": "INSERT INTO log (n, v) VALUES (1, 'same' || ? * 0) ON CONFLICT (v) DO UPDATE SET n = n + excluded.n",
    "or replace": "INSERT OR REPLACE INTO log (n, v) VALUES (?, 'same')",
    "a trigger that looks": "INSERT INTO looking (v) VALUES (?)",
    "a view": "INSERT INTO seen (v) VALUES (?)",
    "a trigger that ignores": "INSERT INTO choosy (v) VALUES (?)",
    "a function": "INSERT INTO log (n, v) VALUES (next(), ?)",
    "text that looks like values": "INSERT INTO log (n, v) VALUES (?, 'VALUES (?), (?)' || random())",
    "two rows": "INSERT INTO log (n, v) VALUES (1, 'a' || ?1), (2, 'b' || ?1)".replace("?1", ":v"),
    "returning": "INSERT INTO log (n, v) VALUES ((SELECT count(*) FROM log), ?) RETURNING n, v",
}
ALIKE_SCHEMA = """
    CREATE TABLE log (id INTEGER PRIMARY KEY, n INTEGER, v TEXT UNIQUE);
    INSERT INTO log (n, v) VALUES (0, 'first');
    CREATE TABLE looking (id INTEGER PRIMARY KEY, v TEXT);
    CREATE TRIGGER look AFTER INSERT ON looking BEGIN
        INSERT INTO log (n, v) SELECT count(*), 'seen ' || NEW.v FROM looking;
    END;
    CREATE VIEW seen AS SELECT v FROM looking;
    CREATE TRIGGER see INSTEAD OF INSERT ON seen BEGIN INSERT INTO looking (v) VALUES (NEW.v); END;
    CREATE TABLE choosy (v TEXT);
    CREATE TRIGGER choose BEFORE INSERT ON choosy WHEN NEW.v % 2 BEGIN SELECT RAISE(IGNORE); END;
"""


@pytest.mark.parametrize("sql", ALIKE.values(), ids=ALIKE.keys())
def test_statements_of_one_text_in_one_group_do_what_they_do_one_by_one(
    connect: Connect, tmp_path: Any, crew: Crew, sql: str
) -> None:
    """However a group runs a run of alike statements: counts (H27), rows and content are those of a serial run."""

    def counter() -> Callable[[], int]:
        count = iter(range(1000))
        return lambda: next(count)

    databases = [
        connect(tmp_path / name, schema=ALIKE_SCHEMA, functions={"next": counter()})
        for name in ("serial.db", "group.db")
    ]
    serial, group = databases
    group._engine.groups._patience = 60.0  # type: ignore[attr-defined]
    params: list[Any] = [{"v": number} if ":v" in sql else (number,) for number in range(8)]
    expected = [serial.execute(sql, param) for param in params]
    with line_behind_a_block(group, crew) as line:
        workers = [line.add(group.execute, sql, param) for param in params]
    found = [worker.result() for worker in workers]
    assert [result.rowcount for result in found] == [result.rowcount for result in expected]
    assert [result.fetchall() for result in found] == [result.fetchall() for result in expected]
    if "random" in sql:
        return
    for table in ("log", "looking", "choosy"):
        select = f"SELECT rowid, * FROM {table} ORDER BY rowid"
        assert group.execute(select).fetchall() == serial.execute(select).fetchall(), table
