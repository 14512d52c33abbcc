"""Code by hash: what a result also follows from, so that a changed filter is noticed like a changed threshold."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from pathlib import Path

HOME = "jaxgpt.curation"
ALWAYS = ("jaxgpt.curation.document", "jaxgpt.curation.work")  # what every phase runs through
CARRIERS = ("apache_beam", "pyarrow", "fsspec")  # they move texts and do not change them


def code_of(objects) -> dict[str, str]:
    """{module or library: hash or version} of the code behind settings.

    Modules of this room are followed through their imports. Of code from elsewhere, such as a step defined in an
    experiment's file, the class alone counts, so that the rest of the file may change.

    Args:
      objects: frozen dataclasses, nested and in tuples as they like.

    >>> from jaxgpt.curation.split import Split
    >>> {"jaxgpt.curation.split", "jaxgpt.curation.work"} <= set(code_of([Split()]))
    True
    """
    modules, found = set(ALWAYS), {}
    for kind in sorted(_types(objects), key=lambda kind: (kind.__module__, kind.__qualname__)):
        if kind.__module__.startswith(HOME):
            modules.add(kind.__module__)
        else:
            found[f"{kind.__module__}.{kind.__qualname__}"] = _short(_source(kind))
    libraries, waiting = set(), sorted(modules)
    while waiting:
        name = waiting.pop()
        digest, imported = _module(name)
        found[name] = digest
        inside = {other for other in imported if other.startswith(HOME + ".")} - set(found)
        waiting += sorted(inside - set(waiting))
        libraries |= {other.split(".")[0] for other in imported}
    for name in libraries - {"jaxgpt"} - set(CARRIERS) - set(sys.stdlib_module_names):
        found[name] = _version(name)
    return dict(sorted(found.items()))


def _types(value) -> set[type]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = (getattr(value, field.name) for field in dataclasses.fields(value))
        return {type(value)}.union(*map(_types, inner))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_types, value))
    return set()


@functools.cache
def _module(name: str) -> tuple[str, frozenset[str]]:
    """(hash, full names of what is imported, also inside functions) of a module of this room."""
    source = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
            if node.module == HOME:
                imported |= {f"{HOME}.{alias.name}" for alias in node.names}
    return _short(source), frozenset(imported - {HOME})


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt
        return kind.__qualname__


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
