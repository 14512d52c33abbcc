"""From logits to tokens: temperature, top-k, top-p, min-p, and the draw itself. Arrays in, arrays out.

Every filter here keeps the tokens whose logit is at least some threshold, so a filter is the search for that
threshold, and several filters keep what lies above the highest of theirs. The search goes through the bits of a
float from the highest to the lowest, 32 sums over the vocabulary with no sort, which makes k and p ordinary arrays:
one number for the batch or one for each row.

Dimensions: B batch, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.core.shapes import check

BLOCK = 64  # the draw finds a block of this many tokens first, then the token inside it


def filter_logits(logits: jax.Array, *, temperature=1.0, top_k=None, top_p=None, min_p=None) -> jax.Array:
    """The logits of the distribution to sample from: divided by the temperature, -inf for tokens that are left out.

    The filters apply in the order temperature, top-k, top-p, min-p, each to what the one before has kept. Tokens
    that tie with the last one kept are kept too.

      top-k keeps the k most probable tokens;
      top-p keeps the smallest set of most probable tokens with sum p(v) >= top_p;
      min-p keeps tokens with p(v) >= min_p * max p.

    Temperature 0 is the limit T -> 0: only the largest logits are kept, undivided, whatever the other filters say.

    Source: top-k: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1; top-p: Holtzman et al. 2020,
    "The Curious Case of Neural Text Degeneration", equations 2-3; min-p: Nguyen et al. 2024, "Turning Up the Heat".

    Args:
      logits: [B, V].
      temperature: a number or [B].
      top_k: a number or [B]; None, or 0 in a row, keeps all.
      top_p: a number or [B] in (0, 1]; None or 1 keeps all.
      min_p: a number or [B] in [0, 1); None or 0 keeps all.

    Returns:
      [B, V] float32.

    Raises:
      ValueError: logits are not [B, V].

    >>> filter_logits(jnp.array([[0.0, 1.0, 2.0, 3.0]]), top_p=0.8).tolist()  # p: 0.03, 0.09, 0.24, 0.64
    [[-inf, -inf, 2.0, 3.0]]
    """
    check("B V", logits=logits)
    logits = logits.astype(jnp.float32)
    temperature = _per_row(temperature)
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    kept = scaled
    if top_k is not None:
        k = jnp.where(_per_row(top_k) > 0, _per_row(top_k), jnp.inf)
        kept = _keep(kept, largest_threshold(scaled, jnp.ones_like(scaled), k))
    if top_p is not None:
        p = jnp.where(_per_row(top_p) < 1, _per_row(top_p), jnp.inf)
        kept = _keep(kept, largest_threshold(scaled, jax.nn.softmax(kept, axis=-1), p))
    if min_p is not None:
        kept = _keep(kept, top + jnp.log(_per_row(min_p)))
    return jnp.where(greedy, _keep(scaled, top), kept)


def sample(rng: jax.Array, logits: jax.Array, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Draws one token a row from the filtered distribution, by inverting its cumulative sum at one uniform number.

    A row's token depends on its own key, logits and options only, so with one key a row (`row_keys`) what a request
    draws does not depend on its neighbours. With temperature 0 it is the first of the largest logits.

    Args:
      rng: one key for the batch, or keys [B].
      logits: [B, V].
      temperature, top_k, top_p, min_p: as in `filter_logits`.

    Returns:
      tokens [B] int32; logprobs [B] float32: log-probability under the distribution that was really sampled from,
      tempered and filtered; at temperature 0, where that would be 0, under the model's own distribution.

    Raises:
      ValueError: logits are not [B, V].

    >>> tokens, logprobs = sample(jax.random.key(0), jnp.array([[1.0, 0.0, 3.0]]), temperature=0)
    >>> tokens.tolist(), f"{logprobs[0]:.3f}"
    ([2], '-0.170')
    """
    rows = check("B V", logits=logits)["B"]
    kept = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if rng.ndim == 0:
        uniform = jax.random.uniform(rng, (rows,))
    else:
        uniform = jax.vmap(jax.random.uniform)(rng)
    greedy = _per_row(temperature) == 0
    uniform = jnp.where(greedy[..., 0], 0.0, uniform)
    tokens = invert_cumulative(jnp.exp(kept - jnp.max(kept, axis=-1, keepdims=True)), uniform)
    logits = jnp.where(greedy, logits.astype(jnp.float32), kept)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def greedy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `sample` gives at temperature 0, in a fraction of the time: the first of the largest logits.

    Args:
      logits: [B, V].

    Returns:
      tokens [B] int32; logprobs [B] float32.
    """
    V = check("B V", logits=logits)["V"]
    logits = logits.astype(jnp.float32)
    top = jnp.max(logits, axis=-1, keepdims=True)
    # argmax is slow on a CPU; V - 1 where nothing is equal to anything, as of logits that are not numbers
    tokens = jnp.min(jnp.where(logits == top, jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1)
    return tokens, top[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def row_keys(rng: jax.Array, requests: jax.Array, positions: jax.Array) -> jax.Array:
    """A key for each row that is a function of (rng, the request's number, the position of the token it will draw).

    Args:
      rng: one key.
      requests: [B] integers that name the requests.
      positions: [B] integers.

    Returns:
      [B] keys.
    """
    check("B", requests=requests, positions=positions)

    def key(request, position):
        return jax.random.fold_in(jax.random.fold_in(rng, request), position)
    return jax.vmap(key)(requests, positions)


def largest_threshold(values: jax.Array, weights: jax.Array, target) -> jax.Array:
    """The largest c with sum_v weights[v] * (values[v] >= c) >= target; -inf where no c reaches the target.

    Args:
      values, weights: [B, V]; weights are not negative.
      target: a number, or [B, 1].

    Returns:
      [B, 1] float32; always one of the row's values or -inf.

    >>> largest_threshold(jnp.array([[3., 1., 2.]]), jnp.ones((1, 3)), 2).tolist()
    [[2.0]]
    """
    check("B V", values=values, weights=weights)
    order = _ordered(values)

    def reaches(threshold):
        return jnp.sum(jnp.where(order >= threshold, weights, 0), axis=-1, keepdims=True) >= target

    def add_bit(step, threshold):
        higher = threshold | lax.shift_left(jnp.uint32(1), jnp.uint32(31) - step.astype(jnp.uint32))
        return jnp.where(reaches(higher), higher, threshold)

    threshold = lax.fori_loop(0, 32, add_bit, jnp.zeros((values.shape[0], 1), jnp.uint32))
    return _value(threshold)


def invert_cumulative(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws from the distribution proportional to `weights`: the first v with w_0 + ... + w_v > uniform * sum_v w_v.

    The sum runs over blocks of tokens and then inside one block: less work than over the whole row, and less
    rounding. A token of weight 0 is never drawn.

    Args:
      weights: [B, V], not negative, at least one positive in each row.
      uniform: [B] in [0, 1).

    Returns:
      [B] int32.

    >>> invert_cumulative(jnp.array([[1., 2., 1.]] * 3), jnp.array([0.2, 0.25, 0.8])).tolist()
    [0, 1, 2]
    """
    sizes = check({"B V": {"weights": weights}, "B": {"uniform": uniform}})
    rows, block = sizes["B"], min(BLOCK, sizes["V"])
    blocks = jnp.pad(weights, ((0, 0), (0, -sizes["V"] % block))).reshape(rows, -1, block)
    sums = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = (uniform * ends[:, -1])[:, None]
    index = _first_beyond(ends, sums, target)[:, None]
    inside = jnp.take_along_axis(blocks, index[..., None], axis=1)[:, 0]
    before = jnp.take_along_axis(ends - sums, index, axis=1)
    return index[:, 0] * block + _first_beyond(before + jnp.cumsum(inside, axis=-1), inside, target)


def _first_beyond(ends, weights, target):
    """The first index with a positive weight and ends > target; where rounding leaves none, the last positive one."""
    indices = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    positive = weights > 0
    first = jnp.min(jnp.where(positive & (ends > target), indices, weights.shape[-1]), axis=-1)
    return jnp.minimum(first, jnp.max(jnp.where(positive, indices, 0), axis=-1))


def _per_row(option):
    """A number or [B] as something that broadcasts against [B, V]."""
    return jnp.asarray(option, jnp.float32)[..., None]


def _keep(logits, threshold):
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def _ordered(values):
    """float32 as uint32 in the same order: flip the sign bit of positive numbers, all bits of negative ones."""
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _value(order):
    """The float32 whose place in that order is `order`; 0, the place below every number, becomes -inf."""
    bits = jnp.where(order >> 31 == 1, order & jnp.uint32((1 << 31) - 1), ~order)
    return jnp.where(order == 0, -jnp.inf, lax.bitcast_convert_type(bits, jnp.float32))
