"""Numbers worked by hand from the cited equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import layers
from jaxgpt.model.quantize import to_int8


def test_linear_is_the_matrix_product_with_or_without_leading_dimensions():
    x, w, b = jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(8.0).reshape(4, 2), jnp.array([1.0, -1.0])
    np.testing.assert_allclose(layers.linear(x, w, b), np.einsum("btd,df->btf", x, w) + np.asarray(b))
    np.testing.assert_allclose(layers.linear(x[0, 0], w), x[0, 0] @ w)
    with pytest.raises(ValueError, match="weight has shape"):
        layers.linear(x, w.T)


@pytest.mark.parametrize("rows", [(1,), (1, 1), (2,)])
def test_a_single_row_times_a_large_matrix_is_the_same_product(rows):
    x = jax.random.normal(jax.random.key(0), (*rows, 768))
    w = jax.random.normal(jax.random.key(1), (768, 1024)) / 768 ** 0.5
    ours, grad = jax.jit(layers.linear)(x, w), jax.grad(lambda w: jnp.sum(layers.linear(x, w) ** 2))(w)
    y = np.asarray(x, np.float64).reshape(-1, 768) @ np.asarray(w, np.float64)
    np.testing.assert_allclose(ours, y.reshape(*rows, 1024), atol=1e-5)
    np.testing.assert_allclose(grad, np.asarray(x, np.float64).reshape(-1, 768).T @ (2 * y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [(), (1,), (2, 3), (300,)])
@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, "int8"])
def test_a_weight_as_its_columns_gives_the_same(rows, kind):
    x, w, b = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(*rows, 32), (32, 5), (5,)]))
    x, w = (x, to_int8(w, axis=-2)) if kind == "int8" else (x.astype(kind), w)
    close = {"rtol": 2e-2, "atol": 2e-2} if kind == jnp.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for dtype in (None, jnp.float32):
        ours, plain = layers.linear(x, w.T, b, dtype=dtype, columns=True), layers.linear(x, w, b, dtype=dtype)
        assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype)
        np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), **close)
    with pytest.raises(ValueError, match="weight has shape"):
        layers.linear(x, w, columns=True)


def test_rms_norm():  # rms of (3, 4) is √12.5
    np.testing.assert_allclose(layers.rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]), eps=0.0),
                               [3 / 12.5 ** 0.5, 8 / 12.5 ** 0.5], rtol=1e-6)


def test_layer_norm():  # mean 2, standard deviation 1
    np.testing.assert_allclose(layers.layer_norm(jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0]), jnp.array([0.5, 0.5]),
                                                 eps=0.0), [-1.5, 2.5], rtol=1e-6)


def test_rotary_turns_each_pair_by_its_angle():
    """H = 4: pairs (0, 2) and (1, 3) with wavelength factors 1 and θ^(-1/2) = 0.1 at θ = 100; position 2."""
    x = jnp.array([1.0, 1.0, 0.0, 0.0])[None, None, None]
    out = layers.rotary(x, jnp.array([[2]]), theta=100.0)[0, 0, 0]
    np.testing.assert_allclose(out, [np.cos(2), np.cos(0.2), np.sin(2), np.sin(0.2)], rtol=1e-6)


def test_rotary_products_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    at = lambda x, position: layers.rotary(x, jnp.array([[position]]))  # noqa: E731
    near, far = jnp.sum(at(q, 3) * at(k, 1)), jnp.sum(at(q, 103) * at(k, 101))
    np.testing.assert_allclose(near, far, rtol=1e-4)
    assert abs(near - jnp.sum(at(q, 4) * at(k, 1))) > 1e-3


def test_soft_cap():
    np.testing.assert_allclose(layers.soft_cap(jnp.array([1.0, 1e6]), 2.0), [2 * np.tanh(0.5), 2.0], rtol=1e-6)
    assert layers.soft_cap(jnp.array([1e6]), None)[0] == 1e6


def test_activations():
    np.testing.assert_allclose(layers.relu2(jnp.array([-2.0, 3.0])), [0.0, 9.0])


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_and_its_gradient(approximate):
    """x Φ(x) at 1 is Φ(1) = 0.841345; its slope is Φ(1) + φ(1) = 1.083315, to 3e-4 with tanh."""
    value, slope = jax.value_and_grad(lambda x: layers.gelu(x, approximate))(1.0)
    np.testing.assert_allclose([value, slope], [0.841345, 1.083315], rtol=5e-4 if approximate else 1e-6)
    np.testing.assert_allclose(layers.swiglu(jnp.array([2.0]), jnp.array([3.0])), [3 * 2 / (1 + np.exp(-2))], rtol=1e-6)
