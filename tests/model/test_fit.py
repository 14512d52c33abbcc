"""What the training stages share: finding the model of an earlier stage, and what a loaded checkpoint must be."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.core.errors import UserError
from jaxgpt.data.loader import batches
from jaxgpt.model import fit


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    vocab_size: int


def test_the_model_of_a_stage_planned_and_trained(tiny_base):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "grpo", workdir)
    assert fit.planned_model(context, "sft") == fit.planned_model(context, "pretrain") == tiny.MODEL
    config, checkpoint, tokenizer = fit.model_of(context, "sft")
    assert config == tiny.MODEL and checkpoint == workdir / "sft" / "checkpoints" / "20"
    assert tokenizer.resolve() == (workdir / "tokenize" / "tokenizer.txt").resolve()
    with pytest.raises(UserError, match="stage 'grpo' starts from 'tokenize', which trains no model"):
        fit.planned_model(context, "tokenize")


def test_training_starts_from_the_parameters_loaded(tiny_base):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "sft", workdir, tiny.mesh(8, data=2, fsdp=4))
    trainable = context.stage.trainable(context, tiny.MODEL)
    state = trainable.create(context.rng("init"), trainable.load(workdir / "pretrain" / "checkpoints" / "20"))
    expected = tiny.params_of(workdir, "pretrain", 20)
    for path, leaf in jax.tree.leaves_with_path(state.params):
        np.testing.assert_array_equal(leaf, expected[jax.tree_util.keystr(path)])
    assert len(state.params["embed"].sharding.device_set) == 8
    assert int(state.step) == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_a_checkpoint_of_another_model(tiny_base):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "sft", workdir)
    other = dataclasses.replace(tiny.MODEL, layers=3)
    with pytest.raises(UserError, match="another model's: layers is 2 there and 3 here"):
        context.stage.trainable(context, other).load(workdir / "pretrain" / "checkpoints" / "20")


def test_a_stage_that_is_not_complete(tiny_data, tmp_path):
    corpus, workdir = tiny_data
    work = shutil.copytree(workdir, tmp_path / "work")
    with pytest.raises(UserError, match="stage 'sft' needs 'pretrain', which is not complete"):
        fit.model_of(tiny.context(tiny.experiment(corpus), "sft", work), "pretrain")


def test_what_fits():
    fit.check_fits(tiny.MODEL, Vocabulary(tiny.VOCAB), 32)
    with pytest.raises(UserError, match="model.vocab_size=272: the tokenizer has 273 tokens"):
        fit.check_fits(tiny.MODEL, Vocabulary(273), 32)
    with pytest.raises(UserError, match="length=33: longer than the 32 positions"):
        fit.check_fits(tiny.MODEL, Vocabulary(272), 33)


def test_abstract_batches_look_like_real_ones(tiny_base):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "pretrain", workdir)
    abstract = fit.abstract_batch(context, 8, 32)
    real = next(batches(workdir / "tokenize" / "shards", "train", batch=8, length=32, seed=0))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in abstract.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in real.items()}
