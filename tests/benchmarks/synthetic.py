"""Results that nobody measured, but that look like it: peers, three repeats, heavy tails, failures, missing cells."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.case import Case, Outcome, Run, Waits

# By peer: writes a second of one thread, what they gain with many, the part of calls that stall, a call's CPU seconds.
PEERS = {
    "safedb": (4000, 9.0, 0.0005, 90e-6),
    "sqlite3, a connection per thread": (4600, 0.5, 0.03, 160e-6),
    "sqlite3, one lock": (4700, 0.95, 0.002, 60e-6),
    "apsw": (4500, 0.6, 0.02, 150e-6),
    "peewee, SqliteQueueDatabase": (2600, 0.9, 0.003, 200e-6),
    "peewee, pooled": (2200, 0.3, 0.04, 300e-6),
    "SQLAlchemy": (1500, 0.4, 0.04, 500e-6),
    "sqlspec": (1900, 0.45, 0.03, 400e-6),
    "Datasette": (1300, 0.8, 0.004, 600e-6),
}
APART = {"sqlite3worker": (30000, 1.0, 0.0, 40e-6), "diskcache": (3000, 0.5, 0.01, 250e-6)}
ABOUT = {name: {"kind": "acknowledging", "remark": ""} for name in PEERS} | {
    "sqlite3worker": {"kind": "unacknowledged", "remark": "A call returns before anything is written."},
    "diskcache": {"kind": "other work", "remark": "It writes a key into its own table."},
}
FLUSH = 0.0002
STALL = 0.1


def run(peer: str, repeat: int, rate: float, *, wait: float = 0.001, failed: str = "", **more: Any) -> Run:
    """Make up a run of single writes that is about little: how many a second, and how long each took."""
    case = replace(Case("writes", peer, "write", 1, seconds=1.0), **more)
    if failed:
        return Run(case, repeat, Outcome(failed=failed))
    made = Outcome(1.0, [[int(rate)]], {"write": Waits.of([wait] * 20)}, cpu=1e-4 * rate, memory=1, verified=int(rate))
    return Run(case, repeat, made)


def outcome(case: Case, chance: random.Random, calls: int = 1000) -> Outcome:
    """Make up what a run of a case might have given."""
    alone, gain, stalls, processor = (PEERS | APART)[case.peer]
    lanes = case.threads * case.processes
    together = alone * (1 + (gain - 1) * (1 - 1 / lanes**0.4)) * chance.uniform(0.9, 1.1)
    if gain < 1 or lanes == 1:
        together /= 1 + case.flush / FLUSH
    else:
        together /= 1 + case.flush / FLUSH / min(lanes, 30)
    middle = lanes / together / 1.5
    waits = Waits.of(
        chance.lognormvariate(0, 0.4) * middle
        + (STALL * chance.paretovariate(1.5) if chance.random() < stalls else 0.0)
        for _ in range(calls)
    )
    seconds, done = case.seconds, int(together * case.seconds)
    shares = [[done // lanes + chance.randrange(3) for _ in range(case.threads)] for _ in range(case.processes)]
    parts = {"read": waits, "write": Waits.of([middle * 3, middle * 4])} if case.work == "mixed" else {"write": waits}
    return Outcome(
        seconds=seconds,
        counts=shares,
        waits=parts,
        errors={"OperationalError": 3} if stalls > 0.03 and lanes >= 64 else {},
        unserved=200 if case.rate and case.rate > together else 0,
        cpu=done * processor,
        memory=int((30 + 0.1 * lanes) * 1e6),
        before=int(30e6),
        wal=4_120_000,
        verified=sum(map(sum, shares)),
    )


def loads() -> Iterator[Case]:
    """Give the loads of a whole comparison."""
    for threads in (1, 4, 16, 64, 256, 1024):
        yield Case("writes", "", "write", threads)
    yield Case("writes", "", "write", 16, synchronous="NORMAL")
    for flush in (0.0005, 0.002, 0.01):
        yield Case("slow flush", "", "write", 64, flush=flush)
    for processes, threads in ((1, 8), (4, 4), (8, 1)):
        yield Case("processes", "", "write", threads, processes=processes)
    for rate in (500.0, 2000.0, 5000.0):
        yield Case("open loop", "", "write", 64, rate=rate)
    yield Case("mixed", "", "mixed", 16)


def results(calls: int = 1000, repeats: int = 3) -> list[Run]:
    """Make up a whole comparison, with peers that fail, some that are missing, and some that compete with nobody."""
    chance = random.Random(5)
    runs = []
    for repeat in range(repeats):
        for load in loads():
            for peer in PEERS:
                case = replace(load, peer=peer)
                if peer == "Datasette" and load.scenario in ("processes", "open loop"):
                    continue
                made = outcome(case, chance, calls)
                if peer == "peewee, pooled" and load.threads == 1024:
                    made = Outcome(failed="MaxConnectionsExceeded: exceeded the maximum\nof 1000 connections | pool")
                if peer == "apsw" and load.threads == 256 and repeat == 1:
                    made = Outcome(failed="3 acknowledged rows are not there")
                runs.append(Run(case, repeat, made))
        for peer in APART:
            case = Case("unacknowledged" if peer == "sqlite3worker" else "other work", peer, "write", 16)
            runs.append(Run(case, repeat, outcome(case, chance, calls)))
    return runs
