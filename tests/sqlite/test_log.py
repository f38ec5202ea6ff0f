"""The WAL file seen from outside: it is counted as SQLite counts it, and room is made that disturbs nobody.

The files are SQLite's own, written by this process's module and by another process; nothing here writes a frame.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from reliability import Record, form
from support import JOIN, Crew, interrupted_at, sqlite3, unmeasured, wait_until

import safedb
from safedb.sqlite import engine
from safedb.sqlite.log import FEW, HEADER, RETRY, STEP, Log, Mark

BEGINNING = Mark(b"", 0)
PAGE = 4096
GENEROUS = safedb.RetryPolicy(timeout=60.0)
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE t (x BLOB)")
        yield connection


def connect(path: Path, page: int = PAGE) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=JOIN)
    for setting in (f"page_size = {page}", "journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 0"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def log_of(path: Path, **pragmas: Any) -> Log:
    return Log(str(path), safedb.Pragmas(**pragmas).effective())


def wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def fill(connection: sqlite3.Connection, size: int) -> None:
    connection.execute("INSERT INTO t VALUES (zeroblob(?))", (size,))


def frames_of(connection: sqlite3.Connection) -> int:
    """Ask SQLite how many frames the log has. It moves them as well, so the next commit may begin the log anew."""
    frames: int = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    return frames


def salts_of(path: Path) -> bytes:
    return wal_of(path).read_bytes()[16:24]


def grown_by(log: Log) -> int:
    """Tell how many bytes of room a look makes, while nobody writes."""
    before = log.size()
    log.make_room()
    return log.size() - before


OTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=float(sys.argv[2]))
connection.execute("PRAGMA wal_autocheckpoint = 0")
for line in sys.stdin:
    try:
        print(connection.execute(line).fetchall(), flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
connection.close()
"""


