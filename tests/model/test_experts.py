"""Experts: balance worked by hand; both ways of dispatch are the dense sum; places; one device = many; aux losses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.optim import Optim, make_optimizer
from jaxgpt.core.step import abstract
from jaxgpt.model import experts, losses, transformer
from jaxgpt.model.kv_cache import init_cache
from jaxgpt.model.layers import activate

CONFIG = transformer.Config(vocab_size=64, context=32, layers=2, width=32, heads=4, kv_heads=2, mlp_width=24, init_std=0.3,
                            experts=4, experts_per_token=2)
B, T, D, F, E, K = 8, 6, 16, 8, 4, 2


def loss(params, batch, config, auxiliary=True):
    total, weight, metrics = losses.next_token_loss(params, (), batch, None, config=config, auxiliary=auxiliary)
    return total / weight, {name: value / count for name, (value, count) in metrics.items()}


jitted_loss = jax.jit(loss, static_argnames=("config", "auxiliary"))
gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames=("config", "auxiliary"))


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, tokens, config):
    return transformer.apply(params, tokens, config=config)


@pytest.fixture(scope="module")
def parts():
    keys = jax.random.split(jax.random.key(0), 5)
    x, logits = jax.random.normal(keys[0], (B, T, D)), 2 * jax.random.normal(keys[1], (B, T, E))
    shapes = {"up": (E, D, F), "gate": (E, D, F), "down": (E, F, D)}
    return x, logits, {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys[2:], shapes.items())}


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: transformer.init(jax.random.key(0), CONFIG))()


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(1), (8, 13), 0, 64)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": jnp.ones((8, 12))}


def dense(x, logits, matrices, normalize=True):
    """Every expert on every token, weighted."""
    weights, chosen = experts.route(logits, K, normalize=normalize)
    each = jnp.stack([activate("swiglu", x @ matrices["up"][e], x @ matrices["gate"][e]) @ matrices["down"][e]
                      for e in range(E)], axis=2)
    return jnp.einsum("BTE,BTED->BTD", (jax.nn.one_hot(chosen, E) * weights[..., None]).sum(2), each)


@functools.partial(jax.jit, static_argnames=("places_each", "normalize"))
def mixed(x, logits, matrices, places_each=None, normalize=True):
    routed = experts.route(logits, K, normalize=normalize)
    if places_each is None:
        return experts.dropless(x, *routed, matrices, activation="swiglu")
    return experts.capacity_bound(x, *routed, matrices, places_each=places_each, activation="swiglu")


def test_balance_by_hand():
    """Three tokens, p = (.5, .3, .2), (.2, .5, .3), (.6, .1, .3), k = 2: f = (2, 2, 2)/3, P = (1.3, .9, .8)/3."""
    logits = jnp.log(jnp.array([[.5, .3, .2], [.2, .5, .3], [.6, .1, .3]]))
    assert float(experts.balance_loss(logits, 2, jnp.ones(3))) == pytest.approx(3 * 2 / 3 * (1.3 + .9 + .8) / 3)
    masked = experts.balance_loss(logits, 2, jnp.array([1.0, 1.0, 0.0]))  # f = (1, 2, 1)/2, P = (.35, .4, .25)
    assert float(masked) == pytest.approx(3 * (.5 * .35 + 1 * .4 + .5 * .25))
    one = experts.balance_loss(logits, 1, jnp.ones(3))  # f = (2, 1, 0)/3
    assert float(one) == pytest.approx(3 * (2 / 3 * 1.3 / 3 + 1 / 3 * .9 / 3))
    z = experts.router_z_loss(logits + jnp.array([[1.0], [2.0], [9.0]]), jnp.array([1.0, 1.0, 0.0]))
    assert float(z) == pytest.approx((1 + 4) / 2, rel=1e-5)


def test_balance_is_that_of_transformers():
    torch = pytest.importorskip("torch", reason="the reference implementation runs on PyTorch")
    module = pytest.importorskip("transformers.models.mixtral.modeling_mixtral", reason="the reference implementation")
    logits = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    mask = np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0]])
    flat = (torch.tensor(logits.reshape(14, 5)),)
    for attention_mask in (None, torch.tensor(mask)):
        ours = experts.balance_loss(logits, 2, jnp.ones((2, 7)) if attention_mask is None else jnp.asarray(mask))
        reference = module.load_balancing_loss_func(flat, 5, 2, attention_mask)
        assert float(ours) == pytest.approx(float(reference), rel=1e-6)


@pytest.mark.parametrize("places_each, normalize", [(None, True), (T, False)], ids=["dropless", "capacity"])
def test_dispatch_is_the_dense_sum(parts, places_each, normalize):
    """With as many places as tokens nothing is dropped; values and all gradients."""
    value = lambda f: jax.jit(jax.value_and_grad(lambda *a: jnp.square(f(*a)).sum(), argnums=(0, 1, 2)))  # noqa: E731
    found = value(functools.partial(mixed, places_each=places_each, normalize=normalize))(*parts)
    expected = value(functools.partial(dense, normalize=normalize))(*parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max())),
                 found, expected)


def test_places_go_in_order_and_the_rest_passes_by(parts):
    """One row, two places at each of two experts, one choice: the third token that chose expert 1 gets nothing."""
    x, _, matrices = parts
    logits = jnp.array([[[0., 9.], [9., 0.], [0., 9.], [0., 9.], [9., 0.], [9., 0.]]])
    assert experts.capacity(6, 2, 1, 0.5) == 2 and experts.capacity(6, 2, 1, 100.0) == 6
    two = {name: matrix[:2] for name, matrix in matrices.items()}
    routed = experts.route(logits, 1)
    out = lambda c: experts.capacity_bound(x[:1], *routed, two, places_each=c, activation="swiglu")[0]  # noqa: E731
    none = jnp.abs(out(2)).max(-1) == 0
    assert none.tolist() == [False, False, False, True, False, True]
    expected = out(6)[~none]  # another shape of product: sums of terms that cancel, so true to the largest entry
    np.testing.assert_allclose(out(2)[~none], expected, atol=1e-6 * float(jnp.abs(expected).max()), rtol=0)
    assert float(experts.dropped_share(logits, 1, jnp.ones((1, 6)), places_each=2)) == pytest.approx(2 / 6)
    assert float(experts.dropped_share(logits, 1, jnp.array([[1., 1, 1, 1, 0, 0]]), places_each=2)) == pytest.approx(1 / 4)


MESHES = [("fsdp_tensor", {"expert": 4, "tensor": 2}, 0.75),
          ("fsdp_tensor_sequence", {"expert": 2, "sequence": 2, "fsdp": 2}, None),
          ("fsdp_tensor_sequence", {"expert": 2, "sequence": 2, "fsdp": 2}, 0.75), ("fsdp", {"fsdp": 8}, None)]


@pytest.mark.slow
@pytest.mark.parametrize("rules, layout, factor", MESHES, ids=["e4t2-capacity", "e2s2f2", "e2s2f2-capacity", "f8"])
def test_sharded_is_single(params, batch, rules, layout, factor):
    """The same loss, share dropped and gradients on one device and on eight, however experts and tokens are split."""
    config = dataclasses.replace(CONFIG, capacity_factor=factor)
    mesh, rules = sharding.make_mesh(sharding.Layout(**{"data": 1, **layout})), sharding.get_rules(rules)
    shardings = sharding.param_shardings(transformer.logical_axes(config), abstract(params), mesh, rules)

    def run(params, batch):
        with sharding.in_force(mesh, rules):
            return loss(params, batch, config)

    many = jax.device_put(params, shardings)
    up = many["layers"]["mlp"]["up"]["weight"]
    assert up.addressable_shards[0].data.shape[1] == 4 // layout.get("expert", 1)
    found = jax.jit(jax.value_and_grad(run, has_aux=True))(many, jax.device_put(batch, sharding.batch_sharding(mesh, rules)))
    expected = gradients(params, batch, config)
    assert ("dropped" in expected[0][1]) == (factor is not None)
    if factor:
        assert float(expected[0][1]["dropped"]) > 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * float(jnp.abs(b).max())),
                 found, expected)


def test_one_row_on_many_devices(params):
    """A row that the devices cannot share, as in decoding: each serves its own experts, and the results add up."""
    mesh, rules = sharding.make_mesh(sharding.Layout(data=1, expert=4, tensor=2)), sharding.get_rules("fsdp_tensor")
    tokens = jnp.arange(5)[None]

    def run(params):
        with sharding.in_force(mesh, rules):
            return transformer.apply(params, tokens, config=CONFIG)

    np.testing.assert_allclose(jax.jit(run)(params), logits_of(params, tokens, CONFIG), rtol=2e-4, atol=2e-4)


def test_capacity_for_all_is_dropless(params, batch):
    free, exact = jitted_loss(params, batch, CONFIG)
    value, metrics = jitted_loss(params, batch, dataclasses.replace(CONFIG, capacity_factor=2.0))  # E / k: all of a row fit
    tight, cut = jitted_loss(params, batch, dataclasses.replace(CONFIG, capacity_factor=0.5))
    assert metrics.pop("dropped") == 0 and cut["dropped"] > 0.3
    assert float(value) == pytest.approx(float(free), rel=1e-6) and float(tight) != pytest.approx(float(free), rel=1e-3)
    assert {name: float(v) for name, v in metrics.items()} == pytest.approx({n: float(v) for n, v in exact.items()})
    assert float(free) == pytest.approx(float(exact["cross_entropy"] + 0.01 * exact["balance_loss"]), rel=1e-6)
    measured, none = jitted_loss(params, batch, CONFIG, auxiliary=False)
    assert float(measured) == pytest.approx(float(exact["cross_entropy"])) and none == {}


def test_causal_with_places_and_cached_without(params):
    """No token depends on a later one, even where places are few; with a cache every token reaches its experts."""
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, 64)
    tight = dataclasses.replace(CONFIG, capacity_factor=0.5)
    before, after = logits_of(params, tokens, tight), logits_of(params, tokens.at[:, 7].add(1), tight)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()
    cache = init_cache(tight, 2, 16)

    @jax.jit
    def step(params, tokens, at, cache):
        x, cache, _ = transformer.hidden(params, tokens, config=tight, positions=at, cache=cache)
        return transformer.unembed(params, x, config=tight), cache

    found = []
    for i in range(12):
        out, cache = step(params, tokens[:, i:i + 1], jnp.full((2, 1), i), cache)
        found.append(out)
    np.testing.assert_allclose(np.concatenate(found, 1), logits_of(params, tokens, CONFIG), rtol=2e-4, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "names", "dots"])
def test_remat_changes_nothing(params, batch, remat):
    found, expected = gradients(params, batch, dataclasses.replace(CONFIG, remat=remat)), gradients(params, batch, CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * float(jnp.abs(b).max())),
                 found, expected)


def test_padding_does_not_count(params, batch):
    """Balance over a row and its padding is that of the row alone."""
    padded = {name: jnp.pad(value[:1], ((0, 0), (0, 4)), constant_values=7) for name, value in batch.items()}
    padded["loss_mask"] = jnp.arange(16)[None] < 12
    padded["segment_ids"] = padded["loss_mask"].astype(jnp.int32)
    alone = jitted_loss(params, {name: value[:1] for name, value in batch.items()}, CONFIG)
    found = jitted_loss(params, padded, CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, alone)


@pytest.mark.slow
def test_training_on_balance_balances(params, batch):
    """A router that sends all to one pair of experts, under the balance loss alone."""
    mlp = params["layers"]["mlp"]
    skewed = mlp["router"]["weight"].at[:, :, :2].add(0.2)
    params = {**params, "embed": params["embed"] + 1.0,
              "layers": {**params["layers"], "mlp": {**mlp, "router": {"weight": skewed}}}}
    optimizer = optax.adam(0.003)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: loss(p, batch, CONFIG)[1]["balance_loss"])(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[0] > 3.5 and np.mean(values[-5:]) < 2.25  # 4 is all at one pair, 2 = k is even


def test_muon_takes_the_matrix_of_each_expert():
    """Stacked in layers and experts, each matrix moves as it would alone; the router is a matrix too."""
    shape = (2, 3, 6, 4)
    params = {"up": jax.random.normal(jax.random.key(0), shape), "embed": jnp.ones((4, 4))}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    axes = {"up": ("layers", "expert", "embed", "mlp"), "embed": ("vocab", "embed")}
    config = Optim(kind="muon", lr=0.02, schedule="constant")
    many = make_optimizer(config, 10, axes)
    updates, _ = jax.jit(many.update)(grads, many.init(params), params)
    alone = optax.contrib.muon(0.02, beta=config.momentum)
    for layer, expert in np.ndindex(2, 3):
        one = {"w": params["up"][layer, expert]}
        expected, _ = jax.jit(alone.update)({"w": grads["up"][layer, expert]}, alone.init(one), one)
        np.testing.assert_allclose(updates["up"][layer, expert], expected["w"], rtol=1e-4, atol=1e-6)


def test_parameters_and_flops_by_hand(params):
    D, F, E, k, V = 32, 24, 4, 2, 64
    attention, norms = D * D + 2 * D * 16 + D * D, 2 * D
    whole = 2 * (attention + norms + D * E + E * 3 * D * F) + 2 * V * D + D
    assert transformer.count_params(CONFIG) == whole
    assert transformer.count_params(CONFIG, active=True) == whole - 2 * (E - k) * 3 * D * F
    assert transformer.flops_per_token(CONFIG, 8) == 6 * (2 * (attention + norms + D * E + k * 3 * D * F) + V * D) \
        + 12 * 4 * 8 * 2 * 4


@pytest.mark.parametrize("settings, words", [
    ({"experts_per_token": 5}, "experts_per_token=5: at most experts=4"),
    ({"experts": 0}, "experts=0: at least 1"), ({"experts_per_token": 0}, "experts_per_token=0: at least 1"),
    ({"experts": None, "capacity_factor": 1.0}, "capacity_factor=1.0: only where there are experts"),
    ({"capacity_factor": 0.0}, "capacity_factor=0.0: a number above 0"),
    ({"balance_loss": -1.0}, "balance_loss=-1.0: a weight of 0 or more"), ({"bias": True}, "bias=True: experts have none")])
def test_impossible_mixtures_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **settings)


def test_experts_that_devices_cannot_share_are_refused():
    mesh, rules = sharding.make_mesh(sharding.Layout(data=1, expert=8)), sharding.get_rules("fsdp_tensor")
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), CONFIG))
    with pytest.raises(UserError, match="'expert' dimension is 4, which the mesh axes expert of size 8 cannot divide"):
        sharding.param_shardings(transformer.logical_axes(CONFIG), shapes, mesh, rules)
