"""Loading a stage's model from a workdir that core wrote."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxgpt.core import experiment
from jaxgpt.core.checkpoint import Checkpoints
from jaxgpt.core.config import to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Experiment, Stage
from jaxgpt.core.state import TrainState
from jaxgpt.inference.load import load
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer

CONFIG = transformer.Config(vocab_size=264, context=16, layers=1, width=8, heads=2)
initialise = jax.jit(transformer.init, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class Untrained(Stage):
    """Saves a random model."""

    name: str = "base"
    after: str | None = None

    def inputs(self):
        return (self.after,) if self.after else ()

    def run(self, context):
        Tokenizer(bpe.train(["no merges"], vocab_size=264)).save(context.directory / "tokenizer")
        checkpoints = Checkpoints(context.directory / "checkpoints", config=to_json(CONFIG))
        checkpoints.save(3, TrainState.create(context.rng(), initialise(context.rng(), CONFIG), optax.sgd(0.1)), {})
        checkpoints.close()
        return {"model": to_json(CONFIG), "checkpoint": "checkpoints/3", "tokenizer": "tokenizer"}


@dataclasses.dataclass(frozen=True)
class Note(Stage):
    """A stage without a model."""

    name: str = "note"

    def run(self, context):
        return {"text": "nothing"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, experiment): "base" and "assistant" have models, "note" has none; names are not in order."""
    workdir = tmp_path_factory.mktemp("run")
    stages = (Untrained(), Untrained(name="assistant", after="base"), Note())
    chosen = Experiment(name="run", stages=stages)
    experiment.run(chosen, workdir)
    return workdir, chosen


def test_loads_what_a_stage_saved(run):
    workdir, chosen = run
    for name in ("base", "assistant"):
        loaded = load(workdir, name)
        expected = initialise(experiment.Context(chosen, chosen.stage(name), workdir).rng(), CONFIG)
        assert loaded.stage == name and loaded.config == CONFIG
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
        assert loaded.tokenizer.decode(loaded.tokenizer.encode("héllo")) == "héllo"


def test_takes_the_last_stage_that_has_a_model(run):
    assert load(run[0]).stage == "assistant"


def test_what_is_not_there_is_named(run, tmp_path):
    workdir, _ = run
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="no stage that trains a model is complete there; complete: none"):
        load(tmp_path)
    with pytest.raises(UserError, match="stage 'note' trained no model; stages with a model: base, assistant"):
        load(workdir, "note")
    with pytest.raises(UserError, match="stage 'grpo' is not complete"):
        load(workdir, "grpo")


def test_a_hugging_face_folder_is_loaded_and_talked_with(tmp_path, capsys):
    from scripted import CONTEXT, write_folder

    from jaxgpt.cli import main
    folder = write_folder(tmp_path / "little-llama")
    loaded = load(folder)
    assert (loaded.stage, loaded.config.context) == ("little-llama", CONTEXT)
    assert main(["sample", str(folder), "--prompt", "abc", "--temperature", "0", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out == "abcdefg\n"
    assert main(["sample", str(folder), "--stage", "sft"]) == 2
    assert "--stage sft: " in (said := capsys.readouterr().err) and "holds one model and no stages" in said