@contextmanager
def another_process(path: Path, timeout: float = JOIN) -> Iterator[Callable[[str], str]]:
    """Give statements to another process, which knows nothing of safedb; each answers with its rows, or its error."""
    order = [sys.executable, "-c", OTHER, str(path), str(timeout)]
    with subprocess.Popen(
        order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=unmeasured()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(sql: str) -> str:
            process.stdin.write(f"{sql}\n")  # type: ignore[union-attr]
            return process.stdout.readline().rstrip("\n")  # type: ignore[union-attr]

        try:
            yield run
            process.stdin.close()
            process.wait(JOIN)
        finally:
            process.kill()


# -- how far the log reaches ------------------------------------------------------------------------------------------


def check(log: Log, path: Path, connection: sqlite3.Connection, marks: list[Mark]) -> int:
    """Compare what the log tells, from its beginning and from every mark, with what SQLite tells."""
    frames = max(frames_of(connection), 0)
    salts = salts_of(path)
    for mark in [BEGINNING, *marks]:
        since = frames - (mark.frames if mark.salts == salts else 0)
        assert since < 1 or log.has_grown(mark, since), f"{since} frames since {mark}, of {frames}"
        assert not log.has_grown(mark, since + 1), f"only {since} frames since {mark}, of {frames}"
    return frames


@pytest.mark.parametrize("page", [512, 4096, 65536])
def test_it_counts_exactly_what_sqlite_counts(path: Path, page: int, seed: int) -> None:
    """Whoever wrote, whatever lies behind the log, and from whatever place it is counted.

    Written down: this process and another commit little and much, roll back what has not spilled, VACUUM, checkpoint
    in every mode, and hold snapshots, which keep the log from beginning anew; with and without ``journal_size_limit``,
    which cuts the file; room is made in between. Every few steps the number is compared with SQLite's, to the frame,
    counted from the log's beginning and from places that were marked at any time before.
    """
    lengths, begun = set(), set()
    for history in range(form(10, 150)):
        chance = random.Random(f"{seed} {page} {history}")
        file = path.with_name(f"{history}.db")
        log = log_of(file, page_size=page)
        ours, reader = connect(file, page), sqlite3.connect(file, isolation_level=None)
        with closing(ours), closing(reader), another_process(file) as theirs:
            limit = f"PRAGMA journal_size_limit = {chance.choice((-1, 0, 20 * page))}"
            ours.execute(limit)
            theirs(limit)
            ours.execute("PRAGMA synchronous = OFF")  # it says nothing about what is written
            theirs("PRAGMA synchronous = OFF")
            ours.execute("CREATE TABLE t (x BLOB)")
            marks: list[Mark] = []
            for _ in range(40):
                somebody = chance.choice((ours.execute, theirs))
                step = chance.randrange(12)
                if step < 5:
                    somebody(f"INSERT INTO t VALUES (zeroblob({page * chance.choice((0, 0, 1, 5, 30))}))")
                elif step == 5:
                    somebody("DELETE FROM t WHERE rowid % 2")
                elif step == 6 and not reader.in_transaction:
                    somebody("VACUUM")
                elif step == 7:
                    for statement in ("BEGIN", "INSERT INTO t VALUES (1)", "ROLLBACK"):
                        somebody(statement)
                elif step == 8:
                    reader.execute("ROLLBACK" if reader.in_transaction else "BEGIN")
                    reader.execute("SELECT count(*) FROM t").fetchall()
                elif step == 9 and not reader.in_transaction:
                    somebody(f"PRAGMA wal_checkpoint({chance.choice(('FULL', 'RESTART', 'TRUNCATE'))})")
                elif step == 10:
                    log.make_room()
                else:
                    lengths.add(check(log, file, ours, marks))
                    begun.add(salts_of(file))
                    if chance.random() < 0.5:
                        marks.append(log.mark(chance.randrange(max(frames_of(ours), 0) + 1)))
                        assert marks[-1].salts == salts_of(file)
            check(log, file, ours, marks)
    assert len(lengths) > 10, "the histories are all alike"
    assert len(begun) > 5, "no log was begun anew"


def test_a_log_that_is_begun_anew_over_a_longer_one_is_counted_from_its_beginning(
    path: Path, plain: sqlite3.Connection
) -> None:
    """What is left of the older log bears other salts; and a place in that one is none in this."""
    log = log_of(path)
    fill(plain, 50 * PAGE)
    old = log.mark(frames_of(plain))
    size = log.size()
    fill(plain, 2 * PAGE)
    new = frames_of(plain)
    assert log.size() == size, "it was not begun anew"
    assert old.frames > 50 > new
    assert [log.has_grown(old, frames) for frames in (new, new + 1, old.frames)] == [True, False, False]


def test_what_a_transaction_spilled_that_was_rolled_back_makes_it_seem_longer_and_never_shorter(
    path: Path, plain: sqlite3.Connection
) -> None:
    """Written down: a small cache, a large transaction, ROLLBACK; then a commit over the beginning of what it left."""
    log = log_of(path)
    plain.execute("PRAGMA cache_size = 5")
    plain.execute("BEGIN")
    plain.executemany("INSERT INTO t VALUES (zeroblob(?))", [(PAGE,)] * 100)
    plain.execute("ROLLBACK")
    assert log.has_grown(BEGINNING, 50), "nothing has spilled"
    fill(plain, 1)
    frames = frames_of(plain)
    assert frames < 10
    assert log.has_grown(BEGINNING, frames)
    assert log.has_grown(BEGINNING, 50)
    fill(plain, 1)  # all was moved: it begins anew
    assert log.has_grown(BEGINNING, frames_of(plain))
    assert not log.has_grown(BEGINNING, 50)


def test_where_there_is_no_log_its_size_and_its_frames_are_nothing(path: Path) -> None:
    log = log_of(path)

    def told() -> tuple[int, Mark, bool | None, bool | None]:
        log.make_room()
        return log.size(), log.mark(5), log.has_grown(BEGINNING, 1), log.has_grown(Mark(b"12345678", 0), 1)

    assert told() == (0, BEGINNING, None, None), "there is no file, or none to be seen"
    assert not wal_of(path).exists()
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE t (x BLOB)")
        fill(connection, 50 * PAGE)
        assert log.size() == wal_of(path).stat().st_size > 50 * PAGE
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert told() == (0, Mark(b"", 5), False, False), "the file was cut"
    for content in (b"\x37", bytes(31), bytes(FEW + PAGE), b"x" * (FEW + PAGE)):
        wal_of(path).write_bytes(content)
        assert told() == (len(content), Mark(log.mark(5).salts, 5), False, False), "that is none"


def test_a_log_of_zeros_is_no_log_to_sqlite_either(path: Path, plain: sqlite3.Connection, crew: Crew) -> None:
    """Written down: the file is cut by another process between a look at it and the append, so it begins with zeros."""
    log = log_of(path)
    with another_process(path) as theirs:
        fill(plain, 50 * PAGE)
        with in_the_middle_of_make_room(lambda: theirs("PRAGMA wal_checkpoint(TRUNCATE)")):
            log.make_room()
        assert wal_of(path).read_bytes() == bytes(STEP)
        assert not log.has_grown(BEGINNING, 1)
        assert log.mark(0) == BEGINNING
        assert theirs("SELECT count(*) FROM t") == "[(1,)]"
        fill(plain, PAGE)
        assert theirs("SELECT count(*) FROM t") == "[(2,)]"
        assert log.size() == STEP
        check(log, path, plain, [BEGINNING])
        fill(plain, PAGE)
        with closing(connect(copied(path))) as recovered:
            assert recovered.execute("SELECT count(*) FROM t").fetchall() == [(3,)]
    plain.close()
    wal_of(path).write_bytes(bytes(STEP))  # and where nobody has it open
    with another_process(path) as theirs:
        assert theirs("SELECT count(*) FROM t") == "[(3,)]"


def copied(path: Path) -> Path:
    """Copy a database as a kill would leave it: the file and its log, and no index."""
    folder = path.with_name("killed")
    folder.mkdir()
    for file in (path, wal_of(path)):
        # By another process: this one must not open the database (H32).
        subprocess.run(["cp", file, folder], check=True, timeout=JOIN)
    return folder / path.name


# -- room -------------------------------------------------------------------------------------------------------------


@contextmanager
def in_the_middle_of_make_room(call: Callable[[], Any]) -> Iterator[None]:
    """Call something between the look that tells that the log is near the end of the file, and the append."""
    real = os.write

    def beside(number: int, what: bytes) -> int:
        call()
        return real(number, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", beside)
        yield


def test_near_the_end_of_the_file_zeros_are_appended_and_commits_do_not_lengthen_it(
    path: Path, plain: sqlite3.Connection
) -> None:
    """Written down: commits until room was made three times; a snapshot keeps the log from beginning anew.

    Every byte that was there is there after it; what has come is a step of zeros.
    """
    log = log_of(path)
    fill(plain, FEW + PAGE)
    with another_process(path) as theirs:
        theirs("BEGIN")
        theirs("SELECT count(*) FROM t")
        rooms = commits = 0
        while rooms < 3:
            before = wal_of(path).read_bytes()
            if grown_by(log):
                left = len(before) - HEADER - frames_of(plain) * (PAGE + 24)
                assert commits > 25 or not rooms
                assert left == pytest.approx(STEP // 2, abs=10 * PAGE) or not rooms, "too early, or too late"
                assert wal_of(path).read_bytes() == before + bytes(STEP)
                rooms, commits = rooms + 1, 0
            size = log.size()
            fill(plain, PAGE)
            assert log.size() == size, "a commit lengthened the file"
            commits += 1
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        count = plain.execute("SELECT count(*) FROM t").fetchall()
    with closing(connect(copied(path))) as recovered:
        assert recovered.execute("SELECT count(*) FROM t").fetchall() == count
        assert recovered.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    ("pragmas", "limit"),
    [
        ({"checkpoint_pages": 350, "wal_limit": 0}, 350 * (PAGE + 24)),
        ({"checkpoint_pages": 350, "journal_size_limit": -1}, 350 * (PAGE + 24)),
        ({"wal_limit": 1_500_000 + 2 * STEP}, 1_500_000),
        ({"journal_size_limit": 1_500_000, "synchronous": "EXTRA"}, 1_500_000),
        ({"checkpoint_pages": 200, "page_size": 8192}, 200 * (8192 + 24)),
    ],
)
def test_room_is_made_up_to_where_the_log_will_be_cut_or_begun_anew_and_no_further(
    path: Path, pragmas: dict[str, Any], limit: int
) -> None:
    log = log_of(path, **pragmas)
    sizes = set()
    with closing(connect(path, pragmas.get("page_size", PAGE))) as connection:
        connection.execute("CREATE TABLE t (x BLOB)")
        for _ in range(60):
            before = log.size()
            assert grown_by(log) == 0 or log.size() <= limit
            sizes.add(log.size())
            if before >= limit:
                assert log.size() == before
            fill(connection, 10 * PAGE)
    assert limit in sizes
    assert max(sizes) > limit, "the log never came so far"


@pytest.mark.parametrize(
    "pragmas",
    [
        {"synchronous": "NORMAL"},
        {"synchronous": "OFF"},
        {"checkpoint_pages": 0},
        {"profile": "litestream"},
        {"profile": "litestream", "synchronous": "FULL"},
        {"profile": "balanced"},
        {"journal_size_limit": 0},
        {"wal_limit": FEW},
        {"checkpoint_pages": FEW // PAGE},
    ],
    ids=str,
)
def test_none_is_made_where_it_is_of_no_use(path: Path, plain: sqlite3.Connection, pragmas: dict[str, Any]) -> None:
    """Commits that are not flushed, a file that somebody else looks after, a log that ends before it would pay."""
    log = log_of(path, **pragmas)
    for _ in range(3):
        fill(plain, FEW)
        assert grown_by(log) == 0
    assert grown_by(log_of(path)) == STEP, "nor would it have been otherwise"


def test_none_is_made_for_a_tiny_log(path: Path, plain: sqlite3.Connection) -> None:
    log = log_of(path)
    while log.size() < FEW:
        assert grown_by(log) == 0
        fill(plain, PAGE)
    assert grown_by(log) == STEP


def test_what_another_process_writes_in_the_middle_of_it_is_not_overwritten(
    path: Path, plain: sqlite3.Connection
) -> None:
    """Written down: between the look at the size and the append, another process commits beyond the end of the file."""
    log = log_of(path)
    fill(plain, FEW)
    with another_process(path) as theirs:
        size = log.size()
        answers: list[str] = []
        with in_the_middle_of_make_room(lambda: answers.append(theirs("INSERT INTO t VALUES (randomblob(50000))"))):
            log.make_room()
        assert answers == ["[]"]
        assert log.size() > size + STEP + 50_000
        assert theirs("SELECT count(*) FROM t") == "[(2,)]"
        with closing(connect(copied(path))) as recovered:
            assert recovered.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
            assert recovered.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_room_that_another_has_made_meanwhile_is_enough(path: Path, plain: sqlite3.Connection) -> None:
    """Written down: two processes find the log near the end of the file; the second comes to the append later."""
    log, other = log_of(path), log_of(path)
    fill(plain, FEW)
    size = log.size()
    real = os.fstatvfs

    def beside(number: int) -> Any:
        patch.undo()
        other.make_room()
        return real(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstatvfs", beside)
        log.make_room()
    assert log.size() == size + STEP


def test_of_large_pages_fewer_are_enough_so_that_the_log_begins_anew_before_it_is_cut(path: Path) -> None:
    log = log_of(path, wal_limit=4_000_000)
    with closing(connect(path, 16384)) as connection:
        connection.execute("CREATE TABLE t (x BLOB)")
        for enough in (False, True):
            fill(connection, 2_000_000)
            assert log.has_grown(BEGINNING, 16_000) is enough
    assert log.size() <= 4_000_000 + PAGE or not wal_of(path).exists()


def test_the_keeper_makes_room_by_itself_and_leaves_it_there_when_it_sleeps(path: Path) -> None:
    with safedb.connect(path, schema="CREATE TABLE t (x BLOB)") as db:
        db.execute("INSERT INTO t VALUES (zeroblob(?))", (2 * FEW,))
        wait_until(lambda: db.stats().wal_bytes > STEP, "room")
        real: Any = db._engine
        wait_until(lambda: real.checkpointer.asleep, "the keeper to sleep")
        size = db.stats().wal_bytes
        assert size > STEP + 2 * FEW
        db.execute("INSERT INTO t VALUES (1)")
        assert db.stats().wal_bytes == size
    assert not wal_of(path).exists()


ROOM = """
import itertools, os, sys, threading, safedb
from safedb.sqlite.log import Log
path = sys.argv[1]
log = Log(path, safedb.Pragmas().effective())
db = safedb.connect("sqlite:///" + path, retry=safedb.RetryPolicy(timeout=60.0))
def make_room():
    while True:
        log.make_room()
threading.Thread(target=make_room, daemon=True).start()
for n in itertools.count(int(sys.argv[2])):
    db.execute("INSERT INTO t VALUES (0, ?, randomblob(?))", (n, n * 7919 % 30_000))
    os.write(1, f"0 {n}\\n".encode())
"""

WRITER = """
import itertools, os, random, sqlite3, sys
chance = random.Random(sys.argv[2])
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60.0)
connection.execute("PRAGMA synchronous = FULL")
connection.execute("PRAGMA wal_autocheckpoint = 0")
for n in itertools.count(int(sys.argv[2])):
    connection.execute("INSERT INTO t VALUES (1, ?, randomblob(?))", (n, chance.choice((100, 3000, 200_000))))
    os.write(1, f"1 {n}\\n".encode())
    if chance.random() < 0.05:
        connection.execute(f"PRAGMA wal_checkpoint({chance.choice(('PASSIVE', 'RESTART', 'TRUNCATE'))})").fetchall()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_room_that_is_made_beside_writers_of_other_processes_costs_no_row(path: Path, record: Record) -> None:
    """Appended zeros overwrite nothing, and recovery ends where they begin.

    Written down: one process makes room without a pause and writes; another, which knows nothing of safedb, writes,
    checkpoints and cuts; both are killed by SIGKILL in the middle of it, and a plain connection recovers the file.
    """
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE t (who INTEGER, n INTEGER, x BLOB, PRIMARY KEY (who, n))")
    told: set[tuple[int, int]] = set()
    empty = 0
    for number in range(form(4, 40)):
        told |= killed_in_the_middle(path, number * 1_000_000, form(150, 400))
        empty += wal_of(path).read_bytes().endswith(bytes(2 * PAGE))
        with closing(sqlite3.connect(path)) as connection:
            found = set(connection.execute("SELECT who, n FROM t"))
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert told <= found
        assert len(found - told) <= 2 * (number + 1), "more than what was under way"
        record.add(rounds=1, kills=2)
    record.add(acknowledged=len(told), lost=0)
    assert empty, "no room was ever made"


def killed_in_the_middle(path: Path, first: int, lines: int) -> set[tuple[int, int]]:
    """Run the two, kill them after so many commits, and tell which were acknowledged."""
    read, write = os.pipe()
    orders = [[sys.executable, "-W", "ignore", "-c", code, str(path), str(first)] for code in (ROOM, WRITER)]
    environ = {**unmeasured(), "PYTHONPATH": ENVIRON["PYTHONPATH"]}
    processes = [subprocess.Popen(order, stdout=write, env=environ, stderr=subprocess.DEVNULL) for order in orders]

    def kill() -> None:
        for process in processes:
            process.kill()

    watchdog = threading.Timer(100, kill)
    watchdog.start()
    os.close(write)
    try:
        with open(read, encoding="ascii") as pipe:
            heard: list[str] = []
            while len(heard) < lines or len({line[0] for line in heard}) < 2:
                heard.append(pipe.readline())
                assert heard[-1], "both ended"
            kill()
            heard += pipe.readlines()
    finally:
        watchdog.cancel()
        watchdog.join()
        kill()
        for process in processes:
            process.wait()
    return {(int(who), int(n)) for who, n in (line.split() for line in heard)}


# -- what is no WAL ---------------------------------------------------------------------------------------------------


@pytest.fixture
def strange(path: Path, tmp_path: Path) -> Iterator[Path]:
    """Keep a real log elsewhere, long enough for room to be made."""
    elsewhere = tmp_path / "elsewhere.db"
    with closing(connect(elsewhere)) as connection:
        connection.execute("CREATE TABLE t (x BLOB)")
        fill(connection, 2 * FEW)
        yield wal_of(elsewhere)


def looked_at(path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at it in every way, with a size that it had before it was replaced."""
    log = log_of(path)
    monkeypatch.setattr(Log, "size", lambda _: 2 * FEW)
    assert crew(log.mark, 1).result() == BEGINNING
    assert not crew(log.has_grown, BEGINNING, 1).result()
    crew(log.make_room).result()


def test_a_link_is_not_followed(strange: Path, path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write to the folder must not have safedb append to another file."""
    wal_of(path).symlink_to(strange)
    before = strange.read_bytes()
    assert log_of(strange.with_name("elsewhere.db")).has_grown(BEGINNING, 1), "nor is it a log"
    looked_at(path, crew, monkeypatch)
    assert strange.read_bytes() == before
    assert wal_of(path).is_symlink()


def test_a_pipe_is_not_waited_for(path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(wal_of(path))
    try:
        looked_at(path, crew, monkeypatch)
    finally:
        os.close(os.open(wal_of(path), os.O_RDWR | os.O_NONBLOCK))  # who does wait for it waits no longer
    assert wal_of(path).is_fifo()


def test_a_folder_is_left_alone(path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    wal_of(path).mkdir()
    looked_at(path, crew, monkeypatch)
    assert list(wal_of(path).iterdir()) == []


def test_after_a_failure_it_is_tried_again_later_and_not_at_once(
    strange: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: a link is in the way; a real log takes its place; the clock is put forward."""
    elsewhere = strange.with_name("elsewhere.db")
    log = log_of(path)
    wal_of(path).symlink_to(strange)
    log.make_room()
    wal_of(path).unlink()
    os.link(strange, wal_of(path))
    assert grown_by(log) == 0
    now = time.monotonic()
    monkeypatch.setattr("safedb.sqlite.log.monotonic", lambda: now + RETRY + 1)
    assert grown_by(log) == STEP
    assert log_of(elsewhere).size() == log.size()
    wal_of(path).unlink()


# -- locks and forks --------------------------------------------------------------------------------------------------


def test_opening_and_closing_the_log_drops_no_lock(path: Path, plain: sqlite3.Connection) -> None:
    """H32: SQLite locks nothing in it. That a closed database file drops what this process holds is shown elsewhere.

    Written down: a transaction is open here, and another process cannot begin one; the log is looked at and lengthened,
    and it still cannot; nor, while a snapshot is open here, can it cut the log.
    """
    log = log_of(path)
    fill(plain, 2 * FEW)
    reader = sqlite3.connect(path, isolation_level=None)
    with closing(reader), another_process(path, timeout=0.0) as theirs:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t").fetchall()
        assert theirs("BEGIN IMMEDIATE") == "[]"
        theirs("ROLLBACK")
        plain.execute("BEGIN IMMEDIATE")
        assert theirs("BEGIN IMMEDIATE") == "database is locked"
        assert log.has_grown(log.mark(1), 1)
        assert grown_by(log) == STEP
        assert theirs("BEGIN IMMEDIATE") == "database is locked"
        plain.execute("COMMIT")
        assert theirs("PRAGMA wal_checkpoint(TRUNCATE)").startswith("[(1,"), "the snapshot is gone"
        reader.execute("COMMIT")
        assert theirs("PRAGMA wal_checkpoint(TRUNCATE)") == "[(0, 0, 0)]"


def open_files(path: Path) -> list[str]:
    """List this process's descriptors of a database's log: a fork closes every connection."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one by which they are listed
            found.append(str(entry.readlink()))
    return [name for name in found if name.removesuffix(" (deleted)") == str(wal_of(path).resolve())]


def in_child(call: Callable[[], Any]) -> str:
    """Give what a forked child tells."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what this is about
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(call()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


@ON_LINUX
def test_no_child_inherits_the_file_though_the_keeper_looks_at_it_all_the_time(
    path: Path, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H34: nothing of SQLite's files is open while the process is copied; and the keeper goes on after each fork.

    Written down: a keeper without a pause between its looks, above a disk that takes a while to read, so that it has
    the file open nearly always; two threads that write; fork upon fork. Each child looks whether it has a descriptor.
    """
    read = os.pread

    def slowly(*args: int) -> bytes:
        time.sleep(0.002)
        return read(*args)

    monkeypatch.setattr(engine, "CHECKPOINT_TICK", 0.0)
    monkeypatch.setattr(os, "pread", slowly)
    over = threading.Event()
    pool = safedb.PoolConfig(fork_wait=20.0)
    with safedb.connect(path, schema="CREATE TABLE t (x BLOB)", pool=pool, retry=GENEROUS) as db:

        def write() -> None:
            while not over.is_set():
                db.execute("INSERT INTO t VALUES (1)")

        writers = [crew(write) for _ in range(2)]
        try:
            wait_until(lambda: db.stats().wal_bytes > 0)
            answers = [in_child(lambda: open_files(path)) for _ in range(form(8, 300))]
        finally:
            over.set()
        for writer in writers:
            writer.result()
        count = db.stats().checkpoints.count
        db.execute("INSERT INTO t VALUES (1)")
        wait_until(lambda: db.stats().checkpoints.count > count, "the keeper to go on")
    assert set(answers) == {"[]"}


@ON_LINUX
def test_while_it_is_paused_the_file_is_not_opened(path: Path, plain: sqlite3.Connection, crew: Crew) -> None:
    """Written down: paused, twice; two threads look, and wait; the file is closed; resumed, they see what there is."""
    log = log_of(path)
    fill(plain, 2 * FEW)
    ours = len(open_files(path))  # SQLite's own
    log.resume()  # after nothing
    for _ in range(2):
        assert log.pause(time.monotonic() + JOIN)
        looks = [crew(log.has_grown, BEGINNING, 1), crew(log.make_room)]
        time.sleep(0.05)  # for one that does open it to show
        assert len(open_files(path)) == ours
        assert all(look.running for look in looks)
        log.resume()
        log.resume()
        assert [look.result() for look in looks] == [True, None]
    assert log.size() > STEP


def test_a_pause_gives_up_at_its_deadline(path: Path, plain: sqlite3.Connection, crew: Crew) -> None:
    """H34: a disk that hangs must not hang a fork: that goes on, and the child is told.

    Written down: a thread is held up in the middle of making room; a pause, which gives up; it goes on; a pause.
    """
    log = log_of(path)
    fill(plain, 2 * FEW)
    inside, leave = threading.Event(), threading.Event()

    def stop() -> None:
        inside.set()
        assert leave.wait(JOIN)

    with in_the_middle_of_make_room(stop):
        looking = crew(log.make_room)
        try:
            assert inside.wait(JOIN)
            began = time.monotonic()
            assert not log.pause(began + 0.1)
            assert time.monotonic() - began > 0.1
            log.resume()
            assert not log.pause(0.0), "a deadline that has passed"
            log.resume()
        finally:
            leave.set()
        looking.result()
    assert log.pause(0.0)
    log.resume()
    assert crew(log.has_grown, BEGINNING, 1).result()


def test_an_interrupt_of_a_pause_does_not_end_the_keepers_looks(
    path: Path, plain: sqlite3.Connection, crew: Crew
) -> None:
    """H34: Python goes on with a fork whose hook was interrupted, and the parent must go on too.

    Written down: an exception at each line of `pause`, in turn; `resume`; then a look must not wait for ever, and
    the next pause has the file closed.
    """
    log = log_of(path)
    fill(plain, PAGE)
    moment = 0
    while interrupted_at(moment, lambda: log.pause(time.monotonic() + JOIN)):
        log.resume()
        assert crew(log.has_grown, BEGINNING, 1).result()
        moment += 1
    log.resume()
    assert moment > 3
    assert crew(log.has_grown, BEGINNING, 1).result()
    assert log.pause(time.monotonic() + JOIN)
    log.resume()
