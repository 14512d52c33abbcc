"""A plan as people read it."""

from __future__ import annotations

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.metrics import duration
from jaxgpt.plan import sweep
from jaxgpt.plan.advice import advice
from jaxgpt.plan.hardware import Target
from jaxgpt.plan.plan import Plan, Program
from jaxgpt.plan.sweep import seconds

GiB = 2 ** 30


def heading(plan: Plan) -> str:
    """The line that says what is planned, and where."""
    target, sizes = plan.target, {axis: size for axis, size in plan.mesh_shape.items() if size > 1}
    layout = " x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"
    shape = f" ({target.topology.split(':')[1]})" if target.topology else ""
    hosts = "1 host" if target.hosts == 1 else f"{target.hosts} hosts"
    return (f"{plan.experiment.name} on {target.text}: {target.devices} x {target.chip.name}{shape}, {hosts}; layout "
            f"{layout}, rules '{plan.experiment.rules}'")


def program_lines(plan: Plan, program: Program, price: float | None = None) -> list[str]:
    """The plan of one program, a few lines of text.

    Args:
      plan: that it belongs to.
      program: which.
      price: of one chip for an hour, in any currency; None leaves the cost out.
    """
    compiled = f"compiled in {duration(program.compiled.seconds)}" if program.compiled else "counted, not compiled"
    lines = [f"{program.stage}/{program.name}  ({compiled})", _row("memory a device", _memory(plan, program))]
    if program.estimate:
        lines += _step(plan, program, price)
    if program.compiled and program.compiled.collectives:
        lines += _collectives(program)
    if not plan.fits(program):
        lines += [_row("" if number else "to make it fit", text) for number, text in enumerate(advice(plan, program))]
    return lines


def print_sweep(experiment: Experiment, target: Target, *, stage: str | None = None) -> bool:
    """Prints a sweep as it goes and its ranking; returns whether anything fits."""
    def each(candidate, plan):
        if plan is None:
            return
        (program,) = plan.programs
        verdict = "fits" if plan.fits(program) else "does not fit"
        print(f"{sweep.label(candidate)}: {_memory_size(program.peak)} a device, {verdict}; "
              f"{seconds(candidate.seconds)} a step", flush=True)

    ranked = sweep.sweep(experiment, target, stage=stage, each=each)
    best, plan = ranked[0]
    print(f"\n{sweep.table(ranked)}")
    if fits := all(map(plan.fits, plan.programs)):
        print(f"\nthe best: {sweep.words(best, plan.programs[0].stage)}")
    return fits


def _memory(plan: Plan, program: Program) -> str:
    capacity = plan.capacity(program)
    parts = [f"parameters {_memory_size(program.parameters)}"]
    parts += [f"optimizer {_memory_size(program.optimizer)}"] if program.optimizer else []
    parts += [f"inputs {_memory_size(program.inputs)}", f"activations and the rest {_memory_size(program.between)}"]
    if program.compiled and program.compiled.host:
        parts += [f"on the host {_memory_size(program.compiled.host)}"]
    verdict = "fits" if plan.fits(program) else "DOES NOT FIT"
    return (f"{', '.join(parts)}: peak {_memory_size(program.peak)} of {_memory_size(capacity)} "
            f"({program.peak / capacity:.0%}), {verdict}")


def _step(plan: Plan, program: Program, price: float | None) -> list[str]:
    cost, estimate, training = program.cost, program.estimate, program.training
    rate = estimate.tokens_per_second
    run = estimate.seconds * training.steps
    spent = f", {run / 3600 * cost.devices:,.1f} chip-hours"
    if price is not None:
        spent += f", {run / 3600 * cost.devices * price:,.2f} at {price:g} a chip-hour"
    spent += "; its rollouts not counted" if training.rolls_out else ""
    links = sum(exchange.wire_bytes() for exchange in cost.collectives)
    return [
        _row("a step", f"{cost.tokens:,} tokens, {_si(cost.model_flops)}FLOP (causal), {_si(cost.flops)}FLOP a device "
                       f"with what is recomputed; memory moves {_si(cost.memory_bytes)}B, links {_si(links)}B a "
                       "device"),
        _row("time", f"{_least(estimate.seconds)}{seconds(estimate.seconds)} a step, MFU {estimate.mfu:.1%}, "
                     f"{rate:,.0f} tokens/s, {rate / cost.devices:,.0f} a device; bound by {estimate.binding}"),
        _row("of which", f"at the maker's figures, partly at once: products {seconds(estimate.compute)}, memory "
                         f"{seconds(estimate.memory)}, links {seconds(estimate.links + estimate.network)}"),
        _row("the whole stage", f"{training.steps:,} steps, {training.steps * cost.tokens:,} tokens: "
                                f"{_least(estimate.seconds)}{duration(run)}{spent}"),
    ]


def _least(seconds: float) -> str:
    """Below some milliseconds, starting a program's many parts takes longer than what they do, which nobody counts."""
    return "at least " if seconds < 5e-3 else ""


def _collectives(program: Program, most: int = 4) -> list[str]:
    found = program.compiled.collectives
    texts = [f"{one.count:,} x {one.kind} of {_si(one.size)}B over {one.group}" for one in found[:most]]
    if len(found) > most:
        rest = sum(one.sent for one in found[most:])
        texts.append(f"and {sum(one.count for one in found[most:]):,} smaller ones, {_si(rest)}B in all")
    return [_row("collectives" if not number else "", text) for number, text in enumerate(texts)]


def _row(label: str, text: str) -> str:
    return f"  {label:<17}{text}"


def _memory_size(size: float) -> str:
    for unit, name in ((GiB, "GiB"), (2 ** 20, "MiB")):
        if size >= 0.1 * unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size / 1024:,.0f} KiB"


def _si(number: float) -> str:
    """A number with a prefix: 1.5 G, 3.2 T."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            break
        number /= 1000
    else:
        prefix = "E"
    return f"{number:.3g} {prefix}"
