"""What must hold of any transformer: causality, cache = full pass, packed = separate, scan = loop, remat = none."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.core import sharding
from jaxgpt.core.step import abstract
from jaxgpt.model import presets, transformer
from jaxgpt.model.kv_cache import init_cache


@functools.partial(jax.jit, static_argnames="config")
def logits(params, tokens, config, **options):
    return transformer.apply(params, tokens, config=config, **options)


@functools.partial(jax.jit, static_argnames="config")
def cached_logits(params, tokens, positions, cache, config):
    x, cache, _ = transformer.hidden(params, tokens, config=config, positions=positions, cache=cache)
    return transformer.unembed(params, x, config=config), cache


def test_causality_by_gradient(params, config, tokens):
    """The logits at position 5 have a gradient with respect to the embeddings of positions 0..5 and of no later one."""
    unique = jnp.arange(12)[None]  # every position has a row of the embedding to itself
    free = dataclasses.replace(config, tied=False)
    free_params = {**params, "head": jax.random.normal(jax.random.key(3), (config.width, config.vocab_size))}
    weights = jax.random.normal(jax.random.key(2), (config.vocab_size,))
    gradient = jax.jit(jax.grad(lambda p: logits(p, unique, free)[0, 5] @ weights))(free_params)["embed"]
    norms = jnp.linalg.norm(gradient, axis=-1)
    assert (norms[2:6] > 0).all() and not norms[6:].any()


def test_cached_decoding_is_the_full_pass(params, config, tokens):
    """Prompts of different lengths, padded on the right with rubbish, then token by token."""
    full = logits(params, tokens, config)
    lengths, cache = jnp.array([3, 5]), init_cache(config, 2, 16)
    prompt = jnp.where(jnp.arange(5) < lengths[:, None], tokens[:, :5], 60)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    out, cache = cached_logits(params, prompt, positions, cache, config)
    for row in range(2):
        np.testing.assert_allclose(out[row, :lengths[row]], full[row, :lengths[row]], rtol=2e-4, atol=2e-4)
    for step in range(7):
        at = (lengths + step)[:, None]
        out, cache = cached_logits(params, jnp.take_along_axis(tokens, at, axis=1), at, cache, config)
        expected = jnp.take_along_axis(full, at[..., None], axis=1)
        np.testing.assert_allclose(out, expected, rtol=2e-4, atol=2e-4)


def test_packed_is_separate(params, config, tokens):
    """Three documents in one row give the logits of each alone, and nothing leaks from one to another."""
    row = tokens[:1]
    segments = jnp.array([[1] * 5 + [2] * 4 + [3] * 3])
    positions = jnp.array([[*range(5), *range(4), *range(3)]])
    packed = logits(params, row, config, positions=positions, segment_ids=segments)
    for start, end in ((0, 5), (5, 9), (9, 12)):
        alone = logits(params, row[:, start:end], config)
        np.testing.assert_allclose(packed[:, start:end], alone, rtol=2e-4, atol=2e-4)
    assert not np.allclose(packed[:, 5:], logits(params, row, config)[:, 5:], atol=1e-2)  # packing is not a no-op
    changed = logits(params, row.at[0, 2].add(1), config, positions=positions, segment_ids=segments)
    np.testing.assert_array_equal(packed[:, 5:], changed[:, 5:])
    assert (packed[:, 2:5] != changed[:, 2:5]).any()


@pytest.mark.parametrize("change", [{"unroll": 3}, {"remat": "full"}, {"remat": "dots"}, {"remat": "names"},
                                    {"remat": "offload"}])
def test_scan_is_loop_and_remat_is_none(params, config, tokens, change):
    other = dataclasses.replace(config, **change)
    jitted = lambda config: jax.jit(jax.value_and_grad(  # noqa: E731
        lambda p: jnp.square(logits(p, tokens, config)).mean()))
    (value, gradient), (same, gradients) = jitted(config)(params), jitted(other)(params)
    np.testing.assert_allclose(value, same, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * largest)
    texts = [jax.make_jaxpr(jitted(c))(params).pretty_print() for c in (config, other)]
    assert texts[0] != texts[1]  # the setting does change the program
    assert jax.tree.structure(transformer.init(jax.random.key(0), other)) == jax.tree.structure(params)


def test_jit_is_eager(params, config, tokens):
    eager = transformer.apply(params, tokens, config=config)
    np.testing.assert_allclose(logits(params, tokens, config), eager, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rules, layout", [("fsdp", sharding.Layout(fsdp=4)), ("fsdp_tensor", sharding.Layout(fsdp=2, tensor=2)),
                                           ("fsdp_tensor_sequence", sharding.Layout(data=1, fsdp=2, tensor=2, sequence=2))])
def test_sharded_is_single(config, tokens, rules, layout):
    config = dataclasses.replace(config, vocab_size=64)
    mesh, rules = sharding.make_mesh(layout), sharding.get_rules(rules)
    init = lambda: transformer.init(jax.random.key(0), config)  # noqa: E731
    single = jax.jit(init)()
    shardings = sharding.param_shardings(transformer.logical_axes(config), abstract(single), mesh, rules)
    many = jax.jit(init, out_shardings=shardings)()
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(many)):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # to the last bit, which is the compiler's
    batch = jnp.tile(tokens, (4, 1))

    def run(params, batch):
        with sharding.in_force(mesh, rules):
            return transformer.apply(params, batch, config=config)

    assert not many["embed"].sharding.is_fully_replicated
    np.testing.assert_allclose(jax.jit(run)(many, batch), logits(single, batch, config), rtol=2e-4, atol=2e-4)


def test_windows_limit_what_a_layer_sees(tokens):
    config = transformer.Config(vocab_size=61, context=32, layers=1, width=16, heads=2, windows=(3,), init_std=0.3)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    before, after = (logits(params, t, config) for t in (tokens, tokens.at[:, 4].add(1)))
    changed = jnp.abs(before - after).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(jnp.flatnonzero(changed), [4, 5, 6])


def test_soft_cap_bounds_the_logits(tokens):
    config = transformer.Config(vocab_size=61, context=32, layers=1, width=16, heads=2, logit_soft_cap=2.0, init_std=5.0)
    out = logits(transformer.init(jax.random.key(0), config), tokens, config)
    assert 1.5 < float(jnp.abs(out).max()) <= 2.0


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_few_positions_are_those_of_many(config, tied):
    config = dataclasses.replace(config, tied=tied)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    x = jax.random.normal(jax.random.key(1), (3, 100, config.width))  # more than 256 positions
    many = transformer.unembed(params, x, config=config)
    for part in ((0, 0), (slice(None), 0), (0, slice(1)), (slice(None), slice(5))):
        np.testing.assert_allclose(transformer.unembed(params, x[part], config=config), many[part], atol=1e-5)


def test_zero_init_outputs_start_as_the_identity(tokens):
    config = transformer.Config(vocab_size=61, context=32, layers=2, width=16, heads=2, zero_init_outputs=True)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    aux = jax.jit(lambda p: transformer.hidden(p, tokens, config=config, capture=("hidden",))[2])(params)
    np.testing.assert_array_equal(aux["hidden"][0], aux["hidden"][1])
    np.testing.assert_array_equal(aux["hidden"][0], params["embed"][tokens])


def test_capture_shows_the_inside(params, config, tokens):
    _, cache, aux = jax.jit(lambda p: transformer.hidden(p, tokens, config=config, capture=("attention", "hidden")))(params)
    assert cache is None and aux["attention"].shape == (3, 2, 4, 12, 12) and aux["hidden"].shape == (3, 2, 12, 32)
    np.testing.assert_allclose(aux["attention"].sum(-1), 1.0, rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_from_float32_parameters(tokens):
    config = transformer.Config(vocab_size=61, context=32, layers=2, width=32, heads=2, dtype="bfloat16", init_std=0.1)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x, _, _ = transformer.hidden(params, tokens, config=config)
    out = logits(params, tokens, config)
    exact = logits(params, tokens, dataclasses.replace(config, dtype="float32"))
    assert x.dtype == jnp.bfloat16 and out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert (out != exact).any()


def test_a_sequence_beyond_the_context_is_refused(params, config):
    with pytest.raises(ValueError, match="33 positions, but the model's context is 32"):
        transformer.apply(params, jnp.zeros((1, 33), jnp.int32), config=config)


@pytest.mark.parametrize("settings", [{"heads": 3}, {"kv_heads": 3}, {"layers": 0}, {"width": 4, "heads": 4}])
def test_impossible_models_are_refused(settings):
    with pytest.raises(ValueError):
        transformer.Config(**{"vocab_size": 8, "context": 8, "layers": 1, "width": 32, "heads": 4, **settings})


def test_depth_scales_everything_from_one_number():
    small, large = presets.depth(2, vocab_size=4096), presets.depth(20, vocab_size=32768)
    assert (small.model.layers, small.model.width, large.model.width) == (2, 128, 1280)
    assert small.tokens < large.tokens and small.batch <= large.batch and small.optim.adam_lr > large.optim.adam_lr


def test_flops_of_a_token_by_hand():
    """1 layer, D=4, F=16, no gate: 4·D² + 2·D·F weights, head D·V; attention 12 · N·H · T/2."""
    config = transformer.Config(vocab_size=10, context=8, layers=1, width=4, heads=2, activation="relu2", norm_scale=False)
    assert transformer.flops_per_token(config, 8) == 6 * (4 * 16 + 2 * 4 * 16 + 4 * 10) + 12 * 4 * 4
