"""The load of which histories are recorded: workers, each a process with threads, that read and write one database.

Started as a program it is one worker; `Crowd` starts them, kills them, and gathers what they recorded. There are lists,
to which everybody appends; registers, written blindly and by compare-and-set; accounts, between which money moves, so
that their sum stays. A list is in use for a moment only: none becomes so long that reading it is all the work.

What fails on purpose is part of it: functions that raise, savepoints taken back, statements that break a constraint,
calls whose deadline is too short.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from history import Listing, Op, Outcome, Read, Recorder, Txn, Write, load
from support import unmeasured

import safedb

LISTS, REGISTERS, ACCOUNTS = 6, 4, 5
PATHS = str(Path(safedb.__file__).parents[1]), str(Path(__file__).parents[1])
"""Where a worker finds safedb, and what the tests share."""

EACH = 100
"""What an account has at first."""

IN_USE = 250_000_000
"""Nanoseconds for which the lists of one moment are appended to, before those of the next."""

SCHEMAS = {
    "sqlite": """
        CREATE TABLE element (id INTEGER PRIMARY KEY, list INTEGER NOT NULL, value TEXT NOT NULL,
                              CHECK (value NOT LIKE '%!')) STRICT;
        CREATE INDEX of_list ON element (list);
        """,
    "postgresql": """
        CREATE TABLE list (id integer PRIMARY KEY, elements text NOT NULL CHECK (elements NOT LIKE '%!'));
        """,
}
COMMON = (
    "CREATE TABLE register (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, value TEXT NOT NULL);"
    "CREATE TABLE account (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, value TEXT NOT NULL, balance INTEGER);"
    + "".join(f"INSERT INTO register VALUES ({number}, 0, '');" for number in range(REGISTERS))
    + "".join(f"INSERT INTO account VALUES ({number}, 0, '', {EACH});" for number in range(ACCOUNTS))
)

# On SQLite each element is a row, so that appends can share a group, and a statement; the order of ids is that of the
# commits. On PostgreSQL it is not: there a list is one row, and two that append to it conflict.
APPEND = {
    "sqlite": "INSERT INTO element (list, value) VALUES (?, ?)",
    "postgresql": "INSERT INTO list (id, elements) VALUES (?, ?)"
    " ON CONFLICT (id) DO UPDATE SET elements = list.elements || ' ' || excluded.elements",
}
LIST = {
    "sqlite": "SELECT value FROM element WHERE list = ? ORDER BY id",
    "postgresql": "SELECT elements FROM list WHERE id = ?",
}
EVERY_LIST = {
    "sqlite": "SELECT list, value FROM element ORDER BY id",
    "postgresql": "SELECT id, elements FROM list",
}


def schema(dialect: str) -> str:
    return SCHEMAS[dialect] + COMMON


class Refused(Exception):
    """Be raised by a function that changes its mind."""


class Session:
    """Be one thread of a worker, which does one thing after the other, and records each."""

    def __init__(self, db: safedb.Database, recorder: Recorder, name: str, seed: str, begun: int) -> None:
        self._db = db
        self._recorder = recorder
        self._name = name
        self._chance = random.Random(seed)
        self._begun = begun
        self._count = 0
        self._fixed: int | None = None  # when the block of the snapshot under way was entered
        self._postgresql = db.dialect == "postgresql"
        self._actions = {
            self.append: 22,
            self.append_many: 5,
            self.function: 14,
            self.block: 6,
            self.impatient: 4,
            self.slow: 0.3,
            self.refused: 3,
            self.taken_back: 4,
            self.broken: 3,
            self.write: 5,
            self.compare_and_set: 6,
            self.set_if_same: 4,
            self.transfer: 8,
            self.transfer_in_a_block: 3,
            self.one_of_two: 4,
            self.read: 16,
            self.snapshot: 10,
            self.checkpoint: 0 if self._postgresql else 0.2,
        }

    def run(self, stop: threading.Event) -> None:
        actions, weights = list(self._actions), list(self._actions.values())
        while not stop.is_set():
            self._chance.choices(actions, weights)[0]()

    # -- how each is recorded --

    def _do(
        self,
        call: Callable[[], Sequence[Op]],
        writes: Sequence[Write] = (),
        *,
        expected: tuple[type[Exception], ...] = (),
        undone: Sequence[Write] = (),
        weak: bool = False,
    ) -> Sequence[Op]:
        """Call and record; on PostgreSQL, where connections are cut, any of safedb's errors may come of it."""
        self._recorder.begin(writes)
        outcome: Outcome = "failed"
        ops: Sequence[Op] = ()
        try:
            ops, outcome = call(), "ok"
        except safedb.CommitUnknownError:
            outcome = "unknown"
        except (safedb.Error, Refused) as error:
            if not (self._postgresql or isinstance(error, expected)):
                raise
        fixed, self._fixed = self._fixed, None
        self._recorder.end(outcome, ops, undone=undone if outcome == "ok" else (), weak=weak, fixed=fixed)
        return ops

    def _value(self) -> str:
        self._count += 1
        return f"{self._name}.{self._count}"

    def _list(self) -> int:
        moment = (time.monotonic_ns() - self._begun) // IN_USE
        return moment * LISTS + self._chance.randrange(LISTS)

    def _some_appends(self, *, most: int = 3) -> list[Write]:
        return [Write(f"l{self._list()}", self._value()) for _ in range(self._chance.randint(1, most))]

    def _mark(self) -> Write:
        return Write(f"r{self._chance.randrange(REGISTERS)}", self._value())

    # -- what is done, on a handle, in a transaction or in a snapshot --

    def _append(self, on: Any, write: Write) -> Write:
        on.execute(APPEND[self._db.dialect], (int(write.key[1:]), write.value))
        return write

    def _listing(self, on: Any, number: int) -> Listing:
        found = on.execute(LIST[self._db.dialect], (number,))
        return Listing(f"l{number}", tuple(" ".join(text for (text,) in found).split()))

    def _read(self, on: Any, table: str, number: int) -> Read:
        version, value = on.execute(f"SELECT version, value FROM {table} WHERE id = ?", (number,)).one()
        return Read(f"{table[0]}{number}", version, value)

    def _write(self, on: Any, write: Write) -> Write:
        sql = "UPDATE register SET version = version + 1, value = ? WHERE id = ? RETURNING version"
        return write._replace(version=on.execute(sql, (write.value, int(write.key[1:]))).scalar())

    def _move(self, on: Any, write: Write, amount: int) -> Write:
        sql = (
            "UPDATE account SET version = version + 1, value = ?, balance = balance + ? WHERE id = ? RETURNING version"
        )
        return write._replace(version=on.execute(sql, (write.value, amount, int(write.key[1:]))).scalar())

    def _read_and_append(self, tx: Any, lists: list[int], writes: list[Write]) -> list[Op]:
        ops: list[Op] = [self._listing(tx, number) for number in lists]
        ops += [self._append(tx, write) for write in writes]
        if lists:
            ops.append(self._listing(tx, int(writes[-1].key[1:])))
        return ops

    # -- lists --

    def append(self) -> None:
        [write] = self._some_appends(most=1)
        self._do(lambda: [self._append(self._db, write)], [write])

    def append_many(self) -> None:
        number = self._list()
        writes = [Write(f"l{number}", self._value()) for _ in range(self._chance.randint(2, 3))]
        rows = [(number, write.value) for write in writes]

        def call() -> Sequence[Op]:
            self._db.executemany(APPEND[self._db.dialect], rows)
            return writes

        self._do(call, writes)

    def function(self, timeout: float | None = None, expected: tuple[type[Exception], ...] = ()) -> None:
        lists, writes = [self._list() for _ in range(self._chance.randint(0, 3))], self._some_appends()
        self._do(
            lambda: self._db.run_transaction(self._read_and_append, lists, writes, timeout=timeout),
            writes,
            expected=expected,
        )

    def block(self) -> None:
        lists, writes = [self._list() for _ in range(self._chance.randint(0, 2))], self._some_appends()

        def call() -> Sequence[Op]:
            with self._db.transaction() as tx:
                return self._read_and_append(tx, lists, writes)

        self._do(call, writes)

    def impatient(self) -> None:
        """Give it a few milliseconds: either it is done, or nothing of it."""
        timeout = self._chance.choice([0.0005, 0.002, 0.005, 0.02])
        expected = (safedb.LockTimeout, safedb.QueueFull, safedb.QueryCanceled)
        if self._chance.random() < 0.5:
            self.function(timeout, expected)
            return
        [write] = self._some_appends(most=1)

        def call() -> Sequence[Op]:
            self._db.execute(APPEND[self._db.dialect], (int(write.key[1:]), write.value), timeout=timeout)
            return [write]

        self._do(call, [write], expected=expected)

    def slow(self) -> None:
        """Hold the others up in the midst of a group: they are run again without it, or give up."""
        writes, pause = self._some_appends(), self._chance.choice([0.005, 0.03, 0.15])

        def call(tx: Any) -> Sequence[Op]:
            ops: list[Op] = [self._append(tx, write) for write in writes[:-1]]
            time.sleep(pause)
            return [*ops, self._append(tx, writes[-1])]

        self._do(lambda: self._db.run_transaction(call), writes)

    def refused(self) -> None:
        writes, marked = self._some_appends(), self._mark()

        def change_its_mind(tx: Any) -> Sequence[Op]:
            self._read_and_append(tx, [], writes)
            self._write(tx, marked)
            raise Refused

        self._do(lambda: self._db.run_transaction(change_its_mind), [*writes, marked], expected=(Refused,))

    def taken_back(self) -> None:
        """Append, and set a register, in a savepoint that is rolled back; append outside it."""
        writes, undone, marked = self._some_appends(), self._some_appends(), self._mark()

        def call(tx: Any) -> Sequence[Op]:
            ops: list[Op] = [self._append(tx, write) for write in writes[:-1]]
            with contextlib.suppress(Refused), tx.savepoint():
                self._read_and_append(tx, [], undone)
                self._write(tx, marked)
                raise Refused
            return [*ops, self._append(tx, writes[-1]), self._listing(tx, int(writes[-1].key[1:]))]

        self._do(lambda: self._db.run_transaction(call), writes, undone=[*undone, marked])

    def broken(self) -> None:
        """Break a constraint, alone or as the last of several."""
        writes = self._some_appends()
        writes[-1] = writes[-1]._replace(value=writes[-1].value + "!")
        if len(writes) == 1:
            self._do(lambda: [self._append(self._db, writes[0])], writes, expected=(safedb.IntegrityError,))
        else:
            self._do(
                lambda: self._db.run_transaction(self._read_and_append, [], writes),
                writes,
                expected=(safedb.IntegrityError,),
            )

    # -- registers --

    def write(self) -> None:
        write = self._mark()
        self._do(lambda: [self._write(self._db, write)], [write])

    def compare_and_set(self) -> None:
        """Set it in one statement if it is still what a read has found."""
        number = self._chance.randrange(REGISTERS)
        found = self._do(lambda: [self._read(self._db, "register", number)], weak=self._postgresql)
        if not found:
            return  # it could not even be read
        [read] = found
        assert isinstance(read, Read)
        write = Write(read.key, self._value(), None)
        sql = "UPDATE register SET version = version + 1, value = ? WHERE id = ? AND version = ? AND value = ?"

        def call() -> Sequence[Op]:
            done = self._db.execute(sql, (write.value, number, read.version, read.value)).rowcount
            return [read, write._replace(version=read.version + 1)] if done else []

        self._do(call, [write])

    def set_if_same(self) -> None:
        """Read it twice in one function, with another read between, and set it."""
        number, other = self._chance.sample(range(REGISTERS), 2)
        write = Write(f"r{number}", self._value())

        def call(tx: Any) -> Sequence[Op]:
            reads = [self._read(tx, "register", which) for which in (number, other, number)]
            return [*reads, self._write(tx, write), self._read(tx, "register", number)]

        self._do(lambda: self._db.run_transaction(call), [write])

    # -- accounts --

    def _transfer(self, tx: Any, writes: list[Write], amount: int) -> Sequence[Op]:
        reads = [self._read(tx, "account", int(write.key[1:])) for write in writes]
        return [*reads, self._move(tx, writes[0], -amount), self._move(tx, writes[1], amount)]

    def _two_accounts(self) -> list[Write]:
        value = self._value()
        return [Write(f"a{number}", value) for number in self._chance.sample(range(ACCOUNTS), 2)]

    def transfer(self) -> None:
        writes, amount = self._two_accounts(), self._chance.randint(1, 9)
        self._do(lambda: self._db.run_transaction(self._transfer, writes, amount), writes)

    def transfer_in_a_block(self) -> None:
        writes, amount = self._two_accounts(), self._chance.randint(1, 9)

        def call() -> Sequence[Op]:
            with self._db.transaction() as tx:
                return self._transfer(tx, writes, amount)

        self._do(call, writes)

    def one_of_two(self) -> None:
        """Read two accounts and mark one: where reads do not count, two that do so both ways have write skew."""
        write, other = self._two_accounts()

        def call(tx: Any) -> Sequence[Op]:
            reads = [self._read(tx, "account", int(which.key[1:])) for which in (write, other)]
            return [*reads, self._move(tx, write, 0)]

        self._do(lambda: self._db.run_transaction(call), [write])

    # -- reads --

    def _every(self, on: Any, table: str) -> list[Op]:
        balance = "balance" if table == "account" else "0"
        rows = on.execute(f"SELECT id, version, value, {balance} FROM {table}").fetchall()
        assert sum(row[3] for row in rows) == (ACCOUNTS * EACH if table == "account" else 0), f"the sum is off: {rows}"
        return [Read(f"{table[0]}{number}", version, value) for number, version, value, _ in rows]

    def _look(self, on: Any) -> list[Op]:
        what = self._chance.randrange(4)
        if what > 1:
            return [self._listing(on, self._list())]
        return self._every(on, "register" if what else "account")

    def read(self) -> None:
        self._do(lambda: self._look(self._db), weak=self._postgresql)

    def snapshot(self) -> None:
        serializable = self._chance.random() < 0.3
        looks, pause = self._chance.randint(1, 4), self._chance.choice([0, 0, 0.001])

        def call() -> Sequence[Op]:
            with self._db.snapshot(serializable=serializable) as snap:
                self._fixed = time.monotonic_ns()
                time.sleep(pause)  # what others write meanwhile it must not show
                return [op for _ in range(looks) for op in self._look(snap)]

        self._do(call, weak=self._postgresql and not serializable)

    def checkpoint(self) -> None:
        self._db.checkpoint()


