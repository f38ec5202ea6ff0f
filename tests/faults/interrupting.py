"""Programs that the tests of interrupts and of the interpreter's end run, each in a process of its own.

``python interrupting.py NAME DATABASE ARGUMENT…`` runs the function NAME. What a program has to say goes to standard
output, a line each, by one system call: ``ready`` where it wants to be interrupted, ``kept KEY`` for every write that
was acknowledged, and what it found as JSON in the end.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import ctypes
import faulthandler
import functools
import gc
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import safedb

HANGS = 90.0  # seconds after which a program shows where its threads are, and ends
INSERT = "INSERT INTO t (k, part) VALUES (?, ?)"
SCHEMA = "CREATE TABLE IF NOT EXISTS t (k TEXT NOT NULL, part INTEGER NOT NULL, PRIMARY KEY (k, part))"
# `here` is C code all the way: an interrupt that came inside a function of Python's would be the driver's to swallow.
COUNT = (
    "WITH RECURSIVE c(n) AS (SELECT 1 + 0 * here() UNION ALL SELECT n + 1 FROM c WHERE n < 3000000) "
    "SELECT count(*) FROM c"
)
SLOW = f"INSERT INTO t (k, part) VALUES (?, 0 * ({COUNT}))"
PARTS = (0, 1)
_runs = itertools.count()


class Torment(BaseException):
    """Be an exception that one thread puts into another."""


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def kept(key: str) -> None:
    say(f"kept {key}")


def open_database(path: str, **options: Any) -> safedb.Database:
    options.setdefault("retry", safedb.RetryPolicy(timeout=60.0))
    here = functools.partial(os.write, 1, b"ready\n")
    return safedb.connect(f"sqlite:///{path}", schema=SCHEMA, functions={"here": (here, 0)}, **options)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


# -- ways to use a database; each writes both parts of its key, or one ------------------------------------------------


def statement(db: safedb.Database, key: str) -> None:
    db.execute(INSERT, (key, 0))


def returning(db: safedb.Database, key: str) -> None:
    db.execute(f"{INSERT} RETURNING part", (key, 0)).fetchall()


def many(db: safedb.Database, key: str) -> None:
    db.executemany(INSERT, [(key, part) for part in PARTS])


def function(db: safedb.Database, key: str) -> None:
    db.run_transaction(both, key)


def block(db: safedb.Database, key: str) -> None:
    with db.transaction() as tx:
        both(tx, key)


def savepoint(db: safedb.Database, key: str) -> None:
    with db.transaction() as tx:
        tx.execute(INSERT, (key, 0))
        with tx.savepoint():
            tx.execute(INSERT, (key, 1))


def both(tx: safedb.Transaction, key: str) -> None:
    for part in PARTS:
        tx.execute(INSERT, (key, part))


def refused(db: safedb.Database, key: str) -> None:
    db.execute(INSERT, (key, None))


def read(db: safedb.Database, key: str) -> None:
    db.execute("SELECT count(*) FROM t WHERE k = ?", (key,)).scalar()


def snapshot(db: safedb.Database, key: str) -> None:
    with db.snapshot() as snap:
        snap.execute("SELECT count(*) FROM t WHERE k = ?", (key,))
        rows = snap.iterate("SELECT * FROM t", batch=10)
        for _ in zip(range(30), rows, strict=False):
            pass


def checkpoint(db: safedb.Database, key: str) -> None:
    db.checkpoint()


WRITES = (statement, returning, many, function, block, savepoint)
WHOLE = {statement: {0}, returning: {0}, many: {0, 1}, function: {0, 1}, block: {0, 1}, savepoint: {0, 1}}
WAYS = (*WRITES * 3, *[statement] * 6, refused, read, read, snapshot, snapshot, checkpoint)


# -- what must be true afterwards -------------------------------------------------------------------------------------


def findings(db: safedb.Database, threads: int = 8) -> list[str]:
    """Say what is wrong with a database that everybody has let go of: all threads must be able to use it."""
    found: list[str] = []
    run = next(_runs)

    def use(number: int) -> None:
        try:
            for way in (*WRITES, read, snapshot):
                way(db, f"after-{run}-{way.__name__}-{number}")
        except BaseException as error:
            found.append(f"afterwards: {error!r}")

    users = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(threads)]
    for user in users:
        user.start()
    for user in users:
        user.join(HANGS / 2)
    found += [f"afterwards: {user.name} hangs" for user in users if user.is_alive()]
    engine: Any = db._engine
    end = time.monotonic() + 30.0

    def at_rest() -> bool:
        stats = db.stats()
        return not (stats.queue_depth or engine.turns.holder or stats.readers.in_use or stats.oldest_snapshot)

    while not at_rest() and time.monotonic() < end:
        gc.collect()  # what an exception's traceback has in a cycle
        time.sleep(0.01)
    if not at_rest():
        found.append(f"not at rest: {engine.turns!r} {db.stats()}")
    engine.turns.check()
    return found


class Book:
    """Know what became of each write, and compare that with what is in the file."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, set[int]] = {}
        self.refused: set[str] = set()
        self.open: dict[str, set[int]] = {}  # those whose call an exception from outside has ended

    def findings(self, db: safedb.Database) -> list[str]:
        there: dict[str, set[int]] = collections.defaultdict(set)
        for key, part in db.execute("SELECT k, part FROM t").fetchall():
            there[key].add(part)
        return [
            *(f"lost: {key}" for key, parts in self.acknowledged.items() if there.get(key) != parts),
            *(f"refused, and there: {key}" for key in self.refused if key in there),
            *(f"half there: {key}" for key, parts in self.open.items() if there.get(key, parts) != parts),
        ]


