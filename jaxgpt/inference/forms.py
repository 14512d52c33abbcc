"""How a model writes the call of a tool and is given its result.

    ours:    <|call|>calculator 17*3<|call|><|result|>51<|result|>
    Qwen's:  <tool_call>{"name": "calculator", "arguments": {"expression": "17*3"}}</tool_call>, and then, as the model's
             chat template has it, the end of its turn, a turn that holds the result, and the opening of its next turn.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

from jaxgpt.core.errors import UserError
from jaxgpt.inference import json_schema
from jaxgpt.inference.automaton import Automaton, either, literal, sequence
from jaxgpt.tokenizer.conversation import result_tokens
from jaxgpt.tokenizer.special import CALL, RESULT
from jaxgpt.tokenizer.template import Template, render_template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import json_object

MARKS = ((CALL, CALL), ("<tool_call>", "</tool_call>"))
_CALLED = ({"role": "user", "content": "1"}, {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "tool", "arguments": {"input": "1"}}}]})
_STANDS_FOR_IT = "\N{OBJECT REPLACEMENT CHARACTER}"


def form_of(tokenizer: Tokenizer, template: Template | None = None) -> Form | None:
    """The form in which a model calls tools; None where its tokenizer has no marks for calls."""
    for opening, closing in MARKS:
        if opening in tokenizer.special and closing in tokenizer.special:
            return Form(tokenizer, opening, closing, template)
    return None


class Form:
    """One of the two forms, in the tokens of a model.

    Attributes:
      opening, closing: the tokens between which a call stands.
      ours: whether it is our form.
    """

    def __init__(self, tokenizer: Tokenizer, opening: str, closing: str, template: Template | None):
        self.tokenizer, self.ours = tokenizer, opening == closing
        self.opening, self.closing = tokenizer.special[opening], tokenizer.special[closing]
        # a result that spells a mark is text, in a template too
        self._template = template and dataclasses.replace(template, controls=(*template.controls, opening, closing))

    def split(self, tokens: Sequence[int]) -> tuple[list[int], list[list[int]], bool]:
        """What of a completion is in no call, what is in each, and whether the last of them is still under way."""
        outside: list[int] = []
        calls: list[list[int]] = []
        inside = False
        for token in tokens:
            if token == (self.closing if inside else self.opening):
                inside = not inside
                calls += [[]] if inside else []
            else:
                (calls[-1] if inside else outside).append(token)
        return outside, calls, inside

    def put_in(self, result: str) -> list[int]:
        """The tokens that follow a call with this result, up to where the model goes on.

        Raises:
          UserError: the model is from elsewhere and has no template for that.
        """
        if self.ours:
            return result_tokens(self.tokenizer, result)
        if self._template is None:
            raise UserError("tools: the model has no chat template, by which it would be given their results")
        tokens = render_template(self._template, self.tokenizer, [*_CALLED, {"role": "tool", "content": result}])
        if self.closing not in tokens:
            raise UserError("tools: the model's chat template writes no calls")
        return tokens[len(tokens) - tokens[::-1].index(self.closing):]

    def result(self, tokens: Sequence[int]) -> str:
        """The result that `put_in` was given, from what it returned."""
        before, after = self._around
        return self.tokenizer.decode(list(tokens)).removeprefix(before).removesuffix(after)

    @functools.cached_property
    def _around(self) -> tuple[str, str]:
        """What stands before and after a result."""
        if self.ours:
            return RESULT, RESULT
        before, _, after = self.tokenizer.decode(self.put_in(_STANDS_FOR_IT)).partition(_STANDS_FOR_IT)
        return before, after


def write_call(name: str, arguments: str, *, ours: bool) -> str:
    """What stands between the marks, from OpenAI's form; in ours, of one argument its value alone.

    >>> write_call("calculator", '{"input": "17*3"}', ours=True)
    'calculator 17*3'
    >>> write_call("calculator", '{"input": "17*3"}', ours=False)
    '{"name": "calculator", "arguments": {"input": "17*3"}}'
    """
    found = json_object(arguments)
    if not ours:
        return json.dumps({"name": name, "arguments": arguments if found is None else found}, ensure_ascii=False)
    if found and len(found) == 1 and isinstance(value := next(iter(found.values())), str):
        arguments = value
    return f"{name} {arguments}"


def read_call(call: str, tools: Mapping[str, str]) -> tuple[str, dict] | None:
    """(name, arguments) of a call, in either form; None where it calls none of the tools.

    Args:
      call: what the model wrote between the marks: a name and its arguments, or arguments alone of the only tool.
      tools: {name: what its first argument is called}.

    >>> read_call('calculator 17*3', {"calculator": "expression"}), read_call('17*3', {"calculator": "expression"})
    (('calculator', {'expression': '17*3'}), ('calculator', {'expression': '17*3'}))
    >>> read_call('weather {"city": "Rome"}', {"weather": "city", "calculator": "x"})
    ('weather', {'city': 'Rome'})
    >>> read_call('{"name": "weather", "arguments": {"city": "Rome"}}', {"weather": "city", "calculator": "x"})
    ('weather', {'city': 'Rome'})
    """
    whole = json_object(call)
    if whole and str(whole.get("name")) in tools:
        given = whole.get("arguments", whole.get("parameters"))
        if isinstance(given, dict):
            return whole["name"], given
    name, _, rest = call.strip().partition(" ")
    if name not in tools:
        if len(tools) != 1:
            return None
        (name,), rest = tools, call.strip()
    arguments = json_object(rest)
    return name, {tools[name]: rest.strip()} if arguments is None else arguments


@functools.lru_cache(maxsize=64)
def call_shape(functions: str, ours: bool) -> Automaton:
    """What may stand between the marks where one of these functions has to be called.

    Args:
      functions: [[name, JSON Schema of its arguments], ...] in JSON.
      ours: whether in our form, or in Qwen's.

    Raises:
      SchemaError: one of the schemas cannot be followed.
    """
    parts = []
    for name, schema in json.loads(functions):
        arguments, spelt = json_schema.part(schema), json.dumps(name).encode()
        parts.append(sequence(literal(name.encode() + b" "), arguments) if ours else sequence(
            literal(b'\n{"name": ' + spelt + b', "arguments": '), arguments, literal(b"}\n")))
    return json_schema.automaton_of(either(*parts))
