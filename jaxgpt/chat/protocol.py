"""The requests of OpenAI's API: what each may hold, and how it becomes what the engine is asked."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Sequence
from typing import Any

from jaxgpt.chat.errors import ApiError
from jaxgpt.chat.models import ends_in_result
from jaxgpt.chat.schema import array, check, integer, number, one_of, optional, record, text
from jaxgpt.inference import json_schema
from jaxgpt.inference.automaton import Automaton
from jaxgpt.inference.forms import call_shape

MAX_TEXT, MAX_TOKENS, MAX_CHOICES, MAX_TOP = 200_000, 1 << 20, 16, 20

_SAMPLING = {
    "model": text(description="One of /v1/models.", maxLength=200),
    "n": optional(integer(1, MAX_CHOICES, description="How many answers.")),
    "temperature": optional(number(0, 2, description="0 is greedy; 1 where it is not given.")),
    "top_p": optional(number(0, 1, description="Sample among the likeliest tokens of this mass.")),
    "top_k": optional(integer(0, MAX_TOKENS, description="Sample among so many likeliest tokens; 0 means all.")),
    "min_p": optional(number(0, 0.999, description="Leave out tokens less likely than this share of the likeliest.")),
    "presence_penalty": optional(number(-2, 2)),
    "frequency_penalty": optional(number(-2, 2)),
    "repetition_penalty": optional(number(0.1, 10)),
    "logit_bias": optional({"type": "object", "additionalProperties": number(-100, 100), "maxProperties": 300,
                            "propertyNames": {"pattern": "^[0-9]{1,7}$", "description": "the id of a token"}}),
    "stop": one_of({"type": "null"}, text(minLength=1, maxLength=200),
                   array(text(minLength=1, maxLength=200), maxItems=4)),
    "seed": optional(integer(-2 ** 63, 2 ** 63 - 1, description="The same seed gives the same answer.")),
    "stream": optional({"type": "boolean"}),
    "stream_options": optional(record({"include_usage": optional({"type": "boolean"}),
                                       "include_obfuscation": optional({"type": "boolean"})})),
    "user": optional(text(maxLength=500, description="Not used.")),
}

COMPLETION = record({
    "prompt": one_of({"type": "null"}, text(maxLength=MAX_TEXT), array(one_of(
        text(maxLength=MAX_TEXT), integer(0, MAX_TOKENS), array(integer(0, MAX_TOKENS), minItems=1))),
        description="A text, several, a list of tokens, or several lists; an empty document where it is not given."),
    "max_tokens": optional(integer(0, MAX_TOKENS, description="16 where it is not given; 0 only with echo.")),
    "echo": optional({"type": "boolean", "description": "Whether the prompt comes back in front of the answer."}),
    "logprobs": optional(integer(0, MAX_TOP, description="Log-probabilities, and so many alternatives of each token.")),
    "best_of": optional(integer(1, MAX_CHOICES, description="Not more than n.")),
    "suffix": optional(text(description="Only an empty one.", maxLength=0)),
    "return_token_ids": optional({"type": "boolean", "description": "Ids beside the spellings of tokens."}),
    **_SAMPLING}, "model")

_CONTENT = one_of({"type": "null"}, text(maxLength=MAX_TEXT),
                  array(record({"type": text(enum=["text"]), "text": text(maxLength=MAX_TEXT)}, "type", "text"),
                        maxItems=100))
_CALL = record({"id": text(maxLength=200), "type": text(enum=["function"]), "function": record(
    {"name": text(maxLength=100), "arguments": text(maxLength=MAX_TEXT)}, "name", "arguments")}, "id", "function")
_FUNCTION = {"name": text(pattern="^[a-zA-Z0-9_-]{1,64}$", description="letters, digits, _ and -"),
             "description": optional(text(maxLength=10_000)), "parameters": optional({"type": "object"}),
             "strict": optional({"type": "boolean"})}

CHAT = record({
    "messages": array(record({
        "role": text(enum=["system", "developer", "user", "assistant", "tool"]),
        "content": _CONTENT,
        "name": optional(text(maxLength=200, description="Not used.")),
        "tool_calls": optional(array(_CALL, maxItems=32)),
        "tool_call_id": optional(text(maxLength=200)),
        "refusal": optional(text(maxLength=MAX_TEXT, description="Not used.")),
    }, "role"), minItems=1, maxItems=1000),
    "max_tokens": optional(integer(1, MAX_TOKENS)),
    "max_completion_tokens": optional(integer(1, MAX_TOKENS, description="To the end of the context if not given.")),
    "logprobs": optional({"type": "boolean"}),
    "top_logprobs": optional(integer(0, MAX_TOP)),
    "tools": optional(array(record({"type": text(enum=["function"]), "function": record(_FUNCTION, "name")},
                                   "type", "function"), maxItems=32)),
    "tool_choice": one_of({"type": "null"}, text(enum=["none", "auto", "required"]), record({
        "type": text(enum=["function"]), "function": record({"name": text(maxLength=100)}, "name")}, "type", "function",
        description="With it, or required, the arguments fulfil the function's parameters.")),
    "parallel_tool_calls": optional({"type": "boolean", "description": "Not used."}),
    "response_format": optional(record({  # the answer is JSON, and fulfils the schema, unless max_tokens cuts it
        "type": text(enum=["text", "json_object", "json_schema"]),
        "json_schema": record({"name": text(maxLength=100), "description": optional(text(maxLength=10_000)),
                               "schema": {"type": "object", "description": "JSON Schema: " + ", ".join(
                                   sorted(json_schema.KNOWN))}, "strict": optional({"type": "boolean"})}, "name"),
    }, "type")),
    **_SAMPLING}, "model", "messages")

EMBEDDING = record({
    "model": _SAMPLING["model"],
    "input": one_of(text(minLength=1, maxLength=MAX_TEXT), array(one_of(
        text(minLength=1, maxLength=MAX_TEXT), integer(0, MAX_TOKENS), array(integer(0, MAX_TOKENS), minItems=1)),
        minItems=1, maxItems=256)),
    "encoding_format": optional(text(enum=["float", "base64"])),
    "dimensions": optional(integer(1, MAX_TOKENS, description="Only the model's own width.")),
    "user": _SAMPLING["user"]}, "model", "input")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a completion or a chat asks of the engine.

    Attributes:
      model: the stage's name.
      prompts: the tokens of each prompt.
      max_tokens: of each answer.
      n: answers to each prompt.
      sampling: options of drawing a token, by name.
      logprobs: alternatives to report with log-probabilities; None reports none.
      echo: whether the prompt comes back.
      stream, usage: whether the answer comes in pieces, and the count of tokens after them.
      shape: what the answer has to be, None for any text.
      call: what the call has to be, where there must be one.
      tools: of functions that the client runs, {name: what its first argument is called}.
      served_tools: whether the server's own tools may be called.
      ids: whether ids of tokens come beside their spellings.
    """

    model: str
    prompts: list[list[int]]
    max_tokens: int
    n: int
    sampling: dict[str, Any]
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    usage: bool = False
    shape: Automaton | None = None
    call: Automaton | None = None
    tools: dict[str, str] = dataclasses.field(default_factory=dict)
    served_tools: bool = False
    ids: bool = False


