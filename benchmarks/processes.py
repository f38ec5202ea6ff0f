"""Many processes on one file, and threads that burn CPU beside the writers: safedb beside `sqlite3` in the same run.

    python -m benchmarks.processes [--short] [--json FILE] [--folder DIR]

Databases are made in a folder of their own inside ``--folder`` (the current one, if it is not given), so run it on the
disk that is meant. The result is printed as Markdown. It needs some minutes; with ``--short`` about one.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.measure import Lap, Race, Spread, run_lap
from benchmarks.report import Row, short, spread
from benchmarks.rivals import BusyTimeout, Rival, Safe, open_raw, verify

BY_HAND, SAFEDB = "by hand", "safedb"
TIMES = "\N{MULTIPLICATION SIGN}"
TIMEOUT = 5.0  # seconds: by hand, as in most programs it is
STARTING = 60.0  # seconds
SWITCH = 0.005  # seconds: CPython's own
HEAD_START = 0.05  # seconds from the word "go" until all begin


@dataclass(frozen=True, slots=True)
class Member:
    """Be what one process has to do.

    ``burners`` threads only compute, and are asked for the interpreter's lock every ``switch`` seconds.
    """

    threads: int
    burners: int = 0
    switch: float = SWITCH


@dataclass(frozen=True, slots=True)
class Part:
    """Be what one process did in one lap; ``computed``: rounds of its burners for each second of its processor time."""

    lap: Lap
    computed: float


# -- one process ------------------------------------------------------------------------------------------------------


class ByHand(BusyTimeout):
    """Poll as `BusyTimeout` does, for 5 seconds; a connection stays open, so that the WAL does between two laps."""

    name = BY_HAND

    def __init__(self, path: Path) -> None:
        super().__init__(path, "FULL", TIMEOUT)
        self._anchor = open_raw(path, "FULL")

    def close(self) -> None:
        self._anchor.close()


def open_side(side: str, path: Path) -> Rival:
    """Open one side's way to write."""
    return ByHand(path) if side == BY_HAND else Safe(path, "FULL")


def work(side: str, path: Path, first: int, member: Member, pipe: Connection) -> None:
    """Be a process: write as long as the parent says, as often as it says; end when it says None, or is gone."""
    logging.getLogger("safedb").setLevel(logging.ERROR)  # temporary folders are meant here
    sys.setswitchinterval(member.switch)
    rival = open_side(side, path)
    pipe.send("ready")
    try:
        while (order := pipe.recv()) is not None:
            begin, seconds = order
            with burning(member.burners) as rounds:
                used = time.process_time()
                lap = run_lap(rival, threads=member.threads, seconds=seconds, first=first, begin=begin)
                computed = sum(rounds) / (time.process_time() - used)
            pipe.send(Part(lap, computed))
    except EOFError:
        pass
    rival.close()


@contextmanager
def burning(burners: int) -> Iterator[list[int]]:
    """Let threads compute, and give the list in which each counts its rounds."""
    rounds, over = [0] * burners, threading.Event()

    def burn(number: int) -> None:
        while not over.is_set():
            sum(range(1000))
            rounds[number] += 1

    threads = [threading.Thread(target=burn, args=(number,), daemon=True) for number in range(burners)]
    for thread in threads:
        thread.start()
    try:
        yield rounds
    finally:
        over.set()
        for thread in threads:
            thread.join()


# -- all of one side --------------------------------------------------------------------------------------------------


