"""What the numbers were measured on; without it they mean nothing."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import safedb
from safedb.sqlite.driver import sqlite3
from safedb.sqlite.location import examine as examine_location

_FLUSHES = 100
_PAGE = 4_096  # bytes


@dataclass(frozen=True, slots=True)
class Disk:
    """Describe where SQLite keeps its files.

    ``temporary`` says why files there may not last, or is None; ``flush`` is the median time of one flush to disk in
    seconds.
    """

    sqlite: str
    filesystem: str
    temporary: str | None
    flush: float

    @property
    def place(self) -> str:
        """Name the disk."""
        return f"{self.filesystem} (one flush: {self.flush * 1e3:.2g} ms)"

    @property
    def software(self) -> str:
        """Name what runs in our process."""
        return f"SQLite {self.sqlite}"

    @property
    def notes(self) -> list[str]:
        """Say what a reader must know before the numbers mean anything."""
        return [self.temporary] if self.temporary else []


@dataclass(frozen=True, slots=True)
class Server:
    """Describe a PostgreSQL server; ``round_trip`` is the median time of a question and its answer in seconds."""

    postgresql: str
    psycopg: str
    psycopg_pool: str
    round_trip: float
    fsync: str
    synchronous_commit: str

    @property
    def place(self) -> str:
        """Name the server, and what a commit there means."""
        trip = f"one round trip: {self.round_trip * 1e3:.2g} ms"
        levels = f"fsync {self.fsync}, synchronous_commit {self.synchronous_commit}"
        return f"PostgreSQL {self.postgresql} ({trip}), {levels}"

    @property
    def software(self) -> str:
        """Name what runs in our process."""
        return f"psycopg {self.psycopg}, psycopg_pool {self.psycopg_pool}"

    @property
    def notes(self) -> list[str]:
        """Say what a reader must know before the numbers mean anything."""
        said = []
        if self.fsync != "on":
            said.append("fsync is off on this server: no commit survives a power cut, and commits cost next to nothing")
        if self.synchronous_commit == "off":
            said.append("synchronous_commit is off for this user: by hand no commit waits for the disk; safedb's do")
        return said


@dataclass(frozen=True, slots=True)
class Machine:
    """Describe the machine that the threads ran on, the versions, and where the database is."""

    processor: str
    cores: int
    system: str
    python: str
    safedb: str
    storage: Disk | Server

    def as_dict(self) -> dict[str, object]:
        """Return the data by name."""
        known = asdict(self)
        return {**known, **known.pop("storage")}

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.system}, {self.storage.place}, {self.python},"
            f" {self.storage.software}, safedb {self.safedb}"
        )


def examine(storage: Disk | Server) -> Machine:
    """Describe this machine."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        safedb=safedb.__version__,
        storage=storage,
    )


def examine_disk(folder: Path) -> Disk:
    """Describe the disk below a folder. Raises ConfigError where no database can be."""
    location = examine_location(folder / f"safedb-stress-{os.getpid()}.db", read_only=False)
    return Disk(sqlite3.sqlite_version, location.filesystem, location.temporary, _flush(folder))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _flush(folder: Path) -> float:
    """Return the median time of one flush after a page was appended, as a commit does it, to a file of our own."""
    file = folder / f".safedb-stress-flush-{os.getpid()}"
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    try:
        for _ in range(_FLUSHES):
            os.write(descriptor, bytes(_PAGE))
            begun = time.perf_counter()
            sync(descriptor)
            times.append(time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        file.unlink()
    return sorted(times)[_FLUSHES // 2]
