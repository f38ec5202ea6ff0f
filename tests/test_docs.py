"""The documentation is true: its Python runs, its links lead somewhere, and it tells of every public name.

In a ```python block a comment at the end of a line is checked: ``# → value`` against the ``repr`` of the line's
expression, ``# raises Error`` against what the line raises. All blocks of a page run one after the other, in one
namespace and in a folder of their own.

The servers of the pages, ``postgresql://app@db.example/shop`` and others in ``.example``, are the tests' own: a page's
blocks are given one fresh schema of it, by whatever host they name.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pgserver
import pytest

import safedb
from safedb import errors, stats
from safedb.config import PoolConfig, Pragmas, RetryPolicy, load_settings, parse_target
from safedb.postgres import opener

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"^(\s*)(\S.*?)  # → (.+)$")
_RAISED = re.compile(r"^(\s*)(\S.*?)  # raises (\w+)$")
_SERVER = re.compile(r"postgresql://app@[\w.,]+\.example/shop(\?)?")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in _FENCE.findall(page.read_text("utf-8")) if found == language]


def _program(page: Path) -> str:
    """Give the page's Python as one program whose line numbers are the page's, with its comments turned into checks."""
    text = page.read_text("utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in _FENCE.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(2))
            for number, line in enumerate(block[2].splitlines(), start=first):
                lines[number] = _checked(line, number + 1)
    return _on_our_server("\n".join(lines))


def _on_our_server(program: str) -> str:
    """Put a schema of the tests' server where the page names one of its own; what follows the ``?`` stays."""
    if not _SERVER.search(program):
        return program
    url = pgserver.shared().schema()
    between = "&" if "?" in url else "?"
    return _SERVER.sub(lambda found: url + between * bool(found[1]), program)


def _checked(line: str, number: int) -> str:
    if shown := _SHOWN.match(line):
        return f"{shown[1]}_shows({number}, ({shown[2]}), {shown[3].strip()!r})"
    if raised := _RAISED.match(line):
        return f"{raised[1]}with _raises({number}, {raised[3]!r}): {raised[2]}"
    return line


class _Checks:
    """Be what the comments of a page have become, and know which of them were reached."""

    def __init__(self, page: Path) -> None:
        self._name = _name(page)
        self.reached: set[int] = set()

    def shows(self, number: int, value: object, expected: str) -> None:
        self.reached.add(number)
        assert repr(value) == expected, f"{self._name}:{number} shows another value"

    def raises(self, number: int, expected: str) -> Any:
        self.reached.add(number)
        return pytest.raises(getattr(safedb, expected))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder, where no file has settings."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=_name)
def test_the_python_of_a_page_runs_and_gives_what_the_page_says(page: Path, folder: Path) -> None:
    program = _program(page)
    checks = _Checks(page)
    namespace: dict[str, Any] = {"__name__": "docs", "_shows": checks.shows, "_raises": checks.raises}
    try:
        exec(compile(program, str(page), "exec", dont_inherit=True), namespace)
    finally:
        for value in namespace.values():
            if isinstance(value, safedb.Database):
                value.close()
    expected = {
        number for number, line in enumerate(program.splitlines(), 1) if "_shows(" in line or "_raises(" in line
    }
    assert checks.reached == expected


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{_name(page)} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{_name(page)} links to {link}"


def _anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_settings_shown_as_toml_are_taken(folder: Path) -> None:
    shown = [block for page in PAGES for block in _blocks(page, "toml")]
    assert shown
    for block in shown:
        (folder / "safedb.toml").write_text(block, "utf-8")
        load_settings(environ={}, cwd=str(folder))


@pytest.mark.parametrize(("dialect", "scheme"), [("sqlite", "sqlite"), ("postgresql", "postgres(?:ql)?")])
def test_the_urls_shown_are_taken(dialect: str, scheme: str) -> None:
    """Those of a line and of ``text`` blocks too, by us and, where the rest is libpq's, by libpq."""
    texts = [page.read_text("utf-8") for page in PAGES]
    shown = {url for text in texts for url in re.findall(rf"`({scheme}://[^`…]*)`", text)}
    blocks = [block for page in PAGES for block in _blocks(page, "text")]
    shown |= {url for block in blocks for url in re.findall(rf"{scheme}://\S+", block)}
    assert shown
    for url in shown:
        target = parse_target(url)
        assert target.dialect == dialect
        if target.dsn is not None:
            assert opener.parse(target.dsn)


