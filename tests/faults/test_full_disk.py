"""A disk that is really full: a small tmpfs of the test's own, and everywhere a limit on the size of files.

The tmpfs is mounted in a mount namespace, which ends with the process that made it: nothing of it outlives the test.
Where neither root nor a user namespace is to be had, only the limit is left.
"""

from __future__ import annotations

import functools
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from reliability import Record, form
from shim import Child, World
from shim import neighbour as neighbour
from shim import spare as spare
from verdicts import (
    FAILED,
    FULL,
    LARGE,
    NO_CHECKPOINTS,
    OK,
    PARTS,
    SMALL,
    UNKNOWN,
    WAYS,
    WRITERS,
    Ledger,
    Told,
    after_kill,
    backup,
    checkpoint,
    close,
    damage,
    execute,
    group,
    open_db,
    open_once,
    seen,
    stats,
    storm,
    true,
    write,
)

from safedb.sqlite import log

SIZE = 6 * 1024 * 1024
"""Bytes of the disk."""

ENTER = {
    ("unshare", "-m"): ("nsenter", "-m"),
    ("unshare", "-r", "-m"): ("nsenter", "-U", "-m", "--preserve-credentials"),
}
"""Commands that make a namespace (as root, and as anybody), and those by which another process enters it."""


@functools.cache
def namespace() -> tuple[str, ...]:
    """Find the command that gives a process mounts of its own."""
    for command in ENTER:
        with suppress(OSError):
            tried = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            if subprocess.run(tried, check=False, capture_output=True, timeout=60).returncode == 0:
                return command
    pytest.skip("to mount a disk takes root, or user namespaces")


class Disk:
    """Be a small disk, which only the processes see that it starts.

    ``seen`` is where this process finds its files; to be read, and not for SQLite, which would resolve that path.
    """

    def __init__(self, folder: Path) -> None:
        command = namespace()
        self.folder = folder
        folder.mkdir()
        mount = f"mount -t tmpfs -o size={SIZE} tmpfs {folder} && echo ready && cat"
        self._keeper = subprocess.Popen(
            [*command, "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "ready\n"
        self._enter = (*ENTER[command], "-t", str(self._keeper.pid))
        self.seen = Path(f"/proc/{self._keeper.pid}/root{folder}")

    def __enter__(self) -> Disk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._keeper.kill()
        self._keeper.communicate()

    def child(self) -> Child:
        """Start a process that sees the disk."""
        return Child(*self._enter)

    def allow(self, inodes: int) -> None:
        """Change the number of files that the disk has room for."""
        subprocess.run(
            [*self._enter, "mount", "-o", f"remount,nr_inodes={inodes}", str(self.folder)], check=True, timeout=60
        )

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.seen / "ballast").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.seen / "ballast").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "disk") as made:
        yield made


def test_on_a_full_disk_writers_are_told_so_and_all_goes_on_when_there_is_room(disk: Disk, tmp_path: Path) -> None:
    """H14: a full disk is a failure that has no effect, told as `DatabaseFull`; readers and the handle outlive it.

    Written down: the disk is filled to its last byte before each write of each kind, and made free after it.
    """
    path, found = disk.folder / "app.db", disk.seen / "app.db"
    with disk.child() as child:
        child.call(open_db, path, cache_size=10, **NO_CHECKPOINTS)
        verdicts: Told = {0: child.call(write, "a block", 0)}
        for number, way in enumerate(WAYS):
            w = 10 * number
            disk.fill()
            verdicts[w + 1] = child.call(write, way, w + 1, LARGE)
            verdicts[w + 2] = child.call(write, way, w + 2, SMALL)  # there may be room for that in the WAL's last page
            assert verdicts[w + 1] == FULL, way
            assert verdicts[w + 2] in (OK, FULL), way
            true(verdicts, child.call(seen))
            true(verdicts, after_kill(found, tmp_path))
            disk.empty()
            verdicts[w + 3] = child.call(write, way, w + 3)
            assert verdicts[w + 3] == OK, way
        disk.fill()
        members = child.call(group, 1000, LARGE)
        assert [members[w] for w in range(1001, 1006)] == [FULL] * 5
        assert child.call(execute, "VACUUM") == FULL
        assert child.call(checkpoint) == FULL
        verdicts |= members
        true(verdicts, after_kill(found, tmp_path))
        disk.empty()
        sound = child.call(group, 2000, LARGE)
        assert set(sound.values()) == {OK}
        verdicts |= sound
        assert child.call(checkpoint) == OK
        assert child.call(damage) == []
    true(verdicts, after_kill(found, tmp_path))


