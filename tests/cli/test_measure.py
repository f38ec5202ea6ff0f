"""The histogram and the measures of fairness say what was counted."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safedb.cli.stress.measure import GROWTH, LONGEST, SHORTEST, Histogram, jain, slowest_to_fastest

durations = st.lists(st.integers(SHORTEST, LONGEST), min_size=1, max_size=200)


def histogram(nanoseconds: list[int]) -> Histogram:
    made = Histogram()
    for duration in nanoseconds:
        made.add(duration)
    return made


@given(durations, st.sampled_from([0.1, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_at_most_one_per_cent_above_the_exact_one(nanoseconds: list[int], percent: float) -> None:
    rank = max(math.ceil(len(nanoseconds) * percent / 100 - 1e-9), 1)
    exact = sorted(nanoseconds)[rank - 1] / 1e9
    measured = histogram(nanoseconds).percentile(percent)
    assert measured is not None
    assert exact * (1 - 1e-9) <= measured <= exact * GROWTH * (1 + 1e-9)


@given(durations, durations)
def test_merged_histograms_are_the_histogram_of_all(one: list[int], other: list[int]) -> None:
    assert histogram(one).merge([histogram(other)]) == histogram(one + other)


@given(durations)
def test_the_maximum_and_the_mean_are_exact(nanoseconds: list[int]) -> None:
    made = histogram(nanoseconds)
    assert made.maximum == max(nanoseconds) / 1e9
    assert made.mean == pytest.approx(sum(nanoseconds) / len(nanoseconds) / 1e9)
    assert pickle.loads(pickle.dumps(made)) == made


@given(durations)
def test_the_shares_that_took_longer_fall_to_nought(nanoseconds: list[int]) -> None:
    points = histogram(nanoseconds).exceeding()
    assert [seconds for seconds, _ in points] == sorted({seconds for seconds, _ in points})
    shares = [share for _, share in points]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0


def test_what_is_outside_the_buckets_is_counted_in_the_first_and_the_last() -> None:
    made = histogram([0, 1, 10 * LONGEST])
    assert made.count == 3
    assert made.percentile(50) == SHORTEST / 1e9
    assert made.percentile(99.9) == made.maximum == 10 * LONGEST / 1e9


def test_an_empty_histogram_knows_nothing() -> None:
    assert Histogram().percentile(50) is None
    assert Histogram().maximum is None
    assert Histogram().mean is None
    assert Histogram().exceeding() == []


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_jains_index_lies_between_one_nth_and_one(shares: list[int]) -> None:
    index = jain(shares)
    if not any(shares):
        assert index is None
    else:
        assert index is not None
        assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9


def test_fairness_of_known_shares() -> None:
    assert jain([5, 5, 5, 5]) == 1
    assert jain([8, 0, 0, 0]) == 0.25
    assert jain([]) is None
    assert slowest_to_fastest([2, 4]) == 0.5
    assert slowest_to_fastest([0, 4]) == 0
    assert slowest_to_fastest([0, 0]) is None
    assert slowest_to_fastest([]) is None
