"""Tokens a second from token shards to batches on the host, beside the memmap loop that nanoGPT's train.py has.

  python tests/benchmarks/loader.py                          on one core
  python tests/benchmarks/loader.py --cores 4 --workers 0 4  a thread, and four processes
  python tests/benchmarks/loader.py --shards WORKDIR/tokenize/shards

Ours packs documents into rows with their segments, positions and loss mask, each token once an epoch, and makes batches
ahead. The other draws windows anywhere from one flat file and gives two arrays. nanoGPT's own function cannot be called
from outside of its script, so the loop here is one of ours that does the same with numpy. Sides take turns, and the
cores are the first of those that this process may use, for all that is measured. Seconds of the processor do not count
what other work on the machine took meanwhile; those of worker processes are not known to this one.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import hardware, header, need, parser, table


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


def seconds_of(batches, count: int) -> tuple[float, float]:
    """(by the clock, of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - clock, time.process_time() - processor


def measure(given, shards: Path, flat: Path, length: int) -> list[list]:
    """The table's rows of one length."""
    from jaxgpt.data.dataset import PACKINGS
    from jaxgpt.data.loader import batches
    rows = max(1, given.tokens // length)
    tokens = rows * length * given.batches
    with contextlib.ExitStack() as opened:
        sides = {"numpy memmap loop of ours": memmap_batches(flat, rows, length)}
        for packing in PACKINGS:
            for workers in given.workers:
                name = f"jaxgpt, {packing}" + (f", {workers} processes" if workers else "")
                sides[name] = opened.enter_context(contextlib.closing(batches(
                    shards, "train", batch=rows, length=length, seed=0, packing=packing, workers=workers)))
        for side in sides.values():
            seconds_of(side, given.batches)  # starts what makes batches and fills the queue
        spent = {name: [] for name in sides}
        for number in range(given.rounds):
            for name in list(sides)[::-1] if number % 2 else sides:
                spent[name].append(seconds_of(sides[name], given.batches))
    return [[f"{rows} x {length:,}", name, f"{tokens / statistics.median(clock for clock, _ in seconds):,.0f}",
             f"{tokens / min(clock for clock, _ in seconds):,.0f}",
             "" if "processes" in name else f"{tokens / min(processor for _, processor in seconds):,.0f}"]
            for name, seconds in spent.items()]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 8192], help="T")
    arguments.add_argument("--tokens", type=int, default=2**18, help="in a batch, B x T")
    arguments.add_argument("--workers", type=int, nargs="+", default=[0], help="0 for a thread, else processes")
    arguments.add_argument("--cores", type=int, default=1, help="that all of it may use")
    arguments.add_argument("--documents", type=int, default=30_000)
    arguments.add_argument("--shards", help="a folder of token shards to read instead of random documents")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--batches", type=int, default=96, help="in a round")
    given = arguments.parse_args()
    if given.smoke:
        given.lengths, given.tokens, given.documents, given.rounds, given.batches = [16, 32], 64, 50, 2, 2
    for package in ("grain", "array_record"):
        need(package, "reading token shards")
    on = hardware()  # before the cores are given up
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:given.cores])
    from jaxgpt.data.shards import TokenShards, write_shards
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.shards or Path(temporary) / "shards")
        if not given.shards:
            write_shards(folder, {"train": documents_of(given.documents, 50257)}, vocab_size=50257)
        shards, flat = TokenShards(folder, "train"), Path(temporary) / "train.bin"
        with open(flat, "wb") as file:
            file.writelines(tokens.astype(np.uint16).tobytes() for tokens in shards)
        lines = [line for length in given.lengths for line in measure(given, folder, flat, length)]
    print(header("loader", f"{given.cores} of {on}", "grain", "array_record"))
    print(f"\n{int(shards.lengths.sum()):,} tokens in {len(shards):,} documents, {given.rounds} rounds of "
          f"{given.batches} batches, tokens a second\n")
    print(table(["B x T", "", "median", "most", "most of a second of the processor"], lines))


if __name__ == "__main__":
    main()
