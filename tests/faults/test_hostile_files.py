"""Files that somebody else made, or got at: nothing private is shown, nothing runs, nothing crashes, nothing hangs."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from reliability import Record, form
from support import process_group, sqlite3

import safedb

SCHEMA = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v TEXT)"
SUFFIXES = ("", "-wal", "-shm", "-safedb", "-safedb.next")

# -- who may read them -------------------------------------------------------------------------------------------------

OPEN = """
import os, sys, safedb
os.umask(int(sys.argv[2], 8))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    with safedb.connect(f"sqlite:///{sys.argv[1]}/{number}.db", schema="CREATE TABLE t (v TEXT)") as db:
        db.execute("INSERT INTO t VALUES ('secret')")
        db.backup(f"{sys.argv[1]}/{number}.copy")
"""


def open_to_others(folder: Path) -> set[tuple[str, str]]:
    """Give the names and modes of the files that others than their owner may use in any way."""
    found = set()
    for entry in os.scandir(folder):
        try:
            mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
        except FileNotFoundError:
            continue
        if mode & 0o077:
            found.add((entry.name, oct(mode)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("umask", ["000", "022", "777"])
def test_no_file_is_ever_open_to_others_not_even_for_a_moment(tmp_path: Path, umask: str, record: Record) -> None:
    """H50. Written down: a process makes one database after the other; all the while we look at every file there is."""
    rounds = form(10, 200)
    order = [sys.executable, "-W", "ignore", "-c", OPEN, str(tmp_path), umask, str(rounds)]
    looks = 0
    with subprocess.Popen(order, stdin=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.close()
            seen = set()
            while process.poll() is None:
                seen |= open_to_others(tmp_path)
                looks += 1
        finally:
            process.kill()
    assert process.returncode == 0
    assert len(list(tmp_path.glob("*.copy"))) == rounds
    assert seen | open_to_others(tmp_path) == set()
    record.add(rounds=rounds, lost=0)
    record.note(looks=looks, umask=umask)


def modes(path: Path) -> set[int]:
    return {stat.S_IMODE(Path(f"{path}{suffix}").stat().st_mode) for suffix in SUFFIXES}


def test_the_five_files_have_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    """H50: 0600 unless told otherwise; and told otherwise, exactly that, whatever the umask."""
    before = os.umask(0o077)
    try:
        for mode in (0o600, 0o640, 0o660):
            path = tmp_path / f"{mode:o}.db"
            with safedb.connect(path, schema=SCHEMA, pragmas=safedb.Pragmas(file_mode=mode)) as db:
                db.execute("INSERT INTO t (v) VALUES ('x')")
                assert modes(path) == {mode}
    finally:
        os.umask(before)


def test_what_is_there_keeps_its_mode_and_its_side_files_follow_it(tmp_path: Path) -> None:
    """H42: a database that a group shares stays shared."""
    path = tmp_path / "shared.db"
    path.touch()
    path.chmod(0o664)
    with safedb.connect(path, schema=SCHEMA) as db:
        db.execute("INSERT INTO t (v) VALUES ('x')")
        assert modes(path) == {0o664}


# -- links -------------------------------------------------------------------------------------------------------------


def test_by_a_symbolic_link_it_is_the_same_database_with_the_same_side_files(tmp_path: Path) -> None:
    """H41: two names with a WAL each would be two databases in one file."""
    folder, elsewhere = tmp_path / "real", tmp_path / "links"
    folder.mkdir()
    elsewhere.mkdir()
    path, link = folder / "app.db", elsewhere / "app.db"
    link.symlink_to(path)
    with safedb.connect(link, schema=SCHEMA) as by_link, safedb.connect(path) as by_name:
        by_link.execute("INSERT INTO t (v) VALUES ('x')")
        assert by_name.execute("SELECT v FROM t").fetchall() == [("x",)]
        assert modes(path) == {0o600}
        assert [entry.name for entry in elsewhere.iterdir()] == ["app.db"]


@pytest.mark.parametrize("suffix", ["-safedb", "-safedb.next", "-wal", "-shm"])
@pytest.mark.parametrize("new", [True, False], ids=["a new database", "one that is there"])
def test_a_link_in_place_of_a_side_file_leads_to_nothing_of_ours(tmp_path: Path, suffix: str, new: bool) -> None:
    """Written down: somebody who may write into the folder puts a link there, to a file that is dear to us."""
    dear = tmp_path / "dear"
    dear.write_text("dear to us")
    path = tmp_path / "app.db"
    if not new:
        safedb.connect(path, schema=SCHEMA).close()
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    Path(f"{path}{suffix}").symlink_to(dear)
    with suppress(safedb.Error), safedb.connect(path, schema=SCHEMA) as db:  # SQLite may put a WAL of its own there
        assert suffix == "-wal"
        db.execute("INSERT INTO t (v) VALUES ('x')")
    assert dear.read_text() == "dear to us"


def test_a_second_name_given_later_is_refused_at_the_next_opening(tmp_path: Path) -> None:
    """H41: who opens the other name has a WAL of his own, and neither sees what the other commits."""
    path, second = tmp_path / "app.db", tmp_path / "second.db"
    with safedb.connect(path, schema=SCHEMA) as db:
        os.link(path, second)
        db.execute("INSERT INTO t (v) VALUES ('x')")
        for name in (path, second):
            with pytest.raises(safedb.ConfigError, match="hard links"):
                safedb.connect(name)
        second.unlink()
        assert db.execute("SELECT v FROM t").fetchall() == [("x",)]


def test_the_wal_of_a_database_that_was_deleted_is_not_read_into_its_successor(tmp_path: Path) -> None:
    """Written down: a process is killed, so its WAL stays; somebody deletes the database alone; it is made anew."""
    path = tmp_path / "app.db"
    code = (
        "import os, safedb, sys; db = safedb.connect('sqlite:///' + sys.argv[1], schema='CREATE TABLE t (v TEXT)');"
        "db.execute(\"INSERT INTO t VALUES ('old')\"); os._exit(0)"
    )
    with process_group([sys.executable, "-W", "ignore", "-c", code, str(path)]) as process:
        assert process.wait(60) == 0
    assert Path(f"{path}-wal").stat().st_size > 0
    path.unlink()
    with safedb.connect(path, schema=SCHEMA) as db:
        assert db.execute("SELECT v FROM t").fetchall() == []
        assert db.check() == []


# -- what is in them ---------------------------------------------------------------------------------------------------


@contextmanager
def made_by_hand(path: Path, *statements: str) -> Iterator[None]:
    """Make a database as somebody who means harm: by hand, with SQLite's guards off."""
    connection = sqlite3.connect(path)
    connection.create_function("now_harm", 0, lambda: 1)
    connection.execute("PRAGMA trusted_schema=ON")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    yield