# -- the storm --------------------------------------------------------------------------------------------------------


class Victim:
    """Be a thread that uses the database in every way, and notes what became of it."""

    def __init__(self, db: safedb.Database, number: int, seed: float, end: list[int]) -> None:
        self.db = db
        self.number = number
        self.random = random.Random(seed)
        self.end = end
        self.book = Book()
        self.count = self.hits = 0
        self.strange: list[str] = []
        self.thread = threading.Thread(target=self.live, name=f"victim {number}", daemon=True)
        self.thread.start()

    def live(self) -> None:
        while not self.end:  # an exception may come in here too, so what it needs is done by the loop around it
            try:
                self.work()
            except BaseException:
                self.hits += 1

    def work(self) -> None:
        while not self.end:
            try:
                while not self.end:
                    self.step()
            except (KeyboardInterrupt, Torment):
                self.hits += 1

    def step(self) -> None:
        self.count += 1
        key, way = f"{self.number}-{self.count}", self.random.choice(WAYS)
        parts = WHOLE.get(way, set())
        self.book.open[key] = parts
        try:
            way(self.db, key)
        except safedb.NotNullViolation:
            self.book.refused.add(key)
        except Exception as error:
            self.strange.append(f"{way.__name__}: {error!r}")
        else:
            if parts:
                self.book.acknowledged[key] = parts


