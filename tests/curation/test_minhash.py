"""MinHash against exact Jaccard similarity: hashes, bands, and clusters that do not depend on order or workers."""

import itertools
import random
import tarfile

import numpy as np
import pytest
import searching
from searching import numbered

from jaxgpt.curation.components import union_find
from jaxgpt.curation.document import Drop, Key, Verdict, document
from jaxgpt.curation.minhash import (
    MinHash, band_keys, candidate_probability, compare_candidates, jaccard, near_duplicates, shingles, signature,
    similarity)

WORDS = [f"word{i}" for i in range(2000)]


def text_like(words, changed, rng):
    """The words, `changed` of them replaced."""
    words = list(words)
    for place in rng.sample(range(len(words)), changed):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def pair(shared, size, rng):
    """Two texts of `size` shingles of which they share `shared`: a Jaccard similarity of shared / (2 size - shared)."""
    def fresh(count):
        return [f"{rng.getrandbits(60):x}" for _ in range(count)]

    start = fresh(shared + 4)
    return tuple(" ".join(start + fresh(size - shared)) for _ in range(2))


def similar_sets(texts, threshold):
    """The sets of texts that pairs at or above the threshold connect, from the similarity of every pair."""
    sets = [shingles(text) for text in texts]
    links = [(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if jaccard(sets[i], sets[j]) >= threshold]
    return grouped(union_find(links))


def grouped(roots):
    groups = {}
    for node, root in roots.items():
        groups.setdefault(root, set()).add(node)
    return set(map(frozenset, groups.values()))


# --- words and shingles ----------------------------------------------------------------------------------------------

def test_shingles_by_hand():
    assert len(shingles("a b c d", size=2)) == 3
    assert len(shingles("a b a b a", size=2)) == 2  # "a b", "b a"
    assert np.array_equal(shingles("A,  b! c", size=2), shingles("a b c", size=2))
    assert not np.array_equal(shingles("a b", size=2), shingles("b a", size=2))
    assert len(shingles("one two", size=5)) == 1 and len(shingles(" ... ", size=5)) == 0
    assert len(shingles("")) == 0
    assert jaccard(shingles("a b c", size=1), shingles("b c d e", size=1)) == 2 / 5


# --- signatures and bands --------------------------------------------------------------------------------------------

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


def test_signature_is_the_minimum_of_each_permutation():
    a, b = shingles("the quick brown fox jumps over it"), shingles("a lazy dog sleeps under that old tree")
    assert np.array_equal(signature(np.union1d(a, b)), np.minimum(signature(a), signature(b)))
    many = np.arange(1000, dtype=np.uint64)  # more than one block
    assert np.array_equal(signature(many), np.min([signature(many[i:i + 1]) for i in range(1000)], axis=0))
    assert not np.array_equal(signature(a), signature(a, seed=1))
    assert np.array_equal(signature(a)[:50], signature(a, hashes=112)[:50]) and len(signature(a)) == 112


def test_settings_are_those_of_fineweb():
    theirs = pytest.importorskip("datatrove.pipeline.dedup.minhash")
    config = theirs.MinhashConfig(hash_config=theirs.HashConfig(hash_fc="sha1"))
    search = MinHash()
    assert (search.bands, search.rows, search.shingle) == (
        config.num_buckets, config.hashes_per_bucket, config.n_grams) == (14, 8, 5)
    assert round((1 / search.bands) ** (1 / search.rows), 2) == 0.72
    assert round(candidate_probability(0.8), 3) == 0.924


# (shared, size) shingles: similarities of exactly 0.5, 0.6, 0.7, 0.8, 0.9 and 0.95
@pytest.mark.parametrize("shared, size", [(80, 120), (90, 120), (98, 119), (104, 117), (108, 114), (114, 117)])
def test_pairs_share_a_band_as_often_as_theory_says(shared, size):
    rng, search, pairs = random.Random(shared), MinHash(), 400
    exact, found = shared / (2 * size - shared), 0
    for _ in range(pairs):
        a, b = pair(shared, size, rng)
        assert jaccard(shingles(a), shingles(b)) == exact
        keys = [{value for value, _ in search.fingerprints(document(text, "s"))} for text in (a, b)]
        found += bool(keys[0] & keys[1])
    expected = candidate_probability(exact)
    assert abs(found / pairs - expected) <= 3 * np.sqrt(expected * (1 - expected) / pairs)


def test_bands_by_hand():
    a, b, c = (np.array(values, np.uint64) for values in ([1, 2, 3, 4], [1, 2, 9, 9], [3, 4, 1, 2]))
    keys = band_keys(a, bands=2), band_keys(b, bands=2), band_keys(c, bands=2)
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]
    assert not set(keys[0]) & set(keys[2])  # the same numbers in other bands
    assert not set(keys[0]) & set(band_keys(a, bands=2, salt="crawl"))


