"""The kernels for GPUs, interpreted, beside the functions that they stand for; and that they can be lowered for a GPU."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.core import sharding
from jaxgpt.model import kernels, layers, losses, presets, transformer
from jaxgpt.model.kv_cache import init_cache
from jaxgpt.model.lay_out import unstack


def draw(*shape, seed=0, dtype=jnp.float32):
    return (2 * jax.random.normal(jax.random.key(seed), shape) + 0.5).astype(dtype)


def same(ours, theirs, arguments, grads, **tolerance):
    """Values and all gradients."""
    (found, pull), (wanted, pull_wanted) = jax.vjp(ours, *arguments), jax.vjp(theirs, *arguments)
    for a, b in zip(jax.tree.leaves((found, pull(grads))), jax.tree.leaves((wanted, pull_wanted(grads)))):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance)


@pytest.mark.parametrize("V", [5, 1000, 4096, 9000])  # less than a block, one, and several with a rest
def test_cross_entropy(V):
    logits, targets = draw(6, V), jax.random.randint(jax.random.key(1), (6,), 0, V)
    weights = jnp.array([1.0, 0.0, 0.5, 1.0, 1.0, 0.0])

    def wanted(logits):
        return -jnp.sum(losses.selective_log_softmax(logits, targets)[0] * weights)

    same(lambda x: kernels.cross_entropy(x, targets, weights, True), wanted, (logits,), jnp.float32(0.7), rtol=2e-5, atol=1e-6)


def test_cross_entropy_of_extreme_logits():
    """Large ones do not overflow; a row that does not count may rule its target out."""
    logits = jnp.array([[1e4, -1e4, 3.0, 0.0], [0.0, -jnp.inf, 1.0, 2.0]])
    value, grad = jax.value_and_grad(lambda x: kernels.cross_entropy(x, jnp.array([2, 1]), jnp.array([1.0, 0.0]), True))(logits)
    assert value == pytest.approx(1e4 - 3)
    np.testing.assert_allclose(grad, [[1, 0, -1, 0], [0, 0, 0, 0]], atol=1e-3)  # a float32 near 10,000 is good to 1e-3


@pytest.mark.parametrize("D", [64, 80])  # a power of two, and not
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_add_norm(D, centred, adds):
    R = 2 * kernels.TURNS
    arguments = [draw(R, D)] + [draw(R, D, seed=1)] * adds + [draw(D, seed=2)] + [draw(D, seed=3)] * centred

    def ours(x, *rest):
        rest = list(rest)
        added = rest.pop(0) if adds else None
        return kernels.add_norm(x, added, rest[0], rest[1] if centred else None, centred, 1e-5, True)

    def theirs(x, *rest):
        x, rest = (x + rest[0], rest[1:]) if adds else (x, rest)
        return x, layers.layer_norm(x, *rest) if centred else layers.rms_norm(x, *rest, eps=1e-5)

    same(ours, theirs, arguments, (draw(R, D, seed=4), draw(R, D, seed=5)), rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("approximate", [True, False])
def test_biased_gelu(approximate):
    R, F = kernels.ROWS, kernels.GELU[1]
    same(lambda x, b: kernels.biased_gelu(x, b, approximate, True), lambda x, b: jax.nn.gelu(x + b, approximate),
         (draw(R, F), draw(F, seed=1)), draw(R, F, seed=2), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_rounded_once(dtype):
    """Beside float32 arithmetic on the same numbers, half a unit in the last place: what one rounding does."""
    x, scale, bias = draw(16, 64, dtype=dtype), draw(64, seed=1), draw(64, seed=2)
    found = kernels.add_norm(x, None, scale, bias, True, 1e-5, True)[1]
    assert found.dtype == dtype
    wanted = layers.layer_norm(x.astype(jnp.float32), scale, bias)
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=float(jnp.finfo(dtype).eps) / 2 + 1e-5, atol=1e-6)


# --- in the model ----------------------------------------------------------------------------------------------------

@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The choice as on a GPU, the kernels interpreted; returns the set of those that were called."""
    called, call = set(), kernels._call

    def interpreted(kernel, grid, warps, interpret, *rest, **options):
        called.add(getattr(kernel, "func", kernel).__name__)
        return call(kernel, grid, warps, True, *rest, **options)

    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "_call", interpreted)
    return called


def small(name):
    config = presets.gpt2("124M") if name == "gpt2" else presets.llama3("1B", context=2048)
    return dataclasses.replace(config, vocab_size=512, layers=2, width=64, heads=2, kv_heads=2, head_dim=None, mlp_width=512,
                               dtype="bfloat16", loss_chunk=256, init_std=0.1)


def batch(rows, length):
    tokens = jax.random.randint(jax.random.key(1), (rows, length + 1), 0, 512)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": jnp.ones((rows, length))}


