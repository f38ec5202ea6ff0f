"""What an error of the server's or the driver's becomes: by SQLSTATE alone, with its remedy, and no secret as cause.

The errors are real ones: what a statement can bring about is brought about, and every other code is raised by the
server itself (PL/pgSQL may raise any).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pgserver import shared

import safedb
from safedb import errors
from safedb.postgres.verdicts import (
    AGAIN,
    CLASSES,
    CODES,
    DRIVER,
    REMEDIES,
    SHUTDOWN,
    classify,
    is_stale_plan,
    lost,
    state_of,
    unanswered,
)

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def connection() -> Iterator[Connection]:
    with psycopg.connect(shared().schema(), autocommit=True) as connection:
        yield connection


def error_of(connection: Connection, sql: str, *values: object) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(sql.encode(), values)
    return caught.value


def raised(connection: Connection, state: str, **more: str) -> psycopg.Error:
    """Let the server raise any error."""
    using = "".join(f", {name} = '{value}'" for name, value in more.items())
    return error_of(connection, f"DO $$ BEGIN RAISE EXCEPTION 'the words' USING ERRCODE = '{state}'{using}; END $$")


TABLE = {
    # a code of its own
    "23505": (errors.UniqueViolation, False),
    "23503": (errors.ForeignKeyViolation, False),
    "23502": (errors.NotNullViolation, False),
    "23514": (errors.CheckViolation, False),
    "40001": (errors.SerializationFailure, True),
    "40P01": (errors.DeadlockDetected, True),
    "55P03": (errors.LockTimeout, True),
    "57014": (errors.QueryCanceled, False),
    "53100": (errors.DatabaseFull, False),
    "25P02": (errors.TransactionAborted, False),
    "42804": (errors.DataError, False),
    "25006": (errors.ProgrammingError, False),
    "25001": (errors.ProgrammingError, False),
    # the server says that another try may do
    "53300": (errors.OperationalError, True),
    "53200": (errors.OperationalError, True),
    # by class
    "0A000": (errors.NotSupportedError, False),
    "21000": (errors.ProgrammingError, False),
    "22012": (errors.DataError, False),
    "22003": (errors.DataError, False),
    "23P01": (errors.IntegrityError, False),
    "23001": (errors.IntegrityError, False),
    "25000": (errors.InternalError, False),
    "25P01": (errors.InternalError, False),
    "40002": (errors.OperationalError, False),
    "42601": (errors.ProgrammingError, False),
    "42P01": (errors.ProgrammingError, False),
    "42501": (errors.ProgrammingError, False),
    "42P18": (errors.ProgrammingError, False),
    "42725": (errors.ProgrammingError, False),
    "42883": (errors.ProgrammingError, False),
    "53000": (errors.OperationalError, False),
    "57000": (errors.OperationalError, False),
    "58030": (errors.OperationalError, False),
    "XX000": (errors.InternalError, False),
    "XX001": (errors.InternalError, False),
    # neither a code nor a class of ours: the driver's own class decides
    "2F003": (errors.OperationalError, False),
    "26000": (errors.ProgrammingError, False),
    "34000": (errors.ProgrammingError, False),
    "54001": (errors.OperationalError, False),
    "55006": (errors.OperationalError, False),
    "P0001": (errors.ProgrammingError, False),
    "P0002": (errors.ProgrammingError, False),
    "ZZ999": (errors.DatabaseError, False),
}


@pytest.mark.parametrize(("state", "cls", "retryable"), [(state, *told) for state, told in TABLE.items()])
def test_a_code_gives_a_class(connection: Connection, state: str, cls: type[errors.Error], retryable: bool) -> None:
    """Class, code, whether to try again, what was tried, the server's words, the remedy, and the driver's as cause."""
    error = raised(connection, state)
    assert state_of(error) == state
    ours = classify(error, doing="INSERT INTO t …", broken=False)
    assert type(ours) is cls
    assert ours.sqlstate == state
    assert ours.retryable is retryable
    remedy = f" ({REMEDIES[state]})" if state in REMEDIES else ""
    assert str(ours) == f"INSERT INTO t …: the words{remedy}"
    assert ours.__cause__ is error


def test_the_table_above_has_every_row_of_the_tables() -> None:
    """Nobody adds a code or a class and forgets to say here what becomes of it."""
    assert set(HUNG_UP) >= SHUTDOWN
    assert CODES.keys() | REMEDIES.keys() <= TABLE.keys()
    assert CLASSES.keys() - {"08"} <= {state[:2] for state in TABLE if state not in CODES}


def test_what_is_run_again_can_be_run_again() -> None:
    """The classes that safedb runs again are those that say so to everybody."""
    assert all(cls.retryable for cls in AGAIN)
    assert not errors.QueryCanceled.retryable


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("40001", "serial_writes=True"),
        ("40P01", "run_transaction does that"),
        ("42P18", "CAST(? AS integer)"),
        ("42725", "CAST(? AS integer)"),
        ("42804", "CAST(? AS integer)"),
        ("42883", "CAST(? AS integer)"),
        ("22003", "CAST(? AS integer)"),
        ("53100", "make room"),
        ("53300", "max_connections"),
        ("55P03", "raise the timeout"),
        ("57014", "raise the timeout"),
    ],
)
def test_a_remedy_is_told(connection: Connection, state: str, words: str) -> None:
    """Every error says what to do next, where there is something to be done."""
    assert words in str(classify(raised(connection, state), doing="x", broken=False))


# -- the link ---------------------------------------------------------------------------------------------------------


HUNG_UP = ("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "08000", "08003", "08006", "08P01")


@pytest.mark.parametrize("state", HUNG_UP)
def test_a_server_that_hangs_up_has_kept_nothing(connection: Connection, state: str) -> None:
    """The network library's text may quote what it was given to connect with (H51), so it is no cause of ours."""
    for broken in (False, True):
        ours = classify(raised(connection, state), doing="INSERT", broken=broken)
        assert type(ours) is errors.ConnectionLost
        assert ours.retryable
        assert ours.sqlstate == state
        assert "nothing of it was kept" in str(ours)
        assert f"the server said {state}" in str(ours)
        assert "the words" not in str(ours)
        assert ours.__cause__ is None
        assert ours.__context__ is None