def storm(path: str, seed: str, seconds: str) -> None:
    """Put exceptions into threads at moments drawn by chance, often another right behind, into its clearing up."""
    chance = random.Random(int(seed))
    inject = ctypes.pythonapi.PyThreadState_SetAsyncExc
    db = open_database(path, pool=safedb.PoolConfig(max_size=3))
    end: list[int] = []
    victims = [Victim(db, number, chance.random(), end) for number in range(chance.choice((2, 4, 8)))]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(chance.choice((1e-6, 1e-5, 1e-4, usual)))  # so that they come between any two bytecodes
    stop, injected = time.monotonic() + float(seconds), 0
    while time.monotonic() < stop:
        victim, kind = chance.choice(victims), chance.choice((KeyboardInterrupt, Torment))
        for number in range(chance.choice((1, 1, 1, 2, 2, 4))):
            moment = time.perf_counter() + (chance.random() * 0.0003 if number else 0.0)
            while time.perf_counter() < moment:
                pass
            inject(ctypes.c_ulong(victim.thread.ident or 0), ctypes.py_object(kind))
            injected += 1
        time.sleep(chance.random() ** 2 * 0.004)
    sys.setswitchinterval(usual)
    end.append(1)
    found = []
    for victim in victims:
        victim.thread.join(HANGS / 2)
        found += [f"{victim.thread.name} hangs"] * victim.thread.is_alive()
    found += findings(db)
    for victim in victims:
        found += victim.strange[:3] + victim.book.findings(db)
    db.close()
    acknowledged = sum(len(victim.book.acknowledged) for victim in victims)
    report = {"found": found[:9], "injected": injected, "acknowledged": acknowledged}
    say(json.dumps({**report, "hits": sum(victim.hits for victim in victims)}))


# -- one signal, in one place -----------------------------------------------------------------------------------------


