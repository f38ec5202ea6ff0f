"""Surviving ``os.fork``: nothing of SQLite's is open while the process is copied.

SQLite's locks belong to the process, and its table of them is copied: a *fresh* connection in a child whose parent had
the file open holds no lock at all, and writes into the void (H34); closing an inherited one destroys the parent's
(H30). So before a fork every engine is quiesced: its turn is taken, its readers come home, all connections and side
files are closed; both sides reopen at their next call. Waiting writers and readers of the parent only wait a little
longer.

Where that is impossible (the forking thread is inside a transaction or a snapshot, another thread holds a block, or
does not finish within ``fork_wait``; one is just opening or closing the file), the parent goes on undisturbed and the
*child* refuses the file with a clear error. It refuses every file where a thread of the parent was in the middle of a
call to SQLite, whose own locks in memory (its allocator's, for one) are then copied as they are: held. `subprocess`
without ``preexec_fn`` runs no such hooks and is unaffected.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from time import monotonic

from safedb.sqlite.connections import keep_for_ever
from safedb.sqlite.opening import Entry, registry

OPENING = 1.0  # seconds that a fork waits for a thread that opens or closes a file


@dataclass(slots=True)
class _Preparation:
    """Be what one thread has taken for its fork. An engine that is not quiet after it is unsafe in the child."""

    alone: bool = False  # no other thread forks meanwhile
    mutex: bool = False
    locked: list[Entry] = field(default_factory=list)  # files that nobody opens or closes meanwhile


_ALL_REFUSED = (
    "another thread was inside SQLite when this process was forked, and SQLite's own locks were copied as they were: "
    "it could hang in any call to it, with whatever database. Use SQLite in the parent only, fork before it is used, "
    "or start processes with multiprocessing's 'spawn'"
)

_one_at_a_time = threading.Lock()
_preparations: dict[int, _Preparation] = {}  # by thread


def _before() -> None:
    ours = _preparations[threading.get_ident()] = _Preparation()
    # As long as the fork of another thread takes at the most.
    ours.alone = _one_at_a_time.acquire(timeout=2 * OPENING + sum(e.pool.fork_wait for e in registry.engines()))
    deadline = monotonic() + OPENING
    ours.mutex = registry.mutex.acquire(timeout=OPENING)
    for entry in list(registry.entries.values()):
        if entry.lock.acquire(timeout=max(0.0, deadline - monotonic())):
            ours.locked.append(entry)
    for engine in registry.engines():
        engine.quiesce(monotonic() + engine.pool.fork_wait)


def _after_in_parent() -> None:
    try:
        _go_on()
    except BaseException:  # of an interrupt Python would only tell: nobody else is going to do the rest
        _go_on()
        raise


def _go_on() -> None:
    """Give back all that `_before` has taken. May be called again where it was interrupted."""
    thread = threading.get_ident()
    for engine in registry.engines():
        if engine.quiet_for(thread):
            engine.resume()
    ours = _preparations.get(thread)
    if ours is None:
        return
    while ours.locked:
        ours.locked.pop().lock.release()
    if ours.mutex:
        ours.mutex = False
        registry.mutex.release()
    if ours.alone:
        ours.alone = False
        _one_at_a_time.release()
    _preparations.pop(thread, None)


def _after_in_child() -> None:
    """Begin anew what is quiet, and refuse the rest: all of it where a fork outside of Python ran no hook before."""
    global _one_at_a_time
    thread = threading.get_ident()
    ours = _preparations.get(thread, _Preparation())
    engines = registry.engines()
    unquiet = [engine for engine in engines if not engine.quiet_for(thread)]
    if any(engine.is_inside_sqlite() for engine in unquiet):
        registry.refuses_all = _ALL_REFUSED
    for identity, entry in registry.entries.items():
        if entry.lock.locked() and not any(entry is other for other in ours.locked):  # a thread opens or closes it
            registry.refused[identity] = _refusal("this database")
            registry.refuses_all = _ALL_REFUSED
        entry.lock = threading.Lock()
    for engine in unquiet:
        if engine.identity is not None:
            registry.refused[engine.identity] = _refusal(engine.name)
    for engine in engines:  # a file has two where it is open read-only too, and one unsafe one spoils both
        if engine in unquiet or engine.identity in registry.refused:
            keep_for_ever(engine.refuse_after_fork(_refusal(engine.name)))
        elif registry.refuses_all:
            keep_for_ever(engine.refuse_after_fork(registry.refuses_all))
        else:
            engine.begin_anew()
    _preparations.clear()
    _one_at_a_time = threading.Lock()
    registry.mutex = threading.Lock()


def _refusal(name: str) -> str:
    return (
        f"{name} was in use when this process was forked, and SQLite's locks do not survive that: open it in the "
        "parent only, fork before it is used, or start processes with multiprocessing's 'spawn'"
    )


def install() -> None:
    """Register the hooks; called once, when the first database is opened."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
