"""Surviving ``os.fork``: nothing of SQLite's is open while the process is copied.

SQLite's locks belong to the process, and its table of them is copied: a *fresh* connection in a child whose parent had
the file open holds no lock at all, and writes into the void (H34); closing an inherited one destroys the parent's (H30).
So before a fork every engine is quiesced: its turn is taken, its readers come home, all connections and side files are
closed; both sides reopen at their next call. Waiting writers and readers of the parent only wait a little longer.

Where that is impossible (the forking thread is inside a transaction or a snapshot, another thread holds a block, or
does not finish within ``fork_wait``), the parent goes on undisturbed and the *child* refuses the file with a clear
error. `subprocess` without ``preexec_fn`` runs no such hooks and is unaffected.
"""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import Any

from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.opening import registry

_quiet: list[SqliteEngine] = []  # quiesced for the fork under way
_unsafe: list[SqliteEngine] = []
_inherited: list[Any] = []  # a child's copies of connections that it must never close, nor let be deallocated


def _before() -> None:
    registry.mutex.acquire(timeout=1.0)
    for engine in registry.engines():
        if engine.quiesce(monotonic() + engine.pool.fork_wait):
            _quiet.append(engine)
        else:
            _unsafe.append(engine)


def _after_in_parent() -> None:
    for engine in _quiet:
        engine.resume()
    _quiet.clear()
    _unsafe.clear()
    _unlock()


def _after_in_child() -> None:
    for engine in _unsafe:
        why = (
            f"{engine.name} was in use when this process was forked, and SQLite's locks do not survive that: open it in the "
            "parent only, fork before it is used, or start processes with multiprocessing's 'spawn'"
        )
        _inherited.append(engine.refuse_after_fork(why))
        if engine.identity is not None:
            registry.refused[engine.identity] = why
    for engine in _quiet:
        engine.begin_anew()
    _quiet.clear()
    _unsafe.clear()
    registry.mutex = threading.Lock()
    for entry in registry.entries.values():
        entry.lock = threading.Lock()


def _unlock() -> None:
    if registry.mutex.locked():
        registry.mutex.release()


def install() -> None:
    """Register the hooks; called once, when the first database is opened."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
