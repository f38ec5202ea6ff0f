"""A SQLite database: its place, its files, its content; nothing is created, not even a -wal or a -shm.

A reader of a WAL database makes both where they are not there, and leaves them behind. So where there is no -wal, which
means that nobody has the database open, it is read as ``immutable``: without locks and without side files. Should
somebody open it meanwhile, it is looked at again in the usual way.
"""

# pathlib costs milliseconds of import, and hides which system call is made.
# ruff: noqa: PTH116
from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safedb.cli.doctor.report import Report
from safedb.config import Settings
from safedb.errors import ConfigError, Error, ProgrammingError
from safedb.retry import classify
from safedb.sqlite import location
from safedb.sqlite.driver import Connection, connect, sqlite3
from safedb.sqlite.health import damage
from safedb.sqlite.sidelock import holder_of

_SUFFIXES = ("-wal", "-shm", "-safedb", "-safedb.next", "-journal")
_HEADER = 20  # bytes: the last two of them tell of WAL (https://sqlite.org/fileformat.html#file_format_version_numbers)
_PATIENCE = 5.0  # seconds to wait for a recovery that another process makes


def look(report: Report, settings: Settings) -> None:
    """Tell of the database; raise `ConfigError` where there is none."""
    path = os.path.realpath(settings.target.path or "")
    if not os.path.isfile(path):  # noqa: PTH113
        raise ConfigError(f"there is no file {path!r}: check the path (nothing is created here)")
    report.fact("Database", path)
    if not _placed(report, path, read_only=settings.read_only):
        return
    _files(report, path)
    _turn(report, path)
    try:
        _content(report, path, settings)
    except Error as error:
        report.finding(str(error))


def _placed(report: Report, path: str, *, read_only: bool) -> bool:
    """Tell of the file system; return whether safedb would open the file for reading."""
    try:
        place = location.examine(path, read_only=True)
        report.fact("File system", place.filesystem)
        if place.temporary:
            report.note(f"What lies there may not last: {place.temporary}.")
    except ConfigError as error:
        report.finding(f"{error}.")
        return False
    if not read_only:
        try:
            location.examine(path, read_only=False)
        except ConfigError as error:
            report.finding(f"{error}.")
    return True


def _files(report: Report, path: str) -> None:
    """Tell of the modes and sizes, and find side files that others may use than may use the database."""
    main = os.stat(path)
    report.fact("File", _described(main))
    if main.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        report.note(f"Every user of this machine may read or write it: chmod o-rw {path}")
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path + suffix)
            report.fact(suffix, _described(found))
            if stat.S_IMODE(found.st_mode) != stat.S_IMODE(main.st_mode) or found.st_uid != main.st_uid:
                report.finding(
                    f"{path}{suffix} has another mode or owner than the database, so that it can be used by more or "
                    "by fewer users: give it the same."
                )
            if suffix == "-journal" and found.st_size:
                report.finding(
                    "There is a rollback journal: a program writes to it without WAL, or has crashed. Open it for "
                    "writing once that program has ended."
                )


def _described(found: os.stat_result) -> str:
    return f"{found.st_size:,} bytes, mode {stat.S_IMODE(found.st_mode):04o}, user {found.st_uid}"


def _turn(report: Report, path: str) -> None:
    """Tell who has the turn to write. It is only read: to try the lock would be to hold up who waits for it."""
    try:
        pid = holder_of(path)
    except FileNotFoundError:
        report.fact("Turn to write", "never taken by safedb")
    except OSError as error:
        report.fact("Turn to write", f"cannot be read: {error.strerror}")
    else:
        report.fact("Turn to write", "free" if pid is None else f"process {pid} has it, or is next")


def _content(report: Report, path: str, settings: Settings) -> None:
    alone = _alone(path)
    seen = _read(path, settings, alone=alone)
    if alone and not _alone(path):
        seen = _read(path, settings, alone=False)
    report.facts += seen.facts
    report.notes += seen.notes
    report.findings += seen.findings


def _alone(path: str) -> bool:
    return not any(Path(path + suffix).exists() for suffix in ("-wal", "-journal"))


def _read(path: str, settings: Settings, *, alone: bool) -> Report:
    """Look at one state of the content."""
    report = Report()
    with _opened(path, alone=alone) as connection:

        def ask(sql: str) -> list[tuple[Any, ...]]:
            try:
                return connection.execute(sql).fetchall()
            except sqlite3.Error as error:
                raise classify(error, doing=sql) from error

        def value(pragma: str) -> Any:
            return ask(f"PRAGMA {pragma}")[0][0]

        ask("BEGIN")
        size, pages = value("page_size"), value("page_count")
        wal = _wal(path) if alone else value("journal_mode") == "wal"
        report.fact("Journal mode", "wal" if wal else "not wal")
        if not wal:
            report.note("safedb switches it to WAL when it opens it for writing; that stays.")
        report.fact("Pages", f"{pages:,} of {size:,} bytes, {value('freelist_count'):,} of them free")
        report.fact("Marks", f"application_id {value('application_id')}, user_version {value('user_version')}")
        _check_wal(report, path, settings)
        try:
            found = damage(ask)
        except ProgrammingError as error:
            report.note(
                f"It could not be checked here ({error}): call check() where the program's own functions and "
                "collations are known."
            )
        else:
            report.fact("Check", "ok" if not found else f"{len(found)} found")
            report.findings += found
    return report


@contextlib.contextmanager
def _opened(path: str, *, alone: bool) -> Iterator[Connection]:
    name = location.uri(path, mode="ro") + "&immutable=1" * alone
    try:
        connection = connect(name, uri=True, isolation_level=None, timeout=_PATIENCE)
    except sqlite3.Error as error:
        raise classify(error, doing=f"opening {path}") from error
    with contextlib.closing(connection):
        connection.execute("PRAGMA query_only=ON")  # neither of the two looks into the file
        connection.execute("PRAGMA trusted_schema=OFF")
        yield connection


def _wal(path: str) -> bool:
    """Read whether the database is in WAL mode; an immutable one does not say. Nobody has it open (H32)."""
    with open(path, "rb") as file:
        return file.read(_HEADER)[18:] == b"\2\2"


def _check_wal(report: Report, path: str, settings: Settings) -> None:
    limit = settings.pragmas.effective().wal_limit
    try:
        size = os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return
    if limit and size > 2 * limit:
        report.finding(
            f"The WAL has {size:,} bytes, and wal_limit is {limit:,}: an open reader keeps it from shrinking, or "
            "nobody checkpoints. Look at stats().oldest_snapshot of each process that uses it."
        )
