"""Adapters: what they start as, that beside is within, their gradients by hand, and the stages that train them."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.checkpoint import load_params
from jaxgpt.core.errors import UserError
from jaxgpt.inference.load import load
from jaxgpt.model import lora, losses, transformer
from jaxgpt.model.kv_cache import init_cache
from jaxgpt.model.lora import Lora

CONFIG = dataclasses.replace(tiny.MODEL, activation="swiglu", qk_norm=True, kv_heads=1, init_std=0.3, unroll=1, vocab_size=48)
LORA = Lora(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: transformer.init(jax.random.key(0), CONFIG))()


@pytest.fixture(scope="module")
def adapter():
    """One that has been trained: B is not zero."""
    start = lora.init(jax.random.key(1), CONFIG, LORA)
    return jax.tree.map(lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape), start)


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(0, 48, (8, 9))
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((8, 8), np.float32)}


def loss(params, batch):
    total, weight, _ = losses.next_token_loss(params, (), batch, None, config=CONFIG)
    return total / weight


gradient = jax.jit(jax.value_and_grad(loss))
beside = jax.jit(jax.value_and_grad(lambda adapter, params, batch: loss(lora.attach(params, adapter, LORA), batch)))
logits = jax.jit(lambda params, tokens: transformer.apply(params, tokens, config=CONFIG))


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max())), found, expected)


def test_it_starts_as_nothing(params, batch):
    start = lora.init(jax.random.key(1), CONFIG, LORA)
    assert sorted(start) == ["down", "gate", "k", "o", "q", "up", "v"] and start["k"]["a"].shape == (2, 16, 3)
    assert start["k"]["b"].shape == (2, 3, 8)
    assert lora.count(CONFIG, LORA) == sum(leaf.size for leaf in jax.tree.leaves(start))
    whole = logits(params, batch["tokens"])
    np.testing.assert_array_equal(logits(lora.merge(params, start, LORA), batch["tokens"]), whole)
    np.testing.assert_allclose(logits(lora.attach(params, start, LORA), batch["tokens"]), whole, rtol=0, atol=1e-5)  # fused otherwise


def test_beside_is_within(params, adapter, batch):
    merged = lora.merge(params, adapter, LORA)
    np.testing.assert_allclose(merged["layers"]["attention"]["q"]["weight"][1],
                               params["layers"]["attention"]["q"]["weight"][1] + 2 * adapter["q"]["a"][1] @ adapter["q"]["b"][1],
                               atol=1e-5)
    whole, found = logits(merged, batch["tokens"]), logits(lora.attach(params, adapter, LORA), batch["tokens"])
    assert float(jnp.abs(whole - logits(params, batch["tokens"])).max()) > 0.1
    close(found, whole)


def test_merging_keeps_the_type(params, adapter):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert jax.tree.map(lambda leaf: leaf.dtype, lora.merge(half, adapter, LORA)) == jax.tree.map(lambda leaf: leaf.dtype, half)


def test_gradients_follow_from_those_of_the_projections(params, adapter, batch):
    """W' = W + s A B, so dA = s dW' Bᵀ and dB = s Aᵀ dW'."""
    value, found = beside(adapter, params, batch)
    expected, whole = gradient(lora.merge(params, adapter, LORA), batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, ab in adapter.items():
        dW = whole["layers"][lora.PLACES[name]][name]["weight"]
        close(found[name], {"a": 2 * dW @ ab["b"].swapaxes(1, 2), "b": 2 * ab["a"].swapaxes(1, 2) @ dW})


def test_a_cache_sees_the_adapter(params, adapter, batch):
    changed, tokens = lora.attach(params, adapter, LORA), jnp.array(batch["tokens"])
    cache = init_cache(CONFIG, 8, 8)
    x, _, _ = transformer.hidden(changed, tokens, config=CONFIG, cache=cache, positions=jnp.tile(jnp.arange(8), (8, 1)))
    close(transformer.unembed(changed, x, config=CONFIG), logits(changed, tokens))


@pytest.mark.slow
def test_sharded_is_single(params, adapter, batch):
    mesh, rules = sharding.make_mesh(sharding.Layout(data=2, fsdp=2, tensor=2)), sharding.get_rules("fsdp_tensor")
    config = dataclasses.replace(CONFIG, kv_heads=2)
    abstract = jax.eval_shape(lambda: lora.init(jax.random.key(0), config, LORA))
    placed = sharding.param_shardings(lora.logical_axes(config, LORA), abstract, mesh, rules)
    assert placed["q"]["a"].spec != placed["q"]["b"].spec and placed["up"]["b"].spec[2] == "tensor"
    params = jax.jit(lambda: transformer.init(jax.random.key(0), config))()
    adapter = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), abstract)

    def loss(adapter, params, batch):
        return losses.next_token_loss(lora.attach(params, adapter, LORA), (), batch, None, config=config)[0]

    def inside(*arguments):
        with sharding.in_force(mesh, rules):
            return loss(*arguments)

    of_model = sharding.param_shardings(transformer.logical_axes(config), params, mesh, rules)
    many = (jax.device_put(adapter, placed), jax.device_put(params, of_model),
            jax.device_put(batch, sharding.batch_sharding(mesh, rules)))
    close(jax.jit(jax.grad(inside))(*many), jax.jit(jax.grad(loss))(adapter, params, batch))


