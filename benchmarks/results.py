"""All that one run of the comparison gave, as it stands in its file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import Run

RAW = "raw"  # one side of each pair: `sqlite3` by hand
PART = 0.05  # of the ratios of a pair at either end that is left out: batches that the system stopped


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder for results, and keep out a second run: it would write the same files, and disturb the first.

    Raises OSError where the folder cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"nothing can be written to {folder}")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another run writes its results to {folder}") from None
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Pair:
    """Be one work done in turn by several, in batches: by name, the seconds of a call, batch by batch.

    With several threads it is the time of the whole batch, divided by the calls of all of them.
    """

    work: str
    threads: int
    synchronous: str
    times: dict[str, list[float]]

    def ratios(self, who: str, whom: str) -> Sequence[float]:
        """Give the ratios of two sides' times, round by round, in order of size, without the outermost `PART`."""
        found = sorted(a / b for a, b in zip(self.times[who], self.times[whom], strict=True))
        cut = int(len(found) * PART)
        return found[cut : len(found) - cut]


@dataclass(slots=True)
class Results:
    """Be everything: the form, when it was begun and with what command, on what machine, and what came of it.

    ``peers``: by name, what is known of each. ``imports``: the seconds that `import safedb` takes, and what it brings.
    ``notes``: what was left out and why. ``finished``: False as long as there is more to come.
    """

    form: str
    began: str
    command: str
    machine: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    imports: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finished: bool = False

    def save(self, path: Path) -> None:
        """Write it, so that a whole file stands there at any moment."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain |= {"runs": [run.to_json() for run in self.runs], "pairs": [asdict(pair) for pair in self.pairs]}
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(plain, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain["runs"] = [Run.from_json(run) for run in plain["runs"]]
        plain["pairs"] = [Pair(**pair) for pair in plain["pairs"]]
        return cls(**plain)
