"""The steps of the hazards of fork, taken by hand and with safedb: ``python hazards.py NAME WAY PATH`` runs them once.

One program takes the same steps both ways, in a process of its own, and prints what came of them as JSON: so it is
seen that the hazard is real, and that safedb survives it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import safedb
from safedb.sqlite.driver import sqlite3

SCHEMA = "CREATE TABLE IF NOT EXISTS t (x)"
PATIENCE = 60.0
TRIES = 3


class Hand:
    """Use the database by hand, as well as one can with the module alone."""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA cache_size=10")  # so that a large transaction spills into the WAL
        self.execute = self.connection.execute
        self.close = self.connection.close

    @contextmanager
    def block(self) -> Iterator[Any]:
        self.execute("BEGIN IMMEDIATE")
        yield self
        self.execute("COMMIT")


class Ours:
    """Use it through safedb."""

    def __init__(self, path: str) -> None:
        self.db = safedb.connect(f"sqlite:///{path}", pragmas=safedb.Pragmas(cache_size=10))
        self.execute = self.db.execute
        self.close = self.db.close
        self.block = self.db.transaction


Way = Callable[[str], Any]


class Forked:
    """Be a child that runs ``work(link)``; who leaves the ``with`` block has reaped it."""

    def __init__(self, work: Callable[[Connection], None]) -> None:
        self.link, theirs = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what this is about
            self.pid = os.fork()
        if self.pid == 0:
            self.link.close()
            try:
                work(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def hear(self) -> Any:
        if not self.link.poll(PATIENCE):
            raise AssertionError("the child hangs")
        return self.link.recv()

    def tell(self) -> None:
        self.link.send("go on")


def outcome(call: Callable[[], Any]) -> str:
    """Tell how a call ended."""
    try:
        call()
    except (safedb.Error, sqlite3.Error) as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def count(handle: Any) -> int:
    return int(handle.execute("SELECT count(*) FROM t").fetchone()[0])


def locks(path: str) -> int:
    """Count the POSIX locks that this process holds on the database and its shared memory."""
    inodes = {str(Path(path + suffix).stat().st_ino) for suffix in ("", "-shm")}
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = [line for line in lines if line[1] == "POSIX" and line[4] == str(os.getpid())]
    return sum(line[5].rpartition(":")[2] in inodes for line in held)


def elsewhere(path: str, sql: str) -> str:
    """Run a statement in a third process, that has nothing to do with this one."""
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=0.2, isolation_level=None)\n"
        "try: print(connection.execute(sys.argv[2]).fetchone())\n"
        "except sqlite3.Error as error: print(error)\n"
    )
    order = [sys.executable, "-S", "-c", program, path, sql]
    return subprocess.run(order, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.strip()


def idle(way: Way, path: str, *, fresh: bool = True) -> dict[str, Any]:
    """H34: the parent has an idle connection; the child opens its own, and writes after the parent has closed."""
    parent = way(path)
    parent.execute(SCHEMA)
    parent.execute("INSERT INTO t VALUES (1)")

    def work(link: Connection) -> None:
        mine = way(path) if fresh else parent
        link.send((count(mine), locks(path)))
        link.recv()
        link.send(outcome(lambda: mine.execute("INSERT INTO t VALUES (2)")))
        link.recv()

    with Forked(work) as child:
        seen, held = child.hear()
        parent.close()
        child.tell()
        written = child.hear()
        beside = elsewhere(path, "SELECT count(*) FROM t")
    after = elsewhere(path, "SELECT count(*) FROM t")
    return {"seen": seen, "locks": held, "written": written, "beside": beside, "after": after}


def inherited(way: Way, path: str) -> dict[str, Any]:
    """H34, with the handle that the child inherits in place of a fresh one."""
    return idle(way, path, fresh=False)


def writing(way: Way, path: str) -> dict[str, Any]:
    """H31: the fork happens inside a write transaction; the child opens a connection of its own, and tries to write."""
    parent = way(path)
    parent.execute(SCHEMA)

    def work(link: Connection) -> None:
        def attempt() -> None:
            mine = way(path)
            mine.execute("INSERT INTO t VALUES (2)")

        link.send([outcome(attempt) for _ in range(TRIES)])
        link.recv()
        link.send([outcome(attempt) for _ in range(TRIES)])

    with parent.block() as tx:
        tx.execute("INSERT INTO t VALUES (1)")
        child = Forked(work)
        during = child.hear()
        tx.execute("INSERT INTO t VALUES (1)")
    with child:
        stranger = elsewhere(path, "INSERT INTO t VALUES (3)")
        child.tell()
        after = child.hear()
    parent.execute("INSERT INTO t VALUES (4)")
    rows = count(parent)
    parent.close()
    return {"during": during, "after": after, "stranger": stranger, "rows": rows}


def spilled(way: Way, path: str) -> dict[str, Any]:
    """H30: the child closes what it inherits, while the parent's large transaction is open."""
    parent = way(path)
    parent.execute(SCHEMA)
    parent.execute("CREATE INDEX by_x ON t (x)")

    def work(link: Connection) -> None:
        link.send(outcome(parent.close))

    def write() -> None:
        with parent.block() as tx:
            for number in range(200):
                tx.execute("INSERT INTO t VALUES (? || zeroblob(4000))", (number,))
            with Forked(work) as child:
                closed.append(child.hear())
            for number in range(200):
                tx.execute("INSERT INTO t VALUES (? || zeroblob(4000))", (number,))

    closed: list[str] = []
    written = outcome(write)
    found = elsewhere(path, "PRAGMA integrity_check")
    rows = elsewhere(path, "SELECT count(*) FROM t")
    outcome(parent.close)
    return {"closed": closed[0], "written": written, "check": found, "rows": rows}


def one_row(way: Way, path: str) -> dict[str, Any]:
    """Make a file with one row."""
    handle = way(path)
    handle.execute(SCHEMA)
    handle.execute("INSERT INTO t VALUES (1)")
    handle.close()
    return {}


def functions(way: Way, path: str) -> dict[str, Any]:
    """H23: four threads run statements that call a function of Python's, over one handle."""

    def slow(value: int) -> int:
        return value + 0 * sum(range(50))

    if way is Hand:
        handle: Any = Hand(path)
        handle.connection.create_function("f", 1, slow)
    else:
        handle = safedb.connect(f"sqlite:///{path}", functions={"f": (slow, 1)})
    handle.execute(SCHEMA)
    for number in range(200):
        handle.execute("INSERT INTO t VALUES (?)", (number,))

    def work() -> None:
        for _ in itertools.count() if way is Hand else range(20):  # by hand until it hangs: when, is chance
            answers.add(handle.execute("SELECT sum(f(x)) FROM t").fetchone()[0])
            handle.execute("UPDATE t SET x = f(x) WHERE x < 10")

    signal.alarm(100)  # a process that hangs ends, whatever becomes of the test
    answers: set[int] = set()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    print("begun", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.close()
    return {"answers": sorted(answers)}


def main(name: str, way: str, path: str) -> None:
    steps: Callable[[Way, str], dict[str, Any]] = globals()[name]
    print(json.dumps(steps({"hand": Hand, "safedb": Ours}[way], path)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
