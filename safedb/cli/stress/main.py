"""The whole of a run: prepare, both sides one after the other, check, report, clean up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

from safedb.cli.stress import machine, report, source, target, verify
from safedb.cli.stress.crew import Orders
from safedb.cli.stress.interrupts import Interrupts
from safedb.cli.stress.options import Options, UsageError
from safedb.cli.stress.phase import Phase
from safedb.cli.stress.progress import Follower, follower, now
from safedb.cli.stress.report import Report
from safedb.cli.stress.source import SourceError
from safedb.cli.stress.summary import Summary, summarise
from safedb.cli.stress.target import BY_HAND, SAFEDB, TargetError, Where
from safedb.cli.stress.workload import Place
from safedb.errors import Error

_MARGIN = 1.0  # seconds: a wait behind a lock is longer than the lock is held


class Run:
    """Be one run of `safedb stress`. The report goes to ``output``, or to ``errors`` where that is for JSON."""

    def __init__(self, options: Options, output: TextIO, errors: TextIO) -> None:
        self._options = options
        self._report = Console(file=errors if options.json == "-" else output)
        self._live = Console(file=errors)
        if not self._report.is_terminal:
            self._report = Console(file=self._report.file, width=10_000)  # a file has no edge to wrap at

    def main(self) -> int:
        """Run, and return the exit code; what was made is removed, whatever happens."""
        # Warnings of safedb and of the driver's pool would tear the live line; what they tell is in the report.
        for name in ("safedb", "psycopg"):
            logging.getLogger(name).addHandler(logging.NullHandler())
        with Interrupts() as interrupts:
            where = self._where()
            try:
                return self._run(where, interrupts)
            except KeyboardInterrupt:
                self._say("Interrupted twice: no report.")
                return interrupts.exit_code
            finally:
                interrupts.settle()
                self._clean(where)

    def _where(self) -> Where:
        """Choose the database; whatever is wrong with the target or the source is said before anything is made."""
        try:
            source.load(self._options.source, self._options.seed, most=1)
            where = target.choose(self._options.url)
            self._options = dataclasses.replace(self._options, synchronous=where.synchronous(self._options.synchronous))
        except (TargetError, SourceError, Error) as error:
            raise UsageError(str(error)) from error
        return where

    def _run(self, where: Where, interrupts: Interrupts) -> int:
        failures: tuple[type[Exception], ...] = (Error, OSError, *where.errors)
        try:
            found = machine.examine(where.storage())
            date = now()
            sides = list(self._sides(where, interrupts))
            excuse = self._excuse(sides, where)
        except failures as error:
            raise UsageError(f"cannot run in {str(where)!r}: {error}") from error
        problems = [problem for side in sides if side.side == SAFEDB for problem in side.problems(bool(excuse))]
        words = target.engine(where.dialect).words
        self._publish(Report(self._options, words, found, date, sides, problems, excuse, bool(interrupts.noticed)))
        return interrupts.exit_code if interrupts.noticed else int(bool(problems))

    def _sides(self, where: Where, interrupts: Interrupts) -> Iterator[Summary]:
        for side in [BY_HAND, SAFEDB] if self._options.by_hand else [SAFEDB]:
            if interrupts.noticed:
                return
            with follower(self._live, side, self._options.seconds) as shown:
                summary = self._side(side, where, interrupts, shown)
            if not (interrupts.noticed and summary.seconds == 0):  # interrupted before it began
                yield summary
            if not (self._options.keep and side == SAFEDB):
                where.clear()

    def _side(self, side: str, where: Where, interrupts: Interrupts, shown: Follower) -> Summary:
        place = where.place(side, self._options.synchronous)
        shown.say("starting")
        where.prepare(side, place)
        orders = [self._orders(side, place, process) for process in range(self._options.processes)]
        result = Phase(orders, self._options.lock_holder, interrupts, shown.follow).run()
        shown.say(f"checking every acknowledged write against the {target.engine(where.dialect).words.store}")
        writers = [tally for process in result.processes for tally in process.writers]
        known = {tally.worker for tally in writers}
        absent = set(range(self._options.processes * self._options.threads)) - known
        return summarise(result, verify.verify(place, writers, absent))

    def _orders(self, side: str, place: Place, process: int) -> Orders:
        options = self._options
        return Orders(
            side=side,
            place=place,
            process=process,
            threads=options.threads,
            readers=options.readers,
            cpu_threads=options.cpu_threads,
            slow_reader=options.slow_reader if process == 0 else 0.0,
            seconds=options.seconds,
            seed=options.seed,
            source=options.source,
        )

    def _excuse(self, sides: list[Summary], where: Where) -> str | None:
        """Say why writes that safedb gave up are no broken promise: the lock was held for longer than its deadline."""
        given_up = sum(side.locked + side.conflicts for side in sides if side.side == SAFEDB)
        deadline = target.engine(where.dialect).deadline(where.place(SAFEDB, self._options.synchronous))
        if not given_up or self._options.lock_holder + _MARGIN < deadline:
            return None
        return (
            f"safedb: {given_up:,} writes gave up with an error: another program held the lock for"
            f" {self._options.lock_holder:g} s, and a call waits no longer than {deadline:g} s, as promised."
        )

    def _publish(self, result: Report) -> None:
        if self._options.json != "-":
            report.show(result, self._report)
        try:
            if self._options.json is not None:
                report.write_json(result, self._options.json)
            if self._options.plot is not None:
                from safedb.cli.stress import picture

                picture.draw(result, self._options.plot)
        except OSError as error:
            raise UsageError(f"cannot write the result: {error}") from error
        for name, file in (("JSON", self._options.json), ("picture", self._options.plot)):
            if file is not None and file != "-":
                self._say(f"The {name} is in {file}")

    def _clean(self, where: Where) -> None:
        if self._options.keep:
            self._say(where.kept)
            return
        failures: tuple[type[Exception], ...] = (OSError, *where.errors)
        try:
            where.remove()
        except failures as error:
            self._say(f"Could not remove everything: {where}: {error}")

    def _say(self, text: str) -> None:
        self._live.print(text, markup=False, highlight=False, soft_wrap=True)
