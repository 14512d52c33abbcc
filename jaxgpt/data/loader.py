"""Batches: the batch at step k follows from (seed, k) alone, whatever the number of devices, hosts or restarts.

All documents of an epoch, in an order drawn for it, are one stream of tokens; the stream is cut into rows, and the
rows are drawn in a random order too. Any row can be computed from its index, so nothing has to be replayed. Batch k is
the rows k B to (k + 1) B - 1 of the endless sequence of epochs; of several hosts, each takes those that it is told.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.data.packing import (
    Example, Row, empty_row, epoch_order, fit_conversations, pieces_between, row_of_conversations, row_of_pieces, stack)
from jaxgpt.data.shards import TokenShards


class TokenDataset:
    """The endless sequence of pretraining rows, by index.

    Attributes:
      rows_per_epoch: how many rows one pass over the documents gives. The few tokens left over differ by epoch.
    """

    def __init__(self, documents: TokenShards | Sequence[np.ndarray], *, length: int, seed: int):
        """Raises UserError where all documents together do not fill one row.

        Args:
          documents: the tokens of each, `<|bos|>` first.
          length: T.
          seed: decides the order.
        """
        self._documents, self._length, self._seed = documents, length, seed
        lengths = getattr(documents, "lengths", None)
        self._lengths = np.asarray([len(tokens) for tokens in documents] if lengths is None else lengths, np.int64)
        pairs = int(self._lengths.sum()) - 1
        self.rows_per_epoch = pairs // length
        self._spare = pairs - self.rows_per_epoch * length
        if self.rows_per_epoch < 1:
            raise UserError(f"the documents hold {pairs + 1} tokens, fewer than one row of {length} + 1: "
                            "give more text or a shorter length")
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng([self._seed, epoch])
        documents = rng.permutation(len(self._lengths))
        rows = rng.permutation(self.rows_per_epoch)
        offset = int(rng.integers(self._spare + 1))
        return documents, np.cumsum(self._lengths[documents]), rows, offset

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        """The row at `index`, counted through all epochs."""
        epoch, index = divmod(int(index), self.rows_per_epoch)
        documents, ends, rows, offset = self._epoch(epoch)
        start = offset + int(rows[index]) * self._length
        pieces = pieces_between(ends, start, start + self._length + 1)
        return row_of_pieces([self._documents[int(documents[d])][begin:end] for d, begin, end in pieces], self._length)


class EvaluationRows:
    """The documents in their order, cut into rows so that every token but `<|bos|>` is predicted exactly once."""

    def __init__(self, documents: TokenShards | Sequence[np.ndarray], *, length: int):
        self._documents, self._length = documents, length
        lengths = getattr(documents, "lengths", None)
        self._ends = np.cumsum([len(tokens) for tokens in documents] if lengths is None else lengths, dtype=np.int64)

    def __len__(self) -> int:
        return -(-(int(self._ends[-1]) - 1) // self._length)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self._length
        pieces = pieces_between(self._ends, start, min(start + self._length + 1, int(self._ends[-1])))
        return row_of_pieces([self._documents[d][begin:end] for d, begin, end in pieces], self._length)


class ConversationRows:
    """The endless sequence of finetuning rows: conversations packed whole, the rows in a new order every epoch."""

    def __init__(self, examples: Sequence[Example], *, length: int, seed: int, too_long: str = "refuse"):
        """Raises UserError as `pack` does."""
        self._examples, self._length = examples, length
        self._bins = fit_conversations(examples, length=length, too_long=too_long)
        self.rows_per_epoch = len(self._bins)
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: epoch_order(len(self._bins), seed, epoch))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        """The row at `index`, counted through all epochs: `pack(..., epoch=e)` one after the other."""
        epoch, index = divmod(int(index), self.rows_per_epoch)
        members = self._bins[self._order(epoch)[index]]
        return row_of_conversations([self._examples[item] for item in members], self._length)


class _HostPart:
    """Of each batch of `batch` rows, those that one host loads."""

    def __init__(self, rows, batch: int, mine: Sequence[int]):
        self._rows, self._batch, self._mine = rows, batch, [int(place) for place in mine]

    def __len__(self) -> int:
        return len(self._rows) // self._batch * len(self._mine)

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(int(index), len(self._mine))
        return self._rows[step * self._batch + self._mine[place]]


def _places(batch: int, mine: Sequence[int] | None) -> Sequence[int]:
    if batch < 1:
        raise UserError(f"batch={batch}: at least 1")
    if mine is None:
        return range(batch)
    if not 0 <= min(mine, default=-1) <= max(mine, default=-1) < batch:
        raise ValueError(f"mine: must name rows from 0 to {batch - 1}, not {list(mine)}")
    return mine


class Batches:
    """An iterator of batches whose place can be read and set. Rows are prepared ahead, on another thread, by grain."""

    def __init__(self, rows, *, batch: int, start_step: int = 0, mine: Sequence[int] | None = None, prefetch: int = 8):
        """Raises UserError where a batch has no rows.

        Args:
          rows: anything with `len` and rows by index, such as `TokenDataset`.
          batch: rows in a batch, all hosts together.
          start_step: the step whose batch comes first.
          mine: which rows of each batch this host loads, see `sharding.rows_here`; all where None.
          prefetch: how many batches to prepare ahead; 0 for none.
        """
        import grain

        mine = _places(batch, mine)
        part = _HostPart(rows, batch, mine)
        options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch)
        dataset = grain.MapDataset.source(part).batch(len(mine), drop_remainder=True)
        self._iterator = iter(dataset.to_iter_dataset(options))
        self.restore({"next_index": start_step})

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        return next(self._iterator)

    def state(self) -> dict[str, int]:
        """Where the next batch comes from: {"next_index": step}."""
        return {"next_index": int(self._iterator.get_state()["next_index"])}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from a `state()`, whichever iterator or number of hosts it came from."""
        self._iterator.set_state({**self._iterator.get_state(), **state})


