"""One process of a run: its writer threads, its readers, and the troublemakers beside them."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from safedb.cli.stress import source, target, workload
from safedb.cli.stress.tally import ProcessResult, ReaderTally, Tick, WriterTally
from safedb.cli.stress.workload import Hands, Outcome, Place, Side, Transfer

TICK = 0.1  # seconds between two words to the parent
READ_PAUSE = (
    0.001  # seconds between two reads: without it, readers would measure who gets Python's lock, not the database
)
MOST_FAILURES = 1_000  # after so many a writer gives up: on a full disk it would do nothing but count


@dataclass(frozen=True, slots=True)
class Orders:
    """Say what a process has to do; travels to it by pickle. Times are seconds."""

    side: str
    place: Place
    process: int
    threads: int
    readers: int
    cpu_threads: int
    slow_reader: float
    seconds: float
    seed: int
    source: Path | None


def main(orders: Orders, parent: Connection) -> None:
    """Work as told; the parent hears ("ready",), ("tick", Tick) and ("done", ProcessResult) or ("failed", text).

    It says "go" and, to end early, "stop". A parent that is gone means "stop" as well, so that nothing is left running.
    """
    # Ctrl-C reaches every process of the terminal's group: the parent alone decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Warnings of safedb and of the driver's pool would tear the live line; what they tell is in the report.
    for name in ("safedb", "psycopg"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        side = target.engine(orders.place.dialect).open[orders.side](orders.place)
        try:
            result = _work(Crew(orders, side), parent)
        finally:
            side.close()
        if result is not None:
            parent.send(("done", result))
    except (EOFError, BrokenPipeError):
        return  # nobody is left to tell
    except Exception:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        parent.send(("failed", traceback.format_exc()))


def _work(crew: Crew, parent: Connection) -> ProcessResult | None:
    parent.send(("ready",))
    if parent.recv() != "go":
        return None
    try:
        crew.start()
        _follow(crew, parent)
    finally:
        crew.stop()
        crew.join()
    return crew.result()


def _follow(crew: Crew, parent: Connection) -> None:
    """Tell the parent how far we are until the last thread has ended; end early when it says so, or when it is gone."""
    listening = True
    while crew.busy():
        if listening and parent.poll(TICK):
            listening = _hears(parent)
            crew.stop()
        elif not listening:
            time.sleep(TICK)
        crew.watch()
        if listening:
            parent.send(("tick", crew.tick()))


def _hears(parent: Connection) -> bool:
    try:
        parent.recv()
    except EOFError:
        return False
    return True


class Crew:
    """Be all threads of one process. They start together, and end when the time is up or ``stop()`` is called."""

    def __init__(self, orders: Orders, side: Side) -> None:
        self.orders, self.side = orders, side
        self.rows = source.load(orders.source, orders.seed)
        self.over = threading.Event()
        first = orders.process * orders.threads
        self.writers = [WriterTally(worker) for worker in range(first, first + orders.threads)]
        self.readers = [ReaderTally() for _ in range(orders.readers)]
        self.trouble: list[str] = []
        self._begun = self._ended = 0
        self._workers = [self._thread(Writer(self, tally).run, f"writer {tally.worker}") for tally in self.writers]
        for number, reader in enumerate(self.readers):
            self._workers.append(self._thread(Reader(self, reader, number).run, f"reader {number}"))
        self._others = [self._thread(self._burn, f"computing thread {n}") for n in range(orders.cpu_threads)]
        if orders.slow_reader:
            self._others.append(self._thread(self._read_slowly, "the slow reader"))

    def start(self) -> None:
        """Set every thread to work; the clock runs from here."""
        self._begun = time.perf_counter_ns()
        self._ended = self._begun + int(self.orders.seconds * 1e9)
        for thread in self._others + self._workers:
            thread.start()

    def stop(self) -> None:
        """End now: writes under way come to their end, no new ones begin."""
        if not self.over.is_set():
            self._ended = min(self._ended, time.perf_counter_ns())
            self.over.set()

    def watch(self) -> None:
        """End when the time is up, or when no writer and no reader is left."""
        if time.perf_counter_ns() >= self._ended or not any(thread.is_alive() for thread in self._workers):
            self.stop()

    def busy(self) -> bool:
        """Tell whether any thread is still at work."""
        return any(thread.is_alive() for thread in self._workers + self._others)

    def join(self) -> None:
        """Wait until every thread that was started has ended."""
        for thread in self._workers + self._others:
            if thread.ident is not None:
                thread.join()

    def in_time(self, moment: int) -> bool:
        """Tell whether a moment (``perf_counter_ns``) lies before the end."""
        return moment <= self._ended

    def tick(self) -> Tick:
        """Add up how far the threads have come; numbers may be a write or two behind."""
        return Tick(
            writes=sum(tally.acknowledged for tally in self.writers),
            errors=sum(len(tally.rows.failures) + len(tally.transfers.failures) for tally in self.writers),
            longest=max((tally.longest for tally in self.writers), default=0),
        )

    def result(self) -> ProcessResult:
        """Hand over all tallies; only after the last thread has ended."""
        seconds = (self._ended - self._begun) / 1e9
        return ProcessResult(
            self.orders.process, seconds, self.writers, self.readers, self.trouble, self.side.describe()
        )

    def _thread(self, job: Callable[[], None], name: str) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(job,), name=name)

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - a thread that dies silently would make the numbers look good
            self.trouble.append(f"{threading.current_thread().name} failed: {type(error).__name__}: {error}")

    def _burn(self) -> None:
        """Keep the interpreter's lock busy, as a thread that computes does."""
        number = 1
        while not self.over.is_set():
            for _ in range(10_000):
                number = number * 31 % 1_000_003

    def _read_slowly(self) -> None:
        hands = self.side.hands()
        try:
            if not self.over.wait(self.orders.seconds / 10):
                hands.hold(lambda: self.over.wait(self.orders.slow_reader))
        finally:
            hands.close()


