"""The options of `safedb stress`: their help, and what is refused before anything is started."""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PICTURES = (".svg", ".png")

DESCRIPTION = """\
Find out what happens on your own disk under load: many threads write rows made
from real files and move money between accounts while others read; first the
way people write it by hand (sqlite3, a connection for each thread, timeout
5 s), then with safedb. Afterwards every acknowledged write is checked against
the file. With a postgresql:// URL the same is done there; by hand it is then
one psycopg_pool.ConnectionPool(URL) for each process, at its defaults."""

EPILOG = """\
exit codes:
  0    safedb kept every promise
  1    safedb broke one, or one of its processes failed
  2    the command cannot be run as it was given
  130  ended by Ctrl-C: what was measured until then is reported
What the by-hand side loses is shown, and does not change the exit code.
Whatever ends it, the command removes what it has made."""


class UsageError(Exception):
    """Refuse an option; the text names it and says what would do."""


@dataclass(frozen=True, slots=True)
class Options:
    """Be what was asked for. Times are seconds."""

    url: str | None = field(repr=False)  # may hold a password
    threads: int
    processes: int
    readers: int
    seconds: float
    synchronous: str | None
    seed: int
    source: Path | None
    lock_holder: float
    slow_reader: float
    cpu_threads: int
    json: str | None
    plot: Path | None
    keep: bool
    by_hand: bool


def add_to(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    url = (
        "database to use, as sqlite:///FILE or postgresql://USER@HOST/NAME; tables of its own are made there and"
        " dropped again"
    )
    add("url", nargs="?", metavar="URL", help=f"{url} (default: a fresh one in the current folder, removed at the end)")
    load = parser.add_argument_group("the load")
    add = load.add_argument
    add("--threads", type=_whole(1, 1_000), default=16, metavar="N", help="writer threads a process (default: 16)")
    add("--processes", type=_whole(1, 64), default=1, metavar="N", help="processes (default: 1)")
    add("--readers", type=_whole(0, 1_000), default=2, metavar="N", help="reader threads a process (default: 2)")
    add("--seconds", type=_seconds(86_400), default=10.0, metavar="S", help="how long each side runs (default: 10)")
    levels = ("FULL", "NORMAL")
    survives = (
        "what a write survives, on both sides: a power cut with FULL, a killed process with NORMAL (default: FULL);"
        " SQLite only"
    )
    add("--synchronous", type=str.upper, choices=levels, help=survives)
    add("--source", type=Path, metavar="DIR", help="make rows from DIR's text files (default: Python's own library)")
    add("--seed", type=int, metavar="N", help="repeat a run: the same rows and transfers (default: a new one)")
    add("--no-by-hand", action="store_true", help="run only the safedb side")
    trouble = parser.add_argument_group("the unpleasant cases")
    add = trouble.add_argument
    hold = "another program, which does not know safedb, keeps all others from writing for S seconds in the middle"
    add("--lock-holder", type=_seconds(3_600), default=0.0, metavar="S", help=hold)
    slow = "a reader keeps one state open for S seconds: SQLite's WAL cannot shrink, nor PostgreSQL's VACUUM clean up"
    add("--slow-reader", type=_seconds(3_600), default=0.0, metavar="S", help=slow)
    burn = "threads in each process that only compute, and hold Python's lock while they do"
    add("--cpu-threads", type=_whole(0, 64), default=0, metavar="N", help=burn)
    output = parser.add_argument_group("the output")
    add = output.add_argument
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as JSON to FILE (default: standard output)",
    )
    add("--plot", type=Path, metavar="FILE", help="draw how long the writes took, as .svg or .png (needs matplotlib)")
    add("--keep", action="store_true", help="keep the databases, and say where they are")


def from_arguments(arguments: argparse.Namespace) -> Options:
    """Check what argparse cannot, and return the options. Raises UsageError."""
    _check_source(arguments.source)
    _check_json(arguments.json)
    if arguments.plot is not None:
        _check_plot(arguments.plot)
    return Options(
        url=arguments.url,
        threads=arguments.threads,
        processes=arguments.processes,
        readers=arguments.readers,
        seconds=arguments.seconds,
        synchronous=arguments.synchronous,
        seed=random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed,
        source=arguments.source,
        lock_holder=arguments.lock_holder,
        slow_reader=arguments.slow_reader,
        cpu_threads=arguments.cpu_threads,
        json=arguments.json,
        plot=arguments.plot,
        keep=arguments.keep,
        by_hand=not arguments.no_by_hand,
    )


def require(modules: Sequence[str]) -> None:
    """Refuse to start if one of these optional modules is missing: better now than after the run."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; the command line needs"
            " the extra packages that come with:  pip install 'safedb[cli]'"
        )


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least:,} to {most:,}")
        return number

    return read


def _seconds(most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0.1 <= number <= most:  # also refuses NaN
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to {most:,.0f}")
        return number

    return read


def _check_source(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--source {str(folder)!r} is not a folder")


def _check_json(file: str | None) -> None:
    if file is None or file == "-":
        return
    if "://" in file:
        raise UsageError("--json took the URL for its FILE: put the URL first, or write --json=-")
    _check_folder("--json", Path(file))


def _check_plot(file: Path) -> None:
    if file.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {str(file)!r}: the name must end in {' or '.join(PICTURES)}")
    _check_folder("--plot", file)


def _check_folder(option: str, file: Path) -> None:
    if file.is_dir() or not file.absolute().parent.is_dir():
        problem = "is a folder" if file.is_dir() else "is in a folder that does not exist"
        raise UsageError(f"{option} {str(file)!r} {problem}")
