"""multiprocessing in its three ways, with processes, pools and executors: workers write, and nothing is lost.

The parents here are processes of their own (`pools`), so that a server of forks and its children end with them.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import process_group

import safedb

PROGRAM = str(Path(__file__).with_name("pools.py"))
JOBS = 30

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_write_and_nothing_is_lost(method: str, tmp_path: Path) -> None:
    """H34: forked workers use the handle that they inherit, the others connect; both sides' ledgers are exact.

    Written down: for each of Process, Pool (whose workers are replaced all the time, by forks in a thread) and
    ProcessPoolExecutor, the parent is idle; or writes and reads in threads; or holds a snapshot in a thread: then a
    forked worker is told so, each time, while those that were not forked from it write. (Of these, each kind once.)
    """
    order = [sys.executable, PROGRAM, method, str(tmp_path / "app.db")]
    with process_group(order, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        output, trouble = parent.communicate(timeout=100)
    assert parent.returncode == 0, trouble
    cases: dict[str, Any] = json.loads(output)
    assert cases.pop("check") == []
    assert len(cases) == (9 if method == "fork" else 3)
    for name, case in cases.items():
        assert case["answers"] == JOBS, name
        if method == "fork" and name.startswith("held"):
            assert case["rows"] == []
            assert all("was in use when this process was forked" in said for said in case["said"]), (name, case)
        else:
            assert case["said"] == ["wrote"], name
            assert case["rows"] == list(range(JOBS)), name


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda way: way.__name__)
def test_a_handle_is_not_copied(way: Callable[[object], object], tmp_path: Path) -> None:
    """Never silently weaker: a copy would share locks that do not belong to it; the error says what to do instead."""
    with safedb.connect(tmp_path / "app.db") as db:
        with pytest.raises(safedb.InterfaceError, match="connect; a forked child may use the handle that it inherits"):
            way(db)
        assert db.execute("SELECT 1").scalar() == 1


def _never(db: safedb.Database) -> None:
    raise AssertionError("it was pickled")


def test_a_handle_is_an_argument_of_forked_processes_only(tmp_path: Path) -> None:
    """H34: "fork" copies it with all else; "spawn" and every pool pickle their arguments, and are refused at once."""
    with safedb.connect(tmp_path / "app.db", schema="CREATE TABLE t (x)") as db:
        fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
        with pytest.raises(safedb.InterfaceError, match="cannot be copied or pickled"):
            spawn.Process(target=_never, args=(db,)).start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            worker = fork.Process(target=db.execute, args=("INSERT INTO t VALUES (1)",))
            worker.start()
        worker.join(30)
        assert worker.exitcode == 0
        worker.close()
        assert db.execute("SELECT count(*) FROM t").scalar() == 1
