"""What a fork, a closed descriptor or a cut file does to SQLite, and that safedb survives it.

Each hazard is first shown to be real, by the same steps with the module alone (`hazards`); then the forks come in the
middle of everything: reading, writing, backups, other forks. Children answer through pipes, and are reaped.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from reliability import Record, form
from support import JOIN, Crew, Gate, sqlite3, wait_until

import safedb
from safedb.sqlite import fork, presence

GENEROUS = safedb.RetryPolicy(timeout=60.0)
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
STEPS = str(Path(__file__).with_name("hazards.py"))
SCHEMA = "CREATE TABLE IF NOT EXISTS t (x)"

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc, and forks with threads"),
    pytest.mark.slow,
]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def db(path: Path, gate: Gate) -> Iterator[safedb.Database]:
    pool = safedb.PoolConfig(fork_wait=0.5)
    with safedb.connect(path, schema=SCHEMA, retry=GENEROUS, functions={"gate": gate}, pool=pool) as db:
        db.execute("INSERT INTO t VALUES (1)")
        yield db


def steps(name: str, way: str, folder: Path) -> dict[str, Any]:
    """Take the steps of a hazard in a process of its own."""
    order = [sys.executable, "-W", "ignore", STEPS, name, way, str(folder / f"{way}.db")]
    done = subprocess.run(order, env=ENVIRON, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _say(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())


class Child:
    """Be a forked child that does one thing and sends the outcome; it lives until `answer` or the end of the block."""

    def __init__(self, call: Callable[[Callable[[str], None]], Any], *, bare: bool = False) -> None:
        self._read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what this is about
            self.pid = ctypes.PyDLL(None).fork() if bare else os.fork()
        if self.pid == 0:
            try:
                answer = repr(call(lambda text: _say(write, text)))
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            _say(write, answer)
            os._exit(0)
        os.close(write)
        self._pipe = open(self._read, encoding="utf-8")  # noqa: SIM115 - closed by `end`
        self._open = True

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def line(self) -> str:
        ready, _, _ = select.select([self._read], [], [], JOIN)
        return self._pipe.readline().rstrip("\n") if ready else "it hangs"

    def answer(self) -> str:
        answer = self.line()
        self.end()
        return answer

    def end(self) -> None:
        """Reap it; what has not ended by now is killed."""
        if self._open:
            self._open = False
            os.kill(self.pid, signal.SIGKILL)  # one that has ended is a zombie, which minds nothing
            self._pipe.close()
            os.waitpid(self.pid, 0)


def in_child(call: Callable[[], Any]) -> str:
    return Child(lambda _: call()).answer()


def refused(answer: str) -> bool:
    return answer.startswith("InterfaceError: ") and "was in use when this process was forked" in answer


def write(db: safedb.Database) -> str:
    db.execute("INSERT INTO t VALUES (2)")
    return "wrote"


def _checkpoint_and_write(db: safedb.Database) -> str:
    db.checkpoint()
    return write(db)


def count(db: safedb.Database) -> int:
    return int(db.execute("SELECT count(*) FROM t").scalar())


# -- the hazards themselves -------------------------------------------------------------------------------------------


def test_a_row_that_a_child_wrote_is_on_the_disk_when_its_parent_has_closed(tmp_path: Path) -> None:
    """H34: by hand the child holds no lock, so the parent's close deletes the WAL that the child then writes to.

    Written down: the parent has an idle connection; fork; the child connects afresh, and reads; the parent closes; the
    child inserts, which returns; a third process looks, before and after the child's end.
    """
    by_hand = steps("idle", "hand", tmp_path)
    assert by_hand == {"seen": 1, "locks": 0, "written": "ok", "beside": "(1,)", "after": "(1,)"}, "no hazard here"
    ours = steps("idle", "safedb", tmp_path)
    assert ours.pop("locks") > 0
    assert ours == {"seen": 1, "written": "ok", "beside": "(2,)", "after": "(2,)"}


def test_nor_is_it_lost_where_the_child_uses_the_inherited_handle(tmp_path: Path) -> None:
    """H34: the same steps, without a fresh connection."""
    assert steps("inherited", "hand", tmp_path)["after"] == "(1,)", "no hazard here"
    ours = steps("inherited", "safedb", tmp_path)
    assert ours.pop("locks") > 0
    assert ours == {"seen": 1, "written": "ok", "beside": "(2,)", "after": "(2,)"}


def test_a_child_of_a_writer_is_told_and_does_not_wait_for_a_lock_that_nobody_holds(tmp_path: Path) -> None:
    """H31: by hand a fresh connection of the child's is BUSY for ever, long after the parent has committed.

    Written down: the parent begins, writes, forks; the child connects and writes three times; the parent commits; a
    third process writes, which succeeds; the child tries three times more.
    """
    by_hand = steps("writing", "hand", tmp_path)
    assert set(by_hand["after"]) == {"OperationalError: database is locked"}, "no hazard here"
    assert (by_hand["stranger"], by_hand["rows"]) == ("None", 4)
    ours = steps("writing", "safedb", tmp_path)
    assert all(refused(answer) for answer in (*ours["during"], *ours["after"])), ours
    assert (ours["stranger"], ours["rows"]) == ("None", 4)


def test_a_child_that_closes_the_handle_does_not_undo_its_parents_transaction(tmp_path: Path) -> None:
    """H30: by hand the database is malformed, or the parent's COMMIT is lost.

    Written down: the parent's transaction has spilled into the WAL; fork; the child closes; the parent writes on, and
    commits; a third process checks.
    """
    whole = {"closed": "ok", "written": "ok", "check": "('ok',)", "rows": "(400,)"}
    assert steps("spilled", "hand", tmp_path) != whole, "no hazard here"
    assert steps("spilled", "safedb", tmp_path) == whole


def test_functions_of_pythons_do_not_deadlock_threads(tmp_path: Path) -> None:
    """H23: by hand, with one connection for all threads, the interpreter's lock meets SQLite's mutex, for good.

    Written down: four threads run a SELECT and an UPDATE that call a function of Python's, 20 times each; by hand for
    ever. That the process by hand hangs is seen by its using no processor time; only SIGKILL ends it.
    """
    order = [sys.executable, STEPS, "functions", "hand", str(tmp_path / "hand.db")]
    with subprocess.Popen(order, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            wait_until(lambda: process.poll() is not None or _at_rest(process.pid), "it to hang")
            assert process.poll() is None, "no hazard here"
        finally:
            process.kill()
    assert steps("functions", "safedb", tmp_path) == {"answers": [sum(range(200))]}


def _at_rest(pid: int) -> bool:
    before = _processor_time(pid)
    time.sleep(0.7)
    return _processor_time(pid) == before


def _processor_time(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


# -- closing a descriptor, cutting a file -----------------------------------------------------------------------------

OUTSIDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
for line in sys.stdin:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        print("in", flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
connection.close()
"""


