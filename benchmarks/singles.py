"""One thread: a point read and a single write, each beside the same by hand."""

from __future__ import annotations

import itertools
import random
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Paired, paired
from benchmarks.rivals import INSERT, PAYLOAD, Synchronous, Wrong, open_raw, open_safe

ROWS = 1000
POINT_READ = "SELECT v FROM t WHERE id = ?"


@dataclass(frozen=True, slots=True)
class Singles:
    """Be what one thread took, by work."""

    read: Paired
    write: dict[str, Paired]


def run_singles(folder: Path, *, rounds: int) -> Singles:
    """Measure all of it in a folder of its own; the rows are counted afterwards."""
    with tempfile.TemporaryDirectory(prefix="singles-", dir=folder) as name:
        place = Path(name)
        return Singles(_read(place, rounds), {mode: _write(place, mode, rounds) for mode in ("FULL", "NORMAL")})


def _read(folder: Path, rounds: int) -> Paired:
    path = folder / "read.db"
    with closing(open_safe(path, "FULL")) as db, closing(open_raw(path, "FULL")) as raw:
        db.executemany(INSERT, [(0, number, f"{number} {PAYLOAD}") for number in range(ROWS)])
        db.checkpoint()
        keys = [random.Random(4).randrange(1, ROWS + 1) for _ in range(997)]
        ours, theirs = itertools.cycle(keys), itertools.cycle(keys)  # both sides read the same rows
        for key in keys:
            if db.execute(POINT_READ, (key,)).fetchall() != [(f"{key - 1} {PAYLOAD}",)]:
                raise Wrong(f"row {key} of {path}")
        return paired(
            lambda: raw.execute(POINT_READ, (next(theirs),)).fetchall(),
            lambda: db.execute(POINT_READ, (next(ours),)).fetchall(),
            calls=500,
            rounds=rounds,
        )


def _write(folder: Path, synchronous: Synchronous, rounds: int) -> Paired:
    mine, theirs = folder / f"safedb-{synchronous}.db", folder / f"raw-{synchronous}.db"
    numbers = itertools.count(), itertools.count()
    with closing(open_safe(mine, synchronous)) as db, closing(open_raw(theirs, synchronous)) as raw:

        def by_hand() -> None:
            raw.execute("BEGIN IMMEDIATE")
            raw.execute(INSERT, (0, next(numbers[0]), PAYLOAD))
            raw.execute("COMMIT")

        def by_safedb() -> None:
            db.execute(INSERT, (0, next(numbers[1]), PAYLOAD))

        times = paired(by_hand, by_safedb, calls=100, rounds=rounds)
        for who, count in (
            ("by hand", raw.execute("SELECT count(*) FROM t")),
            ("safedb", db.execute("SELECT count(*) FROM t")),
        ):
            written = 100 * (rounds + 1)
            if count.fetchone() != (written,):
                raise Wrong(f"single writes {who}: {written} were acknowledged")
        return times
