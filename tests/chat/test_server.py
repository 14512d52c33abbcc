"""The server, in a process of its own: OpenAI's client drives it, wrong requests are told why, nothing is lost."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from typing import Literal

import numpy as np
import pytest
from scripted import ALPHABET, LIKELY, TOKENIZER, VOCAB, Server, write_foreign, write_llama, write_run

from jaxgpt.chat import serving
from jaxgpt.chat.models import Models
from jaxgpt.core.errors import UserError

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

pytestmark = pytest.mark.slow
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "multiply", "description": "multiplies", "parameters": {
    "type": "object", "properties": {"expression": {"type": "string"}}}}}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def web(server):
    with httpx.Client(base_url=server.url, timeout=120) as web:
        yield web


def gauge(web, name):
    """A value of /metrics."""
    return float(re.search(rf"^jaxgpt_{name} (\S+)$", web.get("/metrics").text, re.MULTILINE)[1])


# --- what OpenAI's client asks ---------------------------------------------------------------------------------------

def test_the_models_are_the_stages(client, web):
    assert [model.id for model in client.models.list()] == ["base", "assistant", "practice"]
    assert client.models.retrieve("base").owned_by == "jaxgpt"
    assert web.get("/health").json() == {"status": "ok", "models": ["base", "assistant", "practice"]}


def test_a_chat_whole_and_in_pieces(client):
    whole = client.chat.completions.create(model="assistant", messages=HELLO, temperature=0)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("HI", "stop")
    assert whole.usage.prompt_tokens == len("hello") + 4  # bos, user, end, assistant
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    pieces = list(client.chat.completions.create(model="assistant", messages=HELLO, temperature=0, stream=True,
                                                 stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == "HI"
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "stop"
    assert pieces[-1].usage == whole.usage and pieces[0].choices[0].delta.role == "assistant"


def test_log_probabilities_are_those_of_the_table(client):
    found = client.chat.completions.create(model="base", messages=HELLO, temperature=0, max_tokens=3, logprobs=True,
                                           top_logprobs=2).choices[0]
    assert (found.message.content, found.finish_reason) == ("abc", "length")
    assert [one.token for one in found.logprobs.content] == ["a", "b", "c"]
    np.testing.assert_allclose([one.logprob for one in found.logprobs.content], LIKELY, atol=1e-5)
    top = found.logprobs.content[0].top_logprobs
    assert top[0].token == "a" and top[0].bytes == [97] and len(top) == 2
    assert top[1].logprob == pytest.approx(LIKELY - 9, abs=1e-5)


def test_a_completion_with_its_prompt_and_its_probabilities(client):
    """What lm-evaluation-harness asks: how likely each token of a text is."""
    found = client.completions.create(model="base", prompt=[list(b"abx"), list(b"yzab")], max_tokens=1, echo=True,
                                      logprobs=1, temperature=0).choices
    assert [choice.text for choice in found] == ["abxy", "yzabc"]
    first = found[0].logprobs
    assert first.tokens == ["a", "b", "x", "y"] and first.text_offset == [0, 1, 2, 3]
    assert first.token_logprobs[0] is None and first.top_logprobs[0] is None
    np.testing.assert_allclose(first.token_logprobs[1:], [LIKELY, LIKELY - 9, LIKELY], atol=1e-5)
    assert first.top_logprobs[2] == {"c": pytest.approx(LIKELY, abs=1e-5)}
    only = client.completions.create(model="base", prompt="ab", max_tokens=0, echo=True, logprobs=0).choices[0]
    assert only.text == "ab" and only.logprobs.tokens == ["<|bos|>", "a", "b"] and only.finish_reason == "length"


def test_several_prompts_and_answers_streamed(client):
    texts = {}
    for event in client.completions.create(model="base", prompt=["a", "m"], n=2, max_tokens=4, temperature=0,
                                           stream=True):
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "bcde", 1: "bcde", 2: "nopq", 3: "nopq"}


def test_stops_end_before_the_string(client):
    def text(**options):
        return client.completions.create(model="base", prompt="a", temperature=0, max_tokens=20, **options).choices[0]
    assert (text(stop="ef").text, text(stop="ef").finish_reason) == ("bcd", "stop")
    assert text(stop=["zz", "k", "jk"]).text == "bcdefghi"
    streamed = client.completions.create(model="base", prompt="a", temperature=0, max_tokens=20, stop="ef", stream=True)
    pieces = [event.choices[0] for event in streamed]
    assert "".join(piece.text for piece in pieces) == "bcd" and pieces[-1].finish_reason == "stop"


def test_seeds_reproduce_and_options_are_heard(client):
    def text(**options):
        return [choice.text for choice in client.completions.create(model="base", prompt="a", max_tokens=24,
                                                                    **options).choices]
    assert text(seed=1, temperature=2, n=2) == text(seed=1, temperature=2, n=2) != text(seed=2, temperature=2, n=2)
    one, other = text(seed=1, temperature=2, n=2)
    assert one != other
    assert text(seed=3, temperature=2, extra_body={"top_k": 1}) == [ALPHABET[1:25]]
    assert text(temperature=0, logit_bias={"90": 20}) == ["Z" * 24]


def test_tools_are_called_and_answered(client):
    asked = client.chat.completions.create(model="practice", messages=HELLO, temperature=0, tools=[WEATHER]).choices[0]
    call, = asked.message.tool_calls
    assert asked.finish_reason == "tool_calls" and call.function.name == "multiply"
    assert json.loads(call.function.arguments) == {"expression": "7*8"}
    answered = client.chat.completions.create(model="practice", temperature=0, tools=[WEATHER], messages=[
        *HELLO, asked.message, {"role": "tool", "tool_call_id": call.id, "content": "56"}]).choices[0]
    assert (answered.message.content, answered.finish_reason) == ("OK", "stop")

    events = list(client.chat.completions.create(model="practice", messages=HELLO, temperature=0, tools=[WEATHER],
                                                 stream=True))
    call, = (one for event in events for one in event.choices[0].delta.tool_calls or ())
    assert call.function.name == "multiply" and json.loads(call.function.arguments) == {"expression": "7*8"}
    assert events[-1].choices[0].finish_reason == "tool_calls"


def test_tools_of_the_server_are_run_in_the_answer_and_nothing_is_compiled_for_the_first(tmp_path):
    server = Server(write_run(tmp_path), "--tools", "calculator", "--stage", "practice", "--slots", "2", warm_up=True,
                    JAX_LOG_COMPILES="1")
    try:
        wait_for(lambda: any(re.match(r"compiled \d+ programs in", line) for line in server.errors))
        before = len(server.errors)
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
        found = client.chat.completions.create(model="practice", messages=HELLO, temperature=0).choices[0]
        assert found.message.content == "OK" and found.finish_reason == "stop"
        (use,) = found.message.tool_uses
        assert "7*8" in json.dumps(use) and "56" in json.dumps(use)
        time.sleep(0.2)
        assert any("Finished XLA compilation" in line for line in server.errors[:before])
        assert not [line for line in server.errors[before:] if "Finished XLA compilation" in line]  # warmed up
    finally:
        server.stop()


@pytest.mark.slow
def test_tools_of_the_server_are_run_for_a_model_from_elsewhere(tmp_path):
    server = Server(write_foreign(tmp_path), "--tools", "calculator", "--slots", "2")
    try:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
        ask = dict(model="foreign", messages=HELLO, temperature=0)
        found = client.chat.completions.create(**ask)
        assert found.choices[0].message.content == "OK" and found.choices[0].finish_reason == "stop"
        assert found.choices[0].message.tool_uses == [{"call": "7*8", "result": "56"}]
        assert found.usage.completion_tokens == 8 and found.usage.prompt_tokens > 200  # it is told of the calculator
        events = list(client.chat.completions.create(**ask, stream=True))
        assert "".join(event.choices[0].delta.content or "" for event in events) == "OK"
        uses = [getattr(event.choices[0].delta, "tool_uses", []) for event in events]
        assert sum(uses, []) == [{"call": "7*8", "result": "56"}]
        own = client.chat.completions.create(**ask, tools=[WEATHER]).choices[0]  # the client's go before the server's
        assert own.finish_reason == "tool_calls" and own.message.tool_calls[0].function.name == "multiply"
    finally:
        assert server.stop() == 0
    (tmp_path / "foreign" / "source" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match="no model in .* knows calls and their results"):
        serving.serve(tmp_path, tools="calculator")


@pytest.mark.slow
def test_turns_of_llamas_form_are_calls_where_they_name_a_tool(tmp_path):
    server = Server(write_llama(tmp_path), "--tools", "calculator", "--slots", "2")
    try:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)

        def ask(messages=HELLO, **options):
            """(content, calls, uses, reason), the same whole and in pieces."""
            options = dict(model="llama", messages=messages, temperature=0, **options)
            whole = client.chat.completions.create(**options).choices[0]
            events = [event.choices[0] for event in client.chat.completions.create(**options, stream=True)]
            calls = [[(call.function.name, json.loads(call.function.arguments)) for call in found.tool_calls or ()]
                     for found in [whole.message, *(event.delta for event in events)]]
            uses = [getattr(found, "tool_uses", []) for found in [whole.message, *(event.delta for event in events)]]
            found = whole.message.content, calls[0], uses[0], whole.finish_reason
            assert found == ("".join(event.delta.content or "" for event in events) or None, sum(calls[1:], []),
                             sum(uses[1:], []), events[-1].finish_reason)
            return found

        said = '{"name": "calculator", "parameters": {"expression": "7*8"}}'
        calculator = {"type": "function", "function": {**WEATHER["function"], "name": "calculator"}}
        assert ask() == ("OK", [], [{"call": said, "result": "56"}], "stop")  # by the server
        assert ask(tools=[WEATHER, calculator]) == (None, [("calculator", {"expression": "7*8"})], [], "tool_calls")
        for options in ({"tools": [WEATHER]}, {"tool_choice": "none"}, {"tool_choice": "none", "tools": [calculator]}):
            assert ask(**options) == (said, [], [], "stop")
        answer = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": json.loads(said)}}}
        content, *rest = ask(response_format=answer)
        assert json.loads(content) == json.loads(said) and rest == [[], [], "stop"]

        asked = client.chat.completions.create(model="llama", messages=HELLO, temperature=0, tools=[calculator]).choices[0].message
        result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "56"}
        assert ask([*HELLO, asked, result], tools=[calculator]) == ("OK", [], [], "stop")
        one = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
        add = {"type": "function", "function": {"name": "add", "parameters": one}}
        for choice in ("required", {"type": "function", "function": {"name": "add"}}):
            tools = [add, calculator][:1 + (choice != "required")]
            assert ask(tools=tools, tool_choice=choice) == (None, [("add", {"a": "x"})], [], "tool_calls")
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_eight_bits_and_a_draft_give_the_same_answers(scripted_run, client, tmp_path, capsys):
    """The draft is the model that it guesses for, so its guesses are right."""
    server = Server(scripted_run, "--stage", "practice", "--int8", "--int8-cache", "--draft", str(scripted_run))
    try:
        helped = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
        ask = dict(model="practice", messages=HELLO, temperature=0)
        answers = [one.chat.completions.create(**ask).choices[0].message.content for one in (client, helped)]
        assert answers[0] == answers[1] != ""
        metrics = httpx.get(server.url + "/metrics").text
        drawn, passes = (float(re.search(rf"^jaxgpt_{name} (\S+)", metrics, re.M)[1]) for name in ("tokens_drawn", "passes"))
        assert 0 < passes <= drawn / 2
    finally:
        assert server.stop() == 0
    from jaxgpt.cli import main
    assert main(["serve", str(scripted_run), "--draft", str(tmp_path)]) == 2
    assert f"{tmp_path}: no stage that trains a model is complete there" in capsys.readouterr().err


class Person(pydantic.BaseModel):
    """What the answers below have to be."""
    name: str = pydantic.Field(max_length=6)
    age: int = pydantic.Field(ge=0, le=150)
    kind: Literal["cat", "dog"] | None
    friends: list["Person"] = pydantic.Field(max_length=1)


def test_an_answer_of_a_schema_is_parsed(client):
    """The model knows the alphabet alone; a class says what is written."""
    whole = 0
    for seed in range(6):
        options = dict(model="base", messages=HELLO, temperature=2, seed=seed)
        try:
            found = client.chat.completions.parse(response_format=Person, **options).choices[0]
        except openai.LengthFinishReasonError:
            continue
        assert found.finish_reason == "stop" and isinstance(found.message.parsed, Person)
        whole += 1
    assert whole >= 2
    small = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"enum": ["bcd", 12]}}}
    found = client.chat.completions.create(model="base", messages=HELLO, response_format=small, temperature=0, n=2)
    assert [json.loads(choice.message.content) for choice in found.choices] in ([12, 12], ["bcd", "bcd"])
    cut = client.chat.completions.create(model="base", messages=HELLO, response_format={"type": "json_object"}, max_tokens=2)
    assert cut.choices[0].message.content[0] == "{" and cut.choices[0].finish_reason in ("length", "stop")
    pieces = client.chat.completions.create(model="base", messages=HELLO, response_format=small, stream=True)
    assert json.loads("".join(piece.choices[0].delta.content or "" for piece in pieces)) in ("bcd", 12)


def test_a_call_that_is_asked_for_has_the_arguments_that_it_needs(client):
    tool = {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 40}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"], "additionalProperties": False}}}
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        found = client.chat.completions.create(model="base", messages=HELLO, tools=[tool, WEATHER][:1 + (choice != "required")],
                                               tool_choice=choice, temperature=2).choices[0]
        call, = found.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert found.finish_reason == "tool_calls" and call.function.name == "add"
        assert set(arguments) == {"a", "b"} and 3 <= arguments["a"] <= 40 and arguments["b"] in ("x", "y")


def test_a_schema_that_is_not_supported_is_named(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="base", messages=HELLO, response_format={"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "object", "properties": {"a": {"oneOf": []}}}}})
    assert caught.value.param == "response_format.json_schema.schema.properties.a.oneOf"


def test_embeddings_have_length_one(client):
    found = client.embeddings.create(model="base", input=["ab", "ba", "xyz"]).data
    same, other = np.array(found[0].embedding), np.array(found[2].embedding)
    np.testing.assert_allclose(np.linalg.norm(same), 1, atol=1e-5)
    np.testing.assert_allclose(same, found[1].embedding, atol=1e-6)  # a mean knows no order, nor do these layers
    expected = np.zeros(VOCAB)
    expected[[TOKENIZER.bos, *b"ab"]] = 3 ** -0.5
    np.testing.assert_allclose(same, expected, atol=1e-5)
    assert abs(same @ other) == pytest.approx(1 / 3 / (4 / 3) ** 0.5, abs=1e-4)  # the opening token is all they share


# --- the page's own questions ----------------------------------------------------------------------------------------

def test_tokens_attention_and_lens(web):
    found = web.post("/api/tokenize", json={"text": "né", "tokenizers": ["scripted"]}).json()
    assert [token["bytes"] for token in found["results"][0]["tokens"]] == ["6e", "c3", "a9"] and found["bytes"] == 3
    seen = web.post("/api/inspect", json={"model": "base", "text": "abx", "layer": 1}).json()
    assert [token["text"] for token in seen["tokens"]] == ["<|bos|>", "a", "b", "x"]
    assert len(seen["attention"]) == 4 and [len(row) for row in seen["attention"][0]] == [1, 2, 3, 4]
    assert all(abs(sum(row) - 1) < 1e-3 for head in seen["attention"] for row in head)
    assert [place[0]["text"] for place in seen["lens"][0]][1:] == ["b", "c", "y"]
    shapes = web.get("/api/shapes?model=base").json()
    assert sum(block["count"] for block in shapes["blocks"]) == shapes["parameters"]


def test_the_page_comes_with_its_policy(web):
    page = web.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


# --- wrong requests --------------------------------------------------------------------------------------------------

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
WRONG = [
    (CHAT, {"model": "best", "messages": HELLO}, 404, "model", 'no "best"; there are base, assistant, practice'),
    (CHAT, {"model": "base", "messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "3 is not"),
    ("/v1/embeddings", {"model": "base", "input": "x", "dimensions": 2}, 400, "dimensions", f"embeddings have {VOCAB}"),
    ("/api/inspect", {"model": "base", "text": "x", "layer": 2}, 400, "layer", "layers are 0 to 1"),
    ("/api/tokenize", {"text": "x", "tokenizers": ["gpt9"]}, 404, "tokenizers[0]", "there are scripted"),
]


@pytest.mark.parametrize("path,body,status,param,said", WRONG, ids=[f"{row[0][4:8]}-{row[3]}" for row in WRONG])
def test_wrong_requests_are_told_what_is_wrong(web, path, body, status, param, said):
    answer = web.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert said in error["message"] and "\n" not in error["message"]


@pytest.mark.parametrize("content,kind,status,said", [
    (b"{", "application/json", 400, "not JSON"), (b"[1]", "application/json", 400, "a list is not an object"),
    (b"[" * 100_000, "application/json", 400, "nested too deeply"), (b"\xff", "application/json", 400, "not JSON"),
    (b'{"model": NaN}', "application/json", 400, "NaN is no number"), (b"{}", "text/plain", 415, "application/json"),
    (b"x" * (5 << 20), "application/json", 413, "larger than")])
def test_what_is_no_request_is_refused(web, content, kind, status, said):
    answer = web.post(CHAT, content=content, headers={"content-type": kind})
    assert answer.status_code == status and said in answer.json()["error"]["message"]


def test_other_paths_methods_and_names_are_refused(web):
    assert web.get("/v1/nothing").json()["error"]["message"].startswith("there is no /v1/nothing")
    assert web.get(CHAT).status_code == 405
    answer = web.get("/health", headers={"host": "evil.example:80"})
    assert answer.status_code == 421 and "evil.example" in answer.json()["error"]["message"]


# --- clients that leave, queues that fill, an end that waits ---------------------------------------------------------

LONG = {"model": "base", "prompt": "a", "max_tokens": 250, "temperature": 0}


def wait_for(check, seconds=30):
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_leaves_frees_its_slot(web, server, stream):
    before = gauge(web, "disconnects_total")
    body = json.dumps(LONG | {"stream": stream, "n": 16}).encode()
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: gauge(web, "live") > 0 and gauge(web, "slots_taken") > 0)
    wait_for(lambda: gauge(web, "live") == 0 and gauge(web, "slots_taken") == 0, seconds=5)
    assert gauge(web, "disconnects_total") == before + 1


def test_a_full_queue_says_429_and_a_signal_drains(scripted_run):
    server = Server(scripted_run, "--slots", "4", "--max-waiting", "0", "--api-key", "secret")
    with httpx.Client(base_url=server.url, timeout=60) as web:
        assert web.get("/v1/models").status_code == 401 and web.get("/").status_code == 200
        web.headers["Authorization"] = "Bearer secret"
        assert web.get("/v1/models").status_code == 200
        refused = web.post(COMPLETE, json=LONG | {"n": 5})
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["message"].startswith("the server has 0 answers under way")
        with web.stream("POST", COMPLETE, json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            thread = threading.Thread(target=lambda: statuses.append(server.stop()))
            statuses = []
            thread.start()
            text = "".join(line for line in lines)
        thread.join()
    assert text.endswith("data: [DONE]") and '"finish_reason": "length"' in text
    assert statuses == [0] and "answered" in "".join(server.errors)


def test_ctrl_c_and_wrong_options_end_with_a_sentence(scripted_run, server, capsys):
    from jaxgpt.cli import main
    port = str(httpx.URL(server.url).port)
    assert main(["serve", str(scripted_run), "--port", port]) == 2
    assert f"--host 127.0.0.1 --port {port}: cannot listen there" in capsys.readouterr().err
    assert main(["serve", str(scripted_run), "--stage", "none"]) == 2
    assert "stages with a model: base, assistant, practice" in capsys.readouterr().err
    assert main(["serve", str(scripted_run), "--slots", "0"]) == 2
    assert "--slots 0: from 1" in capsys.readouterr().err
    assert Server(scripted_run).stop(signal.SIGINT) == 130


def test_500_at_once_half_of_whom_leave(web, server):
    """No slot is lost, the others get what they asked for, and the second thousand takes no more memory."""
    async def one(client, number):
        body = {"model": "base", "prompt": ALPHABET[number % 26], "max_tokens": 12, "temperature": 0, "stream": True}
        async with client.stream("POST", COMPLETE, json=body) as answer:
            assert answer.status_code == 200
            text = ""
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    if number % 2 and len(text) > number % 10:
                        return None  # leaves half-way
            return text == (ALPHABET * 3)[number % 26 + 1:][:12]

    async def all_of_them():
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            return await asyncio.gather(*(one(client, number) for number in range(500)))

    def idle():
        return gauge(web, "live") == 0 and gauge(web, "slots_taken") == 0

    sizes = []
    for _ in range(3):
        assert [text for text in asyncio.run(all_of_them()) if text is not None] == [True] * 250
        wait_for(idle)
        sizes.append(server.memory())
    assert sizes[2] < sizes[1] + (8 << 20)
    assert web.post(COMPLETE, json=LONG | {"n": 4, "max_tokens": 5}).status_code == 200


def test_schemathesis_finds_nothing(server, tmp_path):
    pytest.importorskip("schemathesis")
    import subprocess
    import sys
    (tmp_path / "schemathesis.toml").write_text(
        "[checks]\npositive_data_acceptance.expected-statuses = ['2xx', 400]\n"  # a context's length is no schema's
        "negative_data_rejection.expected-statuses = [400, 404, 405, 413, 415]\n")
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", "--max-examples", "8",
         "--generation-deterministic", "--request-timeout", "60", "--suppress-health-check", "all"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]


def test_a_context_smaller_than_the_models(tmp_path):
    run = write_run(tmp_path)
    with pytest.raises(UserError, match="--context 1000: from 2 to 256, the context of base"):
        Models(run, context=1000)
    server = Server(run, "--context", "64")
    try:
        ask = lambda prompt: httpx.post(f"{server.url}/v1/completions", timeout=60, json={  # noqa: E731
            "model": "base", "prompt": prompt, "max_tokens": 200})
        assert ask("a").json()["usage"]["total_tokens"] == 64
        assert ask("a" * 80).status_code == 400 and "context is 64" in ask("a" * 80).json()["error"]["message"]
    finally:
        server.stop()
