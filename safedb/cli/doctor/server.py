"""A PostgreSQL database: who answers, and the settings on which safedb's promises rest."""

from __future__ import annotations

import contextlib

from safedb.cli.doctor.report import Report
from safedb.config import Settings
from safedb.errors import ConfigError, Error

_SETTINGS = (
    "SELECT name, reset_val || coalesce(' ' || unit, '') FROM pg_settings WHERE name IN ('server_version',"
    " 'default_transaction_isolation', 'synchronous_commit', 'fsync', 'full_page_writes', 'max_connections',"
    " 'superuser_reserved_connections', 'reserved_connections', 'statement_timeout', 'lock_timeout',"
    " 'idle_in_transaction_session_timeout')"
)


def look(report: Report, settings: Settings) -> None:
    """Tell of the server; raise `ConfigError` for a URL that cannot be used, or a driver that is not there."""
    from safedb.postgres.engine import CHECKS  # only now: they need the driver
    from safedb.postgres.opener import Link, Opener

    dsn = settings.target.dsn
    if dsn is None:
        raise ConfigError("the target names no server")
    policy = settings.retry.effective()
    opener = Opener(dsn, read_only=True, timeout=policy.timeout, prepare_threshold=0)
    opener.asking = True
    report.fact("Database", opener.name)
    try:
        with contextlib.closing(Link.connect(opener=opener)) as link:
            link.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            values: dict[str, str] = dict(link.execute(_SETTINGS).fetchall())
            identity, standby, pooled = link.identity, link.standby, link.pooled
            used = link.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).fetchone()
            report.findings += [f"{text}." for (text,) in link.execute(CHECKS).fetchall()]
    except ConfigError:
        raise
    except Error as error:
        report.finding(str(error))
        return
    except opener_errors() as error:
        report.finding(opener.scrub(" ".join(str(error).split())))
        return
    report.fact("Server", f"PostgreSQL {values['server_version']}, {'a standby' if standby else 'a primary'}")
    report.fact("Identity", identity or "cannot be told: a COMMIT whose answer is lost stays unknown")
    report.fact("Isolation", f"{values['default_transaction_isolation']} by default; safedb writes SERIALIZABLE")
    report.fact("synchronous_commit", values["synchronous_commit"])
    _connections(report, values, used[0] if used else 0, settings)
    own = f"{round(policy.timeout * 1000):,} ms"
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        report.fact(name[:19], f"{values[name]} by default, for safedb's sessions {own} and less")
    _judge(report, values, standby=standby, pooled=pooled, read_only=settings.read_only)


def opener_errors() -> tuple[type[Exception], ...]:
    """Give what the driver raises."""
    from safedb.postgres.driver import psycopg

    return (psycopg.Error,)


def _connections(report: Report, values: dict[str, str], used: int, settings: Settings) -> None:
    reserved = int(values["superuser_reserved_connections"]) + int(values.get("reserved_connections", 0))
    free, most = int(values["max_connections"]) - reserved, settings.pool.effective().max_size
    report.fact("max_connections", f"{free} for ordinary users, {used} in use; each process takes up to {2 * most}")
    if 2 * most > free:
        report.finding(f"One process may ask for {2 * most} connections, and the server has {free}: lower max_size.")


def _judge(report: Report, values: dict[str, str], *, standby: bool, pooled: bool, read_only: bool) -> None:
    for name, harm in (
        ("fsync", "commits that were acknowledged, and the database itself"),
        ("full_page_writes", "it"),
    ):
        if values[name] == "off":
            report.finding(f"{name} is off: a power cut may destroy {harm}. Switch it on.")
    if values["synchronous_commit"] == "off":
        report.note("synchronous_commit is off by default; safedb switches it on for what it writes.")
    if standby and not read_only:
        report.finding("The server is a standby, which refuses every write: name its primary, or add mode=ro.")
    if pooled:
        report.note("A pooler stands between: each transaction brings its settings along.")