def batches(dataset_dir: str | os.PathLike, split: str, *, batch: int, length: int, seed: int, start_step: int = 0,
            mine: Sequence[int] | None = None) -> Batches:
    """Endless pretraining batches from token shards.

    Args:
      dataset_dir: what the stage `Tokenize` wrote.
      split: "train" or "val".
      batch, length: B and T.
      seed: decides the order.
      start_step: the step whose batch comes first.
      mine: which rows of each batch this host loads; all where None.

    Returns:
      An iterator of {"tokens", "targets", "loss_mask", "segment_ids", "positions"}, each [B, T], or the rows of `mine`.

    Raises:
      UserError: no shards, or too few tokens.
    """
    rows = TokenDataset(TokenShards(dataset_dir, split), length=length, seed=seed)
    return Batches(rows, batch=batch, start_step=start_step, mine=mine)


def evaluation_batches(dataset_dir: str | os.PathLike, split: str, *, batch: int, length: int,
                       mine: Sequence[int] | None = None) -> Iterator[Row]:
    """The whole split once, in order, every token predicted once; rows of padding fill the last batch.

    With `manifest["splits"][split]["bytes"]`, the UTF-8 bytes of the same text, bits per byte = nats / ln 2 / bytes.

    Raises:
      UserError: no shards, or a batch without rows.
    """
    mine = _places(batch, mine)
    rows = EvaluationRows(TokenShards(dataset_dir, split), length=length)
    for start in range(0, len(rows), batch):
        yield stack([rows[start + place] if start + place < len(rows) else empty_row(length) for place in mine])


def conversation_batches(examples: Sequence[Example], *, batch: int, length: int, seed: int, start_step: int = 0,
                         mine: Sequence[int] | None = None, too_long: str = "refuse") -> Batches:
    """Endless finetuning batches from rendered conversations (see `packing.pack`), in the same form as `batches`.

    Raises:
      UserError: as `packing.pack`.
    """
    rows = ConversationRows(examples, length=length, seed=seed, too_long=too_long)
    return Batches(rows, batch=batch, start_step=start_step, mine=mine)
