"""Which layout and rematerialisation policy serve an experiment best on a target: all counted, the best compiled."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment
from jaxgpt.plan import cost as counting
from jaxgpt.plan.hardware import Target
from jaxgpt.plan.plan import Plan, Program, make_plan, training_of
from jaxgpt.plan.roofline import step_time

REMATS = ("none", "dots", "names", "offload", "full")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run the stage, as it is counted.

    Attributes:
      experiment: with the layout, rules and policy.
      layout, remat: what was chosen.
      seconds: of a step.
      peak: bytes on a device.
    """

    experiment: Experiment
    layout: dict[str, int]
    remat: str
    seconds: float
    peak: float


def sweep(experiment: Experiment, target: Target, *, stage: str | None = None, most: int = 6,
          each: Callable[[Candidate, Plan | None], None] = lambda candidate, plan: None,
          ) -> list[tuple[Candidate, Plan]]:
    """Ranks layouts and policies.

    Args:
      experiment: whose stage it is.
      target: where.
      stage: one that trains; the first such where None.
      most: how many of the quickest that should fit are compiled (on a TPU) to be sure of it.
      each: called before (with None) and after each is compiled.

    Returns:
      (candidate, its plan), those that fit first, the quickest first.

    Raises:
      UserError: no stage trains, or nothing divides.
    """
    chosen = stage or _first_that_trains(experiment)
    if not hasattr(experiment.stage(chosen), "optim"):
        raise UserError(f"stage '{chosen}' trains nothing, so there is nothing to sweep; those that train: "
                        + (", ".join(one.name for one in experiment.stages if hasattr(one, "optim")) or "none"))
    found = sorted(candidates(experiment, target, chosen), key=lambda one: one.seconds)
    if not found:
        raise UserError(f"{chosen}: its batch, its positions and its parameters divide by no layout of "
                        f"{target.devices} devices")
    room = 1.15 * target.chip.hbm_bytes  # a count errs by some percent: the compiler has the last word
    likely = [one for one in found if one.peak <= room] or sorted(found, key=lambda one: one.peak)
    planned = []
    for candidate in likely[:most]:
        each(candidate, None)
        plan = make_plan(candidate.experiment, target, stage=chosen, only="train_step")
        planned.append((candidate, plan))
        each(candidate, plan)
    return sorted(planned, key=lambda pair: (not _fits(pair[1]), pair[0].seconds))


def candidates(experiment: Experiment, target: Target, stage: str) -> Iterator[Candidate]:
    """Every layout that divides, with every policy, counted."""
    for layout in layouts(target.devices):
        rules = "fsdp_tensor_sequence" if layout["sequence"] > 1 else "fsdp_tensor" if layout["tensor"] > 1 else "fsdp"
        laid_out = dataclasses.replace(experiment, rules=rules, layout=sharding.Layout(**layout))
        mesh = sharding.abstract_mesh(laid_out.layout, target.devices)
        context = Context(laid_out, laid_out.stage(stage), Path("plan"), mesh=mesh)
        try:
            context.stage.programs(context)  # refuses what does not divide
        except UserError:
            continue
        training = training_of(context)
        for remat in REMATS if hasattr(context.stage, "model") else (training.config.remat,):
            step = {"batch": training.batch, "length": training.length, "axes": layout, "remat": remat,
                    "accumulate": training.accumulate, "optimizer": training.optimizer}
            memory = counting.train_memory(training.config, **step, moment_bytes=training.moment_bytes)
            cost = counting.train_cost(training.config, **step, each_token=training.rolls_out)
            yield Candidate(_with_remat(laid_out, stage, remat), layout, remat, step_time(cost, target.chip).seconds,
                            memory.peak)


def layouts(devices: int) -> Iterator[dict[str, int]]:
    """Every product of powers of two over data, fsdp, tensor and sequence; tensor and sequence at most 8."""
    sizes = [size for size in (2 ** power for power in range(devices.bit_length())) if devices % size == 0]
    for fsdp, tensor, sequence in itertools.product(sizes, sizes, sizes):
        if tensor <= 8 and sequence <= 8 and devices % (fsdp * tensor * sequence) == 0:
            yield {"data": devices // (fsdp * tensor * sequence), "fsdp": fsdp, "tensor": tensor, "sequence": sequence}


def table(ranked: list[tuple[Candidate, Plan]]) -> str:
    """The ranking as text."""
    lines = [f"{'layout':<34}{'remat':<8}{'peak GiB':>10}{'a step':>11}{'MFU':>8}  "]
    for candidate, plan in ranked:
        (program,) = plan.programs
        verdict = "fits" if _fits(plan) else "does not fit"
        lines.append(f"{_named(candidate.layout):<34}{candidate.remat:<8}{program.peak / 2 ** 30:>10.2f}"
                     f"{seconds(candidate.seconds):>11}{program.estimate.mfu:>8.1%}  {verdict}")
    return "\n".join(lines)


def words(candidate: Candidate, stage: str) -> str:
    """The overrides that make an experiment the candidate."""
    parts = [f"layout.{axis}={size}" for axis, size in {**candidate.layout, "expert": 1}.items()]
    parts.append(f"rules={candidate.experiment.rules}")
    parts += [f"{stage}.model.remat={candidate.remat}"] if hasattr(candidate.experiment.stage(stage), "model") else []
    return " ".join(f"--set {part}" for part in parts)


def label(candidate: Candidate) -> str:
    """The candidate in a few words."""
    return f"{_named(candidate.layout)}, remat {candidate.remat}"


def seconds(number: float) -> str:
    """A time as the tables show it.

    >>> seconds(0.01234), seconds(2.5)
    ('12.3 ms', '2.5 s')
    """
    return f"{number * 1000:.3g} ms" if number < 1 else f"{number:.3g} s"


def _with_remat(experiment: Experiment, stage: str, remat: str) -> Experiment:
    """The experiment with another policy of the stage's own model; as it is where the model is an earlier stage's."""
    old = experiment.stage(stage)
    if not hasattr(old, "model"):
        return experiment
    new = dataclasses.replace(old, model=dataclasses.replace(old.model, remat=remat))
    return dataclasses.replace(experiment, stages=tuple(new if one.name == stage else one for one in experiment.stages))


def _first_that_trains(experiment: Experiment) -> str:
    for stage in experiment.stages:
        if hasattr(stage, "optim"):
            return stage.name
    raise UserError(f"{experiment.name}: no stage of it trains, so there is nothing to sweep")


def _named(layout: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in layout.items() if size > 1) or "one device"


def _fits(plan: Plan) -> bool:
    return all(map(plan.fits, plan.programs))
