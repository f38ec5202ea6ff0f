"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median

from safedb.sqlite.driver import sqlite3

FLUSHES = 200
CHANGED = 1.5  # times: a disk whose flushes take so much longer or shorter than before is told


@dataclass(frozen=True, slots=True)
class Machine:
    """Be the machine's data; ``flush`` is the median of seconds for flushing 4 KiB that were overwritten.

    ``memory``: bytes. ``load``: programs that wanted a core, in the mean of the last minute. ``apsw``: the version of
    its own SQLite, "" where it is not installed. ``after``: ``flush`` once more at the end, 0.0 where nobody looked.
    """

    cores: int
    processor: str
    system: str
    filesystem: str
    flush: float
    python: str
    sqlite: str
    memory: int = 0
    load: float = 0.0
    apsw: str = ""
    after: float = 0.0

    def lines(self) -> list[str]:
        """Tell it in Markdown."""
        after = f"; afterwards {self.after * 1e3:.3f} ms" if self.after else ""
        if self.after and not 1 / CHANGED < self.after / self.flush < CHANGED:
            after += " (**the disk has changed its pace meanwhile**)"
        return [
            f"- {self.cores} cores ({self.processor}), {self.memory / 1e9:.1f} GB, {self.system}; "
            f"load average {self.load:.1f} at the beginning",
            f"- file system {self.filesystem}; a flush (fdatasync after overwriting 4 KiB) takes "
            f"{self.flush * 1e3:.3f} ms, {1 / self.flush:,.0f} a second{after}",
            f"- Python {self.python}, SQLite {self.sqlite}{f', that of apsw {self.apsw}' if self.apsw else ''}",
        ]


def describe(folder: Path) -> Machine:
    """Look at this machine, and at the disk that ``folder`` lies on."""
    return Machine(
        cores=cores(),
        processor=_processor(),
        system=f"{platform.system()} {platform.release()}",
        filesystem=filesystem(folder),
        flush=flush_time(folder),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        sqlite=sqlite3.sqlite_version,
        memory=_memory(),
        load=os.getloadavg()[0],
        apsw=_apsw(),
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


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _apsw() -> str:
    try:
        return str(import_module("apsw").sqlite_lib_version())
    except ImportError:
        return ""


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def filesystem(folder: Path) -> str:
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
