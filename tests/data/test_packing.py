"""Packing: by hand, and for any documents and conversations."""

import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.data.packing import best_fit, empty_row, fit, pack, row_of_conversations, row_of_pieces, stack


def values(row):
    return {name: array.tolist() for name, array in row.items()}


def test_row_by_hand():
    row = row_of_pieces([np.array([9]), np.array([1, 5, 6]), np.array([1, 7])], length=6)
    assert values(row) == {
        "tokens": [9, 1, 5, 6, 1, 7], "targets": [1, 5, 6, 1, 7, 0], "loss_mask": [0, 1, 1, 0, 1, 0],
        "segment_ids": [1, 2, 2, 2, 3, 3], "positions": [0, 0, 1, 2, 0, 1]}
    assert {name: array.dtype.name for name, array in row.items()} == {
        "tokens": "int32", "targets": "int32", "loss_mask": "float32", "segment_ids": "int32", "positions": "int32"}
    with pytest.raises(ValueError, match="hold 4 tokens, more than length \\+ 1 = 3"):
        row_of_pieces([np.arange(4)], length=2)


def test_the_token_after_the_row_is_its_last_target():
    row = row_of_pieces([np.array([1, 2, 3, 4])], length=3)
    assert values(row)["targets"] == [2, 3, 4] and row["loss_mask"].tolist() == [1, 1, 1]
    row = row_of_pieces([np.array([1, 2, 3]), np.array([1])], length=3)  # the next document begins there
    assert values(row)["targets"] == [2, 3, 1] and row["loss_mask"].tolist() == [1, 1, 0]


def test_padding_is_segment_zero_and_counts_for_nothing():
    assert not any(array.any() for array in empty_row(4).values())
    assert stack([empty_row(4)] * 3)["tokens"].shape == (3, 4)


def one_by_one(lengths, capacity):
    """Best fit decreasing, an item at a time."""
    bins, rooms = [], []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        place = bisect.bisect_left(rooms, (lengths[item], -1))
        if place == len(rooms):
            bins.append([])
        room, number = rooms.pop(place) if place < len(rooms) else (capacity, len(bins) - 1)
        bins[number].append(item)
        bisect.insort(rooms, (room - lengths[item], number))
    return bins


@given(st.integers(1, 40).flatmap(lambda capacity: st.tuples(
    st.just(capacity), st.lists(st.integers(1, capacity) | st.integers(1, min(3, capacity)), max_size=80))))
def test_fit_by_length_is_fit_one_by_one(case):
    capacity, lengths = case
    expected = one_by_one(lengths, capacity)
    assert fit(lengths, capacity) == expected
    bins = best_fit(np.array(lengths), capacity).tolist()
    assert all(bins[item] == number for number, members in enumerate(expected) for item in members)


def test_fit_refuses_what_fits_no_bin():
    for lengths, item in (([3, 9, 2], 1), ([3, 2, 0], 2)):
        with pytest.raises(ValueError, match=f"item {item} has {lengths[item]}; an item has from 1 to the capacity 8"):
            fit(lengths, 8)


@given(st.lists(st.integers(1, 50), max_size=60))
def test_fit_places_each_item_once_and_wastes_little(lengths):
    bins = fit(lengths, 50)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    loads = sorted(sum(lengths[item] for item in members) for members in bins)
    assert not loads or loads[-1] <= 50
    assert len(loads) < 2 or loads[0] + loads[1] > 50  # no two bins could be one


conversations = st.lists(st.integers(2, 20), min_size=1, max_size=30).map(lambda lengths: [
    ([100 * (i + 1) + j for j in range(n)], [int((i + j) % 3 > 0) for j in range(n)]) for i, n in enumerate(lengths)])


@given(conversations, st.integers(0, 3), st.integers(0, 3))
def test_pack_keeps_every_conversation_whole(examples, seed, epoch):
    rows = pack(examples, length=20, seed=seed, epoch=epoch)
    found = []
    for row in rows:
        for segment in range(1, row["segment_ids"].max() + 1):
            place = row["segment_ids"] == segment
            count = place.sum()
            assert row["positions"][place].tolist() == list(range(count))
            tokens, mask = [*row["tokens"][place], row["targets"][place][-1]], row["loss_mask"][place]
            assert row["targets"][place].tolist() == tokens[1:]
            found.append((list(map(int, tokens)), list(map(int, mask))))
        assert not row["loss_mask"][row["segment_ids"] == 0].any()
    assert sorted(found) == sorted((tokens, mask[1:]) for tokens, mask in examples)
    again = pack(examples, length=20, seed=seed, epoch=epoch)
    assert list(map(values, again)) == list(map(values, rows))


def test_epochs_differ_in_order_alone():
    examples = [([i] * (2 + i % 7), [1] * (2 + i % 7)) for i in range(100)]
    first, second = (list(map(values, pack(examples, length=8, seed=0, epoch=epoch))) for epoch in (0, 1))
    assert first != second and sorted(map(str, first)) == sorted(map(str, second))


def test_too_long_is_refused_or_cut():
    examples = [([1, 2], [0, 1]), ([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 1])]
    with pytest.raises(UserError, match="1 of 2 conversations .* .conversation 1 has 6 tokens, a row holds 5"):
        pack(examples, length=4, seed=0)
    rows = pack(examples, length=4, seed=0, too_long="truncate")
    assert [5 in row["targets"] for row in rows].count(True) == 1 and not any(6 in row["targets"] for row in rows)
    with pytest.raises(UserError, match="no conversations"):
        pack([], length=4, seed=0)
    with pytest.raises(UserError, match="conversation 0 has fewer than two tokens"):
        pack([([1], [1])], length=4, seed=0)
    with pytest.raises(ValueError, match="a mask of 1"):
        row_of_conversations([([1, 2], [1])], length=4)
