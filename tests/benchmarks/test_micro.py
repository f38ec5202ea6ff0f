"""The comparison of the micro level: what it marks, what it tells, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import micro
from benchmarks.calls import READS, SIDES, WRITES, calls, crew
from benchmarks.micro import Figure, Kept, Unusable, compare, load_all, reduce, save


def report(*timed: tuple[str, str, float, float], threads: int = 1, rows: int = 1) -> dict[str, Any]:
    """Make a report of pytest-benchmark: group, side, median and shortest round."""
    return {
        "benchmarks": [
            {
                "group": group,
                "extra_info": {"side": side, "threads": threads, "rows": rows},
                "stats": {"median": middle, "min": least},
            }
            for group, side, middle, least in timed
        ]
    }


def kept(**ratios: tuple[float, ...]) -> Kept:
    return Kept({"cores": 2}, {work: Figure(10.0, 10.0 * some[0], some) for work, some in ratios.items()})


def test_only_what_is_worse_by_both_measures_is_marked() -> None:
    """Written down: one by both, one by its medians only, one better, one as it was, one just within the limit."""
    before = kept(both=(1.0, 1.0), medians=(1.0, 1.0), better=(2.0, 2.0), same=(1.5, 1.5), within=(1.0, 1.0))
    now = kept(both=(1.3, 1.2), medians=(3.0, 1.1), better=(1.0, 1.0), same=(1.5, 1.5), within=(1.14, 1.14))
    rows, worse, remarks = compare(now, before, 15.0)
    assert worse == ["both"]
    assert [row.split(" |")[0] for row in rows if "**worse**" in row] == ["| both"]
    assert len(rows) == 5
    assert remarks == []


def test_a_ratio_is_of_the_medians_of_all_passes_and_of_the_shortest_rounds() -> None:
    """Written down: three passes, one of which something held up; a crew's call is divided among its rows."""
    passes = [report(("read", "raw", raw, 1e-6), ("read", "safedb", 3e-6, 2e-6)) for raw in (2e-6, 9e-6, 2e-6)]
    figures, lone = reduce(passes)
    one = figures["read"]
    assert (one.raw, one.safedb, *one.ratios) == pytest.approx((2.0, 3.0, 1.5, 2.0))
    assert lone == []
    crew_of = report(("write", "raw", 1e-2, 1e-2), ("write", "safedb", 2e-2, 2e-2), threads=16, rows=1000)
    assert reduce([crew_of])[0]["write"].raw == pytest.approx(10.0)


def test_what_has_no_counterpart_is_told_and_not_dropped() -> None:
    """Written down: a benchmark of one side only; one that the baseline lacks; one that only the baseline has."""
    _, lone = reduce([report(("read", "raw", 1.0, 1.0), ("write", "raw", 1.0, 1.0), ("write", "safedb", 1.0, 1.0))])
    assert lone == ["read: only raw was measured, so there is no ratio"]
    rows, worse, remarks = compare(kept(new=(9.0, 9.0)), kept(old=(1.0, 1.0)), 15.0)
    assert len(rows) == 1
    assert worse == []
    assert remarks == ["new: not in the baseline", "old: in the baseline, and not measured now"]


def test_another_machine_is_told() -> None:
    here, there = Kept({"cores": 2, "python": "3.13"}, {}), Kept({"cores": 64, "python": "3.13"}, {})
    assert compare(here, there, 15.0)[2] == ["the baseline was taken with another cores (64; here 2)"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[1]",
        "7",
        '{"times": 3}',
        '{"times": {"machine": {}, "figures": {"read": {"raw": "x"}}}}',
        "\0\xff",
    ],
)
@pytest.mark.parametrize("kind", [[], ["--instructions"]])
def test_a_damaged_baseline_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, kind: list[str]
) -> None:
    """Written down: texts that are no JSON, no object, or lack something. Nothing is measured before."""
    path = tmp_path / "baseline.json"
    path.write_text(text, encoding="latin-1")
    assert micro.main(["--baseline", str(path), *kind]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "--save" in said


def test_a_baseline_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"there is no baseline at .*none\.json; .*--save"):
        load_all(tmp_path / "none.json")


def test_saving_one_kind_leaves_the_other(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    save(path, "times", kept(read=(1.25, 1.5)))
    save(path, "instructions", kept(read=(2.0,)))
    save(path, "times", kept(write=(1.0, 1.0)))
    assert load_all(path) == {"times": kept(write=(1.0, 1.0)), "instructions": kept(read=(2.0,))}


def test_the_baseline_of_the_project_is_sound() -> None:
    for kept_of_one_kind in load_all(micro.BASELINE).values():
        assert kept_of_one_kind.figures


@pytest.mark.parametrize("side", SIDES)
def test_every_row_of_the_calls_is_looked_for(tmp_path: Path, side: str) -> None:
    """Written down: each call twice, and two rounds of a crew; the context itself looks for the rows at its end."""
    with calls(side, tmp_path, "NORMAL") as works:
        assert set(works) == {*READS, *WRITES}
        for call in works.values():
            call()
            call()
    with crew(side, tmp_path, "NORMAL", threads=3, each=5) as work:
        work()
        work()


def test_measuring_runs_pytest_and_tells_why_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down: one of the files is not there."""
    monkeypatch.setattr(micro, "FILES", ("no_such_file.py",))
    with pytest.raises(Unusable, match="pytest ended with"):
        micro.measure_times(1, print)
