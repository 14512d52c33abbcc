"""Sums, answered at once or worked out: the smallest place where reinforcement learning discovers thinking.

The demonstrations are a mix of two people. One answers at once ("It is 85."), the other adds the columns
from the right, each with its carry, and answers then ("7+8=15, 3+4+1=8. It is 85."). A small model copies
the commoner habit, and sums in its head are often wrong. Nothing in the reward mentions the working: it
reads only the final answer. Practice finds out that the worked answers are the ones that pay.

Source: DeepSeek-AI, "DeepSeek-R1: Incentivizing Reasoning Capability in LLMs via Reinforcement Learning"
(2025), section 2.2.4, where longer reasoning grows under a reward for the final answer alone.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import islice

from jaxgpt.tasks import task
from jaxgpt.tasks.task import Problem

WORDINGS = {
    "+": ("What is {a} + {b}?", "What is {a}+{b}?", "{a}+{b}", "{a} + {b} =", "Add {a} and {b}."),
    "-": ("What is {a} - {b}?", "What is {a}-{b}?", "{a}-{b}", "{a} - {b} =", "Take {b} from {a}."),
}

# Working holds only digits, signs and commas, so never a second "It is"; nothing may follow the answer.
REPLY = re.compile(r"(?:[0-9][0-9+\-=, ]*\. )?It is (0|-?[1-9][0-9]*)\.")


def direct(a: int, operation: str, b: int) -> str:
    """The answer alone.

    >>> direct(37, "+", 48)
    'It is 85.'
    """
    return f"It is {a + b if operation == '+' else a - b}."


def worked(a: int, operation: str, b: int) -> str:
    """The columns from the right, then the answer: a step needs two digits and the carry of the step before.

    Args:
      a: the first number, with as many digits as `b`; for a difference not below `b`.
      operation: "+" or "-"; in a difference a column that is too small borrows ten from the next.
      b: the second number.

    >>> worked(37, "+", 48), worked(87, "+", 32)
    ('7+8=15, 3+4+1=8. It is 85.', '7+2=9, 8+3+0=11. It is 119.')
    >>> worked(62, "-", 37)
    '12-7=5, 6-3-1=2. It is 25.'
    """
    steps, carry = [], ""
    for x, y in zip(map(int, reversed(str(a))), map(int, reversed(str(b)))):
        taken = y + int(carry or 0)
        if operation == "+":
            steps.append(f"{x}+{y}{carry and '+' + carry}={x + taken}")
            carry = str(int(x + taken >= 10))
        else:
            borrow = int(x < taken)
            steps.append(f"{x + 10 * borrow}-{y}{carry and '-' + carry}={x + 10 * borrow - taken}")
            carry = str(borrow)
    return f"{', '.join(steps)}. {direct(a, operation, b)}"


@dataclass(frozen=True)
class Arithmetic:
    """Sums and differences of numbers with `digits` digits; a share `thinking` of the answers is worked out.

    >>> problem = Arithmetic(thinking=1.0).problems("train", 1, seed=0)[0]
    >>> Arithmetic().reward(problem, problem.answer)
    1.0
    """

    digits: int = 2
    operations: tuple[str, ...] = ("+",)
    thinking: float = 0.35
    name: str = "arithmetic"

    def __post_init__(self):
        if self.digits < 1:
            raise ValueError(f"digits: {self.digits} is too few; at least 1")
        if not self.operations or not set(self.operations) <= set(WORDINGS):
            raise ValueError(f"operations: {self.operations!r}; one or more of {', '.join(WORDINGS)}")
        if not 0 <= self.thinking <= 1:
            raise ValueError(f"thinking: {self.thinking} is not a share; from 0 to 1")

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """Sums of one split; a + b and b + a are always in the same one."""
        smallest = 10 ** (self.digits - 1) if self.digits > 1 else 0
        numbers = 10**self.digits - smallest

        def sum_at(index: int) -> tuple[int, str, int]:
            pair, kind = divmod(index, len(self.operations))
            a, b = divmod(pair, numbers)
            return smallest + a, self.operations[kind], smallest + b

        def place(index: int) -> str:
            a, operation, b = sum_at(index)
            negative = operation == "-" and a < b
            return "nowhere" if negative else task.split_of(f"{min(a, b)} and {max(a, b)}")

        rng = task.stream(self.name, split, seed)
        drawn = task.draw(range(numbers * numbers * len(self.operations)), split, rng, place=place)
        return [self._problem(*sum_at(index), rng=rng) for index in islice(drawn, count)]

    def _problem(self, a: int, operation: str, b: int, *, rng: random.Random) -> Problem:
        """One sum in one wording; a hash of both decides which of the two people answers it."""
        wording = rng.randrange(len(WORDINGS[operation]))
        key = f"{self.name}/{a}{operation}{b}/{wording}"
        thinks = task.fraction("thinking/" + key) < self.thinking
        answer = worked(a, operation, b) if thinks else direct(a, operation, b)
        return Problem.asking(WORDINGS[operation][wording].format(a=a, b=b), answer, task=self.name, key=key)

    def well_formed(self, problem: Problem, completion: str) -> bool:
        """Working or none, then "It is N." once, and nothing after it."""
        return REPLY.fullmatch(completion) is not None

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 when the final answer is right; the working is not looked at."""
        found, right = REPLY.fullmatch(completion), REPLY.fullmatch(problem.answer)
        return float(found is not None and found[1] == right[1])