class Writer:
    """Write until the time is up: rows mostly, and a transfer now and then."""

    def __init__(self, crew: Crew, tally: WriterTally) -> None:
        self._crew, self._tally, self._rows = crew, tally, crew.rows
        self._random = random.Random(f"writer {tally.worker} of {crew.orders.seed}")  # noqa: S311 - repeatable, not secret
        self._offset = self._random.randrange(len(crew.rows))

    def run(self) -> None:
        """Write, and note every outcome."""
        hands = self._crew.side.hands()
        try:
            over = self._crew.over.is_set
            while not over() and not self._tally.gave_up:
                if self._random.randrange(workload.TRANSFER_SHARE):
                    self._insert(hands)
                else:
                    self._transfer(hands)
        finally:
            hands.close()

    def _insert(self, hands: Hands) -> None:
        ledger = self._tally.rows
        row = self._rows[(self._offset + ledger.attempts) % len(self._rows)]
        begun = time.perf_counter_ns()
        try:
            hands.insert(self._tally.worker, ledger.attempts, row)
        except Exception as error:  # noqa: BLE001 - counted, judged and reported, whatever it is
            ledger.failed(self._judge(error, begun))
        else:
            ended = time.perf_counter_ns()
            ledger.done(ended - begun, in_time=self._crew.in_time(ended))

    def _transfer(self, hands: Hands) -> None:
        ledger = self._tally.transfers
        origin, destination = self._random.sample(range(workload.HOW_MANY_ACCOUNTS), 2)
        amount = self._random.randint(1, workload.HIGHEST_AMOUNT)
        transfer = Transfer(self._tally.worker, ledger.attempts, origin, destination, amount)
        begun = time.perf_counter_ns()
        try:
            moved = hands.transfer(transfer)
        except Exception as error:  # noqa: BLE001 - counted, judged and reported, whatever it is
            ledger.failed(self._judge(error, begun))
            return
        ended = time.perf_counter_ns()
        if moved:
            self._tally.transferred(transfer)
            ledger.done(ended - begun, in_time=self._crew.in_time(ended))
        else:
            self._tally.declined += 1

    def _judge(self, error: Exception, begun: int) -> Outcome:
        self._tally.errors.add(error, time.perf_counter_ns() - begun)
        failures = len(self._tally.rows.failures) + len(self._tally.transfers.failures)
        self._tally.gave_up = failures + 1 >= MOST_FAILURES
        return self._crew.side.judge(error)


class Reader:
    """Read until the time is up: single rows mostly, now and then the sum of all accounts, which must never change."""

    def __init__(self, crew: Crew, tally: ReaderTally, number: int) -> None:
        self._crew, self._tally = crew, tally
        self._random = random.Random(f"reader {crew.orders.process}.{number} of {crew.orders.seed}")  # noqa: S311

    def run(self) -> None:
        """Read, and note what was wrong."""
        hands = self._crew.side.hands()
        try:
            while not self._crew.over.is_set() and self._tally.errors.texts.total() < MOST_FAILURES:
                self._read(hands)
                time.sleep(READ_PAUSE)
        finally:
            hands.close()

    def _read(self, hands: Hands) -> None:
        begun = time.perf_counter_ns()
        try:
            if self._random.randrange(workload.TOTAL_SHARE):
                written = self._crew.writers[0].rows.acknowledged * len(self._crew.writers)
                hands.read_row(self._random.randint(1, max(written, 1)))
            else:
                self._tally.totals += 1
                self._tally.wrong_totals += hands.read_total() != workload.TOTAL
        except Exception as error:  # noqa: BLE001 - counted and reported, whatever it is
            self._tally.errors.add(error, time.perf_counter_ns() - begun)
        else:
            ended = time.perf_counter_ns()
            self._tally.latency.add(ended - begun)
            self._tally.reads += self._crew.in_time(ended)
