"""Numbers in eight bits: weights and the key-value cache in a quarter of float32's memory, or half of bfloat16's.

A matrix keeps one scale for each of its columns, a row of the embedding one for itself, and a key or value of the cache
one for itself: what is added up in one product has one scale, so the scale is applied to the sum.

    y_j = s_j Σ_i x_i q_ij,   s_j = max_i |w_ij| / 127,   q_ij = round(w_ij / s_j)

Source: Dettmers et al. 2022, "LLM.int8()", section 2.1, absmax quantization with a constant for each vector; here of the
weights alone, and of keys and values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

_MATRICES = ("weight", "head")  # [.., rows, columns]: added up over rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """An array in eight bits, which stands where an array of parameters or of a cache does.

    Attributes:
      values: int8, of the array's shape.
      scale: float32, of size 1 along the axis that has one scale.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def T(self) -> Int8:
        return Int8(self.values.T, self.scale.T)

    def __getitem__(self, index: jax.Array) -> jax.Array:
        """Rows, as numbers: self[index] = values[index] · scale[index], float32."""
        return self.values[index] * self.scale[index]

    def astype(self, dtype) -> jax.Array:
        """The array itself, as numbers."""
        return (self.values * self.scale).astype(dtype)


def to_int8(x: jax.Array, axis: int) -> Int8:
    """q = round(x / s), s = max |x| / 127 along `axis`.

    Args:
      x: any floating-point array.
      axis: that has one scale.

    >>> q = to_int8(jnp.array([[1.0, -2.0, 0.5]]), axis=-1)
    >>> q.values.tolist(), [round(float(value), 3) for value in q.astype(jnp.float32)[0]]
    ([[64, -127, 32]], [1.008, -2.0, 0.504])
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
    return Int8(jnp.round(x / jnp.where(scale == 0, 1, scale)).astype(jnp.int8), scale)


@jax.jit
def quantize(params: Any) -> Any:
    """A model's parameters with the matrices of its products and its embedding in eight bits; norms, biases, learned
    positions and routers stay as they are.

    A decoding loop on a CPU makes numbers of them once a call, in memory of its own: there they are small at rest alone.
    What comes back is taken wherever parameters are read: by `transformer.hidden` and `unembed`, `generate`, the engine.
    It cannot be trained.
    """
    return jax.tree_util.tree_map_with_path(_quantized, params, is_leaf=lambda leaf: isinstance(leaf, Int8))


def _quantized(path, leaf):
    names = [getattr(key, "key", None) for key in path]
    if isinstance(leaf, Int8) or "router" in names:
        return leaf
    if names[-1] == "embed":
        return to_int8(leaf, axis=-1)
    return to_int8(leaf, axis=-2) if names[-1] in _MATRICES else leaf
