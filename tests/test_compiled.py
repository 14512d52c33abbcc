"""A train step once compiled: nothing gathered whole, no float32 products in bfloat16, memory donated, no recompile."""

import dataclasses
import functools
import logging
import re
import shutil

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.core.step import create_state
from jaxgpt.model import transformer
from jaxgpt.model.fit import abstract_batch, make_trainable
from jaxgpt.model.losses import next_token_loss
from jaxgpt.pretrain.evaluate import evaluation_program

MODEL = dataclasses.replace(tiny.MODEL, vocab_size=256, layers=4, width=64, heads=4, unroll=1, remat="full")


def program(tmp_path, kind="adamw", rules="fsdp_tensor", config=MODEL, **sizes):
    """(trainable, lowered train step) on eight devices."""
    mesh = tiny.mesh(8, **sizes)
    context = tiny.context(tiny.experiment(tmp_path / "corpus.txt", rules=rules), "pretrain", tmp_path, mesh)
    loss_fn = functools.partial(next_token_loss, config=config)
    trainable = make_trainable(context, config, {"adamw": tiny.ADAMW, "muon": tiny.MUON}[kind], loss_fn, steps=10)
    return trainable, trainable.step.lower(trainable.abstract_state, (), abstract_batch(context, 8, 32))


def gathered(text: str) -> list[int]:
    """Elements in the result of each all-gather of a compiled program."""
    lines = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    return [sum(int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", line))
            for line in lines]


def test_the_count_of_what_is_gathered():
    text = "%a = f32[4,64]{1,0} all-gather(%b), dimensions={0}\n%c = (f32[2], bf16[3,3]) all-gather(%d, %e)"
    assert gathered(text) == [256, 11]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_no_parameter_tree_is_gathered_whole(tmp_path, kind):
    """The largest gather is one matrix, of one layer or (in Muon, which works on stacks) of all."""
    trainable, lowered = program(tmp_path, kind, "fsdp", data=1, fsdp=8)
    sizes = gathered(lowered.compile().as_text())
    stacked = max(leaf.size for leaf in jax.tree.leaves(trainable.abstract_state.params["layers"]))
    embedding = MODEL.vocab_size * MODEL.width
    assert sizes and max(sizes) <= max(embedding, stacked if kind == "muon" else stacked // MODEL.layers)
    assert max(sizes) < transformer.count_params(MODEL) / 3


@pytest.mark.slow
@pytest.mark.parametrize("factor", [None, 1.25], ids=["dropless", "capacity"])
def test_experts_stay_where_they_are(tmp_path, factor):
    """The largest gather is one matrix of a device's own experts, split over fsdp; with a capacity of 10 places tokens
    travel all to all: there and back, again for the backward pass, and their gradients."""
    config = dataclasses.replace(MODEL, experts=8, mlp_width=256, activation="swiglu", capacity_factor=factor)
    text = program(tmp_path, config=config, data=1, fsdp=2, expert=4)[1].compile().as_text()
    assert max(gathered(text)) == 8 // 4 * 64 * 256
    assert len(re.findall(r"= \(f32\[[\d,]*,10,64\].* all-to-all\(", text)) == (0 if factor is None else 6)


def dots(text: str) -> list[tuple[str, str, str]]:
    """(left, right, result) types of each product of a lowered program, as "8x32xbf16"."""
    return re.findall(r"stablehlo\.dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text)


@pytest.mark.parametrize("attention", ["xla", "ring"])
def test_a_bfloat16_step_multiplies_in_bfloat16(tmp_path, attention):
    """In the program as it is lowered: on a CPU the compiler itself goes through float32."""
    types = {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(MODEL, dtype=dtype, attention=attention)
        found = dots(program(tmp_path, config=config, data=2, fsdp=2, tensor=2)[1].as_text())
        types[dtype] = {(left.split("x")[-1], right.split("x")[-1]) for left, right, _ in found}
        assert len(found) >= 20
    assert types == {"float32": {("f32", "f32")}, "bfloat16": {("bf16", "bf16")}}


def test_the_state_is_donated(tmp_path):
    trainable, lowered = program(tmp_path, data=1, fsdp=8, rules="fsdp")
    held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * 4
               for leaf in jax.tree.leaves((trainable.abstract_state.params, trainable.abstract_state.opt_state)))
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= held


def test_nothing_is_compiled_twice(tiny_data, tmp_path, caplog):
    """A real run calls the step 20 times and the evaluation on every batch of 3 evaluations; each is compiled once."""
    corpus, workdir = tiny_data
    work = shutil.copytree(workdir, tmp_path / "work")
    evaluation_program.cache_clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        tiny.run_stages(tiny.experiment(corpus), ("pretrain",), work, tiny.mesh(8, data=2, fsdp=4))
    assert len(tiny.losses(work, "pretrain")) == 20 and len(tiny.losses(work, "pretrain", "val_loss")) == 3
    messages = [record.getMessage() for record in caplog.records]
    for name in ("step", "sums"):
        assert len([text for text in messages if f"XLA compilation of jit({name})" in text]) == 1, name


def test_a_state_is_born_in_parts(tmp_path):
    """The program that makes a state holds no whole matrix on any device."""
    trainable, _ = program(tmp_path, data=1, fsdp=8, rules="fsdp")
    state = create_state(jax.random.key(0), functools.partial(transformer.init, config=MODEL), trainable.optimizer,
                         shardings=trainable.shardings)
    for leaf, sharded in zip(jax.tree.leaves(state.params), jax.tree.leaves(trainable.shardings.params)):
        assert {part.data.shape for part in leaf.addressable_shards} == {sharded.shard_shape(leaf.shape)}
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
