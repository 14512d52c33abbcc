"""Completions that call tools, many at once: what practice and evaluation run, by the engine and calls of the chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.inference.calls import Caller
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.generate import Completion, Rollouts
from jaxgpt.inference.request import Request, Sampling
from jaxgpt.model import transformer

SLOTS = 64  # completions at once, at most: a cache has room for so many


class Actor:
    """A model with tools at hand.

    Args:
      params, config: the model.
      caller: what runs its calls.
      slots, context: of its engine.
      mesh, rules: where the model lies, if on several devices.
    """

    def __init__(self, params: Any, config: transformer.Config, caller: Caller, *, slots: int, context: int,
                 mesh: jax.sharding.Mesh | None = None, rules: dict | None = None):
        self.caller = caller
        self.engine = Engine(params, config, slots=min(slots, SLOTS), context=context, alternatives=0, mesh=mesh, rules=rules)

    def complete(self, prompts: Sequence[Sequence[int]], *, seed: int, max_new_tokens: int, temperature: float,
                 stop: Sequence[int], group: int = 1) -> list[Completion]:
        """`group` completions of each prompt, next to each other; results of calls are among their tokens, not chosen.

        Args:
          prompts: lists of tokens.
          seed: sample n of prompt i draws from (seed + i, n).
          max_new_tokens: at most so many, results included.
          temperature, stop: as in `generate`.
        """
        requests = [Request(tuple(prompt), max_new_tokens, Sampling(temperature=temperature, seed=seed + place), n=group,
                            stop_tokens=tuple(stop), watch=self.caller.watch, watcher=self.caller)
                    for place, prompt in enumerate(prompts)]
        return [Completion(output.ids, [token.logprob for token in output.tokens], output.finished.reason == "stop",
                           [not token.forced for token in output.tokens])
                for outputs in self.engine.run(requests) for output in outputs]

    def said(self, tokens: Sequence[int]) -> list[int]:
        """Of the tokens that the model chose, those that are in no call."""
        return self.caller.form.split(tokens)[0]


def as_rollouts(prompts: Sequence[Sequence[int]], completions: Sequence[Completion], length: int) -> Rollouts:
    """Prompts with their completions as `rollout` returns them, but on the host: the mask is 1 on what the model chose.

    Args:
      prompts: one for each completion.
      completions: of them.
      length: T, at least that of a prompt with its completion.
    """
    tokens = np.zeros((len(prompts), length), np.int32)
    mask, logprobs = np.zeros((2, len(prompts), length), np.float32)
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        end = len(prompt) + len(completion.tokens)
        tokens[row, :end] = [*prompt, *completion.tokens]
        mask[row, len(prompt):end] = completion.chosen
        logprobs[row, len(prompt):end] = completion.logprobs
    return Rollouts(tokens, mask, logprobs, np.array([completion.finished for completion in completions]))
