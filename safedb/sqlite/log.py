"""The WAL file seen from outside: how far the log reaches in it, and room for it to grow into.

A frame belongs to the log while it bears the salts of the file's header; what lies behind the last such frame is left
from an older log, or empty (https://sqlite.org/fileformat2.html#walformat). So one small read tells whether the log has
come to a certain place, whoever wrote it: this process, another, VACUUM. What a transaction has spilled that was then
rolled back bears them as well: the log may seem longer than it is, never shorter.

A commit whose frames lengthen the file has to flush its new size as well, which takes up to twice the time. So zeros
are appended ahead of the log, as PostgreSQL does for its own (``wal_init_zero``), and a commit only overwrites them. To
SQLite they are what an older log has left: recovery ends at the first frame whose salts do not fit. They are appended
(``O_APPEND``) by the keeper beside writers of any process, and so can overwrite nothing. Nor are they flushed here:
a failure to write is to be told to whoever commits, and to nobody before him.

The file may be opened and closed, unlike the database and the -shm (H32): SQLite locks nothing in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import NamedTuple

from safedb.config import ResolvedPragmas

MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
HEADER = 32  # bytes
FRAME_HEADER = 24
STEP = 1 << 20  # bytes of zeros at a time; the keeper looks each 20 ms, so it keeps ahead of 25 MB/s at the least
FEW = 1 << 17  # bytes of log up to which none are worth it
SPARE = 64 * STEP  # bytes that the disk must have left: the last ones are for data (a user's quota is not seen)
RETRY = 60.0  # seconds until it is tried again where it could not be done
_LOOK = 0.001  # seconds between two looks whether a fork, or this file's part in it, is over
_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))  # Windows has none of them


class Mark(NamedTuple):
    """Be a place in the log: the salts of the log that it is a place in, and how many frames lie before it."""

    salts: bytes
    frames: int


class Log:
    """Look at one database's WAL file. For the keeper's thread, but for `size` and what a fork needs."""

    def __init__(self, path: str, pragmas: ResolvedPragmas) -> None:
        self._path = f"{path}-wal"
        self._pages = pragmas.checkpoint_pages
        self._limit = pragmas.wal_limit or math.inf
        kept = pragmas.journal_size_limit  # bytes of the file that are left when the log begins anew
        self._kept = math.inf if kept is None or kept < 0 else kept
        self._wanted = pragmas.synchronous in {"FULL", "EXTRA"}  # else commits flush nothing
        self._not_before = 0.0
        self._looking = False  # flags, and no lock: an interrupt could leave that taken
        self._paused = False

    def __repr__(self) -> str:
        return f"<Log {self._path} {self.size()} bytes>"

    def size(self) -> int:
        """Give the size of the file in bytes, 0 where there is none, or none that this process may look at."""
        try:
            return os.stat(self._path).st_size  # noqa: PTH116 - Path costs more, and this is asked often
        except OSError:
            return 0

    def mark(self, frames: int) -> Mark:
        """Name the place behind so many frames of the log as it is now. In a turn only, for which a fork waits."""
        with suppress(OSError), _open(self._path, os.O_RDONLY) as file:
            return Mark(file.salts, frames)
        return Mark(b"", 0)

    def has_grown(self, mark: Mark, frames: int) -> bool | None:
        """Tell whether so many frames have come behind a place, or into a log that has begun anew since.

        Fewer, where so many large ones would not go below ``wal_limit``. None: this process cannot look at the file.
        """
        with suppress(OSError), self._look(os.O_RDONLY) as file:
            enough = max(1, int(min(frames, self._limit * 3 // 4 // file.frame)))
            return file.holds(enough + (mark.frames if mark.salts == file.salts else 0))
        return None

    def make_room(self) -> None:
        """Append zeros if the log comes near to the end of its file. Never raises: without them commits are slower."""
        if not (self._wanted and self._pages) or monotonic() < self._not_before or self.size() < FEW:
            return  # (with no pages somebody else, Litestream, looks after the file)
        try:
            with self._look(os.O_RDWR | os.O_APPEND) as file:
                self._append_to(file)
        except OSError:
            self._not_before = monotonic() + RETRY

    def _append_to(self, file: _File) -> None:
        size = file.size()
        more = min(STEP, self._most(file) - size)
        if more <= 0 or not file.holds(max(1, (size - STEP // 2) // file.frame)):
            return
        disk = os.fstatvfs(file.number)
        if disk.f_bavail * disk.f_frsize < SPARE:
            self._not_before = monotonic() + RETRY
            return
        if file.size() != size:  # somebody else has made room meanwhile
            return
        os.write(file.number, bytes(int(more)))
        if hasattr(os, "posix_fadvise"):  # begins to write them out, where the next commit would have to wait for it
            os.posix_fadvise(file.number, size, 0, os.POSIX_FADV_DONTNEED)

    def _most(self, file: _File) -> float:
        """Give the bytes of the file up to which room is made: about as far as the log comes before it begins anew."""
        return min(self._pages * file.frame, self._limit - 2 * STEP, self._kept)

    @contextmanager
    def _look(self, flags: int) -> Iterator[_File]:
        """Open the file, and not while there is a fork."""
        self._begin()
        try:
            with _open(self._path, flags) as file:
                yield file
        finally:
            self._looking = False

    def _begin(self) -> None:
        while True:
            self._looking = True  # before it looks, as `pause` does: one of the two sees the other
            if not self._paused:
                return
            self._looking = False
            sleep(_LOOK)

    def pause(self, deadline: float) -> bool:
        """Keep the file closed until `resume`, so that a fork copies no descriptor; tell whether it came to that."""
        self._paused = True
        while self._looking and monotonic() < deadline:
            sleep(_LOOK)
        return not self._looking

    def resume(self) -> None:
        """Go on after `pause`, or after nothing."""
        self._paused = False


@contextmanager
def _open(path: str, flags: int) -> Iterator[_File]:
    number = os.open(path, flags | _FLAGS)
    try:
        yield _File(number)
    finally:
        os.close(number)


class _File:
    """Be the file while it is open."""

    def __init__(self, number: int) -> None:
        self.number = number
        header = os.pread(number, HEADER, 0)
        self.salts = header[16:24] if header[:4] in MAGIC else b""  # else nothing has been written since it was cut
        self.frame = FRAME_HEADER + int.from_bytes(header[8:12], "big")

    def size(self) -> int:
        return os.fstat(self.number).st_size

    def holds(self, frames: int) -> bool:
        """Tell whether the log has so many frames: whether the last of them is of this log."""
        salts = os.pread(self.number, 8, HEADER + (frames - 1) * self.frame + 8)
        return bool(self.salts) and salts == self.salts
