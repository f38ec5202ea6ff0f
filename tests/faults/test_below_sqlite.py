"""Below SQLite the disk fails: who writes is told the truth, nobody else notices, and all goes on when it works again.

A C library between SQLite and the kernel makes it fail (`shim.py`), in a child process. What a `kill -9` would leave at
some moment is a copy of the files at that moment; what a power failure would leave is what had been flushed by then.
"""

from __future__ import annotations

import errno
import functools
import random
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from reliability import Record, form
from shim import (
    BACKUP,
    DATABASE,
    FOREVER,
    OPEN,
    SHM,
    STALL,
    SYNC,
    TEMPORARY,
    TRUNCATE,
    WAL,
    WRITE,
    Child,
    Faults,
    World,
    above,
)
from shim import child as child
from shim import faults as faults
from shim import neighbour as neighbour
from shim import platter as platter
from shim import rules as rules
from shim import spare as spare
from support import Crew, wait_until
from verdicts import (
    BOTH,
    FAILED,
    FULL,
    INSERT,
    LARGE,
    NO_CHECKPOINTS,
    OK,
    PARTS,
    SHARING,
    SMALL,
    UNKNOWN,
    WAYS,
    WRITERS,
    Fault,
    Ledger,
    Told,
    after_kill,
    backup,
    checkpoint,
    close,
    copied,
    damage,
    execute,
    finish,
    group,
    open_db,
    open_once,
    rows_of,
    running,
    scalar,
    seen,
    start,
    stats,
    storm,
    told,
    true,
    write,
)

import safedb
from safedb import errors
from safedb.sqlite.driver import sqlite3
from safedb.stats import FailedCheckpoint, Retried, SlowCheckpoint

# -- what the test looks at ------------------------------------------------------------------------------------------


FAULTS = {
    "a full disk": Fault(FULL, ((WRITE, WAL, errno.ENOSPC, {}),)),
    "half a page, and then a full disk": Fault(
        FULL, ((WRITE, WAL, 0, {"partial": 1000, "skip": 1, "times": 1}), (WRITE, WAL, errno.ENOSPC, {"skip": 2}))
    ),
    "a failed write": Fault(FAILED, ((WRITE, WAL, errno.EIO, {}),)),
    "a quota": Fault(FAILED, ((WRITE, WAL, errno.EDQUOT, {"skip": 1}),)),
    "short writes": Fault(OK, ((WRITE, WAL, 0, {"partial": 1500}),)),
    "a failed flush": Fault(UNKNOWN, ((SYNC, WAL, errno.EIO, {}),)),
    "a flush without room": Fault(UNKNOWN, ((SYNC, WAL, errno.ENOSPC, {}),)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


# -- COMMIT, and before it --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_whoever_writes_is_told_the_truth_and_neighbours_notice_nothing(
    name: str, child: Child, neighbour: Child, faults: Faults, path: Path
) -> None:
    """H14: not committed is told only of what no crash brings back, and committed only of what none takes away.

    Written down: for each way of writing, a small write and one that overflows the cache before its COMMIT. While the
    disk fails this process and another read; after each failure a recovery is looked at, then the other process writes,
    then this one, on the same handle.
    """
    fault = FAULTS[name]
    child.call(open_db, path, cache_size=10, **NO_CHECKPOINTS)
    neighbour.call(open_db, path, **NO_CHECKPOINTS)
    verdicts: Told = {}
    sizes = [(way, SMALL) for way in WAYS] + [(way, LARGE) for way in ("a statement", "a block", "a function")]
    for number, (way, size) in enumerate(sizes):
        w = 10 * number
        with fault.broken(faults):
            verdicts[w] = child.call(write, way, w, size)
            true(verdicts, child.call(seen))
            true(verdicts, neighbour.call(seen))
        assert verdicts[w] == fault.told, f"{way}, {size} bytes"
        true(verdicts, after_kill(path))
        verdicts[w + 1] = neighbour.call(write, way, w + 1)
        verdicts[w + 2] = child.call(write, way, w + 2)
        assert (verdicts[w + 1], verdicts[w + 2]) == (OK, OK)
    true(verdicts, after_kill(path))
    assert child.call(damage) == []
    child.kill()
    neighbour.kill()
    true(verdicts, rows_of(path))


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name].told != OK])
def test_each_member_of_a_group_is_told_the_truth_and_the_next_group_notices_nothing(
    name: str, child: Child, faults: Faults, path: Path
) -> None:
    """H14, H46d: nobody was acknowledged before COMMIT, so nobody need be told more than is true.

    Written down: six writers queue behind a block; the disk fails when their group writes what overflows the cache, or
    at its COMMIT. Then six more, on a sound disk.
    """
    child.call(open_db, path, cache_size=10, **NO_CHECKPOINTS)
    verdicts: Told = {}
    for first, size in ((0, SMALL), (20, LARGE)):
        broken = child.call(group, first, size, FAULTS[name])
        verdicts |= broken
        assert set(broken.values()) == {FAULTS[name].told}, size
        true(verdicts, after_kill(path))
        sound = child.call(group, first + 10, size)
        verdicts |= sound
        assert set(sound.values()) == {OK}
        true(verdicts, after_kill(path))
    true(verdicts, child.call(seen))


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", ["a full disk", "a failed write"])
def test_a_group_that_a_passing_fault_has_cost_is_run_again(
    name: str, size: int, child: Child, faults: Faults, path: Path
) -> None:
    """H16, H46d: the rollback is confirmed and nothing was acknowledged, so all are run again, one by one.

    Written down: one write to the WAL fails, in the group's COMMIT or (the second member is large) before it; all its
    members are acknowledged.
    """
    child.call(open_db, path, cache_size=10, **NO_CHECKPOINTS)
    verdicts = child.call(group, 0, size, FAULTS[name], 1)
    assert set(verdicts.values()) == {OK}
    true(verdicts, after_kill(path))
    assert child.call(stats).retries["lost"] >= 1
    assert child.call(causes) >= {"lost"}


