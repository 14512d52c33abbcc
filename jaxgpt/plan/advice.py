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
    capacity, state = plan.capacity(program), program.parameters + program.optimizer
    texts = []
    whole = _unsplit(plan)
    if state > 0.5 * capacity and whole > 1:
        texts.append(f"split the state over all devices: --set layout.data=1 --set layout.fsdp={plan.target.devices} (it is "
                     f"held {whole} times, {state / GiB:.1f} GiB on each device)")
    if program.training and state < capacity:
        texts += _smaller_steps(plan, program)
    if program.optimizer and program.training and program.training.moment_bytes == 4:
        texts.append(f"keep moments in bfloat16: --set {program.stage}.optim.moments=bfloat16")
    texts.append(_larger_slice(plan, program, whole))
    return texts


def _smaller_steps(plan: Plan, program: Program) -> list[str]:
    training, texts = program.training, []
    stronger = {"none": "names", "dots": "names", "names": "full"}.get(training.config.remat)
    if stronger:
        texts.append(f"recompute more in the backward pass: --set {program.stage}.model.remat={stronger}")
    rows = training.batch // (_rows_split(plan) * training.accumulate)
    if rows > 1:
        texts.append(f"fewer rows at once, {rows // 2} instead of {rows} a device: --set {program.stage}.accumulate="
                     f"{training.accumulate * 2}")
    elif plan.mesh_shape["sequence"] == 1:
        texts.append("split the positions of a sequence: --set rules=fsdp_tensor_sequence --set layout.sequence=2")
    if training.config.loss_chunk is None or training.config.loss_chunk > 1024:
        texts.append(f"smaller chunks of logits: --set {program.stage}.model.loss_chunk=1024")
    return texts


def _larger_slice(plan: Plan, program: Program, whole: int) -> str:
    """The smallest slice on which the state, split over all of it, leaves half of the memory for the rest."""
    chip, state = plan.target.chip, (program.parameters + program.optimizer) / whole * plan.target.devices
    needed = max(math.ceil(state / (0.5 * chip.hbm_bytes)), plan.target.devices + 1)
    if chip.platform == "gpu":
        return f"or take more: {chip.name}-{8 * math.ceil(needed / 8)}"
    for size, shape in SLICES[chip.name].items():
        if math.prod(shape) >= needed:
            return f"or a larger slice: --on {chip.name}-{size}, the state split over all of it by layout.fsdp=-1"
    return f"no slice of {chip.name} is large enough: its state alone is {state / GiB:,.0f} GiB in all"


def _unsplit(plan: Plan) -> int:
    """How many devices hold the same piece of the state."""
    split = {"replicated": (), "fsdp": ("fsdp",)}.get(plan.experiment.rules, ("fsdp", "tensor"))
    return plan.target.devices // math.prod(plan.mesh_shape[axis] for axis in split)


def _rows_split(plan: Plan) -> int:
    return math.prod(plan.mesh_shape[axis] for axis in ("data", "fsdp", "expert"))
