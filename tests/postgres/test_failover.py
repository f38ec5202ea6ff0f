"""Servers that stop, start, fail over, turn read-only, or are not there: writes resume, acknowledgements hold.

The loads keep account of what each write was told (`faults.Load`): acknowledged writes are there exactly once, those
that failed are not there at all, and only those that were called unknown may be either.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from faults import GENEROUS, LONG, Load, at_rest, error_of, named
from pgproxy import Proxy
from pgserver import Server, _free_port, failover_url, make_url
from psycopg.conninfo import conninfo_to_dict
from support import Crew, wait_until

import safedb
from safedb import errors

PAST = 1.0
"""Seconds by which a call may end after its deadline here: generous, and far from every limit of the system."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(tcp=True) as server:
        server.start()
        yield server


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.finish()


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for sql in statements:
            connection.execute(sql.encode())


# -- stopped and started again under load ---------------------------------------------------------------------------


def bounce(how: str) -> Callable[[Server], None]:
    def restart(server: Server) -> None:
        server.restart(how)

    return restart


def kill(server: Server) -> None:
    server.kill()
    server.start()


def kill_backend(server: Server) -> None:
    which = "application_name = 'load' AND query ~ 'INSERT|UPDATE|COMMIT'"
    found: list[Any] = []

    def look() -> bool:
        found[:] = server.execute(f"SELECT pid FROM pg_stat_activity WHERE {which}")
        return bool(found)

    wait_until(look, "a backend that writes")
    server.kill_backend(found[0][0])
    server.wait_ready()


def terminate_all(server: Server) -> None:
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'load'")


FAULTS = {
    "fast": bounce("fast"),
    "immediate": bounce("immediate"),
    "kill": kill,
    "kill a backend": kill_backend,
    "terminate": terminate_all,
}


@pytest.mark.parametrize("how", FAULTS)
def test_writes_resume_and_nothing_is_missing_or_doubled(server: Server, how: str) -> None:
    """Durable acknowledgement, exactly once, survives its surroundings: no write fails, some may be unknown."""
    url = server.schema()
    run(url, Load.SCHEMA)
    with safedb.connect(f"{url}&application_name=load", retry=GENEROUS) as db:
        load = Load(db)
        load.start(6)
        try:
            for _ in range(6 if LONG else 2):
                load.go_on(1000 if LONG else 60)
                FAULTS[how](server)
            load.go_on(60)
        finally:
            load.stop()
        at_rest(db)
    assert not load.failed
    load.check(url)


# -- another server takes over --------------------------------------------------------------------------------------


def synchronous(primary: Server) -> None:
    """Let every COMMIT wait until the standby has it; the standby itself is to wait for nobody once it is promoted."""
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.execute("SELECT pg_reload_conf()")
    wait_until(
        lambda: primary.execute("SELECT sync_state FROM pg_stat_replication") == [("sync",)], "a synchronous standby"
    )


def without_attrs(url: str) -> str:
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    del parts["target_session_attrs"]
    return make_url(**parts)


@pytest.mark.parametrize("attrs", ["read-write", None], ids=["read-write", "none given"])
def test_writes_go_on_at_the_promoted_standby(attrs: str | None) -> None:
    """Durable acknowledgement, survives its surroundings: the primary dies under load, and its standby takes over.

    With synchronous replication no acknowledged write may be missing there. A URL of several hosts finds the one that
    takes writes, also where it does not ask for it.
    """
    with Server() as primary:
        primary.start()
        run(primary.url(), Load.SCHEMA)
        with primary.standby() as standby:
            synchronous(primary)
            url = failover_url(primary, standby)
            if attrs is None:
                url = without_attrs(url)
            with safedb.connect(url, retry=GENEROUS) as db:
                load = Load(db)
                load.start(6)
                try:
                    load.go_on(1000 if LONG else 100)
                    primary.kill()
                    standby.promote()
                    load.go_on(100)
                finally:
                    load.stop()
                at_rest(db)
                assert db.execute("SELECT count(*) FROM ledger").scalar() >= len(load.acknowledged)
            assert not load.failed
            load.check(standby.url())


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """Lend a primary and its standby, which no test here promotes or leaves stopped."""
    with Server() as primary:
        primary.start()
        run(primary.url(), "CREATE TABLE t (id integer PRIMARY KEY)", "INSERT INTO t VALUES (1)")
        with primary.standby() as standby:
            standby.catch_up()
            yield primary, standby


RECOVERY = "SELECT pg_is_in_recovery()"


