"""Binds a model to the train step and the loop: what pretraining, finetuning and practice have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax

from jaxgpt.core import loop as core_loop
from jaxgpt.core import distributed, sharding
from jaxgpt.core.checkpoint import load_params
from jaxgpt.core.config import from_json, to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context
from jaxgpt.core.metrics import TIMED, read_metrics
from jaxgpt.core.optim import Optim, make_optimizer
from jaxgpt.core.state import TrainState
from jaxgpt.core.step import LossFn, abstract, create_state, make_train_step, state_shardings
from jaxgpt.model import transformer


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A model, an optimizer and the compiled step that joins them, laid out on a mesh; holds no data.

    Attributes:
      config, optimizer, step: as given and made.
      abstract_state: shapes, types and shardings of the state.
      shardings: the shardings alone.
    """

    config: transformer.Config
    optimizer: optax.GradientTransformation
    step: Callable
    abstract_state: TrainState
    shardings: TrainState

    def create(self, rng: jax.Array, params=None) -> TrainState:
        """The first state; from `params` where given."""
        return create_state(rng, lambda rng: transformer.init(rng, self.config), self.optimizer,
                            shardings=self.shardings, params=params)

    def load(self, path: Path) -> Any:
        """Parameters of a checkpoint, straight onto the mesh."""
        return load_params(path, self.abstract_state.params, config=to_json(self.config))


def make_trainable(context: Context, config: transformer.Config, optim: Optim, loss_fn: LossFn, *, steps: int,
                   accumulate: int = 1, with_reference: bool = False) -> Trainable:
    """Compiles nothing yet: shapes, shardings and the jitted step.

    Args:
      context: names the mesh and the rules.
      config: the model.
      optim: the optimizer's settings, of a run of `steps` updates.
      loss_fn: as `core.step` says.
      accumulate: micro-batches.
      with_reference: whether the step's `frozen` is a second set of parameters.
    """
    sharding.check_used(context.mesh, context.rules)
    sharding.check_heads(config.heads, config.K, context.mesh, context.rules)
    axes = transformer.logical_axes(config)
    optimizer = make_optimizer(optim, steps, axes)
    create = lambda rng: TrainState.create(rng, transformer.init(rng, config), optimizer)  # noqa: E731
    abstract_state = jax.eval_shape(create, jax.random.key(0))
    shardings = state_shardings(abstract_state, axes, mesh=context.mesh, rules=context.rules)
    step = make_train_step(loss_fn, optimizer, mesh=context.mesh, rules=context.rules, state_shardings=shardings,
                           frozen_shardings=shardings.params if with_reference else (), accumulate=accumulate,
                           clip_norm=optim.clip_norm)
    return Trainable(config, optimizer, step, abstract(abstract_state, shardings), shardings)


def abstract_batch(context: Context, rows: int, length: int, **extra) -> dict:
    """Shapes of a packed batch, for compiling without data."""
    shape = lambda dtype: jax.ShapeDtypeStruct(  # noqa: E731
        (rows, length), dtype, sharding=sharding.batch_sharding(context.mesh, context.rules))
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32, "segment_ids": jnp.int32,
             "positions": jnp.int32, **extra}
    return {name: shape(dtype) for name, dtype in kinds.items()}


def fit(context: Context, trainable: Trainable, create: Callable[[], TrainState], *, loop: core_loop.Loop, batches, steps: int,
        tokens_per_step: int | None, length: int, tokenizer: Path, step_fn: Callable | None = None, frozen: Any = (),
        evaluate=None) -> tuple[TrainState, dict]:
    """Trains and returns the last state with the outputs that later stages read.

    Args:
      context, loop, batches, steps, tokens_per_step, frozen, evaluate: of `core.loop.train`.
      trainable: what is trained.
      create: makes its first state.
      length: positions in a row, for FLOPs.
      tokenizer: the tokenizer's folder, which later stages need to speak to the model.
      step_fn: in place of the trainable's own step.
    """
    rows = tokens_per_step and tokens_per_step // length
    context.log(f"{context.stage.name}: {transformer.count_params(trainable.config):,} parameters on "
                f"{sharding.describe(context.mesh, context.experiment.rules, rows, length)}")
    state = core_loop.train(
        context, loop, step_fn=step_fn or trainable.step, create=create, abstract_state=trainable.abstract_state,
        batches=batches, steps=steps, config=to_json(trainable.config), frozen=frozen, evaluate=evaluate,
        tokens_per_step=tokens_per_step, flops_per_token=transformer.flops_per_token(trainable.config, length))
    lines = read_metrics(context.directory / "metrics.jsonl") if distributed.is_main() else []
    final: dict = {}
    for line in lines:
        final.update({key: value for key, value in line.items() if key not in TIMED})
    return state, {
        "model": to_json(trainable.config), "checkpoint": f"checkpoints/{steps}",
        "tokenizer": str(Path("..") / tokenizer.relative_to(context.workdir)),
        "parameters": transformer.count_params(trainable.config), "steps": steps,
        "tokens": tokens_per_step and steps * tokens_per_step,
        "final": final}


def model_of(context: Context, stage: str) -> tuple[transformer.Config, Path, Path]:
    """The model that an earlier stage trained: (its config, its checkpoint, its tokenizer's folder)."""
    config = from_json(transformer.Config, context.output(stage, "model"))
    return config, context.path(stage, "checkpoint"), context.path(stage, "tokenizer")


def planned_model(context: Context, stage: str) -> transformer.Config:
    """The model that an earlier stage will train, known from the experiment alone."""
    found = context.experiment.stage(stage)
    while not hasattr(found, "model"):
        if not hasattr(found, "start_from"):
            raise UserError(f"stage '{context.stage.name}' starts from '{stage}', which trains no model")
        found = context.experiment.stage(found.start_from)
    return found.model


def check_fits(model: transformer.Config, tokenizer, length: int) -> None:
    """Refuses a tokenizer or rows that the model has no room for.

    Raises:
      UserError: with the numbers.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(f"model.vocab_size={model.vocab_size}: the tokenizer has {tokenizer.vocab_size} tokens, "
                        f"special ones included; set model.vocab_size to at least {tokenizer.vocab_size}")
    if length > model.context:
        raise UserError(f"length={length}: longer than the {model.context} positions of the model's context; "
                        "set a shorter length or a larger model.context")
