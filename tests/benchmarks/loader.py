"""Tokens a second from shards to batches on the host, beside the memmap loop that nanoGPT's train.py has.

  python tests/benchmarks/loader.py
  python tests/benchmarks/loader.py --rows 64 --length 1024 --documents 20000

Ours packs documents into rows with their segments and positions, each document once an epoch, and prepares batches
ahead on a thread. The other draws windows anywhere from one flat file and gives two arrays. nanoGPT's own function
cannot be called from outside of its script, so the loop here is one of ours that does the same with numpy.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import hardware, header, need, parser, ratio, table


def documents_of(count: int, vocabulary: int):
    """Random documents of lengths like those of web pages (log-normal, median 500 tokens)."""
    rng = np.random.default_rng(0)
    for i, length in enumerate(np.clip(rng.lognormal(np.log(500), 1.0, count), 16, 20_000).astype(int)):
        yield str(i), rng.integers(0, vocabulary, length, np.int32), int(length) * 4


def memmap_batches(path: Path, rows: int, length: int):
    """Windows at random places of a flat file of uint16: (tokens, targets), each int64 [B, T]."""
    rng = np.random.default_rng(0)
    while True:
        data = np.memmap(path, np.uint16, "r")
        starts = rng.integers(0, len(data) - length, rows)
        yield (np.stack([data[s:s + length].astype(np.int64) for s in starts]),
               np.stack([data[s + 1:s + 1 + length].astype(np.int64) for s in starts]))


def seconds_of(batches, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - began


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=32, help="B")
    arguments.add_argument("--length", type=int, default=1024, help="T")
    arguments.add_argument("--documents", type=int, default=10_000)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--batches", type=int, default=20, help="in a round")
    given = arguments.parse_args()
    if given.smoke:
        given.rows, given.length, given.documents, given.rounds, given.batches = 2, 16, 50, 2, 2
    for package in ("grain", "tensorflow-datasets"):
        need(package, "reading token shards")
    from jaxgpt.data.loader import batches
    from jaxgpt.data.shards import write_shards
    vocabulary = 50257
    with tempfile.TemporaryDirectory() as temporary:
        manifest = write_shards(Path(temporary) / "shards", {"train": documents_of(given.documents, vocabulary)},
                                vocab_size=vocabulary)
        flat = np.concatenate([tokens for _, tokens, _ in documents_of(given.documents, vocabulary)]).astype(np.uint16)
        flat.tofile(Path(temporary) / "train.bin")
        sides = {"jaxgpt": batches(Path(temporary) / "shards", "train", batch=given.rows, length=given.length, seed=0),
                 "numpy memmap loop of ours": memmap_batches(Path(temporary) / "train.bin", given.rows, given.length)}
        seconds = {name: [] for name in sides}
        for side in sides.values():
            seconds_of(side, given.batches)  # reads the files once and fills the queue
        for _ in range(given.rounds):
            for name, side in sides.items():
                seconds[name].append(seconds_of(side, given.batches))
    print(header("loader", hardware(), "grain", "tensorflow-datasets"))
    print(f"\n{manifest['splits']['train']['tokens']:,} tokens in {given.documents:,} documents, "
          f"batches of {given.rows} x {given.length}, {given.rounds} rounds of {given.batches}\n")
    tokens = given.rows * given.length * given.batches
    print(table(["", "median tokens/s", "most tokens/s", "ours / this, of the time"],
                [[name, f"{tokens / statistics.median(values):,.0f}", f"{tokens / min(values):,.0f}",
                  f"{ratio(seconds['jaxgpt'], values):.2f}"] for name, values in seconds.items()]))


if __name__ == "__main__":
    main()
