"""Kernels for GPUs, in Pallas, where XLA's own pass over an array more often than once: the loss over a vocabulary, a norm with
the sum before it, and GELU with its bias, each with its gradient. Dimension key in `transformer.py`; R rows.

They read and write the type of their arrays and add up in float32. `interpret` runs a kernel's code without compiling it, on
any device, for tests. What they gain stands in experiments/LOG.md.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import on_shards, parts, platform
from jaxgpt.model.layers import gelu

BLOCK = 4096  # logits that a program works on at once
TURNS = 16  # in which a program adds up the gradients of columns, before they are added over programs
GELU = 16, 256  # rows and columns that a program works on at once
ROWS = TURNS * GELU[0]  # of which a device has a multiple, where gradients are asked for


def suit(x: jax.Array, choice: str, columns: int, multiple: int = ROWS) -> bool:
    """Whether the kernels take activations [B, T, D] or, of one device, [R, D]: on a GPU, in 16 bits.

    Args:
      choice: `Config.kernels`.
      columns: of the widest array that a kernel is given; it indexes with 32 bits.
      multiple: of how many rows a device has; 1 suits the loss, and a norm whose gradient nobody asks for.
    """
    rows = math.prod(size // parts(axis, size) for axis, size in zip(("batch", "seq"), x.shape[:-1]))
    return (choice == "auto" and platform() == "gpu" and x.dtype in (jnp.bfloat16, jnp.float16)
            and rows % multiple == 0 and rows * columns < 1 << 31 and _can_be_compiled())


@functools.cache
def _can_be_compiled() -> bool:
    """Whether this JAX still has Pallas' way to Triton, which it says a later version will not; XLA then takes over."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


# --- over the mesh ---------------------------------------------------------------------------------------------------

def add_norm_of_tokens(x: jax.Array, added: jax.Array | None, scale: jax.Array | None, bias: jax.Array | None, *,
                       centred: bool, eps: float) -> tuple[jax.Array, jax.Array]:
    """`add_norm` of [B, T, D] that lie on the mesh in force."""
    tokens, column = ("batch", "seq", None), (None,)
    scale = jnp.ones(x.shape[-1]) if scale is None else scale
    given = {"x": (x, tokens), "added": (added, tokens), "scale": (scale, column), "bias": (bias, column)}
    given = {name: found for name, found in given.items() if found[0] is not None}

    def run(*arrays):
        named = dict(zip(given, arrays))
        x, added = (None if (a := named.get(name)) is None else a.reshape(-1, a.shape[-1]) for name in ("x", "added"))
        found = add_norm(x, added, named["scale"], named.get("bias"), centred, eps)
        return tuple(a.reshape(named["x"].shape) for a in found)

    return on_shards(run, *(axes for _, axes in given.values()))(*(array for array, _ in given.values()))


def biased_gelu_of_tokens(x: jax.Array, bias: jax.Array | None, *, approximate: bool) -> jax.Array:
    """`biased_gelu` of [B, T, F] that lies on the mesh in force; by XLA where its tiles do not divide F."""
    def run(x, bias):
        if x.shape[-1] % GELU[1]:
            return gelu(x + bias.astype(x.dtype), approximate)
        return biased_gelu(x.reshape(-1, x.shape[-1]), bias, approximate).reshape(x.shape)

    bias = jnp.zeros(x.shape[-1]) if bias is None else bias
    return on_shards(run, ("batch", "seq", "mlp"), ("mlp",))(x, bias)


# --- the loss --------------------------------------------------------------------------------------------------------

@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array, interpret: bool = False) -> jax.Array:
    """Σ w (logsumexp(x) - x_target); its gradient, w (softmax(x) - onehot), is made at once, in the place of the logits.

    Source: Hsu et al. 2024, "Liger Kernel", section 3.2, for a gradient in the place of its logits.

    Args:
      logits: [R, V].
      targets: int [R].
      weights: float [R], at least 0; where 0 a target does not count, whatever its probability. They get no gradient.

    Returns:
      float32 scalar, in nats.
    """
    return _cross_entropy_forward(logits, targets, weights, interpret)[0]


