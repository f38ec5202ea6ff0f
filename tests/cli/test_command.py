"""`safedb stress` as a user runs it: real processes, real files, real signals."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import process_group, sqlite3, unmeasured

from safedb.cli import main
from safedb.cli.stress import report as reporting
from safedb.cli.stress import target, verify
from safedb.cli.stress.phase import Phase, PhaseResult
from safedb.cli.stress.verify import Findings
from safedb.cli.stress.workload import PREFIX, Place

SHORT = ("--seconds", "0.5", "--threads", "4")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "safedb", "stress", *arguments]


def stress(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=100, env=unmeasured())


def sides(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["sides"]
    return found


def test_json_alone_goes_to_standard_output_and_every_acknowledged_write_was_checked(here: Path) -> None:
    done = stress(*SHORT, "--json", "--seed", "5")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["options"]["seed"] == 5
    assert report["problems"] == []
    assert list(sides(report)) == ["by_hand", "safedb"]
    for side in sides(report).values():
        assert side["acknowledged_writes"] == side["findings"]["checked"] > 0
        assert side["write_latency"]["count"] == side["acknowledged_writes"]
        assert side["write_latency"]["p50"] <= side["write_latency"]["p99.9"] <= side["write_latency"]["max"]
        assert sum(count for _, count in side["write_latency"]["buckets"]) == side["acknowledged_writes"]
        assert side["findings"]["integrity"] == []
    assert sides(report)["safedb"]["findings"]["lost_updates"] == 0
    assert "by hand: starting" in done.stderr
    assert list(here.iterdir()) == []


def test_the_table_puts_both_sides_beside_each_other(here: Path) -> None:
    done = stress(*SHORT, "--processes", "2", "--plot", "../both.png")
    assert done.returncode == 0, done.stderr
    heading = next(line for line in done.stdout.splitlines() if "by hand" in line)
    assert heading.index("by hand") < heading.index("safedb")
    for line in (
        "acknowledged writes/s",
        "p50",
        "p99.9",
        '"database is locked" errors',
        "lost updates",
        "Jain's index",
        "longest wait for another process",
    ):
        assert line in done.stdout
    assert "2 processes, each with 4 writers" in done.stdout
    assert "acknowledged writes is in the file exactly once" in done.stdout
    assert (here / "../both.png").read_bytes().startswith(b"\x89PNG")
    assert list(here.iterdir()) == []


def test_the_unpleasant_cases_at_once(here: Path) -> None:
    trouble = ("--lock-holder", "0.3", "--slow-reader", "0.3", "--cpu-threads", "1", "--no-by-hand")
    done = stress(*SHORT, *trouble, "--json", "../trouble.json", "--plot", "../trouble.svg")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((here / "../trouble.json").read_text())
    assert list(sides(report)) == ["safedb"]
    assert sides(report)["safedb"]["lock_holder"]["held"] >= 0.3
    assert sides(report)["safedb"]["write_latency"]["max"] >= 0.25
    assert "another program held the write lock" in done.stdout
    ElementTree.parse(here / "../trouble.svg")


def test_rows_come_from_the_folder_that_was_named_and_the_database_can_be_kept(here: Path) -> None:
    (here / "notes").mkdir()
    (here / "notes" / "one.txt").write_text("first\nsecond\n")
    done = stress(*SHORT, "--source", "notes", "--keep")
    assert done.returncode == 0, done.stderr
    [kept] = here.glob("safedb-stress-*")
    assert f"The database is kept: {kept}" in done.stderr
    for name in ("by-hand.db", "safedb.db"):
        with sqlite3.connect(kept / name) as connection:
            rows = connection.execute(f"SELECT DISTINCT path, line, body FROM {PREFIX}rows").fetchall()
        connection.close()
        assert rows == [("one.txt", 1, "first\nsecond\n")]


def test_a_database_of_the_users_own_keeps_what_is_in_it(here: Path) -> None:
    with sqlite3.connect("mine.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.execute("INSERT INTO mine VALUES (42)")
    connection.close()
    done = stress(*SHORT, "sqlite:///mine.db")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect("mine.db") as connection:
        assert connection.execute("SELECT name, x FROM sqlite_schema, mine").fetchall() == [("mine", 42)]
    connection.close()


# Ctrl-C.


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descendants(group: int) -> list[int]:
    """Return the processes of a process group that are still there (zombies left out)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def written(here: Path, name: str) -> bool:
    """Tell whether a side has begun to write."""
    return any(wal.stat().st_size > 100_000 for wal in here.glob(f"safedb-stress-*/{name}.db-wal"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_reports_what_there_is_and_leaves_nothing(here: Path, processes: str) -> None:
    """The signal goes to the whole group, children included, as a terminal sends it."""
    arguments = ("--processes", processes, "--threads", "4", "--seconds", "60", "--lock-holder", "0.2", "--json")
    with process_group(command(*arguments), stdout=subprocess.PIPE) as process:
        wait_for(lambda: written(here, "by-hand"))
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads(output)
    assert report["interrupted"] is True
    assert list(sides(report)) == ["by_hand"]
    assert sides(report)["by_hand"]["findings"]["checked"] > 0
    assert sides(report)["by_hand"]["findings"]["lost"] == 0
    assert sides(report)["by_hand"]["broken"] == []
    assert list(here.iterdir()) == []
    wait_for(lambda: descendants(process.pid) == [])


def test_ctrl_c_on_the_safedb_side_reports_both(here: Path) -> None:
    with process_group(command(*SHORT[2:], "--seconds", "4", "--json"), stdout=subprocess.PIPE) as process:
        wait_for(lambda: written(here, "safedb"))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    report = json.loads(output)
    assert process.returncode == 130
    assert sides(report)["safedb"]["findings"]["checked"] > 0
    assert report["problems"] == []
    assert list(here.iterdir()) == []


def test_ctrl_c_twice_gives_up_at_once_and_still_cleans_up(here: Path) -> None:
    arguments = (*SHORT[2:], "--seconds", "60", "--lock-holder", "30")
    with process_group(command(*arguments), stderr=subprocess.PIPE) as process:
        wait_for(lambda: written(here, "by-hand"))
        os.kill(process.pid, signal.SIGSTOP)  # both are there when it wakes up
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in {130, 143}
    assert "Interrupted twice" in errors
    assert list(here.iterdir()) == []


def test_ctrl_c_on_a_terminal(here: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command("--processes", "2", "--threads", "2", "--seconds", "60"))
    seen = b""
    pressed = False
    while True:
        if not pressed and written(here, "by-hand"):
            os.write(terminal, b"\x03")
            pressed = True
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # Linux says so when the last process has closed its end
                break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"writes/s, worst wait" in seen
    assert "Interrupted: these are the numbers until then." in seen.decode()
    assert list(here.iterdir()) == []


# In this process: what the exit code says.


_verify = verify.verify


def broken(place: Place, *arguments: Any) -> Findings:
    found = _verify(place, *arguments)
    found.lost += "safedb.db" in place.path
    return found


def test_a_broken_promise_of_safedb_gives_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "verify", broken)
    assert main(["stress", *SHORT, "--no-by-hand"]) == 1
    output = capsys.readouterr().out
    assert "safedb broke its promises:" in output
    assert "1 acknowledged writes lost" in output


def test_what_the_by_hand_side_loses_does_not_change_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "verify", lambda place, *rest: Findings(lost=int("by-hand" in place.path)))
    assert main(["stress", *SHORT]) == 0
    assert "broke" not in capsys.readouterr().out


