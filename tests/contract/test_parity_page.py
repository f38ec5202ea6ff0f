"""The page on parity is true: every row of it names tests, and these exist; one of them runs on both engines."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "parity.md"
CELL = re.compile(r"(?<!\\)\|")
NAME = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
ASKS = {"backend", "db", "connect", "target", "vals", "family", "accounts", "schema"}
"""The fixtures that run a test once for each engine."""


def rows() -> dict[str, list[str]]:
    """Give the cells of each row, by what the row is about."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in CELL.split(line)[1:-1]]
        if line.startswith("| ") and cells[0] != "what":
            assert cells[0] not in found, f"two rows about {cells[0]}"
            found[cells[0]] = cells[1:]
    return found


@cache
def functions(path: Path) -> dict[str, set[str]]:
    """Give the arguments of each function of a module, by its name."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name: {arg.arg for arg in node.args.args} for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("what", rows())
def test_every_row_names_tests_that_exist_and_run_on_both(what: str) -> None:
    cells = rows()[what]
    assert len(cells) == 4
    assert all(cells), "an empty cell"
    named = NAME.findall(cells[-1])
    assert named, "no test is named"
    assert NAME.sub("", cells[-1]).strip(" ,") == "", "something else stands where tests are named"
    for path, test in named:
        assert test in functions(ROOT / path), f"{path} has no {test}"
    assert any(path.startswith("tests/contract/") and functions(ROOT / path)[test] & ASKS for path, test in named)


def test_the_page_is_not_short_of_rows() -> None:
    assert len(rows()) >= 50, "a row was lost"
