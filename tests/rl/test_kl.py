"""KL estimates: their values by hand, and their gradients by enumeration of a vocabulary of three tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.rl import kl

LOGITS = jnp.array([0.3, -1.1, 0.8])
REF_LOGITS = jnp.array([-0.5, 0.4, 0.1])
ESTIMATES = (kl.k1, kl.k2, kl.k3)


def true_kl(logits, ref_logits):
    """Σ p log p/q over all three tokens."""
    logprobs, ref_logprobs = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jnp.exp(logprobs) * (logprobs - ref_logprobs))


def expected(estimate, logits, ref_logits):
    """E over tokens sampled from the policy; the sampling itself is not differentiated, as in a loss."""
    logprobs, ref_logprobs = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(logprobs)) * estimate(logprobs[None], ref_logprobs[None])[0])


def test_values_by_hand():
    logprobs, ref_logprobs = jnp.log(jnp.array([[0.5, 0.2, 0.3]])), jnp.log(jnp.array([[0.25, 0.4, 0.3]]))
    log2 = np.log(2)
    np.testing.assert_allclose(kl.k1(logprobs, ref_logprobs), [[log2, -log2, 0]], atol=1e-6)
    np.testing.assert_allclose(kl.k2(logprobs, ref_logprobs), [[log2**2 / 2, log2**2 / 2, 0]], atol=1e-6)
    np.testing.assert_allclose(kl.k3(logprobs, ref_logprobs), [[0.5 - 1 + log2, 2 - 1 - log2, 0]], atol=1e-6)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    truth = float(true_kl(LOGITS, REF_LOGITS))
    assert expected(kl.k1, LOGITS, REF_LOGITS) == pytest.approx(truth, rel=1e-5)
    assert expected(kl.k3, LOGITS, REF_LOGITS) == pytest.approx(truth, rel=1e-5)
    assert expected(kl.k2, LOGITS, REF_LOGITS) != pytest.approx(truth, rel=1e-2)


def test_k2_and_k3_are_never_negative():
    logprobs, ref_logprobs = -jax.random.exponential(jax.random.key(0), (2, 8, 100))
    assert jnp.all(kl.k2(logprobs, ref_logprobs) >= 0) and jnp.all(kl.k3(logprobs, ref_logprobs) >= 0)
    assert jnp.any(kl.k1(logprobs, ref_logprobs) < 0)


def test_gradient_identities():
    """As a loss k1 does nothing, k2 descends KL(π ‖ ref), k3 descends KL(ref ‖ π)."""
    k1, k2, k3 = (jax.grad(lambda x: expected(estimate, x, REF_LOGITS))(LOGITS) for estimate in ESTIMATES)
    forward = jax.grad(true_kl, argnums=0)(LOGITS, REF_LOGITS)
    backward = jax.grad(true_kl, argnums=1)(REF_LOGITS, LOGITS)
    assert np.abs(forward).max() > 0.1 and np.abs(forward - backward).max() > 0.01
    np.testing.assert_allclose(k1, np.zeros(3), atol=1e-7)
    np.testing.assert_allclose(k2, forward, atol=1e-6)
    np.testing.assert_allclose(k3, backward, atol=1e-6)


def test_k1_in_the_reward_is_k2_in_the_loss():
    """REINFORCE with reward −k1 has the gradient of k2 as a loss."""
    def reinforce(logits):
        logprobs, ref_logprobs = jax.nn.log_softmax(logits), jax.nn.log_softmax(REF_LOGITS)
        reward = -jax.lax.stop_gradient(kl.k1(logprobs[None], ref_logprobs[None])[0])
        return -jnp.sum(jax.lax.stop_gradient(jnp.exp(logprobs)) * reward * logprobs)

    np.testing.assert_allclose(jax.grad(reinforce)(LOGITS),
                               jax.grad(lambda x: expected(kl.k2, x, REF_LOGITS))(LOGITS), atol=1e-6)


def test_k3_keeps_its_precision_near_the_reference():
    """x²/2 for small x, where the formula as it is written would round to nothing."""
    near = kl.k3(jnp.array([[-1.0]]), jnp.array([[-1.0 + 2.0**-12]]))
    assert near[0, 0] == pytest.approx(2.0**-25, rel=1e-2)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_jit_and_vmap_equal_eager(estimate):
    logprobs, ref_logprobs = -jax.random.exponential(jax.random.key(1), (2, 3, 4, 5))
    each = jnp.stack([estimate(x, y) for x, y in zip(logprobs, ref_logprobs)])
    np.testing.assert_allclose(jax.jit(estimate)(logprobs[0], ref_logprobs[0]), each[0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(estimate)(logprobs, ref_logprobs), each, rtol=1e-6)
    with pytest.raises(ValueError, match="ref_logprobs has shape"):
        estimate(logprobs[0], ref_logprobs[0, :, :1])