def test_a_session_that_was_ended(connection: Connection) -> None:
    """The real thing: the server says 57P01, and hangs up."""
    error = error_of(connection, "SELECT pg_terminate_backend(pg_backend_pid())")
    ours = classify(error, doing="SELECT …", broken=connection.closed)
    assert type(ours) is errors.ConnectionLost
    assert ours.sqlstate == "57P01"
    assert ours.__cause__ is None


def test_a_line_that_was_cut_has_no_code(connection: Connection) -> None:
    """Nothing but the state of the link tells what happened; the same error on a sound link means something else."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    error = error_of(connection, "SELECT 1")
    assert connection.closed
    assert state_of(error) == ""
    ours = classify(error, doing="SELECT 1", broken=True)
    assert type(ours) is errors.ConnectionLost
    assert ours.sqlstate == "08006"
    assert "the server said" not in str(ours)
    assert str(error) not in str(ours)
    assert ours.__cause__ is None
    assert type(classify(error, doing="SELECT 1", broken=False)) is errors.OperationalError


@pytest.mark.parametrize("state", ["23505", "40001", "57014"])
def test_a_code_counts_for_more_than_a_link_that_broke_after_it(connection: Connection, state: str) -> None:
    """The server has answered, and then hung up: the answer is what happened."""
    ours = classify(raised(connection, state), doing="INSERT", broken=True)
    assert type(ours) is CODES[state]
    assert ours.__cause__ is not None


# -- without a code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [*DRIVER, psycopg.InterfaceError, psycopg.DatabaseError, psycopg.Error])
def test_the_drivers_own_class_decides_where_there_is_no_code(theirs: type[psycopg.Error]) -> None:
    """What the driver raises by itself keeps PEP 249's name; of what is broader nothing narrower is claimed."""
    error = theirs("its words")
    ours = classify(error, doing="INSERT", broken=False)
    expected = getattr(errors, theirs.__name__) if theirs in DRIVER else errors.DatabaseError
    assert type(ours) is expected
    assert str(ours) == "INSERT: its words"
    assert ours.sqlstate == expected.sqlstate
    assert ours.__cause__ is error


