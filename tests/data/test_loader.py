"""The loader: batch k follows from (seed, k) alone, and every token is where it should be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.data.loader import (
    Batches, ConversationRows, EvaluationRows, TokenDataset, batches, conversation_batches, evaluation_batches)
from jaxgpt.data.packing import pack
from jaxgpt.data.shards import write_shards

BOS = 1


def corpus(count=40, seed=0):
    """Documents that begin with BOS; every other token is found once in the corpus."""
    lengths = np.random.default_rng(seed).integers(1, 60, count)
    ids = itertools.count(2)
    return [np.array([BOS, *itertools.islice(ids, int(n))], np.uint16) for n in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "shards"
    documents = [(str(i), tokens, 5 * len(tokens)) for i, tokens in enumerate(corpus())]
    write_shards(path, {"train": documents, "val": documents[:9]}, vocab_size=4096, documents_per_shard=16)
    return path


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def take(folder, count, **options):
    return list(itertools.islice(batches(folder, "train", length=16, **{"batch": 8, "seed": 3, **options}), count))


def test_form_of_a_batch(folder):
    batch = take(folder, 1)[0]
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "tokens": ((8, 16), "int32"), "targets": ((8, 16), "int32"), "loss_mask": ((8, 16), "float32"),
        "segment_ids": ((8, 16), "int32"), "positions": ((8, 16), "int32")}


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_load_the_one_batch(folder, hosts):
    whole = take(folder, 25)  # beyond the first epoch
    parts = [take(folder, 25, mine=range(host, 8, hosts)) for host in range(hosts)]  # which rows lie where is the mesh's
    assert not np.array_equal(parts[0][0]["tokens"], parts[1][0]["tokens"])
    for step, batch in enumerate(whole):
        same(batch, {name: np.stack([part[step][name] for part in parts], 1).reshape(array.shape)
                     for name, array in batch.items()})


def test_resumed_is_uninterrupted(folder):
    whole = take(folder, 30)
    for step in (1, 7, 29):
        same(take(folder, 1, start_step=step)[0], whole[step])
    iterator = batches(folder, "train", batch=8, length=16, seed=3)
    for _ in range(5):
        next(iterator)
    assert iterator.state() == {"next_index": 5}
    other = batches(folder, "train", batch=8, length=16, seed=3, mine=range(4, 8))
    other.restore(iterator.state())
    same(next(other), {name: array[4:] for name, array in whole[5].items()})
    same(next(iterator), whole[5])


def test_seed_and_prefetching(folder):
    assert not np.array_equal(take(folder, 1)[0]["tokens"], take(folder, 1, seed=4)[0]["tokens"])
    rows = TokenDataset(corpus(), length=16, seed=3)
    for a, b, c in zip(Batches(rows, batch=8, prefetch=0), Batches(rows, batch=8, prefetch=3), take(folder, 4)):
        same(a, b)
        same(a, c)


def test_an_epoch_is_every_document_once():
    documents, length = corpus(), 16
    rows = TokenDataset(documents, length=length, seed=0)
    total = sum(map(len, documents))
    assert rows.rows_per_epoch == (total - 1) // length
    seen = []
    for epoch in range(3):
        order, ends, cut, offset = rows._epoch(epoch)
        stream = np.concatenate([documents[i] for i in order])
        assert 0 <= offset <= (total - 1) % length
        for index in range(rows.rows_per_epoch):
            row, start = rows[epoch * rows.rows_per_epoch + index], offset + cut[index] * length
            assert row["tokens"].tolist() == stream[start:start + length].tolist()
            assert row["targets"].tolist() == stream[start + 1:start + length + 1].tolist()
            assert (row["loss_mask"] == (row["targets"] != BOS)).all()
            begins = (row["tokens"] == BOS) | (np.arange(length) == 0)
            assert row["segment_ids"].tolist() == np.cumsum(begins).tolist()
            assert (row["positions"][begins] == 0).all() and (np.diff(row["positions"])[~begins[1:]] == 1).all()
        seen.append(order.tolist())
        assert sorted(cut.tolist()) == list(range(rows.rows_per_epoch)) and sorted(order) == list(range(len(documents)))
    assert seen[0] != seen[1] != seen[2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=15), st.integers(1, 20))
def test_evaluation_predicts_every_token_once(lengths, length):
    ids = itertools.count(2)
    documents = [np.array([BOS, *itertools.islice(ids, n)]) for n in lengths]
    rows = EvaluationRows(documents, length=length)
    predicted = [(int(row["tokens"][place]), int(row["targets"][place]))
                 for row in map(rows.__getitem__, range(len(rows))) for place in np.flatnonzero(row["loss_mask"])]
    assert predicted == [pair for tokens in documents for pair in zip(tokens[:-1], tokens[1:])]


def test_evaluation_batches_fill_up_with_padding(folder):
    documents = corpus()[:9]
    found = list(evaluation_batches(folder, "val", batch=4, length=16))
    assert all(batch["tokens"].shape == (4, 16) for batch in found)
    targets = np.concatenate([batch["targets"][batch["loss_mask"] > 0] for batch in found])
    assert targets.tolist() == np.concatenate([tokens[1:] for tokens in documents]).tolist()
    halves = [list(evaluation_batches(folder, "val", batch=4, length=16, mine=mine)) for mine in ((0, 1), (2, 3))]
    for step, batch in enumerate(found):
        same(batch, {name: np.concatenate([half[step][name] for half in halves]) for name in batch})


def test_conversations_come_in_packed_epochs():
    examples = [([BOS, *range(10 * i, 10 * i + 2 + i % 5)], [0] + [1] * (2 + i % 5)) for i in range(1, 31)]
    rows = ConversationRows(examples, length=12, seed=5)
    for epoch in range(3):
        for index, row in enumerate(pack(examples, length=12, seed=5, epoch=epoch)):
            same(rows[epoch * rows.rows_per_epoch + index], row)
    whole = list(itertools.islice(conversation_batches(examples, batch=4, length=12, seed=5), 10))
    same(next(conversation_batches(examples, batch=4, length=12, seed=5, start_step=9)), whole[9])


def test_bad_requests(folder):
    with pytest.raises(UserError, match="batch=0: at least 1"):
        next(evaluation_batches(folder, "val", batch=0, length=16))
    with pytest.raises(UserError, match="the documents hold 3 tokens, fewer than one row of 16 \\+ 1"):
        TokenDataset([np.array([1, 2, 3])], length=16, seed=0)
    for mine in ([8], [-1], []):
        with pytest.raises(ValueError, match="mine: must name rows from 0 to 7"):
            take(folder, 1, mine=mine)
