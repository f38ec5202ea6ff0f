"""SQLAlchemy Core, on a file and on PostgreSQL: textual SQL, compiled once; transactions by `engine.begin()`.

On a file as its page on transactions with SQLite says: the driver's own BEGIN is turned off by the event ``connect``,
and ``begin`` emits ours, which takes the lock at once. Reads would then wait for writers, so they have an engine of
their own with the documented ``isolation_level="AUTOCOMMIT"``, which may not have those events. The pool for files is
`QueuePool`, by default and by that page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from sqlalchemy import Engine, create_engine, event, make_url, text

from benchmarks.case import Dialect
from benchmarks.peers.peer import (
    COUNTERS,
    INSERT,
    PAYLOAD,
    POINT,
    READ_COUNTER,
    READERS,
    SPAN,
    WRITE_COUNTER,
    Lane,
    Peer,
    Place,
    at_once,
)


def _named(sql: str, *names: str) -> Any:
    """Give the statement with named parameters in the place of question marks."""
    for name in names:
        sql = sql.replace("?", f":{name}", 1)
    return text(sql)


ADD = _named(INSERT, "thread", "number", "v")
ONE = _named(POINT, "key")
SOME = _named(SPAN, "key")
READ = _named(READ_COUNTER, "key")
LOCK = _named(f"{READ_COUNTER} FOR UPDATE", "key")
SET = _named(WRITE_COUNTER, "n", "key")


class _Core(Lane):
    def __init__(self, engine: Any, reading: Any, read_counter: Any) -> None:
        self._begin, self._connect, self._read_counter = engine.begin, reading.connect, read_counter

    def write(self, thread: int, number: int) -> None:
        with self._begin() as connection:
            connection.execute(ADD, {"thread": thread, "number": number, "v": PAYLOAD})

    def block(self, thread: int, number: int) -> None:
        key = number % COUNTERS
        with self._begin() as connection:
            execute = connection.execute
            found = execute(self._read_counter, {"key": key}).scalar_one()
            execute(SET, {"n": found + 1, "key": key})
            execute(ADD, {"thread": thread, "number": number, "v": PAYLOAD})

    def function(self, thread: int, number: int) -> None:
        self.block(thread, number)

    def point(self, key: int) -> Sequence[Any]:
        with self._connect() as connection:
            row: Sequence[Any] = connection.execute(ONE, {"key": key}).one()
        return row

    def range(self, key: int) -> Sequence[Any]:
        with self._connect() as connection:
            rows: Sequence[Any] = connection.execute(SOME, {"key": key}).all()
        return rows


class WithSqlalchemy(Peer):
    """Use Core on a file."""

    name = "SQLAlchemy"
    package = "SQLAlchemy"
    source = "https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#transactions-with-sqlite-and-the-sqlite3-driver"
    remark = "a pool for writes, with BEGIN IMMEDIATE by its documented events, and one for reads in AUTOCOMMIT"

    def __init__(self, place: Place) -> None:
        self._writing = self._engine(place)
        self._reading = self._engine(place, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
        event.listen(self._writing, "connect", _no_begin_of_the_driver)
        event.listen(self._writing, "begin", _begin)
        for engine in (self._writing, self._reading):
            at_once(READERS, engine.connect)
            with engine.connect() as connection:
                place.check(_asking(connection))

    def _engine(self, place: Place, **options: Any) -> Any:
        engine = create_engine(
            f"sqlite:///{place.path}",
            pool_size=READERS,
            max_overflow=0,
            pool_timeout=place.timeout,
            connect_args={"timeout": place.timeout},
            **options,
        )

        def set_pragmas(connection: Any, _: Any) -> None:
            for name, value in place.pragmas.items():
                connection.execute(f"PRAGMA {name} = {value}")

        event.listen(engine, "connect", set_pragmas)
        return engine

    def lane(self) -> Lane:
        return _Core(self._writing, self._reading, READ)

    def close(self) -> None:
        self._writing.dispose()
        self._reading.dispose()


def _asking(connection: Any) -> Callable[[str], Any]:
    return lambda pragma: connection.exec_driver_sql(pragma).scalar_one()


def _no_begin_of_the_driver(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class OnPostgres(Peer):
    """Use Core on a server, with the driver psycopg; reads are in AUTOCOMMIT, on connections of the same pool."""

    name = "SQLAlchemy on PostgreSQL"
    package = "SQLAlchemy"
    source = "https://docs.sqlalchemy.org/en/21/core/connections.html#dbapi-autocommit-multiple"
    dialect: ClassVar[Dialect] = "postgresql"
    remark = "READ COMMITTED, with FOR UPDATE in functions and blocks"

    def __init__(self, place: Place) -> None:
        url = make_url(place.url).set(drivername="postgresql+psycopg")
        self._engine: Engine = create_engine(
            url, pool_size=READERS, max_overflow=0, pool_timeout=place.timeout, skip_autocommit_rollback=True
        )
        at_once(READERS, self._engine.connect)

    def lane(self) -> Lane:
        return _Core(self._engine, self._engine.execution_options(isolation_level="AUTOCOMMIT"), LOCK)

    def close(self) -> None:
        self._engine.dispose()
