"""The interpreter ends while writes are under way: it ends at once, with its status, and loses nothing acknowledged."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import interrupting
import pytest
from reliability import LONG
from support import sqlite3, unmeasured

DEADLINE = 90.0  # seconds, after which a program hangs
STATUS = {"exit_in_a_block": 7, "exit_in_a_function": 7, "exit_at_once": 7, "exception_beside_blocks": 1}
ENDS = (
    "idle", "daemons", "threads", "at_exit", "exit_in_a_block", "exit_in_a_function", "exit_at_once",
    "exception_beside_blocks", "executors", "in_a_checkpoint", "forgotten", "closed",
)  # fmt: skip
QUIET = {"closed", "exit_at_once", "exit_in_a_block", "exit_in_a_function", "at_exit"}  # no handle is left unclosed


def end(name: str, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end; coverage's own hooks at exit are kept out of it."""
    command = [sys.executable, *options, interrupting.__file__, name, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False, env=unmeasured())


def there(path: Path) -> Counter[str]:
    """Count the parts of each key in the file, with a program that does not know safedb."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return Counter(key for (key,) in connection.execute("SELECT k FROM t"))
    finally:
        connection.close()


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_the_interpreter_loses_no_acknowledged_write_and_waits_for_nobody(tmp_path: Path, name: str) -> None:
    """H28: an exit with a handle open, with threads in the middle of a write, in a block, in a checkpoint.

    Written down: each program says what was acknowledged, by a system call of its own right after the call, and ends in
    the way that `interrupting` tells of. It ends within the deadline, with the status it asked for; what it said is in
    the file, whole, and what it had not finished is not; no thread of safedb's prints a traceback.
    """
    path = tmp_path / "app.db"
    ended = end(name, path)
    assert ended.returncode == STATUS.get(name, 0), ended
    acknowledged = dict(line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("kept "))
    assert acknowledged, ended
    found = there(path)
    assert {key: found[key] for key in acknowledged} == {key: int(parts) for key, parts in acknowledged.items()}
    assert "unfinished" not in found
    assert "safedb-" not in ended.stderr, "a thread of safedb's"
    if name != "exception_beside_blocks":
        assert "Traceback" not in ended.stderr, ended.stderr
    if name == "at_exit":
        assert "atexit-19" in acknowledged


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS if LONG else ("at_exit", "executors", "exit_in_a_block", "forgotten", "closed"))
def test_only_a_forgotten_handle_is_warned_about(tmp_path: Path, name: str) -> None:
    """H28: `python -X dev -W error`, which shows every resource that nobody closed."""
    ended = end(name, tmp_path / "app.db", "-X", "dev", "-W", "error")
    warned = [line for line in ended.stderr.splitlines() if "Warning" in line]
    if name in QUIET:
        assert not warned, ended.stderr
    assert all("<Database" in line and "was not closed" in line for line in warned), ended.stderr
    assert len(warned) <= 1
    if name == "forgotten":
        assert warned
