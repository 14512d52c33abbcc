"""Attention on TPU: the splash kernel that comes with JAX, laid over the mesh. Dimension key in `transformer.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxgpt.core import sharding
from jaxgpt.model.layers import spread_kv_heads


def splash_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None, *,
                     window: int | None = None, interpret: bool = False) -> jax.Array:
    """Causal attention that never holds the weights [T, T]: block by block, blocks that nobody sees left out.

    Rows and heads are split as the mesh in force says. Where positions are split, each device keeps its queries and
    gathers all keys and values; blocks of the causal triangle are then unevenly shared, as in the ring.

    Source: Dao et al. 2022, "FlashAttention"; the kernel is `jax.experimental.pallas.ops.tpu.splash_attention`. Scores,
    their softmax and the sum over keys are in float32, whatever the type of q; the backward pass rounds weights to it.

    Args:
      q: [B, T, N, H].
      k, v: [B, T, K, H].
      segment_ids: int [B, T], or None.
      window: how many positions back, its own included, a query sees; None for all.
      interpret: run the kernel's code without compiling it, on any device, for tests.

    Returns:
      [B, T, N, H]; named "attention", with its log-sum-exp, for remat policies.
    """
    B, T, N, H = q.shape
    shards = sharding.parts("seq", T)
    k, v = spread_kv_heads(q, k, v)
    heads, whole = ("batch", "seq", "heads", None), ("batch", None, "heads", None)
    segments = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    run = functools.partial(_kernel, window=window, interpret=interpret, segmented=segment_ids is not None,
                            axes=sharding.mesh_axes("seq", T), shards=shards)
    mapped = sharding.on_shards(run, heads, whole, whole, ("batch", "seq"), ("batch", None))
    return mapped(q * H ** -0.5, k, v, segments, segments)


def _kernel(q, k, v, query_segments, key_segments, *, window, interpret, segmented, axes, shards):
    """One device's queries [b, T / shards, n, H] against all keys [b, T, k, H]."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, and of use on TPU only

    T, N = k.shape[1], q.shape[2]
    mask = (splash.CausalMask((T, T)) if window is None or window >= T else
            splash.LocalMask((T, T), (window - 1, 0), 0))
    size = block_size(T // shards)
    sizes = splash.BlockSizes(block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size,
                              block_kv_dq=size)
    kernel = splash.make_splash_mha(splash.MultiHeadMask([mask] * N), head_shards=1, q_seq_shards=shards,
                                    block_sizes=sizes, residual_checkpoint_name="attention", interpret=interpret)
    if shards > 1:  # what the kernel knows of the mask is listed by blocks of queries: a device keeps those of its own
        kernel = jax.tree.map(lambda a: _own(a, -2 if a.ndim == 3 else 0, axes, shards), kernel)
    segments = splash.SegmentIds(query_segments, key_segments) if segmented else None
    by_head = [jnp.swapaxes(a, 1, 2) for a in (q, k, v)]
    return jnp.swapaxes(jax.vmap(kernel)(*by_head, segments), 1, 2)


def _own(a: jax.Array, axis: int, axes, shards: int) -> jax.Array:
    """This device's part of an array that is whole everywhere."""
    size = a.shape[axis] // shards
    return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index(axes) * size, size, axis)


def block_size(length: int) -> int:
    """The largest block up to 512 that divides a length and that 128 divides.

    >>> [block_size(length) for length in (128, 384, 1024, 1280)]
    [128, 384, 512, 256]
    """
    return next(size for size in (512, 384, 256, 128) if length % size == 0)
