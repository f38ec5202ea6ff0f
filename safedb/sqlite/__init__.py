"""SQLite: the engine, and the one function that opens it."""

from __future__ import annotations

from collections.abc import Callable

from safedb import retry
from safedb.config import Settings
from safedb.engine import Engine
from safedb.sqlite import fork
from safedb.sqlite.opening import extras_of, registry

_prepared = False


def open_engine(settings: Settings, functions: object, collations: object) -> tuple[Engine, Callable[[float], None]]:
    """Open the engine for ``settings``, or share the one that is open; give it with what closes this share of it."""
    global _prepared
    if not _prepared:
        retry.prepare()
        fork.install()
        _prepared = True
    engine = registry.open(settings, extras_of(functions, collations))
    return engine, lambda timeout: registry.close(engine, timeout)
