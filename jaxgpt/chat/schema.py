"""What a request may hold, in JSON Schema, and the check that reads it: document and behaviour have one source."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from jaxgpt.chat.errors import ApiError

KINDS = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
WORDS = {"string": "a string", "boolean": "true or false", "array": "a list", "object": "an object", "null": "null",
         "integer": "a whole number", "number": "a number"}


def text(**rest) -> dict:
    """A string."""
    return {"type": "string", **rest}


def integer(low: int, high: int, **rest) -> dict:
    """A whole number from `low` to `high`."""
    return {"type": "integer", "minimum": low, "maximum": high, **rest}


def number(low: float, high: float, **rest) -> dict:
    """A number from `low` to `high`."""
    return {"type": "number", "minimum": low, "maximum": high, **rest}


def array(items: dict, **rest) -> dict:
    """A list."""
    return {"type": "array", "items": items, **rest}


def record(properties: dict[str, dict], *required: str, **rest) -> dict:
    """An object of these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
            **rest}


def one_of(*schemas: dict, **rest) -> dict:
    """A value of one of these kinds."""
    return {"anyOf": list(schemas), **rest}


def optional(schema: dict) -> dict:
    """The same, or null, which stands for its absence."""
    return one_of(schema, {"type": "null"})


def read_json(body: bytes) -> Any:
    """The value of a request's body.

    Raises:
      ApiError: it is not JSON, nested too deeply, or holds what is no number or no text.
    """
    def refuse(word):
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON ({error})") from error


def check(value: Any, schema: dict, where: str = "") -> Any:
    """`value` if it fits the schema, with whole numbers as int.

    Args:
      value: from `read_json`.
      schema: of the dialect that the functions above write.
      where: the field's path, for the message.

    Raises:
      ApiError: one sentence that names the field, says what was wrong and what would be right.

    >>> check({"n": 2.0}, record({"n": integer(1, 4)}))
    {'n': 2}
    >>> check({"n": [5]}, record({"n": array(integer(1, 4))}))
    Traceback (most recent call last):
    jaxgpt.chat.errors.ApiError: n[0]: 5 is not between 1 and 4
    """
    if "anyOf" in schema:
        fitting = [one for one in schema["anyOf"] if _is(value, one["type"])]
        if not fitting:
            kinds = list(dict.fromkeys(WORDS[one["type"]] for one in schema["anyOf"]))
            raise _wrong(where, f"{_shown(value)} is not {' or '.join(kinds)}")
        for one in fitting[:-1]:
            try:
                return check(value, one, where)
            except ApiError:
                pass
        return check(value, fitting[-1], where)
    kind = schema.get("type")
    if kind and not _is(value, kind):
        raise _wrong(where, f"{_shown(value)} is not {WORDS[kind]}")
    if "enum" in schema and value not in schema["enum"]:
        raise _wrong(where, f"{_shown(value)} is none of {', '.join(map(_shown, schema['enum']))}")
    if kind in ("integer", "number"):
        if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf) or not math.isfinite(value):
            raise _wrong(where, f"{_shown(value)} is not between {schema['minimum']} and {schema['maximum']}")
        return int(value) if kind == "integer" else value
    if kind == "string":
        return _check_text(value, schema, where)
    if kind == "array":
        _check_length(len(value), schema, "Items", "items", where)
        return [check(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value)]
    if kind == "object":
        return _check_fields(value, schema, where)
    return value


def _check_text(value: str, schema: dict, where: str) -> str:
    _check_length(len(value), schema, "Length", "characters", where)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _wrong(where, "half a surrogate pair is no text")
    return value


def _check_fields(value: dict, schema: dict, where: str) -> dict:
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    dot = f"{where}." if where else ""
    for name in schema.get("required", ()):
        if name not in value:
            raise _wrong(dot + name, "is missing")
    _check_length(len(value), schema, "Properties", "fields", where)
    if rest is False and (unknown := next((name for name in value if name not in known), None)) is not None:
        _check_text(unknown, {}, where)
        raise _wrong(dot + unknown[:60], f"there is no such field; the fields are {', '.join(known) or 'none'}")
    pattern = schema.get("propertyNames", {}).get("pattern")
    for name in value if pattern else ():
        if not re.search(pattern, name):
            raise _wrong(where, f"{_shown(name)} is not {schema['propertyNames']['description']}")
    return {name: check(item, known.get(name, rest if isinstance(rest, dict) else {}), dot + name)
            for name, item in value.items()}


def _check_length(length: int, schema: dict, suffix: str, things: str, where: str) -> None:
    low, high = schema.get("min" + suffix, 0), schema.get("max" + suffix, math.inf)
    if not low <= length <= high:
        bound = f"at least {low}" if length < low else f"at most {high}"
        raise _wrong(where, f"{length} {things}, but there must be {bound}")


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        return right and (kind == "number" or isinstance(value, int) or value.is_integer())
    return isinstance(value, KINDS[kind])


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):  # which may be deep
        return "a list" if isinstance(value, list) else "an object"
    written = json.dumps(value)
    return written if len(written) <= 60 else written[:57] + "..."


def _wrong(where: str, message: str) -> ApiError:
    return ApiError(400, f"{where or 'the body'}: {message}", param=where or None)
