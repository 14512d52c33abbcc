"""What a completion may be: a regular expression or a JSON Schema, as the mask of a request.

    mask = Constraint(json_schema.compile({"type": "integer"}), tokenizer, vocab_size=config.vocab_size)
    engine.run([Request(prompt, 100, mask=mask, stop_tokens=(tokenizer.end,))])

A token may come next where its bytes lead on in the automaton, wherever they cut characters or words; a special token
never; the ending token where the whole is complete, and there alone. So what the engine writes fulfils the constraint, unless
it is cut at max_new_tokens.

Source: Willard & Louf 2023, "Efficient Guided Generation for Large Language Models", the index of tokens by state.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.inference.automaton import DEAD, MAX_STATES, Automaton
from jaxgpt.inference.regex import regex
from jaxgpt.tokenizer.tokenizer import Tokenizer

MAX_MASKS = 512  # remembered at once
MAX_UNDER_WAY = 256  # completions whose state is remembered


def expression(pattern: str) -> Automaton:
    """The automaton of a regular expression, which the whole of a text has to fit.

    Raises:
      UserError: it is none, or uses what is not supported.
    """
    return Automaton(regex(pattern))


class _Level(NamedTuple):
    """The nodes of a trie at one depth.

    Attributes:
      parents: int [N], places in the level above.
      bytes: uint8 [N], by which they are reached from there.
      tokens: ids of tokens that end at this depth.
      ends: the places where they do.
    """

    parents: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    ends: np.ndarray


@functools.lru_cache(maxsize=4)
def trie(tokenizer: Tokenizer) -> tuple[_Level, ...]:
    """The bytes of all tokens of text, with what begins alike joined.

    Raises:
      UserError: a byte has no token, so that not everything can be spelt.
    """
    special = set(tokenizer.special.values())
    spelt = [(tokenizer.decode_bytes([token]), token) for token in range(tokenizer.vocab_size) if token not in special]
    spelt = [(text, token) for text, token in spelt if text]
    missing = 256 - len({text for text, _ in spelt if len(text) == 1})
    if missing:
        raise UserError(f"the tokenizer '{tokenizer.name}' has no token for {missing} of the 256 bytes, so what it writes "
                        "cannot be constrained")
    tokens, at = np.array([token for _, token in spelt]), np.zeros(len(spelt), np.int64)
    lengths = np.array([len(text) for text, _ in spelt])
    levels = []
    for depth in range(lengths.max()):
        reach = lengths > depth
        if not reach.all():
            spelt = [one for one, kept in zip(spelt, reach) if kept]
            tokens, at, lengths = tokens[reach], at[reach], lengths[reach]
        heads = at * 256 + np.array([text[depth] for text, _ in spelt])
        nodes, at = np.unique(heads, return_inverse=True)
        ending = lengths == depth + 1
        levels.append(_Level(nodes // 256, (nodes % 256).astype(np.uint8), tokens[ending], at[ending]))
    return tuple(levels)


class Constraint:
    """The mask of requests: which tokens may come after those of a completion so far.

    It remembers where each completion stands and which tokens may follow in a state, so a further token costs what is new
    about it. Requests may share one.

    Args:
      automaton: of what may be written.
      tokenizer: of the model.
      vocab_size: V, of the model.
      opening: tokens that come first.
      end: tokens that may end it, where it is complete; that of the tokenizer where None.

    Raises:
      UserError: the tokenizer cannot spell everything.
    """

    def __init__(self, automaton: Automaton, tokenizer: Tokenizer, *, vocab_size: int, opening: Sequence[int] = (),
                 end: Sequence[int] | None = None):
        self.automaton, self.opening = automaton, tuple(opening)
        self.end = (tokenizer.end,) if end is None else tuple(end)
        self._tokenizer, self._vocab_size, self._levels = tokenizer, vocab_size, trie(tokenizer)
        self._age = automaton.age
        self._masks: dict[int, np.ndarray] = {}
        self._states: dict[tuple[int, ...], int] = {}

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """bool [V]: which tokens may follow `tokens`, a completion so far."""
        begun = len(self.opening)
        if len(tokens) < begun:
            return self._only(self.opening[len(tokens)])
        self._make_room()
        tokens = tuple(tokens[begun:])
        state = self._states.pop(tokens[:-1], None)
        state = self._read(self.automaton.start, tokens) if state is None else self._read(state, tokens[-1:])
        if len(self._states) >= MAX_UNDER_WAY:
            self._states.clear()
        self._states[tokens] = state
        if state not in self._masks:
            self._masks[state] = np.packbits(self._allowed(state))
        return np.unpackbits(self._masks[state], count=self._vocab_size).astype(bool)

    def complete(self, tokens: Sequence[int]) -> bool:
        """Whether a completion is whole, without its ending token."""
        return self.automaton.complete(self._read(self.automaton.start, tokens[len(self.opening):]))

    def _make_room(self) -> None:
        if len(self.automaton) > MAX_STATES:
            self.automaton.forget()
        if self._age != self.automaton.age or len(self._masks) > MAX_MASKS:
            self._age = self.automaton.age
            self._masks.clear()
            self._states.clear()

    def _read(self, state: int, tokens: Sequence[int]) -> int:
        return self.automaton.read(state, self._tokenizer.decode_bytes(tokens)) if tokens else state

    def _only(self, *tokens: int) -> np.ndarray:
        allowed = np.zeros(self._vocab_size, bool)
        allowed[list(tokens)] = True
        return allowed

    def _allowed(self, state: int) -> np.ndarray:
        """All tokens at once: the states of the trie's nodes, from level to level."""
        automaton, states = self.automaton, np.array([state])
        allowed = self._only(*(self.end if automaton.complete(state) else ()))
        for level in self._levels:
            automaton.expand(states)
            states = automaton.table[states[level.parents], level.bytes]
            allowed[level.tokens] = states[level.ends] != DEAD
            if not states.any():
                break
        return allowed
