"""How a conversation becomes tokens, which of them are learned, and back.

A conversation is `<|bos|>` and then its turns, each `<|role|>` content `<|end|>`:

  <|bos|><|user|>What is 17 * 3?<|end|><|assistant|><|call|>17*3<|call|><|result|>51<|result|>It is 51.<|end|>
                                               ^^^^^^^^^^^^^^^^^^^^                        ^^^^^^^^^^^^^^^^^

The underlined tokens have loss mask 1: what the assistant itself says, down to the `<|end|>` by which it
stops. It learns neither to write the other turns nor to open its own.

A tool is called in one of two ways. Inside a turn, as above: the assistant writes a call between two
`<|call|>`; whoever generates stops at the second one, runs the tool, puts `result_tokens` in, and lets the
assistant go on. Or between turns: the assistant ends its turn, and the answer comes as a turn of the role
"tool".

Content can be any text: it is encoded as text, so a `<|end|>` that a user types never ends a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer import special
from jaxgpt.tokenizer.tokenizer import Tokenizer


class Part(TypedDict):
    """A piece of an assistant turn: what it says, a call that it makes, or the result that it is given."""

    type: Literal["text", "call", "result"]
    text: str


class Message(TypedDict):
    """One turn. Only an assistant's content may be a list of parts."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[Part]


