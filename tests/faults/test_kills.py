"""Durable acknowledgement and exactly once, whoever is killed whenever: kill -9 at random moments, and at chosen ones.

Processes use one database in every way, and each keeps a journal of what it is about to do and of what was acknowledged
to it. Some are killed; then SQLite alone looks at the file, and what is in it is compared with the journals.
"""

from __future__ import annotations

import contextlib
import fcntl
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from bookkeeper import PLACES
from ledger import BACKUP, Ledger
from nursery import Child, Nursery
from nursery import nursery as nursery
from reliability import Record, form
from support import JOIN

STAFF = 3
THREADS = 3
ROUNDS = form(10, 20)  # on one database: each look at it takes longer than the one before
PRAGMAS: list[dict[str, Any]] = [
    {},
    {"checkpoint_pages": 20, "wal_limit": 100_000},  # the WAL is moved, and cut, again and again
    {"checkpoint_pages": 1000, "synchronous": "NORMAL"},
]
FILES = re.compile(r"app\.db(-wal|-shm|-safedb|-safedb\.next|-journal)?|p\d+\.journal|.*\.partial-.*")


@dataclass
class Clerk:
    """Be a process that works, known by the name of its journal."""

    name: str
    child: Child


class Office:
    """Be a database, the processes that work on it, and the ledger of what they did."""

    def __init__(self, folder: Path, nursery: Nursery, family: list[Child], pragmas: dict[str, Any], seed: int) -> None:
        self.database = folder / "app.db"
        self.ledger = Ledger(folder)
        self.staff: list[Clerk] = []
        self._folder = folder
        self._nursery = nursery
        self._family = family
        self._pragmas = pragmas
        self._seed = seed
        self._hired = 0
        self._inspected: set[str] = set()  # backups
        self.backups = 0  # that were there, and looked at

    def hire(self, *, threads: int = THREADS, **orders: Any) -> Clerk:
        """Start a process, with further ``orders`` of `bookkeeper.keep`."""
        self._hired += 1
        name = f"p{self._hired}"
        child = self._nursery.fork(
            "bookkeeper:keep", database=str(self.database), name=name, threads=threads, pragmas=self._pragmas,
            seed=self._seed, **orders,
        )  # fmt: skip
        self._family.append(child)
        clerk = Clerk(name, child)
        self.staff.append(clerk)
        return clerk

    def fill_up(self) -> None:
        while len(self.staff) < STAFF:
            self.hire()

    def kill(self, victims: list[Clerk]) -> None:
        """Kill them with -9, all at once, and wait until they are gone."""
        for victim in victims:
            victim.child.kill()
        for victim in victims:
            self.bury(victim)

    def bury(self, victim: Clerk) -> None:
        """Wait for the end of a process that has been killed."""
        assert victim.child.reap() == -signal.SIGKILL, self.ledger.complaints()
        self.staff.remove(victim)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what the processes do; fail at once where one of them has met an error."""
        end = time.monotonic() + JOIN
        while not condition():
            complaints = self.ledger.complaints()
            assert not complaints, complaints
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.0005)

    def wait_until_all_go_on(self) -> list[float]:
        """Wait until each process has had a write acknowledged that it began from now on; give the seconds of each."""
        now = time.monotonic_ns()

        def is_behind(clerk: Clerk) -> bool:
            return self.ledger.latest.get(clerk.name, (0, 0))[0] < now

        def all_are_ahead() -> bool:
            self.ledger.read()
            return not any(is_behind(clerk) for clerk in self.staff)

        self.wait_until(all_are_ahead, "the others to go on")
        return [(self.ledger.latest[clerk.name][1] - now) / 1e9 for clerk in self.staff]

    def check(self) -> None:
        """Hold the database and the finished backups against the journals."""
        findings = self.ledger.check(self.database)
        for name in self._backups_to_look_at():
            self._inspected.add(name)
            backup = self._folder / f"{name}.backup"
            self.backups += backup.exists()
            findings += self.ledger.check_backup(backup, name)
            backup.unlink(missing_ok=True)
        assert findings == []

    def _backups_to_look_at(self) -> list[str]:
        """Name those that are done, or never will be."""
        alive = {clerk.name for clerk in self.staff}
        return [
            name
            for name, write in self.ledger.writes.items()
            if write.kind == BACKUP
            and name not in self._inspected
            and (write.acknowledged is not None or name.split(".")[0] not in alive)
        ]

    def check_that_nothing_is_locked(self) -> None:
        """With all processes dead, nobody has the turn, nor stands in the gate."""
        for suffix in ("-safedb", "-safedb.next"):
            path = Path(f"{self.database}{suffix}")
            if path.exists():  # somebody came that far
                with path.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let all processes end in good order, and look for the last time."""
        for clerk in self.staff:
            clerk.child.link.send("stop")
        while self.staff:
            assert self.staff.pop().child.reap() == 0
        self.check()
        files = list(self._folder.iterdir())
        assert [file.name for file in files if not FILES.fullmatch(file.name)] == [], "what is this?"
        assert [file.name for file in files if file.stat().st_mode & 0o077] == [], "others may read them"

    def report(self, record: Record) -> None:
        """Add up what was checked."""
        record.add(acknowledged=len(self.ledger.acknowledged()), lost=0)


