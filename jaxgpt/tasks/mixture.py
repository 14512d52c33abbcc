"""Several tasks in one stream, in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence

from jaxgpt.tasks.task import Problem, Task


def mixture(parts: Sequence[tuple[Task, float]], split: str, count: int, seed: int) -> list[Problem]:
    """Problems of several tasks, interleaved so that every prefix has the proportions asked for.

    The next problem comes from the task that is furthest behind its share wᵢ / Σw of the problems so far,
    so a count of one task is never more than its number of rivals away from exact. A task whose split is
    exhausted drops out.

    Args:
      parts: (task, weight) pairs; weights are positive and need not sum to 1.
      split: "train", "val" or "test".
      count: how many problems in all.
      seed: the seed of every task.

    Raises:
      ValueError: no parts, or a weight that is not positive.

    >>> from jaxgpt.tasks.arithmetic import Arithmetic
    >>> from jaxgpt.tasks.spelling import Spelling
    >>> [problem.task for problem in mixture([(Arithmetic(), 2), (Spelling(), 1)], "train", 6, seed=0)]
    ['arithmetic', 'spelling', 'arithmetic', 'arithmetic', 'spelling', 'arithmetic']
    """
    if not parts or any(weight <= 0 for _, weight in parts):
        raise ValueError(f"parts: weights {[weight for _, weight in parts]}; at least one, each above 0")
    total = sum(weight for _, weight in parts)
    pools = [task.problems(split, count, seed) for task, _ in parts]
    taken = [0] * len(parts)
    mixed: list[Problem] = []
    while len(mixed) < count:
        open_parts = [i for i, pool in enumerate(pools) if taken[i] < len(pool)]
        if not open_parts:
            break
        behind = max(open_parts, key=lambda i: parts[i][1] / total * (len(mixed) + 1) - taken[i])
        mixed.append(pools[behind][taken[behind]])
        taken[behind] += 1
    return mixed
