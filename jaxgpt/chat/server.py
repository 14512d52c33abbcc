"""An OpenAI-compatible server of the models of a run, and the page at `/`.

  jaxgpt serve runs/quickstart
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping

from jaxgpt.chat import completions, inside, openapi, protocol, schema
from jaxgpt.chat.errors import ApiError
from jaxgpt.chat.metrics import Metrics
from jaxgpt.chat.models import Model, Models
from jaxgpt.chat.page import page
from jaxgpt.chat.worker import Worker
from jaxgpt.core.errors import UserError
from jaxgpt.inference.calls import Tool
from jaxgpt.tools.choose import described

MAX_BODY = 4 << 20  # bytes
OPEN = ("/", "/health", "/openapi.json")  # paths that need no key


class Server:
    """The routes, and what they share.

    Args:
      models: to serve.
      worker: that runs their engines.
      slots: of each engine.
      key: that clients must know, or None.
      seconds: that an answer may take.
      hosts: names by which the server may be called; None for any.
      tools: {name: tool} that it runs itself in a chat, where the client brings none.
    """

    def __init__(self, models: Models, worker: Worker, *, slots: int, key: str | None = None, seconds: float = 600.0,
                 hosts: frozenset[str] | None = None, tools: Mapping[str, Tool] = {}):
        self.tools, self.functions = tools, described(tools)
        self.models, self.worker, self.slots, self.key, self.seconds = models, worker, slots, key, seconds
        self.hosts, self.metrics = hosts, Metrics()
        self.tokenizers = inside.tokenizers(models)
        self.page, self.policy = page()
        self.document = openapi.document(list(models.models), list(self.tokenizers), key is not None)

    def routes(self) -> dict[tuple[str, str], Callable]:
        """{(method, path): what answers}."""
        return {
            ("GET", "/"): self.home, ("GET", "/health"): self.health, ("GET", "/metrics"): self.show_metrics,
            ("GET", "/openapi.json"): self.show_document, ("GET", "/v1/models"): self.list_models,
            ("GET", "/v1/models/{model}"): self.one_model, ("POST", "/v1/chat/completions"): self.chat,
            ("POST", "/v1/completions"): self.complete, ("POST", "/v1/embeddings"): self.embed,
            ("GET", "/api/info"): self.info, ("POST", "/api/tokenize"): self.tokenize,
            ("POST", "/api/inspect"): self.inspect, ("GET", "/api/shapes"): self.shapes}

    # --- OpenAI's ---

    async def chat(self, request):
        """POST /v1/chat/completions."""
        asked = protocol.read_chat(await body_of(request), self.models, self.functions)
        return await self._answer(request, asked, completions.whole_chat, completions.streamed_chat)

    async def complete(self, request):
        """POST /v1/completions."""
        asked = protocol.read_completion(await body_of(request), self.models)
        return await self._answer(request, asked, completions.whole_completion, completions.streamed_completion)

    async def _answer(self, request, asked, whole, streamed):
        run = completions.Run(asked, self.models.find(asked.model), self.worker, self.metrics, self.seconds, self.tools)
        self.worker.admit(len(run.answers))
        if asked.stream:
            return Streamed(completions.sse(streamed(run)), self.metrics)
        return _json(await self._unless_left(request, whole(run)))

    async def _unless_left(self, request, answer):
        """The answer; where the client leaves first, nothing goes on for it."""
        task, left = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request.receive))
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.metrics.disconnects += 1
            raise ApiError(499, "the client left")  # nobody reads it
        finally:
            await _end(task, left)

    async def list_models(self, request):
        """GET /v1/models."""
        return _json({"object": "list", "data": [_described(model) for model in self.models.models.values()]})

    async def one_model(self, request):
        """GET /v1/models/{model}."""
        return _json(_described(self.models.find(request.path_params["model"])))

    async def embed(self, request):
        """POST /v1/embeddings."""
        body = schema.check(await body_of(request), protocol.EMBEDDING)
        model = self.models.find(body["model"])
        lists = protocol.token_lists(body["input"], model, "input", bos=True)
        for i, tokens in enumerate(lists):
            protocol.fit(len(tokens), model.context, f"input[{i}]" if len(lists) > 1 else "input", spare=0)
        if body.get("dimensions") not in (None, model.config.width):
            raise ApiError(400, f"dimensions: {body['dimensions']}, but this model's embeddings have "
                           f"{model.config.width}", param="dimensions")
        found = await self._unless_left(request, self.worker.aside(inside.embed, model, lists))
        as_text = body.get("encoding_format") == "base64"
        data = [{"object": "embedding", "index": i, "embedding": base64.b64encode(one.astype("<f4")).decode() if as_text
                 else one.tolist()} for i, one in enumerate(found)]
        count = sum(map(len, lists))
        return _json({"object": "list", "data": data, "model": model.name,
                      "usage": {"prompt_tokens": count, "total_tokens": count}})

    # --- of the server itself ---

    async def health(self, request):
        """GET /health."""
        return _json({"status": "ok", "models": list(self.models.models)})

    async def show_metrics(self, request):
        """GET /metrics."""
        from starlette.responses import PlainTextResponse
        gauges = {"live": ("Answers under way or waiting.", self.worker.live),
                  "slots": ("Answers that an engine writes at once.", self.slots),
                  "tokens_drawn": ("Tokens drawn so far.", self.worker.total("tokens_drawn")),
                  "passes": ("Passes of a model that a slot drew them in; fewer with a draft.", self.worker.total("passes")),
                  "engines": ("Models whose engine is running.", len(self.worker.engines)),
                  "slots_taken": ("Slots in use now, of all engines.", self.worker.taken())}
        return PlainTextResponse(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def show_document(self, request):
        """GET /openapi.json."""
        return _json(self.document)

    async def home(self, request):
        """GET /, the page."""
        from starlette.responses import HTMLResponse
        return HTMLResponse(self.page, headers={"Content-Security-Policy": self.policy, "Cache-Control": "no-cache",
                                                "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})

    # --- the page's ---

    async def info(self, request):
        """GET /api/info: what the page can choose from."""
        return _json({"models": [_described(model) for model in self.models.models.values()],
                      "default": self.models.default, "tokenizers": list(self.tokenizers)})

    async def tokenize(self, request):
        """POST /api/tokenize: the tokens of a text, by several tokenizers."""
        body = schema.check(await body_of(request), openapi.TOKENIZE)
        results = []
        for i, name in enumerate(body["tokenizers"]):
            if name not in self.tokenizers:
                raise ApiError(404, f"tokenizers[{i}]: there is no {json.dumps(name)}; there are "
                               f"{', '.join(self.tokenizers)}", param=f"tokenizers[{i}]")
            tokenizer = self.tokenizers[name] or await self.worker.aside(inside.tokenizer_named, name)
            results.append({"name": name, "vocab_size": tokenizer.vocab_size,
                            "tokens": [inside.shown(tokenizer, token) for token in tokenizer.encode(body["text"])]})
        return _json({"results": results, "characters": len(body["text"]), "bytes": len(body["text"].encode())})

    async def inspect(self, request):
        """POST /api/inspect: attention and logit lens."""
        body = schema.check(await body_of(request), openapi.INSPECT)
        model = self.models.find(body["model"])
        if body.get("layer", 0) >= model.config.layers:
            raise ApiError(400, f"layer: {body['layer']}, but this model's layers are 0 to {model.config.layers - 1}",
                           param="layer")
        tokens = [model.tokenizer.bos, *model.tokenizer.encode(body["text"])]
        most = min(inside.MAX_LOOK, model.config.context)
        found = await self._unless_left(request, self.worker.aside(
            inside.inspect, model, tokens[:most], body.get("layer", 0)))
        return _json(found | {"cut": len(tokens) > most})

    async def shapes(self, request):
        """GET /api/shapes?model=NAME."""
        return _json(inside.shapes(self.models.find(request.query_params.get("model", self.models.default))))


async def body_of(request):
    """The JSON that a request carries.

    Raises:
      ApiError: it is too large (413), not said to be JSON (415), or is none (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which also keeps forms on foreign pages out
        raise ApiError(415, f"the header Content-Type: {kind or 'none'}, but the body must be application/json")
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY:
            raise ApiError(413, f"the body is larger than {MAX_BODY:,} bytes")
    return schema.read_json(bytes(received))


class Streamed:
    """A response that ends when its client does.

    Args:
      events: bytes, as they come; closed at the end, however that comes.
      metrics: that count clients who left.
    """

    def __init__(self, events: AsyncIterator[bytes], metrics: Metrics):
        self.events, self.metrics = events, metrics

    async def __call__(self, scope, receive, send):
        task, left = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            else:
                self.metrics.disconnects += 1
        finally:
            await _end(task, left)

    async def _send(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]})
        async with contextlib.aclosing(self.events):
            try:
                async for chunk in self.events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except ApiError as error:  # too late for a status
                chunk = b"data: " + json.dumps(error.body()).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def application(server: Server):
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    def failed(request, error):
        if isinstance(error, ApiError):
            return _json(error.body(), error.status)
        if isinstance(error, UserError):
            return _json(ApiError(500, str(error)).body(), 500)
        if isinstance(error, HTTPException):
            said = {404: f"there is no {request.url.path}; /openapi.json lists what there is",
                    405: f"{request.url.path} does not take {request.method}"}.get(error.status_code, error.detail)
            return _json(ApiError(error.status_code, said).body(), error.status_code, error.headers)
        return _json(ApiError(500, f"the server failed ({type(error).__name__}); its output says how").body(), 500)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        server.worker.start()
        yield
        server.worker.stop()

    by_path: dict[str, dict] = {}
    for (method, path), answer in server.routes().items():
        by_path.setdefault(path, {})[method] = answer
    routes = [Route(path, answer, methods=[method]) for path, methods in by_path.items()
              for method, answer in methods.items()]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=dict.fromkeys(
        (ApiError, UserError, HTTPException, Exception), failed))
    return _guarded(app, server)


