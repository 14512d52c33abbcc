"""The rows of the engine on the device, and the programs over them: take a prompt in, draw tokens, copy a prefix.

A row is a slot: a stretch of cache with one completion under way, its settings as arrays beside it, so that other
settings need no other program. Everything is donated from call to call.

The token of a sample at a position is drawn with fold_in(fold_in(fold_in(key(0), seed), sample), position): the same
whatever else is in the batch.

`models` is (params,) of the model, or (params, params of a draft), and `configs` the same of their settings. A draft is a
small model that guesses `ahead` tokens, which the model then reads in one pass. A token is drawn from the model's logits
at its position, with its own key, and the next one of the same pass counts only where that token is what was guessed: so
the tokens are those that come without a draft, greedy or not, and only their number a pass is another.
Source: Stern et al. 2018, "Blockwise Parallel Decoding", section 4, with a draft as in Leviathan et al. 2022, "Fast
Inference from Transformers via Speculative Decoding".

Dimensions: B slots, S cache positions, P positions of a piece of prompt, C steps of a chunk, V vocabulary, A
alternatives, G guesses.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.inference.sampling import greedy, sample
from jaxgpt.model import transformer
from jaxgpt.model.kv_cache import init_cache
from jaxgpt.model.losses import selective_log_softmax

STOPS = 16  # tokens that a row looks for
NOWHERE = 1 << 30  # a position that no cache has: it is not written
Configs = tuple[transformer.Config, ...]


class Settings(NamedTuple):
    """How a row draws, see `request.Sampling`: arrays [B], or numbers for one row; None nowhere.

    Attributes:
      temperature, top_k, top_p, min_p, repetition, presence, frequency: float32; 0, 1, 0, 1, 0, 0 for none.
      seed, sample: uint32.
      limit: int32, the position at which it is out of room.
      stops: int32 [B, STOPS], filled up with -1.
      bias: float32 [B, V], added to logits.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition: jax.Array
    presence: jax.Array
    frequency: jax.Array
    seed: jax.Array
    sample: jax.Array
    limit: jax.Array
    stops: jax.Array
    bias: jax.Array


class Slots(NamedTuple):
    """All rows.

    Attributes:
      cache: for each model, as `init_cache` makes it.
      tokens: [B] the newest token of each row, which the model has not seen.
      positions: [B] where it stands.
      running: [B] bool: whether the row draws.
      counts: int32 [B, V], how often each token is in the completion.
      seen: bool [B, V], whether it is in the prompt or the completion.
      settings: of the rows.
    """

    cache: Any
    tokens: jax.Array
    positions: jax.Array
    running: jax.Array
    counts: jax.Array
    seen: jax.Array
    settings: Settings


class Drawn(NamedTuple):
    """Tokens with their log-probabilities: [B], or [B, C] of a chunk; alternatives have one more dimension, A."""

    tokens: jax.Array
    logprobs: jax.Array
    model_logprobs: jax.Array
    alternatives: jax.Array
    alternative_logprobs: jax.Array


def init(configs: Configs, slots: int, context: int, dtype=None) -> Slots:
    """Empty rows."""
    V, numbers, whole = configs[0].vocab_size, jnp.zeros(slots), jnp.zeros(slots, jnp.int32)
    settings = Settings(*[numbers] * 7, seed=whole.astype(jnp.uint32), sample=whole.astype(jnp.uint32), limit=whole,
                        stops=jnp.full((slots, STOPS), -1, jnp.int32), bias=jnp.zeros((slots, V)))
    return Slots(tuple(init_cache(config, slots, context, dtype) for config in configs), whole, whole, jnp.zeros(slots, bool),
                 jnp.zeros((slots, V), jnp.int32), jnp.zeros((slots, V), bool), settings)


# --- programs --------------------------------------------------------------------------------------------------------

def admit(slots: Slots, slot, settings: Settings, seen) -> Slots:
    """Gives a row its settings (numbers, stops [STOPS], bias [V]) and forgets what it has counted; seen: bool [V]."""
    put = lambda rows, value: rows.at[slot].set(value)  # noqa: E731
    return slots._replace(settings=jax.tree.map(put, slots.settings, settings), seen=put(slots.seen, seen),
                          counts=put(slots.counts, 0), running=put(slots.running, False))


