"""Per-token estimates of KL(policy ‖ reference) from tokens that the policy sampled.

With d = log π(y) − log π_ref(y) at a sampled token y, three estimates of the same number differ in what
their gradient does:

  estimate   value                mean                   gradient of its mean over samples, as a loss
  k1         d                    the KL, may be < 0     0: the score function ∇log π has mean zero
  k2         d²/2                 biased, ≥ 0            ∇KL(π ‖ π_ref), the one that regularisation wants
  k3         exp(−d) − 1 + d      the KL, ≥ 0            ∇KL(π_ref ‖ π), the other direction

(The gradient column takes the samples as given, which is what automatic differentiation of a loss does.) So
k1 belongs in the reward, where the policy gradient differentiates the sampling too, and k2 or k3 in the loss.
Near the reference the two directions agree to second order and k3 has by far the smallest variance: GRPO uses
it.

Source: Schulman, "Approximating KL Divergence" (2020), joschu.net/blog/kl-approx.html; the names k1, k2, k3
are from there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check


def k1(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """The plain log-ratio: unbiased, of high variance, and without effect as a loss.

      k1 = log π − log π_ref

    Source: Schulman (2020), k1. Use it in rewards, as in Ouyang et al. (2022), equation 2.

    Args:
      logprobs: log-probabilities of the sampled tokens under the policy, [B, T], nats.
      ref_logprobs: of the same tokens under the reference, [B, T], nats.

    Returns:
      [B, T], nats.

    Raises:
      ValueError: the shapes differ.

    >>> k1(jnp.array([[-1.0]]), jnp.array([[-3.0]])).tolist()
    [[2.0]]
    """
    check("B T", logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def k2(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """Half the squared log-ratio: biased as a value, but its gradient as a loss is that of KL(π ‖ π_ref).

      k2 = ½ (log π − log π_ref)²

    Source: Schulman (2020), k2. That ∇k2 = (log π − log π_ref) ∇log π is what k1 in the reward gives
    follows by writing the REINFORCE gradient down.

    Args:
      logprobs: log-probabilities of the sampled tokens under the policy, [B, T], nats.
      ref_logprobs: of the same tokens under the reference, [B, T], nats.

    Returns:
      [B, T], nats, never negative.

    Raises:
      ValueError: the shapes differ.

    >>> k2(jnp.array([[-1.0]]), jnp.array([[-3.0]])).tolist()
    [[2.0]]
    """
    check("B T", logprobs=logprobs, ref_logprobs=ref_logprobs)
    return 0.5 * jnp.square(logprobs - ref_logprobs)


def k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """The log-ratio with a control variate: unbiased, never negative, of low variance.

      k3 = π_ref/π − 1 − log(π_ref/π)

    Source: Schulman (2020), k3; Shao et al., "DeepSeekMath" (2024), arXiv:2402.03300, equation 4.

    Args:
      logprobs: log-probabilities of the sampled tokens under the policy, [B, T], nats.
      ref_logprobs: of the same tokens under the reference, [B, T], nats.

    Returns:
      [B, T], nats, never negative.

    Raises:
      ValueError: the shapes differ.

    >>> k3(jnp.array([[-1.0]]), jnp.array([[-1.0]])).tolist()
    [[0.0]]
    """
    check("B T", logprobs=logprobs, ref_logprobs=ref_logprobs)
    log_ratio = ref_logprobs - logprobs
    return jnp.expm1(log_ratio) - log_ratio
