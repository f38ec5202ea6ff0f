"""Memory: what `iterate` needs for many rows, in a process of its own that does nothing else.

    python -m benchmarks.memory [--rows N] [--folder DIR] [--only sqlite|postgresql] [URL]

The budget is 5 million rows under 100 MB on both engines, the interpreter and the driver included. It needs some
minutes and 1.5 GB of disk: for SQLite in ``--folder`` (the current one, if it is not given), for PostgreSQL where the
server has its data (see `benchmarks.budget_postgres` for the URL).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks.peak import peak
from safedb.sqlite.driver import sqlite3

ROOT = Path(__file__).resolve().parent.parent
ROWS = 5_000_000
LIMIT = 100.0  # MB
QUERY = "SELECT id, v FROM numbers ORDER BY id"
SCHEMA = "CREATE TABLE numbers (id BIGINT PRIMARY KEY, v TEXT NOT NULL)"
FILL = {
    "sqlite": "INSERT INTO numbers WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {rows})"
    " SELECT id, id || ' ' || printf('%.*c', 100, 'x') FROM n",
    "postgresql": "INSERT INTO numbers SELECT n, n || ' ' || repeat('x', 100) FROM generate_series(1, {rows}) AS n",
}


class Wrong(Exception):
    """Say that not every row came once, in order and whole: no figure of this run counts."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Be what a process needed at most, in MB (10⁶ bytes): when it had connected, and when all rows had come."""

    before: float
    after: float
    rows: int
    seconds: float


def measure(target: str, rows: int, environment: Mapping[str, str] | None = None) -> Peak:
    """Read all ``rows`` of the table that `fill` has made, in a new process."""
    child = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.memory import stream; stream({target!r}, {rows})"],
        cwd=ROOT,
        env=os.environ if environment is None else environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Peak(**json.loads(child.stdout))


def fill_sqlite(path: Path, rows: int) -> str:
    """Make the table in a new file; give its target."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(SCHEMA)
        connection.execute(FILL["sqlite"].format(rows=rows))
    return f"sqlite:///{quote(str(path))}"


def fill_postgres(url: str, rows: int) -> str:
    """Make the table in the schema of ``url``; give its target."""
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute(SCHEMA)
        connection.execute(FILL["postgresql"].format(rows=rows).encode())
    return url


def stream(target: str, rows: int) -> None:
    """Read all rows and print what it took: the part of the child."""
    import time

    import safedb

    with safedb.connect(target, read_only=True) as db, db.snapshot() as snap:
        snap.execute("SELECT id, v FROM numbers WHERE id = ?", (1,)).one()  # what any read needs at first
        before, began, expected = peak(), time.perf_counter(), 0
        for number, text in snap.iterate(QUERY):
            expected += 1
            if number != expected or len(text) != len(str(number)) + 101:
                raise Wrong(f"row {expected} came as {number}")
        if expected != rows:
            raise Wrong(f"{expected} rows came instead of {rows}")
        taken = time.perf_counter() - began
    print(json.dumps({"before": before / 1e6, "after": peak() / 1e6, "rows": expected, "seconds": taken}))


def line(engine: str, found: Peak) -> str:
    """Write a line of the table."""
    met = "yes" if found.after <= LIMIT else "**no**"
    grown = found.after - found.before
    pace = found.rows / found.seconds
    return (
        f"| {engine} | {found.rows:,} | ≤ {LIMIT:g} MB | {found.after:.1f} MB | {grown:.1f} MB | {pace:,.0f} | {met} |"
    )


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", type=Path, default=Path(), help="where SQLite's file is made (default: here)")
    parser.add_argument("--only", choices=sorted(FILL))
    parser.add_argument("url", nargs="?", metavar="URL", help="a server that may be used (default: start one)")
    given = parser.parse_args()
    lines = []
    if given.only != "postgresql":
        with tempfile.TemporaryDirectory(prefix="safedb-memory-", dir=given.folder) as folder:
            target = fill_sqlite(Path(folder).resolve() / "numbers.db", given.rows)
            lines.append(line("SQLite", measure(target, given.rows)))
    if given.only != "sqlite":
        from benchmarks.pgsides import serving

        with serving(given.url) as url:
            lines.append(line("PostgreSQL", measure(fill_postgres(url, given.rows), given.rows)))
    print("| engine | rows | budget | peak of the process | of it while reading | rows a second | met? |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
