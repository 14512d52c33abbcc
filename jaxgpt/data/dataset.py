"""Rows by index: the row at index i follows from (seed, i) alone, whatever was asked for before.

Documents are taken in windows of some million tokens: documents that lie next to each other on disk, where they are
shuffled. An epoch draws an order of the windows; a window of an epoch draws an order of its documents, packs them
(layout.py), and draws an order of the rows. What a window's rows need of its documents is read once, into one buffer.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.data.layout import Layout, concat, first_rows, fitted, gather, ranges
from jaxgpt.data.packing import Example, Row, empty_row, epoch_order, fit_conversations, row_of_conversations, stack
from jaxgpt.data.shards import TokenShards

PACKINGS = ("concat", "best_fit")
_KEPT = 2  # windows: the one that batches come from, and the next


class TokenDataset:
    """The rows that a corpus of tokens is packed into: endless epochs, or once through in the order on disk.

    It remembers two windows: of as many tokens as `window` says (or one document, where that is longer), in the type
    that they have on disk.

    Attributes:
      length: T.
      rows_per_epoch: how many rows one pass over the documents gives; they predict each token but `<|bos|>` once.
    """

    def __init__(self, documents: TokenShards | Sequence[np.ndarray], *, length: int, seed: int = 0,
                 packing: str = "concat", shuffle: bool = True, window: int = 2**24):
        """Raises UserError where all documents together do not fill one row.

        Args:
          documents: the tokens of each, `<|bos|>` first.
          length: T.
          seed: decides the order.
          packing: "concat" cuts the stream of all documents into rows; "best_fit" keeps a document whole where T + 1
            tokens are enough for it, with some padding.
          shuffle: whether to draw orders; else one pass as the documents lie.
          window: how many tokens are shuffled and packed together.
        """
        if packing not in PACKINGS:
            raise ValueError(f"packing: must be one of {', '.join(map(repr, PACKINGS))}, not {packing!r}")
        self._documents = documents if hasattr(documents, "read") else _InMemory(documents)
        self.length, self._seed, self._packing, self._shuffle = length, seed, packing, shuffle
        self._bounds, self._sizes = _windows(self._documents.lengths, window)
        pairs = int(self._sizes.sum()) - 1
        if shuffle and pairs < length:
            raise UserError(f"the documents hold {pairs + 1} tokens, fewer than one row of {length} + 1: "
                            "give more text or a shorter length")
        self._rows = np.array([self._count(number) for number in range(len(self._sizes))], np.int64)
        self.rows_per_epoch = int(self._rows.sum())
        if shuffle and not self.rows_per_epoch:
            raise UserError("no document has two tokens, so there is nothing to predict")
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._open: dict[tuple[int, int], _Window] = {}

    def __getstate__(self) -> dict:
        own = ("_lock", "_epochs", "_open")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return sys.maxsize if self._shuffle else self.rows_per_epoch

    def __getitem__(self, index: int) -> Row:
        """The row at `index`, counted through all epochs."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {name: values[0] for name, values in self.take([index]).items()}

    def take(self, indices: Sequence[int] | np.ndarray, ahead: Sequence[int] | np.ndarray = ()) -> Row:
        """The rows at these indices as one batch [B, T].

        Args:
          indices: which; beyond the end of one pass there is padding.
          ahead: rows that will be asked for next: their documents are read in the same call.
        """
        indices = np.asarray(indices, np.int64)
        with self._lock:
            if len(ahead):
                for _, window, rows in itertools.islice(self._split(np.concatenate([indices, ahead])), _KEPT):
                    window.read(rows)
            parts = [(members, window.take(rows)) for members, window, rows in self._split(indices)]
        return join(parts, len(indices), self.length)

    def _split(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, _Window, np.ndarray]]:
        """(which of the indices lie in a window, the window, its rows that they are), one window after the other."""
        for epoch, members in _groups(indices // self.rows_per_epoch):
            if epoch and not self._shuffle:
                return
            order, ends = _recent(self._epochs, epoch, lambda: self._draw(epoch))
            rows = indices[members] - epoch * self.rows_per_epoch
            for place, inner in _groups(np.searchsorted(ends, rows, side="right")):
                number = int(order[place])
                window = _recent(self._open, (epoch, number), lambda: self._window(epoch, number))
                yield members[inner], window, rows[inner] - (ends[place] - self._rows[number])

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(order, ends): the windows of an epoch, and at which row each ends."""
        count = len(self._rows)
        order = np.random.default_rng([self._seed, epoch]).permutation(count) if self._shuffle else np.arange(count)
        return order, np.cumsum(self._rows[order])

    def _count(self, number: int) -> int:
        if self._packing == "best_fit":  # the same however documents of one length are ordered
            return len(fitted(self._lengths_of(number), self.length).starts)
        pairs = int(self._sizes[number]) - 1
        first = first_rows(pairs, self.length)[0] if self._shuffle else self.length
        return (pairs > 0) + -(-max(0, pairs - first) // self.length)

    def _lengths_of(self, number: int) -> np.ndarray:
        return np.asarray(self._documents.lengths[self._bounds[number]:self._bounds[number + 1]], np.int64)

    def _window(self, epoch: int, number: int) -> _Window:
        rng = np.random.default_rng([self._seed, epoch, 1 + number])
        lengths, T = self._lengths_of(number), self.length
        order = rng.permutation(len(lengths)) if self._shuffle else np.arange(len(lengths))
        if self._packing == "best_fit":
            layout = fitted(lengths[order], T)
        else:
            sizes = first_rows(int(self._sizes[number]) - 1, T)
            layout = concat(lengths[order], T, int(rng.integers(sizes.start, sizes.stop)) if self._shuffle else T)
        rows = rng.permutation(self._rows[number]) if self._shuffle else np.arange(self._rows[number])
        return _Window(self._documents, self._bounds[number] + order, layout, rows, T)


class _Window:
    """The rows of one window in one epoch."""

    def __init__(self, documents, order: np.ndarray, layout: Layout, rows: np.ndarray, length: int):
        self._documents, self._order, self._layout, self._rows, self.length = documents, order, layout, rows, length
        end = int(max((layout.places + layout.counts).max(initial=0), layout.stops.max(initial=0)))
        self._buffer = np.zeros(end + length + 1, documents.dtype)
        self._have = np.zeros(len(order), bool)
        self._by_document = np.argsort(layout.documents, kind="stable")  # the pieces of each, one after the other
        self._first = np.searchsorted(layout.documents[self._by_document], np.arange(len(order) + 1))

    def take(self, rows: np.ndarray) -> Row:
        """A batch of them."""
        self.read(rows)
        return gather(self._buffer, self._layout, self._rows[rows], self.length)

    def read(self, rows: np.ndarray) -> None:
        """Reads what they need and is not yet here, in one call."""
        layout = self._layout
        first, end = layout.pieces(self._rows[rows])
        touched = np.zeros(len(self._order), bool)
        touched[layout.documents[ranges(first, end - first)]] = True
        missing = np.flatnonzero(touched & ~self._have)
        missing = missing[np.argsort(self._order[missing])]  # as they lie on disk
        pieces = self._by_document[ranges(self._first[missing], self._first[missing + 1] - self._first[missing])]
        found = dict(zip(missing.tolist(), self._documents.read(self._order[missing])))
        for document, begin, place, count in zip(*(values[pieces].tolist() for values in (
                layout.documents, layout.begins, layout.places, layout.counts))):
            self._buffer[place:place + count] = found[document][begin:begin + count]
        self._have[missing] = True


class _InMemory:
    """Documents that are arrays, with the methods of `TokenShards`."""

    def __init__(self, documents: Sequence[np.ndarray]):
        self._documents = [np.asarray(tokens) for tokens in documents]
        self.lengths = np.array([len(tokens) for tokens in self._documents], np.int64)
        self.dtype = np.result_type(*self._documents) if self._documents else np.dtype(np.int32)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        return [self._documents[index] for index in indices.tolist()]


def _windows(lengths: np.ndarray, size: int, *, together: int = 2**22) -> tuple[np.ndarray, np.ndarray]:
    """(bounds [W + 1], tokens [W]): documents cut into windows of about the same number of tokens, near `size`.

    The lengths may lie on disk: `together` of them are in memory at a time.
    """
    blocks = range(0, len(lengths), together)
    total = sum(int(lengths[begin:begin + together].sum(dtype=np.int64)) for begin in blocks)
    size = max(1, -(-total // max(1, round(total / size))))
    firsts, before = [], 0
    for begin in blocks:
        counts = np.asarray(lengths[begin:begin + together], np.int64)
        number = (before + np.cumsum(counts) - counts) // size  # the window that a document begins in
        new = np.flatnonzero(np.diff(number, prepend=firsts[-1][2] if firsts else -1))
        starts = before + np.cumsum(counts) - counts
        firsts += [(begin + int(index), int(starts[index]), int(number[index])) for index in new]
        before += int(counts.sum())
    bounds = np.array([first for first, _, _ in firsts] + [len(lengths)], np.int64)
    return bounds, np.diff(np.array([start for _, start, _ in firsts] + [total], np.int64))


def _recent(kept: dict, key, make: Callable):
    """What is kept under `key`, made where it is not; the oldest goes before, so that never more are alive."""
    if key not in kept:
        while len(kept) >= _KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = make()
    return kept[key]


def _groups(values: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """[(value, where it stands)] for each distinct value."""
    if len(values) and (values[0] == values).all():
        return [(int(values[0]), np.arange(len(values)))]
    return [(int(value), np.flatnonzero(values == value)) for value in np.unique(values)]


def join(parts: Sequence[tuple[np.ndarray, Row]], count: int, length: int) -> Row:
    """A batch of `count` rows from [(which rows, these rows)]; rows that no part has are padding."""
    if len(parts) == 1 and len(parts[0][0]) == count:
        return parts[0][1]
    batch = stack([empty_row(length)] * count)
    for members, rows in parts:
        for name, values in rows.items():
            batch[name][members] = values
    return batch


class ConversationRows:
    """The endless sequence of finetuning rows: conversations packed whole, the rows in a new order every epoch."""

    def __init__(self, examples: Sequence[Example], *, length: int, seed: int, too_long: str = "refuse"):
        """Raises UserError as `pack` does."""
        self._examples, self.length, self._seed = examples, length, seed
        self._bins = fit_conversations(examples, length=length, too_long=too_long)
        self._orders: dict[int, np.ndarray] = {}
        self.rows_per_epoch = len(self._bins)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        """The row at `index`, counted through all epochs: `pack(..., epoch=e)` one after the other."""
        epoch, index = divmod(int(index), self.rows_per_epoch)
        order = _recent(self._orders, epoch, lambda: epoch_order(len(self._bins), self._seed, epoch))
        return row_of_conversations([self._examples[item] for item in self._bins[order[index]]], self.length)

    def take(self, indices: Sequence[int] | np.ndarray, ahead: Sequence[int] | np.ndarray = ()) -> Row:
        """The rows at these indices as one batch [B, T]; nothing is read, so nothing ahead."""
        return stack([self[index] for index in indices])
