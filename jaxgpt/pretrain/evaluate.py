"""Validation loss of a base model: nats per token and bits per byte, over the whole split."""

from __future__ import annotations

import functools
import math
from typing import Any, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core import sharding
from jaxgpt.model import losses, transformer


def bits_per_byte(nats: float, size: int) -> float:
    """nats / (ln 2 · bytes): a loss that does not depend on the tokenizer.

    Source: Gao et al. 2020, "The Pile", section 3.1.

    >>> round(bits_per_byte(nats=693.147, size=1000), 3)
    1.0
    """
    return nats / math.log(2) / size


@functools.lru_cache(maxsize=8)
def evaluation_program(config: transformer.Config, mesh, rules: tuple):
    """(params, batch, token_bytes [V]) -> (nats, tokens, bytes) of a batch, jitted; `rules` as a tuple of items."""
    @jax.jit
    def sums(params, batch, token_bytes):
        with sharding.in_force(mesh, dict(rules)):
            loss_sum, weight, _ = losses.next_token_loss(params, (), batch, None, config=config,
                                                           auxiliary=False)
        return loss_sum, weight, jnp.sum(token_bytes[batch["targets"]] * (batch["loss_mask"] > 0))

    return sums


def validation(params: Any, rows: Iterable[dict], *, config: transformer.Config, token_bytes: np.ndarray, mesh,
               rules: dict) -> dict:
    """{"val_loss": nats per token, "val_bpb": bits per byte} over batches of rows.

    Args:
      params: of the model.
      rows: batches, each target once.
      config: the model.
      token_bytes: int [V], bytes that each token stands for.
      mesh, rules: where the parameters live.
    """
    batch_rows, everywhere = sharding.batch_sharding(mesh, rules), sharding.replicated(mesh)
    table = np.zeros(config.vocab_size, np.float32)  # the model's vocabulary may be larger than the tokenizer's
    table[:len(token_bytes)] = token_bytes
    table = sharding.put(table, everywhere)
    program = evaluation_program(config, mesh, tuple(rules.items()))
    # fetched batch by batch: many collectives under way at once can starve each other on simulated devices
    sums = [jax.device_get(program(params, sharding.put(batch, batch_rows), table)) for batch in rows]
    nats, tokens, size = np.asarray(sums, np.float64).sum(axis=0)
    return {"val_loss": nats / tokens, "val_bpb": bits_per_byte(nats, size)}
