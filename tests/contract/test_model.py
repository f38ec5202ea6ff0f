"""A dict as the model of the database: whatever is done in whatever order, the two agree.

Two machines. `OneThread` runs any sequence of calls and compares after each. `histories` lets real threads run at
once, and asks afterwards whether *some* serial order explains what each of them was told: with one writer at a time
there must be one, and the order of the acknowledgements bounds it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import GENEROUS, Backend
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import Crew

import safedb

KEYS = st.integers(0, 5)
VALUES = st.one_of(st.none(), st.text("ab\N{SNOWMAN}'?:%", max_size=3))
PAIRS = st.lists(st.tuples(KEYS, VALUES), max_size=5)
TEXTS = "CREATE TABLE kv (k INTEGER PRIMARY KEY, v TEXT)"
NUMBERS = """
    CREATE TABLE kv (k INTEGER PRIMARY KEY, v INTEGER);
    CREATE TABLE log (seq INTEGER, op TEXT UNIQUE);
    CREATE TABLE refused (op TEXT)
"""
EXAMPLES = {"sqlite": 100, "postgresql": 25}  # a new schema, and connections, cost more than a new file
INSERT = "INSERT INTO kv (k, v) VALUES (?, ?)"
UPSERT = "INSERT INTO kv (k, v) VALUES (:k, :v) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
Model = dict[int, Any]


class Mishap(Exception):
    pass


@contextmanager
def fresh_database(backend: Backend, schema: str) -> Iterator[safedb.Database]:
    with tempfile.TemporaryDirectory() as folder:
        target = backend.make_target(Path(folder))
        with safedb.connect(target, schema=schema, retry=GENEROUS, pragmas=safedb.Pragmas(synchronous="OFF")) as db:
            yield db


def insert_all(model: Model, pairs: list[tuple[int, Any]]) -> bool:
    """Insert all pairs into the model, or none; say whether they went in."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys) or model.keys() & set(keys):
        return False
    model.update(pairs)
    return True


def contents(source: safedb.Database | safedb.Transaction | safedb.Snapshot) -> Model:
    return dict(source.execute("SELECT k, v FROM kv").fetchall())


