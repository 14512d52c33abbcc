"""Plain continuation of a text: one or several samples, as text, with the probability of each token, or as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

import jax

from jaxgpt.chat import inside
from jaxgpt.chat.terminal import harmless, text_pieces
from jaxgpt.core.errors import UserError
from jaxgpt.inference.generate import generate, stream
from jaxgpt.inference.load import Loaded
from jaxgpt.inference.progress import begun, first_stop
from jaxgpt.tokenizer.tokenizer import Tokenizer

BAR = 20  # characters of a bar for a probability of 1


def sample(loaded: Loaded, prompt: str = "", *, samples: int = 1, stop: Sequence[str] = (), probabilities: bool = False,
           as_json: bool = False, temperature: float = 0.8, top_k: int | None = None, top_p: float | None = None,
           max_new_tokens: int = 100, seed: int = 0, output: TextIO | None = None) -> int:
    """Prints `prompt` and what the model continues it with; one sample streams, several are separated by a line.

    Args:
      loaded: the model.
      prompt: the text to continue, after the token that opens a document.
      samples: how many continuations.
      stop: texts before which a continuation ends.
      probabilities: print a line for each new token: its probability, and its text.
      as_json: print a line of JSON for each sample instead: prompt, text, tokens (id, text, logprob), finish_reason.
      temperature, top_k, top_p, max_new_tokens: of `generate.stream`.
      seed: sample n draws from (key(seed), n).
      output: a stream of text; standard output where None.

    Returns:
      The exit status, 0.

    Raises:
      UserError: an option is impossible, or `prompt` does not fit the context.
    """
    if samples < 1:
        raise UserError(f"samples is {samples}, but must be at least 1")
    if "" in stop:
        raise UserError("stop is '', but must be a text of at least one character")
    output, tokenizer, params = output or sys.stdout, loaded.tokenizer, loaded.for_decoding().params
    tokens = [tokenizer.bos, *tokenizer.encode(prompt)]
    options = dict(rng=jax.random.key(seed), max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                   top_p=top_p, stop=(tokenizer.bos, tokenizer.end))
    if samples == 1 and not (probabilities or as_json):
        pieces = text_pieces(tokenizer, stream(params, loaded.config, tokens, **options))
        for piece in (prompt, *map(harmless, before(stop, pieces)), "\n"):
            output.write(piece)
            output.flush()
        return 0
    completions = generate(params, loaded.config, [tokens] * samples, **options)
    for number, completion in enumerate(completions):
        kept, text = _cut(tokenizer, completion.content, stop)
        cut = completion.finished or len(kept) < len(completion.content)
        found = {"prompt": prompt, "text": text, "finish_reason": "stop" if cut else "length"}
        if probabilities or as_json:
            values = inside.score(loaded, [*tokens, *kept], 0)[0][len(tokens) - 1:]
            found["tokens"] = [{"id": token, "text": tokenizer.decode([token]), "logprob": value}
                               for token, value in zip(kept, values)]
        output.write(_shown(found, first=number == 0, as_json=as_json))
        output.flush()
    return 0


def before(stop: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """A text that comes in pieces, up to the first of `stop` in it. The end of what has come waits while a stop may have
    begun in it.

    >>> list(before(["END"], ["a b", "cE", "Nx", "EN", "D d"]))
    ['a b', 'c', 'ENx']
    """
    waiting = ""
    for piece in pieces:
        waiting += piece
        if found := first_stop(waiting, stop):
            waiting = waiting[:found[0]]
            break
        ready = waiting[:len(waiting) - begun(waiting, stop)]
        waiting = waiting[len(ready):]
        if ready:
            yield ready
    if waiting:
        yield waiting


def _cut(tokenizer: Tokenizer, tokens: list[int], stop: Sequence[str]) -> tuple[list[int], str]:
    """The tokens that begin before the first of `stop`, and the text up to there."""
    text = tokenizer.decode(tokens, special=False)
    kept = "".join(before(stop, [text]))
    if kept == text:
        return tokens, text
    count = next(n for n in range(len(tokens) + 1) if len(tokenizer.decode(tokens[:n], special=False)) >= len(kept))
    return tokens[:count], kept


def _shown(found: dict, *, first: bool, as_json: bool) -> str:
    if as_json:
        return json.dumps(found, ensure_ascii=False) + "\n"
    line = "" if first else "-" * 40 + "\n"
    shown = line + found["prompt"] + harmless(found["text"]) + "\n"
    return shown + "".join(map(_bar, found.get("tokens", ())))


def _bar(token: dict) -> str:
    probability = math.exp(token["logprob"])
    return f"{probability:7.2%}  {'█' * round(BAR * probability):{BAR}}  {token['text']!r}\n"
