"""Processes of multiprocessing's that write through safedb: ``python pools.py METHOD PATH`` starts them in every way.

The parent has an open handle in a global variable all the while: it is idle, or busy (a thread writes, another reads),
or held (a thread is inside a snapshot). Prints, for each case, what is wrong with the ledger, and what the workers
said, as JSON.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import safedb

SCHEMA = "CREATE TABLE IF NOT EXISTS ledger (who TEXT, n INTEGER, PRIMARY KEY (who, n))"
JOBS = 30
HANDLE: list[safedb.Database] = []
"""The handle: the parent's, inherited by a child that was forked, or a worker's own."""


def connect(url: str) -> safedb.Database:
    """Open the handle of a process that has inherited none."""
    if not HANDLE:
        pool = safedb.PoolConfig(fork_wait=20.0)
        HANDLE.append(safedb.connect(url, schema=SCHEMA, retry=safedb.RetryPolicy(timeout=60), pool=pool))
    return HANDLE[0]


def job(case: str, url: str, number: int) -> str:
    """Write one row, and read it again."""
    try:
        db = connect(url)
        db.execute("INSERT INTO ledger VALUES (?, ?)", (case, number))
        found = db.execute("SELECT n FROM ledger WHERE who = ? AND n = ?", (case, number)).scalar()
    except safedb.Error as error:
        return f"{type(error).__name__}: {error}"
    return "wrote" if found == number else f"wrote {number}, and read {found}"


def jobs(case: str, url: str, numbers: range, queue: Any) -> None:
    """Write several, as the only work of a process."""
    queue.put([job(case, url, number) for number in numbers])


def by_processes(context: Any, case: str, url: str) -> list[str]:
    queue = context.SimpleQueue()
    workers = [
        context.Process(target=jobs, args=(case, url, range(first, first + JOBS // 3), queue))
        for first in range(0, JOBS, JOBS // 3)
    ]
    for worker in workers:
        worker.start()
    said = [answer for _ in workers for answer in queue.get()]
    for worker in workers:
        worker.join()
    queue.close()
    return said + [f"exit code {worker.exitcode}" for worker in workers if worker.exitcode]


def by_pool(context: Any, case: str, url: str) -> list[str]:
    # A worker does a few tasks only: then a thread of the pool's forks another, in the middle of everything.
    with context.Pool(3, maxtasksperchild=4 if context.get_start_method() == "fork" else None) as pool:
        said: list[str] = pool.starmap(job, [(case, url, number) for number in range(JOBS)], chunksize=2)
        pool.close()
        pool.join()
    return said


def by_executor(context: Any, case: str, url: str) -> list[str]:
    with ProcessPoolExecutor(3, mp_context=context) as executor:
        return list(executor.map(job, [case] * JOBS, [url] * JOBS, range(JOBS)))


@contextmanager
def busy(db: safedb.Database, case: str) -> Iterator[None]:
    """Let threads write and read all the time; at the end all that they wrote is there."""
    end, who = threading.Event(), f"parent, {case}"
    written: list[int] = []

    def write() -> None:
        while not end.is_set():
            db.execute("INSERT INTO ledger VALUES (?, ?)", (who, len(written)))
            written.append(len(written))

    def read() -> None:
        while not end.is_set():
            db.execute("SELECT count(*) FROM ledger").fetchall()

    threads = [threading.Thread(target=work) for work in (write, read)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()
    found = [n for (n,) in db.execute("SELECT n FROM ledger WHERE who = ? ORDER BY n", (who,))]
    assert found == written, "the parent has lost a write"


@contextmanager
def held(db: safedb.Database, case: str) -> Iterator[None]:
    """Let a thread be inside a snapshot."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with db.snapshot() as snap:
            before = snap.execute("SELECT count(*) FROM ledger").scalar()
            inside.set()
            leave.wait(60)
            assert snap.execute("SELECT count(*) FROM ledger").scalar() == before

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(60)
    try:
        yield
    finally:
        leave.set()
        thread.join()


@contextmanager
def idle(db: safedb.Database, case: str) -> Iterator[None]:
    """Let nothing happen."""
    yield


def main(method: str, path: str) -> None:
    context = multiprocessing.get_context(method)
    url = f"sqlite:///{path}"
    db = connect(url)
    answers: dict[str, Any] = {}
    states, ways = (idle, busy, held), (by_executor, by_processes, by_pool)
    # To start an interpreter takes long, and what is not forked from the parent does not care what that does.
    cases = itertools.product(states, ways) if method == "fork" else zip(states, ways, strict=True)
    for state, way in cases:
        case = f"{state.__name__} {way.__name__}"
        with state(db, case):
            said = way(context, case, url)
        rows = [n for (n,) in db.execute("SELECT n FROM ledger WHERE who = ? ORDER BY n", (case,))]
        answers[case] = {"said": sorted(set(said)), "answers": len(said), "rows": rows}
    answers["check"] = db.check()
    db.close()
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what this is about
    main(*sys.argv[1:])