# --- verification ----------------------------------------------------------------------------------------------------

def test_candidates_are_compared_until_all_is_known():
    sets = {name: np.array(found) for name, found in {"a": [1, 2, 3, 4], "b": [1, 2, 3, 5], "c": [1, 2, 3, 4]}.items()}
    one = {name: [b"x", b"y"] for name in sets}
    assert compare_candidates(one, sets, threshold=0.6, max_bucket=9) == {("a", "b"): 0.6, ("a", "c"): 1.0}
    assert compare_candidates(one, sets, threshold=0.7, max_bucket=9) == {
        ("a", "b"): 0.6, ("a", "c"): 1.0, ("b", "c"): 0.6}
    assert compare_candidates(one, sets, threshold=0.7, max_bucket=1) == {("a", "b"): 0.6, ("a", "c"): 1.0}
    assert compare_candidates({"a": [b"x"], "b": [b"y"]}, sets, threshold=0.1, max_bucket=9) == {}
    sizes = {0: np.arange(10), 1: np.arange(20)}
    assert compare_candidates({0: [b"x"], 1: [b"x"]}, sizes, threshold=0.5, max_bucket=9) == {(0, 1): 0.5}
    assert compare_candidates({0: [b"x"], 1: [b"x"]}, sizes, threshold=0.6, max_bucket=9) == {(0, 1): 0.5}


def planted(rng):
    """Texts on their own, pairs of known similarity, a chain whose ends share nothing, and forty of one kind."""
    texts = [" ".join(rng.choices(WORDS, k=150)) for _ in range(20)]
    for shared, size in [(80, 120), (98, 119), (104, 117), (108, 114), (114, 117)] * 6:
        texts += pair(shared, size, rng)
    chain = rng.sample(WORDS, 600)
    texts += [" ".join(chain[start:start + 200]) for start in range(0, 401, 10)]
    template = rng.sample(WORDS, 150)
    texts += [" ".join([*template[:-1], f"number{i}"]) for i in range(40)]
    return texts


def test_verified_clusters_are_those_of_exact_similarity():
    texts = planted(random.Random(5))
    rng = random.Random(1)
    order = rng.sample(range(len(texts)), len(texts))
    parts = {"p": [numbered(i, texts[i]) for i in order[:80]], "q": [numbered(i, texts[i]) for i in order[80:]]}
    searches = [MinHash(name="candidates"), MinHash(name="verified", verify=0.75),
                MinHash(name="few", verify=0.75, max_bucket=3)]
    (candidates, verified, few), counters = searching.run(searches, parts)
    exact = similar_sets(texts, 0.75)

    def found(verdicts):
        return {frozenset(int(key.id, 16) for key in cluster) for cluster in searching.clusters(verdicts, parts)}

    assert found(verified) == exact and {40, 41} <= set(map(len, exact))
    assert found(few) == exact
    assert found(candidates) == grouped_labels(near_duplicates(texts)) != exact  # some at 0.7 are candidates too
    assert found(verified) == grouped_labels(near_duplicates(texts, MinHash(verify=0.75)))
    assert counters["fingerprints of more than 3 documents"] > 0
    assert counters["pairs compared"] > counters["pairs at least 0.75 similar"] > 50
    kept = searching.left(searches[1], verified, parts)
    assert {int(item.id, 16) for items in kept.values() for item in items} == (
        set(range(len(texts))) - {i for cluster in exact for i in cluster - {min(cluster)}})


def grouped_labels(labels):
    return {cluster for cluster in grouped(dict(enumerate(labels))) if len(cluster) > 1}


