"""The table, the verdict and the picture say what the numbers are, and hide nothing."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from rich.console import Console

from safedb.cli.stress import picture, report, target, words
from safedb.cli.stress.lock_holder import Held
from safedb.cli.stress.machine import Disk, Machine
from safedb.cli.stress.main import Run
from safedb.cli.stress.options import Options
from safedb.cli.stress.phase import PhaseResult
from safedb.cli.stress.report import Report
from safedb.cli.stress.summary import Summary, summarise
from safedb.cli.stress.tally import Errors, ProcessResult, ReaderTally, WriterTally
from safedb.cli.stress.target import BY_HAND, SAFEDB
from safedb.cli.stress.verify import Findings
from safedb.cli.stress.workload import Outcome

OPTIONS = Options(
    url=None, threads=2, processes=1, readers=1, seconds=2.0, synchronous="FULL", seed=7, source=Path("notes"),
    lock_holder=0.0, slow_reader=0.0, cpu_threads=0, json=None, plot=Path("x.svg"), keep=False, by_hand=True,
)  # fmt: skip
MACHINE = Machine("A processor", 2, "Linux 6", "CPython 3.11", "0.1.0", Disk("3.40.1", "ext4", "it lies in /tmp", 5e-5))


def writer(number: int, waits: list[int], failures: list[Outcome]) -> WriterTally:
    tally = WriterTally(number)
    for index, nanoseconds in enumerate(waits):
        ledger = tally.transfers if index % 4 == 3 else tally.rows
        ledger.done(nanoseconds, in_time=True)
    for outcome in failures:
        tally.rows.failed(outcome)
        tally.errors.add(OSError("database is locked" if outcome is Outcome.LOCKED else outcome.value), 5_000_000_000)
    return tally


def summary(side: str, findings: Findings, *writers: WriterTally, held: Held | None = None) -> Summary:
    reader = ReaderTally(reads=100, totals=5, wrong_totals=0, errors=Errors(Counter({"X: y": 0})))
    reader.latency.add(20_000)
    process = ProcessResult(0, 2.0, list(writers), [reader], [], {})
    return summarise(PhaseResult(side, [process], [], held, {"largest_wal": 4_200_000}), findings)


@pytest.fixture
def by_hand() -> Summary:
    waits = [50_000 + 37 * number for number in range(2_000)] + [2_100_000_000]
    failed = writer(1, waits[:100], [Outcome.LOCKED] * 3 + [Outcome.OTHER])
    return summary(BY_HAND, Findings(checked=2_101, lost_updates=3), writer(0, waits, []), failed)


@pytest.fixture
def safe() -> Summary:
    waits = [900_000 + 1_003 * number for number in range(3_000)]
    return summary(SAFEDB, Findings(checked=6_000), writer(0, waits, []), writer(1, waits, []), held=Held(0.001, 1.0))


def made(
    *sides: Summary, problems: tuple[str, ...] = (), excused: str | None = None, interrupted: bool = False
) -> Report:
    return Report(
        OPTIONS, words.FILE, MACHINE, "2026-01-01 00:00:00 +0000", list(sides), list(problems), excused, interrupted
    )


def shown(result: Report) -> str:
    written = io.StringIO()
    report.show(result, Console(file=written, width=10_000))
    return written.getvalue()


def test_the_numbers_are_those_of_the_threads(by_hand: Summary, safe: Summary) -> None:
    assert by_hand.acknowledged == 2_101
    assert by_hand.writes == 2_101 / 2
    assert (by_hand.locked, by_hand.other, by_hand.unknown) == (3, 1, 0)
    assert by_hand.longest_error == 5.0
    assert by_hand.threads.slowest_to_fastest == pytest.approx(100 / 2_001)
    assert by_hand.reads == 50
    assert safe.threads.jain == safe.threads.slowest_to_fastest == 1.0
    assert by_hand.texts[0] == ("OSError: database is locked", 3)


def test_the_table_shows_both_sides(by_hand: Summary, safe: Summary) -> None:
    text = shown(made(by_hand, safe))
    lines = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if line.count("│") == 4}
    assert [cell.strip() for cell in lines["acknowledged writes/s"]] == ["1,050", "3,000"]
    assert [cell.strip() for cell in lines['"database is locked" errors']] == ["3", "0"]
    assert [cell.strip() for cell in lines["lost updates of accounts"]] == ["3", "0"]
    assert "2.10 s" in text
    assert "2 writers, 1 reader, 2 s a side, synchronous=FULL" in text
    assert "How to read it: by hand the usual wait is short" in text
    assert "Note: it lies in /tmp" in text
    assert "safedb: another program held the write lock for 1.00 s" in text
    assert "--seed 7 repeats the same work" in text
    assert "by hand: 3 times OSError: database is locked" in text
    assert "each of 6,000 acknowledged writes is in the file exactly once" in text


def test_a_run_that_measured_nothing_still_has_a_table(safe: Summary) -> None:
    nothing = summarise(PhaseResult(SAFEDB, broken=["process 1 died (signal 9)"]), Findings())
    assert nothing.problems(excused=False) == ["process 1 died (signal 9)"]
    assert "-" in shown(made(nothing, problems=("process 1 died (signal 9)",)))
    assert "nothing was measured yet" in shown(made(interrupted=True))
    assert "these are the numbers until then" in shown(made(safe, interrupted=True))


def test_every_kind_of_problem_is_named() -> None:
    spoilt = summary(
        SAFEDB,
        Findings(lost=1, doubled=2, damaged=3, stray=4, applied=5, lost_updates=6, wrong_accounts=7, missing_money=-8,
                 integrity=["row 1 missing from index"]),
        writer(0, [1_000], [Outcome.LOCKED, Outcome.UNKNOWN, Outcome.OTHER]),
    )  # fmt: skip
    spoilt.wrong_totals, spoilt.read_errors, spoilt.broken = 1, 2, ["process 1 died"]
    problems = spoilt.problems(excused=False)
    assert len(problems) == 15
    text = shown(made(spoilt, problems=tuple(problems)))
    for problem in problems:
        assert f"  - {problem}" in text
    assert "exactly once" not in text
    assert len(spoilt.problems(excused=True)) == 14


def test_a_lock_held_longer_than_the_deadline_is_an_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    side = summary(SAFEDB, Findings(), writer(0, [1_000], [Outcome.LOCKED]))

    def excuse(held: float, *sides: Summary) -> str | None:
        values = {name: getattr(OPTIONS, name) for name in Options.__slots__} | {"lock_holder": held}
        one = Run(Options(**values), io.StringIO(), io.StringIO())
        where = target.choose(None)
        try:
            return one._excuse(list(sides), where)
        finally:
            where.remove()

    assert "held the lock for 12 s, and a call waits no longer than 10 s" in (excuse(12.0, side) or "")
    assert excuse(2.0, side) is None
    assert excuse(12.0, summary(SAFEDB, Findings(), writer(0, [1_000], []))) is None
    assert "no longer than 10 s" in shown(made(side, excused=excuse(12.0, side)))


def test_json_has_every_number_and_nothing_that_json_cannot_say(
    by_hand: Summary, safe: Summary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = made(by_hand, safe, summarise(PhaseResult("empty"), Findings()))
    report.write_json(result, "-")
    told = json.loads(capsys.readouterr().out)
    report.write_json(result, str(tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()) == told
    assert told["options"]["source"] == "notes"
    assert told["sides"]["by_hand"]["errors"]["database_is_locked"] == 3
    assert told["sides"]["safedb"]["lock_holder"] == {"waited": 0.001, "held": 1.0}
    assert told["sides"]["empty"]["write_latency"]["max"] is None


@pytest.mark.parametrize("name", ["x.svg", "x.png"])
def test_the_picture_is_drawn(by_hand: Summary, safe: Summary, tmp_path: Path, name: str) -> None:
    picture.draw(made(by_hand, safe), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 10_000
    if name.endswith("svg"):
        ElementTree.parse(tmp_path / name)


def test_a_picture_of_little_or_nothing_is_drawn_as_well(tmp_path: Path) -> None:
    one = summary(SAFEDB, Findings(), writer(0, [1_000_000], []))
    picture.draw(made(one), tmp_path / "one.svg")
    picture.draw(made(summary(SAFEDB, Findings())), tmp_path / "none.svg")
    assert picture._power(1e-9) == "1 ns"


def test_the_picture_says_what_it_does_not_draw(by_hand: Summary, safe: Summary, tmp_path: Path) -> None:
    with mpl.rc_context({"svg.fonttype": "none"}):
        picture.draw(made(by_hand, safe), tmp_path / "x.svg")
    words = (tmp_path / "x.svg").read_text()
    assert "by hand: 1,050 writes/s, worst wait 2.10 s, errors: 4 (not drawn)" in words
    assert "wait for one write (logarithmic)" in words
    assert "1 in 1,000 (p99.9)" in words
    assert "A processor, 2 cores" in words
