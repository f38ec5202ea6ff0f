"""Python, the SQLite module in use, its version, and how it was built."""

from __future__ import annotations

import contextlib
import platform

from safedb.cli.doctor.report import Report
from safedb.sqlite import driver, health

_OPTIONS = ("THREADSAFE", "USE_URI", "DQS", "SETLK_TIMEOUT", "ENABLE_SETLK_TIMEOUT", "TEMP_STORE", "SECURE_DELETE")


def look(report: Report) -> None:
    """Tell of all this."""
    report.fact("Python", f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})")
    report.fact("SQLite module", f"{driver.MODULE}: {driver.WHY}")
    report.fact("SQLite", driver.sqlite3.sqlite_version)
    _race(report)
    _build(report)
    if driver.MODULE != driver.STDLIB:
        report.note(
            f"This program must not open a database of safedb's by `import {driver.STDLIB}` too: of two SQLite "
            "libraries in one process each drops the other's locks. Other processes may."
        )


def _race(report: Report) -> None:
    if not health.wal_reset_race(driver.VERSION):
        report.fact("WAL-reset race", "no")
        return
    if health.said_to_be_mended():
        report.fact("WAL-reset race", f"no, says {health.MENDED}")
        return
    report.fact("WAL-reset race", "yes, avoided")
    report.note(
        f"SQLite {driver.sqlite3.sqlite_version} may damage a database where a checkpoint meets a commit "
        "(https://sqlite.org/wal.html#walresetbug). Within safedb the two never overlap: in one process the connection "
        "that writes also checkpoints, and between processes both hold the lock beside the database. Programs that do "
        "not use safedb are not bound by it, such as the sqlite3 shell or Litestream: stop safedb's writers before "
        f"they write or checkpoint; {health.RACE_REMEDY}."
    )


def _build(report: Report) -> None:
    with contextlib.closing(driver.connect(":memory:")) as connection:
        built = [str(option) for (option,) in connection.execute("PRAGMA compile_options")]
        switches = hasattr(connection, "setconfig")
    present = [option for option in built if option.partition("=")[0] in _OPTIONS]
    report.fact("Compile options", " ".join(present) or "none that matter")
    if "THREADSAFE=0" in built:
        report.finding("SQLite was built with THREADSAFE=0, and must not be used from threads: use another build.")
    report.fact("Switches", f"DEFENSIVE and DQS {'are set' if switches else 'cannot be set'} by this module")
    if not switches:
        report.note(
            'This module cannot make SQLite refuse "x" as a string where no column has that name, nor set its '
            f"defensive mode: {driver.STDLIB} of Python 3.12 and newer can."
        )
