"""How the cost of a training step grows with batch, context, depth and devices: measured here, planned for a TPU.

  python tests/benchmarks/growth.py --plot growth                     five minutes on 2 cores; pictures in a folder
  python tests/benchmarks/growth.py --only planned --compile          memory too, by the TPU's compiler: 15 minutes

Measured: the step of `Pretrain` on this machine, a small model, the median of several steps. Planned: the time model
(`jaxgpt/plan/roofline.py`) on v5p chips, Llama 3.2 1B; contexts beyond 8,192 split each sequence over 4 chips. The slope
is that of log(seconds) over log(size), fitted to all points: 1 is linear, 0 is free. The compiler is asked about the first
and the last point of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxgpt.core import sharding  # noqa: E402
from jaxgpt.core.experiment import Context, Experiment  # noqa: E402
from jaxgpt.core.memory import keep_freed_memory  # noqa: E402
from jaxgpt.core.optim import Optim  # noqa: E402
from jaxgpt.core.sharding import Layout  # noqa: E402
from jaxgpt.curation.programs import Curate  # noqa: E402
from jaxgpt.curation.sources import Jsonl  # noqa: E402
from jaxgpt.data.programs import Tokenize  # noqa: E402
from jaxgpt.evals.plot import Series, line_chart  # noqa: E402
from jaxgpt.model import presets  # noqa: E402
from jaxgpt.model.transformer import Config  # noqa: E402
from jaxgpt.plan import cost  # noqa: E402
from jaxgpt.plan.hardware import parse_target  # noqa: E402
from jaxgpt.plan.plan import make_plan  # noqa: E402
from jaxgpt.plan.roofline import step_time  # noqa: E402
from jaxgpt.pretrain.programs import Pretrain  # noqa: E402

SMALL = Config(vocab_size=512, context=2048, layers=4, width=128, heads=4, loss_chunk=None)
LARGE = presets.on_tpu(presets.llama3("1B", context=32768), remat="full", loss_chunk=1024)
MEASURED = {"batch": (4, 8, 16, 32, 64), "context": (64, 128, 256, 512, 1024, 2048), "depth": (1, 2, 4, 8, 16)}
PLANNED = {"batch": (16, 32, 64, 128, 256), "context": (1024, 2048, 4096, 8192, 16384, 32768), "depth": (8, 16, 32, 64),
           "devices": (4, 8, 16, 32, 64)}


def experiment(config: Config, batch: int, length: int, layout: Layout, rules: str = "fsdp") -> Experiment:
    stage = Pretrain(model=config, optim=Optim(), tokens=batch * length, batch=batch, length=length)
    return Experiment(name="growth", layout=layout, rules=rules,
                      stages=(Curate(source=Jsonl("none")), Tokenize(tokenizer="gpt2"), stage))


def measured(axis: str, size: int, steps: int) -> float:
    """Seconds of a step on this machine."""
    config = presets.on_cpu(dataclasses.replace(SMALL, layers=size if axis == "depth" else SMALL.layers))
    batch, length = (size if axis == "batch" else 8), (size if axis == "context" else 128)
    chosen = experiment(config, batch, length, Layout())
    stage = chosen.stages[-1]
    context = Context(chosen, stage, Path("none"), mesh=sharding.make_mesh(Layout(), jax.devices()[:1]))
    trainable = stage.trainable(context)
    state, rng = trainable.create(jax.random.key(0)), np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (batch, length + 1), np.int32)
    row = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((batch, length), np.float32),
           "segment_ids": np.ones((batch, length), np.int32),
           "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))}
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        state, metrics = trainable.step(state, (), row)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def layout_of(axis: str, size: int) -> tuple[int, Layout, str]:
    """(devices, layout, rules) of a planned point."""
    devices = size if axis == "devices" else 16
    if axis == "context" and size > 8192:
        return devices, Layout(data=1, fsdp=devices // 4, sequence=4), "fsdp_tensor_sequence"
    return devices, Layout(data=1, fsdp=devices), "fsdp"


def planned(axis: str, size: int, compiled: bool) -> tuple[float, float | None]:
    """(seconds of a step, bytes on a chip where the compiler was asked). Batch and context are those of all chips."""
    config = dataclasses.replace(LARGE, layers=size if axis == "depth" else LARGE.layers)
    devices, layout, rules = layout_of(axis, size)
    batch = size if axis == "batch" else devices if axis == "devices" else 16
    length = size if axis == "context" else 2048
    target = parse_target(f"v5p-{2 * devices}")
    counts = cost.train_cost(config, batch=batch, length=length, axes=dataclasses.asdict(layout))
    peak = None
    if compiled:
        plan = make_plan(experiment(config, batch, length, layout, rules), target, only="train_step")
        peak = plan.programs[0].peak
    return step_time(counts, target.chip).seconds, peak


def slope(points: list[tuple[float, float]]) -> float:
    """d log y / d log x, by least squares."""
    x, y = np.log(np.array(points, float)).T
    return float(np.polyfit(x, y, 1)[0])


def found(where: str, axis: str, sizes: tuple[int, ...], steps: int, compiled: bool) -> list[tuple]:
    """(seconds, bytes on a chip or None) at each size."""
    if where == "measured":
        return [(measured(axis, size, steps), None) for size in sizes]
    return [planned(axis, size, compiled and size in (sizes[0], sizes[-1])) for size in sizes]


def row(where: str, axis: str, points: list[tuple[float, float]], peaks: list[float | None]) -> str:
    """One line of the table."""
    memory = ", ".join(f"{peak / 2 ** 30:.1f}" if peak else "…" for peak in peaks) if any(peaks) else ""
    return (f"| {axis} | {where} | {', '.join(f'{size:,}' for size, _ in points)} | "
            f"{', '.join(f'{seconds:.3g}' for _, seconds in points)} | {slope(points):.2f} | {memory} |")


def picture(where: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """Every curve, relative to its first point."""
    relative = {axis: np.log2(np.array(points) / points[0]) for axis, points in curves.items()}
    return line_chart([Series(axis, tuple((float(x), float(y)) for x, y in points)) for axis, points in relative.items()],
                      title=f"Time of a step as one thing grows, {where}", x_label="times the first size, log2",
                      y_label="times the first step, log2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("measured", "planned"), help="half of the table")
    parser.add_argument("--steps", type=int, default=10, help="measured for each point (default: 10)")
    parser.add_argument("--compile", action="store_true", help="ask the TPU's compiler for the memory of planned points")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="for measured.svg and planned.svg")
    parser.add_argument("--smoke", action="store_true", help="two points of each, to see that it runs")
    arguments = parser.parse_args()
    keep_freed_memory()
    few = slice(2) if arguments.smoke else slice(None)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit}, {os.cpu_count()} CPU cores; jax {jax.__version__}")
    print("| grows | where | sizes | seconds a step | slope | GiB a chip |\n|---|---|---|---|---|---|")
    for where, axes in (("measured", MEASURED), ("planned", PLANNED)):
        if arguments.only not in (None, where):
            continue
        curves = {}
        for axis, sizes in axes.items():
            seconds, peaks = zip(*found(where, axis, sizes[few], arguments.steps, arguments.compile))
            curves[axis] = list(zip(sizes, seconds))
            print(row(where, axis, curves[axis], peaks), flush=True)
        if arguments.plot:
            arguments.plot.mkdir(parents=True, exist_ok=True)
            (arguments.plot / f"{where}.svg").write_text(picture(where, curves))
    return 0


if __name__ == "__main__":
    sys.exit(main())
