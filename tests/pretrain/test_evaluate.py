"""Validation loss and bits per byte against the same numbers worked out with NumPy."""

import json

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.files import read_json
from jaxgpt.data.loader import evaluation_batches
from jaxgpt.model import transformer
from jaxgpt.pretrain.evaluate import bits_per_byte, validation
from jaxgpt.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tiny_base):
    """(params on the mesh, workdir, tokenizer, measure(batch size))."""
    corpus, workdir = tiny_base
    tokenizer, mesh = Tokenizer.load(workdir / "tokenize"), tiny.mesh()
    params = tiny.tree_of(tiny.params_of(workdir, "pretrain", 20))

    def measure(batch: int) -> dict:
        rows = evaluation_batches(workdir / "tokenize" / "shards", "val", batch=batch, length=32)
        return validation(params, rows, config=tiny.MODEL, token_bytes=tokenizer.token_bytes(), mesh=mesh,
                          rules=sharding.get_rules("fsdp"))

    return params, workdir, tokenizer, measure


def test_by_hand(model):
    params, workdir, tokenizer, measure = model
    nats, tokens, size = 0.0, 0, 0
    apply = jax.jit(lambda tokens, positions, segments: transformer.apply(
        params, tokens, config=tiny.MODEL, positions=positions, segment_ids=segments))
    for batch in evaluation_batches(workdir / "tokenize" / "shards", "val", batch=8, length=32):
        logits = np.asarray(apply(batch["tokens"], batch["positions"], batch["segment_ids"]), np.float64)
        top = logits.max(axis=-1, keepdims=True)
        total = top[..., 0] + np.log(np.exp(logits - top).sum(axis=-1))
        chosen = np.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
        counts = batch["loss_mask"] > 0
        nats += (total - chosen)[counts].sum()
        tokens += counts.sum()
        size += sum(len(tokenizer.decode_bytes([int(token)])) for token in batch["targets"][counts])
    outputs = read_json(workdir / "tokenize" / "manifest.json")["outputs"]["val"]
    assert size == outputs["bytes"] and tokens == outputs["tokens"] - outputs["documents"]  # all but <|bos|>
    found = measure(8)
    assert found["val_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["val_bpb"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_the_batch_size_does_not_matter(model):
    _, workdir, _, measure = model
    one, other = measure(8), measure(3)
    assert one == pytest.approx(other, rel=1e-6)
    assert one["val_loss"] == pytest.approx(tiny.losses(workdir, "pretrain", "val_loss")[20], rel=1e-6)
    assert one["val_bpb"] == pytest.approx(tiny.losses(workdir, "pretrain", "val_bpb")[20], rel=1e-6)


def test_bits_per_byte():
    assert bits_per_byte(np.log(256) * 3, 3) == pytest.approx(8)  # a uniform guess among bytes
    assert json.dumps(bits_per_byte(1.0, 2)) == str(0.5 / np.log(2))
