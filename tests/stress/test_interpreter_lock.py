"""Threads that compute beside the writers: CPython hands its lock over every 5 ms, and each statement asks for it anew.

By hand, a transaction of 64 statements then holds SQLite's lock for seconds, and other processes give up (H22).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from processes import INSERT, PATIENCE, Hands, found, open_safe
from reliability import Record, form
from support import Crew, wait_until

import safedb

BURNERS = 4


@contextmanager
def burning(threads: int) -> Iterator[None]:
    """Compute in threads of this process."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    crew = Crew()
    for _ in range(threads):
        crew(burn)
    try:
        yield
    finally:
        over.set()
        crew.finish()


class Watch:
    """Look over a group's shoulder: whoever is taken in was preceded by a look at the clock that found time left.

    Times are those *before* each look, so that a thread that loses the interpreter's lock after it proves nothing.
    """

    def __init__(self, groups: Any) -> None:
        self.full = 0  # looks that found the time, or the places, used up
        self.wrong: list[str] = []
        self._look: tuple[Any, float, bool] | None = None
        self._limit = groups._time_limit
        self._is_full, self._run_batch, self._run_function = groups._is_full, groups._run_batch, groups._run_function
        groups._is_full, groups._run_batch, groups._run_function = self.is_full, self.run_batch, self.run_function

    def is_full(self, group: Any) -> Any:
        before = time.monotonic()
        answer = self._is_full(group)
        self._look = (group, before, answer)
        self.full += answer
        return answer

    def run_batch(self, batch: Any, group: Any) -> None:
        self._judge(group, f"{len(batch)} statements")
        self._run_batch(batch, group)

    def run_function(self, job: Any, group: Any) -> None:
        self._judge(group, "a function")
        self._run_function(job, group)

    def _judge(self, group: Any, what: str) -> None:
        look, self._look = self._look, None
        if not group.members:
            return
        if look is None or look[0] is not group:
            self.wrong.append(f"{what}: nobody looked at the clock")
        elif look[2] or look[1] > group.began + self._limit:
            self.wrong.append(f"{what}: taken in {look[1] - group.began:.3f} s after BEGIN")


def update(tx: safedb.Transaction, number: int) -> None:
    tx.execute("SELECT count(*) FROM t").scalar()
    tx.execute("UPDATE t SET number = number + 1 WHERE worker = ?", (number,))


WORK = {
    "statements": lambda db, worker, number: db.execute("UPDATE t SET number = number + 1 WHERE worker = ?", (worker,)),
    "alike inserts": lambda db, worker, number: db.execute(INSERT, (worker, 1 + number)),
    "functions": lambda db, worker, number: db.run_transaction(update, worker),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", WORK)
def test_no_group_takes_a_member_after_its_time_bound(tmp_path: Path, kind: str, record: Record) -> None:
    """H22: what a group may take is bounded by the clock, and not only in number: each member is one more wait.

    Written down: twelve threads write back to back beside four that only compute, in groups that may last 20 ms, until
    groups were ended by the clock many times. Each time that somebody is taken in, the clock has been looked at since
    the last one, and there was time left.
    """
    wanted = form(8, 150)
    with open_safe(tmp_path / "app.db") as db:
        db.executemany(INSERT, [(worker, 0) for worker in range(12)])
        watch = Watch(db._engine.groups)  # type: ignore[attr-defined]
        counts = [0] * 12

        def work(worker: int) -> None:
            while watch.full < wanted and not watch.wrong:
                WORK[kind](db, worker, counts[worker])
                counts[worker] += 1

        with burning(BURNERS), ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
        assert not watch.wrong
        rows = db.execute("SELECT worker, count(*), max(number) FROM t GROUP BY worker").fetchall()
        assert {worker: last for worker, _, last in rows} == dict(enumerate(counts))
        record.add(rounds=watch.full, acknowledged=sum(counts), lost=0)


def test_functions_that_take_their_time_are_not_passed_on_the_groups_transaction(tmp_path: Path) -> None:
    """H22: each function that has run looks at the clock before it hands its transaction to the next.

    Written down: four functions wait behind a block; each takes longer than the group's whole time.
    """
    with open_safe(tmp_path / "app.db", pool=safedb.PoolConfig(group_time=0.01)) as db:
        before = db.stats().commits

        def slow(tx: safedb.Transaction, number: int) -> None:
            tx.execute(INSERT, (1, number))
            time.sleep(0.02)

        crew = Crew()
        with db.transaction():
            for number in range(4):
                crew(db.run_transaction, slow, number)
                wait_until(lambda number=number: db.stats().queue_depth > number, "it to queue")  # type: ignore[misc]
        crew.finish()
        assert db.stats().commits - before == 5, db.stats().group_sizes
        assert db.stats().retries == {}, "nobody was in the way of the others"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_another_process_does_not_time_out_beside_threads_that_compute(tmp_path: Path, record: Record) -> None:
    """H22: by hand the other process met its timeout of 5 s within 18 s.

    Written down: a process writes back to back in 32 threads, statements and functions, beside four threads that only
    compute; this process writes one row after the other. None fails. Half of them wait no longer than two seconds: a
    very wide margin (it is milliseconds; the worst is 0.3 s) for a slow machine.
    """
    path = tmp_path / "app.db"
    waits: list[float] = []
    with open_safe(path) as db, Hands(path) as hands:
        (busy,) = hands.hire()
        busy.ask("background", workers=list(range(32)), hows=["execute", "function"])
        busy.ask("burn", threads=BURNERS)
        end = time.monotonic() + form(2, 30)
        while len(waits) < 10 or time.monotonic() < end:
            started = time.monotonic()
            db.execute(INSERT, (99, len(waits)), timeout=PATIENCE)
            waits.append(time.monotonic() - started)
        answer = busy.ask("rest")
        assert answer["errors"] == []
        acknowledged = {worker: count for worker, count in answer["acknowledged"] if count}
        assert found(path) == {**acknowledged, 99: len(waits)}
        assert median(waits) < 2, sorted(waits)
        record.add(rounds=1, acknowledged=len(waits) + sum(acknowledged.values()), lost=0)
        record.note(median_wait_ms=round(median(waits) * 1e3), worst_wait_ms=round(max(waits) * 1e3))