class Scene:
    """Be a main thread that is interrupted in one place, and what goes on beside it."""

    def __init__(self, path: str) -> None:
        self.db = open_database(path)
        self.path = path
        self.book = Book()
        self.threads: list[threading.Thread] = []
        self.errors: list[str] = []
        self.go_on = threading.Event()

    def beside(self, work: Callable[[], Any], key: str = "", parts: frozenset[int] = frozenset({0})) -> None:
        """Do something in another thread, which must come to its end undisturbed."""

        def live() -> None:
            try:
                work()
                if key:
                    self.book.acknowledged[key] = set(parts)
            except BaseException as error:
                self.errors.append(f"{threading.current_thread().name}: {error!r}")

        thread = threading.Thread(target=live, name=f"beside {key}", daemon=True)
        self.threads.append(thread)
        thread.start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let another thread hold a block open, until the body is done or was interrupted."""
        inside = threading.Event()

        def hold() -> None:
            with self.db.transaction() as tx:
                both(tx, "held")
                inside.set()
                self.go_on.wait()

        self.beside(hold, "held", frozenset(PARTS))
        inside.wait()
        try:
            yield
        finally:
            self.go_on.set()

    def followers(self, count: int = 2) -> None:
        """Let others queue up."""
        for number in range(count):
            depth = self.db.stats().queue_depth
            self.beside(functools.partial(statement, self.db, f"follower {number}"), f"follower {number}")
            until(lambda depth=depth: self.db.stats().queue_depth > depth)  # type: ignore[misc]


def alone(scene: Scene) -> None:
    scene.db.execute(SLOW, ("main",))


def alone_in_a_group(scene: Scene) -> None:
    scene.db.execute(f"{SLOW} RETURNING part", ("main",))


def leader(scene: Scene) -> None:
    """Lead a group: the statement is under way, and others wait to be taken in."""

    def let_go() -> None:
        until(lambda: scene.db.stats().queue_depth == 1)  # the main thread
        scene.followers()
        scene.go_on.set()

    with scene.held():
        scene.beside(let_go)
        scene.db.execute(SLOW, ("main",))


def waiting(scene: Scene) -> None:
    """Wait in the queue, before others."""

    def tell() -> None:
        until(lambda: scene.db.stats().queue_depth == 1)
        scene.followers()
        say("ready")

    with scene.held():
        scene.beside(tell)
        statement(scene.db, "main")


def aboard(scene: Scene) -> None:
    """Wait for the verdict on the own work, which another thread has done, and COMMIT is yet to come."""
    groups: Any = scene.db._engine.groups  # type: ignore[attr-defined]
    groups._patience = groups._time_limit = HANGS

    def let_go() -> None:
        until(lambda: scene.db.stats().queue_depth == 2)
        scene.beside(functools.partial(scene.db.execute, SLOW, ("slow",)), "slow")
        until(lambda: scene.db.stats().queue_depth == 3)
        scene.go_on.set()

    with scene.held():
        scene.followers(1)
        scene.beside(let_go)
        statement(scene.db, "main")


def between_processes(scene: Scene) -> None:
    """Wait for another process, which holds the lock beside the database."""
    engine: Any = scene.db._engine

    def tell() -> None:
        until(lambda: engine.turns.holder is not None)
        say("ready")

    scene.beside(tell)
    statement(scene.db, "main")


def in_function(scene: Scene) -> None:
    def body(tx: safedb.Transaction) -> None:
        both(tx, "main")
        scene.followers()
        say("ready")
        time.sleep(HANGS)

    scene.db.run_transaction(body)


def in_block(scene: Scene) -> None:
    with scene.db.transaction() as tx:
        both(tx, "main")
        scene.followers()
        say("ready")
        time.sleep(HANGS)


def in_statement_of_block(scene: Scene) -> None:
    with scene.db.transaction() as tx:
        scene.followers()
        tx.execute(SLOW, ("main",))


def in_read(scene: Scene) -> None:
    scene.db.execute(COUNT)


def in_snapshot(scene: Scene) -> None:
    with scene.db.snapshot() as snap:
        snap.execute(COUNT)


def in_iterate(scene: Scene) -> None:
    with scene.db.snapshot() as snap:
        for _ in snap.iterate("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c"):
            say("ready")
            time.sleep(HANGS)


def in_backup(scene: Scene) -> None:
    def progress(done: int, total: int) -> None:
        say("ready")
        time.sleep(HANGS)

    scene.db.backup(f"{scene.path}.copy", progress)


def in_close(scene: Scene) -> None:
    engine: Any = scene.db._engine

    def tell() -> None:
        until(lambda: engine.turns.waiting > 0)
        say("ready")

    with scene.held():
        scene.beside(tell)
        scene.db.close()


PLACES = {place.__name__: place for place in (
    alone, alone_in_a_group, leader, waiting, aboard, between_processes, in_function, in_block, in_statement_of_block,
    in_read, in_snapshot, in_iterate, in_backup, in_close,
)}  # fmt: skip
READS = (in_read, in_snapshot, in_iterate, in_backup, in_close)
WRITTEN = {in_function: set(PARTS), in_block: set(PARTS)}


def signalled(path: str, place: str) -> None:
    """Be interrupted in one place; then say what is wrong, and stay until told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    scene, where = Scene(path), PLACES[place]
    parts = WRITTEN.get(where, {0})
    outcome, late = "nothing came", False
    say("open")
    sys.stdin.readline()
    try:
        where(scene)
        late = True
        time.sleep(HANGS)  # the signal has yet to come
    except (KeyboardInterrupt, SystemExit) as interrupt:
        outcome = type(interrupt).__name__
        committed = late or any("is committed" in note for note in getattr(interrupt, "__notes__", []))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say("interrupted")
    if where not in READS:
        book = scene.book.acknowledged if committed else scene.book.open
        book["main"] = parts
    scene.go_on.set()
    for thread in scene.threads:
        thread.join(HANGS / 2)
    found = scene.errors + [f"{thread.name} hangs" for thread in scene.threads if thread.is_alive()]
    try:
        scene.db.stats()
    except safedb.DatabaseClosed:
        scene.db = open_database(path)
    found += findings(scene.db) + scene.book.findings(scene.db)
    say(json.dumps({"outcome": outcome, "committed": committed, "found": found}))
    sys.stdin.readline()  # another process writes meanwhile
    scene.db.close()


# -- the end of the interpreter ---------------------------------------------------------------------------------------


