"""TrainState: everything that a training run is, in one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a train step takes and returns, and all that a checkpoint needs.

    Attributes:
      params: what is learned.
      opt_state: the optimizer's state.
      step: int32 scalar, how many updates were made.
      rng: the run's key; step k draws from `fold_in(rng, k)`.
      extra: whatever else an algorithm carries (a critic, a controller, a buffer).
    """

    params: Any
    opt_state: Any
    step: jax.Array
    rng: jax.Array
    extra: Any = ()

    @classmethod
    def create(cls, rng: jax.Array, params, optimizer, extra=()) -> TrainState:
        """The state before the first step."""
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32), rng, extra)
