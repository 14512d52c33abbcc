"""Text generation for those who need it: lists in, completions out; a stream of tokens; arrays of rollouts.

  generate(...)   for evaluations: prompts of any number and lengths
  stream(...)     for a chat: the tokens of one prompt as they come
  rollout(...)    for reinforcement learning: arrays in, arrays out, one compiled program

How tokens come to be is in `decode.py`; here prompts are checked, padded and put into batches, and the host looks at
what has finished between chunks of steps.

Dimensions: B batch, P prompt positions, N new tokens, R = B * group rollouts, T = P + N.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core import distributed
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import After
from jaxgpt.core.shapes import check
from jaxgpt.inference.decode import begin, begin_jit, decode, decode_chunk
from jaxgpt.model import transformer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model added to a prompt.

    Attributes:
      tokens: the new tokens; a stop token that ended them is the last of them.
      logprobs: the log-probability of each under the distribution it was drawn from, see `sampling.sample`.
      finished: whether a stop token ended it; otherwise max_new_tokens or the context did.
      chosen: where results of tool calls are among the tokens: whether each is the model's own.
    """

    tokens: list[int]
    logprobs: list[float]
    finished: bool
    chosen: list[bool] | None = None

    @property
    def content(self) -> list[int]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.finished else self.tokens


class Rollouts(NamedTuple):
    """Prompts with their completions, each row contiguous from position 0: what a policy loss reads.

    Attributes:
      tokens: [R, T] int32, T = P + max_new_tokens: prompt, completion, then zeros.
      completion_mask: [R, T] float32: 1 on the completion, its stop token included.
      logprobs: [R, T] float32: of tokens[r, t] where the mask is 1, when it was drawn; 0 elsewhere.
      finished: [R] bool: whether a stop token ended the row; False for one cut short.
    """

    tokens: jax.Array
    completion_mask: jax.Array
    logprobs: jax.Array
    finished: jax.Array


# --- lists in, completions out ---------------------------------------------------------------------------------------

