"""The plan of the benchmarks: nothing is forgotten, and nobody is favoured. Nothing is measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import __main__ as bare
from benchmarks import compare, lab
from benchmarks.case import Case, Outcome, Run, Waits
from benchmarks.markup import TIMES
from benchmarks.peers import ONE_LOCK, PEERS, PER_THREAD, SAFEDB, peer
from benchmarks.plan import REPEATS, SCENARIOS, Form, able, chosen, estimate, load_of, plan, steps
from benchmarks.progress import clock
from benchmarks.results import Results, alone

ROOT = Path(__file__).parents[2]
FORMS: tuple[Form, ...] = ("short", "long")
ONE = ("--only", "rows", "--peers", ONE_LOCK)  # of the short form: one case


@pytest.mark.parametrize("form", FORMS)
def test_every_peer_and_every_scenario_is_in_both_forms(form: Form) -> None:
    cases = plan(form)
    assert {case.peer for case in cases} == set(PEERS)
    assert {case.scenario for case in cases} == set(SCENARIOS)
    assert len(cases) == len(set(cases))


@pytest.mark.parametrize(("form", "most"), [("short", 3), ("long", 47)])
def test_the_forms_take_the_minutes_that_are_told(form: Form, most: float) -> None:
    assert sum(map(estimate, plan(form))) * REPEATS[form] + compare.PAIRS[form] <= most * 60


def test_all_peers_do_a_load_one_after_the_other_and_each_time_another_is_the_first() -> None:
    cases = plan("long")
    made = list(steps(cases, 3))
    assert sorted(map(repr, made)) == sorted(repr(step) for step in set(made))  # each once
    assert len(made) == 3 * len(cases)
    for repeat in range(3):
        some = [step.case for step in made if step.repeat == repeat]
        assert set(some) == set(cases)
        changes = sum(load_of(one) != load_of(other) for one, other in pairwise(some))
        assert changes == len({load_of(case) for case in cases}) - 1
    firsts = [
        next(step.case.peer for step in made if step.repeat == repeat and load_of(step.case) == load_of(cases[0]))
        for repeat in range(3)
    ]
    assert len(set(firsts)) == 3


def test_a_peer_is_asked_only_for_what_it_can_do() -> None:
    hand = peer(ONE_LOCK)
    limited = type("Limited", (hand,), {"works": frozenset({"write"}), "many_processes": False})
    assert able(Case("", "", "write", 4), limited)
    assert not able(Case("", "", "point", 4), limited)
    assert not able(Case("", "", "write", 4, processes=2), limited)
    assert able(Case("", "", "write", 4, processes=2), hand)


def test_words_choose_scenarios_and_peers() -> None:
    found = chosen(plan("long"), ["held", "OPEN"], ["safe", "lock"])
    assert {case.scenario for case in found} == {"lock held", "reader held", "open loop"}
    assert {case.peer for case in found} == {SAFEDB, ONE_LOCK}
    assert chosen(plan("short"), ["no such"]) == []


def test_the_list_tells_all_cases_and_measures_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare.main(["--list", "--long", "--only", "processes", "--peers", SAFEDB, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("processes: safedb") == 3
    assert f"3 cases {TIMES} 3, about" in out
    assert list(tmp_path.iterdir()) == []
    assert compare.main(["--list", "--only", "pairs"]) == 0
    assert f"0 cases {TIMES} 1, about {clock(compare.PAIRS['short'])}" in capsys.readouterr().out


def test_words_that_leave_no_case_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--only", "nonsense"]) == 2
    assert "open loop" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["--repeats", "0"],
        ["--repeats", "x"],
        ["--nonsense"],
        ["word"],
        ["--folder", "/no/such"],
        ["--render", "/no/such"],
        ["--insert", "/no/such"],
    ],
)
def test_arguments_that_mean_nothing_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        compare.main(given)
    assert raised.value.code == 2
    assert "usage: python3 -m benchmarks" in capsys.readouterr().err


def test_a_second_run_with_the_same_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written down: the first one is at work; the second says so, and writes nothing; afterwards it may."""
    with alone(tmp_path):
        assert compare.main([*ONE, "--out", str(tmp_path), "--folder", str(tmp_path)]) == 1
    assert "another run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path):
        pass


def test_where_results_cannot_be_written_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert compare.main([*ONE, "--out", str(tmp_path / "file" / "out"), "--folder", str(tmp_path)]) == 1
    assert "This cannot be done" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_that_is_told_measures_the_same_wherever_its_files_lie() -> None:
    asked = compare.arguments(["--long", "--out", "/somewhere", "--only", "lock held", "--repeats", "2"])
    assert compare.command(asked) == "python3 -m benchmarks --long --only 'lock held' --repeats 2"


