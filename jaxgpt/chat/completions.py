"""Answers in OpenAI's two forms, whole or in pieces, from what the engine says."""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from jaxgpt.chat import inside
from jaxgpt.chat.answers import Answer, Entry, Piece, chat_logprobs, completion_logprobs
from jaxgpt.chat.metrics import Metrics
from jaxgpt.chat.models import Model
from jaxgpt.chat.protocol import Asked
from jaxgpt.chat.worker import Worker
from jaxgpt.inference.automaton import Automaton
from jaxgpt.inference.calls import Caller, Tool
from jaxgpt.inference.constraint import Constraint
from jaxgpt.inference.forms import read_call
from jaxgpt.inference.request import Finished, Request, Sampling
from jaxgpt.tokenizer.tokenizer import Tokenizer


class Run:
    """What was asked, under way in the engine.

    Args:
      asked: by whom and what.
      model: that answers.
      worker: that runs it.
      metrics: that count it.
      seconds: for all of it.
      tools: {name: tool} that the server runs itself, where `asked` lets it.
    """

    def __init__(self, asked: Asked, model: Model, worker: Worker, metrics: Metrics, seconds: float,
                 tools: Mapping[str, Tool]):
        self.asked, self.model, self.worker, self.metrics, self.seconds = asked, model, worker, metrics, seconds
        self.tools = tools
        self.created, self.id = int(time.time()), secrets.token_hex(12)
        self.form = model.form and model.form.offering(asked.tools or (tools if asked.served_tools else ()))
        self.answers = [Answer(model.tokenizer, asked.sampling["stop"], self.form)
                        for _ in asked.prompts for _ in range(asked.n)]

    async def pieces(self) -> AsyncIterator[tuple[int, Piece, str | None]]:
        """Yields (which answer, what came of it, why it ended or None)."""
        begun, first = time.monotonic(), True
        self.metrics.prompt_tokens += sum(map(len, self.asked.prompts))
        events = self.worker.run(self.model, self._requests(), self.seconds)
        async with contextlib.aclosing(events):
            async for place, event in events:
                if first:
                    self.metrics.first_token.observe(time.monotonic() - begun)
                    first = False
                yield place, *self._piece(self.answers[place], event)
        self.metrics.seconds.observe(time.monotonic() - begun)

    async def score(self, tokens: list[int]) -> list[Entry]:
        """The tokens of a prompt with their log-probabilities."""
        logprobs, tops = await self.worker.aside(lambda: inside.score(self.model.loaded, tokens, self.asked.logprobs))
        entries, offset, reader = [], 0, Answer(self.model.tokenizer)
        for token, logprob, top in zip(tokens, [None, *logprobs], [(), *tops]):
            entries.append(Entry(token, logprob, top, offset))
            offset += len(reader.feed(token).text)
        return entries

    def usage(self) -> dict:
        """How many tokens were read and written."""
        prompt = sum(map(len, self.asked.prompts))
        written = sum(answer.count for answer in self.answers)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _requests(self) -> list[Request]:
        asked, tokenizer = self.asked, self.model.tokenizer
        options = dict(asked.sampling)
        stop = tuple(options.pop("stop"))
        watch, form = {}, self.form
        if asked.tools and form:
            watch = {"watch": form.closings, "watcher": self._watch}
            if asked.call:
                opening = () if form.opening is None else (form.opening,)
                watch["mask"] = _constraint(asked.call, tokenizer, self.model.config.vocab_size, opening,
                                            (form.closing,))
        elif asked.shape:
            watch = {"mask": _constraint(asked.shape, tokenizer, self.model.config.vocab_size)}
        elif asked.served_tools:
            caller = Caller(tokenizer, self.tools, template=self.model.template, pool=self.worker.tools)
            watch = {"watch": caller.watch, "watcher": caller}
        return [Request(prompt, asked.max_tokens, Sampling(**options), n=asked.n, stop=stop,
                        stop_tokens=tuple({*self.model.stops, tokenizer.bos}), alternatives=asked.logprobs or 0, **watch)
                for prompt in asked.prompts]

    def _watch(self, tokens: Sequence[int]) -> tuple[()] | None:
        """Ends the answer behind a call that the client is to run."""
        _, _, ended = self.form.split(tokens)
        return None if ended else ()

    def _piece(self, answer: Answer, event) -> tuple[Piece, str | None]:
        if isinstance(event, Finished):
            return answer.end(), "tool_calls" if event.reason == "watcher" else event.reason
        self.metrics.completion_tokens += not event.forced
        return answer.feed(event.token, event.model_logprob, event.alternatives, forced=event.forced), None


@functools.lru_cache(maxsize=16)
def _constraint(shape: Automaton, tokenizer: Tokenizer, vocab_size: int, opening: tuple[int, ...] = (),
                end: tuple[int, ...] | None = None) -> Constraint:
    """Remembered, with all that it knows of the vocabulary, for who asks for the same shape again."""
    return Constraint(shape, tokenizer, vocab_size=vocab_size, opening=opening, end=end)


