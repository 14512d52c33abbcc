"""How a model writes the call of a tool and is given its result.

    ours:    <|call|>calculator 17*3<|call|><|result|>51<|result|>
    Qwen's:  <tool_call>{"name": "calculator", "arguments": {"expression": "17*3"}}</tool_call>, and then, as the model's
             chat template has it, the end of its turn, a turn that holds the result, and the opening of its next turn.
    Llama's: {"name": "calculator", "parameters": {"expression": "17*3"}} as a whole turn, without marks, and then the same.

Of the last, a turn is a call only where it names a tool that is at hand: any other JSON is what the model says.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence

from jaxgpt.core.errors import UserError
from jaxgpt.inference import json_schema
from jaxgpt.inference.automaton import Automaton, either, literal, sequence
from jaxgpt.tokenizer.conversation import result_tokens
from jaxgpt.tokenizer.special import CALL, RESULT
from jaxgpt.tokenizer.template import Template, render_template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import json_object, stop_tokens

MARKS = ((CALL, CALL), ("<tool_call>", "</tool_call>"))
_CALLED = ({"role": "user", "content": "1"}, {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "tool", "arguments": {"input": "1"}}}]})
_STANDS_FOR_IT = "the result that stands here"  # in letters, which no template escapes
_TAG = "<|python_tag|>"  # by which a call that is a whole turn may begin


def form_of(tokenizer: Tokenizer, template: Template | None = None) -> Form | None:
    """The form in which a model calls tools; None where its tokenizer has no marks for calls, and its template writes
    none as a turn."""
    for opening, closing in MARKS:
        if opening in tokenizer.special and closing in tokenizer.special:
            return Form(tokenizer, opening, closing, template)
    return WholeTurns.of(tokenizer, template) if template else None


class Form:
    """A form of calls in the tokens of a model: here one with marks.

    Attributes:
      opening: the token before a call; None where there is none.
      closing: the token behind it.
      closings: that, and others by which a call may end.
      ours: whether it is our form.
      spelling: what stands before the name of a call, between the name and the arguments, and behind those.
    """

    def __init__(self, tokenizer: Tokenizer, opening: str, closing: str, template: Template | None):
        self.tokenizer, self.ours = tokenizer, opening == closing
        self.opening: int | None = tokenizer.special[opening]
        self.closing = tokenizer.special[closing]
        self.closings: tuple[int, ...] = (self.closing,)
        self.spelling = ("", " ", "") if self.ours else ('\n{"name": "', '", "arguments": ', '}\n')
        # a result that spells a mark is text, in a template too
        self._template = template and dataclasses.replace(template, controls=(*template.controls, opening, closing))

    def offering(self, names: Collection[str]) -> Form:
        """The same where tools of these names are at hand."""
        return self

    def split(self, tokens: Sequence[int]) -> tuple[list[int], list[list[int]], bool]:
        """What of a completion is in no call, what is in each, and whether it ends with the end of a call."""
        outside: list[int] = []
        calls: list[list[int]] = []
        inside = False
        for token in tokens:
            if token == (self.closing if inside else self.opening):
                inside = not inside
                calls += [[]] if inside else []
            else:
                (calls[-1] if inside else outside).append(token)
        return outside, calls, bool(calls) and not inside and tokens[-1] == self.closing

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
        before, after, in_json = self._around
        text = self.tokenizer.decode(list(tokens)).removeprefix(before).removesuffix(after)
        try:
            return json.loads(f'"{text}"') if in_json else text
        except ValueError:  # it was cut
            return text

    @functools.cached_property
    def _around(self) -> tuple[str, str, bool]:
        """What stands before and after a result, and whether it is spelt as in JSON."""
        if self.ours:
            return RESULT, RESULT, False
        written = self.tokenizer.decode(self.put_in(_STANDS_FOR_IT + "\n" + _STANDS_FOR_IT))
        before, _, rest = written.partition(_STANDS_FOR_IT)
        line, twice, after = rest.partition(_STANDS_FOR_IT)
        return before, after if twice else rest, line == "\\n"


class WholeTurns(Form):
    """The form in which a call is a whole turn: an object in JSON, with the name of a tool that is at hand.

    Args:
      tokenizer, template: of the model.
      closing: the token that ends a call.
      key: what the call's arguments are called.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, closing: int, key: str):
        self.tokenizer, self.ours, self.opening, self.closing = tokenizer, False, None, closing
        self.closings = tuple(sorted({self.closing, *stop_tokens(tokenizer, template)}))
        self.spelling = ('{"name": "', f'", "{key}": ', "}")
        self._template = dataclasses.replace(template, controls=tuple(tokenizer.special))  # a result spells no token
        self._names, self._special = frozenset(), frozenset(tokenizer.special.values())

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: Template) -> WholeTurns | None:
        """The form of a template that writes a call so; None of any other."""
        special = set(tokenizer.special.values()) - {tokenizer.special.get(_TAG)}
        try:
            prompt = render_template(template, tokenizer, _CALLED[:1])
            tokens = render_template(template, tokenizer, _CALLED, prompt=False)
        except UserError:
            return None
        end = next((at for at in range(len(prompt), len(tokens)) if tokens[at] in special), 0)
        text = tokenizer.decode(tokens[len(prompt):end]).removeprefix(_TAG)
        if tokens[:len(prompt)] != prompt or called(text, ("tool",)) is None:
            return None
        key = "arguments" if "arguments" in json_object(text) else "parameters"
        return cls(tokenizer, template, tokens[end], key)

    def offering(self, names: Collection[str]) -> WholeTurns:
        """The same where tools of these names are at hand; of none, no turn is a call."""
        form = copy.copy(self)
        form._names = frozenset(names)
        return form

    def split(self, tokens: Sequence[int]) -> tuple[list[int], list[list[int]], bool]:
        outside: list[int] = []
        calls: list[list[int]] = []
        at, ended = 0, False
        while at < len(tokens):
            end = next((i for i in range(at, len(tokens)) if tokens[i] in self.closings), len(tokens))
            call = self.call_in(tokens[at:end]) if end < len(tokens) else None
            ended = call is not None and end + 1 == len(tokens)
            if call is None:
                outside += tokens[at:end + 1]
                at = end + 1
            else:
                calls.append(call)
                at = self._behind_result(tokens, end + 1)
        return outside, calls, ended

    def call_in(self, turn: Sequence[int]) -> list[int] | None:
        """The call that a turn is, given without the token that ends it; None where it is none."""
        call = self._untagged(turn)
        return call if called(self.tokenizer.decode(call), self._names) else None

    def may_be_call(self, turn: Sequence[int]) -> bool | None:
        """Whether a turn that has begun so may be a call; None while only blanks have come."""
        text = self.tokenizer.decode(self._untagged(turn)).lstrip()
        return bool(self._names) and (text[0] == "{" if text else None)

    def _untagged(self, turn: Sequence[int]) -> list[int]:
        tagged = _TAG in self.tokenizer.special and list(turn[:1]) == [self.tokenizer.special[_TAG]]
        return list(turn[tagged:])

    def put_in(self, result: str) -> list[int]:
        tokens = render_template(self._template, self.tokenizer, [*_CALLED, {"role": "tool", "content": result}])
        prompt = len(render_template(self._template, self.tokenizer, _CALLED[:1]))
        turns = render_template(self._template, self.tokenizer, _CALLED, prompt=False)  # anew: it may write the day's date
        begun = turns.index(self.closing, prompt) + 1
        if tokens[:begun] != turns[:begun] or self._special.isdisjoint(tokens[begun:]):
            raise UserError("tools: the model's chat template writes no turns for the results of calls")
        return tokens[begun:]

    def _behind_result(self, tokens: Sequence[int], at: int) -> int:
        """Where the model goes on behind a result that was put in at `at`; `at` where none was."""
        if at == len(tokens):
            return at
        marks, rest = self._marks
        places = [i for i in range(at, len(tokens)) if tokens[i] in self._special][:len(marks)]
        if [tokens[i] for i in places] != marks:
            return at
        end = places[-1] + 1 + rest
        return end if self.tokenizer.decode(tokens[at:end]).startswith(self._around[0]) else at

    @functools.cached_property
    def _marks(self) -> tuple[list[int], int]:
        """The special tokens around a result, and how many tokens follow the last of them."""
        put_in = self.put_in("")
        places = [i for i, token in enumerate(put_in) if token in self._special]
        return [put_in[i] for i in places], len(put_in) - places[-1] - 1


