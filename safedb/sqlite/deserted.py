"""Finding out whether a thread is still at what it has begun: the last net under exceptions from outside.

KeyboardInterrupt, and what `PyThreadState_SetAsyncExc` puts into a thread, can come between any two bytecodes, so also
inside the ``finally`` that clears up after the one before. No ordering of statements can answer that. So the keeper
looks at who has the turn: a call of safedb's has its job among the local variables of its thread's stack, for as long
as it lasts. Where it is not there any more, nobody will ever give the turn up, and the keeper does.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from types import FrameType

_looking = threading.Lock()
_COLLECTS_INSIDE = sys.version_info < (3, 12)
_HERE = os.path.dirname(__file__)  # noqa: PTH120 - compared with a string


def is_on_stack(ident: int, thing: object, *names: str) -> bool:
    """Tell whether the thread is inside a function of this package that has ``thing`` in a variable of these names."""
    return _is_below(frames().get(ident), thing, names)


def is_on_own_stack(thing: object, *names: str) -> bool:
    """Tell the same of the calling thread: of a signal handler, say, in the middle of what it interrupted."""
    return _is_below(sys._getframe(1), thing, names)


def frames() -> dict[int, FrameType]:
    """Give the frame of each thread that runs Python, by ident.

    Before 3.12 making the frames may start a garbage collection, under a lock of the interpreter's: where what is
    collected lets another thread run, and that one starts or looks at threads, all wait for ever
    (https://github.com/python/cpython/issues/106883). So none is started meanwhile.
    """
    if not _COLLECTS_INSIDE:
        return sys._current_frames()
    with _looking:  # else one would switch on again what the next has just switched off
        enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if enabled:
                gc.enable()


def _after_fork_in_child() -> None:
    global _looking
    _looking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _is_below(frame: FrameType | None, thing: object, names: tuple[str, ...]) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HERE) and _knows(frame, thing, names):
            return True
        frame = frame.f_back
    return False


def _knows(frame: FrameType, thing: object, names: tuple[str, ...]) -> bool:
    variables = frame.f_locals
    return any(variables.get(name) is thing for name in names)