def test_tables_are_made_again_of_stored_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A results file, its tables, and a page that has marks for some of them."""
    results = stored()
    file, page = tmp_path / "results.json", tmp_path / "page.md"
    results.save(file)
    page.write_text(
        "before\n<!-- goals: begin (made by a command) -->\nold\n<!-- goals: end -->\n"
        "between\n<!-- writes: begin -->\n<!-- writes: end -->\nafter\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    assert compare.main(["--render", str(file), "--out", str(out), "--insert", str(page)]) == 0
    told = capsys.readouterr().out
    assert "**unfinished**" in told
    assert "acknowledged writes, FULL, 64 threads" in told
    tables = (out / "tables.md").read_text(encoding="utf-8")
    for name in ("## machine", "## goals", "## writes"):
        assert name in tables
    text = page.read_text(encoding="utf-8")
    for part in ("before\n", "(made by a command) -->", "between\n", "<!-- writes: end -->\nafter\n", "| 8 ", "safedb"):
        assert part in text, part
    assert "old" not in text
    again = page.read_text(encoding="utf-8")
    compare.main(["--render", str(file), "--out", str(out), "--insert", str(page)])
    assert page.read_text(encoding="utf-8") == again


def stored() -> Results:
    """Make results of two peers under one load, of a run that was interrupted."""
    machine = {
        "cores": 2, "processor": "some", "system": "Linux", "filesystem": "ext4", "flush": 1e-4, "python": "3.11",
        "sqlite": "3.40.1",
    }  # fmt: skip
    about = {"package": "some", "version": "1", "source": "https://example.org", "kind": "acknowledging", "remark": ""}
    peers = dict.fromkeys((SAFEDB, ONE_LOCK), about)
    load = Case("writes", "", "write", 64)
    runs = [
        Run(
            replace(load, peer=name),
            0,
            Outcome(seconds=1.0, counts=[[count] * 64], waits={"write": Waits.of([0.01] * 64)}),
        )
        for name, count in ((SAFEDB, 80), (ONE_LOCK, 10))
    ]
    return Results("short", "2026-01-01", "python3 -m benchmarks", machine, peers, runs)


def instead(monkeypatch: pytest.MonkeyPatch, run: Callable[[Case], Outcome]) -> None:
    """Let cases be run by ``run``: nothing is measured, and only what is made of the outcomes is looked at."""
    monkeypatch.setattr(lab, "run", lambda case, _, **__: run(case))


def begin(folder: Path, *scenarios: str) -> Results:
    """Go through the short plan for some scenarios; give what its file says."""
    results, file = Results("short", "2026-01-01", "python3 -m benchmarks"), folder / "results.json"
    cases, _ = compare.selection("short", scenarios, ["sqlite3,", "by hand"])
    try:
        compare.measure(results, cases, 1, folder, file, whole=False)
    finally:
        assert list(folder.iterdir()) == [file]
    return Results.load(file)


def test_a_case_that_breaks_the_bench_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(case: Case) -> Outcome:
        if case.peer == ONE_LOCK:
            raise ValueError("broken")
        return Outcome(seconds=1.0)

    instead(monkeypatch, run)
    found = begin(tmp_path, "mixed")
    assert {run.case.peer: run.outcome.failed for run in found.runs} == {
        PER_THREAD: "",
        ONE_LOCK: "ValueError: broken",
    }
    assert found.finished


def test_a_run_that_is_interrupted_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Written down: Ctrl-C in the second case."""
    asked: list[Case] = []

    def run(case: Case) -> Outcome:
        asked.append(case)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Outcome(seconds=1.0)

    instead(monkeypatch, run)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, "mixed")
    found = Results.load(tmp_path / "results.json")
    assert [run.case for run in found.runs] == asked[:1]
    assert not found.finished


def test_where_no_server_can_be_started_its_cases_are_left_out_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def serving(_: None) -> AbstractContextManager[str]:
        raise RuntimeError("No PostgreSQL server can be started\nInstall one.")

    monkeypatch.setattr("benchmarks.pgsides.serving", serving)
    instead(monkeypatch, lambda _: Outcome(seconds=1.0))
    found = begin(tmp_path, "mixed", "postgresql")
    assert {run.case.dialect for run in found.runs} == {"sqlite"}
    assert found.notes == ["PostgreSQL is left out: No PostgreSQL server can be started"]
    assert found.finished


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    results = stored()
    file = tmp_path / "results.json"
    results.save(file)
    assert Results.load(file) == results
    assert json.loads(file.read_text(encoding="utf-8"))["finished"] is False
    assert list(tmp_path.iterdir()) == [file]


def test_the_command_needs_nothing_but_python() -> None:
    """``python3 -m benchmarks`` makes its environment first: till then there is neither safedb nor any peer."""
    code = "import sys, benchmarks.__main__; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    out = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "benchmarks" in out
    assert "safedb" not in out


def test_an_environment_is_made_anew_when_what_belongs_into_it_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lists = (tmp_path / "pyproject.toml", tmp_path / "peers.txt")
    for path in lists:
        path.write_text("a==1\n", encoding="utf-8")
    ran: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> None:
        assert check
        ran.append(command)
        (tmp_path / "env").mkdir(exist_ok=True)

    monkeypatch.setattr(bare, "LISTS", lists)
    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        bare.prepare(tmp_path / "env")
    assert [command[2] for command in ran] == ["venv", "pip"]
    lists[1].write_text("a==2\n", encoding="utf-8")
    bare.prepare(tmp_path / "env")
    assert len(ran) == 4
