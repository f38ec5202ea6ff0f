"""Whether what was acknowledged is there afterwards, once, and nothing that nobody has written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Wrong(Exception):
    """Say what was read or found that is not as it was written: no figure of this run counts."""


@dataclass(frozen=True, slots=True)
class Written:
    """Be what one thread has written: rows up to ``number``, of which those whose call raised may be there or not."""

    thread: int
    number: int
    doubtful: Sequence[int]

    @property
    def acknowledged(self) -> int:
        """Count the calls that returned."""
        return self.number - len(self.doubtful)


@dataclass(frozen=True, slots=True)
class Before:
    """Be what was there before the run."""

    last: int
    added: int

    @classmethod
    def look(cls, connection: Any) -> Before:
        """Look at it."""
        return cls(
            connection.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()[0],
            connection.execute("SELECT sum(n) FROM counter").fetchone()[0],
        )


def rows(connection: Any, before: Before, written: Sequence[Written], *, lenient: bool = False) -> int:
    """Look for every row that was acknowledged, and count them.

    ``lenient``: such as are missing are no fault, the peer has not promised them; the number tells.
    """
    found: Mapping[int, list[int]] = defaultdict(list)
    for thread, number in connection.execute(f"SELECT thread, number FROM t WHERE id > {before.last}"):
        found[thread].append(number)
    strangers = set(found) - {one.thread for one in written}
    if strangers:
        raise Wrong(f"there are rows of threads that have written none: {sorted(strangers)[:5]}")
    return sum(_rows_of(one, found[one.thread], lenient=lenient) for one in written)


def _rows_of(one: Written, found: Sequence[int], *, lenient: bool) -> int:
    numbers, expected = set(found), set(range(one.number)).difference(one.doubtful)
    lost = expected - numbers
    if len(numbers) < len(found):
        raise Wrong(f"thread {one.thread}: {len(found) - len(numbers)} rows are there twice")
    if lost and not lenient:
        raise Wrong(f"thread {one.thread}: {len(lost)} acknowledged rows are lost, as {sorted(lost)[:5]}")
    strange = numbers - expected - set(one.doubtful)
    if strange:
        raise Wrong(f"thread {one.thread}: {len(strange)} rows that nobody has written, as {sorted(strange)[:5]}")
    return len(expected) - len(lost)


def counters(
    connection: Any, before: Before, written: Sequence[Written], *, counting: bool, lenient: bool = False
) -> None:
    """Look whether the counters were added to as often as that was acknowledged."""
    least = sum(one.acknowledged for one in written) if counting else 0
    most = sum(one.number for one in written) if counting else 0
    added = connection.execute("SELECT sum(n) FROM counter").fetchone()[0] - before.added
    if added < least and not lenient:
        raise Wrong(f"{least - added} of {least} acknowledged additions to the counters are lost")
    if added > most:
        raise Wrong(f"the counters were added to {added} times, and {most} were called for")


def sound(connection: Any) -> None:
    """Let SQLite look whether the file is sound."""
    said = connection.execute("PRAGMA quick_check").fetchone()[0]
    if said != "ok":
        raise Wrong(f"the file is damaged: {said}")
