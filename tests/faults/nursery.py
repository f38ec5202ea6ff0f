"""Processes for the tests that kill: each is forked, in a millisecond, from one that has imported safedb.

That one has one thread and has never opened a database, so what it forks is as good as a process started anew (H30-H34
are about those that are not). A process that is killed stays a zombie until it is reaped here, so no number is used
again under our eyes. Nobody outlives a test, not even one that was killed: who loses its link ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
from support import JOIN, unmeasured

LONGEST = 65_536  # bytes of an order


class Child:
    """Be a process of the nursery's, with a link to it."""

    def __init__(self, nursery: Nursery, pid: int, link: Connection) -> None:
        self._nursery = nursery
        self.pid = pid
        self.link = link
        self.status: int | None = None  # as `subprocess` gives it, once it was reaped

    def receive(self) -> Any:
        """Wait for what it says; raise `EOFError` where it has died instead."""
        assert self.link.poll(JOIN), f"process {self.pid} hangs"
        return self.link.recv()

    def has_ended(self) -> bool:
        """Tell whether it has ended, by its own hand maybe; it says nothing before."""
        try:
            return self.link.poll(0) and bool(self.link.recv())
        except (EOFError, ConnectionResetError):
            return True

    def kill(self) -> None:
        """Kill it with -9; `reap` must follow."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end, and give its status. From here on nothing of it is left: no lock, and no descriptor."""
        if self.status is None:
            self.status = self._nursery.ask({"reap": self.pid})
            self.link.close()
        return self.status


class Nursery:
    """Fork processes from one that has imported ``modules``; a context manager."""

    def __init__(self, *modules: str) -> None:
        self._link, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env={**unmeasured(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                cwd="/",  # where no pyproject.toml is, which each connect() would read
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._process.wait(JOIN)

    def ask(self, order: dict[str, Any], number: int | None = None) -> int:
        """Send an order, with a descriptor if it needs one, and wait for the answer."""
        text = json.dumps(order).encode()
        assert len(text) < LONGEST
        socket.send_fds(self._link, [text], [] if number is None else [number])
        self._link.settimeout(JOIN)
        return int(self._link.recv(32))

    def fork(self, job: str, **orders: Any) -> Child:
        """Start a process that calls the function ``module:name`` with its end of the link and ``orders``."""
        ours, theirs = Pipe()
        with theirs:
            pid = self.ask({"job": job, "orders": orders}, theirs.fileno())
        return Child(self, pid, ours)

    @contextlib.contextmanager
    def children(self) -> Iterator[list[Child]]:
        """Give a list for children: those that are in it at the end are killed and reaped."""
        family: list[Child] = []
        try:
            yield family
        finally:
            for child in family:
                if child.status is None:
                    child.kill()
                    child.reap()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Be a nursery whose processes have safedb and the workload ready."""
    with Nursery("safedb.sqlite.opening", "tenacity", "bookkeeper") as made:
        yield made


# -- in the other process ---------------------------------------------------------------------------------------------


def serve(link: socket.socket) -> None:
    """Fork and reap as ordered, until the test closes the link; then end all that is left."""
    alive: set[int] = set()
    logging.disable(logging.WARNING)  # each would warn of a place under /tmp
    gc.freeze()
    while True:
        text, numbers, _, _ = socket.recv_fds(link, LONGEST, 1)
        if not text:
            break
        order = json.loads(text)
        if "reap" in order:
            alive.discard(order["reap"])
            answer = os.waitstatus_to_exitcode(os.waitpid(order["reap"], 0)[1])
        else:
            answer = fork(link, numbers[0], order["job"], order["orders"])
            alive.add(answer)
        link.sendall(b"%d" % answer)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def fork(link: socket.socket, number: int, job: str, orders: dict[str, Any]) -> int:
    """Fork a process that does one job and ends; give its number."""
    pid = os.fork()
    if pid:
        os.close(number)
        return pid
    status = 1
    try:
        link.close()
        module, name = job.split(":")
        with contextlib.suppress(EOFError):  # the test is over
            getattr(sys.modules[module], name)(Connection(number), **orders)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    for module_name in sys.argv[2:]:
        getattr(importlib.import_module(module_name), "warm_up", int)()
    serve(socket.socket(fileno=int(sys.argv[1])))
