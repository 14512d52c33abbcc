"""What is written under a constraint is checked by others: by Python's json and re, and by another library's validator."""

import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.inference import automaton, json_schema, json_text
from jaxgpt.inference.automaton import DEAD, Automaton
from jaxgpt.inference.constraint import Constraint, expression, trie
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Request, Sampling
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer

TEXT = ['{"name": "Ann", "age": 31, "tags": ["a", "b"]}, [true, false, null] "€é" \n  '] * 3
TOKENIZER = Tokenizer(bpe.train(TEXT, vocab_size=296), name="json")  # tokens of several bytes, across its punctuation
V = 330
PERSON = {"type": "object", "additionalProperties": False, "required": ["name", "age"], "properties": {
    "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3}}}
LIST = {"$ref": "#/$defs/node", "$defs": {"node": {
    "type": "object", "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"], "additionalProperties": False}}}


def fits(machine, text):
    return machine.complete(machine.read(machine.start, text.encode() if isinstance(text, str) else text))


def some_text(mask, rng, most=300):
    """A random completion; where it can end it soon does. None where it was cut."""
    tokens = []
    while len(tokens) < most:
        allowed = np.nonzero(mask(tokens))[0]
        assert len(allowed)
        assert (TOKENIZER.end in allowed) == mask.complete(tokens)
        if TOKENIZER.end in allowed and rng.random() < 0.5:
            return TOKENIZER.decode_bytes(tokens).decode()
        tokens.append(int(rng.choice(allowed[allowed != TOKENIZER.end])) if len(allowed) > 1 or not mask.complete(tokens)
                      else TOKENIZER.end)
        if tokens[-1] == TOKENIZER.end:
            return TOKENIZER.decode_bytes(tokens[:-1]).decode()
    return None


def check(schema, text):
    """The text is JSON and fulfils the schema, says a library that is not ours."""
    validator = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis")
    validator.Draft202012Validator(schema, validate_formats=True).validate(json.loads(text))


# --- bytes, characters, expressions ----------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)), st.integers(0, 0x10FFFF))
def test_characters_are_those_of_the_range_in_utf8(pair, code):
    low, high = sorted(pair)
    try:
        machine = Automaton(automaton.characters([(low, high)]))
    except UserError:
        assert 0xD800 <= low <= high <= 0xDFFF
        return
    for one in (low, high, code, (low + high) // 2):
        if not 0xD800 <= one <= 0xDFFF:
            assert fits(machine, chr(one)) == (low <= one <= high)
    assert not fits(machine, b"\xed\xa0\x80") and not fits(machine, b"\xc0\x80")  # half a pair; too long a spelling


PATTERNS = [r"a|bc*", r"(?:ab){2,3}", r"[^a-c\d]x?", r"\w+@\w+\.com", r"[A-Z]{3}-\d{2,}", r"a.b", r"[\]a]+", r"\x41\u00e9",
            r"[\s\S]?", r"a+?b", r"\S\D\W", r"[-a]*", r"(a|)(b|c)?"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressions_are_read_as_python_reads_them(pattern):
    machine, wanted = expression(pattern), re.compile(pattern)
    texts = ["", "a", "bc", "bccc", "abab", "abababab", "x1", "dx", "zx", "me@there.com", "ABC-12", "ABC-1", "a\nb", "aéb",
             "]a]", "Aé", "ab", "aab", "b", "-a-", "éa.", "..-", " a-", "1a-"]
    for text in texts:
        assert fits(machine, text) == bool(wanted.fullmatch(text)), text
    rng, mask = np.random.default_rng(0), Constraint(machine, TOKENIZER, vocab_size=V)
    for _ in range(10):
        text = some_text(mask, rng, most=100)
        assert text is None or wanted.fullmatch(text), text


@pytest.mark.parametrize("pattern,said", [
    ("a(b", "a ( without its ), at character 2"), ("a)", "a ) without its ("), ("[a", "a [ without its ]"),
    ("(?=a)", "only (?: is supported"), (r"\bx", r"\b is not supported, at character 1"), (r"(a)\1", r"\1 is not supported"),
    ("*a", "nothing stands before *"), ("a**", "one quantifier after another"), ("a{3,2}", "should count up"),
    ("a{9999}", "at most 1000"), ("[]a]", "should be spelt"), ("a^b", "^ is supported only where"), ("[z-a]", "a range should go"), ("\\", "not supported"),
    (r"\xZZ", "hexadecimal digits"), ("(ab)$c", "$ is supported only")])
def test_other_expressions_are_refused_with_their_place(pattern, said):
    with pytest.raises(UserError, match="pattern") as caught:
        expression(pattern)
    assert said in str(caught.value)


# --- schemas ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("schema,right,wrong", [
    ({"type": "integer"}, ["0", "-12", "123456789012345"], ["01", "1.0", "-", "", "1e3", " 1", "1 "]),
    ({"type": "number"}, ["0", "-1.5e-3", "2E+10"], ["1.", ".5", "1e", "+1", "NaN"]),
    ({"type": "integer", "minimum": -5, "exclusiveMaximum": 1234}, ["-5", "0", "99", "1233", "1000"], ["-6", "1234", "9999"]),
    ({"type": "integer", "minimum": 1.5, "maximum": 20}, ["2", "20", "19"], ["1", "21", "-2"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1", "0.5", "1.0"], ["1.1", "-0.5", "2", "1e1"]),
    ({"type": "number", "exclusiveMinimum": -2, "exclusiveMaximum": 0}, ["-1", "-0.25", "-1.999"], ["-2", "0", "-0", "-2.0"]),
    ({"type": "string"}, ['""', '"aé€😀"', r'"\n\u00e9\"\ud83d\ude00"'], ['"\n"', '"', r'"\x"', r'"\ud83d"', r'"\ude00"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"é€"', '"abc"', r'"\u00e9\n"'], ['"a"', '"abcd"']),
    ({"type": "string", "pattern": "^a.c$"}, ['"abc"', r'"a\"c"'], ['"abcd"', '"ac"', '"a"c"']),
    ({"type": "string", "pattern": "b+"}, ['"abc"', '"b"'], ['"ac"', '""']),
    ({"type": "string", "format": "date-time"}, ['"2024-02-28T23:59:01Z"'], ['"2024-02-30T23:59:01Z"', '"2024"']),
    ({"enum": [1, "a", None, {"b": [True]}]}, ["1", '"a"', "null", '{"b": [true]}'], ["2", "true", '{"b":[true]}']),
    ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]), ({"const": 5, "type": ["integer", "null"]}, ["5"], ["6", "null"]),
    ({"type": ["boolean", "null"]}, ["true", "null"], ["0", "True"]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]", "[true, false]", "[\n  true\n]"],
     ["[]", "[true,]", "[true,true,true]", "[null]"]),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"const": 1}], "items": False}, ["[]", "[null]", "[null,1]"],
     ["[1]", "[null,1,1]"]),
    ({"type": "object"}, ["{}", '{"a": [1, {"b": null}]}', '{ "a":"b" }'], ["[]", "{a:1}", '{"a" 1}', '{"a":1,}']),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"x": 1, "y": 2}'], ['{"x": "1"}']),
    ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"], ['{"a":1}']),
    (PERSON, ['{"name": "Ann", "age": 31}', '{"name":"","age":0,"tags":[]}', '{\n  "name": "x",\n  "age": 3\n}'],
     ['{"age": 31, "name": "Ann"}', '{"name": "Ann"}', '{"name": "Ann", "age": 151}', '{"name": "Ann", "age": 1, "x": 1}']),
    ({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["c"]}, ['{"c": 1}', '{"a":null, "c":[]}',
     '{"a":null,"b":null,"c":0}', '{"b":null,"c":0}'], ["{}", '{"a":null}', '{"c":1,"a":null}', '{,"c":1}']),
    (LIST, ['{"v": true, "next": {"v": false, "next": null}}'], ['{"v": true}', '{"v": true, "next": {"v": 1, "next": null}}']),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]), (True, ["[1]", "null", '"x"'], ["", "x"]),
])
def test_texts_that_a_schema_takes(schema, right, wrong):
    machine = json_schema.compile(schema)
    for text in right:
        assert fits(machine, text), text
        check(schema, text)
    assert [text for text in wrong if fits(machine, text)] == []