def _guarded(app, server: Server):
    """`app` behind the check of key and host, with its requests counted."""
    known = {path for _, path in server.routes()}

    async def guarded(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        path = scope["path"] if scope["path"] in known else "other"

        async def counting(message):
            if message["type"] == "http.response.start":
                server.metrics.requests[path, message["status"]] += 1
            await send(message)

        headers = dict(scope["headers"])
        try:
            _check_host(headers.get(b"host", b"").decode("latin-1"), server.hosts)
            _check_key(headers.get(b"authorization", b""), scope["path"], server.key)
        except ApiError as error:
            extra = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            return await _json(error.body(), error.status, extra)(scope, receive, counting)
        await app(scope, receive, counting)
    return guarded


def _check_host(host: str, allowed: frozenset[str] | None) -> None:
    """Refuses a name that is not this machine's: a foreign page may have had it point here."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if allowed is not None and name.strip("[]").lower() not in allowed:
        raise ApiError(421, f"the header Host: {name[:100] or 'none'}, but this server listens to this machine "
                       f"alone, as {', '.join(sorted(allowed))}")


def _check_key(header: bytes, path: str, key: str | None) -> None:
    if key is None or path in OPEN:
        return
    scheme, _, given = header.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
        raise ApiError(401, "the header Authorization: should be 'Bearer' and this server's API key",
                       code="invalid_api_key")


def _json(value, status: int = 200, headers=None):
    from starlette.responses import Response
    headers = dict(headers or {}) | ({"Retry-After": "1"} if status == 429 else {})
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")
    return Response(body, status, headers, "application/json")


def _described(model: Model) -> dict:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "jaxgpt",
            "context": model.context, "layers": model.config.layers}


async def _left(receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