@contextmanager
def outsider(path: Path) -> Iterator[Callable[[], bool]]:
    """Give a question to another process: whether it can write at this moment."""
    order = [sys.executable, "-c", OUTSIDER, str(path)]
    with subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def gets_in() -> bool:
            process.stdin.write("\n")  # type: ignore[union-attr]
            answer = process.stdout.readline()  # type: ignore[union-attr]
            assert answer in ("in\n", "database is locked\n"), answer
            return answer == "in\n"

        try:
            yield gets_in
        finally:
            process.stdin.close()


@pytest.mark.parametrize("suffix", ["", "-shm"])
def test_by_hand_a_closed_descriptor_drops_the_locks(path: Path, suffix: str) -> None:
    """H32: it is so here: a process that opens and closes one of the files lets others into its own transaction."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA journal_mode=WAL")
    holder.execute(SCHEMA)
    with outsider(path) as gets_in:
        assert gets_in()
        holder.execute("BEGIN IMMEDIATE")
        assert not gets_in()
        Path(f"{path}{suffix}").open("rb").close()
        assert gets_in() is (suffix == "-shm"), "no hazard here"  # the write lock lies in the -shm
    holder.close()


def test_no_call_drops_the_locks(db: safedb.Database, path: Path, crew: Crew, tmp_path: Path) -> None:
    """H32: while a transaction is open, everything else is called; after each call nobody else gets in.

    Written down: a block is open in this thread; another thread reads, iterates, backs up, checks, connects by other
    names, closes; a write waits in the queue; a child is forked and reads.
    """
    (tmp_path / "link.db").symlink_to(path)

    def iterate() -> list[Any]:
        with db.snapshot() as snap:
            return list(snap.iterate("SELECT x FROM t", batch=1))

    def connect(name: str, **options: Any) -> None:
        with safedb.connect(tmp_path / name, **options) as other:
            other.execute("SELECT count(*) FROM t")
            other.check()

    def refuse(name: str) -> None:
        with pytest.raises(safedb.ConfigError):
            db.backup(tmp_path / name)
        if name != "app.db":
            with pytest.raises(safedb.ConfigError):
                safedb.connect(tmp_path / name)

    calls: list[Callable[[], Any]] = [
        lambda: db.execute("SELECT * FROM t").fetchall(),
        iterate,
        lambda: db.backup(tmp_path / "copy.db"),
        lambda: db.backup(tmp_path / "copy.db"),  # which looks whether the old one may be replaced
        db.check,
        db.stats,
        lambda: connect("app.db"),
        lambda: connect("link.db"),
        lambda: connect("app.db", read_only=True),
        lambda: connect("copy.db"),
        *(lambda suffix=suffix: refuse(f"app.db{suffix}") for suffix in ("", "-wal", "-shm", "-safedb")),
        lambda: refused(in_child(lambda: count(db))) or pytest.fail("the child was not refused"),
    ]
    with outsider(path) as gets_in:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (2)")
            waiting = crew(write, db)
            for number, call in enumerate(calls):
                crew(call).result()
                assert not gets_in(), f"call {number} let another process in"
        waiting.result()
        assert gets_in()
    assert count(db) == 3


LIFE = """
import os, sys, threading, time
path = os.path.realpath(sys.argv[1])
live = {path, path + "-wal", path + "-shm"}
touched, looked = [], set()

