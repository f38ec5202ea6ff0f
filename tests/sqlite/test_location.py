"""Where a database may live; and that finding out never opens it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import sqlite3

from safedb.errors import ConfigError
from safedb.sqlite import location
from safedb.sqlite.location import create, examine, identity, uri

NOBODY = 65534
LOCAL = "1 1 0:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"


def mount(point: str | Path, kind: str) -> str:
    """Write a line of mountinfo beneath a local root: no test can mount a network file system."""
    return f"{LOCAL}2 1 0:2 / {str(point).replace(' ', chr(92) + '040')} rw - {kind} source rw\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests' own folder, which lies under /tmp, pass for one that lasts."""
    monkeypatch.setattr(location, "_TEMPORARY", ())


# ---- the path


@pytest.mark.usefixtures("lasting")
def test_a_new_file_in_a_local_folder_is_welcome(path: Path) -> None:
    found = examine(path, read_only=False, environ={}, mountinfo=LOCAL)
    assert found == location.Location(str(path), None, None, "ext4")
    assert not path.exists()


def test_an_existing_file_is_known_by_its_device_and_inode(path: Path) -> None:
    path.touch()
    assert examine(path, read_only=False).device_inode == identity(str(path))
    assert identity(str(path)) == (path.stat().st_dev, path.stat().st_ino)


def test_a_file_that_is_gone_has_no_identity(path: Path) -> None:
    assert identity(str(path)) is None


def test_a_renamed_file_keeps_its_identity_and_its_successor_has_another(path: Path) -> None:
    create(str(path))
    before = identity(str(path))
    path.rename(path.with_name("moved.db"))
    create(str(path))
    assert identity(str(path.with_name("moved.db"))) == before
    assert identity(str(path)) != before


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert examine("app.db", read_only=False).realpath == str(tmp_path / "app.db")


def test_symbolic_links_are_resolved_even_dangling_ones(tmp_path: Path, path: Path) -> None:
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "link.db").symlink_to("app.db")
    assert examine(tmp_path / "folder" / "link.db", read_only=False).realpath == str(path)


@pytest.mark.parametrize("name", ["", "a\0b", "folder/"])
def test_a_path_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"names no file|NUL"):
        examine(name, read_only=False)


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"folder '{tmp_path}/no/such' does not exist; create it: mkdir -p") as caught:
        examine(tmp_path / "no" / "such" / "app.db", read_only=False)
    assert str(caught.value).endswith("/no/such")


def test_a_file_where_a_folder_should_be_is_refused(path: Path) -> None:
    path.touch()
    with pytest.raises(ConfigError, match=r"cannot reach the database .*Not a directory"):
        examine(path / "app.db", read_only=False)