@pytest.mark.parametrize("schema,path,said", [
    ({"type": "object", "properties": {"age": {"type": "integer", "multipleOf": 3}}}, "properties.age.multipleOf", "not supported"),
    ({"oneOf": [{}]}, "oneOf", "not supported; the keywords are"), ({"type": "text"}, "type", '"text" is none of object'),
    ({"anyOf": [{"$ref": "#/$defs/x"}]}, "anyOf[0].$ref", 'there is no "#/$defs/x"'),
    ({"$ref": "http://example.com/x"}, "$ref", "into the same schema"), ({"enum": "a"}, "enum", "a list of values"),
    ({"type": "string", "pattern": "a(?=b)"}, "pattern", "(?: is supported"), ({"format": "color"}, "format", "one of date"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "maxLength", "beside pattern"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems", "2 is less than minItems, which is 3"),
    ({"type": "string", "maxLength": -1}, "maxLength", "a whole number from 0"), ({"anyOf": []}, "anyOf", "a list of schemas"),
    ({"$ref": "#", "type": "object"}, "type", "beside $ref"), ({"enum": ["\ud800"]}, "enum", "no text of JSON"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "required", "not among the properties"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "", "no value can fulfil it"),
    ({"type": "number", "minimum": 0.5}, "minimum", "should be whole"), ({"type": "integer", "minimum": "0"}, "minimum", "a number"),
    ({"enum": []}, "", "no value"), (3, "", "an object, or true or false"),
    ({"type": "array", "items": {"type": "string", "maxLength": 9999}, "minItems": 9999}, "", "too large"),
    ({"properties": []}, "properties", "an object of schemas"), ({"items": {"a": 1}}, "items.a", "not supported"),
])
def test_what_a_schema_may_not_hold_is_named_with_its_place(schema, path, said):
    with pytest.raises(json_schema.SchemaError) as caught:
        json_schema.compile(schema)
    assert caught.value.path == path and said in str(caught.value) and "\n" not in str(caught.value)


def test_a_deep_schema_is_refused():
    schema = {}
    for _ in range(500):
        schema = {"items": schema, "type": "array"}
    with pytest.raises(json_schema.SchemaError, match="nested more than 60 deep"):
        json_schema.compile(schema)


names = st.text(max_size=4).filter(lambda text: not re.search("[\ud800-\udfff]", text))
leaves = st.one_of(
    st.just({"type": "string"}), st.just({"type": "boolean"}), st.just({"type": "null"}), st.just({"type": "number"}), st.just({}),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-999, 999),
              st.integers(0, 999)),
    st.builds(lambda low, more, kind, out: {"type": kind, "exclusiveMinimum" if out else "minimum": low, "maximum": low + more},
              st.integers(-99, 99), st.integers(1, 99), st.sampled_from(["number", "integer"]), st.booleans()),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(names, st.integers(), st.none(), st.booleans()), min_size=1,
                                                        max_size=3)),
    st.builds(lambda word: {"type": "string", "format": word}, st.sampled_from(sorted(json_text.FORMATS))),
    st.builds(lambda pattern: {"type": "string", "pattern": pattern}, st.sampled_from(PATTERNS)))


