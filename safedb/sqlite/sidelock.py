"""The turnstile: which process may write, decided by two blocking locks on two files beside the database.

SQLite's own waiting is a poll, and starves (H17). A blocking ``flock`` sleeps in the kernel and wakes at once, but one
alone is not fair either (H19), because the process that lets go is running, and the one it wakes is not yet::

    one lock            A                                   B
                        holds turn                          lock turn … sleeps
                        unlock turn                         is being woken
                        lock turn: barges in
                                                            finds turn taken, sleeps again

With two, whoever waits for ``turn`` stands in the gate, ``next``, and nobody else can get at ``turn``::

    two locks           A                                   B
                        holds turn                          lock next: stands in the gate
                                                            lock turn … sleeps
                        unlock turn                         is being woken
                        lock next … sleeps: B is there
                                                            has turn
                        has next: stands in the gate        unlock next
                        lock turn … sleeps
                        has turn                            unlock turn
                        unlock next

A blocking lock has no deadline, so a helper thread waits on the caller's behalf. It cannot be called off: what it
gets after its caller has left goes to the next caller of this process, or back.

**Who may touch a descriptor.** ``flock`` belongs to the open file description, which threads and forked children
share, and a number that was closed may be another file's by now. So descriptors are closed when nobody refers to their
`_Files` any more: a thread that is inside ``flock`` has a reference, and ``close()`` merely drops one.

**Interrupts.** ``KeyboardInterrupt`` can land between any two bytecodes. The state is therefore moved *before* what it
warns of: MOVING before the first lock, LENT before the helper is asked. ``release()`` undoes whatever MOVING, LENT and
HELD may mean, may be called at any time, and again if it was itself interrupted.

**Fork.** A child shares the parent's descriptions: unlocking there would unlock the parent's lock, and an open copy
would keep it locked when the parent dies. So the child closes its copies at once, in a hook of this module, without
unlocking; what it writes, it writes behind locks of its own.

The files are never removed: a process that waits on a removed file would wait beside everybody else.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

from safedb.errors import ConfigError, DatabaseClosed, DatabaseFull, Error, InterfaceError, OperationalError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    _AVAILABLE = False
else:
    _AVAILABLE = True
    _flock = fcntl.flock
    _LOCK: Final = fcntl.LOCK_EX
    _TRY: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
    _UNLOCK: Final = fcntl.LOCK_UN

_getpid = os.getpid

# A thread is kept for the next wait, which under contention comes at once, and costs nothing when it does not.
_LINGER = 5.0  # seconds

# What is to be closed in a forked child.
_locks: weakref.WeakSet[SideLock] = weakref.WeakSet()
_opened: weakref.WeakSet[_Files] = weakref.WeakSet()

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)

# Who is where, for messages: two process ids, 32 bits each.
_SIGNS_SIZE: Final = 8  # bytes
_TURN: Final = 0  # has the turn
_GATE: Final = 1  # waits for it, in the gate

# The state of a SideLock; only the thread that acquires and releases writes it.
_FREE: Final = 0  # nothing is locked, and the descriptors are ours to use
_MOVING: Final = 1  # between two states: either file may be locked
_HELD: Final = 2  # turn is locked for our caller
_LENT: Final = 3  # the helper has, or had, the descriptors: ask it


class SideLock:
    """Hold the turn to write, between processes that use safedb on one database.

    At most one thread of a process at a time calls `acquire`, `try_acquire` and `release`: the one that has the turn
    inside the process. `close`, `holder` and `held` may be called by any thread at any time. Between processes the
    order is that of arrival; a process that is killed gives its lock back at once.

    ``path`` is the database; the files are ``<realpath>-safedb`` (turn, with the process ids of its holder and of who
    stands in the gate, 4 bytes each) and ``<realpath>-safedb.next``. They are made at the first acquisition with the
    database's mode and, by root, its owner; ``mode`` is for a database that does not exist yet. Raises `ConfigError`
    where the system has no ``flock``: sharing a database between processes is not supported there.
    """

    __slots__ = ("__weakref__", "_database", "_files", "_helper", "_mode", "_state")

    def __init__(self, path: str, *, mode: int = 0o600) -> None:
        if not _AVAILABLE:
            raise ConfigError(
                f"cannot share {path!r} between processes: this system has no flock (Windows has none). "
                "Use the database from one process only, or PostgreSQL."
            )
        self._database = os.path.realpath(path)
        self._mode = mode
        self._state = _FREE
        self._files: _Files | None = None
        self._helper: _Helper | None = None
        _locks.add(self)

    def __repr__(self) -> str:
        return f"<SideLock {self._database!r} {('free', 'moving', 'held', 'lent')[self._state]}>"

    @property
    def held(self) -> bool:
        """Say whether this object holds the turn."""
        return self._state == _HELD and self._files is not None

    def try_acquire(self) -> bool:
        """Take the turn if nobody has it or waits for it, without waiting; say whether it was taken.

        Raises `InterfaceError` if it is held already, and the errors of opening the files.
        """
        files = self._files
        if self._state or files is None or files.pid != _getpid():
            ready = self._prepare()
            if ready is None:
                return False
            files = ready
        self._state = _MOVING
        turn, gate = files.turn, files.gate
        try:
            _flock(gate, _TRY)
            _flock(turn, _TRY)
            _flock(gate, _UNLOCK)
        except OSError as error:
            self.release()
            if isinstance(error, BlockingIOError):
                return False
            raise _broken(files.path, error) from error
        files.signs[_TURN] = files.pid
        self._state = _HELD
        if self._files is not files:
            raise self._closed(files)
        return True

    def acquire(self, deadline: float) -> bool:
        """Take the turn, waiting until ``deadline`` (seconds of `time.monotonic`); say whether it was taken.

        It is tried without waiting first, also when the deadline has passed. Afterwards, whether this returned or
        raised, `release` puts everything right. Raises what `try_acquire` raises, and `DatabaseClosed` if `close` is
        called meanwhile.
        """
        if self.try_acquire():
            return True
        files, helper = self._files, self._helper
        if files is None:
            raise self._closed(files)
        if deadline <= time.monotonic():
            return False
        if helper is None:
            self._helper = helper = _Helper(files)
        self._state = _LENT  # before the helper is asked: from here on release() asks it as well
        helper.ask()
        # close() takes away the files, then dismisses the helper; we named the helper, and now look for the files.
        granted = self._files is files and helper.wait(deadline)
        if self._files is not files:
            raise self._closed(files)
        if granted:
            files.signs[_TURN] = files.pid
            self._state = _HELD
        return granted

    def release(self) -> None:
        """Give back whatever is held or waited for; idempotent, and right after any interrupt.

        A wait that is under way cannot be called off: its lock goes to the next `acquire` of this process, or back.
        """
        state, files = self._state, self._files
        if state == _FREE:
            return
        if files is None:
            self._state = _FREE  # closed, or forked: the lock went with its files
            return
        if state == _LENT:
            if self._helper is None or self._helper.renounce():
                self._state = _FREE
            return
        self._state = _MOVING
        if state == _HELD:
            files.signs[_TURN] = 0  # else the next to be late would be told of us
        _flock(files.turn, _UNLOCK)
        if state == _MOVING:
            _flock(files.gate, _UNLOCK)
        self._state = _FREE

    def is_gone(self) -> bool:
        """Tell whether somebody has removed the files: another process makes them anew, and locks others than we do."""
        files = self._files
        return files is not None and files.are_gone()

    def holder(self) -> int | None:
        """Return the process id of who has the turn, or else of who is next: for a message, never a decision.

        Who is next and does not run (it was stopped) lets nobody past either. Processes of another container have
        numbers of another kind.
        """
        files = self._files
        if files is None:
            return None
        pids = [pid for pid in files.signs if pid > 0 and (pid != files.pid or self.held)]
        return next(filter(_lives, pids), None)

    def close(self) -> None:
        """Release, and close the files; idempotent. A later `acquire` opens them again.

        An `acquire` that is waiting in another thread raises `DatabaseClosed`. While a helper is inside ``flock`` the
        files stay open; it gives back what it gets, and closes them.
        """
        files, self._files = self._files, None
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.dismiss()
        if files is not None and files.pid == _getpid():
            files.unlock()

    def forget_after_fork(self) -> None:
        """Drop, in a child, all that belongs to the parent, without unlocking; idempotent, and nothing in the parent.

        The child's copies of the descriptors are closed, though a thread of the parent may have been using them: that
        thread does not exist here. Called by this module after every fork that Python knows of.
        """
        files = self._files
        if files is not None and files.pid != _getpid():
            files.close()
            self._files = None
            self._helper = None
            self._state = _FREE

    def _prepare(self) -> _Files | None:
        """Return files that are ours to use, opened or recovered; None while the helper has them."""
        self.forget_after_fork()
        if self.held:
            raise InterfaceError(f"{self!r} is held already: release it before acquiring it again")
        self.release()
        if self._state == _LENT:
            return None
        if self._files is None:
            self._files = _Files(self._database, self._mode)
        return self._files

    def _closed(self, files: _Files | None) -> DatabaseClosed:
        """Undo an acquisition that met a close() of another thread; return the error to raise.

        Unlocked by hand: the error's traceback refers to our files, and may be kept.
        """
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.dismiss()
        if files is not None:
            files.unlock()
        self._state = _FREE
        return DatabaseClosed(f"{self._database!r} was closed while a write waited for its turn between processes")


class _Files:
    """The two descriptors and the signs of who is where; closed when the last reference goes."""

    __slots__ = ("__weakref__", "gate", "path", "pid", "signs", "turn")

    def __init__(self, database: str, mode: int) -> None:
        self.turn = self.gate = -1
        self.path = f"{database}-safedb"
        self.pid = _getpid()
        _opened.add(self)
        try:
            self.turn = _open(self.path, database, mode, _SIGNS_SIZE)
            self.gate = _open(f"{self.path}.next", database, mode, 0)
            self.signs = _map_signs(self.path)
        except OSError as error:
            raise _broken(self.path, error) from error

    def are_gone(self) -> bool:
        """Tell whether their names mean other files by now, or none."""
        for number, path in ((self.turn, self.path), (self.gate, f"{self.path}.next")):
            ours = os.fstat(number)
            try:
                found = os.stat(path)  # noqa: PTH116
            except FileNotFoundError:
                return True
            except OSError:
                return False
            if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
                return True
        return False

    def unlock(self) -> None:
        """Unlock both files, whoever of this process locked them."""
        _flock(self.turn, _UNLOCK)
        _flock(self.gate, _UNLOCK)

    def close(self, close: Callable[[int], None] = os.close) -> None:  # at the interpreter's end there is no `os`
        """Close both numbers, once; only for the last reference, and for a forked child."""
        for name in ("turn", "gate"):
            number = getattr(self, name, -1)  # an interrupt may have come before there was any
            setattr(self, name, -1)
            if number >= 0:
                close(number)

    __del__ = close


class _Helper:
    """Wait for both locks on somebody's behalf, in a thread that may be left waiting.

    While ``_busy``, the descriptors are the helper's. Every change of ``_busy``, ``_wanted`` and ``_granted`` happens
    under ``_guard``, so a lock is either handed to somebody who wants it or given back, never both, never neither.
    """

    def __init__(self, files: _Files) -> None:
        self._files = files
        self._guard = threading.Lock()
        self._work = _silent_bell()  # rung for the thread: look whether there is something to do
        self._bell = _silent_bell()  # rung for the caller: the wait has ended
        self._thread: threading.Thread | None = None
        self._busy = self._wanted = self._granted = self._dismissed = False
        self._error: OSError | None = None

    def ask(self) -> None:
        """Begin to wait, or adopt the wait that is under way."""
        with self._guard:
            self._wanted = True
            if not self._busy:
                self._bell.acquire(blocking=False)  # a ring that its caller did not hear
                self._granted = False
                self._error = None
                self._busy = True
            # Also when busy: an interrupt may have kept whoever asked first from getting any further.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="safedb-sidelock", daemon=True)
                self._thread.start()
            _ring(self._work)

    def wait(self, deadline: float) -> bool:
        """Return whether the turn was granted by ``deadline``; if not, it is wanted no more."""
        self._bell.acquire(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
        with self._guard:
            self._wanted = False
            if self._error is not None:
                raise _broken(self._files.path, self._error) from self._error
            return self._granted  # perhaps granted after the deadline, before we said no: then it is ours

    def renounce(self) -> bool:
        """Give back what was granted, or want it no more; return whether the descriptors are free to use."""
        with self._guard:
            self._wanted = False
            if not self._busy:
                self._files.signs[_TURN] = 0
                _flock(self._files.turn, _UNLOCK)
            return not self._busy

    def dismiss(self) -> None:
        """Wake everybody and end: the files are being closed."""
        with self._guard:
            self._wanted = False
            self._dismissed = True
            _ring(self._bell)
            _ring(self._work)

    def _run(self) -> None:
        while self._next():
            error = None
            try:
                _flock(self._files.gate, _LOCK)
                self._files.signs[_GATE] = self._files.pid
                _flock(self._files.turn, _LOCK)
                self._files.signs[_TURN] = self._files.pid  # here: whoever wanted it may be stopped before it wakes up
            except OSError as failure:
                error = failure
            self._files.signs[_GATE] = 0
            _flock(self._files.gate, _UNLOCK)
            self._answer(error)

    def _next(self) -> bool:
        """Park until there is a wait to make; return whether there is one, or this thread has to end."""
        while True:
            with self._guard:
                # An interrupted start() may have left two threads: only the one on record serves.
                if self._dismissed or self._thread is not threading.current_thread():
                    return False
                if self._busy:
                    return True
            if not self._work.acquire(timeout=_LINGER) and self._retire():
                return False

    def _retire(self) -> bool:
        with self._guard:
            if not self._busy:
                self._thread = None
            return not self._busy

    def _answer(self, error: OSError | None) -> None:
        """Hand over what was got, or give it back if nobody wants it."""
        with self._guard:
            self._granted = self._wanted and error is None
            if not self._granted:
                self._files.signs[_TURN] = 0
                _flock(self._files.turn, _UNLOCK)
            self._error = error
            self._busy = False
            if self._wanted:
                _ring(self._bell)


def _silent_bell() -> threading.Lock:
    bell = threading.Lock()
    bell.acquire()
    return bell


def _ring(bell: threading.Lock) -> None:
    with contextlib.suppress(RuntimeError):  # it is ringing already
        bell.release()


def _open(path: str, database: str, mode: int, size: int) -> int:
    """Open the side file ``path`` of at most ``size`` bytes; make it like ``database`` if it is not there."""
    _refuse_foreign(path, size)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        number = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return os.open(path, flags)  # another process was quicker
    try:
        _dress(number, database, mode)
    except BaseException:
        os.close(number)
        raise
    return number


def _refuse_foreign(path: str, size: int) -> None:
    """Raise `ConfigError` for what is no side file, *before* it is opened.

    It might be a database by another name: closing any descriptor of one drops SQLite's locks on it (H32).
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > size:
        raise ConfigError(
            f"{path!r} is not a side file of safedb (a plain file of at most {size} bytes with one name). "
            "safedb keeps its locks there: move that file away, or rename the database."
        )


