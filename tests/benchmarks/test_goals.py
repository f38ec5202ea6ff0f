"""The goals of the benchmarks: a miss is said, and the best peer is found among those that may be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.case import Case, Outcome, Run, Waits
from benchmarks.goals import BEST, markdown, rows
from benchmarks.markup import TIMES
from benchmarks.peers import ONE_LOCK, PER_THREAD, SAFEDB
from benchmarks.report import Row
from benchmarks.results import RAW, Pair, Results

SIXTEEN, SIXTYFOUR = Case("writes", "", "write", 16), Case("writes", "", "write", 64)
FOUR = Case("processes", "", "write", 4, processes=4)
KINDS = {"sqlite3worker": "unacknowledged", "diskcache": "other work"}


def some(case: Case, peer: str, rate: float, *, repeat: int = 0, longest: float = 0.01, failed: str = "") -> Run:
    """Make up a run."""
    share = round(rate / case.threads / case.processes)
    outcome = Outcome(
        seconds=1.0,
        counts=[[share] * case.threads for _ in range(case.processes)],
        waits={"write": Waits.of([longest] * 10)},
        failed=failed,
    )
    return Run(replace(case, peer=peer), repeat, outcome)


def judged(*runs: Run, pairs: tuple[Pair, ...] = ()) -> dict[tuple[str, str], Row]:
    """Give the rows by work and unit."""
    names = {run.case.peer for run in runs}
    peers = {name: {"kind": KINDS.get(name, "acknowledging"), "remark": ""} for name in names}
    results = Results("short", "", "", peers=peers, runs=list(runs), pairs=list(pairs))
    return {(row.work, row.unit): row for row in rows(results)}


WRITES_16 = ("acknowledged writes, FULL, 16 threads", BEST)
WRITES_64 = ("acknowledged writes, FULL, 64 threads", BEST)
WORST = (f"4 processes {TIMES} 4 threads, FULL: worst wait", BEST)


def measured(row: Row) -> float:
    assert row.measured is not None
    return row.measured.middle


def test_a_goal_that_is_kept_or_missed_says_so_with_the_best_peers_name() -> None:
    kept = judged(some(SIXTEEN, SAFEDB, 16000), some(SIXTEEN, ONE_LOCK, 3200), some(SIXTEEN, PER_THREAD, 1600))
    assert kept[WRITES_16].met is True
    assert ONE_LOCK in kept[WRITES_16].line()
    missed = judged(some(SIXTEEN, SAFEDB, 15000), some(SIXTEEN, ONE_LOCK, 3200))
    assert missed[WRITES_16].met is False
    assert "**no**" in missed[WRITES_16].line()
    assert "**no**" in markdown(list(missed.values()))


def test_the_best_peer_is_found_within_the_repeat() -> None:
    """Written down: each of two peers is the faster one once; no mean over the repeats is as fast as either."""
    found = judged(
        some(SIXTEEN, SAFEDB, 8000, repeat=0),
        some(SIXTEEN, ONE_LOCK, 1600, repeat=0),
        some(SIXTEEN, PER_THREAD, 800, repeat=0),
        some(SIXTEEN, SAFEDB, 4000, repeat=1),
        some(SIXTEEN, ONE_LOCK, 400, repeat=1),
        some(SIXTEEN, PER_THREAD, 800, repeat=1),
    )[WRITES_16]
    assert found.measured is not None
    assert (found.measured.low, found.measured.high) == (5.0, 5.0)
    assert ONE_LOCK in found.line()
    assert PER_THREAD in found.line()


@pytest.mark.parametrize("other", ["sqlite3worker", "diskcache"])
def test_who_acknowledges_nothing_or_does_other_work_is_no_rival(other: str) -> None:
    found = judged(some(SIXTEEN, SAFEDB, 16000), some(SIXTEEN, ONE_LOCK, 1600), some(SIXTEEN, other, 160000))
    assert measured(found[WRITES_16]) == 10


def test_who_failed_is_no_rival() -> None:
    found = judged(
        some(SIXTEEN, SAFEDB, 16000),
        some(SIXTEEN, ONE_LOCK, 1600),
        some(SIXTEEN, PER_THREAD, 160000, failed="rows are lost"),
    )
    assert measured(found[WRITES_16]) == 10


def test_loads_that_are_scheduled_otherwise_are_judged_by_themselves() -> None:
    batch = replace(SIXTEEN, scenario="scheduler", scheduler="batch")
    found = judged(
        some(SIXTEEN, SAFEDB, 16000),
        some(SIXTEEN, ONE_LOCK, 8000),
        some(batch, SAFEDB, 24000),
        some(batch, ONE_LOCK, 4800),
    )
    assert measured(found[WRITES_16]) == 2
    assert measured(found["(no goal) acknowledged writes under `SCHED_BATCH`, FULL, 16 threads", BEST]) == 5


def test_where_safedb_failed_the_goal_is_missed() -> None:
    found = judged(
        some(FOUR, SAFEDB, 16000, failed="rows are lost"),
        some(FOUR, ONE_LOCK, 160),
        some(SIXTEEN, SAFEDB, 16000, failed="rows are lost"),
        some(SIXTEEN, ONE_LOCK, 160),
    )
    assert found[WRITES_16].met is False
    assert found[WORST].met is False
    assert found["worst wait, 16 threads, FULL", "ms"].met is False


def test_throughput_is_judged_by_the_middle_repeat_and_the_worst_wait_by_the_worst() -> None:
    runs = []
    for repeat, (rate, longest) in enumerate([(16000, 0.001), (16000, 0.001), (800, 0.03)]):
        runs += [
            some(FOUR, SAFEDB, rate, repeat=repeat, longest=longest),
            some(FOUR, ONE_LOCK, 1600, repeat=repeat, longest=1.0),
        ]
    found = judged(*runs)
    assert found[f"4 processes {TIMES} 4 threads, FULL", BEST].met is True
    assert found[WORST].met is False


def test_the_worst_wait_is_compared_with_that_of_the_fastest_peer() -> None:
    found = judged(
        some(FOUR, SAFEDB, 16000, longest=0.01),
        some(FOUR, PER_THREAD, 3200, longest=2.0),
        some(FOUR, ONE_LOCK, 160, longest=0.1),
    )
    assert measured(found[WORST]) == pytest.approx(0.005)
    beside = f"(no goal) 4 processes {TIMES} 4 threads, FULL: worst wait, beside the shortest", BEST
    assert measured(found[beside]) == pytest.approx(0.1)


def test_1024_threads_are_compared_with_64_and_what_they_cost_with_plain_threads() -> None:
    many = Case("writes", "", "write", 1024)
    runs = [some(SIXTYFOUR, SAFEDB, 64000), some(many, SAFEDB, 51200), some(many, ONE_LOCK, 10240)]
    runs[1].outcome.before, runs[1].outcome.memory = 30 << 20, (30 << 20) + 1024 * (100 << 10)
    runs[2].outcome.before, runs[2].outcome.memory = 20 << 20, (20 << 20) + 1024 * (30 << 10)
    found = judged(*runs)
    assert measured(found["1024 threads, FULL: writes", f"{TIMES} 64 threads"]) == 0.8
    memory = found["1024 threads: memory for each, above that of a plain one", "KiB"]
    assert measured(memory) == pytest.approx(70)
    assert memory.met is False


def test_pairs_are_judged_without_their_outermost_twentieths() -> None:
    raw = [1.0] * 100
    ours = [1.1] * 95 + [9.0] * 5
    found = judged(pairs=(Pair("point", 1, "", {RAW: raw, SAFEDB: ours}),))["point read, 1 thread", f"{TIMES} raw time"]
    assert found.met is True
    assert found.measured is not None
    assert found.measured.high == pytest.approx(1.1)


def test_what_was_not_part_of_a_run_is_neither_kept_nor_missed_and_is_told() -> None:
    found = judged(some(SIXTEEN, SAFEDB, 16000), some(SIXTEEN, ONE_LOCK, 1600))
    assert found[WRITES_64].met is None
    text = markdown(list(found.values()))
    assert f"Not part of this run: {WRITES_64[0]};" in text
    assert text.count(WRITES_64[0]) == 1
