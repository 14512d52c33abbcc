"""Policy-gradient losses, as sums and weights.

Added up before they are divided, they give the same mean however a batch is cut into micro-batches or spread
over devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check

VARIANTS = ("ppo_clip", "reinforce", "cispo", "gspo")
AGGREGATIONS = ("token_mean", "sequence_mean", "fixed_length")

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def policy_loss(logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, mask: jax.Array, *,
                variant: str = "ppo_clip", clip: tuple[float, float] = (0.2, 0.2),
                aggregation: str = "token_mean",
                length: int | None = None) -> tuple[jax.Array, jax.Array, Metrics]:
    """Makes tokens of good completions more likely, and stops when the policy has moved far enough.

    With rₜ = exp(log πₜ − log π_oldₜ) and (εₗ, εₕ) = clip, the loss of a token is

      ppo_clip   −min(rₜ Aₜ, clip(rₜ, 1 − εₗ, 1 + εₕ) Aₜ)
      reinforce  −Aₜ log πₜ                                     no ratio: for data of the present policy only
      cispo      −sg[clip(rₜ, 1 − εₗ, 1 + εₕ)] Aₜ log πₜ        clips the weight: no gradient is lost
      gspo       ppo_clip with rₜ = exp(meanₜ log rₜ)           one ratio for the whole completion

    On the first step after sampling r = 1: the value of the clipped losses is −mean A, which carries no
    information (it is 0 for group advantages), while the gradient is that of −A log π, which does.

    Source: ppo_clip: Schulman et al. (2017), arXiv:1707.06347, equation 7, with the two bounds of Yu et
    al., "DAPO" (2025), arXiv:2503.14476, equation 10. reinforce: Williams (1992), "Simple Statistical
    Gradient-Following Algorithms". cispo: MiniMax, "MiniMax-M1" (2025), arXiv:2506.13585, equations 4 and
    5. gspo: Zheng et al. (2025), arXiv:2507.18071, equations 5 and 7.

    Args:
      logprobs: of the sampled tokens under the policy being trained, [B, T], nats.
      old_logprobs: under the policy at the start of the update, computed the way `logprobs` is, [B, T], nats.
      advantages: [B, T], or [B] for one number a completion. Not differentiated, like `old_logprobs`.
      mask: 1 on the tokens that the policy chose, the stop token too, and 0 elsewhere, [B, T].
      variant: one of the four above.
      clip: (εₗ, εₕ), how far below and above 1 the ratio may go.
      aggregation, length: see `aggregate`.

    Returns:
      (loss_sum, weight, metrics): the loss is loss_sum / weight once both are summed over the whole batch.
      Each metric is a (sum, weight) too: "ratio", "clip_fraction" (tokens whose gradient was cut or whose
      weight was clipped) and "policy_kl", the k3 estimate of KL(π_old ‖ π).

    Raises:
      ValueError: shapes that differ, an unknown variant or aggregation, a bound below 0.

    >>> logprobs, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.ones((1, 2))
    >>> loss_sum, weight, metrics = policy_loss(logprobs, logprobs, jnp.array([3.0]), mask)
    >>> float(loss_sum / weight)
    -3.0
    """
    if advantages.ndim == 1:
        check({"B T": {"logprobs": logprobs}, "B": {"advantages": advantages}})
        advantages = jnp.broadcast_to(advantages[:, None], logprobs.shape)
    check("B T", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    if variant not in VARIANTS:
        raise ValueError(f"variant: {variant!r} is not one; choose from {', '.join(VARIANTS)}")
    if min(clip) < 0:
        raise ValueError(f"clip: {clip} has a bound below 0; give how far the ratio may go below and above 1")
    kept = mask > 0
    # Where the mask is 0 anything may stand, even inf; the gradient of exp there would be 0 · inf.
    logprobs = jnp.where(kept, logprobs, 0.0)
    old_logprobs = jnp.where(kept, jax.lax.stop_gradient(old_logprobs), 0.0)
    advantages = jnp.where(kept, jax.lax.stop_gradient(advantages), 0.0)
    log_ratio = logprobs - old_logprobs
    if variant == "gspo":
        tokens = jnp.maximum(jnp.sum(kept, axis=1, keepdims=True), 1)
        log_ratio = jnp.where(kept, jnp.sum(log_ratio, axis=1, keepdims=True) / tokens, 0.0)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip[0], 1 + clip[1])

    if variant == "reinforce":
        losses = -advantages * logprobs
        cut = jnp.zeros_like(kept)
    elif variant == "cispo":
        losses = -jax.lax.stop_gradient(clipped) * advantages * logprobs
        cut = clipped != ratio
    else:
        losses = -jnp.minimum(ratio * advantages, clipped * advantages)
        cut = clipped * advantages < ratio * advantages

    loss_sum, weight = aggregate(losses, mask, aggregation=aggregation, length=length)
    per_token = {"ratio": ratio, "clip_fraction": cut, "policy_kl": jnp.expm1(log_ratio) - log_ratio}
    metrics = {name: aggregate(jax.lax.stop_gradient(x), mask) for name, x in per_token.items()}
    return loss_sum, weight, metrics


def aggregate(losses: jax.Array, mask: jax.Array, *, aggregation: str = "token_mean",
              length: int | None = None) -> tuple[jax.Array, jax.Array]:
    """One number from many tokens, as (sum, weight); the choice decides what a long completion counts.

      token_mean     Σᵢₜ m l / Σᵢₜ m             every token alike: DAPO
      sequence_mean  meanᵢ (Σₜ m l / Σₜ m)       every completion alike, whatever its length: GRPO
      fixed_length   meanᵢ (Σₜ m l / L)          every token alike, over a constant: Dr. GRPO

    Rows without a kept token count for nothing; they are padding of the batch.

    Source: token_mean: Yu et al., "DAPO" (2025), arXiv:2503.14476, equation 12. sequence_mean: Shao et al.
    (2024), arXiv:2402.03300, equation 3. fixed_length: Liu et al. (2025), arXiv:2503.20783, section 3.2.

    Args:
      losses: [B, T].
      mask: 1 on the positions that count, 0 elsewhere, [B, T].
      aggregation: one of the three above.
      length: L, the most tokens a completion may have; for fixed_length only.

    Returns:
      (sum, weight), scalars in float32; add each over micro-batches and devices before dividing.

    Raises:
      ValueError: the shapes differ, an unknown aggregation, fixed_length without a length.

    >>> losses, mask = jnp.array([[6.0, 0.0], [1.0, 3.0]]), jnp.array([[1, 0], [1, 1]])
    >>> [float(total / weight) for total, weight in (aggregate(losses, mask),
    ...     aggregate(losses, mask, aggregation="sequence_mean"))]
    [3.3333332538604736, 4.0]
    """
    check("B T", losses=losses, mask=mask)
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: {aggregation!r} is not one; choose from {', '.join(AGGREGATIONS)}")
    if aggregation == "fixed_length" and not (length and length > 0):
        raise ValueError(f"length: {length}; fixed_length needs the most tokens that a completion may have")
    kept = mask > 0
    sums = jnp.sum(jnp.where(kept, losses, 0.0), axis=1, dtype=jnp.float32)
    counts = jnp.sum(kept, axis=1, dtype=jnp.float32)
    if aggregation == "token_mean":
        return jnp.sum(sums), jnp.sum(counts)
    divisors = jnp.maximum(counts, 1) if aggregation == "sequence_mean" else length
    return jnp.sum(sums / divisors), jnp.sum(counts > 0, dtype=jnp.float32)
