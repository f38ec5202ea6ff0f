"""The same work with safedb: one handle for each process, shared by all of its threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safedb
from safedb.cli.stress import target, workload
from safedb.cli.stress.source import Row, seal
from safedb.cli.stress.tally import RETRIES
from safedb.cli.stress.workload import Outcome, Place, Transfer
from safedb.config import load_settings


def connect(place: Place) -> safedb.Database:
    """Open the database as a service would, with the durability asked for and nothing else."""
    pragmas = None if place.synchronous is None else safedb.Pragmas(synchronous=place.synchronous)
    return safedb.connect(_target(place), pragmas=pragmas)


def _target(place: Place) -> str | Path:
    return place.url if place.url is not None else Path(place.path)


def deadline(place: Place) -> float:
    """Return after how many seconds a call gives up, as the user's settings have it."""
    return load_settings(_target(place)).retry.effective().timeout


def prepare(place: Place) -> None:
    """Create the tables and the accounts."""
    with connect(place) as db:
        db.executescript(";\n".join(target.engine(place.dialect).preparation(place)))


class WithSafedb:
    """Be the side that goes through safedb."""

    def __init__(self, place: Place) -> None:
        self._db = connect(place)

    def hands(self) -> SafedbHands:
        """Use the process's one handle."""
        return SafedbHands(self._db)

    def judge(self, error: Exception) -> Outcome:
        """Tell a deadline that passed behind a lock, and a COMMIT nobody can know about, from everything else."""
        if isinstance(error, safedb.CommitUnknownError):
            return Outcome.UNKNOWN
        if isinstance(error, (safedb.SerializationFailure, safedb.DeadlockDetected)):
            return Outcome.CONFLICT
        # Behind a lock held for longer than the deadline, calls wait for connections that wait for the lock, or their
        # deadline comes between two statements of a function.
        late = (safedb.LockTimeout, safedb.PoolTimeout, safedb.QueryCanceled)
        return Outcome.LOCKED if isinstance(error, late) else Outcome.OTHER

    def describe(self) -> dict[str, float | int | str]:
        """Tell what was run again, by cause, and how many connections a server had, or how long a process waited."""
        stats = self._db.stats()
        retries = {f"{RETRIES}{cause}": count for cause, count in sorted(stats.retries.items())}
        if stats.dialect == "sqlite":
            return {"longest_process_wait": stats.lock_waits.max, **retries}
        return {"connections": stats.readers.size + stats.writers.size, **retries}

    def close(self) -> None:
        """Close the handle."""
        self._db.close()


class SafedbHands:
    """Read and write through the handle that all threads of the process share."""

    def __init__(self, db: safedb.Database) -> None:
        self._db = db

    def insert(self, worker: int, sequence: int, row: Row) -> None:
        """Insert one row; safedb commits it together with whatever else is waiting."""
        values = (worker, sequence, row.path, row.line, row.body, seal(row.crc, worker, sequence))
        self._db.execute(workload.INSERT_ROW, values)

    def transfer(self, transfer: Transfer) -> bool:
        """Read both balances, decide, write both: in one transaction, run again if need be."""
        return self._db.run_transaction(_move, transfer)

    def read_row(self, number: int) -> object:
        """Fetch one row by its id."""
        return self._db.execute(workload.READ_ROW, (number,)).fetchone()

    def read_total(self) -> int:
        """Add up the accounts in two SELECTs of one snapshot."""
        with self._db.snapshot() as snap:
            return sum(int(snap.execute(half).one()[0]) for half in workload.HALVES)

    def hold(self, wait: Callable[[], object]) -> None:
        """Leave a snapshot open."""
        with self._db.snapshot():
            wait()

    def close(self) -> None:
        """Leave the handle alone: it belongs to the process."""


def _move(tx: safedb.Transaction, transfer: Transfer) -> bool:
    worker, sequence, source, target, amount = transfer
    balance, version = tx.execute(workload.READ_ACCOUNT, (source,)).one()
    other_balance, other_version = tx.execute(workload.READ_ACCOUNT, (target,)).one()
    if balance < amount:
        return False
    tx.execute(workload.SET_ACCOUNT, (balance - amount, version + 1, source))
    tx.execute(workload.SET_ACCOUNT, (other_balance + amount, other_version + 1, target))
    tx.execute(workload.INSERT_TRANSFER, (worker, sequence, source, target, amount))
    return True
