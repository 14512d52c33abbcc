"""A base model that others trained: a Hugging Face folder as a stage, and a stage's model as such a folder.

Later stages find an imported model as they find one of our own, by the name of the stage: `start_from="import"`. Those
that write conversations do so by its chat template; a base model that has none can be given our turns.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgpt.core import distributed
from jaxgpt.core.checkpoint import Checkpoints
from jaxgpt.core.config import to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment, Stage
from jaxgpt.core.files import read_json, whole_folder
from jaxgpt.core.sharding import Layout, param_shardings
from jaxgpt.core.state import TrainState
from jaxgpt.inference.load import load
from jaxgpt.model import hf, llama2c, transformer
from jaxgpt.model.hf_config import family_of, read_config
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer import llama2c as llama2c_tokenizer
from jaxgpt.tokenizer.special import SPECIAL_TOKENS
from jaxgpt.tokenizer.template import read_template
from jaxgpt.tokenizer.tokenizer import Tokenizer

KEPT = (*hf_tokenizer.FILES, "generation_config.json")  # beside the weights; they go out again as they came


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import(Stage):
    """Reads a model from a Hugging Face folder.

    Attributes:
      folder: with config.json, safetensors files and tokenizer.json.
      dtype: of the parameters; what the files have where None.
      compute: the type of activations and products.
      turns: whether a model without a chat template gets our special tokens, with rows of the embedding for them: that of
        `<|bos|>` is the row of the token that opened its documents, the others are the mean of all rows.
    """

    name: str = "import"
    every_host: ClassVar[bool] = True
    folder: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    compute: Literal["float32", "bfloat16"] = "float32"
    turns: bool = False

    @property
    def model(self) -> transformer.Config:
        """What is imported, as config.json says, with room for the tokens of turns."""
        config = dataclasses.replace(read_config(self.folder)[1], dtype=self.compute)
        return _with_room(config, with_turns(self.folder, hf_tokenizer.read(self.folder))) if self.turns else config

    def run(self, context: Context) -> dict:
        folder = Path(self.folder)
        _, config, _ = hf.check_folder(folder)
        tokenizer = hf_tokenizer.read(folder)
        check_tokenizer(folder, tokenizer, config)
        params, config, family = hf.read_params(folder, mesh=context.mesh, rules=context.rules, dtype=self.dtype)
        if self.turns:
            old, tokenizer = tokenizer, with_turns(folder, tokenizer)
            params, config = grow(params, config, old, tokenizer, mesh=context.mesh, rules=context.rules)
        model = to_json(dataclasses.replace(config, dtype=self.compute))
        made = [context.directory / name for name in ("checkpoints", "tokenizer", "folder")]
        try:
            if distributed.is_main():
                tokenizer.save(made[1])
                made[2].mkdir(exist_ok=True)
                for name in () if self.turns else KEPT:  # which say nothing of turns
                    if (folder / name).exists():
                        shutil.copyfile(folder / name, made[2] / name)
            checkpoints = Checkpoints(made[0], config=model)
            checkpoints.save(0, TrainState(params, (), jnp.zeros((), jnp.int32), context.rng()), {})
            checkpoints.close()
        except BaseException:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
            raise
        context.log(f"{self.name}: {family}, {transformer.count_params(config):,} parameters in "
                    f"{params['embed'].dtype}, {tokenizer.vocab_size:,} tokens")
        return {"model": model, "checkpoint": "checkpoints/0", "tokenizer": "tokenizer",
                **({} if self.turns else {"folder": "folder"}),
                "family": family, "params_dtype": str(params["embed"].dtype)}


def with_turns(folder: str | Path, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a base model with our special tokens after its last one.

    Raises:
      UserError: it has a chat template, or is of a kind that cannot take more tokens.
    """
    if read_template(folder):
        raise UserError(f"{folder}: has a chat template, in whose turns it is finetuned as it is; set turns=False")
    if type(tokenizer) is not Tokenizer:
        raise UserError(f"{folder}: turns can be given to models with byte-level BPE (GPT-2, Llama 3, Qwen); this tokenizer "
                        "is of another kind")
    if taken := [name for name in SPECIAL_TOKENS if name in tokenizer.special]:
        raise UserError(f"{folder}: its tokenizer has {taken[0]} already; set turns=False")
    new = {name: tokenizer.vocab_size + i for i, name in enumerate(SPECIAL_TOKENS)}
    return Tokenizer(tokenizer.ranks, pattern=tokenizer.pattern, name=f"{tokenizer.name} with turns",
                     special={**tokenizer.special, **new}, normalization=tokenizer.normalization)


