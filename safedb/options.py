"""What can be set: ``Pragmas``, ``RetryPolicy`` and ``PoolConfig``, and the defaults that fill what was not given.

Each comes in two forms. The one that users write has ``None`` for "not given" in every field, so that the levels of
configuration can be merged and two handles on one database can tell a contradiction from silence. ``effective()``
gives the other: the same names with nothing left open, whose defaults stand in its own class and nowhere else.
"""

# No `from __future__ import annotations` here: the kinds are read from the annotations when the classes are made.
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, cast

from safedb.errors import ConfigError
from safedb.values import FileMode, Flag, FlagOr, Kind, Number, OneOf, PowerOfTwo, Whole, suggest

LONGEST = 31_536_000.0
"""The longest time that may be asked for, in seconds: a year. Longer ones overflow some clocks (H13b)."""

_INT32 = 2**31 - 1
_INT63 = 2**63 - 1
_SECONDS = Number(0, LONGEST)
_COUNT = Whole(1, 1_000_000)

PROFILES: Mapping[str, Mapping[str, object]] = {
    "durable": {},
    "balanced": {"synchronous": "NORMAL"},
    # Litestream checkpoints by itself, and loses its place when another does: https://litestream.io/tips/
    "litestream": {"synchronous": "NORMAL", "checkpoint_pages": 0, "wal_limit": 0},
}
"""What each profile sets apart from the defaults."""


