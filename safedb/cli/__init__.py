"""The command line: ``safedb`` or ``python -m safedb``.

Nothing heavy is imported here: what a command needs is imported when it is called, so that ``safedb --help`` works
without the packages of ``safedb[cli]``.
"""

from __future__ import annotations

import argparse
import os.path
import sys
from collections.abc import Sequence
from typing import NoReturn

from safedb.cli import doctor, stress
from safedb.cli.stress.options import UsageError
from safedb.errors import ConfigError
from safedb.targets import masked

USAGE = 2  # the exit code of a command that cannot be run as it was given
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``argv`` without the program's name, ``sys.argv`` by default."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(given)
    try:
        arguments = parser.parse_args(given)
    except SystemExit as end:  # argparse has said what it had to say
        return int(end.code or 0)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:  # before a command has taken charge of Ctrl-C
        return INTERRUPTED
    except (UsageError, ConfigError) as error:
        print(f"safedb {arguments.command}: {_without_secrets(str(error), given)}", file=sys.stderr)
        return USAGE


class _Parser(argparse.ArgumentParser):
    """Be argparse's own, which quotes what it was given: a URL in the wrong place must not show its password."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        super().error(_without_secrets(message, self.given))


def _without_secrets(text: str, given: Sequence[str]) -> str:
    """Mask every URL of the command line in a text that may quote it, however the text writes it."""
    for argument in given:
        for word in (argument, argument.partition("=")[2]):
            if "://" in word or "password=" in word:
                for written in (word, word.upper(), os.path.normpath(word)):
                    for quoted in (written, repr(written)[1:-1]):
                        text = text.replace(quoted, masked(word))
    return text


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    about = "Tools for databases used through safedb."
    parser = _Parser(prog="safedb", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser.given = given
    for name, module, purpose in (
        ("stress", stress, "try safedb, and sqlite3 by hand, on your own disk"),
        ("doctor", doctor, "tell which SQLite is in use, and whether it and a database are sound"),
    ):
        command = commands.add_parser(name, help=purpose, allow_abbrev=False)
        command.given = given
        module.add_to(command)
        command.set_defaults(run=module.run)
    return parser