def test_a_value_that_the_driver_cannot_write(connection: Connection) -> None:
    """The real thing: a NUL in a text, and a type that it does not know."""
    for value, cls in (("a\0b", errors.DataError), (object(), errors.ProgrammingError)):
        error = error_of(connection, "SELECT %s::text", value)
        ours = classify(error, doing="SELECT", broken=False)
        assert type(ours) is cls
        assert ours.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("its words"), TypeError("its words"), OverflowError("its words")])
def test_what_python_says_of_a_value(error: Exception) -> None:
    """An exception that is not the driver's at all is about what was given to it."""
    for broken in (False, True):
        ours = classify(error, doing="INSERT", broken=broken)
        assert type(ours) is (errors.ConnectionLost if broken else errors.ProgrammingError)
        assert (ours.__cause__ is error) is not broken
        assert broken or str(ours) == "INSERT: its words"


def test_our_own_error_is_left_as_it_is() -> None:
    """What is classified twice is the same."""
    for error in (errors.DataError("x"), errors.ConnectionLost("x"), safedb.CommitUnknownError("x")):
        assert classify(error, doing="INSERT", broken=True) is error
        assert error.__cause__ is None


# -- the words --------------------------------------------------------------------------------------------------------


def test_the_servers_words_are_told_once(connection: Connection) -> None:
    """Detail and hint are told, and of the place what the words have not named already."""
    error = raised(connection, "23514", DETAIL="the detail.", HINT="the hint.", CONSTRAINT="a_rule", TABLE="a_table")
    told = str(classify(error, doing="INSERT", broken=False))
    assert told == "INSERT: the words. the detail. the hint [constraint a_rule] [table a_table]"
    error = raised(connection, "23514", DETAIL="a_rule of a_table", CONSTRAINT="a_rule", TABLE="a_table")
    assert str(classify(error, doing="INSERT", broken=False)) == "INSERT: the words. a_rule of a_table"


def test_a_real_violation_names_its_constraint_and_its_key(connection: Connection) -> None:
    """What a user reads of the most common error of all."""
    connection.execute("CREATE TABLE thing (id int CONSTRAINT one_each PRIMARY KEY)")
    connection.execute("INSERT INTO thing VALUES (7)")
    error = error_of(connection, "INSERT INTO thing VALUES (7)")
    told = str(classify(error, doing="INSERT …", broken=False))
    assert "one_each" in told
    assert "(id)=(7)" in told
    assert told.endswith(" [table thing]")  # its words have named the constraint, and not the table


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lost("INSERT"), "INSERT: the connection broke; nothing of it was kept, so it can be run again"),
        (lambda: lost("INSERT", "57P01"), "INSERT: the connection broke (the server said 57P01); nothing"),
        (lambda: unanswered("INSERT"), "INSERT: it was not sent and answered by the deadline"),
    ],
)
def test_words_of_our_own(make: Callable[[], errors.Error], words: str) -> None:
    """What the server did not say."""
    assert str(make()).startswith(words)
    assert make().__cause__ is None


def test_a_link_that_was_given_up_is_no_lost_one() -> None:
    """It is not run again: its time is over."""
    assert type(unanswered("INSERT")) is errors.QueryCanceled
    assert lost("INSERT").sqlstate == "08006"
    assert lost("INSERT", "57P02").sqlstate == "57P02"


# -- prepared statements ----------------------------------------------------------------------------------------------


def test_a_plan_that_a_changed_table_made_useless_is_known_by_its_origin(connection: Connection) -> None:
    """Its code is that of everything that is not supported, so nothing else of that code is taken for it."""
    connection.execute("CREATE TABLE t (a int)")
    connection.execute("SELECT * FROM t", prepare=True)
    connection.execute("DO $$ BEGIN ALTER TABLE t ADD COLUMN b int; END $$")  # the driver must not know
    with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
        connection.execute("SELECT * FROM t", prepare=True)
    assert is_stale_plan(caught.value)
    assert not is_stale_plan(raised(connection, "0A000"))
    assert not is_stale_plan(raised(connection, "40001"))
    assert not is_stale_plan(ValueError("cached plan must not change result type"))
    assert not is_stale_plan(None)
