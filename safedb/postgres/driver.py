"""The driver, imported in one place: psycopg 3 and psycopg_pool, or the error that says what to install."""

from __future__ import annotations

from safedb.errors import ConfigError

_INSTALL = "PostgreSQL needs psycopg 3.3.7 and psycopg_pool 3.3.3 or newer: pip install 'safedb[postgres]'"

try:
    import psycopg
    import psycopg_pool
except ImportError as error:  # also psycopg's own, where it finds no libpq
    raise ConfigError(f"{_INSTALL} ({error})") from error


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


# Older pools lose their workers after a day of idling; older connections cannot be waited for with a limit.
if _version(psycopg.__version__) < (3, 3, 7) or _version(psycopg_pool.__version__) < (3, 3, 3):
    raise ConfigError(f"{_INSTALL} (found psycopg {psycopg.__version__}, psycopg_pool {psycopg_pool.__version__})")

__all__ = ["psycopg", "psycopg_pool"]
