"""Who has the same fingerprint: (document, fingerprints) -> pairs of equals, in few bytes a fingerprint.

    records of 32 bytes -> shards, by the start of the hash -> sorted within a shard -> (first, other) for equal hashes

Beam's embedded runner needs about 400 bytes of memory for each element that it groups. So it is not fingerprints that
are grouped but blobs: the records, of thousands of documents of one part, that go to the same shard.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from jaxgpt.curation.components import ID_BYTES, count, pack
from jaxgpt.curation.document import Fingerprint, Key

HASH_BYTES = 12  # among 10^12 different values two have the same hash with a probability of 6e-6
RECORD = np.dtype([("hash", ">u8"), ("hash_end", ">u4"), ("id", ">u8"), ("id_end", ">u8"), ("place", ">u4")])
SHARDS = 1024  # each is sorted by one worker, in about 160 bytes of memory a record
BATCH = 10_000  # documents whose records are divided among the shards at once
Place = tuple[bytes, int]  # a packed key, then where in the document


def digest(data: bytes) -> bytes:
    """The hash that stands for `data` in a fingerprint.

    >>> digest(b"hello").hex()
    '8ed7252f4b03f9e8376db5b2'
    """
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def equals(fingerprints, *, large: int | None = None):
    """(first, other) for every two places that have the same fingerprint, where no place is before the first.

    Places sort by (id, part, place), so what is first does not depend on the order in which documents come. Of n equal
    places there are n - 1 pairs.

    Args:
      fingerprints: a PCollection of (Key, tuple of Fingerprints); their values are made by `digest`.
      large: the report counts the fingerprints that more than so many places have.

    Returns:
      A PCollection of (Place, Place).
    """
    import apache_beam as beam

    return (fingerprints
            | "records" >> beam.Map(_records).with_output_types(tuple[str, bytes])
            | "batches" >> beam.BatchElements(min_batch_size=BATCH, max_batch_size=BATCH)
            | "divide" >> beam.FlatMap(_divide).with_output_types(tuple[int, tuple[str, bytes]])
            | "shards" >> beam.GroupByKey()
            | "equals" >> beam.FlatMap(_equals, large).with_output_types(tuple[Place, Place]))


def _records(found: tuple[Key, Iterable[Fingerprint]]) -> tuple[str, bytes]:
    key, fingerprints = found
    document = pack(key)[:ID_BYTES]
    if any(len(value) != HASH_BYTES for value, _ in fingerprints):
        raise ValueError(f"value: a fingerprint must have {HASH_BYTES} bytes (part {key.part!r}, document {key.id})")
    return key.part, b"".join(value + document + place.to_bytes(4, "big") for value, place in fingerprints)


def _divide(batch: list[tuple[str, bytes]]) -> Iterator[tuple[int, tuple[str, bytes]]]:
    """(shard, (part, records)) of the documents of a batch."""
    parts = defaultdict(list)
    for part, records in batch:
        parts[part].append(records)
    for part, blobs in parts.items():
        records = np.frombuffer(b"".join(blobs), RECORD)
        shards = (records["hash"] % SHARDS).astype(np.int64)
        order = np.argsort(shards, kind="stable")
        records, ends = records[order], np.cumsum(np.bincount(shards, minlength=SHARDS))
        for shard, (start, end) in enumerate(zip([0, *ends[:-1]], ends)):
            if start < end:
                yield shard, (part, records[start:end].tobytes())


def _equals(shard: tuple[int, Iterable[tuple[str, bytes]]], large: int | None) -> Iterator[tuple[Place, Place]]:
    parts, blobs = zip(*shard[1])
    names = sorted(set(parts))
    ranks = {name: rank for rank, name in enumerate(names)}
    records = np.frombuffer(b"".join(blobs), RECORD)
    part = np.repeat([ranks[name] for name in parts], [len(blob) // RECORD.itemsize for blob in blobs])
    columns = [records[name].astype(np.uint64) for name in RECORD.names]
    order = np.lexsort((columns[4], part, columns[3], columns[2], columns[1], columns[0]))
    records, part = records[order], part[order]
    new = np.ones(len(records), bool)
    new[1:] = (records["hash"][1:] != records["hash"][:-1]) | (records["hash_end"][1:] != records["hash_end"][:-1])
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(records))

    def place(i: int) -> Place:
        record = records[i].tobytes()[HASH_BYTES:]
        return record[:ID_BYTES] + names[part[i]].encode(), int.from_bytes(record[ID_BYTES:], "big")

    for start, size in zip(starts[sizes > 1], sizes[sizes > 1]):
        if large is not None and size > large:
            count(f"fingerprints of more than {large} documents")
            count(f"documents with a fingerprint of more than {large}", int(size))
        first = place(start)
        yield from ((first, place(i)) for i in range(start + 1, start + size))