def read_completion(body: Any, models) -> Asked:
    """A request to /v1/completions; `models` finds a model by name.

    Raises:
      ApiError: it is malformed, the model is unknown, or a prompt does not fit.
    """
    body = _given(check(body, COMPLETION))
    model = models.find(body["model"])
    tokenizer, context = model.tokenizer, model.context
    n, echo = body.get("n", 1), body.get("echo", False)
    if body.get("best_of", n) != n:
        raise ApiError(400, f"best_of: {body['best_of']} is not n, which is {n}", param="best_of")
    max_tokens = body.get("max_tokens", 16)
    if max_tokens == 0 and not echo:
        raise ApiError(400, "max_tokens: 0 leaves nothing to answer; give at least 1, or echo", param="max_tokens")
    prompts = [tokens or [tokenizer.bos] for tokens in token_lists(body.get("prompt", ""), model, "prompt", bos=True)]
    if len(prompts) * n > 128:
        raise ApiError(400, f"prompt: {len(prompts)} prompts of {n} answers each, but there may be 128 in one request",
                       param="prompt")
    for tokens in prompts:
        fit(len(tokens), context, "prompt", spare=0 if max_tokens == 0 else 1)
    return Asked(body["model"], prompts, max_tokens, n, _sampling(body, model), logprobs=body.get("logprobs"),
                 echo=echo, ids=body.get("return_token_ids", False), **_streaming(body))


