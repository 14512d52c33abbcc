"""Mixtures: rows of several datasets in fixed proportions, which may change from phase to phase of a run.

At every point of a phase each dataset has had its share of the rows so far to less than one row; each goes on through
its own epochs where it was, whatever the phase.
"""

from __future__ import annotations

import dataclasses
import fractions
import functools
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from jaxgpt.data.dataset import join
from jaxgpt.data.packing import Row

_FINEST = 100_000


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some datasets and their proportions, for a part of a run.

    Attributes:
      weights: (the name of the stage that made the dataset, its weight); shares are weights over their sum, so (1, 2)
        gives a third and two thirds.
      until: the share of the run's steps after which the phase is over.
    """

    weights: tuple[tuple[str, float], ...]
    until: float = 1.0

    def __post_init__(self):
        names = [name for name, _ in self.weights]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"weights: must name at least one dataset, each once, not {names}")
        if not 0 < self.until <= 1:
            raise ValueError(f"until: must be above 0 and at most 1, not {self.until}")
        parts([weight for _, weight in self.weights])


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What a run is trained on, phase by phase.

    Attributes:
      phases: in the order of their `until`, the last of which is 1.

    >>> Mixture((Phase((("web", 0.9), ("math", 0.1)), until=0.8), Phase((("web", 1), ("math", 1))))).names
    ('web', 'math')
    """

    phases: tuple[Phase, ...]

    def __post_init__(self):
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"phases: each must end after the one before, and the last at until=1, not {ends}")

    @property
    def names(self) -> tuple[str, ...]:
        """All datasets, in the order in which they are named."""
        return tuple(dict.fromkeys(name for phase in self.phases for name, _ in phase.weights))


def parts(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as whole numbers, as small as they can be; 0.1 is a tenth, as it is written.

    Raises:
      ValueError: a weight is not above 0, or they are so fine that their pattern would be longer than 100,000 rows.

    >>> parts([0.9, 0.1]), parts([1, 2])
    ((9, 1), (1, 2))
    """
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: must be above 0, not {list(weights)}")
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(value.denominator for value in exact))
    whole = [int(value * scale) for value in exact]
    found = tuple(value // math.gcd(*whole) for value in whole)
    if sum(found) > _FINEST:
        raise ValueError(f"weights: {list(weights)} repeat after {sum(found):,} rows only; must do so after "
                         f"{_FINEST:,}: give fewer digits")
    return found


@functools.lru_cache(maxsize=16)
def pattern(counts: tuple[int, ...]) -> np.ndarray:
    """Which of k sources each row comes from: int64 [sum of counts], to be repeated.

    After n rows source i has had x_i, and |x_i - n c_i / Σ c| <= 1 - 1 / (2k - 2): of the sources that are not too far
    ahead, the one whose next row is due first comes next.

    Source: Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32, theorem 1.

    >>> pattern((3, 1)).tolist()
    [0, 0, 1, 0]
    """
    k, period = len(counts), sum(counts)
    if k == 1:
        return np.zeros(period, np.int64)
    had, found, scale = [0] * k, [], 2 * k - 2
    for n in range(1, period + 1):
        behind = [scale * (count * n - period * before) for count, before in zip(counts, had)]
        ready = [i for i in range(k) if behind[i] >= period]
        chosen = min(ready, key=lambda i: fractions.Fraction(period * (scale - 1) - behind[i], counts[i]))
        had[chosen] += 1
        found.append(chosen)
    return np.array(found, np.int64)


class MixtureRows:
    """The rows of several datasets in one sequence, by index.

    Attributes:
      length: T.
    """

    def __init__(self, datasets: Mapping[str, object], mixture: Mixture, *, steps: int, batch: int):
        """
        Args:
          datasets: by name, each with `take(indices)`, such as `TokenDataset`.
          mixture: says when each has its turn.
          steps, batch: of the run: where phases end follows from them, always between two batches.
        """
        self._datasets = [datasets[name] for name in mixture.names]
        self.length = self._datasets[0].length
        self._starts, self._sources, self._patterns, self._before = [], [], [], []
        start, before = 0, np.zeros(len(self._datasets), np.int64)
        for phase in mixture.phases:
            order = pattern(parts([weight for _, weight in phase.weights]))
            order = np.array([mixture.names.index(name) for name, _ in phase.weights])[order]
            is_source = order[:, None] == np.arange(len(self._datasets))
            self._starts.append(start)
            self._before.append(before)
            self._patterns.append((order, np.cumsum(np.vstack([0 * is_source[:1], is_source]), axis=0)))
            end = round(phase.until * steps) * batch
            before = before + self._had(len(self._starts) - 1, np.array([end - start]))[0]
            start = end

    def __len__(self) -> int:
        return sys.maxsize

    def _had(self, phase: int, rows: np.ndarray) -> np.ndarray:
        """[rows, datasets]: how many rows of each are among the first `rows` of a phase."""
        _, before = self._patterns[phase]
        periods, rest = np.divmod(rows, len(before) - 1)
        return periods[:, None] * before[-1] + before[rest]

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(dataset, its row) of each index."""
        indices = np.asarray(indices, np.int64)
        sources, rows = np.empty_like(indices), np.empty_like(indices)
        phases = np.searchsorted(self._starts, indices, side="right") - 1
        for phase in np.unique(phases):
            members = np.flatnonzero(phases == phase)
            local = indices[members] - self._starts[phase]
            order, _ = self._patterns[phase]
            sources[members] = order[local % len(order)]
            rows[members] = (self._before[phase] + self._had(phase, local))[np.arange(len(local)), sources[members]]
        return sources, rows

    def take(self, indices: Sequence[int] | np.ndarray, ahead: Sequence[int] | np.ndarray = ()) -> Row:
        """The rows at these indices as one batch [B, T]; see `TokenDataset.take`."""
        sources, rows = self.places(indices)
        next_sources, next_rows = self.places(ahead)
        found = []
        for number in np.unique(sources).tolist():
            members = np.flatnonzero(sources == number)
            found.append((members, self._datasets[number].take(rows[members], next_rows[next_sources == number])))
        return join(found, len(sources), self.length)
