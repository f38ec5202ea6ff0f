"""Ctrl-C: the first one ends the run early, with a report; the second gives up at once. Both clean up."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupts:
    """Note Ctrl-C (SIGINT) and SIGTERM during a ``with`` block, instead of raising in the middle of a line.

    ``noticed`` is the number of the first signal, or 0. The second signal raises KeyboardInterrupt; further ones, and
    all after ``settle()``, do nothing, so that cleaning up comes to its end. Main thread only.
    """

    def __init__(self) -> None:
        self.noticed = 0
        self._settled = False

    @property
    def exit_code(self) -> int:
        """Give what a shell expects of a program that ended on this signal: 130 for Ctrl-C."""
        return 128 + self.noticed

    def settle(self) -> None:
        """Raise nothing from now on: what follows must come to its end."""
        self._settled = True

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self.noticed and not self._settled:
            self._settled = True
            raise KeyboardInterrupt
        self.noticed = self.noticed or number

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._notice) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