class Turn:
    """A model's turns as they come, for who shows them in pieces: held back while one may be a call.

    Args:
      form: of the model's calls; unless they are whole turns, nothing is held back.
    """

    def __init__(self, form: Form | None):
        self._form = form if isinstance(form, WholeTurns) else None
        self._held: list[tuple] = []
        self._may_be: bool | None = None  # a call; None while that is open

    def feed(self, token: int, *details) -> tuple[list[tuple], list[int] | None]:
        """What is known with this token: those that are in no call, each with its details, and the call that ends."""
        if self._form is None:
            return [(token, *details)], None
        self._held.append((token, *details))
        if token in self._form.closings:
            held, self._may_be = self.end(), None
            call = self._form.call_in([token for token, *_ in held[:-1]])
            return (held, None) if call is None else ([], call)
        if self._may_be is None:
            self._may_be = self._form.may_be_call([token for token, *_ in self._held])
        return (self.end() if self._may_be is False else []), None

    def end(self) -> list[tuple]:
        """What is still held back, where no token follows."""
        held, self._held = self._held, []
        return held


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
    """(name, arguments) of a call, in any form; None where it calls none of the tools.

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
    if found := called(call, tools):
        return found
    name, _, rest = call.strip().partition(" ")
    if name not in tools:
        if len(tools) != 1:
            return None
        (name,), rest = tools, call.strip()
    arguments = json_object(rest)
    return name, {tools[name]: rest.strip()} if arguments is None else arguments


def called(text: str, tools: Collection[str]) -> tuple[str, dict] | None:
    """(name, arguments) of a call that is an object in JSON; None where it is none, or of none of the tools.

    >>> called('{"name": "weather", "parameters": {"city": "Rome"}}', ["weather"])
    ('weather', {'city': 'Rome'})
    >>> called('{"name": "Rome", "parameters": {}}', ["weather"]), called('{"name": "weather"}', ["weather"])
    (None, None)
    """
    found = json_object(text) or {}
    name, given = found.get("name"), found.get("arguments", found.get("parameters"))
    return (name, given) if isinstance(name, str) and name in tools and isinstance(given, dict) else None


@functools.lru_cache(maxsize=64)
def call_shape(functions: str, spelling: tuple[str, str, str]) -> Automaton:
    """What a call may be where one of these functions has to be called.

    Args:
      functions: [[name, JSON Schema of its arguments], ...] in JSON; names are letters, digits, _ and -.
      spelling: of a `Form`.

    Raises:
      SchemaError: one of the schemas cannot be followed.
    """
    before, between, behind = spelling
    parts = [sequence(literal(f"{before}{name}{between}".encode()), json_schema.part(schema), literal(behind.encode()))
             for name, schema in json.loads(functions)]
    return json_schema.automaton_of(either(*parts))
