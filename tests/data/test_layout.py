"""Layouts: whole batches at once are what one row at a time gives, and every prediction is there exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.data.layout import concat, first_rows, fitted, gather
from jaxgpt.data.packing import row_of_pieces

lengths = st.lists(st.integers(0, 30), min_size=1, max_size=12).map(np.array)


def fill(documents, layout, length):
    """The buffer that a layout describes."""
    buffer = np.zeros(int((layout.places + layout.counts).max(initial=0)) + 2 * length + 2, np.uint16)
    for document, begin, place, count in zip(layout.documents, layout.begins, layout.places, layout.counts):
        buffer[place:place + count] = documents[document][begin:begin + count]
    return buffer


def pieces_of(documents, layout, row):
    """The tokens of a row, document by document, found by looking at every piece."""
    found = []
    for document, begin, place, count in zip(layout.documents, layout.begins, layout.places, layout.counts):
        low, high = max(place, layout.starts[row]), min(place + count, layout.stops[row])
        if low < high:
            found.append(documents[document][begin + low - place:begin + high - place])
    return found


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(1, 12), st.sampled_from(["concat", "fitted"]), st.randoms(use_true_random=False))
def test_a_batch_is_its_rows_one_by_one(lengths, length, kind, random):
    ids = iter(range(1, 1000))
    documents = [np.array([next(ids) for _ in range(n)], np.int64) for n in lengths]
    sizes = first_rows(max(1, int(lengths.sum()) - 1), length)
    layout = concat(lengths, length, random.choice(sizes)) if kind == "concat" else fitted(lengths, length)
    rows = random.sample(range(len(layout.starts)), len(layout.starts))
    batch = gather(fill(documents, layout, length), layout, np.array(rows, np.int64), length)
    for i, row in enumerate(rows):
        for name, expected in row_of_pieces(pieces_of(documents, layout, row), length).items():
            np.testing.assert_array_equal(batch[name][i], expected, err_msg=name)
            assert batch[name].dtype == expected.dtype
    counts = batch["loss_mask"] > 0
    found = sorted(zip(batch["tokens"][counts].tolist(), batch["targets"][counts].tolist()))
    assert found == sorted(pair for tokens in documents for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist()))


@given(st.integers(1, 400), st.integers(1, 50))
def test_first_rows_give_the_same_number_of_rows_none_empty(pairs, length):
    sizes = first_rows(pairs, length)
    layouts = [concat(np.array([pairs + 1]), length, first) for first in sizes]
    assert len({len(layout.starts) for layout in layouts}) == 1
    assert all((layout.stops - layout.starts >= 2).all() for layout in layouts)
    assert pairs <= length or len(sizes) >= length / 2


@given(lengths, st.integers(1, 12))
def test_fitted_keeps_documents_whole_where_it_can(lengths, length):
    layout = fitted(lengths, length)
    whole = [document for document in layout.documents if lengths[document] <= length + 1]
    assert len(whole) == len(set(whole)) and set(whole) == set(np.flatnonzero((lengths > 1) & (lengths <= length + 1)))
    first, end = layout.pieces(np.arange(len(layout.starts)))
    assert (first[1:] == end[:-1]).all()  # a piece is in one row
    loads = np.sort(layout.stops - layout.starts)
    assert len(loads) < 2 or loads[0] + loads[1] > length + 1


def test_fitted_wastes_little():
    sizes = np.clip(np.random.default_rng(0).lognormal(np.log(500), 1.0, 5000).astype(int), 16, 20_000)
    for length in (1024, 2048, 8192):
        layout = fitted(sizes, length)
        assert (layout.stops - layout.starts).sum() > 0.995 * (length + 1) * len(layout.starts)


def test_nothing_to_predict():
    for layout in (concat(np.array([1]), 4), concat(np.array([0, 0]), 4), fitted(np.array([1, 0, 1]), 4)):
        assert len(layout.starts) == 0
        assert gather(np.zeros(9, np.uint16), layout, np.zeros(0, np.int64), 4)["tokens"].shape == (0, 4)


def test_concat_is_full_but_for_both_ends():
    layout = concat(np.array([40, 1, 60]), 10, first=3)
    sizes = layout.stops - layout.starts - 1
    assert sizes.tolist() == [3, *[10] * 9, 7]
    with pytest.raises(IndexError):
        layout.pieces(np.array([11]))
