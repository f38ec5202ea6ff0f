"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from safedb.sqlite.driver import sqlite3

FLUSHES = 200


@dataclass(frozen=True, slots=True)
class Machine:
    """Be the machine's data; ``flush`` is the median of seconds for flushing 4 KiB that were overwritten."""

    cores: int
    processor: str
    system: str
    filesystem: str
    flush: float
    python: str
    sqlite: str

    def lines(self) -> list[str]:
        """Tell it in Markdown."""
        return [
            f"- {self.cores} cores ({self.processor}), {self.system}",
            f"- file system {self.filesystem}; a flush (fdatasync after overwriting 4 KiB) takes "
            f"{self.flush * 1e3:.3f} ms, {1 / self.flush:,.0f} a second",
            f"- Python {self.python}, SQLite {self.sqlite}",
        ]


def describe(folder: Path) -> Machine:
    """Look at this machine, and at the disk that ``folder`` lies on."""
    return Machine(
        cores=_cores(),
        processor=_processor(),
        system=f"{platform.system()} {platform.release()}",
        filesystem=_filesystem(folder),
        flush=flush_time(folder),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        sqlite=sqlite3.sqlite_version,
    )


def flush_time(folder: Path, flushes: int = FLUSHES) -> float:
    """Give the median of seconds that one flush takes."""
    path = folder / "flush-probe"
    flush = getattr(os, "fdatasync", os.fsync)  # macOS has none
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    times = []
    try:
        os.pwrite(descriptor, bytes(4096), 0)
        os.fsync(descriptor)
        for number in range(flushes):
            os.pwrite(descriptor, bytes([number % 256]) * 4096, 0)
            started = time.perf_counter()
            flush(descriptor)
            times.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(times)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _filesystem(folder: Path) -> str:
    """Name the file system of ``folder`` by the longest mount point above it; "unknown" where /proc does not tell."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    path = folder.resolve()
    found = (Path("/"), "unknown")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, point, kind, *_ = line.split(" ")
        mount = Path(point.encode().decode("unicode_escape"))
        if path.is_relative_to(mount) and len(mount.parts) >= len(found[0].parts):
            found = (mount, kind)
    return found[1]
