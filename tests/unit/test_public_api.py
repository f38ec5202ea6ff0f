"""What is public is named in ``__all__``, told in docstrings, and light to import."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import unmeasured

import safedb
from safedb import errors

PACKAGE = Path(safedb.__file__).parent
HEAVY = {"tenacity", "psycopg", "psycopg_pool", "rich", "typer", "click", "matplotlib"}
MODULES = sorted(
    ".".join(("safedb", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


def test_all_is_true() -> None:
    for name in safedb.__all__:
        assert hasattr(safedb, name), name
    assert len(set(safedb.__all__)) == len(safedb.__all__)
    assert list(safedb.__all__) == sorted(safedb.__all__)


def test_all_is_complete() -> None:
    """Whatever can be reached without an underscore is either a module of the house or promised."""
    public = {
        name
        for name, value in vars(safedb).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert public == set(safedb.__all__) - {"__version__"}


def test_every_error_is_exported() -> None:
    ours = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert ours <= set(safedb.__all__)


def test_a_star_import_brings_exactly_all() -> None:
    namespace: dict[str, Any] = {}
    exec("from safedb import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(safedb.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    written = re.search(r'^version = "(.+)"$', (PACKAGE.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert written is not None
    assert written[1] == safedb.__version__


def public_members(cls: type) -> Iterator[tuple[str, Any]]:
    """Give what a class itself defines under a public name."""
    for name, value in vars(cls).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (callable(plain) or isinstance(plain, property)):
            yield name, plain


EXPORTED = [name for name in safedb.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", EXPORTED)
def test_every_public_name_and_method_has_a_docstring(name: str) -> None:
    thing = getattr(safedb, name)
    told = {name: vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__}
    if inspect.isclass(thing):
        told |= {f"{name}.{member}": value.__doc__ for member, value in public_members(thing)}
    for member, text in told.items():
        assert text, f"{member} has no docstring"
        first = text.strip().splitlines()[0]
        assert first[0].isupper(), f"{member}: {first}"
        assert first.rstrip().endswith((".", ":", "…``", "```", ",")) or len(text.strip().splitlines()) > 1, first
        generated = f"{name}(" in first and inspect.isclass(thing)
        assert not generated, f"{member} has only the docstring that dataclasses make"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_tells_what_it_is(module: str) -> None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert source.read_text(encoding="utf-8").startswith('"""'), module


