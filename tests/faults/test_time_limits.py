"""What a signal handler throws into a call, as task queues do at a time limit, is no error of the database's.

It may come when the write is committed already: told as the statement's own error it would make a caller write twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reliability import Record, form
from support import unmeasured

import safedb

JOB = """
import json, random, signal, sys, threading, safedb

class TimeLimit(Exception):
    '''What a task queue throws: no BaseException.'''

def throw(*_):
    raise TimeLimit

path, seed, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
signal.signal(signal.SIGALRM, throw)
db = safedb.connect("sqlite:///" + path, schema="CREATE TABLE t (n INTEGER, part INTEGER, who TEXT)",
                    retry=safedb.RetryPolicy(timeout=60))
insert = "INSERT INTO t VALUES (?, ?, ?)"
stop = threading.Event()
neighbours = {}

def neighbour(name):
    done, trouble = 0, []
    while not stop.is_set():
        try:
            db.execute(insert, (done, 0, name))
            done += 1
        except BaseException as error:
            trouble.append(repr(error))
    neighbours[name] = [done, trouble]

def lone(n):
    db.execute(insert, (n, 0, "main"))
def returning(n):
    db.execute(insert + " RETURNING n", (n, 0, "main"))
def many(n):
    db.executemany(insert, [(n, part, "main") for part in range(3)])
def function(n):
    db.run_transaction(lambda tx: [tx.execute(insert, (n, part, "main")) for part in range(3)])
def block(n):
    with db.transaction() as tx:
        for part in range(3):
            tx.execute(insert, (n, part, "main"))
def read(n):
    db.execute("SELECT count(*) FROM t WHERE n = ?", (n,))
def snapshot(n):
    with db.snapshot() as snap:
        for _ in snap.iterate("SELECT n FROM t LIMIT 20", batch=5):
            pass

outcomes, thrown, n = {}, 0, 0
threads = [threading.Thread(target=neighbour, args=(f"neighbour {i}",)) for i in range(int(sys.argv[4]))]
for thread in threads:
    thread.start()
while thrown < wanted:
    n += 1
    call = chance.choice([lone, lone, returning, many, function, block, read, snapshot])
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1.5e-3))
            call(n)
            outcome = "done"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeLimit as error:
        thrown += 1
        outcome = "committed" if any("committed" in note for note in getattr(error, "__notes__", [])) else "thrown"
    except safedb.Error as error:
        outcome = repr(error)
    outcomes[n] = [call.__name__, outcome]
stop.set()
for thread in threads:
    thread.join()
depth = db.stats().queue_depth
db.execute(insert, (0, 0, "last"))
db.close()
json.dump({"outcomes": outcomes, "neighbours": neighbours, "thrown": thrown, "depth": depth}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("neighbours", [0, 3])
def test_what_a_signal_handler_throws_comes_through_and_nothing_is_told_that_is_not_so(
    tmp_path: Path, seed: int, record: Record, neighbours: int
) -> None:
    """H15. Written down: a timer goes off at a random moment of each call, in all ways to write and to read.

    What returned is there; what raised an error of safedb's is not; where the exception itself came, it is there whole
    or not at all, and there for certain where its note says so. Neighbours in the same groups notice nothing.
    """
    path = tmp_path / "app.db"
    order = [sys.executable, "-W", "ignore", "-c", JOB, str(path), str(seed), str(form(150, 6000)), str(neighbours)]
    done = subprocess.run(order, capture_output=True, text=True, timeout=300, env=unmeasured())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    parts = {"many": 3, "function": 3, "block": 3, "lone": 1, "returning": 1}
    with safedb.connect(path) as db:
        counted = dict(db.execute("SELECT n, count(*) FROM t WHERE who = 'main' GROUP BY n").fetchall())
        others = dict(db.execute("SELECT who, count(*) FROM t WHERE who LIKE 'neigh%' GROUP BY who").fetchall())
        assert db.check() == []
    assert told["depth"] == 0
    for n, (how, outcome) in told["outcomes"].items():
        rows, whole = counted.get(int(n), 0), parts.get(how, 0)
        if outcome in ("done", "committed"):
            assert rows == whole, (n, how, outcome)
        elif outcome == "thrown":
            assert rows in (0, whole), (n, how)
        else:
            pytest.fail(f"{how}: {outcome}")
    for name, (done_by, trouble) in told["neighbours"].items():
        assert trouble == []
        assert others[name] == done_by
    kinds = [outcome for _, outcome in told["outcomes"].values()]
    record.add(
        rounds=len(kinds), faults=told["thrown"], acknowledged=kinds.count("done") + sum(others.values()), lost=0
    )
    record.note(committed_all_the_same=kinds.count("committed"))


HANDLER = """
import json, random, signal, sys, threading, safedb

path, seed, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
db = safedb.connect("sqlite:///" + path, schema="CREATE TABLE t (who TEXT)", retry=safedb.RetryPolicy(timeout=60))
told = {"handler": 0, "main": 0, "neighbour": 0, "refused": 0, "wrong": []}
stop = threading.Event()

def write(who):
    db.execute("INSERT INTO t VALUES (?)", (who,))
    told[who] += 1

def handle(*_):
    try:
        write("handler")
    except safedb.ReentrancyError:
        told["refused"] += 1
    except BaseException as error:
        told["wrong"].append(repr(error))
    if told["handler"] + told["refused"] < wanted:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 1e-3))
    else:
        stop.set()

def neighbour():
    while not stop.is_set():
        write("neighbour")

signal.signal(signal.SIGALRM, handle)
thread = threading.Thread(target=neighbour)
thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.001)
while not stop.is_set():
    write("main")
thread.join()
db.close()
json.dump(told, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_signal_handler_that_writes_is_served_or_refused_at_once_and_never_waits_for_its_own_thread(
    tmp_path: Path, seed: int, record: Record
) -> None:
    """No self-deadlock. Written down: a timer's handler writes, at random moments of the main thread's own writes."""
    path, wanted = tmp_path / "app.db", form(400, 20_000)
    order = [sys.executable, "-W", "ignore", "-c", HANDLER, str(path), str(seed), str(wanted)]
    done = subprocess.run(order, capture_output=True, text=True, timeout=350, env=unmeasured())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("wrong") == []
    refused = told.pop("refused")
    with safedb.connect(path) as db:
        assert dict(db.execute("SELECT who, count(*) FROM t GROUP BY who").fetchall()) == told
    record.add(rounds=wanted, acknowledged=sum(told.values()), lost=0)
    record.note(refused=refused)
