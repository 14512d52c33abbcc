"""The transformer: Linen modules own parameters and the stacking of layers, everything else is functions.

Dimension key of the whole project:
  B batch   T position   S cache position   L layer   D width   F mlp   N query heads   K key-value heads   G = N/K
  H head size   V vocabulary   E experts   P prompts   R rollouts per prompt

The face of the model is pure:
  init(rng, config) -> params
  hidden(params, tokens, *, config, ...) -> (x, cache, aux)
  unembed(params, x, *, config) -> logits
  apply(params, tokens, *, config, ...) -> logits
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import platform, shard
from jaxgpt.model import experts, kernels, remat
from jaxgpt.model.attention import attention, attention_mask, pick_window, self_attention
from jaxgpt.model.config import Config, rope
from jaxgpt.model.kv_cache import Cache, read_cache, write_cache
from jaxgpt.model.layers import activate, layer_norm, linear, rms_norm, rotary, soft_cap


class Transformer(nn.Module):
    """Parameters and stacking; called through the functions below."""

    config: Config
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, tokens, positions, segment_ids, cache):
        config = self.config
        std = config.init_std or 1.0
        x = self.param("embed", _init(("vocab", "embed"), std), (config.vocab_size, config.width))[tokens]
        if config.position == "learned":
            table = self.param("positions", _init(("position", "embed"), std), (config.context, config.width))
            x = x + table[positions].astype(jnp.promote_types(table.dtype, config.dtype))
        # first as the table is split, then as the batch is: in one go the compiler would gather the whole batch
        x = shard(shard(x.astype(config.dtype), "lookup", "seq", "embed"), "batch", "seq", None)
        if config.embed_norm:
            x = rms_norm(x, eps=config.norm_eps)
        if cache is None:
            stack = nn.scan(_remat(config), variable_axes={"params": 0}, split_rngs={"params": True},
                            length=config.layers, in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0), out_axes=0,
                            unroll=config.unroll, metadata_params={nn.PARTITION_NAME: "layers"})
            x, (_, captured) = stack(config, self.capture, name="layers")(x, positions, segment_ids, None,
                                                                          _which(config))
        else:  # a loop in Python: a scan would copy the whole cache in and out at every token
            layers, block = self.get_variable("params", "layers"), Block(config, self.capture, parent=None)
            updated, seen = [], []
            for i, (slots, window) in enumerate(zip(cache, _per_layer(config))):
                layer = layers[i] if isinstance(layers, tuple) else jax.tree.map(lambda leaf: leaf[i], layers)
                x, (slots, inside) = block.apply({"params": layer}, x, positions, None, slots,
                                                  _windows(config).index(window))
                updated.append(slots)
                seen.append(inside)
            cache, captured = tuple(updated), jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
        _, x = _Norm(config, cache is not None, name="final_norm")(x)
        if not config.tied:
            std = 0.0 if config.zero_init_outputs else config.init_std or config.width ** -0.5
            self.param("head", _init(("embed", "vocab"), std), (config.width, config.vocab_size))
        return x, cache, captured


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    config: Config
    capture: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x, positions, segment_ids, cache, which):
        captured = {}
        forward_only = cache is not None
        x, h = _Norm(self.config, forward_only, name="attention_norm")(x)
        h, cache, weights = Attention(self.config, "attention" in self.capture, name="attention")(
            h, positions, segment_ids, cache, which)
        x, h = _Norm(self.config, forward_only, name="mlp_norm")(x, h)
        if self.config.experts is None:
            h = Mlp(self.config, name="mlp")(h)
        else:
            h, router = Experts(self.config, name="mlp")(h, take_all=cache is not None)
        x = shard(x + h, "batch", "seq", None)
        if "router" in self.capture:
            captured["router"] = router
        if "attention" in self.capture:
            captured["attention"] = weights
        if "hidden" in self.capture:
            captured["hidden"] = x
        return x, (cache, captured)


class Attention(nn.Module):
    """Grouped-query attention over the sequence itself, or over a cache that it extends."""

    config: Config
    with_weights: bool = False

    @nn.compact
    def __call__(self, x, positions, segment_ids, cache, which):
        config = self.config
        N, K, H = config.heads, config.K, config.H
        B, T, _ = x.shape
        if self.has_variable("params", "qkv"):  # as `unstack` lays weights out
            merged = self.get_variable("params", "qkv")
            q, k, v = jnp.split(linear(x, **merged), [N * H, (N + K) * H], axis=-1)
        else:
            q = _Linear(config, N * H, ("embed", "heads"), bias=config.qkv_bias, name="q")(x)
            k = _Linear(config, K * H, ("embed", "kv_heads"), bias=config.qkv_bias, name="k")(x)
            v = _Linear(config, K * H, ("embed", "kv_heads"), bias=config.qkv_bias, name="v")(x)
        q, k, v = q.reshape(B, T, N, H), k.reshape(B, T, K, H), v.reshape(B, T, K, H)
        if config.qk_norm:
            q = rms_norm(q, self._scale("q_norm"), eps=config.norm_eps)
            k = rms_norm(k, self._scale("k_norm"), eps=config.norm_eps)
        if config.position == "rotary":
            frequencies, scale = rope(config)
            q, k = (rotary(a, positions, theta=config.rope_theta, frequencies=frequencies, scale=scale) for a in (q, k))
        q = shard(q, "batch", "seq", "heads", None)
        k, v = (shard(a, "batch", "seq", "kv_heads", None) for a in (k, v))
        q, k, v = (checkpoint_name(a, "qkv") for a in (q, k, v))
        weights, windows = None, _windows(config)
        if cache is None and not self.with_weights:
            out = self_attention(q, k, v, windows=windows, which=which, segment_ids=segment_ids,
                                 implementation=config.attention)
        else:
            if cache is not None:
                cache = {"k": write_cache(cache["k"], k, positions), "v": write_cache(cache["v"], v, positions)}
                k, v, index = read_cache(cache["k"], x.dtype), read_cache(cache["v"], x.dtype), positions
            else:
                index = jnp.arange(T)[None]
            mask = attention_mask(index, jnp.arange(k.shape[1])[None], window=pick_window(windows, which),
                                  query_segments=segment_ids, key_segments=segment_ids)
            out, weights = attention(q, k, v, mask, with_weights=True)
        out = _Linear(config, config.width, ("heads", "embed"), output=True, name="o")(out.reshape(B, T, N * H))
        return checkpoint_name(out, "attention_out"), cache, weights

    def _scale(self, name):
        config = self.config
        return self.param(name, _ones(("head_dim",)), (config.H,)) if config.norm_scale else None


class Mlp(nn.Module):
    """The feed-forward half of a layer."""

    config: Config

    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = None
        if self.has_variable("params", "up_gate"):  # as `unstack` lays weights out
            h, gate = jnp.split(linear(x, **self.get_variable("params", "up_gate")), 2, axis=-1)
        else:
            h, bias = _Linear(config, config.F, ("embed", "mlp"), name="up")(x, bias_apart=True)
            h = checkpoint_name(h, "mlp_up")
            if config.activation == "swiglu":
                gate = checkpoint_name(_Linear(config, config.F, ("embed", "mlp"), name="gate")(x), "mlp_up")
            if "gelu" in config.activation and kernels.suit(h, config.kernels, config.F):
                h = kernels.biased_gelu_of_tokens(h, bias, approximate=config.activation == "gelu_tanh")
                return self._down(h)
            h = h if bias is None else h + bias.astype(h.dtype)
        return self._down(shard(activate(config.activation, h, gate), "batch", "seq", "mlp"))

    def _down(self, h):
        return _Linear(self.config, self.config.width, ("mlp", "embed"), output=True, name="down")(h)


class Experts(nn.Module):
    """The feed-forward half of a layer as a mixture: each token goes to the experts that its router chooses."""

    config: Config

    @nn.compact
    def __call__(self, x, take_all):
        config = self.config
        D, F = config.width, config.F
        router = _Matrix(config, (D, config.experts), ("embed", "router"), name="router")()
        logits = linear(x.astype(jnp.float32), router)
        weights, chosen = experts.route(logits, config.experts_per_token, normalize=config.norm_topk)
        inward = ("up", "gate") if config.activation == "swiglu" else ("up",)
        matrices = {name: _Matrix(config, (config.experts, D, F), ("expert", "embed", "mlp"), name=name)()
                    for name in inward}
        matrices["down"] = _Matrix(config, (config.experts, F, D), ("expert", "mlp", "embed"), True, name="down")()
        matrices = {name: matrix.astype(x.dtype) for name, matrix in matrices.items()}
        if take_all or config.capacity_factor is None:
            return experts.dropless(x, weights, chosen, matrices, activation=config.activation), logits
        return experts.capacity_bound(x, weights, chosen, matrices, places_each=_capacity(config, x.shape[1]),
                                      activation=config.activation), logits


class _Linear(nn.Module):
    config: Config
    features: int
    axes: tuple[str, str]
    output: bool = False  # the last projection of a block
    bias: bool | None = None  # as the config says where None

    @nn.compact
    def __call__(self, x, bias_apart=False):
        config = self.config
        columns = self.has_variable("params", "columns")  # as `unstack` has it
        weight = self.get_variable("params", "columns") if columns else self.param(
            "weight", _init(self.axes, _std(config, x.shape[-1], self.output)), (x.shape[-1], self.features))
        biased = config.bias if self.bias is None else self.bias
        bias = self.param("bias", _init((self.axes[1],), 0.0), (self.features,)) if biased else None
        y = linear(x, weight, None if bias_apart else bias, columns=columns)
        if self.has_variable("params", "lora"):  # an adapter, see `lora.py`
            adapter = self.get_variable("params", "lora")
            y = y + linear(linear(x, adapter["a"]), adapter["b"])
        return (y, bias) if bias_apart else y


class _Matrix(nn.Module):
    """A weight alone: [.., rows, columns]."""

    config: Config
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    output: bool = False

    @nn.compact
    def __call__(self):
        return self.param("weight", _init(self.axes, _std(self.config, self.shape[-2], self.output)), self.shape)


class _Norm(nn.Module):
    config: Config
    forward_only: bool

    @nn.compact
    def __call__(self, x, added=None):
        """(x + added, its norm)."""
        config, D, centred = self.config, x.shape[-1], self.config.norm == "layernorm"
        scale = self.param("scale", _ones(("norm",)), (D,)) if config.norm_scale else None
        bias = self.param("bias", _init(("norm",), 0.0), (D,)) if centred and config.bias else None
        if kernels.suit(x, config.kernels, D, 1 if self.forward_only else kernels.ROWS):
            return kernels.add_norm_of_tokens(x, added, scale, bias, centred=centred, eps=config.norm_eps)
        x = x if added is None else shard(x + added, "batch", "seq", None)
        if centred:
            return x, layer_norm(x, scale, bias, eps=config.norm_eps)
        return x, rms_norm(x, scale, eps=config.norm_eps)


# --- the pure face ---------------------------------------------------------------------------------------------------

def init(rng: jax.Array, config: Config) -> Any:
    """Draws the parameters: a tree of float32 arrays, those of the layers stacked on a first axis L."""
    return nn.meta.unbox(_boxed(rng, config))


def logical_axes(config: Config) -> Any:
    """The logical axes of each parameter, in a tree like theirs: ("layers", "embed", "heads") and so on."""
    boxed = jax.eval_shape(lambda: _boxed(jax.random.key(0), config))
    return jax.tree.map(lambda spec: tuple(spec), nn.get_partition_spec(boxed),
                        is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))


def hidden(params: Any, tokens: jax.Array, *, config: Config, positions: jax.Array | None = None,
           segment_ids: jax.Array | None = None, cache: Cache | None = None,
           capture: tuple[str, ...] = ()) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
    """Runs the layers: tokens -> the representation that `unembed` turns into logits.

    Args:
      params: from `init`.
      tokens: int [B, T].
      config: what the model is.
      positions: int [B, T]; 0..T-1 where None. With a cache, also the slots that are written.
      segment_ids: int [B, T]; tokens of different segments do not see each other. Not with a cache.
      cache: from `kv_cache.init_cache`; tokens then also see what earlier calls wrote. A query at position p sees the slots up
        to p, so what lies behind the end of a padded prompt is overwritten before anyone sees it.
      capture: what to return of the inside: "attention" [L, B, N, T, S], "hidden" [L, B, T, D] and, where there are
        experts, "router" [L, B, T, E], the logits by which tokens choose.

    Returns:
      (x [B, T, D], the cache extended (None without one), {name: captured}).

    Raises:
      ValueError: shapes do not fit, or the sequence is longer than the context.
    """
    B, T = check("B T", tokens=tokens).values()
    if T > config.context:
        raise ValueError(f"tokens: {T} positions, but the model's context is {config.context}")
    if cache is not None and (segment_ids is not None or positions is None):
        raise ValueError("cache: needs positions and takes no segment_ids")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    model = Transformer(config, tuple(capture))
    return model.apply({"params": params}, tokens, positions, segment_ids, cache)


def unembed(params: Any, x: jax.Array, *, config: Config) -> jax.Array:
    """Logits of the next token: float32 [..., V] from x [..., D]."""
    columns = config.tied and platform() == "cpu"  # the embedding as it lies
    logits = linear(x, params["embed"] if columns else head(params, config=config), dtype=jnp.float32, columns=columns)
    return soft_cap(logits, config.logit_soft_cap)


def head(params: Any, *, config: Config) -> jax.Array:
    """The matrix [D, V] that makes logits: a parameter of its own, or the embedding, transposed."""
    return params["embed"].T if config.tied else params["head"]


def apply(params: Any, tokens: jax.Array, *, config: Config, **options) -> jax.Array:
    """Logits [B, T, V] of tokens [B, T]: `unembed` of `hidden`; options as in `hidden`."""
    return unembed(params, hidden(params, tokens, config=config, **options)[0], config=config)


def count_params(config: Config, *, active: bool = False) -> int:
    """How many parameters the model has; `active`: that a token meets, k of the E experts."""
    return _count(jax.eval_shape(lambda: init(jax.random.key(0), config)), config, active)


def flops_per_token(config: Config, length: int) -> float:
    """Floating-point operations to train on one token: 6 for each weight in a product, and causal attention.

        6 · (weights of layers and head) + 6 · Σ_layers N · H · (positions seen on average, both products)

    Of experts, the weights are those that a token meets.

    Source: Kaplan et al. 2020, table 1, with the half of the attention matrix that a causal model computes.
    """
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    weights = _count(shapes["layers"], config, active=True) + config.width * config.vocab_size
    windows = (min(window or length, length) for window in _per_layer(config))
    seen = sum(window * (1 - window / (2 * length)) for window in windows)
    return 6.0 * weights + 12.0 * config.heads * config.H * seen


# --- parts -----------------------------------------------------------------------------------------------------------

def _count(shapes, config, active):
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    if not active or config.experts is None:
        return total
    of_experts = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim == 4)  # [L, E, rows, columns]
    return total - of_experts * (config.experts - config.experts_per_token) // config.experts


def _boxed(rng, config):
    tokens = jnp.zeros((1, 1), jnp.int32)
    # a kernel may not take one position, and one layer's program for all compiles in a fraction of the time
    config = dataclasses.replace(config, attention="xla", unroll=1)
    return Transformer(config).init(rng, tokens, tokens, None, None)["params"]


def _per_layer(config: Config) -> list[int | None]:
    return [config.windows[i % len(config.windows)] for i in range(config.layers)]


def _windows(config: Config) -> tuple[int | None, ...]:
    """The windows that occur, each once."""
    return tuple(dict.fromkeys(_per_layer(config)))


def _which(config: Config) -> jax.Array | None:
    """Which of them each layer has, as an array to scan over; None where all have the same."""
    windows = _windows(config)
    return None if len(windows) == 1 else jnp.array([windows.index(window) for window in _per_layer(config)], jnp.int32)


def _remat(config: Config):
    """The block under its policy; merging common parts undoes it, which cannot happen across turns of a loop."""
    policy = remat.policy(config.remat)
    return Block if config.remat == "none" else nn.remat(Block, policy=policy, prevent_cse=config.unroll > 1)


def _std(config, rows, output):
    """Of a matrix with so many rows; `output`: the last projection of a block."""
    std = config.init_std or rows ** -0.5
    if not output:
        return std
    return 0.0 if config.zero_init_outputs else std * (2 * config.layers) ** -0.5


def _capacity(config: Config, length: int) -> int:
    return experts.capacity(length, config.experts, config.experts_per_token, config.capacity_factor)


def _init(axes, std):
    start = nn.initializers.normal(std) if std else nn.initializers.zeros
    return nn.with_logical_partitioning(start, axes)


def _ones(axes):
    return nn.with_logical_partitioning(nn.initializers.ones, axes)
