"""`safedb doctor`: what a user asks before trusting an installation, a file or a server. It changes nothing.

library     Python, the SQLite module and its version
file        a SQLite database, looked at without safedb's engine
server      a PostgreSQL database, by one session of safedb's own kind
"""

from __future__ import annotations

import argparse
import sys

from safedb.cli.doctor.report import Report
from safedb.config import load_settings
from safedb.errors import ConfigError

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Tell which SQLite safedb would use, and whether it is sound; with a TARGET, also
look at that database. Nothing is created or changed.
"""
EPILOG = """\
exit codes:
  0  all is well
  1  something was found
  2  it could not be run as it was given: there is no such file, say
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = "database to look at, as sqlite:///FILE or postgresql://USER@HOST/NAME"
    parser.add_argument("target", nargs="?", metavar="TARGET", help=what)


def run(arguments: argparse.Namespace) -> int:
    """Run `safedb doctor` with parsed arguments; return its exit code. Raises ConfigError for what cannot be run."""
    # Settings of the environment and of a file are checked even where there is no target.
    settings = load_settings(arguments.target or "sqlite://")
    if arguments.target and settings.target.path is None and settings.target.dsn is None:
        raise ConfigError("a database in memory is empty when it is opened, and there is nothing to look at")
    from safedb.cli.doctor import file, library, server

    report = Report()
    library.look(report)
    if settings.target.path is not None:
        file.look(report, settings)
    elif settings.target.dsn is not None:
        server.look(report, settings)
    report.show(sys.stdout)
    return int(bool(report.findings))
