"""Every file in experiments/: it loads, its programs trace as they stand, and in a shrunk form it runs to its end."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
import tiny

from jaxgpt.core import config
from jaxgpt.core.experiment import After, Context, Experiment, run
from jaxgpt.core.files import read_json
from jaxgpt.core.sharding import Layout
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.python_docs import PythonDocs
from jaxgpt.curation.sources import TextFiles
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.evals.evaluate import Evaluate
from jaxgpt.evals.report import Report
from jaxgpt.inference.load import load
from jaxgpt.model import hf, transformer
from jaxgpt.pretrain.imported import Import
from jaxgpt.pretrain.programs import Pretrain
from jaxgpt.rl.grpo import GRPO
from jaxgpt.sft.programs import SFT
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer.tokenizer import Tokenizer

FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))
VOCAB, CONTEXT, BATCH = 300, 384, 8
DOCS = PythonDocs(modules=("textwrap", "shlex", "json"), packages=())

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A small base model, for experiments that start from one of other people's."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    folder.mkdir()
    model = transformer.Config(vocab_size=257, context=512, layers=2, width=32, heads=4, kv_heads=2)
    hf.write_params(jax.jit(lambda: transformer.init(jax.random.key(0), model))(), model, folder, family="llama")
    end = "<|end_of_text|>"
    hf_tokenizer.write(Tokenizer({bytes([byte]): byte for byte in range(256)}, special={end: 256}, bos=end, end=end), folder)
    return folder


def given(experiment: Experiment, model_folder: Path) -> Experiment:
    """The experiment as it stands, but for the weights that it starts from."""
    stages = [dataclasses.replace(stage, folder=str(model_folder)) if isinstance(stage, Import) else stage
              for stage in experiment.stages]
    return dataclasses.replace(experiment, stages=tuple(stages))


def shrink(experiment: Experiment, corpus: Path) -> Experiment:
    """The same stages in the same order with the same kinds of settings, each a matter of seconds."""
    stages = []
    for stage in experiment.stages:
        if isinstance(stage, Tokenize) and not any(isinstance(found, TrainTokenizer) for found in stages):
            stages.append(TrainTokenizer(vocab_size=VOCAB, corpus=stage.corpus))  # tiktoken's files may not be at hand
            stage = dataclasses.replace(stage, tokenizer="tokenizer")
        stages.append(shrunk(stage, corpus))
    return dataclasses.replace(experiment, stages=tuple(stages), layout=Layout())


def shrunk(stage, corpus: Path):
    loop = lambda stage: dataclasses.replace(stage.loop, log_every=1, eval_every=2, save_every=2)  # noqa: E731
    if isinstance(stage, Curate):
        source = DOCS if isinstance(stage.source, PythonDocs) else TextFiles(str(corpus), separator="\n\n")
        split = {} if isinstance(stage.source, PythonDocs) else {"split": "hash", "steps": ()}
        return dataclasses.replace(stage, source=source, val_fraction=0.2, **split)
    if isinstance(stage, TrainTokenizer):
        return dataclasses.replace(stage, vocab_size=min(stage.vocab_size, VOCAB))
    if isinstance(stage, Pretrain):
        heads = 4 if stage.model.kv_heads else 2
        model = dataclasses.replace(
            stage.model, vocab_size=VOCAB, context=CONTEXT, layers=2, width=32, heads=heads, head_dim=None,
            kv_heads=stage.model.kv_heads and 2, mlp_width=None, unroll=min(stage.model.unroll, 2), loss_chunk=512)
        return dataclasses.replace(stage, model=model, batch=BATCH, length=64, tokens=4 * BATCH * 64, accumulate=1,
                                   sample_tokens=8, loop=loop(stage))
    if isinstance(stage, SFT):
        return dataclasses.replace(stage, conversations=48, val_conversations=16, steps=4, batch=BATCH, length=CONTEXT,
                                   accumulate=1, loop=loop(stage))
    if isinstance(stage, GRPO):
        return dataclasses.replace(stage, steps=2, prompts=BATCH, rollouts=2, prompt_tokens=128, max_new_tokens=8,
                                   val_problems=8, loop=loop(stage))
    if isinstance(stage, Evaluate):
        return dataclasses.replace(stage, problems=8, max_new_tokens=8)
    return stage


@each
def test_loads(path):
    experiment = config.load(path)
    assert experiment.name == path.stem and json.dumps(config.to_json(experiment))
    assert f"jaxgpt run experiments/{path.name}" in path.read_text()
    assert shrink(experiment, Path("corpus.txt")).stages


@each
def test_programs_trace_as_they_stand(path, tmp_path, model_folder):
    experiment = given(config.load(path), model_folder)
    traced = {}
    for stage in experiment.stages:
        context = Context(experiment, stage, tmp_path, mesh=tiny.mesh())
        for name, (function, arguments) in stage.programs(context).items():
            arguments = arguments.arguments(None) if isinstance(arguments, After) else arguments
            traced[stage.name, name] = jax.eval_shape(function, *arguments)
    training = {stage.name for stage in experiment.stages if hasattr(stage, "trainable")}
    assert training and {stage for stage, _ in traced} == training
    for name in training:
        _, metrics = traced[name, "train_step"]
        assert metrics["loss"].shape == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@each
def test_runs_shrunk(path, tmp_path, model_folder):
    experiment = shrink(given(config.load(path), model_folder), tiny.write_corpus(tmp_path))
    workdir = tmp_path / "work"
    run(experiment, workdir)
    assert [stage.name for stage in experiment.stages if not (workdir / stage.name / "manifest.json").exists()] == []
    for stage in experiment.stages:
        if hasattr(stage, "trainable"):
            assert load(workdir, stage.name).config.layers == 2
            assert len(tiny.losses(workdir, stage.name)) == getattr(stage, "steps")
        if isinstance(stage, Evaluate):
            rows = read_json(workdir / stage.name / "scores.json")["rows"]
            scored = {(of, task.name) for of in stage.of for task in stage.tasks}
            assert {(row["stage"], row["task"]) for row in rows} == scored
        if isinstance(stage, Report):
            html = (workdir / stage.name / "report.html").read_text()
            assert all(part.name in html for part in experiment.stages[:-1])
            assert (workdir / stage.name / "report.md").exists()
