"""Decoding with a key-value cache: a prompt is read at once (prefill), then tokens come one at a time.

Prompts of different lengths lie in one batch, padded on the right. A cache slot is a position; a row writes its own
next position and sees only the slots up to it, so padding is overwritten before anyone could see it. Everything that
decoding carries is a `State` on the device, so that many steps are one program.

The token of a request at a position is drawn with the key fold_in(fold_in(rng, request), position): the same whether
the request is alone or in a batch, however that batch is padded and cut into chunks.

Dimensions: B batch, P prompt positions, S cache positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.core.shapes import check
from jaxgpt.inference.sampling import row_keys, sample
from jaxgpt.model import transformer
from jaxgpt.model.kv_cache import init_cache


class State(NamedTuple):
    """Completions under way.

    Attributes:
      cache: what the model has seen.
      tokens: [B] the newest token of each row, which the model has not seen.
      positions: [B] where it stands.
      limits: [B] the position at which a row is out of room.
      requests: [B] the number that each row's randomness comes from.
      running: [B] bool: whether the row goes on.
      finished: [B] bool: whether a stop token ended it.
    """

    cache: Any
    tokens: jax.Array
    positions: jax.Array
    limits: jax.Array
    requests: jax.Array
    running: jax.Array
    finished: jax.Array


# --- the two steps ---------------------------------------------------------------------------------------------------

def prefill(params, tokens: jax.Array, lengths: jax.Array, cache, *, config: transformer.Config):
    """Reads prompts into a cache.

    Args:
      params: of the model.
      tokens: int [B, P], padded on the right with anything.
      lengths: int [B], at least 1.
      cache: of at least P slots.
      config: the model's.

    Returns:
      (logits [B, V] of the token that follows each prompt, cache).
    """
    P = check({"B P": {"tokens": tokens}, "B": {"lengths": lengths}})["P"]
    positions = jnp.broadcast_to(jnp.arange(P), tokens.shape)
    x, cache, _ = transformer.hidden(params, tokens, config=config, positions=positions, cache=cache)
    last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
    return transformer.unembed(params, last, config=config), cache


def decode_step(params, tokens: jax.Array, positions: jax.Array, cache, *, config: transformer.Config):
    """Reads one more token of each row.

    Args:
      params: of the model.
      tokens, positions: int [B].
      cache: of what came before.
      config: the model's.

    Returns:
      (logits [B, V] of the token at position + 1, cache).
    """
    check("B", tokens=tokens, positions=positions)
    x, cache, _ = transformer.hidden(params, tokens[:, None], config=config, positions=positions[:, None], cache=cache)
    return transformer.unembed(params, x[:, 0], config=config), cache


# --- programs: begin, then decode ------------------------------------------------------------------------------------

def begin(params, prompts, lengths, limits, requests, rng, stop, options, *, config, slots: int, group: int = 1):
    """Prefills and draws the first token of each row. Each prompt is read once and its cache copied `group` times.

    Args:
      params: of the model.
      prompts, lengths: int [B, P] and [B].
      limits, requests: int [B * group], as in `State`.
      rng: one key.
      stop: int [K], the tokens that end a completion.
      options: keyword arguments of `sampling.sample`.
      config: the model's.
      slots: S, how many positions the cache holds.
      group: completions of each prompt, in rows next to each other.

    Returns:
      (State of B * group rows, tokens [B * group, 1], logprobs [B * group, 1], counts [B * group]: 1 for each row that
      had room for a token, as `decode` counts them).
    """
    B = prompts.shape[0]
    logits, cache = prefill(params, prompts, lengths, init_cache(config, B, slots), config=config)
    cache = jax.tree.map(lambda kv: jnp.repeat(kv, group, axis=-4), cache)  # [..., B, K, S, H]
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    last, lengths, logits = (jnp.repeat(x, group, axis=0) for x in (last, lengths, logits))
    state = State(cache, last, lengths - 1, limits, requests, running=lengths < limits,
                  finished=jnp.zeros(B * group, bool))
    state, tokens, logprobs, drawn = _draw(state, logits, rng, stop, options)
    return state, tokens[:, None], logprobs[:, None], drawn.astype(jnp.int32)


def decode(params, state: State, rng, stop, options, *, config, steps: int):
    """Draws up to `steps` more tokens for each running row, and leaves early when none is running.

    Returns:
      (State, tokens [B, steps], logprobs [B, steps], counts [B]: how many of them each row got, its first ones).
    """
    B = state.tokens.shape[0]

    def goes_on(carry):
        step, state, *_ = carry
        return (step < steps) & jnp.any(state.running)

    def body(carry):
        step, state, tokens, logprobs, counts = carry
        logits, cache = decode_step(params, state.tokens, state.positions, state.cache, config=config)
        state, token, logprob, drawn = _draw(state._replace(cache=cache), logits, rng, stop, options)
        tokens = lax.dynamic_update_index_in_dim(tokens, token, step, axis=1)
        logprobs = lax.dynamic_update_index_in_dim(logprobs, logprob, step, axis=1)
        return step + 1, state, tokens, logprobs, counts + drawn

    empty = (jnp.zeros((B, steps), jnp.int32), jnp.zeros((B, steps), jnp.float32), jnp.zeros(B, jnp.int32))
    return lax.while_loop(goes_on, body, (0, state, *empty))[1:]


def _draw(state: State, logits, rng, stop, options):
    """Draws each running row's next token; a row at rest keeps its last one, which is read again to no effect."""
    positions = state.positions + 1
    tokens, logprobs = sample(row_keys(rng, state.requests, positions), logits, **options)
    running = state.running
    stopped = running & jnp.any(tokens[:, None] == stop, axis=1)
    after = state._replace(
        tokens=jnp.where(running, tokens, state.tokens), positions=jnp.where(running, positions, state.positions),
        running=running & ~stopped & (positions + 1 < state.limits), finished=state.finished | stopped)
    return after, tokens, logprobs, running


begin_jit = jax.jit(begin, static_argnames=("config", "slots", "group"))
decode_chunk = jax.jit(decode, static_argnames=("config", "steps"), donate_argnames=("state",))
