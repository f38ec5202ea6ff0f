"""Latencies in logarithmic buckets, and two measures of fairness."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

GROWTH = 1.01  # each bucket ends 1 % above the one before it: that is the error of a percentile
SHORTEST = 1_000  # nanoseconds; anything shorter counts into the first bucket
LONGEST = 100_000_000_000  # nanoseconds; anything longer counts into the last bucket (the maximum stays exact)
_SCALE = 1.0 / math.log(GROWTH)
BUCKETS = math.ceil(math.log(LONGEST / SHORTEST) * _SCALE) + 1


@dataclass(slots=True)
class Histogram:
    """Count durations in buckets of 1 % width from 1 µs to 100 s; keep the longest exactly.

    One thread writes one histogram; histograms are merged when their threads have ended. A histogram can be pickled, so
    it also travels between processes. Durations go in as whole nanoseconds and come out as float seconds.
    """

    counts: array[int] = field(default_factory=lambda: array("Q", bytes(8 * BUCKETS)))
    count: int = 0
    total: int = 0
    longest: int = 0

    def add(self, nanoseconds: int) -> None:
        """Count one duration."""
        if nanoseconds <= SHORTEST:
            bucket = 0
        else:
            bucket = min(math.ceil(math.log(nanoseconds / SHORTEST) * _SCALE), BUCKETS - 1)
        self.counts[bucket] += 1
        self.count += 1
        self.total += nanoseconds
        if nanoseconds > self.longest:
            self.longest = nanoseconds

    def merge(self, others: Iterable[Histogram]) -> Histogram:
        """Return a new histogram that holds this one's counts and those of the others."""
        merged = Histogram(array("Q", self.counts), self.count, self.total, self.longest)
        for other in others:
            for bucket, count in other.occupied():
                merged.counts[bucket] += count
            merged.count += other.count
            merged.total += other.total
            merged.longest = max(merged.longest, other.longest)
        return merged

    def occupied(self) -> Iterator[tuple[int, int]]:
        """Give (bucket, count) of each bucket that is not empty, shortest first."""
        return ((bucket, count) for bucket, count in enumerate(self.counts) if count)

    def edge(self, bucket: int) -> float:
        """Return the upper end of a bucket in seconds, never above the longest duration seen."""
        return min(SHORTEST * GROWTH**bucket, float(self.longest)) / 1e9

    def percentile(self, percent: float) -> float | None:
        """Return the duration in seconds that ``percent`` of all do not exceed; None if nothing was counted."""
        if not self.count:
            return None
        wanted = min(max(math.ceil(self.count * percent / 100 - 1e-9), 1), self.count)
        seen = 0
        for bucket, count in self.occupied():
            seen += count
            if seen >= wanted and bucket < BUCKETS - 1:
                return self.edge(bucket)
        return self.maximum

    @property
    def maximum(self) -> float | None:
        """Give the longest duration in seconds, exactly; None if nothing was counted."""
        return self.longest / 1e9 if self.count else None

    @property
    def mean(self) -> float | None:
        """Give the mean duration in seconds, exactly; None if nothing was counted."""
        return self.total / self.count / 1e9 if self.count else None

    def exceeding(self) -> list[tuple[float, float]]:
        """Return (seconds, share of all that took longer) of each occupied bucket, shortest first."""
        points, left = [], self.count
        for bucket, count in self.occupied():
            left -= count
            points.append((self.edge(bucket), left / self.count))
        return points


def jain(shares: Sequence[float]) -> float | None:
    """Return Jain's fairness index: 1 when all got the same, 1/n when one of n got everything; None without anything.

    See Jain, Chiu and Hawe, "A quantitative measure of fairness", DEC-TR-301 (1984).
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def slowest_to_fastest(shares: Sequence[float]) -> float | None:
    """Return the smallest share divided by the largest: 1 is even, 0 means that somebody got nothing."""
    return min(shares) / max(shares) if shares and max(shares) else None
