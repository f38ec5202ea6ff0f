"""Values from PostgreSQL: psycopg's own loaders, but where they would not give what the contract says.

What psycopg holds for the whole process (``psycopg.adapters``) is copied, and never changed. The loaders are for
results in text form, which is psycopg's default.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import Any

from psycopg import DataError
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader

from safedb.postgres.driver import psycopg


@cache
def context() -> AdaptContext:
    """Give what ``psycopg.connect(context=...)`` takes, for all connections; each makes its own copy of it."""
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("timestamptz", _TimestamptzLoader)
    adapters.register_loader("json", _JsonLoader)
    adapters.register_loader("jsonb", _JsonLoader)
    return adapters


class _TimestamptzLoader(Loader):
    """Give datetimes in ``datetime.UTC``, as on SQLite; psycopg gives the session's zone, as a ``ZoneInfo``."""

    def load(self, data: Buffer) -> datetime:
        text = str(data, "ascii")
        try:
            value = datetime.fromisoformat(text)
            # The session's zone is UTC; the user's own SET may have changed that.
            return value if value.tzinfo is UTC else value.astimezone(UTC)
        except (ValueError, OverflowError):  # BC, a year of five digits, infinity
            raise DataError(
                f"a timestamptz that no datetime can hold, {text!r}: it is outside the years 1 to 9999 in UTC (or the "
                "session's DateStyle is not ISO); select it as text, CAST(x AS TEXT)"
            ) from None


class _JsonLoader(Loader):
    """Give Python values, as on SQLite, whatever ``psycopg.types.json.set_json_loads`` says to the whole process."""

    def load(self, data: Buffer) -> Any:
        text = str(data, "utf-8")
        try:
            return _decode(text)
        except (ValueError, RecursionError):  # a number of 5,000 digits; a nesting of 1,000 levels
            return text


_decode = json.JSONDecoder().decode
