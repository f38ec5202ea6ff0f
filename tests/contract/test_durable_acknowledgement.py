"""Durable acknowledgement: when a write call returns, its transaction is committed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import Connect
from support import Crew, url_of

import safedb


def in_a_block(db: safedb.Database, value: str) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES (?)", (value,))


def in_a_function(db: safedb.Database, value: str) -> None:
    db.run_transaction(lambda tx: tx.execute("INSERT INTO t (v) VALUES (?)", (value,)))


def decorated(db: safedb.Database, value: str) -> None:
    @db.transactional
    def insert(tx: safedb.Transaction, text: str) -> None:
        tx.execute("INSERT INTO t (v) VALUES (?)", (text,))

    insert(value)


WRITES: dict[str, Callable[[safedb.Database, str], Any]] = {
    "execute": lambda db, value: db.execute("INSERT INTO t (v) VALUES (?)", (value,)),
    "returning": lambda db, value: db.execute("INSERT INTO t (v) VALUES (?) RETURNING id", (value,)),
    "executemany": lambda db, value: db.executemany("INSERT INTO t (v) VALUES (?)", [(value,)]),
    "executescript": lambda db, value: db.executescript(f"INSERT INTO t (v) VALUES ('{value}'); SELECT 1"),
    "transaction": in_a_block,
    "run_transaction": in_a_function,
    "transactional": decorated,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_every_way_to_write_is_seen_by_every_handle_and_thread_when_it_returns(
    db: safedb.Database, connect: Connect, crew: Crew, write: Callable[[safedb.Database, str], Any]
) -> None:
    other = connect()
    for number in range(5):
        write(db, f"v{number}")
        count = partial(other.execute, "SELECT count(*) FROM t")
        assert count().scalar() == number + 1
        assert crew(count).result().scalar() == number + 1


def test_acknowledged_writes_are_there_in_another_process(db: safedb.Database, target: Any, crew: Crew) -> None:
    crew.together(4, lambda worker: [WRITES["execute"](db, f"{worker}-{n}") for n in range(10)])
    count = "import safedb, sys; db = safedb.connect(sys.argv[1], read_only=True)\n"
    count += "with db: print(db.execute('SELECT count(*) FROM t').scalar())"
    answer = subprocess.run([sys.executable, "-c", count, url_of(target)], capture_output=True, text=True, timeout=30)
    assert answer.stdout.strip() == "40", answer.stderr


WRITER = """
import sys, threading, safedb
db = safedb.connect(sys.argv[1])
say = threading.Lock()
def write(worker):
    for n in range(10**6):
        db.execute("INSERT INTO t (v) VALUES (?)", (f"{worker}-{n}",))
        with say:
            print(f"{worker}-{n}", flush=True)
for worker in range(4):
    threading.Thread(target=write, args=(worker,), daemon=True).start()
threading.Event().wait()
"""


def test_what_was_acknowledged_survives_a_kill(db: safedb.Database, target: Any) -> None:
    """Killed with -9 in the middle of its writes: every acknowledged one is there, and the file is sound."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, url_of(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        try:
            acknowledged = [process.stdout.readline().strip() for _ in range(200)]
        finally:
            process.kill()
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    there = {row[0] for row in db.execute("SELECT v FROM t")}
    assert set(acknowledged) <= there
    assert db.check() == []
    # Each thread has one write under way at most: no more than four may be there unacknowledged.
    assert len(there - set(acknowledged)) <= 4


def test_a_commit_callback_finds_the_commit_done(db: safedb.Database) -> None:
    seen: list[int] = []
    with db.transaction() as tx:
        tx.execute("INSERT INTO t (v) VALUES ('x')")
        tx.after_commit(lambda: seen.append(db.execute("SELECT count(*) FROM t").scalar()))
        assert seen == []
    assert seen == [1]
