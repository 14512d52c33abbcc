"""What to change where a program does not fit: the settings to try, and the smallest slice that has room."""

from __future__ import annotations

import math

from jaxgpt.plan.hardware import SLICES
from jaxgpt.plan.plan import Plan, Program

GiB = 2 ** 30


def advice(plan: Plan, program: Program) -> list[str]:
    """Sentences, the cheapest change first, each with the override that makes it.

    Args:
      plan: that the program belongs to.
      program: one that does not fit.
    """
    capacity, state, copies = plan.capacity(program), program.parameters + program.optimizer, _copies(plan)
    texts = []
    if state > 0.3 * capacity and copies > 1:
        others = math.prod(plan.mesh_shape[axis] for axis in ("tensor", "sequence", "expert"))
        rules = " --set rules=fsdp" if plan.experiment.rules == "replicated" else ""
        texts.append("split the state over all devices: --set layout.data=1 --set layout.fsdp="
                     f"{plan.target.devices // others}{rules} (it is held {copies} times, {state / GiB:.1f} GiB on "
                     "each device)")
    if program.training and state < capacity:
        texts += _smaller_steps(plan, program)
    if program.optimizer and program.training and program.training.moment_bytes == 4:
        texts.append(f"keep moments in bfloat16: --set {program.stage}.optim.moments=bfloat16")
    texts.append(_larger_slice(plan, state / copies * plan.target.devices))
    return texts


def _smaller_steps(plan: Plan, program: Program) -> list[str]:
    training, texts = program.training, []
    stronger = {"none": "names", "dots": "names", "names": "full", "offload": "full"}.get(training.config.remat)
    if stronger:
        texts.append(f"recompute more in the backward pass: --set {training.owner}.model.remat={stronger}")
    devices = math.prod(plan.mesh_shape[axis] for axis in ("data", "fsdp", "expert"))
    rows = training.batch // (devices * training.accumulate)
    if rows > 1:
        factor = next(number for number in range(2, rows + 1) if rows % number == 0)
        texts.append(f"fewer rows at once, {rows // factor} instead of {rows} a device: --set "
                     f"{program.stage}.accumulate={training.accumulate * factor}")
    elif plan.mesh_shape["sequence"] == 1 and plan.mesh_shape["fsdp"] % 2 == 0:
        texts.append("split the positions of a sequence: --set rules=fsdp_tensor_sequence --set layout.sequence=2 "
                     f"--set layout.fsdp={plan.mesh_shape['fsdp'] // 2}")
    if training.config.loss_chunk is None or training.config.loss_chunk > 1024:
        texts.append(f"smaller chunks of logits: --set {training.owner}.model.loss_chunk=1024")
    return texts


def _larger_slice(plan: Plan, state: float) -> str:
    """The smallest larger slice on which the state, split over all of it, leaves half of the memory for the rest."""
    chip, needed = plan.target.chip, max(state / (0.5 * plan.target.chip.hbm_bytes), plan.target.devices + 1)
    if chip.platform == "gpu":
        return f"or take more: {chip.name}-{8 * math.ceil(needed / 8)}"
    for size, shape in SLICES[chip.name].items():
        if math.prod(shape) >= needed:
            return f"or take a larger slice: --on {chip.name}-{size}, with layout.data=1 and layout.fsdp=-1"
    return f"there is no larger slice of {chip.name} that would do: the state is {state / GiB:,.0f} GiB in all"


def _copies(plan: Plan) -> int:
    """How many devices hold the same piece of the state."""
    split = {"replicated": (), "fsdp": ("fsdp",)}.get(plan.experiment.rules, ("fsdp", "tensor"))
    return plan.target.devices // math.prod(plan.mesh_shape[axis] for axis in split)
