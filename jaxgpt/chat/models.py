"""The models that a server has: each stage's of a run, or a folder's; known at once, loaded when somebody asks."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxgpt.chat.errors import ApiError
from jaxgpt.core.errors import UserError
from jaxgpt.inference.forms import Form, form_of, write_call
from jaxgpt.inference.load import Loaded, find, is_folder, load, load_folder, stages, template_of
from jaxgpt.model import hf
from jaxgpt.model.quantize import quantize
from jaxgpt.model.transformer import Config
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer.conversation import render
from jaxgpt.tokenizer.template import Template, read_template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import prompt_turns, stop_tokens

_ONE_LOADS = threading.Lock()


class Model:
    """A model as the server knows it: its tokenizer and settings at once, its weights on demand.

    Args:
      name: by which it is asked for.
      config, tokenizer, template: as in `inference.load.Loaded`.
      source: the file that says what it is.
      read: reads it whole, which takes time.
      int8: whether to hold its matrices in eight bits.
      context: most tokens of a prompt with its answer; the model's own where None.

    Raises:
      UserError: the model has no such context.
    """

    def __init__(self, name: str, config: Config, tokenizer: Tokenizer, template: Template | None, source: Path,
                 read: Callable[[], Loaded], int8: bool = False, context: int | None = None):
        if context is not None and not 2 <= context <= config.context:
            raise UserError(f"--context {context}: from 2 to {config.context}, the context of {name}")
        self.context = config.context if context is None else context
        self.name, self.config, self.tokenizer, self.template = name, config, tokenizer, template
        self.created, self._read, self._int8 = int(source.stat().st_mtime), read, int8

    @classmethod
    def of_stage(cls, workdir: Path, name: str, int8: bool = False, context: int | None = None) -> Model:
        """The model that a stage of a run trained; a UserError where there is none."""
        _, config, outputs = find(workdir, name)
        folder = workdir / name
        return cls(name, config, hf_tokenizer.load(folder / outputs["tokenizer"]), template_of(workdir, name),
                   folder / "manifest.json", lambda: load(workdir, name), int8, context)

    @classmethod
    def of_folder(cls, folder: Path, int8: bool = False, context: int | None = None) -> Model:
        """The model of a Hugging Face folder; a UserError where it is none."""
        _, config, _ = hf.check_folder(folder)
        tokenizer, template, name = hf_tokenizer.read(folder), read_template(folder), folder.resolve().name
        return cls(name, config, tokenizer, template, folder / "config.json", lambda: load_folder(folder), int8, context)

    @functools.cached_property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return stop_tokens(self.tokenizer, self.template)

    @functools.cached_property
    def form(self) -> Form | None:
        """How it calls tools; None where it knows no calls."""
        return form_of(self.tokenizer, self.template)

    @functools.cached_property
    def takes_results(self) -> bool:
        """Whether the result of a call can be put into its answer."""
        try:
            return self.form is not None and bool(self.form.put_in(""))
        except UserError:
            return False

    @property
    def loaded(self) -> Loaded:
        """With its weights; a UserError says what is wrong with them."""
        with _ONE_LOADS:
            return self._loaded

    @functools.cached_property
    def _loaded(self) -> Loaded:
        loaded = self._read()
        return dataclasses.replace(loaded, params=quantize(loaded.params)) if self._int8 else loaded

    def prompt(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
        """The tokens from which an answer to a conversation is generated.

        Args:
          messages: turns; an assistant's is a list of parts, of which a call has a name and arguments.
          tools: functions in OpenAI's form, for the template of a model from elsewhere; ours know theirs by training.

        Raises:
          ApiError: the turns make no conversation, or the model knows none.
        """
        try:
            turns = [self._written(turn) for turn in messages]
            if not self.template and turns[-1]["role"] == "assistant" and ends_in_result(turns[-1]):
                return render(self.tokenizer, turns)[0][:-1]  # it goes on in the turn in which it called
            return prompt_turns(self.tokenizer, turns, self.template, tools)
        except (ValueError, UserError) as error:
            raise ApiError(400, str(error), param="messages") from error

    def _written(self, turn: dict) -> dict:
        """A turn with its calls as texts."""
        if turn["role"] != "assistant":
            return turn
        return turn | {"content": [
            {"type": "call", "text": write_call(part["name"], part["arguments"], ours=self.template is None)}
            if part["type"] == "call" else part for part in turn["content"]]}


class Models:
    """The models of a run or of a Hugging Face folder, by name.

    Args:
      folder: the workdir of a run, or a folder with config.json, safetensors and tokenizer.json.
      names: of stages; all that trained a model where None.
      int8: whether to hold their matrices in eight bits.
      context: of each; their own where None.

    Attributes:
      folder: the same.
      models: {name: model}.
      default: the name of the last.

    Raises:
      UserError: there is no such run, stage or model.
    """

    def __init__(self, folder: str | Path, names: Sequence[str] | None = None, *, int8: bool = False,
                 context: int | None = None):
        self.folder = Path(folder)
        if is_folder(self.folder):
            found = [Model.of_folder(self.folder, int8, context)]
        else:
            found = [Model.of_stage(self.folder, name, int8, context) for name in names or stages(self.folder)]
        self.models = {model.name: model for model in found}
        self.default = found[-1].name

    def find(self, name: str) -> Model:
        """The model of that name; an ApiError with status 404 lists those there are."""
        if name not in self.models:
            raise ApiError(404, f"model: there is no {json.dumps(name)[:100]}; there are {', '.join(self.models)}",
                           param="model", code="model_not_found")
        return self.models[name]


def ends_in_result(turn: dict) -> bool:
    """Whether an assistant's turn, a list of parts, waits for what the assistant says to a result."""
    return bool(turn["content"]) and turn["content"][-1]["type"] == "result"
