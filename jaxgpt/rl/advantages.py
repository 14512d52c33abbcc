"""Advantages: how much better a completion, or a token, was than what was to be expected.

Group methods expect what the other completions of the same prompt got; GAE expects what a critic predicted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check

SCALES = ("group", "batch", "none", "leave_one_out")


def group_advantages(rewards: jax.Array, group_ids: jax.Array, *, scale: str = "group",
                     epsilon: float = 1e-4) -> jax.Array:
    """Each reward against the mean of its group.

      group          Aᵢ = (rᵢ − mean_g r) / (std_g r + ε)      GRPO; std with n − 1
      batch          Aᵢ = (rᵢ − mean_g r) / (std r + ε)        one std for the whole batch
      none           Aᵢ = rᵢ − mean_g r                        Dr. GRPO: no bonus for near-unanimous groups
      leave_one_out  Aᵢ = rᵢ − mean_{j≠i} rⱼ                   RLOO: unbiased; = n/(n−1) (rᵢ − mean_g r)

    A group of one, and a group whose rewards are all equal, has advantages of exactly 0: it has nothing to
    compare.

    Source: group: Shao et al., "DeepSeekMath" (2024), arXiv:2402.03300, section 4.1.2, and DeepSeek-AI,
    "DeepSeek-R1" (2025), arXiv:2501.12948, equation 3. batch: Liu et al., "Tricks or Traps?" (2025),
    arXiv:2508.08221. none: Liu et al., "Understanding R1-Zero-Like Training" (2025), arXiv:2503.20783,
    section 3.2. leave_one_out: Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (2019), and
    Ahmadian et al., "Back to Basics" (2024), arXiv:2402.14740.

    Args:
      rewards: one number a completion, [B].
      group_ids: completions with equal integers are of one group, [B]; any integers, in any order.
      scale: one of the four above.
      epsilon: ε, in units of reward.

    Returns:
      [B] float32.

    Raises:
      ValueError: the shapes differ, or no such scale.

    >>> group_advantages(jnp.array([1.0, 0.0, 5.0, 3.0]), jnp.array([7, 7, 2, 2]), scale="none").tolist()
    [0.5, -0.5, 1.0, -1.0]
    """
    size = check("B", rewards=rewards, group_ids=group_ids)["B"]
    if scale not in SCALES:
        raise ValueError(f"scale: {scale!r} is not one; choose from {', '.join(SCALES)}")
    rewards = rewards.astype(jnp.float32)
    group = jnp.searchsorted(jnp.sort(group_ids), group_ids)  # each id becomes a number below B, its own

    def group_sum(x: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(x, group, num_segments=size)[group]

    count = group_sum(jnp.ones(size))
    # Counted from the group's smallest reward, equal rewards are exact zeros, where their mean would round.
    above = rewards - jax.ops.segment_min(rewards, group, num_segments=size)[group]
    centred = above - group_sum(above) / count
    others = jnp.maximum(count - 1, 1)
    if scale == "group":
        return centred / (jnp.sqrt(group_sum(jnp.square(centred)) / others) + epsilon)
    if scale == "batch":
        variance = jnp.sum(jnp.square(rewards - jnp.mean(rewards))) / max(size - 1, 1)
        return centred / (jnp.sqrt(variance) + epsilon)
    if scale == "leave_one_out":
        return centred * count / others
    return centred


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float = 1.0,
        lam: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation, backwards over the tokens that the mask keeps.

      δₜ = rₜ + γ Vₜ₊₁ − Vₜ          Âₜ = δₜ + γλ Âₜ₊₁          Rₜ = Âₜ + Vₜ

    t + 1 is the next kept token: positions in between (a tool's output) are skipped as if they were not
    there. After the last kept token the episode is over and V = 0, so the score of a completion belongs on
    its last kept token.

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation"
    (2016), arXiv:1506.02438, equation 16; in the recursive form of Schulman et al., "Proximal Policy
    Optimization Algorithms" (2017), arXiv:1707.06347, equations 11 and 12.

    Args:
      rewards: [B, T]; what stands on masked positions is ignored.
      values: V of the state before each token, [B, T].
      mask: 1 on the tokens that the policy chose, 0 elsewhere, [B, T].
      gamma: γ, the discount a token.
      lam: λ; 0 trusts the critic, 1 only the rewards.

    Returns:
      (advantages, returns), each [B, T] float32, 0 on masked positions.

    Raises:
      ValueError: the shapes differ.

    >>> advantages, returns = gae(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]]), jnp.ones((1, 2)), lam=1.0)
    >>> advantages.tolist(), returns.tolist()
    ([[0.5, 0.5]], [[1.0, 1.0]])
    """
    check("B T", rewards=rewards, values=values, mask=mask)
    kept = mask > 0
    rewards, values = (jnp.where(kept, x.astype(jnp.float32), 0.0) for x in (rewards, values))

    def backwards(carry, now):
        next_value, next_advantage = carry
        reward, value, keep = now
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = jnp.where(keep, value, next_value), jnp.where(keep, advantage, next_advantage)
        return carry, jnp.where(keep, advantage, 0.0)

    over = jnp.zeros(rewards.shape[0], jnp.float32)
    _, advantages = jax.lax.scan(backwards, (over, over), (rewards.T, values.T, kept.T), reverse=True)
    return advantages.T, advantages.T + values


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True, epsilon: float = 1e-8) -> jax.Array:
    """Mean 0 and variance 1 over the positions that the mask keeps; exactly 0 on the others.

      (x − μ) / √(σ² + ε),   σ² = Σ m (x − μ)² / (Σm − 1)

    Source: Huang et al., "The N+ Implementation Details of RLHF with PPO" (2024), arXiv:2403.17031, on
    whitening rewards and advantages.

    Args:
      x: [B, T].
      mask: 1 on the positions that count, 0 elsewhere, [B, T].
      shift_mean: False puts the mean back afterwards, which is what rewards want and advantages do not.
      epsilon: ε, in the units of x².

    Returns:
      [B, T] float32. With one kept position or none the variance is taken as 0.

    Raises:
      ValueError: the shapes differ.

    >>> whiten(jnp.array([[1.0, 3.0, 2.0, 9.0]]), jnp.array([[1, 1, 1, 0]])).tolist()
    [[-1.0, 1.0, 0.0, 0.0]]
    """
    check("B T", x=x, mask=mask)
    kept = mask > 0
    x = jnp.where(kept, x.astype(jnp.float32), 0.0)
    count = jnp.sum(kept)
    mean = jnp.sum(x) / jnp.maximum(count, 1)
    variance = jnp.sum(jnp.where(kept, jnp.square(x - mean), 0.0)) / jnp.maximum(count - 1, 1)
    whitened = (x - mean) * jax.lax.rsqrt(variance + epsilon)
    return jnp.where(kept, whitened if shift_mean else whitened + mean, 0.0)
