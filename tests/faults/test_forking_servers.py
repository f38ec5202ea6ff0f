"""Servers that load the application and then fork: its handle, opened at import, serves every worker.

The servers are real: gunicorn with ``--preload`` and Celery's prefork pool, in a process group that is gone at the end.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from reliability import Record, form
from support import Crew, sqlite3, unmeasured, wait_until

import safedb

APPS = Path(__file__).with_name("apps")
PATIENCE = 60.0
WORKERS = 3
CLIENTS = 6

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.slow,
]


@contextmanager
def server(order: list[str], log: Path, environ: dict[str, str], pass_fds: tuple[int, ...] = ()) -> Iterator[Any]:
    """Run a server in a process group of its own; nobody of it outlives the block."""
    paths = os.pathsep.join([str(APPS), *(path for path in sys.path if path)])
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", *order],
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
            cwd=log.parent,
            env={**unmeasured(), "PYTHONPATH": paths, **environ},
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Web:
    """Ask a web server, and keep book of what it acknowledged."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []  # the worker died over it
        self.pids: set[int] = set()
        self._guard = threading.Lock()

    def ask(self, method: str, name: str) -> tuple[int, str]:
        """Send one request on a connection of its own; give the status and the count that it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request(method, f"/{name}")
            response = connection.getresponse()
            status, (count, _, pid) = response.status, response.read().decode().partition(" ")
        finally:
            connection.close()
        if status == 200:
            with self._guard:
                self.pids.add(int(pid))
        return status, count

    def write(self, name: str) -> None:
        """Write one, and read it from whichever worker answers next; only a killed worker may owe the answer."""
        try:
            status, count = self.ask("POST", name)
        except (ConnectionError, http.client.HTTPException):
            self.unknown.append(name)
            return
        assert (status, count) == (200, "1")
        self.acknowledged.append(name)
        with suppress(ConnectionError, http.client.HTTPException):
            assert self.ask("GET", name) == (200, "1"), "it was acknowledged, and is not there"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", ["sync", "gthread"])
def test_the_workers_of_gunicorn_share_what_was_opened_before_the_fork(
    backend: Any, target: Any, workers: str, crew: Crew, tmp_path: Path, record: Record
) -> None:
    """H34: with ``--preload``; also on PostgreSQL, where the workers must not share their parent's connections.

    Written down: the application writes at import; clients write and read what they wrote; SIGHUP (all workers are
    replaced by new ones); a worker is killed with -9; the server ends by SIGTERM. Whatever was acknowledged is there,
    once, and nothing else but what was asked for.
    """
    each, kills = form(15, 300), form(1, 12)
    url = target if isinstance(target, str) else f"sqlite:///{target}"
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        bind, number = listener.fileno(), listener.getsockname()[1]
        threads = ["--threads", "4"] if workers == "gthread" else []
        order = ["gunicorn", "--preload", "-w", str(WORKERS), "-k", workers, *threads, "-b", f"fd://{bind}"]
        web = Web(number)
        settings = tmp_path / "settings.py"
        settings.write_text("control_socket_disable = True\n")  # newer versions open one in the user's home
        with server(
            [*order, "-c", str(settings), "-t", "120", "--graceful-timeout", "5", "web_app:app"],
            log,
            {"APP_DATABASE": url},
            (bind,),
        ) as process:
            assert web.ask("GET", "imported") == (200, "1"), log.read_text()

            def work(client: int) -> None:
                for turn in range(each):
                    web.write(f"{client} {turn}".replace(" ", "-"))

            clients = [crew(work, client) for client in range(CLIENTS)]
            steps = 2 * kills + 1  # of which one is the reload
            for step in range(1, steps + 1):
                goal = step * each * CLIENTS // (steps + 1)
                wait_until(lambda goal=goal: len(web.acknowledged) >= goal, "the clients", PATIENCE)  # type: ignore[misc]
                if step % 2:
                    with web._guard:
                        web.pids.clear()
                    if step == 1:
                        process.send_signal(signal.SIGHUP)
                else:
                    wait_until(lambda: bool(web.pids), "an answer", PATIENCE)
                    with suppress(ProcessLookupError):
                        os.kill(max(web.pids), signal.SIGKILL)
            for client in clients:
                client.result()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, log.read_text()
    with safedb.connect(target) as db:
        rows = Counter(name for (name,) in db.execute("SELECT name FROM entry"))
        assert db.check() == [] if backend.name == "sqlite" else True
    asked = {f"{client}-{turn}" for client in range(CLIENTS) for turn in range(each)}
    assert rows.pop("imported") == 1
    assert set(web.acknowledged) <= set(rows) <= asked
    assert set(rows.values()) == {1}, "a write was doubled"
    assert len(web.acknowledged) + len(web.unknown) == len(asked)
    assert "Traceback" not in log.read_text()
    record.add(rounds=1, kills=kills, acknowledged=len(web.acknowledged), lost=0)
    record.note(answers_lost_to_kills=len(web.unknown))


@pytest.mark.timeout(600)
def test_the_pool_of_celery_shares_what_was_opened_before_the_fork(tmp_path: Path, record: Record) -> None:
    """H34: prefork, with processes that are replaced after a few tasks; each task has written exactly once.

    Written down: tasks are sent into a folder; a worker of three processes, each of five tasks, does them; SIGTERM.
    """
    tasks = form(40, 1000)
    (tmp_path / "queue" / "control").mkdir(parents=True)
    path = tmp_path / "app.db"
    environ = {"APP_DATABASE": f"sqlite:///{path}", "APP_QUEUE": str(tmp_path / "queue")}
    with server(["task_app", "send", str(tasks)], tmp_path / "sender.log", environ) as sender:
        assert sender.wait(PATIENCE) == 0, (tmp_path / "sender.log").read_text()
    order = ["celery", "-A", "task_app", "worker", "-P", "prefork", "-c", str(WORKERS), "--max-tasks-per-child", "5"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
    log = tmp_path / "log"
    with server([*order, *quiet], log, environ) as worker, safedb.connect(path) as db:

        def done() -> bool:
            assert worker.poll() is None, log.read_text()
            return bool(db.execute("SELECT count(*) >= ? FROM entry", (tasks,)).scalar())

        wait_until(done, "the tasks", 400.0)
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE)
    outsider = sqlite3.connect(path)
    names = Counter(name for (name,) in outsider.execute("SELECT name FROM entry"))
    processes = outsider.execute("SELECT count(DISTINCT pid) FROM entry").fetchone()[0]
    assert outsider.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    outsider.close()
    assert names == Counter(f"task {number}" for number in range(tasks))
    assert processes > WORKERS
    assert "Traceback" not in log.read_text()
    record.add(rounds=1, acknowledged=tasks, lost=0)
    record.note(processes=processes)
