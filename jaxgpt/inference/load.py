"""A model ready to speak, of a finished stage or of a Hugging Face folder: its parameters, its settings, its tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxgpt.core.checkpoint import load_params
from jaxgpt.core.config import from_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import MANIFEST, read_stage
from jaxgpt.core.sharding import RULES, Layout, make_mesh
from jaxgpt.model import hf, transformer
from jaxgpt.model.lay_out import for_decoding
from jaxgpt.model.quantize import quantize
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer.template import Template, read_template
from jaxgpt.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer.

    Attributes:
      params, config: as every function of `model` and `inference` takes them.
      tokenizer: what turns text into the model's tokens.
      stage: the name of the stage that trained it, or of its folder.
      template: how the tokens of a conversation are written, for a model from elsewhere; None for ours.
    """

    params: Any
    config: transformer.Config
    tokenizer: Tokenizer
    stage: str
    template: Template | None = None

    def for_decoding(self) -> Loaded:
        """The same with its weights as decoding reads them best, for `generate` and `stream`: see `lay_out.for_decoding`."""
        return dataclasses.replace(self, params=for_decoding(self.params))


def load(workdir: str | Path, stage: str | None = None, *, int8: bool = False) -> Loaded:
    """Loads the model that a stage of a run trained, or that of a Hugging Face folder.

    Args:
      workdir: of the run; or the folder.
      stage: whose model; the last complete one that trained a model where None.
      int8: whether to hold its matrices in eight bits, see `quantize`.

    Raises:
      UserError: there is no such run or stage, it is not complete or trained no model, or a file of it is damaged.
    """
    if is_folder(workdir):
        if stage is not None:
            raise UserError(f"--stage {stage}: {workdir} holds one model and no stages; leave it out")
        loaded = load_folder(workdir)
        return dataclasses.replace(loaded, params=quantize(loaded.params)) if int8 else loaded
    stage, config, outputs = find(workdir, stage)
    folder = Path(workdir) / stage
    abstract = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    if "params_dtype" in outputs:  # an imported model keeps the type of its files
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, outputs["params_dtype"]), abstract)
    params = load_params(folder / outputs["checkpoint"], abstract, config=outputs["model"])
    params = quantize(params) if int8 else params
    return Loaded(params, config, hf_tokenizer.load(folder / outputs["tokenizer"]), stage, template_of(workdir, stage))


def is_folder(path: str | Path) -> bool:
    """Whether a model from elsewhere lies there, and no run: it has a config.json."""
    return (Path(path) / "config.json").exists()


def load_folder(folder: str | Path) -> Loaded:
    """Loads the model of a Hugging Face folder.

    Raises:
      UserError: what is wrong with it.
    """
    folder = Path(folder)
    _, config, _ = hf.check_folder(folder)
    tokenizer, template = hf_tokenizer.read(folder), read_template(folder)
    params, *_ = hf.read_params(folder, mesh=make_mesh(Layout(data=1), jax.devices()[:1]), rules=RULES["replicated"])
    return Loaded(params, config, tokenizer, folder.resolve().name, template)


def template_of(workdir: str | Path, stage: str) -> Template | None:
    """How the model of a stage writes conversations, where it came from elsewhere with a template; None for our way."""
    outputs = read_stage(Path(workdir) / stage / "manifest.json")["outputs"]
    return read_template(Path(workdir) / stage / outputs["folder"]) if "folder" in outputs else None


def find(workdir: str | Path, stage: str | None = None) -> tuple[str, transformer.Config, dict]:
    """What `load` would load, without its weights: (stage, config, what the stage put out)."""
    workdir = Path(workdir)
    complete = _complete(workdir)
    trained = stages(workdir)
    stage = stage or trained[-1]
    if stage not in trained:
        what = "trained no model" if stage in complete else "is not complete"
        raise UserError(f"{workdir}: stage '{stage}' {what}; stages with a model: {', '.join(trained)}")
    outputs = complete[stage]["outputs"]
    return stage, from_json(transformer.Config, outputs["model"]), outputs


def stages(workdir: str | Path) -> list[str]:
    """The stages of a run whose models `load` can load, in the order they were finished.

    Raises:
      UserError: there is no such run, or no model in it.
    """
    complete = _complete(Path(workdir))
    trained = [name for name in _in_order(complete) if "checkpoint" in complete[name]["outputs"]]
    if not trained:
        raise UserError(f"{workdir}: no stage that trains a model is complete there; "
                        f"complete: {', '.join(_in_order(complete)) or 'none'}")
    return trained


def _complete(workdir: Path) -> dict[str, dict]:
    """The manifests of a run's complete stages, by name."""
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; give the workdir of a run, such as runs/quickstart")
    return {path.parent.name: read_stage(path, (*MANIFEST, "finished"))
            for path in sorted(workdir.glob("*/manifest.json"))}


def _in_order(manifests: dict[str, dict]) -> list[str]:
    """Names of stages in the order they were finished; within one second, a stage comes after those it reads."""
    def depth(name):
        return 1 + max((depth(before) for before in manifests[name]["inputs"] if before in manifests), default=0)
    return sorted(manifests, key=lambda name: (manifests[name]["finished"], depth(name)))