def _cross_entropy_forward(logits, targets, weights, interpret):
    R, V = check({"R V": {"logits": logits}, "R": {"targets": targets, "weights": weights}}).values()
    outputs = jax.ShapeDtypeStruct((R,), jnp.float32), jax.ShapeDtypeStruct((R, V), logits.dtype)
    losses, grads = _call(_cross_entropy_kernel, (R,), 8, interpret, outputs, input_output_aliases={0: 1})(
        logits, targets.astype(jnp.int32), weights.astype(jnp.float32))
    return jnp.sum(losses), grads


def _cross_entropy_backward(interpret, grads, grad):
    return (grads * grad).astype(grads.dtype), None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _cross_entropy_kernel(logits, targets, weights, losses, grads):
    """One row, three times over: from memory the first time, then from the cache."""
    row, V, bits = _program(0), logits.shape[-1], math.log2(math.e)
    target, weight = targets[row], weights[row]
    chosen = logits[row, target].astype(jnp.float32)
    block = min(BLOCK, _power_of_two(V))
    whole, rest = V // block, _power_of_two(V % block)
    last = _Part(row, whole * block, rest, V)

    def fold(function, merge, over, zero):
        """`over` all columns, of what `merge` makes of `function` of each block."""
        add = lambda i, found: merge(found, function(_Part(row, i * block, block).read(logits)))  # noqa: E731
        found = over(lax.fori_loop(0, whole, add, jnp.full(block, zero, jnp.float32)))
        return merge(found, over(function(last.read(logits)))) if rest else found

    most = bits * fold(lambda x: x, jnp.maximum, jnp.max, -jnp.inf)
    total = most + jnp.log2(fold(lambda x: jnp.exp2(bits * x - most), jnp.add, jnp.sum, 0.0))  # in powers of two

    def give(part):
        share = jnp.exp2(bits * part.read(logits) - total)
        part.write(grads, weight * jnp.where(part.columns == target, share - 1, share))

    lax.fori_loop(0, whole, lambda i, _: give(_Part(row, i * block, block)), None)
    if rest:
        give(last)
    # where, not a product: a masked -inf must not become a nan
    losses[row] = jnp.where(weight > 0, weight * (total / bits - chosen), 0.0)


# --- norms -----------------------------------------------------------------------------------------------------------

