"""Supervised finetuning: what is trained, that packing changes nothing, and the stage from end to end."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.data.loader import ConversationRows, conversation_batches
from jaxgpt.data.packing import pack, stack
from jaxgpt.model import losses, transformer
from jaxgpt.sft.programs import SFT, in_batches, render_all
from jaxgpt.tasks.mixture import mixture
from jaxgpt.tokenizer.conversation import render
from jaxgpt.tokenizer.tokenizer import Tokenizer

value_and_grad = jax.jit(jax.value_and_grad(
    lambda params, batch: losses.next_token_loss(params, (), batch, None, config=tiny.MODEL)[:2], has_aux=True))
loss_of = jax.jit(lambda params, batch: losses.next_token_loss(params, (), batch, None, config=tiny.MODEL)[:2])


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: transformer.init(jax.random.key(1), dataclasses.replace(tiny.MODEL, init_std=0.3)))()


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return Tokenizer.load(tiny_data[1] / "tokenize")


@pytest.fixture(scope="module")
def examples(tokenizer):
    return render_all(tokenizer, mixture(((tiny.Letters(), 1.0),), "train", 8, seed=0))


def test_only_answers_and_their_end_are_trained(params, tokenizer, examples):
    batch, = in_batches(pack(examples, length=32, seed=0), 8)
    kept = batch["loss_mask"] > 0
    answers = [tokenizer.decode([token]) for token in batch["targets"][kept].tolist()]
    assert answers[1::2] == ["<|end|>"] * 8 and set(answers[::2]) <= set("abc")

    (loss, weight), grads = value_and_grad(params, batch)
    assert weight == 16
    other = {**batch, "targets": np.where(kept, batch["targets"], 7)}
    (same_loss, _), same_grads = value_and_grad(params, other)
    assert same_loss == loss and jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), grads, same_grads))
    (changed, _), _ = value_and_grad(params, {**batch, "targets": np.where(kept, 7, batch["targets"])})
    assert changed != loss


def test_packed_conversations_equal_separate_ones(params, examples):
    packed = pack(examples, length=32, seed=0)
    assert len(packed) < len(examples)
    separate = [row for example in examples for row in pack([example], length=32, seed=0)]
    (together, weight), grads = value_and_grad(params, in_batches(packed, 8)[0])
    (apart, same_weight), other_grads = value_and_grad(params, stack(separate))
    assert weight == same_weight and together == pytest.approx(float(apart), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7), grads,
                 other_grads)


def test_in_batches_adds_rows_that_count_for_nothing(params, examples):
    rows = pack(examples, length=32, seed=0)
    small, large = in_batches(rows, 3), in_batches(rows, 8)
    assert {len(batch["tokens"]) for batch in small} == {3} and len(small) == -(-len(rows) // 3)
    sums = [sum(float(loss_of(params, batch)[i]) for batch in small) for i in (0, 1)]
    (loss, weight), _ = value_and_grad(params, large[0])
    assert sums[1] == weight and sums[0] == pytest.approx(float(loss), rel=1e-6)
    assert in_batches([], 8) == []


def test_the_stage(tiny_base, tokenizer):
    corpus, workdir = tiny_base
    stage = tiny.experiment(corpus).stage("sft")
    val = tiny.losses(workdir, "sft", "val_loss")
    assert list(val) == [0, 10, 20] and val[20] < val[10] < val[0] / 2

    start = tiny.params_of(workdir, "pretrain", 20)
    end = tiny.params_of(workdir, "sft", 20)
    assert start.keys() == end.keys() and any(not np.array_equal(start[name], end[name]) for name in start)
    outputs = read_json(workdir / "sft" / "manifest.json")["outputs"]
    assert outputs["checkpoint"] == "checkpoints/20" and outputs["final"]["val_loss"] == val[20]
    assert Tokenizer.load(workdir / "sft" / outputs["tokenizer"]).fingerprint() == tokenizer.fingerprint()

    params = tiny.tree_of(end)
    held_out = render_all(tokenizer, mixture(stage.mixture, "val", stage.val_conversations, 0))
    total = count = 0.0
    for example in held_out:  # one conversation a row, in rows of 8 so that one program does for all
        (loss, weight), _ = value_and_grad(params, in_batches(pack([example], length=32, seed=0), 8)[0])
        total, count = total + float(loss), count + float(weight)
    assert val[20] == pytest.approx(total / count, rel=1e-5)


def test_the_program_named_is_the_program_run(tiny_base, tokenizer):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "sft", workdir)
    stage = context.stage
    step, arguments = stage.programs(context)["train_step"]
    trainable = stage.trainable(context, tiny.MODEL)
    state = trainable.create(context.rng("init"))
    examples = render_all(tokenizer, mixture(stage.mixture, "train", stage.conversations, 0))
    batch = next(conversation_batches(examples, batch=8, length=32, seed=0))
    batch = sharding.put(batch, sharding.batch_sharding(context.mesh, context.rules))
    assert step.lower(*arguments).as_text() == trainable.step.lower(state, (), batch).as_text()


def refused(tiny_base, tmp_path, **settings):
    corpus, workdir = tiny_base
    chosen = tiny.experiment(corpus)
    work = tmp_path / "work"
    shutil.copytree(workdir, work, ignore=shutil.ignore_patterns("sft"))
    stage = dataclasses.replace(chosen.stage("sft"), **settings)
    chosen = dataclasses.replace(chosen, stages=(*chosen.stages[:4], stage))
    with pytest.raises(UserError) as caught:
        tiny.run_stages(chosen, ("sft",), work)
    assert not (work / "sft" / "checkpoints").exists()
    return str(caught.value)


def test_a_conversation_longer_than_a_row(tiny_base, tmp_path):
    message = refused(tiny_base, tmp_path, length=8)
    assert "longer than a row" in message and "a row holds 9" in message and "length" in message


def test_rows_longer_than_the_context(tiny_base, tmp_path):
    assert "length=64: longer than the 32 positions" in refused(tiny_base, tmp_path, length=64)


def test_impossible_settings():
    for settings, message in (({"steps": 0}, "steps, batch"), ({"val_conversations": 0}, "val_conversations"),
                              ({"accumulate": 0}, "accumulate=0"),
                              ({"batch": 8, "accumulate": 3}, "divisible by accumulate=3")):
        with pytest.raises(ValueError, match=message):
            SFT(**{"mixture": ((tiny.Letters(), 1.0),), "steps": 1, **settings})


def test_epochs_go_on(examples):
    rows = ConversationRows(examples, length=32, seed=0)
    epochs = [sorted(rows[epoch * rows.rows_per_epoch + i]["tokens"].tolist() for i in range(rows.rows_per_epoch))
              for epoch in (0, 1)]
    assert epochs[0] == epochs[1]


def test_conversations_of_several_turns(tokenizer):
    """Turns 1, 2, 1, 2...: the rendering is that of the messages one after the other, and every answer is trained."""
    problems = tiny.Letters().problems("train", 5, seed=0)
    said = [[*problem.messages, {"role": "assistant", "content": problem.answer}] for problem in problems]
    found = render_all(tokenizer, problems, (1, 2))
    assert found == [render(tokenizer, part) for part in (said[0], said[1] + said[2], said[3], said[4])]
    assert sum(sum(mask) for _, mask in found) == sum(len(tokenizer.encode(p.answer)) + 1 for p in problems)
