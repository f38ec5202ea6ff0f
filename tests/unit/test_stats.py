"""What is counted is exact, what is shown is frozen, and a hook that fails disturbs nobody."""

from __future__ import annotations

import dataclasses
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import safedb
from safedb import stats
from safedb.stats import BUCKETS, Counters, Event, Hooks, Retried, SlowWait, Timer


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_every_duration_lands_in_the_one_bucket_that_its_name_promises(durations: list[float]) -> None:
    timer = Timer()
    expected = [0] * BUCKETS
    for seconds in durations:
        timer.add(seconds)
        micro = int(seconds * 1e6)
        expected[next((k for k in range(BUCKETS - 1) if micro < 2**k), BUCKETS - 1)] += 1
    waits = timer.snapshot()
    assert waits.histogram == tuple(expected)
    assert waits.count == len(durations) == sum(waits.histogram)
    assert waits.total == pytest.approx(sum(durations))
    assert waits.max == max(durations, default=0.0)
    assert waits.mean == pytest.approx(sum(durations) / len(durations) if durations else 0.0)


def test_a_snapshot_does_not_move_with_what_it_was_taken_of() -> None:
    timer = Timer()
    timer.add(0.5)
    before = timer.snapshot()
    timer.add(0.5)
    assert (before.count, sum(before.histogram)) == (1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.count = 5  # type: ignore[misc]


def test_retries_are_counted_by_cause_and_commits_by_the_size_of_their_group() -> None:
    counters = Counters()
    for cause in ("busy", "lost", "busy"):
        counters.retried(cause)
    for size in (1, 4, 1):
        counters.committed(size)
    assert counters.retries == {"busy": 2, "lost": 1}
    assert (counters.commits, counters.writes, counters.group_sizes) == (3, 6, {1: 2, 4: 1})


def test_a_hook_hears_of_every_event_until_it_is_removed() -> None:
    hooks, heard = Hooks(), list[Event]()
    hooks.add(heard.append)
    hooks.emit(Retried("a.db", "busy", 1, 0.1))
    hooks.remove(heard.append)
    hooks.remove(heard.append)  # unknown by now
    hooks.emit(Retried("a.db", "busy", 2, 0.1))
    assert [event.attempt for event in heard if isinstance(event, Retried)] == [1]


def test_a_hook_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    hooks, heard = Hooks(), list[Event]()

    def fail(_: Event) -> None:
        raise ZeroDivisionError

    hooks.add(fail)
    hooks.add(heard.append)
    hooks.emit(SlowWait("a.db", 2.0, "somebody"))
    assert len(heard) == 1
    assert "hook" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (stats.Retried("a.db", "busy", 1, 0.1), logging.INFO),
        (stats.SlowWait("a.db", 2.0, "b"), logging.WARNING),
        (stats.SlowCheckpoint("a.db", 2.0, 10, True), logging.WARNING),
        (stats.FailedCheckpoint("a.db", "disk I/O error", 10), logging.WARNING),
        (stats.LongSnapshot("a.db", "MainThread", 9.0, 10), logging.WARNING),
        (stats.Overrun("a.db", "COMMIT", 1.0), logging.WARNING),
    ],
)
def test_what_slows_things_down_is_logged_as_a_warning(
    event: Event, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="safedb"):
        Hooks().emit(event)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("safedb", level)
    assert type(event).__name__ in record.getMessage()
    assert "a.db" in record.getMessage()
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.database = "b.db"  # type: ignore[misc]


def test_a_database_counts_exactly_under_many_threads(tmp_path: Path) -> None:
    threads, each = 8, 25
    with safedb.connect(tmp_path / "a.db", schema="CREATE TABLE t(x)") as db:
        before = db.stats()

        def work() -> None:
            for number in range(each):
                db.execute("INSERT INTO t VALUES (?)", (number,))

        crew = [threading.Thread(target=work) for _ in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(60)
        after = db.stats()
    assert after.writes - before.writes == threads * each
    assert sum(size * count for size, count in after.group_sizes.items()) == after.writes
    assert sum(after.group_sizes.values()) == after.commits
    assert (after.dialect, after.queue_depth, after.oldest_snapshot) == ("sqlite", 0, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.writes = 0  # type: ignore[misc]
