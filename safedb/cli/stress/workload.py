"""What both sides do: the tables, the transfers, and the hands that a thread does it with."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from safedb.cli.stress.source import Row
from safedb.targets import Dsn

PREFIX = "safedb_stress_"  # every table of ours starts so, and no other table is ever touched
ROWS, ACCOUNTS, JOURNAL = PREFIX + "rows", PREFIX + "accounts", PREFIX + "journal"
TABLES = (ROWS, ACCOUNTS, JOURNAL)

HOW_MANY_ACCOUNTS = 64
OPENING_BALANCE = 1_000
TOTAL = HOW_MANY_ACCOUNTS * OPENING_BALANCE
HIGHEST_AMOUNT = 100
TRANSFER_SHARE = 8  # one write in so many is a transfer, the others are inserted rows
TOTAL_SHARE = 16  # one read in so many adds up all accounts, the others fetch one row

# No UNIQUE constraint on (worker, sequence): it would turn a row that is written twice into an error, and hide it.
PREPARATION = (
    f"CREATE TABLE {ROWS} (id INTEGER PRIMARY KEY, worker INTEGER NOT NULL, sequence INTEGER NOT NULL,"
    " path TEXT NOT NULL, line INTEGER NOT NULL, body TEXT NOT NULL, seal INTEGER NOT NULL)",
    f"CREATE INDEX {ROWS}_by_place ON {ROWS} (path, line)",
    f"CREATE TABLE {ACCOUNTS} (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, version INTEGER NOT NULL)",
    f"CREATE TABLE {JOURNAL} (id INTEGER PRIMARY KEY, worker INTEGER NOT NULL, sequence INTEGER NOT NULL,"
    " source INTEGER NOT NULL, target INTEGER NOT NULL, amount INTEGER NOT NULL)",
    f"WITH RECURSIVE numbers(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM numbers WHERE n < {HOW_MANY_ACCOUNTS - 1})"  # noqa: S608
    f" INSERT INTO {ACCOUNTS} (id, balance, version) SELECT n, {OPENING_BALANCE}, 0 FROM numbers",
)
INSERT_ROW = f"INSERT INTO {ROWS} (worker, sequence, path, line, body, seal) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
READ_ACCOUNT = f"SELECT balance, version FROM {ACCOUNTS} WHERE id = ?"  # noqa: S608
SET_ACCOUNT = f"UPDATE {ACCOUNTS} SET balance = ?, version = ? WHERE id = ?"  # noqa: S608
INSERT_TRANSFER = f"INSERT INTO {JOURNAL} (worker, sequence, source, target, amount) VALUES (?, ?, ?, ?, ?)"  # noqa: S608
READ_ROW = f"SELECT path, line, body FROM {ROWS} WHERE id = ?"  # noqa: S608
# Two statements, so that the answer is only right if both see one state.
HALVES = (
    f"SELECT sum(balance) FROM {ACCOUNTS} WHERE id < {HOW_MANY_ACCOUNTS // 2}",  # noqa: S608
    f"SELECT sum(balance) FROM {ACCOUNTS} WHERE id >= {HOW_MANY_ACCOUNTS // 2}",  # noqa: S608
)


class Outcome(enum.Enum):
    """Tell how a write failed."""

    LOCKED = "a lock was waited for in vain"
    CONFLICT = "ended by the database for a conflict with another transaction"
    UNKNOWN = "nobody can know whether it was committed"
    OTHER = "another error"


class Transfer(NamedTuple):
    """Be an amount that moves between two accounts, with the worker's own number for it."""

    worker: int
    sequence: int
    source: int
    target: int
    amount: int


class Hands(Protocol):
    """Do one thread's reading and writing, in the way of one side. Belongs to the thread that got it."""

    def insert(self, worker: int, sequence: int, row: Row) -> None:
        """Insert one row; returning means that it is committed."""

    def transfer(self, transfer: Transfer) -> bool:
        """Read two balances, decide, write both and a line in the journal; False (no write) if funds are short."""

    def read_row(self, number: int) -> object:
        """Fetch one row by its id; None if there is none."""

    def read_total(self) -> int:
        """Add up all accounts, in two statements."""

    def hold(self, wait: Callable[[], object]) -> None:
        """Keep one state open for reading while ``wait`` runs."""

    def close(self) -> None:
        """Give back what the thread holds."""


class Side(Protocol):
    """Be one way of working with the database, in one process."""

    def hands(self) -> Hands:
        """Make the hands of the calling thread."""

    def judge(self, error: Exception) -> Outcome:
        """Say what kind of failure this error is."""

    def describe(self) -> dict[str, float | int | str]:
        """Return what this side knows about its own work, for the report."""

    def close(self) -> None:
        """Give back what the process holds."""


@dataclass(frozen=True, slots=True)
class Place:
    """Say where a side's database is: its file or server, and for safedb the URL where the user gave one.

    ``dsn`` is a server's URL for the driver alone, without safedb's own settings; ``mark`` stands on the tables of this
    run, so that no other run's are ever dropped. ``synchronous`` is SQLite's only.
    """

    path: str
    url: str | None = field(repr=False)  # may hold a password
    synchronous: str | None
    dialect: str = "sqlite"
    dsn: Dsn | None = None
    mark: str = ""
