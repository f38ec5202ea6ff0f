"""PostgreSQL: the engine, and the one function that opens it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import cast

from safedb import errors, retry
from safedb.config import Settings
from safedb.engine import Engine
from safedb.targets import Dsn, parse_target

_prepared = False


def open_engine(
    settings: Settings, replicas: str | Sequence[str] | None, *, serial_writes: bool
) -> tuple[Engine, Callable[[float], None]]:
    """Open an engine for ``settings``; give it with what closes it."""
    global _prepared
    from safedb.postgres import fork  # the first that needs the driver
    from safedb.postgres.engine import PostgresEngine

    if not _prepared:
        retry.prepare()
        fork.install()
        _prepared = True
    if settings.target.dsn is None:
        raise errors.ConfigError("the target names no server")
    policy = settings.retry.effective()
    deadline = monotonic() + policy.timeout
    engine = PostgresEngine(
        settings.target.dsn,
        replicas=_replicas(replicas),
        pool=settings.pool.effective(),
        policy=policy,
        read_only=settings.read_only,
        serial_writes=serial_writes,
    )
    try:
        engine.open(policy.timeout, fork.places)
    except BaseException:
        engine.close(deadline - monotonic())
        raise
    fork.engines.add(engine)
    return cast("Engine", engine), engine.close


def _replicas(given: str | Sequence[str] | None) -> list[Dsn]:
    """Read ``replicas=``: one URL or several."""
    urls = [given] if isinstance(given, str) else list(given or ())
    found = []
    for url in urls:
        target = parse_target(url) if isinstance(url, str) else None
        if target is None or target.dsn is None:
            raise errors.ConfigError("replicas= takes postgresql:// URLs")
        if target.options:
            raise errors.ConfigError(
                f"replicas= has settings of safedb in its URL ({', '.join(target.options)}): those of the database hold"
            )
        found.append(target.dsn)
    return found
