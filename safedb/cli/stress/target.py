"""Where to run: the one place that knows which engines there are, and whose database is whose."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from safedb.cli.stress import by_hand, machine, sqlite_file, words, workload
from safedb.cli.stress.words import Words
from safedb.cli.stress.workload import PREFIX, TABLES, Place, Side
from safedb.sqlite import location
from safedb.sqlite.driver import sqlite3
from safedb.targets import parse_target

if TYPE_CHECKING:
    from safedb.cli.stress.server import GivenServer  # needs the driver

BY_HAND, SAFEDB = "by hand", "safedb"
_SUFFIXES = ("", "-wal", "-shm", "-journal", "-safedb", "-safedb.next")

Where: TypeAlias = "Fresh | Given | GivenServer"


class TargetError(Exception):
    """Refuse a target; the text says why, and what to give instead."""


class Evidence(Protocol):
    """Be the database after a run, seen without safedb and in one state."""

    def ask(self, query: str, /) -> Iterable[tuple[Any, ...]]:
        """Return the rows of a SELECT."""

    def integrity(self) -> list[str]:
        """Return what the database itself finds wrong."""


class Lock(Protocol):
    """Be a lock that keeps everybody else from writing; ``pause`` is the time between two tries, in seconds."""

    pause: float

    def take(self) -> bool:
        """Try once, for a moment at most; tell whether it is held now."""

    def release(self) -> None:
        """Give it back."""


class Watch(Protocol):
    """Follow, from when it is made, what the database writes beside its tables."""

    def look(self) -> None:
        """Look at it now; called several times a second."""

    def result(self) -> dict[str, int]:
        """Return sizes in bytes by name; what cannot be known is left out."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Be one kind of database: how each side prepares its tables, how a process opens each side, safedb's deadline.

    ``evidence``, ``lock`` and ``watch`` know nothing of safedb; ``errors`` is what the driver raises.
    """

    preparation: Callable[[Place], list[str]]
    prepare: dict[str, Callable[[Place], None]]
    open: dict[str, Callable[[Place], Side]]
    deadline: Callable[[Place], float]
    evidence: Callable[[Place], AbstractContextManager[Evidence]]
    lock: Callable[[Place], AbstractContextManager[Lock]]
    watch: Callable[[Place], Watch]
    errors: tuple[type[Exception], ...]
    words: Words


def engine(dialect: str) -> Engine:
    """Return the engine of a dialect. Raises ConfigError that says what to install, where its driver is missing."""
    from safedb.cli.stress import with_safedb

    if dialect == "sqlite":
        return Engine(
            preparation=lambda _place: list(workload.PREPARATION),
            prepare={BY_HAND: by_hand.prepare, SAFEDB: with_safedb.prepare},
            open={BY_HAND: by_hand.ByHand, SAFEDB: with_safedb.WithSafedb},
            deadline=with_safedb.deadline,
            evidence=sqlite_file.evidence,
            lock=sqlite_file.lock,
            watch=sqlite_file.WalSize,
            errors=(sqlite3.Error,),
            words=words.FILE,
        )
    driver_errors = _driver_errors()
    from safedb.cli.stress import by_hand_postgres, server  # only now: they need the driver

    return Engine(
        preparation=server.preparation,
        prepare={BY_HAND: by_hand_postgres.prepare, SAFEDB: with_safedb.prepare},
        open={BY_HAND: by_hand_postgres.ByHand, SAFEDB: with_safedb.WithSafedb},
        deadline=with_safedb.deadline,
        evidence=server.evidence,
        lock=server.lock,
        watch=server.WalWritten,
        errors=driver_errors,
        words=words.SERVER,
    )


def _driver_errors() -> tuple[type[Exception], ...]:
    """Return what the driver raises; where it is missing or too old, raise ConfigError that says what to install."""
    from safedb.postgres.driver import psycopg

    return (psycopg.Error,)


class _OnDisk:
    """Have what both places on a disk have."""

    dialect = "sqlite"
    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    folder: Path

    def synchronous(self, given: str | None) -> str | None:
        """Return the level that holds."""
        return given or "FULL"

    def storage(self) -> machine.Disk:
        """Describe the disk."""
        return machine.examine_disk(self.folder)

    @property
    def kept(self) -> str:
        """Say what --keep leaves."""
        return f"The database is kept: {self}"


class Fresh(_OnDisk):
    """Be a fresh folder below the current one, with a database of its own for each side."""

    def __init__(self) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="safedb-stress-", dir=Path.cwd()))
        except OSError as error:
            raise TargetError(
                f"cannot make a folder for the databases in {str(Path.cwd())!r}: {error.strerror}; "
                "change to a folder that you may write to"
            ) from error

    def place(self, side: str, synchronous: str | None) -> Place:
        """Give the side its own file."""
        return Place(str(self.folder / f"{side.replace(' ', '-')}.db"), None, synchronous)

    def prepare(self, side: str, place: Place) -> None:
        """Create the side's tables."""
        engine(self.dialect).prepare[side](place)

    def clear(self) -> None:
        """Leave the files: the folder goes as a whole."""

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __str__(self) -> str:
        return str(self.folder)