def test_every_call_that_waits_takes_a_timeout() -> None:
    waiting = "execute executemany executescript transaction run_transaction snapshot backup checkpoint check optimize"
    for name in waiting.split():
        parameter = inspect.signature(getattr(safedb.Database, name)).parameters["timeout"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
        assert parameter.default is None, name


def test_the_api_is_the_one_that_other_programs_are_written_against() -> None:
    def names(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert names(safedb.Database) >= {
        "execute", "executemany", "executescript", "transaction", "snapshot", "run_transaction", "transactional",
        "backup", "checkpoint", "stats", "check", "close", "optimize",
    }  # fmt: skip
    assert names(safedb.Transaction) >= {"execute", "executemany", "savepoint", "after_commit"}
    assert names(safedb.Snapshot) >= {"execute", "iterate"}
    assert set(dir(safedb.Result(([], None, -1)))) >= {
        "fetchone",
        "fetchmany",
        "fetchall",
        "scalar",
        "one",
        "rowcount",
        "columns",
    }
    assert set(inspect.signature(safedb.connect).parameters) >= {
        "target", "pragmas", "retry", "pool", "schema", "row_factory", "read_only", "functions", "collations",
        "on_event",
    }  # fmt: skip


# -- imports ----------------------------------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    """Give the names of the top modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, check=True, cwd=PACKAGE.parent, env=unmeasured(),
    )  # fmt: skip
    return set(answer.stdout.split())


def test_import_is_light() -> None:
    assert not modules_after("import safedb") & (HEAVY | {"sqlite3", "asyncio", "tomllib"})


def test_connect_brings_its_retries_and_nothing_of_the_command_line() -> None:
    loaded = modules_after("import safedb; safedb.connect('sqlite://').close()")
    assert "tenacity" in loaded, "else a held turn would pay for the import"
    assert not loaded & (HEAVY - {"tenacity"})


def test_every_module_can_be_imported_first() -> None:
    """No circle of imports depends on who comes first."""
    library = [module for module in MODULES if not module.startswith("safedb.cli")]
    program = "import importlib, sys\nfor name in sys.argv[1:]:\n"
    program += "    for ours in [m for m in sys.modules if m.partition('.')[0] == 'safedb']: del sys.modules[ours]\n"
    program += "    importlib.import_module(name)\n"
    answer = subprocess.run(
        [sys.executable, "-c", program, *library], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent
    )
    assert answer.returncode == 0, answer.stderr


# Who may import whom: arrows point one way.
GROUND_FLOOR = [
    "errors", "config", "options", "values", "targets", "types", "rows", "lexer", "routing", "sql", "retry", "stats",
]  # fmt: skip
ABOVE = {"safedb.database", "safedb.transaction", "safedb.result"}


def imports_of(module: str) -> set[str]:
    """Give the modules of the house that a module's source imports, wherever in it."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    found = set(re.findall(r"^\s*(?:from|import) (safedb[\w.]*)", source, re.MULTILINE))
    for parent, names in re.findall(r"^\s*from (safedb[\w.]*) import (?!\()(.+)$", source, re.MULTILINE):
        found |= {f"{parent}.{name.strip().split(' ')[0]}" for name in names.split(",")} & set(MODULES)
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("safedb.sqlite")])
def test_an_engine_knows_nothing_of_what_is_above_it(module: str) -> None:
    assert not imports_of(module) & ABOVE


@pytest.mark.parametrize("module", [f"safedb.{name}" for name in GROUND_FLOOR])
def test_the_ground_floor_knows_no_engine(module: str) -> None:
    assert not {name for name in imports_of(module) if name.startswith("safedb.sqlite")} | (imports_of(module) & ABOVE)


def test_the_queue_knows_no_sql() -> None:
    assert imports_of("safedb.sqlite.turns") <= {"safedb"}
    source = inspect.getsource(importlib.import_module("safedb.sqlite.turns"))
    assert "sqlite3" not in source


# -- the tree of errors -----------------------------------------------------------------------------------------------


def drawn_tree() -> dict[str, str]:
    """Read the tree that the docstring draws: each name, and the one it hangs on."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"^    ((?:│   |    )*)(?:├── |└── )(.*)$", line)
        if line == "    Error":
            path = ["Error"]
        elif drawn:
            depth = len(drawn[1]) // 4 + 1
            names = re.split(r"\s{2,}", drawn[2])[0].split(", ")
            for name in names:
                parents[name] = path[depth - 1]
            path[depth:] = [names[0]]
    return parents


def test_the_tree_is_drawn_as_the_classes_are() -> None:
    drawn = drawn_tree()
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value) and name != "Any"}
    assert set(drawn) | {"Error"} == set(classes)
    for name, parent in drawn.items():
        assert classes[name].__bases__ == (classes[parent],), f"{name} hangs on {parent}"


def test_pep_249_names_hang_where_pep_249_has_them() -> None:
    names = "DataError OperationalError IntegrityError InternalError ProgrammingError NotSupportedError"
    for name in names.split():
        assert getattr(safedb, name).__bases__ == (safedb.DatabaseError,)
    assert safedb.InterfaceError.__bases__ == safedb.DatabaseError.__bases__ == (safedb.Error,)


@pytest.mark.parametrize("name", sorted(drawn_tree()))
def test_errors_carry_what_they_promise_also_to_another_process(name: str) -> None:
    import pickle

    cls = getattr(errors, name)
    plain = cls("what happened")
    assert str(plain) == "what happened"
    assert isinstance(plain.retryable, bool)
    assert plain.sqlstate is None or re.fullmatch("[0-9A-Z]{5}", plain.sqlstate)
    error = cls("text", sqlstate="12345", sqlite_errorname="SQLITE_X", retryable=True)
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert copy.args == ("text",)
    assert (copy.sqlstate, copy.sqlite_errorname, copy.retryable) == ("12345", "SQLITE_X", True)
    assert copy.__notes__ == ["a note"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
