"""Looking for rows: each way in which a file may differ from what was acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks import places, verify
from benchmarks.case import Case
from benchmarks.peers.peer import COUNTERS, INSERT, PAYLOAD
from benchmarks.verify import Before, Written, Wrong
from safedb.sqlite.driver import sqlite3

WRITTEN = (Written(0, 5, []), Written(1, 5, [2, 4]))
THERE = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 3)]


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        places.fill(connection, Case("test", "", "write", 1, rows=10))
        connection.execute(INSERT, (0, 0, "of an earlier run"))
        connection.execute("UPDATE counter SET n = 1 WHERE id = 0")
        yield connection


def look(database: sqlite3.Connection, there: list[tuple[int, int]], *, lenient: bool = False) -> int:
    before = Before.look(database)
    database.executemany(INSERT, [(*row, PAYLOAD) for row in there])
    return verify.rows(database, before, WRITTEN, lenient=lenient)


def test_the_tables_are_filled_as_the_works_expect_them(database: sqlite3.Connection) -> None:
    items = database.execute("SELECT id, n, v FROM item ORDER BY id").fetchall()
    assert items == [(number, number, PAYLOAD) for number in range(1, 11)]
    counters = database.execute("SELECT min(id), max(id), count(*) FROM counter").fetchone()
    assert counters == (0, COUNTERS - 1, COUNTERS)


@pytest.mark.parametrize("more", [[], [(1, 2)], [(1, 4)], [(1, 2), (1, 4)]])
def test_doubtful_rows_may_be_there_or_not(database: sqlite3.Connection, more: list[tuple[int, int]]) -> None:
    assert look(database, THERE + more) == 8


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ([row for row in THERE if row != (0, 2)], "thread 0: 1 acknowledged rows are lost"),
        ([row for row in THERE if row[0] == 0], "thread 1: 3 acknowledged rows are lost"),
        ([*THERE, (0, 3)], "thread 0: 1 rows are there twice"),
        ([*THERE, (1, 2), (1, 2)], "thread 1: 1 rows are there twice"),
        ([*THERE, (1, 5)], "thread 1: 1 rows that nobody has written"),
        ([*THERE, (7, 0)], "threads that have written none"),
    ],
)
def test_a_lost_doubled_or_strange_row_is_noticed(
    database: sqlite3.Connection, there: list[tuple[int, int]], why: str
) -> None:
    with pytest.raises(Wrong, match=why):
        look(database, there)


def test_where_nothing_is_promised_only_the_number_tells(database: sqlite3.Connection) -> None:
    assert look(database, THERE[2:], lenient=True) == 6


@pytest.mark.parametrize(("added", "why"), [(7, "1 of 8"), (8, ""), (10, ""), (11, "11 times, and 10 were called")])
def test_a_lost_or_doubled_addition_is_noticed(database: sqlite3.Connection, added: int, why: str) -> None:
    """Written down: 8 additions were acknowledged, 2 more calls raised."""
    before = Before.look(database)
    database.execute("UPDATE counter SET n = n + ? WHERE id = 3", (added,))
    if why:
        with pytest.raises(Wrong, match=why):
            verify.counters(database, before, WRITTEN, counting=True)
    else:
        verify.counters(database, before, WRITTEN, counting=True)
    with pytest.raises(Wrong, match="0 were called for"):
        verify.counters(database, before, WRITTEN, counting=False)
