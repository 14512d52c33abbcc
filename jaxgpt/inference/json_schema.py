"""JSON Schema -> an automaton over bytes whose strings are JSON texts that fulfil it.

Not all such texts, but some of each kind: fields come in the order in which the schema has them, and where it names any
there are no others; a value that is named (enum, const) is spelt in one way; between the pieces stands at most a space, or
a line break and an indentation; numbers are those that a double holds exactly enough.

Source: JSON Schema, draft 2020-12; the texts are RFC 8259's.
"""

from __future__ import annotations

import functools
import json
import math
import urllib.parse
from collections.abc import Sequence
from typing import Any

from jaxgpt.core.errors import UserError
from jaxgpt.inference import json_text
from jaxgpt.inference.automaton import Automaton, Part, either, literal, repeat, rule, sequence
from jaxgpt.inference.json_text import AROUND, FORMATS, SPACE
from jaxgpt.inference.regex import regex

DEPTH = 16  # of references within references, and of values about which nothing is said
MAX_NESTING = 60  # of a schema in itself
MAX_COUNT = 10_000

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
REMARKS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
           "$comment", "$defs", "definitions"}  # say nothing about what fits
BY_TYPE = {  # the keywords that speak of values of a type
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
BY_TYPE["integer"] = BY_TYPE["number"]
WHOLE = ("$ref", "enum", "const", "anyOf", "allOf")  # each says all by itself
KNOWN = {"type", *WHOLE, *(word for words in BY_TYPE.values() for word in words)}


class SchemaError(UserError):
    """A schema that cannot be followed.

    Args:
      path: where in it, such as "properties.age.multipleOf"; empty for all of it.
      message: what is wrong there.
    """

    def __init__(self, path: str, message: str):
        super().__init__(f"{path or 'the schema'}: {message}")
        self.path, self.reason = path, message


def compile(schema: Any) -> Automaton:
    """The automaton of a schema, which is a value as `json.loads` gives it.

    Raises:
      SchemaError: it holds a keyword that is not supported, is none, or nothing fulfils it.

    >>> automaton = compile({"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2})
    >>> automaton.complete(automaton.read(automaton.start, b'[1, "a"]'))
    True
    """
    return automaton_of(part(schema))


def part(schema: Any) -> Part:
    """The same as a part, to be used within others; a schema's rules keep to themselves."""
    return _Compiler(schema).part(schema, "", DEPTH)


def automaton_of(whole: Part) -> Automaton:
    """The automaton of a part; a SchemaError, of all of it, where nothing fits or it is too large."""
    try:
        return Automaton(whole)
    except UserError as error:
        raise SchemaError("", str(error)) from error


@functools.lru_cache(maxsize=64)
def compile_text(text: str) -> Automaton:
    """The same of a schema as JSON; remembered, so that who asks again gets the same automaton."""
    return compile(json.loads(text))


class _Compiler:
    """Makes the parts of one schema; a place is a path such as "properties.a"."""

    def __init__(self, root: Any):
        self.root = root

    def part(self, schema: Any, at: str, depth: int, nesting: int = 0) -> Part:
        """The values of a schema; `depth` references may still be followed."""
        if schema is True or schema == {}:
            return json_text.value(depth)
        if schema is False:
            return either()
        if not isinstance(schema, dict):
            raise SchemaError(at, "a schema should be an object, or true or false")
        if nesting > MAX_NESTING:
            raise SchemaError("", f"nested more than {MAX_NESTING} deep")
        self._check_words(schema, at)
        whole = [word for word in WHOLE if word in schema]
        if "enum" in whole or "const" in whole:
            return self._named(schema, at, whole)
        if whole:
            return self._whole(schema, at, whole[0], depth, nesting)
        kinds = self._kinds(schema, at)
        return either(*(self._of_type(kind, schema, at, depth, nesting) for kind in kinds))

    def _check_words(self, schema: dict, at: str) -> None:
        for word in schema:
            if word not in KNOWN | REMARKS:
                raise SchemaError(_join(at, word), "this keyword is not supported; the keywords are "
                                  f"{', '.join(sorted(KNOWN))}")
        whole = [word for word in WHOLE if word in schema]
        others = [word for word in schema if word not in REMARKS and word not in whole[:1]
                  and not (whole[:1] in (["enum"], ["const"]) and word in ("type", "enum", "const"))]
        if whole and others:
            raise SchemaError(_join(at, others[0]), f"is not supported beside {whole[0]}")

    def _kinds(self, schema: dict, at: str) -> list[str]:
        """The types that are meant: those that it names, else those that its keywords speak of."""
        named = schema.get("type")
        if named is None:
            found = [kind for kind, words in BY_TYPE.items() if kind != "integer" and any(word in schema for word in words)]
            return found or [kind for kind in TYPES if kind != "integer"]
        named = named if isinstance(named, list) else [named]
        for kind in named:
            if kind not in TYPES:
                raise SchemaError(_join(at, "type"), f"{_shown(kind)} is none of {', '.join(TYPES)}")
        return named

    # --- what says all by itself -------------------------------------------------------------------------------------

    def _named(self, schema: dict, at: str, words: Sequence[str]) -> Part:
        values = None
        for word in words:
            these = schema[word] if word == "enum" else [schema[word]]
            if not isinstance(these, list):
                raise SchemaError(_join(at, word), "should be a list of values")
            values = these if values is None else [one for one in values if any(_same(one, other) for other in these)]
        if "type" in schema:
            kinds = self._kinds(schema, at)
            values = [value for value in values if any(_is(value, kind) for kind in kinds)]
        return either(*(_spelt(value, _join(at, words[0])) for value in values))

    def _whole(self, schema: dict, at: str, word: str, depth: int, nesting: int) -> Part:
        if word == "$ref":
            return self._reference(schema["$ref"], _join(at, "$ref"), depth)
        inner = schema[word]
        if not isinstance(inner, list) or not inner:
            raise SchemaError(_join(at, word), "should be a list of schemas")
        if word == "allOf" and len(inner) > 1:
            raise SchemaError(_join(at, word), "is supported of one schema alone; write their keywords into one")
        return either(*(self.part(one, _join(at, f"{word}[{i}]"), depth, nesting + 1) for i, one in enumerate(inner)))

    def _reference(self, to: Any, at: str, depth: int) -> Part:
        if not isinstance(to, str) or not to.startswith("#"):
            raise SchemaError(at, f"{_shown(to)} should point into the same schema, such as #/$defs/NAME")
        found, path = self.root, ""
        for step in filter(None, urllib.parse.unquote(to[1:]).split("/")):
            step = step.replace("~1", "/").replace("~0", "~")
            place = int(step) if isinstance(found, list) and step.isdecimal() else step
            try:
                found = found[place]
            except (KeyError, IndexError, TypeError):
                raise SchemaError(at, f"there is no {_shown(to)}") from None
            path = _join(path, step)
        if not depth:
            return either()
        return rule((id(self), to, depth), lambda: self.part(found, path, depth - 1))

    # --- a type ------------------------------------------------------------------------------------------------------

    def _of_type(self, kind: str, schema: dict, at: str, depth: int, nesting: int) -> Part:
        if kind == "object":
            return self._object(schema, at, depth, nesting)
        if kind == "array":
            return self._array(schema, at, depth, nesting)
        if kind == "string":
            return self._string(schema, at)
        if kind in ("number", "integer"):
            return self._number(schema, at, kind)
        return either(*map(literal, ((b"true", b"false") if kind == "boolean" else (b"null",))))

    def _object(self, schema: dict, at: str, depth: int, nesting: int) -> Part:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise SchemaError(_join(at, "properties"), "should be an object of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaError(_join(at, "required"), "should be a list of names")
        others, inner = schema.get("additionalProperties", True), nesting + 1
        fields = {name: (self.part(one, _join(at, f"properties.{name}"), depth, inner), name in required)
                  for name, one in properties.items()}
        rest = lambda: self.part(others, _join(at, "additionalProperties"), depth, inner)  # noqa: E731
        for name in required:
            if name not in fields:
                if others is False:
                    raise SchemaError(_join(at, "required"), f"{_shown(name)} is not among the properties")
                fields[name] = rest(), True
        if fields or others is False:
            return _fields([(sequence(_spelt(name, at), COLON, part), always) for name, (part, always) in fields.items()])
        member = sequence(json_text.STRING, COLON, rest())
        return json_text.bracketed(b"{", json_text.listed(member, 0, None), b"}")

    def _array(self, schema: dict, at: str, depth: int, nesting: int) -> Part:
        low, high = _counts(schema, at, "Items")
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise SchemaError(_join(at, "prefixItems"), "should be a list of schemas")
        firsts = [self.part(one, _join(at, f"prefixItems[{i}]"), depth, nesting + 1) for i, one in enumerate(first)]
        rest = self.part(schema.get("items", True), _join(at, "items"), depth, nesting + 1)
        return json_text.bracketed(b"[", json_text.listed(rest, low, high, firsts), b"]")

    def _string(self, schema: dict, at: str) -> Part:
        given = [word for word in BY_TYPE["string"] if word in schema]
        if "pattern" in given or "format" in given:
            word = given[0]
            if len(given) > 1:
                raise SchemaError(_join(at, given[1]), f"is not supported beside {word}")
            if not isinstance(schema[word], str) or (word == "format" and schema[word] not in FORMATS):
                right = "a regular expression" if word == "pattern" else f"one of {', '.join(FORMATS)}"
                raise SchemaError(_join(at, word), f"{_shown(schema[word])} should be {right}")
            pattern = schema[word] if word == "pattern" else FORMATS[schema[word]]
            try:
                inner = regex(pattern, spell=json_text.spelled, search=word == "pattern")
            except UserError as error:
                raise SchemaError(_join(at, word), str(error)) from error
            return sequence(literal(b'"'), inner, literal(b'"'))
        low, high = _counts(schema, at, "Length")
        if (low, high) == (0, None):
            return json_text.STRING
        return sequence(literal(b'"'), repeat(json_text.CHARACTER, low, high), literal(b'"'))

    def _number(self, schema: dict, at: str, kind: str) -> Part:
        bounds = {word: schema[word] for word in BY_TYPE["number"] if word in schema}
        for word, bound in bounds.items():
            if not _is(bound, "number") or not math.isfinite(bound):
                raise SchemaError(_join(at, word), f"{_shown(bound)} should be a number")
            if kind == "number" and bound != int(bound):
                raise SchemaError(_join(at, word), f"{_shown(bound)} should be whole where numbers need not be")
        if not bounds:
            return json_text.INTEGER if kind == "integer" else json_text.NUMBER
        low, over = bounds.get("minimum", -math.inf), bounds.get("exclusiveMinimum", -math.inf)
        high, under = bounds.get("maximum", math.inf), bounds.get("exclusiveMaximum", math.inf)
        if kind == "integer":
            low = max(low if math.isinf(low) else math.ceil(low), over if math.isinf(over) else math.floor(over) + 1)
            high = min(high if math.isinf(high) else math.floor(high), under if math.isinf(under) else math.ceil(under) - 1)
            return json_text.integers(low, high)
        return json_text.numbers(max(low, over), min(high, under), above=over >= low, below=under <= high)


COLON = sequence(literal(b":"), SPACE)


def _fields(members: Sequence[tuple[Part, bool]]) -> Part:
    """An object of these members in this order; those that are not always there may be left out."""
    def part(grammar, to: int) -> int:
        close = sequence(AROUND, literal(b"}"))(grammar, to)
        nothing = none_yet = close  # what may follow behind a member, and where there is none yet
        comma = sequence(literal(b","), AROUND)
        for member, always in reversed(members):
            first = member(grammar, nothing)
            skipped, empty = nothing, none_yet
            nothing, none_yet = grammar.node(), grammar.node()
            grammar.skips[nothing] += [comma(grammar, first)] + [skipped] * (not always)
            grammar.skips[none_yet] += [first] + [empty] * (not always)
        return sequence(literal(b"{"), AROUND)(grammar, none_yet)
    return part


def _counts(schema: dict, at: str, of: str) -> tuple[int, int | None]:
    found = []
    for word, otherwise in (("min" + of, 0), ("max" + of, None)):
        count = schema.get(word, otherwise)
        if count is not None and (not _is(count, "integer") or not 0 <= count <= MAX_COUNT):
            raise SchemaError(_join(at, word), f"{_shown(count)} should be a whole number from 0 to {MAX_COUNT}")
        found.append(count if count is None else int(count))
    low, high = found
    if high is not None and high < low:
        raise SchemaError(_join(at, "max" + of), f"{high} is less than min{of}, which is {low}")
    return low, high


def _spelt(value: Any, at: str) -> Part:
    try:
        return literal(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise SchemaError(at, f"no text of JSON spells {_shown(value)}") from error


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or isinstance(value, int) or value.is_integer())
    return isinstance(value, {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}[kind])


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, where true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _join(at: str, step: str) -> str:
    return f"{at}.{step}" if at else step


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
