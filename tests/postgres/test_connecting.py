"""Opening a database on a server: what is refused, what is awaited, and no password in anything that can be seen."""

from __future__ import annotations

import io
import logging
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pgserver
import pytest
from psycopg.conninfo import conninfo_to_dict

import safedb
from safedb.targets import Dsn, parse_url

SECRET = "s3cr3t-Pä@ss:w/o?r&d#%"
QUICK = safedb.RetryPolicy(timeout=0.6)


@pytest.fixture(scope="module")
def server() -> Iterator[pgserver.Server]:
    """Listen on TCP, where passwords are asked for."""
    with pgserver.Server(tcp=True) as made:
        made.start()
        made.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'")
        yield made


def place_of(server: pgserver.Server) -> str:
    """Give host and port."""
    return f"127.0.0.1:{conninfo_to_dict(server.url())['port']}"


def url_of(server: pgserver.Server, password: str, rest: str = "postgres") -> str:
    return f"postgresql://guarded:{password}@{place_of(server)}/{rest}"


def everything_said(error: BaseException) -> str:
    """Write an error in every way in which programs show errors, with the variables of all frames."""
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in chain:
            chain.append(one)
            waiting += [one.__cause__, one.__context__]
    shown = [text for one in chain for text in (repr(one), str(one), repr(one.__dict__), repr(one.args))]
    for one in chain:
        shown.extend(traceback.format_exception(one))
        told = traceback.TracebackException.from_exception(one, capture_locals=True)
        told.stack = traceback.StackSummary.from_list([f for f in told.stack if f.filename != __file__])
        shown.extend(told.format())
    return "\n".join([*shown, repr(pickle.dumps(error))])


def pieces(secret: str) -> set[str]:
    """List the parts of a password that must not be seen: those long enough to mean anything."""
    return {"s3cr3t", secret, quote(secret, safe="")}


