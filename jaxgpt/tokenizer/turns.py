"""Conversations as a model writes them: in our turns (`conversation.py`), or by the template of one from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer.conversation import Message, render, render_prompt
from jaxgpt.tokenizer.template import Template, render_template
from jaxgpt.tokenizer.tokenizer import Tokenizer


def render_turns(tokenizer: Tokenizer, messages: Sequence[Message],
                 template: Template | None = None) -> tuple[list[int], list[int]]:
    """The tokens of a conversation and their loss mask: 1 on what the assistant says and on the token that ends its turn.

    By a template, a turn of the assistant is what follows the prompt for it; what the template writes after the token
    that ends the turn, such as a newline, is not learned.

    Returns:
      (tokens, loss_mask), two lists of the same length.

    Raises:
      ValueError, UserError: as `render` and `render_template`; or the template writes a turn in another way once others
        follow it, so that no tokens are the assistant's for certain.
    """
    if template is None:
        return render(tokenizer, messages)
    if any(not isinstance(message["content"], str) for message in messages):
        raise UserError("calls inside a turn cannot be written by the chat template of a model from elsewhere")
    tokens = render_template(template, tokenizer, messages, prompt=False)
    mask, special = [0] * len(tokens), set(tokenizer.special.values())
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = render_template(template, tokenizer, messages[:i])
        turn = render_template(template, tokenizer, messages[:i + 1], prompt=False)
        if turn[:len(start)] != start or tokens[:len(turn)] != turn:
            raise UserError(f"the model's chat template writes turn {i + 1} of a conversation in another way once "
                            "others follow it, so it cannot be trained on as it stands; use conversations of one answer")
        ends = [at for at in range(len(start), len(turn)) if turn[at] in special]
        stop = ends[-1] + 1 if ends else len(turn)
        mask[len(start):stop] = [1] * (stop - len(start))
    return tokens, mask


def prompt_turns(tokenizer: Tokenizer, messages: Sequence[Message], template: Template | None = None,
                 functions: Sequence[Mapping] = ()) -> list[int]:
    """The tokens from which the assistant's next turn is generated.

    Args:
      tokenizer, template: of the model.
      messages: the turns so far; by a template, a call in them is {"name": …, "arguments": …} in JSON.
      functions: that a model from elsewhere may call, in OpenAI's form; ours know theirs by training.

    Raises:
      ValueError, UserError: as `render_prompt` and `render_template`.
    """
    if template is None:
        return render_prompt(tokenizer, messages)
    return render_template(template, tokenizer, _with_turns_for_results(messages),
                           **({"tools": list(functions)} if functions else {}))


def _with_turns_for_results(messages: Sequence[Message]) -> list[dict]:
    """Messages as templates know them: calls are a field of the assistant's turn, and results are turns of their own."""
    turns: list[dict] = []
    for message in messages:
        if isinstance(message["content"], str):
            turns.append(message)
            continue
        turns.append({"role": "assistant", "content": ""})
        for part in message["content"]:
            if part["type"] == "result":
                turns.append({"role": "tool", "content": part["text"]})
                continue
            if turns[-1]["role"] == "tool":
                turns.append({"role": "assistant", "content": ""})
            if part["type"] == "call" and (function := _function(part["text"])):
                turns[-1].setdefault("tool_calls", []).append({"type": "function", "function": function})
            else:
                turns[-1]["content"] += part["text"]
    return turns


def _function(call: str) -> dict | None:
    """What is called, where the call is written as it should be."""
    found = json_object(call)
    if found and "arguments" not in found and "parameters" in found:  # as some models call them
        found["arguments"] = found.pop("parameters")
    return found if found and isinstance(found.get("name"), str) and "arguments" in found else None


def json_object(text: str) -> dict | None:
    """The object that a text is in JSON; None where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def end_of_turn(tokenizer: Tokenizer, template: Template | None = None) -> int:
    """The token by which the assistant ends its turn: by a template, often another than the one that ends a text.

    Raises:
      UserError: the template ends it with no token of its own.
    """
    if template is None:
        return tokenizer.end
    example = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    tokens, mask = render_turns(tokenizer, example, template)
    last = [token for token, learned in zip(tokens, mask) if learned][-1]
    if last not in tokenizer.special.values():
        raise UserError("the model's chat template ends the assistant's turn with no special token, so it could not "
                        "learn to stop")
    return last


def stop_tokens(tokenizer: Tokenizer, template: Template | None = None) -> tuple[int, ...]:
    """The tokens that end an answer: the one that ends a text and, where there are others, the one that ends a turn and
    those of the model's own settings."""
    ends = {tokenizer.end, *(template.ends if template else ())}
    try:
        ends.add(end_of_turn(tokenizer, template))
    except UserError:  # no such token, or a template that refuses the example: it then ends as a text does
        pass
    return tuple(sorted(ends))
