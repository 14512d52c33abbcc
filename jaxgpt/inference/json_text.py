"""The texts of JSON as parts of an automaton: strings, numbers within bounds, and values of any kind.

Source: RFC 8259.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from jaxgpt.inference.automaton import ANY, Part, byte_range, characters, either, literal, repeat, rule, sequence
from jaxgpt.inference.regex import without

# Behind a colon at most a space; round the pieces of a list also a line break and an indentation. Bounded, so that a
# model never writes space for ever.
SPACE = repeat(literal(b" "), 0, 1)
AROUND = rule("around", lambda: either(sequence(), literal(b" "), sequence(literal(b"\n"), repeat(literal(b" "), 0, 24))))

_SHORT = {0x22: b'\\"', 0x5C: b"\\\\", 8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r"}
_ESCAPED = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))  # what stands in a string only behind a backslash
_DIGIT, _HEX = byte_range(0x30, 0x39), either(byte_range(0x30, 0x39), byte_range(0x41, 0x46), byte_range(0x61, 0x66))
_EXACT = 9  # digits in front of the point of a number with bounds; with six behind it a double holds them exactly enough

_DATE, _TIME = r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])", r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d"
FORMATS = {  # some of each: no day that a month may not have
    "date": _DATE, "time": rf"{_TIME}Z", "date-time": rf"{_DATE}T{_TIME}Z",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "email": r"[a-z0-9]{1,20}(?:[._-][a-z0-9]{1,20}){0,2}@[a-z0-9]{1,30}(?:\.[a-z0-9]{1,30}){0,2}\.[a-z]{2,6}",
    "ipv4": r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)",
}


def _hex_of(*first: bytes) -> Part:
    return either(*map(literal, first))


_UNICODE = sequence(literal(b"\\u"), either(
    sequence(either(*(byte_range(*pair) for pair in (b"09", b"AC", b"EF", b"ac", b"ef"))), _HEX, _HEX, _HEX),
    sequence(_hex_of(b"D", b"d"), byte_range(0x30, 0x37), _HEX, _HEX),
    sequence(_hex_of(b"D", b"d"), either(*(byte_range(*pair) for pair in (b"89", b"AB", b"ab"))), _HEX, _HEX, literal(b"\\u"),
             _hex_of(b"D", b"d"), either(byte_range(0x43, 0x46), byte_range(0x63, 0x66)), _HEX, _HEX)))
_SIMPLE = sequence(literal(b"\\"), either(*map(literal, (b'"', b"\\", b"/", b"b", b"f", b"n", b"r", b"t"))))
_PLAIN = either(characters(without(ANY, _ESCAPED)), _SIMPLE, _UNICODE)

CHARACTER = rule("character", lambda: _PLAIN)
STRING = rule("string", lambda: sequence(literal(b'"'), repeat(_PLAIN), literal(b'"')))
_WHOLE = either(literal(b"0"), sequence(byte_range(0x31, 0x39), repeat(_DIGIT, 0, 14)))
_MINUS = repeat(literal(b"-"), 0, 1)
INTEGER = rule("integer", lambda: sequence(_MINUS, _WHOLE))
NUMBER = rule("number", lambda: sequence(
    _MINUS, _WHOLE, repeat(sequence(literal(b"."), repeat(_DIGIT, 1, 15)), 0, 1),
    repeat(sequence(either(literal(b"e"), literal(b"E")), repeat(either(literal(b"+"), literal(b"-")), 0, 1),
                    repeat(_DIGIT, 1, 2)), 0, 1)))


def spelled(ranges: Iterable[tuple[int, int]]) -> Part:
    """One character of these ranges of code points inside a string, in its shortest spelling."""
    ranges = list(ranges)
    hidden = [code for low, high in _ESCAPED for code in range(low, high + 1)
              if any(first <= code <= last for first, last in ranges)]
    return either(characters(without(ranges, _ESCAPED)),
                  *(literal(_SHORT.get(code, f"\\u{code:04x}".encode())) for code in hidden))


def value(depth: int) -> Part:
    """A value of any kind, with at most `depth` lists and objects around what is innermost."""
    def inner() -> Part:
        scalars = either(STRING, NUMBER, *map(literal, (b"true", b"false", b"null")))
        return either(scalars, anything_in_list(depth), anything_in_object(depth)) if depth else scalars
    return rule(("value", depth), inner)


def anything_in_list(depth: int) -> Part:
    """A list of values of any kind."""
    return bracketed(b"[", listed(value(depth - 1), 0, None), b"]")


def anything_in_object(depth: int) -> Part:
    """An object of values of any kind."""
    return bracketed(b"{", listed(sequence(STRING, literal(b":"), SPACE, value(depth - 1)), 0, None), b"}")


def bracketed(opening: bytes, inner: Part, closing: bytes) -> Part:
    """What stands between two brackets."""
    return sequence(literal(opening), AROUND, inner, AROUND, literal(closing))


def listed(item: Part, low: int, high: int | None, firsts: Sequence[Part] = ()) -> Part:
    """`low` to `high` items with commas between them, of which the first ones may be of kinds of their own."""
    comma = sequence(literal(b","), AROUND)

    def part(grammar, to: int) -> int:
        known = max(low, len(firsts), 1) if high is None else high
        if high is None:  # behind the last that is counted
            more = grammar.node()
            grammar.skips[more] += [to, sequence(comma, item)(grammar, more)]
        else:
            more = to
        for place in reversed(range(known)):
            one = firsts[place] if place < len(firsts) else item
            before = grammar.node()
            grammar.skips[before].append(sequence(*[comma] * (place > 0), one)(grammar, more))
            if place >= low:
                grammar.skips[before].append(to)
            more = before
        return more
    return part


# --- numbers within bounds -------------------------------------------------------------------------------------------

def integers(low: float, high: float) -> Part:
    """The whole numbers from `low` to `high`, either of which may be infinite; of at most 15 digits.

    >>> from jaxgpt.inference.automaton import Automaton
    >>> some = Automaton(integers(-3, 120))
    >>> [text for text in (b"-4", b"-3", b"0", b"07", b"99", b"120", b"121")
    ...  if some.complete(some.read(some.start, text))]
    [b'-3', b'0', b'99', b'120']
    """
    most = 10 ** 15 - 1
    low, high = int(max(low, -most)), int(min(high, most))
    return either(_digits(max(low, 0), high), sequence(literal(b"-"), _digits(max(-high, 1), -low)))


def numbers(low: float, high: float, *, above: bool, below: bool) -> Part:
    """The numbers from `low` to `high`, whole bounds or infinite; themselves left out where `above` or `below` says so.
    Of at most nine digits in front of the point and six behind it."""
    most = 10 ** _EXACT - 1
    above, below = above and low >= -most, below and high <= most
    low, high = int(max(low, -most)), int(min(high, most))
    return either(_positive(max(low, 0), high, above and low >= 0, below),
                  sequence(literal(b"-"), _positive(max(-high, 0), -low, (below and high <= 0) or low > 0 or high >= 0,
                                                    above)))


def _positive(low: int, high: int, above: bool, below: bool) -> Part:
    """The same, of bounds of which the lower is at least 0."""
    if low > high:
        return either()
    point, zeros = literal(b"."), literal(b"0")
    fraction = sequence(point, repeat(_DIGIT, 1, 6))
    more_than_zero = sequence(point, either(*(  # six digits of which one is not 0
        sequence(repeat(zeros, places, places), byte_range(0x31, 0x39), repeat(_DIGIT, 0, 5 - places))
        for places in range(6))))
    found = [sequence(_digits(low + 1, high - 1), repeat(fraction, 0, 1))]
    if low < high:
        found.append(sequence(_digits(low, low), more_than_zero if above else repeat(fraction, 0, 1)))
    if not below and not (above and low == high):
        found.append(sequence(_digits(high, high), repeat(sequence(point, repeat(zeros, 1, 6)), 0, 1)))
    return either(*found)


def _digits(low: int, high: int) -> Part:
    """The whole numbers from `low` >= 0 to `high`, in digits."""
    if low > high:
        return either()
    longest = [(max(low, 0 if size == 1 else 10 ** (size - 1)), min(high, 10 ** size - 1))
               for size in range(len(str(low)), len(str(high)) + 1)]
    return either(*(_same_length(str(first), str(last)) for first, last in longest))


def _same_length(low: str, high: str) -> Part:
    """The numbers between two of as many digits."""
    if not low:
        return sequence()
    if low[0] == high[0]:
        return sequence(literal(low[0].encode()), _same_length(low[1:], high[1:]))
    size = len(low) - 1
    parts = [sequence(literal(low[0].encode()), _same_length(low[1:], "9" * size)),
             sequence(literal(high[0].encode()), _same_length("0" * size, high[1:]))]
    if int(high[0]) - int(low[0]) > 1:
        between = byte_range(ord(low[0]) + 1, ord(high[0]) - 1)
        parts.append(sequence(between, repeat(_DIGIT, size, size)))
    return either(*parts)
