"""Whether an experiment fits on hardware that is not there, how fast it should go, and what it will cost.

For a TPU every program of the experiment is compiled by the TPU's own compiler (`compiled.py`): memory and collectives
are what the slice would see. For a GPU they are counted (`cost.py`). Operations and times are always our own count and
model (`cost.py`, `roofline.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import After, Context, Experiment
from jaxgpt.core.state import TrainState
from jaxgpt.model.attention import choose
from jaxgpt.model.transformer import Config
from jaxgpt.plan import cost as counting
from jaxgpt.plan.compiled import Compiled, bytes_per_device, compile_program, topology_devices
from jaxgpt.plan.hardware import Target
from jaxgpt.plan.roofline import Estimate, step_time


@dataclasses.dataclass(frozen=True)
class Training:
    """What the planner must know of a stage that trains, besides its programs.

    Attributes:
      config: the model.
      batch, length, accumulate: rows and positions of a step, and its micro-batches.
      optimizer, moment_bytes: "adamw" or "muon", and the size of a first moment.
      steps: of the whole stage.
      owner: the stage whose setting the model is.
      rolls_out: whether each step first generates what it learns from.
    """

    config: Config
    batch: int
    length: int
    accumulate: int
    optimizer: str
    moment_bytes: int
    steps: int
    owner: str
    rolls_out: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """The plan of one program of one stage.

    Attributes:
      stage, name: which.
      parameters, optimizer: bytes on a device, of what goes in.
      inputs: bytes of everything else that goes in: the batch, a reference model.
      compiled: what the compiler says; None on a GPU.
      memory: what we count; None where the compiler says.
      training: of a train step; None for other programs.
      cost, estimate: of a train step: what one device does, and how long it takes.
    """

    stage: str
    name: str
    parameters: int
    optimizer: int
    inputs: int
    compiled: Compiled | None = None
    memory: counting.Memory | None = None
    training: Training | None = None
    cost: counting.Cost | None = None
    estimate: Estimate | None = None

    @property
    def peak(self) -> float:
        """Bytes on a device; where it is counted, what goes in, gradients like the parameters, and activations."""
        if self.compiled:
            return self.compiled.peak
        return 2 * self.parameters + self.optimizer + self.inputs + self.memory.activations

    @property
    def between(self) -> float:
        """Bytes of what is neither parameter, optimizer nor input: activations, gradients, what is gathered."""
        return max(self.peak - self.parameters - self.optimizer - self.inputs, 0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of an experiment on a target."""

    experiment: Experiment
    target: Target
    mesh_shape: dict[str, int]
    programs: tuple[Program, ...]

    def fits(self, program: Program) -> bool:
        """Whether a program finds room on its device."""
        return program.peak <= self.capacity(program) and (program.compiled is None or program.compiled.fits)

    def capacity(self, program: Program) -> float:
        """Bytes of a device that a program may use; what the compiler says, where it said so."""
        return (program.compiled and program.compiled.capacity) or self.target.chip.hbm_bytes


def make_plan(experiment: Experiment, target: Target, *, stage: str | None = None, only: str | None = None,
              each: Callable[[Plan, Program], None] = lambda plan, program: None) -> Plan:
    """Plans every program of an experiment.

    Args:
      experiment: what would run.
      target: where.
      stage: the one stage to plan; all where None.
      only: the one program of each stage to plan; all where None.
      each: called with the plan so far and each program of it, as soon as that is made.

    Raises:
      UserError: the layout does not fit the target, a dimension does not divide, libtpu is missing, no stage has
        programs.
    """
    mesh = make_mesh(experiment, target)
    stages = [experiment.stage(stage)] if stage else list(experiment.stages)
    plan = Plan(experiment, target, dict(mesh.shape), ())
    for chosen in stages:
        context = Context(experiment, chosen, Path("plan"), mesh=mesh)
        shardings: dict[str, Any] = {}
        for name, (jitted, arguments) in chosen.programs(context).items():
            if isinstance(arguments, After):
                arguments = arguments.arguments(shardings.get(arguments.program))
            if name != (only or name) or (target.chip.platform == "gpu" and name != "train_step"):
                continue  # where nothing is compiled, only a train step can be counted
            compiled = None
            if target.topology:
                compiled, shardings[name] = compile_program(jitted, arguments, f"{chosen.name}/{name}")
            program = _plan_program(context, target, name, arguments, compiled)
            plan = dataclasses.replace(plan, programs=(*plan.programs, program))
            each(plan, program)
    if not plan.programs:
        raise UserError(f"{stage or experiment.name}: nothing to plan, since no stage of it runs a compiled program")
    return plan


def make_mesh(experiment: Experiment, target: Target) -> Mesh:
    """The experiment's mesh on the target's devices; on GPUs, whose compiler is not here, on as many named by number.

    Raises:
      UserError: the layout does not fit, with the nearest that does.
    """
    if target.topology:
        return sharding.make_mesh(experiment.layout, topology_devices(target))
    return sharding.abstract_mesh(experiment.layout, target.devices)


def training_of(context: Context) -> Training | None:
    """What a stage that trains says of its step; None where it trains nothing."""
    stage: Any = context.stage
    if not hasattr(stage, "optim"):
        return None
    owner = stage
    while not hasattr(owner, "model"):
        owner = context.experiment.stage(owner.start_from)
    batch = getattr(stage, "batch", None) or stage.rows
    length = stage.T if hasattr(stage, "T") else stage.length
    return Training(owner.model, batch, length, stage.accumulate, stage.optim.kind,
                    2 if stage.optim.moments == "bfloat16" else 4, stage.steps, owner.name, hasattr(stage, "rollouts"))


def _holds_scores(context: Context, training: Training, target: Target) -> bool:
    """Whether attention will hold the weights of all pairs of positions; refuses a kernel that cannot be had there."""
    config = training.config
    windows = tuple(dict.fromkeys(config.windows))
    with sharding.in_force(context.mesh, context.rules):
        parts = sharding.parts("seq", training.length)
    chosen = choose(config.attention, platform=target.chip.platform, parts=parts, T=training.length, H=config.H,
                    dtype=config.dtype, windows=windows, segments=not getattr(context.stage, "attend_across", False))
    return chosen == "xla"


def _plan_program(context: Context, target: Target, name: str, arguments: tuple, compiled: Compiled | None) -> Program:
    state = next((argument for argument in arguments if isinstance(argument, TrainState)), None)
    parameters = bytes_per_device(state.params if state else arguments[0])
    optimizer = bytes_per_device((state.opt_state, state.extra)) if state else 0
    inputs = bytes_per_device(arguments) - parameters - optimizer
    if name != "train_step" or not (training := training_of(context)):
        return Program(context.stage.name, name, parameters, optimizer, inputs, compiled)
    axes = dict(context.mesh.shape)
    step = {"batch": training.batch, "length": training.length, "axes": axes, "accumulate": training.accumulate,
            "optimizer": training.optimizer}
    cost = counting.train_cost(training.config, **step, each_token=training.rolls_out)
    memory = None
    if not compiled:
        memory = counting.train_memory(training.config, **step, moment_bytes=training.moment_bytes,
                                       scores=_holds_scores(context, training, target))
    return Program(context.stage.name, name, parameters, optimizer, inputs, compiled, memory, training, cost,
                   step_time(cost, target.chip))
