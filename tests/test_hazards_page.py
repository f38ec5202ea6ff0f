"""The page on hazards is true: each has a row or a paragraph, and the tests that a row names cite its number."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "hazards.md").read_text("utf-8")
TABLES, _, LEFT = PAGE.partition("\n## What safedb cannot remove\n")
NAME = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
HEADING = re.compile(r"^### (H[^:]+): \S.*$", re.MULTILINE)
PARTS = ["H8b", "H12b", "H13b", "H44b", *(f"H46{letter}" for letter in "abcdefghi")]
"""Those that have several parts, told one by one."""
CITATION = re.compile(r"\bH(\d+)([a-i]?)((?:, [a-i]\b)*)")


def numbers(text: str) -> set[str]:
    """Give the numbers that a text cites: "H46d, e" is two."""
    found = set()
    for number, letter, more in CITATION.findall(text):
        found |= {f"H{number}{part}" for part in (letter, *more.replace(",", "").split())}
    return found


def rows() -> dict[str, list[str]]:
    """Give the cells of each row, by its number."""
    found: dict[str, list[str]] = {}
    for line in TABLES.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("| H"):
            assert cells[0] not in found, f"two rows of {cells[0]}"
            found[cells[0]] = cells[1:]
    return found


def paragraphs() -> set[str]:
    """Give the numbers of what cannot be removed."""
    return set().union(*(numbers(heading) for heading in HEADING.findall(LEFT)))


@cache
def docstrings(path: str) -> dict[str, str]:
    """Give what each test of a module says of itself, the module's own words included."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    module = ast.get_docstring(tree) or ""
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    nested = [node for found in functions for node in (found, *found.body) if isinstance(node, ast.FunctionDef)]
    return {node.name: f"{module} {ast.get_docstring(node) or ''}" for node in nested}


def test_no_number_is_missing() -> None:
    told = rows().keys() | paragraphs()
    whole = {f"H{number}" for number in range(1, 52)} - {"H46"}
    assert told == whole | set(PARTS)


@pytest.mark.parametrize("number", rows())
def test_a_row_names_tests_that_cite_its_number_or_leads_to_a_paragraph(number: str) -> None:
    what, alone, with_safedb, named = rows()[number]
    assert what
    assert alone
    tests = NAME.findall(named)
    assert tests or number in paragraphs(), "neither a test holds it, nor a paragraph tells why none can"
    assert with_safedb or not tests
    for path, test in tests:
        assert test in docstrings(path), f"{path} has no {test}"
        assert number in numbers(docstrings(path)[test]), f"{path}::{test} does not cite {number}"
    rest = NAME.sub("", named).strip(" ,")
    assert not rest or (not tests and rest.startswith("[below](#")), "something else stands where tests are named"


def test_what_the_text_names_exists() -> None:
    for path, test in NAME.findall(PAGE):
        assert test in docstrings(path), f"{path} has no {test}"


def test_what_the_tests_cite_is_on_the_page() -> None:
    """A number that only a test knows is a slip of the pen."""
    known = rows().keys() | paragraphs() | {"H46"}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test, text in docstrings(path.relative_to(ROOT).as_posix()).items():
            assert numbers(text) <= known, f"{path.name}::{test}"
