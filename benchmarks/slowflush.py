"""A slower disk: a shim (`slowflush.c`, by LD_PRELOAD) that lets every flush of a process sleep first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("slowflush.c")


class NotHere(Exception):
    """Say why there can be no slower disk on this machine."""


def build(folder: Path) -> Path:
    """Compile the shim into ``folder``."""
    if sys.platform != "linux":
        raise NotHere("LD_PRELOAD is Linux's")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NotHere("there is no C compiler (cc) to build the shim")
    shim = folder / "slowflush.so"
    built = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(shim), str(SOURCE), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        raise NotHere(f"{compiler} did not build the shim: {built.stderr.strip()}")
    return shim