def read_chat(body: Any, models, functions: Sequence[dict] = ()) -> Asked:
    """A request to /v1/chat/completions.

    Args:
      body: what was sent.
      models: finds a model by name.
      functions: that the server runs itself where the client brings none; a model from elsewhere is told of them.

    Raises:
      ApiError: it is malformed, the model is unknown, or the conversation does not fit.
    """
    body = _given(check(body, CHAT))
    model = models.find(body["model"])
    tools = body.get("tools", []) if body.get("tool_choice") != "none" else []
    for i, tool in enumerate(tools):
        if not _is_name(tool["function"]["name"]):
            raise ApiError(400, f"tools[{i}].function.name: {json.dumps(tool['function']['name'])} is not 1 to 64 "
                           "letters, digits, _ and -", param=f"tools[{i}].function.name")
    if "top_logprobs" in body and not body.get("logprobs"):
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise ApiError(400, "max_tokens: give it or max_completion_tokens, not both", param="max_tokens")
    shape = _shape(body)
    served = not tools and shape is None and body.get("tool_choice") != "none" and model.takes_results
    prompt = model.prompt(_messages(body["messages"]), functions if served else tools)
    fit(len(prompt), model.context, "messages", spare=1)
    limit = body.get("max_tokens", body.get("max_completion_tokens", model.context))
    return Asked(body["model"], [prompt], limit, body.get("n", 1), _sampling(body, model),
                 logprobs=body.get("top_logprobs", 0) if body.get("logprobs") else None, shape=shape,
                 call=_call(body, tools, model),
                 tools={tool["function"]["name"]: _first_argument(tool["function"]) for tool in tools},
                 served_tools=served and bool(functions),
                 **_streaming(body))


def token_lists(value: Any, model, where: str, *, bos: bool = False) -> list[list[int]]:
    """The lists of tokens that OpenAI's forms stand for: a text, texts, tokens, lists of tokens. Texts begin with
    `<|bos|>` where asked, as documents do; tokens are taken as they are."""
    tokenizer = model.tokenizer
    if isinstance(value, str):
        value = [value]
    if value and all(isinstance(item, int) for item in value):
        value = [value]
    if not value:
        raise ApiError(400, f"{where}: an empty list", param=where)
    lists = []
    for i, item in enumerate(value):
        if isinstance(item, int):
            raise ApiError(400, f"{where}[{i}]: a token among texts; give one kind", param=where)
        if isinstance(item, str):
            lists.append([tokenizer.bos] * bos + tokenizer.encode(item))
        else:
            _known(item, model, f"{where}[{i}]")
            lists.append(item)
    return lists


def fit(length: int, context: int, where: str, *, spare: int) -> None:
    """Refuses a prompt that leaves no room.

    >>> fit(300, 256, "prompt", spare=1)
    Traceback (most recent call last):
    jaxgpt.chat.errors.ApiError: prompt: 300 tokens, but the model's context is 256; send at most 255
    """
    if length + spare > context:
        raise ApiError(400, f"{where}: {length} tokens, but the model's context is {context}; send at most "
                       f"{context - spare}", param=where, code="context_length_exceeded")


def _given(body: dict) -> dict:
    return {name: value for name, value in body.items() if value is not None}


def _known(tokens: list[int], model, where: str) -> None:
    size = model.config.vocab_size
    for token in tokens:
        if token >= size:
            raise ApiError(400, f"{where}: {token} is no token; the vocabulary has {size}", param=where)


def _sampling(body: dict, model) -> dict[str, Any]:
    """Options of `inference.request.Sampling`."""
    bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
    _known(list(bias), model, "logit_bias")
    stop = body.get("stop", [])
    return {
        "temperature": body.get("temperature", 1.0), "top_p": body.get("top_p") or None,
        "top_k": body.get("top_k") or None, "min_p": body.get("min_p") or None,
        "presence_penalty": body.get("presence_penalty", 0.0), "frequency_penalty": body.get("frequency_penalty", 0.0),
        "repetition_penalty": body.get("repetition_penalty", 1.0), "logit_bias": bias,
        "stop": [stop] if isinstance(stop, str) else stop or [],
        "seed": body["seed"] % 2 ** 32 if "seed" in body else secrets.randbits(32)}


