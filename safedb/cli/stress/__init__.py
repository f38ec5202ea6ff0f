"""`safedb stress`: what a user runs on their own disk before trusting us.

Both sides do the same work on the same rows: first by hand, then with safedb; then the file itself is asked.

    options → target ─┬→ phase (the parent) ⇄ crew (one in each process: writers, readers) ─┬→ verify → summary → report
                      └── by_hand, with_safedb: how a thread reads and writes ──────────────┘              └→ picture
"""

from __future__ import annotations

import argparse
import sys

from safedb.cli.stress import options as _options
from safedb.cli.stress.options import UsageError, add_to

__all__ = ["UsageError", "add_to", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Run `safedb stress` with parsed arguments; return its exit code. Raises UsageError for what cannot be run."""
    options = _options.from_arguments(arguments)
    _options.require(["rich", *(["matplotlib"] if options.plot is not None else [])])
    from safedb.cli.stress.main import Run

    return Run(options, sys.stdout, sys.stderr).main()