def _dress(number: int, database: str, mode: int) -> None:
    """Give a new side file the database's mode and, as root, its owner: all who may write it must lock it."""
    try:
        like = Path(database).stat()
    except FileNotFoundError:
        os.fchmod(number, mode)  # whatever the umask took
        return
    mine = os.fstat(number)
    if os.geteuid() == 0 and (like.st_uid, like.st_gid) != (mine.st_uid, mine.st_gid):
        os.fchown(number, like.st_uid, like.st_gid)
    os.fchmod(number, stat.S_IMODE(like.st_mode) & 0o777)


def _map_signs(path: str) -> memoryview[int]:
    """Map the process ids: a store costs 0.04 µs, a write 0.4.

    Through a description of its own: a map keeps a copy of its descriptor, and that of a locked one would keep the
    lock alive in a child.
    """
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(number).st_size < _SIGNS_SIZE:
            # The highest byte of a process id is always 0, so nobody's is lost; and written, because a store to a hole
            # in a file is SIGBUS when the disk is full.
            os.pwrite(number, b"\0", _SIGNS_SIZE - 1 if sys.byteorder == "little" else 0)
        return memoryview(mmap.mmap(number, _SIGNS_SIZE)).cast("i")
    finally:
        os.close(number)


def holder_of(database: str) -> int | None:
    """Return what `SideLock.holder` would to another process; raise `FileNotFoundError` if nobody ever had the turn."""
    with open(f"{database}-safedb", "rb") as file:  # flock is not fcntl: closing drops no lock
        signs = memoryview(file.read(_SIGNS_SIZE).ljust(_SIGNS_SIZE, b"\0")).cast("i")
    return next((pid for pid in signs if pid > 0 and _lives(pid)), None)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, and alive
    return True


def _broken(path: str, error: OSError) -> Error:
    """Return the error to raise for one of the operating system's."""
    text = f"cannot lock {error.filename or path!r}: {error.strerror}. "
    if error.errno in _FULL:
        return DatabaseFull(text + "Make room.")
    if error.errno == errno.ENAMETOOLONG:
        return ConfigError(text + "The names of its side files are longer than its own: give it a shorter one.")
    if error.errno in _REFUSED:
        return ConfigError(text + "Whoever writes to the database must be able to read and write its side files.")
    return OperationalError(text + "The file system must support flock.")


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock.forget_after_fork()
    for files in list(_opened):  # also those that only a helper thread of the parent refers to
        files.close()


if _AVAILABLE:
    os.register_at_fork(after_in_child=_after_fork_in_child)
