"""Near-duplicates: documents that share most of their shingles, found without comparing every pair.

    shingles -> MinHash signature -> bands -> candidate pairs -> clusters -> one document of each cluster

The probability that two signatures agree in one place is the Jaccard similarity J of the two sets of shingles, and the
probability that they agree in all r rows of at least one of b bands is 1 - (1 - J^r)^b: a step at J = (1/b)^(1/r).

Sources: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3; Penedo et al., "The FineWeb datasets" (2024), section 3.4, for 14 bands of 8 rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxgpt.curation.components import (
    Edge, Forest, components, count, pack, star_edges, union_find, unpack, verdicts_on)
from jaxgpt.curation.document import Document, Drop, Fingerprint, Key, Verdict, document
from jaxgpt.curation.grouping import HASH_BYTES, digest, equals
from jaxgpt.curation.ngrams import runs, scrambled, words_of

EMPTY = np.uint64(2**64 - 1)  # the minimum over no shingles
Sketch = tuple[bytes, bytes, bytes]  # a packed key, the keys of its bands, its set of shingles
Reader = Callable[[str], Iterable[Document]]  # of a part


def shingles(text: str, size: int = 5) -> np.ndarray:
    """The hashes of a text's runs of `size` words: its set of shingles, sorted, as uint64.

    Case, punctuation and white space do not count. A text shorter than one shingle is one shingle.

    >>> len(shingles("A rose is a rose is a rose", size=4))  # a rose is a; rose is a rose; is a rose is
    3
    """
    words = words_of(text).hashes
    if not len(words):
        return words
    return _distinct(scrambled(next(itertools.islice(runs(words), min(size, len(words)) - 1, None))))


def _distinct(values: np.ndarray) -> np.ndarray:
    """What np.unique gives, in a fifth of its time."""
    values = np.sort(values)
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return values[new]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A intersection B| / |A union B| of two sorted sets.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(1, len(a) + len(b) - common)


def signature(shingle_set: np.ndarray, *, hashes: int = 112, seed: int = 0) -> np.ndarray:
    """The MinHash signature of a set: min over x of a_i x + b_i mod 2^64, for `hashes` permutations with odd a_i.

    Source: Broder (1997), section 3; Leskovec et al., section 3.3.

    Args:
      shingle_set: [n] uint64, already scrambled (see `shingles`).

    Returns:
      [hashes] uint64.
    """
    a, b = _permutations(hashes, seed)
    result = np.full(hashes, EMPTY)
    for start in range(0, len(shingle_set), 256):  # in blocks that stay in the cache
        hashed = shingle_set[start:start + 256, None] * a
        hashed += b
        np.minimum(result, hashed.min(axis=0), out=result)
    return result


@functools.cache
def _permutations(hashes: int, seed: int) -> np.ndarray:
    a, b = np.random.default_rng(seed).integers(0, 2**64, size=(2, hashes), dtype=np.uint64)
    return np.stack([a | np.uint64(1), b])


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The estimate of the Jaccard similarity from two signatures: the fraction of places in which they agree.

    Its standard error is sqrt(J (1 - J) / hashes).
    """
    return float(np.mean(a == b))


def candidate_probability(similarity: float, *, bands: int = 14, rows: int = 8) -> float:
    """The probability that two documents share a band: 1 - (1 - J^rows)^bands.

    Source: Leskovec et al., section 3.4.2.

    >>> round(candidate_probability(0.8), 3), round(candidate_probability(0.5), 3)
    (0.924, 0.053)
    """
    return 1 - (1 - similarity ** rows) ** bands


def band_keys(signature: np.ndarray, *, bands: int, salt: str = "") -> list[bytes]:
    """A hash of each band of a signature, of its number and of `salt`: documents that share one are candidates.

    Args:
      signature: [bands * rows] uint64.

    >>> a, b = band_keys(np.arange(8, dtype=np.uint64), bands=2), band_keys(np.arange(1, 9, dtype=np.uint64), bands=2)
    >>> len(a), set(a) & set(b)
    (2, set())
    """
    start = salt.encode("utf-8", "surrogatepass") + b"\0"
    rows = signature.astype("<u8").reshape(bands, -1)
    return [digest(start + band.to_bytes(4, "little") + row.tobytes()) for band, row in enumerate(rows)]


