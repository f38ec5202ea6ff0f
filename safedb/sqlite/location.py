"""Where a database file lies, and whether it can live there; found out without ever opening it.

Closing any descriptor of a database or -shm file drops all of this process's POSIX locks on it, and with them
SQLite's (H32, https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
So everything here asks by path: ``stat``, ``access``, ``chmod`` and ``mknod``, never ``open``.
"""

# pathlib costs milliseconds of import, drops trailing slashes, and hides which system call is made.
# ruff: noqa: PTH101, PTH113, PTH116, PTH120
from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from safedb.errors import ConfigError, DatabaseFull

_NETWORK = frozenset(
    """
    9p acfs afs auristorfs beegfs ceph cifs coda davfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 openafs
    orangefs panfs prl_fs pvfs2 smb smb2 smb3 smbfs vboxsf vmhgfs wekafs
    fuse.ceph fuse.ceph-fuse fuse.curlftpfs fuse.davfs fuse.davfs2 fuse.gcsfuse fuse.geesefs fuse.glusterfs
    fuse.goofys fuse.grpcfuse fuse.juicefs fuse.mount-s3 fuse.mountpoint-s3 fuse.nfs fuse.rclone fuse.s3fs
    fuse.seaweedfs fuse.smbnetfs fuse.sshfs fuse.vmhgfs-fuse fuse.webdavfs
    """.split()  # noqa: SIM905 - a table to be read, not fifty lines
)
"""File systems that are, or may be, shared by several hosts: WAL's shared memory does not reach across (H44)."""

_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108
_MOUNTINFO = "/proc/self/mountinfo"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_LAYERS = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})
_SIDE_FILES = ("-wal", "-shm", "-journal", "-safedb", "-safedb.next")
_MODES = frozenset({"ro", "rw"})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Location:
    """Tell what is known about a place.

    ``realpath`` is absolute with every symbolic link resolved; ``device_inode`` is ``None`` while there is no file;
    ``temporary`` says why what lies there may not last, or is ``None``; ``filesystem`` is the kernel's name for its
    type, or ``"unknown"`` where the system does not tell.
    """

    realpath: str
    device_inode: tuple[int, int] | None
    temporary: str | None
    filesystem: str


def examine(
    path: str | os.PathLike[str],
    *,
    read_only: bool,
    environ: Mapping[str, str] = os.environ,
    mountinfo: str | None = None,
) -> Location:
    """Return the location of a database, or raise ``ConfigError`` with the remedy if it cannot be opened there.

    Nothing is created and nothing opened, so it is safe beside live connections of this and other processes; what it
    found may have changed when SQLite opens the file, and SQLite's own error then tells.

    ``environ`` gives the folders for temporary files. ``mountinfo`` stands for ``/proc/self/mountinfo``: no test can
    mount the file systems that matter here.
    """
    real = _canonical(os.fspath(path))
    found = _stat(real)
    if found is not None:
        _check_file(real, found)
    _check_parent(real)
    check_side_file(real)
    if found is None and read_only:
        raise ConfigError(f"there is no database {real!r}, and read_only=True creates none; check the path")
    _check_access(real, exists=found is not None, read_only=read_only)
    mounts = _mounts(_mountinfo() if mountinfo is None else mountinfo)
    filesystem = _filesystem(real, mounts, read_only=read_only)
    inode = None if found is None else (found.st_dev, found.st_ino)
    return Location(real, inode, _temporary(real, filesystem, environ), filesystem)


def create(path: str, mode: int = 0o600) -> bool:
    """Create an empty database file with exactly these permission bits; return whether it was not there before.

    Exactly one of several callers, in any process, creates it. An existing file is neither opened nor changed. SQLite
    gives -wal and -shm the same bits. Raises ``ConfigError`` if it cannot be created, ``DatabaseFull`` without room.
    """
    try:
        _make(path)
    except FileExistsError:
        return False
    except OSError as error:
        cls = DatabaseFull if error.errno in NO_ROOM else ConfigError
        raise cls(f"cannot create the database {path!r}: {error.strerror}") from error
    os.chmod(path, mode)  # the umask does not decide; by path, for to open is to close (H32)
    return True


def identity(path: str) -> tuple[int, int] | None:
    """Return the device and inode that make a file the same under any name, or ``None`` if it is not there."""
    found = _stat(path)
    return None if found is None else (found.st_dev, found.st_ino)


def mode(path: str) -> int:
    """Return the permission bits of a file that is there."""
    return stat.S_IMODE(os.stat(path).st_mode) & 0o777


def uri(path: str, *, mode: str = "rw") -> str:
    """Return the URI by which SQLite opens exactly this absolute path, whatever characters it holds.

    ``mode`` is ``"ro"`` or ``"rw"`` (which creates nothing). There is no other parameter: ``nolock``, ``immutable`` and
    ``vfs`` turn locking off (H47, https://www.sqlite.org/uri.html).
    """
    if mode not in _MODES:
        raise ConfigError(f"mode = {mode!r} is not one of ro, rw")
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"{path!r} is no absolute path without NUL characters")
    quoted = re.sub(rb"[^A-Za-z0-9_.~/-]", lambda found: b"%%%02X" % ord(found[0]), os.fsencode(path))
    return f"file://{quoted.decode('ascii')}?mode={mode}"


