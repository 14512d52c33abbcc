"""Languages of byte strings: parts that are put together to a grammar, and the automaton that reads it byte by byte.

A grammar is a network of nodes. From a node a range of bytes leads on, a skip leads on without a byte, and a call leads
through another rule and back. Built from its end to its beginning: a part is a function of (grammar, the node after it)
that returns the node before it.

    quoted = sequence(literal(b'"'), repeat(byte_range(0x20, 0x21)), literal(b'"'))
    automaton = Automaton(quoted)
    automaton.read(automaton.start, b'"!!')          # a state; DEAD where no string goes on like this
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from jaxgpt.core.errors import UserError

Part = Callable[["Grammar", int], int]
RETURN = 0  # the node at which each rule ends
DEAD = 0  # the state from which nothing can follow
MAX_NODES = 200_000
MAX_STATES = 20_000  # of which 1 KiB each is kept


class Grammar:
    """The network, while it is built.

    Attributes:
      ranges: of each node, [(lowest byte, highest byte, where to)].
      skips: of each node, [where to].
      calls: of each node, [(the first node of a rule, where to after it)].
    """

    def __init__(self):
        self.ranges: list[list[tuple[int, int, int]]] = [[]]
        self.skips: list[list[int]] = [[]]
        self.calls: list[list[tuple[int, int]]] = [[]]
        self._rules: dict[Hashable, int] = {}
        self._unbuilt: collections.deque[tuple[int, Part]] = collections.deque()

    def node(self) -> int:
        """A new one, from which nothing leads on yet."""
        if len(self.ranges) >= MAX_NODES:
            raise UserError(f"too large: it needs more than {MAX_NODES:,} nodes; give lower bounds or fewer fields")
        for edges in (self.ranges, self.skips, self.calls):
            edges.append([])
        return len(self.ranges) - 1

    def rule(self, key: Hashable, part: Callable[[], Part]) -> int:
        """The first node of the rule of that name; built once, and later, so that rules may call each other."""
        if key not in self._rules:
            self._rules[key] = self.node()
            self._unbuilt.append((self._rules[key], part()))
        return self._rules[key]

    def build(self, part: Part) -> int:
        """The first node of a whole grammar; what cannot come to an end is cut off.

        Raises:
          UserError: no string of it comes to an end.
        """
        start = part(self, RETURN)
        while self._unbuilt:
            first, body = self._unbuilt.popleft()
            self.skips[first].append(body(self, RETURN))
        ends = self._ending()
        if start not in ends:
            raise UserError("no value can fulfil it")
        for node in range(len(self.ranges)):
            self.ranges[node] = [edge for edge in self.ranges[node] if edge[2] in ends]
            self.skips[node] = [to for to in self.skips[node] if to in ends]
            self.calls[node] = [(rule, to) for rule, to in self.calls[node] if rule in ends and to in ends]
        return start

    def _ending(self) -> set[int]:
        """The nodes from which their rule can come to its end."""
        ends, left, before = {RETURN}, list(range(1, len(self.ranges))), 0
        while len(ends) > before:  # a node mostly comes after those it leads to, so few rounds are needed
            before, still = len(ends), []
            for node in left:
                if (any(to in ends for *_, to in self.ranges[node]) or any(to in ends for to in self.skips[node])
                        or any(rule in ends and to in ends for rule, to in self.calls[node])):
                    ends.add(node)
                else:
                    still.append(node)
            left = still
        return ends


# --- parts -----------------------------------------------------------------------------------------------------------

def byte_range(low: int, high: int) -> Part:
    """One byte from `low` to `high`."""
    def part(grammar: Grammar, to: int) -> int:
        node = grammar.node()
        grammar.ranges[node].append((low, high, to))
        return node
    return part


def literal(text: bytes) -> Part:
    """These bytes."""
    return sequence(*(byte_range(byte, byte) for byte in text))


def sequence(*parts: Part) -> Part:
    """One after the other."""
    def part(grammar: Grammar, to: int) -> int:
        for one in reversed(parts):
            to = one(grammar, to)
        return to
    return part


def either(*parts: Part) -> Part:
    """One of them; of none, nothing at all fits."""
    def part(grammar: Grammar, to: int) -> int:
        node = grammar.node()
        grammar.skips[node] += [one(grammar, to) for one in parts]
        return node
    return part


def repeat(inner: Part, low: int = 0, high: int | None = None) -> Part:
    """`low` to `high` times; as often as one likes where `high` is None."""
    def part(grammar: Grammar, to: int) -> int:
        if high is None:
            first = grammar.node()
            grammar.skips[first] += [to, inner(grammar, first)]
        else:
            first = to
            for _ in range(high - low):
                again, first = inner(grammar, first), grammar.node()
                grammar.skips[first] += [to, again]
        return sequence(*[inner] * low)(grammar, first)
    return part


def rule(key: Hashable, inner: Callable[[], Part]) -> Part:
    """What `inner` makes, built once a grammar under this name however often it is used; it may use itself."""
    def part(grammar: Grammar, to: int) -> int:
        node = grammar.node()
        grammar.calls[node].append((grammar.rule(key, inner), to))
        return node
    return part


def characters(ranges: Iterable[tuple[int, int]]) -> Part:
    """One character of these ranges of code points, in UTF-8; halves of surrogate pairs are none.

    Source: RFC 3629, section 4.
    """
    return either(*(sequence(*(byte_range(*pair) for pair in pairs)) for low, high in ranges
                    for pairs in _utf8(low, high)))


def _utf8(low: int, high: int) -> Iterable[Sequence[tuple[int, int]]]:
    """Ranges of bytes, one after the other, that spell the code points from `low` to `high` between them.

    >>> [[(hex(a), hex(b)) for a, b in pairs] for pairs in _utf8(0x41, 0xBF)]
    [[('0x41', '0x7f')], [('0xc2', '0xc2'), ('0x80', '0xbf')]]
    """
    if low > high:
        return
    for last in (0x7F, 0x7FF, 0xD7FF, 0xDFFF, 0xFFFF):
        if low <= last < high:
            yield from _utf8(low, last)
            yield from _utf8(last + 1, high)
            return
    if 0xD800 <= low <= 0xDFFF:
        return
    first, final = chr(low).encode(), chr(high).encode()
    for size in range(1, len(first)):
        block = 64 ** size  # code points that differ in the last `size` bytes alone
        if low // block != high // block:
            if low % block:
                yield from _utf8(low, low // block * block + block - 1)
                yield from _utf8(low // block * block + block, high)
                return
            if (high + 1) % block:
                yield from _utf8(low, high // block * block - 1)
                yield from _utf8(high // block * block, high)
                return
    yield list(zip(first, final))


ANY = ((0, 0x10FFFF),)


# --- reading ---------------------------------------------------------------------------------------------------------

class Automaton:
    """Reads a language byte by byte. A state is all places of the grammar where the bytes so far can stand, with the
    rules they have to come back from; states are made when they are first met, and numbered.

    Attributes:
      start: the state of no bytes.
      table: int32 [states, 256], the next state of each; read it after `expand`.
      age: how often the states were numbered anew.
    """

    def __init__(self, part: Part):
        """Raises UserError where nothing fits, or the grammar is too large."""
        self._grammar = Grammar()
        self._first, self.age = self._grammar.build(part), -1
        self.forget()

    def forget(self) -> None:
        """Numbers the states anew; those there were are worth nothing any more."""
        self.age += 1
        self._stacks: dict[tuple[int, int], int] = {}  # (where to come back to, stack below it): number, from 1
        self._below: list[tuple[int, int]] = [(RETURN, 0)]
        self._states: list[frozenset] = [frozenset()]
        self._numbers: dict[frozenset, int] = {frozenset(): DEAD}
        self._known = np.ones(1, bool)
        self.table = np.zeros((1, 256), np.int32)
        self.start = self._number({(self._first, 0)})

    def __len__(self) -> int:
        return len(self._states)

    def complete(self, state: int) -> bool:
        """Whether the bytes so far are a whole string of the language."""
        return (RETURN, 0) in self._states[state]

    def expand(self, states: np.ndarray) -> None:
        """Fills the rows of the table for these states."""
        wanted = np.zeros(len(self._states), bool)
        wanted[states] = True
        for state in np.nonzero(wanted & ~self._known[:len(wanted)])[0]:
            self._fill(int(state))

    def read(self, state: int, text: bytes) -> int:
        """The state after further bytes."""
        for byte in text:
            if not self._known[state]:
                self._fill(state)
            state = int(self.table[state, byte])
        return state

    def _fill(self, state: int) -> None:
        edges = [(low, high, to, stack) for node, stack in self._states[state]
                 for low, high, to in self._grammar.ranges[node]]
        cuts = sorted({low for low, *_ in edges} | {high + 1 for _, high, *_ in edges})
        row = np.zeros(256, np.int32)
        for begin, end in zip(cuts, cuts[1:]):  # all bytes between two cuts lead to the same
            row[begin:end] = self._number({(to, stack) for low, high, to, stack in edges if low <= begin <= high})
        self.table[state], self._known[state] = row, True

    def _number(self, places: set[tuple[int, int]]) -> int:
        """The state of these places and of all that are reached from there without a byte."""
        grammar, left, seen, found = self._grammar, list(places), set(places), set()
        while left:
            node, stack = left.pop()
            if node == RETURN and stack:
                onward = [self._below[stack]]
            else:
                if node == RETURN or grammar.ranges[node]:
                    found.add((node, stack))
                onward = [(to, stack) for to in grammar.skips[node]]
                onward += [(first, self._stack(to, stack)) for first, to in grammar.calls[node]]
            for place in onward:
                if place not in seen:
                    seen.add(place)
                    left.append(place)
        state = frozenset(found)
        if state not in self._numbers:
            self._numbers[state] = len(self._states)
            self._states.append(state)
            if len(self._states) > len(self.table):
                self._known = np.concatenate([self._known, np.zeros(len(self._known), bool)])
                self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        return self._numbers[state]

    def _stack(self, to: int, below: int) -> int:
        key = to, below
        if key not in self._stacks:
            self._stacks[key] = len(self._below)
            self._below.append(key)
        return self._stacks[key]
