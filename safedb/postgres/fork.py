"""Surviving ``os.fork``: a child opens connections of its own, and never closes the parent's.

A socket that two processes write to is a broken protocol, and closing an inherited connection says goodbye to the
server in the parent's name. So nothing inherited is touched, not even by the garbage collector; the child's engines
are built anew at once and connect at their next call. The parent notices nothing.
"""

from __future__ import annotations

import os
import weakref

from safedb.postgres.engine import PostgresEngine
from safedb.reentry import Inside

engines: weakref.WeakSet[PostgresEngine] = weakref.WeakSet()
places: dict[object, Inside] = {}


def _after_in_child() -> None:
    for engine in tuple(engines):
        _keep_for_ever(engine.begin_anew())


def _keep_for_ever(inherited: object) -> None:
    """Never let the parent's connections be deallocated here: a reference that nobody gives back, not even at exit."""
    import ctypes  # here and not above: hardly any process ever comes here

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def install() -> None:
    """Register the hook; called once, when the first database is opened."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_in_child)


__all__ = ["engines", "install", "places"]