@pytest.mark.parametrize("standby_first", [True, False])
def test_several_hosts_are_no_licence_for_stale_reads(pair: tuple[Server, Server], standby_first: bool) -> None:
    """Snapshot reads: each sees every write acknowledged before it, so it goes to the primary, wherever this stands."""
    primary, standby = pair
    hosts = (standby, primary) if standby_first else (primary, standby)
    with safedb.connect(without_attrs(failover_url(*hosts)), retry=GENEROUS) as db:
        assert db.execute(RECOVERY).scalar() is False
        with db.snapshot() as snap:
            assert snap.execute(RECOVERY).scalar() is False
        standby.execute("SELECT pg_wal_replay_pause()")
        try:
            db.execute("INSERT INTO t VALUES (100)")
            assert db.execute("SELECT count(*) FROM t WHERE id = 100").scalar() == 1
        finally:
            standby.execute("SELECT pg_wal_replay_resume()")
            db.execute("DELETE FROM t WHERE id = 100")


def test_a_standby_alone_reads_and_refuses_to_write_by_the_deadline(pair: tuple[Server, Server]) -> None:
    """Bounded: a URL that names a standby only is no place to write; reads and snapshots go on."""
    _, standby = pair
    with safedb.connect(standby.url(), retry=GENEROUS) as db:
        assert db.execute("SELECT id FROM t").scalar() == 1
        writes: list[Callable[[], object]] = [
            lambda: db.execute("INSERT INTO t VALUES (2)", timeout=0.5),
            lambda: db.executemany("INSERT INTO t VALUES (?)", [(2,)], timeout=0.5),
            lambda: db.run_transaction(lambda tx: tx.execute("INSERT INTO t VALUES (2)"), timeout=0.5),
        ]
        for write in writes:
            began = time.monotonic()
            error = error_of(write)
            assert isinstance(error, safedb.OperationalError), repr(error)
            assert time.monotonic() - began < 0.5 + PAST
            assert "follows another server, so it takes no writes" in str(error)
        with pytest.raises(safedb.OperationalError), db.transaction(timeout=0.5) as tx:
            tx.execute("INSERT INTO t VALUES (2)")
        with db.snapshot() as snap:
            assert snap.execute("SELECT id FROM t").scalar() == 1
        at_rest(db)


def test_a_server_that_turns_into_a_standby_is_left_for_the_new_primary() -> None:
    """Survives its surroundings: links that were good go to a server that takes no writes any more.

    Written down: both pools have a link to A; A is stopped, B promoted, A started again as B's standby; nobody has
    tried a link meanwhile. The next calls of all kinds are answered by B.
    """
    with Server() as first:
        first.start()
        run(first.url(), "CREATE TABLE t (id integer PRIMARY KEY)")
        with first.standby() as second:
            with safedb.connect(without_attrs(failover_url(first, second)), retry=GENEROUS) as db:
                db.execute("INSERT INTO t VALUES (1)")
                assert db.execute(RECOVERY).scalar() is False
                second.catch_up()
                first.stop()
                second.promote()
                follow(first, second)
                first.start()
                db.execute("INSERT INTO t VALUES (2)")
                db.run_transaction(lambda tx: tx.execute("INSERT INTO t VALUES (3)"))
                with db.transaction() as tx:
                    tx.execute("INSERT INTO t VALUES (4)")
                assert db.execute("SELECT count(*) FROM t").scalar() == 4
                assert db.execute(RECOVERY).scalar() is False
            assert second.execute("SELECT count(*) FROM t") == [(4,)]


def follow(server: Server, primary: Server) -> None:
    """Make a stopped server a standby of another one."""
    data = server._data
    source = primary.url("replication", local=True)
    with open(data / "postgresql.auto.conf", "a") as conf:
        conf.write(f"primary_conninfo = '{source}'\nrecovery_target_timeline = 'latest'\n")
    signal = data / "standby.signal"
    signal.touch()
    signal.chmod(0o644)


# -- replicas -------------------------------------------------------------------------------------------------------


def test_a_replica_answers_stale_reads_and_nothing_else(pair: tuple[Server, Server]) -> None:
    """Snapshot reads: only what says that it may be stale is; all else sees the latest writes."""
    primary, standby = pair
    with safedb.connect(primary.url(), replicas=standby.url(), retry=GENEROUS) as db:
        for _ in range(3):
            assert db.execute(RECOVERY, stale=True).scalar() is True
            assert db.execute(RECOVERY).scalar() is False
            with db.snapshot(stale=True) as snap:
                assert snap.execute(RECOVERY).scalar() is True
            with db.snapshot() as snap:
                assert snap.execute(RECOVERY).scalar() is False
            assert db.run_transaction(lambda tx: tx.execute(RECOVERY).scalar()) is False
            with db.transaction() as tx:
                assert tx.execute(RECOVERY).scalar() is False
        with pytest.raises(safedb.ProgrammingError, match="stale=True is for reads"):
            db.execute("INSERT INTO t VALUES (5)", stale=True)
        at_rest(db)