def test_a_result_that_cannot_be_written_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(reporting, "write_json", full)
    assert main(["stress", *SHORT, "--no-by-hand", "--json", "x.json"]) == 2
    output, errors = capsys.readouterr()
    assert "acknowledged writes/s" in output
    assert "cannot write the result: " in errors
    assert list(here.iterdir()) == []


def test_what_cannot_be_prepared_is_said_and_cleaned_up(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(target.Fresh, "prepare", full)
    assert main(["stress", *SHORT]) == 2
    assert "database or disk is full" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_what_cannot_be_removed_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(target.Fresh, "remove", refuse)
    assert main(["stress", *SHORT, "--no-by-hand"]) == 0
    assert "Could not remove everything" in capsys.readouterr().err


def test_a_given_database_is_used_and_its_tables_dropped_in_between(here: Path) -> None:
    assert main(["stress", *SHORT, "sqlite:///new.db", "--keep", "--plot", "x.png", "--json", "x.json"]) == 0
    with sqlite3.connect("new.db") as connection:
        assert connection.execute(f"SELECT count(*) FROM {PREFIX}accounts").fetchone() == (64,)
    connection.close()


def interrupting(times: int) -> Callable[[Phase], PhaseResult]:
    """Stand for a phase during which Ctrl-C is pressed so many times before anything was measured."""

    def pressed(self: Phase) -> PhaseResult:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        return PhaseResult("by hand")

    return pressed


@pytest.mark.parametrize(("times", "said"), [(1, "nothing was measured yet"), (2, "Interrupted twice: no report.")])
def test_ctrl_c_at_the_very_start(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int, said: str
) -> None:
    monkeypatch.setattr(Phase, "run", interrupting(times))
    assert main(["stress", *SHORT]) == 130
    assert said in "".join(capsys.readouterr())
    assert list(here.iterdir()) == []


def test_ctrl_c_between_the_sides_leaves_out_the_second(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = target.Fresh.clear

    def press(self: target.Fresh) -> None:
        pressed(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(target.Fresh, "clear", press)
    assert main(["stress", *SHORT]) == 130
    output = capsys.readouterr().out
    assert "these are the numbers until then" in output
    assert "exactly once" not in output
