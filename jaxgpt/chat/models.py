"""The models that a server has: one for each stage of a run, known at once, loaded when somebody asks for it."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.chat.errors import ApiError
from jaxgpt.core.errors import UserError
from jaxgpt.inference.load import Loaded, find, load, stages
from jaxgpt.tokenizer.conversation import check, render, render_prompt
from jaxgpt.tokenizer.hf import load as load_tokenizer
from jaxgpt.tokenizer.template import read_template, render_template

_ONE_LOADS = threading.Lock()


class Model:
    """A stage's model as the server knows it: its tokenizer and settings at once, its weights on demand."""

    def __init__(self, workdir: str | Path, name: str):
        self.name, self.workdir = name, Path(workdir)
        _, self.config, outputs = find(workdir, name)
        folder = self.workdir / name
        self.created = int((folder / "manifest.json").stat().st_mtime)
        self.tokenizer = load_tokenizer(folder / outputs["tokenizer"])
        self.template = read_template(folder / outputs["folder"]) if "folder" in outputs else None

    @property
    def loaded(self) -> Loaded:
        """With its weights; a UserError says what is wrong with them."""
        with _ONE_LOADS:
            return self._loaded

    @functools.cached_property
    def _loaded(self) -> Loaded:
        return load(self.workdir, self.name)

    def prompt(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
        """The tokens from which an answer to a conversation is generated.

        Args:
          messages: turns; an assistant's is a list of parts, of which a call has a name and arguments.
          tools: functions in OpenAI's form, for the template of a model from elsewhere; ours know theirs by training.

        Raises:
          ApiError: the turns make no conversation, or the model knows none.
        """
        try:
            if self.template:
                return render_template(self.template, self.tokenizer, _openai(messages),
                                       **({"tools": list(tools)} if tools else {}))
            turns = [_ours(turn) for turn in messages]
            if turns[-1]["role"] == "assistant" and [part["type"] for part in turns[-1]["content"]][-1:] == ["result"]:
                check(turns)
                return render(self.tokenizer, turns)[0][:-1]  # it goes on in the turn in which it called
            return render_prompt(self.tokenizer, turns)
        except (ValueError, UserError) as error:
            raise ApiError(400, str(error), param="messages") from error


class Models:
    """The models of a run, by name.

    Args:
      workdir: of the run.
      names: of stages; all that trained a model where None.

    Raises:
      UserError: there is no such run or stage.
    """

    def __init__(self, workdir: str | Path, names: Sequence[str] | None = None):
        chosen = list(names) if names else stages(workdir)
        self.models = {name: Model(workdir, name) for name in chosen}
        self.default = chosen[-1]

    def find(self, name: str) -> Model:
        """The model of that name; an ApiError with status 404 lists those there are."""
        if name not in self.models:
            raise ApiError(404, f"model: there is no {json.dumps(name)[:100]}; there are {', '.join(self.models)}",
                           param="model", code="model_not_found")
        return self.models[name]


def call_text(name: str, arguments: str) -> str:
    """What stands between the marks of a call, from OpenAI's form: of one argument its value alone.

    >>> call_text("calculator", '{"input": "17*3"}')
    'calculator 17*3'
    """
    try:
        found = json.loads(arguments)
    except ValueError:
        found = None
    if isinstance(found, dict) and len(found) == 1 and isinstance(value := next(iter(found.values())), str):
        arguments = value
    return f"{name} {arguments}"


def _ours(turn: dict) -> dict:
    """A turn as our models know it: a call is a text."""
    if turn["role"] != "assistant":
        return turn
    return turn | {"content": [{"type": "call", "text": call_text(part["name"], part["arguments"])}
                               if part["type"] == "call" else part for part in turn["content"]]}


def _openai(messages: Sequence[dict]) -> list[dict]:
    """Turns as templates of models from elsewhere know them: results are turns of their own."""
    turns = []
    for message in messages:
        if message["role"] != "assistant":
            turns.append(message)
            continue
        for part in message["content"] or [{"type": "text", "text": ""}]:
            if part["type"] == "result":
                turns.append({"role": "tool", "content": part["text"]})
                continue
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": ""})
            if part["type"] == "text":
                turns[-1]["content"] += part["text"]
            else:
                call = {"type": "function", "function": {"name": part["name"], "arguments": _parsed(part["arguments"])}}
                turns[-1].setdefault("tool_calls", []).append(call)
    return turns


def _parsed(arguments: str):
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
