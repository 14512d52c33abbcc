"""Every way of computing attention gives what the plain one gives in float32: forward and backward, on any devices."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.model import losses, transformer
from jaxgpt.model.attention import choose, self_attention

# name: (implementation, devices on each mesh axis or None, positions, what its program contains)
PATHS = {
    "splash": ("splash", None, 256, "pallas_call"),
    "splash_in_blocks": ("splash", None, 640, "pallas_call"),  # 5 x 5 blocks
    "splash_heads": ("splash", {"data": 2, "tensor": 4}, 128, "shard_map"),  # 2 key-value heads for 4 devices
    "splash_sequence": ("splash", {"data": 2, "tensor": 2, "sequence": 2}, 256, "axis_index"),
    "ring_of_one": ("ring", None, 600, "scan["),
    "ring_of_two": ("ring", {"data": 2, "tensor": 2, "sequence": 2}, 96, "ppermute"),
    "ring_of_four": ("ring", {"data": 2, "sequence": 4}, 96, "ppermute"),
    "xla_on_eight": ("xla", {"data": 2, "tensor": 2, "sequence": 2}, 96, "sharding_constraint"),
}
CASES = {"causal": (None, False), "packed": (None, True), "window": (40, False), "both": (40, True)}


def on(layout):
    """The mesh and rules of a path in force; nothing for None."""
    if layout is None:
        return contextlib.nullcontext()
    return sharding.in_force(sharding.make_mesh(sharding.Layout(**layout)), sharding.get_rules("fsdp_tensor_sequence"))


def arrays(T, dtype=jnp.float32):
    """q [2, T, 4, 16], k, v [2, T, 2, 16] and segment ids [2, T] of a few documents."""
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, T, 4, 16), dtype)
    k, v = (jax.random.normal(key, (2, T, 2, 16), dtype) for key in keys[1:3])
    return q, k, v, jnp.sort(jax.random.randint(keys[3], (2, T), 0, 5), axis=-1)


def attend(implementation, layout, window, segments):
    """(q, k, v) -> (out, their gradients), jitted."""
    def weighted(q, k, v):
        q, k, v = (sharding.shard(a, "batch", "seq", "heads", None) for a in (q, k, v))
        out = self_attention(q, k, v, windows=(window,), segment_ids=segments, implementation=implementation)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)).astype(out.dtype)), out

    def run(q, k, v):
        with on(layout):
            (_, out), grads = jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *grads

    return jax.jit(run)


def close(found, expected, tolerance):
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        error = float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
        assert error < tolerance, f"{name}: {error:.1e}"


def slow_but(quick):
    """All pairs of path and case; those not in `quick` are slow."""
    return [pytest.param(path, case, marks=[] if case in quick.get(path, ()) else pytest.mark.slow)
            for path in PATHS for case in CASES]


@pytest.mark.parametrize("path, case", slow_but({
    "splash": ("both",), "splash_heads": ("both",), "splash_sequence": ("both",), "ring_of_one": ("causal",),
    "ring_of_two": ("both",), "ring_of_four": ("packed",), "xla_on_eight": ("both",)}))
def test_forward_and_gradients_agree_with_the_plain_one(path, case):
    implementation, layout, T, contains = PATHS[path]
    window, packed = CASES[case]
    *qkv, segments = arrays(T)
    segments = segments if packed else None
    plain, ours = (attend(*of, window, segments) for of in (("xla", None), (implementation, layout)))
    assert contains in str(ours.trace(*qkv).jaxpr) and contains not in str(plain.trace(*qkv).jaxpr)
    close(ours(*qkv), plain(*qkv), 2e-6)


@pytest.mark.parametrize("path", ["splash", "ring_of_four", pytest.param("ring_of_one", marks=pytest.mark.slow)])
def test_bfloat16_is_close_to_float32(path):
    """As close as the plain one in bfloat16: sums are in float32, so the error is that of rounding the arguments."""
    implementation, layout, T, _ = PATHS[path]
    *qkv, segments = arrays(T, jnp.bfloat16)
    exact = attend("xla", None, None, segments)(*(a.astype(jnp.float32) for a in qkv))
    for of in ((implementation, layout), ("xla", None)):
        found = attend(*of, None, segments)(*qkv)
        assert {a.dtype for a in found} == {jnp.dtype("bfloat16")}
        close(found, exact, 0.02)


@pytest.mark.parametrize("path", ["splash_sequence", "ring_of_four", "xla_on_eight"])
def test_nothing_leaks_between_documents(path):
    """Results of the second document have gradients in its own keys and values up to each query, and in no others."""
    implementation, layout, T, _ = PATHS[path]
    q, k, v, _ = arrays(T)
    middle = T // 3 + 1
    segments = jnp.broadcast_to((jnp.arange(T) >= middle).astype(jnp.int32), (2, T))

    @jax.jit
    def seen(k, v):
        def chosen(k, v):
            with on(layout):
                out = self_attention(q, k, v, segment_ids=segments, implementation=implementation)
            return jnp.sum(jnp.square(out[:, middle:-5]))
        return [jnp.abs(grad).max(axis=(0, 2, 3)) > 0 for grad in jax.grad(chosen, (0, 1))(k, v)]

    expected = (np.arange(T) >= middle) & (np.arange(T) < T - 5)
    for grad in seen(k, v):
        np.testing.assert_array_equal(grad, expected)


# --- the whole model -------------------------------------------------------------------------------------------------

LLAMA = transformer.Config(vocab_size=64, context=128, layers=3, width=32, heads=4, kv_heads=2, init_std=0.3)


def loss_and_gradient(config, layout=None):
    tokens = jax.random.randint(jax.random.key(1), (2, 129), 0, 61)
    segments = (jnp.arange(128) // 50)[None] + jnp.zeros((2, 1), jnp.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": jnp.ones((2, 128)),
             "segment_ids": segments}
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)

    def run(params):
        with on(layout):
            return jax.value_and_grad(lambda p: losses.next_token_loss(p, (), batch, None, config=config)[0])(params)

    return jax.jit(run), params


@pytest.mark.parametrize("change, layout", [
    ({"attention": "splash", "windows": (40, None), "remat": "names"}, None),
    ({"attention": "ring", "windows": (40, None), "remat": "dots"}, None),
    ({"attention": "auto", "loss_chunk": 64}, {"data": 2, "tensor": 2, "sequence": 2})])
def test_loss_and_gradient_of_the_model_are_those_of_the_plain_one(change, layout):
    plain = dataclasses.replace(LLAMA, loss_chunk=None, attention="xla",
                                windows=change.get("windows", (None,)))
    (reference, params), (ours, _) = loss_and_gradient(plain), loss_and_gradient(
        dataclasses.replace(plain, **change), layout)
    assert str(reference.trace(params).jaxpr) != str(ours.trace(params).jaxpr)
    (loss, gradient), (expected, gradients) = ours(params), reference(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.slow
def test_kept_results_of_the_kernel_are_not_computed_again(monkeypatch):
    """Compiled for a TPU: one kernel forward and two backward; "full" runs the forward one once more."""
    pytest.importorskip("libtpu", reason="needs libtpu, which compiles for a TPU that is not there")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    mesh, rules = sharding.make_mesh(sharding.Layout(data=4), devices), sharding.get_rules("fsdp")

    def kernels(remat):
        config = dataclasses.replace(LLAMA, dtype="bfloat16", remat=remat)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
                              jax.eval_shape(lambda: transformer.init(jax.random.key(0), config)))
        tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32, sharding=sharding.batch_sharding(mesh, rules))

        def total(params, tokens):
            with sharding.in_force(mesh, rules):
                return jnp.square(transformer.hidden(params, tokens, config=config)[0]).sum()

        return jax.jit(jax.grad(total)).lower(params, tokens).compile().as_text().count('"tpu_custom_call"')

    assert {remat: kernels(remat) for remat in ("dots", "names", "full")} == {"dots": 3, "names": 3, "full": 4}


# --- the choice ------------------------------------------------------------------------------------------------------

BFLOAT16 = {"T": 1024, "H": 64, "dtype": jnp.bfloat16}


@pytest.mark.parametrize("platform, case, expected", [
    ("tpu", {}, "splash"), ("tpu", {"segments": True, "windows": (128, None)}, "splash"), ("tpu", {"T": 1000}, "xla"),
    ("tpu", {"parts": 4}, "splash"), ("tpu", {"parts": 16}, "ring"),
    ("gpu", {}, "cudnn"), ("gpu", {"segments": True}, "xla"), ("gpu", {"windows": (128,)}, "xla"),
    ("gpu", {"dtype": jnp.float32}, "xla"), ("gpu", {"H": 256}, "xla"), ("gpu", {"parts": 2}, "ring"),
    ("cpu", {}, "xla"), ("cpu", {"parts": 2}, "ring")])
def test_auto(platform, case, expected):
    assert choose("auto", platform=platform, **{**BFLOAT16, **case}) == expected


@pytest.mark.parametrize("name, platform, case, reason", [
    ("cudnn", "gpu", {"segments": True}, "it would ignore segment_ids"),
    ("cudnn", "gpu", {"windows": (128,)}, "windows"),
    ("cudnn", "cpu", {}, "runs on GPU"),
    ("splash", "gpu", {}, "runs on TPU"),
    ("splash", "tpu", {"T": 1000}, "multiple of 128 .* not 1000")])
def test_what_cannot_be_done_by_name_is_refused(name, platform, case, reason):
    with pytest.raises(UserError, match=rf"model.attention='{name}': .*{reason}"):
        choose(name, platform=platform, **{**BFLOAT16, **case})


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's attention needs a GPU")
def test_cudnn_agrees_with_the_plain_one():
    *qkv, _ = arrays(256, jnp.bfloat16)
    exact = attend("xla", None, None, None)(*(a.astype(jnp.float32) for a in qkv))
    close(attend("cudnn", None, None, None)(*qkv), exact, 0.02)