def value_and_grads(config, params, rows=8, mesh=None):
    def loss(params):
        with sharding.in_force(mesh, sharding.get_rules("fsdp_tensor")) if mesh else contextlib.nullcontext():
            return losses.next_token_loss(params, (), batch(rows, 64), None, config=config)[0] / (rows * 64)
    return jax.jit(jax.value_and_grad(loss))(params)


def check_alike(grads, wanted):
    """To what bfloat16's 8 bits keep, and for keys' biases, whose gradient is 0, to a thousandth of the whole."""
    whole = optax.tree.norm(wanted)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
        assert jnp.linalg.norm(a - b) < 0.03 * jnp.linalg.norm(b) + 1e-3 * whole


@pytest.mark.slow
@pytest.mark.parametrize("name, remat", [("gpt2", "none"), ("llama", "names")])
def test_a_model_with_them_is_the_model_without(as_on_a_gpu, name, remat):
    config = dataclasses.replace(small(name), remat=remat)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    plain, plain_grads = value_and_grads(dataclasses.replace(config, kernels="xla"), params)
    assert not as_on_a_gpu
    loss, grads = value_and_grads(config, params)
    assert as_on_a_gpu >= {"_cross_entropy_kernel", "_add_norm_kernel", "_add_norm_backward_kernel"}
    assert ("_gelu_backward_kernel" in as_on_a_gpu) == (name == "gpt2")
    assert loss == pytest.approx(float(plain), abs=2e-3)
    check_alike(grads, plain_grads)


@pytest.mark.slow
def test_devices_run_them_on_their_own_rows(as_on_a_gpu):
    """Rows and heads over 8 devices: the same loss and gradients, also of what every device has whole."""
    config = small("gpt2")
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    alone, alone_grads = value_and_grads(config, params, 16)
    as_on_a_gpu.clear()
    loss, grads = value_and_grads(config, params, 16, sharding.make_mesh(sharding.Layout(data=2, fsdp=2, tensor=2)))
    assert as_on_a_gpu == {"_cross_entropy_kernel", "_add_norm_kernel", "_add_norm_backward_kernel", "_gelu_kernel",
                           "_gelu_backward_kernel"}
    assert loss == pytest.approx(float(alone), abs=2e-3)
    check_alike(grads, alone_grads)


def test_decoding_takes_the_norm_alone(as_on_a_gpu):
    config = small("llama")
    params = unstack(transformer.init(jax.random.key(0), config), layout="merged")
    tokens = positions = jnp.arange(5)[None]

    def logits(config):
        return transformer.apply(params, tokens, config=config, positions=positions, cache=init_cache(config, 1, 8))

    found = logits(config)
    assert as_on_a_gpu == {"_add_norm_kernel"}
    np.testing.assert_allclose(found, logits(dataclasses.replace(config, kernels="xla")), atol=0.05)


@pytest.mark.parametrize("choice, dtype, rows", [("xla", jnp.bfloat16, 256), ("auto", jnp.float32, 256),
                                                 ("auto", jnp.bfloat16, 255)])
def test_what_does_not_suit_them(as_on_a_gpu, choice, dtype, rows):
    assert kernels.suit(jnp.zeros((256, 8), jnp.bfloat16), "auto", columns=8)
    assert not kernels.suit(jnp.zeros((rows, 8), dtype), choice, columns=8)
    assert not kernels.suit(jnp.zeros((256, 8), jnp.bfloat16), "auto", columns=1 << 23)  # beyond 32 bits


@pytest.mark.parametrize("B, T, suits", [(8, 256, True), (6, 128, False), (7, 256, True)])  # 256 a device, 3 * 128, all 7 * 256
def test_rows_are_counted_as_devices_get_them(as_on_a_gpu, B, T, suits):
    """Axes that do not divide a batch are left out from the last: 6 rows over 2 x 4 are 3 on each."""
    mesh = sharding.make_mesh(sharding.Layout(data=2, fsdp=4))
    with sharding.in_force(mesh, sharding.get_rules("fsdp")):
        assert kernels.suit(jnp.zeros((B, T, 8), jnp.bfloat16), "auto", columns=8) == suits


def test_no_kernel_where_jax_cannot_compile_one(as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    kernels._can_be_compiled.cache_clear()
    assert not kernels.suit(jnp.zeros((256, 8), jnp.bfloat16), "auto", columns=8)
    kernels._can_be_compiled.cache_clear()


def test_no_kernel_on_a_cpu():
    assert not kernels.suit(jnp.zeros((256, 8), jnp.bfloat16), "auto", columns=8)


# --- for a GPU that is not there -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_they_can_be_lowered_for_a_gpu(monkeypatch, name):
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    config = dataclasses.replace(small(name), attention="xla")
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    where = contextlib.nullcontext()
    if hasattr(jax.sharding, "AbstractDevice"):  # newer versions ask which GPU it is
        device = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
        where = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device))
    with where:
        traced = jax.jit(lambda params: value_and_grads(config, params)).trace(params)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") >= 7
