"""Attention for sequences that lie on several devices: keys and values travel round a ring.

Dimension key in `transformer.py`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.core import sharding
from jaxgpt.model.layers import spread_kv_heads

_CHUNK = 512  # keys whose scores are in memory at once
_NEVER = -1e30  # a score below all others, finite so that differences are numbers


def ring_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, window: jax.Array | int | None = None,
                   segment_ids: jax.Array | None = None) -> jax.Array:
    """Causal attention, T / P positions on each device: its queries stay, keys and values visit every device.

        m ← max(m, s),   l ← Σ exp(s - m),   o ← Σ exp(s - m) v,   out = o / l        s = q kᵀ / √H, block by block

    Neither pass holds more than one block of scores; the backward pass computes them again from log Σ exp(s) and sends
    the gradients of keys and values round with them. Blocks that no query sees are skipped; as positions lie in order,
    the device of the last ones works at every turn and that of the first at one only (the shares are not balanced).
    On one device this is attention in blocks.

    Source: Liu, Zaharia & Abbeel 2023, "Ring Attention with Blockwise Transformers", algorithm 1; the softmax over
    blocks: Milakov & Gimelshein 2018, algorithm 3. In float32, products of the arguments' type.

    Args:
      q: [B, T, N, H].
      k, v: [B, T, K, H].
      window: how many positions back, its own included, a query sees; None for all. It may be traced.
      segment_ids: int [B, T], or None.

    Returns:
      [B, T, N, H]; named "attention", with its log-sum-exp, for remat policies.
    """
    B, T, N, _ = q.shape
    k, v = spread_kv_heads(q, k, v)
    segments = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    window = jnp.asarray(2 ** 30 if window is None else window, jnp.int32)
    ring = _Ring(sharding.mesh_axes("seq", T), sharding.parts("seq", T))
    heads = ("batch", "seq", "heads", None)
    return sharding.on_shards(functools.partial(_attend, ring), heads, heads, heads, ("batch", "seq"), ())(
        q, k, v, segments, window)


@dataclasses.dataclass(frozen=True)
class _Ring:
    """P devices in a ring along some mesh axes."""

    axes: tuple[str, ...]
    parts: int

    def rank(self):
        return lax.axis_index(self.axes) if self.parts > 1 else 0

    def shift(self, tree):
        """What each device holds, handed to the next."""
        pairs = [(i, (i + 1) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axes, pairs), tree) if self.parts > 1 else tree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: _Ring, q, k, v, segments, window):
    return _forward(ring, q, k, v, segments, window)[0]


def _forward(ring, q, k, v, segments, window):
    B, T, N, H = q.shape
    q_BTKGH, see = _queries(ring, q, k, segments, window)

    def add(state, block, start):
        m, total, out = state
        key, value, key_segments = block
        scores, allowed = _scores(q_BTKGH, key), see(key_segments, start)
        scores = jnp.where(allowed, scores, _NEVER)
        new = jnp.maximum(m, scores.max(-1))
        weights, scale = jnp.where(allowed, jnp.exp(scores - new[..., None]), 0.0), jnp.exp(m - new)
        out = out * scale[..., None] + jnp.einsum("BKGTS,BSKH->BKGTH", weights.astype(v.dtype), value,
                                                  preferred_element_type=jnp.float32)
        return new, total * scale + weights.sum(-1), out

    def visit(state, held, turn):
        return _blocks(lambda state, block, start: (add(state, block, start), ()), (), state, held,
                       _first(ring, turn, T), ring.rank() * T, T, window)[0]

    def step(carry, turn):
        state, held = carry
        return (visit(state, held, turn), ring.shift(held)), None

    shape = (B, k.shape[2], N // k.shape[2], T)
    state = jnp.full(shape, _NEVER), jnp.zeros(shape), jnp.zeros((*shape, H))
    (state, held), _ = lax.scan(step, (state, (k, v, segments)), jnp.arange(ring.parts - 1))
    m, total, out = visit(state, held, ring.parts - 1)
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)
    out, lse = (checkpoint_name(a, "attention") for a in (out, m + jnp.log(total)))
    return out, (q, k, v, segments, window, out, lse)


def _backward(ring, residuals, grad):
    q, k, v, segments, window, out, lse = residuals
    B, T, N, H = q.shape
    q_BTKGH, see = _queries(ring, q, k, segments, window)
    grad_BTKGH = grad.reshape(q_BTKGH.shape)
    delta = jnp.sum(grad.astype(jnp.float32) * out, -1).reshape(q_BTKGH.shape[:-1]).transpose(0, 2, 3, 1)

    def add(dq, block, start):
        key, value, key_segments = block
        weights = jnp.where(see(key_segments, start), jnp.exp(_scores(q_BTKGH, key) - lse[..., None]), 0.0)
        dscores = (weights * (_scores(grad_BTKGH, value) - delta[..., None])).astype(q.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        return (dq + product("BKGTS,BSKH->BTKGH", dscores, key),
                (product("BKGTS,BTKGH->BSKH", dscores, q_BTKGH),
                 product("BKGTS,BTKGH->BSKH", weights.astype(q.dtype), grad_BTKGH)))

    def step(carry, turn):
        dq, held, dheld = carry
        nothing = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        dq, found = _blocks(add, nothing, dq, held, _first(ring, turn, T), ring.rank() * T, T, window)
        return (dq, ring.shift(held), ring.shift(jax.tree.map(jnp.add, dheld, found))), None

    zeros = jnp.zeros(q_BTKGH.shape), (k, v, segments), (jnp.zeros(k.shape), jnp.zeros(v.shape))
    (dq, _, (dk, dv)), _ = lax.scan(step, zeros, jnp.arange(ring.parts))
    dq = (dq * H ** -0.5).reshape(q.shape)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)


def _queries(ring, q, k, segments, window):
    """The queries by key-value head, scaled, and which keys of a block they see."""
    B, T, N, H = q.shape
    positions = ring.rank() * T + jnp.arange(T)

    def see(key_segments, start):
        key = start + jnp.arange(key_segments.shape[1])
        near = (key <= positions[:, None]) & (key > positions[:, None] - window)
        return (near & (segments[:, :, None] == key_segments[:, None, :]))[:, None, None]

    return (q * H ** -0.5).reshape(B, T, k.shape[2], N // k.shape[2], H), see


def _scores(q_BTKGH, k_BSKH):
    return jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)


def _first(ring, turn, T):
    """The first position of the block that a device holds at a turn."""
    return (ring.rank() - turn) % ring.parts * T


def _blocks(add, nothing, state, held, start, first_query, T, window):
    """Folds `add(state, block, start) -> (state, found)` over blocks of what is held; `nothing` where no query sees one.

    `found` and `nothing` are arrays by position [B, T, ...], of which each block gives its own part.
    """
    size = next(size for size in range(min(T, _CHUNK), 0, -1) if T % size == 0)
    split = lambda a: a.reshape(a.shape[0], T // size, size, *a.shape[2:]).swapaxes(0, 1)  # noqa: E731
    join = lambda a: a.swapaxes(0, 1).reshape(a.shape[1], T, *a.shape[3:])  # noqa: E731

    def step(state, scanned):
        block, none, first = scanned
        seen = (first < first_query + T) & (first + size > first_query - window + 1)
        return lax.cond(seen, lambda: add(state, block, first), lambda: (state, none))

    firsts = start + size * jnp.arange(T // size)
    state, found = lax.scan(step, state, (*jax.tree.map(split, (held, nothing)), firsts))
    return state, jax.tree.map(join, found)
