"""Tool calls inside a completion: the model writes a call between two marks, and the result is put in behind it.

    … <|call|>17*3<|call|><|result|>51<|result|> It is 51.

`Caller` is what a request's `watcher` is: a function of the tokens so far and of nothing else, so chats, evaluations and
practice run calls alike. Between the marks stands the tool's name and what it is given, or that alone where there is one
tool. What is put in is encoded as plain text, so no result can spell a mark.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future

from jaxgpt.core.errors import UserError
from jaxgpt.inference import json_schema
from jaxgpt.inference.automaton import Automaton, either, literal, sequence
from jaxgpt.tokenizer.conversation import result_tokens
from jaxgpt.tokenizer.special import CALL
from jaxgpt.tokenizer.tokenizer import Tokenizer

Tool = Callable[[str], str]  # what a model is shown, also of a mistake

# How models write a call: ours as above, those of Qwen's and Hermes' kind as
# <tool_call>{"name": …, "arguments": {…}}</tool_call>.
FORMS = ((CALL, CALL), ("<tool_call>", "</tool_call>"))


def call_marks(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The tokens that open and close a call; None where a model knows none."""
    for opening, closing in FORMS:
        if opening in tokenizer.special and closing in tokenizer.special:
            return tokenizer.special[opening], tokenizer.special[closing]
    return None


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


class Caller:
    """Runs the calls of completions: Request(..., watch=caller.watch, watcher=caller).

    Args:
      tokenizer: of the model.
      tools: {name: tool}, at least one.
      budget: calls in a completion; further ones are answered by an error.
      longest: characters of a result; the rest of it is cut, and that is said.
      pool: where tools run, so that what asks need not wait; here and now where None.

    Raises:
      UserError: the model has no token for calls.
    """

    def __init__(self, tokenizer: Tokenizer, tools: Mapping[str, Tool], *, budget: int = 8, longest: int = 2000,
                 pool: Executor | None = None):
        self.tokenizer, self.tools, self.budget, self.longest, self.pool = tokenizer, dict(tools), budget, longest, pool
        if CALL not in tokenizer.special:
            raise UserError(f"tools: the model's tokenizer has no {CALL}, between which a call stands")
        self.watch = (tokenizer.special[CALL],)

    def __call__(self, tokens: Sequence[int]) -> list[int] | Future:
        """The tokens to put in behind a completion so far: none where a call has just been opened, else its result, or
        with a pool the Future of it."""
        places = [place for place, token in enumerate(tokens) if token == self.watch[0]]
        if len(places) % 2:
            return []
        if len(places) // 2 > self.budget:
            return result_tokens(self.tokenizer, f"error: at most {self.budget} calls are answered; answer without")
        text = self.tokenizer.decode(list(tokens[places[-2] + 1:places[-1]]))
        return self.pool.submit(self._result, text) if self.pool else self._result(text)

    def _result(self, text: str) -> list[int]:
        return result_tokens(self.tokenizer, self.cut(run_call(text, self.tools)))

    def cut(self, text: str) -> str:
        """A result that is not too long."""
        return text if len(text) <= self.longest else f"{text[:self.longest]} … ({len(text):,} characters in all)"


def run_call(text: str, tools: Mapping[str, Tool]) -> str:
    """The result of a call, or a sentence that begins with "error:".

    >>> run_call("upper abc", {"upper": str.upper, "lower": str.lower}), run_call("abc", {"upper": str.upper})
    ('ABC', 'ABC')
    >>> run_call("sing abc", {"upper": str.upper, "lower": str.lower})
    'error: there is no tool sing; there are upper, lower'
    """
    name, _, given = text.strip().partition(" ")
    if name not in tools:
        if len(tools) > 1:
            return f"error: there is no tool {name[:40]}; there are {', '.join(tools)}"
        (name,), given = tools, text
    try:
        return tools[name](given.strip())
    except Exception as error:  # a tool's fault must not end the completions beside this one
        return f"error: {name} failed ({type(error).__name__})"
