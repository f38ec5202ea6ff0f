"""The pictures show what was measured, can be read on light and dark pages, and are the same for the same runs."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic import ABOUT, FLUSH, PEERS, results, run

from benchmarks import ink, pictures
from benchmarks.case import Run
from benchmarks.markup import TIMES

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {
    "waits": ("wait, ms (logarithmic)", "part of the writes that waited longer"),
    "waits-open": ("wait, ms (logarithmic)", "part of the writes that waited longer"),
    "threads": ("threads (logarithmic)", "acknowledged writes/s (logarithmic)"),
    "flush": (
        "time of one flush, ms (measured: 0.2, and what was added; logarithmic)",
        "acknowledged writes/s (logarithmic)",
    ),
    "processes": (f"processes {TIMES} threads of each", "longest wait, ms (logarithmic)"),
}


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return results(150)


@pytest.fixture(scope="module")
def drawn(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = pictures.draw(runs, tmp_path_factory.mktemp("pictures"), ABOUT, flush=FLUSH)
    return {path.stem: path for path in found}


def words(path: Path) -> list[str]:
    """Give the words of a picture: it is XML, and they are text and no outlines."""
    return ["".join(found.itertext()) for found in ElementTree.parse(path).iter(f"{SVG}text")]


def luminance(colour: str) -> float:
    """Give the relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_picture_is_drawn_with_both_its_axes_labelled(drawn: dict[str, Path]) -> None:
    assert set(drawn) == set(LABELS)
    for name, path in drawn.items():
        assert set(LABELS[name]) <= set(words(path)), name


def test_every_peer_that_acknowledges_is_named_and_no_other(drawn: dict[str, Path]) -> None:
    for name in ("waits", "threads", "flush"):
        found = words(drawn[name])
        assert set(PEERS) <= set(found), name
        assert not {"sqlite3worker", "diskcache"} & set(found), name


def test_who_acknowledges_nothing_is_not_drawn_beside_who_does(tmp_path: Path) -> None:
    made = [run("safedb", 0, 100), run("sqlite3worker", 0, 9000), run("a stranger", 0, 50)]
    (path,) = pictures.draw(made, tmp_path, ABOUT)
    assert {"safedb", "a stranger"} <= set(words(path))
    assert "sqlite3worker" not in words(path)


def test_what_failed_is_named(drawn: dict[str, Path]) -> None:
    assert "Failed: peewee, pooled (1,024 threads)" in words(drawn["threads"])


def test_who_did_nothing_is_named_too(tmp_path: Path) -> None:
    """Written down: on a logarithmic axis there is no zero; the point would be missing without a word."""
    made = [
        run("safedb", 0, 100),
        run("safedb", 0, 0, threads=1024),
        run("apsw", 0, 90),
        run("apsw", 0, 70, threads=1024),
    ]
    found = pictures.draw(made, tmp_path)
    assert "No write done in the time: safedb (1,024 threads)" in words(next(p for p in found if p.stem == "threads"))


def test_a_repeat_without_a_call_can_be_drawn(tmp_path: Path) -> None:
    made = [run("safedb", repeat, rate, threads=n) for n in (1, 4) for repeat, rate in enumerate((0, 50, 90))]
    assert [path.stem for path in pictures.draw(made, tmp_path)] == ["waits", "threads"]


def test_what_there_are_no_runs_for_is_not_drawn(tmp_path: Path) -> None:
    assert pictures.draw([], tmp_path) == []
    assert [path.stem for path in pictures.draw([run("safedb", 0, 10), run("apsw", 0, 5)], tmp_path)] == ["waits"]
    assert pictures.draw([run("safedb", 0, 10, failed="no"), run("apsw", 0, 5, failed="no")], tmp_path) == []
    read = [run("safedb", 0, 10, work="point", threads=n) for n in (1, 16)]
    assert pictures.draw(read, tmp_path) == []


def test_the_same_runs_give_the_same_bytes(runs: list[Run], drawn: dict[str, Path], tmp_path: Path) -> None:
    some = [one for one in runs if one.case.scenario == "processes"]
    (again,) = pictures.draw(some, tmp_path, ABOUT, flush=FLUSH)
    assert again.read_bytes() == drawn["processes"].read_bytes()


def test_no_picture_has_a_date(drawn: dict[str, Path]) -> None:
    for path in drawn.values():
        assert not re.search(rb"dc:date|\b20\d\d-\d\d-\d\d\b", path.read_bytes())


def test_ink_follows_the_readers_preference(drawn: dict[str, Path]) -> None:
    for path in drawn.values():
        svg = path.read_text(encoding="utf-8")
        rules = re.findall(r"<style>(@media \(prefers-color-scheme:dark\)\{.*\})</style>", svg)
        assert len(rules) == 1
        for light, dark in ink.DARK.items():
            assert f'[style*="fill: {light}"]{{fill:{dark}!important}}' in rules[0]
        inks = set(re.findall(r"<text style=\"[^\"]*fill: (#\w+)", svg))
        assert inks <= set(ink.DARK)  # else a word would stay dark on a dark page
        assert ink.INK in inks


def test_there_is_no_background(drawn: dict[str, Path]) -> None:
    for path in drawn.values():
        assert "fill: #ffffff" not in path.read_text(encoding="utf-8")


def test_lines_stand_out_on_white_and_on_black() -> None:
    for colour in (ink.BLUE, *ink.COLOURS):
        assert all(contrast(colour, page) >= 3 for page in ink.PAGES), colour
    light, dark = ink.PAGES
    for one in (ink.INK, ink.MUTED):
        assert contrast(one, light) >= 4.5
        assert contrast(ink.DARK[one], dark) >= 4.5


def test_no_two_peers_look_alike_and_safedb_is_the_thickest() -> None:
    styles = {name: ink.style(name) for name in PEERS}
    for looks in (("color",), ("marker", "linestyle")):
        assert len({tuple(str(style[look]) for look in looks) for style in styles.values()}) == len(PEERS)
    assert max(styles, key=lambda name: styles[name]["linewidth"]) == "safedb"


def test_the_files_are_small_and_name_no_font_of_this_machine(drawn: dict[str, Path]) -> None:
    for path in drawn.values():
        assert path.stat().st_size < 150_000
        assert "DejaVu" not in path.read_text(encoding="utf-8")


def test_a_line_is_where_the_figures_are(tmp_path: Path) -> None:
    """Written down: two peers, ten times apart, at two loads; the upper line is the faster one's, and rises."""
    made = [run("safedb", 0, 1000 * n, threads=n) for n in (1, 4)] + [
        run("apsw", 0, 100 * n, threads=n) for n in (1, 4)
    ]
    path = next(path for path in pictures.draw(made, tmp_path) if path.stem == "threads")
    heights = {}
    for name in ("safedb", "apsw"):
        colour = ink.style(name)["color"]
        for found in ElementTree.parse(path).iter(f"{SVG}path"):
            if f"stroke: {colour}" in found.get("style", "") and "clip-path" in found.attrib:
                points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", found.get("d", ""))
                if len({x for x, _ in points}) == 2:
                    heights[name] = [float(y) for _, y in points]
    (first, last), (other, _) = heights["safedb"], heights["apsw"]
    assert last < first < other  # in SVG, up is less
    assert (other - first) / (first - last) == pytest.approx(1 / 0.60206, rel=0.01)  # log 10 to log 4
