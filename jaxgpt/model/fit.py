"""Binds a model to the train step and the loop: what pretraining, finetuning and practice have in common."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax

from jaxgpt.core import loop as core_loop
from jaxgpt.core import distributed, sharding
from jaxgpt.core.checkpoint import Checkpoints, load_params
from jaxgpt.core.config import from_json, to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, read_stage
from jaxgpt.core.metrics import TIMED, read_metrics
from jaxgpt.core.optim import Optim, make_optimizer
from jaxgpt.core.state import TrainState
from jaxgpt.core.step import LossFn, abstract, create_state, make_train_step, state_shardings
from jaxgpt.model import lora, transformer
from jaxgpt.model.lora import Lora


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A model, an optimizer and the compiled step that joins them, laid out on a mesh; holds no data.

    Attributes:
      config, optimizer, step: as given and made.
      abstract_state: shapes, types and shardings of the state, whose `params` are those of the adapter with `lora`.
      shardings: the shardings alone.
      abstract_params: of the model.
      lora: what is trained in place of the model, or None.
    """

    config: transformer.Config
    optimizer: optax.GradientTransformation
    step: Callable
    abstract_state: TrainState
    shardings: TrainState
    abstract_params: Any
    lora: Lora | None = None

    def create(self, rng: jax.Array, params=None) -> TrainState:
        """The first state; from the model's `params` where given, beside which an adapter starts anew."""
        if self.lora:
            return create_state(rng, lambda rng: lora.init(rng, self.config, self.lora), self.optimizer,
                                shardings=self.shardings)
        return create_state(rng, lambda rng: transformer.init(rng, self.config), self.optimizer,
                            shardings=self.shardings, params=params)

    def load(self, path: Path) -> Any:
        """The model's parameters of a checkpoint, straight onto the mesh."""
        return load_params(path, self.abstract_params, config=to_json(self.config))

    def model(self, state: TrainState, frozen: Any) -> Any:
        """The model's parameters as they stand: the state's, or with `lora` the frozen ones with the adapter in them."""
        return _merge(frozen, state.params, self.lora) if self.lora else state.params


_merge = jax.jit(lora.merge, static_argnums=2)


def make_trainable(context: Context, config: transformer.Config, optim: Optim, loss_fn: LossFn, *, steps: int,
                   accumulate: int = 1, with_reference: bool = False, adapter: Lora | None = None) -> Trainable:
    """Compiles nothing yet: shapes, shardings and the jitted step.

    Args:
      context: names the mesh and the rules.
      config: the model.
      optim: the optimizer's settings, of a run of `steps` updates.
      loss_fn: as `core.step` says.
      accumulate: micro-batches.
      with_reference: whether `loss_fn` is given a second set of parameters as `frozen`.
      adapter: trained beside a model that stays as it is: the step's `frozen`, and the reference at once.
    """
    sharding.check_used(context.mesh, context.rules)
    sharding.check_heads(config.heads, config.K, context.mesh, context.rules)
    axes = transformer.logical_axes(config)
    init = functools.partial(transformer.init, config=config)
    whole = jax.eval_shape(init, jax.random.key(0))
    of_model = sharding.param_shardings(axes, whole, context.mesh, context.rules)
    if adapter:
        axes, init = lora.logical_axes(config, adapter), functools.partial(lora.init, config=config, lora=adapter)
        loss_fn = _beside(loss_fn, adapter, with_reference)
    optimizer = make_optimizer(optim, steps, axes)
    abstract_state = jax.eval_shape(lambda rng: TrainState.create(rng, init(rng), optimizer), jax.random.key(0))
    shardings = state_shardings(abstract_state, axes, mesh=context.mesh, rules=context.rules)
    step = make_train_step(loss_fn, optimizer, mesh=context.mesh, rules=context.rules, state_shardings=shardings,
                           frozen_shardings=of_model if with_reference or adapter else (), accumulate=accumulate,
                           clip_norm=optim.clip_norm)
    return Trainable(config, optimizer, step, abstract(abstract_state, shardings), shardings, abstract(whole, of_model),
                     adapter)


def _beside(loss_fn: LossFn, adapter: Lora, with_reference: bool) -> LossFn:
    """A loss of the model's parameters as one of an adapter's, the model being frozen."""
    return lambda params, frozen, batch, rng: loss_fn(lora.attach(frozen, params, adapter),
                                                      frozen if with_reference else (), batch, rng)


