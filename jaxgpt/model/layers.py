"""The mathematics inside a layer: arrays in, arrays out. Dimension key in `transformer.py`."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import parts, platform, sequence_is_split
from jaxgpt.model.quantize import Int8

GROUPS = 8  # of a matrix's rows, which the cores of a CPU read side by side


def linear(x: jax.Array, weight: jax.Array | Int8, bias: jax.Array | None = None, *, dtype=None,
           columns: bool = False) -> jax.Array:
    """y = x W + b, on the last dimension, with W and b in the type of x.

    Leading dimensions are flattened first: XLA's CPU backend takes 1.4 to 1.7 times as long for a contraction over
    [B, T] as for the same one over [B*T]. Where positions are split over devices they stay apart. On a CPU a single
    row is multiplied by groups of a large matrix's rows, each of which one core reads as it lies (experiments/LOG.md).

    Args:
      x: [..., D].
      weight: [D, F], also in eight bits.
      bias: [F], or None.
      dtype: of the result, to which products are added up; that of x where None.
      columns: whether the weight lies as its columns, [F, D].

    Returns:
      [..., F].
    """
    check({"... D": {"x": x}, "F D" if columns else "D F": {"weight": weight}})
    flat = x.reshape(-1, x.shape[-1]) if x.ndim > 2 and not sequence_is_split() else x
    matrix = weight.values if isinstance(weight, Int8) else weight
    if isinstance(weight, Int8) and platform() != "cpu":
        # tied to x, so that a loop over tokens does not keep all matrices as numbers that it made before it began; on a CPU
        # that is the faster way
        flat, matrix = jax.lax.optimization_barrier((flat, matrix))
    matrix = matrix.astype(x.dtype)
    if columns:
        y = _by_columns(flat, matrix).astype(dtype or x.dtype)
    elif dtype is None or dtype == x.dtype:
        y = _by_groups(flat, matrix) if _is_read_once(flat, matrix) else jnp.matmul(flat, matrix)
    else:
        rows = "ABCE"[:flat.ndim - 1]
        y = product(f"{rows}D,DF->{rows}F", flat, matrix)
    y = y.reshape(*x.shape[:-1], weight.shape[0 if columns else -1])
    if isinstance(weight, Int8):
        y = (y * weight.scale.reshape(-1)).astype(y.dtype)
    return y if bias is None else y + bias.astype(y.dtype)


def _by_columns(x, matrix):
    """x [.., D] times a matrix that lies as [F, D], in float32.

    Up to 256 rows XLA's CPU backend is up to twice as fast with the matrix as the left of the two (experiments/LOG.md); the
    barrier keeps it there.
    """
    rows = "ABCE"[:x.ndim - 1]
    if x.size > 256 * x.shape[-1] or platform() != "cpu":
        return product(f"{rows}D,FD->{rows}F", x, matrix)
    return jnp.moveaxis(jax.lax.optimization_barrier(product(f"FD,{rows}D->F{rows}", matrix, x)), 0, -1)


def _is_read_once(x, matrix):
    """Whether a product takes as long as reading a large matrix does, on a CPU."""
    return (x.size == x.shape[-1] and x.dtype == jnp.float32 and matrix.size >= 1 << 19
            and matrix.shape[0] % GROUPS == 0 and platform() == "cpu")


def _by_groups(x, matrix):
    """x [..., D] of a single row, times matrix [D, F]."""
    D, F = matrix.shape
    y = jnp.einsum("gd,gdf->gf", x.reshape(GROUPS, -1), matrix.reshape(GROUPS, -1, F))
    return jnp.sum(y, axis=0).reshape(*x.shape[:-1], F)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum of two arrays of one type, in float32; its gradient is rounded to their type before it is multiplied.

    Left to itself a float32 result has a float32 gradient, and the products of the backward pass are then in float32.

    Args:
      subscripts: of `einsum`, "x,y->z"; each letter is in two of the three.
    """
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _product_forward(subscripts, a, b):
    return product(subscripts, a, b), (a, b)


def _product_backward(subscripts, arguments, grad):
    (a, b), (x, y, z) = arguments, subscripts.replace("->", ",").split(",")
    grad = grad.astype(a.dtype)
    return jnp.einsum(f"{z},{y}->{x}", grad, b), jnp.einsum(f"{x},{z}->{y}", a, grad)


product.defvjp(_product_forward, _product_backward)


