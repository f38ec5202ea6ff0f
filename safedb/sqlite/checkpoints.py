"""Checkpoints: moving the WAL's content into the database, on the keeper's thread.

``wal_autocheckpoint`` is off: it would run inside some caller's COMMIT (H37), and without the write lock, which is
what races on SQLite versions with the WAL-reset bug (H1, H2). Here the writer's own connection checkpoints, in a turn
of its own and with the side files held, so that a checkpoint and a commit never overlap, in this process or another.

When: PASSIVE (https://sqlite.org/pragma.html#pragma_wal_checkpoint) once enough frames have gathered since the last
one, and RESTART if that has moved all; TRUNCATE above the ceiling, or when no more writes come. A checkpoint waits for
readers no longer than one busy slice (50 ms).
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any, NamedTuple

from safedb import errors
from safedb.config import ResolvedPragmas, ResolvedRetryPolicy
from safedb.sqlite.blocks import Blocks
from safedb.sqlite.log import Log, Mark
from safedb.sqlite.pragmas import BUSY_SLICE
from safedb.sqlite.snapshots import Snapshots
from safedb.stats import Counters, FailedCheckpoint, Hooks, LongSnapshot, SlowCheckpoint

QUIET = 1.0  # seconds without a commit after which the WAL is emptied
SLOW = 0.1  # seconds after which an event tells of a checkpoint
PATIENCE = 0.05  # seconds that the keeper waits for its turn before it looks again; longer each time it was in vain,
MOST_PATIENCE = 5.0  # for where each turn takes long (a slow disk, long blocks) it would never have one
ENOUGH = 60.0  # seconds that a checkpoint may take: one that is cut short on a slow disk would never be done
LONG_SNAPSHOT = 5.0  # seconds after which a snapshot that holds up the WAL is told of
RESTART_WAIT = 3  # milliseconds that a checkpoint waits for readers to leave the WAL, so that it can begin anew
FIRST_PAUSE = 0.01
SHORT_PAUSE = 0.25  # seconds at the most between two tries while readers come and go
LONG_PAUSE = 5.0  # seconds between tries at the most while the disk fails: nothing hurries, and each holds up writers


class Answer(NamedTuple):
    """Be what ``PRAGMA wal_checkpoint`` answers: whether it was held up, frames in the WAL, frames moved."""

    busy: bool
    frames: int
    moved: int

    @property
    def complete(self) -> bool:
        """Tell whether nothing was left in the WAL."""
        return not self.busy and self.moved >= self.frames


class Checkpoints:
    """Decide when, and do it."""

    def __init__(
        self, path: str, log: Log, blocks: Blocks, snapshots: Snapshots, pragmas: ResolvedPragmas,
        policy: ResolvedRetryPolicy, counters: Counters, hooks: Hooks,
    ) -> None:  # fmt: skip
        self._path = path
        self._log = log
        self._blocks = blocks
        self._snapshots = snapshots
        self._pragmas = pragmas
        self._policy = policy
        self._counters = counters
        self._hooks = hooks
        self._page = pragmas.page_size or 4096
        self._seen = 0  # commits at the last look
        self._moved_at = 0  # commits at the last checkpoint
        self._left = False  # whether the last checkpoint left anything behind
        self._moved = Mark(b"", 0)  # up to where it came
        self._gained = 0  # frames that had come since the one before it
        self._changed = monotonic()
        self._not_before = 0.0
        self._patience = PATIENCE
        self._tried = ""  # the mode of the last try
        self._last = Answer(busy=False, frames=0, moved=0)  # what the last try answered
        self._pause = 0.0  # seconds until the next try, after one that a reader held up
        self._told: float = 0.0

    def look(self, now: float) -> bool:
        """Checkpoint if it is time to; tell whether there will be something to do. For the keeper."""
        commits = self._counters.commits
        if commits != self._seen:
            self._seen, self._changed = commits, now
        if not self._pending():
            return False
        self._tell_of_long_snapshots(now)
        mode = self._due(now)
        if mode is not None and (now >= self._not_before or mode != self._tried):  # the ceiling waits for no pause
            try:
                self.run(mode, now + self._patience, until=now + ENOUGH)
                self._patience = PATIENCE
            except (errors.LockTimeout, errors.QueryCanceled):  # others are at work: look again later
                self._patience = min(2 * self._patience, MOST_PATIENCE)
            except errors.Error as error:
                self._tried = mode
                self._tell_of_failure(error)
        return self._pending()

    def _pending(self) -> bool:
        """Tell whether there is something to move, or to cut: VACUUM fills the WAL without a commit that is counted."""
        return self._left or self._counters.commits != self._moved_at or self._log.size() > self._ceiling()

    def _ceiling(self) -> float:
        """Give the bytes above which the WAL is too large even where nothing is left to move."""
        limits = (self._pragmas.wal_limit, self._pragmas.checkpoint_pages * self._page)
        return min((limit for limit in limits if limit), default=math.inf)

    def _due(self, now: float) -> str | None:
        pages, limit = self._pragmas.checkpoint_pages, self._pragmas.wal_limit
        size = self._log.size()
        if limit and size > limit:
            return "TRUNCATE"
        if not pages:
            return None
        if now - self._changed > QUIET:
            return "TRUNCATE" if size > pages * self._page else "PASSIVE"
        return "RESTART" if self._is_time() else None

    def _is_time(self) -> bool:
        pages = self._pragmas.checkpoint_pages
        grown = self._log.has_grown(self._moved, pages)
        if grown is None:  # the process has given up its rights, or has no descriptor left. A commit is a page or more
            return self._counters.commits - self._moved_at >= pages
        return grown

    def run(self, mode: str, deadline: float, *, until: float | None = None) -> Answer:
        """Checkpoint now, in a turn of its own, that is had by ``deadline`` and given back by ``until`` (or that)."""
        started = [0.0]

        def work(writer: Any) -> Answer | None:
            started[0] = monotonic()
            if mode == "RESTART" and not self._is_time():  # any more: another process's keeper was quicker
                return None
            if mode == "TRUNCATE" and self._pause:
                answer = _checkpoint(writer, "PASSIVE")
                if self._is_stuck(answer):
                    return answer._replace(busy=True)  # it would only wait, and let the writers wait with it (H36)
            answer = _checkpoint(writer, "PASSIVE" if mode == "RESTART" else mode)
            if mode == "RESTART" and answer.complete:
                # Let the next commit begin the WAL anew: by itself it would only if no reader were at work right then.
                writer.run(f"PRAGMA busy_timeout = {RESTART_WAIT}", ())
                try:
                    _checkpoint(writer, "RESTART")
                finally:
                    writer.run(f"PRAGMA busy_timeout = {round(BUSY_SLICE * 1000)}", ())
            before, self._moved = self._moved, self._log.mark(max(answer.moved, 0))
            self._gained = answer.frames - (before.frames if before.salts == self._moved.salts else 0)
            return answer

        answer = self._blocks.alone(deadline, self._policy, work, doing=f"a checkpoint of {self._path}", until=until)
        if answer is None:
            return self._last
        self._learn(answer, mode, monotonic() - started[0])
        return answer

    def _is_stuck(self, answer: Answer) -> bool:
        """Tell whether the same reader is in the way as at the last try: nothing more could be moved since."""
        return not answer.complete and answer.moved == self._last.moved

    def _learn(self, answer: Answer, mode: str, seconds: float) -> None:
        if mode != self._tried:
            self._pause, self._tried = 0.0, mode
        longest = QUIET if self._is_stuck(answer) else SHORT_PAUSE
        self._last = answer
        self._left = not answer.complete
        self._moved_at = self._counters.commits
        # A reader was in the way. Most are gone at once; for one that stays it is not worth trying often.
        self._pause = 0.0 if answer.complete else min(max(2 * self._pause, FIRST_PAUSE), longest)
        if mode == "RESTART" and self._gained < self._pragmas.checkpoint_pages:
            # What looked like more is left from a transaction that was rolled back.
            self._pause = max(self._pause, SHORT_PAUSE)
        self._not_before = monotonic() + self._pause
        self._counters.checkpoints.add(seconds)
        if seconds > SLOW or (answer.busy and mode == "TRUNCATE"):
            self._hooks.emit(SlowCheckpoint(self._path, seconds, self._log.size(), answer.busy))

    def _tell_of_failure(self, error: errors.Error) -> None:
        """Tell that the disk failed, and try again later: the WAL keeps all that was to be moved."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONG_PAUSE)
        self._not_before = monotonic() + self._pause
        self._hooks.emit(FailedCheckpoint(self._path, str(error), self._log.size()))

    def _tell_of_long_snapshots(self, now: float) -> None:
        oldest = self._snapshots.oldest()
        if oldest is not None and now - oldest.began > LONG_SNAPSHOT and now - self._told > LONG_SNAPSHOT:
            self._told = now
            self._hooks.emit(LongSnapshot(self._path, oldest.holder, now - oldest.began, self._log.size()))


def _checkpoint(writer: Any, mode: str) -> Answer:
    (busy, frames, moved), *_ = writer.run(f"PRAGMA wal_checkpoint({mode})", ())[0]
    return Answer(bool(busy), frames, moved)