def abstract_batch(context: Context, rows: int, length: int, **extra) -> dict:
    """Shapes of a packed batch, for compiling without data."""
    shape = lambda dtype: jax.ShapeDtypeStruct(  # noqa: E731
        (rows, length), dtype, sharding=sharding.batch_sharding(context.mesh, context.rules))
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32, "segment_ids": jnp.int32,
             "positions": jnp.int32, **extra}
    return {name: shape(dtype) for name, dtype in kinds.items()}


def fit(context: Context, trainable: Trainable, create: Callable[[], TrainState], *, loop: core_loop.Loop, batches,
        steps: int, tokens_per_step: int | None, length: int, tokenizer: Path, step_fn: Callable | None = None, frozen: Any = (),
        evaluate=None, start: str | None = None) -> tuple[TrainState, dict]:
    """Trains and returns the last state with the outputs that later stages read.

    Args:
      context, loop, batches, steps, tokens_per_step, frozen, evaluate: of `core.loop.train`.
      trainable: what is trained.
      create: makes its first state.
      length: positions in a row, for FLOPs.
      tokenizer: the tokenizer's folder, which later stages need to speak to the model.
      step_fn: in place of the trainable's own step.
      start: the stage that it starts from; what a model from elsewhere brought with it is handed on.
    """
    rows, adapter = tokens_per_step and tokens_per_step // length, trainable.lora
    trained = f" and an adapter of {lora.count(trainable.config, adapter):,}, which alone is trained," if adapter else ""
    context.log(f"{context.stage.name}: {transformer.count_params(trainable.config):,} parameters{trained} on "
                f"{sharding.describe(context.mesh, context.experiment.rules, rows, length)}")
    state = core_loop.train(
        context, loop, step_fn=step_fn or trainable.step, create=create, abstract_state=trainable.abstract_state,
        batches=batches, steps=steps, config=to_json(trainable.config) | ({"lora": to_json(adapter)} if adapter else {}),
        frozen=frozen, evaluate=evaluate, tokens_per_step=tokens_per_step,
        flops_per_token=None if adapter else transformer.flops_per_token(trainable.config, length))
    if adapter:
        _save_merged(context, trainable, state, frozen)
    lines = read_metrics(context.directory / "metrics.jsonl") if distributed.is_main() else []
    final: dict = {}
    for line in lines:
        final.update({key: value for key, value in line.items() if key not in TIMED})
    return state, {
        "model": to_json(trainable.config), "checkpoint": "merged/0" if adapter else f"checkpoints/{steps}",
        "tokenizer": str(Path("..") / tokenizer.relative_to(context.workdir)),
        "parameters": transformer.count_params(trainable.config), "steps": steps,
        "tokens": tokens_per_step and steps * tokens_per_step,
        "final": final, **({} if start is None else origin(context, start))}


def _save_merged(context: Context, trainable: Trainable, state: TrainState, frozen: Any) -> None:
    """Writes the model with the adapter in it: what later stages, the chat and exports read as any other model."""
    folder = context.directory / "merged"
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped here
    distributed.wait()
    checkpoints = Checkpoints(folder, config=to_json(trainable.config))
    whole = TrainState(trainable.model(state, frozen), (), jnp.zeros((), jnp.int32), state.rng)
    checkpoints.save(0, whole, {})
    checkpoints.close()


def model_of(context: Context, stage: str) -> tuple[transformer.Config, Path, Path]:
    """The model that an earlier stage trained: (its config, its checkpoint, its tokenizer's folder)."""
    config = from_json(transformer.Config, context.output(stage, "model"))
    return config, context.path(stage, "checkpoint"), context.path(stage, "tokenizer")


def origin(context: Context, stage: str) -> dict:
    """What the model of an earlier stage has from elsewhere, as outputs of this one: "folder" with its chat template and
    "family"; {} for ours."""
    outputs = read_stage(context.workdir / stage / "manifest.json")["outputs"]
    found = {"family": outputs["family"]} if "family" in outputs else {}
    if "folder" in outputs:
        found["folder"] = os.path.join("..", os.path.normpath(os.path.join(stage, outputs["folder"])))
    return found


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