def test_a_backup_to_a_full_disk_leaves_the_old_one(disk: Disk, tmp_path: Path) -> None:
    """H29: nothing half-made takes the place of a backup, nor the room that is left."""
    dest, found = disk.folder / "copy.db", disk.seen / "copy.db"
    with disk.child() as child:
        child.call(open_db, tmp_path / "app.db")
        assert child.call(write, "a block", 1) == OK
        assert child.call(backup, dest) == OK
        before = found.read_bytes()
        assert child.call(write, "a block", 2, LARGE) == OK
        disk.fill()
        assert child.call(backup, dest) == FULL
        assert found.read_bytes() == before
        assert sorted(entry.name for entry in disk.seen.iterdir()) == ["ballast", "copy.db"]
        assert child.call(write, "a block", 3) == OK
        disk.empty()
        assert child.call(backup, dest) == OK
    assert set(after_kill(found, tmp_path)) == {1, 2, 3}


def test_a_first_opening_on_a_full_disk_can_be_repeated(disk: Disk, tmp_path: Path) -> None:
    """H12b: of no byte, or of a few files only, there is an error, not a crash, and nothing is in the way later."""
    with disk.child() as child:
        disk.fill()
        path = disk.folder / "full.db"
        assert child.call(open_once, path) == FULL
        disk.empty()
        assert child.call(open_once, path) == OK
        assert child.call(write, "a block", 1) == OK
        assert child.call(close) == OK
        used = 1 + len(list(disk.seen.iterdir()))
        for room in range(1, 8):
            path = disk.folder / f"{room}.db"
            disk.allow(used + room - 1)
            verdict = child.call(open_once, path)
            if verdict == OK:
                break
            assert verdict in (FULL, FAILED), room  # SQLite does not say why a file could not be made
            disk.allow(1000)
            assert child.call(open_once, path) == OK
            assert child.call(write, "a block", 1) == OK
            assert child.call(close) == OK
            assert after_kill(disk.seen / path.name, tmp_path) == {1: PARTS}
            for entry in disk.seen.glob(f"{room}.db*"):
                entry.unlink()
        assert room > 3
        assert child.call(close) == OK


def make_room(world: World, later: float = 0.0) -> int:
    """Have the keeper's room made now, with the clock put forward; tell by how many bytes the log's file has grown."""
    engine: Any = world.db._engine
    engine.checkpointer.close()  # by nobody else
    log.monotonic = lambda: time.monotonic() + later  # type: ignore[attr-defined]
    before = engine.log.size()
    engine.log.make_room()
    return int(engine.log.size() - before)


