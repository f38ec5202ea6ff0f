"""A WSGI application that opens its database when it is imported, before the server forks, and writes there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import safedb

SCHEMA = "CREATE TABLE IF NOT EXISTS entry (name TEXT NOT NULL, pid INTEGER NOT NULL)"
INSERT = "INSERT INTO entry VALUES (?, ?)"

db = safedb.connect(os.environ["APP_DATABASE"], schema=SCHEMA, retry=safedb.RetryPolicy(timeout=60.0))
db.execute(INSERT, ("imported", os.getpid()))


def write(tx: safedb.Transaction, name: str) -> int:
    """Write a row in a transaction, and count those of its name: 1."""
    tx.execute(INSERT, (name, os.getpid()))
    return int(tx.execute("SELECT count(*) FROM entry WHERE name = ?", (name,)).scalar())


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Write what is posted, in one of two ways; else tell whether it is there."""
    name = environ["PATH_INFO"].strip("/")
    if environ["REQUEST_METHOD"] == "POST" and name.endswith("0"):
        count = db.run_transaction(write, name)
    elif environ["REQUEST_METHOD"] == "POST":
        count = db.execute(INSERT, (name, os.getpid())).rowcount
    else:
        with db.snapshot() as snap:
            count = snap.execute("SELECT count(*) FROM entry WHERE name = ?", (name,)).scalar()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
    return [f"{count} {os.getpid()}".encode()]