def prefill(models, slots: Slots, slot, tokens, start, length, draws, *, configs: Configs, span: int, alternatives: int):
    """Reads a piece of a prompt into a row; where `draws`, also draws the token that follows and sets the row running.

    Args:
      slot: which row.
      tokens: int [P], padded on the right with anything.
      start, length: where the piece stands, and how much of it is none of the padding.
      draws: bool.
      span: how many positions of the cache the piece can see.
      alternatives: A.

    Returns:
      (slots, Drawn of one row, to be read only where `draws`).
    """
    P = tokens.shape[0]
    index = jnp.arange(P)
    positions = jnp.where(index < length, start + index, NOWHERE)
    row = jax.tree.map(lambda a: lax.dynamic_slice(a, (slot, 0, 0, 0), (1, a.shape[1], span, a.shape[3])), slots.cache)
    read = [transformer.hidden(params, tokens[None], config=config, positions=positions[None], cache=cache)
            for params, config, cache in zip(models, configs, row)]
    row = tuple(cache for _, cache, _ in read)
    cache = jax.tree.map(lambda a, new: lax.dynamic_update_slice(a, new, (slot, 0, 0, 0)), slots.cache, row)
    logits = transformer.unembed(models[0], read[0][0][:, length - 1], config=configs[0])
    one = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, slot, 1), slots._replace(cache=()))
    one = one._replace(tokens=tokens[length - 1][None], positions=(start + length - 1)[None], running=draws[None])
    one, drawn = _draw(one, logits, alternatives)
    rows = jax.tree.map(lambda a, new: lax.dynamic_update_slice_in_dim(a, new, slot, 0), slots._replace(cache=()), one)
    return rows._replace(cache=cache), drawn


def decode(models, slots: Slots, steps, *, configs: Configs, rows: int, span: int, chunk: int, alternatives: int,
           ahead: int = 0):
    """Draws up to `steps` tokens for each running row among the first `rows`; leaves early when none is running.

    Args:
      steps: at most `chunk`.
      rows, span: the part of the cache that is worked on; all running rows lie in it, to the end of the chunk.
      ahead: G, tokens that the draft guesses before each pass; 0 without one.

    Returns:
      (slots, Drawn [rows, chunk], counts [rows]: how many of them each row got, its first ones, passes [rows]: in how
      many passes of the model).
    """
    part = jax.tree.map(lambda a: a[:rows], slots._replace(cache=()))
    part = part._replace(cache=jax.tree.map(lambda a: a[:rows, :, :span], slots.cache))

    def goes_on(carry):
        part, _, counts, _ = carry
        return jnp.any(part.running & (counts < steps))

    def body(carry):
        part, drawn, counts, passes = carry
        turn = part.running & (counts < steps)
        # a row at rest writes nowhere: its cache may be kept for its prefix, or be under way
        places = jnp.where(turn[:, None], part.positions[:, None] + jnp.arange(1 + ahead), NOWHERE)
        guesses, cache = jnp.zeros((rows, 0), jnp.int32), part.cache
        if ahead:
            guesses, guessing = _guess(models[1], cache[1], part.tokens, places, configs[1])
            cache = (cache[0], guessing)
        x, extended, _ = transformer.hidden(models[0], jnp.concatenate([part.tokens[:, None], guesses], axis=1),
                                            config=configs[0], positions=places, cache=cache[0])
        logits = transformer.unembed(models[0], x, config=configs[0])
        part, passes = part._replace(cache=(extended, *cache[1:])), passes + turn
        for place in range(1 + ahead):
            drew, new = _draw(part._replace(cache=(), running=turn), logits[:, place], alternatives)
            running = jnp.where(turn, drew.running, part.running)
            part = drew._replace(cache=part.cache, running=running)
            column = jnp.where(turn, counts, chunk)
            drawn = jax.tree.map(lambda a, b: a.at[jnp.arange(rows), column].set(b), drawn, new)
            counts = counts + turn
            if place < ahead:
                turn = turn & running & (counts < steps) & (part.tokens == guesses[:, place])
        return part, drawn, counts, passes

    shape, none = (rows, chunk), jnp.zeros(rows, jnp.int32)
    empty = Drawn(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape),
                  jnp.zeros((*shape, alternatives), jnp.int32), jnp.zeros((*shape, alternatives)))
    part, drawn, counts, passes = lax.while_loop(goes_on, body, (part, empty, none, none))
    put = lambda a, new: lax.dynamic_update_slice(a, new, (0,) * a.ndim)  # noqa: E731
    return jax.tree.map(put, slots, part), drawn, counts, passes