# -- every public name is told of -------------------------------------------------------------------------------------


def _told(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def _code(text: str) -> set[str]:
    """Give every word that stands in code, in a line or in a block."""
    pieces = [*re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)), *(code for _, code in _FENCE.findall(text))]
    return {word for piece in pieces for word in re.findall(r"\w+", piece)}


def _public(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_")]


def test_every_public_name_is_in_the_docs() -> None:
    words = set().union(*(_code(page.read_text("utf-8")) for page in DOCS.rglob("*.md")))
    assert set(safedb.__all__) <= words


def test_every_name_of_all_exists_and_every_export_is_in_it() -> None:
    exported = {name for name, value in vars(safedb).items() if not (name.startswith("_") or inspect.ismodule(value))}
    assert exported - {"annotations"} == set(safedb.__all__) - {"__version__"}


@pytest.mark.parametrize("cls", [safedb.Database, safedb.Result], ids=lambda cls: cls.__name__)
def test_every_public_method_is_in_the_reference(cls: type) -> None:
    assert set(_public(cls)) <= _code(_told("reference.md"))


@pytest.mark.parametrize(
    "method", [safedb.connect, *(getattr(safedb.Database, name) for name in _public(safedb.Database))]
)
def test_every_argument_is_in_the_reference(method: Callable[..., object]) -> None:
    assert set(inspect.signature(method).parameters) - {"self", "args", "kwargs"} <= _code(_told("reference.md"))


@pytest.mark.parametrize("name", [name for name in dir(errors) if isinstance(getattr(errors, name), type)])
def test_every_error_has_its_section_and_says_whether_to_try_again(name: str) -> None:
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^#|\Z)", _told("errors.md"), re.MULTILINE | re.DOTALL))
    if name == "Any":  # typing's, on Python 3.11 and newer a class
        return
    for part in ("*What happened.*", "*What to do.*", "*Retryable.*"):
        assert part in sections[name]
    cls = getattr(errors, name)
    assert ("*Retryable.* Yes" in sections[name]) is cls.retryable
    assert cls is errors.Error or name in _FENCE.search(_told("errors.md")).group(2)  # type: ignore[union-attr]


@pytest.mark.parametrize("cls", [Pragmas, RetryPolicy, PoolConfig], ids=lambda cls: cls.__name__)
def test_every_setting_is_in_the_table_with_its_default(cls: Any) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", _told("pragmas.md"), re.MULTILINE))
    defaults = cls().effective()
    for name in cls.kinds():
        assert rows[name] in _written(name, getattr(defaults, name)), f"the default of {name} is another"


def _written(name: str, default: object) -> set[str]:
    """Give the ways in which a default may be written."""
    if default is None:
        return {"left alone", "no bound"}
    if name == "file_mode":
        return {f"{default:04o}"}
    if name == "wal_limit" and isinstance(default, int):
        return {f"{default // 2**20} MiB"}
    text = str(default)
    return {text, f"`{text}`", text.lower(), *([f"{default:,}"] if type(default) is int else [])}


@pytest.mark.parametrize("name", ["Stats", "Waits", "PoolStats"])
def test_every_statistic_is_in_the_reference(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(getattr(stats, name))}
    assert fields <= _code(_told("reference.md"))


@pytest.mark.parametrize("event", stats.Event.__subclasses__(), ids=lambda event: event.__name__)
def test_every_event_is_in_the_reference_with_its_fields(event: Any) -> None:
    row = re.search(rf"^\| `{event.__name__}` \| (\w+) \|.*$", _told("reference.md"), re.MULTILINE)
    assert row is not None, "it has no row in the table of events"
    assert {field.name for field in dataclasses.fields(event)} - {"database"} <= _code(row[0])
    assert event.__name__ in safedb.__all__


# -- the two commands -------------------------------------------------------------------------------------------------


def test_the_commands_of_the_readme_are_one_line_each() -> None:
    *commands, benchmarks = [line for block in _blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    assert benchmarks == "python3 -m benchmarks"
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python3 -m venv .venv && ")
        assert "pip install --quiet --upgrade pip && " in command  # an old pip cannot install what follows
    assert "safedb stress" in commands[0]
    assert commands[1].endswith("pytest")
