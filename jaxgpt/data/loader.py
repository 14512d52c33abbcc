"""Batches: the batch at step k follows from (seed, k) alone, whatever the number of hosts, processes or restarts.

Batch k is the rows k B to (k + 1) B - 1 of an endless sequence of rows (dataset.py, mixture.py), any of which can be
made from its index, so nothing has to be replayed. Of several hosts, each makes the rows that it is told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.data.dataset import ConversationRows, TokenDataset
from jaxgpt.data.mixture import Mixture, MixtureRows
from jaxgpt.data.packing import Example, Row
from jaxgpt.data.shards import TokenShards


_AHEAD = 2**22  # tokens whose documents are read in one call, in at most
_MOST_AHEAD = 256  # batches


class _Steps:
    """What of each batch this host makes, by step. Every `stride`-th is asked for here, each worker having its own."""

    def __init__(self, rows, batch: int, mine: Sequence[int], first: int, stride: int):
        self._rows, self._batch, self._mine = rows, batch, np.asarray(mine, np.int64)
        self._first, self._stride, self._read = first, stride, range(0)

    def __len__(self) -> int:
        return max(0, min(sys.maxsize, len(self._rows) // self._batch - self._first))

    def __getitem__(self, index: int) -> Row:
        index, ahead = int(index), ()
        if index not in self._read:
            count = max(1, min(_MOST_AHEAD, _AHEAD // (len(self._mine) * self._rows.length)))
            self._read = range(index, index + count * self._stride, self._stride)
            ahead = np.concatenate([self._indices(step) for step in self._read])
        return self._rows.take(self._indices(index), ahead)

    def _indices(self, index: int) -> np.ndarray:
        return (self._first + index) * self._batch + self._mine


def _places(batch: int, mine: Sequence[int] | None) -> Sequence[int]:
    if batch < 1:
        raise UserError(f"batch={batch}: at least 1")
    if mine is None:
        return range(batch)
    if not 0 <= min(mine, default=-1) <= max(mine, default=-1) < batch:
        raise ValueError(f"mine: must name rows from 0 to {batch - 1}, not {list(mine)}")
    return mine


class Batches:
    """An iterator of batches whose place can be read and set. Grain makes them ahead, on a thread or in processes."""

    def __init__(self, rows, *, batch: int, start_step: int = 0, mine: Sequence[int] | None = None, prefetch: int = 4,
                 workers: int = 0):
        """Raises UserError where a batch has no rows.

        Args:
          rows: anything with `len` and `take(indices)`, such as `TokenDataset`.
          batch: rows in a batch, all hosts together.
          start_step: the step whose batch comes first.
          mine: which rows of each batch this host loads, see `sharding.rows_here`; all where None.
          prefetch: how many batches to make ahead (each worker); 0 for none.
          workers: processes that make them in turn; 0 for a thread of this one. The batches are the same.
        """
        self._rows, self._batch, self._mine = rows, batch, _places(batch, mine)
        self._prefetch, self._workers, self._iterator = prefetch, workers, None
        self.restore({"next_index": start_step})

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def state(self) -> dict[str, int]:
        """Where the next batch comes from: {"next_index": step}."""
        return {"next_index": self._step}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from a `state()`, whichever iterator or number of hosts or workers it came from."""
        import grain
        from absl import flags

        if self._workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain looks at flags of its own, which only a program of absl's parses
        self.close()
        self._step = int(state["next_index"])
        steps = _Steps(self._rows, self._batch, self._mine, self._step, stride=max(1, self._workers))
        ahead = self._prefetch if not self._workers else 0
        options = grain.ReadOptions(num_threads=min(1, ahead), prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
        if self._workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=max(1, self._prefetch)))
        self._iterator = iter(dataset)

    def close(self) -> None:
        """Ends the thread or the processes that make batches ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def batches(dataset_dir: str | os.PathLike, split: str, *, batch: int, length: int, seed: int, start_step: int = 0,
            mine: Sequence[int] | None = None, packing: str = "concat", workers: int = 0) -> Batches:
    """Endless pretraining batches from token shards.

    Args:
      dataset_dir: what the stage `Tokenize` wrote.
      split: "train" or "val".
      batch, length: B and T.
      seed: decides the order.
      start_step: the step whose batch comes first.
      mine: which rows of each batch this host loads; all where None.
      packing: "concat" or "best_fit", see `TokenDataset`.
      workers: processes that make batches; 0 for a thread of this one.

    Returns:
      An iterator of {"tokens", "targets", "loss_mask", "segment_ids", "positions"}, each [B, T], or the rows of `mine`.

    Raises:
      UserError: no shards, or too few tokens.
    """
    rows = TokenDataset(TokenShards(dataset_dir, split), length=length, seed=seed, packing=packing)
    return Batches(rows, batch=batch, start_step=start_step, mine=mine, workers=workers)


def mixed_batches(dataset_dirs: Mapping[str, str | os.PathLike], mixture: Mixture, split: str, *, steps: int,
                  batch: int, length: int, seed: int, start_step: int = 0, mine: Sequence[int] | None = None,
                  packing: str = "concat", workers: int = 0) -> Batches:
    """Pretraining batches from several folders of token shards, in the proportions of a mixture.

    Args:
      dataset_dirs: by the names that the mixture has for them.
      mixture: says when each has its turn.
      steps: of the run, for where phases end.
      split, batch, length, seed, start_step, mine, packing, workers: see `batches`, whose stream it is where the
        mixture has one dataset.

    Raises:
      UserError: as `batches`.
    """
    rows = {name: TokenDataset(TokenShards(dataset_dirs[name], split), length=length, seed=seed + number,
                               packing=packing) for number, name in enumerate(mixture.names)}
    return Batches(MixtureRows(rows, mixture, steps=steps, batch=batch), batch=batch, start_step=start_step, mine=mine,
                   workers=workers)


def evaluation_batches(dataset_dir: str | os.PathLike, split: str, *, batch: int, length: int,
                       mine: Sequence[int] | None = None) -> Iterator[Row]:
    """The whole split once, in order, every token predicted once; rows of padding fill the last batch.

    With `manifest["splits"][split]["bytes"]`, the UTF-8 bytes of the same text, bits per byte = nats / ln 2 / bytes.

    Raises:
      UserError: no shards, or a batch without rows.
    """
    rows = TokenDataset(TokenShards(dataset_dir, split), length=length, shuffle=False)
    steps = _Steps(rows, batch, _places(batch, mine), first=0, stride=1)
    return (steps[index] for index in range(-(-len(rows) // batch)))


def conversation_batches(examples: Sequence[Example], *, batch: int, length: int, seed: int, start_step: int = 0,
                         mine: Sequence[int] | None = None, too_long: str = "refuse") -> Batches:
    """Endless finetuning batches from rendered conversations (see `packing.pack`), in the same form as `batches`.

    Raises:
      UserError: as `packing.pack`.
    """
    rows = ConversationRows(examples, length=length, seed=seed, too_long=too_long)
    return Batches(rows, batch=batch, start_step=start_step, mine=mine)
