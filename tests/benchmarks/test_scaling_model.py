"""The formula of durable writes is fitted truly: constants that made the runs are found again, and gaps are told."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from synthetic import run

from benchmarks import compare, model
from benchmarks.case import Run
from benchmarks.machine import Machine
from benchmarks.model import MOST, Model
from benchmarks.peers import ONE_LOCK, PER_THREAD, SAFEDB
from benchmarks.results import Pair, Results

ROOT = Path(__file__).parents[2]
PROBE = 0.0002
TRUTH = Model(flush=0.0005, source="", group=0.00012, write=22e-6, alone=60e-6, hand=40e-6)
NAMES = ("flush", "group", "write", "alone", "hand")
ABOUT = compare.about([SAFEDB, PER_THREAD, ONE_LOCK])
REPEATS = (0.96, 1.0, 1.05)
LOADS = ((1, 0.0), (4, 0.0), (16, 0.0), (64, 0.0), (256, 0.0), (16, 0.002), (64, 0.0005), (64, 0.002), (64, 0.01))
MACHINE = asdict(
    Machine(cores=2, processor="any", system="any", filesystem="any", flush=PROBE, python="3", sqlite="3", memory=1)
)


def runs(peer: str, rate: float | None, **more: Any) -> list[Run]:
    """Make up the repeats of a load."""
    assert rate is not None
    return [run(peer, repeat, rate * times, **more) for repeat, times in enumerate(REPEATS)]


def full(truth: Model = TRUTH) -> list[Run]:
    """Make up what the constants foretell at FULL."""
    made = []
    for threads, added in LOADS:
        flush = truth.flush + added
        made += runs(SAFEDB, truth.safedb(threads, flush), threads=threads, flush=added)
        for peer in (ONE_LOCK, PER_THREAD):
            made += runs(peer, truth.one_lock(threads, flush), threads=threads, flush=added)
    return made


def normal(truth: Model = TRUTH) -> list[Run]:
    """Make up the same at NORMAL, where nothing is flushed."""
    made = runs(SAFEDB, truth.safedb(1, 0.0), synchronous="NORMAL")
    for threads in (1, 16):
        for peer in (ONE_LOCK, PER_THREAD):
            made += runs(peer, truth.one_lock(threads, 0.0), threads=threads, synchronous="NORMAL")
    return made


def results(some: list[Run], pairs: list[Pair] | None = None) -> Results:
    return Results("short", "today", "python3", machine=MACHINE, peers=ABOUT, runs=some, pairs=pairs or [])


def assert_found(found: Model, truth: Model = TRUTH) -> None:
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.02), name


def test_the_constants_that_made_the_runs_are_found_again() -> None:
    """The disk's probe, which overwrites, takes less than half of what the flush of a commit takes."""
    assert_found(model.fit(results(full() + normal())))


def test_without_runs_at_normal_the_probe_stands_for_the_flush_and_this_is_said() -> None:
    truth = replace(TRUTH, flush=PROBE)
    some = results(full(truth))
    assert_found(model.fit(some), truth)
    assert "the machine's probe: at NORMAL nothing was measured by hand" in model.markdown(some)


def test_one_thread_is_also_known_from_the_works_done_in_turn() -> None:
    """Written down: no run of safedb's at NORMAL, and the one at FULL is far too slow: the disk was busy."""
    some = [one for one in full() + normal() if one.case.peer != SAFEDB or one.case.threads > 1]
    some += runs(SAFEDB, 10.0)
    pair = Pair("write", 1, "NORMAL", {"raw": [1e-5], SAFEDB: [60e-6, 9.0, 60e-6]})
    assert_found(model.fit(results(some, [pair])))


def test_what_is_not_the_same_load_changes_nothing() -> None:
    """Written down: safedb beside burning threads, in processes, at a rate, with rows, in functions, on a server."""
    others: list[dict[str, Any]] = [
        {"beside": "burning"}, {"processes": 4}, {"rate": 500.0}, {"rows": 10**7}, {"work": "function"},
        {"dialect": "postgresql"}, {"switch": 0.0001}, {"beside": "busy"}, {"scheduler": "batch"},
    ]  # fmt: skip
    slow = [one for peer in (SAFEDB, ONE_LOCK) for one in runs(peer, 7.0, threads=16)]
    strange = [replace(one, case=replace(one.case, **other)) for other in others for one in slow]
    some = full() + normal()
    assert model.fit(results([*strange, *some])) == model.fit(results(some))


