"""What a task is, and what every task is made of: a hash, a random stream, a draw without repeats.

A task makes problems and judges replies to them. Whether a problem is for training, validation or testing
is decided by a hash of the problem itself, never by a list or a shuffle, so the splits stay disjoint
whatever is asked for and whoever asks.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

SPLITS = ("train", "val", "test")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Problem:
    """One conversation that ends with the user's turn, and a reply to it that is right.

    >>> problem = Problem.asking("Spell cat.", "c a t", task="spelling", key="spelling/cat")
    >>> problem.messages, problem.question
    (({'role': 'user', 'content': 'Spell cat.'},), 'Spell cat.')
    """

    messages: tuple[dict[str, str], ...]  # {"role": ..., "content": ...}; the last one is the user's
    answer: str                           # the demonstration that finetuning learns from
    task: str
    key: str                              # the same problem has the same key, two problems never share one

    @classmethod
    def asking(cls, question: str, answer: str, *, task: str, key: str) -> Problem:
        """A conversation of one turn."""
        return cls(({"role": "user", "content": question},), answer, task, key)

    @property
    def question(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]


class Task(Protocol):
    """Problems and their judge; implementations are frozen dataclasses whose fields are settings."""

    name: str

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """`count` problems of a split, a function of its three arguments alone.

        No problem comes twice before all have come once. Train then goes round again; val and test end there,
        with fewer than `count`, because a problem scored twice is not a second observation.
        """
        ...

    def well_formed(self, problem: Problem, completion: str) -> bool:
        """Whether the completion has the form of an answer, right or wrong."""
        ...

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 for a right answer in the right form, else 0.0; the problem's own answer gets 1.0."""
        ...


def fraction(label: str) -> float:
    """A number in [0, 1) that depends on the label alone, spread evenly over labels.

    >>> fraction("37+48") == fraction("37+48"), fraction("37+48") == fraction("37+49")
    (True, False)
    """
    digest = hashlib.blake2b(label.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def split_of(label: str) -> str:
    """The split a problem belongs to: 80% train, 10% val, 10% test, by its hash.

    >>> split_of("37+48") in SPLITS
    True
    """
    place = fraction("split/" + label)
    return "test" if place < 0.1 else "val" if place < 0.2 else "train"


def stream(*labels) -> random.Random:
    """A random stream that depends on the labels alone, the same on every machine and in every process.

    >>> stream("arithmetic", 0).random() == stream("arithmetic", 0).random()
    True
    """
    return random.Random("/".join(str(label) for label in labels))


def shuffled(size: int, rng: random.Random) -> Iterator[int]:
    """Every integer below `size` once, in random order: Fisher and Yates, storing only what has moved.

    >>> sorted(shuffled(5, stream(0)))
    [0, 1, 2, 3, 4]
    >>> next(shuffled(10**15, stream(0))) < 10**15  # at once
    True
    """
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        place = rng.randint(0, last)
        at_last = moved.pop(last, last)
        if place == last:
            yield at_last
        else:
            yield moved.get(place, place)
            moved[place] = at_last


def draw(items: Sequence[Item], split: str, rng: random.Random, *,
         place: Callable[[Item], str]) -> Iterator[Item]:
    """The items of one split in random order, each once; for train, round after round without end.

    Args:
      items: what to draw from; a `range` is never laid out in memory.
      split: "train", "val" or "test".
      rng: decides the order.
      place: the split an item belongs to.

    Raises:
      ValueError: no such split.

    >>> list(draw("abcd", "test", stream(0), place=lambda letter: "test" if letter < "c" else "train"))
    ['a', 'b']
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one; choose from {', '.join(SPLITS)}")
    while True:
        drawn = 0
        for index in shuffled(len(items), rng):
            if place(items[index]) == split:
                drawn += 1
                yield items[index]
        if split != "train" or not drawn:
            return


def normalised(text: str) -> str:
    """Words in lower case with one space between them: what makes two wordings the same.

    >>> normalised("  Who ARE you?! ")
    'who are you'
    """
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())