def hook(event, arguments):
    if event in ("open", "os.truncate", "os.remove", "os.rename", "shutil.copyfile") and arguments:
        name = arguments[0]
        if event == "os.truncate" and isinstance(name, int):
            name = os.readlink(f"/proc/self/fd/{name}")
        if isinstance(name, (str, bytes)) and os.path.realpath(os.fsdecode(name)) in live:
            how = way(arguments[2]) if event == "open" and os.fsdecode(name) == path + "-wal" else None
            if how: looked.add(how)
            else: touched.append((event, os.fsdecode(name)))

def way(flags):
    if flags & (os.O_TRUNC | os.O_CREAT): return None
    if flags & os.O_ACCMODE == os.O_RDONLY: return "to read"
    return "to append" if flags & os.O_APPEND else None

sys.addaudithook(hook)
import safedb
sizes = []
def work(db):
    db.execute("INSERT INTO t VALUES (zeroblob(300000))")
    end = time.monotonic() + 60
    while "to append" not in looked:  # until the keeper has made room, once (later on an older log may have left some)
        assert time.monotonic() < end
        time.sleep(0.001)
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(50)])
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (1) RETURNING x").fetchall()
    db.run_transaction(lambda tx: tx.execute("DELETE FROM t WHERE x = 7"))
    with db.snapshot(max_age=5) as snap:
        list(snap.iterate("SELECT x FROM t", batch=7))
    db.backup(path + ".copy"); db.backup(path + ".copy")
    for call in (db.checkpoint, db.optimize, db.check, db.stats, lambda: db.execute("VACUUM")):
        call()
        sizes.append(os.stat(path + "-shm").st_size)
