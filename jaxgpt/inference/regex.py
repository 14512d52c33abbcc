"""Regular expressions -> the parts of an automaton: literals, classes, groups, | and the quantifiers.

What is written fits both readings where dialects differ: a digit, a word character and a space are ASCII, and what is
none of them is none in Unicode either.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

from jaxgpt.core.errors import UserError
from jaxgpt.inference.automaton import ANY, Part, characters, either, repeat, sequence

Ranges = list[tuple[int, int]]  # of code points

_CLASSES = {"d": ["09"], "w": ["09", "AZ", "__", "az"], "s": ["\t\r", "  "]}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]
MOST_REPEATS = 1000


def regex(pattern: str, *, spell: Callable[[Iterable[tuple[int, int]]], Part] = characters, search: bool = False) -> Part:
    """The strings that a regular expression fits.

    Args:
      pattern: the expression.
      spell: how a character of some ranges of code points is written.
      search: whether it fits where a part of the string does, as in JSON Schema, unless ^ and $ say otherwise; else it
        is the whole string.

    Raises:
      UserError: it is none, or uses what is not supported (says what, and where).
    """
    return _Parser(pattern, spell, search).whole()


class _Parser:
    """Goes through a pattern from left to right; `at` is where it stands."""

    def __init__(self, pattern: str, spell: Callable[[Iterable[tuple[int, int]]], Part], search: bool):
        self.pattern, self.spell, self.search, self.at = pattern, spell, search, 0

    def whole(self) -> Part:
        found = self._alternatives(outermost=True)
        if self.at < len(self.pattern):
            raise self._wrong("a ) without its (")
        return found

    def _wrong(self, what: str, at: int | None = None) -> UserError:
        return UserError(f"the pattern {self.pattern[:60]!r}: {what}, at character {(self.at if at is None else at) + 1}")

    def _next(self) -> str:
        return self.pattern[self.at:self.at + 1]

    def _take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _alternatives(self, outermost: bool = False) -> Part:
        found = [self._sequence(outermost)]
        while self._take("|"):
            found.append(self._sequence(outermost))
        return either(*found) if len(found) > 1 else found[0]

    def _sequence(self, outermost: bool) -> Part:
        anything = repeat(self.spell(ANY))
        begun = outermost and self._take("^")
        parts = [] if begun or not (outermost and self.search) else [anything]
        while self._next() not in ("", "|", ")"):
            if self._next() == "$" and outermost and self.pattern[self.at + 1:self.at + 2] in ("", "|"):
                self.at += 1
                return sequence(*parts)
            parts.append(self._quantified(self._atom()))
        return sequence(*parts, *([anything] if outermost and self.search else ()))

    def _atom(self) -> Part:
        begin, character = self.at, self._next()
        self.at += 1
        if character == "(":
            if self._take("?") and not self._take(":"):
                raise self._wrong("of the groups that begin with (? only (?: is supported", begin)
            found = self._alternatives()
            if not self._take(")"):
                raise self._wrong("a ( without its )", begin)
            return found
        if character == "[":
            return self.spell(self._class(begin))
        if character == ".":
            return self.spell(without(ANY, _LINE_ENDS))
        if character == "\\":
            return self.spell(self._escape())
        if character in "^$":
            raise self._wrong(f"{character} is supported only where the whole begins or ends", begin)
        if character in "*+?{":
            raise self._wrong(f"nothing stands before {character}", begin)
        return self.spell([(ord(character), ord(character))])

    def _quantified(self, inner: Part) -> Part:
        begin = self.at
        counts = re.compile(r"\{(\d+)(,?)(\d*)\}").match(self.pattern, self.at)
        if counts:
            self.at = counts.end()
            low = int(counts[1])
            high = int(counts[3]) if counts[3] else None if counts[2] else low
            if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
                raise self._wrong(f"{counts[0]} should count up, to at most {MOST_REPEATS}", begin)
        elif self._next() in ("*", "+", "?") and self._next():
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._next()]
            self.at += 1
        else:
            return inner
        self._take("?")  # which of several fits is found first makes no difference
        if self._next() in ("*", "+", "?", "{") and self._next():
            raise self._wrong("one quantifier after another")
        return repeat(inner, low, high)

    def _escape(self) -> Ranges:
        """After a backslash: the characters meant."""
        begin, character = self.at - 1, self._next()
        self.at += 1
        if character.lower() in _CLASSES and character:
            return named(character)
        if character in _ESCAPES and character:
            return [(ord(_ESCAPES[character]),) * 2]
        if character in ("x", "u"):
            digits = self.pattern[self.at:self.at + (2 if character == "x" else 4)]
            if not re.fullmatch("[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}", digits):
                raise self._wrong(f"hexadecimal digits should follow \\{character}", begin)
            self.at += len(digits)
            return [(int(digits, 16),) * 2]
        if not character or character.isalnum():
            raise self._wrong(f"\\{character} is not supported", begin)
        return [(ord(character),) * 2]

    def _class(self, begin: int) -> Ranges:
        negated, found = self._take("^"), []
        if self._next() == "]":  # which dialects read in two ways
            raise self._wrong("a ] that a class begins with should be spelt \\]")
        while self._next() != "]":
            low = self._member(begin)
            if self._next() == "-" and self.pattern[self.at + 1:self.at + 2] not in ("]", ""):
                dash, self.at = self.at, self.at + 1
                high = self._member(begin)
                if len(low) + len(high) > 2 or low[0][0] != low[0][1] or high[0][0] != high[0][1] or high < low:
                    raise self._wrong("a range should go from a character to a later one", dash)
                low = [(low[0][0], high[0][0])]
            found += low
        self.at += 1
        if not negated:
            return found
        # a class that is spelt out in ASCII is left out of the rest as Unicode has it
        spelt = [kind for kind in _CLASSES if all(pair in found for pair in named(kind))]
        return without(ANY, [*found, *(pair for kind in spelt for pair in _unicode(kind))])

    def _member(self, begin: int) -> Ranges:
        character = self._next()
        if not character:
            raise self._wrong("a [ without its ]", begin)
        self.at += 1
        return self._escape() if character == "\\" else [(ord(character),) * 2]


def named(name: str) -> Ranges:
    """The code points of \\d, \\w or \\s, in ASCII; of \\D, \\W and \\S, all that are not theirs in any dialect."""
    if name.isupper():
        return without(ANY, _unicode(name.lower()))
    return [(ord(low), ord(high)) for low, high in _CLASSES[name]]


@functools.lru_cache
def _unicode(name: str) -> tuple[tuple[int, int], ...]:
    """The code points of \\d, \\w or \\s as Unicode has them."""
    everything = "".join(map(chr, range(0x110000)))
    more = [(0xFEFF, 0xFEFF)] if name == "s" else []  # which JavaScript takes for a space
    return (*((found.start(), found.end() - 1) for found in re.finditer(f"\\{name}+", everything)), *more)


def without(ranges: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges of code points, less others.

    >>> without([(1, 9)], [(3, 4), (9, 12)])
    [(1, 2), (5, 8)]
    """
    found, others = [], sorted(others)
    for low, high in ranges:
        for first, last in others:
            if low <= high and first <= high and last >= low:
                if first > low:
                    found.append((low, first - 1))
                low = last + 1
        if low <= high:
            found.append((low, high))
    return found