@contextmanager
def all_logs() -> Iterator[io.StringIO]:
    """Gather what every logger says, down to DEBUG."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def refused(url: str, **options: Any) -> tuple[safedb.Error, str]:
    """Fail to connect, and give the error with all that was said."""
    options.setdefault("retry", QUICK)
    with all_logs() as logs, pytest.raises(safedb.Error) as caught:
        safedb.connect(url, **options)
    return caught.value, everything_said(caught.value) + logs.getvalue()


def test_the_right_password_opens_and_is_never_shown(server: pgserver.Server) -> None:
    with all_logs() as logs, safedb.connect(url_of(server, quote(SECRET, safe=""))) as db:
        assert db.execute("SELECT current_user").scalar() == "guarded"
        with pytest.raises(safedb.ProgrammingError) as caught:
            db.execute("SELECT nothing")
        with db.transaction() as tx, db.snapshot() if False else tx.savepoint():
            shown = repr(tx)
        shown += repr(db) + repr(db.stats()) + repr(vars(db)) + repr(vars(db._engine)) + everything_said(caught.value)
        shown += repr(vars(db._engine._readers)) + repr(vars(db._engine._writers._opener)).replace(  # type: ignore[attr-defined]
            repr(db._engine._writers._opener._secrets),  # type: ignore[attr-defined]
            "",  # the list of what is struck out
        )
    for piece in pieces(SECRET):
        assert piece not in shown + logs.getvalue()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://guarded:{wrong}@{place}/postgres", safedb.OperationalError),
        ("postgresql://nobody:{wrong}@{place}/postgres", safedb.OperationalError),
        ("postgresql://guarded:{right}@{place}/no_such_database", safedb.OperationalError),
        ("postgresql://guarded:{right}@{place}/postgres?sslmode=require", safedb.OperationalError),
        ("postgresql://guarded:{right}@{place}/postgres?sslmode=nonsense", safedb.ConfigError),
        ("postgresql://guarded:{right}@{place}/postgres?nonsense=1", safedb.ConfigError),
        ("postgresql://guarded:{bare}@{place}/postgres", safedb.ConfigError),
        ("postgresql://guarded:{wrong}%e9@{place}/postgres", safedb.ConfigError),  # Latin-1
        ("postgresql://guarded:s3cr3t@ss@{place}/postgres", safedb.ConfigError),
        ("postgresql://guarded:s3cr3t/ss@{place}/postgres", safedb.ConfigError),
        ("postgresql://guarded:s3cr3t?ss@{place}/postgres", safedb.ConfigError),
        ("postgresql://guarded:s3cr3t%zz@{place}/postgres", safedb.ConfigError),
        ("postgresql://guarded:s3cr3t", safedb.ConfigError),
        ("postgresql://guarded:s3cr3t/postgres", safedb.ConfigError),
        ("postgresql://guarded@{place}/postgres?password=s3cr3t@x", safedb.ConfigError),
        ("postgresql://guarded@{place}/postgres?password={wrong}", safedb.OperationalError),
        ("postgresql://guarded@{place}/postgres?password=a&s3cr3t", safedb.ConfigError),
        ("postgresql://guarded@{place}/postgres?passwort=s3cr3t", safedb.ConfigError),
        ("host=127.0.0.1 user=guarded password=s3cr3t", safedb.ConfigError),
        ("user=guarded password='s3cr3t", safedb.ConfigError),
        ("postgresql+psycopg://guarded:s3cr3t@{place}/postgres", safedb.ConfigError),
    ],
)
def test_no_password_is_ever_shown(server: pgserver.Server, url: str, kind: type[safedb.Error]) -> None:
    """H51: not in the error, its causes, the variables of its frames, its pickle, nor in any log."""
    full = url.format(wrong="s3cr3t-wrong", right=quote(SECRET, safe=""), bare=SECRET, place=place_of(server))
    error, said = refused(full)
    assert isinstance(error, kind), repr(error)
    for piece in pieces(SECRET):
        assert piece not in said
    assert error.__cause__ is None


def test_what_a_server_refuses_is_told_at_once(server: pgserver.Server) -> None:
    """A wrong password does not get right by trying again, so the deadline is not waited for."""
    began = time.monotonic()
    error, _ = refused(url_of(server, "wrong"), retry=safedb.RetryPolicy(timeout=60))
    assert time.monotonic() - began < 30
    assert "password authentication failed" in str(error)
    assert "guarded@127.0.0.1" in str(error)


def test_a_host_that_is_not_there_is_given_up_at_the_deadline() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        port = unused.getsockname()[1]
        began = time.monotonic()
        error, _ = refused(f"postgresql://guarded:s3cr3t@127.0.0.1:{port}/postgres")
    assert 0.5 < time.monotonic() - began < 10
    assert isinstance(error, safedb.ConnectionLost)
    assert error.retryable
    assert f"127.0.0.1:{port}" in str(error)
    assert "refused" in str(error)  # what was met


def test_a_host_that_never_answers_is_given_up_at_the_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        error, _ = refused(f"postgresql://guarded@127.0.0.1:{silent.getsockname()[1]}/postgres")
        assert time.monotonic() - began < 10
    assert isinstance(error, safedb.OperationalError)


def test_a_server_that_is_about_to_start_is_awaited() -> None:
    with pgserver.Server() as server:
        server.start()
        url = server.url()
        server.stop()
        late = threading.Timer(0.5, server.start)
        late.start()
        try:
            with safedb.connect(url, retry=safedb.RetryPolicy(timeout=60)) as db:
                assert db.execute("SELECT 1").scalar() == 1
        finally:
            late.join()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("safedb.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg_pool", None)
    with pytest.raises(safedb.ConfigError, match=r"pip install 'safedb\[postgres\]'"):
        safedb.connect("postgresql://nobody@127.0.0.1:1/x")


@pytest.mark.parametrize(("name", "version"), [("psycopg", "3.3.6"), ("psycopg_pool", "3.3.2")])
def test_old_drivers_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    for module in [module for module in sys.modules if module.startswith("safedb.postgres")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys.modules[name], "__version__", version)
    with pytest.raises(safedb.ConfigError, match=version):
        safedb.connect("postgresql://nobody@127.0.0.1:1/x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"functions": {"f": abs}}, "create the function on the server"),
        ({"collations": {"c": lambda a, b: 0}}, "create the collation on the server"),
        ({"serial_writes": 1}, "True or False"),
        ({"replicas": "sqlite:///x.db"}, "postgresql:// URLs"),
        ({"replicas": [3]}, "postgresql:// URLs"),
        ({"replicas": ["postgresql://h/x?timeout=3"]}, "timeout"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(safedb.ConfigError, match=words):
        safedb.connect("postgresql://nobody@127.0.0.1:1/x", **options)


@pytest.mark.parametrize("options", [{"replicas": "postgresql://h/x"}, {"serial_writes": True}])
def test_what_only_a_server_has_is_refused_for_a_file(options: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(safedb.ConfigError):
        safedb.connect(tmp_path / "x.db", **options)


def test_settings_of_sqlite_are_refused_in_the_url() -> None:
    with pytest.raises(safedb.ConfigError, match="synchronous"):
        safedb.connect("postgresql://h/x?synchronous=FULL")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h",
        "postgresql:///name",
        "postgresql://",
        "postgresql://u:p@[::1]:5432,h2:1,h3/name",
        "postgresql://u@h1,h2:1/name?target_session_attrs=read-write&timeout=3",
        "postgres://%2Fvar%2Frun/name",
        "postgresql://u:%40%2F@/name?host=/tmp/x",
    ],
)
def test_urls_that_libpq_reads_are_taken(url: str) -> None:
    target = parse_url(url, "the target")
    assert target.dsn is not None
    assert "timeout" not in target.dsn.reveal()


def session_of(db: safedb.Database, name: str) -> Callable[[], Any]:
    def ask() -> Any:
        with db.transaction() as tx:
            return tx.execute("SELECT current_setting(?)", (name,)).scalar()

    return ask


def test_sessions_are_put_into_one_state(server: pgserver.Server) -> None:
    """Whatever the server, the database or the role has for a default."""
    server.execute("CREATE DATABASE odd")
    for name, value in {
        "TimeZone": "Asia/Kolkata",
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-3",
        "synchronous_commit": "off",
        "default_transaction_isolation": "repeatable read",
        "default_transaction_read_only": "on",
        "statement_timeout": "7777",
        "standard_conforming_strings": "off",
    }.items():
        server.execute(f"ALTER DATABASE odd SET {name} = '{value}'")
    with safedb.connect(server.url("odd"), retry=safedb.RetryPolicy(timeout=30)) as db:
        db.execute("CREATE TABLE t (at timestamptz, pause interval, data bytea, number float8)")
        db.execute("INSERT INTO t VALUES ('2024-01-02 03:04:05', '1 day 2 hours', '\\x00ff', 0.1::float8 + 0.2)")
        (row,) = db.execute("SELECT at, pause, data, number FROM t").fetchall()
        assert row[0].isoformat() == "2024-01-02T03:04:05+00:00"
        assert str(row[1]) == "1 day, 2:00:00"
        assert row[2:] == (b"\0\xff", 0.1 + 0.2)
        assert session_of(db, "synchronous_commit")() == "on"
        assert db.execute("SELECT current_setting('transaction_read_only')").scalar() == "on"
        assert session_of(db, "transaction_isolation")() == "serializable"
        assert session_of(db, "transaction_read_only")() == "off"


def test_limits_are_told_to_the_server(server: pgserver.Server) -> None:
    """Once for all for a plain read, and transaction by transaction for all else; nothing of it stays."""

    def milliseconds(text: str) -> float:
        number = float("".join(c for c in text if c.isdigit() or c == "."))
        return number * (1 if text.endswith("ms") else 60_000 if text.endswith("min") else 1000)

    limits = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
    with safedb.connect(server.url(), retry=safedb.RetryPolicy(timeout=30)) as db:
        for seconds in (30, 5, 45, 0.5):
            rows = [db.execute(limits, timeout=seconds).one()]
            with db.transaction(timeout=seconds) as tx:
                rows.append(tx.execute(limits).one())
            with db.snapshot(timeout=seconds) as snap:
                rows.append(snap.execute(limits).one())
            for statement, lock in rows:
                assert seconds * 800 < milliseconds(statement) <= seconds * 1000
                assert seconds * 800 - 20 < milliseconds(lock) < milliseconds(statement)
        assert [milliseconds(text) for text in db.execute(limits).one()] == [30_000, 29_990]


def test_an_old_server_is_refused(server: pgserver.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older servers are not to be had here, so the oldest that is taken is raised instead."""
    from safedb.postgres import opener

    monkeypatch.setattr(opener, "OLDEST", 990_000)
    with pytest.raises(safedb.NotSupportedError, match="upgrade the server"):
        safedb.connect(server.url())


def test_the_dsn_shows_itself_masked() -> None:
    dsn = Dsn(f"postgresql://u:{SECRET}@h/name?password={SECRET}")
    for piece in pieces(SECRET):
        assert piece not in repr(dsn) + str(dsn) + f"{dsn}"


def test_an_unclosed_handle_ends_with_the_interpreter(server: pgserver.Server) -> None:
    import subprocess

    from support import unmeasured

    code = f"import safedb; db = safedb.connect({server.url()!r}); print(db.execute('SELECT 1').scalar(), flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=unmeasured(), check=True
    )
    assert done.stdout == "1\n"
