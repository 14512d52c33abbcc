"""Characters of Shakespeare against nanoGPT on PyTorch: step time paired in one run, and loss after the same steps.

  pip install torch==2.13.0
  git clone https://github.com/karpathy/nanoGPT
  python tests/benchmarks/shakespeare_char.py --nanogpt nanoGPT                      # step time
  python tests/benchmarks/shakespeare_char.py --nanogpt nanoGPT --seeds 0 1 2        # and three whole runs of each

Both sides see the same training characters, have the same size, and are judged on the whole validation split in windows of
64. Each lives in a process of its own with all cores; they take turns, a block of steps at a time, so that whatever else the
machine does falls on both. Nothing of the peer is copied here: its model.py is imported from the folder given.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ROWS, LENGTH, STEPS = 12, 64, 2000


# --- the two sides: step(), validate(), restart(seed) ----------------------------------------------------------------

class NanoGPT:
    """The peer, trained as its train.py does with the flags of its quickstart for CPUs."""

    def __init__(self, folder: str, workdir: str):
        import numpy as np
        import torch
        sys.path.insert(0, folder)
        self.torch, self.np = torch, np
        text = {split: read(workdir, split) for split in ("train", "val")}
        letters = sorted(set(text["train"] + text["val"]))
        self.vocabulary = len(letters)
        self.data = {split: np.array([letters.index(c) for c in value], np.int64) for split, value in text.items()}

    def restart(self, seed: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            from model import GPT, GPTConfig
            self.torch.manual_seed(seed)
            self.model = GPT(GPTConfig(block_size=LENGTH, vocab_size=self.vocabulary, n_layer=4, n_head=4, n_embd=128,
                                       dropout=0.0, bias=False))
            self.optimizer = self.model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        self.done = 0

    def steps(self, count: int) -> None:
        for _ in range(count):
            warm, rest = self.done / 100, (self.done - 100) / (STEPS - 100)
            rate = 1e-3 * warm if warm < 1 else 1e-4 + 0.5 * (1 + math.cos(math.pi * rest)) * 9e-4
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            starts = self.torch.randint(len(self.data["train"]) - LENGTH, (ROWS,))
            rows = self.np.stack([self.data["train"][i:i + LENGTH + 1] for i in starts])
            rows = self.torch.from_numpy(rows)
            _, loss = self.model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.done += 1

    def validate(self) -> float:
        data = self.torch.from_numpy(self.data["val"])
        count = (len(data) - 1) // LENGTH
        x, y = data[:count * LENGTH].view(count, LENGTH), data[1:count * LENGTH + 1].view(count, LENGTH)
        with self.torch.no_grad():
            return sum(self.model(x[i:i + 64], y[i:i + 64])[1].item() * len(x[i:i + 64])
                       for i in range(0, count, 64)) / count


class Ours:
    """An experiment's pretraining, by the step and the loader that `jaxgpt run` uses."""

    def __init__(self, experiment: str, workdir: str):
        from jaxgpt.core import config, sharding
        from jaxgpt.core.experiment import Context
        from jaxgpt.core.memory import keep_freed_memory
        keep_freed_memory()
        self.experiment = config.load(experiment)
        self.stage = self.experiment.stage("pretrain")
        self.context = Context(self.experiment, self.stage, Path(workdir))
        self.rows = sharding.batch_sharding(self.context.mesh, self.context.rules)
        self.trainable = self.stage.trainable(self.context)

    def restart(self, seed: int) -> None:
        import jax
        from jaxgpt.data.loader import batches
        self.state = self.trainable.create(jax.random.key(seed))
        self.batches = batches(self.context.path("tokenize", "shards"), "train", batch=ROWS, length=LENGTH, seed=seed)

    def steps(self, count: int) -> None:
        import jax
        from jaxgpt.core import sharding
        for _ in range(count):
            self.state, metrics = self.trainable.step(self.state, (), sharding.put(next(self.batches), self.rows))
        jax.block_until_ready(metrics)

    def validate(self) -> float:
        from jaxgpt.data.loader import evaluation_batches
        from jaxgpt.pretrain.evaluate import validation
        from jaxgpt.tokenizer.tokenizer import Tokenizer
        rows = evaluation_batches(self.context.path("tokenize", "shards"), "val", batch=64, length=LENGTH)
        tokenizer = Tokenizer.load(self.context.path("tokenize", "tokenizer"))
        return validation(self.state.params, rows, config=self.stage.model, token_bytes=tokenizer.token_bytes(),
                          mesh=self.context.mesh, rules=self.context.rules)["val_loss"]


