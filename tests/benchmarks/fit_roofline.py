"""Fits the constants of `jaxgpt.plan.roofline` to half of the published steps and prints the errors on the other half.

  python tests/benchmarks/fit_roofline.py              the constants and the table, as Markdown
  python tests/benchmarks/fit_roofline.py --reversed   fitted on the half that is otherwise left out
  python tests/benchmarks/fit_roofline.py --models     each model left out in turn
  python tests/benchmarks/fit_roofline.py --recipes    our 8B recipe beside published steps of its size, chip by chip
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from jaxgpt.model import presets
from jaxgpt.plan import cost, published, roofline
from jaxgpt.plan.hardware import parse_target

TPUS, GPUS = ("v5e", "v5p", "v6e"), ("gpu",)


def times(point: published.Point) -> roofline.Times:
    """The parts of a published step at the maker's figures."""
    return roofline.device_times(point.cost, point.chip, point.slice_devices)


def fit(points) -> dict[str, roofline.Constants]:
    """Constants of the chips among the points: TPUs share some, GPUs share others."""
    steps: dict[str, list] = {}
    for point in points:
        steps.setdefault(point.chip_name, []).append((times(point), point.seconds))
    tpu = {chip: of_chip for chip, of_chip in steps.items() if chip in TPUS}
    gpu = {chip: of_chip for chip, of_chip in steps.items() if chip not in TPUS}
    found = roofline.fit(gpu, own=("product",)) if gpu else {}
    for chip in ("a100", "h100"):  # where a split leaves none of one kind, the other's serve
        found.update({chip: found.get(chip) or next(iter(found.values()))} if found else {})
    return {**(roofline.fit(tpu) if tpu else {}), **found}


def best_constant_mfu(points) -> float:
    """The one utilisation whose mean |log(it / published)| is smallest: the median."""
    return float(np.exp(np.median(np.log([point.mfu for point in points]))))


def planned_mfu(point: published.Point, constants: dict[str, roofline.Constants]) -> float:
    """Utilisation by the roofline."""
    seconds = roofline.combine(times(point), constants[point.chip_name])
    return point.mfu * point.seconds / seconds


def shipped() -> dict[str, roofline.Constants]:
    """What `roofline.CONSTANTS` holds: TPUs as fitted on the half; GPUs, too few for that, on all steps."""
    tpu = fit([point for family, points in halves()[0].items() if family in TPUS for point in points])
    return {**tpu, **fit(published.families()["gpu"])}


def step_error(planned: float, point: published.Point) -> float:
    """Planned step time over the published one, less 1."""
    return point.mfu / planned - 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A published step beside what the roofline and a constant say; errors are of the step time."""

    point: published.Point
    family: str
    left_out: bool
    planned: float
    error: float
    constant_error: float


def rows(fitted: dict[str, tuple], left_out: dict[str, tuple]) -> list[Row]:
    """Fits on one part, with each family's best constant on the same part, and gives the errors of both parts."""
    constants = fit([point for points in fitted.values() for point in points])
    table = []
    for family in fitted:
        mfu = best_constant_mfu(fitted[family])
        for point in (*fitted[family], *left_out[family]):
            planned = planned_mfu(point, constants)
            table.append(Row(point, family, point in left_out[family], planned, step_error(planned, point),
                             step_error(mfu, point)))
    return table


def halves(turned: bool = False) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """The points to fit and those left out, for each family, by the rule of `published.split`."""
    parts = {family: published.split(points)[::-1 if turned else 1] for family, points in published.families().items()}
    return {family: part[0] for family, part in parts.items()}, {family: part[1] for family, part in parts.items()}


def without_each_model() -> list[Row]:
    """Every point by constants that no step of its model had a part in, on any chip of its family."""
    families, table = published.families(), []
    for family, points in families.items():
        for model in dict.fromkeys(point.model for point in points):
            kept = {name: tuple(p for p in of if name != family or p.model != model) for name, of in families.items()}
            out = {name: tuple(p for p in of if name == family and p.model == model) for name, of in families.items()}
            relevant = GPUS if family in GPUS else TPUS
            found = rows({name: kept[name] for name in relevant}, {name: out[name] for name in relevant})
            table += [row for row in found if row.left_out]
    return table


def summary(table: list[Row]) -> dict[str, tuple[int, float, float]]:
    """For each family, and for "TPU": steps left out, mean error of the roofline, mean error of the constant."""
    groups = {family: [row for row in table if row.left_out and row.family == family] for family in (*TPUS, *GPUS)}
    groups["TPU"] = [row for family in TPUS for row in groups[family]]
    return {name: (len(group), *(float(np.mean([abs(getattr(row, error)) for row in group]))
                                 for error in ("error", "constant_error"))) for name, group in groups.items() if group}


def print_summary(table: list[Row]) -> None:
    print("| chip | steps left out | mean error | best constant MFU's | ratio |\n|---|---|---|---|---|")
    for name, (count, error, constant) in summary(table).items():
        print(f"| {name} | {count} | {error:.1%} | {constant:.1%} | {error / constant:.2f} |")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Llama 3 8B as `presets.on_tpu` runs it, its state split over a slice, and the step published for that chip and size."""

    on: str
    rows: int  # for each chip
    length: int
    remat: str
    beside: str

    @property
    def planned(self) -> tuple[float, float]:
        """(utilisation, share of the memory), both counted."""
        target = parse_target(self.on)
        config = presets.on_tpu(presets.llama3("8B", context=self.length), remat=self.remat)
        step = {"batch": self.rows * target.devices, "length": self.length, "axes": {"data": 1, "fsdp": target.devices}}
        counted = cost.train_cost(config, **step)
        seconds = roofline.step_time(counted, target.chip).seconds
        return (counted.model_flops / (target.devices * target.chip.bf16_flops * seconds),
                cost.train_memory(config, **step).peak / target.chip.hbm_bytes)

    @property
    def published(self) -> float:
        return next(point.mfu for point in published.POINTS if point.name == self.beside)


RECIPES = (
    Recipe("v5e-256", 2, 4096, "names", "Fuji-7B, 4 x v5e-256"),
    Recipe("v5p-512", 4, 4096, "dots", "Fuji-7B, v5p-512"),
    Recipe("v6e-256", 2, 8192, "names", "Llama-3.1-8B, v6e-256"),
)


def print_recipes() -> None:
    print("| on | rows a chip x positions | remat | memory | planned MFU | published MFU |\n|---|---|---|---|---|---|")
    for recipe in RECIPES:
        mfu, memory = recipe.planned
        print(f"| {recipe.on} | {recipe.rows} x {recipe.length:,} | {recipe.remat} | {memory:.0%} | {mfu:.1%} "
              f"| {recipe.published:.1%} ({recipe.beside}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reversed", action="store_true")
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--recipes", action="store_true")
    arguments = parser.parse_args()
    if arguments.recipes:
        return print_recipes()
    if arguments.models:
        return print_summary(without_each_model())
    table = rows(*halves(arguments.reversed))
    print("| step | published MFU | planned MFU | error of step time | constant's | |\n|---|---|---|---|---|---|")
    for row in table:
        print(f"| {row.point.name} | {row.point.mfu:.1%} | {row.planned:.1%} | {row.error:+.1%} "
              f"| {row.constant_error:+.1%} | {'left out' if row.left_out else 'fitted'} |")
    print()
    print_summary(table)
    print()
    for chip, of_chip in shipped().items():
        print(f'    "{chip}": Constants({", ".join(map(str, dataclasses.astuple(of_chip)))}),')


if __name__ == "__main__":
    main()
