"""Attention: who may look at whom, the weighted sum, and the choice of a kernel. Dimension key in `transformer.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.shapes import check
from jaxgpt.model.layers import product, spread_kv_heads
from jaxgpt.model.ring import ring_attention
from jaxgpt.model.splash import splash_attention


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
    scores_BKGTS = product("BTKGH,BSKH->BKGTS", q_BTKGH, k)
    scores_BKGTS = jnp.where(mask[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
    out_BTNH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v.dtype), v).reshape(B, T, N, H)
    return (out_BTNH, weights_BKGTS.reshape(B, N, T, S)) if with_weights else out_BTNH


def self_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, windows: tuple[int | None, ...] = (None,),
                   which: jax.Array | int = 0, segment_ids: jax.Array | None = None,
                   implementation: str = "auto") -> jax.Array:
    """Causal attention of a sequence to itself, by the kernel that suits the devices: one result, several ways.

    Source: "splash" is block-sparse FlashAttention (Dao et al. 2022) in Pallas, see `splash.py`; "ring" is Liu et al.
    2023, see `ring.py`; "cudnn" is the library's fused kernel; "xla" is `attention` above, which holds all weights
    [B, N, T, T] at once. All of them add up in float32.

    Args:
      q: [B, T, N, H].
      k, v: [B, T, K, H].
      windows: how far back a query sees, itself included; None for all. One for each kind of layer.
      which: index into `windows`; may be traced, as in a loop over layers.
      segment_ids: int [B, T]; tokens of different segments do not see each other.
      implementation: "auto", "splash", "ring", "cudnn" or "xla"; `choose` says what "auto" takes.

    Returns:
      [B, T, N, H].

    Raises:
      UserError: an implementation was asked for by name that cannot do this case.
    """
    sizes = check({"B T N H": {"q": q}, "B T K H": {"k": k, "v": v},
                   "B T": {} if segment_ids is None else {"segment_ids": segment_ids}})
    T, H = sizes["T"], sizes["H"]
    platform = sharding.platform()
    chosen = choose(implementation, platform=platform, parts=sharding.parts("seq", T), T=T, H=H, dtype=q.dtype,
                    windows=windows, segments=segment_ids is not None)
    if chosen == "splash":  # its mask is part of the kernel, so a loop over layers holds a kernel for each window
        kernels = [functools.partial(splash_attention, window=window, interpret=platform == "cpu")
                   for window in windows]
        if len(kernels) == 1:
            return kernels[0](q, k, v, segment_ids)
        return jax.lax.switch(which, kernels, q, k, v, segment_ids)
    if chosen == "cudnn":
        kernel = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
        heads = ("batch", None, "heads", None)
        k, v = spread_kv_heads(q, k, v)
        return checkpoint_name(sharding.on_shards(kernel, heads, heads, heads)(q, k, v), "attention")
    window = pick_window(windows, which)
    if chosen == "ring":
        return ring_attention(q, k, v, window=window, segment_ids=segment_ids)
    index = jnp.arange(T)[None]
    mask = attention_mask(index, index, window=window, query_segments=segment_ids, key_segments=segment_ids)
    return checkpoint_name(attention(q, k, v, mask), "attention")


def choose(implementation: str, *, platform: str, parts: int = 1, T: int, H: int, dtype,
           windows: tuple[int | None, ...] = (None,), segments: bool = False) -> str:
    """The implementation for a case.

    "auto" takes, in this order: on TPU splash, where it can take the shape; with positions over several devices the
    ring; on GPU cuDNN, where it is exact (without segments, see `Pretrain.attend_across`); on GPU beyond 2,048 positions
    the ring, which never holds all weights; XLA.

    Args:
      implementation: as in `self_attention`.
      platform: "tpu", "gpu" or "cpu".
      parts: over how many devices the positions are split.
      T, H, dtype: of the queries.
      windows: of the layers.
      segments: whether there are segment ids.

    Raises:
      UserError: one that was asked for by name cannot do this case.

    >>> [choose("auto", platform=name, T=1024, H=64, dtype=jnp.bfloat16) for name in ("tpu", "gpu", "cpu")]
    ['splash', 'cudnn', 'xla']
    >>> choose("auto", platform="tpu", T=1000, H=64, dtype=jnp.bfloat16)
    'xla'
    >>> choose("auto", platform="gpu", T=8192, H=128, dtype=jnp.bfloat16, segments=True)
    'ring'
    """
    refusals = {
        "splash": _first((
            (platform == "gpu", "it runs on TPU (and, slowly, on a CPU for tests)"),
            (T % (128 * parts), f"it takes a multiple of 128 positions a device, not {T} over {parts}"))),
        "cudnn": _first((
            (platform != "gpu", f"it runs on GPU, and these devices are of platform {platform}"),
            (segments, "it would ignore segment_ids"),
            (any(window is not None for window in windows), f"it is not used with windows={windows}"),
            (parts > 1, "positions lie on several devices; the ring does that"),
            (jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16), f"it takes bfloat16 or float16, not {dtype}"),
            (H % 8 or H > 128, f"it takes head sizes up to 128 that 8 divides, not {H}")))}
    if implementation == "auto":
        if platform == "tpu" and not refusals["splash"]:
            return "splash"
        if parts > 1 or (platform == "gpu" and refusals["cudnn"] and T > 2048):
            return "ring"
        return "xla" if refusals["cudnn"] else "cudnn"
    if refusals.get(implementation):
        raise UserError(f"model.attention='{implementation}': {refusals[implementation]}; 'auto' chooses what can")
    return implementation


def pick_window(windows: tuple[int | None, ...], which) -> jax.Array | int | None:
    """The window of a layer for `attention_mask`: static where all are one or `which` is an int."""
    if len(windows) == 1 or isinstance(which, int):
        return windows[which if isinstance(which, int) else 0]
    return jnp.array([window or 2 ** 30 for window in windows], jnp.int32)[which]


def _first(cases) -> str:
    return next((reason for holds, reason in cases if holds), "")