def causes(world: World) -> set[str]:
    return {event.cause for event in world.heard if isinstance(event, Retried)}


def test_what_nobody_can_know_is_found_by_a_recovery_until_somebody_writes(
    child: Child, faults: Faults, path: Path
) -> None:
    """H14: a COMMIT whose flush failed is not seen, yet a crash at this moment would bring it back."""
    child.call(open_db, path, **NO_CHECKPOINTS)
    for w, way in enumerate(WAYS):
        with FAULTS["a failed flush"].broken(faults):
            assert child.call(write, way, w) == UNKNOWN
        assert w not in child.call(seen)
        assert after_kill(path).get(w) == PARTS, way
        assert child.call(write, "a statement", 100 + w) == OK
        assert w not in after_kill(path), way


@pytest.mark.parametrize("sql", ["PRAGMA user_version = 7", "CREATE TABLE more(x)", "VACUUM", "ANALYZE"])
def test_exclusive_work_whose_flush_failed_is_not_called_a_failure(
    sql: str, child: Child, faults: Faults, path: Path
) -> None:
    """H14: a PRAGMA or VACUUM commits by itself, outside of BEGIN and COMMIT; a crash may keep it all the same."""
    child.call(open_db, path, **NO_CHECKPOINTS)
    assert child.call(write, "a statement", 1) == OK
    with FAULTS["a failed flush"].broken(faults):
        assert child.call(execute, sql) == UNKNOWN
    assert child.call(execute, sql) == OK
    assert child.call(write, "a statement", 2) == OK
    assert after_kill(path) == {1: PARTS, 2: PARTS}


@pytest.mark.parametrize("way", ["a statement", "a block", "a function", "a group"])
def test_a_wal_whose_index_cannot_grow_makes_a_commit_unknown(
    way: str, child: Child, faults: Faults, path: Path
) -> None:
    """H14: -shm grows after the frames are in the WAL, commit mark and all, and flushed: a recovery finds them.

    Written down: the disk has no room for the next 32 KiB of -shm, which is met by one transaction in four thousand
    frames. Whoever meets it sees nothing of its rows, and after a kill they are there.
    """
    child.call(open_db, path, page_size=512, **NO_CHECKPOINTS)
    verdicts = child.call(to_the_edge_of_the_index, path)
    faults.arm(WRITE, SHM, errno.ENOSPC)
    if way == "a group":
        while not faults.hits():
            verdicts |= child.call(group, max(verdicts) + 1, 300)
            assert len(verdicts) < 2000
        faults.mend()
    while way != "a group" and not faults.mend():
        faults.arm(WRITE, SHM, errno.ENOSPC)
        verdicts[max(verdicts) + 1] = child.call(write, way, max(verdicts) + 1)
        assert len(verdicts) < 2000
    last = max(verdicts)
    assert verdicts[last] == UNKNOWN
    assert set(verdicts.values()) == {OK, UNKNOWN}
    assert last not in child.call(seen)
    assert after_kill(path)[last] == PARTS
    true(verdicts, after_kill(path))
    verdicts[last + 1] = child.call(write, "a block", last + 1)
    assert verdicts[last + 1] == OK
    true(verdicts, after_kill(path))


