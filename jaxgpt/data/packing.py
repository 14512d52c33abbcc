"""Rows of tokens from documents and conversations of any length. Arrays in, arrays out.

A row of length T is a dict of arrays [T]:
  tokens         int32    what the model reads
  targets        int32    what it is to predict: the token after each
  loss_mask      float32  1 where that prediction counts
  segment_ids    int32    1, 2, ... for the documents in the row, 0 for padding: tokens see only their own segment
  positions      int32    0, 1, ... from where a segment begins in the row

Documents are cut (concatenated, then split); conversations are packed whole.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from jaxgpt.core.errors import UserError

Row = dict[str, np.ndarray]
Example = tuple[Sequence[int], Sequence[int]]  # tokens, and 1 for each token that is to be learned


def row_of_pieces(pieces: Sequence[np.ndarray], length: int) -> Row:
    """A row of `length` from at most `length` + 1 consecutive tokens of a stream.

    No prediction crosses from one document to the next, and none is asked of padding.

    Args:
      pieces: the tokens, in one array per document.
      length: T.

    Raises:
      ValueError: the pieces hold more than T + 1 tokens.

    >>> row = row_of_pieces([np.array([5, 6]), np.array([1, 7, 8])], length=4)
    >>> for name, values in row.items(): print(f"{name:12}", *values.tolist())
    tokens       5 6 1 7
    targets      6 1 7 8
    loss_mask    1.0 0.0 1.0 1.0
    segment_ids  1 1 2 2
    positions    0 1 0 1
    """
    stream, segments, positions = np.zeros((3, length + 1), np.int32)
    begin = 0
    for number, piece in enumerate(pieces, start=1):
        end = begin + len(piece)
        if end > length + 1:
            raise ValueError(f"pieces: hold {sum(map(len, pieces))} tokens, more than length + 1 = {length + 1}")
        stream[begin:end] = piece
        segments[begin:end] = number
        positions[begin:end] = _COUNT[:end - begin] if end - begin <= len(_COUNT) else np.arange(end - begin)
        begin = end
    counts = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
    return {"tokens": stream[:-1], "targets": stream[1:], "loss_mask": counts.astype(np.float32),
            "segment_ids": segments[:-1], "positions": positions[:-1]}


_COUNT = np.arange(4096, dtype=np.int32)


def fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts items into bins of `capacity`, longest first, each into the fullest bin that has room (best fit decreasing).

    Source: Johnson, "Near-optimal bin packing algorithms" (1973): at most 11/9 of the fewest possible bins, plus 4.

    Raises:
      ValueError: an item is longer than a bin, or has no length.

    >>> fit([3, 5, 2, 4], capacity=7)
    [[1, 2], [3, 0]]
    """
    bins = best_fit(lengths, capacity)
    by_bin = np.lexsort((np.arange(len(bins)), -np.asarray(lengths, np.int64), bins))
    cuts = np.flatnonzero(np.diff(bins[by_bin])) + 1
    return [members.tolist() for members in np.split(by_bin, cuts)] if len(bins) else []


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item, as `fit` puts them: int64 [items].

    Items of one length are placed together, so that the time is that of the distinct lengths, and a sort.

    >>> best_fit([3, 5, 2, 4], capacity=7).tolist()
    [1, 0, 0, 1]
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        item = int(np.flatnonzero((lengths < 1) | (lengths > capacity))[0])
        raise ValueError(f"lengths: item {item} has {lengths[item]}; an item has from 1 to the capacity {capacity}")
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    rooms: list[int] = []  # the rooms that bins have left, ascending
    holders: dict[int, list[int]] = {}  # room: the bins that have it, ascending
    placed: list[int] = []  # the bin of each item, in that order
    opened = 0
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist()):
        while left:
            place = bisect.bisect_left(rooms, length)
            room = rooms[place] if place < len(rooms) else capacity
            # A bin that takes one has then the least room that is enough, so it takes all that go in before the next.
            each = min(room // length, left)
            if place < len(rooms):
                bins, rest = holders[room][:left // each], holders[room][left // each:]
                holders[room] = rest
                if not rest:
                    del rooms[place], holders[room]
            else:
                bins = list(range(opened, opened + left // each))
                opened += len(bins)
            placed += bins if each == 1 else [number for number in bins for _ in range(each)]
            left -= each * len(bins)
            _leave_room(rooms, holders, room - each * length, bins)
    result = np.empty(len(lengths), np.int64)
    result[order] = placed
    return result


def _leave_room(rooms: list[int], holders: dict[int, list[int]], room: int, bins: list[int]) -> None:
    if room and room in holders:
        holders[room] = sorted(holders[room] + bins)
    elif room:
        bisect.insort(rooms, room)
        holders[room] = bins


def pack(examples: Sequence[Example], *, length: int, seed: int, epoch: int = 0, too_long: str = "refuse") -> list[Row]:
    """Packs whole conversations into rows of `length`, in the order of (seed, epoch).

    Which conversations share a row is the same in every epoch, the order of the rows is not. A conversation of n tokens
    takes n - 1 places, since its last token is only ever a target.

    Args:
      examples: (tokens, loss_mask) of each, as `conversation.render` gives them.
      length: T.
      seed, epoch: decide the order.
      too_long: what happens to a conversation of more than `length` + 1 tokens: "refuse", or "truncate".

    Raises:
      UserError: there is no example, one has fewer than two tokens, or one is too long and `too_long` is "refuse".
    """
    bins = fit_conversations(examples, length=length, too_long=too_long)
    return [row_of_conversations([examples[item] for item in bins[number]], length)
            for number in epoch_order(len(bins), seed, epoch)]


def fit_conversations(examples: Sequence[Example], *, length: int, too_long: str = "refuse") -> list[list[int]]:
    """Which conversations share a row (see `pack`)."""
    if too_long not in ("refuse", "truncate"):
        raise ValueError(f"too_long: must be 'refuse' or 'truncate', not {too_long!r}")
    if not examples:
        raise UserError("no conversations to pack: the mixture is empty")
    pairs = [max(0, len(tokens) - 1) for tokens, _ in examples]
    if min(pairs) < 1:
        raise UserError(f"conversation {pairs.index(min(pairs))} has fewer than two tokens, so nothing to predict")
    if max(pairs) > length and too_long == "refuse":
        longest = pairs.index(max(pairs))
        raise UserError(f"{count_too_long(examples, length)} of {len(pairs)} conversations are longer than a row "
                        f"(conversation {longest} has {pairs[longest] + 1} tokens, a row holds {length + 1}): "
                        "raise the length, or leave it out")
    return fit([min(count, length) for count in pairs], length)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch takes `count` rows: a permutation that follows from (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def count_too_long(examples: Sequence[Example], length: int) -> int:
    """How many conversations have more tokens than a row of `length` can hold."""
    return sum(len(tokens) > length + 1 for tokens, _ in examples)


def row_of_conversations(examples: Sequence[Example], length: int) -> Row:
    """A row of whole conversations (cut at the row's end); the loss counts where a target's own mask is 1.

    >>> row = row_of_conversations([([1, 5, 6, 2], [0, 0, 1, 1]), ([1, 7, 2], [0, 1, 1])], length=6)
    >>> for name, values in row.items(): print(f"{name:12}", *values.tolist())
    tokens       1 5 6 1 7 0
    targets      5 6 2 7 2 0
    loss_mask    0.0 1.0 1.0 1.0 1.0 0.0
    segment_ids  1 1 1 2 2 0
    positions    0 1 2 0 1 0
    """
    tokens, targets, segments, positions = np.zeros((4, length), np.int32)
    loss_mask, begin = np.zeros(length, np.float32), 0
    for number, (ids, mask) in enumerate(examples, start=1):
        if len(ids) != len(mask):
            raise ValueError(f"examples: conversation {number - 1} has {len(ids)} tokens and a mask of {len(mask)}")
        count = min(len(ids) - 1, length - begin)
        place = slice(begin, begin + count)
        tokens[place], targets[place], loss_mask[place] = ids[:count], ids[1:count + 1], mask[1:count + 1]
        segments[place], positions[place] = number, np.arange(count)
        begin += count
    return {"tokens": tokens, "targets": targets, "loss_mask": loss_mask, "segment_ids": segments,
            "positions": positions}


def empty_row(length: int) -> Row:
    """A row of padding: what fills the last batch of an evaluation."""
    return row_of_pieces([], length)


def stack(rows: Sequence[Row]) -> Row:
    """A batch [B, T] of rows [T]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