def test_stale_reads_fall_back_to_the_primary_while_the_replica_is_down(pair: tuple[Server, Server]) -> None:
    """Survives its surroundings: a replica that is down costs stale reads time, and nothing else anything."""
    primary, standby = pair
    with safedb.connect(primary.url(), replicas=[standby.url()], retry=safedb.RetryPolicy(timeout=4.0)) as db:
        assert db.execute(RECOVERY, stale=True).scalar() is True
        standby.stop("immediate")
        try:
            for _ in range(2):
                assert db.execute(RECOVERY, stale=True).scalar() is False
            with db.snapshot(stale=True) as snap:
                assert snap.execute(RECOVERY).scalar() is False
            began = time.monotonic()
            assert db.execute(RECOVERY).scalar() is False
            assert time.monotonic() - began < PAST
        finally:
            standby.start()
        wait_until(lambda: db.execute(RECOVERY, stale=True).scalar() is True, "the replica to be used again")


def test_a_stale_read_that_writes_goes_to_the_primary(pair: tuple[Server, Server]) -> None:
    """Same answer on both: what turns out to write is re-routed, from a replica too."""
    primary, standby = pair
    run(primary.url(), "CREATE SEQUENCE counting")
    standby.catch_up()
    with safedb.connect(primary.url(), replicas=standby.url(), retry=GENEROUS) as db:
        assert [db.execute("SELECT nextval('counting')", stale=True).scalar() for _ in range(3)] == [1, 2, 3]


# -- not there ------------------------------------------------------------------------------------------------------


def test_connecting_where_nobody_listens_gives_up_at_the_deadline() -> None:
    """Bounded: connect() says what it tried, by when it gave up, and nothing of the password."""
    url = f"postgresql://someone:sesame@127.0.0.1:{_free_port()}/nowhere"
    began = time.monotonic()
    with pytest.raises(safedb.OperationalError) as caught:
        safedb.connect(url, retry=safedb.RetryPolicy(timeout=1.0))
    assert 0.9 < time.monotonic() - began < 1.0 + PAST
    assert "127.0.0.1" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "sesame" not in repr(caught.value)


def test_connecting_to_one_that_never_answers_gives_up_at_the_deadline() -> None:
    """Bounded: the host takes the connection and says nothing; what was tried is told here too."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        url = f"postgresql://someone:sesame@127.0.0.1:{port}/nowhere"
        began = time.monotonic()
        with pytest.raises(safedb.OperationalError) as caught:
            safedb.connect(url, retry=safedb.RetryPolicy(timeout=1.0))
        assert time.monotonic() - began < 1.0 + PAST
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert "in use" not in str(caught.value)  # no connection ever was
        assert "sesame" not in repr(caught.value)


def test_connecting_waits_for_a_server_that_is_being_started(crew: Crew) -> None:
    """Survives its surroundings: connect() has until its deadline, and a server that comes up meanwhile is taken."""
    with Server() as server:
        server.start()
        url = server.url()
        server.stop()
        began = threading.Event()

        def connect() -> object:
            began.set()
            with safedb.connect(url, retry=GENEROUS) as db:
                return db.execute("SELECT 1").scalar()

        worker = crew(connect)
        assert began.wait(30)
        time.sleep(0.3)  # for some tries in vain; the outcome does not hang on it
        assert worker.running
        server.start()
        assert worker.result() == 1


def test_a_call_while_the_server_is_down_ends_at_its_deadline(server: Server) -> None:
    """Bounded: every kind of call says that the link is lost, at its own deadline, and later calls go on."""
    url = server.schema()
    run(url, "CREATE TABLE t (id integer)")
    with safedb.connect(url, retry=GENEROUS) as db:
        db.execute("SELECT 1")
        server.stop()
        calls: list[Callable[[], object]] = [
            lambda: db.execute("SELECT 1", timeout=0.5),
            lambda: db.execute("INSERT INTO t VALUES (1)", timeout=0.5),
            lambda: db.run_transaction(lambda tx: tx.execute("INSERT INTO t VALUES (1)"), timeout=0.5),
        ]
        try:
            for call in calls:
                began = time.monotonic()
                error = error_of(call)
                assert isinstance(error, errors.ConnectionLost), repr(error)
                assert error.retryable
                assert time.monotonic() - began < 0.5 + PAST
        finally:
            server.start()
        db.execute("INSERT INTO t VALUES (2)")
        assert db.execute("SELECT count(*) FROM t").scalar() == 1
        at_rest(db)


def test_an_old_host_that_only_hangs_does_not_hold_up_the_others(pair: tuple[Server, Server]) -> None:
    """Bounded: of two hosts the first takes connections and never answers; the second is reached in time."""
    primary, _ = pair
    with socket.create_server(("127.0.0.1", 0)) as hanging, Proxy(primary.url()) as proxy:
        parts = {key: str(value) for key, value in conninfo_to_dict(proxy.url).items()}
        parts["host"] += ",127.0.0.1"
        parts["port"] = f"{hanging.getsockname()[1]},{parts['port']}"
        url, _ = named(make_url(**parts))
        with safedb.connect(url, retry=safedb.RetryPolicy(timeout=4.0)) as db:
            assert db.execute("SELECT 1").scalar() == 1