class Options:
    """Be the base of what users write: check every value on entry, and name the field meant by a misspelt one."""

    def __new__(cls, *_: object, **given: object) -> Self:
        """Refuse unknown names before the generated ``__init__`` does, which would suggest nothing."""
        for name in given:
            if name not in cls.kinds():
                raise ConfigError(f"{cls.__name__} has no setting {name!r}{suggest(name, cls.kinds())}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Bring every given value into its canonical form."""
        for name, kind in self.kinds().items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, checked(kind.check, value, f"{type(self).__name__}.{name}"))

    def __repr__(self) -> str:
        """Show what was given, and nothing else."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.given().items())
        return f"{type(self).__name__}({given})"

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """Return the kind of each setting by its name."""
        return {field.name: cast(Any, field.type).__metadata__[0] for field in dataclasses.fields(cast(Any, cls))}

    def given(self) -> dict[str, Any]:
        """Return the settings that were given."""
        return {name: value for name in self.kinds() if (value := getattr(self, name)) is not None}

    def over(self, lower: Self) -> Self:
        """Return these settings, with those of ``lower`` where these say nothing."""
        return type(self)(**{**lower.given(), **self.given()})


def checked(check: Any, value: object, where: str) -> Any:
    """Return ``check(value)``, or raise the ``ConfigError`` that says where the value came from."""
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} = {_shown(value)} {error}") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class ResolvedPragmas:
    """Hold every pragma's value in force; ``None`` leaves SQLite's own default alone."""

    profile: str = "durable"
    synchronous: str = "FULL"
    cache_size: int | None = None
    mmap_size: int | None = None
    temp_store: str | None = None
    foreign_keys: bool = True
    trusted_schema: bool = False
    recursive_triggers: bool | None = None
    secure_delete: bool | str | None = None
    journal_size_limit: int | None = None
    cell_size_check: bool | None = None
    analysis_limit: int | None = None
    max_page_count: int | None = None
    auto_vacuum: str | None = None
    page_size: int | None = None
    application_id: int | None = None
    double_quoted_strings: bool = False
    checkpoint_pages: int = 16_000
    wal_limit: int = 128 * 1024 * 1024
    file_mode: int = 0o600


@dataclass(frozen=True, kw_only=True, repr=False)
class Pragmas(Options):
    """Choose how SQLite works; a field left out is "not given", so that a lower level or the profile decides.

    Settings belong to the database, not to the handle: two handles on one file in one process must not contradict
    each other. Each is put in force on every connection that it concerns and read back; what could not be put in
    force makes opening fail. All but the last four are SQLite's own: https://www.sqlite.org/pragma.html

    ``profile``: ``"durable"`` (the default: survives power loss), ``"balanced"`` (survives ``kill -9``; the last
    commits may be lost when the power fails) or ``"litestream"``; it fills only what nothing else gave.
    ``synchronous``: OFF (a power failure may corrupt the file), NORMAL, FULL or EXTRA. ``cache_size``: pages, or KiB
    when negative, for each connection. ``mmap_size`` and ``journal_size_limit``: bytes. ``page_size``: bytes, and
    ``auto_vacuum``: NONE, FULL or INCREMENTAL; both only while the database is empty. ``application_id``: the
    number that marks the file as yours; another one's file is refused.

    ``double_quoted_strings``: take ``"x"`` for a string where no column has that name (Python 3.12 and newer; older
    ones cannot switch it). ``checkpoint_pages``: live WAL pages from which on the keeper checkpoints; 0 never does.
    ``wal_limit``: bytes above which the WAL is cut down; 0 never does. ``file_mode``: permission bits of a new file.
    """

    profile: Annotated[str | None, OneOf(tuple(PROFILES))] = None
    synchronous: Annotated[str | None, OneOf(("OFF", "NORMAL", "FULL", "EXTRA"))] = None
    cache_size: Annotated[int | None, Whole(-_INT32, _INT32)] = None
    mmap_size: Annotated[int | None, Whole(0, _INT63)] = None
    temp_store: Annotated[str | None, OneOf(("DEFAULT", "FILE", "MEMORY"))] = None
    foreign_keys: Annotated[bool | None, Flag()] = None
    trusted_schema: Annotated[bool | None, Flag()] = None
    recursive_triggers: Annotated[bool | None, Flag()] = None
    secure_delete: Annotated[bool | str | None, FlagOr("FAST")] = None
    journal_size_limit: Annotated[int | None, Whole(-1, _INT63)] = None
    cell_size_check: Annotated[bool | None, Flag()] = None
    analysis_limit: Annotated[int | None, Whole(0, _INT32)] = None
    max_page_count: Annotated[int | None, Whole(1, 2**32 - 2)] = None
    auto_vacuum: Annotated[str | None, OneOf(("NONE", "FULL", "INCREMENTAL"))] = None
    page_size: Annotated[int | None, PowerOfTwo(512, 65536)] = None
    application_id: Annotated[int | None, Whole(-_INT32 - 1, _INT32)] = None
    double_quoted_strings: Annotated[bool | None, Flag()] = None
    checkpoint_pages: Annotated[int | None, Whole(0, _INT32)] = None
    wal_limit: Annotated[int | None, Whole(0, _INT63)] = None
    file_mode: Annotated[int | None, FileMode()] = None

    @classmethod
    def durable(cls, **given: Any) -> Self:
        """Survive power loss: synchronous FULL. This is the default."""
        return cls(profile="durable", **given)

    @classmethod
    def balanced(cls, **given: Any) -> Self:
        """Survive ``kill -9``, and stay consistent when the power fails, but maybe without the last commits."""
        return cls(profile="balanced", **given)

    @classmethod
    def litestream(cls, **given: Any) -> Self:
        """Leave checkpoints to Litestream, with synchronous NORMAL."""
        return cls(profile="litestream", **given)

    def effective(self) -> ResolvedPragmas:
        """Return what is in force: given above profile above default."""
        filled: dict[str, Any] = {**PROFILES[self.profile or "durable"], **self.given()}
        return ResolvedPragmas(**filled)


@dataclass(frozen=True, kw_only=True)
class ResolvedRetryPolicy:
    """Hold the policy in force; ``attempts`` of ``None`` is bounded by the deadline alone."""

    timeout: float = 10.0
    attempts: int | None = None
    initial: float = 0.001
    maximum: float = 0.05
    multiplier: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        """Refuse a first pause that is longer than the longest."""
        if self.initial > self.maximum:
            raise ConfigError(f"RetryPolicy: initial ({self.initial} s) is above maximum ({self.maximum} s)")


@dataclass(frozen=True, kw_only=True, repr=False)
class RetryPolicy(Options):
    """Choose how long a call may take and how it retries; a field left out is "not given".

    ``timeout``: seconds for the whole call, waiting and running again included. ``attempts``: most runs of one
    transaction; without it the deadline alone decides. The pause before a retry grows from ``initial`` seconds by
    ``multiplier`` up to ``maximum`` seconds; with ``jitter`` it is drawn between nothing and that.
    """

    timeout: Annotated[float | None, _SECONDS] = None
    attempts: Annotated[int | None, _COUNT] = None
    initial: Annotated[float | None, _SECONDS] = None
    maximum: Annotated[float | None, _SECONDS] = None
    multiplier: Annotated[float | None, Number(1, 1000, closed=True)] = None
    jitter: Annotated[bool | None, Flag()] = None

    def effective(self) -> ResolvedRetryPolicy:
        """Return the policy in force."""
        return ResolvedRetryPolicy(**self.given())


@dataclass(frozen=True, kw_only=True)
class ResolvedPoolConfig:
    """Hold the limits in force."""

    min_size: int = 0
    max_size: int = 8
    max_waiting: int = 10_000
    max_idle: float = 300.0
    max_group: int = 512
    group_time: float = 0.02
    fork_wait: float = 1.0
    prepare_threshold: int = 5

    def __post_init__(self) -> None:
        """Refuse a smallest number above the largest."""
        if self.min_size > self.max_size:
            raise ConfigError(f"PoolConfig: min_size ({self.min_size}) is above max_size ({self.max_size})")


@dataclass(frozen=True, kw_only=True, repr=False)
class PoolConfig(Options):
    """Choose the limits of the queue, the groups and the readers; a field left out is "not given".

    ``min_size`` and ``max_size``: readers kept and readers at most. ``max_waiting``: writers in the queue at most.
    ``max_idle``: seconds after which an unused reader is closed. ``max_group``: members of one group commit at most.
    ``group_time``: seconds since BEGIN after which a group takes no new member. ``fork_wait``: seconds that a fork
    waits for the writer and the readers to come to rest; 0 does not wait.

    On PostgreSQL the sizes are those of two pools of connections, one that reads and one that writes; ``max_waiting``
    are the calls that may wait for either, and ``max_group``, ``group_time`` and ``fork_wait`` have no meaning.
    ``prepare_threshold`` has one there only: a statement is prepared once a connection has run it so often; 0 never
    prepares, as poolers older than PgBouncer 1.22 need it.
    """

    min_size: Annotated[int | None, Whole(0, 10_000)] = None
    max_size: Annotated[int | None, Whole(1, 10_000)] = None
    max_waiting: Annotated[int | None, _COUNT] = None
    max_idle: Annotated[float | None, _SECONDS] = None
    max_group: Annotated[int | None, Whole(1, 100_000)] = None
    group_time: Annotated[float | None, Number(0, 60)] = None
    fork_wait: Annotated[float | None, Number(0, LONGEST, closed=True)] = None
    prepare_threshold: Annotated[int | None, Whole(0, 1_000_000)] = None

    def effective(self) -> ResolvedPoolConfig:
        """Return the limits in force."""
        return ResolvedPoolConfig(**self.given())


def check_timeout(value: float) -> float:
    """Return a ``timeout=`` argument as seconds, or refuse what no clock can wait for.

    Every call passes here, so a plain number within bounds costs two comparisons. Raises ``ConfigError`` for anything
    that is no number, NaN, not above 0 or above a year (SQLite silently takes 1e10 s for none at all: H13b).
    """
    if type(value) is float and 0.0 < value <= LONGEST:
        return value
    if type(value) is int and 0 < value <= LONGEST:
        return float(value)
    return cast(float, checked(_SECONDS.check, value, "timeout"))