@dataclasses.dataclass(frozen=True)
class MinHash:
    """Of each cluster of near-duplicates the document with the smallest (id, part) stays, with the cluster's size.

    Documents are candidates when they share a band. Without `verify`, candidates are linked, as in FineWeb: those of
    similarity 0.72 with a probability of one half, of 0.8 with 0.92. With it, they are linked when the Jaccard
    similarity of their sets of shingles is at least `verify`. A cluster is what links connect, however long the chain.

    Memory. The embedded runner needs about bands x 180 bytes a document until the search ends: it groups in memory,
    which a cluster does not. With `verify`, those documents that have candidates are read again; each takes about
    20 bytes a shingle of the embedded runner, and 4 of the worker that has the candidates it may be connected to.

    Attributes:
      bands, rows: bands x rows is the length of the signature, 112 in FineWeb.
      shingle: how many words a shingle has. Without spaces between words, as in Thai, a word is a clause.
      per_source: whether only documents of one source are compared, as in FineWeb, where that is a crawl; else all are.
        The source of a page from Common Crawl's files is its crawl, but that of other documents the file they stand in.
      verify: the least similarity of linked documents; None links all candidates.
      max_bucket: with `verify`, a document is compared with this many of those that share its band, the smallest ones;
        so all pairs are compared where no more documents share it. Without, all are linked, since it costs no more; the
        run counts the bands that more documents share.
      max_characters: what lies behind is not looked at. The signatures of texts without end are all alike, and would
        link documents that have nothing in common.
      seed: of the permutations.
    """

    name: str = "minhash"
    bands: int = 14
    rows: int = 8
    shingle: int = 5
    per_source: bool = False
    verify: float | None = None
    max_bucket: int = 100
    max_characters: int = 500_000
    seed: int = 0

    def __post_init__(self):
        for field in ("bands", "rows", "shingle", "max_bucket", "max_characters"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, not {getattr(self, field)}")
        if self.verify is not None and not 0 < self.verify <= 1:
            raise ValueError(f"verify: must be above 0 and at most 1, or None, not {self.verify}")

    def fingerprints(self, document: Document) -> Iterator[Fingerprint]:
        """The keys of its bands; none of a text without words.

        >>> len(list(MinHash().fingerprints(document("Call me Ishmael.", "s"))))
        14
        """
        found = shingles(document.text[:self.max_characters], self.shingle)
        if len(found):
            values = signature(found, hashes=self.bands * self.rows, seed=self.seed)
            keys = band_keys(values, bands=self.bands, salt=document.source if self.per_source else "")
            yield from (Fingerprint(key, band) for band, key in enumerate(keys))

    def shingle_set(self, document: Document) -> np.ndarray:
        """The set of shingles that is compared with `verify`: their first 32 bits, sorted.

        That is enough: of 10,000 pairs of texts of 700 words one seems to have a shingle more in common than it has.
        """
        found = shingles(document.text[:self.max_characters], self.shingle)
        return _distinct((found >> np.uint64(32)).astype("<u4"))

    def verdicts(self, fingerprints, documents: Reader | None = None):
        """The Beam part; see Search. `documents` is needed with `verify` only.

        Raises:
          ValueError: it is needed and was not given.
        """
        import apache_beam as beam

        if self.verify is not None and documents is None:
            raise ValueError("documents: must be given where `verify` is, to read candidates again")
        return fingerprints | self.name >> beam.ptransform_fn(_verdicts)(self, documents)

    def apply(self, document: Document, verdict: Verdict | None) -> Document | Drop:
        """The document, or that another stays for it.

        >>> page = document("Call me Ishmael.", "s")
        >>> MinHash().apply(page, Verdict(page.id, keep=False, cluster="07" * 16, cluster_size=2))
        Drop(reason='near-duplicate', value='07070707070707070707070707070707')
        """
        if verdict is None or verdict.keep:
            return document
        return Drop("near-duplicate", verdict.cluster)


def _verdicts(fingerprints, search: MinHash, documents: Reader | None):
    """(Key, fingerprints) -> (part, Verdict) of all documents in clusters of two and more."""
    import apache_beam as beam

    candidates = (fingerprints
                  | "buckets" >> beam.ptransform_fn(equals)(large=search.max_bucket)
                  | "stars" >> beam.MapTuple(lambda first, other: (other[0], first[0])).with_output_types(Edge)
                  | "components" >> beam.ptransform_fn(components)())
    if search.verify is None:
        others = candidates | "others" >> beam.Filter(lambda found: found[0] != found[1]).with_output_types(Edge)
        clusters = others | "clusters" >> beam.GroupByKey()
    else:
        clusters = (candidates
                    | "by part" >> beam.Map(_by_part).with_output_types(tuple[str, Edge])
                    | "parts" >> beam.GroupByKey()
                    | "read again" >> beam.FlatMap(_sketches, search, documents).with_output_types(tuple[bytes, Sketch])
                    | "candidates" >> beam.GroupByKey()
                    | "similar" >> beam.FlatMap(_similar, search))
    return clusters | "verdicts" >> beam.FlatMap(verdicts_on)


def _by_part(found: Edge) -> tuple[str, Edge]:
    return unpack(found[1]).part, found


def _sketches(found: tuple[str, Iterable[Edge]], search: MinHash, documents: Reader) -> Iterator[tuple[bytes, Sketch]]:
    """(smallest of the candidates, sketch) for each document of a part that has candidates."""
    part, edges = found
    roots = {member: root for root, member in edges}
    for item in documents(part):
        member = pack(Key(part, item.id))
        if member in roots:
            keys = b"".join(value for value, _ in search.fingerprints(item))
            yield roots.pop(member), (member, keys, search.shingle_set(item).tobytes())
    if roots:
        raise ValueError(f"documents: part {part!r} lacks {len(roots)} of the documents whose fingerprints were given, "
                         f"such as {unpack(min(roots)).id}")


def _similar(candidates: tuple[bytes, Iterable[Sketch]], search: MinHash) -> Iterator[tuple[bytes, list[bytes]]]:
    """(smallest, others) of each cluster that similar pairs connect among documents that candidate pairs connect."""
    bands, sets = {}, {}
    for member, keys, shingle_set in candidates[1]:
        bands[member] = [keys[i:i + HASH_BYTES] for i in range(0, len(keys), HASH_BYTES)]
        sets[member] = np.frombuffer(shingle_set, "<u4")
    compared = compare_candidates(bands, sets, threshold=search.verify, max_bucket=search.max_bucket)
    links = [pair for pair, found in compared.items() if found >= search.verify]
    count("pairs compared", len(compared))
    count(f"pairs at least {search.verify} similar", len(links))
    yield from _gather((root, member) for member, root in union_find(links).items() if member != root).items()


def compare_candidates(bands: Mapping, sets: Mapping, *, threshold: float, max_bucket: int) -> dict[tuple, float]:
    """The similarity of as many candidate pairs as it takes to know which documents similar pairs connect.

    A pair that is connected already is left out. Where the sizes of two sets alone keep them below the threshold, the
    most that these allow stands for the Jaccard similarity.

    Args:
      bands: for each document the keys of its bands.
      sets: for each document its set of shingles, sorted.
      threshold: the similarity from which on a pair connects.
      max_bucket: each document is compared with this many of its bucket, the smallest.

    >>> sets = {i: np.array(found) for i, found in enumerate([[1, 2, 3], [1, 2, 3], [2, 3, 4], [1, 2, 3]])}
    >>> compare_candidates({i: [b"same"] for i in sets}, sets, threshold=0.9, max_bucket=100)
    {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.5, (0, 3): 1.0, (2, 3): 0.5}
    """
    buckets = _gather((key, member) for member in sorted(bands) for key in bands[member])
    forest, compared = Forest(), {}
    for members in buckets.values():
        for i, member in enumerate(members):
            for other in members[:min(i, max_bucket)]:
                if (other, member) in compared or forest.root(other) == forest.root(member):
                    continue
                a, b = sets[other], sets[member]
                most = min(len(a), len(b)) / max(len(a), len(b))
                compared[other, member] = jaccard(a, b) if most >= threshold else most
                if compared[other, member] >= threshold:
                    forest.join(other, member)
    return compared


def _gather(pairs: Iterable[tuple]) -> dict[object, list]:
    groups = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def near_duplicates(texts: Sequence[str], search: MinHash = MinHash()) -> list[int]:
    """For each text the index of the first of its cluster: the search without Beam, for what fits in memory.

    >>> near_duplicates(["one two three four five six", "something else", "One, two, three; four five six!"])
    [0, 1, 0]
    """
    documents = [document(text, "") for text in texts]
    bands = {i: [value for value, _ in search.fingerprints(item)] for i, item in enumerate(documents)}
    if search.verify is None:
        buckets = _gather((key, i) for i, keys in bands.items() for key in keys)
        links = [edge for members in buckets.values() for edge in star_edges(members)]
    else:
        sets = {i: search.shingle_set(item) for i, item in enumerate(documents)}
        compared = compare_candidates(bands, sets, threshold=search.verify, max_bucket=search.max_bucket)
        links = [pair for pair, found in compared.items() if found >= search.verify]
    roots = union_find(links)
    return [roots.get(i, i) for i in range(len(texts))]
