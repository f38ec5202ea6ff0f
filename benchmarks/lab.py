"""Run one case in fresh processes, look afterwards for every row, and tell what came of it.

The processes are `member`'s, and where the case says so one of `beside`'s. They are started together, and open the
database one after the other, as several that switch a file to WAL at once may fail. Then all begin at one moment.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks import peers, places, slowflush, verify
from benchmarks.case import Case, Outcome, Waits
from benchmarks.children import Child, Lost, Message
from benchmarks.loops import sleep_until
from benchmarks.member import RUNNING_IN
from benchmarks.peers.peer import Place
from benchmarks.verify import Before, Written

PATIENCE = 60.0  # seconds beyond the window in which a process must have answered
HEAD_START = 0.03  # seconds from the word "go" until threads call,
WAKING = 0.0001  # and for every thread so many more
LOOKS = 0.05  # seconds between two looks at the log's size


def run(case: Case, folder: Path, *, url: str = "", patience: float = PATIENCE) -> Outcome:
    """Run a case once, in a place of its own below ``folder`` or on the server at ``url``.

    What goes wrong is told in the outcome's ``failed``. No process and no file is left, but for the filled databases
    and the shim that the next runs will use.
    """
    try:
        with ExitStack() as stack:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=folder))).resolve()
            place = stack.enter_context(places.made(case, folder.resolve(), own, url))
            return _run(case, place, own, _environment(case, folder), patience)
    except (Lost, verify.Wrong, slowflush.NotHere, sqlite3.Error, OSError) as error:
        return Outcome(failed=str(error) or type(error).__name__)


def _environment(case: Case, folder: Path) -> dict[str, str]:
    if not case.flush:
        return {}
    shim = folder.resolve() / "slowflush.so"
    if not shim.exists():
        shim = slowflush.build(folder.resolve())
    return {"LD_PRELOAD": str(shim), "SLOWFLUSH_MICROSECONDS": str(round(case.flush * 1e6))}


def _run(case: Case, place: Place, folder: Path, environment: dict[str, str], patience: float) -> Outcome:
    with places.connect(place) as connection:
        before = Before.look(connection)
    with ExitStack() as stack:
        members = [
            stack.enter_context(Child("benchmarks.member", folder / f"member-{number}.log", environment))
            for number in range(case.processes)
        ]
        beside = _beside(case, place, folder, stack, patience)
        kind, memory_before = _open(case, place, members, patience)
        parts, cpu, wal = _window(case, place, members, beside, patience)
        for member in members:
            member.say({})
        for member in members:
            member.hear(time.monotonic() + patience)
    outcome = Outcome(
        seconds=case.seconds,
        counts=[part["counts"] for part in parts],
        waits=_waits(parts),
        errors=dict(sum((Counter(part["errors"]) for part in parts), Counter())),
        unserved=sum(part["unserved"] for part in parts),
        cpu=cpu,
        memory=sum(part["memory"] for part in parts),
        before=memory_before,
        wal=wal,
    )
    written = [Written(*row) for part in parts for row in part["rows"]]
    outcome.acknowledged = sum(one.acknowledged for one in written)
    outcome.verified = _verify(case, place, before, written, kind)
    return outcome


def _beside(case: Case, place: Place, folder: Path, stack: ExitStack, patience: float) -> Child | None:
    """Start the program that works beside the members, where it is not a thread of theirs."""
    if case.beside not in {"lock held", "reader held", "busy"}:
        return None
    if place.url:
        raise Lost(f"not done on PostgreSQL: {case.beside}")
    child = stack.enter_context(Child("benchmarks.beside", folder / "beside.log"))
    child.say({"path": str(place.path), "beside": case.beside})
    child.hear(time.monotonic() + patience)
    return child


def _open(case: Case, place: Place, members: Sequence[Child], patience: float) -> tuple[Message, int]:
    """Let the members open the database; give what they tell of the peer, and their memory."""
    for number, member in enumerate(members):
        where = {**asdict(place), "path": str(place.path)}
        member.say({"case": asdict(case), "place": where, "number": number})
    kinds = [member.hear(time.monotonic() + patience) for member in members]
    memory = 0
    for member in members:
        member.say({})
        memory += member.hear(time.monotonic() + patience)["before"]
    return kinds[0], memory


def _window(
    case: Case, place: Place, members: Sequence[Child], beside: Child | None, patience: float
) -> tuple[list[Message], float, int]:
    """Let all begin, and wait until all have ended.

    Give what the members did, the processor seconds that they used in the window, and the greatest size of the log.
    """
    begin = time.monotonic() + HEAD_START + case.threads * WAKING + RUNNING_IN
    end = begin + case.seconds
    for child in (*members, *([beside] if beside else [])):
        child.say({"begin": begin, "seconds": case.seconds})
    sleep_until(begin)
    wal = _logs(place.path.parent)
    cpu = -sum(member.processor() for member in members)
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOKS))
        wal = max(wal, _logs(place.path.parent))
    cpu += sum(member.processor() for member in members)
    parts = [member.hear(end + patience) for member in members]
    if beside:
        beside.hear(end + patience)
        beside.end()
    return parts, cpu, wal


def _logs(folder: Path) -> int:
    """Give the size of all logs there; a peer may have files of its own."""
    size = 0
    for log in folder.rglob("*-wal"):
        with suppress(FileNotFoundError):  # the last connection that is closed takes it away
            size += log.stat().st_size
    return size


def _waits(parts: Sequence[Message]) -> dict[str, Waits]:
    waits: dict[str, Waits] = {}
    for part in parts:
        for kind, some in part["waits"].items():
            waits[kind] = waits.get(kind, Waits()) + Waits.from_json(some)
    return waits


def _verify(case: Case, place: Place, before: Before, written: Sequence[Written], kind: Message) -> int:
    """Look for everything that was acknowledged; give how many rows were found."""
    lenient = kind["kind"] == "unacknowledged"
    counting = case.work in {"function", "block"}
    if kind["verifies"]:
        found = _ask(case, place, written, counting=counting)
        if found is not None:
            expected = sum(one.acknowledged for one in written)
            if found < expected and not lenient:
                raise verify.Wrong(f"{expected - found} of {expected} acknowledged rows are lost")
            return found
    with places.connect(place) as connection:
        if not place.url and case.rows < places.LARGE:
            verify.sound(connection)
        verify.counters(connection, before, written, counting=counting, lenient=lenient)
        return verify.rows(connection, before, written, lenient=lenient)


def _ask(case: Case, place: Place, written: Sequence[Written], *, counting: bool) -> int | None:
    """Let the peer count, where it writes elsewhere."""
    acknowledged = {one.thread: one.acknowledged for one in written}
    peer = peers.peer(case.peer)(place)
    try:
        return peer.verify(place, acknowledged, sum(acknowledged.values()) if counting else 0)
    finally:
        peer.close()
