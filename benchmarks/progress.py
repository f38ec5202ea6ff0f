"""How far a comparison is, and how long it will take still."""

from __future__ import annotations

import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.case import Case
from benchmarks.markup import TIMES
from benchmarks.plan import Step, estimate


class Progress:
    """Tell on standard error what runs, and how long all of it will take still.

    What a case takes is a guess, times what such cases have taken so far as a part of the guess.
    """

    def __init__(self, every: Sequence[Step], beyond: float = 0.0) -> None:
        self._beyond = beyond
        self.expect(every)
        self._began = time.monotonic()
        self._guessed: dict[str, float] = defaultdict(float)
        self._taken: dict[str, float] = defaultdict(float)
        self._live = sys.stderr.isatty()

    def expect(self, every: Sequence[Step]) -> None:
        """Take this for all that is to be done."""
        self._left, self._all = [step.case for step in every], len(every)

    @contextmanager
    def case(self, case: Case) -> Iterator[None]:
        """Tell that a case runs, and learn from the time it takes."""
        number = self._all - len(self._left) + 1
        self.say(f"{number}/{self._all} {tell(case)}")
        began = time.monotonic()
        yield
        self._left.pop(0)
        for key in (case.scenario, ""):
            self._guessed[key] += estimate(case)
            self._taken[key] += time.monotonic() - began

    def say(self, text: str) -> None:
        """Show one line with the time gone and the time left; a terminal keeps only the last one."""
        shown = f"{text}, {clock(time.monotonic() - self._began)} gone, {clock(self.seconds_left)} left"
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a longer line would not be overwritten
            shown = f"\r{shown[-width:]}\x1b[K"
        print(shown, end="" if self._live else "\n", file=sys.stderr, flush=True)

    @property
    def seconds_left(self) -> float:
        """Guess how long it will still take."""
        return self._beyond + sum(estimate(case) * self._pace(case.scenario) for case in self._left)

    def _pace(self, scenario: str) -> float:
        key = scenario if scenario in self._guessed else ""
        return self._taken[key] / self._guessed[key] if self._guessed[key] else 1.0

    def end(self) -> None:
        """Let what is printed next begin a line of its own."""
        if self._live:
            print(file=sys.stderr)


def tell(case: Case) -> str:
    """Describe a case in a line."""
    parts = [f"{case.scenario}: {case.peer}", case.work]
    threads = f"{case.threads} thread{'s' if case.threads > 1 else ''}"
    parts.append(threads if case.processes == 1 else f"{case.processes} {TIMES} {threads}")
    parts += [case.synchronous] if case.synchronous != "FULL" else []
    parts += [f"flush +{case.flush * 1e3:g} ms"] if case.flush else []
    parts += [f"{case.rows:,} rows"] if case.rows != 1000 else []
    parts += [f"{case.rate:g}/s"] if case.rate is not None else []
    parts += [f"switch {case.switch * 1e3:g} ms"] if case.switch != 0.005 else []
    parts += [case.beside] if case.beside not in {"", case.scenario} else []
    parts += [case.scheduler] if case.scheduler else []
    return " ".join(parts)


def clock(seconds: float) -> str:
    """Write minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
