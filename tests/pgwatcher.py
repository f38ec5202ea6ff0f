"""The process that stands between the tests and one PostgreSQL server, and outlives neither.

`pgserver` starts one of these for each server (`python -I -S pgwatcher.py`, standard library only, so that it is up in
milliseconds). It makes the server's folder, runs the server as its child, and takes orders as lines of JSON. When its
standard input ends, however the tests died, it kills what it started and removes the folder. A watcher and not an
`atexit` or a signal that the kernel sends at a parent's death: the first does not run after SIGKILL, and the second
would have to be asked for between fork and exec of a process with many threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
IPC_RMID = 0
SOCKET_LENGTH = 107 if LINUX else 103
"""Bytes that the path of a Unix socket may have (`sun_path` without its final NUL)."""


def drop_to() -> dict[str, Any]:
    """Return the arguments of `subprocess` that make a child unprivileged: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it as")


def environment() -> dict[str, str]:
    """Return an environment without what would change a server: PG*, locale and time zone of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


def descendants(of: int) -> set[int]:
    """Return the processes below one, zombies not counted."""
    parents: dict[int, int] = {}
    if LINUX:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    # After the name, which may itself hold blanks and brackets: the state and the parent.
                    state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                    if state != "Z":
                        parents[int(entry.name)] = int(parent)
    else:
        with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True) as ps:
            for line in ps.communicate()[0].splitlines():
                pid, above, state = line.split()[:3]
                if not state.startswith("Z") and int(pid) != ps.pid:
                    parents[int(pid)] = int(above)
    found = {of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {of}


class Watcher:
    """Run one server in a folder of its own, for as long as the tests live."""

    def __init__(self) -> None:
        self.libc: Any = ctypes.CDLL(None, use_errno=True)
        if LINUX:
            # Backends whose postmaster was killed become ours, so that they can be counted, killed and reaped.
            self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.account = drop_to()
        self.folder = self.make_folder()
        self.server: subprocess.Popen[bytes] | None = None
        self.status: int | None = None  # of the server's end
        self.known: set[int] = set()  # processes seen below the server; where there is no subreaper, all that we know

    def make_folder(self) -> Path:
        """Make a folder that the server's user can reach and whose sockets' paths are short enough."""
        tried = []
        for place in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
            try:
                folder = Path(tempfile.mkdtemp(prefix="safedb-pg-", dir=place)).resolve()
            except OSError as error:
                tried.append(str(error))
                continue
            if self.account:
                os.chown(folder, self.account["user"], self.account["group"])
            if len(os.fsencode(folder / ".s.PGSQL.65535.lock")) > SOCKET_LENGTH:
                tried.append(f"{place}: too long for a socket's path")
            elif not self.reach([str(folder)]):
                tried.append(f"{place}: user {self.account.get('user')} cannot reach it")
            else:
                return folder
            folder.rmdir()
        raise RuntimeError(f"no folder for a server's data: {'; '.join(tried)}")

    def reach(self, paths: list[str]) -> bool:
        """Tell whether the server's user may enter (a folder) or run (a file) all of these."""
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                if self.account:
                    os.setgroups([])
                    os.setgid(self.account["group"])
                    os.setuid(self.account["user"])
                code = 0 if all(os.access(path, os.R_OK | os.X_OK) for path in paths) else 1
            os._exit(code)
        return os.waitpid(child, 0)[1] == 0

    def run(self, argv: list[str]) -> dict[str, Any]:
        """Run a program to its end as the server's user."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment(),
                check=False,
                **self.account,
            )
        except OSError as error:
            return {"status": -1, "output": str(error)}
        return {"status": done.returncode, "output": done.stdout.decode(errors="replace")}

    def spawn(self, argv: list[str]) -> dict[str, Any]:
        """Start the server."""

        def die_with_us() -> None:
            # Only for the case that somebody kills this process; it has one thread, so code before exec is safe here.
            if LINUX:
                self.libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0)

        with open(self.folder / "log", "ab") as log:
            self.server = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(),
                start_new_session=True,
                preexec_fn=die_with_us,
                **self.account,
            )
        self.status = None
        return {"pid": self.server.pid}

    def reap(self) -> None:
        """Take note of the processes that have ended, the server's orphans included."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if self.server is not None and pid == self.server.pid:
                    self.server.returncode = self.status = os.waitstatus_to_exitcode(status)
                    self.server = None

    def family(self) -> set[int]:
        """Return the processes of the server that live."""
        below = descendants(os.getpid())
        if LINUX:
            return below
        for pid in self.known - below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                below.add(pid)
        self.known = below
        return below

    def poll(self) -> dict[str, Any]:
        """Tell whether the server runs, its status when it does not, and how many processes it left behind."""
        self.reap()
        running = self.server is not None
        return {"running": running, "status": self.status, "left": 0 if running else len(self.family())}

    def send(self, number: int) -> dict[str, Any]:
        """Send a signal to the server itself."""
        self.reap()
        if self.server is None:
            return {"sent": False}
        self.family()
        os.kill(self.server.pid, number)
        return {"sent": True}

    def kill(self) -> dict[str, Any]:
        """Kill the server and every process of it."""
        self.reap()
        if self.server is not None:
            os.kill(
                self.server.pid, signal.SIGSTOP
            )  # or it would start others while we count, and clean up after the dead
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return {}

    def end(self) -> None:
        """Leave nothing: no process, no shared memory, no folder."""
        if self.server is not None:
            self.send(signal.SIGQUIT)
            self.wait(3.0)
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            self.kill()
            if self.wait(1.0):
                break
        # A killed postmaster leaves its segment of System V shared memory; its lock file says which.
        with contextlib.suppress(OSError, IndexError, ValueError):
            segment = (self.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
            self.libc.shmctl(int(segment), IPC_RMID, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self, seconds: float) -> bool:
        """Wait until no process of the server is left."""
        deadline = time.monotonic() + seconds
        while (state := self.poll())["running"] or state["left"]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def serve(self) -> None:
        """Take orders until there is nobody to give them."""
        tests = os.getppid()
        self.answer({"folder": str(self.folder)})
        orders = b""
        while True:
            # Not the end of the pipe alone: a process that the tests forked may hold its other end open.
            if os.getppid() != tests:
                return
            if not select.select([0], [], [], 0.5)[0]:
                self.reap()
                continue
            data = os.read(0, 65536)
            if not data:
                return
            orders += data
            while b"\n" in orders:
                line, _, orders = orders.partition(b"\n")
                order = json.loads(line)
                if order["do"] == "end":
                    return
                try:
                    answer = self.obey(**order)
                except (OSError, subprocess.SubprocessError) as error:
                    answer = {"error": str(error)}
                self.answer(answer)

    def obey(self, do: str, argv: list[str] | None = None, number: int = 0) -> dict[str, Any]:
        """Carry out one order."""
        match do:
            case "run":
                return self.run(argv or [])
            case "reach":
                return {"reached": self.reach(argv or [])}
            case "spawn":
                return self.spawn(argv or [])
            case "poll":
                return self.poll()
            case "signal":
                return self.send(number)
            case "kill":
                return self.kill()
        raise ValueError(do)

    def answer(self, answer: dict[str, Any]) -> None:
        """Answer one order; the account is told with each, for the tests may have to give it files."""
        line = {**answer, "account": [self.account["user"], self.account["group"]] if self.account else None}
        os.write(1, json.dumps(line).encode() + b"\n")


def main() -> None:
    """Be the watcher of one server."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    try:
        watcher = Watcher()
    except (RuntimeError, OSError) as error:
        os.write(1, json.dumps({"error": str(error)}).encode() + b"\n")
        return
    try:
        with contextlib.suppress(BrokenPipeError):
            watcher.serve()
    finally:
        watcher.end()


if __name__ == "__main__":
    main()
