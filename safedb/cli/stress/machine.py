"""What the numbers were measured on; without it they mean nothing."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import safedb
from safedb.sqlite.location import examine as examine_location

_FLUSHES = 100
_PAGE = 4_096  # bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """Describe the machine, the versions and the disk.

    ``temporary`` says why files there may not last, or is None; ``flush`` is the median time of one flush to disk in
    seconds.
    """

    processor: str
    cores: int
    system: str
    python: str
    sqlite: str
    safedb: str
    filesystem: str
    temporary: str | None
    flush: float

    def as_dict(self) -> dict[str, object]:
        """Return the data by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.system}, {self.filesystem} (one flush: {self.flush * 1e3:.2g}"
            f" ms), {self.python}, SQLite {self.sqlite}, safedb {self.safedb}"
        )


def examine(folder: Path) -> Machine:
    """Describe this machine, and the disk below a folder. Raises ConfigError where no database can be."""
    location = examine_location(folder / f"safedb-stress-{os.getpid()}.db", read_only=False)
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        sqlite=sqlite3.sqlite_version,
        safedb=safedb.__version__,
        filesystem=location.filesystem,
        temporary=location.temporary,
        flush=_flush(folder),
    )


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
