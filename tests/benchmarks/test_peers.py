"""Every peer does all that it says it can, from four threads at once, and loses nothing.

Here run those whose packages the tests have anyway: safedb, `sqlite3` and psycopg by hand. ``python3 -m benchmarks``
installs the others and runs them all; in an environment that has them, this does so too.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pgserver import shared
from support import Crew, sqlite3

from benchmarks.peers import PEERS, peer
from benchmarks.peers.peer import COUNTERS, PAYLOAD, RANGE, TABLES, Lane, Place

THREADS, CALLS, ROWS = 4, 30, 300
PATIENT = 60.0  # seconds that a call may wait: nothing here is about time
ITEMS = [(n, 3 * n, PAYLOAD) for n in range(1, ROWS + 1)]


def installed(name: str) -> bool:
    """Tell whether a peer's package is there: its module has the name of it."""
    module = PEERS[name].partition(":")[0]
    return module.startswith("by_hand") or importlib.util.find_spec(module.removeprefix("with_")) is not None


def on_sqlite(folder: Path) -> Place:
    """Make a file with its tables and rows."""
    path = folder / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for table in TABLES:
            connection.execute(table)
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", ITEMS)
        connection.executemany("INSERT INTO counter VALUES (?, 0)", [(n,) for n in range(COUNTERS)])
        connection.commit()
    return Place(path, threads=THREADS, timeout=PATIENT)


def on_postgresql(folder: Path) -> Place:
    """Make a schema with the same, whose connections commit without waiting for the disk: the server is a test's."""
    url = shared().schema()
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for table in TABLES:
            identity = "t (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
            cursor.execute(table.replace("t (id INTEGER PRIMARY KEY", identity).encode())
        cursor.executemany("INSERT INTO item VALUES (%s, %s, %s)", ITEMS)
        cursor.executemany("INSERT INTO counter VALUES (%s, 0)", [(n,) for n in range(COUNTERS)])
    return Place(folder, url, threads=THREADS, timeout=PATIENT)


def rows(place: Place, sql: str) -> list[Any]:
    """Read past every peer."""
    with plainly(place) as plain:
        found: list[Any] = plain.execute(sql).fetchall()
    return found


def do(lane: Lane, work: str, thread: int, number: int) -> None:
    """Make one call, and look at what a read gives."""
    key = 1 + number % (ROWS - RANGE)
    if work == "point":
        assert tuple(lane.point(key)) == ITEMS[key - 1][1:]
    elif work == "range":
        assert [tuple(row) for row in lane.range(key)] == ITEMS[key - 1 : key - 1 + RANGE]
    else:
        getattr(lane, work)(thread, number)


@pytest.mark.parametrize("name", [name for name in PEERS if installed(name)])
def test_a_peer_loses_nothing_of_what_it_has_acknowledged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down: four threads, 30 calls of each kind at once; then the rows and counters are read by plain means."""
    kind = peer(name)
    assert kind.name == name
    place = {"sqlite": on_sqlite, "postgresql": on_postgresql}[kind.dialect](tmp_path)
    checked = watch(monkeypatch)
    works = sorted(kind.works - {"mixed"}, reverse=True)
    changing = [work for work in works if work in ("write", "function", "block")]
    with closing(kind(place)) as one:

        def run(thread: int) -> None:
            lane = one.lane()
            try:
                for turn, number in ((turn, number) for turn in range(len(works)) for number in range(CALLS)):
                    do(lane, works[turn], thread, turn * CALLS + number)
            finally:
                lane.rest()

        Crew().together(THREADS, run)
        one.settle()
    added = THREADS * CALLS * len({"function", "block"} & kind.works)
    acknowledged = dict.fromkeys(range(THREADS), CALLS * len(changing))
    if (counted := one.verify(place, acknowledged, added)) is not None:
        assert counted == THREADS * CALLS * len(changing)
    else:
        numbers = [works.index(work) * CALLS + number for work in changing for number in range(CALLS)]
        expected = [(thread, number, PAYLOAD) for thread in range(THREADS) for number in sorted(numbers)]
        assert rows(place, "SELECT thread, number, v FROM t ORDER BY 1, 2") == expected
        assert rows(place, "SELECT sum(n) FROM counter") == [(added,)]
    if not place.url:
        assert rows(place, "PRAGMA journal_mode") == [("wal",)]
        assert checked or kind.package == "safedb" or kind.kind != "acknowledging"


@pytest.mark.parametrize("name", [name for name in PEERS if installed(name) and peer(name).kind == "acknowledging"])
def test_a_row_is_committed_when_a_peer_returns(name: str, tmp_path: Path) -> None:
    """Written down: rows one after the other, and after each a plain connection that was open all the time counts."""
    kind = peer(name)
    place = {"sqlite": on_sqlite, "postgresql": on_postgresql}[kind.dialect](tmp_path)
    # It is closed last: where a peer has another SQLite than ours, closing would drop the peer's locks on the file.
    with plainly(place) as plain, closing(kind(place)) as one:
        lane = one.lane()
        for number in range(20):
            lane.write(0, number)
            assert plain.execute("SELECT count(*), max(number) FROM t").fetchone() == (number + 1, number)
        lane.rest()


@contextmanager
def plainly(place: Place) -> Iterator[Any]:
    """Open what is nobody's peer."""
    with closing(psycopg.connect(place.url, autocommit=True) if place.url else sqlite3.connect(place.path)) as plain:
        yield plain


def watch(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the connections that are asked what is in force on them."""
    seen: Counter[str] = Counter()
    real = Place.check

    def check(place: Place, ask: Callable[[str], Any]) -> None:
        real(place, ask)
        seen["connections"] += 1

    monkeypatch.setattr(Place, "check", check)
    return seen


def test_a_peer_whose_settings_are_not_in_force_is_refused(tmp_path: Path) -> None:
    place = on_sqlite(tmp_path)
    with closing(sqlite3.connect(place.path, timeout=PATIENT)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        ask = lambda pragma: connection.execute(pragma).fetchone()[0]  # noqa: E731
        place.check(ask)
        connection.execute("PRAGMA synchronous = NORMAL")
        with pytest.raises(RuntimeError, match="synchronous gives 1, where 2 was set"):
            place.check(ask)