for _ in range(2):
    with safedb.connect("sqlite:///" + path, schema="CREATE TABLE IF NOT EXISTS t (x BOOLEAN)") as db:
        work(db)
        pid = os.fork()
        if pid == 0:
            work(db)
            os._exit(bool(touched))
        assert os.waitpid(pid, 0)[1] == 0, "the child touched them"
        work(db)
        with safedb.connect("sqlite:///" + path, read_only=True) as reader:
            reader.execute("SELECT count(*) FROM t")
            for suffix in ("-wal", "-shm"):
                try: db.backup(path + suffix)
                except safedb.ConfigError: pass
print(touched, sizes == sorted(sizes), min(sizes) > 0, sorted(looked))
open(path).close(); open(path + "-wal", "w").close(); os.close(os.open(path + "-wal", os.O_WRONLY))
print(touched)
"""


def test_nothing_but_sqlite_opens_or_cuts_the_files(path: Path) -> None:
    """H32, H33: in a whole life, with forks, backups and checkpoints, Python opens, cuts and removes none of the three.

    But for the -wal, in which SQLite locks nothing: that is opened to read it, or to append to it.

    Written down: an audit hook sees every opening that Python makes; at the end it is shown to see some. The -shm never
    becomes smaller while the database is open.
    """
    order = [sys.executable, "-W", "ignore", "-c", LIFE, str(path)]
    done = subprocess.run(order, env=ENVIRON, capture_output=True, text=True, timeout=100)
    seen = [("open", str(path)), ("open", f"{path}-wal"), ("open", f"{path}-wal")]
    assert done.stdout.splitlines() == ["[] True True ['to append', 'to read']", str(seen)], done.stderr


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
print(connection.execute("SELECT count(*) FROM t").fetchone(), flush=True)
sys.stdin.read()
print(connection.execute("SELECT count(*) FROM t").fetchone(), flush=True)
"""


@contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Be another process that has the file open, has read once, and reads again when its input ends."""
    order = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "(1,)\n"
            yield process
            process.communicate("", timeout=JOIN)
        finally:
            process.kill()


def test_by_hand_a_reader_dies_where_the_shm_is_cut(path: Path) -> None:
    """H33: it is so here: SIGBUS."""
    steps("one_row", "hand", path.parent)
    with reader(path.with_name("hand.db")) as process:
        os.truncate(path.with_name("hand.db-shm"), 0)
    assert process.returncode == -signal.SIGBUS, "no hazard here"


def test_a_reader_of_another_process_is_not_killed(db: safedb.Database, path: Path) -> None:
    """H33: safedb checkpoints, vacuums, forks and closes, and never cuts the -shm that others have mapped."""
    with reader(path) as process:
        db.execute("INSERT INTO t VALUES (zeroblob(5000000))")
        db.execute("DELETE FROM t")
        db.checkpoint()
        db.execute("VACUUM")
        assert in_child(lambda: _checkpoint_and_write(db)) == "'wrote'"
        db.close()
    assert process.returncode == 0


# -- forks in the middle of it ----------------------------------------------------------------------------------------


class Held:
    """Be what another thread does, held up in the middle until `leave`."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.leave = threading.Event()

    def stop(self) -> None:
        self.inside.set()
        assert self.leave.wait(JOIN), "nobody let it go"


def _iterating(db: safedb.Database, held: Held, folder: Path) -> None:
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT 1 UNION ALL SELECT 2", batch=1)
        assert next(rows) == (1,)
        held.stop()
        assert list(rows) == [(2,)]


def _in_a_block(db: safedb.Database, held: Held, folder: Path) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (5)")
        held.stop()
        tx.execute("DELETE FROM t WHERE x = 5")


def _in_a_function(db: safedb.Database, held: Held, folder: Path) -> None:
    def body(tx: safedb.Transaction) -> None:
        tx.execute("INSERT INTO t VALUES (5)")
        held.stop()
        tx.execute("DELETE FROM t WHERE x = 5")

    db.run_transaction(body)


