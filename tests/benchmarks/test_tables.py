"""The tables tell what was measured, all of it, and find by themselves where safedb loses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

import pytest
from synthetic import ABOUT, PEERS, results, run

from benchmarks import losses, progress
from benchmarks.case import Case, Run, Waits
from benchmarks.figures import FAIRNESS, THROUGHPUT, cells, ratio
from benchmarks.markup import TIMES
from benchmarks.tables import LOSSES, OTHER_WORK, UNACKNOWLEDGED, markdown

SQLITE3, APSW = "sqlite3, one lock", "apsw"


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return results(100)


@pytest.fixture(scope="module")
def sections(runs: list[Run]) -> dict[str, str]:
    return markdown(runs, ABOUT)


def lines(section: str) -> list[list[str]]:
    """Give the cells of all tables of a section."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


def line_of(runs: Sequence[Run], peer: str) -> list[str]:
    """Give the first line about a peer in the table of the only scenario."""
    found = markdown(runs, {})["writes"]
    return next(line for line in lines(found) if peer in line)


def lost(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    return [(loss.load, loss.figure, loss.theirs) for loss in losses.losses(cells(runs))]


def test_every_scenario_has_its_table_and_what_is_not_comparable_one_apart(sections: dict[str, str]) -> None:
    scenarios = ["writes", "slow flush", "processes", "open loop", "mixed"]
    assert list(sections) == [LOSSES, *scenarios, UNACKNOWLEDGED, OTHER_WORK]
    assert "sqlite3worker" in sections[UNACKNOWLEDGED]
    assert "A call returns before anything is written." in sections[UNACKNOWLEDGED]
    assert "It writes a key into its own table." in sections[OTHER_WORK]
    for name in (LOSSES, *scenarios):
        assert "sqlite3worker" not in sections[name]
        assert "diskcache" not in sections[name]
    for name in (UNACKNOWLEDGED, OTHER_WORK):
        assert "safedb is" not in sections[name]
        assert "|**" not in sections[name].replace(" ", "")  # nobody is the best of those that are not comparable


def test_every_case_stands_in_its_table_once(runs: list[Run], sections: dict[str, str]) -> None:
    for scenario in ("writes", "slow flush", "processes", "open loop"):
        whole = sections[scenario].split("<details>")[0]
        told = [line[1].removeprefix("→ ") for line in lines(whole) if len(line) > 1]
        cases = {one.case for one in runs if one.case.scenario == scenario}
        assert sorted(name for name in told if name in PEERS) == sorted(case.peer for case in cases)


def test_tables_are_narrow_and_whole_and_their_headers_have_units(sections: dict[str, str]) -> None:
    for name, section in sections.items():
        found = lines(section)
        for line in found:
            assert len(line) <= 11, name
        heads = [line for line, below in pairwise(found) if set("".join(below)) == {"-"}]
        widths = [len(line) for line in found]
        assert heads, name
        assert set(widths) == {len(head) for head in heads}, name
        for word in (word for head in heads for word in head):
            assert not re.match(r"p\d|longest|peak|CPU|largest|added", word) or re.search(r", (ms|s|MB)\b", word), word


def test_rows_are_sorted_by_load_and_then_by_throughput() -> None:
    made = [run("safedb", 0, 100, threads=4), run(SQLITE3, 0, 300, threads=4), run(APSW, 0, 200, threads=4)]
    made += [run(APSW, 0, 7, threads=1), run("safedb", 0, 8, threads=1), run(SQLITE3, 0, 1, failed="no", threads=1)]
    found = [line[:2] for line in lines(markdown(made, {})["writes"].split("<details>")[0])[2:]]
    assert found == [
        ["1 thread", "→ safedb"],
        ["", APSW],
        ["", SQLITE3],
        ["4 threads", SQLITE3],
        ["", APSW],
        ["", "→ safedb"],
    ]


def test_throughput_is_told_as_least_median_most_and_the_best_is_bold() -> None:
    made = [run("safedb", number, rate) for number, rate in enumerate((1100, 900, 1000))]
    made += [run(SQLITE3, number, rate) for number, rate in enumerate((500, 400, 450))]
    assert line_of(made, "→ safedb")[1] == "**900 … 1,000 … 1,100**"
    assert line_of(made, SQLITE3)[1] == "400 … 450 … 500"


def test_a_ratio_is_taken_within_a_repeat_and_not_across() -> None:
    """Written down: ratios of 1, 5 and 10, while the medians' ratio is 10; a fourth repeat that only one has."""
    ours, theirs = (100, 10, 50), (100, 2, 5)
    made = [run("safedb", number, rate) for number, rate in enumerate(ours)]
    made += [run(SQLITE3, number, rate) for number, rate in enumerate(theirs)]
    made += [run("safedb", 3, 100_000), run(SQLITE3, 3, 1, failed="it was killed")]
    assert line_of(made, SQLITE3)[2] == f"5 {TIMES}"
    mine, other = cells(made)
    assert ratio(mine, other, THROUGHPUT) == 5
    assert ratio(other, mine, THROUGHPUT) == 0.2


def test_where_nothing_was_run_side_by_side_there_is_no_ratio() -> None:
    assert line_of([run("safedb", 0, 10), run(SQLITE3, 1, 5)], SQLITE3)[2] == "—"


def test_a_failed_run_is_shown_with_its_reason_and_counts_for_nothing(sections: dict[str, str]) -> None:
    assert "- apsw, FULL, 256 threads: failed in repeat 2: `3 acknowledged rows are not there`" in sections["writes"]
    assert "(1 of 3 failed)" in sections["writes"]
    made = [run("safedb", 0, 10), run("safedb", 1, 30, failed="a | b\n`c`"), run(SQLITE3, 0, 5)]
    assert line_of(made, "→ safedb")[1] == "**10 (1 of 2 failed)**"
    assert "failed in repeat 2: `a | b 'c'`" in markdown(made, {})["writes"]


def test_a_case_without_a_good_run_says_failed(sections: dict[str, str]) -> None:
    found = [line for line in lines(sections["writes"]) if "peewee, pooled" in line and "failed" in line]
    assert len(found) == 1
    assert set(found[0][3:]) == {"—"}
    assert "failed in repeat 1, 2, 3: `MaxConnectionsExceeded: exceeded the maximum of 1000" in sections["writes"]


def test_errors_and_calls_that_were_not_served_are_told(sections: dict[str, str]) -> None:
    assert f"9 {TIMES} `OperationalError`" in sections["writes"]
    assert "9 + 600" in sections["open loop"]


def test_reads_and_writes_of_a_mixed_load_have_lines_of_their_own(sections: dict[str, str]) -> None:
    whole, costs = sections["mixed"].split("<details>")
    names = [line[0] for line in lines(whole)[2:]]
    assert names[:2] == ["→ safedb: reads", "→ safedb: writes"]
    assert len(names) == 2 * len(PEERS)
    assert len(lines(costs)[2:]) == len(PEERS)


def test_a_losing_figure_is_listed_and_the_worst_comes_first() -> None:
    made = [run("safedb", 0, 100), run(SQLITE3, 0, 300), run(APSW, 0, 120)]
    made += [run("safedb", 0, 100, threads=4, wait=0.008), run(SQLITE3, 0, 100, threads=4, wait=0.001)]
    found = lost(made)
    assert [(load, figure) for load, figure, _ in found] == [
        ("4 threads", "p50, ms"),
        ("4 threads", "p99.9, ms"),
        ("4 threads", "longest, ms"),
        ("1 thread", "calls/s"),
    ]
    assert found[3][2] == f"{SQLITE3}: 300 (3 {TIMES}), {APSW}: 120 (1.2 {TIMES})"
    assert SQLITE3 in markdown(made, {})[LOSSES]


def test_no_figure_of_the_seven_is_left_out() -> None:
    made = [run("safedb", 0, 100, wait=0.002), run(SQLITE3, 0, 200)]
    made[0].outcome.cpu *= 9
    made[0].outcome.memory *= 9
    made[0].outcome.counts[0].append(1)
    made[1].outcome.counts[0].append(200)
    figures = {figure for _, figure, _ in lost(made)}
    waits = {"p50, ms", "p99.9, ms", "longest, ms"}
    assert figures == waits | {"calls/s", FAIRNESS.name, "CPU, s per 1,000 calls", "peak memory, MB"}


def test_what_a_figure_does_not_say_by_itself_is_told() -> None:
    """Written down: twenty calls have no p99.9; the threads that compute use the processor; a server's is not seen."""
    few, burning, server = "p99.9 is the longest wait", "of the threads that compute", "without the server's"
    many = run("safedb", 0, 100)
    many.outcome.waits = {"write": Waits.of([0.001] * 1000)}
    for made, told in (
        (many, set()),
        (run("safedb", 0, 100), {few}),
        (run("safedb", 0, 100, beside="burning"), {few, burning}),
        (run("safedb on PostgreSQL", 0, 100, dialect="postgresql"), {few, server}),
    ):
        text = markdown([made], {})["writes"]
        assert {words for words in (few, burning, server) if words in text} == told


def test_how_a_load_is_scheduled_is_told_where_loads_differ_in_it() -> None:
    usual, batch = (run("safedb", 0, 100, scenario="scheduler", scheduler=scheduler) for scheduler in ("", "batch"))
    busy = run("safedb", 0, 100, scenario="scheduler", scheduler="batch", beside="busy")
    found = markdown([usual, batch, busy], {})["scheduler"].split("<details>")[0]
    assert [line[0] for line in lines(found)[2:]] == [
        "nothing beside, the kernel's usual scheduling",
        "nothing beside, SCHED_BATCH",
        "another program computes on every core, SCHED_BATCH",
    ]
    assert "schedul" not in markdown([usual], {})["scheduler"].split("<details>")[0]
    assert "SCHED_BATCH" in markdown([batch], {})["scheduler"].split("<details>")[0]
    assert [progress.tell(one.case).split(" ")[-2:] for one in (batch, busy)] == [
        ["thread", "batch"],
        ["busy", "batch"],
    ]


def test_a_servers_log_and_the_rows_of_readers_are_not_told_as_nothing() -> None:
    server = run("safedb on PostgreSQL", 0, 100, dialect="postgresql")
    assert lines(markdown([server], {})["writes"].split("<details>")[1])[2][-2:] == ["—", "100"]
    reader = run("safedb", 0, 100, work="point")
    assert lines(markdown([reader], {})["writes"].split("<details>")[1])[2][-2:] == ["0", "—"]


def test_a_tenth_is_no_loss_and_nobody_loses_to_what_is_not_comparable() -> None:
    assert lost([run("safedb", 0, 100), run(SQLITE3, 0, 109)]) == []
    made = [run("safedb", 0, 100), run("sqlite3worker", 0, 9000)]
    assert markdown(made, ABOUT)[LOSSES].startswith("Nowhere")


def test_safedb_that_failed_or_was_not_run_or_did_nothing_is_the_worst_loss() -> None:
    """Written down: what has no figure cannot be worse by a factor, and would drop out of the comparison."""
    others = [run(SQLITE3, 0, 100)]
    for ours in ([run("safedb", 0, 1, failed="disk full")], []):
        assert lost([*ours, *others])[0][1] == "whether it ran"
    assert lost([run("safedb", 0, 0), *others])[0][2] == f"{SQLITE3}: 100 (∞ {TIMES})"


def test_a_loss_at_one_load_is_not_made_good_at_another() -> None:
    made = [run("safedb", 0, 900, threads=16), run(SQLITE3, 0, 1, threads=16)]
    made += [run("safedb", 0, 50), run(SQLITE3, 0, 100)]
    assert [load for load, _, _ in lost(made)] == ["1 thread"]


def test_equal_shares_of_nothing_are_not_fair() -> None:
    assert FAIRNESS.of(run("safedb", 0, 0).outcome) == 0.0


def test_the_losses_of_a_whole_comparison_agree_with_its_runs(runs: list[Run]) -> None:
    """Look for them once more, the long way round: pair by pair, by what the runs themselves say."""
    rivals = [one for one in runs if one.case.peer in PEERS and not one.outcome.failed]
    rates = {(one.case, one.repeat): sum(map(sum, one.outcome.counts)) / one.outcome.seconds for one in rivals}
    ratios: dict[Case, list[float]] = {}
    for (case, repeat), rate in rates.items():
        if case.peer != "safedb":
            ratios.setdefault(case, []).append(rate / rates[replace(case, peer="safedb"), repeat])
    better = [case for case, some in ratios.items() if median(some) > losses.MARGIN]
    told = [loss for loss in losses.losses(cells(rivals)) if loss.figure == "calls/s"]
    assert better
    assert sum(loss.theirs.count(f" {TIMES})") for loss in told) == len(better)
    assert len(told) == len({replace(case, peer="") for case in better})