async def whole_completion(run: Run) -> dict:
    """The answer of /v1/completions."""
    texts, entries, reasons = ([[] for _ in run.answers] for _ in range(3))
    async with contextlib.aclosing(_with_prompt(run)) as pieces:
        async for place, piece, reason in pieces:
            texts[place].append(piece.text)
            entries[place] += piece.entries
            reasons[place] = reason
    choices = [_completion_choice(run, i, Piece("".join(texts[i]), entries[i]), reasons[i], first=True)
               for i in range(len(texts))]
    return _frame(run, "cmpl", "text_completion") | {"choices": choices, "usage": run.usage()}


async def streamed_completion(run: Run) -> AsyncIterator[dict]:
    """The events of /v1/completions."""
    frame, seen = _frame(run, "cmpl", "text_completion"), set()
    async with contextlib.aclosing(_with_prompt(run)) as pieces:
        async for place, piece, reason in pieces:
            if piece.text or piece.entries or reason:
                yield frame | {"choices": [_completion_choice(run, place, piece, reason, first=place not in seen)]}
                seen.add(place)
    if run.asked.usage:
        yield frame | {"choices": [], "usage": run.usage()}


async def whole_chat(run: Run) -> dict:
    """The answer of /v1/chat/completions."""
    pieces, reasons = [Piece() for _ in run.answers], [None] * len(run.answers)
    async with contextlib.aclosing(run.pieces()) as found:
        async for place, piece, reason in found:
            pieces[place].add(piece)
            reasons[place] = reason
    choices = []
    for i, (piece, reason) in enumerate(zip(pieces, reasons)):
        message = {"role": "assistant", "content": piece.text, "refusal": None} | _calls(run, piece)
        if "tool_calls" in message:
            reason, message["content"] = "tool_calls", piece.text or None
        choices.append({"index": i, "message": message, "finish_reason": reason, "logprobs": None
                        if run.asked.logprobs is None else chat_logprobs(run.model.tokenizer, piece.entries)})
    return _frame(run, "chatcmpl", "chat.completion") | {"choices": choices, "usage": run.usage()}


async def streamed_chat(run: Run) -> AsyncIterator[dict]:
    """The events of /v1/chat/completions."""
    frame = _frame(run, "chatcmpl", "chat.completion.chunk")

    def event(place, delta, reason=None, logprobs=None):
        return frame | {"choices": [{"index": place, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]}

    for place in range(len(run.answers)):
        yield event(place, {"role": "assistant", "content": ""})
    async with contextlib.aclosing(run.pieces()) as pieces:
        async for place, piece, reason in pieces:
            delta = ({"content": piece.text} if piece.text else {}) | _calls(run, piece)
            if "tool_calls" in delta:
                delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
                reason = "tool_calls"
            logprobs = None
            if run.asked.logprobs is not None and piece.entries:
                logprobs = chat_logprobs(run.model.tokenizer, piece.entries)
            if delta or logprobs:
                yield event(place, delta, None, logprobs)
            if reason:
                yield event(place, {}, reason)
    if run.asked.usage:
        yield frame | {"choices": [], "usage": run.usage()}


async def sse(events: AsyncIterator[dict]) -> AsyncIterator[bytes]:
    """Events as a browser reads them, and `[DONE]`."""
    async with contextlib.aclosing(events):
        async for event in events:
            yield b"data: " + json.dumps(event, ensure_ascii=False).encode(errors="replace") + b"\n\n"
    yield b"data: [DONE]\n\n"


def _frame(run: Run, prefix: str, kind: str) -> dict:
    return {"id": f"{prefix}-{run.id}", "object": kind, "created": run.created, "model": run.asked.model}


async def _with_prompt(run: Run) -> AsyncIterator[tuple[int, Piece, str | None]]:
    """The pieces, after those of the prompts where they are to come back."""
    asked, tokenizer = run.asked, run.model.tokenizer
    if asked.echo:
        for number, prompt in enumerate(asked.prompts):
            scored = await run.score(prompt) if asked.logprobs is not None else []
            piece = Piece(tokenizer.decode(prompt, special=False), scored)
            for place in range(number * asked.n, (number + 1) * asked.n):
                run.answers[place].offset = len(piece.text)
                yield place, piece, None if asked.max_tokens else "length"
    if asked.max_tokens:
        async with contextlib.aclosing(run.pieces()) as pieces:
            async for one in pieces:
                yield one


def _completion_choice(run: Run, place: int, piece: Piece, reason: str | None, *, first: bool) -> dict:
    asked = run.asked
    choice = {"index": place, "text": piece.text, "finish_reason": reason, "logprobs": None}
    if asked.logprobs is not None:
        choice["logprobs"] = completion_logprobs(run.model.tokenizer, piece.entries, ids=asked.ids)
    if asked.ids and first:
        choice["prompt_token_ids"] = asked.prompts[place // asked.n]
    return choice


def _calls(run: Run, piece: Piece) -> dict:
    """Calls in a message: those that the client answers, and those that were answered here, with their results."""
    found, ours = [], []
    for call, result in piece.calls:
        named = None if result is not None else read_call(call, run.asked.tools)
        if named:
            name, arguments = named
            found.append({"id": "call_" + secrets.token_hex(8), "type": "function",
                          "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}})
        else:
            ours.append({"call": call, "result": result})
    return ({"tool_calls": found} if found else {}) | ({"tool_uses": ours} if ours else {})
