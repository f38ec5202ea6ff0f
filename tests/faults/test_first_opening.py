"""Opening a database that is not there yet, by many processes at one moment: all succeed, and one of them makes it.

The processes are ready and stand at a gate (a lock that all share), so that they come to the file at one moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger import ACCOUNTS, INSERT, SCHEMA, look, row
from nursery import Child, Nursery
from nursery import nursery as nursery
from reliability import Record, form
from support import JOIN, Crew, sqlite3

import safedb
from safedb.retry import run_again
from safedb.sqlite import connections, snapshots

PROCESSES = 16
OBJECTS = ["accounts", "entries", "entries_of_a_write"]
ALONGSIDE = ("-wal", "-shm", "-safedb", "-safedb.next", "-journal")


class Gate:
    """Be a lock that processes wait at, until it is opened for all of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def send(children: list[Child], gate: Gate, database: Path, stays: set[int]) -> None:
    """Let all children open the database at one moment; those in ``stays`` hold it open until they are told."""
    with gate.closed():
        for number, child in enumerate(children):
            child.link.send((str(database), number, number in stays))
        for child in children:
            assert child.receive() == "at the gate"


def outcome(child: Child, *, stays: bool) -> str | None:
    """Take a child's answer: what went wrong, or None."""
    if stays and (said := child.receive()) != "open":
        return str(said)
    if stays:
        child.link.send("close")
    answer: str | None = child.receive()
    return answer


def objects(database: Path) -> tuple[int, list[str], int]:
    """Give the schema's version, what is in it, and the number of accounts."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        (accounts,) = connection.execute("SELECT count(*) FROM accounts").fetchone()
    return version, names, accounts


def sound(database: Path) -> list[str]:
    """Give all that is wrong with a database that has just been made, and its files."""
    files = [database, *(Path(f"{database}{suffix}") for suffix in ALONGSIDE)]
    found = [f"{file} may be read by others" for file in files if file.exists() and file.stat().st_mode & 0o077]
    # Each of three objects was made once: the version counts the changes.
    if objects(database) != (len(OBJECTS), OBJECTS, ACCOUNTS):
        found.append(f"not one schema: {objects(database)}")
    return found + look(database).damage


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixteen_processes_open_a_database_that_is_not_there(
    tmp_path: Path, nursery: Nursery, seed: int, record: Record
) -> None:
    """H12, H12b: no error, one schema, and what each wrote is there.

    Written down: 16 processes stand at the gate; it opens; each connects with ``schema=`` and writes a row. Some close
    at once, so that the last one removes the WAL, while others come; some stay.
    """
    chance, gate = random.Random(seed), Gate(tmp_path / "gate")
    with nursery.children() as children:
        children += [nursery.fork("bookkeeper:open_once", gate=str(gate.path)) for _ in range(PROCESSES)]
        for turn in range(form(200, 600)):
            database = tmp_path / f"{turn}.db"
            stays = set(chance.sample(range(PROCESSES), chance.choice((0, 4, PROCESSES))))
            send(children, gate, database, stays)
            errors = [outcome(child, stays=number in stays) for number, child in enumerate(children)]
            assert errors == [None] * PROCESSES
            assert sound(database) == []
            assert look(database).writes == {f"w{number}": (1, 1, 0) for number in range(PROCESSES)}
            for file in tmp_path.glob(f"{turn}.db*"):
                file.unlink()
            record.add(rounds=1, acknowledged=PROCESSES, lost=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_first_opening_that_is_killed_stops_nobody(
    tmp_path: Path, nursery: Nursery, seed: int, record: Record
) -> None:
    """H12b: whoever dies in it, wherever: the others open the database, and so does who comes later.

    Written down: 6 processes stand at the gate; it opens; some moments later up to all of them are killed. The others
    get no error. As many new ones come as were killed, and open what is there.
    """
    chance, gate = random.Random(seed), Gate(tmp_path / "gate")
    with nursery.children() as children:

        def fill_up() -> list[Child]:
            new = [nursery.fork("bookkeeper:open_once", gate=str(gate.path)) for _ in range(6 - len(children))]
            children.extend(new)
            return new

        for turn in range(form(30, 500)):
            database = tmp_path / f"{turn}.db"
            fill_up()
            send(children, gate, database, set())
            for child in sorted(chance.sample(children, chance.choice((1, 3, 6))), key=lambda child: child.pid):
                time.sleep(chance.uniform(0, 0.004))
                child.kill()
                children.remove(child)
                child.reap()
                record.add(kills=1)
            assert [outcome(child, stays=False) for child in children] == [None] * len(children)
            new = fill_up()
            send(new, gate, database, set())
            assert [outcome(child, stays=False) for child in new] == [None] * len(new)
            assert sound(database) == []
            record.add(rounds=1, acknowledged=6)


def test_nobody_removes_the_wal_of_whoever_has_made_the_database(tmp_path: Path, nursery: Nursery) -> None:
    """H12b: the connection that switches a new file to WAL opens the WAL at once, and keeps it there.

    Written down: one process makes the database. Before it does any more, another one opens it, writes, and closes.
    """
    database, gate = tmp_path / "app.db", Gate(tmp_path / "gate")
    with safedb.connect(database) as db, nursery.children() as children:
        children.append(nursery.fork("bookkeeper:open_once", gate=str(gate.path)))
        send(children, gate, database, set())
        assert outcome(children[0], stays=False) is None
        assert Path(f"{database}-wal").exists()
        db.execute(INSERT, row("w1", 0))
        assert look(database).writes == {"w0": (1, 1, 0), "w1": (1, 1, 0)}


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def occupied(tmp_path: Path, nursery: Nursery) -> Iterator[tuple[Path, Child]]:
    """Be a database that another program has to itself, and that program."""
    database = tmp_path / "app.db"
    safedb.connect(database, schema=SCHEMA).close()
    with nursery.children() as children:
        children.append(nursery.fork("bookkeeper:occupy", database=str(database)))
        assert children[0].receive() == "occupied"
        yield database, children[0]


@pytest.mark.parametrize("read_only", [True, False])
def test_an_opening_waits_while_another_has_the_file_to_itself(
    occupied: tuple[Path, Child], crew: Crew, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """H12, H13: a recovery may take longer than SQLite waits by itself, and a reader does not stand at the side files.

    Written down: another program has the file; an opening meets its lock; the program lets go.
    """
    database, program = occupied
    met = threading.Event()

    def again(*args: Any, **kwargs: Any) -> Any:
        met.set()
        return run_again(*args, **kwargs)

    for module in (snapshots, connections):
        monkeypatch.setattr(module, "run_again", again)
    opening = crew(safedb.connect, database, read_only=read_only, retry=safedb.RetryPolicy(timeout=60.0))
    assert met.wait(JOIN)
    assert opening.running
    program.link.send("go")
    assert program.receive() == "left"
    with opening.result() as db:
        assert db.execute("SELECT count(*) FROM accounts").scalar() == ACCOUNTS


def test_an_opening_to_read_gives_up_at_its_deadline(occupied: tuple[Path, Child]) -> None:
    """H13: and not before."""
    database, _ = occupied
    begun = time.monotonic()
    with pytest.raises(safedb.LockTimeout, match=r"waited .* has to itself"):
        safedb.connect(database, read_only=True, retry=safedb.RetryPolicy(timeout=0.5))
    assert time.monotonic() - begun >= 0.5
