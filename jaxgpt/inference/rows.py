"""The rows of an engine on its devices: what the host asks for, with the shapes that programs are compiled for.

`slots.py` has the programs. This is the interface that the engine knows, of rows and tokens alone: how the cache lies is
decided here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.inference import slots as on_device
from jaxgpt.inference.request import Request
from jaxgpt.inference.slots import STOPS, Configs, Drawn, Settings
from jaxgpt.model import transformer
from jaxgpt.model.lay_out import for_decoding


class Rows:
    """Rows of one model, or of a model and a draft, on the devices.

    Args:
      models: (params,), or (params, params of the draft).
      configs: their settings.
      slots: B, how many rows.
      context: S, positions of each.
      chunk: most tokens that are drawn at once.
      piece: most tokens of a prompt that are read at once.
      alternatives: most that a token may have.
      ahead: tokens that the draft guesses; 0 without one.
      cache_dtype: as in `kv_cache.init_cache`.
      mesh, rules: where the models lie, if on several devices.
    """

    def __init__(self, models: Sequence[Any], configs: Configs, *, slots: int, context: int, chunk: int, piece: int,
                 alternatives: int, ahead: int = 0, cache_dtype: str | None = None, mesh: jax.sharding.Mesh | None = None,
                 rules: dict | None = None):
        self.vocab_size, self.slots, self.context, self.alternatives = configs[0].vocab_size, slots, context, alternatives
        self.piece = bucket(piece, most=context)

        def wrap(function):
            def on_mesh(*arguments, **options):
                with sharding.in_force(mesh, rules) if mesh else contextlib.nullcontext():
                    return function(*arguments, **options)
            return on_mesh

        def empty():
            made = on_device.init(configs, slots, context, cache_dtype)
            cache = jax.tree.map(lambda a: sharding.shard(a, None, "kv_heads", None, None), made.cache)
            return made._replace(cache=cache)

        self._mesh, self._state, self._models = mesh, jax.jit(wrap(empty))(), ()
        self._run = on_device.programs(configs, chunk, ahead, wrap) if mesh else _programs(configs, chunk, ahead)
        self.update(models)

    def update(self, models: Sequence[Any]) -> None:
        """Takes other weights of the same shapes; without those of the draft, it stays as it is."""
        laid_out = [for_decoding(params, self._mesh) for params in models]
        self._models = (*laid_out, *self._models[len(models):])

    # --- a row ---

    def admit(self, row: int, request: Request, sample: int, sequence: Sequence[int], limit: int) -> None:
        """Gives a row to a completion: how it draws, what it has seen, and where it is out of room."""
        s = request.sampling
        numbers = (s.temperature, s.top_k or 0, 1 if s.top_p is None else s.top_p, s.min_p or 0, s.repetition_penalty,
                   s.presence_penalty, s.frequency_penalty)
        stops = np.full(STOPS, -1, np.int32)
        stops[:len(request.stop_tokens) + len(request.watch)] = (*request.stop_tokens, *request.watch)
        seen = np.zeros(self.vocab_size, bool)
        seen[sequence] = True
        settings = Settings(*map(np.float32, numbers), seed=np.uint32((s.seed ^ s.seed >> 32) & 0xFFFFFFFF),
                            sample=np.uint32(sample), limit=np.int32(limit), stops=stops, bias=self._bias(request))
        self._state = self._run["admit"](self._state, row, settings, seen)

    def allow(self, row: int, request: Request, allowed: np.ndarray) -> None:
        """Forbids what a mask [V] does not allow next."""
        bias = np.where(allowed, self._bias(request), -np.inf).astype(np.float32)
        self._state = self._run["set_bias"](self._state, row, bias)

    def copy(self, source: int, target: int) -> None:
        """Copies what one row has read to another."""
        self._state = self._run["copy"](self._state, source, target)

    def move(self, source: int, target: int) -> None:
        """Puts all of one row into another, and lets the first rest."""
        self._state = self._run["move"](self._state, source, target)

    def rest(self, row: int) -> None:
        """Stops a row."""
        self._state = self._run["rest"](self._state, row)

    def _bias(self, request: Request) -> np.ndarray:
        bias = np.zeros(self.vocab_size, np.float32)
        for token, value in request.sampling.logit_bias.items():
            bias[token] = value
        return bias

    # --- the models' work ---

    def read(self, row: int, tokens: Sequence[int], start: int, *, last: bool, alternatives: bool) -> Drawn | None:
        """Reads at most `piece` tokens into a row from position `start` on; behind the last of them draws one."""
        padded = np.zeros(self._piece_bucket(len(tokens)), np.int32)
        padded[:len(tokens)] = tokens
        self._state, drawn = self._run["prefill"](
            self._models, self._state, row, padded, np.int32(start), np.int32(len(tokens)), np.bool_(last),
            span=self._span(start + len(tokens)), alternatives=self.alternatives if alternatives else 0)
        return jax.device_get(drawn) if last else None

    def draw(self, steps: int, count: int, longest: int, *, alternatives: bool) -> tuple[Drawn, np.ndarray, np.ndarray]:
        """Draws up to `steps` tokens for each running row.

        Args:
          steps: at most a chunk.
          count: all running rows are among the first so many.
          longest: the position that none of them gets beyond.
          alternatives: whether any of them wants some, which costs a sort of the vocabulary.

        Returns:
          (Drawn [rows, chunk], counts [rows], passes [rows]), as `slots.decode`.
        """
        self._state, *found = self._run["decode"](
            self._models, self._state, np.int32(steps), rows=self.row_bucket(count), span=self._span(longest),
            alternatives=self.alternatives if alternatives else 0)
        return jax.device_get(tuple(found))

    def warm_up(self, *, alternatives: bool = False) -> int:
        """Compiles every program that can be needed; returns how many. To be called while no row is in use."""
        sizes = {self._piece_bucket(length) for length in range(1, self.piece + 1)}
        rows = {self.row_bucket(count) for count in range(1, self.slots + 1)}
        spans = {self._span(positions) for positions in range(1, self.context + 1)}
        reads = [(span, size) for span, size in itertools.product(spans, sizes) if size <= span]
        kinds = (False, True) if alternatives else (False,)
        for kind in kinds:
            for span, size in reads:
                self.read(0, [0] * size, span - size, last=True, alternatives=kind)
            for span, count in itertools.product(spans, rows):
                self.draw(0, count, span, alternatives=kind)
        # last, because the rows lie where the models do only once these have been at work
        for name in ("copy", "move"):
            self._state = self._run[name](self._state, 0, 0)
        self.admit(0, Request((0,), 1), 0, [0], 0)
        self.allow(0, Request((0,), 1), np.ones(self.vocab_size, bool))
        self.rest(0)
        return 5 + len(kinds) * (len(reads) + len(spans) * len(rows))

    def row_bucket(self, count: int) -> int:
        """1, 2, 4, 8, 12, 16, 24, 32, ... rows, or all of them: a program is compiled for each."""
        return _three_quarters(count, bucket(count, most=self.slots), least=16)

    def _span(self, positions: int) -> int:
        return bucket(positions, least=128, most=self.context)

    def _piece_bucket(self, length: int) -> int:
        """8, 16, 32, 48, 64, 96, 128, 192, 256, ..."""
        return _three_quarters(length, bucket(length, least=8, most=self.piece), least=64)


def check_draft(config: transformer.Config, draft: transformer.Config, context: int, ahead: int) -> None:
    """Refuses a draft that cannot guess for a model.

    Raises:
      UserError: says why.
    """
    if draft.vocab_size != config.vocab_size:
        raise UserError(f"draft: its vocabulary has {draft.vocab_size:,} tokens and the model's {config.vocab_size:,}; "
                        "a draft has to have the model's tokenizer")
    if draft.context < context:
        raise UserError(f"draft: its context is {draft.context:,}, but has to be at least {context:,}, the engine's")
    if not 1 <= ahead <= 16:
        raise UserError(f"ahead is {ahead}, but must be 1 to 16")


def bucket(size: int, *, least: int = 1, most: int) -> int:
    """The smallest power of two that is at least `size` and `least`, but never more than `most`."""
    return min(1 << (max(size, least) - 1).bit_length(), most)


def _three_quarters(size: int, whole: int, least: int) -> int:
    """Three quarters of a bucket of at least `least`, where they hold `size`; else the whole of it."""
    return whole * 3 // 4 if whole >= least and size <= whole * 3 // 4 else whole


@functools.lru_cache(maxsize=8)
def _programs(configs: Configs, chunk: int, ahead: int) -> dict[str, Any]:
    """Those on one device, which engines of models of the same shape share."""
    return on_device.programs(configs, chunk, ahead)
