"""How much memory this process has had at the most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Give the most memory that this process has had, in bytes.

    On Linux by the kernel's account of this very program: what getrusage gives may be that of the process that
    started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
