"""Fixtures of the pytest-benchmark files: a folder on the disk that is meant, and a crew of threads."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.rivals import Rival, Write

PATIENCE = 600.0  # seconds until a benchmark that hangs is given up


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder inside the current one: pytest's own often lies in memory."""
    logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
    with tempfile.TemporaryDirectory(prefix="safedb-bench-", dir=Path()) as name:
        yield Path(name)


class Crew:
    """Let threads that are there already write ``each`` rows apiece, as often as it is called."""

    def __init__(self, rival: Rival, threads: int, each: int) -> None:
        self._rival, self._each = rival, each
        self._begin, self._end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        self._over = False
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def __call__(self) -> None:
        """Write, and wait until all are done."""
        self._begin.wait(PATIENCE)
        self._end.wait(PATIENCE)

    def dismiss(self) -> None:
        """Let the threads go."""
        self._over = True
        self._begin.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _run(self, number: int) -> None:
        write = self._rival.writer()
        self._begin.wait()
        while not self._over:
            try:
                self._write(write, number)
            except BaseException:
                self._end.abort()  # else the others would wait for this thread
                raise
            self._end.wait()
            self._begin.wait()
        self._rival.rest()

    def _write(self, write: Write, number: int) -> None:
        acknowledged = self._rival.acknowledged
        for _ in range(self._each):
            write(number, acknowledged[number])
            acknowledged[number] += 1


@pytest.fixture
def crew() -> Iterator[Callable[[Rival, int, int], Crew]]:
    """Give what makes a crew; afterwards the rows are counted."""
    made: list[tuple[Rival, Crew]] = []

    def make(rival: Rival, threads: int, each: int) -> Crew:
        made.append((rival, Crew(rival, threads, each)))
        return made[-1][1]

    yield make
    for rival, one in made:
        one.dismiss()
        rival.close()
        rival.verify()
