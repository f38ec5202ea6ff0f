"""Whether an open database's files still are those that their names mean (H41).

SQLite goes on writing to a file that was deleted or replaced, and says that all is well. So each turn begins with a
look, and where others can join it, it ends with one, before anybody is told: a writer whose call began after the file
was taken away gets an error and no acknowledgement. The look has to be cheap, so it goes to the folder: nothing in it
can be deleted, moved or replaced without its time of change moving on. Only when that has moved are the files looked
at::

    folder as it was       one stat
    folder changed         look at the files: four
        all as they were       go on, and remember the folder's new time
        one is another, or gone   nothing is acknowledged, read or written any more

The -shm counts like the others: who opens the database without it makes a new one, and then two processes write to one
WAL by two indexes. Hence the look at the beginning, with the lock between processes held: before anything is written.

A time of change moves in ticks of some milliseconds, so one that is younger than that is not remembered. A file that
may not be looked at (a process has given up its rights, say) is taken to be there.
"""

# pathlib costs milliseconds of import, and a commit has no microsecond to give away.
# ruff: noqa: PTH104, PTH116, PTH120
from __future__ import annotations

import os
import time
from contextlib import suppress

SETTLED = 50_000_000  # nanoseconds: longer than a tick of any clock by which a file system tells the time
_UNKNOWN = -1

FileId = tuple[int, int]  # device and inode


class _Companions:
    """Be the -wal and -shm of one connection's life: what a look notes here after its end, nobody asks for."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[str, FileId] = {}  # by path, once they have been seen


class Presence:
    """Watch over the files of one database; safe from any thread, for each change is one assignment."""

    def __init__(self, path: str, identity: FileId) -> None:
        self._path = path
        self._identity = identity
        self._companions = (f"{path}-wal", f"{path}-shm")
        self._folder = os.path.dirname(path)
        self._folder_id: FileId | None = None
        self._seen = _UNKNOWN  # the folder's time of change (nanoseconds) at which all files were there
        self._open: _Companions | None = None
        self.looked = False  # whether `is_lost` has had to look closer, so that others may want to as well
        self.gone: str | None = None  # what has happened; for good, until all handles are closed

    def __repr__(self) -> str:
        return f"<Presence {self._path}{' gone' if self.gone else ''}>"

    def opened(self) -> None:
        """Note that the writer's connection is open: from now on there are -wal and -shm, and they stay the same."""
        self._open = _Companions()
        self._seen = _UNKNOWN

    def closing(self) -> None:
        """Note that the writer's connection is about to be closed: with the last one they go."""
        self._open = None

    def is_lost(self) -> bool:
        """Tell whether the files are not there any more; cheap enough to be asked in each turn."""
        try:
            folder = os.stat(self._folder)
        except OSError:
            return self.look()
        if folder.st_ctime_ns == self._seen and (folder.st_dev, folder.st_ino) == self._folder_id:
            return self.gone is not None
        lost = self.look()
        self.looked = True
        settled = time.time_ns() - folder.st_ctime_ns > SETTLED
        self._folder_id, self._seen = (folder.st_dev, folder.st_ino), folder.st_ctime_ns if settled else _UNKNOWN
        return lost

    def look(self) -> bool:
        """Look at the files themselves, and tell whether one of them is another than was opened, or none."""
        if self.gone is None:
            if _has_changed(self._path, self._identity):
                self._lose(self._path)
            elif self._open is not None:
                self._look_at_companions(self._open)
        return self.gone is not None

    def set_aside(self) -> None:
        """Give our -wal another name where a new database has ours: SQLite would read the old one's pages into it."""
        companions, wal = self._open, self._companions[0]
        if self.gone is None or companions is None:
            return
        with suppress(OSError):
            replaced = _file_id(self._path) not in (None, self._identity)
            if replaced and _file_id(wal) == companions.known.get(wal):
                os.rename(wal, f"{wal}.lost-{time.time_ns()}")

    def is_taken_over(self) -> bool:
        """Tell whether somebody has made -wal or -shm anew: to close the old ones would destroy what he commits."""
        companions = self._open
        if self.gone is None or companions is None:
            return False
        with suppress(OSError):
            return any(_file_id(path) not in (None, known) for path, known in companions.known.items())
        return True

    def _look_at_companions(self, companions: _Companions) -> None:
        for path in self._companions:
            known = companions.known.get(path)
            if known is None:
                self._meet(path, companions)
            elif _has_changed(path, known) and self._open is companions:  # else the connection was closed since
                self._lose(path)

    def _meet(self, path: str, companions: _Companions) -> None:
        with suppress(OSError):
            found = _file_id(path)
            if found is not None:
                companions.known[path] = found

    def _lose(self, file: str) -> None:
        self._seen = _UNKNOWN
        self.gone = (
            f"{file} was deleted, moved or replaced while {self._path} was open, so nothing more is read from it or "
            "written to it, and what was written since may be gone with it. Close its handles, and connect again"
        )


def _has_changed(path: str, known: FileId) -> bool:
    """Tell whether a file is another than it was, or none."""
    try:
        return _file_id(path) != known
    except OSError:
        return False


def _file_id(path: str) -> FileId | None:
    """Give what makes a file the same under any name, or None if it is not there; raise if that may not be known."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