def read(workdir: str, split: str) -> str:
    """The text of a split as our pipeline divided it."""
    from jaxgpt.curation.pipeline import read_corpus
    return "".join(item.text for item in read_corpus(Path(workdir) / "curate", split))


# --- a worker process for each side ----------------------------------------------------------------------------------

def work(side) -> None:
    """Answers `restart SEED`, `steps N` (with seconds) and `validate` on standard input."""
    for line in sys.stdin:
        verb, *rest = line.split()
        began = time.perf_counter()
        value = getattr(side, verb)(*map(int, rest))
        print(json.dumps({"value": value, "seconds": time.perf_counter() - began}), flush=True)


class Worker:
    def __init__(self, name: str, *arguments: str):
        command = [sys.executable, __file__, "--worker", *arguments]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, verb: str, *numbers: int) -> dict:
        self.process.stdin.write(" ".join([verb, *map(str, numbers)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process died")
        return json.loads(line)


def step_times(workers: list[Worker], rounds: int, block: int) -> None:
    """Medians over rounds of alternating blocks; ratios are of each round's pair."""
    times = {worker.name: [] for worker in workers}
    for worker in workers:
        worker("restart", 0)
        worker("steps", 20)
    for number in range(rounds):
        for worker in workers if number % 2 else workers[::-1]:
            times[worker.name].append(worker("steps", block)["seconds"] / block * 1e3)
    base = times[workers[0].name]
    print(f"\nstep time, {rounds} rounds of {block} steps in turn\n\n| | median ms | least ms | ratio, median of pairs |")
    print("|---|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, base))
        print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} | {ratio:.2f} |")


def whole_runs(workers: list[Worker], seeds: list[int]) -> None:
    """Loss on the whole validation split after the same steps, and the time to reach the peer's final loss."""
    losses = {worker.name: [] for worker in workers}
    shares = {worker.name: [] for worker in workers}
    for seed in seeds:
        for worker in workers:
            worker("restart", seed)
        spent = dict.fromkeys(losses, 0.0)
        curve = {name: [] for name in losses}
        for done in range(100, STEPS + 1, 100):  # a hundred steps each, in turn
            for worker in workers:
                spent[worker.name] += worker("steps", 100)["seconds"]
                curve[worker.name].append((spent[worker.name], worker("validate")["value"]))
            print(f"\rseed {seed}: step {done:,}/{STEPS:,}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        peer = curve[workers[0].name]
        for name, points in curve.items():
            losses[name].append(points[-1][1])
            reached = [seconds for seconds, loss in points if loss <= peer[-1][1]]
            shares[name].append(reached[0] / peer[-1][0] if reached else math.inf)
    print(f"\nafter {STEPS:,} steps, seeds {seeds}\n\n| | loss, mean | each | share of the peer's time to reach its final loss |")
    print("|---|---|---|---|")
    for name, values in losses.items():
        print(f"| {name} | {statistics.mean(values):.4f} | {', '.join(f'{v:.4f}' for v in values)} | "
              f"{', '.join(f'{v:.2f}' for v in shares[name])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", required=True, help="the peer's folder")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="seeds of whole runs")
    arguments = parser.parse_args()
    from jaxgpt.core import config, experiment
    with tempfile.TemporaryDirectory() as workdir:
        chosen = config.load(EXPERIMENTS / "shakespeare_char.py")
        for stage in chosen.stages[:-1]:
            experiment.run(chosen, workdir, only=stage.name)
        workers = [Worker("nanoGPT, PyTorch", "nanogpt", os.path.abspath(arguments.nanogpt), workdir)]
        workers += [Worker(name, "ours", str(EXPERIMENTS / f"{name}.py"), workdir)
                    for name in ("shakespeare_char", "shakespeare_char_modern")]
        step_times(workers, arguments.rounds, arguments.block)
        if arguments.seeds:
            whole_runs(workers, arguments.seeds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, source, folder = sys.argv[2:]
        work(NanoGPT(source, folder) if kind == "nanogpt" else Ours(source, folder))
    else:
        main()