def _in_a_backup(db: safedb.Database, held: Held, folder: Path) -> None:
    db.backup(folder / "copy.db", progress=lambda *_: held.stop())
    with safedb.connect(folder / "copy.db", read_only=True) as copy:
        assert count(copy) == 1


@pytest.mark.parametrize("doing", [_iterating, _in_a_block, _in_a_function, _in_a_backup], ids=lambda f: f.__name__)
def test_both_sides_go_on_after_a_fork_in_the_middle_of_another_threads_work(
    db: safedb.Database, crew: Crew, tmp_path: Path, doing: Callable[[safedb.Database, Held, Path], None]
) -> None:
    """H30, H31, H34: the child is told, the thread's work ends as if nothing had been, and then children may write.

    Written down: a thread is held up in the middle; fork: the child tries everything and is refused, and closes in
    peace; a write of the parent's queues; the thread goes on; fork: the child writes.
    """
    held = Held()
    working = crew(doing, db, held, tmp_path)
    try:
        assert held.inside.wait(JOIN)
        for call in (lambda: write(db), lambda: count(db), db.check, lambda: safedb.connect(tmp_path / "app.db")):
            assert refused(in_child(call))
        assert in_child(db.close) == "None"
        waiting = crew(write, db)
    finally:
        held.leave.set()
    working.result()
    waiting.result()
    assert in_child(lambda: write(db)) == "'wrote'"
    assert count(db) == 3
    assert db.check() == []


def test_a_fork_while_a_thread_waits_for_another_process(db: safedb.Database, crew: Crew) -> None:
    """H19, H31: neither the wait nor the lock is inherited: the parent gets its turn, though the child lives on.

    Written down: one child has the turn between processes; a thread of the parent waits for it; fork: the second child
    is refused, and stays alive; the first lets go; the parent's thread has the turn.
    """
    go_read, go = os.pipe()

    def hold(say: Callable[[str], None]) -> str:
        with db.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (2)")
            say("held")
            os.read(go_read, 1)
        return "let go"

    def stay(say: Callable[[str], None]) -> None:
        say("refused" if refused(_error(lambda: write(db))) else "not refused")
        time.sleep(JOIN)

    with Child(hold) as holder:
        assert holder.line() == "held"
        waiting = crew(write, db)
        wait_until(lambda: "lent" in repr(db._engine.side), "the thread to wait")  # type: ignore[attr-defined]
        with Child(stay) as second:
            assert second.line() == "refused"
            os.write(go, b"x")
            assert holder.answer() == "'let go'"
            assert waiting.result() == "wrote"
            assert in_child(lambda: write(db)) == "'wrote'"
    os.close(go_read)
    os.close(go)
    assert count(db) == 4


def _error(call: Callable[[], Any]) -> str:
    try:
        return repr(call())
    except safedb.Error as error:
        return f"{type(error).__name__}: {error}"


def test_forks_between_checkpoints(db: safedb.Database, crew: Crew) -> None:
    """H34: checkpoints run all the time; no child loses a row, and none is disturbed."""
    end = threading.Event()

    def checkpoint() -> None:
        while not end.is_set():
            db.execute("UPDATE t SET x = zeroblob(20000) WHERE rowid = 1")
            db.checkpoint()

    worker = crew(checkpoint)
    try:
        answers = [in_child(lambda: _checkpoint_and_write(db)) for _ in range(form(5, 50))]
    finally:
        end.set()
    worker.result()
    wrote = answers.count("'wrote'")
    assert all(answer == "'wrote'" or refused(answer) for answer in answers), answers
    assert count(db) == 1 + wrote
    assert db.check() == []


