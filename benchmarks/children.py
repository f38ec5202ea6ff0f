"""Processes that are told what to do, and tell what came of it, one line of JSON at a time. Both ends of the line."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Message = dict[str, Any]


class Lost(Exception):
    """Say why nothing more will come of a child: its own words, or how it ended, or that it hangs."""


class Child:
    """Be one ``python -m module`` in a fresh interpreter, in a process group that is gone when this is left.

    What it writes to its standard error goes to the file ``log``.
    """

    def __init__(self, module: str, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log, self._heard = log, b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env=None if environment is None else {**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def say(self, message: Message) -> None:
        """Tell it something."""
        with suppress(BrokenPipeError):  # `hear` will know why
            self._to.write(json.dumps(message).encode() + b"\n")
            self._to.flush()

    def hear(self, end: float) -> Message:
        """Wait for its next words, but not beyond ``end`` (`time.monotonic`)."""
        while b"\n" not in self._heard:
            if not select.select([self._from], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Lost("a process hangs: it was ended")
            more = os.read(self._from.fileno(), 1 << 16)
            if not more:
                raise Lost(self._how_it_ended())
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        message: Message = json.loads(line)
        if "error" in message:
            raise Lost(message["error"])
        return message

    def processor(self) -> float:
        """Give the processor seconds it has used so far; 0.0 where the system does not tell.

        It is asked from outside: the threads of a busy process may keep it from looking itself for a long time.
        """
        if sys.platform != "linux":
            return 0.0
        return time.clock_gettime(~self._process.pid << 3 | 2)  # what clock_getcpuclockid(3) gives

    def end(self) -> None:
        """Kill it and all that it has started."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _how_it_ended(self) -> str:
        self.end()
        last = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        return f"a process ended in the middle, with {self._process.returncode}: {last}".removesuffix(": ")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        self._from.close()
        with suppress(BrokenPipeError):
            self._to.close()


class Parent:
    """Be the child's end of the line. Whatever else is printed in this process goes to standard error."""

    def __init__(self) -> None:
        self._to = os.dup(1)
        os.dup2(2, 1)

    def say(self, message: Message) -> None:
        """Tell it something."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:
            left = left[os.write(self._to, left) :]

    def hear(self) -> Message:
        """Wait for its next words; when it is gone, so is this process."""
        line = sys.stdin.readline()
        if not line:
            os._exit(1)
        message: Message = json.loads(line)
        return message


def attend(work: Callable[[Parent], object]) -> None:
    """Do a child's work; what it raises is told to the parent, and the process ends at once, whatever still runs."""
    parent = Parent()
    try:
        work(parent)
    except BaseException as error:
        traceback.print_exc()
        parent.say({"error": "".join(traceback.format_exception_only(error)).strip()})
        sys.stderr.flush()
        os._exit(1)
