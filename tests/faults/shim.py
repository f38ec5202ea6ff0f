"""A disk that fails on demand: rules that test and child share, and children that run above such a disk.

`shim.c` is compiled once per run and put beneath a child by LD_PRELOAD. A `Child` is a Python that is asked for one
call after the other, of functions at the top of a test's module; it can be killed between two, or inside one.
"""

from __future__ import annotations

import atexit
import functools
import io
import mmap
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pytest
from support import Worker

import safedb
from safedb.stats import Event

P = ParamSpec("P")
T = TypeVar("T")

WRITE, SYNC, TRUNCATE, OPEN = 1, 2, 4, 8
RULES = 8
RULE = struct.Struct("=IIiiiiII64s")
FAULTS, PLATTER = "SAFEDB_TEST_FAULTS", "SAFEDB_TEST_PLATTER"
FOREVER = -1
STALL = 2**32 / 1e6
"""A delay that lasts until the rule is taken away."""
PATIENCE = 90.0
"""Seconds after which a child that does not answer is killed."""

WAL, DATABASE, SHM, BACKUP, TEMPORARY = "*.db-wal", "*.db", "*.db-shm", "*.partial-*", "*/etilqs_*"


class Faults:
    """Set rules in the file that the shim looks at: any process that has mapped it may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), RULES * RULE.size)

    @classmethod
    def of_this_process(cls) -> Faults:
        """Find the rules that this process is under."""
        return cls(Path(os.environ[FAULTS]))

    def arm(
        self, calls: int, pattern: str, error: int = 0, *, skip: int = 0, times: int = FOREVER, partial: int = -1,
        delay: float = 0.0,
    ) -> int:  # fmt: skip
        """Break ``calls`` to files of a name from now on; return the rule's number.

        The first ``skip`` pass, the next ``times`` wait for ``delay`` seconds, write ``partial`` bytes at the most, and
        fail with ``error``.
        """
        number = next(i for i in range(RULES) if not any(self._map[i * RULE.size : (i + 1) * RULE.size]))
        micros = min(round(delay * 1e6), 2**32 - 1)
        rule = RULE.pack(0, calls, skip, times, error, partial, micros, 0, pattern.encode())
        start = number * RULE.size
        self._map[start : start + RULE.size] = rule
        self._map[start : start + 4] = struct.pack("=I", 1)
        return number

    def hits(self, number: int = 0) -> int:
        """Count the calls that a rule has hit."""
        hits: int = RULE.unpack_from(self._map, number * RULE.size)[7]
        return hits

    def mend(self) -> int:
        """Take all rules away; return how many calls they have hit."""
        total = 0
        for number in range(RULES):
            start = number * RULE.size
            self._map[start : start + 4] = bytes(4)
            total += self.hits(number)
            self._map[start : start + RULE.size] = bytes(RULE.size)
        return total

    @contextmanager
    def broken(self, calls: int, pattern: str, error: int = 0, **how: Any) -> Iterator[Callable[[], int]]:
        """Break calls while the block runs; what is given counts them."""
        number = self.arm(calls, pattern, error, **how)
        try:
            yield lambda: self.hits(number)
        finally:
            self.mend()

    def close(self) -> None:
        self._map.close()


@functools.cache
def library() -> Path:
    """Compile the shim."""
    if not sys.platform.startswith("linux"):
        pytest.skip("LD_PRELOAD and /proc are Linux's")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.fail(
            "no C compiler (gcc or cc) is here, and these tests make the disk fail by a library of C: install one"
        )
    folder = tempfile.mkdtemp(prefix="safedb-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Path(folder) / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o", made, source, "-ldl", "-lpthread"],
        check=True, timeout=60,
    )  # fmt: skip
    return made


class ChildFailed(AssertionError):
    """Say that a call in a child raised; the text is its traceback."""


class Child:
    """Be a Python of its own, which runs functions of the test's module one after the other.

    What its functions share they keep in ``world``, the namespace that each is given first.
    """

    def __init__(self, *before: str, **environ: str) -> None:
        """Start it, by the command ``before`` if there is one."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [*before, sys.executable, "-c", "import shim; shim.serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path, **environ},
        )  # fmt: skip
        self._stdin = cast("io.BufferedWriter", self._process.stdin)
        self._stdout = cast("io.BufferedReader", self._process.stdout)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def begin(self, function: Callable[Concatenate[World, P], T], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Ask for a call, whose outcome is not waited for."""
        pickle.dump((function, args, kwargs), self._stdin)
        self._stdin.flush()

    def call(self, function: Callable[Concatenate[World, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function(world, …)`` in the child, and return what it returns."""
        self.begin(function, *args, **kwargs)
        return cast("T", self.answer())

    def answer(self) -> Any:
        """Wait for the outcome of the oldest call that was begun."""
        with self.watched():
            try:
                fine, value = pickle.load(self._stdout)
            except EOFError:
                raise ChildFailed(f"the child ended with {self._process.wait()}") from None
        if not fine:
            raise ChildFailed(value)
        return value

    @contextmanager
    def watched(self, seconds: float = PATIENCE) -> Iterator[None]:
        """Kill the child, so that whoever waits for it wakes, if the block takes longer."""
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join()

    def line(self) -> str:
        """Wait for the next line that a call under way writes by `say`."""
        line = self._stdout.readline().decode()
        assert line.endswith("\n"), "the child hung, or died"
        return line

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill it by SIGKILL, in the middle of whatever it does, and reap it. Idempotent."""
        with ExitStack() as stack:
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            stack.callback(self._stdout.close)
            stack.callback(_close, self._stdin)

    def rest(self) -> list[str]:
        """Kill it, and return the lines that it had written by `say` until then."""
        self._process.kill()
        self._process.wait()
        return self._stdout.read().decode().splitlines()


def _close(pipe: io.BufferedWriter) -> None:
    with suppress(BrokenPipeError):  # what was to be said to one that is dead already
        pipe.close()


class World:
    """Be what the functions of one child share: its handle, the events it heard, the rules it is under, its threads."""

    db: safedb.Database
    faults: Faults

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.workers: dict[str, Worker] = {}
        if FAULTS in os.environ:
            self.faults = Faults.of_this_process()

    def clear(self) -> None:
        """Close what a test has opened."""
        if hasattr(self, "db"):
            self.db.close()
        assert not self.workers, "a test has left threads"


def say(line: str) -> None:
    """Write a line to the test that started this child, in one piece, as `os.write` does."""
    os.write(1, f"{line}\n".encode())


def serve() -> None:
    """Be the child's side."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    world = World()
    while True:
        try:
            function, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        try:
            outcome = True, function(world, *args, **kwargs)
        except BaseException:
            import traceback

            outcome = False, traceback.format_exc()
        pickle.dump(outcome, answers)
        answers.flush()


def above(rules: Path, platter: Path) -> Child:
    """Start a child whose disk obeys rules, and whose flushed pages are kept in the folder ``platter``."""
    return Child(**{"LD_PRELOAD": str(library()), FAULTS: str(rules), PLATTER: str(platter)})


# -- fixtures: to start a child takes longer than most tests, so a sound one serves the next test too ------------------


@pytest.fixture(scope="module")
def spare() -> Iterator[dict[str, Child]]:
    """Be the children that wait for the next test."""
    waiting: dict[str, Child] = {}
    yield waiting
    for child in waiting.values():
        child.kill()


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules"
    path.write_bytes(bytes(RULES * RULE.size))
    return path


@pytest.fixture(scope="module")
def platter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Be the folder where that is kept of a child's files which has been flushed."""
    return tmp_path_factory.mktemp("platter")


@pytest.fixture
def faults(rules: Path) -> Iterator[Faults]:
    """Be the rules of one test; none is set, and none is left."""
    made = Faults(rules)
    yield made
    made.mend()
    made.close()


@pytest.fixture
def child(spare: dict[str, Child], faults: Faults, platter: Path, request: pytest.FixtureRequest) -> Iterator[Child]:
    """Be a child whose disk is under the rules of `faults`."""
    yield from _lent("broken", lambda: above(faults.path, platter), spare, request, faults.mend)


@pytest.fixture
def neighbour(spare: dict[str, Child], request: pytest.FixtureRequest) -> Iterator[Child]:
    """Be a child on a sound disk."""
    yield from _lent("sound", Child, spare, request, lambda: 0)


def _lent(
    kind: str,
    make: Callable[[], Child],
    spare: dict[str, Child],
    request: pytest.FixtureRequest,
    mend: Callable[[], int],
) -> Iterator[Child]:
    child = spare.pop(kind, None) or make()
    failed = request.session.testsfailed
    try:
        yield child
        mend()
        if child.lives and request.session.testsfailed == failed:
            child.call(World.clear)
            spare[kind] = child
    finally:
        if spare.get(kind) is not child:
            child.kill()
