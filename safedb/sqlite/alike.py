"""INSERTs of one row and one text, run as one INSERT of many rows.

Every statement lets go of the interpreter's lock several times, and under load its thread waits for it each time (H22);
one statement does so once. Each of them changes one row or none, so the sum tells of each: where it falls short of
their number, the text is run one by one from then on.
"""

from __future__ import annotations

from itertools import takewhile
from typing import cast

from safedb.sqlite.jobs import StatementJob

FEW = 16  # rows up to which there is a text for each number of them; above, for its multiples
ALIKE = 64  # rows that are inserted at once at the most: between such runs the clock is looked at
MOST_VALUES = 900  # parameters of such a statement, within the smallest limit that SQLite is built with
TEXTS = 1024  # such statements that are remembered


class Alike:
    """Find such runs among statements, and give their texts. For whoever has the turn."""

    def __init__(self) -> None:
        self._unlike: set[str] = set()  # texts that are not run many at once any more
        self._texts: dict[tuple[str, int], str] = {}  # INSERTs of one row, as INSERTs of many

    def run_at(self, jobs: list[StatementJob], position: int) -> list[StatementJob]:
        """Take the run of one-row INSERTs of one text that begins at ``position``; else the one that stands there."""
        first = jobs[position]
        if first.row is None or first.sql in self._unlike:
            return [first]
        most = min(ALIKE, MOST_VALUES // max(len(first.values), 1))
        some = jobs[position : position + most]
        if [job.sql for job in some if job.row is not None].count(first.sql) < len(some):
            some = list(takewhile(lambda job: job.row is not None and job.sql == first.sql, some))
        count = len(some)
        return some[: count if count < FEW else count // FEW * FEW]  # so that there are few texts to prepare

    def text_of(self, job: StatementJob, rows: int) -> str:
        """Give the INSERT of one row as one of many."""
        key = job.sql, rows
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= TEXTS:
                self._texts.clear()
            start, end = cast("tuple[int, int]", job.row)
            text = self._texts[key] = job.sql[:end] + f", {job.sql[start:end]}" * (rows - 1) + job.sql[end:]
        return text

    def forgo(self, job: StatementJob) -> None:
        """Run statements like this one by one from now on."""
        self._unlike.add(job.sql)
