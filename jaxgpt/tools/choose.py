"""Tools by what a command line says: "calculator,python,search:FOLDER"."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jaxgpt.core.errors import UserError
from jaxgpt.tools.calculator import calculate
from jaxgpt.tools.sandbox import Python, refusal
from jaxgpt.tools.search import Index, read_pages

NAMES = ("calculator", "python", "search:FOLDER")


_TAKES = {"calculator": ("expression", "Computes exactly: + - * / // % **, parentheses, abs, min, max, round, floor, ceil, sqrt."),
          "python": ("code", "Runs a program in Python and returns what it prints."),
          "search": ("query", "Searches documents and returns the titles and passages that match best.")}


def described(names: Iterable[str]) -> list[dict]:
    """Tools as functions in OpenAI's form, for the prompts of models that learn there what they may call. Each takes one
    text.

    >>> described(["calculator"])[0]["function"]["parameters"]["required"]
    ['expression']
    """
    found = []
    for name in names:
        argument, says = _TAKES.get(name, ("input", f"Answers by {name}."))
        schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
        found.append({"type": "function", "function": {"name": name, "description": says, "parameters": schema}})
    return found


def choose(text: str) -> dict[str, Callable[[str], str]]:
    """{name: tool}.

    Raises:
      UserError: there is no such tool, it needs a folder, or this machine cannot wall Python off.

    >>> list(choose("calculator"))
    ['calculator']
    """
    found: dict[str, Callable[[str], str]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, folder = part.partition(":")
        if name == "calculator" and not folder:
            found[name] = calculate
        elif name == "python" and not folder:
            if refusal():
                raise UserError(f"tools: python: a program cannot be walled off from this machine ({refusal()})")
            found[name] = Python()
        elif name == "search" and folder:
            found[name] = Index(read_pages(folder))
        else:
            raise UserError(f"tools: {part}: no such tool; there are {', '.join(NAMES)}")
    return found
