"""Opening connections: what each session is put into and read back, and no secret in any error.

A connection is a `Link`: psycopg's own, which gives up waiting at a time that its user sets. Nothing of the network
library's text leaves this module before every secret of the URL is struck from it, and the exception that held the text
is dropped (H51).
"""

from __future__ import annotations

import math
import re
import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote

from safedb import errors
from safedb.postgres import limits
from safedb.postgres.adaptation import context
from safedb.postgres.driver import psycopg
from safedb.targets import SHARED, Dsn
from safedb.values import suggest

OLDEST = 130_000  # PostgreSQL 13: the first with pg_current_xact_id(), by which a lost COMMIT is looked up
POLL_INTERVAL = 0.1  # seconds; psycopg's own, so that Ctrl-C is noticed

# What changes whenever the server may have lost transactions, whose numbers may be other clients' afterwards: starting
# anew changes the first, and recovering from a killed backend throws the statistics away, which changes the second.
IDENTITY = (
    "(extract(epoch FROM pg_postmaster_start_time())::text || ' '"
    " || (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_bgwriter))"
)
_ABOUT = (
    "SELECT pg_backend_pid(), current_setting('server_version_num')::int, pg_is_in_recovery(),"
    f" {IDENTITY}, current_database()"
)


class Trip(psycopg.Pipeline):
    """Be a pipeline that sends all that it has at its end, at once.

    psycopg's own polls and sends for each command, so that results of the first arrive while the last are being made.
    For the three or four commands around one statement that is half of what they cost.
    """

    def _communicate_gen(self) -> Any:
        yield from ()

    def _exit_gen(self) -> Any:
        self._enqueue_sync()
        while self.command_queue:
            self.command_queue.popleft()()
        try:
            yield from super()._communicate_gen()
        finally:
            yield from self._fetch_gen(flush=False)


