"""Who may have a link: as many calls as there are links, first come, first served, each until its deadline.

The pool has a queue of its own, but keeps in it who has given up at a deadline (and counts it as waiting), and hands a
connection to who has left by Ctrl-C, which then nobody brings back. So calls wait here, and only those that are let in
ask the pool.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from time import monotonic

CROWDED = 0.005  # seconds between two looks at a full queue


class Admission:
    """Let in ``most`` at a time; at most ``max_waiting`` may wait. Safe from any thread."""

    def __init__(self, most: int, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._mutex = threading.Lock()
        self._free = most
        self._queue: deque[threading.Lock] = deque()  # each is released when its owner is let in
        self.waited = 0

    @property
    def waiting(self) -> int:
        """Count who waits now."""
        return len(self._queue)

    def enter(self, deadline: float) -> bool | None:
        """Wait to be let in: True if so, False if not by the deadline, None if even the queue was full until then.

        Who is let in calls `leave` once, whatever happens.
        """
        with self._mutex:
            if self._free > 0:
                self._free -= 1
                return True
        return self._wait(deadline)

    def leave(self) -> None:
        """Let the next one in."""
        with self._mutex:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1

    def _wait(self, deadline: float) -> bool | None:
        ticket = threading.Lock()
        ticket.acquire()
        while not self._join(ticket):
            if monotonic() + CROWDED >= deadline:
                return None
            time.sleep(CROWDED)
        try:
            if ticket.acquire(timeout=max(0.0, deadline - monotonic())):
                return True
        except BaseException:  # Ctrl-C
            if not self._withdraw(ticket):
                self.leave()
            raise
        return not self._withdraw(ticket)

    def _join(self, ticket: threading.Lock) -> bool:
        with self._mutex:
            if self._free > 0:
                self._free -= 1
                ticket.release()
                return True
            if len(self._queue) >= self._max_waiting:
                return False
            self._queue.append(ticket)
            self.waited += 1
            return True

    def _withdraw(self, ticket: threading.Lock) -> bool:
        """Leave the queue; False if the ticket's owner has been let in meanwhile."""
        with self._mutex:
            try:
                self._queue.remove(ticket)
            except ValueError:
                return False
            return True
