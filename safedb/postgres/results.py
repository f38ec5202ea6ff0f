"""Taking a result out of the driver's hands: complete, and without what nobody may ask for."""

from __future__ import annotations

from typing import Any

from safedb.engine import Fetched
from safedb.postgres.driver import psycopg

_ROWS = psycopg.pq.ExecStatus.TUPLES_OK


def fetched(cursor: psycopg.Cursor[tuple[Any, ...]]) -> Fetched:
    """Give the rows, the columns (None where the statement has no rows to return) and the row count.

    Of the columns only the names are taken: the driver's own description costs as much as ten of them.
    """
    result = cursor.pgresult
    if result is None or result.status != _ROWS:
        return [], None, cursor.rowcount
    name = result.fname
    columns = [((name(index) or b"").decode(),) for index in range(result.nfields)]
    return cursor.fetchall(), columns, cursor.rowcount