class Team:
    """Be the processes of one side on one file."""

    def __init__(self, side: str, path: Path, members: Sequence[Member]) -> None:
        self.side, self._path, self._members = side, path, members
        self._firsts = [sum(one.threads for one in members[:number]) for number in range(len(members))]
        self._acknowledged: Counter[int] = Counter()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for first, member in zip(self._firsts, members, strict=True):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(side, path, first, member, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
            if not ours.poll(STARTING):  # one after the other: by hand, a switch to WAL by several fails
                raise TimeoutError(f"a process of {side} did not start")
            ours.recv()

    def run(self, seconds: float) -> list[Part]:
        """Let all write for ``seconds``."""
        begin = time.monotonic() + HEAD_START
        for pipe in self._pipes:
            pipe.send((begin, seconds))
        parts = [pipe.recv() for pipe in self._pipes]
        for first, part in zip(self._firsts, parts, strict=True):
            for number, waits in enumerate(part.lap.waits):
                self._acknowledged[first + number] += len(waits)
        return parts

    def race(self, seconds: float) -> tuple[Race, float]:
        """Let all write for ``seconds``; give what they did together, and the least share as part of the largest."""
        laps = [part.lap for part in self.run(seconds)]
        shares = [sum(lap.counts) for lap in laps]
        return Race.of(laps, shares), min(shares) / max(shares)

    def close(self) -> None:
        """End the processes, and count the rows."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()
        verify(self.side, self._path, self._acknowledged)


@dataclass(frozen=True, slots=True)
class Contest:
    """Be races of both sides in turn: by side, each race and how evenly the processes shared it."""

    processes: int
    threads: int
    races: dict[str, list[Race]]
    shares: dict[str, list[float]]

    def ratio(self) -> list[float]:
        """Give, race by race, safedb's rate as a multiple of that by hand."""
        return [ours.rate / raw.rate for ours, raw in zip(self.races[SAFEDB], self.races[BY_HAND], strict=True)]


def contest(folder: Path, *, processes: int, threads: int, seconds: float, repeats: int) -> Contest:
    """Let both sides write in turn, every second time in the opposite order; a short race before does not count."""
    with tempfile.TemporaryDirectory(prefix="contest-", dir=folder) as name:
        members = [Member(threads)] * processes
        teams = [Team(side, Path(name, f"{number}.db"), members) for number, side in enumerate((BY_HAND, SAFEDB))]
        made = Contest(processes, threads, {BY_HAND: [], SAFEDB: []}, {BY_HAND: [], SAFEDB: []})
        for team in teams:
            team.race(0.3)
        for number in range(repeats):
            for team in teams if number % 2 else reversed(teams):
                race, share = team.race(seconds)
                made.races[team.side].append(race)
                made.shares[team.side].append(share)
        for team in teams:
            team.close()
        return made


# -- the interpreter's lock -------------------------------------------------------------------------------------------

WRITERS = 4


@dataclass(frozen=True, slots=True)
class Case:
    """Be one arrangement beside burning threads: the side, how many of them, and the switch interval (seconds)."""

    side: str
    burners: int
    switch: float = SWITCH


@dataclass(frozen=True, slots=True)
class Burnt:
    """Be what came of a case: the race of the writers beside the burners, and that of another process with one thread.

    ``computed``: what the burners computed in a second of processor time, as a part of what they do without writers.
    """

    case: Case
    inside: Race
    outside: Race
    computed: float


CASES = (
    *(Case(side, burners) for burners in (0, 1, 4) for side in (BY_HAND, SAFEDB)),
    *(Case(SAFEDB, burners, switch) for burners in (1, 4) for switch in (0.001, 0.0005, 0.0001)),
)


def burn_beside(folder: Path, case: Case, seconds: float) -> Burnt:
    """Run one case: 4 threads that write beside the burners, and one in another process without any."""
    with tempfile.TemporaryDirectory(prefix="burn-", dir=folder) as name:
        members = [Member(WRITERS, case.burners, case.switch), Member(1)]
        team = Team(case.side, Path(name, "app.db"), members)
        inside, outside = team.run(seconds)
        team.close()
    return Burnt(
        case,
        Race.of([inside.lap], inside.lap.counts),
        Race.of([outside.lap], outside.lap.counts),
        inside.computed / alone(case.burners, seconds / 4) if case.burners else 0.0,
    )


def alone(burners: int, seconds: float) -> float:
    """Tell how often burners come round in a second of processor time with nobody beside them."""
    with burning(burners) as rounds:
        used = time.process_time()
        time.sleep(seconds)
        return sum(rounds) / (time.process_time() - used)


# -- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effort:
    """Be how long it may take: the races of a contest and their seconds, and the seconds of a case."""

    repeats: int
    seconds: float
    burning: float


FULL = Effort(repeats=5, seconds=6.0, burning=10.0)
SHORT = Effort(repeats=2, seconds=2.0, burning=2.0)


@dataclass(slots=True)
class Run:
    """Be everything that was measured."""

    machine: machine.Machine
    contests: dict[str, Contest] = field(default_factory=dict)
    burnt: list[Burnt] = field(default_factory=list)


def measure(folder: Path, effort: Effort, say: Callable[[str], None]) -> Run:
    """Measure all of it in ``folder``."""
    run = Run(machine.describe(folder))
    for processes, threads in ((8, 1), (4, 4)):
        say(f"{processes} processes, {threads} threads each")
        run.contests[f"{processes} {TIMES} {threads}"] = contest(
            folder, processes=processes, threads=threads, seconds=effort.seconds, repeats=effort.repeats
        )
    for case in CASES:
        say(f"{case.side}, {case.burners} burning threads, {case.switch * 1e3:g} ms")
        run.burnt.append(burn_beside(folder, case, effort.burning))
    return run


def rows(run: Run) -> list[Row]:
    """Hold what was measured against the budget."""
    return [row for contest in run.contests.values() for row in _rows(contest)]


def _rows(contest: Contest) -> list[Row]:
    races, single = contest.races[SAFEDB], contest.threads == 1
    waits = [race.longest * 1e3 for race in races]
    what = f"{contest.processes} processes {TIMES} {contest.threads} thread{'' if single else 's'}"
    return [
        Row.of(f"{what}: errors", "≤", 0, "", [race.failed for race in races], worst=True),
        Row.of(f"{what}: least share", "≥", 0.8, f"{TIMES} the busiest", contest.shares[SAFEDB], worst=True),
        Row.of(f"{what}: worst wait", "≤", 50 if single else None, "ms", waits, worst=True),
        Row.of(f"{what}: writes", "≥", 0.5 if single else 1.5, f"{TIMES} {BY_HAND}", contest.ratio()),
    ]


def markdown(run: Run) -> str:
    """Write everything."""
    return "\n".join(
        [
            *run.machine.lines(),
            "",
            "| FULL, back to back | budget | measured (min … median … max) | met? |",
            "|---|---|---|---|",
            *(row.line() for row in rows(run)),
            "",
            f"By hand each thread has a connection with `timeout={TIMEOUT:g}`. Waits in milliseconds: medians of the "
            "races, and the longest of all, errors included. Every row was counted afterwards.",
            "",
            f"| processes {TIMES} threads | who | writes/s (min … median … max) | p50 | p99 | p99.9 | longest "
            "| least share of a process | errors |",
            "|---|---|---|---|---|---|---|---|---|",
            *(line for name, contest in run.contests.items() for line in _contest(name, contest)),
            "",
            f"{WRITERS} threads of one process write beside threads that only compute; in another process one thread "
            "writes. *Computed*: in a second of processor time, as a part of what the same threads compute alone.",
            "",
            "| burning threads | switch interval | who | writes/s | p99, ms | longest, ms | errors | computed "
            "| the other process: writes/s | longest, ms | errors |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(_burnt(burnt) for burnt in run.burnt),
        ]
    )


def _contest(name: str, contest: Contest) -> Iterator[str]:
    for side, races in contest.races.items():
        usual = [median([getattr(race, figure) for race in races]) * 1e3 for figure in ("p50", "p99", "p999")]
        cells = [
            name,
            side,
            spread(Spread.of([race.rate for race in races])),
            *map(short, usual),
            short(max(race.longest for race in races) * 1e3),
            spread(Spread.of(contest.shares[side])),
            str(sum(race.failed for race in races)),
        ]
        yield f"| {' | '.join(cells)} |"


def _burnt(burnt: Burnt) -> str:
    case, inside, outside = burnt.case, burnt.inside, burnt.outside
    cells = [
        str(case.burners),
        f"{case.switch * 1e3:g} ms",
        case.side,
        short(inside.rate),
        short(inside.p99 * 1e3),
        short(inside.longest * 1e3),
        str(inside.failed),
        f"{burnt.computed:.0%}" if case.burners else "—",
        short(outside.rate),
        short(outside.longest * 1e3),
        str(outside.failed),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, print the tables, and write everything as JSON where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="about a minute, and rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the databases are made (default: here)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="safedb-processes-", dir=given.folder) as folder:
        run = measure(
            Path(folder).resolve(), SHORT if given.short else FULL, lambda text: print(f"… {text}", file=sys.stderr)
        )
    print(markdown(run))
    if given.json is not None:
        whole = {**asdict(run), "rows": [asdict(row) | {"met": row.met} for row in rows(run)]}
        given.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