def final_of(dialect: str, fetch: Callable[[str], list[tuple[Any, ...]]]) -> Txn:
    """Read everything, through a driver's own connection, when all have ended."""
    begin = time.monotonic_ns()
    values: dict[str, list[str]] = {}
    for number, text in fetch(EVERY_LIST[dialect]):
        values.setdefault(f"l{number}", []).extend(text.split())
    ops: list[Op] = [Listing(key, tuple(found)) for key, found in values.items()]
    for table in "register", "account":
        ops += [Read(f"{table[0]}{row[0]}", *row[1:]) for row in fetch(f"SELECT id, version, value FROM {table}")]
    assert fetch("SELECT sum(balance) FROM account") == [(ACCOUNTS * EACH,)]
    return Txn("final", begin, time.monotonic_ns(), ops)


def acknowledged(history: Iterable[Txn]) -> int:
    """Count the writes that were acknowledged."""
    return sum(txn.outcome == "ok" and any(isinstance(op, Write) for op in txn.ops) for txn in history)


class Worker:
    """Be one process at work."""

    def __init__(self, folder: Path, name: str, url: str, seed: str, threads: int, begun: int) -> None:
        self._files = [folder / f"{name}-{number}" for number in range(threads)]
        self._said = folder / f"{name}.err"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", __file__, url, str(folder), name, seed, str(threads), str(begun)],
                stdin=subprocess.PIPE,
                stderr=said,
                env={**unmeasured(), "PYTHONPATH": os.pathsep.join(PATHS)},
            )

    def recorded(self) -> int:
        """Count the bytes of what it has recorded; it must not have ended by itself."""
        assert self.process.poll() is None, self._said.read_text()
        return sum(file.stat().st_size for file in self._files if file.exists())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> None:
        """Let it finish what it is at, and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(120) == 0, self._said.read_text()


class Crowd:
    """Be some workers on one database; none outlives the block."""

    def __init__(self, folder: Path, url: str, seed: str, processes: int, threads: int) -> None:
        self._begun = time.monotonic_ns()
        self._names = map(str, itertools.count(1))
        self._folder, self._url, self._seed, self._threads = folder, url, seed, threads
        self._processes = processes
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        self._folder.mkdir()
        for _ in range(self._processes):
            self._hire()
        return self

    def _hire(self) -> None:
        name = next(self._names)
        self.workers.append(Worker(self._folder, name, self._url, f"{self._seed}/{name}", self._threads, self._begun))

    def wait_for(self, worker: Worker, more: int) -> None:
        """Wait until a worker has recorded so many bytes more: time is measured in work done."""
        goal, end = worker.recorded() + more, time.monotonic() + 300
        while worker.recorded() < goal:
            assert time.monotonic() < end, "a worker stands still"
            time.sleep(0.002)

    def wait_for_all(self, more: int) -> None:
        """Wait until each worker has recorded so many bytes more."""
        for worker, goal in [(worker, worker.recorded() + more) for worker in self.workers]:
            self.wait_for(worker, goal - worker.recorded())

    def kill(self, worker: Worker) -> None:
        """Kill a worker where it stands, and hire another."""
        worker.kill()
        self.workers.remove(worker)
        self._hire()

    def finish(self) -> list[Txn]:
        """Let all finish; return what was recorded, by the killed ones too."""
        for worker in self.workers:
            worker.finish()
        return [txn for path in sorted(self._folder.glob("*-*")) for txn in load(path)]

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()


def main(url: str, folder: str, name: str, seed: str, threads: str, begun: str) -> None:
    """Work until the standard input ends, be it because the parent is no more."""
    stop = threading.Event()

    def work(number: int) -> None:
        recorder = Recorder(Path(folder, f"{name}-{number}"))
        try:
            Session(db, recorder, f"{name}-{number}", f"{seed}/{number}", int(begun)).run(stop)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the others need not go on
        recorder.close()

    with safedb.connect(url, retry=safedb.RetryPolicy(timeout=60.0)) as db:
        crew = [threading.Thread(target=work, args=(number,)) for number in range(int(threads))]
        for thread in crew:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in crew:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
