"""The engine: many prompts at once, each with its own options, arriving and ending when they like.

A fixed set of slots on the device (`rows.py`) is filled from a queue. One `step` of the host takes in what there is
room for, reads a piece of each prompt that is not read yet, lets all rows draw a chunk of tokens, and hands out what
came: rows that end make room at once, so a long completion holds up none (continuous batching: Yu et al. 2022, "Orca").
What a row has read stays there until it is needed again: a prompt that begins alike, such as one under a common system
prompt or another sample of the same, copies that part instead of reading it.

    engine = Engine(params, config, tokenizer=tokenizer, slots=8)
    outputs = engine.run([Request(prompt, max_new_tokens=64)])      # a list of n outputs for each request
    number = engine.submit(request)                                 # or step by step: for a server
    for event in engine.step(): ...                                 # Token and Finished
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.inference.progress import TextProgress
from jaxgpt.inference.request import Finished, Output, Request, Token, check_request
from jaxgpt.inference.rows import Rows, check_draft
from jaxgpt.inference.slots import STOPS, Drawn
from jaxgpt.model import transformer
from jaxgpt.tokenizer.tokenizer import Tokenizer

AWAIT = 0.02  # seconds that a step may wait for a watcher when there is nothing else to do


@dataclasses.dataclass(eq=False)
class _Sample:
    """One completion on the host.

    Attributes:
      sequence: prompt and completion so far.
      text: what of it can be shown.
      slot: its row, once it has one.
      filled: how much of the sequence the row's cache holds.
      reading: whether there is more to read than the newest token, before the row draws (again).
      awaits: what its watcher will say, while that is not known.
    """

    request_id: int
    index: int
    request: Request
    sequence: list[int]
    text: TextProgress
    slot: int | None = None
    filled: int = 0
    reading: bool = True
    awaits: concurrent.futures.Future | None = None

    @property
    def completion(self) -> list[int]:
        return self.sequence[len(self.request.prompt):]


class Engine:
    """Generation for many requests at once, over a model that lies on the devices."""

    def __init__(self, params: Any, config: transformer.Config, *, tokenizer: Tokenizer | None = None, slots: int = 8,
                 context: int | None = None, chunk: int = 16, piece: int = 256, alternatives: int = 20,
                 cache_dtype: str | None = None, draft: tuple[Any, transformer.Config] | None = None, ahead: int = 4,
                 mesh: jax.sharding.Mesh | None = None, rules: dict | None = None):
        """Lays the weights out for decoding and makes empty rows; compiles nothing yet, see `warm_up`.

        Args:
          params, config: the model; parameters may be in eight bits, see `quantize`.
          tokenizer: for text and stop strings; without one, tokens alone.
          slots: B, completions under way at once.
          context: S, prompt and completion; the model's where None.
          chunk: most tokens that a row draws between two looks of the host.
          piece: most tokens of a prompt that are read in one call.
          alternatives: most that a request may ask for.
          cache_dtype: of keys and values; as the activations where None, "int8" for eight bits.
          draft: (params, config) of a small model with the same tokenizer, which guesses what the model then checks: the
            same tokens in fewer passes, see `slots.py`.
          ahead: how many tokens it guesses before each pass.
          mesh, rules: where the model lies, if on several devices.

        Raises:
          UserError: an impossible size, or a draft that does not go with the model.
        """
        for name, value in {"slots": slots, "chunk": chunk, "piece": piece}.items():
            if value < 1:
                raise UserError(f"{name} is {value}, but must be at least 1")
        context = config.context if context is None else context
        if not 2 <= context <= config.context:
            raise UserError(f"context is {context}, but must be 2 to {config.context}, the model's")
        self.config, self.tokenizer = config, tokenizer
        self.slots, self.context, self.chunk, self.alternatives = slots, context, chunk, min(alternatives, config.vocab_size)
        self._special = frozenset(tokenizer.special.values()) if tokenizer else frozenset()
        if draft:
            check_draft(config, draft[1], context, ahead)
        models, configs = zip((params, config), *([draft] if draft else ()))
        self._rows = Rows(models, configs, slots=slots, context=context, chunk=chunk, piece=piece,
                          alternatives=self.alternatives, ahead=ahead if draft else 0, cache_dtype=cache_dtype, mesh=mesh,
                          rules=rules)
        self.forget()
        self._samples: list[_Sample | None] = [None] * slots
        self._waiting: collections.deque[_Sample] = collections.deque()
        self._count = 0
        # so far: tokens of prompts that were read, and not copied; tokens of completions; passes that a row drew them in
        self.tokens_read = self.tokens_drawn = self.passes = 0

    # --- what is asked -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Puts a request into the queue; returns its number, which its events carry.

        Raises:
          UserError: the request is impossible; names the field.
        """
        check_request(request, vocab_size=self.config.vocab_size, context=self.context, stops=STOPS,
                      alternatives=self.alternatives, has_tokenizer=self.tokenizer is not None)
        number, self._count = self._count, self._count + 1
        for index in range(request.n):
            self._waiting.append(_Sample(number, index, request, list(map(int, request.prompt)),
                                         TextProgress(request.stop)))
        return number

    def cancel(self, number: int) -> list[Finished]:
        """Drops what is left of a request and frees its slots."""
        dropped = [sample for sample in self._waiting if sample.request_id == number]
        self._waiting = collections.deque(sample for sample in self._waiting if sample.request_id != number)
        dropped += [sample for sample in self._samples if sample and sample.request_id == number]
        return [self._finish(sample, "cancelled") for sample in dropped]

    @property
    def active(self) -> int:
        """Completions that have a slot."""
        return sum(sample is not None for sample in self._samples)

    @property
    def waiting(self) -> int:
        """Completions that have none yet."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self.active and not self._waiting

    def run(self, requests: Iterable[Request]) -> list[list[Output]]:
        """Completes requests and returns, for each, its n outputs."""
        requests = list(requests)
        numbers = {self.submit(request): place for place, request in enumerate(requests)}
        tokens = {(number, index): [] for number in numbers for index in range(requests[numbers[number]].n)}
        outputs: list[list] = [[None] * request.n for request in requests]
        while not self.idle:
            for event in self.step():
                key = event.request, event.sample
                if key not in tokens:
                    continue  # of a request that was there before
                if isinstance(event, Token):
                    tokens[key].append(event)
                else:
                    outputs[numbers[event.request]][event.sample] = Output(tuple(tokens[key]), event)
        return outputs

    def update(self, params: Any, draft: Any = None) -> None:
        """Takes other weights of the same shapes, and of the draft too where they are given, without compiling again; what is
        under way goes on with them."""
        self._rows.update((params,) if draft is None else (params, draft))
        self.forget()

    def forget(self) -> None:
        """Copies nothing any more from what rows at rest have read; other weights would read it otherwise."""
        self._left: list[list[int]] = [[] for _ in range(self.slots)]

    def warm_up(self, *, alternatives: bool = False) -> int:
        """Compiles every program that requests can need, so that none waits for it later; returns how many."""
        compiled = self._rows.warm_up(alternatives=alternatives)
        self.forget()
        return compiled

    # --- one turn of the host ----------------------------------------------------------------------------------------

    def step(self) -> list[Token | Finished]:
        """Takes in, reads, draws and hands out: the events of one turn, in order for each completion."""
        events = [event for sample in self._samples if sample and sample.awaits and sample.awaits.done()
                  for event in self._heard(sample)]
        events += [event for sample in self._samples if sample and sample.reading for event in self._read(sample)]
        while (sample := self._next()) is not None:
            self._place(sample)
            events += self._read(sample)  # at once, so that the next one can copy it
        events += self._draw()
        awaited = [sample.awaits for sample in self._samples if sample and sample.awaits]
        if awaited and not events and not any(sample and sample.reading for sample in self._samples):
            concurrent.futures.wait(awaited, AWAIT, concurrent.futures.FIRST_COMPLETED)  # there is nothing else to do
        return events

    def _next(self) -> _Sample | None:
        """Who gets a slot: the first who waits. A further sample of a request waits until one of them has read the
        prompt."""
        if None in self._samples:
            for sample in self._waiting:
                if not any(other and other.request is sample.request and other.filled < len(sample.request.prompt)
                           for other in self._samples):
                    self._waiting.remove(sample)
                    return sample
        return None

    def _place(self, sample: _Sample) -> None:
        """Gives a slot, with what another row has read of the same."""
        slot = self._samples.index(None)
        common = [_common(self._holds(row), sample.sequence[:-1]) for row in range(self.slots)]  # the last gives logits
        source = max(range(self.slots), key=lambda row: (common[row], row == slot))
        if source != slot and common[source]:
            self._rows.copy(source, slot)
        self._samples[slot], sample.slot, sample.filled = sample, slot, common[source]
        self._rows.admit(slot, sample.request, sample.index, sample.sequence, self._limit(sample.request))

    def _holds(self, slot: int) -> list[int]:
        """The tokens whose keys and values a row has."""
        sample = self._samples[slot]
        return sample.sequence[:sample.filled] if sample else self._left[slot]

    def _read(self, sample: _Sample) -> list[Token | Finished]:
        """Reads the next piece; behind the last one the first token is drawn."""
        piece = sample.sequence[sample.filled:sample.filled + self._rows.piece]
        last = sample.filled + len(piece) == len(sample.sequence)
        if last and sample.request.mask:
            self._mask(sample)
        drawn = self._rows.read(sample.slot, piece, sample.filled, last=last, alternatives=self._wants_alternatives())
        self.tokens_read += len(piece)
        sample.filled += len(piece)
        sample.reading = not last
        return self._take(sample, drawn, (0,)) if last else []

    def _draw(self) -> list[Token | Finished]:
        """A chunk of tokens for all rows that draw."""
        if not self._waiting:
            self._close_up()
        drawing = [sample for sample in self._samples if sample and not sample.reading and not sample.awaits]
        if not drawing:
            return []
        masked = [sample for sample in drawing if sample.request.mask]
        for sample in masked:
            self._mask(sample)
        limits = [self._limit(sample.request) for sample in drawing]
        left = [limit - len(sample.sequence) for limit, sample in zip(limits, drawing)]
        # about until there is room for one who waits, or fewer rows to work on; never longer than anybody needs
        until = min(left) if self._waiting else self._until_fewer(left)
        steps = 1 if masked else min(self.chunk, max(left), max(until, self.chunk // 4))
        longest = max(min(len(sample.sequence) + steps, limit) for sample, limit in zip(drawing, limits))
        drawn, counts, passes = self._rows.draw(steps, max(sample.slot for sample in drawing) + 1, longest,
                                                alternatives=self._wants_alternatives())
        self.passes += int(passes.sum())
        events: list[Token | Finished] = []
        for sample in drawing:
            slot = sample.slot
            for step in range(counts[slot]):
                sample.filled += 1
                events += self._take(sample, drawn, (slot, step))
                if self._samples[slot] is not sample:
                    break  # a stop string ended it, of which the device does not know
        return events

    def _until_fewer(self, left: list[int]) -> int:
        """Steps until rows end so that fewer are worked on."""
        rows, left = self._rows.row_bucket(len(left)), sorted(left, reverse=True)
        return left[max((count for count in range(1, len(left)) if self._rows.row_bucket(count) < rows), default=0)]

    def _close_up(self) -> None:
        """Moves rows to the front where fewer of them can then be worked on."""
        while self.active and self._rows.row_bucket(self.active) < self._rows.row_bucket(
                source := 1 + max(slot for slot, sample in enumerate(self._samples) if sample)):
            source, target = source - 1, self._samples.index(None)
            self._rows.move(source, target)
            self._samples[target], self._samples[source] = self._samples[source], None
            self._left[source], self._samples[target].slot = self._holds(target), target

    def _take(self, sample: _Sample, drawn: Drawn, at: tuple[int, ...]) -> list[Token | Finished]:
        """A drawn token joins its completion, and what follows from it."""
        request, token = sample.request, int(drawn.tokens[at])
        self.tokens_drawn += 1
        alternatives = zip(drawn.alternatives[at].tolist(), drawn.alternative_logprobs[at].tolist())
        events: list[Token | Finished] = [self._append(
            sample, token, logprob=float(drawn.logprobs[at]), model_logprob=float(drawn.model_logprobs[at]),
            alternatives=tuple(alternatives)[:request.alternatives])]
        if sample.text.stopped_by is not None:
            return [*events, self._finish(sample, "stop", sample.text.stopped_by)]
        stops, full = token in request.stop_tokens, self._limit(request) == len(sample.sequence)
        if token in request.watch and (stops or not full):  # before it stops: the end of a turn may be that of a call
            said = request.watcher(sample.completion)
            if not isinstance(said, concurrent.futures.Future):
                return events + self._put_in(sample, said)
            sample.awaits = said
        elif stops:
            events.append(self._finish(sample, "stop", token))
        elif full:
            events.append(self._finish(sample, "length"))
        return events

    def _heard(self, sample: _Sample) -> list[Token | Finished]:
        """What follows from what a watcher has said at last."""
        said, sample.awaits = sample.awaits.result(), None
        return self._put_in(sample, said)

    def _put_in(self, sample: _Sample, put_in: Sequence[int] | None) -> list[Token | Finished]:
        """What a watcher said joins its completion."""
        if put_in is None:
            return [self._finish(sample, "watcher")]
        if not put_in and (token := sample.sequence[-1]) in sample.request.stop_tokens:
            return [self._finish(sample, "stop", token)]
        room = self._limit(sample.request) - len(sample.sequence)
        events: list[Token | Finished] = []
        for token in map(int, put_in[:room]):
            sample.sequence.append(token)
            events.append(Token(sample.request_id, sample.index, token, logprob=0.0, model_logprob=0.0, forced=True))
        sample.reading = True
        return events if len(put_in) < room else [*events, self._finish(sample, "length")]

    def _append(self, sample: _Sample, token: int, **details) -> Token:
        sample.sequence.append(token)
        shown = self.tokenizer is not None and token not in self._special
        text = sample.text.feed(self.tokenizer.decode_bytes([token])) if shown else ""
        return Token(sample.request_id, sample.index, token, text=text, **details)

    def _finish(self, sample: _Sample, reason: str, stopped_by: int | str | None = None) -> Finished:
        if sample.slot is not None:
            self._rows.rest(sample.slot)
            self._left[sample.slot] = sample.sequence[:sample.filled]
            self._samples[sample.slot] = None
        return Finished(sample.request_id, sample.index, reason, stopped_by, sample.text.finish())

    def _limit(self, request: Request) -> int:
        return min(len(request.prompt) + request.max_new_tokens, self.context)

    def _mask(self, sample: _Sample) -> None:
        """Forbids what the mask does not allow next."""
        self._rows.allow(sample.slot, sample.request, sample.request.mask(sample.completion))

    def _wants_alternatives(self) -> bool:
        return any(sample and sample.request.alternatives for sample in self._samples)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    size = min(len(a), len(b))
    differ = np.nonzero(np.asarray(a[:size]) != np.asarray(b[:size]))[0] if size else ()
    return int(differ[0]) if len(differ) else size
