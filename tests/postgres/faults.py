"""What the fault tests share: handles with a name of their own on the server, and looks at what the server does."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgserver import Server
from support import JOIN, wait_until

import safedb

LONG = os.environ.get("SAFEDB_TEST_LONG") == "1"
"""Whether loads take their time."""

GENEROUS = safedb.RetryPolicy(timeout=60.0)

_names = itertools.count(1)


def named(url: str) -> tuple[str, str]:
    """Give a URL an application name that nobody else has; return both."""
    name = f"fault_{os.getpid()}_{next(_names)}"
    return f"{url}{'&' if '?' in url else '?'}application_name={name}", name


class Sessions:
    """Look at the sessions that have one application name, and end them."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    def pids(self, where: str = "true") -> list[int]:
        ours = f"application_name = '{self.name}'"
        found = self.server.execute(f"SELECT pid FROM pg_stat_activity WHERE {ours} AND {where} ORDER BY backend_start")
        return [pid for (pid,) in found]

    def waiting_in(self, text: str) -> int:
        """Wait until one session waits for an advisory lock inside a statement that begins with ``text``."""
        where = f"wait_event = 'advisory' AND query LIKE '{text}%'"
        wait_until(lambda: bool(self.pids(where)), f"a session that waits in {text}")
        return self.pids(where)[0]

    def running(self, text: str) -> int:
        """Wait until one session runs a statement that begins with ``text``."""
        where = f"state = 'active' AND query LIKE '{text}%'"
        wait_until(lambda: bool(self.pids(where)), f"a session that runs {text}")
        return self.pids(where)[0]

    def terminate(self, pid: int | None = None) -> None:
        """End one session, or all, and wait until they are gone."""
        pids = self.pids() if pid is None else [pid]
        for one in pids:
            terminate(self.server, one)


def terminate(server: Server, pid: int) -> None:
    server.execute(f"SELECT pg_terminate_backend({pid})")
    wait_until(
        lambda: server.execute(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}") == [], f"the end of session {pid}"
    )


class Latch:
    """Hold an advisory lock that statements of a test wait for; `open` lets them go, for good."""

    def __init__(self, server: Server, number: int) -> None:
        self.number = number
        self._connection = psycopg.connect(server.url(local=True), autocommit=True)
        self._connection.execute(f"SELECT pg_advisory_lock({number})".encode())

    def open(self) -> None:
        self._connection.close()


@contextmanager
def latched(server: Server, number: int) -> Iterator[Latch]:
    latch = Latch(server, number)
    try:
        yield latch
    finally:
        latch.open()


def slow_commit(number: int, table: str = "t") -> str:
    """Write DDL by which every COMMIT that inserted into a table waits for an advisory lock (shared, and at once free).

    A deferred constraint trigger runs inside COMMIT, before anything is committed, and no statement_timeout ends it.
    """
    return (
        f"CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN"
        f" PERFORM pg_advisory_xact_lock_shared({number}); RETURN NULL; END $$;"
        f"CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED"
        f" FOR EACH ROW EXECUTE FUNCTION wait_at_commit()"
    )


def in_use(db: safedb.Database) -> tuple[int, int]:
    """Give how many links are lent: of those that read, and of those that write."""
    stats = db.stats()
    return stats.readers.in_use, stats.writers.in_use


def at_rest(db: safedb.Database) -> None:
    """Wait until no link is lent any more, or being replaced."""
    wait_until(lambda: in_use(db) == (0, 0), f"all links to come back: {db.stats()}")


class Load:
    """Run writers in threads, and keep account of what each was told."""

    def __init__(self, db: safedb.Database, accounts: int = 4) -> None:
        self.db = db
        self.accounts = accounts
        self.acknowledged: set[str] = set()
        self.unknown: set[str] = set()
        self.failed: dict[str, BaseException] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    SCHEMA = (
        "CREATE TABLE ledger (id bigserial PRIMARY KEY, key text NOT NULL);"  # no UNIQUE: what is doubled has to show
        "CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL);"
        "INSERT INTO account SELECT i, 1000 FROM generate_series(0, 3) AS i"
    )

    def start(self, threads: int) -> None:
        for number in range(threads):
            thread = threading.Thread(target=self._run, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, number: int) -> None:
        for turn in itertools.count():
            if self._end.is_set():
                return
            key = f"{number}-{turn}"
            try:
                if number % 2:
                    self.db.run_transaction(self._transfer, key, turn)
                else:
                    self.db.execute("INSERT INTO ledger (key) VALUES (?)", (key,))
            except safedb.CommitUnknownError:
                with self._lock:
                    self.unknown.add(key)
            except BaseException as error:
                with self._lock:
                    self.failed[key] = error
            else:
                with self._lock:
                    self.acknowledged.add(key)

    def _transfer(self, tx: Any, key: str, turn: int) -> None:
        source, target = turn % self.accounts, (turn + 1) % self.accounts
        tx.execute("INSERT INTO ledger (key) VALUES (?)", (key,))
        balance = tx.execute("SELECT balance FROM account WHERE id = ?", (source,)).scalar()
        tx.execute("UPDATE account SET balance = ? WHERE id = ?", (balance - 1, source))
        tx.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (target,))

    def go_on(self, writes: int) -> None:
        """Wait until so many more writes were acknowledged, and by every thread at least one."""
        before = set(self.acknowledged)

        def enough() -> bool:
            with self._lock:
                new = self.acknowledged - before
            by = {key.partition("-")[0] for key in new}
            return len(new) >= writes and len(by) == len(self._threads)

        wait_until(enough, f"{writes} more writes")

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(JOIN + 60)
            assert not thread.is_alive()

    def check(self, url: str) -> None:
        """Compare what the database has with what was said of it."""
        with psycopg.connect(url, autocommit=True) as connection:
            keys = [key for (key,) in connection.execute("SELECT key FROM ledger").fetchall()]
            total = connection.execute("SELECT sum(balance) FROM account").fetchone()
        assert len(keys) == len(set(keys)), "a write was applied twice"
        there = set(keys)
        assert not self.acknowledged - there, "an acknowledged write is missing"
        assert not there & self.failed.keys(), "a write that was said to have failed is there"
        assert there <= self.acknowledged | self.unknown
        assert total == (1000 * self.accounts,)


def error_of(call: Any) -> BaseException | None:
    """Give what a call raises."""
    try:
        call()
    except BaseException as error:
        return error
    return None
