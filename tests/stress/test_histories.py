"""SQLite's promises in histories: threads and processes, killed at random, and one order that explains what they saw.

"Serial writes, in order", "Snapshot reads", "Durable acknowledgement", "Exactly once" and "Isolated failure" at once:
what was recorded has to be *strictly serialisable*, reads and snapshots included. See `history` for what that means
and how it is checked, `history_load` for what is done.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from history import Txn, check
from history_load import Crowd, acknowledged, final_of, schema
from reliability import Record, form
from support import sqlite3, url_of

import safedb


def final_state(path: Path) -> Txn:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return final_of("sqlite", lambda sql: connection.execute(sql).fetchall())


@pytest.mark.slow
@pytest.mark.timeout(form(240, 1200))
@pytest.mark.parametrize(
    ("processes", "threads", "kills"),
    [(1, 8, 0), (4, 2, form(4, 25)), (2, 6, form(2, 25))],
    ids=["threads", "processes", "processes with threads"],
)
def test_what_was_seen_is_strictly_serialisable(
    tmp_path: Path, seed: int, record: Record, processes: int, threads: int, kills: int
) -> None:
    """No call saw, or was told, what one order of all writes, agreeing with the clock, does not explain.

    Written down: each round has a file of its own. Workers do what `history_load.Session` draws by its seed. Whenever
    the drawn victim has recorded so and so much more, SIGKILL meets it where it stands (at times while it still opens
    the file), and another is started. What it was at may have happened or not. At the end, with everybody gone, the
    standard library's own module reads all there is.
    """
    share = form(500_000, 10_000_000) // (processes * (kills + 1))  # bytes recorded, some 250 for each transaction
    transactions = 0
    for number in range(form(1, 4)):
        chance = random.Random(f"{seed}/{processes}/{number}")
        path = tmp_path / f"{number}.db"
        safedb.connect(path, schema=schema("sqlite")).close()
        with Crowd(tmp_path / f"{number}", url_of(path), f"{seed}/{number}", processes, threads) as crowd:
            for _ in range(kills):
                victim = chance.choice(crowd.workers)
                crowd.wait_for(victim, chance.choice([0, 1, chance.randrange(3 * share)]))
                crowd.kill(victim)
            crowd.wait_for_all(share)
            history = crowd.finish()
        found = check(history, final=final_state(path))
        lost = sum(anomaly.name == "lost write" for anomaly in found)
        record.add(rounds=1, kills=kills, acknowledged=acknowledged(history), lost=lost)
        transactions += len(history)
        record.note(transactions=transactions)
        print(f"round {number}:", Counter(txn.outcome for txn in history))
        assert not found, "\n".join(map(str, found[:10]))
