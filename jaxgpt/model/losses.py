"""Log-probabilities and losses of a model's tokens, the head applied in chunks so that [B, T, V] is never whole."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import on_shards
from jaxgpt.model import experts, kernels, transformer
from jaxgpt.model.layers import linear, soft_cap


def selective_log_softmax(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p(target) = x_target - logsumexp(x), and the entropy -Σ p log p, in float32.

    Args:
      logits: [..., V].
      targets: int [...].

    Returns:
      (logprobs [...], entropy [...]), in nats.

    >>> logprob, entropy = selective_log_softmax(jnp.zeros((1, 4)), jnp.array([2]))
    >>> float(jnp.exp(logprob[0])).__round__(4), float(jnp.exp(entropy[0])).__round__(4)
    (0.25, 4.0)
    """
    check({"... V": {"logits": logits}})
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = total - jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)
    return chosen - total, entropy


def token_logprobs(params: Any, x: jax.Array, targets: jax.Array, *, config: transformer.Config,
                   temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and the entropy of each prediction.

    Each device has the head whole and applies it to its own rows and positions, `config.loss_chunk` at a time; the
    backward pass computes their logits again instead of keeping them. The head is gathered once, and its gradient added
    up over devices once: left to the compiler, both would be exchanged for every chunk.

    Args:
      params: of the model.
      x: [B, T, D], from `transformer.hidden`.
      targets: int [B, T].
      config: of the model.
      temperature: logits are divided by it first, as a sampler does.

    Returns:
      (logprobs [B, T], entropy [B, T]), float32, in nats.
    """
    check({"B T D": {"x": x}, "B T": {"targets": targets}})

    def chunk_logprobs(x, targets, head):
        logits = transformer.unembed({"head": head}, x, config=dataclasses.replace(config, tied=False))
        return selective_log_softmax(logits / temperature, targets)

    def own_logprobs(x, targets, head):
        shape, size, chunk = targets.shape, targets.size, config.loss_chunk
        if chunk is None or size <= chunk:
            return chunk_logprobs(x, targets, head)
        flat = _in_chunks(chunk_logprobs, chunk)(x.reshape(size, -1), targets.reshape(size), head)
        return jax.tree.map(lambda a: a.reshape(shape), flat)

    rows = ("batch", "loss")
    head = transformer.head(params, config=config).astype(x.dtype)
    return on_shards(own_logprobs, (*rows, None), rows, (None, None), out_rank=2)(x, targets, head)


def _in_chunks(function, size: int):
    """`function(x, targets, head)` over chunks of the first dimension of x and targets, padded to whole ones.

    The backward pass computes each chunk again; the gradient of the head is added up over chunks in float32, whatever
    its type, and without a copy of the head in float32.
    """
    split = functools.partial(_split, size=size)

    @jax.custom_vjp
    def mapped(x, targets, head):
        out = jax.lax.map(lambda chunk: function(*chunk, head), (split(x), split(targets)))
        return jax.tree.map(lambda a: _join(a, len(targets)), out)

    def forward(x, targets, head):
        return mapped(x, targets, head), (x, targets, head)

    def backward(saved, grads):
        x, targets, head = saved

        def add(total, chunk):
            x, targets, grads = chunk
            _, pull = jax.vjp(lambda x, head: function(x, targets, head), x, head)
            dx, dhead = pull(grads)
            return total + dhead.astype(jnp.float32), dx

        total, dx = jax.lax.scan(add, jnp.zeros(head.shape, jnp.float32),
                                 (split(x), split(targets), jax.tree.map(split, grads)))
        return _join(dx, len(targets)), None, total.astype(head.dtype)

    mapped.defvjp(forward, backward)
    return mapped


def _split(a: jax.Array, size: int) -> jax.Array:
    """The first dimension in equal chunks of at most `size`, padded with zeros: [chunks, ...]."""
    count = -(-len(a) // size)
    return jnp.pad(a, [(0, -len(a) % count)] + [(0, 0)] * (a.ndim - 1)).reshape(count, -1, *a.shape[1:])


def _join(a: jax.Array, total: int) -> jax.Array:
    return a.reshape(-1, *a.shape[2:])[:total]


def summed_cross_entropy(params: Any, x: jax.Array, targets: jax.Array, weights: jax.Array, *,
                         config: transformer.Config) -> jax.Array:
    """Σ w (-log p(target)), the head applied to `config.loss_chunk` positions at a time, once.

    What follows a sum scales all of its gradient alike, so the gradients of a chunk are made while its logits are there:
    the backward pass has nothing to compute again. That takes three products with the head where recomputing takes four.

    Args:
      params: of the model.
      x: [B, T, D], from `transformer.hidden`.
      targets: int [B, T].
      weights: float [B, T]; where 0 a target does not count, whatever its probability. They get no gradient.
      config: of the model.

    Returns:
      float32 scalar, in nats.
    """
    check({"B T D": {"x": x}, "B T": {"targets": targets, "weights": weights}})

    def chunk_sum(x, targets, weights, head):
        if kernels.suit(x, config.kernels, config.vocab_size, 1):
            return kernels.cross_entropy(soft_cap(linear(x, head), config.logit_soft_cap), targets, weights)
        logits = transformer.unembed({"head": head}, x, config=dataclasses.replace(config, tied=False))
        logprobs, _ = selective_log_softmax(logits, targets)
        # where, not a product: a masked -inf must not become a nan
        return -jnp.sum(jnp.where(weights > 0, logprobs * weights, 0.0))

    def own_sum(x, targets, weights, head):  # [1, 1]: what each device adds
        size, chunk = targets.size, config.loss_chunk
        total = chunk_sum if chunk is None or size <= chunk else _summed_in_chunks(chunk_sum, chunk)
        return total(x.reshape(size, -1), targets.reshape(size), weights.reshape(size), head).reshape(1, 1)

    rows = ("batch", "loss")
    head = transformer.head(params, config=config).astype(x.dtype)
    return jnp.sum(on_shards(own_sum, (*rows, None), rows, rows, (None, None), out_rank=2)(x, targets, weights, head))


def _summed_in_chunks(function, size: int):
    """Σ `function(x, targets, weights, head)` over chunks of the first dimension of all but the head.

    Its gradients for x and the head are made on the way forward; that of the head is added up in float32, whatever its
    type.
    """
    def chunks(*arrays):
        return tuple(_split(a, size) for a in arrays)

    @jax.custom_vjp
    def summed(x, targets, weights, head):
        add = lambda total, chunk: (total + function(*chunk, head), None)  # noqa: E731
        return jax.lax.scan(add, jnp.float32(0), chunks(x, targets, weights))[0]

    def forward(x, targets, weights, head):
        def add(totals, chunk):
            value, (dx, dhead) = jax.value_and_grad(function, argnums=(0, 3))(*chunk, head)
            return (totals[0] + value, totals[1] + dhead.astype(jnp.float32)), dx

        zeros = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
        (total, dhead), dx = jax.lax.scan(add, zeros, chunks(x, targets, weights))
        return total, (_join(dx, len(x)), dhead.astype(head.dtype))

    def backward(grads, grad):
        dx, dhead = (g * grad.astype(g.dtype) for g in grads)
        return dx, None, None, dhead

    summed.defvjp(forward, backward)
    return summed


def next_token_loss(params: Any, frozen: Any, batch: dict, rng: jax.Array, *, config: transformer.Config,
                    auxiliary: bool = True):
    """loss = -Σ m log p(target) / Σ m: what pretraining and supervised finetuning minimise.

    Where there are experts, `router_losses` come on top, each times its weight in the config. They are products of
    means over the micro-batch: the one part of a loss that changes with how a batch is cut into micro-batches.

    Args:
      params: of the model.
      frozen, rng: not used; there so that every stage's loss is called alike.
      batch: "tokens", "targets" int [B, T], "loss_mask" [B, T] (1 where a target counts), and, where rows are packed,
        "positions" and "segment_ids" int [B, T].
      auxiliary: whether to add what the routers of experts should learn; not where a model is measured.

    Returns:
      (loss_sum, weight, metrics): sums over the batch; nats and tokens.
    """
    with_router = auxiliary and config.experts is not None
    x, _, seen = transformer.hidden(params, batch["tokens"], config=config, positions=batch.get("positions"),
                                    segment_ids=batch.get("segment_ids"), capture=("router",) if with_router else ())
    mask = batch["loss_mask"].astype(jnp.float32)
    loss_sum, weight = summed_cross_entropy(params, x, batch["targets"], mask, config=config), jnp.sum(mask)
    if not with_router:
        return loss_sum, weight, {}
    real = batch["segment_ids"] > 0 if "segment_ids" in batch else jnp.ones(mask.shape, bool)
    found = router_losses(seen["router"], real.astype(jnp.float32), config=config)
    added = config.balance_loss * found["balance_loss"] + config.router_z_loss * found["router_z_loss"]
    return loss_sum + added * weight, weight, {
        "cross_entropy": (loss_sum, weight), **{name: (value * weight, weight) for name, value in found.items()}}


def router_losses(logits: jax.Array, mask: jax.Array, *, config: transformer.Config) -> dict[str, jax.Array]:
    """{"balance_loss", "router_z_loss", and "dropped" where experts have a capacity}: means over layers.

    Args:
      logits: [L, B, T, E], as `transformer.hidden` captures them.
      mask: [B, T], 1 where a token counts: not padding.
      config: of the model.
    """
    k = config.experts_per_token

    def layer(logits):
        found = {"balance_loss": experts.balance_loss(logits, k, mask),
                 "router_z_loss": experts.router_z_loss(logits, mask)}
        if config.capacity_factor is not None:
            places = experts.capacity(logits.shape[1], config.experts, k, config.capacity_factor)
            found["dropped"] = experts.dropped_share(logits, k, mask, places_each=places)
        return found

    return jax.tree.map(jnp.mean, jax.lax.map(layer, logits))
