"""Several tasks in one stream."""

import pytest

from jaxgpt.tasks.arithmetic import Arithmetic
from jaxgpt.tasks.identity import Identity
from jaxgpt.tasks.mixture import mixture
from jaxgpt.tasks.smalltalk import Smalltalk
from jaxgpt.tasks.spelling import Spelling

PARTS = [(Arithmetic(), 5.0), (Identity(), 2.0), (Smalltalk(), 1.0)]


def test_every_prefix_has_the_proportions():
    tasks = [problem.task for problem in mixture(PARTS, "train", 800, seed=0)]
    assert len(tasks) == 800
    for end in range(1, 801):
        for task, weight in PARTS:
            assert abs(tasks[:end].count(task.name) - weight / 8 * end) <= len(PARTS) - 1


def test_each_task_gives_its_own_problems_in_its_own_order():
    mixed = mixture(PARTS, "train", 80, seed=1)
    for task, _ in PARTS:
        own = [problem for problem in mixed if problem.task == task.name]
        assert own == task.problems("train", len(own), seed=1)


def test_a_longer_mixture_begins_with_the_shorter():
    assert mixture(PARTS, "train", 50, seed=0) == mixture(PARTS, "train", 90, seed=0)[:50]


def test_an_exhausted_task_drops_out():
    mixed = mixture([(Identity(), 1.0), (Spelling(), 1.0)], "test", 1000, seed=0)
    assert sum(problem.task == "identity" for problem in mixed) == 50
    words = len(Spelling().problems("test", 1000, seed=0))
    assert sum(problem.task == "spelling" for problem in mixed) == words > 50


@pytest.mark.parametrize("parts", [[], [(Identity(), 0.0)], [(Identity(), 1.0), (Spelling(), -1.0)]])
def test_impossible_weights_are_refused(parts):
    with pytest.raises(ValueError, match="each above 0"):
        mixture(parts, "train", 3, seed=0)
