"""Experiment files and their settings: load a file, override fields by dotted path, turn settings into JSON and back.

Settings are frozen dataclasses. An override such as `pretrain.optim.lr=1e-3` walks them by name, is checked against the
field's type, and rebuilds the dataclasses on the way back, so every `__post_init__` check runs again.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import os
import sys
import traceback
import types
import typing
from pathlib import Path

from jaxgpt.core.errors import UserError


def load(path: str | os.PathLike):
    """Runs an experiment file and returns what its `get_config()` returns.

    Raises:
      UserError: the file is missing, does not run (names the line), or has no `get_config`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    if path.suffix != ".py":
        raise UserError(f"{path}: an experiment is a Python file that defines get_config(), so its name ends in .py")
    spec = importlib.util.spec_from_file_location(f"jaxgpt_experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in the file look their module up by name
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"{path}: defines no get_config(); write `def get_config() -> Experiment:` in it")
        return module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}, line {_line_in(path, error)}: {type(error).__name__}: {error}") from error


def _line_in(path: Path, error: Exception) -> int | str:
    """The last line of `path` on the way to `error`."""
    if isinstance(error, SyntaxError):
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    return lines[-1] if lines else "?"


def override(settings, path: str, text: str):
    """Returns `settings` with the field at a dotted `path` set to the value that `text` spells.

    Raises:
      UserError: no such field (names the valid ones), a value of the wrong type, or one that the settings refuse.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Optim: lr: float = 0.1
    >>> override(Optim(), "lr", "1e-3")
    Optim(lr=0.001)
    """
    try:
        return _set(settings, path.split("."), text, path)
    except ValueError as error:
        raise UserError(f"--set {path}={text}: {error}") from error


def _set(settings, names: list[str], text: str, path: str, kind: str = "step"):
    """`kind`: what the items of a tuple are called, in the singular."""
    name, rest = names[0], names[1:]
    if isinstance(settings, dict):
        if name not in settings:
            raise UserError(f"--set {path}: {_no_such(name, 'key', list(settings))}")
        old, annotation = settings[name], type(settings[name])
    elif _has_names(settings) or settings == ():  # such as stages, by name
        index = {item.name: i for i, item in enumerate(settings)}
        if name not in index:
            raise UserError(f"--set {path}: {_no_such(name, kind, list(index))}")
        if not rest:
            raise UserError(f"--set {path}: '{name}' is a {kind}; name one of its fields, as in {path}.FIELD=VALUE")
        new = _set(settings[index[name]], rest, text, path)
        return settings[:index[name]] + (new,) + settings[index[name] + 1:]
    elif dataclasses.is_dataclass(settings):
        fields = {field.name for field in dataclasses.fields(settings)}
        if name not in fields and "stages" in fields:
            return dataclasses.replace(settings, stages=_set_stage(settings, names, text, path))
        if name not in fields:
            raise UserError(f"--set {path}: {_no_such(name, f'field of {type(settings).__name__}', sorted(fields))}")
        old, annotation = getattr(settings, name), typing.get_type_hints(type(settings))[name]
    else:
        raise UserError(f"--set {path}: {type(settings).__name__} has no fields, so '.{name}' leads nowhere")
    if rest:
        new = _set(old, rest, text, path, name.removesuffix("s"))
    elif dataclasses.is_dataclass(old):
        inner = ", ".join(field.name for field in dataclasses.fields(old))
        raise UserError(f"--set {path}: '{name}' is a {type(old).__name__}; name one of its fields: {inner}")
    elif _has_names(old):
        inner = ", ".join(item.name for item in old)
        raise UserError(f"--set {path}: '{name}' are several; name one and its field, as in {path}.{old[0].name}.FIELD="
                        f"VALUE; there are: {inner}")
    else:
        new = parse(text, annotation)
    return {**settings, name: new} if isinstance(settings, dict) else dataclasses.replace(settings, **{name: new})


def _set_stage(experiment, names: list[str], text: str, path: str):
    if names[0] not in {stage.name for stage in experiment.stages}:
        own = [field.name for field in dataclasses.fields(experiment) if field.name != "stages"]
        valid = [stage.name for stage in experiment.stages] + own
        raise UserError(f"--set {path}: {_no_such(names[0], 'stage or field of the experiment', valid)}")
    return _set(experiment.stages, names, text, path, "stage")


