"""The global shuffle: documents in an order that a hash of each decides, whatever the order in which they come.

An external merge sort: what fits into memory is sorted and written as a run, and the runs are read again side by side.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_HEAD = struct.Struct("<16sIIQ")  # key, bytes of the id, bytes of the tokens, bytes of the text
_OVERHEAD = 400  # bytes that Python needs for a document beside its tokens
_MOST_RUNS = 256  # that are open at a time


class Tokens(NamedTuple):
    """A tokenized document, in the order in which it is sorted.

    Attributes:
      key: what decides its place.
      id: of the document.
      data: its tokens, little-endian.
      text_bytes: how long its text is.
    """

    key: bytes
    id: str
    data: bytes
    text_bytes: int


def order_key(seed: int, id: str) -> bytes:
    """Where a document stands in the order of `seed`: 16 bytes of a hash.

    >>> sorted("abcd", key=lambda name: order_key(0, name)), sorted("abcd", key=lambda name: order_key(1, name))
    (['c', 'b', 'd', 'a'], ['d', 'a', 'b', 'c'])
    """
    return hashlib.sha256(f"{seed}/{id}".encode()).digest()[:16]


def shuffled(documents: Iterable[tuple[str, bytes, int]], *, seed: int, directory: Path,
             memory: int = 2**27) -> Iterator[Tokens]:
    """Yields documents in the order of their keys.

    Args:
      documents: (id, tokens, bytes of its text), in any order; each is taken once.
      seed: decides the order.
      directory: where runs lie meanwhile; as many bytes as the documents have, where those exceed `memory`.
      memory: bytes to sort at a time; beside it 64 KB a run, of at most 256.
    """
    runs: list[Path] = []
    held: list[Tokens] = []
    used = number = 0
    for name, data, text_bytes in documents:
        held.append(Tokens(order_key(seed, name), name, data, text_bytes))
        used += len(data) + _OVERHEAD
        if used > memory:
            runs.append(_write_run(directory / f"run-{number}", sorted(held)))
            held, used, number = [], 0, number + 1
        if len(runs) == _MOST_RUNS:
            merged = _write_run(directory / f"run-{number}", heapq.merge(*map(_read_run, runs)))
            for path in runs:
                path.unlink()
            runs, number = [merged], number + 1
    yield from heapq.merge(*map(_read_run, runs), sorted(held))
    for path in runs:
        path.unlink()


def _write_run(path: Path, documents: Iterable[Tokens]) -> Path:
    with open(path, "wb", buffering=2**20) as file:
        for key, name, data, text_bytes in documents:
            encoded = name.encode()
            file.write(_HEAD.pack(key, len(encoded), len(data), text_bytes) + encoded + data)
    return path


def _read_run(path: Path) -> Iterator[Tokens]:
    with open(path, "rb", buffering=2**16) as file:
        while head := file.read(_HEAD.size):
            key, name, data, text_bytes = _HEAD.unpack(head)
            yield Tokens(key, file.read(name).decode(), file.read(data), text_bytes)
