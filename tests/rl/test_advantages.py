"""Advantages: numbers by hand, groups in any order, and nothing where there is nothing to compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.rl.advantages import SCALES, gae, group_advantages, whiten

REWARDS = jnp.array([1.0, 0.0, 0.0, 2.0, 4.0])
GROUPS = jnp.array([0, 0, 0, 1, 1])
every_scale = pytest.mark.parametrize("scale", SCALES)


def test_group_advantages_by_hand():
    def advantages(scale):
        return group_advantages(REWARDS, GROUPS, scale=scale, epsilon=0.0)

    # group 0: mean 1/3, unbiased variance 1/3; group 1: mean 3, unbiased variance 2; all five: variance 2.8
    third, root = 1 / 3, np.sqrt(1 / 3)
    np.testing.assert_allclose(advantages("none"), [2 * third, -third, -third, -1, 1], rtol=1e-6)
    centred = np.array([2 * third, -third, -third, -1, 1])
    np.testing.assert_allclose(advantages("group"), centred / ([root] * 3 + [np.sqrt(2)] * 2), rtol=1e-6)
    np.testing.assert_allclose(advantages("batch"), centred / np.sqrt(2.8), rtol=1e-6)
    # each against the mean of the others
    ours = advantages("leave_one_out")
    np.testing.assert_allclose(ours, [1 - 0, 0 - 0.5, 0 - 0.5, 2 - 4, 4 - 2], rtol=1e-6)


def test_epsilon_stands_beside_the_deviation():
    np.testing.assert_allclose(group_advantages(jnp.array([0.0, 2.0]), jnp.array([5, 5]), epsilon=1.0),
                               np.array([-1, 1]) / (np.sqrt(2) + 1), rtol=1e-6)


@every_scale
def test_groups_need_not_be_contiguous_nor_their_ids_small(scale):
    rewards = jax.random.uniform(jax.random.key(0), (12,))
    groups = jnp.repeat(jnp.arange(4), 3)
    order = jax.random.permutation(jax.random.key(1), 12)
    names = jnp.array([-7, 2**30, 0, 41])
    straight = group_advantages(rewards, groups, scale=scale)
    mixed = group_advantages(rewards[order], names[groups][order], scale=scale)
    np.testing.assert_allclose(mixed, straight[order], atol=1e-6)
    assert np.abs(straight).max() > 0.1


@every_scale
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e6 / 3])
def test_a_unanimous_group_has_advantages_of_exactly_zero(scale, reward):
    rewards = jnp.concatenate([jnp.full(7, reward), jnp.array([1.0, 2.0])])
    advantages = group_advantages(rewards, jnp.array([3] * 7 + [4] * 2), scale=scale)
    assert advantages[:7].tolist() == [0.0] * 7 and advantages[7] < 0 < advantages[8]


@every_scale
def test_a_group_of_one_has_an_advantage_of_exactly_zero(scale):
    advantages = group_advantages(jnp.array([5.0, 1.0, 0.0]), jnp.array([0, 1, 1]), scale=scale)
    assert advantages[0] == 0.0 and advantages[1] > 0
    assert group_advantages(jnp.array([5.0]), jnp.array([0]), scale=scale).tolist() == [0.0]


@every_scale
def test_advantages_of_a_group_sum_to_zero_and_ignore_a_shift(scale):
    rewards = jax.random.uniform(jax.random.key(2), (8,))
    groups = jnp.array([0, 1, 0, 1, 0, 1, 0, 0])
    advantages = group_advantages(rewards, groups, scale=scale)
    assert jnp.sum(advantages * (groups == 0)) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(group_advantages(rewards + 3, groups, scale=scale), advantages, atol=1e-4)


@every_scale
def test_group_advantages_jit_and_vmap_equal_eager(scale):
    rewards = jax.random.uniform(jax.random.key(3), (4, 8))
    groups = jax.random.randint(jax.random.key(4), (4, 8), 0, 3)

    def function(r, g):
        return group_advantages(r, g, scale=scale)

    each = jnp.stack([function(r, g) for r, g in zip(rewards, groups)])
    np.testing.assert_allclose(jax.vmap(function)(rewards, groups), each, atol=1e-5)
    np.testing.assert_allclose(jax.jit(function)(rewards[0], groups[0]), each[0], atol=1e-5)


def test_whole_number_rewards_are_not_truncated():
    assert group_advantages(jnp.array([0, 1]), jnp.array([0, 0]), scale="none").tolist() == [-0.5, 0.5]


def test_group_advantages_refuses():
    with pytest.raises(ValueError, match="scale: 'std' is not one; choose from group"):
        group_advantages(REWARDS, GROUPS, scale="std")
    with pytest.raises(ValueError, match="group_ids has shape"):
        group_advantages(REWARDS, GROUPS[:2])


def test_gae_by_hand():
    """γ = λ = ½: δ₂ = 4 − 2, δ₁ = 0 + ½·2 − 1 = 0, δ₀ = 1 + ½·1 − 3 = −1.5; Â₁ = ¼·2, Â₀ = −1.5 + ¼·½."""
    advantages, returns = gae(jnp.array([[1.0, 0.0, 4.0]]), jnp.array([[3.0, 1.0, 2.0]]), jnp.ones((1, 3)),
                              gamma=0.5, lam=0.5)
    np.testing.assert_allclose(advantages, [[-1.375, 0.5, 2.0]])
    np.testing.assert_allclose(returns, [[1.625, 1.5, 4.0]])


def test_gae_at_its_two_ends():
    rewards, values = jax.random.normal(jax.random.key(5), (2, 3, 6))
    mask = jnp.ones((3, 6))
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    discounted = [[sum(0.9**k * reward for k, reward in enumerate(row[t:])) for t in range(6)]
                  for row in rewards.tolist()]
    np.testing.assert_allclose(returns, discounted, rtol=1e-4, atol=1e-5)       # λ = 1: the rewards alone
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_allclose(advantages, rewards + 0.9 * following - values, atol=1e-5)  # λ = 0: one step


def test_gae_skips_masked_positions_as_if_they_were_not_there():
    rewards, values = jax.random.normal(jax.random.key(6), (2, 1, 4))
    dense, dense_returns = gae(rewards, values, jnp.ones((1, 4)), gamma=0.9, lam=0.8)
    slots = jnp.array([0, 2, 3, 6])
    mask = jnp.zeros((1, 8)).at[:, slots].set(1)
    spread = (jnp.full((1, 8), jnp.nan).at[:, slots].set(x) for x in (rewards, values))
    advantages, returns = gae(*spread, mask, gamma=0.9, lam=0.8)
    np.testing.assert_allclose(advantages[:, slots], dense, rtol=1e-6)
    np.testing.assert_allclose(returns[:, slots], dense_returns, rtol=1e-6)
    assert not jnp.any(advantages[mask == 0]) and not jnp.any(returns[mask == 0])


def test_gae_jit_and_vmap_equal_eager():
    rewards, values = jax.random.normal(jax.random.key(7), (2, 3, 4, 6))
    mask = (jax.random.uniform(jax.random.key(8), (3, 4, 6)) < 0.7).astype(jnp.float32)
    each = [gae(*arrays) for arrays in zip(rewards, values, mask)]
    for ours, want in zip(jax.vmap(gae)(rewards, values, mask), map(jnp.stack, zip(*each))):
        np.testing.assert_allclose(ours, want, atol=1e-5)
    for ours, want in zip(jax.jit(gae)(rewards[0], values[0], mask[0]), each[0]):
        np.testing.assert_allclose(ours, want, atol=1e-5)


def test_whiten_by_hand_and_masked():
    x, mask = jnp.array([[1.0, 3.0, jnp.nan], [5.0, jnp.inf, jnp.nan]]), jnp.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(whiten(x, mask), [[-1, 0, 0], [1, 0, 0]], atol=1e-6)  # mean 3, variance 4
    np.testing.assert_allclose(whiten(x, mask, shift_mean=False), [[2, 3, 0], [4, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(jax.jit(whiten)(x, mask), whiten(x, mask), atol=1e-6)


@pytest.mark.parametrize("kept", [0, 1])
def test_whiten_with_nothing_to_compare(kept):
    mask = jnp.zeros((2, 3)).at[0, 0].set(kept)
    assert not jnp.any(whiten(jnp.full((2, 3), 7.0), mask))
