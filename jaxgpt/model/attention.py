"""Attention: who may look at whom, and the weighted sum. Dimension key in `transformer.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check


def attention_mask(query_positions: jax.Array, key_positions: jax.Array, *, window: jax.Array | int | None = None,
                   query_segments: jax.Array | None = None, key_segments: jax.Array | None = None) -> jax.Array:
    """True where a query may look at a key.

        allowed = key ≤ query  and  key > query - window  and  same segment

    Args:
      query_positions: int [B, T] (or [1, T]).
      key_positions: int [B, S] (or [1, S]).
      window: how many positions back, its own included, a query sees; None for all.
      query_segments, key_segments: int [B, T], [B, S]: packed documents do not see each other; both or none.

    Returns:
      bool [B, T, S].

    >>> attention_mask(jnp.arange(3)[None], jnp.arange(3)[None], window=2)[0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]], dtype=int32)
    """
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    allowed = key <= query
    if window is not None:
        allowed &= key > query - window
    if query_segments is not None:
        allowed &= query_segments[:, :, None] == key_segments[:, None, :]
    return allowed


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *,
              scale: float | None = None, with_weights: bool = False):
    """softmax(q kᵀ / √H + mask) v, each key-value head shared by G = N/K query heads.

    Source: Vaswani et al. 2017, equation 1; grouped queries: Ainslie et al. 2023, "GQA". The softmax is in float32.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H], N divisible by K.
      mask: bool [B, T, S] (or [1, T, S]), True where a query may look.
      scale: of the products; 1/√H where None.
      with_weights: also return the weights.

    Returns:
      [B, T, N, H]; with `with_weights`, also the weights [B, N, T, S].
    """
    sizes = check({"B T N H": {"q": q}, "B S K H": {"k": k, "v": v}, "_ T S": {"mask": mask}})
    B, T, N, H, S, K = (sizes[name] for name in "BTNHSK")
    scale = H ** -0.5 if scale is None else scale
    q_BTKGH = (q * scale).reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k, preferred_element_type=jnp.float32)
    scores_BKGTS = jnp.where(mask[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
    out_BTNH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v.dtype), v).reshape(B, T, N, H)
    return (out_BTNH, weights_BKGTS.reshape(B, N, T, S)) if with_weights else out_BTNH
