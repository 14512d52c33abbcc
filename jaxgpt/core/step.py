"""loss_fn -> the train step: jitted, sharded, donating its state, with exact gradient accumulation.

Every stage trains with this one step. A stage gives

    loss_fn(params, frozen, batch, rng) -> (loss_sum, weight, metrics)

where the loss is `loss_sum / weight` and each metric is a pair (sum, weight). Sums and weights add up over
micro-batches and devices, so the accumulated, the sharded and the whole batch give the same gradient.
"""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxgpt.core import sharding
from jaxgpt.core.state import TrainState

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict]]


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *, mesh: Mesh, rules: dict,
                    state_shardings, frozen_shardings=(), accumulate: int = 1, clip_norm: float | None = None):
    """Returns `step(state, frozen, batch) -> (state, metrics)`, compiled once.

        g = (1 / Σᵢ wᵢ) Σᵢ ∇ loss_sumᵢ        over the `accumulate` micro-batches
        g ← g · min(1, clip_norm / ‖g‖₂)
        params ← params + optimizer(g)

    A step whose loss or gradient is not finite changes nothing and reports metrics["finite"] = 0; the loop then stops.
    One whose update makes parameters that are not finite reports the same, and the loop stops before it saves them.

    Args:
      loss_fn: as above. `frozen` is what is used and not trained (a reference model, a LoRA base): an argument, because
        what a jitted function closes over is copied into the program as a constant.
      optimizer: from gradients to updates.
      mesh, rules: where arrays live; batches are split over rows.
      state_shardings: tree of shardings like the state. The state is donated: the caller's copy is gone.
      frozen_shardings: likewise for `frozen`, or one sharding for all of it; () where there is none.
      accumulate: number of micro-batches; the batch's first dimension must be divisible by it.
      clip_norm: the largest global norm a gradient may keep; None for no clipping.

    Returns:
      The step. Its metrics are float32 scalars: "loss", "grad_norm", "param_norm", "finite" and those of loss_fn.
    """
    def update(state: TrainState, grads, scale):
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1, state.rng, state.extra)

    def step(state: TrainState, frozen, batch):
        with sharding.in_force(mesh, rules):
            rng = jax.random.fold_in(state.rng, state.step)
            grads, (loss_sum, weight, sums) = _summed_gradients(loss_fn, state.params, frozen, batch, rng, accumulate)
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
        loss, grad_norm = loss_sum * scale, optax.tree.norm(grads) * scale
        if clip_norm is not None:
            scale = scale * jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
        # Decided before the update and not by a select after it, so that the state is written in place: a guard that
        # waited for the new parameters would keep the old state beside the new one, and pass over both once more.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.lax.cond(finite, update, lambda state, grads, scale: state, state, grads, scale)
        param_norm = optax.tree.norm(new.params)
        finite &= jnp.isfinite(param_norm)
        metrics = {name: total / jnp.where(count > 0, count, 1.0) for name, (total, count) in sums.items()}
        return new, {"loss": loss, "grad_norm": grad_norm, "param_norm": param_norm,
                     "finite": finite.astype(jnp.float32), **metrics}

    rows, everywhere = sharding.batch_sharding(mesh, rules), sharding.replicated(mesh)
    return jax.jit(step, in_shardings=(state_shardings, frozen_shardings or everywhere, rows),
                   out_shardings=(state_shardings, everywhere), donate_argnums=0)


def _summed_gradients(loss_fn: LossFn, params, frozen, batch, rng, accumulate: int):
    """Gradient of Σ loss_sum over micro-batches, with the sums of losses, weights and metrics."""
    def micro(batch, rng):
        def objective(params):
            loss_sum, weight, metrics = loss_fn(params, frozen, batch, rng)
            return loss_sum, (loss_sum, weight, metrics)
        return jax.grad(objective, has_aux=True)(params)

    if accumulate == 1:
        return micro(batch, rng)
    # Row r goes to micro-batch r mod A, so that every device keeps an equal share of its own rows.
    micros = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    micros = jax.tree.map(lambda x: sharding.shard(x, None, "batch"), micros)

    def add(total, indexed):
        index, batch = indexed
        return jax.tree.map(jnp.add, total, micro(batch, jax.random.fold_in(rng, index))), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                         jax.eval_shape(lambda: micro(jax.tree.map(lambda x: x[0], micros), rng)))
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate), micros))[0]


def create_state(rng: jax.Array, init: Callable, optimizer: optax.GradientTransformation, *, shardings: TrainState,
                 params=None) -> TrainState:
    """A new state, born on the mesh as it will live there: no device ever holds all of it.

    Args:
      rng: key; parameters are drawn with one half, the run goes on with the other.
      init: `rng -> params`.
      shardings: from `state_shardings`.
      params: parameters to start from, already on the mesh; drawn with `init` where None.
    """
    def create(rng, params):
        init_rng, run_rng = jax.random.split(rng)
        return TrainState.create(run_rng, init(init_rng) if params is None else params, optimizer)

    return jax.jit(create, out_shardings=shardings)(rng, params)


def state_shardings(abstract_state: TrainState, logical_axes, *, mesh: Mesh, rules: dict) -> TrainState:
    """The shardings of a state from the logical axes of its parameters."""
    of_params = sharding.param_shardings(logical_axes, abstract_state.params, mesh, rules)
    return sharding.state_shardings(abstract_state, of_params, mesh)


def abstract(tree, shardings=None):
    """Shapes, types and shardings of a tree of arrays: what compiling and restoring need, without the data."""
    if shardings is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