def test_what_another_thread_asks_about_columns_is_closed_too(path: Path, crew: Crew) -> None:
    """H34: a fork never copies a connection that describes columns, however many statements are new at that moment.

    Written down: threads run statements that were never seen, with RETURNING and typed columns, each of which is
    described on a connection; forks; each child looks whether it inherited a descriptor of the files.
    """
    end = threading.Event()

    def look() -> list[str]:
        links = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return [link for link in links if link.startswith(str(path)) and "-safedb" not in link]

    schema = "CREATE TABLE t (x BOOLEAN)"
    with safedb.connect(path, schema=schema, retry=GENEROUS, pool=safedb.PoolConfig(fork_wait=20.0)) as db:

        def ask(number: int) -> None:
            turn = 0
            while not end.is_set():
                turn += 1
                if number % 2:
                    db.execute(f"INSERT INTO t VALUES (1) RETURNING x AS c{number}_{turn}").fetchall()
                else:
                    db.execute(f"SELECT x AS c{number}_{turn} FROM t LIMIT 1").fetchall()

        workers = [crew(ask, number) for number in range(4)]
        try:
            answers = {in_child(look) for _ in range(form(40, 400))}
        finally:
            end.set()
        for worker in workers:
            worker.result()
    assert answers == {"[]"}


@pytest.mark.timeout(600)
def test_many_forks_under_load_lose_nothing(path: Path, crew: Crew, seed: int, record: Record) -> None:
    """H34: each child writes and ends, in between everything that the parent's threads do; the ledger is exact.

    Written down: threads write one by one, in blocks and by functions, one reads; children are forked at random
    moments, up to four at once; each writes up to three rows and tells which were acknowledged.
    """
    chance = random.Random(seed)
    rounds = form(30, 500)
    end = threading.Event()
    acknowledged: list[list[tuple[str, int]]] = [[] for _ in range(3)]
    pool = safedb.PoolConfig(fork_wait=20.0)
    schema = "CREATE TABLE ledger (who TEXT, n INTEGER, PRIMARY KEY (who, n))"
    insert = "INSERT INTO ledger VALUES (?, ?)"
    with safedb.connect(path, schema=schema, retry=GENEROUS, pool=pool) as db:

        def work(number: int) -> None:
            turn = 0
            while not end.is_set():
                turn += 1
                entry = (f"thread {number}", turn)
                if number == 0:
                    db.execute(insert, entry)
                elif number == 1:
                    db.run_transaction(lambda tx, entry=entry: tx.execute(insert, entry))
                else:
                    with db.transaction() as tx:
                        tx.execute(insert, entry)
                acknowledged[number].append(entry)
                if number:
                    end.wait(0.01)  # a child that is forked while these are inside is refused: not too often

        def read() -> None:
            while not end.is_set():
                with db.snapshot() as snap:
                    sum(1 for _ in snap.iterate("SELECT n FROM ledger LIMIT 500", batch=100))

        def spawned(number: int, rows: int) -> Callable[[Callable[[str], None]], int]:
            def call(_: Callable[[str], None]) -> int:
                for turn in range(rows):
                    db.execute(insert, (f"child {number}", turn))
                return rows

            return call

        workers = [crew(work, number) for number in range(3)]
        reader = crew(read)
        written: list[tuple[str, int]] = []
        told = 0
        children: list[tuple[int, Child]] = []
        try:
            for number in range(rounds):
                time.sleep(chance.random() * 0.005)
                children.append((number, Child(spawned(number, chance.randrange(1, 4)))))
                while len(children) > chance.randrange(5) or (number == rounds - 1 and children):
                    who, child = children.pop(0)
                    answer = child.answer()
                    told += refused(answer)
                    assert answer.isdigit() or refused(answer), answer
                    written += [(f"child {who}", turn) for turn in range(int(answer) if answer.isdigit() else 0)]
        finally:
            end.set()
            for _, child in children:
                child.end()
        for worker in (*workers, reader):
            worker.result()
        expected = sorted([*written, *(entry for entries in acknowledged for entry in entries)])
        found = sorted(tuple(row) for row in db.execute("SELECT who, n FROM ledger"))
        assert found == expected
        assert written, "every child was refused"
        assert db.check() == []
    record.add(rounds=rounds, acknowledged=len(expected), lost=0)
    record.note(refused=told)


