"""The loader: batch k follows from (seed, k) alone, on any number of hosts and processes and after any restart."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.core.checkpoint import Checkpoints
from jaxgpt.core.errors import UserError
from jaxgpt.core.state import TrainState
from jaxgpt.data.dataset import TokenDataset
from jaxgpt.data.loader import Batches, batches, conversation_batches, evaluation_batches, mixed_batches
from jaxgpt.data.mixture import Mixture, Phase
from jaxgpt.data.shards import TokenShards, write_shards

BOS = 1
STEPS = 30
KINDS = ("concat", "best_fit", "mixture")
MIXTURE = Mixture((Phase((("web", 0.75), ("math", 0.25)), until=0.5), Phase((("math", 2), ("web", 1)))))


def corpus(count=40, seed=0):
    """Documents that begin with BOS; every other token is found once in the corpus."""
    lengths = np.random.default_rng(seed).integers(1, 60, count)
    ids = itertools.count(2)
    return [np.array([BOS, *itertools.islice(ids, int(n))], np.uint16) for n in lengths]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader")
    for name, seed in (("web", 0), ("math", 1)):
        documents = [(str(i), tokens, 5 * len(tokens)) for i, tokens in enumerate(corpus(seed=seed))]
        write_shards(path / name, {"train": documents, "val": documents[:9]}, vocab_size=4096, documents_per_shard=16)
    return {name: path / name for name in ("web", "math")}


@pytest.fixture(scope="module")
def make(folders):
    """make(kind, **options) -> Batches of one of the three kinds of stream."""
    def made(kind, **options):
        options = {"batch": 8, "length": 16, "seed": 3, **options}
        if kind == "mixture":
            return mixed_batches(folders, MIXTURE, "train", steps=STEPS, **options)
        return batches(folders["web"], "train", packing=kind, **options)
    return made


@pytest.fixture(scope="module")
def whole(make):
    """The first batches of each kind, in one go."""
    return {kind: list(itertools.islice(make(kind), STEPS)) for kind in KINDS}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_form_of_a_batch(whole):
    for kind in KINDS:
        assert {name: (array.shape, array.dtype.name) for name, array in whole[kind][0].items()} == {
            "tokens": ((8, 16), "int32"), "targets": ((8, 16), "int32"), "loss_mask": ((8, 16), "float32"),
            "segment_ids": ((8, 16), "int32"), "positions": ((8, 16), "int32")}
    assert not np.array_equal(whole["concat"][0]["tokens"], whole["best_fit"][0]["tokens"])


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_hosts_together_load_the_one_batch(make, whole, kind, hosts):
    parts = [list(itertools.islice(make(kind, mine=range(host, 8, hosts)), STEPS)) for host in range(hosts)]
    assert not np.array_equal(parts[0][0]["tokens"], parts[1][0]["tokens"])
    for step, batch in enumerate(whole[kind]):  # beyond the first epoch; which rows lie where is the mesh's
        same(batch, {name: np.stack([part[step][name] for part in parts], 1).reshape(array.shape)
                     for name, array in batch.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_can_come_first(make, whole, kind):
    for step in range(STEPS):
        same(next(make(kind, start_step=step)), whole[kind][step])


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_through_a_checkpoint_on_another_number_of_hosts(make, whole, kind, tmp_path):
    state = TrainState(params={"w": jnp.ones(2)}, opt_state=(), step=jnp.array(5), rng=jnp.zeros(2, "uint32"), extra=())
    iterator = make(kind)
    for _ in range(5):
        next(iterator)
    saved = Checkpoints(tmp_path, config={})
    saved.save(5, state, iterator.state())
    saved.close()
    _, place = Checkpoints(tmp_path, config={}).restore(state)
    assert place == {"next_index": 5}
    half = make(kind, mine=range(4, 8))
    next(half)
    half.restore(place)
    for step in (5, 6):
        same(next(half), {name: array[4:] for name, array in whole[kind][step].items()})
        same(next(iterator), whole[kind][step])
    assert half.state() == {"next_index": 7}


@pytest.mark.slow
@pytest.mark.parametrize("kind, workers", [("best_fit", 1), ("mixture", 2)])
def test_processes_make_the_same_stream(make, whole, kind, workers):
    iterator = make(kind, workers=workers, start_step=3)
    for step in range(3, 20):
        same(next(iterator), whole[kind][step])
    iterator.restore({"next_index": 1})
    same(next(iterator), whole[kind][1])
    iterator.close()


def test_seed_and_prefetching(folders, make, whole):
    assert not np.array_equal(next(make("concat", seed=4))["tokens"], whole["concat"][0]["tokens"])
    rows = TokenDataset(TokenShards(folders["web"], "train"), length=16, seed=3)
    for a, b, c in zip(Batches(rows, batch=8, prefetch=0), Batches(rows, batch=8, prefetch=3), whole["concat"]):
        same(a, b)
        same(a, c)


def test_the_mixture_is_that_of_its_datasets(folders, whole):
    tokens = {name: {int(t) for document in TokenShards(path, "train") for t in document[1:]} - {0}
              for name, path in folders.items()}
    only = tokens["web"] - tokens["math"], tokens["math"] - tokens["web"]
    rows = np.concatenate([batch["tokens"] for batch in whole["mixture"]])
    found = [[bool(set(row.tolist()) & values) for values in only] for row in rows]
    assert not any(all(pair) for pair in found)  # a row is of one dataset


def test_evaluation_batches_fill_up_with_padding(folders):
    found = list(evaluation_batches(folders["web"], "val", batch=4, length=16))
    assert all(batch["tokens"].shape == (4, 16) for batch in found)
    targets = np.concatenate([batch["targets"][batch["loss_mask"] > 0] for batch in found])
    documents = list(TokenShards(folders["web"], "val"))
    assert len(documents) == 9 and targets.tolist() == np.concatenate([tokens[1:] for tokens in documents]).tolist()
    halves = [list(evaluation_batches(folders["web"], "val", batch=4, length=16, mine=mine))
              for mine in ((0, 1), (2, 3))]
    for step, batch in enumerate(found):
        same(batch, {name: np.concatenate([half[step][name] for half in halves]) for name in batch})


def test_conversations_resume_too():
    examples = [([BOS, *range(10 * i, 10 * i + 2 + i % 5)], [0] + [1] * (2 + i % 5)) for i in range(1, 31)]
    whole = list(itertools.islice(conversation_batches(examples, batch=4, length=12, seed=5), 10))
    same(next(conversation_batches(examples, batch=4, length=12, seed=5, start_step=9)), whole[9])


def test_bad_requests(folders, make):
    with pytest.raises(UserError, match="batch=0: at least 1"):
        next(evaluation_batches(folders["web"], "val", batch=0, length=16))
    for mine in ([8], [-1], []):
        with pytest.raises(ValueError, match="mine: must name rows from 0 to 7"):
            make("concat", mine=mine)
