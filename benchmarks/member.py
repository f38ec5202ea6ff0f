"""One process of a case: ``python -m benchmarks.member``, which is started and told what to do by `lab`.

It imports only what the peer needs, so that its memory is the peer's.
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks import peers
from benchmarks.case import Case, Scheduler, Waits
from benchmarks.children import Message, Parent, attend
from benchmarks.loops import Actor, burning, closed, opened, sleep_until
from benchmarks.peak import peak
from benchmarks.peers.peer import Peer, Place

WARMING = 0.15  # seconds that all threads of a process together may warm up: with slow flushes not all come to it
RUNNING_IN = 0.1  # seconds before the window in which they all call already
BURNERS = 2


class Crew:
    """Be the threads of this process. ``number``: which process it is; its threads are numbered on from the last's."""

    def __init__(self, peer: Peer, case: Case, number: int) -> None:
        self._peer, self._case, self._number = peer, case, number
        self.actors: list[Actor] = []
        self.failures: list[BaseException] = []
        self._window = (0.0, 0.0)
        self._arrivals = itertools.count(number, case.processes)
        self._opening, self._ready, self._go = threading.Lock(), threading.Semaphore(0), threading.Event()
        self._warm_until = time.monotonic() + WARMING
        first = number * case.threads
        self._threads = [
            threading.Thread(target=self._run, args=(first + lane,), name=f"lane-{lane}", daemon=True)
            for lane in range(case.threads)
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._ready.acquire()
        self._raise()
        self.actors.sort(key=lambda actor: actor.thread)

    def work(self, begin: float) -> None:
        """Let all call from ``begin`` on as long as the case says, and finish."""
        self._window = (begin, begin + self._case.seconds)
        with burning(BURNERS if self._case.beside == "burning" and self._number == 0 else 0):
            self._go.set()
            for thread in self._threads:
                thread.join()
        self._raise()

    def _run(self, thread: int) -> None:
        try:
            try:
                # One after the other: that is warm enough, and a thousand that wait for each other would take long.
                with self._opening:
                    lane = self._peer.lane()
                    actor = Actor(lane, self._case.work, thread, self._case.rows)
                    self.actors.append(actor)
                    if time.monotonic() < self._warm_until:
                        actor.warm_up()
            finally:
                self._ready.release()
            self._go.wait()
            begin, end = self._window
            rate = self._case.rate
            if rate is None:
                sleep_until(begin - RUNNING_IN)
                closed(actor, begin, end)
            else:
                opened(actor, (begin + arrival / rate for arrival in self._arrivals), end)
            lane.rest()
        except BaseException as error:
            self.failures.append(error)

    def _raise(self) -> None:
        if self.failures:
            raise self.failures[0]


def work(parent: Parent) -> None:
    """Do what the lab says, step by step."""
    order = parent.hear()
    case = Case.from_json(order["case"])
    sys.setswitchinterval(case.switch)
    schedule(case.scheduler)
    kind = peers.peer(case.peer)
    if case.work not in kind.works:
        raise NotImplementedError(f"{kind.name} cannot do this: {case.work}")
    if case.processes > 1 and not kind.many_processes:
        raise NotImplementedError(f"{kind.name} is for one process")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    parent.say({"kind": kind.kind, "verifies": kind.verify is not Peer.verify})

    parent.hear()
    peer = kind(place_from_json(order["place"]))
    before = peak()
    crew = Crew(peer, case, order["number"])
    parent.say({"before": before})

    crew.work(parent.hear()["begin"])
    parent.say({"memory": peak(), **told(crew.actors)})

    parent.hear()
    peer.settle()
    peer.close()
    parent.say({})


def schedule(scheduler: Scheduler) -> None:
    """Ask the kernel to run the threads that are started from now on otherwise than usual."""
    if scheduler and not hasattr(os, "SCHED_BATCH"):
        raise NotImplementedError(f"this system's scheduler cannot be asked for this: {scheduler}")
    if scheduler == "batch":
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    elif scheduler == "one core":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def told(actors: list[Actor]) -> Message:
    """Tell what all threads did. ``rows``: by thread, the next number, and the numbers whose call raised."""
    waits = {
        "write": Waits.of(itertools.chain.from_iterable(actor.writes for actor in actors)),
        "read": Waits.of(itertools.chain.from_iterable(actor.reads for actor in actors)),
    }
    return {
        "counts": [actor.done for actor in actors],
        "waits": {kind: some.to_json() for kind, some in waits.items() if some.count},
        "errors": sum((actor.errors for actor in actors), Counter()),
        "unserved": sum(actor.unserved for actor in actors),
        "rows": [(actor.thread, actor.number, actor.doubtful) for actor in actors],
    }


def place_from_json(plain: Message) -> Place:
    """Read what the lab wrote of a place."""
    return Place(**{**plain, "path": Path(plain["path"])})


if __name__ == "__main__":
    attend(work)
