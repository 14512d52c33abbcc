"""The key-value cache: what a model has read, a layer at a time, contiguous for each row. Dimension key in
`transformer.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgpt.model.config import Config
from jaxgpt.model.quantize import Int8, to_int8

Cache = tuple[dict[str, jax.Array | Int8], ...]  # one a layer


def init_cache(config: Config, batch: int, length: int, dtype=None) -> Cache:
    """An empty cache of `length` slots.

    Args:
      config: the model's.
      batch, length: B and S.
      dtype: of keys and values: that of the activations where None; "int8" keeps a scale beside each, see `quantize.py`.

    Returns:
      For each layer {"k", "v"}, each [B, K, S, H]: in that order the products of decoding read it as it lies.
    """
    shape, dtype = (batch, config.K, length, config.H), jnp.dtype(dtype or config.dtype)

    def empty():
        return Int8(jnp.zeros(shape, dtype), jnp.zeros((*shape[:-1], 1))) if dtype == jnp.int8 else jnp.zeros(shape, dtype)

    return tuple({"k": empty(), "v": empty()} for _ in range(config.layers))


def write_cache(slots: jax.Array | Int8, new: jax.Array, positions: jax.Array) -> jax.Array | Int8:
    """slots[b, k, positions[b, t]] = new[b, t, k]; out of bounds nothing is written.

    Args:
      slots: [B, K, S, H].
      new: [B, T, K, H].
      positions: int [B, T].
    """
    rows, heads = jnp.arange(slots.shape[0])[:, None, None], jnp.arange(slots.shape[1])
    new = to_int8(new, axis=-1) if isinstance(slots, Int8) else new.astype(slots.dtype)
    return jax.tree.map(lambda old, new: old.at[rows, heads, positions[:, :, None]].set(new), slots, new)


def read_cache(slots: jax.Array | Int8, dtype) -> jax.Array:
    """What is there, as attention takes it: [B, S, K, H] of `dtype`."""
    return jnp.swapaxes(slots.astype(dtype), 1, 2)
