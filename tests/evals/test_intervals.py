"""Intervals against numbers worked by hand from the cited equations."""

import math

import jax
import numpy as np
import pytest

from jaxgpt.evals import intervals

Z = 1.959963984540054  # the normal quantile of 0.975


def test_wilson_by_hand():
    # 8 of 10: p = 0.8; z^2 = 3.8415; middle = 0.8 + 0.19207 = 0.99207;
    # reach = 1.96 sqrt(0.016 + 0.0096037) = 0.31358; both divided by 1.38415: 0.49016, 0.94331
    low, high = intervals.wilson(8, 10)
    assert low == pytest.approx(0.49016, abs=1e-5)
    assert high == pytest.approx(0.94331, abs=2e-5)


def test_wilson_ends_solve_the_score_equation():
    # The interval is where |p - end| = z sqrt(end (1 - end) / n).
    for successes, count in ((1, 7), (30, 50), (199, 200)):
        for end in intervals.wilson(successes, count):
            assert abs(successes / count - end) == pytest.approx(
                Z * math.sqrt(end * (1 - end) / count), rel=1e-9
            )


def test_wilson_at_the_ends():
    # 0 of n: 0 and z^2 / (n + z^2).
    assert intervals.wilson(0, 50) == pytest.approx((0.0, Z**2 / (50 + Z**2)))
    assert intervals.wilson(50, 50) == pytest.approx((1 - Z**2 / (50 + Z**2), 1.0))
    assert intervals.wilson(0, 3).low == 0.0 and intervals.wilson(3, 3).high == 1.0


def test_wilson_covers_what_it_promises():
    # Exact coverage: the binomial probability of the counts whose interval holds the truth.
    count, truth = 60, 0.9
    covered = sum(
        math.comb(count, k) * truth**k * (1 - truth) ** (count - k)
        for k in range(count + 1)
        if intervals.wilson(k, count).low <= truth <= intervals.wilson(k, count).high
    )
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize("successes, count", [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, count):
    with pytest.raises(ValueError, match="cannot be"):
        intervals.wilson(successes, count)


def test_mean_interval_by_hand():
    # 1, 2, 3: mean 2, s = 1, t(2, 0.975) = 4.3027, reach = 4.3027 / sqrt(3) = 2.4841
    low, high = intervals.mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((-0.48414, 4.48414), abs=1e-4)
    low, high = intervals.mean_interval(np.array([1.0, 2.0, 3.0]), distribution="normal")
    assert (low, high) == pytest.approx((2 - Z / math.sqrt(3), 2 + Z / math.sqrt(3)))


def test_mean_interval_refuses_one_value():
    with pytest.raises(ValueError, match="N >= 2"):
        intervals.mean_interval(np.array([1.0]))
    with pytest.raises(ValueError, match="'t' or 'normal'"):
        intervals.mean_interval(np.array([1.0, 2.0]), distribution="cauchy")


def test_bootstrap_agrees_with_the_normal_interval_and_repeats():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    rng = jax.random.key(1)
    bootstrap = intervals.bootstrap_interval(rng, values, resamples=2000)
    assert bootstrap == intervals.bootstrap_interval(rng, values, resamples=2000)
    assert bootstrap != intervals.bootstrap_interval(jax.random.key(2), values, resamples=2000)
    assert bootstrap == pytest.approx(intervals.mean_interval(values, distribution="normal"), abs=0.04)


def test_bootstrap_of_a_constant_has_no_width():
    assert intervals.bootstrap_interval(jax.random.key(0), np.full(9, 4.0), statistic=np.median) == (4.0, 4.0)


@pytest.mark.parametrize(
    "count, correct, k, expected",
    [
        (5, 2, 1, 2 / 5),  # pass@1 is the share that is right
        (5, 2, 2, 1 - 3 / 10),  # C(3,2) / C(5,2)
        (4, 1, 3, 1 - 1 / 4),  # C(3,3) / C(4,3)
        (5, 0, 3, 0.0),
        (5, 3, 3, 1.0),  # only two are wrong: three always hold a right one
        (5, 5, 5, 1.0),
    ],
)
def test_pass_at_k_by_hand(count, correct, k, expected):
    assert intervals.pass_at_k(count, correct, k) == pytest.approx(expected)


def test_pass_at_k_is_unbiased_and_does_not_overflow():
    # The mean over every outcome of 4 completions, each right with chance 0.3, is exactly 1 - 0.7^2.
    p, count, k = 0.3, 4, 2
    mean = sum(
        math.comb(count, c) * p**c * (1 - p) ** (count - c) * intervals.pass_at_k(count, c, k)
        for c in range(count + 1)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k)
    assert 0 < intervals.pass_at_k(100_000, 1, 50_000) < 1


def test_pass_at_k_refuses_more_looks_than_completions():
    with pytest.raises(ValueError, match="k <= count"):
        intervals.pass_at_k(3, 1, 4)