@contextlib.contextmanager
def office(folder: Path, nursery: Nursery, pragmas: dict[str, Any], seed: int) -> Iterator[Office]:
    """Be an office, whose processes are gone at the end, come what may."""
    folder.mkdir()
    with nursery.children() as family:
        made = Office(folder, nursery, family, pragmas, seed)
        yield made
        made.close()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_processes_killed_at_random_moments_lose_nothing(
    tmp_path: Path, nursery: Nursery, seed: int, record: Record
) -> None:
    """H12, H13, H45: what was acknowledged is there once, what was not is there whole or not at all.

    Written down: three processes of three threads do everything that safedb has. Some moments later one, two or all
    are killed. The others go on and meet no error; where nobody is left, nothing is locked. Then new ones come, before
    or after SQLite alone has looked, so that now the one and now the other recovers the WAL.
    """
    chance = random.Random(seed)
    pauses: list[float] = []
    backups = 0
    for era in range(form(12, 80)):
        with office(tmp_path / f"{era}", nursery, PRAGMAS[era % len(PRAGMAS)], chance.randrange(2**32)) as work:
            for _ in range(ROUNDS):
                work.fill_up()
                if chance.random() < 0.7:  # else they are killed while they open
                    work.wait_until_all_go_on()
                time.sleep(chance.uniform(0, 0.02))
                victims = chance.sample(work.staff, chance.choice((1, 1, 2, STAFF)))
                work.kill(victims)
                if not work.staff:
                    work.check_that_nothing_is_locked()
                pauses += work.wait_until_all_go_on()
                if chance.random() < 0.5:
                    work.fill_up()
                work.check()
                record.add(rounds=1, kills=len(victims))
        work.report(record)
        backups += work.backups
    record.note(backups=backups, median_pause=f"{median(pauses):.4f} s", longest_pause=f"{max(pauses):.3f} s")
    assert median(pauses) < 2  # at once: without load it takes milliseconds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
def test_a_process_killed_in_a_certain_place_loses_nothing(
    tmp_path: Path, nursery: Nursery, seed: int, record: Record, place: str
) -> None:
    """H45: in a statement, a function, a block or a script of a group; before, in and after COMMIT; in all else.

    Written down: a process works. Another one comes, and kills itself in the place; for what SQLite is busy with for a
    while, some moments after it has begun. What was under way before COMMIT is nowhere, what was under way after it is
    there; the first process goes on, and meets no error.
    """
    with office(tmp_path / "office", nursery, PRAGMAS[1], seed) as work:
        work.hire(threads=1)
        for _ in range(form(4, 40)):
            victim = work.hire(aim=place)
            work.wait_until(victim.child.has_ended, f"a kill in {place!r}")
            work.bury(victim)
            work.wait_until_all_go_on()
            work.check()
            record.add(rounds=1, kills=1)
    work.report(record)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_recovery_that_is_killed_is_done_by_the_next(
    tmp_path: Path, nursery: Nursery, seed: int, record: Record
) -> None:
    """H13: while one process reads a large WAL anew, the others wait, and go on when it is killed.

    Written down: the WAL has megabytes, and all processes were killed. Four come at once; some moments later up to
    three of them are killed, or all.
    """
    chance = random.Random(seed)
    with office(tmp_path / "office", nursery, {"checkpoint_pages": 0, "wal_limit": 0}, seed) as work:
        work.hire(threads=4)
        wal = Path(f"{work.database}-wal")
        size = form(4, 40) * 2**20
        work.wait_until(lambda: wal.exists() and wal.stat().st_size > size, "the WAL to grow")
        for _ in range(form(10, 200)):
            work.kill(work.staff[:])
            work.check_that_nothing_is_locked()
            for _ in range(4):
                work.hire(threads=1)
            time.sleep(chance.uniform(0, 0.03))
            work.kill(chance.sample(work.staff, chance.choice((1, 2, 3, 4))))
            work.wait_until_all_go_on()
            work.check()
            record.add(rounds=1, kills=4)  # these, and the others at the beginning of the next round
        assert wal.stat().st_size > size
    work.report(record)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_index_of_the_wal_that_a_kill_has_torn_is_made_anew(
    tmp_path: Path, nursery: Nursery, seed: int, record: Record
) -> None:
    """H13: the others go on, and meet no error, while one of them makes the index of a large WAL anew.

    Its header is written twice, so that a kill between is noticed. That moment is too short to be hit, so a program
    that has the turn leaves it so.

    Written down: three processes work; SQLite's own patience is a millisecond. The header is torn, again and again.
    """
    with office(tmp_path / "office", nursery, {"checkpoint_pages": 0, "wal_limit": 0}, seed) as work:
        for _ in range(STAFF):
            work.hire(slice_of=0.001)
        wal = Path(f"{work.database}-wal")
        work.wait_until(lambda: wal.exists() and wal.stat().st_size > 2**22, "the WAL to grow")
        with nursery.children() as others:
            others.append(nursery.fork("bookkeeper:tear", database=str(work.database)))
            for _ in range(form(20, 200)):
                others[0].link.send("tear")
                assert others[0].receive() == "torn"
                work.wait_until_all_go_on()
                record.add(rounds=1, faults=1)
        work.check()
    work.report(record)