def generate(params, config: transformer.Config, prompts: Sequence[Sequence[int]], *, rng: jax.Array,
             max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
             min_p: float | None = None, stop: Sequence[int] = (), requests: Sequence[int] | None = None,
             batch: int = 256, chunk: int = 32) -> list[Completion]:
    """Completes prompts of any number and lengths.

    They are run in batches of similar length, padded to powers of two, so that few programs are ever compiled and a
    second call with other prompts of such sizes, or other options, compiles none.

    Args:
      params, config: the model; decoding is faster with `lay_out.for_decoding(params)`.
      prompts: lists of tokens.
      rng: one key.
      max_new_tokens: at most so many; also at most to the end of the context.
      temperature, top_k, top_p, min_p: as in `sampling.filter_logits`; temperature 0 is greedy.
      stop: tokens that end a completion.
      requests: a number for each prompt that its randomness comes from, with `rng`; 0, 1, 2... where None.
      batch: most prompts in memory at once.
      chunk: tokens between two looks of the host at what has finished.

    Returns:
      A Completion for each prompt, in their order.

    Raises:
      UserError: a prompt is empty, longer than the context or of another vocabulary; an impossible option.
    """
    options = sampling_options(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    _check_prompts(prompts, config)
    requests = range(len(prompts)) if requests is None else requests
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: dict[int, Completion] = {}
    for start in range(0, len(prompts), batch):
        chosen = by_length[start:start + batch]
        parts = list(_chunks(params, config, [prompts[i] for i in chosen], [requests[i] for i in chosen],
                             rng=rng, max_new_tokens=max_new_tokens, stop=stop, options=options, chunk=chunk))
        for row, i in enumerate(chosen):
            tokens = [token for part in parts for token in part.tokens[row, :part.counts[row]].tolist()]
            logprobs = [value for part in parts for value in part.logprobs[row, :part.counts[row]].tolist()]
            completions[i] = Completion(tokens, logprobs, bool(parts[-1].finished[row]))
    return [completions[i] for i in range(len(prompts))]


def stream(params, config: transformer.Config, prompt: Sequence[int], *, rng: jax.Array, max_new_tokens: int,
           temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
           min_p: float | None = None, stop: Sequence[int] = (), request: int = 0, chunk: int = 1) -> Iterator[int]:
    """Yields the tokens of one completion as they are drawn, the stop token included: those `generate` returns.

    Args:
      prompt: tokens.
      request: the number that the randomness comes from, with `rng`.
      chunk: tokens that come at once; more are faster on an accelerator.
      The others as in `generate`.

    Raises:
      UserError: as in `generate`, at once and not when the first token is asked for.
    """
    options = sampling_options(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    _check_prompts([prompt], config)
    parts = _chunks(params, config, [prompt], [request], rng=rng, max_new_tokens=max_new_tokens, stop=stop,
                    options=options, chunk=chunk)
    return (token for part in parts for token in part.tokens[0, :part.counts[0]].tolist())


def programs(params, config: transformer.Config, everywhere: jax.sharding.Sharding, *, prompts: int, prompt_tokens: int,
             max_new_tokens: int, stop: int = 1, chunk: int = 32) -> dict[str, tuple[Any, tuple | After]]:
    """What `generate` runs, by name with abstract arguments: "prefill" and "decode".

    Args:
      params: abstract, with shardings.
      config: the model.
      everywhere: the sharding of what is whole on every device.
      prompts, prompt_tokens, max_new_tokens, stop, chunk: how many prompts, the longest, and the rest as in `generate`.
    """
    rows, P = bucket(prompts, least=1), bucket(prompt_tokens, most=config.context)
    slots = bucket(prompt_tokens + max_new_tokens, least=P, most=config.context)
    whole = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)  # noqa: E731
    per_row, rng = whole((rows,), jnp.int32), whole((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    options = {"temperature": whole((), jnp.float32), "top_k": None, "top_p": None, "min_p": None}
    stops = whole(_stop_array(range(stop)).shape, jnp.int32)
    prefill = functools.partial(begin, config=config, slots=slots)
    inputs = (params, whole((rows, P), jnp.int32), per_row, per_row, per_row, rng, stops, options)
    state = jax.eval_shape(prefill, *inputs)[0]

    def after(shardings) -> tuple:
        left = shardings[0] if shardings else jax.tree.map(lambda _: everywhere, state)
        placed = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, left)
        return params, placed, rng, stops, options

    decoding = functools.partial(decode, config=config, steps=chunk)
    return {"prefill": (jax.jit(prefill), inputs),
            "decode": (jax.jit(decoding, donate_argnums=1), After("prefill", after))}


class _Part(NamedTuple):
    """What one call brought, on the host: tokens and logprobs [B, n], counts and finished [B]."""

    tokens: np.ndarray
    logprobs: np.ndarray
    counts: np.ndarray
    finished: np.ndarray


def _chunks(params, config, prompts, requests, *, rng, max_new_tokens, stop, options, chunk) -> Iterator[_Part]:
    """Runs one batch, and yields after the first token and after each chunk of further ones."""
    longest = max(map(len, prompts))
    rows, P = bucket(len(prompts), least=1), bucket(longest, most=config.context)
    slots = bucket(longest + max_new_tokens, least=P, most=config.context)
    tokens, lengths = np.zeros((rows, P), np.int32), np.ones(rows, np.int32)
    limits, numbers = np.zeros(rows, np.int32), np.zeros(rows, np.int32)  # a row of padding has no room, so never runs
    for row, prompt in enumerate(prompts):
        tokens[row, :len(prompt)], lengths[row], numbers[row] = prompt, len(prompt), requests[row]
        limits[row] = min(len(prompt) + max_new_tokens, config.context)
    stop = _stop_array(stop)
    state, *part = begin_jit(params, tokens, lengths, limits, numbers, rng, stop, options, config=config, slots=slots)
    while True:
        *part, finished, running = distributed.fetch((*part, state.finished, state.running))
        yield _Part(*part, finished)
        if not running.any():
            return
        state, *part = decode_chunk(params, state, rng, stop, options, config=config, steps=chunk)


def bucket(size: int, *, least: int = 16, most: int | None = None) -> int:
    """The smallest power of two that is at least `size` and `least`, but never more than `most`.

    >>> [bucket(n, most=100) for n in (1, 16, 17, 70)]
    [16, 16, 32, 100]
    """
    power = 1 << (max(size, least) - 1).bit_length()
    return power if most is None else min(power, most)


def sampling_options(max_new_tokens: int, *, temperature: float = 1.0, top_k: int | None = None,
                     top_p: float | None = None, min_p: float | None = None) -> dict:
    """The options of `sampling.sample` as arrays of one type, so that other values need no other program.

    Raises:
      UserError: one of them, or max_new_tokens, is impossible.
    """
    def refuse(name, value, right):
        raise UserError(f"{name} is {value}, but must be {right}")

    if max_new_tokens < 1:
        refuse("max_new_tokens", max_new_tokens, "at least 1")
    if not 0 <= temperature < float("inf"):
        refuse("temperature", temperature, "0 (greedy) or more")
    if top_k is not None and top_k < 0:
        refuse("top_k", top_k, "at least 1, or 0 for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        refuse("top_p", top_p, "more than 0 and at most 1")
    if min_p is not None and not 0 <= min_p < 1:
        refuse("min_p", min_p, "at least 0 and less than 1")
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    return {name: None if value is None else np.float32(value) for name, value in options.items()}


def _stop_array(stop) -> np.ndarray:
    """The stop tokens and enough times -1, which is no token, that few lengths occur."""
    stop = list(stop)
    return np.array(stop + [-1] * (bucket(len(stop), least=4) - len(stop)), np.int32)


def _check_prompts(prompts, config) -> None:
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {number} is empty; a model continues at least one token, such as <|bos|>")
        if len(prompt) > config.context:
            raise UserError(f"prompt {number} has {len(prompt)} tokens, but the model's context is {config.context}")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            wrong = max(prompt) if max(prompt) >= config.vocab_size else min(prompt)
            raise UserError(f"prompt {number} holds token {wrong}, but the model's vocabulary is 0 to "
                            f"{config.vocab_size - 1}: was it encoded by another tokenizer?")


# --- arrays in, arrays out -------------------------------------------------------------------------------------------

def rollout(params, config: transformer.Config, prompts, lengths, *, rng: jax.Array, max_new_tokens: int,
            group: int = 1, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
            min_p: float | None = None, stop: Sequence[int] = ()) -> Rollouts:
    """Draws `group` completions of each prompt, in one compiled program that ends when the last row does.

    Row r belongs to prompt r // group, and its randomness to (rng, r). A program is compiled for each new shape of
    prompts, group and max_new_tokens, and for no other reason.

    Args:
      params, config: the model.
      prompts: int [B, P], padded on the right with anything.
      lengths: int [B], 1 to P.
      rng: one key.
      max_new_tokens: at most so many; also at most to the end of the context.
      group: completions of each prompt.
      temperature, top_k, top_p, min_p, stop: as in `generate`.

    Returns:
      Rollouts, on the device.

    Raises:
      UserError: prompts are longer than the context; an impossible option.
      ValueError: shapes do not fit.
    """
    options = sampling_options(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    P = check({"B P": {"prompts": prompts}, "B": {"lengths": lengths}})["P"]
    if P > config.context:
        raise UserError(f"prompts are padded to {P} tokens, but the model's context is {config.context}")
    return _rollout(params, prompts, lengths, rng, _stop_array(stop), options, config=config, group=group,
                    max_new_tokens=max_new_tokens)


@functools.partial(jax.jit, static_argnames=("config", "group", "max_new_tokens"))
def _rollout(params, prompts, lengths, rng, stop, options, *, config, group, max_new_tokens) -> Rollouts:
    (B, P), R, N = prompts.shape, prompts.shape[0] * group, max_new_tokens
    limits = jnp.minimum(jnp.repeat(lengths, group) + N, config.context)
    state, *first = begin(params, prompts, lengths, limits, jnp.arange(R), rng, stop, options,
                          config=config, slots=min(P + N, config.context), group=group)
    state, *rest = decode(params, state, rng, stop, options, config=config, steps=N - 1)
    tokens, logprobs = (jnp.concatenate(pair, axis=1) for pair in zip(first[:2], rest[:2]))
    return _side_by_side(prompts, lengths, tokens, logprobs, first[2] + rest[2], state.finished, group=group)


def _side_by_side(prompts, lengths, tokens, logprobs, counts, finished, *, group) -> Rollouts:
    """Puts each completion [N] directly behind its prompt [P], whose padding goes to the end of the row."""
    N = tokens.shape[1]
    prompts, lengths = jnp.repeat(prompts, group, axis=0), jnp.repeat(lengths, group)[:, None]
    place = jnp.arange(prompts.shape[1] + N)[None] - lengths  # of each position in the completion
    within = (place >= 0) & (place < counts[:, None])
    place = jnp.clip(place, 0, N - 1)
    prompts = jnp.where(jnp.arange(prompts.shape[1]) < lengths, prompts, 0)
    return Rollouts(
        tokens=jnp.where(within, jnp.take_along_axis(tokens, place, axis=1), jnp.pad(prompts, ((0, 0), (0, N)))),
        completion_mask=within.astype(jnp.float32),
        logprobs=jnp.where(within, jnp.take_along_axis(logprobs, place, axis=1), 0.0),
        finished=finished)
