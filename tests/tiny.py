"""A whole experiment in miniature: what the tests of the training stages run. A second or two a stage."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.core.checkpoint import load_params
from jaxgpt.core.config import to_json
from jaxgpt.core.experiment import Context, Experiment, fingerprint
from jaxgpt.core.files import write_json
from jaxgpt.core.loop import Loop
from jaxgpt.core.metrics import read_metrics
from jaxgpt.core.optim import Optim
from jaxgpt.core.sharding import Layout, make_mesh
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.sources import TextFiles
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.model import transformer
from jaxgpt.pretrain.programs import Pretrain
from jaxgpt.rl.grpo import GRPO
from jaxgpt.sft.programs import SFT
from jaxgpt.tasks import task
from jaxgpt.tasks.task import Problem

VOCAB = 272
MODEL = transformer.Config(vocab_size=VOCAB, context=32, layers=2, width=16, heads=2, activation="relu2", unroll=2,
                           loss_chunk=None)
ADAMW = Optim(lr=1e-2, schedule="constant")
MUON = Optim(kind="muon", lr=2e-2, adam_lr=1e-2, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Letters:
    """Any question is answered by one of `letters`; which one a demonstration takes is chance."""

    letters: str = "abc"
    name: str = "letters"

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        rng = task.stream(self.name, split, seed)
        places = task.draw(range(1000), split, rng, place=lambda number: task.split_of(str(number)))
        chosen = [number for number, _ in zip(places, range(count))]
        return [Problem.asking(f"say {number}", rng.choice(self.letters), task=self.name, key=f"{self.name}/{number}")
                for number in chosen]

    def well_formed(self, problem: Problem, completion: str) -> bool:
        return len(completion) == 1

    def reward(self, problem: Problem, completion: str) -> float:
        return float(completion in tuple(self.letters))


def write_corpus(folder: Path) -> Path:
    """60 documents of a small language, about 15 KB."""
    rng = random.Random(0)
    words = "river stone kettle lantern maple otter heron willow copper violin".split()
    text = "\n\n".join(" ".join(rng.choice(words) for _ in range(40)) + "." for _ in range(60))
    path = folder / "corpus.txt"
    path.write_text(text)
    return path


def experiment(corpus: Path, *, steps: int = 20, sft_steps: int = 20, grpo_steps: int = 4, save_every: int = 10,
               optim: Optim = ADAMW, rules: str = "fsdp", **grpo) -> Experiment:
    """Curate, TrainTokenizer, Tokenize, Pretrain, SFT and GRPO, each as small as it can be."""
    loop = Loop(log_every=1, eval_every=10, save_every=save_every)
    rl = {"prompts": 8, "rollouts": 4, "prompt_tokens": 16, "max_new_tokens": 4, "val_problems": 8,
          "optim": ADAMW, "loop": dataclasses.replace(loop, eval_every=4), **grpo}
    return Experiment(name="tiny", rules=rules, stages=(
        Curate(source=TextFiles(str(corpus), separator="\n\n"), steps=(), val_fraction=0.2),
        TrainTokenizer(vocab_size=VOCAB),
        Tokenize(),
        Pretrain(model=MODEL, optim=optim, tokens=steps * 8 * 32, batch=8, loop=loop, prompts=("river", ""),
                 sample_tokens=4),
        SFT(mixture=((Letters(), 1.0),), conversations=64, steps=sft_steps, batch=8, length=32, optim=optim, loop=loop,
            val_conversations=16),
        GRPO(task=Letters("a"), steps=grpo_steps, **rl),
    ))


def mesh(count: int = 1, **sizes: int) -> Mesh:
    """A mesh over the first `count` of the simulated devices."""
    return make_mesh(Layout(**{"data": 1, **sizes}), jax.devices()[:count])


def context(chosen: Experiment, stage: str, workdir: Path, on: Mesh | None = None) -> Context:
    """What a stage is given, on one device unless `on` says otherwise."""
    return Context(chosen, chosen.stage(stage), workdir, mesh=on or mesh())


def run_stages(chosen: Experiment, names: tuple[str, ...], workdir: Path, on: Mesh | None = None) -> None:
    """Runs stages on a mesh of one's choice and leaves what later stages need."""
    for name in names:
        stage = chosen.stage(name)
        inputs = {before: fingerprint(workdir, before) for before in stage.inputs()}
        outputs = json.loads(json.dumps(stage.run(context(chosen, name, workdir, on))))
        write_json(workdir / name / "manifest.json", {
            "stage": name, "settings": to_json(stage), "seed": chosen.seed, "inputs": inputs, "outputs": outputs,
            "finished": "2025-01-01 00:00:00 +0000"})


DATA = ("curate", "tokenizer", "tokenize")


def losses(workdir: Path, stage: str, key: str = "loss") -> dict[int, float]:
    """{step: value} of a stage's metrics."""
    return {line["step"]: line[key] for line in read_metrics(workdir / stage / "metrics.jsonl") if key in line}


def params_of(workdir: Path, stage: str, step: int) -> dict[str, np.ndarray]:
    """The parameters of a checkpoint, by path."""
    target = jax.eval_shape(lambda: transformer.init(jax.random.key(0), MODEL))
    found = load_params(workdir / stage / "checkpoints" / str(step), target)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(found)}


def tree_of(params: dict[str, np.ndarray]):
    """`params_of` as the tree that the model takes."""
    target = jax.eval_shape(lambda: transformer.init(jax.random.key(0), MODEL))
    return jax.tree.unflatten(jax.tree.structure(target), map(jax.numpy.asarray, params.values()))
