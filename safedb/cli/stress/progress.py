"""What is shown while a side runs: a bar and a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from safedb.cli.stress.tally import Tick

_PLAIN_LINES = 5  # a run gives about so many lines when nobody watches it live


class Follower(Protocol):
    """Show how a side is getting on; a context manager that lasts as long as the side's run."""

    def say(self, doing: str) -> None:
        """Tell what is being done."""

    def follow(self, elapsed: float, tick: Tick) -> None:
        """Tell how far it has come, after so many seconds."""

    def __enter__(self) -> Follower: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Rate:
    """Turn growing counts into a rate over the last second or so."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = [(0.0, 0)]

    def at(self, elapsed: float, count: int) -> float:
        """Return counts per second over the last second."""
        self._seen.append((elapsed, count))
        while len(self._seen) > 2 and self._seen[1][0] < elapsed - 1:
            del self._seen[0]
        before, then = self._seen[0]
        return (count - then) / (elapsed - before) if elapsed > before else 0.0


class Live:
    """Draw a bar and a live line with rich."""

    def __init__(self, console: Console, side: str, seconds: float) -> None:
        self._seconds, self._rate = seconds, _Rate()
        name, line = TextColumn("{task.description:<7}"), TextColumn("{task.fields[line]}")
        self._progress = Progress(SpinnerColumn(), name, BarColumn(24), line, console=console)
        self._task: TaskID = self._progress.add_task(side, total=seconds, line="")

    def say(self, doing: str) -> None:
        """Show what is being done in the place of the line."""
        self._progress.update(self._task, line=doing)

    def follow(self, elapsed: float, tick: Tick) -> None:
        """Move the bar and write the line."""
        line = text(elapsed, self._seconds, self._rate.at(elapsed, tick.writes), tick)
        self._progress.update(self._task, completed=min(elapsed, self._seconds), line=line)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Plain:
    """Write a line now and then."""

    def __init__(self, console: Console, side: str, seconds: float) -> None:
        self._console, self._side, self._seconds, self._rate = console, side, seconds, _Rate()
        self._next = self._step = max(seconds / _PLAIN_LINES, 1.0)

    def say(self, doing: str) -> None:
        """Write what is being done."""
        self._write(doing)

    def follow(self, elapsed: float, tick: Tick) -> None:
        """Write how far it has come, if the last line is long enough ago."""
        rate = self._rate.at(elapsed, tick.writes)
        if elapsed >= self._next:
            self._next = elapsed + self._step
            self._write(text(elapsed, self._seconds, rate, tick))

    def _write(self, line: str) -> None:
        self._console.print(f"{self._side}: {line}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines as they are."""


def follower(console: Console, side: str, seconds: float) -> Follower:
    """Return what suits the place the words go to."""
    return Live(console, side, seconds) if console.is_terminal else Plain(console, side, seconds)


def text(elapsed: float, seconds: float, rate: float, tick: Tick) -> str:
    """Return the line: time, rate, the worst wait so far, errors, and what keeps it when the time is up."""
    errors = f", errors: {tick.errors:,}" if tick.errors else ""
    worst = f"worst wait {duration(tick.longest / 1e9)}"
    late = ", waiting for writes under way" if elapsed > seconds + 0.5 else ""
    return f"{min(elapsed, seconds):.0f} of {seconds:g} s, {rate:,.0f} writes/s, {worst}{errors}{late}"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it, with three digits."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.9995:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds * 1e6)} µs"


def _digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def now() -> str:
    """Return the local time for the report."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