def test_real_texts_with_edits(data_folder):
    """A hundred PEPs, copies of them with a few to a few dozen words changed, and halves."""
    with tarfile.open(f"{data_folder}/text/peps.tar.gz") as archive:
        names = [member for member in sorted(archive.getnames()) if member.endswith(".rst")][:100]
        texts = [archive.extractfile(name).read().decode()[:8000] for name in names]
    rng = random.Random(0)
    for i, original in enumerate(texts[:60]):
        words = original.split()
        texts.append(text_like(words, max(1, len(words) * (i % 12) // 400), rng))
    texts += [text[:len(text) // 2] for text in texts[:20]]
    parts = {"p": [numbered(i, text) for i, text in enumerate(texts)]}
    (candidates, verified), counters = searching.run([MinHash(name="all"), MinHash(verify=0.8)], parts)
    exact = similar_sets(texts, 0.8)
    found = {frozenset(int(key.id, 16) for key in cluster) for cluster in searching.clusters(verified, parts)}
    assert found == exact and len(exact) > 30
    assert set(verified) < set(candidates)
    assert "edges left to one place" not in counters  # such clusters are stars after a few rounds


# --- order, workers, sources, repeats --------------------------------------------------------------------------------

def some_parts(seed):
    texts = planted(random.Random(5))[:120]
    rng = random.Random(seed)
    order = rng.sample(range(len(texts)), len(texts))
    return {name: [numbered(i, texts[i]) for i in order if i % 3 == rest] for rest, name in enumerate("pqr")}


def test_order_and_bundles_change_nothing(monkeypatch):
    searches = [MinHash(name="linked"), MinHash(verify=0.75)]
    first, _ = searching.run(searches, some_parts(0))
    assert len(first[0]) > 60
    monkeypatch.setattr("jaxgpt.curation.grouping.BATCH", 7)
    parts = some_parts(1)
    again = searching.run(searches, dict(reversed(parts.items())), direct_num_workers=3,
                          direct_running_mode="multi_threading")
    assert again[0] == first


@pytest.mark.slow
def test_processes_change_nothing():
    searches = [MinHash(name="linked"), MinHash(verify=0.75)]
    one, counters = searching.run(searches, some_parts(0))
    two, counted = searching.run(searches, some_parts(2), direct_num_workers=2, direct_running_mode="multi_processing")
    assert two == one and counted == counters


def test_sources_are_compared_where_asked():
    text = " ".join(WORDS[:50])
    parts = {"p": [numbered(1, text, "crawl 1"), numbered(2, text, "crawl 1")],
             "q": [numbered(3, text, "crawl 2"), numbered(4, text, "crawl 2"), numbered(5, text, "crawl 3")]}
    (each, across), _ = searching.run([MinHash(name="each", per_source=True), MinHash(name="across")], parts)
    assert {key.id[-1] for key, verdict in each.items() if not verdict.keep} == {"2", "4"}
    assert {key.id[-1] for key, verdict in across.items() if not verdict.keep} == {"2", "3", "4", "5"}


def test_of_a_record_in_two_files_one_stays():
    parts = {"q": [numbered(7, "the same record in two files")], "p": [numbered(7, "the same record in two files")]}
    for verdicts in searching.run([MinHash(name="linked"), MinHash(verify=1.0)], parts)[0]:
        assert verdicts[Key("p", parts["p"][0].id)].keep and not verdicts[Key("q", parts["p"][0].id)].keep


# --- limits ----------------------------------------------------------------------------------------------------------

def test_texts_without_words_are_no_duplicates():
    assert near_duplicates(["...", "!!!", "???"]) == [0, 1, 2]
    assert near_duplicates(["...", "", "a"], MinHash(verify=0.5)) == [0, 1, 2]
    assert near_duplicates([]) == []


def test_what_lies_behind_is_not_looked_at():
    start = " ".join(WORDS[:100])
    texts = [start + " and so on", start + " " + " ".join(WORDS[500:900])]
    assert near_duplicates(texts) == [0, 1]
    assert near_duplicates(texts, MinHash(max_characters=len(start))) == [0, 0]
    assert near_duplicates(texts, MinHash(max_characters=len(start), verify=1.0)) == [0, 0]


def test_what_a_verdict_makes_of_a_document():
    search, item = MinHash(), numbered(2, "a text")
    assert search.apply(item, Verdict(item.id, keep=False, cluster="1" * 32)) == Drop("near-duplicate", "1" * 32)
    assert search.apply(item, Verdict(item.id, cluster=item.id, cluster_size=3)) is item
    assert search.apply(item, None) is item


@pytest.mark.parametrize("wrong", [
    {"bands": 0}, {"rows": 0}, {"shingle": 0}, {"max_bucket": 0}, {"max_characters": 0}, {"verify": 0.0},
    {"verify": 1.5}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: must be"):
        MinHash(**wrong)


def test_candidates_must_be_there_to_be_read_again():
    texts = [numbered(i, "the same words in both of them") for i in (1, 2)]
    with pytest.raises(ValueError, match="documents: must be given"):
        MinHash(verify=0.8).verdicts(None)
    parts = _Forgetful(p=texts)
    with pytest.raises(Exception, match="part 'p' lacks 1 of the documents .* 0+2"):
        searching.run([MinHash(verify=0.8)], parts)


class _Forgetful(dict):
    """Parts that lose their last document before they are read again."""

    def __getitem__(self, part):
        return dict.__getitem__(self, part)[:-1]
