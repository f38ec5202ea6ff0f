"""Opening a database: what is checked and enforced, in which order, and which handles share an engine.

The order: the place and its file system, the side files' lock (so that processes that start at once do not race for
WAL), ``busy_timeout``, WAL, every pragma read back, SQLite's version. Handles on one file share one engine, whatever
path they came by; a setting that was not given never contradicts one that was.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

from safedb import errors
from safedb.config import PoolConfig, Pragmas, Settings
from safedb.sqlite import location
from safedb.sqlite.blocks import Exclusive
from safedb.sqlite.connections import Extras, refuse_lone_memory
from safedb.sqlite.driver import VERSION
from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.health import RACE_REMEDY, said_to_be_mended, wal_reset_race
from safedb.sqlite.jobs import Job
from safedb.sqlite.pragmas import check_given
from safedb.sqlite.snapshots import SnapshotSession
from safedb.stats import logger

MOST_ARGUMENTS = 100  # of an SQL function: https://sqlite.org/limits.html
MOST_CHARACTERS = 63  # of its name, so that it fits SQLite's 255 bytes in any script

Identity = tuple[int, int]


@dataclass(slots=True)
class Entry:
    """Be what the process knows of one file: its engines, and which threads are inside which of them."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # held while an engine of this file opens or closes
    engines: dict[bool, SqliteEngine] = field(default_factory=dict)  # by read_only
    handles: dict[bool, int] = field(default_factory=dict)
    inside: dict[int, Job] = field(default_factory=dict)
    snapping: dict[int, weakref.ref[SnapshotSession]] = field(default_factory=dict)


class Registry:
    """Know every engine of the process by its file."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.entries: dict[Identity, Entry] = {}
        self.memory: set[SqliteEngine] = set()
        self.refused: dict[Identity, str] = {}  # files that this process must not open: it was forked from their user
        self.refuses_all: str | None = None  # why it must open none

    def engines(self) -> list[SqliteEngine]:
        """List all engines."""
        entries = list(self.entries.values())  # one C call: other threads may be adding to them
        return [*self.memory, *(engine for entry in entries for engine in list(entry.engines.values()))]

    def open(self, settings: Settings, extras: Extras) -> SqliteEngine:
        """Give the engine of the settings' target: the one that is there, or a new one."""
        path = settings.target.path
        deadline = monotonic() + settings.retry.effective().timeout
        refuse_lone_memory(path, read_only=settings.read_only)
        check_given(settings.pragmas)
        if path is None:
            if self.refuses_all:
                raise errors.InterfaceError(self.refuses_all)
            engine = _make(None, settings, extras)
            _start(engine, deadline)
            logger.warning("safedb: a database in memory: nothing in it will last")
            self.memory.add(engine)
            return engine
        identity, place = self._place(path, settings)
        with self.mutex:
            entry = self.entries.setdefault(identity, Entry())
        if not entry.lock.acquire(timeout=max(0.0, deadline - monotonic())):
            raise errors.LockTimeout(
                f"another thread of this process was opening or closing {place.realpath} until the deadline; see what "
                "it waits for, or raise the timeout"
            )
        try:
            return self._share(entry, identity, place, settings, extras, deadline)
        finally:
            entry.lock.release()

    def _place(self, path: str, settings: Settings) -> tuple[Identity, location.Location]:
        place = location.examine(path, read_only=settings.read_only)
        identity = place.device_inode
        if identity is None:
            with self.mutex:  # closing the new file's descriptor would drop another thread's locks on it (H32)
                location.create(place.realpath, settings.pragmas.effective().file_mode)
                identity = location.identity(place.realpath)
        if identity is None:
            raise errors.ConfigError(f"{place.realpath!r} was deleted while it was opened")
        refusal = self.refused.get(identity) or self.refuses_all
        if refusal is not None:
            raise errors.InterfaceError(refusal)
        return identity, place

    def _share(
        self,
        entry: Entry,
        identity: Identity,
        place: location.Location,
        settings: Settings,
        extras: Extras,
        deadline: float,
    ) -> SqliteEngine:
        self._refuse_replaced(identity, place.realpath)
        kind = settings.read_only
        engine = entry.engines.get(kind)
        if engine is None:
            engine = _make(place.realpath, settings, extras, identity)
            engine.inside, engine.snapping = entry.inside, entry.snapping
            _start(engine, deadline, place)
            entry.engines[kind], entry.handles[kind] = engine, 0
        else:
            _agree(engine, settings, extras)
        entry.handles[kind] += 1
        return engine

    def _refuse_replaced(self, identity: Identity, path: str) -> None:
        """Refuse a file that has taken the place of an open one: both would use one name for their WALs (H41)."""
        for engine in self.engines():
            if engine.path == path and engine.identity != identity:
                raise errors.ConfigError(
                    f"{path!r} was replaced while it was open in this process: close the handles on the old file first"
                )

    def close(self, engine: SqliteEngine, timeout: float) -> None:
        """Give up one handle's share in an engine; with the last one the engine is closed.

        That waits for its transactions to end: inside one of its own the calling thread gets `ReentrancyError` instead.
        """
        entry = self.entries.get(engine.identity) if engine.identity else None
        if entry is None:
            engine.refuse_reentry(reading=False)
            engine.refuse_own_turn()
            self.memory.discard(engine)
            engine.close(timeout)
            return
        with entry.lock:
            kind = engine.read_only
            if entry.engines.get(kind) is not engine:
                return
            if entry.handles[kind] == 1 and not kind:
                engine.refuse_reentry(reading=False)
                engine.refuse_own_turn()
            entry.handles[kind] -= 1
            if entry.handles[kind] == 0:
                del entry.engines[kind]
                engine.close(timeout)
                if engine.left_open and engine.identity:
                    self.refused[engine.identity] = (
                        f"{engine.left_open}. Another process has opened it meanwhile, which this one cannot any more: "
                        "start it anew"
                    )


