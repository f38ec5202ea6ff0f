"""What `import safedb` costs a program that has imported `sqlite3`, and what it brings in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

UNWANTED = ("tenacity", "psycopg", "psycopg_pool", "rich", "typer", "click")
ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import json, sys, time
a = time.perf_counter()
import sqlite3
b = time.perf_counter()
before = set(sys.modules)
c = time.perf_counter()
import safedb
d = time.perf_counter()
print(json.dumps([b - a, d - c, sorted(set(sys.modules) - before)]))
"""


def cost(folder: Path, repeats: int) -> tuple[list[float], list[str], list[str]]:
    """Import in ``repeats`` fresh interpreters, from cached bytecode.

    Give the seconds that safedb took on top of sqlite3, the modules it brought, and those that it must not bring.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")  # ours alone, and filled by the first run
    times: list[float] = []
    modules: list[str] = []
    for _ in range(repeats + 1):
        out = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        _, ours, modules = json.loads(out.stdout)
        times.append(ours)
    unwanted = [name for name in modules if name.partition(".")[0] in UNWANTED]
    return times[1:], modules, unwanted