class Link(psycopg.Connection[tuple[Any, ...]]):
    """Be one connection, which is given up where no answer has come by ``until`` (monotonic seconds)."""

    until: float = math.inf
    cut: bool = False  # given up so
    pooled: bool = False  # something stands between us and the server, so no setting of the session can be relied on
    standby: bool = False  # the server only follows another
    identity: str | None = None  # of the server's present run; None where it cannot be told
    ceiling: int = 0  # what the session was told once for all, in milliseconds
    place: tuple[str | None, str] = (None, "")  # identity and name of the database
    alone: bool = False  # its COMMIT did not wait for the standby that it should have waited for

    def __init__(self, pgconn: psycopg.pq.abc.PGconn) -> None:
        super().__init__(pgconn)
        self._kept: dict[str, psycopg.Cursor[tuple[Any, ...]]] = {}  # cursors of `command`, by text
        self._glance = select.poll()
        self._glance.register(pgconn.socket, select.POLLIN)
        self.add_notice_handler(self._notice)

    @classmethod
    def connect(cls, _: str = "", *, opener: Opener, **options: Any) -> Link:  # type: ignore[override]
        """Open a link as ``opener`` has it; what fails comes as our own error, without secrets and without a cause."""
        opener.trying = monotonic()
        try:
            return cls._connect(opener, options)
        finally:
            opener.trying = None

    @classmethod
    def _connect(cls, opener: Opener, options: dict[str, Any]) -> Link:
        failure: errors.Error
        try:
            link = super().connect(opener.dsn.reveal(), **opener.options, **options)
        except psycopg.Error as error:
            failure = opener.failed(error)
        else:
            try:
                opener.prepare(link)
            except psycopg.Error as error:
                failure = opener.failed(error)
            except errors.Error as error:
                failure = opener.failure = error
            else:
                opener.failure = None
                return link
            link.close()
        raise failure  # outside of the except clauses, so that the driver's error is not even its context

    def _notice(self, told: psycopg.errors.Diagnostic) -> None:
        if told.source_function == "SyncRepWaitForLSN":  # somebody has cancelled the wait; the text is translated
            self.alone = True

    def command(self, sql: str, args: Sequence[Any] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute one of our own commands, on a cursor that is kept for it: it knows how to write and read its values.

        Only for the few texts that every transaction needs: what a command has answered is kept until the next time.
        """
        cursor = self._kept.get(sql)
        if cursor is None:
            cursor = self._kept[sql] = self.cursor()
        return cursor.execute(sql, args)

    def close(self) -> None:
        """Close it, and let go of the cursors, which refer to it."""
        self._kept.clear()
        super().close()

    def wait(self, gen: Any, interval: float = POLL_INTERVAL, timeout: float | None = None) -> Any:
        """Wait for the server as psycopg does, but not beyond ``until``; then the link is closed: it is out of step."""
        until = self.until
        if timeout is None and until != math.inf:
            timeout = max(0.0, until - monotonic())
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and monotonic() >= until and not self.closed:
                self.cut = True
                self.close()
            raise

    @contextmanager
    def one_trip(self, *, streaming: bool = False) -> Iterator[None]:
        """Send what is executed inside together. Of several errors the first is raised: it caused the others.

        ``streaming`` is for much to send (`executemany`): it goes out as it comes, and answers are read meanwhile.
        """
        first: psycopg.Error | None = None
        if not streaming:
            self._pipeline = Trip(self)  # pipeline() takes the one that is there
        try:
            with self.pipeline():
                try:
                    yield
                except psycopg.Error as error:  # else the pipeline's own end would complain about it in the log
                    first = error
        except psycopg.Error as error:
            first = first or _first_of(error)
        if first is not None:
            if self.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
                self.close()  # answers are still to come, and nobody would know whose they are
            raise first

    def is_alive(self) -> bool:
        """Look whether the server has hung up, without asking it: nothing must be there to read on an idle link."""
        if self.closed:
            return False
        try:
            if not self._glance.poll(0):
                return True
            self.execute("")  # a farewell, or only a notice: the answer tells
        except psycopg.Error:
            return False
        return not self.closed

    def is_still_standby(self) -> bool:
        """Ask whether a server that followed another when the link was opened still does."""
        try:
            (self.standby,) = _one(self, "SELECT pg_is_in_recovery()")
        except psycopg.Error:
            self.close()
        return self.standby

    def knows(self, deadline: float) -> bool:
        """Tell whether the session's own limits are those of a call with this deadline."""
        return not self.pooled and abs(deadline - monotonic() - self.ceiling / 1000) <= limits.NEAR

    def preamble(self, begin: str, deadline: float, *, idle: int | None = None) -> list[limits.Command]:
        """List what opens a transaction on this link."""
        commands: list[limits.Command] = [(begin, ()), limits.local(deadline, idle=idle)]
        if self.pooled:
            commands.append((limits.session_settings(limits.SESSION, local=True), ()))
            commands.append((limits.durable(local=True), ()))
        return commands


class Opener:
    """Open the links of one pool."""

    def __init__(
        self, dsn: Dsn, *, read_only: bool, timeout: float, prepare_threshold: int, stale: bool = False
    ) -> None:
        self.dsn = dsn
        self.read_only = read_only
        self.ceiling = limits.in_milliseconds(timeout)
        self.settings = _settings(self.ceiling, read_only=read_only)
        self.failure: errors.Error | None = None  # of the last try, if it failed
        self.trying: float | None = None  # when the try began that is under way
        self.asking = False  # whether to find out if trying again may help: while the database is opened
        known = parse(dsn)
        self.name = _name(known)
        self._secrets = _secrets(dsn, known)
        self.options: dict[str, Any] = {
            "autocommit": True,
            "context": context(),
            "cursor_factory": psycopg.RawCursor,
            "prepare_threshold": prepare_threshold or None,
            "client_encoding": "UTF8",
        }
        for name, value in _defaults(known, stale=stale, timeout=timeout).items():
            self.options.setdefault(name, value)

    def __repr__(self) -> str:
        return f"<Opener {self.dsn}>"

    def failed(self, error: psycopg.Error) -> errors.Error:
        """Make our error of a failed try, and remember it: the pool tells its callers only that time is over."""
        text = self.scrub(" ".join(str(error).split()))
        text = f"cannot connect to {self.name}: {text}"
        failure: errors.Error = errors.ConnectionLost(text, sqlstate=error.sqlstate)
        if self.asking:
            answer = self._ping()
            if answer == psycopg.pq.Ping.NO_ATTEMPT:  # libpq itself does not take what the URL says
                failure = errors.ConfigError(text)
            elif answer == psycopg.pq.Ping.OK:  # the server is there, and does not take us: trying again helps nobody
                failure = errors.OperationalError(text, sqlstate=error.sqlstate)
        self.failure = failure
        return failure

    def _ping(self) -> int:
        """Ask whether a server is there; without insisting on TLS, for the lack of it is a refusal too."""
        for sslmode in (None, "prefer"):
            there = psycopg.conninfo.make_conninfo(self.dsn.reveal(), connect_timeout=2, sslmode=sslmode)
            answer = psycopg.pq.PGconn.ping(there.encode())
            if answer != psycopg.pq.Ping.NO_RESPONSE:
                break
        return answer

    def scrub(self, text: str) -> str:
        """Strike every secret from a text."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def prepare(self, link: Link) -> None:
        """Put a new session into the state that everything rests on, and read it back."""
        link.until = monotonic() + limits.COMMIT_GRACE
        pid, version, standby, identity, database = _one(link, _ABOUT)
        if version < OLDEST:
            raise errors.NotSupportedError(
                f"{self.name} is PostgreSQL {version // 10_000}, and safedb needs 13 or newer: upgrade the server"
            )
        link.ceiling = self.ceiling
        link.pooled = pid != link.info.backend_pid  # a pooler tells numbers of its own
        link.standby, link.identity, link.place = standby, identity, (identity, database)
        if not link.pooled:
            settings = self.settings
            answer = _one(link, limits.session_settings(settings, local=False))
            for (name, asked), given in zip(settings.items(), answer, strict=True):
                if name not in limits.TIMES and asked.lower() != given.lower():
                    raise errors.ConfigError(f"{self.name}: {name} was set to {asked!r}, and is {given!r}")
            if not self.read_only and _one(link, limits.durable(local=False)) == ("off",):
                raise errors.ConfigError(f"{self.name}: synchronous_commit stays off, so commits would not be durable")
        link.until = math.inf


def _first_of(error: psycopg.Error) -> psycopg.Error:
    """Find the server's own error, where the end of a pipeline has met another one because of it."""
    known: psycopg.Error = error
    while known.sqlstate is None and isinstance(known.__context__, psycopg.Error):
        known = known.__context__
    return known if known.sqlstate is not None else error


def _one(link: Link, sql: str) -> tuple[Any, ...]:
    row = link.execute(sql).fetchone()
    if row is None:
        raise errors.InternalError(f"no answer to {sql}")
    return row


def _settings(ceiling: int, *, read_only: bool) -> dict[str, str]:
    """List what a session of a pool is put into; the limits are ceilings for what runs outside of a transaction."""
    return {
        **limits.SESSION,
        "default_transaction_read_only": "on" if read_only else "off",
        "statement_timeout": str(ceiling),
        "lock_timeout": str(limits.lock_limit(ceiling)),
        "idle_in_transaction_session_timeout": str(ceiling + limits.IDLE_MARGIN),
    }


def _defaults(known: Mapping[str, str], *, stale: bool, timeout: float) -> dict[str, Any]:
    """Fill what the URL leaves open: nobody should wait for a host for two minutes, nor for one of several for ever.

    Of several hosts reads too want the one that takes writes, else they would miss what was acknowledged before them.
    """
    filled: dict[str, Any] = {}
    hosts = (known.get("hostaddr") or known.get("host", "")).count(",") + 1
    if "connect_timeout" not in known:
        filled["connect_timeout"] = max(2, math.ceil(min(timeout, 3600) / hosts))
    if hosts > 1 and "target_session_attrs" not in known:
        filled["target_session_attrs"] = "any" if stale else "read-write"
    if "application_name" not in known and "fallback_application_name" not in known:
        filled["fallback_application_name"] = "safedb"
    return filled


# -- the URL ----------------------------------------------------------------------------------------------------------


def parse(dsn: Dsn) -> dict[str, str]:
    """Read the URL as libpq does. Its own errors quote what they stumble over, so they are not shown."""
    unknown = _unknown(dsn)
    if unknown is not None:
        raise errors.ConfigError(
            f"{dsn} has a parameter that neither safedb nor libpq knows{unknown}; write a '&' in a password as %26"
        )
    found = _read(dsn)
    if found is None:
        raise errors.ConfigError(
            f"{dsn} is no connection URL that libpq can read: write postgresql://user:password@host:port/name, and "
            "percent-encode what is special in the user and the password (@ is %40, / is %2F, % is %25)"
        )
    return found


# The plain text is a variable only of functions that raise nothing: some tools show those of all frames of a traceback.


def _unknown(dsn: Dsn) -> str | None:
    """Look for a parameter that libpq does not know; suggest one, for the name itself may be part of a password."""
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} | {"ssl"}
    for item in filter(None, dsn.reveal().partition("?")[2].split("&")):
        name = unquote(item.partition("=")[0])
        if name not in known:
            return suggest(name, known | SHARED)
    return None


