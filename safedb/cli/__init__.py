"""The command line: ``safedb`` or ``python -m safedb``.

Nothing heavy is imported here: what a command needs is imported when it is called, so that ``safedb --help`` works
without the packages of ``safedb[cli]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from safedb.cli import stress
from safedb.cli.stress.options import UsageError

USAGE = 2  # the exit code of a command that cannot be run as it was given
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``argv`` without the program's name, ``sys.argv`` by default."""
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has said what it had to say
        return int(end.code or 0)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:  # before a command has taken charge of Ctrl-C
        return INTERRUPTED
    except UsageError as error:
        print(f"safedb {arguments.command}: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    about = "Tools for databases used through safedb."
    parser = argparse.ArgumentParser(prog="safedb", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    purpose = "try safedb, and sqlite3 by hand, on your own disk"
    command = commands.add_parser("stress", help=purpose, allow_abbrev=False)
    stress.add_to(command)
    command.set_defaults(run=stress.run)
    return parser
