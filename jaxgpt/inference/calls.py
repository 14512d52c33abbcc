"""Tool calls inside a completion: the model writes a call, mostly between two marks, and the result is put in behind it.

    … <|call|>17*3<|call|><|result|>51<|result|> It is 51.

`Caller` is what a request's `watcher` is: a function of the tokens so far and of nothing else, so chats, evaluations and
practice run calls alike, in our form or in that of a model from elsewhere (`forms.py`). In ours, between the marks stands
the tool's name and what it is given, or that alone where there is one tool. What is put in is encoded as plain text, so
no result can spell a mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future

from jaxgpt.core.errors import UserError
from jaxgpt.inference.forms import MARKS, form_of, read_call
from jaxgpt.tokenizer.template import Template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import json_object

Tool = Callable[[str], str]  # what a model is shown, also of a mistake


class Caller:
    """Runs the calls of completions: Request(..., watch=caller.watch, watcher=caller).

    Args:
      tokenizer: of the model.
      tools: {name: tool}, at least one.
      template: of a model from elsewhere, see `Loaded`.
      budget: calls in a completion; further ones are answered by an error.
      longest: characters of a result; the rest of it is cut, and that is said.
      pool: where tools run, so that what asks need not wait; here and now where None.

    Raises:
      UserError: the model knows no calls, or has no template that would give it results.
    """

    def __init__(self, tokenizer: Tokenizer, tools: Mapping[str, Tool], *, template: Template | None = None, budget: int = 8,
                 longest: int = 2000, pool: Executor | None = None):
        self.tokenizer, self.tools, self.budget, self.longest, self.pool = tokenizer, dict(tools), budget, longest, pool
        form = form_of(tokenizer, template)
        if form is None:
            raise UserError("tools: the model's tokenizer has no " + " or ".join(opening for opening, _ in MARKS) +
                            ", with which a call begins, and no chat template writes one as a turn, so it cannot call any")
        form.put_in("")  # refuses now what it cannot write
        self.form, self.watch = form.offering(self.tools), form.closings

    def __call__(self, tokens: Sequence[int]) -> list[int] | Future:
        """The tokens to put in behind a completion so far: none where no call has just ended, else its result, or with a
        pool the Future of it."""
        _, calls, ended = self.form.split(tokens)
        if not ended:
            return []
        if len(calls) > self.budget:
            return self.form.put_in(f"error: at most {self.budget} calls are answered; answer without")
        text = self.tokenizer.decode(calls[-1])
        return self.pool.submit(self._result, text) if self.pool else self._result(text)

    def _result(self, text: str) -> list[int]:
        return self.form.put_in(self.cut(run_call(text, self.tools, ours=self.form.ours)))

    def cut(self, text: str) -> str:
        """A result that is not too long."""
        return text if len(text) <= self.longest else f"{text[:self.longest]} … ({len(text):,} characters in all)"


def run_call(text: str, tools: Mapping[str, Tool], *, ours: bool = True) -> str:
    """The result of a call, or a sentence that begins with "error:".

    >>> run_call("upper abc", {"upper": str.upper, "lower": str.lower}), run_call("abc", {"upper": str.upper})
    ('ABC', 'ABC')
    >>> run_call("sing abc", {"upper": str.upper, "lower": str.lower})
    'error: there is no tool sing; there are upper, lower'
    >>> run_call('{"name": "upper", "arguments": {"text": "abc"}}', {"upper": str.upper, "lower": str.lower}, ours=False)
    'ABC'
    """
    name, given = (_ours if ours else _in_json)(text, tools)
    if name not in tools:
        return f"error: there is no tool {name[:40]}; there are {', '.join(tools)}"
    if given is None:
        return f"error: {name} takes one argument, a text"
    try:
        return tools[name](given.strip())
    except Exception as error:  # a tool's fault must not end the completions beside this one
        return f"error: {name} failed ({type(error).__name__})"


def _ours(text: str, tools: Mapping[str, Tool]) -> tuple[str, str]:
    """(name, what it is given) by "name given", or what the only tool is given."""
    name, _, given = text.strip().partition(" ")
    return (next(iter(tools)), text) if name not in tools and len(tools) == 1 else (name, given)


def _in_json(text: str, tools: Mapping[str, Tool]) -> tuple[str, str | None]:
    """The same by {"name": …, "arguments": {…: given}}; None where there is not one argument."""
    found = read_call(text, dict.fromkeys(tools, "input"))
    if found is None:
        return str((json_object(text) or {}).get("name", text.strip())), None
    name, arguments = found
    if len(arguments) != 1:
        return name, None
    value, = arguments.values()
    return name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
