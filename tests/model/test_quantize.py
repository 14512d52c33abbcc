"""Eight bits against the numbers they stand for: one matrix, whole models, and the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request, Sampling
from jaxgpt.model import transformer
from jaxgpt.model.kv_cache import init_cache, read_cache, write_cache
from jaxgpt.model.layers import linear
from jaxgpt.model.quantize import Int8, quantize, to_int8

SHAPE = dict(vocab_size=60, context=24, layers=2, width=16, heads=4, kv_heads=2, mlp_width=32, init_std=0.3)
CONFIGS = {"llama": transformer.Config(**SHAPE),
           "gpt2": transformer.Config(**SHAPE | {"kv_heads": 4}, position="learned", norm="layernorm", bias=True,
                                      activation="gelu_tanh", tied=True),
           "experts": transformer.Config(**SHAPE, experts=4, experts_per_token=2)}
TOKENS = jnp.arange(40).reshape(2, 20)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    config = CONFIGS[request.param]
    return jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config), config


def is_int8(leaf):
    return isinstance(leaf, Int8)


def numbers(params):
    """The numbers that the eight bits stand for, as ordinary parameters."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_int8(leaf) else leaf, params, is_leaf=is_int8)


def test_a_number_is_at_most_half_a_step_off():
    x = jnp.concatenate([jax.random.normal(jax.random.key(0), (50, 6)), jnp.zeros((50, 1))], axis=1)
    q = to_int8(x, axis=0)
    assert q.values.dtype == jnp.int8 and q.scale.shape == (1, 7) and jnp.abs(q.values[:, :6]).max(axis=0).tolist() == [127] * 6
    assert (jnp.abs(q.astype(jnp.float32) - x) <= q.scale / 2 + 1e-7).all()
    np.testing.assert_allclose(linear(x, to_int8(x.T, axis=0)), x @ to_int8(x.T, axis=0).astype(jnp.float32), atol=1e-5)


def test_a_quantized_model_is_the_model_of_those_numbers(model):
    params, config = model
    small = quantize(params)
    apply = jax.jit(transformer.apply, static_argnames="config")
    got, right = apply(small, TOKENS, config=config), apply(numbers(small), TOKENS, config=config)
    np.testing.assert_allclose(got, right, atol=2e-5)
    whole = jax.nn.log_softmax(apply(params, TOKENS, config=config))
    divergence = jnp.sum(jnp.exp(whole) * (whole - jax.nn.log_softmax(got)), axis=-1).mean()
    # nats a token, of distributions far from uniform; a token near a border goes to another expert
    assert 0 < divergence < (2e-2 if config.experts else 2e-3), divergence
    assert jax.tree.all(jax.tree.map(jnp.array_equal, quantize(small), small))  # it is so already


def test_matrices_take_a_quarter_and_the_rest_stays(model):
    params, config = model
    small = jax.eval_shape(quantize, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(small, is_leaf=is_int8):
        name = jax.tree_util.keystr(path)
        matrix = any(part in name for part in ("'weight'", "'head'", "'embed'")) and "router" not in name
        assert is_int8(leaf) == matrix, name
        if matrix:
            assert leaf.scale.size * 16 <= leaf.values.size


def test_an_int8_cache_holds_keys_and_values_to_half_a_step():
    cache = init_cache(CONFIGS["llama"], 2, 8, "int8")[0]["k"]
    new = jax.random.normal(jax.random.key(1), (2, 3, 2, 4))
    written = write_cache(cache, new, jnp.array([[0, 1, 2], [5, 6, 99]]))  # the last is nowhere
    found = read_cache(written, jnp.float32)
    for row, slots, count in ((0, slice(0, 3), 3), (1, slice(5, 7), 2)):
        right = new[row, :count]
        assert (jnp.abs(found[row, slots] - right) <= jnp.abs(right).max(axis=-1, keepdims=True) / 254 + 1e-6).all()
    assert not found[0, 3:].any() and not found[1, :5].any() and not found[1, 7].any()


@pytest.mark.slow
def test_the_engine_takes_both(model):
    """Eight-bit weights give the tokens of the numbers they stand for; of an eight-bit cache they stay near."""
    params, config = model
    small = quantize(params)
    requests = [Request((5, 9, 31), 12, Sampling(temperature=0)), Request((7, 2), 12, Sampling(temperature=0.8, seed=3))]
    run = lambda params, **options: Engine(  # noqa: E731
        params, config, slots=2, chunk=4, alternatives=2, **options).run(requests)
    got, right = run(small), run(numbers(small))
    assert [o.ids for outputs in got for o in outputs] == [o.ids for outputs in right for o in outputs]
    (output,), _ = run(small, cache_dtype="int8")
    tokens = jnp.array([[*requests[0].prompt, *output.ids]])
    logits = transformer.apply(small, tokens[:, :-1], config=config)[0, 2:]
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[0, 3:, None], axis=-1)[:, 0]
    difference = np.abs(np.array([token.model_logprob for token in output.tokens]) - np.asarray(expected))
    assert 0 < difference.max() < 0.05, difference