def _with_room(config: transformer.Config, tokenizer: Tokenizer) -> transformer.Config:
    """The model with rows for all tokens, up to a multiple of 64, which meshes can divide."""
    rows = -(-tokenizer.vocab_size // 64) * 64
    return dataclasses.replace(config, vocab_size=max(config.vocab_size, rows))


def grow(params: Any, config: transformer.Config, old: Tokenizer, new: Tokenizer, *, mesh: Mesh,
         rules: dict) -> tuple[Any, transformer.Config]:
    """A model with rows for the tokens that `new` has and `old` has not; see `Import.turns`."""
    wider = _with_room(config, new)
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), wider))
    shardings = param_shardings(transformer.logical_axes(wider), shapes, mesh, rules)
    number = jnp.arange(wider.vocab_size)

    def rows_for(table, axis):
        """[V, D], or [D, V] with axis 1."""
        table = jnp.moveaxis(table, axis, 0)
        known = table[:old.vocab_size]
        mean = jnp.mean(known.astype(jnp.float32), axis=0).astype(table.dtype)
        padded = jnp.pad(table, ((0, wider.vocab_size - len(table)), (0, 0)))
        padded = jnp.where((number >= old.vocab_size)[:, None], mean, padded)
        return jnp.moveaxis(padded.at[new.bos].set(known[old.bos]), 0, axis)

    changed = {name: jax.jit(rows_for, static_argnums=1, out_shardings=shardings[name])(params[name], axis)
               for name, axis in (("embed", 0), ("head", 1)) if name in params}
    return {**params, **changed}, wider


def check_tokenizer(folder: Path, tokenizer: Tokenizer, config: transformer.Config) -> None:
    """Refuses a tokenizer that has tokens which the embedding has no row for.

    Raises:
      UserError: with both numbers.
    """
    if tokenizer.vocab_size > config.vocab_size:
        last = tokenizer.vocab_size - 1
        raise UserError(f"{folder / 'tokenizer.json'}: has the token {last} ({tokenizer.decode([last])!r}), but the "
                        f"embedding of the model has {config.vocab_size} rows (vocab_size of config.json)")


def import_experiment(folder: str, dtype: str | None = None, compute: str = "float32",
                      turns: bool = False) -> Experiment:
    """The experiment whose one stage imports a folder, over as many devices as divide its width."""
    _, config, _ = hf.check_folder(folder)
    layout = Layout(data=-1, fsdp=math.gcd(jax.device_count(), config.width))
    source = Path(folder).resolve()
    return Experiment(name=source.name, layout=layout,
                      stages=(Import(folder=str(source), dtype=dtype, compute=compute, turns=turns),))


def download(name: str) -> str:
    """The folder of a model on Hugging Face's hub, fetched if it is not cached.

    Raises:
      UserError: the library is missing, the hub cannot be reached, or has no such model.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name}: no such folder; to take it for a model's name on huggingface.co, "
                        "pip install huggingface_hub") from error
    wanted = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=wanted)
    except Exception as error:  # network, names and permissions each have their own
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{name}: no such folder, and no such model could be had from huggingface.co "
                        f"({type(error).__name__}: {reason})") from error


def export_llama2c(workdir: str | Path, folder: str | Path, *, stage: str | None = None) -> None:
    """Writes a stage's model as model.bin and tokenizer.bin, which llama2.c's `run` plays; whole or not at all.

    Args: as of `export`.

    Raises:
      UserError: no such model, llama2.c cannot say what it is, or the folder cannot be written.
    """
    loaded = load(workdir, stage)
    if wrong := llama2c.refusals(loaded.config):
        raise UserError(f"llama2.c cannot play {loaded.stage}: {'; '.join(wrong)}")
    check_tokenizer(Path(workdir) / loaded.stage, loaded.tokenizer, loaded.config)
    rows, spelt, scores = llama2c_tokenizer.pieces(loaded.tokenizer, loaded.config.vocab_size)
    with whole_folder(folder) as partial:
        llama2c.write_model(loaded.params, loaded.config, partial / "model.bin", rows=rows)
        llama2c_tokenizer.write_tokenizer(partial / "tokenizer.bin", spelt, scores)


def export(workdir: str | Path, folder: str | Path, *, stage: str | None = None, dtype: str | None = None) -> str:
    """Writes a stage's model as a Hugging Face folder, with its tokenizer; whole or not at all.

    Args:
      workdir, stage: as for `inference.load.load`.
      folder: where to; it must not exist, or be empty.
      dtype: of the weights; that of the parameters where None.

    Returns:
      The family that it is written as.

    Raises:
      UserError: no such model, no family says what it is, or the folder cannot be written.
    """
    loaded = load(workdir, stage)
    kept = Path(workdir) / loaded.stage
    outputs = read_json(kept / "manifest.json")["outputs"]
    family = family_of(loaded.config, outputs.get("family"))
    tokenizer = loaded.tokenizer
    check_tokenizer(kept, tokenizer, loaded.config)
    with whole_folder(folder) as partial:
        hf.write_params(loaded.params, loaded.config, partial, family=family, dtype=dtype,
                        tokens={"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end})
        if "folder" in outputs:
            for path in (kept / outputs["folder"]).iterdir():
                shutil.copyfile(path, partial / path.name)
        elif type(tokenizer) is Tokenizer:
            hf_tokenizer.write(tokenizer, partial)
        else:
            tokenizer.save(partial)
    return family