HARM = {
    "a trigger": ("CREATE TABLE t (v)", "CREATE TRIGGER harm AFTER INSERT ON t BEGIN SELECT now_harm(); END"),
    "a view": ("CREATE TABLE u (v)", "CREATE VIEW t AS SELECT now_harm() AS v"),
    "a default": ("CREATE TABLE t (id, v DEFAULT (now_harm()))",),
}
"""Not a CHECK: SQLite 3.40 calls what stands in one all the same, and 3.53 refuses it (docs/security.md)."""


@pytest.mark.parametrize("what", HARM)
def test_a_schema_runs_no_function_of_the_program(tmp_path: Path, what: str) -> None:
    """H48: with trusted_schema on, which is SQLite's default, each of these calls it."""
    path = tmp_path / "theirs.db"
    called = threading.Event()

    def harm() -> int:
        called.set()
        return 1

    use = (
        "SELECT v FROM t" if what == "a view" else f"INSERT INTO t ({'id' if what == 'a default' else 'v'}) VALUES (1)"
    )
    with made_by_hand(path, *HARM[what]):
        trusting = sqlite3.connect(path)
        trusting.create_function("now_harm", 0, harm)
        trusting.execute("PRAGMA trusted_schema=ON")
        trusting.execute(use)
        trusting.close()
        assert called.is_set(), "it would not have been called anyway"
        called.clear()
        with (
            pytest.raises(safedb.Error, match="unsafe use of"),
            safedb.connect(path, functions={"now_harm": (harm, 0)}) as db,
        ):
            db.execute(use)
        assert not called.is_set()