def test_a_loop_of_links_is_refused(path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(ConfigError, match="cannot reach the database"):
        examine(path, read_only=False)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(("make", "what"), [(Path.mkdir, "folder"), (make_pipe, "pipe"), (make_socket, "socket")])
def test_what_is_no_regular_file_is_refused(make: Callable[[Path], None], what: str, path: Path) -> None:
    make(path)
    with pytest.raises(ConfigError, match=what):
        examine(path, read_only=False)


def test_a_file_with_two_names_is_refused(path: Path) -> None:
    """H41: each name would have a WAL of its own."""
    path.touch()
    path.with_name("other.db").hardlink_to(path)
    with pytest.raises(ConfigError, match=r"has 2 hard links.*use symbolic links"):
        examine(path, read_only=False)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", "-safedb", "-safedb.next"])
def test_a_side_file_of_a_database_is_no_database(suffix: str, path: Path) -> None:
    side = path.with_name(path.name + suffix)
    examine(side, read_only=False)  # a name like any other, until there is a database that it belongs to
    path.touch()
    with pytest.raises(ConfigError, match=r"is a side file of the database .*open that one"):
        examine(side, read_only=False)


def test_reading_only_needs_a_database_that_is_there(path: Path) -> None:
    with pytest.raises(ConfigError, match="read_only=True creates none"):
        examine(path, read_only=True)
    path.touch()
    assert examine(path, read_only=True).device_inode is not None


# ---- rights, as an unprivileged user: root may do everything


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that other users can reach; pytest's own is shut to them."""
    folder = Path(tempfile.mkdtemp(prefix="safedb-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _judged(path: str, read_only: bool, answers: Any) -> None:
    """Run in a child process: become nobody, examine, and tell what came of it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        examine(path, read_only=read_only)
        answers.send("welcome")
    except ConfigError as error:
        answers.send(str(error))
    finally:
        os.seteuid(os.getuid())  # coverage's own file is written at the end


def as_nobody(path: Path, *, read_only: bool) -> str:
    """Return how ``examine`` judges for a user who owns nothing here (or for this user, who is not root)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_judged, args=(str(path), read_only, theirs))
    child.start()
    theirs.close()
    answer: str = ours.recv()
    child.join()
    ours.close()
    return answer


def test_a_folder_that_may_not_be_written_is_refused_for_writing_alone(open_folder: Path) -> None:
    path = open_folder / "app.db"
    path.touch()
    path.chmod(0o666)
    open_folder.chmod(0o555)
    refused = as_nobody(path, read_only=False)
    assert f"the folder '{open_folder}' may not be written by user" in refused
    assert "read_only=True (which needs the database's -wal and -shm beside it" in refused
    assert as_nobody(path, read_only=True) == "welcome"
    open_folder.chmod(0o777)
    assert as_nobody(path, read_only=False) == "welcome"


def test_a_file_that_may_not_be_written_is_refused_for_writing_alone(open_folder: Path) -> None:
    path = open_folder / "app.db"
    path.touch()
    path.chmod(0o444)
    open_folder.chmod(0o777)
    assert f"the file '{path}' may not be written by user" in as_nobody(path, read_only=False)
    assert as_nobody(path, read_only=True) == "welcome"


def test_a_file_that_may_not_be_read_is_refused(open_folder: Path) -> None:
    path = open_folder / "app.db"
    path.touch()
    path.chmod(0o000)
    open_folder.chmod(0o777)
    assert "may not be read by user" in as_nobody(path, read_only=True)


def test_a_folder_that_may_not_be_entered_is_refused(open_folder: Path) -> None:
    inner = open_folder / "inner"
    inner.mkdir()
    path = inner / "app.db"
    path.touch()
    inner.chmod(0o000)
    assert "cannot reach the database" in as_nobody(path, read_only=True)
    inner.chmod(0o755)


# ---- file systems


@pytest.mark.parametrize("kind", sorted(location._NETWORK))
def test_a_network_file_system_is_refused(kind: str, tmp_path: Path, path: Path) -> None:
    """H44: the memory that WAL needs is not shared between hosts."""
    for read_only in (False, True):
        path.touch()
        with pytest.raises(ConfigError, match=f"of type '{kind}' that several hosts may share.*local disk"):
            examine(path, read_only=read_only, mountinfo=mount(tmp_path, kind))


@pytest.mark.usefixtures("lasting")
def test_the_innermost_and_latest_mount_counts(tmp_path: Path, path: Path) -> None:
    inner = tmp_path / "with blank"
    inner.mkdir()
    table = mount(tmp_path, "nfs4") + mount(inner, "tmpfs") + mount(inner, "xfs")
    assert examine(inner / "app.db", read_only=False, environ={}, mountinfo=table).filesystem == "xfs"
    with pytest.raises(ConfigError, match="nfs4"):
        examine(path, read_only=False, mountinfo=table)
    assert examine(path, read_only=False, mountinfo=mount(f"{tmp_path}x", "nfs")).filesystem == "ext4"


@pytest.mark.parametrize("table", ["", "no such line\n", mount("/nowhere", "ext4").removeprefix(LOCAL)])
def test_a_table_that_does_not_tell_leaves_the_file_system_unknown(table: str, path: Path) -> None:
    assert examine(path, read_only=False, mountinfo=table).filesystem == "unknown"


def test_a_system_without_the_table_leaves_the_file_system_unknown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "_MOUNTINFO", str(path.with_name("missing")))
    assert examine(path, read_only=False).filesystem == "unknown"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/mountinfo and /dev/shm")
@pytest.mark.usefixtures("lasting")
def test_the_real_memory_file_system_is_known_and_said_to_forget() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        found = examine(f"{folder}/app.db", read_only=False, environ={})
    assert found.filesystem == "tmpfs"
    assert found.temporary is not None
    assert "which is memory: it is lost when the machine restarts" in found.temporary


@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("ramfs", "is memory"), ("overlay", "container's own layer"), ("fuse.fuse-overlayfs", "container's own layer")],
)
def test_a_file_system_that_forgets_is_said_to(kind: str, reason: str, tmp_path: Path, path: Path) -> None:
    found = examine(path, read_only=False, environ={}, mountinfo=mount(tmp_path, kind))
    assert found.temporary is not None
    assert reason in found.temporary


