"""Log-probabilities and losses of a model's tokens, the head applied in chunks so that [B, T, V] is never whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import parts, shard
from jaxgpt.model import transformer


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

    The head is applied to `config.loss_chunk` positions at a time; the backward pass computes their logits again
    instead of keeping them.

    Args:
      params: of the model.
      x: [B, T, D], from `transformer.hidden`.
      targets: int [B, T].
      config: of the model.
      temperature: logits are divided by it first, as a sampler does.

    Returns:
      (logprobs [B, T], entropy [B, T]), float32, in nats.
    """
    B, T, _ = check({"B T D": {"x": x}, "B T": {"targets": targets}}).values()

    def chunk_logprobs(x, targets):
        return selective_log_softmax(transformer.unembed(params, x, config=config) / temperature, targets)

    chunk = config.loss_chunk
    if chunk is None or B * T <= chunk:
        return chunk_logprobs(x, targets)
    if (devices := parts("seq", T)) > 1:  # [B, T] stays apart: a chunk is some positions of each device, of every row
        own = T // devices
        count = next(n for n in range(1, own + 1) if own % n == 0 and (n * chunk >= B * T or n == own))
        out = _in_chunks(chunk_logprobs, x.swapaxes(0, 1), targets.swapaxes(0, 1), T // count, ("seq", "batch"))
        return jax.tree.map(lambda a: a.swapaxes(0, 1), out)
    flat = _in_chunks(chunk_logprobs, x.reshape(B * T, -1), targets.reshape(B * T), chunk)
    return jax.tree.map(lambda a: a.reshape(B, T), flat)


def _in_chunks(function, x, targets, size, axes=("batch",)):
    """Maps `function` over chunks of the first dimension, padded to whole ones, recomputing in the backward pass.

    Chunk c holds the items c, c + count, c + 2 count...: each device keeps an equal share of its own in every chunk.
    `axes` are the logical axes of the first dimensions.
    """
    count, total = -(-len(targets) // size), len(targets)
    pad = -total % count

    def split(a):
        a = jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1))
        return shard(a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), None, *axes)

    out = jax.lax.map(lambda chunk: jax.checkpoint(function, prevent_cse=False)(*chunk), (split(x), split(targets)))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:])[:total], out)


def next_token_loss(params: Any, frozen: Any, batch: dict, rng: jax.Array, *, config: transformer.Config):
    """loss = -Σ m log p(target) / Σ m: what pretraining and supervised finetuning minimise.

    Args:
      params: of the model.
      frozen, rng: not used; there so that every stage's loss is called alike.
      batch: "tokens", "targets" int [B, T], "loss_mask" [B, T] (1 where a target counts), and, where rows are packed,
        "positions" and "segment_ids" int [B, T].

    Returns:
      (loss_sum, weight, metrics): sums over the batch; nats and tokens.
    """
    x, _, _ = transformer.hidden(params, batch["tokens"], config=config, positions=batch.get("positions"),
                                 segment_ids=batch.get("segment_ids"))
    logprobs, _ = token_logprobs(params, x, batch["targets"], config=config)
    mask = batch["loss_mask"].astype(jnp.float32)
    # where, not a product: a masked -inf must not become a nan
    loss_sum, weight = -jnp.sum(jnp.where(mask > 0, logprobs * mask, 0.0)), jnp.sum(mask)
    return loss_sum, weight, {}
