"""Same answer on both: what is remembered of a statement's columns does not outlive the schema it was learnt from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import sqlite3

import safedb


@pytest.fixture
def db(tmp_path: Path) -> Iterator[safedb.Database]:
    schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT, done BOOLEAN)"
    with safedb.connect(tmp_path / "app.db", schema=schema) as database:
        database.execute("INSERT INTO t VALUES (1, 'x', ?)", (True,))
        assert database.execute("SELECT * FROM t").fetchall() == [(1, "x", True)]  # it is remembered from here on
        yield database


def test_a_read_after_a_transaction_that_dropped_a_column_is_decoded_by_the_new_schema(db: safedb.Database) -> None:
    with db.transaction() as tx:
        tx.execute("ALTER TABLE t DROP COLUMN note")

    (row,) = db.execute("SELECT * FROM t").fetchall()

    assert row == (1, True)
    assert row[1] is True


def test_a_read_after_a_function_that_added_a_column_is_decoded_by_the_new_schema(db: safedb.Database) -> None:
    def migrate(tx: safedb.Transaction) -> None:
        tx.execute("ALTER TABLE t ADD COLUMN seen BOOLEAN NOT NULL DEFAULT 1")

    db.run_transaction(migrate)

    (row,) = db.execute("SELECT * FROM t").fetchall()

    assert row == (1, "x", True, True)
    assert row[3] is True


def test_a_read_after_another_programs_migration_is_decoded_by_the_new_schema(
    db: safedb.Database, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as other:
        other.execute("ALTER TABLE t DROP COLUMN note")

    (row,) = db.execute("SELECT * FROM t").fetchall()

    assert row == (1, True)
    assert row[1] is True
