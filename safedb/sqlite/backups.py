"""Backup: a copy of one committed state, made beside readers and writers.

The pages are read inside a pinned snapshot, so the copy is never restarted by a commit (an unpinned one restarted 4,689
times in 6 s under load: https://sqlite.org/backup.html tells why), blocks nobody, and is the state at its beginning.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from safedb import errors
from safedb.retry import CORRUPT, FULL, IOERR, classify, code_of
from safedb.sqlite import location
from safedb.sqlite.driver import connect, sqlite3
from safedb.sqlite.snapshots import SnapshotSession

HEADER = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html
PAGES = 1024  # a step: between two of them others may run, and the deadline is looked at
WORDS = {
    "database or disk is full": (FULL, "SQLITE_FULL"),
    "disk I/O error": (IOERR, "SQLITE_IOERR"),
    "database disk image is malformed": (CORRUPT, "SQLITE_CORRUPT"),
}
"""What codes the words stand for: the backup() of pysqlite3 tells no code, but only SQLite's words (sqlite3_errstr)."""


OTHERS = {
    "-wal": "in use (it has a WAL)",
    "-journal": "in use (it has a journal)",
    "-safedb": "of its own, not a backup (it has side files)",
}
"""What lies beside a database that must not be replaced, and what it tells."""


def copy(
    session: SnapshotSession,
    dest: str,
    *,
    source: str | None,
    mode: int,
    progress: Callable[[int, int], Any] | None,
    deadline: float,
) -> None:
    """Write the session's state to a file beside ``dest``, and rename it when it is complete and on the disk."""
    target = _target(dest, source)
    partial = f"{target}.partial-{os.getpid()}-{threading.get_ident()}"  # each backup has its own
    with contextlib.suppress(FileNotFoundError):
        Path(partial).unlink()  # of a process that was killed, and had these numbers
    location.create(partial, mode)
    try:
        _fill(session, partial, progress, deadline)
        _sync(partial)
        os.replace(partial, target)  # noqa: PTH105
        _sync(os.path.dirname(target))  # noqa: PTH120
    except errors.Error:
        raise
    except OSError as error:
        cls = errors.DatabaseFull if error.errno in location.NO_ROOM else errors.OperationalError
        raise cls(f"backup to {target}: {error.strerror}; look at the folder") from error
    except sqlite3.Error as error:
        raise classify(error, doing=f"backup to {target}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(partial).unlink()


def _target(dest: str, source: str | None) -> str:
    """Refuse a place where something would be destroyed."""
    target = os.path.realpath(dest)
    if source is not None and location.identity(target) == location.identity(source):
        raise errors.ConfigError(f"{target!r} is the database itself; give the backup another name")
    location.check_side_file(target)  # to look into a -shm would drop its locks (H32)
    if not os.path.isdir(os.path.dirname(target)):  # noqa: PTH112, PTH120
        raise errors.ConfigError(f"there is no folder {os.path.dirname(target)!r} for the backup; make it first")  # noqa: PTH120
    found = location.identity(target)
    if found is not None and not stat.S_ISREG(Path(target).stat().st_mode):
        raise errors.ConfigError(f"{target!r} is no file; give the backup the name of a new file")
    for suffix, tells in OTHERS.items():
        if location.identity(f"{target}{suffix}") is not None:
            raise errors.ConfigError(f"{target!r} is a database {tells}; give the backup another name")
    if found is not None and _is_open_here(found):
        raise errors.ConfigError(f"{target!r} is open in this process; close it, or give the backup another name")
    if found is not None and not _may_be_replaced(Path(target)):
        raise errors.ConfigError(f"{target!r} is there already, and is no earlier backup; give the backup another name")
    return target


def _is_open_here(identity: tuple[int, int]) -> bool:
    """Tell whether this process has a file open: to look into it would drop the locks that it holds on it (H32)."""
    for number in os.listdir("/dev/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            found = os.fstat(int(number))
            if (found.st_dev, found.st_ino) == identity:
                return True
    return False


def _may_be_replaced(path: Path) -> bool:
    """Tell whether a file is empty, or a database like a backup: a copy cannot be told from any other."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) in (b"", HEADER)


def _fill(session: SnapshotSession, partial: str, progress: Callable[[int, int], Any] | None, deadline: float) -> None:
    def step(_: int, remaining: int, total: int) -> None:
        if monotonic() > deadline:
            raise errors.QueryCanceled(
                f"the backup was not complete at its deadline ({total - remaining} of {total} pages)"
            )
        if progress is not None:
            progress(total - remaining, total)

    connection = connect(location.uri(partial), uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")  # it is synced once, when it is whole,
        connection.execute("PRAGMA journal_mode=OFF")  # and thrown away where it cannot be made so
        session.backup(lambda source: source.backup(connection, pages=PAGES, progress=step, sleep=0))
    except sqlite3.Error as error:
        if not code_of(error) and str(error) in WORDS:
            error.sqlite_errorcode, error.sqlite_errorname = WORDS[str(error)]
        raise
    finally:
        connection.close()


def copy_memory(source: sqlite3.Connection, copy: sqlite3.Connection, deadline: float) -> None:
    """Copy a database in memory to another, by ``deadline``; the caller sees to it that nobody writes."""

    def step(_: int, _remaining: int, total: int) -> None:
        if monotonic() > deadline:
            raise errors.QueryCanceled(f"the copy for a snapshot was not complete at its deadline ({total} pages)")

    source.backup(copy, pages=PAGES, progress=step, sleep=0)


def _sync(path: str) -> None:
    # Nobody has the partial file open as a database any more, so that opening it drops no locks (H32).
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