def to_the_edge_of_the_index(world: World, path: Path) -> Told:
    """Fill the WAL until its index, which has room for 4062 frames at first, is almost full."""
    verdicts: Told = {}
    frame, first_room = 512 + 24, 4062
    while (first_room - world.db.stats().wal_bytes // frame) > 60:
        missing = first_room - world.db.stats().wal_bytes // frame
        w = len(verdicts)
        verdicts[w] = write(world, "a block", w, min(missing - 50, 400) * 200)
    return verdicts


@pytest.mark.parametrize("way", [*WAYS, "a pragma"])
def test_what_is_acknowledged_after_a_failed_flush_outlives_a_power_failure(
    way: str, child: Child, faults: Faults, path: Path, platter: Path
) -> None:
    """H14: the kernel counts the pages of a failed flush as written; nothing that comes after may rest on them.

    Written down: a write, then one whose flush fails while every flush does (so a connection that was closed now could
    not tidy up behind itself, and the next would recover the lost write from the kernel's cache), then a small write on
    a sound disk, then the power fails: only what was flushed is left.
    """
    child.call(open_db, path, **NO_CHECKPOINTS)
    verdicts = {1: child.call(write, "a statement", 1, 5000)}
    with faults.broken(SYNC, "*", errno.EIO):
        failed = (
            child.call(execute, "PRAGMA user_version = 7") if way == "a pragma" else child.call(write, way, 2, 5000)
        )
    assert failed == UNKNOWN
    verdicts |= {2: UNKNOWN, 3: child.call(write, "a statement", 3)}
    assert verdicts == {1: OK, 2: UNKNOWN, 3: OK}
    true(verdicts, rows_of(platter / path.name))


@pytest.mark.parametrize("way", ["a statement", "a block"])
def test_where_no_other_connection_can_be_opened_after_a_failed_flush_the_old_one_goes_on(
    way: str, child: Child, faults: Faults, path: Path, platter: Path
) -> None:
    """H14. Written down: a flush fails while the process has no descriptor left; then both are mended."""
    child.call(open_db, path, **NO_CHECKPOINTS)
    verdicts = {1: child.call(write, way, 1)}
    faults.arm(OPEN, DATABASE, errno.EMFILE)
    with FAULTS["a failed flush"].broken(faults):
        verdicts[2] = child.call(write, way, 2)
    verdicts[3] = child.call(write, way, 3)
    assert verdicts == {1: OK, 2: UNKNOWN, 3: OK}
    true(verdicts, after_kill(path))
    true(verdicts, rows_of(copied(platter / path.name)))


# -- checkpoints ------------------------------------------------------------------------------------------------------

CHECKPOINT_FAULTS = {
    "a full disk": (WRITE, DATABASE, errno.ENOSPC, FULL),
    "a failed write": (WRITE, DATABASE, errno.EIO, FAILED),
    "a failed flush of the database": (SYNC, DATABASE, errno.EIO, FAILED),
    "a database that cannot be cut": (TRUNCATE, DATABASE, errno.EIO, FAILED),
    "a failed flush of the WAL": (SYNC, WAL, errno.EIO, FAILED),
    "a WAL that cannot be cut": (TRUNCATE, WAL, errno.EIO, FAILED),
}


@pytest.mark.parametrize("name", CHECKPOINT_FAULTS)
def test_a_checkpoint_that_fails_is_told_to_its_caller_and_loses_nothing(
    name: str, child: Child, faults: Faults, path: Path, platter: Path
) -> None:
    """H14: what was acknowledged stays in the WAL until the database is known to hold it, and to be flushed.

    Written down: writes, a checkpoint that fails, writes, one that succeeds and empties the WAL, a write; after each
    step a kill and a power failure are looked at. The pages of the failed flush are never written again by the kernel,
    so the second checkpoint must write them itself.
    """
    calls, pattern, error, expected = CHECKPOINT_FAULTS[name]
    child.call(open_db, path, **NO_CHECKPOINTS)
    verdicts: Told = {}

    def writes() -> None:
        verdicts[len(verdicts)] = child.call(write, "a block", len(verdicts), 20_000)
        assert set(verdicts.values()) == {OK}

    def nothing_is_lost() -> None:
        true(verdicts, child.call(seen))
        true(verdicts, after_kill(path))
        true(verdicts, rows_of(copied(platter / path.name)))

    writes()
    with faults.broken(calls, pattern, error):
        assert child.call(checkpoint) == expected
        nothing_is_lost()
        if pattern == DATABASE:  # a fault of the database's file is none of a commit's
            writes()
            nothing_is_lost()
    writes()
    nothing_is_lost()
    assert child.call(checkpoint) == OK
    assert child.call(stats).wal_bytes == 0
    nothing_is_lost()
    writes()
    nothing_is_lost()


def failures(world: World) -> list[str]:
    return [event.error for event in world.heard if isinstance(event, FailedCheckpoint)]


def keep_writing(world: World, first: int, enough: Callable[[World], bool]) -> Told:
    """Write, alone and to the last acknowledged, until something has come about."""
    verdicts: Told = {}

    def come_about() -> bool:
        w = first + len(verdicts)
        verdicts[w] = write(world, "a statement", w, 3000)
        return enough(world)

    wait_until(come_about, "the keeper")
    return verdicts


def has_failed(world: World) -> bool:
    return len(failures(world)) >= 3


def has_moved_all(world: World) -> bool:
    return world.db.stats().checkpoints.count >= 1


def has_cut(world: World) -> bool:
    return world.db.stats().wal_bytes < LIMIT


LIMIT = 1_000_000


@pytest.mark.parametrize("name", [name for name in CHECKPOINT_FAULTS if "WAL" not in name])
def test_a_disk_that_fails_beneath_the_keeper_fails_no_commit_and_the_keeper_goes_on(
    name: str, child: Child, faults: Faults, path: Path, platter: Path
) -> None:
    """H37: checkpoints are the keeper's, and so are their failures; it tells of them, and tries again, less often.

    Written down: writers go on while three of the keeper's checkpoints fail, and until one succeeds on the mended disk.
    """
    calls, pattern, error, _ = CHECKPOINT_FAULTS[name]
    child.call(open_db, path, checkpoint_pages=20)
    started = time.monotonic()
    with faults.broken(calls, pattern, error):
        verdicts = child.call(keep_writing, 0, has_failed)
        true(verdicts, after_kill(path))
    failed = child.call(failures)
    assert all("a checkpoint of" in text for text in failed)
    assert len(failed) <= 12 + (time.monotonic() - started), "it tried as often as it could, and held up the writers"
    verdicts |= child.call(keep_writing, len(verdicts), has_moved_all)
    assert set(verdicts.values()) == {OK}
    true(verdicts, after_kill(path))
    true(verdicts, rows_of(copied(platter / path.name)))


def test_a_wal_that_cannot_be_cut_at_its_ceiling_is_cut_when_it_can(
    child: Child, faults: Faults, path: Path, platter: Path
) -> None:
    """H35, H37: TRUNCATE at the ceiling fails and is tried again; writers are told of nothing."""
    child.call(open_db, path, checkpoint_pages=0, wal_limit=LIMIT)
    with faults.broken(TRUNCATE, WAL, errno.EIO):
        verdicts = child.call(keep_writing, 0, has_failed)
        assert child.call(stats).wal_bytes >= LIMIT
        true(verdicts, rows_of(copied(platter / path.name)))
    verdicts |= child.call(keep_writing, len(verdicts), has_cut)
    assert set(verdicts.values()) == {OK}
    true(verdicts, after_kill(path))
    true(verdicts, rows_of(copied(platter / path.name)))


@pytest.mark.parametrize("name", [*CHECKPOINT_FAULTS, "all writes and flushes fail"])
def test_a_disk_that_fails_while_the_file_is_closed_takes_nothing(
    name: str, child: Child, faults: Faults, path: Path, platter: Path
) -> None:
    """H14: the checkpoint of the last close may fail; the WAL stays then, and whoever opens next goes on from it."""
    calls, pattern, error, _ = CHECKPOINT_FAULTS.get(name, (WRITE | SYNC | TRUNCATE, "*.db*", errno.EIO, OK))
    child.call(open_db, path, **NO_CHECKPOINTS)
    verdicts = {1: child.call(write, "a block", 1, 20_000)}
    faults.arm(calls, pattern, error)
    assert child.call(close) == OK
    assert faults.mend() or pattern == WAL  # which is removed, not cut
    true(verdicts, after_kill(path))
    true(verdicts, rows_of(copied(platter / path.name)))
    child.call(open_db, path, **NO_CHECKPOINTS)
    verdicts[2] = child.call(write, "a block", 2)
    assert verdicts == {1: OK, 2: OK}
    assert child.call(close) == OK
    true(verdicts, rows_of(path))


# -- backup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "error", "how", "expected"),
    [
        (WRITE, errno.ENOSPC, {}, FULL),
        (WRITE, errno.ENOSPC, {"skip": 5}, FULL),
        (WRITE, errno.EIO, {"skip": 5}, FAILED),
        (WRITE, 0, {"partial": 1000}, OK),
        (SYNC, errno.EIO, {}, FAILED),
        (SYNC, errno.ENOSPC, {}, FULL),
        (OPEN, errno.EMFILE, {}, FAILED),
    ],
    ids=[
        "full at once",
        "full",
        "a failed write",
        "short writes",
        "a failed flush",
        "a flush without room",
        "not opened",
    ],
)
def test_a_disk_that_fails_beneath_a_backup_leaves_the_old_one_and_the_database_as_they_were(
    calls: int, error: int, how: dict[str, int], expected: str, child: Child, faults: Faults, path: Path
) -> None:
    """H29: nothing appears under the backup's name before it is whole and flushed, and writers take no notice."""
    child.call(open_db, path)
    dest = path.with_name("copy")
    verdicts = {1: child.call(write, "a block", 1, 30_000)}
    assert child.call(backup, dest) == OK
    before = dest.read_bytes()
    verdicts[2] = child.call(write, "a block", 2, 30_000)
    with faults.broken(calls, BACKUP, error, **how) as hits:
        assert child.call(backup, dest) == expected
        assert hits()
        verdicts[3] = child.call(write, "a block", 3)
    assert (dest.read_bytes() == before) == (expected != OK)
    assert sorted(entry.name for entry in path.parent.glob("copy*")) == ["copy"]
    assert child.call(backup, dest) == OK
    assert set(verdicts.values()) == {OK}
    true(verdicts, rows_of(dest))


