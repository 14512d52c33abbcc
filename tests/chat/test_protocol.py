"""What may be asked and how it is read, without a server: every wrong request is told which field is wrong."""

import json
import re

import pytest
from scripted import CONTEXT, FOREIGN, LLAMA, SPECIAL, TOKENIZER, VOCAB, write_foreign, write_llama, write_run

from jaxgpt.chat import openapi, protocol, schema
from jaxgpt.chat.answers import Answer
from jaxgpt.chat.errors import ApiError
from jaxgpt.chat.metrics import Metrics
from jaxgpt.chat.models import Models
from jaxgpt.chat.page import page
from jaxgpt.inference.constraint import Constraint
from jaxgpt.inference.forms import call_shape, form_of, read_call
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tools.choose import described

HELLO = [{"role": "user", "content": "hello"}]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
WRONG = [
    (CHAT, {"model": "best", "messages": HELLO}, 404, "model", 'no "best"; there are base, assistant, practice'),
    (CHAT, {"messages": HELLO}, 400, "model", "model: is missing"),
    (CHAT, {"model": "base", "messages": []}, 400, "messages", "messages: 0 items, but there must be at least 1"),
    (CHAT, {"model": "base", "messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "3 is not"),
    (CHAT, {"model": "base", "messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role",
     '"boss" is none of "system", "developer"'),
    (CHAT, {"model": "base", "messages": HELLO + HELLO}, 400, "messages", "role 'user' cannot stand after role 'user'"),
    (CHAT, {"model": "base", "messages": HELLO, "temperature": 3}, 400, "temperature", "3 is not between 0 and 2"),
    (CHAT, {"model": "base", "messages": HELLO, "temprature": 1}, 400, "temprature", "no such field; the fields"),
    (CHAT, {"model": "base", "messages": [{"role": "user", "content": "x" * 300}]}, 400, "messages",
     f"304 tokens, but the model's context is {CONTEXT}"),
    (CHAT, {"model": "base", "messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs to be true"),
    (CHAT, {"model": "base", "messages": HELLO, "response_format": {"type": "json_schema"}}, 400,
     "response_format.json_schema", "is missing"),
    (CHAT, {"model": "base", "messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"properties": {"n": {"type": "integer", "multipleOf": 2}}}}}}, 400,
     "response_format.json_schema.schema.properties.n.multipleOf", "this keyword is not supported"),
    (CHAT, {"model": "base", "messages": HELLO, "tool_choice": "required"}, 400, "tool_choice", "there are none"),
    (CHAT, {"model": "base", "messages": HELLO, "tool_choice": "required", "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"oneOf": []}}}]}, 400, "tools[0].function.parameters.oneOf", "not supported"),
    (CHAT, {"model": "base", "messages": HELLO, "response_format": {"type": "json_object"}, "tools": [
        {"type": "function", "function": {"name": "f"}}]}, 400, "response_format", "calls no tools"),
    (CHAT, {"model": "base", "messages": [*HELLO, {"role": "tool", "tool_call_id": "a", "content": "1"}]}, 400,
     "messages[1].tool_call_id", '"a" is no call'),
    (COMPLETE, {"model": "base", "prompt": [VOCAB]}, 400, "prompt[0]", f"{VOCAB} is no token"),
    (COMPLETE, {"model": "base", "prompt": ["a", 3]}, 400, "prompt", "a token among texts"),
    (COMPLETE, {"model": "base", "prompt": []}, 400, "prompt", "an empty list"),
    (COMPLETE, {"model": "base", "prompt": "x" * CONTEXT}, 400, "prompt", f"{CONTEXT + 1} tokens, but the"),
    (COMPLETE, {"model": "base", "prompt": "x", "suffix": "y"}, 400, "suffix", "at most 0"),
    (COMPLETE, {"model": "base", "prompt": "x", "best_of": 3}, 400, "best_of", "3 is not n"),
    (COMPLETE, {"model": "base", "prompt": "x", "stream_options": {}}, 400, "stream_options", "needs stream"),
    (COMPLETE, {"model": "base", "prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias", '"x" is not the id'),
    (COMPLETE, {"model": "base", "prompt": "\ud800"}, 400, "prompt", "half a surrogate pair"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(write_run(tmp_path_factory.mktemp("run"), weights=False))


def read(path, body, models):
    """What a request asks."""
    if path == CHAT:
        return protocol.read_chat(body, models)
    return protocol.read_completion(body, models)


@pytest.mark.parametrize("path,body,status,param,said", WRONG, ids=[f"{row[0][4:8]}-{row[3]}" for row in WRONG])
def test_wrong_requests_are_told_what_is_wrong(models, path, body, status, param, said):
    with pytest.raises(ApiError) as caught:
        read(path, body, models)
    error = caught.value
    assert (error.status, error.param) == (status, param) and said in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("deep", ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900])
def test_what_is_deep_is_refused_as_well(models, deep):
    for body in ('{"model": %s}', '{"model": "base", "messages": [%s]}', '{"model": "base", "messages": %s}', "%s"):
        with pytest.raises(ApiError) as caught:
            protocol.read_chat(schema.read_json((body % deep).encode()), models)
        assert caught.value.status == 400


def test_defaults_and_forms(models):
    asked = protocol.read_completion({"model": "base", "prompt": "ab"}, models)
    assert asked.prompts == [[TOKENIZER.bos, 97, 98]] and (asked.max_tokens, asked.n, asked.logprobs) == (16, 1, None)
    assert asked.sampling["temperature"] == 1 and 0 <= asked.sampling["seed"] < 2 ** 32
    assert protocol.read_completion({"model": "base"}, models).prompts == [[TOKENIZER.bos]]
    assert protocol.read_completion({"model": "base", "prompt": [3, 4.0], "seed": -1}, models).prompts == [[3, 4]]
    brief = {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]}
    asked = protocol.read_chat({"model": "base", "stop": "x", "max_tokens": None, "messages": [brief, *HELLO]}, models)
    assert TOKENIZER.decode(asked.prompts[0]) == "<|bos|><|system|>be brief<|end|><|user|>hello<|end|><|assistant|>"
    assert asked.sampling["stop"] == ["x"] and asked.max_tokens == CONTEXT


def test_calls_and_results_stand_where_the_model_learned_them(models):
    call = {"id": "c1", "type": "function", "function": {"name": "multiply", "arguments": '{"expression": "7*8"}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "<|end|>"}]
    prompt = protocol.read_chat({"model": "base", "messages": messages}, models).prompts[0]
    assert TOKENIZER.decode(prompt).endswith("<|assistant|><|call|>multiply 7*8<|call|><|result|><|end|><|result|>")
    assert prompt.count(SPECIAL["end"]) == 1  # what a tool says is text
    more = [*messages, {"role": "assistant", "content": "56"}, {"role": "user", "content": "thanks"}]
    prompt = TOKENIZER.decode(protocol.read_chat({"model": "base", "messages": more}, models).prompts[0])
    assert prompt.endswith("<|result|>56<|end|><|user|>thanks<|end|><|assistant|>")


def test_models_from_elsewhere_are_told_of_the_servers_tools_where_they_may_call_them(tmp_path):
    models, functions = Models(write_foreign(tmp_path, weights=False)), described(["calculator"])
    read = lambda **more: protocol.read_chat({"model": "foreign", "messages": HELLO, **more}, models, functions)  # noqa: E731
    told = FOREIGN.decode(read().prompts[0])
    assert read().served_tools and '"name": "calculator"' in told and not read().tools
    plain = FOREIGN.decode(protocol.read_chat({"model": "foreign", "messages": HELLO}, models).prompts[0])
    for more in ({"tool_choice": "none"}, {"response_format": {"type": "json_object"}}):
        assert not read(**more).served_tools and FOREIGN.decode(read(**more).prompts[0]) == plain
    own = read(tools=[{"type": "function", "function": {"name": "add"}}])
    assert not own.served_tools and "calculator" not in FOREIGN.decode(own.prompts[0]) and list(own.tools) == ["add"]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "<|im_end|>"}]
    prompt = read(messages=messages, tool_choice="none").prompts[0]
    assert FOREIGN.decode(prompt).endswith('assistant\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>\n'
                                           "<|im_start|>user\n<answer><|im_end|></answer><|im_end|>\n<|im_start|>assistant:")
    assert prompt.count(FOREIGN.end) == 3  # what a tool says is text


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """The models of a run whose one calls by whole turns."""
    return Models(write_llama(tmp_path_factory.mktemp("llama"), weights=False))


ADD = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}
ADDS = b'{"name": "add", "parameters": {"a": 1}}'


def test_calls_that_are_whole_turns_are_written_and_asked_for(llamas):
    model = llamas.find("llama")
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "<|eot_id|>"}]
    ask = lambda **more: protocol.read_chat({"model": "llama", "messages": messages, **more}, llamas, described(["x"]))  # noqa: E731
    prompt = ask(tools=[ADD]).prompts[0]
    ending = ADDS.decode() + '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n"<|eot_id|>"<|eot_id|>' \
                             "<|start_header_id|>assistant<|end_header_id|>:"
    assert LLAMA.decode(prompt).endswith(ending) and prompt.count(LLAMA.end) == 4  # what a tool says is text
    assert model.takes_results and ask().served_tools and not ask(tool_choice="none").served_tools
    asked = ask(tools=[ADD], tool_choice="required")
    mask = Constraint(asked.call, LLAMA, vocab_size=VOCAB, end=(model.form.closing,))
    assert mask([]).nonzero()[0].tolist() == [ord("{")] and mask([*ADDS]).nonzero()[0].tolist() == [LLAMA.end]


# --- answers ---------------------------------------------------------------------------------------------------------

def fed(answer, tokens):
    """(texts as they come, what is left, calls)."""
    pieces = [answer.feed(token, -1.0) for token in tokens]
    end = answer.end()
    return [piece.text for piece in pieces], end.text, [call for piece in [*pieces, end] for call in piece.calls]


def test_text_waits_for_whole_characters_and_possible_stops():
    assert fed(Answer(TOKENIZER), "aé€".encode()) == (["a", "", "é", "", "", "€"], "", [])
    assert fed(Answer(TOKENIZER), [0xe2, 0x82]) == (["", ""], "\ufffd", [])
    assert fed(Answer(TOKENIZER, ["END"]), b"xENyEN") == (["x", "", "", "ENy", "", ""], "EN", [])
    answer = Answer(TOKENIZER, ["END", "D"])
    assert fed(answer, b"xEND") == (["x", "", "", ""], "", []) and answer.stopped
    whole = Tokenizer(bpe.train(["bab " * 9], vocab_size=266), name="bab")  # the stop that is whole first, in any pieces
    for tokens in (b"bab", whole.encode("bab")):
        assert "".join(fed(Answer(whole, ["bab", "a"]), tokens)[0]) == "b"
    assert len(whole.encode("bab")) == 1


def test_entries_come_with_their_text_and_know_where_it_stands():
    answer = Answer(TOKENIZER, ["END"])
    entries = [entry for token in "éxENy".encode() for entry in answer.feed(token).entries]
    assert [entry.token for entry in entries] == list("éxENy".encode())
    assert [entry.offset for entry in entries] == [0, 0, 1, 2, 3, 4]
    answer = Answer(TOKENIZER, ["END"])
    entries = [entry for token in b"xEND" for entry in answer.feed(token).entries] + answer.end().entries
    assert [entry.token for entry in entries] == [120]  # tokens of the stop string are not part of the answer


def test_calls_and_results_are_no_text():
    call, result = SPECIAL["call"], SPECIAL["result"]
    tokens = [*b"a", call, *b"7*8", call, result, *b"56", result, *b"b", call, *b"1", call]
    texts, rest, calls = fed(Answer(TOKENIZER), tokens)
    assert "".join(texts) + rest == "ab" and calls == [("7*8", "56"), ("1", None)]


def test_calls_of_models_from_elsewhere_are_calls():
    """Qwen's form: marks of its own, and JSON between them."""
    qwen = Tokenizer(TOKENIZER.ranks, name="qwen", bos="<|im_start|>", end="<|im_end|>", special={
        "<|im_start|>": 300, "<|im_end|>": 301, "<tool_call>": 302, "</tool_call>": 303})
    inside = b'\n{"name": "add", "arguments": {"a": 1}}\n'
    texts, rest, calls = fed(Answer(qwen, form=form_of(qwen)), [*b"so:", 302, *inside, 303])
    assert "".join(texts) + rest == "so:" and read_call(calls[0][0], {"add": "a", "mul": "b"}) == ("add", {"a": 1})
    shape = call_shape(json.dumps([["add", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]]),
                       form_of(qwen).spelling)
    assert shape.complete(shape.read(shape.start, inside)) and not form_of(qwen).ours
    mask = Constraint(shape, qwen, vocab_size=304, opening=(302,), end=(303,))
    assert mask([])[302] and mask([302, *inside])[303] and mask([302, *inside]).sum() == 1


def test_a_turn_is_a_call_or_comes_as_text(llamas):
    form, eot, tag = llamas.find("llama").form.offering(["add"]), LLAMA.end, LLAMA.special["<|python_tag|>"]
    joined = lambda found: ("".join(found[0]) + found[1], found[2])  # noqa: E731
    for begun in ((), (tag,), (tag, 10)):
        texts, rest, calls = fed(Answer(LLAMA, form=form), [*begun, *ADDS, eot])
        assert not any(texts) and not rest and read_call(calls[0][0], {"add": "a", "mul": "b"}) == ("add", {"a": 1})
    for text in (b'{"a": 1}', ADDS + b" it is", ADDS.replace(b"add", b"sub"), b"{", b"\n", "\n é".encode()):
        assert joined(fed(Answer(LLAMA, form=form), [tag, *text, eot])) == (text.decode(), [])
        assert joined(fed(Answer(LLAMA, form=form), text)) == (text.decode(), [])
    assert fed(Answer(LLAMA, form=form), b"ab{") == (["a", "b", "{"], "", [])  # it waits at the beginning alone
    assert joined(fed(Answer(LLAMA, form=llamas.find("llama").form), [*ADDS, eot])) == (ADDS.decode(), [])  # nothing offered
    assert joined(fed(Answer(LLAMA, ["1"], form), [*ADDS, 1])) == (ADDS.decode().partition("1")[0], [])
    answer = Answer(LLAMA, form=form)
    assert not any(answer.feed(token, -1.0).entries for token in b'{"a"')
    assert [(entry.token, entry.offset, entry.logprob) for entry in answer.end().entries] == [
        (token, at, -1.0) for at, token in enumerate(b'{"a"')]


def test_a_call_that_is_a_turn_comes_with_its_result(llamas):
    form = llamas.find("llama").form.offering(["add"])
    answer, pieces = Answer(LLAMA, form=form), []
    for _ in range(2):
        pieces += [answer.feed(token) for token in [*ADDS, LLAMA.end]]
        pieces += [answer.feed(token, forced=True) for token in form.put_in('"5"\n')]
    pieces += [answer.feed(token) for token in [*b"OK", LLAMA.end]] + [answer.end()]
    assert "".join(piece.text for piece in pieces) == "OK"
    assert sum((piece.calls for piece in pieces), []) == [(ADDS.decode(), '"5"\n')] * 2


# --- what it says of itself ------------------------------------------------------------------------------------------

def test_the_document_says_what_the_check_checks():
    document = openapi.document(["base"], ["gpt2"], with_key=True)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    bodies = [operation["requestBody"]["content"]["application/json"]["schema"] for operation in operations
              if "requestBody" in operation]
    checked = (protocol.CHAT, protocol.COMPLETION, protocol.EMBEDDING, openapi.TOKENIZE, openapi.INSPECT)
    assert [set(body["properties"]) for body in bodies] == [set(one["properties"]) for one in checked]
    assert bodies[0]["properties"]["n"] is protocol.CHAT["properties"]["n"]
    assert bodies[0]["properties"]["model"]["enum"] == ["base"]
    assert json.loads(json.dumps(document))["components"]["securitySchemes"]
    assert "401" in str(document) and "401" not in str(openapi.document(["base"], ["gpt2"], with_key=False))


def test_prometheus_reads_the_counts():
    metrics = Metrics()
    metrics.requests["/health", 200] += 2
    metrics.seconds.observe(0.3)
    metrics.seconds.observe(70)
    lines = metrics.text({"slots": ("Slots.", 4)}).splitlines()
    assert 'jaxgpt_requests_total{path="/health",status="200"} 2' in lines and "jaxgpt_slots 4" in lines
    buckets = {line.split('"')[1]: line.split()[-1] for line in lines if line.startswith("jaxgpt_request_seconds_b")}
    assert (buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == ("0", "1", "2")


def test_the_page_fetches_nothing_and_runs_only_its_own_script():
    text, policy = page()
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//|@import|url\(| style=|innerHTML|insertAdjacentHTML", text)
    assert policy.count("'sha256-") == 2 and "default-src 'none'" in policy and "unsafe" not in policy


def test_a_hugging_face_folder_is_one_model(tmp_path):
    from scripted import write_folder
    models = Models(write_folder(tmp_path / "little-llama"))
    model = models.find("little-llama")
    assert (models.default, model.config.context) == ("little-llama", CONTEXT)
    assert model.tokenizer.encode("ab") == [97, 98]
    assert model.loaded.params["embed"].shape == (VOCAB, VOCAB) and model.loaded is model.loaded
