"""MinHash against exact Jaccard similarity, and clusters that do not depend on order."""

import random

import numpy as np
import pytest

from jaxgpt.curation.minhash import (
    bands_for, candidate_pairs, connected_components, jaccard, linked_pairs, near_duplicates, shingles, signature,
    similarity)

WORDS = [f"word{i}" for i in range(2000)]


def text_like(words, changed, rng):
    """The words, `changed` of them replaced."""
    words = list(words)
    for place in rng.sample(range(len(words)), changed):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def test_shingles_by_hand():
    assert len(shingles("a b c d", size=2)) == 3
    assert len(shingles("a b a b a", size=2)) == 2  # "a b", "b a"
    assert np.array_equal(shingles("A,  b! c", size=2), shingles("a b c", size=2))
    assert not np.array_equal(shingles("a b", size=2), shingles("b a", size=2))
    assert len(shingles("one two", size=5)) == 1 and len(shingles(" ... ", size=5)) == 0
    assert jaccard(shingles("a b c", size=1), shingles("b c d e", size=1)) == 2 / 5


@pytest.mark.parametrize("changed", [2, 10, 25, 60])
def test_estimate_is_within_its_error(changed):
    rng, errors = random.Random(changed), []
    for _ in range(10):
        words = rng.choices(WORDS, k=400)
        a, b = shingles(" ".join(words)), shingles(text_like(words, changed, rng))
        exact = jaccard(a, b)
        estimate = similarity(signature(a, hashes=512), signature(b, hashes=512))
        errors.append((estimate - exact) / np.sqrt(exact * (1 - exact) / 512))
    assert max(map(abs, errors)) < 4 and abs(np.mean(errors)) < 1.3  # standard errors: of one, and of the mean of ten


def test_signature_of_a_union_is_the_minimum():
    a, b = shingles("the quick brown fox jumps over it"), shingles("a lazy dog sleeps under that old tree")
    assert np.array_equal(signature(np.union1d(a, b)), np.minimum(signature(a), signature(b)))


def test_bands_put_the_step_below_the_threshold():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = bands_for(threshold)
        assert bands * rows <= 128 and (1 / bands) ** (1 / rows) <= threshold - 0.1
    assert 1 - (1 - 0.8**7) ** 18 > 0.985  # what the docstring of bands_for claims


def test_candidates_share_a_whole_band():
    signatures = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [7, 2, 3, 8], [0, 0, 3, 4]], np.uint64)
    assert candidate_pairs(signatures, bands=2, rows=2) == {(0, 1), (0, 3)}


def test_components_by_hand():
    assert connected_components(6, [(4, 5), (0, 2), (5, 2)]) == [0, 1, 0, 3, 0, 0]
    assert connected_components(6, [(5, 2), (4, 5), (2, 0)]) == [0, 1, 0, 3, 0, 0]


def test_clusters_are_right_and_do_not_depend_on_order():
    rng = random.Random(0)
    originals = [rng.choices(WORDS, k=300) for _ in range(20)]
    texts = [" ".join(words) for words in originals] + [text_like(words, 3, rng) for words in originals[:8]]
    clusters = near_duplicates(texts, 0.8)
    assert clusters[:20] == list(range(20)) and clusters[20:] == list(range(8))
    order = list(range(len(texts)))
    rng.shuffle(order)
    shuffled = near_duplicates([texts[i] for i in order], 0.8)
    grouped = {}
    for place, cluster in zip(order, shuffled):
        grouped.setdefault(cluster, set()).add(place)
    expected = [[i, 20 + i] for i in range(8)] + [[i] for i in range(8, 20)]
    assert sorted(map(sorted, grouped.values())) == expected


def test_texts_without_words_are_no_duplicates():
    assert near_duplicates(["...", "!!!", "???"]) == [0, 1, 2]
    assert near_duplicates([]) == []
    assert linked_pairs(np.stack([signature(shingles("."))] * 2), 0.5) == []
    with pytest.raises(ValueError, match="threshold"):
        near_duplicates(["a"], 0.0)