def deeper(inner):
    return st.one_of(
        st.builds(lambda item, low, more: {"type": "array", "items": item, "minItems": low, "maxItems": low + more}, inner,
                  st.integers(0, 2), st.integers(0, 2)),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda fields, closed, data: {
            "type": "object", "properties": fields, "required": sorted(name for name, always in zip(fields, data) if always),
            **({"additionalProperties": False} if closed else {})},
            st.dictionaries(names, inner, max_size=3), st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3)))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.recursive(leaves, deeper, max_leaves=5), st.integers(0, 2 ** 32))
def test_what_is_written_at_random_is_json_and_fulfils_any_schema(schema, seed):
    mask = Constraint(json_schema.compile(schema), TOKENIZER, vocab_size=V)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        if (text := some_text(mask, rng)) is not None:
            check(schema, text)


# --- tokens ----------------------------------------------------------------------------------------------------------

def test_a_mask_is_what_reading_each_token_says():
    mask = Constraint(json_schema.compile(PERSON), TOKENIZER, vocab_size=V)
    special, rng, tokens, cut = set(TOKENIZER.special.values()), np.random.default_rng(3), [], 0
    for _ in range(60):
        state = mask.automaton.read(mask.automaton.start, TOKENIZER.decode_bytes(tokens))
        allowed = mask(tokens)
        assert allowed.shape == (V,) and allowed.dtype == bool
        for token in range(V):
            text = b"" if token in special or token >= TOKENIZER.vocab_size else TOKENIZER.decode_bytes([token])
            right = mask.automaton.read(state, text) != DEAD if text else token == TOKENIZER.end and mask.complete(tokens)
            assert allowed[token] == right, (tokens, token)
        if allowed[TOKENIZER.end]:
            tokens = []
            continue
        tokens.append(int(rng.choice(np.nonzero(allowed)[0])))
        try:
            TOKENIZER.decode_bytes(tokens).decode()
        except UnicodeDecodeError:
            cut += 1
    assert cut > 2  # it was inside a character


