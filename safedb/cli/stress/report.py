"""The table for people, and the JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from safedb.cli.stress.machine import Machine
from safedb.cli.stress.options import Options
from safedb.cli.stress.progress import duration
from safedb.cli.stress.summary import Fairness, Summary
from safedb.cli.stress.target import BY_HAND, SAFEDB
from safedb.cli.stress.words import Words
from safedb.targets import masked

FORMAT = 1  # of the JSON; rises when a name changes its meaning


@dataclass(slots=True)
class Report:
    """Be the result of a run: what was asked, where it ran, what each side did, and the verdict over safedb."""

    options: Options
    words: Words
    machine: Machine
    date: str
    sides: list[Summary]
    problems: list[str]
    excused: str | None
    interrupted: bool

    def as_dict(self) -> dict[str, object]:
        """Return all of it by name, for JSON; times in seconds, sizes in bytes."""
        options = asdict(self.options)
        options["url"] = None if self.options.url is None else masked(self.options.url)
        options["source"] = None if self.options.source is None else str(self.options.source)
        options["plot"] = None if self.options.plot is None else str(self.options.plot)
        return {
            "format": FORMAT,
            "date": self.date,
            "options": options,
            "machine": self.machine.as_dict(),
            "interrupted": self.interrupted,
            "sides": {side.side.replace(" ", "_"): side.as_dict(self.words) for side in self.sides},
            "problems": self.problems,
            "excused": self.excused,
        }


def write_json(report: Report, where: str) -> None:
    """Write the report as JSON to a file, or to standard output for ``-``."""
    text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        Path(where).write_text(text, encoding="utf-8")


def show(report: Report, console: Console) -> None:
    """Print the table, what the numbers were measured on, and the verdict."""
    console.print(title(report.options), markup=False, highlight=False, style="bold")
    if report.sides:
        console.print(table(report))
    for line in remarks(report):
        console.print(line, markup=False, highlight=False)
    for line in verdict(report):
        console.print(line, markup=False, highlight=False, style="bold red" if report.problems else "bold green")


def table(report: Report) -> Table:
    """Return both sides beside each other; what must not be is red."""
    made = Table()
    made.add_column("", no_wrap=True)
    for side in report.sides:
        made.add_column(side.side, justify="right", no_wrap=True)
    for section in _SECTIONS:
        for label, read, bad, *only in section:
            if report.words.dialect in (only or [report.words.dialect]):
                shown = label.format(locked=report.words.locked)
                made.add_row(shown, *(_cell(read(side), bad=bad) for side in report.sides))
        made.add_section()
    return made


def remarks(report: Report) -> Iterator[str]:
    """Give what a reader needs to judge the numbers."""
    options = report.options
    yield f"Measured on {report.machine}, {report.date}; --seed {options.seed} repeats the same work."
    yield from (f"Note: {note}" for note in report.machine.storage.notes)
    for side in report.sides:
        if side.held is not None:
            held = f"{report.words.held} for {duration(side.held.held)}, after {duration(side.held.waited)} of trying"
            yield f"{side.side}: another program {held}."
        again = [f"{count:,} times for {cause}" for cause, count in side.retries.items()]
        if again:
            yield f"{side.side}: ran transactions again, unseen by who called: {', '.join(again)}."
        for text, count in side.texts:
            yield f"{side.side}: {count:,} times {text}"
        for example in side.findings.examples[: 1 if side.side == BY_HAND else None]:
            yield f"{side.side}: {example}"
    if _survivors(report.sides):
        yield f"How to read it: {report.words.shorter}"


def verdict(report: Report) -> Iterator[str]:
    """Give the last lines: whether safedb kept its promises."""
    if report.interrupted:
        until = "these are the numbers until then" if report.sides else "nothing was measured yet"
        yield f"Interrupted: {until}."
    safedb = [side for side in report.sides if side.side == SAFEDB]
    if report.excused:
        yield report.excused
    if report.problems:
        yield "safedb broke its promises:"
        yield from (f"  - {problem}" for problem in report.problems)
    elif safedb:
        yield f"safedb: each of {safedb[0].findings.checked:,} acknowledged writes is {report.words.kept}"


def title(options: Options) -> str:
    """Return what was run, in one line."""
    processes = f"{options.processes} processes, each with " if options.processes > 1 else ""
    trouble = [
        f"the lock held for {options.lock_holder:g} s" if options.lock_holder else "",
        f"a reader open for {options.slow_reader:g} s" if options.slow_reader else "",
        _number(options.cpu_threads, "computing thread") if options.cpu_threads else "",
    ]
    beside = "".join(f", {case}" for case in trouble if case)
    level = "" if options.synchronous is None else f", synchronous={options.synchronous}"
    return (
        f"{processes}{_number(options.threads, 'writer')}, {_number(options.readers, 'reader')},"
        f" {options.seconds:g} s a side{level}{beside}"
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _survivors(sides: list[Summary]) -> bool:
    if len(sides) < 2:
        return False
    usual = [side.latency.percentile(50) for side in sides]
    return usual[0] is not None and usual[1] is not None and usual[0] < usual[1]


def _cell(text: str, *, bad: bool) -> str:
    return f"[bold red]{text}[/]" if bad and text not in {"0", "ok", "-"} else text


def _rate(read: Callable[[Summary], float]) -> Callable[[Summary], str]:
    return lambda side: f"{read(side):,.0f}"


def _count(read: Callable[[Summary], int]) -> Callable[[Summary], str]:
    return lambda side: f"{read(side):,}"


def _time(read: Callable[[Summary], float | None]) -> Callable[[Summary], str]:
    return lambda side: duration(read(side))


def _even(read: Callable[[Summary], Fairness]) -> Callable[[Summary], str]:
    def text(side: Summary) -> str:
        fairness = read(side)
        if fairness.jain is None or fairness.slowest_to_fastest is None:
            return "-"
        return f"{fairness.jain:.3f} / {fairness.slowest_to_fastest:.2f}"

    return text


def _money(side: Summary) -> str:
    return f"{side.findings.missing_money:+,}" if side.findings.missing_money else "0"


def _integrity(side: Summary) -> str:
    return f"{len(side.findings.integrity):,} findings" if side.findings.integrity else "ok"


def _megabytes(name: str) -> Callable[[Summary], str]:
    return lambda side: f"{side.wal[name] / 1e6:,.1f}" if name in side.wal else "-"


# Label, the side's cell, whether anything but nought is bad, and the only dialect that has such a thing.
_Line = tuple[str, Callable[[Summary], str], bool] | tuple[str, Callable[[Summary], str], bool, str]
_SECTIONS: tuple[tuple[_Line, ...], ...] = (
    (
        ("acknowledged writes/s", _rate(lambda side: side.writes), False),
        ("  of them transfers/s", _rate(lambda side: side.transfers), False),
        ("reads/s (readers pause 1 ms between two)", _rate(lambda side: side.reads), False),
    ),
    (
        ("a write took: p50 (half took less)", _time(lambda side: side.latency.percentile(50)), False),
        ("  p99 (1 in 100 took more)", _time(lambda side: side.latency.percentile(99)), False),
        ("  p99.9 (1 in 1,000 took more)", _time(lambda side: side.latency.percentile(99.9)), False),
        ("  max (the worst)", _time(lambda side: side.latency.maximum), False),
        ("longest wait that ended in an error", _time(lambda side: side.longest_error), False),
        ("a read took: p99 (1 in 100 took more)", _time(lambda side: side.read_latency.percentile(99)), False),
        ("  max (the worst)", _time(lambda side: side.read_latency.maximum), False),
    ),
    (
        ("threads: Jain's index / slowest to fastest", _even(lambda side: side.threads), False),
        ("processes: the same", _even(lambda side: side.processes), False),
        ("longest wait for another process", _time(lambda side: side.longest_process_wait), False, "sqlite"),
        ("largest WAL file, MB", _megabytes("largest_wal"), False, "sqlite"),
        ("WAL that the server wrote meanwhile, MB", _megabytes("wal_written"), False, "postgresql"),
        ("connections to the server", _count(lambda side: side.connections), False, "postgresql"),
    ),
    (
        ("{locked}", _count(lambda side: side.locked), True),
        ("deadlocks and other conflicts", _count(lambda side: side.conflicts), True, "postgresql"),
        ("other errors", _count(lambda side: side.other + side.unknown + side.read_errors), True),
    ),
    (
        ("acknowledged writes checked", _count(lambda side: side.findings.checked), False),
        ("  lost", _count(lambda side: side.findings.lost), True),
        ("  doubled", _count(lambda side: side.findings.doubled), True),
        ("  damaged, or from nowhere", _count(lambda side: side.findings.damaged + side.findings.stray), True),
        ("there although an error was reported", _count(lambda side: side.findings.applied), True),
        ("lost updates of accounts", _count(lambda side: side.findings.lost_updates), True),
        ("  accounts with a wrong balance", _count(lambda side: side.findings.wrong_accounts), True),
        ("  money made (+) or lost (-) in all", _money, True),
        ("readings of all accounts that did not add up", _count(lambda side: side.wrong_totals), True),
        ("integrity_check", _integrity, True, "sqlite"),
        ("processes or threads that failed", _count(lambda side: len(side.broken)), True),
    ),
)