def _has_names(value) -> bool:
    return isinstance(value, tuple) and value != () and all(hasattr(item, "name") for item in value)


def _no_such(name: str, kind: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"no {kind} is called '{name}'; {hint}valid: {', '.join(valid) or 'none, there is no ' + kind}"


def parse(text: str, annotation):
    """The value of type `annotation` that `text` spells.

    Raises:
      ValueError: it spells none, naming the type or the choices.

    >>> parse("3", int), parse("3", float), parse("none", int | None), parse("1,2", tuple[int, ...])
    (3, 3.0, None, (1, 2))
    >>> parse("none", typing.Literal["none", "full"])  # the word, where it is one of the choices
    'none'
    >>> parse("12", str | None), parse("none", str | None), parse("wandb", tuple[str, ...])
    ('12', None, ('wandb',))
    """
    if annotation is str or (typing.get_origin(annotation) is typing.Literal and text in typing.get_args(annotation)):
        return text
    if text.lower() in ("none", "true", "false"):
        value = {"none": None, "true": True, "false": False}[text.lower()]
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
    try:
        return conform(value, annotation)
    except ValueError:
        if typing.get_origin(annotation) in (typing.Union, types.UnionType) and str in typing.get_args(annotation):
            return text  # "12" for `str | None`
        if annotation == tuple[str, ...]:
            return (text,)  # one name for a list of names
        raise


def conform(value, annotation):
    """`value` as an `annotation`, converting only what loses nothing (an int to a float, a list to a tuple).

    Raises:
      ValueError: the value is not of that type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is typing.Any:
        return value
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ValueError(f"{value!r} is not one of {', '.join(map(repr, arguments))}")
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            if isinstance(value, dict) and dataclasses.is_dataclass(choice) and value.get("type") != choice.__name__:
                continue  # several classes may have the same fields
            try:
                return conform(value, choice)
            except ValueError:
                continue
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is how people write a million
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(kinds) == len(value):
            return tuple(conform(item, kind) for item, kind in zip(value, kinds))
    elif origin is dict and isinstance(value, dict):
        return {conform(k, arguments[0]): conform(v, arguments[1]) for k, v in value.items()}
    elif dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        return from_json(annotation, value)
    elif (origin or annotation) in (None, type(None)):
        if value is None:
            return None
    elif isinstance(value, origin or annotation) and not (annotation is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{value!r} is not of type {getattr(annotation, '__name__', None) or annotation}")


def to_json(settings):
    """Settings as a JSON value; a dataclass becomes an object whose "type" names its class."""
    if dataclasses.is_dataclass(settings):
        fields = {field.name: to_json(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {"type": type(settings).__name__, **fields}
    if isinstance(settings, dict):
        return {str(key): to_json(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_json(value) for value in settings]
    if settings is None or isinstance(settings, (bool, int, float, str)):
        return settings
    raise TypeError(f"a setting is built of numbers, text, tuples, dictionaries and frozen dataclasses, "
                    f"not of {type(settings).__name__}")


def from_json(cls, value: dict):
    """The dataclass `cls` that `to_json` wrote.

    Raises:
      UserError: a field is unknown, missing or of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    given = {name: item for name, item in value.items() if name != "type"}
    for name in given:
        if name not in hints:
            raise UserError(_no_such(name, f"field of {cls.__name__}", sorted(hints)))
    try:
        return cls(**{name: conform(item, hints[name]) for name, item in given.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{cls.__name__}: {error}") from error


# How a thing is computed, not what it is, by class: such a field may change between a run and its resumption.
HARDWARE = {"Config": ("attention", "kernels", "remat", "unroll", "loss_chunk"), "Curate": ("runner", "workers"),
            "Pretrain": ("workers",)}


def first_difference(old, new, path: str = "") -> str | None:
    """Where two JSON values first differ, as "optim.lr is 0.02 there and 0.01 here"; None where they agree.

    Fields that are choices of hardware do not count.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if name in HARDWARE.get(new.get("type"), ()):
                continue
            found = first_difference(old.get(name), new.get(name), f"{path}.{name}" if path else name)
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = (first_difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(old, new)))
        return next(filter(None, found), None)
    return None if old == new else f"{path} is {old!r} there and {new!r} here"
