"""A Celery application that opens its database when it is imported, before the pool forks; ``send N`` gives it work."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery import Celery  # type: ignore[import-untyped]

import safedb

SCHEMA = "CREATE TABLE IF NOT EXISTS entry (name TEXT NOT NULL, pid INTEGER NOT NULL)"
INSERT = "INSERT INTO entry VALUES (?, ?)"

folder = Path(os.environ["APP_QUEUE"])
app = Celery("task_app", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(folder),
    "data_folder_out": str(folder),
    "control_folder": str(folder / "control"),
    "polling_interval": 0.02,
}
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 1

db = safedb.connect(os.environ["APP_DATABASE"], schema=SCHEMA, retry=safedb.RetryPolicy(timeout=60.0))


@app.task(name="write")  # type: ignore[untyped-decorator]
def write(name: str) -> None:
    """Write a row, each second one in a transaction."""
    if name.endswith("0"):
        db.run_transaction(lambda tx: tx.execute(INSERT, (name, os.getpid())))
    else:
        db.execute(INSERT, (name, os.getpid()))


if __name__ == "__main__":
    for number in range(int(sys.argv[2])):
        write.delay(f"task {number}")
    db.close()