def test_the_last_bytes_of_a_disk_are_not_taken_for_room(disk: Disk, tmp_path: Path) -> None:
    """H14: what the log will need is taken ahead of it, but not where the data may need it more.

    Written down: the same writes on the small disk, and on a large one.
    """
    sizes = []
    for folder in (disk.folder, tmp_path):
        with disk.child() as child:
            child.call(open_db, folder / "app.db")
            for w in range(3):
                assert child.call(write, "a statement", w, LARGE) == OK
            child.call(make_room)
            sizes.append(child.call(stats).wal_bytes)
    assert sizes[0] < log.STEP < sizes[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_disk_that_is_full_time_and_again_loses_nothing(
    disk: Disk, tmp_path: Path, seed: int, record: Record
) -> None:
    """H14: what four threads were told, while the disk was filled and freed at random, is what a kill leaves.

    Written down: the ballast grows until nothing is free, some verdicts later it goes; the writer is killed in the end.
    """
    chance, path, found = random.Random(seed), disk.folder / "app.db", disk.seen / "app.db"
    verdicts: list[str] = []
    for epoch in range(form(2, 20)):
        ledger = Ledger()
        with disk.child() as child, child.watched(600):
            child.call(open_db, path, cache_size=10, checkpoint_pages=60, wal_limit=400_000)
            child.begin(storm, seed * 1000 + epoch)
            for _ in range(form(5, 10)):
                disk.fill()
                for _ in range(chance.randrange(8, 40)):
                    ledger.note(child.line())
                disk.empty()
                for _ in range(chance.randrange(8, 40)):
                    ledger.note(child.line())
                record.add(rounds=1, faults=1)
            going = set(range(WRITERS))
            while going:
                line = child.line()
                if ledger.note(line) in going and line.endswith(f" {OK}\n"):
                    going.remove(ledger.note(line))
            for line in child.rest():
                ledger.note(line)
        ledger.settle(after_kill(found, tmp_path))
        verdicts += ledger.told.values()
        record.add(kills=1, acknowledged=list(ledger.told.values()).count(OK), lost=0)
        for entry in disk.seen.iterdir():
            entry.unlink()
    assert {OK, FULL} <= set(verdicts) <= {OK, FULL, FAILED, UNKNOWN, "begun"}
    record.note(**{name: verdicts.count(name) for name in (FULL, UNKNOWN, FAILED)})


# -- a limit on files -------------------------------------------------------------------------------------------------


def limit(world: World, size: int) -> None:
    """Let no file of this process grow beyond a size: EFBIG, since Python ignores SIGXFSZ."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_where_room_for_the_log_cannot_be_made_nothing_fails_and_it_is_tried_later(tmp_path: Path) -> None:
    """H14: who commits is told of a disk that fails, and nobody before.

    Written down: the limit lies within the room that is to be made: some of it is, then none; commits go on in what
    there is; the limit goes, and so does a minute.
    """
    with Child() as child:
        child.call(open_db, tmp_path / "app.db")
        child.call(limit, 400_000)
        assert child.call(make_room) == 0
        assert child.call(write, "a statement", 1, LARGE) == OK
        assert child.call(write, "a statement", 2, LARGE) == OK
        child.call(make_room)
        assert child.call(stats).wal_bytes == 400_000
        assert child.call(make_room) == 0
        assert child.call(write, "a statement", 3) == OK
        assert child.call(write, "a statement", 4, LARGE) in (FULL, FAILED)
        child.call(limit, resource.RLIM_INFINITY)
        assert child.call(make_room) == child.call(make_room, log.RETRY / 2) == 0
        assert child.call(make_room, log.RETRY + 1) == log.STEP
        assert child.call(write, "a statement", 5, LARGE) == OK
        assert child.call(damage) == []
    assert set(after_kill(tmp_path / "app.db")) == {1, 2, 3, 5}


def test_a_limit_on_the_size_of_files_is_as_a_full_disk_and_binds_nobody_else(neighbour: Child, tmp_path: Path) -> None:
    """H14: EFBIG is no ENOSPC to SQLite, which calls it a failed write; not committed, in either case.

    Written down: before each write the WAL has no room left in this process; another one is not limited.
    """
    path = tmp_path / "app.db"
    with Child() as child:
        child.call(open_db, path, cache_size=10, **NO_CHECKPOINTS)
        neighbour.call(open_db, path, **NO_CHECKPOINTS)
        verdicts: Told = {}
        for number, way in enumerate(WAYS):
            w = 10 * number
            verdicts[w] = child.call(write, way, w)
            child.call(limit, (tmp_path / "app.db-wal").stat().st_size + 10_000)
            verdicts[w + 1] = child.call(write, way, w + 1, LARGE)
            assert verdicts[w + 1] in (FULL, FAILED), way
            true(verdicts, child.call(seen))
            true(verdicts, after_kill(path))
            verdicts[w + 2] = neighbour.call(write, way, w + 2, LARGE)
            child.call(limit, resource.RLIM_INFINITY)
            verdicts[w + 3] = child.call(write, way, w + 3, LARGE)
            assert [verdicts[w + n] for n in (0, 2, 3)] == [OK] * 3, way
        assert child.call(damage) == []
        child.call(limit, 100_000)
        assert child.call(checkpoint) in (FULL, FAILED)
        assert child.call(backup, tmp_path / "copy.db") in (FULL, FAILED)
        true(verdicts, after_kill(path))
    assert not (tmp_path / "copy.db").exists()
    true(verdicts, after_kill(path))
