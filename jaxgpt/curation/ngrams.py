"""Runs of words as 64-bit hashes: what a text says, whatever its case, punctuation and line breaks.

Used where texts are compared word by word: with each other (minhash.py), with evaluation sets (decontaminate.py) and by
a learned classifier (classifier.py). A word is a run of letters and digits of any script. All of it is arithmetic on
whole arrays of characters, since a Python loop over words would take ten times as long.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_BASE, _INVERSE = np.uint64(_ODD), np.uint64(pow(_ODD, -1, 2**64))


class Words(NamedTuple):
    """The words of a text: word i is text[starts[i]:ends[i]], and hashes[i] tells it from others, case aside."""

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def words_of(text: str) -> Words:
    """Where the words of a text are, and a hash of each: three arrays [words].

        hash = scrambled(sum over i of letter_i * c^i  mod 2^64),    letter: a number for each letter, c odd

    computed for all words at once as differences of one running sum, each divided by c^start.

    >>> words = words_of("Tea, TEA; cake")
    >>> words.starts.tolist(), words.ends.tolist()
    ([0, 5, 10], [3, 8, 14])
    >>> [int(place) for place in np.flatnonzero(words.hashes == words.hashes[0])]
    [0, 1]
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    letters = _letters()[codes]
    inside = np.zeros(len(codes) + 2, bool)
    inside[1:-1] = letters != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(letters * _powers(_BASE, len(codes)), out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * _powers(_INVERSE, len(codes))[starts]
    return Words(scrambled(hashes), starts, ends)


def runs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """The hashes of all runs of 1 word, of 2 words, and so on without end, from those of the words.

        run_i = sum over j < n of hash_{i+j} * c^{n-1-j}  mod 2^64

    Yields:
      [max(0, words - n + 1)] uint64 for n = 1, 2, ..., each in the order of the words.

    >>> [len(run) for _, run in zip(range(6), runs(words_of("a rose is a rose").hashes))]
    [5, 4, 3, 2, 1, 0]
    """
    run = hashes
    for n in itertools.count(1):
        yield run
        run = run[:-1] * _BASE + hashes[n:]


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """The hashes of all n-grams of a text's words, in order; a text of fewer than n words has none.

    >>> ours, theirs = ngram_hashes("He said: 'Call me Ishmael.'", 3), ngram_hashes("call me ishmael", 3)
    >>> [int(place) for place in np.flatnonzero(ours == theirs)]
    [2]
    """
    return next(itertools.islice(runs(words_of(text).hashes), n - 1, None))


def scrambled(x: np.ndarray) -> np.ndarray:
    """64-bit integers, mixed one to one so that all bits depend on all (the finaliser of SplitMix64).

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), section 4.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.cache
def _letters() -> np.ndarray:
    """A number for each character, the same for both cases; 0 for what is in no word."""
    codes = np.zeros(0x110000, np.uint64)
    for character in filter(str.isalnum, map(chr, range(len(codes)))):
        lower = character.lower()
        codes[ord(character)] = ord(lower if len(lower) == 1 else character)
    return np.where(codes > 0, scrambled(codes), 0).astype(np.uint64)


def _powers(base: np.uint64, count: int) -> np.ndarray:
    """base^0, ..., base^(count - 1)  mod 2^64."""
    powers = np.full(count, base)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)
