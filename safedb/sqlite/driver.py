"""The SQLite module in use, chosen in this one place, once, when this is imported.

``pysqlite3`` (of ``safedb[sqlite-latest]``) carries a newer SQLite than most systems have, and is used where it is
installed and newer than the standard library's; the environment variable ``SAFEDB_SQLITE``, ``sqlite3`` or
``pysqlite3``, decides otherwise. Everything in safedb takes the module and its classes from here and nowhere else: the
exceptions of one are not those of the other (H6), so an ``except`` clause for the wrong one would catch nothing, and a
file that is open through both modules in one process loses its locks (H32).
"""

from __future__ import annotations

import importlib
import os
import sqlite3 as stdlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safedb.errors import ConfigError
from safedb.values import suggest

VARIABLE = "SAFEDB_SQLITE"
STDLIB, NEWEST = "sqlite3", "pysqlite3"
REMEDY = "pip install 'safedb[sqlite-latest]'"
READWRITE, CREATE, EXRESCODE = 0x2, 0x4, 0x2000000  # https://sqlite.org/c3ref/c_open_autoproxy.html
NOT_NULL = 1299  # https://sqlite.org/rescode.html#constraint_notnull


def choose(environ: Mapping[str, str] = os.environ) -> tuple[Any, str]:
    """Choose the module, and say why; raise `ConfigError` for a name that is not known, not installed or unfit."""
    asked = environ.get(VARIABLE)
    if asked not in (None, STDLIB, NEWEST):
        raise ConfigError(
            f"{VARIABLE} = {asked!r} is neither {STDLIB} nor {NEWEST} (without it the newer SQLite of the two is used)"
            f"{suggest(asked, (STDLIB, NEWEST))}"
        )
    if asked == STDLIB:
        return stdlib, f"{VARIABLE} asks for it"
    newest, lack = _newest()
    if lack:
        if asked:
            raise ConfigError(f"{VARIABLE} asks for {NEWEST}, which {lack}: {REMEDY}")
        return stdlib, f"{NEWEST} {lack}"
    if asked:
        return newest, f"{VARIABLE} asks for it"
    if newest.sqlite_version_info > stdlib.sqlite_version_info:
        return newest, f"it is newer than the standard library's SQLite {stdlib.sqlite_version}"
    return stdlib, f"{NEWEST} has SQLite {newest.sqlite_version}, which is not newer"


def _newest() -> tuple[Any, str]:
    """Import pysqlite3; give it, and what is wrong with it."""
    try:
        module = importlib.import_module(NEWEST)
    except ModuleNotFoundError as error:
        return None, "is not installed" if error.name == NEWEST else f"cannot be imported ({error})"
    except ImportError as error:  # installed, and made for another system
        return None, f"cannot be imported ({error})"
    return module, "" if _tells_codes(module) else "is too old to tell SQLite's extended error codes"


def _tells_codes(module: Any) -> bool:
    """Try whether errors carry their extended codes: by them a failed fsync, say, is told from any other failure."""
    try:
        connection = module.connect(":memory:", **_options(module))
    except TypeError:
        return False
    try:
        connection.execute("CREATE TABLE t (x NOT NULL)")
        connection.execute("INSERT INTO t VALUES (NULL)")
    except module.Error as error:
        return getattr(error, "sqlite_errorcode", None) == NOT_NULL
    finally:
        connection.close()
    return False


def _options(module: Any) -> dict[str, Any]:
    """Give what a module must be told at each connection: pysqlite3, that extended codes are wanted.

    It goes by the module's own name: some programs put pysqlite3 into ``sys.modules`` in the place of ``sqlite3``.
    """
    return {} if _name(module) == STDLIB else {"flags": READWRITE | CREATE | EXRESCODE}


def _name(module: Any) -> str:
    return str(module.__name__).partition(".")[0]


if TYPE_CHECKING:  # pysqlite3 has no types, and the standard library's are its own for all that is used here
    import sqlite3
    from sqlite3 import Connection

    WHY: str
else:
    sqlite3, WHY = choose()
    Connection = sqlite3.Connection

VERSION: tuple[int, ...] = sqlite3.sqlite_version_info
MODULE = _name(sqlite3)
OPTIONS = _options(sqlite3)


def connect(name: str, **options: Any) -> Connection:
    """Open a connection whose errors carry extended codes. They may then be plain `DatabaseError`: go by the code."""
    connection: Connection = sqlite3.connect(name, **options, **OPTIONS)
    return connection


__all__ = ["MODULE", "REMEDY", "VERSION", "WHY", "Connection", "choose", "connect", "sqlite3"]
