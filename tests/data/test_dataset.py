"""Rows by index: an epoch predicts every token once, in an order of its own, from windows that are read once."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.data.dataset import ConversationRows, TokenDataset
from jaxgpt.data.packing import pack, row_of_pieces

BOS = 1
PACKINGS = ("concat", "best_fit")


def corpus(count=40, seed=0, longest=60):
    """Documents that begin with BOS; every other token is found once in the corpus."""
    lengths = np.random.default_rng(seed).integers(1, longest, count)
    ids = itertools.count(2)
    return [np.array([BOS, *itertools.islice(ids, int(n))], np.uint16) for n in lengths]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def predictions(batch):
    """(document, token after which, target) of all predictions, the document named by the segment's first token."""
    counts = batch["loss_mask"] > 0
    return list(zip(batch["tokens"][counts].tolist(), batch["targets"][counts].tolist()))


def pairs_of(documents):
    return sorted(pair for tokens in documents for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist()))


def epoch_of(rows, epoch):
    return rows.take(np.arange(rows.rows_per_epoch) + epoch * rows.rows_per_epoch)


documents = st.lists(st.integers(1, 30), min_size=1, max_size=15).map(lambda lengths: [
    np.array([BOS, *range(100 * (i + 1), 100 * (i + 1) + n)], np.uint16) for i, n in enumerate(lengths)])


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(1, 12), st.sampled_from(PACKINGS), st.integers(1, 200), st.integers(0, 5))
def test_an_epoch_predicts_every_token_once(documents, length, packing, window, seed):
    if sum(map(len, documents)) - 1 < length:
        return
    rows = TokenDataset(documents, length=length, packing=packing, window=window, seed=seed)
    for epoch in range(3):
        assert sorted(predictions(epoch_of(rows, epoch))) == pairs_of(documents)


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(1, 12), st.sampled_from(PACKINGS), st.integers(1, 200))
def test_a_row_is_pieces_of_documents(documents, length, packing, window):
    """Each segment is a run of tokens of one document, and the row is what `row_of_pieces` makes of these runs."""
    if sum(map(len, documents)) - 1 < length:
        return
    rows = TokenDataset(documents, length=length, packing=packing, window=window)
    for index in range(rows.rows_per_epoch):
        row, pieces = rows[index], []
        for segment in range(1, row["segment_ids"].max(initial=0) + 1):
            place = np.flatnonzero(row["segment_ids"] == segment)
            assert (np.diff(place) == 1).all() and len(place)
            end = place[-1] + 1
            pieces.append([*row["tokens"][place], *row["targets"][end - 1:end][row["loss_mask"][end - 1:end] > 0]])
            text = bytes(np.array(pieces[-1], np.uint16))
            assert any(text in bytes(tokens) for tokens in documents)
        if row["segment_ids"][-1] and not row["loss_mask"][-1]:
            pieces.append([row["targets"][-1]])  # of a document that begins behind the row
        same(row, row_of_pieces([np.array(piece) for piece in pieces], length))


@pytest.mark.parametrize("packing", PACKINGS)
def test_epochs_differ(packing):
    rows = TokenDataset(corpus(), length=16, packing=packing)
    epochs = [epoch_of(rows, epoch) for epoch in range(3)]
    for a, b in itertools.combinations(epochs, 2):
        assert predictions(a) != predictions(b)
        together = [{frozenset(row.tolist()) for row in batch["tokens"]} for batch in (a, b)]
        assert len(together[0] & together[1]) < 0.9 * rows.rows_per_epoch  # documents meet others, too
    other = TokenDataset(corpus(), length=16, packing=packing, seed=1)
    assert predictions(epoch_of(other, 0)) != predictions(epochs[0])


def test_a_long_document_is_cut_elsewhere_in_each_epoch():
    rows = TokenDataset([np.arange(1, 1003)], length=100)
    cuts = {tuple(sorted(epoch_of(rows, epoch)["tokens"][:, 0].tolist())) for epoch in range(8)}
    assert len(cuts) > 4


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_row_does_not_depend_on_what_was_asked_before(packing):
    new = lambda: TokenDataset(corpus(), length=16, packing=packing, window=300)  # noqa: E731
    rows, count = new(), 3 * new().rows_per_epoch
    assert len(rows._sizes) == 4
    order = np.random.default_rng(0).permutation(count)
    whole = rows.take(np.arange(count))
    same(rows.take(order), {name: values[order] for name, values in whole.items()})
    same(new().take(order[:9], ahead=order[9:30]), {name: values[order[:9]] for name, values in whole.items()})
    for index in order[:20].tolist():
        same(new()[index], {name: values[index] for name, values in whole.items()})
    same(pickle.loads(pickle.dumps(rows)).take(order), {name: values[order] for name, values in whole.items()})


class Counted:
    """Documents that note how they are read."""

    def __init__(self, documents):
        self.documents, self.calls = documents, []
        self.lengths, self.dtype = np.array([len(tokens) for tokens in documents]), np.dtype(np.uint16)

    def read(self, indices):
        self.calls.append(indices.tolist())
        return [self.documents[index] for index in indices]


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_read(packing):
    counted = Counted(corpus(200))
    rows = TokenDataset(counted, length=16, packing=packing, window=1000)
    assert len(rows._sizes) == 7 and not counted.calls
    for begin in range(0, rows.rows_per_epoch, 8):
        indices = np.arange(begin, min(begin + 8, rows.rows_per_epoch))
        rows.take(indices, ahead=indices + 8 if begin % 32 == 0 else ())
        assert len(rows._open) <= 2
        assert sum(window._buffer.nbytes for window in rows._open.values()) < 2 * 2 * 1500
    read = [index for call in counted.calls for index in call]
    assert sorted(set(read)) == list(range(200)) and len(read) < 1.2 * 200  # at the end, rows of the next epoch
    assert all(call == sorted(call) for call in counted.calls)
    counted.calls.clear()
    TokenDataset(counted, length=16, packing=packing, window=1000)[0]
    assert 1 <= len(counted.calls[0]) <= 16


def test_one_pass_in_the_order_on_disk():
    documents = corpus(30)
    rows = TokenDataset(documents, length=16, shuffle=False, window=250)
    assert len(rows._sizes) > 2 and len(rows) == rows.rows_per_epoch
    assert predictions(rows.take(range(len(rows)))) == [
        pair for tokens in documents for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist())]
    with pytest.raises(IndexError, match=f"row {len(rows)} of {len(rows)}"):
        rows[len(rows)]


def test_conversations_come_in_packed_epochs():
    examples = [([BOS, *range(10 * i, 10 * i + 2 + i % 5)], [0] + [1] * (2 + i % 5)) for i in range(1, 31)]
    rows = ConversationRows(examples, length=12, seed=5)
    for epoch in range(3):
        for index, row in enumerate(pack(examples, length=12, seed=5, epoch=epoch)):
            same(rows[epoch * rows.rows_per_epoch + index], row)


def test_bad_requests():
    with pytest.raises(UserError, match="the documents hold 3 tokens, fewer than one row of 16 \\+ 1"):
        TokenDataset([np.array([1, 2, 3])], length=16)
    with pytest.raises(UserError, match="no document has two tokens"):
        TokenDataset([np.array([1])] * 20, length=16, packing="best_fit")
    with pytest.raises(ValueError, match="packing: must be one of 'concat', 'best_fit', not 'first_fit'"):
        TokenDataset(corpus(), length=16, packing="first_fit")