class OneThread(RuleBasedStateMachine):
    """Run calls one after the other, with a transaction, its savepoints and a snapshot open or not."""

    backend: Backend

    def __init__(self) -> None:
        super().__init__()
        self._database = fresh_database(self.backend, TEXTS)
        self.db = self._database.__enter__()
        self.committed: Model = {}
        self.stack: list[Model] = []  # the open transaction, and each savepoint's state before it
        self.savepoints: list[Any] = []
        self.block: Any = None
        self.tx: Any = None
        self.snap: Any = None
        self.seen: Model = {}

    @initialize(pairs=PAIRS)
    def fill(self, pairs: list[tuple[int, Any]]) -> None:
        for key, value in pairs:
            self.db.execute(UPSERT, {"k": key, "v": value})
            self.committed[key] = value

    # Outside of a transaction.

    @precondition(lambda self: self.tx is None)
    @rule(pairs=PAIRS, how=st.sampled_from(["one by one", "many", "script", "function", "block"]), fail=st.booleans())
    def insert(self, pairs: list[tuple[int, Any]], how: str, fail: bool) -> None:
        if how == "one by one":
            for pair in pairs:
                expected = insert_all(self.committed, [pair])
                self.attempt(lambda pair=pair: self.db.execute(INSERT, pair), expected)
            return
        model = dict(self.committed)
        works = insert_all(model, pairs)

        def body(tx: safedb.Transaction) -> None:
            for pair in pairs:
                tx.execute(INSERT, pair)
            if fail:
                raise Mishap

        def block() -> None:
            with self.db.transaction() as tx:
                body(tx)

        def script() -> None:
            self.db.executescript(";".join(f"INSERT INTO kv VALUES ({key}, {literal(value)})" for key, value in pairs))

        calls = {
            "many": lambda: self.db.executemany(INSERT, pairs),
            "script": script,
            "function": lambda: self.db.run_transaction(body),
            "block": block,
        }
        works_in_the_end = works and not (fail and how in ("function", "block"))
        self.attempt(calls[how], works_in_the_end)
        if works_in_the_end:
            self.committed = model

    def attempt(self, call: Any, works: bool) -> None:
        try:
            call()
        except (safedb.UniqueViolation, Mishap):
            assert not works
        else:
            assert works

    @precondition(lambda self: self.tx is None)
    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        rows = self.db.execute("DELETE FROM kv WHERE k = ? RETURNING v", (key,)).fetchall()
        assert rows == ([(self.committed.pop(key),)] if key in self.committed else [])

    # Inside of one.

    @precondition(lambda self: self.tx is None)
    @rule()
    def begin(self) -> None:
        self.block = self.db.transaction()
        self.tx = self.block.__enter__()
        self.stack = [dict(self.committed)]

    @precondition(lambda self: self.tx is not None)
    @rule(key=KEYS, value=VALUES)
    def upsert(self, key: int, value: Any) -> None:
        self.tx.execute(UPSERT, {"k": key, "v": value})
        self.stack[-1][key] = value

    @precondition(lambda self: self.tx is not None)
    @rule(key=KEYS)
    def remove(self, key: int) -> None:
        count = self.tx.execute("DELETE FROM kv WHERE k = ?", (key,)).rowcount
        assert count == (self.stack[-1].pop(key, self) is not self)

    @precondition(lambda self: self.tx is not None)
    @rule(pairs=PAIRS)
    def insert_in_a_savepoint(self, pairs: list[tuple[int, Any]]) -> None:
        def insert() -> None:
            with self.tx.savepoint():
                self.tx.executemany(INSERT, pairs)

        self.attempt(insert, insert_all(self.stack[-1], pairs))

    @precondition(lambda self: self.tx is not None and len(self.savepoints) < 3)
    @rule()
    def set_savepoint(self) -> None:
        savepoint = self.tx.savepoint()
        savepoint.__enter__()
        self.savepoints.append(savepoint)
        self.stack.append(dict(self.stack[-1]))

    @precondition(lambda self: bool(self.savepoints))
    @rule(keep=st.booleans())
    def end_savepoint(self, keep: bool) -> None:
        error = None if keep else Mishap()
        self.savepoints.pop().__exit__(None if keep else Mishap, error, None)
        top = self.stack.pop()
        if keep:
            self.stack[-1] = top

    @precondition(lambda self: self.tx is not None and not self.savepoints)
    @rule(keep=st.booleans())
    def end(self, keep: bool) -> None:
        block, self.block, self.tx = self.block, None, None
        if keep:
            block.__exit__(None, None, None)
            self.committed = self.stack[0]
        else:
            assert not block.__exit__(Mishap, Mishap(), None), "it swallowed the exception"
        self.stack = []

    # Snapshots.

    @precondition(lambda self: self.snap is None and self.tx is None)
    @rule()
    def fix(self) -> None:
        self.block_of_snap = self.db.snapshot()
        self.snap = self.block_of_snap.__enter__()
        self.seen = dict(self.committed)

    @precondition(lambda self: self.snap is not None)
    @rule()
    def let_go(self) -> None:
        self.snap = None
        self.block_of_snap.__exit__(None, None, None)

    @invariant()
    def agree(self) -> None:
        if self.tx is not None:
            assert contents(self.tx) == self.stack[-1]
        elif self.snap is None:
            assert contents(self.db) == self.committed
        if self.snap is not None:
            assert contents(self.snap) == self.seen
            assert dict(self.snap.iterate("SELECT k, v FROM kv", batch=2)) == self.seen

    def teardown(self) -> None:
        if self.snap is not None:
            self.let_go()
        while self.savepoints:
            self.end_savepoint(keep=True)
        if self.tx is not None:
            self.end(keep=True)
        try:
            assert contents(self.db) == self.committed
            assert self.db.check() == []
        finally:
            self._database.__exit__(None, None, None)


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    text: str = value.replace("'", "''")
    return f"'{text}'"


def test_one_thread_and_a_dict_agree(backend: Backend) -> None:
    class Machine(OneThread):
        pass

    Machine.backend = backend
    how = settings(max_examples=EXAMPLES[backend.name], stateful_step_count=30, deadline=None)
    run_state_machine_as_test(Machine, settings=how)


# -- threads ----------------------------------------------------------------------------------------------------------

OPERATIONS = st.one_of(
    st.tuples(st.just("insert"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("add"), KEYS),
    st.tuples(st.just("move"), KEYS, KEYS),
    st.tuples(st.just("fail"), KEYS),
    st.tuples(st.just("many"), st.lists(KEYS, min_size=1, max_size=3)),
)
PROGRAMS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=6), min_size=2, max_size=4)
# It reads what all others write: so the numbers are the serial order, on PostgreSQL too.
LOG = "INSERT INTO log (seq, op) SELECT coalesce(max(seq), 0) + 1, CAST(? AS TEXT) FROM log"


def take(tx: safedb.Transaction, key: int) -> int | None:
    row = tx.execute("DELETE FROM kv WHERE k = ? RETURNING v", (key,)).fetchone()
    return None if row is None else int(row[0])