@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP"])
def test_a_folder_for_temporary_files_is_said_to_be_emptied(variable: str, tmp_path: Path, path: Path) -> None:
    found = examine(path, read_only=False, environ={variable: str(tmp_path)}, mountinfo=LOCAL)
    assert found.temporary == f"{str(path)!r} lies under {str(tmp_path)!r}, which the system may empty at any time"
    for elsewhere in ("/", "", f"{path}x", str(path)[:-1]):
        assert examine(path, read_only=False, environ={variable: elsewhere}, mountinfo=LOCAL).temporary is None


def test_the_systems_own_temporary_folder_is_known() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        temporary = examine(f"{folder}/app.db", read_only=False, environ={}, mountinfo=LOCAL).temporary
    assert temporary is not None
    assert "'/tmp'" in temporary


def test_a_single_mounted_file_is_refused_for_writing_alone(path: Path) -> None:
    path.touch()
    with pytest.raises(ConfigError, match=r"mounted as a single file.*mount the folder instead"):
        examine(path, read_only=False, mountinfo=mount(path, "ext4"))
    assert examine(path, read_only=True, mountinfo=mount(path, "ext4")).filesystem == "ext4"


# ---- creating


@pytest.fixture(params=["mknod", "open"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create as Linux does, and as systems do where only root makes nodes."""
    if request.param == "open":

        def refused(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "mknod", refused)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o644])
def test_a_new_file_has_exactly_its_mode_and_is_empty(umask: int, mode: int, path: Path) -> None:
    before = os.umask(umask)
    try:
        assert create(str(path), mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.stat().st_size == 0


@pytest.mark.usefixtures("way")
def test_an_existing_file_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"content")
    path.chmod(0o640)
    assert not create(str(path), 0o600)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.usefixtures("way")
def test_one_of_many_creates_the_file(path: Path) -> None:
    barrier = threading.Barrier(8)
    made: list[bool] = []

    def make() -> None:
        barrier.wait()
        made.append(create(str(path)))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


@pytest.mark.usefixtures("way")
def test_a_file_that_cannot_be_created_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot create the database .*No such file or directory"):
        create(str(tmp_path / "no" / "app.db"))


# ---- never open (H32)

INTRUDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
try:
    connection.execute("BEGIN IMMEDIATE")
    print("in")
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname)
connection.close()
"""


def intruder(path: Path) -> str:
    """Return what a second process meets that tries to write."""
    done = subprocess.run([sys.executable, "-c", INTRUDER, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_live_database_keeps_its_locks_while_it_is_looked_at(path: Path) -> None:
    """H32: to open the file and close it again would drop all of the process's locks on it."""
    assert create(str(path))
    connection = sqlite3.connect(uri(str(path)), uri=True, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("BEGIN IMMEDIATE")
    examine(path, read_only=False)
    examine(path, read_only=True)
    create(str(path))
    identity(str(path))
    assert intruder(path) == "SQLITE_BUSY"
    connection.execute("ROLLBACK")
    assert intruder(path) == "in"
    connection.close()


# ---- URIs (H47)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40))
def test_exactly_the_file_that_was_meant_is_opened_whatever_its_name(name: str, tmp_path: Path) -> None:
    """H47: many builds read any name that begins with "file:" as a URI."""
    path = tmp_path / f"x{name}.db"
    if not create(str(path)):
        path.unlink()
        create(str(path))
    connection = sqlite3.connect(uri(str(path)), uri=True)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size > 0
    path.unlink()


def test_a_name_full_of_uri_syntax_is_only_a_name(tmp_path: Path) -> None:
    """H47: an unescaped "?" would cut the name short, and turn what follows into options."""
    assert uri("/a?mode=memory&vfs=x#y%41") == "file:///a%3Fmode%3Dmemory%26vfs%3Dx%23y%2541?mode=rw"
    assert uri("//a b", mode="ro") == "file:////a%20b?mode=ro"
    assert uri(os.fsdecode(b"/\xff")) == "file:///%FF?mode=rw"


def test_a_uri_creates_nothing(path: Path) -> None:
    for mode in ("ro", "rw"):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            sqlite3.connect(uri(str(path), mode=mode), uri=True)
    assert not path.exists()


@pytest.mark.parametrize("mode", ["rwc", "memory", "ro&immutable=1"])
def test_a_mode_that_creates_or_forgets_is_refused(mode: str) -> None:
    """H47, H42: some options turn locking off."""
    with pytest.raises(ConfigError, match="is not one of ro, rw"):
        uri("/app.db", mode=mode)


@pytest.mark.parametrize("path", ["app.db", "", "/a\0b"])
def test_a_uri_needs_an_absolute_path(path: str) -> None:
    with pytest.raises(ConfigError, match="no absolute path"):
        uri(path)
