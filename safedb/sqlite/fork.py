"""Surviving ``os.fork``: nothing of SQLite's is open while the process is copied.

SQLite's locks belong to the process, and its table of them is copied: a *fresh* connection in a child whose parent had
the file open holds no lock at all, and writes into the void (H34); closing an inherited one destroys the parent's
(H30). So before a fork every engine is quiesced: its turn is taken, its readers come home, all connections and side
files are closed; both sides reopen at their next call. Waiting writers and readers of the parent only wait a little
longer.

Where that is impossible (the forking thread is inside a transaction or a snapshot, another thread holds a block, or
does not finish within ``fork_wait``; one is just opening or closing the file), the parent goes on undisturbed and the
*child* refuses the file with a clear error. `subprocess` without ``preexec_fn`` runs no such hooks and is unaffected.
"""

from __future__ import annotations

import os
import threading
from time import monotonic

from safedb.sqlite.engine import SqliteEngine
from safedb.sqlite.opening import Entry, Identity, registry

OPENING = 1.0  # seconds that a fork waits for a thread that opens or closes a file

_quiet: list[SqliteEngine] = []  # quiesced for the fork under way
_unsafe: list[SqliteEngine] = []
_locked: list[Entry] = []  # files that nobody opens or closes meanwhile
_half_open: list[Identity] = []  # files that somebody does


def _before() -> None:
    deadline = monotonic() + OPENING
    registry.mutex.acquire(timeout=OPENING)
    for identity, entry in registry.entries.items():
        if entry.lock.acquire(timeout=max(0.0, deadline - monotonic())):
            _locked.append(entry)
        else:
            _half_open.append(identity)
    for engine in registry.engines():
        if engine.quiesce(monotonic() + engine.pool.fork_wait):
            _quiet.append(engine)
        else:
            _unsafe.append(engine)


def _after_in_parent() -> None:
    for engine in _quiet:
        engine.resume()
    for entry in _locked:
        entry.lock.release()
    _forget()
    if registry.mutex.locked():
        registry.mutex.release()


def _after_in_child() -> None:
    for engine in _unsafe:
        why = _refusal(engine.name)
        _keep_for_ever(engine.refuse_after_fork(why))
        if engine.identity is not None:
            registry.refused[engine.identity] = why
    for identity in _half_open:
        registry.refused[identity] = _refusal("this database")
    for engine in _quiet:
        engine.begin_anew()
    _forget()
    registry.mutex = threading.Lock()
    for entry in registry.entries.values():
        entry.lock = threading.Lock()


def _refusal(name: str) -> str:
    return (
        f"{name} was in use when this process was forked, and SQLite's locks do not survive that: open it in the "
        "parent only, fork before it is used, or start processes with multiprocessing's 'spawn'"
    )


def _keep_for_ever(inherited: object) -> None:
    """Never let connections of the parent's be deallocated, not even when the child's interpreter ends.

    That would close them: the parent's open transaction would be undone in the shared memory that both use, and the
    database be malformed (H30). A module's variables are cleared at the end, so this is a reference nobody gives back.
    """
    import ctypes  # here and not above: hardly any process ever comes here

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _forget() -> None:
    for noted in (_quiet, _unsafe, _locked, _half_open):
        noted.clear()


def install() -> None:
    """Register the hooks; called once, when the first database is opened."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