def write_on(db: safedb.Database, name: str, count: int = 1_000_000) -> None:
    """Write in all ways, and say what was acknowledged."""
    for number in range(count):
        key, way = f"{name}-{number}", WRITES[number % len(WRITES)]
        try:
            way(db, key)
        except safedb.Error as error:
            say(f"error {type(error).__name__}")
            return
        kept(f"{key} {len(WHOLE[way])}")


def writers(db: safedb.Database, count: int, *, daemon: bool, each: int = 1_000_000) -> None:
    for number in range(count):
        threading.Thread(target=write_on, args=(db, f"w{number}", each), daemon=daemon).start()


def idle(path: str) -> None:
    """Leave a handle open that nothing is done with any more; it is still referred to."""
    globals()["forgotten"] = db = open_database(path)
    write_on(db, "main", 20)


def daemons(path: str) -> None:
    globals()["forgotten"] = db = open_database(path)
    writers(db, 4, daemon=True)
    write_on(db, "main", 100)


def threads(path: str) -> None:
    globals()["forgotten"] = db = open_database(path)
    writers(db, 4, daemon=False, each=100)


def at_exit(path: str) -> None:
    """Write in handlers that run when the interpreter ends; the first that was registered runs last, and closes."""
    db = open_database(path)
    atexit.register(db.close)
    atexit.register(write_on, db, "atexit", 20)
    writers(db, 2, daemon=True)
    write_on(db, "main", 50)


def exit_in_a_block(path: str) -> None:
    with open_database(path) as db:
        write_on(db, "main", 20)
        with db.transaction() as tx:
            both(tx, "unfinished")
            sys.exit(7)


def exit_in_a_function(path: str) -> None:
    def body(tx: safedb.Transaction) -> None:
        both(tx, "unfinished")
        sys.exit(7)

    with open_database(path) as db:
        write_on(db, "main", 20)
        db.run_transaction(body)


def exit_at_once(path: str) -> None:
    db = open_database(path)
    writers(db, 4, daemon=False)
    write_on(db, "main", 100)
    os._exit(7)


def exception_beside_blocks(path: str) -> None:
    """Let the main thread end by an exception while one thread holds a block for ever and others wait for it."""
    globals()["forgotten"] = db = open_database(path)
    write_on(db, "main", 20)
    inside = threading.Event()

    def hold() -> None:
        with db.transaction() as tx:
            both(tx, "unfinished")
            inside.set()
            time.sleep(HANGS * 10)

    threading.Thread(target=hold, daemon=True).start()
    inside.wait()
    writers(db, 3, daemon=True)
    until(lambda: db.stats().queue_depth == 3)
    raise ZeroDivisionError


def executors(path: str) -> None:
    """Leave work in a pool of threads, which the interpreter finishes before it ends."""
    globals()["forgotten"] = db = open_database(path)
    pool = concurrent.futures.ThreadPoolExecutor(4)
    for number in range(8):
        pool.submit(write_on, db, f"pool{number}", 50)


def in_a_checkpoint(path: str) -> None:
    """End while the keeper is at work in a checkpoint, or about to be."""
    globals()["forgotten"] = db = open_database(path, pragmas=safedb.Pragmas(checkpoint_pages=10))
    writers(db, 4, daemon=True)
    checkpoints = db.stats().checkpoints.count
    until(lambda: db.stats().checkpoints.count > checkpoints)
    write_on(db, "main", 50)


def forgotten(path: str) -> None:
    """Let a handle go without closing it: that is told, once."""
    db = open_database(path)
    write_on(db, "main", 20)
    del db


def closed(path: str) -> None:
    with open_database(path) as db:
        writers(db, 2, daemon=False, each=30)
        write_on(db, "main", 30)
        until(lambda: threading.active_count() <= 4)  # the two keepers


def main() -> None:
    faulthandler.dump_traceback_later(HANGS * 2, exit=True)
    name, *arguments = sys.argv[1:]
    globals()[name](*arguments)


if __name__ == "__main__":
    main()