class Given(_OnDisk):
    """Be the file of a URL: both sides use it, one after the other, in tables of our own that are dropped again."""

    def __init__(self, url: str, path: str) -> None:
        found = location.examine(path, read_only=False)  # refuses network file systems, folders, hard links …
        self.path, self._url = Path(found.realpath), url
        self.folder = self.path.parent
        self._existed = found.device_inode is not None
        self._journal_mode = self._examine() if self._existed else ""
        self._ours = False  # until we have created them, tables of these names are another run's

    def place(self, side: str, synchronous: str | None) -> Place:
        """Give both sides the same file."""
        return Place(str(self.path), self._url if side == SAFEDB else None, synchronous)

    def prepare(self, side: str, place: Place) -> None:
        """Create the side's tables: all of them, or none."""
        engine(self.dialect).prepare[side](place)
        self._ours = True

    def clear(self) -> None:
        """Drop our tables, if they are ours."""
        if not self._ours:
            return
        with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
            for table in TABLES:
                connection.execute(f"DROP TABLE IF EXISTS {table}")
        self._ours = False

    def remove(self) -> None:
        """Drop our tables and set the journal mode back; remove the file if it was not there before."""
        if self._existed:
            self.clear()
            if self._journal_mode != "wal":
                with contextlib.closing(sqlite3.connect(self.path)) as connection:
                    connection.execute(f"PRAGMA journal_mode={self._journal_mode}")
            return
        for suffix in _SUFFIXES:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self.path)

    def _examine(self) -> str:
        """Refuse a file that is no database, or that already holds tables of ours; return its journal mode."""
        try:
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                tables = _tables_of_ours(connection)
                mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
        except sqlite3.Error as error:
            raise TargetError(f"cannot use {str(self.path)!r} as a database: {error}") from error
        if tables:
            raise TargetError(
                f"{str(self.path)!r} already has the table {tables[0]!r}: another safedb stress is running there, or"
                f" one was killed. If so, drop the tables whose names begin with {PREFIX}, or use another database"
            )
        return mode


def _tables_of_ours(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return [name for (name,) in names if name.startswith(PREFIX)]


def choose(url: str | None) -> Where:
    """Return where to run: a fresh folder without a URL. Raises TargetError or ConfigError."""
    if url is None:
        return Fresh()
    target = parse_target(url)
    engine(target.dialect)  # refuses what we cannot run on before anything is touched
    if target.options.get("mode") == "ro":
        raise TargetError("safedb stress writes: give a URL without mode=ro")
    if target.dsn is not None:
        from safedb.cli.stress.server import GivenServer

        return GivenServer(url, target.dsn)
    if target.path is None:
        raise TargetError("a database in memory has no file to check afterwards: give sqlite:///FILE, or no URL at all")
    return Given(url, target.path)
