"""PostgreSQL's promises in histories: sessions ended, backends and workers killed, and an order that explains it all.

What is promised is less than on SQLite. Write transactions, be they functions, blocks or single statements, and
`snapshot(serializable=True)` are serialisable, in an order that agrees with that of each session. Plain reads and
ordinary snapshots see one committed state, the latest when they began, but may show the read-only anomaly: for them
there is a check of their own, see `Txn.weak`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from history import Txn, check
from history_load import Crowd, acknowledged, final_of, schema
from pgserver import Server
from reliability import Record, form

LONG_COMMITS = {"fsync": "on", "commit_delay": "10000", "commit_siblings": "1"}
"""COMMIT takes so long that what is killed can be in the midst of it."""

VICTIM = """
SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
ORDER BY state = 'active' AND query = 'COMMIT' DESC, random() LIMIT 1
"""
"""Somebody who commits, if there is one."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(settings=LONG_COMMITS) as server:
        server.start()
        yield server


def final_state(url: str) -> Txn:
    with psycopg.connect(url, autocommit=True) as connection:
        return final_of("postgresql", lambda sql: connection.execute(sql.encode()).fetchall())


class Violence:
    """Be what is done to the server and to those who use it."""

    def __init__(self, server: Server, crowd: Crowd, chance: random.Random) -> None:
        self._server, self._crowd, self._chance = server, crowd, chance

    def terminate(self) -> None:
        """End one session, as an administrator may."""
        self._server.execute(f"SELECT pg_terminate_backend(pid) FROM ({VICTIM}) AS victim")

    def crash(self) -> None:
        """Kill one backend: the postmaster then ends all others, and recovers from the log."""
        with suppress(ProcessLookupError):  # it has ended meanwhile
            for (pid,) in self._server.execute(VICTIM):
                self._server.kill_backend(pid)
        self._server.wait_ready(60)

    def kill(self) -> None:
        """Kill a worker: what its backends are at may still be committed."""
        self._crowd.kill(self._chance.choice(self._crowd.workers))


@pytest.mark.slow
@pytest.mark.timeout(form(240, 1200))
def test_what_was_seen_is_serialisable(tmp_path: Path, seed: int, record: Record, server: Server) -> None:
    """No write transaction saw, or was told, what one order of all does not explain; no read a state that never was.

    Written down: each round has tables of its own. Workers do what `history_load.Session` draws by its seed. Whenever
    a drawn worker has recorded so and so much more, a session is ended, or a backend killed with SIGKILL, so that the
    server recovers from a crash, or a worker. What they were at may have happened or not (`CommitUnknownError`).
    Whether the order agrees with real time too, which is not promised, is noted.
    """
    faults = ["terminate"] * form(3, 40) + ["crash"] * form(1, 6) + ["kill"] * form(1, 6)
    processes, strict = 2, True
    share = form(200_000, 5_000_000) // (processes * (len(faults) + 1))
    transactions = 0
    for number in range(form(1, 4)):
        chance = random.Random(f"{seed}/{number}")
        url = server.schema()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(schema("postgresql").encode())
        with Crowd(tmp_path / f"{number}", url, f"{seed}/{number}", processes, threads=4) as crowd:
            violence = Violence(server, crowd, chance)
            for fault in chance.sample(faults, len(faults)):
                crowd.wait_for_all(1)  # each is past its opening, which may fail where the server is away
                crowd.wait_for(chance.choice(crowd.workers), chance.randrange(3 * share))
                getattr(violence, fault)()
            crowd.wait_for_all(share)
            history = crowd.finish()
        final = final_state(url)
        found = check(history, final=final, strict=False)
        lost = sum(anomaly.name == "lost write" for anomaly in found)
        record.add(rounds=1, kills=len(faults), acknowledged=acknowledged(history), lost=lost)
        transactions += len(history)
        record.note(transactions=transactions)
        print(f"round {number}:", Counter(txn.outcome for txn in history))
        assert not found, "\n".join(map(str, found[:10]))
        stricter = check(history, final=final, strict=True)
        print("real time:", *stricter)
        strict = strict and not stricter
    record.note(agrees_with_real_time=strict)