def _read(dsn: Dsn) -> dict[str, str] | None:
    try:
        found = psycopg.conninfo.conninfo_to_dict(dsn.reveal())
    except psycopg.Error:
        return None
    return {name: str(value) for name, value in found.items()}


def _name(known: Mapping[str, str]) -> str:
    """Name the database for messages: who, where, which; never a password."""
    user = known.get("user", "")
    host = known.get("host") or known.get("hostaddr") or "localhost"
    ports = known.get("port", "5432").split(",")
    hosts = host.split(",")
    places = [f"{one}:{ports[i] if len(ports) > i else ports[-1]}" for i, one in enumerate(hosts)]
    return f"postgresql://{user}{'@' * bool(user)}{','.join(places)}/{known.get('dbname') or user}"


def _secrets(dsn: Dsn, known: Mapping[str, str]) -> list[str]:
    """List every way in which a secret may be written, the longest first."""
    found = {known[name] for name in ("password", "sslpassword") if known.get(name)}
    found |= {quote(secret, safe="") for secret in found}
    found |= set(_raw(dsn.reveal()))
    return sorted((secret for secret in found if secret), key=len, reverse=True)


def _raw(url: str) -> Iterator[str]:
    written = re.match(r"[^:]*://[^@/?]*?:([^@/?]*)@", url)
    if written:
        yield written[1]
    for item in url.partition("?")[2].split("&"):
        name, _, value = item.partition("=")
        if name in ("password", "sslpassword"):
            yield value
