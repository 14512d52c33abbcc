"""Chat templates: how a conversation becomes the tokens that a model from elsewhere was trained on.

A template is Jinja: it writes a text in which control tokens are spelt out ("<|eot_id|>"), and those spellings then
become tokens. What a message says is kept apart on the way, so that a control token that a user spells stays text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.tokenizer.tokenizer import Tokenizer

_STAND_INS = 0xF0000  # characters for private use, of which there are 65,534 from here on


@dataclasses.dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
      source: in Jinja.
      names: what it calls tokens: {"bos_token": "<s>"}.
      controls: the spellings that only the template may turn into tokens. Others that are tokens of their own
        ("<think>") are part of what a model says, and become tokens wherever they stand.
      ends: tokens that end what the model generates, by its own settings.
    """

    source: str
    names: Mapping[str, str]
    controls: tuple[str, ...]
    ends: tuple[int, ...] = ()


def read_template(folder: str | Path) -> Template | None:
    """The chat template of a Hugging Face folder; None where it has none, as those of base models.

    Raises:
      UserError: a file of it is not what it should be.
    """
    folder = Path(folder)
    settings, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    found = read_json(settings) if settings.exists() else {}
    source = file.read_text(encoding="utf-8") if file.exists() else found.get("chat_template")
    if isinstance(source, list):  # several by name
        source = {one.get("name"): one.get("template") for one in source}.get("default")
    if not source:
        return None
    if not isinstance(source, str):
        raise UserError(f"{settings}: chat_template should be text")
    names = {name: value["content"] if isinstance(value, dict) else value for name, value in found.items()
             if name in ("bos_token", "eos_token", "unk_token", "pad_token") and value}
    added = read_json(folder / "tokenizer.json").get("added_tokens") or ()
    return Template(source, names, tuple(token["content"] for token in added if token.get("special")), _ends(folder))


def _ends(folder: Path) -> tuple[int, ...]:
    """eos_token_id of generation_config.json: an id, or several."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.exists() else {}
    found = settings.get("eos_token_id") if isinstance(settings, dict) else settings
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and token >= 0 for token in ends):
        raise UserError(f"{path}: eos_token_id is {found!r}, but should be the id of a token, or a list of some")
    return tuple(ends)


def render_template(template: Template, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *,
                    prompt: bool = True, **variables) -> list[int]:
    """The tokens of a conversation.

    Args:
      template, tokenizer: of the model.
      messages: {"role", "content"} and whatever else the template knows.
      prompt: whether the opening of the assistant's turn follows.
      **variables: for the template, such as tools.

    Raises:
      UserError: the template refuses the messages, in its own words, or is not one.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError("chat templates need the library jinja2: pip install jinja2") from error
    text = json.dumps([messages, variables], ensure_ascii=False, default=str)
    free = (chr(code) for code in range(_STAND_INS, _STAND_INS + 0xFFFE) if chr(code) not in text)
    stand_ins = dict(zip(template.controls, free))
    hide = functools.partial(_replaced, {spelling: one for spelling, one in stand_ins.items()})
    try:
        written = _compiled(template.source).render(
            messages=_in_strings(hide, messages), add_generation_prompt=prompt, **template.names,
            **_in_strings(hide, variables))
    except Exception as error:  # of the template, which is a program from elsewhere
        raise UserError(f"the model's chat template refuses this conversation ({error})") from error
    show = functools.partial(_replaced, {one: spelling for spelling, one in stand_ins.items()})
    tokens = []
    for part in _splitter(tuple(tokenizer.special)).split(written):
        if part in tokenizer.special:
            tokens.append(tokenizer.special[part])
        elif part:
            tokens += tokenizer.encode(show(part))
    return tokens


@functools.lru_cache(maxsize=8)
def _compiled(source: str):
    """The template, in a sandbox: it comes from elsewhere. Its world is that of the reference implementation."""
    import datetime

    import jinja2.ext
    import jinja2.sandbox
    world = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                         extensions=[jinja2.ext.loopcontrols])

    def refuse(message):
        raise jinja2.TemplateError(message)

    def as_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    world.filters["tojson"] = as_json
    world.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    return world.from_string(source)


@functools.lru_cache(maxsize=8)
def _splitter(spellings: tuple[str, ...]) -> re.Pattern:
    """Cuts a text at tokens that are spelt out, the longest first, and keeps them."""
    return re.compile("(" + "|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) + ")")


def _replaced(table: Mapping[str, str], text: str) -> str:
    return _splitter(tuple(table)).sub(lambda found: table[found[0]], text) if table else text


def _in_strings(change, value):
    """`value` with all texts inside it changed, but for the names of fields."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _in_strings(change, item) for key, item in value.items()}
    return [_in_strings(change, item) for item in value] if isinstance(value, (list, tuple)) else value
