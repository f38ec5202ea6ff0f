"""Which cases are run: those of the short form and those of the long one.

A *load* is a case without its peer. All peers do one load right after the other, and each time one of them is the
first: only what was measured within seconds, on one machine in one mood, may be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from benchmarks.case import Beside, Case, Work
from benchmarks.peers import ONE_LOCK, PER_THREAD, SAFEDB
from benchmarks.peers.peer import Peer

Form = Literal["short", "long"]

QUEUED, POOLED, SQLALCHEMY = "peewee, SqliteQueueDatabase", "peewee, pooled", "SQLAlchemy"
ALL = (SAFEDB, PER_THREAD, ONE_LOCK, "apsw", QUEUED, POOLED, SQLALCHEMY, "sqlspec", "Datasette")
BY_HAND = (SAFEDB, PER_THREAD, ONE_LOCK)
FEW = (*BY_HAND, "apsw", SQLALCHEMY)
NEIGHBOUR: dict[Beside, int] = {"lock held": 16, "reader held": 16, "burning": 4}  # threads beside it
NEIGHBOURS = (*BY_HAND, "apsw", QUEUED, POOLED, SQLALCHEMY, "sqlspec")
PROCESSES = (*BY_HAND, "apsw", POOLED, SQLALCHEMY, "sqlspec")
OPEN = (*BY_HAND, "apsw", QUEUED, SQLALCHEMY)
ROWS = (*BY_HAND, SQLALCHEMY)
SCHEDULED = (*BY_HAND, "apsw")
UNACKNOWLEDGED = ("sqlite3worker",)
OTHER = ("diskcache", "litequeue")
POSTGRES = ("safedb on PostgreSQL", "psycopg_pool by hand", "SQLAlchemy on PostgreSQL")

SCENARIOS = (
    "writes", "sustained", "transactions", "reads", "mixed", "processes", "lock held", "reader held", "burning",
    "slow flush", "scheduler", "rows", "open loop", "unacknowledged", "other work", "postgresql",
)  # fmt: skip

SECONDS: dict[Form, float] = {"short": 0.5, "long": 1.5}
SUSTAINED: dict[Form, float] = {"short": 2.0, "long": 6.5}  # long enough for the checkpoints of all to be in it
LONGER: dict[Form, float] = {"short": 1.0, "long": 2.0}  # where a lock is held for a second in the middle
CROWD = 1024  # so many threads need a second more: they take turns
REPEATS: dict[Form, int] = {"short": 1, "long": 3}


@dataclass(frozen=True, slots=True)
class Step:
    """Be one run that is to be made."""

    repeat: int
    case: Case


def plan(form: Form) -> list[Case]:
    """Give the cases of one repeat, load by load."""
    return [
        replace(load, peer=peer, seconds=_seconds(form, load))
        for peers, load in (_long() if form == "long" else _short())
        for peer in peers
    ]


def steps(cases: Iterable[Case], repeats: int) -> Iterator[Step]:
    """Go through all cases ``repeats`` times, and let another peer be the first in each load every time."""
    loads = [list(some) for _, some in groupby(cases, key=load_of)]
    for repeat in range(repeats):
        for number, some in enumerate(loads):
            first = (number + repeat * max(1, len(some) // repeats)) % len(some)
            yield from (Step(repeat, case) for case in some[first:] + some[:first])


def load_of(case: Case) -> Case:
    """Give the load of a case: all of it but the peer."""
    return replace(case, peer="")


def chosen(cases: Iterable[Case], only: Sequence[str] = (), peers: Sequence[str] = ()) -> list[Case]:
    """Keep the cases whose scenario has one of the words in it, and whose peer has one of the others."""
    return [case for case in cases if has(case.scenario, only) and has(case.peer, peers)]


def able(case: Case, kind: type[Peer]) -> bool:
    """Tell whether the peer can do this."""
    return case.work in kind.works and (case.processes == 1 or kind.many_processes)


def estimate(case: Case) -> float:
    """Guess the seconds that a case takes with all that belongs to it: processes, the end of what was begun, a look."""
    started = 0.45 + 0.25 * case.processes + 0.002 * case.threads
    waiting = case.threads * case.flush * 2 + (1.5 if case.threads >= 256 else 0.0)
    return case.seconds + started + waiting + case.rows * 1e-7


def _seconds(form: Form, load: Case) -> float:
    if load.scenario == "sustained":
        return SUSTAINED[form]
    if load.beside == "lock held":
        return SECONDS[form] + LONGER[form]
    return SECONDS[form] + (1.0 if load.threads >= CROWD else 0.0)


def has(text: str, words: Sequence[str]) -> bool:
    """Tell whether one of the words is in it; where there are no words, all will do."""
    return not words or any(word.casefold() in text.casefold() for word in words)


Load = tuple[Sequence[str], Case]


def _load(peers: Sequence[str], scenario: str, work: Work, threads: int, **more: Any) -> Load:
    return peers, Case(scenario, "", work, threads, **more)


def _long() -> Iterator[Load]:
    for threads in (1, 4, 16, 64, 256, 1024):
        yield _load(ALL, "writes", "write", threads)
    for threads, who in ((1, FEW), (16, ALL), (64, FEW)):
        yield _load(who, "writes", "write", threads, synchronous="NORMAL")
    for synchronous in ("FULL", "NORMAL"):
        yield _load(BY_HAND, "sustained", "write", 16, synchronous=synchronous)
    yield _load(ALL, "transactions", "function", 16)
    yield _load(ALL, "transactions", "block", 16)
    yield _load(FEW, "transactions", "function", 64)
    for threads in (1, 16):
        yield _load(ALL, "reads", "point", threads)
    yield _load(FEW, "reads", "range", 1)
    yield _load(ALL, "reads", "range", 16)
    yield _load(ALL, "mixed", "mixed", 16)
    for processes, threads, several in ((1, 8, FEW), (4, 4, PROCESSES), (8, 1, PROCESSES)):
        yield _load(several, "processes", "write", threads, processes=processes)
    for beside, threads in NEIGHBOUR.items():
        yield _load(NEIGHBOURS, beside, "write", threads, beside=beside)
    for switch in (0.0005, 0.0001):
        yield _load(BY_HAND[:1], "burning", "write", 4, beside="burning", switch=switch)
    for flush in (0.0005, 0.002):
        yield _load(FEW, "slow flush", "write", 16, flush=flush)
        yield _load(ALL, "slow flush", "write", 64, flush=flush)
    yield _load(FEW, "slow flush", "write", 64, flush=0.01)
    for another in ("", "busy"):
        for scheduler in ("", "batch", "one core"):
            for threads in (16, 64):
                yield _load(SCHEDULED, "scheduler", "write", threads, scheduler=scheduler, beside=another)
    yield _load(SCHEDULED, "scheduler", "write", 16, synchronous="NORMAL", scheduler="batch")
    for rows in (100_000, 10_000_000):
        yield _load(ROWS, "rows", "point", 16, rows=rows)
    yield _load(ROWS, "rows", "mixed", 16, rows=10_000_000)
    for rate in (1000.0, 5000.0):
        yield _load(OPEN, "open loop", "write", 64, rate=rate)
    yield _load(OPEN, "open loop", "write", 64, rate=1000.0, flush=0.002)
    for threads in (1, 16, 64):
        yield _load(UNACKNOWLEDGED, "unacknowledged", "write", threads)
        yield _load(OTHER, "other work", "write", threads)
        yield _load(POSTGRES, "postgresql", "write", threads, dialect="postgresql")
    yield _load(POSTGRES, "postgresql", "function", 16, dialect="postgresql")
    for threads in (1, 16):
        yield _load(POSTGRES, "postgresql", "point", threads, dialect="postgresql")
    yield _load(POSTGRES, "postgresql", "range", 16, dialect="postgresql")


def _short() -> Iterator[Load]:
    yield _load(FEW, "writes", "write", 1)
    yield _load(ALL, "writes", "write", 16)
    yield _load(ALL, "writes", "write", 64)
    yield _load((SAFEDB, ONE_LOCK), "writes", "write", 1024)
    yield _load(BY_HAND, "writes", "write", 16, synchronous="NORMAL")
    yield _load((SAFEDB, ONE_LOCK), "sustained", "write", 16, synchronous="NORMAL")
    yield _load(FEW, "transactions", "function", 16)
    yield _load(BY_HAND, "transactions", "block", 16)
    yield _load(ALL, "reads", "point", 16)
    yield _load(BY_HAND, "reads", "range", 16)
    yield _load(FEW, "mixed", "mixed", 16)
    yield _load(PROCESSES, "processes", "write", 4, processes=4)
    yield _load(BY_HAND, "processes", "write", 1, processes=8)
    for beside, threads in NEIGHBOUR.items():
        yield _load(BY_HAND, beside, "write", threads, beside=beside)
    yield _load(BY_HAND, "slow flush", "write", 64, flush=0.0005)
    yield _load(ALL, "slow flush", "write", 64, flush=0.002)
    for scheduler in ("", "batch"):
        yield _load((SAFEDB, PER_THREAD), "scheduler", "write", 64, scheduler=scheduler)
    yield _load(BY_HAND, "rows", "point", 16, rows=100_000)
    yield _load(BY_HAND, "open loop", "write", 64, rate=2000.0)
    yield _load(UNACKNOWLEDGED, "unacknowledged", "write", 16)
    yield _load(OTHER, "other work", "write", 16)
    yield _load(POSTGRES, "postgresql", "write", 16, dialect="postgresql")
    yield _load(POSTGRES, "postgresql", "point", 16, dialect="postgresql")
