"""`jaxgpt serve`: listen, serve, and let what is under way come to its end before leaving."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import signal
import socket
import sys
import time
from pathlib import Path

from jaxgpt.chat.models import Model, Models
from jaxgpt.chat.server import Server, application
from jaxgpt.chat.worker import Worker
from jaxgpt.core.errors import UserError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.rows import check_draft
from jaxgpt.tools.choose import choose

CHUNK = 8  # tokens that an engine draws between two looks at who came and who left
AHEAD = 4  # tokens that a draft guesses


def serve(folder: str | Path, *, stages: list[str] | None = None, host: str = "127.0.0.1", port: int = 8000,
          key: str | None = None, slots: int = 8, max_waiting: int = 256, seconds: float = 600.0,
          tools: str = "", warm_up: bool = True, int8: bool = False, int8_cache: bool = False,
          draft: str | Path | None = None, context: int | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C, then lets what is under way come to its end.

    Args:
      folder: the workdir of a run, or a Hugging Face folder.
      stages: whose models; all where None.
      host, port: where; port 0 takes a free one.
      key: that clients must know, or None.
      slots: of each engine.
      max_waiting: answers that may wait for a slot; beyond it requests are refused.
      seconds: that an answer may take.
      tools: that the server runs itself in a chat, such as "calculator,python,search:FOLDER".
      warm_up: whether to compile before it listens to anybody, so that the first to ask does not wait for that.
      int8, int8_cache: whether weights, and keys and values, are held in eight bits.
      draft: where a small model is that guesses ahead for all of them, a workdir (its last stage) or a folder; or None.
      context: most tokens of a prompt with its answer, for which each slot has memory; the model's where None.

    Returns:
      The exit status: 0 after SIGTERM, 130 after Ctrl-C.

    Raises:
      UserError: there is no such run, a library is missing, the draft has another vocabulary, or the address is not to be
        had.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise UserError("jaxgpt serve needs starlette and uvicorn: pip install 'jaxgpt[serve]'") from error
    _check(port=(port, 0, 65535), slots=(slots, 1, 4096), max_waiting=(max_waiting, 0, 1 << 20),
           timeout=(seconds, 1, 86400))
    models, helper, chosen = Models(folder, stages, int8=int8, context=context), None, choose(tools)
    if chosen and not any(model.takes_results for model in models.models.values()):
        raise UserError(f"--tools {tools}: no model in {folder} knows calls and their results, so none can call any; "
                        "leave it out")
    if draft is not None:
        drafts = Models(draft, int8=int8)
        helper = drafts.find(drafts.default)
        for model in models.models.values():
            check_draft(model.config, helper.config, model.context, AHEAD)
    make = functools.partial(_engine, slots=slots, cache_dtype="int8" if int8_cache else None, draft=helper)
    worker = Worker(make, most=slots + max_waiting)
    server = Server(models, worker, slots=slots, key=key, seconds=seconds, hosts=_names(host),
                    tools=chosen)
    listening = _listen(host, port)
    if warm_up:
        _warm_up(worker, server.models)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    ended: list[int] = []

    class Uvicorn(uvicorn.Server):
        """Says where it is once it answers, and stops on a signal without raising it again, which would make a clean
        end look like a crash."""

        async def startup(self, sockets=None):
            await super().startup(sockets)
            print(f"serving {', '.join(server.models.models)} at {where} (Ctrl-C stops)", flush=True)

        @contextlib.contextmanager
        def capture_signals(self):
            def note(number, frame):
                ended.append(number)
                self.handle_exit(number, frame)
            before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(application(server), log_level="warning", timeout_graceful_shutdown=int(seconds) + 1,
                            access_log=False, server_header=False)
    Uvicorn(config).run(sockets=[listening])
    if ended[:1] == [signal.SIGINT]:
        return 130
    print("stopped; what was under way has been answered", file=sys.stderr)
    return 0


def _warm_up(worker: Worker, models: Models) -> None:
    """Makes an engine for each shape of model, and compiles what it needs: models of the same shape share it."""
    for model in {model.config: model for model in models.models.values()}.values():
        print(f"compiling for models like {model.name}, so that no answer waits for it (--no-warm-up leaves it out, "
              "JAX_COMPILATION_CACHE_DIR=FOLDER keeps it for the next start) ...",
              file=sys.stderr, flush=True)
        begun = time.monotonic()
        engine = worker.engines[model.name] = worker.make(model)
        count = engine.warm_up()
        print(f"compiled {count} programs in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)


def _engine(model: Model, slots: int, cache_dtype: str | None, draft: Model | None) -> Engine:
    loaded = model.loaded
    return Engine(loaded.params, loaded.config, tokenizer=loaded.tokenizer, slots=slots, context=model.context, chunk=CHUNK,
                  cache_dtype=cache_dtype, draft=(draft.loaded.params, draft.config) if draft else None, ahead=AHEAD)


def _check(**options: tuple[float, float, float]) -> None:
    for name, (value, low, high) in options.items():
        if not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: from {low} to {high}")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason})") from error


def _names(host: str) -> frozenset[str] | None:
    """By what a server on `host` may be called: where only this machine reaches it, by this machine's names."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return frozenset({"localhost", "127.0.0.1", "::1", host}) if local else None
