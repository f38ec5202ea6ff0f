"""Races of several rivals in turn, over and over; as a module, one such on a disk of its own kind (see `slowflush`)."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import flush_time
from benchmarks.measure import Race, Spread, race
from benchmarks.rivals import BusyTimeout, How, OneLock, Rival, Safe, Synchronous

BY_HAND = (BusyTimeout.name, OneLock.name)


@dataclass(frozen=True, slots=True)
class Heats:
    """Be the outcome: by rival, its races in their order; ``flush`` is what a flush took meanwhile, in seconds."""

    threads: int
    synchronous: str
    flush: float
    races: dict[str, list[Race]] = field(default_factory=dict)

    def ratio(self, name: str, rivals: Sequence[str] = BY_HAND) -> list[float]:
        """Give, heat by heat, the rate of ``name`` as a multiple of the best of ``rivals``."""
        best = [max(race.rate for race in heat) for heat in zip(*(self.races[rival] for rival in rivals), strict=True)]
        return [race.rate / rate for race, rate in zip(self.races[name], best, strict=True)]

    def spread(self, name: str, figure: str) -> Spread:
        """Sum up one figure of a rival's races."""
        return Spread.of([getattr(race, figure) for race in self.races[name]])

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Any) -> Heats:
        """Read what `to_json` gave."""
        races = {name: [Race(**one) for one in many] for name, many in plain["races"].items()}
        return cls(plain["threads"], plain["synchronous"], plain["flush"], races)


def run_heats(
    folder: Path,
    *,
    threads: int,
    seconds: float,
    repeats: int,
    hows: Sequence[How] = ("execute",),
    synchronous: Synchronous = "FULL",
) -> Heats:
    """Let each rival write alone for ``seconds``, one after the other, ``repeats`` times; count all rows at the end.

    Every second heat runs in the opposite order. A short one with one thread, which lets the WAL grow, does not count.
    """
    with tempfile.TemporaryDirectory(prefix="races-", dir=folder) as name:
        place = Path(name)
        rivals: list[Rival] = [BusyTimeout(place / "busy.db", synchronous), OneLock(place / "lock.db", synchronous)]
        rivals += [Safe(place / f"{how}.db", synchronous, how) for how in hows]
        heats = Heats(threads, synchronous, flush_time(place), {rival.name: [] for rival in rivals})
        for rival in rivals:
            race(rival, threads=1, seconds=0.2)
        for number in range(repeats):
            for rival in rivals if number % 2 else reversed(rivals):
                heats.races[rival.name].append(race(rival, threads=threads, seconds=seconds))
        for rival in rivals:
            rival.close()
            rival.verify()
        return heats


def main() -> None:
    """Run heats and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    given = parser.parse_args()
    logging.getLogger("safedb").setLevel(logging.ERROR)
    heats = run_heats(given.folder, threads=given.threads, seconds=given.seconds, repeats=given.repeats)
    json.dump(heats.to_json(), sys.stdout)


if __name__ == "__main__":
    main()
