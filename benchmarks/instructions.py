"""How many instructions one call takes: counted by valgrind, and so the same on a busy machine as on a quiet one.

The same process runs twice, with some calls and with twice as many; the difference is what the calls took, without the
start. The interpreter hashes alike every time. Only user space is counted: no flush, no waiting, nothing of the kernel.
Where many threads write, they meet in other groups than without valgrind, which lets one thread run at a time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.calls import SIDES, Call, calls, crew

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600.0  # seconds for one process: valgrind makes it fifty times slower
TOTAL = re.compile(r"I\s+refs:\s+([\d,]+)")
COMMAND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")

THREADS = 16
CREW = f"single writes, {THREADS} threads, NORMAL"
# What is counted, and in how many calls: so many that a percent is more than what varies at the start.
COUNTED = {
    "point read": 8000,
    "range read": 400,
    "snapshot read": 3000,
    "single write": 4000,
    "function": 2000,
    "block": 2000,
    CREW: 4800,
}


class NotHere(Exception):
    """Say why instructions cannot be counted on this machine."""


def count(works: list[str], say: Callable[[str], None]) -> Iterator[tuple[str, dict[str, float]]]:
    """Count what one call of each of ``works`` takes on either side."""
    if shutil.which(COMMAND[0]) is None:
        raise NotHere("valgrind is not installed: the package is called valgrind on Linux")
    with tempfile.TemporaryDirectory(prefix="safedb-bench-") as name:
        folder = Path(name)
        for side in SIDES:
            _spend(side, "point read", 1, folder, ())  # leaves the bytecode, and the filled file
        for number, work in enumerate(works, 1):
            say(f"{work}: {number} of {len(works)}")
            yield work, {side: _a_call(side, work, folder) for side in SIDES}


def _a_call(side: str, work: str, folder: Path) -> float:
    number = COUNTED[work]
    with ThreadPoolExecutor(2) as pool:
        once, twice = pool.map(lambda calls: _spend(side, work, calls, folder, COMMAND), (number, 2 * number))
    return (twice - once) / number


def _spend(side: str, work: str, number: int, folder: Path, under: tuple[str, ...]) -> int:
    """Run a process that makes so many calls; give the instructions of all of it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    done = subprocess.run(
        [*under, sys.executable, "-m", "benchmarks.instructions", side, work, str(number), str(folder)],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    found = TOTAL.search(done.stderr)
    if done.returncode or (under and not found):
        raise NotHere(f"{work}, {side}: {' '.join(under[:2])} ended with {done.returncode}: {done.stderr[-1000:]}")
    return int(found[1].replace(",", "")) if found else 0


@contextmanager
def _work(side: str, work: str, folder: Path) -> Iterator[tuple[Call, int]]:
    """Give what does it, and how many calls that is at once."""
    if work == CREW:
        with crew(side, folder, "NORMAL", threads=THREADS, each=COUNTED[CREW] // THREADS) as made:
            yield made, COUNTED[CREW]
    else:
        with calls(side, folder, "NORMAL") as made_of:
            yield made_of[work], 1


def main() -> None:
    """Make the calls that are to be counted."""
    side, work, number, folder = sys.argv[1:]
    with _work(side, work, Path(folder)) as (call, at_once):
        for _ in range(max(1, int(number) // at_once)):
            call()


if __name__ == "__main__":
    main()
