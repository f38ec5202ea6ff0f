"""Finding out whether a thread is still at what it has begun: the last net under exceptions from outside.

KeyboardInterrupt, and what `PyThreadState_SetAsyncExc` puts into a thread, can come between any two bytecodes, so also
inside the ``finally`` that clears up after the one before. No ordering of statements can answer that. So the keeper
looks at who has the turn: a call of safedb's has its job among the local variables of its thread's stack, for as long
as it lasts. Where it is not there any more, nobody will ever give the turn up, and the keeper does.
"""

from __future__ import annotations

import os
import sys
from types import FrameType

_HERE = os.path.dirname(__file__)  # noqa: PTH120 - compared with a string


def is_on_stack(ident: int, thing: object, *names: str) -> bool:
    """Tell whether the thread is inside a function of this package that has ``thing`` in a variable of these names."""
    frame: FrameType | None = sys._current_frames().get(ident)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HERE) and _knows(frame, thing, names):
            return True
        frame = frame.f_back
    return False


def _knows(frame: FrameType, thing: object, names: tuple[str, ...]) -> bool:
    variables = frame.f_locals
    return any(variables.get(name) is thing for name in names)