@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def add_norm(x: jax.Array, added: jax.Array | None, scale: jax.Array, bias: jax.Array | None, centred: bool, eps: float,
             interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """(s, `layers.layer_norm`(s)) of s = x + added; where not `centred`, `layers.rms_norm`.

    Args:
      x, added: [R, D], the second None for nothing.
      scale, bias: [D], the second None for none.

    Returns:
      Two of [R, D].
    """
    return _add_norm_forward(x, added, scale, bias, centred, eps, interpret)[0]


def _add_norm_forward(x, added, scale, bias, centred, eps, interpret):
    R, D = check({"R D": {"x": x}, "D": {"scale": scale}}).values()
    each, numbers = jax.ShapeDtypeStruct((R, D), x.dtype), jax.ShapeDtypeStruct((R,), jnp.float32)
    kernel = functools.partial(_add_norm_kernel, centred=centred, eps=eps, adds=added is not None, biased=bias is not None)
    given = [a for a in (x, added, scale, bias) if a is not None]
    outputs = [each, numbers, numbers, *[each] * (added is not None)]
    y, mean, inverse, *total = _call(kernel, (R,), _warps(D), interpret, outputs)(*given)
    total = total[0] if total else x
    adds = None if added is None else ()  # of which a tree keeps the difference, as it does not that of True and False
    return (total, y), (total, adds, scale, bias, mean, inverse)


def _add_norm_backward(centred, eps, interpret, saved, grads):
    total, adds, scale, bias, mean, inverse = saved
    (R, D), count = total.shape, total.shape[0] // TURNS
    sums = jax.ShapeDtypeStruct((count, D), jnp.float32)
    kernel = functools.partial(_add_norm_backward_kernel, centred=centred, biased=bias is not None)
    outputs = [jax.ShapeDtypeStruct((R, D), total.dtype), sums, *[sums] * (bias is not None)]
    dx, *of_columns = _call(kernel, (count,), _warps(D), interpret, outputs)(total, scale, mean, inverse, *grads)
    dscale, *dbias = (jnp.sum(sums, axis=0).astype(of.dtype) for sums, of in zip(of_columns, (scale, bias)))
    return dx, None if adds is None else dx, dscale, dbias[0] if dbias else None


add_norm.defvjp(_add_norm_forward, _add_norm_backward)


def _add_norm_kernel(*refs, centred, eps, adds, biased):
    x, *refs = refs
    added = refs.pop(0) if adds else None
    scale, *refs = refs
    bias = refs.pop(0) if biased else None
    y, means, inverses, *totals = refs
    row, D = _program(0), x.shape[-1]
    part = _Part(row, 0, _power_of_two(D), D)
    values = part.read(x, 0)
    if adds:
        values = (values + part.read(added, 0)).astype(x.dtype)
        part.write(totals[0], values)
        values = values.astype(jnp.float32)
    mean = jnp.sum(values) / D if centred else jnp.float32(0)
    values = jnp.where(part.inside, values - mean, 0.0) if centred else values
    inverse = lax.rsqrt(jnp.sum(values * values) / D + eps)
    values = values * inverse * part.read(scale, 0)
    part.write(y, values + part.read(bias, 0) if biased else values)
    means[row], inverses[row] = mean, inverse


def _add_norm_backward_kernel(total, scale, means, inverses, of_total, of_y, dx, dscale, *dbias, centred, biased):
    program, D = _program(0), total.shape[-1]
    size = _power_of_two(D)
    scales = _Part(0, 0, size, D).read(scale, 0)

    def turn(i, sums):
        row = program * TURNS + i
        part, inverse = _Part(row, 0, size, D), inverses[row]
        grad, normal = part.read(of_y, 0), (part.read(total, 0) - means[row]) * inverse
        normal = jnp.where(part.inside, normal, 0.0)
        inner = grad * scales
        out = inner - normal * (jnp.sum(inner * normal) / D)
        out = out - jnp.sum(inner) / D if centred else out
        part.write(dx, out * inverse + part.read(of_total, 0))
        return sums[0] + grad * normal, sums[1] + grad if biased else sums[1]

    zeros = jnp.zeros(size, jnp.float32)
    sums = lax.fori_loop(0, TURNS, turn, (zeros, zeros))
    for ref, columns in zip((dscale, *dbias), sums):
        _Part(program, 0, size, D).write(ref, columns)


# --- GELU ------------------------------------------------------------------------------------------------------------

@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def biased_gelu(x: jax.Array, bias: jax.Array, approximate: bool, interpret: bool = False) -> jax.Array:
    """`layers.gelu` of x + bias; the backward pass keeps x alone, and adds up the gradient of the bias as it goes.

    Args:
      x: [R, F].
      bias: [F].
    """
    return _biased_gelu_forward(x, bias, approximate, interpret)[0]


def _biased_gelu_forward(x, bias, approximate, interpret):
    R, F = check({"R F": {"x": x}, "F": {"bias": bias}}).values()
    y = _call(functools.partial(_gelu_kernel, approximate=approximate), (R // GELU[0], F // GELU[1]), 4, interpret,
              jax.ShapeDtypeStruct((R, F), x.dtype))(x, bias)
    return y, (x, bias)


def _biased_gelu_backward(approximate, interpret, saved, grad):
    x, bias = saved
    (R, F), count = x.shape, x.shape[0] // (GELU[0] * TURNS)
    dx, dbias = _call(functools.partial(_gelu_backward_kernel, approximate=approximate), (count, F // GELU[1]), 4, interpret,
                      (jax.ShapeDtypeStruct((R, F), x.dtype), jax.ShapeDtypeStruct((count, F), jnp.float32)))(x, bias, grad)
    return dx, jnp.sum(dbias, axis=0).astype(bias.dtype)


biased_gelu.defvjp(_biased_gelu_forward, _biased_gelu_backward)


def _gelu_kernel(x, bias, y, *, approximate):
    at = _slice(_program(0), GELU[0]), _slice(_program(1), GELU[1])
    values = x[at].astype(jnp.float32) + bias[at[1]].astype(jnp.float32)[None]
    y[at] = (values * _gate(values, approximate)[0]).astype(y.dtype)


def _gelu_backward_kernel(x, bias, grad, dx, dbias, *, approximate):
    part, columns = _program(0), _slice(_program(1), GELU[1])
    b = bias[columns].astype(jnp.float32)[None]

    def turn(i, total):
        at = _slice(part * TURNS + i, GELU[0]), columns
        values = x[at].astype(jnp.float32) + b
        gate, slope = _gate(values, approximate)
        out = grad[at].astype(jnp.float32) * (gate + values * slope)
        dx[at] = out.astype(dx.dtype)
        return total + jnp.sum(out, axis=0)

    dbias[part, columns] = lax.fori_loop(0, TURNS, turn, jnp.zeros(GELU[1], jnp.float32))


def _gate(x, approximate):
    """(Φ(x), Φ'(x)), or what tanh has in place of Φ."""
    if approximate:
        a, b = math.sqrt(2 / math.pi), 0.044715
        gate = 1 / (1 + jnp.exp(-2 * a * (x + b * x * x * x)))  # (1 + tanh) / 2
        return gate, 2 * gate * (1 - gate) * a * (1 + 3 * b * x * x)
    bell = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * jnp.abs(x))  # to 1e-7: Abramowitz & Stegun 1964, equation 7.1.26
    sides = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * bell
    return jnp.where(x < 0, 0.5 * sides, 1 - 0.5 * sides), bell / math.sqrt(2 * math.pi)


# --- parts -----------------------------------------------------------------------------------------------------------

class _Part:
    """Some columns of a row, or of an array that is one: a power of two of them, those beyond `end` left alone."""

    def __init__(self, row, first, size, end=None):
        self.columns = first + jnp.arange(size)
        self.inside = None if end is None else self.columns < end
        self.row = row

    def read(self, ref, other=-jnp.inf):
        from jax.experimental.pallas import triton
        other = None if self.inside is None else other
        return triton.load(self._of(ref), mask=self.inside, other=other).astype(jnp.float32)

    def write(self, ref, values):
        from jax.experimental.pallas import triton
        triton.store(self._of(ref), values.astype(ref.dtype), mask=self.inside)

    def _of(self, ref):
        return ref.at[self.columns] if len(ref.shape) == 1 else ref.at[self.row, self.columns]


def _call(kernel, grid, warps, interpret, out_shape, **options):
    from jax.experimental import pallas as pl  # slow to import
    from jax.experimental.pallas import triton
    return pl.pallas_call(kernel, out_shape, grid=grid, interpret=interpret,
                          compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1), **options)


def _program(axis):
    from jax.experimental import pallas as pl
    return pl.program_id(axis)


def _slice(index, size):
    from jax.experimental import pallas as pl
    return pl.ds(index * size, size)


def _power_of_two(size: int) -> int:
    """The least one that is no smaller; 0 for none.

    >>> [_power_of_two(size) for size in (0, 1, 768, 1024)]
    [0, 1, 1024, 1024]
    """
    return size and 1 << (size - 1).bit_length()


def _warps(size: int) -> int:
    """For 16 numbers of a row a thread."""
    return min(max(_power_of_two(size) // 512, 1), 32)