def rms_norm(x: jax.Array, scale: jax.Array | None = None, *, eps: float = 1e-6) -> jax.Array:
    """y = x / √(mean(x²) + ε) · scale, in float32.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    Args:
      x: [..., D].
      scale: [D], or None for none.

    >>> [round(float(y), 4) for y in rms_norm(jnp.array([3.0, 4.0]), eps=0.0)]
    [0.8485, 1.1314]
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y if scale is None else y * scale).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array | None = None, bias: jax.Array | None = None, *,
               eps: float = 1e-5) -> jax.Array:
    """y = (x - mean(x)) / √(var(x) + ε) · scale + bias, in float32.

    Source: Ba, Kiros & Hinton 2016, "Layer Normalization", equation 4.

    Args:
      x: [..., D].
      scale, bias: [D], or None for none.
    """
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rotary(x: jax.Array, positions: jax.Array, *, theta: float = 10_000.0,
           frequencies: jax.Array | np.ndarray | None = None, scale: float = 1.0) -> jax.Array:
    """Rotates each pair (x_i, x_{i + H/2}) of a head by the angle position · θ^(-2i/H), and multiplies it by `scale`.

    Source: Su et al. 2021, "RoFormer", equation 34; pairs lie half a head apart, as in Llama.

    Args:
      x: [B, T, N, H].
      positions: int [B, T].
      theta: the base θ of the wavelengths.
      frequencies: [H/2], angles a position, in place of those of θ.
      scale: of the result, as YaRN has it.

    Returns:
      [B, T, N, H].
    """
    check({"B T N H": {"x": x}, "B T": {"positions": positions}})
    half = x.shape[-1] // 2
    if frequencies is None:
        frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1H = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = scale * jnp.cos(angle_BT1H), scale * jnp.sin(angle_BT1H)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rope_frequencies(size: int, *, theta: float, factor: float, low: float, high: float, context: int) -> np.ndarray:
    """Frequencies of rotary positions for a context longer than the one trained on: the slow ones are slowed further.

        f_i = θ^(-2i/H),   n_i = context · f_i / 2π (turns within the original context)
        f'_i = f_i · (s_i + (1 - s_i) / factor),   s_i = clip((n_i - low) / (high - low), 0, 1)

    Source: the reference code of Llama 3.1 (2024); Grattafiori et al. 2024, section 3.4.2, has the training that goes
    with it.

    Args:
      size: H, of a head.
      theta, factor, low, high, context: as in the equation.

    Returns:
      float32 [H/2].

    >>> rope_frequencies(4, theta=10_000.0, factor=8.0, low=1.0, high=4.0, context=8192).tolist()  # 1304 turns, and 13
    [1.0, 0.009999999776482582]
    >>> rope_frequencies(4, theta=1e8, factor=8.0, low=1.0, high=4.0, context=8192)[1] * 8e4  # 0.13 turns
    np.float32(1.0)
    """
    plain = theta ** (-np.arange(0, size, 2) / size)
    kept = np.clip((context * plain / (2 * np.pi) - low) / (high - low), 0, 1)
    return (plain * (kept + (1 - kept) / factor)).astype(np.float32)


def yarn_frequencies(size: int, *, theta: float, factor: float, fast: float, slow: float, context: int,
                     whole: bool = True) -> np.ndarray:
    """Frequencies of rotary positions by YaRN: slow ones divided by `factor`, fast ones kept, a ramp over pairs between.

        f_i = θ^(-2i/H),   i(n) = H ln(context / 2πn) / (2 ln θ)   (the pair that turns n times within the context)
        r_i = clip((i - i(fast)) / (i(slow) - i(fast)), 0, 1)
        f'_i = (1 - r_i) f_i + r_i f_i / factor

    Source: Peng et al. 2023, "YaRN", equations 17 and 22 and the code that goes with it, whose ramp is over i.

    Args:
      size: H, of a head.
      theta, factor, fast, slow, context: as in the equation.
      whole: i(fast) is rounded down and i(slow) up.

    Returns:
      float32 [H/2].

    >>> [round(float(f), 6) for f in yarn_frequencies(4, theta=10_000.0, factor=4.0, fast=32.0, slow=1.0, context=8192)]
    [1.0, 0.00625]
    """
    plain = theta ** (-np.arange(0, size, 2) / size)
    first, last = (size * math.log(context / (2 * math.pi * turns)) / (2 * math.log(theta)) for turns in (fast, slow))
    first, last = (math.floor(first), math.ceil(last)) if whole else (first, last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0, 1)
    return (plain * (1 - ramp + ramp / factor)).astype(np.float32)


def spread_kv_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeats key-value heads where there are fewer than devices, so that each device has those of its queries."""
    N, K = q.shape[2], k.shape[2]
    repeats = math.lcm(K, parts("heads", N)) // K
    return (k, v) if repeats == 1 else (jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2))


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """y = c · tanh(x / c): near x where it is small, never beyond ±c; x itself where c is None.

    Source: Bello et al. 2016, "Neural Combinatorial Optimization", equation 16; Gemma 2 (2024), section 2.
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, approximate: bool = False) -> jax.Array:
    """y = x Φ(x), or with tanh in place of Φ; of it the backward pass keeps the slope alone.

    Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """
    return jax.nn.gelu(x, approximate)


gelu.defvjp(lambda x, approximate: jax.jvp(lambda x: jax.nn.gelu(x, approximate), (x,), (jnp.ones_like(x),)),
            lambda approximate, slope, grad: (slope * grad,))


def relu2(x: jax.Array) -> jax.Array:
    """y = max(x, 0)². Source: So et al. 2021, "Primer", section 4.1."""
    return jnp.square(jax.nn.relu(x))


def swiglu(gate: jax.Array, x: jax.Array) -> jax.Array:
    """y = SiLU(gate) · x. Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6."""
    return jax.nn.silu(gate) * x


def activate(name: str, x: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """The activation called "swiglu" (which takes a gate), "relu2", "gelu" or "gelu_tanh"."""
    if name == "swiglu":
        return swiglu(gate, x)
    return relu2(x) if name == "relu2" else gelu(x, name == "gelu_tanh")
