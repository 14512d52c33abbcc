"""For each model and chip, the smallest slice on which its training step fits with 5% of the memory to spare.

  python tests/benchmarks/smallest_slices.py                    all models on v5e, v5p and v6e: an hour on 2 cores
  python tests/benchmarks/smallest_slices.py --models gpt2-124M llama3-8B --chips v5p

One step takes 8,192 tokens a chip (rows of the model's context), in bfloat16 with float32 parameters and AdamW moments
(Muon for the depth models), everything recomputed, the state split over all chips. Our own count says where to begin;
then the TPU's compiler is asked, one slice smaller while it fits and one larger while it does not. Each answer is
printed as it comes, and the table, as Markdown, at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import subprocess
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from jaxgpt.core.errors import UserError  # noqa: E402
from jaxgpt.core.experiment import Experiment  # noqa: E402
from jaxgpt.core.optim import Optim  # noqa: E402
from jaxgpt.core.sharding import Layout  # noqa: E402
from jaxgpt.curation.programs import Curate  # noqa: E402
from jaxgpt.curation.sources import Jsonl  # noqa: E402
from jaxgpt.data.programs import Tokenize  # noqa: E402
from jaxgpt.model import presets  # noqa: E402
from jaxgpt.plan import cost  # noqa: E402
from jaxgpt.plan.hardware import SLICES, Target, parse_target  # noqa: E402
from jaxgpt.plan.plan import make_plan  # noqa: E402
from jaxgpt.pretrain.programs import Pretrain  # noqa: E402

ROOM, TOKENS_A_CHIP = 0.95, 8192


def models() -> dict:
    """(config, optimizer) by name."""
    adamw, found = Optim(), {}
    for size in ("124M", "1558M"):
        found[f"gpt2-{size}"] = (presets.gpt2(size, vocab_size=50304), adamw)
    for layers in (20, 26):
        size = presets.depth(layers, vocab_size=32768, context=2048)
        found[f"depth-{layers}"] = (size.model, size.optim)
    for size in ("1B", "8B", "70B", "405B"):
        found[f"llama3-{size}"] = (presets.llama3(size), adamw)
    return {name: (presets.on_tpu(config, remat="full", loss_chunk=1024), optim) for name, (config, optim) in found.items()}


def experiment(name: str, config, optim: Optim, target: Target) -> Experiment:
    """One step on the target. The state is split over as many chips as divide every dimension that is split."""
    fsdp = math.gcd(target.devices, config.width)
    layout = Layout(data=target.devices // fsdp, fsdp=fsdp)
    batch = target.devices * (TOKENS_A_CHIP // config.context)
    stage = Pretrain(model=config, optim=optim, tokens=batch * config.context, batch=batch)
    return Experiment(name=name, layout=layout, stages=(Curate(source=Jsonl("none")), Tokenize(tokenizer="gpt2"), stage))


def counted(name: str, config, optim: Optim, target: Target) -> float:
    """The share of the memory that our own count says a step takes."""
    chosen = experiment(name, config, optim, target)
    stage, axes = chosen.stages[-1], dataclasses.asdict(chosen.layout)
    memory = cost.train_memory(config, batch=stage.batch, length=stage.T, axes=axes, optimizer=optim.kind)
    return memory.peak / target.chip.hbm_bytes


class Search:
    """Asks the compiler about one model on the slices of one chip."""

    def __init__(self, name: str, config, optim: Optim, chip: str):
        self.name, self.config, self.optim, self.seen = name, config, optim, {}
        self.targets = [parse_target(f"{chip}-{size}") for size in SLICES[chip]]

    def share(self, index: int) -> float:
        """Of the memory, on the slice at `index`; printed when it is first asked for."""
        if index not in self.seen:
            target, began = self.targets[index], time.monotonic()
            chosen = experiment(self.name, self.config, self.optim, target)
            plan = make_plan(chosen, target, only="train_step")
            (program,) = plan.programs
            self.seen[index] = program.peak / target.chip.hbm_bytes, program.peak / 2 ** 30
            print(f"{self.name} on {target.text}: {self.seen[index][1]:.2f} GiB a chip, {self.seen[index][0]:.0%} "
                  f"({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
        return self.seen[index][0]

    def smallest(self) -> str:
        """The cell of the table."""
        shares = [counted(self.name, self.config, self.optim, target) for target in self.targets]
        index = next((i for i, share in enumerate(shares) if share <= ROOM), len(shares) - 1)
        while index > 0 and self.share(index) <= ROOM:
            index -= 1
        while index < len(shares) - 1 and self.share(index) > ROOM:
            index += 1
        if self.share(index) > ROOM:
            return f"none (on {self.targets[index].text} {self.seen[index][1]:,.1f} GiB)"
        return f"{self.targets[index].text} ({self.seen[index][1]:,.1f} GiB)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(models()), choices=list(models()), metavar="MODEL")
    parser.add_argument("--chips", nargs="+", default=list(SLICES), choices=list(SLICES), metavar="CHIP")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = []
    try:
        for name in arguments.models:
            rows.append([name, *(Search(name, *models()[name], chip).smallest() for chip in arguments.chips)])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"commit {commit}; memory that a program may use: "
          + ", ".join(f"{chip} {parse_target(f'{chip}-8').chip.hbm_bytes / 2 ** 30:.2f} GiB" for chip in arguments.chips))
    for row in [["model", *arguments.chips], ["---"] * (1 + len(arguments.chips)), *rows]:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