def test_crowds_larger_than_a_group_are_shown_and_not_fitted() -> None:
    some = results(full() + normal() + runs(SAFEDB, 1e6, threads=2 * MOST))
    assert_found(model.fit(some))
    (row,) = [text for text in model.markdown(some).splitlines() if text.startswith(f"| {2 * MOST:,} |")]
    assert " 960,000 … 1,000,000 … 1,050,000 |" in row
    assert TRUTH.safedb(2 * MOST, TRUTH.flush) == TRUTH.safedb(MOST, TRUTH.flush)


def test_a_cell_without_a_good_run_is_left_out_and_said() -> None:
    """Written down: one load failed in all repeats, in another no write was done; a third has lost rows in some."""
    some = [one for one in full() + normal() if one.case.peer != SAFEDB or one.case.threads not in (16, 64)]
    some += [run(SAFEDB, repeat, 1, threads=16, failed="why") for repeat in range(3)]
    some += [run(SAFEDB, 0, 0, threads=64, flush=0.002)]
    some += runs(SAFEDB, TRUTH.safedb(64, TRUTH.flush), threads=64)
    lost = run(SAFEDB, 3, 9_999_999, threads=64)
    some += 4 * [replace(lost, outcome=replace(lost.outcome, failed="3 acknowledged rows are not there"))]
    assert_found(model.fit(results(some)))
    text = model.markdown(results(some))
    told = "safedb, 16 threads, flush not slowed; safedb, 64 threads, every flush 2 ms slower."
    assert f"- Left out, for there is no run that went well: {told}" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 16 | 0.500 |")]
    assert row.split(" | ")[3:5] == ["—", "—"]  # not measured, so no difference; what is foretold stands there


def test_what_cannot_be_fitted_is_said_and_not_drawn(tmp_path: Path) -> None:
    """Written down: one number of threads is one equation for two unknowns."""
    some = results(runs(SAFEDB, 5000.0, threads=16))
    found = model.fit(some)
    assert (found.group, found.write, found.alone, found.hand) == (None, None, None, None)
    assert found.safedb(16, 0.001) is None
    text = model.markdown(some)
    for told in ("*G* and *c* could not be fitted", "Not measured, for *a*", f"Not measured, for *r*: {ONE_LOCK}"):
        assert told in text
    assert model.draw(some, tmp_path) == []


def test_a_group_costs_never_less_than_nothing() -> None:
    """Written down: the runs lie so that the straight line through them begins below zero."""
    some = [*runs(SAFEDB, 16 / 0.00055, threads=16), *runs(SAFEDB, 64 / 0.004, threads=64)]
    found = model.fit(results(some))
    assert found.group == 0.0
    assert found.write is not None
    assert found.write > 0


def test_where_safedb_was_not_measured_there_is_no_section(tmp_path: Path) -> None:
    some = results(runs(ONE_LOCK, 1000.0))
    assert model.markdown(some) == ""
    assert compare.MODEL not in compare.sections(some)
    assert model.draw(some, tmp_path) == []


def test_differences_are_told_with_their_sign_and_of_what_was_foretold() -> None:
    """Written down: one cell is 10 % slower than all the others foretell."""
    some = [one for one in full() + normal() if (one.case.peer, one.case.flush) != (ONE_LOCK, 0.01)]
    predicted = TRUTH.one_lock(64, TRUTH.flush + 0.01)
    assert predicted is not None
    text = model.markdown(results(some + runs(ONE_LOCK, 0.9 * predicted, threads=64, flush=0.01)))
    (row,) = [line for line in text.splitlines() if line.startswith("| 64 | 10.5 |")]
    assert row.endswith(("| -11% |", "| -10% |"))
    assert "in the median" in text


def test_the_section_is_put_into_its_page_and_the_picture_beside_the_tables(tmp_path: Path) -> None:
    file, page, out = tmp_path / "results.json", tmp_path / "page.md", tmp_path / "out"
    results(full() + normal()).save(file)
    page.write_text("before\n<!-- model: begin (made) -->\nold\n<!-- model: end -->\nafter\n", encoding="utf-8")
    assert compare.main(["--render", str(file), "--out", str(out), "--insert", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    for part in (
        "before\n",
        "| *c* | a write in a group",
        "22 µs",
        "one lock, any number",
        "<!-- model: end -->\nafter",
    ):
        assert part in text, part
    words = [
        "".join(one.itertext()) for one in ElementTree.parse(out / "model.svg").iter() if one.tag.endswith("}text")
    ]
    for word in ("threads (logarithmic)", "acknowledged writes/s (logarithmic)", "safedb, flush 0.5 ms"):
        assert word in words
    assert {"one lock, flush 10.5 ms", "safedb, flush 10.5 ms"} <= set(words)


def test_the_page_has_a_place_for_the_section() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    assert text.count(f"<!-- {compare.MODEL}: begin") == text.count(f"<!-- {compare.MODEL}: end -->") == 1
