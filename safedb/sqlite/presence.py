"""Whether an open database's files still are those that their names mean (H41).

SQLite goes on writing to a file that was deleted or replaced, and says that all is well. So after each COMMIT, and
before anybody is told of it, one look is taken: a writer whose call began after the file was taken away gets an error
and no acknowledgement. The look has to be cheap, so it goes to the folder: nothing in it can be deleted, moved or
replaced without its time of change moving on. Only when that has moved are the files looked at themselves::

    COMMIT, folder as it was         acknowledged              one stat
    COMMIT, folder changed           look at the files:        three
                 both as they were     acknowledged, and the folder's new time is remembered
                 one is another, or gone   nothing is acknowledged, read or written any more

A time of change moves in ticks of some milliseconds, so one that is younger than that is not remembered.
"""

# pathlib costs milliseconds of import, and a commit has no microsecond to give away.
# ruff: noqa: PTH116, PTH120
from __future__ import annotations

import os
import time

SETTLED = 50_000_000  # nanoseconds: longer than a tick of any clock by which a file system tells the time
_UNKNOWN = -1

FileId = tuple[int, int]  # device and inode


class _Wal:
    """Be the WAL of one connection's life: what a look notes here after its end, nobody asks for."""

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id: FileId | None = None


class Presence:
    """Watch over the files of one database; safe from any thread, for each change is one assignment."""

    def __init__(self, path: str, identity: FileId) -> None:
        self._path = path
        self._identity = identity
        self._wal = path + "-wal"
        self._folder = os.path.dirname(path)
        self._folder_id = _file_id(self._folder)
        self._seen = _UNKNOWN  # the folder's time of change (nanoseconds) at which both files were there
        self._open: _Wal | None = None
        self.gone: str | None = None  # what has happened; for good, until all handles are closed

    def __repr__(self) -> str:
        return f"<Presence {self._path}{' gone' if self.gone else ''}>"

    def opened(self) -> None:
        """Note that the writer's connection is open: from now on there is a WAL, and it stays the same."""
        self._open = _Wal()
        self._seen = _UNKNOWN

    def closing(self) -> None:
        """Note that the writer's connection is about to be closed: with the last one the WAL goes."""
        self._open = None

    def is_lost(self) -> bool:
        """Tell whether the files are not there any more; to be asked after each COMMIT."""
        try:
            folder = os.stat(self._folder)
        except OSError:
            return self.look()
        if folder.st_mtime_ns == self._seen and (folder.st_dev, folder.st_ino) == self._folder_id:
            return self.gone is not None
        lost = self.look()
        settled = time.time_ns() - folder.st_mtime_ns > SETTLED
        self._folder_id, self._seen = (folder.st_dev, folder.st_ino), folder.st_mtime_ns if settled else _UNKNOWN
        return lost

    def look(self) -> bool:
        """Look at the files themselves, and tell whether one of them is another than was opened, or none."""
        if self.gone is None:
            if _file_id(self._path) != self._identity:
                self._lose(self._path)
            elif self._open is not None:
                self._look_at_wal(self._open)
        return self.gone is not None

    def _look_at_wal(self, wal: _Wal) -> None:
        found = _file_id(self._wal)
        if wal.id is None:
            wal.id = found
        elif found != wal.id and self._open is wal:  # else the connection was closed since
            self._lose(self._wal)

    def _lose(self, file: str) -> None:
        self._seen = _UNKNOWN
        self.gone = (
            f"{file} was deleted, moved or replaced while {self._path} was open, so nothing more is read from it or "
            "written to it, and what was written since may be gone with it. Close its handles, and connect again"
        )


def _file_id(path: str) -> FileId | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
