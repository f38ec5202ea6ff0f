"""Another program: ``python -m benchmarks.beside``, started by `lab`.

At the same file, with plain `sqlite3`, it holds the write lock for a while in the middle of the window, or a read
transaction all the time; or it only computes, on every core.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

from benchmarks.children import Parent, attend
from benchmarks.loops import sleep_until
from benchmarks.machine import cores
from safedb.sqlite.driver import sqlite3

HOLD = 1.0  # seconds, but no more than two thirds of the window
TICK = 0.0001  # seconds between two attempts


def work(parent: Parent) -> None:
    """Do what the lab says, step by step."""
    order = parent.hear()
    if order["beside"] == "busy":
        parent.say({})
        window = parent.hear()
        compute(window["begin"] + window["seconds"])
        parent.say({})
        parent.hear()
        return
    with closing(sqlite3.connect(order["path"], timeout=0.0, isolation_level=None)) as connection:
        if order["beside"] == "reader held":
            connection.execute("BEGIN")
        connection.execute("SELECT id FROM t LIMIT 1").fetchall()
        parent.say({})
        window = parent.hear()
        held = 0.0
        if order["beside"] == "lock held":
            held = hold(connection, window["begin"], window["seconds"])
        parent.say({"held": held})
        parent.hear()


def hold(connection: Any, begin: float, seconds: float) -> float:
    """Hold the write lock in the middle of the window; give for how long.

    It asks over and over as fast as it can, for the others leave it only moments.
    """
    length = min(HOLD, seconds * 2 / 3)
    sleep_until(begin + (seconds - length) / 2)
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            if time.monotonic() > begin + seconds:
                raise TimeoutError("the write lock was not to be had in the whole second half") from None
        time.sleep(TICK)
    got = time.monotonic()
    time.sleep(length)
    connection.execute("COMMIT")
    return time.monotonic() - got


def compute(end: float) -> None:
    """Compute until then, in as many processes as there are cores."""
    children = []
    for _ in range(cores() - 1):
        child = os.fork()
        if child == 0:
            try:
                _compute(end)
            finally:
                os._exit(0)
        children.append(child)
    _compute(end)
    for child in children:
        os.waitpid(child, 0)


def _compute(end: float) -> None:
    while time.monotonic() < end:
        sum(range(1000))


if __name__ == "__main__":
    attend(work)
