"""Nothing is left behind: in a session that others use next, by a forgotten iterator, or after a failure."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pgserver
import psycopg
import pytest
from pgproxy import LOSE_ANSWER, Proxy

import safedb
from safedb import errors

GENEROUS = safedb.RetryPolicy(timeout=60.0)


@pytest.fixture
def url() -> str:
    return pgserver.shared().schema()


@pytest.fixture
def db(url: str) -> Iterator[safedb.Database]:
    schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)"
    with safedb.connect(url, retry=GENEROUS, pool=safedb.PoolConfig(max_size=1), schema=schema) as made:
        yield made


class Reader:
    """Hold an iterator in a reference cycle, so that only the garbage collector ends it."""

    def __init__(self, snap: safedb.Snapshot) -> None:
        self.rows = snap.iterate("SELECT g FROM generate_series(1, 5000) g", batch=100)
        self.me = self
        next(self.rows)


def test_an_abandoned_iterator_may_end_in_the_middle_of_another_statement(db: safedb.Database) -> None:
    """The garbage collector comes inside the driver, which holds the link's lock: it must not ask for that lock."""
    threshold = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    try:
        with db.snapshot() as snap:
            for _ in range(30):
                Reader(snap)
                assert sum(1 for _ in snap.iterate("SELECT g FROM generate_series(1, 2000) g", batch=100)) == 2000
            open_cursors = snap.execute("SELECT count(*) FROM pg_cursors").scalar()
    finally:
        gc.set_threshold(*threshold)
    assert open_cursors < 30  # those of the collected ones are closed by the next statement


def test_an_iterator_that_another_thread_collects_touches_no_link(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        Reader(snap)
        collector = threading.Thread(target=gc.collect)
        collector.start()
        began = monotonic()
        assert snap.execute("SELECT 1 FROM pg_sleep(0.2)").scalar() == 1
        collector.join(30)
        assert monotonic() - began < 20
        assert not collector.is_alive()


def test_an_iterator_that_failed_does_not_look_finished(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        rows = snap.iterate("SELECT 1 / (25 - g) FROM generate_series(1, 50) g", batch=10)
        with pytest.raises(safedb.DataError):
            list(rows)
        for _ in range(2):
            with pytest.raises(safedb.DataError):
                next(rows)


def test_two_iterators_at_once_and_one_left_half_read(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        left, right = (snap.iterate("SELECT g FROM generate_series(1, 30) g", batch=7) for _ in range(2))
        assert [next(left) for _ in range(3)] == [(1,), (2,), (3,)]
        assert len(list(right)) == 30
        left.close()  # type: ignore[attr-defined]
        assert snap.execute("SELECT count(*) FROM pg_cursors").scalar() == 0


@pytest.mark.parametrize("call", ["DO $$ BEGIN {} END $$", "CALL leave()"])
def test_what_code_on_the_server_sets_stays_with_nobody(db: safedb.Database, call: str) -> None:
    setting = "PERFORM set_config('work_mem', '4321kB', false), pg_advisory_lock(77);"
    db.execute(f"CREATE PROCEDURE leave() LANGUAGE plpgsql AS $$ BEGIN {setting} END $$")
    ask = "SELECT current_setting('work_mem')"
    db.execute(call.format(setting))
    with db.transaction() as tx:
        assert tx.execute(ask).scalar() != "4321kB"
        tx.execute(call.format(setting))
        assert tx.execute(ask).scalar() == "4321kB"
    with db.transaction() as tx:
        assert tx.execute(ask).scalar() != "4321kB"


def test_a_notification_is_sent_once_though_the_answer_to_commit_is_lost(url: str) -> None:
    """NOTIFY gets a number only inside COMMIT: without one asked for before, it would count as "nothing written"."""
    proxy = Proxy(url)
    channel = "told"
    with psycopg.connect(url, autocommit=True) as listener, safedb.connect(proxy.url, retry=GENEROUS) as db:
        listener.execute(f"LISTEN {channel}")
        sent: list[Any] = [
            lambda text: db.execute(f"NOTIFY {channel}, '{text}'"),
            lambda text: db.execute("SELECT pg_notify(?, ?)", (channel, text)),
            lambda text: db.run_transaction(lambda tx: tx.execute("SELECT pg_notify(?, ?)", (channel, text))),
        ]
        for number, send in enumerate(sent):
            rule = proxy.when("COMMIT", LOSE_ANSWER)
            send(f"message {number}")
            assert rule.taken
        heard = [note.payload for note in listener.notifies(timeout=1.0)]
    proxy.close()
    assert heard == ["message 0", "message 1", "message 2"]


def test_null_in_an_array_stays_null_whatever_the_role_says(url: str) -> None:
    server = pgserver.shared()
    server.execute("CREATE DATABASE odd_nulls")
    for name, value in {"array_nulls": "off", "transform_null_equals": "on"}.items():
        server.execute(f"ALTER DATABASE odd_nulls SET {name} = {value}")
    with safedb.connect(server.url("odd_nulls"), retry=GENEROUS) as db:
        assert db.execute("SELECT ?::text[]", (["NULL", None, "a"],)).scalar() == ["NULL", None, "a"]
        assert db.execute("SELECT 1 = NULL").scalar() is None


def test_closing_inside_ones_own_snapshot_does_not_wait_for_it(db: safedb.Database) -> None:
    with db.snapshot() as snap:
        began = monotonic()
        db.close()
        assert monotonic() - began < 30
        with pytest.raises(errors.DatabaseClosed):
            snap.execute("SELECT 1")
