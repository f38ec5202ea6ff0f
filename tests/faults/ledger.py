"""The ledger of what processes announced and what was acknowledged to them, and the check of a database against it.

Each process writes into a journal of its own: what it is about to do, *before* it does it, and that it is done, *after*
the call has returned. What the kernel has taken by ``write`` outlives the process; and a record is 64 bytes long, so
none crosses a page, where a kill could tear it.

So, whoever was killed whenever: what was acknowledged must be there once and whole, what was refused must not, and what
was neither may be there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support import sqlite3

ACCOUNTS = 20
EACH = 1000  # on every account in the beginning
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS accounts (
    id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0), open BOOLEAN NOT NULL
);
INSERT OR IGNORE INTO accounts WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {ACCOUNTS})
    SELECT id, {EACH}, 1 FROM n;
CREATE TABLE IF NOT EXISTS entries (
    write TEXT NOT NULL, part INTEGER NOT NULL, body TEXT NOT NULL,
    account INTEGER NOT NULL REFERENCES accounts, amount INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_of_a_write ON entries (write, part);
"""
INSERT = "INSERT INTO entries VALUES (?, ?, ?, ?, ?)"

RECORD = 64  # bytes
ANNOUNCED, ACKNOWLEDGED, REFUSED = "announced", "acknowledged", "refused"
BACKUP = "backup"

Row = tuple[str, int, str, int, int]


def row(write: str, part: int, size: int = 0, account: int = 1, amount: int = 0) -> Row:
    """Make one row of a write: its ``body`` tells what it belongs to, so that a strange one is noticed."""
    return write, part, f"{write}/{part} {'.' * size}", account, amount


class Journal:
    """Be the journal of one process; its threads may write at once, for the kernel appends each record whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._name = name
        self._number = os.open(folder / f"{name}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, what: str, write: str, kind: str = "-", parts: int = 0) -> None:
        """Write one record; when this returns, no kill can take it back."""
        text = f"{what} {write} {kind} {parts} {time.monotonic_ns()}".ljust(RECORD - 1) + "\n"
        assert len(text) == RECORD
        os.write(self._number, text.encode())

    def complain(self, text: str) -> None:
        """Leave word of an error that nobody should have seen."""
        with (self.folder / f"{self._name}-{threading.get_ident()}.error").open("a") as file:
            file.write(text)


@dataclass
class Write:
    """Be what is known of one write (or backup): its rows, and when (in monotonic ns) it was announced and done."""

    kind: str
    parts: int
    announced: int
    acknowledged: int | None = None
    refused: bool = False


@dataclass
class State:
    """Be what a database holds in one committed state: of each write its rows, its parts and the last one's number."""

    writes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)


class Ledger:
    """Read the journals in a folder, and check databases against them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}  # bytes of each journal
        self.writes: dict[str, Write] = {}
        self.latest: dict[str, tuple[int, int]] = {}  # of each process: announced and acknowledged, its newest write

    def read(self) -> None:
        """Read what is new in the journals."""
        for path in sorted(self._folder.glob("*.journal")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            text = text[: len(text) // RECORD * RECORD]
            self._read[path] = self._read.get(path, 0) + len(text)
            for line in text.decode().splitlines():
                self._enter(path.stem, *line.split())

    def _enter(self, process: str, what: str, name: str, kind: str, parts: str, when: str) -> None:
        if what == ANNOUNCED:
            assert name not in self.writes, f"{name} was announced twice"
            self.writes[name] = Write(kind, int(parts), int(when))
        elif what == ACKNOWLEDGED:
            write = self.writes[name]
            write.acknowledged = int(when)
            self.latest[process] = max(self.latest.get(process, (0, 0)), (write.announced, int(when)))
        else:
            self.writes[name].refused = True

    def acknowledged(self, before: int | None = None) -> set[str]:
        """Name the writes that were acknowledged, up to a moment if one is given."""
        return {
            name
            for name, write in self.writes.items()
            if write.acknowledged is not None and (before is None or write.acknowledged < before)
        }

    def check(self, database: Path) -> list[str]:
        """Compare a database, which others may be writing to, with the journals; give all that is wrong."""
        self.read()
        must = self.acknowledged()
        state = look(database)
        self.read()
        return [*self.complaints(), *state.damage, *self._compare(state, must)]

    def complaints(self) -> list[str]:
        """Give the errors that processes have met."""
        texts = [path.read_text() for path in sorted(self._folder.glob("*.error"))]
        return [text for text in texts if text]  # else it is being written

    def check_backup(self, path: Path, name: str) -> list[str]:
        """Check a backup for which the record of its maker is ``name``: a whole state, no older than its beginning."""
        write = self.writes[name]
        if not path.exists():
            return [] if write.acknowledged is None else [f"{path.name} was reported complete, and is not there"]
        if write.refused:
            return [f"{path.name} was never complete, and is there"]
        if stat.S_IMODE(path.stat().st_mode) != 0o600:
            return [f"{path.name} may be read by others"]
        state = look(path, immutable=True)
        found = [*state.damage, *self._compare(state, self.acknowledged(before=write.announced))]
        return [f"{path.name}: {text}" for text in found]

    def _compare(self, state: State, must: set[str]) -> list[str]:
        findings = [
            f"lost: {name} ({self.writes[name].kind}) was acknowledged, and is not there"
            for name in sorted(must - state.writes.keys())
            if self.writes[name].parts
        ]
        for name, (rows, parts, last) in state.writes.items():
            write = self.writes.get(name)
            if write is None:
                findings.append(f"unknown: nobody announced {name}")
                continue
            what = f"{name} ({write.kind}, {write.parts} rows)"
            if write.refused:
                findings.append(f"refused: {what} failed, and is there")
            if rows > parts:
                findings.append(f"doubled: {what} has {rows} rows of {parts} parts")
            if (parts, last) != (write.parts, write.parts - 1):
                findings.append(f"half: {what} has {parts} parts, the last one {last}")
        return findings


def look(database: Path, *, immutable: bool = False) -> State:
    """Look at a database with SQLite alone, in one transaction, without leaving a trace in it."""
    if not database.exists():
        return State()
    uri = f"{database.as_uri()}?mode=ro{'&immutable=1' * immutable}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN")
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
                return State()  # whoever was about to make the tables was killed
            return State(
                {
                    name: (rows, parts, last)
                    for name, rows, parts, last in connection.execute(
                        "SELECT write, count(*), count(DISTINCT part), max(part) FROM entries GROUP BY write"
                    )
                },
                list(_damage(connection)),
            )
        except sqlite3.DatabaseError as error:
            return State(damage=[f"damaged: {error}"])


def _damage(connection: sqlite3.Connection) -> Iterator[str]:
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"damaged: {text}"
    for broken in connection.execute("PRAGMA foreign_key_check"):
        yield f"damaged: a reference to nothing: {broken}"
    strange = "SELECT write, part FROM entries WHERE NOT body GLOB write || '/' || part || ' *'"
    for name, part in connection.execute(strange):
        yield f"damaged: part {part} of {name} has another's body"
    (total,) = connection.execute("SELECT total(balance) FROM accounts").fetchone()
    if total != ACCOUNTS * EACH:
        yield f"wrong total: {total:g}"
    moved = (
        f"SELECT id, balance, {EACH} + ifnull(sum(amount), 0) AS booked FROM accounts LEFT JOIN entries "
        "ON account = id GROUP BY id HAVING balance <> booked"
    )
    for account, balance, booked in connection.execute(moved):
        yield f"wrong balance: account {account} has {balance}, its entries make {booked}"