def _streaming(body: dict) -> dict[str, bool]:
    stream, options = body.get("stream", False), body.get("stream_options")
    if options is not None and not stream:
        raise ApiError(400, "stream_options: needs stream to be true", param="stream_options")
    return {"stream": stream, "usage": bool(options and options.get("include_usage"))}


def _shape(body: dict) -> Automaton | None:
    """What `response_format` says the answer has to be."""
    chosen, where = body.get("response_format", {"type": "text"}), "response_format.json_schema"
    if chosen["type"] == "text":
        return None
    if body.get("tools") and body.get("tool_choice") != "none":
        raise ApiError(400, 'response_format: an answer of this form calls no tools; leave tools out, or give tool_choice '
                       '"none"', param="response_format")
    if chosen["type"] == "json_schema" and "json_schema" not in chosen:
        raise ApiError(400, f"{where}: is missing", param=where)
    schema = chosen["json_schema"].get("schema", {}) if chosen["type"] == "json_schema" else {"type": "object"}
    return _compiled(schema, f"{where}.schema")


def _call(body: dict, tools: list[dict], model) -> Automaton | None:
    """What the call has to be that `tool_choice` asks for."""
    choice = body.get("tool_choice")
    if choice in (None, "none", "auto"):
        return None
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    chosen = {i: tool["function"] for i, tool in enumerate(tools) if name in (None, tool["function"]["name"])}
    if not chosen:
        there = ", ".join(tool["function"]["name"] for tool in tools) or "none"
        raise ApiError(400, f"tool_choice: there is no such function in tools; there are {there}", param="tool_choice")
    if model.form is None:
        raise ApiError(400, f"tool_choice: the model {model.name} knows no calls", param="tool_choice")
    functions = []
    for i, function in chosen.items():
        schema = {"type": "object", **(function.get("parameters") or {"properties": {}})}
        _compiled(schema, f"tools[{i}].function.parameters")
        functions.append([function["name"], schema])
    return call_shape(json.dumps(functions), model.form.spelling)


def _compiled(schema: dict, where: str) -> Automaton:
    try:
        return json_schema.compile_text(json.dumps(schema))
    except json_schema.SchemaError as error:
        path = f"{where}.{error.path}" if error.path else where
        raise ApiError(400, f"{path}: {error.reason}", param=path) from error
    except RecursionError as error:
        raise ApiError(400, f"{where}: nested too deeply", param=where) from error


def _messages(messages: list[dict]) -> list[dict]:
    """The turns of OpenAI's messages: in an assistant's, calls stand with the results that follow them."""
    turns: list[dict] = []
    results = {one["tool_call_id"]: _text(one) for one in messages if one["role"] == "tool" and one.get("tool_call_id")}
    calls: list[str] = []
    for i, message in enumerate(messages):
        role = "system" if message["role"] == "developer" else message["role"]
        if message.get("tool_calls") and role != "assistant":
            raise ApiError(400, f"messages[{i}].tool_calls: only an assistant calls tools", param="messages")
        if role == "tool":
            if message.get("tool_call_id") not in calls:
                raise ApiError(400, f"messages[{i}].tool_call_id: {json.dumps(message.get('tool_call_id'))} is no call "
                               f"of the assistant's message before it; calls: {', '.join(calls) or 'none'}",
                               param=f"messages[{i}].tool_call_id")
            continue
        parts = [{"type": "text", "text": _text(message)}] if _text(message) else []
        calls = [call["id"] for call in message.get("tool_calls") or ()]
        for call in message.get("tool_calls") or ():
            if call["id"] not in results:
                raise ApiError(400, f"messages[{i}].tool_calls: no message of role 'tool' answers "
                               f"{json.dumps(call['id'])}", param=f"messages[{i}].tool_calls")
            parts += [{"type": "call", **call["function"]}, {"type": "result", "text": results[call["id"]]}]
        if calls and turns and turns[-1]["role"] == "assistant":  # it goes on after a result
            turns[-1]["content"] += parts
        elif role == "assistant" and turns and turns[-1]["role"] == "assistant" and ends_in_result(turns[-1]):
            turns[-1]["content"] += parts
        else:
            turns.append({"role": role, "content": parts if role == "assistant" else _text(message)})
    return turns


def _text(message: dict) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _first_argument(function: dict) -> str:
    properties = (function.get("parameters") or {}).get("properties")
    return next(iter(properties), "input") if isinstance(properties, dict) else "input"


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
