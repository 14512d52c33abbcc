import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.core.optim import Optim, make_optimizer, make_schedule


@pytest.mark.parametrize("config, values", [  # {step: learning rate}, worked by hand for a run of 100 steps
    (Optim(lr=1.0, schedule="constant", warmup=10), {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
    (Optim(lr=1.0, schedule="linear", final_fraction=0.0), {0: 1.0, 50: 0.5, 100: 0.0}),
    (Optim(lr=1.0, schedule="cosine", final_fraction=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
    (Optim(lr=1.0, schedule="cosine", final_fraction=0.0, warmup=20), {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
    (Optim(lr=2.0, schedule="wsd", decay_fraction=0.5, final_fraction=0.0), {0: 2.0, 50: 2.0, 75: 1.0, 100: 0.0}),
    (Optim(lr=2.0, schedule="wsd", decay_fraction=0.5, final_fraction=0.0, warmup=10), {5: 1.0, 50: 2.0, 75: 1.0}),
])
def test_schedules(config, values):
    schedule = make_schedule(config, 100)
    for step, expected in values.items():
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-6)


AXES = {"embed": ("vocab", "embed"), "layers": {"w": ("layers", "embed", "mlp"), "scale": ("layers", "norm")}}


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {"embed": jax.random.normal(keys[0], (5, 4)),
            "layers": {"w": jax.random.normal(keys[1], (3, 4, 6)), "scale": jax.random.normal(keys[2], (3, 4))}}


def test_weight_decay_touches_matrices_only():
    config = Optim(lr=0.1, schedule="constant", weight_decay=0.5)
    optimizer, p = make_optimizer(config, 10, AXES), params()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, p), optimizer.init(p), p)
    np.testing.assert_allclose(updates["embed"], -0.05 * p["embed"], rtol=1e-6)
    np.testing.assert_allclose(updates["layers"]["w"], -0.05 * p["layers"]["w"], rtol=1e-6)
    assert not updates["layers"]["scale"].any()


def test_adamw_first_step_by_hand():
    """At step 1 both moments are corrected to the gradient and its square, so each update is -lr · sign(g)."""
    optimizer, p = make_optimizer(Optim(lr=0.1, schedule="constant"), 10, AXES), params()
    grads = jax.tree.map(lambda x: x + 3.0, p)
    updates, _ = optimizer.update(grads, optimizer.init(p), p)
    np.testing.assert_allclose(updates["embed"], -0.1 * jnp.sign(grads["embed"]), rtol=1e-5)


def test_muon_on_stacked_layers_is_muon_on_each_layer():
    config = Optim(kind="muon", lr=0.02, adam_lr=0.1, schedule="constant")
    optimizer, p = make_optimizer(config, 10, AXES), params()
    grads = jax.tree.map(jnp.cos, p)
    updates, _ = optimizer.update(grads, optimizer.init(p), p)
    alone = optax.contrib.muon(0.02, beta=config.momentum)
    for layer in range(3):
        w, g = p["layers"]["w"][layer], grads["layers"]["w"][layer]
        expected, _ = alone.update({"w": g}, alone.init({"w": w}), {"w": w})
        np.testing.assert_allclose(updates["layers"]["w"][layer], expected["w"], rtol=1e-4, atol=1e-6)
    adam = make_optimizer(Optim(lr=0.1, schedule="constant"), 10, AXES)
    plain, _ = adam.update(grads, adam.init(p), p)
    assert not np.allclose(updates["layers"]["w"], plain["layers"]["w"], rtol=1e-2)  # the two sides do differ
    np.testing.assert_allclose(jnp.sign(updates["embed"]), jnp.sign(plain["embed"]))  # the embedding is Adam's


def test_impossible_settings_are_refused():
    for bad in ({"lr": 0.0}, {"beta1": 1.0}, {"warmup": -1}, {"decay_fraction": 0.0}):
        with pytest.raises(ValueError):
            Optim(**bad)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_in_bfloat16_halve_their_memory_and_still_train(kind):
    sizes, losses = {}, {}
    target = jax.tree.map(jnp.cos, params())
    distance = lambda p: sum(jnp.square(a - b).mean() for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target)))  # noqa: E731
    for moments in ("float32", "bfloat16"):
        optimizer = make_optimizer(Optim(kind=kind, lr=0.05, schedule="constant", moments=moments), 60, AXES)
        p = params()
        state = optimizer.init(p)

        @jax.jit
        def step(p, state):
            loss, grads = jax.value_and_grad(distance)(p)
            updates, state = optimizer.update(grads, state, p)
            return optax.apply_updates(p, updates), state, loss

        for _ in range(60):
            p, state, loss = step(p, state)
        sizes[moments] = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.size > 3)  # counts and coefficients
        losses[moments] = float(loss)
    assert sizes["bfloat16"] * 2 == sizes["float32"]
    start = float(distance(params()))
    assert losses["bfloat16"] != losses["float32"] and max(losses.values()) < start / 20


def test_a_second_moment_that_could_not_fall_is_refused():
    """At β₂ = 0.999 a step takes a thousandth away; bfloat16 keeps 8 bits, so it would take nothing."""
    with pytest.raises(ValueError, match="beta2=0.999: with moments='bfloat16' at most 0.996"):
        Optim(beta2=0.999, moments="bfloat16")
    stuck = jnp.bfloat16(1.5)
    assert (stuck * jnp.float32(0.999)).astype(jnp.bfloat16) == stuck
    assert (stuck * jnp.float32(0.996)).astype(jnp.bfloat16) < stuck