# -- first opening ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "error", "expected"),
    [(WRITE, errno.ENOSPC, {FULL, FAILED}), (WRITE, errno.EIO, {FAILED}), (SYNC, errno.EIO, {FAILED, UNKNOWN})],
    ids=["a full disk", "failed writes", "failed flushes"],
)
def test_a_first_opening_on_a_failing_disk_can_be_repeated(
    calls: int, error: int, expected: set[str], child: Child, faults: Faults, path: Path
) -> None:
    """H12b: whichever call fails, the file, the switch to WAL or the schema, the next opening finds what it can use.

    (SQLite does not say why -shm could not be made longer, so a full disk is not always known as one.)

    Written down: the first call to the disk fails, and all that follow; then, on another file, the second, and so on,
    until opening passes. After each failure a kill is looked at, then the disk is mended and the file opened again.
    """
    for skip in range(100):
        file = path.with_name(f"{skip}.db")
        faults.arm(calls, f"*/{skip}.db*", error, skip=skip)
        verdict = child.call(open_once, file)
        if not faults.mend():
            assert verdict == OK
            break
        assert verdict in expected, f"call {skip}"
        with closing(sqlite3.connect(copied(file))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert child.call(open_once, file) == OK
        assert child.call(write, "a block", 1) == OK
        assert child.call(close) == OK
        assert rows_of(file) == {1: PARTS}
    assert skip >= 3, "the fault has hit nothing"
    assert child.call(close) == OK


# -- slow flushes -----------------------------------------------------------------------------------------------------


SOON = 3.0
"""Seconds in which a write surely has its turn, and comes to its COMMIT."""


def patiently(world: World, w: int, timeout: float) -> str:
    return told(lambda: world.db.execute(BOTH, {"w": w, "size": SMALL}, timeout=timeout))


def test_a_flush_that_takes_long_holds_up_no_reader_and_its_verdict_is_waited_for(
    child: Child, neighbour: Child, faults: Faults, path: Path
) -> None:
    """H14: a COMMIT under way cannot be called off: past its deadline its writer still waits, and is told the truth.

    Written down: the flush of a COMMIT does not end. Reads go on; writers queue up; those whose deadline
    passes, here and in another process, get LockTimeout; the flush ends after the deadline of its own writer, who is
    acknowledged, as are the others.
    """
    child.call(open_db, path, **NO_CHECKPOINTS)
    neighbour.call(open_db, path, **NO_CHECKPOINTS)
    faults.arm(SYNC, WAL, delay=STALL)
    deadline = time.monotonic() + SOON
    child.call(start, "slow", patiently, 0, SOON)
    wait_until(lambda: faults.hits() == 1)
    assert child.call(seen) == neighbour.call(seen) == {}
    for w in range(1, 4):
        child.call(start, str(w), patiently, w, 60.0)
    assert child.call(patiently, 4, 0.1) == "LockTimeout"
    assert neighbour.call(patiently, 5, 0.1) == "LockTimeout"
    wait_until(lambda: child.call(stats).queue_depth == 3, "three to wait")
    assert child.call(running, "slow")
    wait_until(lambda: time.monotonic() > deadline + 0.1)
    assert child.call(running, "slow")
    faults.mend()
    assert [child.call(finish, name) for name in ("slow", "1", "2", "3")] == [OK] * 4
    assert neighbour.call(write, "a statement", 6) == OK
    assert set(after_kill(path)) == {0, 1, 2, 3, 6}


def test_a_checkpoint_whose_flush_takes_long_holds_up_no_reader_and_is_told_of(
    child: Child, faults: Faults, path: Path
) -> None:
    """H36, H37: writers wait for a checkpoint (H2), for no longer than their deadline, and its length is told.

    Written down: the keeper's checkpoint flushes the database, which does not end. A read is answered; a writer gets
    LockTimeout at its deadline, which says behind what; the flush ends, and all goes on.
    """
    child.call(open_db, path, checkpoint_pages=20)
    faults.arm(SYNC, DATABASE, delay=STALL)
    child.call(start, "writes", sure, 0)
    wait_until(lambda: faults.hits() == 1)
    assert child.call(scalar, "SELECT count(*) FROM t") >= 0
    assert "checkpoint" in child.call(refused, 1_000_000)
    faults.mend()
    child.call(finish, "writes")
    wait_until(lambda: child.call(slow_checkpoints) >= 1, "an event")


def sure(world: World, first: int) -> str:
    """Write enough for a checkpoint."""
    for w in range(first, first + 60):
        assert write(world, "a statement", w, 3000) == OK
    return OK


def refused(world: World, w: int) -> str:
    with pytest.raises(errors.LockTimeout) as caught:
        world.db.execute(BOTH, {"w": w, "size": SMALL}, timeout=0.15)
    return str(caught.value)


def slow_checkpoints(world: World) -> int:
    return sum(isinstance(event, SlowCheckpoint) for event in world.heard)


def test_a_backup_whose_flush_takes_long_holds_up_nobody(child: Child, faults: Faults, path: Path) -> None:
    """H29. Written down: the flush of a backup does not end; a write and a read are answered; it ends."""
    child.call(open_db, path)
    assert child.call(write, "a block", 1) == OK
    faults.arm(SYNC, BACKUP, delay=STALL)
    child.call(start, "backup", backup, path.with_name("copy"))
    wait_until(lambda: faults.hits() == 1)
    assert child.call(write, "a block", 2) == OK
    assert child.call(seen) == {1: PARTS, 2: PARTS}
    assert child.call(running, "backup")
    faults.mend()
    assert child.call(finish, "backup") == OK
    assert rows_of(path.with_name("copy")) == {1: PARTS}


def crowd(world: World, threads: int, each: int) -> Told:
    crew, verdicts = Crew(), {}

    def one(number: int) -> None:
        for w in range(number * each, (number + 1) * each):
            verdicts[w] = write(world, SHARING[w % len(SHARING)], w)

    crew.together(threads, one)
    return verdicts


@pytest.mark.parametrize("delay", [0.05, 0.2])
def test_on_a_slow_disk_one_flush_serves_many(delay: float, child: Child, faults: Faults, path: Path) -> None:
    """Group commit, where a flush takes 50 ms or more: 12 threads need far fewer flushes than they make writes."""
    child.call(open_db, path, **NO_CHECKPOINTS)
    faults.arm(SYNC, WAL, delay=delay)
    verdicts = child.call(crowd, 12, 4 if delay < 0.1 else 2)
    faults.mend()
    assert set(verdicts.values()) == {OK}
    assert child.call(stats).commits <= len(verdicts) * 3 // 4
    assert child.call(stats).commit_times.max >= delay
    true(verdicts, after_kill(path))


# -- the automatic rollback matrix ------------------------------------------------------------------------------------

ENDLESS = "WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c) "
SPOILERS: dict[str, Callable[[World, safedb.Transaction], Any]] = {
    "a constraint": lambda world, tx: tx.execute(INSERT, (0, 0, 1)),
    "OR ROLLBACK": lambda world, tx: tx.execute("INSERT OR ROLLBACK INTO t VALUES (0, 0, 1)"),
    "RAISE(ROLLBACK)": lambda world, tx: tx.execute("DELETE FROM t"),
    "max_page_count": lambda world, tx: tx.execute(INSERT, (1, 2, 9_000_000)),
    "an interrupted write": lambda world, tx: tx.execute(f"{ENDLESS} INSERT INTO t SELECT x, 7, 1 FROM c"),
    "an interrupted read": lambda world, tx: tx.execute(f"{ENDLESS} SELECT max(x) FROM c"),
    "a full disk": lambda world, tx: spill(world, tx, errno.ENOSPC),
    "a failed write": lambda world, tx: spill(world, tx, errno.EIO),
    "no memory": lambda world, tx: starve(tx),
}
"""What goes wrong inside a transaction, after which SQLite's is still open, or not."""


def spill(world: World, tx: safedb.Transaction, error: int) -> None:
    with world.faults.broken(WRITE, WAL, error):
        tx.execute(INSERT, (1, 2, LARGE))


def starve(tx: safedb.Transaction) -> None:
    """Forbid SQLite to take more memory in this process, for good (the pragma cannot take it back)."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA hard_heap_limit = 4000000").fetchall()
    tx.execute("INSERT INTO t VALUES (1, 2, randomblob(8000000))")


def spoiled(world: World, name: str) -> list[tuple[str, list[str], dict[int, int]]]:
    """Spoil transactions of three kinds, and go on as if nothing had happened; tell what each step was told."""

    def body(tx: safedb.Transaction) -> None:
        tx.execute(INSERT, (1, 0, SMALL))
        verdicts.append(told(lambda: SPOILERS[name](world, tx)))
        verdicts.append(told(lambda: tx.execute(INSERT, (1, 1, SMALL))))

    def a_block(limit: float) -> None:
        with world.db.transaction(timeout=limit) as tx:
            body(tx)

    def a_function(limit: float) -> None:
        world.db.run_transaction(body, timeout=limit)

    def a_savepoint(limit: float) -> None:
        with world.db.transaction(timeout=limit) as tx:
            tx.execute(INSERT, (2, 0, SMALL))
            verdicts.append(told(lambda: inside(tx)))
            verdicts.append(told(lambda: tx.execute(INSERT, (2, 1, SMALL))))

    def inside(tx: safedb.Transaction) -> None:
        with tx.savepoint():
            body(tx)

    outcomes = []
    for way, steps in ((a_block, 3), (a_function, 3), (a_savepoint, 5)):
        for limit in (0.3, 3.0, 30.0) if "interrupted" in name else (60.0,):
            verdicts: list[str] = []
            verdicts.append(told(functools.partial(way, limit)))
            if len(verdicts) == steps:  # else the deadline passed before it came to the endless statement
                break
        outcomes.append((way.__name__, verdicts, seen(world)))
        world.db.execute("UPDATE t SET w = w + 100 WHERE w > 0")
    return outcomes


@pytest.mark.parametrize("name", SPOILERS)
def test_after_an_error_nothing_of_a_transaction_is_committed_alone(name: str, child: Child, path: Path) -> None:
    """The automatic rollback matrix: after some errors SQLite has ended the transaction, and would commit what follows.

    Written down: an insert, an error that is swallowed, an insert that SQLite by itself would commit alone or with the
    first; in a block, in a function, and in a savepoint whose transaction goes on, if it is still there.
    """
    child.call(open_db, path, cache_size=10, max_page_count=1500, **NO_CHECKPOINTS)
    assert child.call(write, "a block", 0) == OK
    assert child.call(execute, "CREATE TRIGGER no BEFORE DELETE ON t BEGIN SELECT RAISE(ROLLBACK, 'no'); END") == OK
    block, function, savepoint = child.call(spoiled, name)
    for way, (error, after, end), found in (block, function):
        assert error not in (OK, "TransactionAborted"), way
        assert after == "TransactionAborted", way
        assert end in ("TransactionAborted", "QueryCanceled"), way
        assert found == {0: PARTS}, way
    _, (error, after, left, outer, end), found = savepoint
    assert error not in (OK, "TransactionAborted")
    assert after == "TransactionAborted"
    # Where the savepoint could be undone, leaving it says so, and what is around it goes on; else all of it is lost.
    # The deadline that has interrupted it is that of all, so what is around it may also be too late.
    late = [("TransactionAborted", "QueryCanceled", "TransactionAborted")] if "interrupted" in name else []
    assert (left, outer, end) in [
        ("TransactionAborted", OK, OK), (OK, "TransactionAborted", "TransactionAborted"), *late
    ]  # fmt: skip
    assert found == ({0: PARTS, 2: PARTS} if end == OK else {0: PARTS})
    assert child.call(write, "a block", 5) == OK
    assert child.call(damage) == []
    assert set(after_kill(path)) <= {0, 5, 102}
    if name == "no memory":
        child.kill()  # that limit cannot be taken back


# -- temporary files --------------------------------------------------------------------------------------------------

SORT = "SELECT h FROM (SELECT w || hex(randomblob(60)) AS h FROM t, json_each(?) LIMIT 40000) ORDER BY h"


def keeps_temporary_files_in_memory() -> bool:
    """Tell whether it was built so (as pysqlite3's is): https://sqlite.org/compile.html#temp_store."""
    with closing(sqlite3.connect(":memory:")) as connection:
        return ("TEMP_STORE=3",) in connection.execute("PRAGMA compile_options").fetchall()


def sort(world: World) -> str:
    return told(lambda: world.db.execute(SORT, [str(list(range(8_000)))]).fetchall())


@pytest.mark.skipif(keeps_temporary_files_in_memory(), reason="this SQLite keeps all temporary files in memory")
def test_a_full_place_for_temporary_files_fails_what_needs_them_and_nothing_else(
    child: Child, faults: Faults, path: Path
) -> None:
    """H44b: a large sort, and VACUUM, write temporary files elsewhere: their disk may be full when another is not."""
    child.call(open_db, path, cache_size=10)
    assert child.call(write, "a block", 1, 200_000) == OK
    assert child.call(sort) == OK
    with faults.broken(WRITE, TEMPORARY, errno.ENOSPC) as hits:
        assert child.call(sort) == FULL
        assert hits() >= 1
        assert child.call(execute, "VACUUM") == FULL
        assert hits() >= 2
        assert child.call(write, "a block", 2) == OK
        assert child.call(seen) == {1: PARTS, 2: PARTS}
    assert child.call(sort) == OK
    assert child.call(execute, "VACUUM") == OK
    assert child.call(damage) == []


# -- all of it at random ----------------------------------------------------------------------------------------------

STORM: list[tuple[int, str, int, dict[str, Any]]] = [
    (WRITE, WAL, errno.ENOSPC, {}),
    (WRITE, WAL, errno.EIO, {}),
    (WRITE, WAL, 0, {"partial": 900}),
    (SYNC, WAL, errno.EIO, {}),
    (SYNC, WAL, 0, {"delay": 0.03}),
    (SYNC, "*.db*", errno.EIO, {}),
    (WRITE, DATABASE, errno.ENOSPC, {}),
    (WRITE, DATABASE, errno.EIO, {}),
    (SYNC, DATABASE, errno.EIO, {}),
    (TRUNCATE, DATABASE, errno.EIO, {}),
    (TRUNCATE, WAL, errno.EIO, {}),
    (WRITE, SHM, errno.ENOSPC, {}),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_the_disk_does_nobody_is_told_what_is_not_so(
    faults: Faults, tmp_path: Path, seed: int, record: Record
) -> None:
    """H14, H16: every acknowledged write is there, once and whole, after a kill and after a power failure.

    Each error was true, too; and writers go on by themselves once the disk works again. Written down: four threads
    write in every way, small and large, with checkpoints going on; faults come and go at random moments; in the end the
    process is killed in the middle of everything.
    """
    chance, rounds, epochs = random.Random(seed), form(60, 1500), form(3, 50)
    verdicts: list[str] = []
    for epoch in range(epochs):
        folder = tmp_path / f"epoch{epoch}"
        (folder / "platter").mkdir(parents=True)
        ledger = Ledger()
        with above(faults.path, folder / "platter") as child, child.watched(600):
            child.call(open_db, folder / "app.db", cache_size=10, checkpoint_pages=60, wal_limit=400_000)
            child.begin(storm, seed * 1000 + epoch)
            for _ in range(rounds // epochs):
                record.add(rounds=1, faults=one_fault(child, faults, ledger, chance))
            going = set(range(WRITERS))
            while going:  # each of them is acknowledged again
                line = child.line()
                if ledger.note(line) in going and line.endswith(f" {OK}\n"):
                    going.remove(ledger.note(line))
            for line in child.rest():
                ledger.note(line)
        ledger.settle(after_kill(folder / "app.db"))
        ledger.settle(rows_of(folder / "platter" / "app.db"))
        verdicts += ledger.told.values()
        record.add(kills=1, acknowledged=list(ledger.told.values()).count(OK), lost=0)
        shutil.rmtree(folder)
    assert {OK, FULL, UNKNOWN, FAILED} <= set(verdicts) <= {OK, FULL, UNKNOWN, FAILED, "begun"}
    record.note(**{name: verdicts.count(name) for name in (FULL, UNKNOWN, FAILED)})


def one_fault(child: Child, faults: Faults, ledger: Ledger, chance: random.Random) -> int:
    """Break the disk somehow until somebody has met it, or for forty lines; return how often it was hit."""
    calls, pattern, error, how = chance.choice(STORM)
    times = FOREVER if "partial" in how or "delay" in how else chance.choice([1, 1, 2, 5, FOREVER])
    faults.arm(calls, pattern, error, skip=chance.randrange(12), times=times, **how)
    for _ in range(40):
        ledger.note(child.line())
        if faults.hits():
            break
    for _ in range(chance.randrange(12)):
        ledger.note(child.line())
    return faults.mend()
