"""Closed and open loop, on a clock that only the calls move."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from benchmarks import loops
from benchmarks.case import Work
from benchmarks.loops import Actor, closed, opened
from benchmarks.peers.peer import RANGE, Lane
from benchmarks.verify import Wrong

STALL = 0.5
CALL = 1 / 1024  # a sum of such is exact


class Clock:
    """Be the time; it passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Stalling(Lane):
    """Take `CALL` for each call, but much longer for one of them; fail in those that are told."""

    def __init__(self, clock: Clock, *, stalled: int = -1, stall: float = STALL, fail: Sequence[int] = ()) -> None:
        self.clock, self.stalled, self.stall, self.fail = clock, stalled, stall, fail
        self.numbers: list[int] = []

    def write(self, thread: int, number: int) -> None:
        self.numbers.append(number)
        self.clock.sleep(self.stall if number == self.stalled else CALL)
        if number in self.fail:
            raise ConnectionError

    def point(self, key: int) -> Sequence[Any]:
        self.clock.sleep(CALL)
        return (key, "x")

    def range(self, key: int) -> Sequence[Any]:
        self.clock.sleep(CALL)
        return [(at, at, "x") for at in range(key, key + RANGE)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(loops, "_clock", made)
    monkeypatch.setattr(loops, "_sleep", made.sleep)
    return made


def acting(lane: Lane, work: Work = "write") -> Actor:
    return Actor(lane, work, 0, 1000)


def arriving(rate: int) -> Iterator[float]:
    return (number / rate for number in itertools.count())


def test_an_open_loop_shows_a_stall_to_all_that_arrive_in_it(clock: Clock) -> None:
    """Written down: one call stalls for half a second; a closed loop sees one long wait, an open one hundreds."""
    actor = acting(Stalling(clock, stalled=10))
    closed(actor, 0.0, 1.0)
    assert [wait for wait in actor.writes if wait > 2 * CALL] == [STALL]

    clock.now = 0.0
    actor = acting(Stalling(clock, stalled=10))
    opened(actor, arriving(256), 1.0)
    assert len(actor.writes) == 256
    assert sum(wait > STALL / 2 for wait in actor.writes) >= 256 * STALL / 2
    assert max(actor.writes) == STALL
    assert actor.unserved == 0


def test_what_arrives_and_is_not_begun_before_the_end_counts_as_unserved(clock: Clock) -> None:
    """Written down: the call that arrives at 0.5 stalls until 2.0, the window ends at 1.0."""
    actor = acting(Stalling(clock, stalled=256, stall=1.5))
    opened(actor, arriving(512), 1.0)
    assert actor.done == 256
    assert actor.unserved == 255
    assert len(actor.writes) == 512
    assert list(actor.writes[-255:]) == [1.0 - number / 512 for number in range(257, 512)]
    assert clock.now == 2.0


def test_an_open_loop_that_keeps_up_waits_for_the_next_arrival(clock: Clock) -> None:
    actor = acting(Stalling(clock))
    opened(actor, arriving(64), 1.0)
    assert (actor.done, actor.unserved) == (64, 0)
    assert set(actor.writes) == {CALL}


def test_only_calls_that_end_in_the_window_count_and_waits_that_reach_into_it_are_kept(clock: Clock) -> None:
    """Written down: the window is 1.0 to 2.0; a call begun before it ends in it, and one begun in it ends after it."""
    actor = acting(Stalling(clock, stalled=1000))  # from 0.977 to 1.477
    closed(actor, 1.0, 2.0)
    assert actor.writes[0] == STALL
    assert actor.done == len(actor.writes) == 1 + round((2.0 - 1000 * CALL - STALL) / CALL)

    clock.now = 0.0
    actor = acting(Stalling(clock, stalled=2000))  # from 1.953 to 2.453
    closed(actor, 1.0, 2.0)
    assert actor.writes[-1] == STALL
    assert actor.done == len(actor.writes) - 1
    assert actor.number == 2001


def test_the_number_of_a_call_that_raised_is_not_used_again(clock: Clock) -> None:
    """Written down: two calls raise; their rows may be there, so they are doubtful, and their waits count."""
    lane = Stalling(clock, fail=(3, 5))
    actor = acting(lane)
    closed(actor, 0.0, 1.0)
    assert lane.numbers == list(range(1024))
    assert actor.doubtful == [3, 5]
    assert actor.errors == {"ConnectionError": 2}
    assert (actor.done, len(actor.writes)) == (1022, 1024)


def test_mixed_work_reads_nine_times_of_ten(clock: Clock) -> None:
    actor = acting(Stalling(clock), "mixed")
    closed(actor, 0.0, 4.0)
    assert len(actor.reads) + len(actor.writes) == actor.done == 4096
    assert 0.07 < len(actor.writes) / 4096 < 0.13


@pytest.mark.parametrize("work", ["point", "range"])
def test_a_read_that_gives_another_row_ends_the_run(clock: Clock, work: Work) -> None:
    class Beside(Stalling):
        def point(self, key: int) -> Sequence[Any]:
            return super().point(key + 1)

        def range(self, key: int) -> Sequence[Any]:
            return super().range(key)[:-1]

    closed(acting(Stalling(clock), work), 0.0, 1.0)
    with pytest.raises(Wrong, match="was read as"):
        closed(acting(Beside(clock), work), 1.0, 2.0)
