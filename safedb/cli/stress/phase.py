"""Run one side: start its processes and troublemakers, follow them, bring every one of them to an end."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from safedb.cli.stress import crew, lock_holder, target
from safedb.cli.stress.crew import Orders
from safedb.cli.stress.interrupts import Interrupts
from safedb.cli.stress.tally import ProcessResult, Tick

STARTING = 120.0  # seconds: reading the source and opening the database, on a slow machine
ENDING = 90.0  # seconds after the end in which the last write must have come to its end
CONTEXT = multiprocessing.get_context("spawn")  # a fork would carry open databases and half-held locks into the child

Follow = Callable[[float, Tick], None]


@dataclass(slots=True)
class PhaseResult:
    """Be what one side's processes brought home; ``broken`` tells of those that did not come home.

    ``wal`` is what the database tells of its WAL, by name, in bytes.
    """

    side: str
    processes: list[ProcessResult] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    held: lock_holder.Held | None = None
    wal: dict[str, int] = field(default_factory=dict)


_NOTHING = Tick(0, 0, 0)


@dataclass(slots=True)
class _Member:
    """Be one process, as its parent sees it."""

    process: BaseProcess
    pipe: Connection
    name: str
    ready: bool = False
    ended: bool = False
    tick: Tick = _NOTHING


class Phase:
    """Be one side's run, from the start of its processes to the last result."""

    def __init__(self, orders: list[Orders], hold: float, interrupts: Interrupts, follow: Follow) -> None:
        self._orders, self._hold, self._interrupts, self._follow = orders, hold, interrupts, follow
        self._watch = target.engine(orders[0].place.dialect).watch(orders[0].place)
        self.result = PhaseResult(orders[0].side)

    def run(self) -> PhaseResult:
        """Return when every process has ended: by itself, or, if something goes wrong here, by being killed."""
        members: list[_Member] = []
        try:
            self._start(members)
            if self._all_ready(members):
                self._go(members)
        finally:
            for member in members:
                _bury(member)
        self.result.wal = self._watch.result()
        return self.result

    def _start(self, members: list[_Member]) -> None:
        for orders in self._orders:  # one by one: what has been started must be known if the next one fails
            members.append(_spawn(f"process {orders.process + 1}", crew.main, orders))  # noqa: PERF401
        if self._hold:
            seconds = self._orders[0].seconds
            start = max(seconds / 10, (seconds - self._hold) / 2)
            task = lock_holder.Task(self._orders[0].place, start, self._hold)
            members.append(_spawn("the lock holder", lock_holder.main, task))

    def _all_ready(self, members: list[_Member]) -> bool:
        deadline = time.monotonic() + STARTING
        while not all(member.ready for member in members):
            self._listen(members)
            late = time.monotonic() > deadline
            if late:
                self.result.broken.append(f"the processes were not ready within {STARTING:.0f} s")
            if late or self._interrupts.noticed or any(member.ended for member in members):
                return False
        return True

    def _go(self, members: list[_Member]) -> None:
        _tell(members, "go")
        begun = time.monotonic()
        seconds = self._orders[0].seconds
        deadline = begun + seconds + self._hold + ENDING
        stopped = False
        while not all(member.ended for member in members):
            self._listen(members)
            now = time.monotonic()
            self._follow(now - begun, _sum([member.tick for member in members]))
            if self._interrupts.noticed and not stopped:
                stopped, deadline = True, now + ENDING
                _tell(members, "stop")
            if now > deadline:
                late = [member.name for member in members if not member.ended]
                self.result.broken.append(f"{', '.join(late)}: still busy {ENDING:.0f} s after the end, and killed")
                return

    def _listen(self, members: list[_Member]) -> None:
        self._watch.look()
        listening = [member for member in members if not member.ended]
        spoken = wait([member.pipe for member in listening], timeout=crew.TICK)
        for member in listening:
            if member.pipe not in spoken:
                continue
            try:
                self._heard(member, *member.pipe.recv())
            except (EOFError, ConnectionResetError):
                member.ended = True
                member.process.join(5)
                self.result.broken.append(f"{member.name} died ({_cause(member.process.exitcode)})")

    def _heard(self, member: _Member, word: str, content: object = None) -> None:
        if word == "ready":
            member.ready = True
        elif word == "failed":
            member.ended = True
            self.result.broken.append(f"{member.name} failed:\n{content}")
        elif isinstance(content, Tick):
            member.tick = content
        else:
            member.ended = True
            if isinstance(content, ProcessResult):
                self.result.processes.append(content)
            elif isinstance(content, lock_holder.Held):
                self.result.held = content


def _spawn(name: str, job: Callable[[Any, Connection], None], orders: Orders | lock_holder.Task) -> _Member:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=job, args=(orders, theirs), daemon=True)
    with _signals_held_back():
        process.start()
    theirs.close()
    return _Member(process, ours, name)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keep Ctrl-C from a process that starts in this block: it is blocked there for good, and here for a moment."""
    resource_tracker.ensure_running()  # started on demand, it would lift the block again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(members: list[_Member], word: str) -> None:
    for member in members:
        if not member.ended:
            with contextlib.suppress(OSError):  # it has just ended: its last word is in the pipe
                member.pipe.send(word)


def _bury(member: _Member) -> None:
    """Make sure that the process is gone: before the files are checked, and before they are removed."""
    member.pipe.close()
    member.process.join(10 if member.ended else 0)
    if member.process.is_alive():
        member.process.kill()
        member.process.join()
    member.process.close()


def _cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _sum(ticks: list[Tick]) -> Tick:
    longest = max(tick.longest for tick in ticks)
    return Tick(sum(tick.writes for tick in ticks), sum(tick.errors for tick in ticks), longest)