def test_a_trigger_that_never_ends_is_interrupted_at_the_deadline(tmp_path: Path) -> None:
    """Bounded: the next writer goes on, and nothing of it is kept."""
    path = tmp_path / "theirs.db"
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with (
        made_by_hand(
            path,
            "CREATE TABLE t (v)",
            f"CREATE TRIGGER harm AFTER INSERT ON t WHEN new.v = 1 BEGIN {forever}; END",
            f"CREATE VIEW w AS {forever}",
        ),  # fmt: skip
        safedb.connect(path) as db,
    ):
        with pytest.raises(safedb.QueryCanceled):
            db.execute("INSERT INTO t VALUES (1)", timeout=0.3)
        with pytest.raises(safedb.QueryCanceled):
            db.execute("SELECT * FROM w", timeout=0.3)
        db.execute("INSERT INTO t VALUES (2)")
        assert db.execute("SELECT v FROM t").fetchall() == [(2,)]


def test_names_that_are_sql_are_only_names(tmp_path: Path) -> None:
    """H49. Whatever safedb itself asks about tables and columns, it asks by value or quotes them."""
    path = tmp_path / "theirs.db"
    table, column = 'x"; DROP TABLE dear; --', "y'); DROP TABLE dear; --"
    quoted = '"' + table.replace('"', '""') + '"'
    with safedb.connect(path, schema="CREATE TABLE dear (v TEXT)") as db:
        db.execute(f'CREATE TABLE {quoted} ("{column}" BOOLEAN)')
        db.execute(f"INSERT INTO {quoted} VALUES (NULL)")
        result = db.execute(f"SELECT * FROM {quoted}")
        assert (result.columns, result.fetchall()) == ((column,), [(None,)])
        assert db.execute("SELECT * FROM dear").fetchall() == []
        assert db.check() == []
        db.backup(tmp_path / "copy.db")
        assert db.execute("SELECT * FROM dear").fetchall() == []
    with safedb.connect("sqlite://", schema=f'CREATE TABLE {quoted} ("{column}" BOOLEAN)') as db:
        db.execute(f"INSERT INTO {quoted} VALUES (?)", (True,))
        assert db.execute(f"SELECT * FROM {quoted}").fetchall() == [(True,)]


@pytest.mark.parametrize(
    "given",
    [
        {"synchronous": "FULL; DROP TABLE t"},
        {"cache_size": "1; DROP TABLE t"},
        {"application_id": "7) --"},
        {"journal_mode": "WAL"},
        {"cache_size": True},
    ],
)
def test_a_pragmas_value_is_a_value_of_its_type(tmp_path: Path, given: dict[str, Any]) -> None:
    """H49: no text of the user's goes into a PRAGMA."""
    with pytest.raises((safedb.ConfigError, TypeError)):
        safedb.connect(tmp_path / "app.db", pragmas=safedb.Pragmas(**given))
    name, value = next(iter(given.items()))
    with pytest.raises(safedb.ConfigError):
        safedb.connect(f"sqlite:///{tmp_path}/app.db?{name}={value}")
    assert not (tmp_path / "app.db").exists()


def test_no_extension_is_loaded(tmp_path: Path) -> None:
    """H48: neither by SQL nor by what a file holds."""
    with safedb.connect(tmp_path / "app.db") as db, pytest.raises(safedb.Error, match="not authorized"):
        db.execute("SELECT load_extension('libc.so.6')")


# -- damage ------------------------------------------------------------------------------------------------------------

USE = """
import json, sys, safedb
told = []
def attempt(call):
    try:
        call()
        told.append("ok")
    except safedb.Error as error:
        told.append(type(error).__name__)
def use(db):
    attempt(lambda: db.execute("SELECT id, v, at FROM t ORDER BY v").fetchall())
    attempt(lambda: db.execute("SELECT count(*) FROM u").fetchall())
    attempt(db.check)
    attempt(lambda: db.execute("INSERT INTO t (v) VALUES ('new')"))
    attempt(lambda: db.execute("UPDATE t SET v = v || 'x'"))
    attempt(lambda: db.execute("DELETE FROM u WHERE id % 2"))
    attempt(db.checkpoint)
    attempt(lambda: db.backup(sys.argv[1] + ".copy"))
    attempt(db.close)
for line in sys.stdin:
    told.clear()
    opened = []
    attempt(lambda: opened.append(safedb.connect("sqlite:///" + line.strip(), retry=safedb.RetryPolicy(timeout=20))))
    for db in opened:
        use(db)
    print(json.dumps(told), flush=True)
"""