ROLES = {"system": special.SYSTEM, "user": special.USER, "assistant": special.ASSISTANT, "tool": special.TOOL}
MARKS = {"call": special.CALL, "result": special.RESULT}
FOLLOWS = {  # the roles that may come after each role; None is the beginning
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """The tokens of a conversation and their loss mask.

    The mask is 1 on what the assistant says, on its calls with their marks, and on the `<|end|>` of its
    turns; it is 0 on everything else, results inside its turns included.

    Returns:
      (tokens, loss_mask), two lists of the same length.

    Raises:
      ValueError: no messages, an unknown role, a turn out of order, or content that has the wrong form.
      UserError: the tokenizer is of a model that has no tokens for our turns.

    >>> from jaxgpt.tokenizer import bpe
    >>> tokenizer = Tokenizer(bpe.train(["-"], vocab_size=264))  # no merges: one token a byte
    >>> messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    >>> tokens, mask = render(tokenizer, messages)
    >>> [tokenizer.decode([token]) for token in tokens]
    ['<|bos|>', '<|user|>', '1', '<|end|>', '<|assistant|>', '2', '<|end|>']
    >>> mask
    [0, 0, 0, 0, 0, 1, 1]
    """
    check(messages)
    missing = next((mark for mark in special.SPECIAL_TOKENS if mark not in tokenizer.special), None)
    if missing:
        raise UserError(f"the tokenizer '{tokenizer.name}' has no token for {missing}, so its model knows no turns; "
                        "continue a text instead: jaxgpt sample")
    tokens, mask = [tokenizer.bos], [0]
    for message in messages:
        learned = int(message["role"] == "assistant")
        tokens.append(tokenizer.special[ROLES[message["role"]]])
        mask.append(0)
        for part in _parts(message["content"]):
            piece = _part_tokens(tokenizer, part)
            tokens += piece
            mask += [0 if part["type"] == "result" else learned] * len(piece)
        tokens.append(tokenizer.end)
        mask.append(learned)
    return tokens, mask


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The tokens from which the assistant's next turn is generated: the conversation, then `<|assistant|>`.

    Raises:
      ValueError: as `render`, or the last turn is one after which the assistant does not speak.
    """
    tokens, _ = render(tokenizer, messages)
    last = messages[-1]["role"]
    if "assistant" not in FOLLOWS[last]:
        raise ValueError(f"messages: a prompt ends with a user or a tool turn, not with role '{last}'")
    return [*tokens, tokenizer.special[special.ASSISTANT]]


def result_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """What is put in after a call: `<|result|>` text `<|result|>`, none of it learned."""
    return _part_tokens(tokenizer, {"type": "result", "text": text})


def parse(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Message]:
    """The messages of a rendered conversation: the inverse of `render`.

    An assistant's content comes back as one string where it is text alone, otherwise as the list of its parts
    (a list that holds only text is rendered like the string, as are texts side by side and their sum).

    Raises:
      ValueError: the tokens are not a whole conversation (says what was expected at which token).
    """
    tokens = [int(token) for token in tokens]
    if tokens[:1] != [tokenizer.bos]:
        raise ValueError(f"tokens: a conversation begins with {special.BOS}")
    roles = {tokenizer.special[mark]: role for role, mark in ROLES.items()}
    messages: list[Message] = []
    at = 1
    while at < len(tokens):
        if tokens[at] not in roles:
            found = tokenizer.decode(tokens[at : at + 1])
            raise ValueError(f"tokens: number {at} should open a turn, but is {found!r}")
        if tokenizer.end not in tokens[at:]:
            raise ValueError(f"tokens: the turn that opens at number {at} is not closed by {special.END}")
        end = tokens.index(tokenizer.end, at)
        parts = _parse_parts(tokenizer, tokens[at + 1 : end], at + 1)
        only_text = all(part["type"] == "text" for part in parts)
        content = "".join(part["text"] for part in parts) if only_text else parts
        messages.append({"role": roles[tokens[at]], "content": content})
        at = end + 1
    check(messages)
    return messages


def check(messages: Sequence[Message]) -> None:
    """Refuses what is not a conversation.

    A system turn may stand at the beginning; then user and assistant take turns, with tool turns between two
    turns of the assistant. System and user turns are not empty. In an assistant's parts a result comes right
    after its call.

    Raises:
      ValueError: one sentence that says which message is wrong, and what would be right.
    """
    if not messages:
        raise ValueError("messages: a conversation has at least one turn, but the list is empty")
    before = None
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"messages[{i}]: role {role!r} is none of {', '.join(ROLES)}")
        if role not in FOLLOWS[before]:
            place = f"after role '{before}'" if before else "at the beginning"
            raise ValueError(f"messages[{i}]: role '{role}' cannot stand {place}, "
                             f"where {' or '.join(FOLLOWS[before])} can")
        if isinstance(content, list) and role == "assistant":
            _check_parts(content, f"messages[{i}]")
        elif not isinstance(content, str):
            expected = "a string or a list of parts" if role == "assistant" else "a string"
            raise ValueError(f"messages[{i}]: the content of role '{role}' is {expected}, "
                             f"got {type(content).__name__}")
        if role in ("system", "user") and not content:
            raise ValueError(f"messages[{i}]: the content of role '{role}' is empty")
        before = role


def _check_parts(parts: list[Part], where: str) -> None:
    before = None
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "call", "result") or not isinstance(part.get("text"), str):
            raise ValueError(f"{where}, part {i}: a part has the type 'text', 'call' or 'result' "
                             f"and as its text a string, got {part!r}")
        if kind == "result" and before != "call":
            raise ValueError(f"{where}, part {i}: a result comes right after a call")
        before = kind


def _parts(content: str | list[Part]) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _part_tokens(tokenizer: Tokenizer, part: Part) -> list[int]:
    tokens = tokenizer.encode(part["text"])
    if part["type"] == "text":
        return tokens
    mark = tokenizer.special[MARKS[part["type"]]]
    return [mark, *tokens, mark]


def _parse_parts(tokenizer: Tokenizer, tokens: list[int], offset: int) -> list[Part]:
    """Cuts the content of one turn at its marks; `offset` is where it begins, for the messages."""
    kinds = {tokenizer.special[mark]: kind for kind, mark in MARKS.items()}
    specials = set(tokenizer.special.values())
    parts: list[Part] = []
    at = 0
    while at < len(tokens):
        kind = kinds.get(tokens[at], "text")
        start = at if kind == "text" else at + 1
        stop = next((i for i in range(start, len(tokens)) if tokens[i] in specials), len(tokens))
        if kind == "text" and stop == at:
            found = tokenizer.decode(tokens[at : at + 1])
            raise ValueError(f"tokens: {found!r} at number {offset + at} cannot stand inside a turn")
        if kind != "text" and tokens[stop : stop + 1] != [tokens[at]]:
            raise ValueError(f"tokens: the {kind} that opens at number {offset + at} is not closed "
                             f"by {MARKS[kind]}")
        parts.append({"type": kind, "text": tokenizer.decode(tokens[start:stop])})
        at = stop if kind == "text" else stop + 1
    return parts
