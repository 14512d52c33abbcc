"""How sure a score is: intervals for proportions and means, and pass@k. Pure mathematics on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import ndtri, stdtrit


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


def wilson(successes: int, count: int, *, level: float = 0.95) -> Interval:
    """The score interval of a proportion: honest near 0 and 1, where the textbook's p +- z*sqrt(pq/n) is not.

    With p = successes / count and z the normal quantile of (1 + level) / 2:

        (p + z^2 / 2n  +-  z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    the two ends at which (successes / count - end)^2 = z^2 end (1 - end) / count.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).

    Args:
      successes: how many of them were right, 0 <= successes <= count.
      count: how many were tried, at least 1.
      level: the interval's coverage, strictly between 0 and 1.

    Raises:
      ValueError: a count that cannot be, or a level outside (0, 1).

    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(
            f"successes: {successes} of {count} cannot be; 0 <= successes <= count and count >= 1"
        )
    z = _quantile(level)
    p = successes / count
    middle = p + z**2 / (2 * count)
    reach = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    # At the two ends the formula gives 0 and 1 exactly; in floating point it misses them by a rounding error.
    low = 0.0 if successes == 0 else (middle - reach) / scale
    high = 1.0 if successes == count else (middle + reach) / scale
    return Interval(low, high)


def mean_interval(values: np.ndarray, *, level: float = 0.95, distribution: str = "t") -> Interval:
    """The interval of a mean, from the sample's own spread.

        mean(x)  +-  q * s / sqrt(n),    s^2 = sum (x - mean(x))^2 / (n - 1)

    where q is the quantile of (1 + level) / 2 of Student's t with n - 1 degrees of freedom, or of the normal.

    Source: Student, "The Probable Error of a Mean" (1908); its limit for large n is the normal interval.

    Args:
      values: [N] measurements, N at least 2 (one measurement says nothing about spread).
      level: the interval's coverage, strictly between 0 and 1.
      distribution: "t", right at any N for measurements that are roughly normal, or "normal", its limit.

    Raises:
      ValueError: fewer than 2 values, a shape other than [N], or another distribution.

    >>> low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    values = _vector(values, at_least=2)
    if distribution not in ("t", "normal"):
        raise ValueError(f"distribution: {distribution!r}; choose 't' or 'normal'")
    normal = _quantile(level)
    quantile = normal if distribution == "normal" else float(stdtrit(len(values) - 1, (1 + level) / 2))
    middle = float(np.mean(values))
    reach = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(middle - reach, middle + reach)


def bootstrap_interval(
    rng: jax.Array,
    values: np.ndarray,
    *,
    statistic: Callable[[np.ndarray], float] = np.mean,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of any statistic: what it would be on samples drawn again from this one.

        [ quantile_a(T*), quantile_{1-a}(T*) ],   a = (1 - level) / 2,   T* = T of a sample drawn from values

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
      rng: key of the draws; the same key gives the same interval.
      values: [N] measurements, N at least 1.
      statistic: from [N] to a number.
      resamples: how many samples are drawn.
      level: the interval's coverage, strictly between 0 and 1.

    Raises:
      ValueError: no values, a shape other than [N], or a level outside (0, 1).
    """
    values = _vector(values, at_least=1)
    _quantile(level)
    draws = np.asarray(jax.random.randint(rng, (resamples, len(values)), 0, len(values)))
    statistics = np.array([statistic(values[draw]) for draw in draws])
    tail = (1 - level) / 2
    return Interval(float(np.quantile(statistics, tail)), float(np.quantile(statistics, 1 - tail)))


def pass_at_k(count: int, correct: int, k: int) -> float:
    """The chance that at least one of k completions is right, without bias, from `count` >= k completions.

        pass@k = 1 - C(count - correct, k) / C(count, k)

    Computed as a product, as the binomials overflow. The plug-in 1 - (1 - correct/count)^k is biased.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code" (2021), eq. 1 and figure 3.

    Args:
      count: completions drawn for one problem.
      correct: how many of them were right.
      k: completions one may look at, 1 <= k <= count.

    Raises:
      ValueError: numbers that cannot be.

    >>> round(pass_at_k(count=5, correct=2, k=2), 4)     # 1 - C(3,2)/C(5,2) = 1 - 3/10
    0.7
    """
    if not (0 <= correct <= count and 1 <= k <= count):
        raise ValueError(
            f"pass@{k} of {correct} right in {count}: needs 0 <= correct <= count and 1 <= k <= count"
        )
    wrong = count - correct
    if wrong < k:
        return 1.0
    return 1.0 - math.prod((wrong - i) / (count - i) for i in range(k))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; a share strictly between 0 and 1, such as 0.95")
    return float(ndtri((1 + level) / 2))


def _vector(values: np.ndarray, *, at_least: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < at_least:
        raise ValueError(f"values: shape {values.shape}; expected [N] with N >= {at_least}")
    return values
