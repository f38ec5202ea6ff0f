"""Races on a slower disk: the same races in a child whose every flush sleeps first (`slowflush.c`, by LD_PRELOAD).

The child measures its own flush, so that a shim which had no effect is seen.
"""

from __future__ import annotations

import json
import os
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


def run(shim: Path, module: str, arguments: list[str], *, delay: float) -> object:
    """Run ``python -m module`` with every flush ``delay`` seconds slower; give what it printed as JSON."""
    environment = os.environ | {"LD_PRELOAD": str(shim), "SLOWFLUSH_MICROSECONDS": str(round(delay * 1e6))}
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        cwd=SOURCE.parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)
