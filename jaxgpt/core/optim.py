"""Optimizers and learning-rate schedules from settings: optax, with the choices that transformers need made once."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Optim:
    """How parameters move.

    Attributes:
      kind: "adamw" (Loshchilov & Hutter 2019), or "muon" (Jordan et al. 2024): orthogonalised momentum for the matrices
        inside the layers, AdamW for embeddings, head, norms and biases.
      lr: peak learning rate (of Muon where that is the kind).
      adam_lr: peak learning rate of what Muon leaves to AdamW; `lr` where None.
      schedule: after the warmup, "constant"; "cosine" or "linear" down to `final_fraction`; or "wsd" (warmup, stable,
        decay: constant, then linear to `final_fraction` over the last `decay_fraction` of the steps).
      warmup: steps of linear warmup from 0.
      beta1, beta2, eps: of AdamW.
      weight_decay: decoupled, on weights of two and more dimensions only (with Muon: on its matrices only).
      clip_norm: largest global gradient norm; None for no clipping.
      momentum: of Muon (Nesterov).
      moments: type in which moments are kept between steps; "bfloat16" halves their memory. Not with a beta2 above
        0.996: what a step then adds or takes away is less than bfloat16 can tell apart.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    adam_lr: float | None = None
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup: int = 0
    final_fraction: float = 0.1
    decay_fraction: float = 0.6
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    momentum: float = 0.95
    moments: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not 0 < self.lr < math.inf or (self.adam_lr is not None and not 0 < self.adam_lr < math.inf):
            raise ValueError(f"lr={self.lr}, adam_lr={self.adam_lr}: a learning rate is above 0")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm}: above 0, or None for no clipping")
        if self.weight_decay < 0 or self.eps <= 0:
            raise ValueError(f"weight_decay={self.weight_decay}, eps={self.eps}: at least 0, and above 0")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"beta1={self.beta1}, beta2={self.beta2}, momentum={self.momentum}: each is in [0, 1)")
        if not 0 <= self.final_fraction <= 1 or not 0 < self.decay_fraction <= 1:
            raise ValueError(f"final_fraction={self.final_fraction}, decay_fraction={self.decay_fraction}: "
                             "fractions are between 0 and 1")
        if self.moments == "bfloat16" and 1 - self.beta2 < 2 ** -8:
            raise ValueError(f"beta2={self.beta2}: with moments='bfloat16' at most 0.996, or the second moment would "
                             "not fall when gradients do")
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup}: a number of steps, 0 or more")


def make_schedule(config: Optim, steps: int, peak: float | None = None) -> optax.Schedule:
    """Learning rate as a function of the step.

    Args:
      config: kind of schedule.
      steps: length of the whole run, warmup included.
      peak: learning rate after the warmup; `config.lr` where None.
    """
    peak = config.lr if peak is None else peak
    final = peak * config.final_fraction
    warmup = min(config.warmup, steps)
    after = max(steps - warmup, 1)
    if config.schedule == "constant":
        body = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, after, alpha=config.final_fraction)
    elif config.schedule == "linear":
        body = optax.linear_schedule(peak, final, after)
    else:
        decay = max(round(config.decay_fraction * steps), 1)
        body = optax.linear_schedule(peak, final, decay, transition_begin=max(after - decay, 0))
    if not warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), body], [warmup])


def make_optimizer(config: Optim, steps: int, logical_axes) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps (clipping is the train step's).

    Args:
      logical_axes: tree like the parameters, each leaf a tuple of axis names. A leaf is a matrix inside a layer where
        it has "layers" and two more axes, "expert" not counted; the matrix of each layer and expert is then
        orthogonalised alone.
    """
    moments = jnp.dtype(config.moments)
    return _second_moments_in(_optimizer(config, steps, logical_axes, moments), moments)


def _optimizer(config: Optim, steps: int, logical_axes, moments) -> optax.GradientTransformation:
    if config.kind == "adamw":
        decayed = jax.tree.map(lambda axes: _rank(axes) > 1, logical_axes, is_leaf=_is_axes)
        return optax.adamw(make_schedule(config, steps), config.beta1, config.beta2, config.eps, mu_dtype=moments,
                           weight_decay=config.weight_decay, mask=decayed)
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    dimensions = jax.tree.map(lambda axes: matrix if axes[0] == "layers" and _rank(axes) == 2 else None,
                              logical_axes, is_leaf=_is_axes)
    return optax.contrib.muon(
        make_schedule(config, steps), beta=config.momentum, weight_decay=config.weight_decay, mu_dtype=moments,
        adam_b1=config.beta1, adam_b2=config.beta2, eps=config.eps,
        adam_learning_rate=make_schedule(config, steps, config.adam_lr or config.lr),
        muon_weight_dimension_numbers=dimensions)


def _second_moments_in(optimizer: optax.GradientTransformation, dtype) -> optax.GradientTransformation:
    """The optimizer, its second moments kept in `dtype` between steps and used in float32 (optax casts the first)."""
    if dtype == jnp.float32:
        return optimizer

    def cast(state, dtype):
        adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
        return jax.tree.map(lambda x: x._replace(nu=optax.tree.cast(x.nu, dtype)) if adam(x) else x, state,
                            is_leaf=adam)

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(optimizer.init(params), dtype), update)


def _rank(axes) -> int:
    """How many dimensions one parameter has: layers and experts are stacked."""
    return len([axis for axis in axes if axis not in ("layers", "expert")])


def _is_axes(x) -> bool:
    return isinstance(x, tuple) and all(isinstance(axis, str) for axis in x)