def move(tx: safedb.Transaction, name: str, source: int, target: int) -> tuple[Any, ...]:
    """Read, decide, write: move a value to a key that is free."""
    tx.execute(LOG, (name,))
    value = take(tx, source)
    occupied = tx.execute("SELECT v FROM kv WHERE k = ?", (target,)).fetchone() is not None
    if value is not None:
        tx.execute(INSERT, (source if occupied else target, value))
    return value, occupied


def fail(tx: safedb.Transaction, name: str, key: int) -> None:
    tx.execute(LOG, (name,))
    tx.execute("DELETE FROM kv WHERE k = ?", (key,))
    raise Mishap


def logged(tx: safedb.Transaction, name: str, sql: str, rows: list[tuple[Any, ...]]) -> int:
    tx.execute(LOG, (name,))
    return tx.executemany(sql, rows)


def add(db: safedb.Database, name: str, key: int) -> int:
    while True:
        try:
            with db.transaction() as tx:
                return logged(tx, name, "UPDATE kv SET v = v + 1 WHERE k = ?", [(key,)])
        except (safedb.SerializationFailure, safedb.DeadlockDetected):
            if db.dialect == "sqlite":
                raise


def perform(db: safedb.Database, name: str, operation: tuple[Any, ...]) -> Any:
    """Do one operation; return what its caller was told. Each success is logged in its own transaction."""
    kind, *arguments = operation
    try:
        match kind:
            case "insert":
                return db.run_transaction(logged, name, INSERT, [(arguments[0], 0)])
            case "delete":
                return db.run_transaction(logged, name, "DELETE FROM kv WHERE k = ?", [(arguments[0],)])
            case "add":
                return add(db, name, arguments[0])
            case "move":
                return db.run_transaction(move, name, *arguments)
            case "fail":
                return db.run_transaction(fail, name, *arguments)
            case _:
                return db.run_transaction(logged, name, INSERT, [(key, 0) for key in arguments[0]])
    except (safedb.UniqueViolation, Mishap) as error:
        return type(error)


def replay(model: Model, operation: tuple[Any, ...]) -> Any:
    """Do the same to the model, and return what must have been told."""
    kind, *arguments = operation
    match kind:
        case "insert":
            return 1 if insert_all(model, [(arguments[0], 0)]) else safedb.UniqueViolation
        case "delete":
            return int(model.pop(arguments[0], None) is not None)
        case "add":
            if arguments[0] in model:
                model[arguments[0]] += 1
            return int(arguments[0] in model)
        case "move":
            source, target = arguments
            value = model.pop(source, None)
            occupied = target in model
            if value is not None:
                model[source if occupied else target] = value
            return value, occupied
        case "fail":
            return Mishap
        case _:
            keys = arguments[0]
            return len(keys) if insert_all(model, [(key, 0) for key in keys]) else safedb.UniqueViolation


def test_what_threads_are_told_is_explained_by_one_serial_order(backend: Backend) -> None:
    """The log, written in each transaction, *is* the order: run by it, a dict gives every caller's answer."""

    @settings(max_examples=EXAMPLES[backend.name], deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(PROGRAMS)
    def run(programs: list[list[tuple[Any, ...]]]) -> None:
        run_programs(backend, programs)

    run()


def run_programs(backend: Backend, programs: list[list[tuple[Any, ...]]]) -> None:
    with fresh_database(backend, NUMBERS) as db:
        crew = Crew()
        told: dict[str, Any] = {}

        def work(thread: int) -> None:
            for number, operation in enumerate(programs[thread]):
                # A plain statement beside each: it shares groups with the functions.
                db.execute("INSERT INTO refused VALUES (?)", (f"{thread}-{number}",))
                told[f"{thread}-{number}"] = perform(db, f"{thread}-{number}", operation)

        crew.together(len(programs), work)
        order = [row[0] for row in db.execute("SELECT op FROM log ORDER BY seq")]
        note(f"order: {order}")
        note(f"told: {told}")
        model: Model = {}
        for name in order:
            thread, number = map(int, name.split("-"))
            assert told[name] == replay(model, programs[thread][number])
        assert contents(db) == model
        unlogged = set(told) - set(order)
        assert all(told[name] in (safedb.UniqueViolation, Mishap) for name in unlogged), "acknowledged, and not there"
        for thread, program in enumerate(programs):  # each thread's own in its order
            own = [name for name in order if name.startswith(f"{thread}-")]
            assert own == sorted(own, key=lambda name: int(name.split("-")[1]))
            assert all(f"{thread}-{number}" in told for number in range(len(program)))
        statements = sum(map(len, programs))
        assert db.execute("SELECT count(*), count(DISTINCT op) FROM refused").one() == (statements, statements)
        assert db.check() == []
