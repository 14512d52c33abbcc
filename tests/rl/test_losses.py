"""Policy losses: values and gradients by hand, and sums that do not care how a batch is cut."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.rl.losses import AGGREGATIONS, VARIANTS, aggregate, policy_loss

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def mean_loss(logprobs, old_logprobs, advantages, mask, **settings):
    loss_sum, weight, _ = policy_loss(logprobs, old_logprobs, advantages, mask, **settings)
    return loss_sum / weight


def arrays(seed=0, batch=4, length=6):
    keys = jax.random.split(jax.random.key(seed), 4)
    old_logprobs = -jax.random.exponential(keys[0], (batch, length))
    logprobs = old_logprobs + 0.3 * jax.random.normal(keys[1], (batch, length))
    advantages = jax.random.normal(keys[2], (batch, length))
    lengths = 1 + jnp.arange(batch) % length
    return logprobs, old_logprobs, advantages, (jnp.arange(length) < lengths[:, None]).astype(jnp.float32)


def test_ppo_clip_by_hand():
    """With the bounds 0.8 and 1.3: −min(2, 1.3), −min(−2, −1.3), −min(½, 0.8), −min(−½, −0.8)."""
    ratios, advantages = jnp.array([[2.0, 2.0, 0.5, 0.5]]), jnp.array([[1.0, -1.0, 1.0, -1.0]])
    loss_sum, weight, metrics = policy_loss(jnp.log(ratios), jnp.zeros((1, 4)), advantages, jnp.ones((1, 4)),
                                            clip=(0.2, 0.3))
    assert loss_sum == pytest.approx(-1.3 + 2.0 - 0.5 + 0.8) and weight == 4
    assert {name: float(total / count) for name, (total, count) in metrics.items()} == pytest.approx(
        {"ratio": 1.25, "clip_fraction": 0.5, "policy_kl": 0.25})  # Σ r − 1 − log r = 1 + 1 − ½ − ½, over 4


def test_clipping_kills_the_gradient_on_the_right_side_only():
    ratios = jnp.array([[2.0, 2.0, 0.5, 0.5, 1.1, 0.9]])
    advantages = jnp.array([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    gradient = jax.grad(mean_loss)(jnp.log(ratios), jnp.zeros((1, 6)), advantages, jnp.ones((1, 6)),
                                   clip=(0.2, 0.3))
    # already moved far in the good direction: 0; moved in the bad one, or not far: −A r, over six tokens
    np.testing.assert_allclose(gradient * 6, [[0, 2.0, -0.5, 0, -1.1, 0.9]], rtol=1e-5)


def test_cispo_by_hand():
    """The weight is clipped and the gradient kept: −clip(r) A."""
    ratios, advantages = jnp.array([[2.0, 0.5, 1.1]]), jnp.array([[1.0, 1.0, -2.0]])
    value, gradient = jax.value_and_grad(mean_loss)(
        jnp.log(ratios), jnp.zeros((1, 3)), advantages, jnp.ones((1, 3)), variant="cispo", clip=(0.2, 0.3))
    np.testing.assert_allclose(gradient * 3, [[-1.3, -0.8, 2.2]], rtol=1e-5)
    assert value * 3 == pytest.approx(-1.3 * np.log(2) + 0.8 * np.log(2) + 2.2 * np.log(1.1), rel=1e-5)


def test_gspo_by_hand():
    """Ratios 4 and 1 in one completion are 2 for the whole; the second has one token only."""
    logprobs = jnp.log(jnp.array([[4.0, 1.0], [1.1, 9.0]]))
    advantages, mask = jnp.array([-1.0, 1.0]), jnp.array([[1, 1], [1, 0]])
    loss_sum, weight, metrics = policy_loss(logprobs, jnp.zeros((2, 2)), advantages, mask, variant="gspo",
                                            aggregation="sequence_mean")
    assert loss_sum == pytest.approx(2.0 - 1.1, rel=1e-5) and weight == 2
    assert metrics["ratio"][0] == pytest.approx(2 + 2 + 1.1, rel=1e-5) and metrics["ratio"][1] == 3


def test_reinforce_by_hand():
    logprobs, advantages = jnp.array([[-1.0, -2.0]]), jnp.array([3.0])
    value, gradient = jax.value_and_grad(mean_loss)(logprobs, logprobs - 9, advantages, jnp.ones((1, 2)),
                                                    variant="reinforce")
    assert value == pytest.approx(4.5)
    np.testing.assert_allclose(gradient, [[-1.5, -1.5]])


@every_variant
def test_the_first_step(variant):
    """The ratio is exactly 1, the clipped value −mean A, and the gradient −A m / Σm, which is not 0."""
    _, old_logprobs, advantages, mask = arrays()
    if variant == "gspo":
        advantages = jnp.broadcast_to(advantages[:, :1], advantages.shape)
    loss_sum, weight, metrics = policy_loss(old_logprobs, old_logprobs, advantages, mask, variant=variant)
    assert metrics["ratio"][0] == metrics["ratio"][1] == jnp.sum(mask)
    assert metrics["clip_fraction"][0] == 0 and metrics["policy_kl"][0] == 0
    if variant in ("ppo_clip", "gspo"):
        mean_advantage = float(jnp.sum(advantages * mask) / jnp.sum(mask))
        assert loss_sum / weight == pytest.approx(-mean_advantage, abs=1e-6)
    gradient = jax.grad(mean_loss)(old_logprobs, old_logprobs, advantages, mask, variant=variant)
    np.testing.assert_allclose(gradient, -advantages * mask / jnp.sum(mask), atol=1e-6)
    assert np.abs(gradient).max() > 0.01


def test_one_advantage_a_completion_is_that_of_each_of_its_tokens():
    logprobs, old_logprobs, advantages, mask = arrays()
    wide = jnp.broadcast_to(advantages[:, :1], advantages.shape)
    narrow = mean_loss(logprobs, old_logprobs, advantages[:, 0], mask)
    assert narrow == mean_loss(logprobs, old_logprobs, wide, mask)


@every_variant
@every_aggregation
@pytest.mark.parametrize("rubbish", [-jnp.inf, jnp.nan])
def test_masked_positions_change_neither_loss_nor_gradient(variant, aggregation, rubbish):
    logprobs, old_logprobs, advantages, mask = arrays()
    settings = {"variant": variant, "aggregation": aggregation, "length": 6}
    clean = [jnp.where(mask > 0, x, 0.0) for x in (logprobs, old_logprobs, advantages)]
    dirty = [jnp.where(mask > 0, x, rubbish) for x in (logprobs, old_logprobs, advantages)]
    value, gradient = jax.value_and_grad(mean_loss)(*clean, mask, **settings)
    dirty_value, dirty_gradient = jax.value_and_grad(mean_loss)(*dirty, mask, **settings)
    assert jnp.isfinite(value) and value == dirty_value
    np.testing.assert_array_equal(gradient, dirty_gradient)
    assert not jnp.any(gradient[mask == 0]) and jnp.any(gradient[mask > 0])


@every_variant
@every_aggregation
def test_micro_batches_and_padding_rows_add_up_to_the_whole(variant, aggregation):
    logprobs, old_logprobs, advantages, mask = arrays(batch=6)
    settings = {"variant": variant, "aggregation": aggregation, "length": 8}
    whole, weight, metrics = policy_loss(logprobs, old_logprobs, advantages, mask, **settings)

    def padded(x):  # to rows without a token and to more positions
        return jnp.pad(x, ((0, 2), (0, 3)))

    parts = [policy_loss(*(padded(x[rows]) for x in (logprobs, old_logprobs, advantages, mask)), **settings)
             for rows in (slice(0, 1), slice(1, 6))]
    assert parts[0][1] != parts[1][1]
    total, total_weight, total_metrics = jax.tree.map(lambda *x: sum(x), *parts)
    assert total == pytest.approx(float(whole), rel=1e-5) and total_weight == weight
    for name, (metric, count) in metrics.items():
        assert total_metrics[name][0] == pytest.approx(float(metric), rel=1e-5)
        assert total_metrics[name][1] == count


def test_aggregations_by_hand():
    losses = jnp.array([[6.0, 9.0, 9.0], [1.0, 3.0, 2.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]])
    assert aggregate(losses, mask) == (12.0, 4.0)
    assert aggregate(losses, mask, aggregation="sequence_mean") == (6.0 + 2.0, 2.0)
    assert aggregate(losses, mask, aggregation="fixed_length", length=4) == (12.0 / 4, 2.0)


@every_aggregation
def test_a_batch_without_a_token_weighs_nothing(aggregation):
    assert aggregate(jnp.ones((2, 3)), jnp.zeros((2, 3)), aggregation=aggregation, length=3) == (0.0, 0.0)


@every_variant
def test_jit_and_vmap_equal_eager(variant):
    def loss(*batch):
        return policy_loss(*batch, variant=variant)

    batches = [arrays(seed) for seed in range(3)]
    each = [loss(*batch) for batch in batches]
    together = jax.vmap(loss)(*map(jnp.stack, zip(*batches)))
    for ours, *eager in zip(*map(jax.tree.leaves, (together, *each))):
        np.testing.assert_allclose(ours, jnp.stack(eager), rtol=1e-5, atol=1e-6)
    for ours, eager in zip(jax.tree.leaves(jax.jit(loss)(*batches[0])), jax.tree.leaves(each[0])):
        np.testing.assert_allclose(ours, eager, rtol=1e-5, atol=1e-6)


def test_neither_old_logprobs_nor_advantages_are_differentiated():
    logprobs, old_logprobs, advantages, mask = arrays()
    for argument in (1, 2):
        assert not jnp.any(jax.grad(mean_loss, argnums=argument)(logprobs, old_logprobs, advantages, mask))


@pytest.mark.parametrize("change, message", [
    ({"variant": "ppo"}, "variant: 'ppo' is not one; choose from ppo_clip"),
    ({"aggregation": "mean"}, "aggregation: 'mean' is not one; choose from token_mean"),
    ({"clip": (-0.1, 0.2)}, "clip: .* below 0"),
    ({"aggregation": "fixed_length"}, "length: None; fixed_length needs")])
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(*arrays(), **change)


@pytest.mark.parametrize("argument, name", [(1, "old_logprobs"), (2, "advantages"), (3, "mask")])
def test_wrong_shapes_are_refused(argument, name):
    batch = list(arrays())
    batch[argument] = batch[argument][:2]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        policy_loss(*batch)
    with pytest.raises(ValueError, match="advantages has shape"):
        policy_loss(*arrays()[:2], jnp.ones(3), arrays()[3])


@pytest.mark.parametrize("loss_type, level, settings", [
    ("bnpo", "token", {}), ("dapo", "token", {}), ("grpo", "token", {"aggregation": "sequence_mean"}),
    ("dr_grpo", "token", {"aggregation": "fixed_length", "length": 6}),
    ("grpo", "sequence", {"variant": "gspo", "aggregation": "sequence_mean"})])
def test_values_and_gradients_are_those_of_trl(loss_type, level, settings):
    torch = pytest.importorskip("torch", reason="compares with TRL, which needs PyTorch")
    trl = pytest.importorskip("trl", reason="compares with TRL's GRPOTrainer where TRL is installed")
    logprobs, old_logprobs, advantages, mask = arrays()
    ours, gradient = jax.value_and_grad(mean_loss)(logprobs, old_logprobs, advantages[:, 0], mask,
                                                   clip=(0.1, 0.3), **settings)
    theirs = torch.tensor(np.asarray(logprobs), requires_grad=True)
    loss = trl.GRPOTrainer._compute_loss(_trainer(torch, theirs, loss_type, level), None, {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long), "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros(4, 6, dtype=torch.long),
        "completion_mask": torch.tensor(np.asarray(mask)),
        "advantages": torch.tensor(np.asarray(advantages[:, 0])),
        "old_per_token_logps": torch.tensor(np.asarray(old_logprobs)),
        "num_items_in_batch": torch.tensor(float(mask.sum()))})
    loss.backward()
    assert loss.item() == pytest.approx(float(ours), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)


def _trainer(torch, logprobs, loss_type, level):
    """What GRPOTrainer._compute_loss of TRL 1.10 reads of its trainer, without a model."""
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x,
                                  reduce=lambda x, reduction: x)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False), accelerator=accelerator,
        loss_type=loss_type, importance_sampling_level=level, epsilon_low=0.1, epsilon_high=0.3, beta=0.0,
        max_completion_length=6, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        vllm_importance_sampling_correction=False, aux_loss_enabled=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)})
