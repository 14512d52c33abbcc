import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import losses, transformer

CONFIG = transformer.Config(vocab_size=37, context=16, layers=1, width=16, heads=2, init_std=0.3, loss_chunk=None)


@pytest.fixture(scope="module")
def model():
    return transformer.init(jax.random.key(0), CONFIG)


def batch(seed=1):
    tokens = jax.random.randint(jax.random.key(seed), (3, 11), 0, 37)
    mask = (jax.random.uniform(jax.random.key(seed + 1), (3, 10)) < 0.7).astype(jnp.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}


def test_selective_log_softmax_by_hand():
    logprob, entropy = losses.selective_log_softmax(jnp.log(jnp.array([[1.0, 3.0, 4.0]])), jnp.array([1]))
    p = np.array([1, 3, 4]) / 8
    np.testing.assert_allclose(logprob, [np.log(3 / 8)], rtol=1e-6)
    np.testing.assert_allclose(entropy, [-(p * np.log(p)).sum()], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 29])
def test_chunked_is_whole(model, chunk):
    """Values and gradients, also where the chunk does not divide the positions."""
    def total(params, config):
        x, _, _ = transformer.hidden(params, batch()["tokens"], config=config)
        logprobs, entropy = losses.token_logprobs(params, x, batch()["targets"], config=config)
        weights = jnp.arange(30.0).reshape(3, 10)
        return jnp.sum(logprobs * weights) + jnp.sum(entropy * weights ** 2)

    chunked = dataclasses.replace(CONFIG, loss_chunk=chunk)
    (value, gradient), (same, others) = (jax.value_and_grad(total)(model, c) for c in (CONFIG, chunked))
    np.testing.assert_allclose(value, same, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(others)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(a).max()))


def test_logits_are_never_whole_in_memory(model):
    """No array of the chunked program, forward or backward, has as many elements as B·T·V."""
    config = dataclasses.replace(CONFIG, loss_chunk=5)
    text = jax.jit(jax.grad(lambda p: losses.next_token_loss(p, (), batch(), None, config=config)[0])).lower(model).as_text()
    whole = jax.jit(jax.grad(lambda p: losses.next_token_loss(p, (), batch(), None, config=CONFIG)[0])).lower(model).as_text()
    assert "30x37xf32" not in text and "3x10x37xf32" not in text and "5x37xf32" in text
    assert "30x37xf32" in whole or "3x10x37xf32" in whole


def test_a_sum_makes_its_logits_once(model):
    """Chunked, a training step multiplies by the head three times; where each token's gradient is its own, four times."""
    config = dataclasses.replace(CONFIG, loss_chunk=5)

    def each_token(params):
        x, _, _ = transformer.hidden(params, batch()["tokens"], config=config)
        return jnp.sum(losses.token_logprobs(params, x, batch()["targets"], config=config)[0])

    def products(loss):
        lines = jax.jit(jax.value_and_grad(loss)).lower(model).as_text().splitlines()
        return sum("dot_general" in line and "x37x" in line for line in lines)

    assert products(lambda p: losses.next_token_loss(p, (), batch(), None, config=config)[0]) == 3
    assert products(each_token) == 4


def test_chunked_sum_is_whole(model):
    """Values and gradients, times what follows, also where the chunk does not divide the positions."""
    def loss(params, config):
        total, weight, _ = losses.next_token_loss(params, (), batch(), None, config=config)
        return (total / weight) ** 2

    for chunk in (1, 7, 29):
        chunked = dataclasses.replace(CONFIG, loss_chunk=chunk)
        (value, gradient), (same, others) = (jax.value_and_grad(loss)(model, c) for c in (CONFIG, chunked))
        np.testing.assert_allclose(value, same, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(others)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))


def test_loss_is_the_masked_sum(model):
    loss_sum, weight, _ = losses.next_token_loss(model, (), batch(), None, config=CONFIG)
    logprobs = jax.nn.log_softmax(transformer.apply(model, batch()["tokens"], config=CONFIG))
    chosen = np.take_along_axis(np.asarray(logprobs), np.asarray(batch()["targets"])[..., None], -1)[..., 0]
    assert float(weight) == float(batch()["loss_mask"].sum())
    np.testing.assert_allclose(loss_sum, -(chosen * batch()["loss_mask"]).sum(), rtol=1e-5)


def test_masked_positions_change_neither_loss_nor_gradient(model):
    one = batch()
    other = {**one, "targets": jnp.where(one["loss_mask"] > 0, one["targets"], (one["targets"] + 5) % 37)}
    assert (one["targets"] != other["targets"]).any()
    run = jax.jit(jax.value_and_grad(lambda p, b: losses.next_token_loss(p, (), b, None, config=CONFIG)[0]))
    (loss, gradient), (same, others) = run(model, one), run(model, other)
    assert float(loss) == float(same)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(others)):
        np.testing.assert_array_equal(a, b)


def test_temperature_divides_the_logits(model):
    x, _, _ = transformer.hidden(model, batch()["tokens"], config=CONFIG)
    got, _ = losses.token_logprobs(model, x, batch()["targets"], config=CONFIG, temperature=2.0)
    expected = jax.nn.log_softmax(transformer.unembed(model, x, config=CONFIG) / 2.0)
    np.testing.assert_allclose(got, jnp.take_along_axis(expected, batch()["targets"][..., None], -1)[..., 0], rtol=1e-5)


def test_chunked_on_a_mesh_is_single_and_gathers_no_activations(model):
    """Rows over 8 devices: every device computes its own share of every chunk."""
    from jaxgpt.core import sharding
    config = dataclasses.replace(CONFIG, loss_chunk=16)
    mesh, rules = sharding.make_mesh(sharding.Layout()), sharding.get_rules("fsdp")
    rows = sharding.batch_sharding(mesh, rules)
    tokens = jax.random.randint(jax.random.key(5), (8, 11), 0, 37)
    split = jax.device_put({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": jnp.ones((8, 10))}, rows)

    def loss(params, batch):
        with sharding.in_force(mesh, rules):
            return losses.next_token_loss(params, (), batch, None, config=config)[0]

    run = jax.jit(jax.value_and_grad(loss), in_shardings=(sharding.replicated(mesh), rows))
    text = run.lower(model, split).compile().as_text()
    assert "while" in text and "all-gather" not in text and "all-reduce" in text
    (value, gradient), (expected, others) = run(model, split), jax.value_and_grad(
        lambda p: losses.next_token_loss(p, (), jax.device_get(split), None, config=CONFIG)[0])(model)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(others)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))
