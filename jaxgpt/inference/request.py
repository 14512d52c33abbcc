"""What is asked of the engine and what it answers: requests in, tokens as they come, outputs when they are done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from jaxgpt.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The order is: penalties, bias and mask, temperature, top-k, top-p, min-p.

    Attributes:
      temperature: 0 is greedy.
      top_k, top_p, min_p: as in `sampling.filter_logits`; None for none.
      repetition_penalty: r, of tokens in the prompt or the completion: logit / r where positive, logit · r where
        negative (Keskar et al. 2019, "CTRL", section 4.1).
      presence_penalty, frequency_penalty: taken off the logits of tokens in the completion, once and for each time
        they are there.
      logit_bias: {token: what is added to its logit}; -inf forbids it.
      seed: what the randomness comes from, with the sample's number and the position alone.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        bounds = {"temperature": (0 <= self.temperature < math.inf, "0 (greedy) or more"),
                  "top_k": (self.top_k is None or self.top_k >= 0, "at least 1, or 0 for all tokens"),
                  "top_p": (self.top_p is None or 0 < self.top_p <= 1, "more than 0 and at most 1"),
                  "min_p": (self.min_p is None or 0 <= self.min_p < 1, "at least 0 and less than 1"),
                  "repetition_penalty": (0 < self.repetition_penalty < math.inf, "more than 0; 1 for none"),
                  "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number"),
                  "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number")}
        for name, (holds, right) in bounds.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}, but must be {right}")


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to complete, once or several times.

    Attributes:
      prompt: its tokens, at least one.
      max_new_tokens: of a completion, forced ones included.
      sampling: how they are drawn.
      n: how many completions; they share the work on the prompt.
      stop_tokens: tokens that end a completion; the last of its tokens then.
      stop: strings that end it; its text then ends before them.
      alternatives: how many of the most probable tokens come with each token, at most the engine's `alternatives`.
      mask: tokens of the completion so far -> bool [V]: which may come next, such as a `constraint.Constraint`.
      watch, watcher: after a token of `watch` the watcher is given the completion's tokens so far. It returns tokens that
        are put in (the result of a tool call), () to go on, None to stop there, or a Future of one of these, for which
        this completion waits while the others go on. A stop token that is watched ends it only where the answer is ().
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    n: int = 1
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    alternatives: int = 0
    mask: Callable[[Sequence[int]], np.ndarray] | None = None
    watch: tuple[int, ...] = ()
    watcher: Callable[[Sequence[int]], Sequence[int] | None | Future] | None = None


@dataclasses.dataclass(frozen=True)
class Token:
    """One more token of a completion.

    Attributes:
      request, sample: whose: what `Engine.submit` returned, and 0 to n - 1.
      token: its id.
      logprob: under the distribution that it was drawn from; 0 for a forced one.
      model_logprob: under the model's own: no temperature, filter, penalty or bias. What training computes.
      alternatives: ((token, model_logprob), ...), the most probable first.
      forced: put in by a watcher.
      text: what can be shown now; behind the tokens while a character or a stop string may be under way. None of a forced one.
    """

    request: int
    sample: int
    token: int
    logprob: float
    model_logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    forced: bool = False
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The end of a completion.

    Attributes:
      request, sample: whose.
      reason: "stop", "length" (max_new_tokens or the context), "watcher" or "cancelled".
      stopped_by: the stop token or string, where that was the reason.
      text: what was still held back.
    """

    request: int
    sample: int
    reason: str
    stopped_by: int | str | None = None
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Output:
    """A whole completion: its tokens and how it ended."""

    tokens: tuple[Token, ...]
    finished: Finished

    @property
    def ids(self) -> list[int]:
        return [token.token for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens) + self.finished.text


def check_request(request: Request, *, vocab_size: int, context: int, stops: int, alternatives: int,
                  has_tokenizer: bool) -> None:
    """Refuses what an engine cannot do.

    Raises:
      UserError: names the field, what it is and what it may be.
    """
    prompt = np.asarray(request.prompt)
    if not prompt.size:
        raise UserError("prompt is empty; a model continues at least one token, such as <|bos|>")
    if prompt.size >= context:
        raise UserError(f"prompt has {prompt.size} tokens, but the context is {context}, completion included")
    named = {"prompt": prompt, "stop_tokens": request.stop_tokens, "watch": request.watch,
             "logit_bias": tuple(request.sampling.logit_bias)}
    for name, tokens in named.items():
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            wrong = max(tokens) if max(tokens) >= vocab_size else min(tokens)
            raise UserError(f"{name} holds token {wrong}, but the model's vocabulary is 0 to {vocab_size - 1}")
    if request.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {request.max_new_tokens}, but must be at least 1")
    if request.n < 1:
        raise UserError(f"n is {request.n}, but must be at least 1")
    if not 0 <= request.alternatives <= alternatives:
        raise UserError(f"alternatives is {request.alternatives}, but this engine gives 0 to {alternatives}")
    if len(request.stop_tokens) + len(request.watch) > stops:
        raise UserError(f"stop_tokens and watch hold {len(request.stop_tokens) + len(request.watch)} tokens, but an "
                        f"engine looks for at most {stops}")
    if request.stop and not has_tokenizer:
        raise UserError("stop holds strings, but the engine has no tokenizer; give stop_tokens, or Engine(tokenizer=...)")
    if "" in request.stop:
        raise UserError("stop holds an empty string, which every text contains")
    if (request.watcher is None) != (not request.watch):
        raise UserError("watch and watcher go together: tokens, and what is asked after them")
