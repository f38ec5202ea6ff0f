"""What is typed wrongly is refused at once, with exit code 2 and a sentence that says what would do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from support import unmeasured

from safedb.cli import main
from safedb.cli.stress import options


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "'0' is not a whole number from 1 to 1,000"),
        (["--threads", "many"], "'many' is not a whole number"),
        (["--processes", "65"], "from 1 to 64"),
        (["--readers", "-1"], "from 0 to 1,000"),
        (["--seconds", "nan"], "'nan' is not a number of seconds from 0.1 to 86,400"),
        (["--seconds", "0"], "from 0.1"),
        (["--seconds", "soon"], "'soon'"),
        (["--lock-holder", "inf"], "'inf'"),
        (["--synchronous", "OFF"], "FULL"),
        (["--source", "nowhere"], "--source 'nowhere' is not a folder"),
        (["--plot", "x.pdf"], "must end in .svg or .png"),
        (["--plot", "nowhere/x.svg"], "is in a folder that does not exist"),
        (["--json", "sqlite:///x.db"], "put the URL first, or write --json=-"),
        (["--json", "."], "is a folder"),
        (["--thread", "3"], "--thread"),
        (["x.db"], "sqlite:///x.db"),
        (["--source", "."], "no readable text file"),
    ],
)
def test_bad_arguments_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["stress", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert said in errors
    assert output == ""
    assert "secret" not in errors
    assert list(here.iterdir()) == []


def test_without_a_command_the_commands_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "--help"]) == 0
    assert "130  ended by Ctrl-C" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "arguments"), [("rich", []), ("matplotlib", ["--plot", "x.svg"])])
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, arguments: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    assert main(["stress", *arguments]) == 2
    said = capsys.readouterr().err
    assert f"{module} is not installed" in said
    assert "pip install 'safedb[cli]'" in said


def test_two_missing_packages_are_named_together() -> None:
    with pytest.raises(options.UsageError, match="no_such_a and no_such_b are not installed"):
        options.require(["no_such_a", "no_such_b"])


def test_ctrl_c_before_a_command_has_taken_charge_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "from_arguments", interrupted)
    assert main(["stress"]) == 130


def test_the_command_line_alone_imports_nothing_heavy() -> None:
    heavy = "{'rich', 'matplotlib', 'tenacity', 'psycopg', 'multiprocessing'}"
    code = f"import sys, safedb.cli; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, env=unmeasured())


def test_a_seed_is_drawn_where_none_is_given() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    options.add_to(parser)
    drawn = {options.from_arguments(parser.parse_args([])).seed for _ in range(20)}
    assert len(drawn) > 1
    assert options.from_arguments(parser.parse_args(["--seed", "7"])).seed == 7
