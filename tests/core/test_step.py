"""The train step against the same arithmetic done by hand, accumulated, sharded, and given something not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.core import sharding
from jaxgpt.core.state import TrainState
from jaxgpt.core.step import abstract, create_state, make_train_step, state_shardings

AXES = {"w": ("embed", "mlp")}


def loss_fn(params, frozen, batch, rng):
    """Σ m (x w - y)², weight Σ m, with the frozen tree's offset added to y."""
    error = jnp.sum(jnp.square(batch["x"] @ params["w"] - batch["y"] - (frozen["offset"] if frozen else 0.0)), axis=-1)
    return jnp.sum(error * batch["m"]), jnp.sum(batch["m"]), {"largest": (jnp.sum(error), jnp.float32(error.size))}


def make(layout=sharding.Layout(data=1), devices=1, rules="fsdp", optimizer=optax.sgd(0.1), **options):
    mesh = sharding.make_mesh(layout, jax.devices()[:devices])
    rules = sharding.get_rules(rules)
    init = lambda rng: {"w": jax.random.normal(rng, (8, 4))}  # noqa: E731
    state = jax.eval_shape(lambda rng: TrainState.create(rng, init(rng), optimizer), jax.random.key(0))
    shardings = state_shardings(state, AXES, mesh=mesh, rules=rules)
    step = make_train_step(loss_fn, optimizer, mesh=mesh, rules=rules, state_shardings=shardings, **options)
    return step, create_state(jax.random.key(0), init, optimizer, shardings=shardings), shardings


def batch(rows=8):
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(rows, 8)).astype(np.float32), "y": rng.normal(size=(rows, 4)).astype(np.float32),
            "m": (np.arange(rows) % 3 > 0).astype(np.float32)}


def test_one_step_of_gradient_descent_by_hand():
    step, state, _ = make()
    w, b = np.asarray(state.params["w"]), batch()
    error = b["x"] @ w - b["y"]
    gradient = 2 * b["x"].T @ (error * b["m"][:, None]) / b["m"].sum()
    state, metrics = step(state, (), b)
    np.testing.assert_allclose(state.params["w"], w - 0.1 * gradient, rtol=1e-4, atol=1e-5)
    assert float(metrics["loss"]) == pytest.approx((np.square(error).sum(1) * b["m"]).sum() / b["m"].sum(), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert int(state.step) == 1


def test_clipping_scales_the_gradient_to_the_norm():
    step, state, _ = make(clip_norm=0.5)
    before = np.asarray(state.params["w"])
    state, metrics = step(state, (), batch())
    assert float(metrics["grad_norm"]) > 0.5  # the norm reported is the one before clipping
    assert np.linalg.norm(state.params["w"] - before) == pytest.approx(0.1 * 0.5, rel=1e-4)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_is_one_big_batch(accumulate):
    """The rows' weights differ between micro-batches, so a mean of means would not do."""
    (whole, state, _), (parts, same, _) = make(), make(accumulate=accumulate)
    whole_state, whole_metrics = whole(state, (), batch())
    parts_state, parts_metrics = parts(same, (), batch())
    np.testing.assert_allclose(parts_state.params["w"], whole_state.params["w"], rtol=1e-5, atol=1e-6)
    for name in whole_metrics:
        assert float(parts_metrics[name]) == pytest.approx(float(whole_metrics[name]), rel=1e-5)


@pytest.mark.parametrize("layout, rules", [
    (sharding.Layout(data=8), "replicated"), (sharding.Layout(data=1, fsdp=8), "fsdp"),
    (sharding.Layout(data=2, fsdp=2, tensor=2), "fsdp_tensor")])
def test_sharded_is_single(layout, rules):
    single, state, _ = make(optimizer=optax.adam(0.1))
    many, same, shardings = make(layout, 8, rules, optimizer=optax.adam(0.1))
    # the same numbers wherever they live; the last bit is the compiler's, which jax 0.12 shapes by the layout
    np.testing.assert_allclose(state.params["w"], same.params["w"], rtol=1e-6)
    assert len(same.params["w"].sharding.device_set) == 8
    if rules != "replicated":
        assert not same.params["w"].sharding.is_fully_replicated
        assert same.opt_state[0].mu["w"].sharding == same.params["w"].sharding  # moments lie like their parameter
    for _ in range(3):
        state, metrics = single(state, (), batch())
        same, others = many(same, (), batch())
        assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    np.testing.assert_allclose(state.params["w"], same.params["w"], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing():
    step, state, _ = make(optimizer=optax.adam(0.1))
    before = jax.tree.map(np.asarray, (state.params, state.opt_state, state.step))
    bad = batch()
    bad["x"][0, 0], bad["m"][0] = np.nan, 1.0
    state, metrics = step(state, (), bad)
    assert float(metrics["finite"]) == 0.0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves((state.params, state.opt_state, state.step))):
        np.testing.assert_array_equal(old, new)
    state, metrics = step(state, (), batch())
    assert float(metrics["finite"]) == 1.0 and int(state.step) == 1


def test_an_update_that_is_not_finite_is_reported():
    step, state, _ = make(optimizer=optax.sgd(1e38))
    state, metrics = step(state, (), {**batch(), "x": batch()["x"] * 1e3})
    assert np.isfinite(float(metrics["loss"])) and np.isfinite(float(metrics["grad_norm"]))
    assert not np.isfinite(float(metrics["param_norm"])) and float(metrics["finite"]) == 0.0


def test_frozen_trees_are_arguments_and_not_constants():
    step, state, shardings = make()
    frozen = {"offset": jnp.full((4,), 3.0)}
    lowered = step.lower(abstract(state, shardings), abstract(frozen), abstract(batch()))
    inputs = len(jax.tree.leaves(lowered.in_avals))
    assert inputs == len(jax.tree.leaves((state, frozen, batch())))
    _, with_offset = step(state, frozen, batch())
    _, without = make()[0](make()[1], (), batch())
    assert float(with_offset["loss"]) != float(without["loss"])


def test_the_state_is_donated():
    step, state, _ = make()
    step(state, (), batch())
    assert state.params["w"].is_deleted()


def test_a_batch_without_weight_gives_no_nan():
    step, state, _ = make()
    before = np.asarray(state.params["w"])
    state, metrics = step(state, (), {**batch(), "m": np.zeros(8, np.float32)})
    assert float(metrics["loss"]) == 0.0 and float(metrics["finite"]) == 1.0
    np.testing.assert_array_equal(state.params["w"], before)