def test_masks_do_not_depend_on_what_was_asked_before_nor_on_what_was_forgotten(monkeypatch):
    machine = json_schema.compile(LIST)
    one, other = (Constraint(machine, TOKENIZER, vocab_size=V) for _ in range(2))
    prefixes = [TOKENIZER.encode('{"v": true, "next": {"v": false'[:size]) for size in range(32)]
    expected = [one(tokens) for tokens in prefixes]
    machine.forget()
    for place in np.random.default_rng(0).permutation(32):
        np.testing.assert_array_equal(other(prefixes[place]), expected[place])
        np.testing.assert_array_equal(one(prefixes[place]), expected[place])


def test_opening_tokens_come_first_and_other_ends_end():
    call = TOKENIZER.special["<|call|>"]
    mask = Constraint(expression("ab?"), TOKENIZER, vocab_size=V, opening=(call,), end=(call,))
    assert np.nonzero(mask([]))[0].tolist() == [call]
    assert set(np.nonzero(mask([call]))[0]) >= {97} and not mask([call])[call]
    assert np.nonzero(mask([call, 97]))[0].tolist() == [98, call] and mask.complete([call, 97])


def test_a_tokenizer_that_cannot_spell_everything_is_refused():
    class Few(Tokenizer):
        def decode_bytes(self, tokens):
            return super().decode_bytes([token for token in tokens if token != 7])
    with pytest.raises(UserError, match="'few' has no token for 1 of the 256 bytes"):
        trie(Few(TOKENIZER.ranks, name="few"))


@pytest.mark.slow
def test_the_engine_writes_what_the_schema_says():
    """Random weights, several requests at once, each under its own schema."""
    config = transformer.Config(vocab_size=V, context=256, layers=1, width=16, heads=2, mlp_width=16, init_std=0.5)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(1), config)
    engine = Engine(params, config, tokenizer=TOKENIZER, slots=4, chunk=4, piece=16)
    schemas = [PERSON, LIST, {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "maxItems": 4}]
    masks = [Constraint(json_schema.compile(schema), TOKENIZER, vocab_size=V) for schema in schemas]
    requests = [Request((1, 2), 200, Sampling(seed=seed), n=2, mask=mask, stop_tokens=(TOKENIZER.end,))
                for mask in masks for seed in range(2)]
    whole = 0
    for number, outputs in enumerate(engine.run(requests)):
        for output in outputs:
            if output.finished.reason == "stop":
                check(schemas[number // 2], output.text)
                whole += 1
            else:
                assert output.finished.reason == "length"
    assert whole >= 6