@pytest.mark.parametrize("settings, words", [
    ({"rank": 0}, "rank=0: at least 1"), ({"alpha": 0.0}, "alpha=0.0: a number above 0"),
    ({"projections": ("query",)}, "there is no 'query'; there are q, k, v, o, gate, up, down"),
    ({"projections": ()}, "at least one"), ({"projections": ("q", "q")}, "each once")])
def test_impossible_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        Lora(**settings)


def test_projections_that_a_model_lacks():
    assert lora.projections(tiny.MODEL, Lora()) == ("q", "k", "v", "o", "up", "down")
    with pytest.raises(UserError, match="'gate' cannot have one .the model has none.; these can: q, k, v, o, up, down"):
        lora.projections(tiny.MODEL, Lora(projections=("q", "gate")))
    mixture = dataclasses.replace(CONFIG, experts=4)
    assert lora.projections(mixture, Lora()) == ("q", "k", "v", "o")
    with pytest.raises(UserError, match="'up' cannot have one .experts have no adapters."):
        lora.projections(mixture, Lora(projections=("up",)))


# --- the stages ------------------------------------------------------------------------------------------------------

class AnyAnswer(tiny.Letters):
    """Different answers earn differently, whatever the model knows: practice always has something to learn."""

    def reward(self, problem, completion):
        return sum(completion.encode()) % 7 / 7


def with_adapters(corpus, **settings):
    chosen = tiny.experiment(corpus, sft_steps=settings.pop("sft_steps", 20), grpo_steps=2, kl_weight=0.1, rules="replicated",
                             **settings)
    stages = [dataclasses.replace(stage, lora=Lora(rank=4, projections=("q", "v", "up"))) if stage.name in ("sft", "grpo") else stage
              for stage in chosen.stages]
    stages = [dataclasses.replace(stage, task=AnyAnswer("a")) if stage.name == "grpo" else stage for stage in stages]
    return dataclasses.replace(chosen, stages=tuple(stages))


@pytest.mark.slow
def test_finetuning_and_practice_with_adapters(tiny_base, tmp_path):
    corpus, workdir = tiny_base
    chosen = with_adapters(corpus, rollouts=16, max_new_tokens=12)  # some of its answers end: one that is cut earns nothing
    work = shutil.copytree(workdir, tmp_path / "work", ignore=shutil.ignore_patterns("sft"))
    base = load(work, "pretrain").params
    tiny.run_stages(chosen, ("sft", "grpo"), work)
    found = tiny.losses(work, "sft")
    assert found[20] < found[1]
    assistant, practised = load(work, "sft").params, load(work, "grpo").params
    for before, after in ((base, assistant), (assistant, practised)):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
        changed = {jax.tree_util.keystr(path) for path, equal in jax.tree.leaves_with_path(same) if not equal}
        assert changed == {"['layers']['attention']['q']['weight']", "['layers']['attention']['v']['weight']",
                           "['layers']['mlp']['up']['weight']"}
    assert tiny.losses(work, "grpo", "kl")[1] < 1e-12 < tiny.losses(work, "grpo", "kl")[2]  # the reference is what it started from

    abstract = jax.eval_shape(lambda: lora.init(jax.random.key(0), tiny.MODEL, chosen.stage("sft").lora))
    adapter = load_params(work / "sft" / "checkpoints" / "20", abstract)  # all that the checkpoints of the stage hold
    expected = lora.merge(base, adapter, chosen.stage("sft").lora)
    jax.tree.map(np.testing.assert_array_equal, assistant, jax.tree.map(np.asarray, expected))