def whole(path: Path) -> bytes:
    with safedb.connect(
        path,
        schema="CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, at TIMESTAMP); CREATE INDEX i ON t (v);"
        "CREATE TABLE u (id INTEGER PRIMARY KEY, t REFERENCES t, b BLOB)",
    ) as db:
        db.executemany("INSERT INTO t (v) VALUES (?)", [(f"{n * 7919 % 1000} text",) for n in range(400)])
        db.executemany("INSERT INTO u (t, b) VALUES (?, ?)", [(n % 400 + 1, bytes(n * 8)) for n in range(200)])
    return path.read_bytes()


def damage(good: bytes, chance: random.Random) -> bytes:
    """Damage a file in one of the ways in which files are damaged."""
    content = bytearray(good)
    kind = chance.randrange(4)
    if kind == 0:  # cut short
        return bytes(content[: chance.randrange(len(content))])
    if kind == 1:  # a page of zeros, or of another place
        page = 4096 * chance.randrange(len(content) // 4096)
        other = 4096 * chance.randrange(len(content) // 4096)
        content[page : page + 4096] = content[other : other + 4096] if chance.randrange(2) else bytes(4096)
        return bytes(content)
    places = range(100) if kind == 2 else range(len(content))  # the header, or anywhere
    for _ in range(chance.choice([1, 8, 64])):
        content[chance.choice(places)] = chance.randrange(256)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_damaged_file_gives_errors_of_ours_and_no_crash_and_no_hang(
    tmp_path: Path, seed: int, record: Record
) -> None:
    """H48. Written down: files cut short, with bytes, headers and pages changed, are opened and used in every way."""
    rounds = form(60, 1500)
    chance = random.Random(seed)
    good = whole(tmp_path / "good.db")
    path = tmp_path / "bad.db"
    told: dict[str, int] = {}
    order = [sys.executable, "-W", "ignore", "-c", USE, str(path)]
    with subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(rounds):
                for suffix in (*SUFFIXES, ".copy"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
                path.write_bytes(good if number == 0 else damage(good, chance))
                process.stdin.write(f"{path}\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                assert answer, f"round {number}: it died with {process.wait(30)}"
                outcome = json.loads(answer)
                if number == 0:
                    assert outcome == ["ok"] * 10
                for word in outcome:
                    told[word] = told.get(word, 0) + 1
        finally:
            process.kill()
    assert told["DatabaseError"] > 0
    record.add(rounds=rounds, faults=rounds - 1, lost=0)
    record.note(told=told)


@pytest.mark.parametrize("length", [2, 15, 16, 99, 100, 511, 512, 4095])
def test_a_file_cut_short_is_refused_and_left_as_it_is(tmp_path: Path, length: int) -> None:
    """SQLite takes a file of a single byte for an empty one."""
    path = tmp_path / "app.db"
    short = whole(path)[:length]
    path.write_bytes(short)
    with pytest.raises(safedb.DatabaseError) as caught:
        safedb.connect(path)
    assert caught.value.sqlite_errorname in ("SQLITE_NOTADB", "SQLITE_CORRUPT")
    assert path.read_bytes() == short


def test_damage_is_found_by_check_and_named(tmp_path: Path) -> None:
    """Written down: an index that lacks a row, which no read of the table shows; then a page of zeros."""
    path = tmp_path / "app.db"
    whole(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t (v) WHERE id < 0' WHERE name = 'i'")
    connection.commit()
    connection.close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO t (v) VALUES ('not in the index')")
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t (v)' WHERE name = 'i'")
    connection.commit()
    connection.close()
    with safedb.connect(path) as db:
        assert any("missing from index i" in finding for finding in db.check())
    content = bytearray(path.read_bytes())
    content[8192:12288] = bytes(4096)
    path.write_bytes(content)
    with safedb.connect(path) as db:
        assert db.check() != []
