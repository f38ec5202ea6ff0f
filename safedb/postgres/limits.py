"""What the server is told of a call's deadline: transaction-local limits, and how each kind of transaction begins.

Limits are set with ``set_config(…, true)`` inside the transaction that they belong to, in the same round trip as BEGIN:
so they follow the call, and hold behind a pooler that gives each transaction another session. Only where they would be
what the session was told when it was opened (a call with the handle's own timeout, that has not waited) they are left
out. ``lock_timeout`` is a
little shorter than ``statement_timeout``, else the server could never say that it was a lock that was in the way
(https://www.postgresql.org/docs/current/runtime-config-client.html).
"""

from __future__ import annotations

from time import monotonic

Command = tuple[str, tuple[str, ...]]

SERIALIZABLE = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE"
READ = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
REPEATABLE = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
DEFERRABLE = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE"

LOCK_MARGIN = 10  # milliseconds by which a lock's limit is the shorter one
IDLE_MARGIN = 30_000  # milliseconds past the deadline after which the server ends a session that nobody works in
LONGEST = 2**31 - 1 - IDLE_MARGIN  # milliseconds; the server counts them in 32 bits
CLEANING = 1.0  # seconds that a rollback may take before the link is given up
NEAR = 0.02  # seconds by which a deadline may be earlier than what its session was told once for all
GRACE = 0.08  # seconds past the deadline that the server's own limits have to answer, before the link is given up
COMMIT_GRACE = 5.0  # seconds that a COMMIT under way has at least, and so has a new session to answer for itself

SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",
}
"""What every session is put into, and what values and SQL text are read by."""

_LIMITS = (
    "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true),"
    " set_config('idle_in_transaction_session_timeout', $3, true)"
)


def milliseconds(deadline: float) -> int:
    """Give what is left until a deadline."""
    return in_milliseconds(deadline - monotonic())


def in_milliseconds(seconds: float) -> int:
    """Give a limit as the server takes it: at least 1, for 0 would mean "none", and at most 24 days."""
    return max(1, min(int(seconds * 1000), LONGEST))


def lock_limit(left: int) -> int:
    """Give the limit of a wait for a lock, in milliseconds, where ``left`` is that of the whole statement."""
    return max(1, left - LOCK_MARGIN)


def local(deadline: float, *, idle: int | None = None) -> Command:
    """Make the command that sets a transaction's limits; ``idle`` is another limit for user code, in milliseconds."""
    left = milliseconds(deadline)
    return _LIMITS, (str(left), str(lock_limit(left)), str(left + IDLE_MARGIN if idle is None else idle))


def session(left: int) -> Command:
    """Make the command that sets a session's limits, in milliseconds: for what runs outside of a transaction."""
    sql = "SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', $2, false)"
    return sql, (str(left), str(lock_limit(left)))


def utility(deadline: float) -> list[Command]:
    """Set the same limits by commands that fix no state: for what waits before the state is fixed."""
    left = milliseconds(deadline)
    return [
        (f"SET LOCAL statement_timeout = {left}", ()),
        (f"SET LOCAL lock_timeout = {lock_limit(left)}", ()),
    ]


TIMES = frozenset({"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"})
"""Settings that the server gives back in units of its own."""


def durable(*, local: bool) -> str:
    """Write the SELECT that switches ``synchronous_commit`` on where it is off; any other value of it is durable."""
    return (
        "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
        f" ELSE current_setting('synchronous_commit') END, {'true' if local else 'false'})"
    )


def session_settings(settings: dict[str, str], *, local: bool) -> str:
    """Write one SELECT that puts settings in force, and gives back what is in force then."""
    flag = "true" if local else "false"
    return "SELECT " + ", ".join(f"set_config('{name}', '{value}', {flag})" for name, value in settings.items())
