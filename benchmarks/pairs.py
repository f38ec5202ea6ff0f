"""One call beside the same call of others, in turn and in one process: for ratios near 1, which need it so.

Each side's call is a method of its `Lane`, so that all bear the same cost of being measured. Raw is `sqlite3` with a
connection for each thread.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import places
from benchmarks.case import Case, Synchronous
from benchmarks.markup import NOTHING, head, line
from benchmarks.measure import Spread, Together, alternate
from benchmarks.peers import PER_THREAD, SAFEDB, peer
from benchmarks.peers.peer import Lane, Peer, Place
from benchmarks.plan import SQLALCHEMY, Form
from benchmarks.report import spread
from benchmarks.results import RAW, Pair
from benchmarks.verify import Wrong

ROWS = 1000
SETTLING = 0.1  # seconds: in the first twentieth after its files were made, safedb looks at all of them at each write
NAMES = {RAW: PER_THREAD, SAFEDB: SAFEDB, SQLALCHEMY: SQLALCHEMY}


@dataclass(frozen=True, slots=True)
class Effort:
    """Be how many rounds there are: of reads by one thread, of reads by 16, and of writes."""

    reads: int
    many: int
    writes: int


EFFORTS: dict[Form, Effort] = {"short": Effort(60, 20, 25), "long": Effort(400, 100, 300)}


def measure(folder: Path, effort: Effort, say: Callable[[str], None]) -> Iterator[Pair]:
    """Measure all of it in ``folder``, one pair after the other."""
    names = [name for name in NAMES if _there(NAMES[name])]
    say("point reads in turn, 1 thread")
    yield _reads(folder, names, threads=1, calls=200, rounds=effort.reads)
    say("point reads in turn, 16 threads")
    yield _reads(folder, names, threads=16, calls=40, rounds=effort.many)
    modes: tuple[Synchronous, ...] = ("FULL", "NORMAL")
    for synchronous in modes:
        say(f"single writes in turn, 1 thread, {synchronous}")
        yield _writes(folder, synchronous, calls=40, rounds=effort.writes)


class _Crew(Together):
    """Let threads read, each by a lane of its own."""

    def __init__(self, opened: Peer, *, threads: int, each: int) -> None:
        self._peer = opened
        super().__init__(lambda: None, threads=threads, each=each)

    @contextmanager
    def _working(self) -> Iterator[Callable[[], object]]:
        lane = self._peer.lane()
        try:
            yield _reader(lane)
        finally:
            lane.rest()


def _reads(folder: Path, names: Sequence[str], *, threads: int, calls: int, rounds: int) -> Pair:
    with ExitStack() as stack:
        place = stack.enter_context(_place(folder, Case("", "", "point", threads, rows=ROWS)))
        works: dict[str, Callable[[], object]] = {}
        for name in names:
            opened = peer(NAMES[name])(place)
            stack.callback(opened.close)
            if threads == 1:
                lane = opened.lane()
                stack.callback(lane.rest)
                works[name] = _reader(lane)
            else:
                crew = _Crew(opened, threads=threads, each=calls)
                stack.callback(crew.close)
                works[name] = crew
        if threads == 1:
            return Pair("point", 1, "", alternate(works, calls=calls, rounds=rounds))
        times = alternate(works, calls=1, rounds=rounds)
        every = calls * threads
        return Pair("point", threads, "", {name: [time / every for time in some] for name, some in times.items()})


def _reader(lane: Lane) -> Callable[[], object]:
    """Give what reads a row, the same ones in the same order for everybody, after a look whether they are right."""
    keys = [random.Random(4).randrange(1, ROWS + 1) for _ in range(997)]
    point, following = lane.point, itertools.cycle(keys).__next__
    for key in keys:
        if point(key)[0] != key:
            raise Wrong(f"row {key}")
    return lambda: point(following())


def _writes(folder: Path, synchronous: Synchronous, *, calls: int, rounds: int) -> Pair:
    with ExitStack() as stack:
        works: dict[str, Callable[[], object]] = {}
        found: dict[str, Place] = {}
        for name in (RAW, SAFEDB):
            found[name] = stack.enter_context(_place(folder, Case("", "", "write", 1, synchronous=synchronous)))
            opened = peer(NAMES[name])(found[name])
            stack.callback(opened.close)
            lane = opened.lane()
            stack.callback(lane.rest)
            works[name] = _writer(lane)
        time.sleep(SETTLING)
        times = alternate(works, calls=calls, rounds=rounds)
        for name, place in found.items():
            with places.connect(place) as connection:
                if connection.execute("SELECT count(*) FROM t").fetchone() != (calls * (rounds + 2),):
                    raise Wrong(f"single writes of {name}")
        return Pair("write", 1, synchronous, times)


def _writer(lane: Lane) -> Callable[[], object]:
    write, numbers = lane.write, itertools.count().__next__
    return lambda: write(0, numbers())


@contextmanager
def _place(folder: Path, case: Case) -> Iterator[Place]:
    """Make a file in a folder of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="pairs-", dir=folder) as name,
        places.made(case, Path(name), Path(name), "") as place,
    ):
        yield place


def _there(name: str) -> bool:
    try:
        peer(name)
    except ImportError:
        return False
    return True


def markdown(found: Sequence[Pair]) -> str:
    """Write the table: microseconds for each call."""
    lines = [
        "Microseconds for each call (of all threads together), min … median … max of the batches.",
        "",
        *head(["work", *NAMES]),
    ]
    for pair in found:
        threads = f"{pair.threads} thread{'s' if pair.threads > 1 else ''}"
        work = ", ".join(filter(None, (pair.work, threads, pair.synchronous)))
        cells = [
            spread(Spread.of([time * 1e6 for time in pair.times[name]])) if name in pair.times else NOTHING
            for name in NAMES
        ]
        lines.append(line([work, *cells]))
    return "\n".join(lines)
