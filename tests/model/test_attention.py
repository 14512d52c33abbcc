import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.model.attention import attention, attention_mask


def test_by_hand():
    """One head of size 1, scale 1: weights of the second query are softmax(0, ln 3) = (1/4, 3/4)."""
    q, k = jnp.ones((1, 2, 1, 1)), jnp.array([0.0, np.log(3.0)]).reshape(1, 2, 1, 1)
    v = jnp.array([4.0, 8.0]).reshape(1, 2, 1, 1)
    mask = attention_mask(jnp.arange(2)[None], jnp.arange(2)[None])
    out, weights = attention(q, k, v, mask, with_weights=True)
    np.testing.assert_allclose(out[0, :, 0, 0], [4.0, 7.0], rtol=1e-6)
    np.testing.assert_allclose(weights[0, 0], [[1.0, 0.0], [0.25, 0.75]], rtol=1e-6)


def test_agrees_with_jax_nn():
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 7, 4, 8))
    k, v = (jax.random.normal(key, (2, 7, 2, 8)) for key in keys[1:])
    mask = attention_mask(jnp.arange(7)[None], jnp.arange(7)[None], window=3)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
    np.testing.assert_allclose(attention(q, k, v, mask), expected, rtol=1e-5, atol=1e-5)


def test_mask_of_packed_documents_in_a_window():
    positions, segments = jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[1, 1, 1, 2, 2]])
    index = jnp.arange(5)[None]
    mask = attention_mask(index, index, window=2, query_segments=segments, key_segments=segments)[0]
    np.testing.assert_array_equal(mask.astype(int), [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0],
                                                     [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]])
    assert positions.shape == segments.shape