def test_threads_may_fork_at_one_moment(
    tmp_path: Path, crew: Crew, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H34: what one fork knows of the files is not forgotten by another's end.

    Written down: on each of two files a read is held up; two threads fork; the first waits for both reads in vain, so
    the second waits for it; both children try to write to both files.
    """
    monkeypatch.setattr(fork, "OPENING", 0.1)
    pool = safedb.PoolConfig(fork_wait=0.4)
    second = Gate()
    handles = [
        safedb.connect(tmp_path / f"{number}.db", schema=SCHEMA, retry=GENEROUS, pool=pool, functions={"gate": stop})
        for number, stop in enumerate((gate, second))
    ]
    try:
        reading = [crew(db.execute, "SELECT gate(1)") for db in handles]
        gate.wait_until_reached()
        second.wait_until_reached()
        answers = crew.together(2, lambda _: in_child(lambda: [_error(partial(write, db)) for db in handles]))
        assert [answer.count("was in use when this process was forked") for answer in answers] == [2, 2], answers
        gate.open()
        second.open()
        for read in reading:
            read.result()
        assert in_child(lambda: [write(db) for db in handles]) == "['wrote', 'wrote']"
        assert [count(db) for db in handles] == [1, 1]
    finally:
        second.open()
        for db in handles:
            db.close()


def test_a_file_that_is_open_twice_is_refused_as_a_whole(db: safedb.Database, path: Path, crew: Crew) -> None:
    """H34: a read of the read-only handle that does not end makes the writing one unsafe too: the file is the same."""
    gate = Gate()
    with safedb.connect(path, read_only=True, functions={"gate": gate}, retry=GENEROUS) as reader:
        reading = crew(reader.execute, "SELECT gate(x) FROM t")
        try:
            gate.wait_until_reached()
            assert refused(in_child(lambda: write(db)))
            assert refused(in_child(lambda: count(reader)))
        finally:
            gate.open()
        assert reading.result().fetchall() == [(1,)]
        assert in_child(lambda: (write(db), count(reader))) == "('wrote', 2)"


INTERRUPTED = """
import os, signal, sys, threading, time, safedb
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told its background jobs to ignore it
stop, go = threading.Event(), threading.Event()
def gate(x):
    stop.set(); go.wait(60); return x
db = safedb.connect("sqlite:///" + sys.argv[1], schema="CREATE TABLE t (x)", functions={"gate": gate},
                    pool=safedb.PoolConfig(fork_wait=60))
reading = threading.Thread(target=lambda: db.execute("SELECT gate(1)")); reading.start(); stop.wait()
def interrupt():
    while not db._engine.readers._paused:
        time.sleep(0.001)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    pid = os.fork()
except KeyboardInterrupt:
    sys.exit("no fork")
if pid == 0:
    try: db.execute("INSERT INTO t VALUES (1)")
    except safedb.InterfaceError: os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
db.execute("INSERT INTO t VALUES (2)", timeout=30)
db.execute("SELECT count(*) FROM t", timeout=30).fetchall()
go.set(); reading.join()
pid = os.fork()
if pid == 0:
    db.execute("INSERT INTO t VALUES (3)", timeout=30); os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), db.execute("SELECT count(*) FROM t", timeout=30).scalar())