def _make(path: str | None, settings: Settings, extras: Extras, identity: Identity | None = None) -> SqliteEngine:
    return SqliteEngine(
        path,
        pragmas=settings.pragmas.effective(),
        pool=settings.pool.effective(),
        policy=settings.retry.effective(),
        extras=extras,
        read_only=settings.read_only,
        identity=identity,
    )


def _start(engine: SqliteEngine, deadline: float, place: location.Location | None = None) -> None:
    """Open a first connection, so that what cannot be put in force is said now; say what else is to be known."""
    try:
        if engine.read_only:
            reader = engine.readers.check_out(deadline)
            try:  # no pragma of a reader's looks into the file: junk shows at the first read
                pinned = engine.snapshots.open(
                    reader, name=engine.name, max_age=None, deadline=deadline, policy=engine.policy
                )
                engine.snapshots.close(pinned)
            finally:
                engine.readers.give_back(reader)
        else:
            job = Exclusive(deadline, engine.policy)
            with engine.blocks.exclusive(job) as writer:
                writer.cursor()
        if place is not None:
            _report(place)
    except BaseException:
        engine.abandon()
        raise


def _report(place: location.Location) -> None:
    mended = said_to_be_mended()
    if place.temporary:
        logger.warning("safedb: %s may not last: %s", place.realpath, place.temporary)
    if wal_reset_race(VERSION) and not mended:
        logger.info(
            "safedb: SQLite %s has the WAL-reset race (https://sqlite.org/wal.html#walresetbug): safedb never "
            "checkpoints beside a commit, but other programs that write to %s might; %s",
            ".".join(map(str, VERSION)), place.realpath, RACE_REMEDY,
        )  # fmt: skip


def _agree(engine: SqliteEngine, settings: Settings, extras: Extras) -> None:
    """Refuse settings that contradict those in force for the file; what was not given agrees."""
    given: dict[str, tuple[object, object]] = {}
    options: tuple[Pragmas | PoolConfig, ...] = (settings.pragmas, settings.pool)
    for option, in_force in zip(options, (engine.pragmas, engine.pool), strict=True):
        for name, value in option.given().items():
            given[name] = (value, getattr(in_force, name))
    given["functions"] = (dict(extras.functions) or dict(engine.extras.functions), dict(engine.extras.functions))
    given["collations"] = (dict(extras.collations) or dict(engine.extras.collations), dict(engine.extras.collations))
    for name, (asked, present) in given.items():
        if asked != present:
            raise errors.ConfigError(
                f"{engine.name} is open in this process with {name} = {present!r}, and {asked!r} was asked for: "
                "handles on one file share one writer. Give the same value, or none"
            )


def extras_of(functions: object, collations: object) -> Extras:
    """Check ``functions=`` and ``collations=``."""
    checked: list[dict[str, object]] = []
    for what, given in (("functions", functions), ("collations", collations)):
        if given is None:
            given = {}
        if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
            raise errors.ConfigError(f"{what}= takes a mapping of names to callables, not {given!r}")
        for name, value in given.items():
            body, count = value if what == "functions" and isinstance(value, tuple) and len(value) == 2 else (value, -1)
            if not callable(body):
                raise errors.ConfigError(f"{what}={{{name!r}: …}} takes a callable, not {value!r}")
            if isinstance(count, bool) or not isinstance(count, int) or not -1 <= count <= MOST_ARGUMENTS:
                raise errors.ConfigError(
                    f"{what}={{{name!r}: …}}: a function takes 0 to {MOST_ARGUMENTS} arguments, or -1 for any number, "
                    f"not {count!r}"
                )
            if "\0" in name or not name.isprintable() or len(name) > MOST_CHARACTERS:
                raise errors.ConfigError(
                    f"{what}= has {name!r} for a name: give up to {MOST_CHARACTERS} plain characters"
                )
        checked.append(dict(given))
    return Extras(*checked)  # type: ignore[arg-type]


registry = Registry()
