"""Where each token of many documents goes: computed from their lengths alone, before a token is read.

A layout puts pieces of documents one after the other into a buffer and says which parts of it are rows:

    concat     | d o c 0 | d 1 | document 2 . . . . | d 3 |      rows of T + 1 tokens, each beginning with the last
               |<-- row 0 -->|                                   of the one before: no prediction is lost at a cut
                           |<-- row 1 -->|
    best_fit   | document 2 . . . | d 1 |     | d o c 0 | d 3 |    |
               |<-------- row 0 ------->|     |<---- row 1 --->|

Any rows of it are then made at once, whole batches by a few NumPy calls. `packing.row_of_pieces` says what a row is.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxgpt.data.packing import Row, best_fit


@dataclasses.dataclass(frozen=True)
class Layout:
    """Pieces of documents in a buffer, and the rows among them.

    Attributes:
      documents, begins, places, counts: int64 [pieces], by place: `counts` tokens of a document, from its token
        `begins` on, lie at `places`.
      starts, stops: int64 [rows]: where a row's tokens begin and end, at most T + 1 of them.
    """

    documents: np.ndarray
    begins: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first, end): which pieces each row touches."""
        return (np.searchsorted(self.places, self.starts[rows], side="right") - 1,
                np.searchsorted(self.places, self.stops[rows], side="left"))


def concat(lengths: np.ndarray, length: int, first: int | None = None) -> Layout:
    """All documents in their order as one stream, cut into rows: every token but the first is predicted exactly once.

    Args:
      lengths: [documents] tokens of each.
      length: T.
      first: predictions in the first row, from `first_rows`; T where None.

    >>> layout = concat(np.array([3, 2, 4]), length=4)  # 0 0 0 | 1 1 | 2 2 2 2
    >>> layout.starts.tolist(), layout.stops.tolist()
    ([0, 4], [5, 9])
    """
    lengths = np.asarray(lengths, np.int64)
    documents = np.flatnonzero(lengths)
    counts = lengths[documents]
    ends = np.cumsum(counts)
    pairs = int(ends[-1]) - 1 if len(ends) else 0
    first = length if first is None else first
    starts = np.concatenate([np.arange(min(pairs, 1)), np.arange(first, pairs, length)]).astype(np.int64)
    stops = np.append(starts[1:] + 1, pairs + 1)[:len(starts)]
    return Layout(documents, np.zeros_like(counts), ends - counts, counts, starts, stops)


def first_rows(pairs: int, length: int) -> range:
    """The sizes of the first row among which an epoch draws, so that a long document is cut elsewhere the next time.

    All of them give the same number of rows, none of them empty, and they are at least half of all there are.

    >>> first_rows(10, length=4), first_rows(11, length=4)  # 3 rows: 2+4+4, 3+4+3, 4+4+2; or 4: 1+4+4+2, 2+4+4+1
    (range(2, 5), range(1, 3))
    """
    if pairs <= length:
        return range(length, length + 1)
    rows = -(-pairs // length)
    spare = rows * length - pairs
    if spare < length // 2:
        spare += length
    return range(max(1, length - spare), min(length, 2 * length - 1 - spare) + 1)


def fitted(lengths: np.ndarray, length: int) -> Layout:
    """Each document whole in a row, or in pieces of T + 1 tokens where it is longer; pieces share rows by best fit.

    A piece begins with the last token of the one before. Documents of one token give nothing to predict.

    Args:
      lengths: [documents] tokens of each.
      length: T.

    >>> layout = fitted(np.array([3, 2, 9]), length=4)
    >>> layout.documents.tolist(), layout.begins.tolist(), layout.counts.tolist()
    ([2, 2, 0, 1], [0, 4, 0, 0], [5, 5, 3, 2])
    >>> layout.starts.tolist(), layout.stops.tolist()
    ([0, 5, 10], [5, 10, 15])
    """
    lengths = np.asarray(lengths, np.int64)
    cuts = -(-np.maximum(lengths - 1, 0) // length)
    documents = np.repeat(np.arange(len(lengths)), cuts)
    begins = length * ranges(np.zeros_like(cuts), cuts)
    counts = np.minimum(lengths[documents] - begins, length + 1)
    bins = best_fit(counts, length + 1)
    order = np.lexsort((-counts, bins))  # stable: of equal pieces the earlier one first
    documents, begins, counts, bins = (values[order] for values in (documents, begins, counts, bins))
    new = np.flatnonzero(np.diff(bins, prepend=-1))
    before = np.cumsum(counts) - counts
    starts = np.arange(len(new), dtype=np.int64) * (length + 1)
    places = starts[bins] + before - before[new][bins]
    loads = np.add.reduceat(counts, new) if len(new) else np.zeros(0, np.int64)
    return Layout(documents, begins, places, counts, starts, starts + loads)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`counts` numbers from each start on, one after the other.

    >>> ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist()
    [5, 6, 7, 8, 9]
    """
    return np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def gather(buffer: np.ndarray, layout: Layout, rows: np.ndarray, length: int) -> Row:
    """The batch of some rows of a layout.

    Args:
      buffer: the tokens, as the layout puts them, and T + 1 more places behind them.
      layout: of that buffer.
      rows: int [B] which.
      length: T.

    Returns:
      {"tokens", "targets", "loss_mask", "segment_ids", "positions"}, each [B, T].
    """
    T, B = length, len(rows)
    starts, used = layout.starts[rows], layout.stops[rows] - layout.starts[rows]
    first, end = layout.pieces(rows)
    counts = end - first
    row, piece = np.repeat(np.arange(B), counts), ranges(first, counts)
    begins = np.maximum(layout.places[piece] - starts[row], 0)
    ends = np.minimum(layout.places[piece] + layout.counts[piece] - starts[row], used[row])

    stream = np.lib.stride_tricks.sliding_window_view(buffer, T + 1)[starts]
    stream.reshape(-1)[ranges(np.arange(B) * (T + 1) + used, T + 1 - used)] = 0

    # One more run a row, for its padding; a run is what is the same along a piece.
    kept = np.minimum(used, T)
    place, padding = np.arange(len(row)) + row, np.cumsum(counts) + np.arange(B)
    widths, numbers, origins = np.zeros((3, len(row) + B), np.int32)
    widths[place], widths[padding] = np.minimum(ends, T) - np.minimum(begins, T), T - kept
    numbers[place], origins[place] = piece - first[row] + 1, begins
    segments = np.repeat(numbers, widths).reshape(B, T)
    positions = np.arange(T, dtype=np.int32) - np.repeat(origins, widths).reshape(B, T)
    loss_mask = np.ones((B, T), np.float32)
    last = ends <= T  # the last token of a document has no target, unless it is a target only
    loss_mask.reshape(-1)[row[last] * T + ends[last] - 1] = 0
    blank = ranges(np.arange(B) * T + kept, T - kept)
    loss_mask.reshape(-1)[blank] = 0
    positions.reshape(-1)[blank] = 0
    return {"tokens": stream[:, :-1].astype(np.int32), "targets": stream[:, 1:].astype(np.int32),
            "loss_mask": loss_mask, "segment_ids": segments, "positions": positions}
