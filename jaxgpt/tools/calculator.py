"""The calculator: arithmetic on exact numbers, read as a syntax tree and never run as code.

What a model writes may be anything, so the text, the depth of the tree and the size of every number are bounded, and an
answer takes milliseconds at most. A mistake is one sentence, which the model is shown as the result.
"""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

LENGTH = 500  # characters of an expression
BITS = 4096  # of a numerator or denominator
PLACES = 10  # decimals of an answer that does not end

_SPELT = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "^": "**", "$": "", "€": "", "£": ""})
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
               ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}
_FUNCTIONS = {"abs": abs, "min": min, "max": max, "round": round, "floor": lambda x: x // 1, "ceil": lambda x: -(-x // 1),
              "sqrt": lambda x: _root(x)}


class CalculatorError(ValueError):
    """What is wrong with an expression, in a sentence for the model."""


def calculate(text: str) -> str:
    """The value of an arithmetic expression, or a sentence that begins with "error:".

    + - * / // % ** and parentheses, the functions abs, min, max, round, floor, ceil and sqrt; 1,000 is a thousand, 5% is
    5/100 where nothing follows it, and × ÷ − ^ are read as they are meant. An = at the end is ignored.

    >>> calculate("(37 + 48) * 2"), calculate("1/3"), calculate("1,250 × 4"), calculate("2**0.5")
    ('170', '0.3333333333', '5000', 'error: a power needs a whole number as its exponent, not 0.5')
    """
    try:
        return show(value(text))
    except CalculatorError as error:
        return f"error: {error}"


def value(text: str) -> Fraction:
    """The exact value of an expression.

    Raises:
      CalculatorError: it is too long, is not arithmetic, divides by zero or grows too large.
    """
    if len(text) > LENGTH:
        raise CalculatorError(f"the expression has {len(text)} characters, but at most {LENGTH} are read")
    text = text.translate(_SPELT).strip().rstrip("=").strip()
    if not re.search(r"[a-z]\s*\(", text):  # of a function, commas part the arguments
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # 007
    text = re.sub(r"%(?=\s*($|[-+*/),]))", "/100", text)
    if not text:
        raise CalculatorError("the expression is empty")
    if not text.isascii():
        raise CalculatorError(f"{next(c for c in text if not c.isascii())!r} is no part of arithmetic")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculatorError(f"{text[:60]!r} is not an arithmetic expression") from None
    try:
        return _evaluate(tree, text)
    except RecursionError:
        raise CalculatorError("the expression is nested too deeply") from None


def show(number: Fraction) -> str:
    """A number as a person writes it: whole, with all decimals where they end soon, else rounded to ten."""
    if number.denominator == 1:
        return str(number.numerator)
    places = next((n for n in range(1, PLACES + 1) if number.denominator and 10 ** n % number.denominator == 0), PLACES)
    scaled = abs(number) * 10 ** places
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)  # half up
    digits = str(whole).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:].rstrip('0')}".rstrip(".")
    return ("-" if number < 0 and whole else "") + text


def _evaluate(node: ast.AST, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(Fraction(_digits(ast.get_source_segment(text, node))))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand = _evaluate(node.operand, text)
        return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, text), _evaluate(node.right, text)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _OPERATIONS:
            if right == 0 and isinstance(node.op, (ast.Div, ast.FloorDiv, ast.Mod)):
                raise CalculatorError("division by zero")
            return _bounded(Fraction(_OPERATIONS[type(node.op)](left, right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise CalculatorError(f"there is no function {node.func.id}; there are {', '.join(_FUNCTIONS)}")
        return _call(node.func.id, [_evaluate(argument, text) for argument in node.args])
    raise CalculatorError(f"{(ast.get_source_segment(text, node) or text)[:60]!r} is not arithmetic on numbers")


def _digits(source: str) -> str:
    if re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[-+]?\d{1,3})?", source, re.IGNORECASE):
        return source
    raise CalculatorError(f"{source[:60]!r} is not a number written in digits")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CalculatorError(f"a power needs a whole number as its exponent, not {show(exponent)}")
    if base == 0 and exponent < 0:
        raise CalculatorError("division by zero")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and size * abs(exponent.numerator) > BITS:
        raise CalculatorError("the number is too large")
    return Fraction(base ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2))


def _call(name: str, arguments: list[Fraction]) -> Fraction:
    try:
        if name == "round" and len(arguments) == 2:
            if arguments[1].denominator != 1 or abs(arguments[1]) > 100:
                raise CalculatorError(f"round takes a number of decimals, not {show(arguments[1])}")
            return Fraction(round(arguments[0], arguments[1].numerator))
        return _bounded(Fraction(_FUNCTIONS[name](*arguments)))
    except TypeError:
        raise CalculatorError(f"{name} does not take {len(arguments)} numbers") from None


def _root(number: Fraction) -> Fraction:
    """√x, exact where it is a fraction, else to PLACES decimals and a few more."""
    from math import isqrt

    if number < 0:
        raise CalculatorError(f"{show(number)} has no square root")
    top, bottom = isqrt(number.numerator), isqrt(number.denominator)
    if top ** 2 == number.numerator and bottom ** 2 == number.denominator:
        return Fraction(top, bottom)
    scale = 10 ** (PLACES + 5)
    return Fraction(isqrt(number.numerator * scale ** 2 // number.denominator), scale)


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > BITS:
        raise CalculatorError("the number is too large")
    return number
