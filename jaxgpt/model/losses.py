"""Log-probabilities and losses of a model's tokens, the head applied in chunks so that [B, T, V] is never whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import on_shards
from jaxgpt.model import experts, transformer


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
    def split(a):
        count = -(-len(a) // size)
        return jnp.pad(a, [(0, -len(a) % count)] + [(0, 0)] * (a.ndim - 1)).reshape(count, -1, *a.shape[1:])

    def join(a, total):
        return a.reshape(-1, *a.shape[2:])[:total]

    @jax.custom_vjp
    def mapped(x, targets, head):
        out = jax.lax.map(lambda chunk: function(*chunk, head), (split(x), split(targets)))
        return jax.tree.map(lambda a: join(a, len(targets)), out)

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
        return join(dx, len(targets)), None, total.astype(head.dtype)

    mapped.defvjp(forward, backward)
    return mapped


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
    logprobs, _ = token_logprobs(params, x, batch["targets"], config=config)
    mask = batch["loss_mask"].astype(jnp.float32)
    # where, not a product: a masked -inf must not become a nan
    loss_sum, weight = -jnp.sum(jnp.where(mask > 0, logprobs * mask, 0.0)), jnp.sum(mask)
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
