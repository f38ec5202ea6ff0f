"""Behind a pooler that gives each transaction another session: limits and UTC hold, and nothing is left behind.

`pgproxy.Pooler` does what PgBouncer does in its transaction mode, with sessions of a real server.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from faults import GENEROUS, at_rest, error_of
from pgproxy import Pooler
from pgserver import Server, make_url
from psycopg.conninfo import conninfo_to_dict
from support import Crew

import safedb

LEFT = (
    "SELECT current_setting('TimeZone'), current_setting('statement_timeout'), current_setting('lock_timeout'),"
    " current_setting('idle_in_transaction_session_timeout'), current_setting('default_transaction_read_only'),"
    " current_setting('default_transaction_isolation'), current_setting('synchronous_commit'),"
    " current_setting('IntervalStyle'), current_setting('search_path')"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        server.start()
        yield server


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


@pytest.fixture
def pooler(server: Server) -> Iterator[Pooler]:
    parts = {key: str(value) for key, value in conninfo_to_dict(server.schema()).items()}
    parts["options"] += " -cTimeZone=Asia/Tokyo -cIntervalStyle=sql_standard"
    with Pooler(make_url(**parts)) as pooler:
        yield pooler


@pytest.fixture
def db(pooler: Pooler) -> Iterator[safedb.Database]:
    options = {"retry": GENEROUS, "pool": safedb.PoolConfig(prepare_threshold=0, max_size=3)}
    with safedb.connect(pooler.url, schema="CREATE TABLE t (x integer, at timestamptz)", **options) as db:  # type: ignore[arg-type]
        yield db


def settings(pooler: Pooler) -> set[tuple[Any, ...]]:
    """Give what is set in the sessions, of which each transaction gets the next one."""
    with psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as connection:
        found = [connection.execute(f"{LEFT}, pg_backend_pid()".encode()).fetchone() for _ in range(40)]
    assert len({row[-1] for row in found if row}) >= Pooler.SESSIONS
    return {row[:-1] for row in found if row}


def test_the_pooler_gives_each_transaction_another_session(db: safedb.Database) -> None:
    """Check what the other tests rest on."""
    pids = [db.execute("SELECT pg_backend_pid()").scalar() for _ in range(10)]
    assert len(set(pids)) >= Pooler.SESSIONS


def test_every_transaction_has_utc_and_its_limits(db: safedb.Database) -> None:
    """Same answer on both, bounded: what the session cannot hold, each transaction brings along."""
    sql = (
        "SELECT current_setting('TimeZone'), current_setting('IntervalStyle'),"
        " current_setting('statement_timeout') <> '0', current_setting('transaction_read_only')"
    )
    for _ in range(4):
        assert db.execute(sql).one() == ("UTC", "postgres", True, "on")
        assert db.execute(sql, timeout=3.0).one() == ("UTC", "postgres", True, "on")
        with db.snapshot() as snap:
            assert snap.execute(sql).one() == ("UTC", "postgres", True, "on")
        assert db.run_transaction(lambda tx: tx.execute(sql).one()) == ("UTC", "postgres", True, "off")
        with db.transaction() as tx:
            assert tx.execute(sql).one() == ("UTC", "postgres", True, "off")
            assert tx.execute("SELECT current_setting('transaction_isolation')").scalar() == "serializable"
        row = db.execute("INSERT INTO t VALUES (1, '2024-05-06 07:08:09') RETURNING at::text").scalar()
        assert row == "2024-05-06 07:08:09+00"
        assert db.execute("SELECT count(*) FROM t WHERE at = '2024-05-06 07:08:09Z'").scalar() > 0
    for call in (
        lambda: db.execute("SELECT pg_sleep(30)", timeout=0.3),
        lambda: db.execute("INSERT INTO t SELECT 2, now() FROM pg_sleep(30)", timeout=0.3),
    ):
        began = time.monotonic()
        assert isinstance(error_of(call), safedb.QueryCanceled)
        assert time.monotonic() - began < 2.0
    at_rest(db)


def test_nothing_is_left_in_the_sessions(db: safedb.Database, pooler: Pooler) -> None:
    """Survives its surroundings: sessions are lent to others after us, who must find them as they were."""
    before = settings(pooler)
    assert len(before) == 1
    for number in range(4):
        db.execute("SELECT 1")
        db.execute("SELECT 1", timeout=2.0)
        db.execute("INSERT INTO t VALUES (?, now())", (number,))
        db.executemany("INSERT INTO t VALUES (?, now())", [(number,), (number,)])
        db.run_transaction(lambda tx: tx.execute("SELECT count(*) FROM t").one())
        error_of(lambda: db.execute("SELECT 1/0"))
        error_of(lambda: db.execute("INSERT INTO t VALUES (1/0, now())"))
        with db.snapshot() as snap:
            list(snap.iterate("SELECT generate_series(1, 10)", batch=3))
        with db.snapshot(max_age=30.0) as snap:
            snap.execute("SELECT 1")
        db.execute("VACUUM t")
        db.execute("VACUUM t", timeout=5.0)
    assert settings(pooler) == before
    at_rest(db)


def test_writes_are_exact_from_many_threads(db: safedb.Database, crew: Crew) -> None:
    """Exactly once: whoever's session it was before."""
    db.execute("INSERT INTO t VALUES (0, now())")

    def increment(tx: Any) -> None:
        x = tx.execute("SELECT x FROM t").scalar()
        tx.execute("UPDATE t SET x = ?", (x + 1,))

    def work(_: int) -> None:
        for _ in range(5):
            db.run_transaction(increment)
            db.execute("UPDATE t SET x = x + 1")

    crew.together(6, work)
    assert db.execute("SELECT x FROM t").scalar() == 60
    at_rest(db)


def test_serial_writes_are_refused(pooler: Pooler) -> None:
    """Never silently weaker: a lock of the session would be held by whoever gets the session next."""
    with pytest.raises(safedb.ConfigError, match="serial_writes"):
        safedb.connect(pooler.url, retry=GENEROUS, serial_writes=True)