def _guess(params, cache, tokens, places, config):
    """What a draft thinks will follow: (guesses [B, G], its cache, which then holds all of places [B, 1 + G])."""
    def one(carry, positions):
        tokens, cache = carry
        x, cache, _ = transformer.hidden(params, tokens[:, None], config=config, positions=positions[:, None], cache=cache)
        tokens = jnp.argmax(transformer.unembed(params, x[:, 0], config=config), axis=-1).astype(jnp.int32)
        return (tokens, cache), tokens

    (_, cache), guesses = lax.scan(one, (tokens, cache), places.T)
    return guesses[:-1].T, cache  # the last of them is read, for the cache, but not asked


def copy(slots: Slots, source, target) -> Slots:
    """Copies what one row has read to another."""
    return slots._replace(cache=jax.tree.map(lambda a: a.at[target].set(a[source]), slots.cache))


def move(slots: Slots, source, target) -> Slots:
    """Puts all of one row into another, and lets the first rest."""
    return rest(jax.tree.map(lambda a: a.at[target].set(a[source]), slots), source)


def rest(slots: Slots, slot) -> Slots:
    """Stops a row."""
    return slots._replace(running=slots.running.at[slot].set(False))


def set_bias(slots: Slots, slot, bias) -> Slots:
    """Another bias [V] for a row, such as the mask of its next token."""
    return slots._replace(settings=slots.settings._replace(bias=slots.settings.bias.at[slot].set(bias)))


# --- the draw --------------------------------------------------------------------------------------------------------

def penalised(logits: jax.Array, settings: Settings, counts: jax.Array, seen: jax.Array) -> jax.Array:
    """Logits [B, V] with the penalties of `request.Sampling`."""
    r = settings.repetition[:, None]
    logits = jnp.where(seen, jnp.where(logits > 0, logits / r, logits * r), logits)
    return logits - settings.presence[:, None] * (counts > 0) - settings.frequency[:, None] * counts


def _draw(part: Slots, logits, alternatives: int):
    """One more token for each running row: (rows after it, Drawn [B])."""
    s, positions, running = part.settings, part.positions + 1, part.running
    penalties = jnp.any((s.repetition != 1) | (s.presence != 0) | (s.frequency != 0))
    adjusted = lax.cond(penalties, penalised, lambda logits, *_: logits, logits, s, part.counts, part.seen) + s.bias
    warm = running & (s.temperature > 0)
    filters = warm & ((s.top_k > 0) | (s.top_p < 1) | (s.min_p > 0))
    keys = jax.vmap(_key)(s.seed, s.sample, positions)
    options = {"top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p}
    tokens, logprobs = lax.switch(
        jnp.any(warm).astype(jnp.int32) + jnp.any(filters),
        (lambda: greedy(adjusted), lambda: sample(keys, adjusted, temperature=s.temperature),
         lambda: sample(keys, adjusted, temperature=s.temperature, **options)))
    if alternatives:
        own = jax.nn.log_softmax(logits, axis=-1)
        best, ids = lax.top_k(own, alternatives)
        model_logprobs = jnp.take_along_axis(own, tokens[:, None], axis=-1)[:, 0]
    else:
        best, ids = jnp.zeros((len(tokens), 0)), jnp.zeros((len(tokens), 0), jnp.int32)
        model_logprobs = selective_log_softmax(logits, tokens)[0]
    stopped = jnp.any(tokens[:, None] == s.stops, axis=1)
    row = jnp.arange(len(tokens))
    part = part._replace(
        tokens=jnp.where(running, tokens, part.tokens), positions=jnp.where(running, positions, part.positions),
        running=running & ~stopped & (positions + 1 < s.limit),
        counts=part.counts.at[row, tokens].add(running.astype(jnp.int32)), seen=part.seen.at[row, tokens].max(running))
    return part, Drawn(tokens, logprobs, model_logprobs, ids, best)


def _key(seed, sample, position):
    fold = jax.random.fold_in
    return fold(fold(fold(jax.random.key(0), seed), sample), position)


def programs(configs: Configs, chunk: int, ahead: int = 0, wrap=lambda function: function, **jit) -> dict[str, Any]:
    """The programs above, jitted with the slots donated.

    Args:
      configs, chunk, ahead: as above.
      wrap: what each function runs in, such as a mesh.
      jit: further arguments of `jax.jit`.
    """
    made = lambda function, donated, *static, **fixed: jax.jit(  # noqa: E731
        wrap(functools.partial(function, **fixed)), static_argnames=static, donate_argnums=donated, **jit)
    return {**{function.__name__: made(function, 0) for function in (admit, copy, move, rest, set_bias)},
            "prefill": made(prefill, 1, "span", "alternatives", configs=configs),
            "decode": made(decode, 1, "rows", "span", "alternatives", configs=configs, chunk=chunk, ahead=ahead)}