def _make(path: str) -> None:
    """Make an empty file, privately, without a descriptor whose closing would drop a neighbour's locks."""
    try:
        os.mknod(path, stat.S_IFREG | 0o600)
    except (AttributeError, PermissionError):
        # macOS lets only root make nodes. Here another thread could have opened the file before this closes it: the
        # engine opens new files one at a time, and nobody else can know of one that has just come into being.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _canonical(path: str) -> str:
    if "\0" in path:
        raise ConfigError(f"the path {path!r} holds a NUL character; remove it")
    if not path or path.endswith("/"):
        raise ConfigError(f"the path {path!r} names no file; add the database's name")
    return os.path.realpath(path)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot reach the database {path!r}: {error.strerror}; check the path") from error


def _check_file(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path!r} is a folder; add the database's name")
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path!r} is no regular file; a database cannot be a device, a pipe or a socket")
    if found.st_nlink > 1:
        raise ConfigError(
            f"{path!r} has {found.st_nlink} hard links, and each name would get a WAL of its own (H41); "
            "remove the others, or use symbolic links"
        )


def _check_parent(path: str) -> None:
    parent = os.path.dirname(path)
    if _stat(parent) is None:
        raise ConfigError(f"the folder {parent!r} does not exist; create it: mkdir -p {parent}")


def check_side_file(path: str) -> None:
    """Raise `ConfigError` for the name of a file that belongs to a database: nobody may open it but SQLite (H32)."""
    for suffix in _SIDE_FILES:
        base = path.removesuffix(suffix)
        if base != path and os.path.isfile(base):
            raise ConfigError(f"{path!r} is a side file of the database {base!r}; open that one")


def _check_access(path: str, *, exists: bool, read_only: bool) -> None:
    """Ask the kernel whether the file can be read, and for writing also whether it and its folder can be written."""
    if exists and not _may(path, os.R_OK):
        raise ConfigError(f"{path!r} may not be read by user {os.geteuid()}; change its owner or mode")
    if read_only:
        return
    remedy = (
        "make it writable, or connect with read_only=True "
        "(which needs the database's -wal and -shm beside it, or a writable folder to make them in)"
    )
    if exists and not _may(path, os.W_OK):
        raise ConfigError(f"the file {path!r} may not be written by user {os.geteuid()}; {remedy}")
    parent = os.path.dirname(path)
    if not _may(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the folder {parent!r} may not be written by user {os.geteuid()}, and the WAL must lie in it; {remedy}"
        )


def _may(path: str, access: int) -> bool:
    """Ask for the effective user, who will open the file, where the system can tell; else for the real one."""
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)


def _mountinfo() -> str | None:
    """Return the kernel's table of mounts, or ``None`` where there is none (macOS) or it may not be read."""
    try:
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as table:
            return table.read()
    except OSError:
        return None


def _mounts(table: str | None) -> dict[str, str] | None:
    r"""Return the file system's type by mount point; a later mount covers an earlier one on the same point.

    A line is ``36 35 98:0 /root /point rw,noatime [tags …] - type source options``, with blanks written as ``\040``
    (https://www.man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).
    """
    if table is None:
        return None
    mounts = {}
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        if after:
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
            mounts[point] = after.split(" ")[0]
    return mounts


def _mount_point(path: str, mounts: Mapping[str, str]) -> str | None:
    """Return the innermost mount point that holds ``path``."""
    while path not in mounts:
        parent = os.path.dirname(path)
        if parent == path:
            return None
        path = parent
    return path


def _filesystem(path: str, mounts: Mapping[str, str] | None, *, read_only: bool) -> str:
    """Return the type of the file system, or refuse one on which WAL would lose data."""
    point = _mount_point(path, mounts) if mounts is not None else None
    if mounts is None or point is None:
        return "unknown"
    kind = mounts[point]
    if kind in _NETWORK:
        raise ConfigError(
            f"{path!r} lies on {point!r}, a file system of type {kind!r} that several hosts may share, and WAL needs "
            "memory shared by all who open it (https://www.sqlite.org/wal.html); use a local disk, or PostgreSQL"
        )
    if point == path and not read_only:
        raise ConfigError(
            f"{path!r} is mounted as a single file, so its -wal would lie elsewhere and be lost with the container; "
            "mount the folder instead"
        )
    return kind


def _temporary(path: str, filesystem: str, environ: Mapping[str, str]) -> str | None:
    """Return why a database there may not last, or ``None``."""
    if filesystem in _IN_MEMORY:
        return f"{path!r} lies on {filesystem}, which is memory: it is lost when the machine restarts"
    if filesystem in _LAYERS:
        return f"{path!r} lies in a container's own layer ({filesystem}): it is lost with the container; mount a volume"
    named = [environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)]
    for folder in (*_TEMPORARY, *named):
        real = os.path.realpath(folder)
        if path.startswith(f"{real}/"):
            return f"{path!r} lies under {folder!r}, which the system may empty at any time"
    return None
