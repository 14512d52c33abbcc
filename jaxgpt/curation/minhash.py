"""Near-duplicates: documents that share most of their shingles, found without comparing every pair.

    shingles -> MinHash signature -> bands -> candidate pairs -> clusters -> one document of each cluster

The probability that two signatures agree in one place is the Jaccard similarity J of the two sets of shingles, and the
probability that they agree in all r rows of at least one of b bands is 1 - (1 - J^r)^b: a step at J = (1/b)^(1/r).

Sources: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

EMPTY = np.uint64(2**64 - 1)  # the minimum over no shingles


def shingles(text: str, size: int = 5) -> np.ndarray:
    """The hashes of a text's runs of `size` words: its set of shingles, sorted, as uint64.

    Case, punctuation and white space do not count. A text shorter than one shingle is one shingle.

    >>> len(shingles("A rose is a rose is a rose", size=4))  # a rose is a; rose is a rose; is a rose is
    3
    """
    words = re.findall(r"\w+", text.lower())
    if not words:
        return np.empty(0, np.uint64)
    hashes = mix(np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words)))
    size = min(size, len(words))
    run = np.zeros(len(words) - size + 1, np.uint64)
    for i in range(size):  # a polynomial in an odd constant, so that the order of words counts
        run = run * np.uint64(0x9E3779B97F4A7C15) + hashes[i:i + len(run)]
    return np.unique(mix(run))


def mix(x: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit integers one to one (the finaliser of SplitMix64).

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), section 4.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A intersection B| / |A union B| of two sorted sets.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(1, len(a) + len(b) - common)


def signature(shingle_set: np.ndarray, *, hashes: int = 128, seed: int = 0) -> np.ndarray:
    """The MinHash signature of a set: min over x of a_i x + b_i mod 2^64, for `hashes` permutations with odd a_i.

    Source: Broder (1997), section 3; Leskovec et al., section 3.3.

    Args:
      shingle_set: [n] uint64, already scrambled (see `shingles`).

    Returns:
      [hashes] uint64.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2**64, size=(2, hashes), dtype=np.uint64)
    a |= np.uint64(1)
    result = np.full(hashes, EMPTY)
    for start in range(0, len(shingle_set), 4096):  # in blocks that stay in the cache
        block = shingle_set[start:start + 4096]
        np.minimum(result, (a[:, None] * block + b[:, None]).min(axis=1), out=result)
    return result


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The estimate of the Jaccard similarity from two signatures: the fraction of places in which they agree.

    Its standard error is sqrt(J (1 - J) / hashes).
    """
    return float(np.mean(a == b))


def bands_for(threshold: float, hashes: int = 128) -> tuple[int, int]:
    """The (bands, rows) with the highest step (1/bands)^(1/rows) that is still at most `threshold` - 0.1.

    The margin makes nearly every pair at the threshold a candidate (98.6% for 0.8); the estimate then decides.

    >>> bands_for(0.8)
    (18, 7)
    """
    choices = [(hashes // rows, rows) for rows in range(1, hashes + 1)]
    fitting = [(bands, rows) for bands, rows in choices if bands ** (-1 / rows) <= max(threshold - 0.1, 1 / hashes)]
    return max(fitting, key=lambda choice: choice[1])


def candidate_pairs(signatures: np.ndarray, *, bands: int, rows: int) -> set[tuple[int, int]]:
    """The pairs of documents whose signatures agree in all rows of at least one band.

    Source: Leskovec et al., section 3.4.

    Args:
      signatures: [documents, hashes] uint64, hashes >= bands * rows.
    """
    pairs = set()
    for band in range(bands):
        buckets = defaultdict(list)
        for i, row in enumerate(np.ascontiguousarray(signatures[:, band * rows:(band + 1) * rows])):
            if row[0] != EMPTY:
                buckets[row.tobytes()].append(i)
        for bucket in buckets.values():
            pairs.update((i, j) for n, i in enumerate(bucket) for j in bucket[n + 1:])
    return pairs


def linked_pairs(signatures: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """The candidate pairs whose estimated similarity is at least `threshold`; [documents, hashes] -> pairs."""
    bands, rows = bands_for(threshold, signatures.shape[1])
    pairs = candidate_pairs(signatures, bands=bands, rows=rows)
    return sorted((i, j) for i, j in pairs if similarity(signatures[i], signatures[j]) >= threshold)


def connected_components(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` nodes the smallest node that edges connect it to; the order of the edges does not matter.

    >>> connected_components(5, [(3, 1), (4, 3)])
    [0, 1, 2, 1, 1]
    """
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in pairs:
        i, j = root(i), root(j)
        parent[max(i, j)] = min(i, j)
    return [root(node) for node in range(count)]


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, *, hashes: int = 128, size: int = 5) -> list[int]:
    """For each text the index of its cluster; texts are in one cluster when near-duplicates link them.

    Texts are linked when the estimate of their Jaccard similarity is at least `threshold`, whatever their order.

    Raises:
      ValueError: the threshold is not in (0, 1].

    >>> near_duplicates(["one two three four five six", "something else", "One, two, three; four five six!"])
    [0, 1, 0]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: must be above 0 and at most 1, not {threshold}")
    if not texts:
        return []
    signatures = np.stack([signature(shingles(text, size), hashes=hashes) for text in texts])
    return connected_components(len(texts), linked_pairs(signatures, threshold))