db.close()
"""


def test_an_interrupt_of_a_fork_leaves_both_sides_in_order(path: Path) -> None:
    """H34: Ctrl-C while a fork waits for a read: Python goes on with the fork; parent and child know where they are.

    Written down: a read is held up; fork, which waits for it; SIGINT; the child is refused, the parent writes at once;
    the read ends; fork: the child writes.
    """
    order = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, str(path)]
    done = subprocess.run(order, env=ENVIRON, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["7", "0", "2"], (done.stdout, done.stderr)


@pytest.mark.parametrize("busy", [True, False])
def test_a_fork_that_runs_no_hooks_is_noticed(db: safedb.Database, busy: bool) -> None:
    """H34: a C library forks (as uWSGI does); the child has connections and none of their locks, so it may not write.

    Written down: the parent has just written, or its keepers have fallen asleep; the child tries to write.
    """
    if not busy:
        wait_until(lambda: db._engine.watcher.asleep, "the keeper to sleep")  # type: ignore[attr-defined]
    answer = Child(lambda _: write(db), bare=True).answer()
    assert answer.startswith("InterfaceError: "), answer
    assert "runs none of Python's hooks" in answer
    assert write(db) == "wrote"
    assert count(db) == 2


def test_a_child_that_was_refused_stays_so_whatever_its_parent_does(db: safedb.Database, path: Path) -> None:
    """H34, H41: the WAL that it knows goes with its parent's next fork; that is not what is wrong.

    Written down: fork inside a block; the block commits; a second fork, for which the parent closes the file, and the
    WAL goes; the parent writes to a new one; the first child tries to write, and is told of the fork.
    """
    go_read, go = os.pipe()

    def late(_: Callable[[str], None]) -> str:
        os.read(go_read, 1)
        return write(db)

    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (2)")
        first = Child(late)
    with first:
        assert in_child(lambda: write(db)) == "'wrote'"
        Path(f"{path}-other").touch()  # so that the next file has another inode
        write(db)
        os.write(go, b"x")
        answer = first.answer()
        assert refused(answer), answer
    os.close(go_read)
    os.close(go)
    assert count(db) == 4


# -- closing ----------------------------------------------------------------------------------------------------------


def test_closing_rolls_back_nothing_in_silence(db: safedb.Database, path: Path, crew: Crew) -> None:
    """H28: by hand ``close`` loses an open transaction without a word; here it waits for it, or says what is wrong.

    Written down: a thread's block is open; another thread closes the handle, which waits; the block commits; a block's
    own thread closes, and is told; that block commits too.
    """
    by_hand = sqlite3.connect(path.with_name("hand.db"), isolation_level=None)
    by_hand.execute(SCHEMA)
    by_hand.execute("BEGIN")
    by_hand.execute("INSERT INTO t VALUES (1)")
    by_hand.close()
    again = sqlite3.connect(path.with_name("hand.db"))
    assert again.execute("SELECT count(*) FROM t").fetchone() == (0,), "no hazard here"
    again.close()

    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (2)")
        with pytest.raises(safedb.ReentrancyError):
            db.close()
    with db.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (3)")
        closing = crew(db.close)
        wait_until(lambda: "closed" in repr(db), "the other thread to close")
        tx.execute("INSERT INTO t VALUES (4)")
    closing.result()
    with safedb.connect(path) as again_ours:
        assert count(again_ours) == 4


def test_a_look_at_the_wal_that_ends_after_a_fork_tells_nothing(
    db: safedb.Database, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H41: a fork closes the file, and the WAL goes with it; a look that began before must not take the new one amiss.

    Written down: a thread looks whether the WAL is still the same, and is held up with what it saw; fork, so that the
    connections are closed; parent and child open others; the thread goes on.
    """
    watched = db._engine.presence  # type: ignore[attr-defined]
    watched.closing()
    watched.opened()  # as of a connection that was just opened
    seen, go_on, look = threading.Event(), threading.Event(), presence._file_id

    def slowly(path: str) -> Any:
        found = look(path)
        if path.endswith("-wal") and threading.current_thread().name == "looks":
            seen.set()
            assert go_on.wait(JOIN)
        return found

    monkeypatch.setattr(presence, "_file_id", slowly)
    looking = crew(watched.look, name="looks")
    assert seen.wait(JOIN)
    assert in_child(lambda: write(db)) == "'wrote'"
    go_on.set()
    assert looking.result() is False
    assert in_child(lambda: write(db)) == "'wrote'"
    assert write(db) == "wrote"
    assert count(db) == 4
    assert not watched.look()
