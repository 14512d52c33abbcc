"""The server's own OpenAPI document: what requests may hold is what `schema.check` lets through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jaxgpt
from jaxgpt.chat.protocol import CHAT, COMPLETION, EMBEDDING, MAX_TEXT
from jaxgpt.chat.schema import array, integer, optional, record, text

TOKENIZE = record({"text": text(maxLength=MAX_TEXT), "tokenizers": array(
    text(maxLength=200, description="Names of /api/info."), maxItems=8)}, "text", "tokenizers")
INSPECT = record({"model": text(maxLength=200), "text": text(maxLength=MAX_TEXT),
                  "layer": integer(0, 10_000, description="Whose attention; the first where it is not given.")},
                 "model", "text")

_COUNT, _TEXT, _NULL = {"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "null"}
_NUMBER = {"type": "number"}
_FREE = {"type": "object"}


def _answer(**properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties)}


_USAGE = _answer(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_REASON = {"enum": ["stop", "length", "tool_calls"]}
_MODEL = _answer(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, context=_COUNT, layers=_COUNT)
_COMPLETED = _answer(id=_TEXT, object={"const": "text_completion"}, created=_COUNT, model=_TEXT, usage=_USAGE,
                     choices=array(_answer(index=_COUNT, text=_TEXT, finish_reason=_REASON, logprobs=optional(_FREE))))
_CHATTED = _answer(id=_TEXT, object={"const": "chat.completion"}, created=_COUNT, model=_TEXT, usage=_USAGE,
                   choices=array(_answer(index=_COUNT, finish_reason=_REASON, logprobs=optional(_FREE), message=_answer(
                       role={"const": "assistant"}, content=optional(_TEXT), refusal=_NULL))))
_EMBEDDED = _answer(object={"const": "list"}, model=_TEXT,
                    usage=_answer(prompt_tokens=_COUNT, total_tokens=_COUNT),
                    data=array(_answer(object={"const": "embedding"}, index=_COUNT,
                                       embedding={"type": ["array", "string"], "items": _NUMBER})))
_SHOWN = _answer(id=_COUNT, text=_TEXT, bytes=_TEXT)
_TOKENIZED = _answer(characters=_COUNT, bytes=_COUNT, results=array(_answer(
    name=_TEXT, vocab_size=_COUNT, tokens=array(_SHOWN))))
_SHAPES = _answer(name=_TEXT, parameters=_COUNT, blocks=array(_FREE))
_HEALTH = _answer(status=_TEXT, models=array(_TEXT))
_ERROR = _answer(error=_answer(message=_TEXT, type=_TEXT, param=optional(_TEXT), code=optional(_TEXT)))

_REASONS = {400: "Malformed, or longer than the context", 401: "No key, or another one", 404: "No such model",
            413: "The body is too large", 415: "The body is not said to be JSON", 429: "The queue is full",
            421: "Called by another name than this machine's", 500: "A fault of the server", 504: "It took too long"}


def document(models: Sequence[str], tokenizers: Sequence[str], with_key: bool) -> dict[str, Any]:
    """The document of a server of these models and tokenizers; `with_key` where clients must send one."""
    example = {"model": models[-1], "messages": [{"role": "user", "content": "What is 37 + 48?"}], "max_tokens": 20}
    prompt = {"model": models[0], "prompt": "Return a", "logprobs": 2, "echo": True}
    names = TOKENIZE["properties"] | {"tokenizers": array(text(enum=list(tokenizers)), maxItems=8)}
    post = _reader(with_key, models)
    get = _reader(with_key, models, codes=(404,))
    paths = {
        "/v1/chat/completions": {"post": post("Answer a conversation", CHAT, _CHATTED, streams=True, example=example)},
        "/v1/completions": {"post": post("Continue a text", COMPLETION, _COMPLETED, streams=True,
                                          example=prompt)},
        "/v1/embeddings": {"post": post("Embed texts: the mean of the last hidden states, of length 1", EMBEDDING,
                                        _EMBEDDED)},
        "/v1/models": {"get": get("The models", None, _answer(object={"const": "list"}, data=array(_MODEL)))},
        "/v1/models/{model}": {"get": get("One model", None, _MODEL, parameters=[_parameter(models, "path")])},
        "/api/info": {"get": get("What the page can choose from", None, _answer(
            models=array(_MODEL), default=_TEXT, tokenizers=array(_TEXT)))},
        "/api/tokenize": {"post": post("The tokens of a text, by several tokenizers", TOKENIZE | {"properties": names},
                                       _TOKENIZED)},
        "/api/inspect": {"post": post("Attention and logit lens over a text", INSPECT, _answer(
            tokens=array(_SHOWN), layer=_COUNT, attention=array(array(array(_NUMBER))), lens=array(array(array(_FREE))),
            cut={"type": "boolean"}))},
        "/api/shapes": {"get": get("The blocks of a model", None, _SHAPES, parameters=[_parameter(models, "query")])},
        "/metrics": {"get": get("Counts, as Prometheus reads them", None, None, kind="text/plain")},
        "/health": {"get": _reader(False, models, codes=())("Whether it is there", None, _HEALTH)},
    }
    found = {"openapi": "3.1.0", "info": {"title": "jaxgpt", "version": jaxgpt.__version__, "description":
                                          "OpenAI's API over models trained here, and what the page at / asks for."},
             "paths": paths, "components": {"schemas": {"Error": _ERROR}}}
    if with_key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _reader(with_key: bool, models: Sequence[str], codes: tuple[int, ...] = (400, 404, 413, 415, 429, 500, 504)):
    """What writes the operations of a kind: the answers that they may have."""
    codes = (*codes, 421, *((401,) if with_key else ()))
    errors = {str(code): {"description": _REASONS[code], "content": {"application/json": {
        "schema": {"$ref": "#/components/schemas/Error"}}}} for code in codes}

    def operation(summary, body, answer, *, streams=False, parameters=(), kind="application/json", example=None):
        content = {kind: {"schema": answer or {"type": "string"}}}
        if streams:
            content["text/event-stream"] = {}
        found = {"summary": summary, "responses": {"200": {"description": "Done", "content": content}, **errors}}
        if parameters:
            found["parameters"] = list(parameters)
        if body:
            if "model" in body["properties"]:
                known = body["properties"]["model"] | {"enum": list(models)}
                body = body | {"properties": body["properties"] | {"model": known}}
            content = {"schema": body} | ({"example": example} if example else {})
            found["requestBody"] = {"required": True, "content": {"application/json": content}}
        if with_key:
            found["security"] = [{"key": []}]
        return found
    return operation


def _parameter(models: Sequence[str], place: str) -> dict:
    return {"name": "model", "in": place, "required": place == "path",
            "schema": {"type": "string", "enum": list(models)}}