@pytest.mark.slow
def test_resumed_is_uninterrupted(tiny_base, tmp_path):
    corpus, workdir = tiny_base
    for steps, name in ((20, "whole"), (20, "cut")):
        work = shutil.copytree(workdir, tmp_path / name, ignore=shutil.ignore_patterns("sft"))
        if name == "whole":
            tiny.run_stages(with_adapters(corpus), ("sft",), work)
            shutil.copytree(work / "sft", tmp_path / "kept")
        else:  # what a run leaves that is killed after the checkpoint of step 10
            shutil.copytree(tmp_path / "kept", work / "sft", ignore=shutil.ignore_patterns("20", "merged", "manifest.json"))
            assert not (work / "sft" / "checkpoints" / "20").exists() and (work / "sft" / "checkpoints" / "10").exists()
            tiny.run_stages(with_adapters(corpus), ("sft",), work)
    whole, cut = (load(tmp_path / name, "sft").params for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_the_programs_named_are_those_of_an_adapter(tiny_data):
    corpus, workdir = tiny_data
    chosen = with_adapters(corpus)
    for name in ("sft", "grpo"):
        context = tiny.context(chosen, name, workdir)
        step, (state, frozen, batch) = context.stage.programs(context)["train_step"]
        assert sorted(state.params) == ["q", "up", "v"] and "embed" in frozen
        new, metrics = jax.eval_shape(step, state, frozen, batch)
        assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.slow
def test_pretraining_goes_on_whole_and_with_an_adapter(tiny_base, tmp_path):
    corpus, workdir = tiny_base
    work = shutil.copytree(workdir, tmp_path / "work", ignore=shutil.ignore_patterns("sft"))
    chosen = tiny.experiment(corpus, rules="replicated")
    further = dataclasses.replace(chosen.stage("pretrain"), start_from="pretrain", tokens=4 * 8 * 32, prompts=("river",),
                                  loop=dataclasses.replace(chosen.stage("pretrain").loop, eval_every=4))
    chosen = dataclasses.replace(chosen, stages=(*chosen.stages, dataclasses.replace(further, name="whole"),
                                                 dataclasses.replace(further, name="thin", lora=Lora(rank=2))))
    tiny.run_stages(chosen, ("whole", "thin"), work)
    base, started = tiny.losses(work, "pretrain"), tiny.losses(work, "whole")
    assert started[1] < (base[1] + base[20]) / 2  # not a new model
    assert tiny.losses(work, "thin")[1] == pytest.approx(started[1], rel=1e-5)  # the same start, on the same rows
    whole, thin, first = (load(work, name).params for name in ("whole", "thin", "pretrain"))
    assert (whole["embed"] != first["embed"]).any() and (thin["embed"] == first["embed"]).all()
    assert (thin["layers"]["mlp"]["up"]["weight"] != first["layers"]["mlp"]["up"]["weight"]).any()
    other = dataclasses.replace(further, name="other", model=dataclasses.replace(tiny.MODEL, qk_norm=True))
    with pytest.raises(UserError, match="other.model: not the model of stage 'pretrain': qk_norm is False there and True here"):
        tiny.run_stages(dataclasses.replace(chosen, stages=(*chosen.stages, other)), ("other",), work)


def test_an_adapter_needs_a_model(tiny_data):
    with pytest.raises(ValueError, match="lora: an adapter is trained beside a model that is there"):
        dataclasses.replace(tiny.experiment(tiny_data[0]).stage("pretrain"), lora=Lora())
