import json
import os
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.tools.calculator import calculate, show, value

DATA = Path(os.environ.get("JAXGPT_DATA", "")) / "gsm8k"


@pytest.mark.parametrize("text, answer", [
    ("37 + 48", "85"), ("2 + 3 * 4", "14"), ("(2 + 3) * 4", "20"), ("7 // 2", "3"), ("-7 % 3", "2"), ("2 ** 10", "1024"),
    ("2^-2", "0.25"), ("0.1 + 0.2", "0.3"), ("1/3", "0.3333333333"), ("2/3", "0.6666666667"), ("-1/8", "-0.125"),
    ("1,234,567 + 1", "1234568"), ("max(1,200)", "200"), ("12 ÷ 4 × 2 − 1", "5"), ("$5 * 3", "15"), ("20% * 50", "10"), ("7 % 4", "3"),
    ("15%", "0.15"), ("48/2=", "24"), ("sqrt(16/9)", "1.3333333333"), ("round(2.675, 2)", "2.68"), ("007 + 1", "8"),
    ("1e3 + .5", "1000.5"), ("ceil(7/2) + floor(7/2)", "7"), ("1/1024", "0.0009765625"), ("1/3*3", "1"),
])
def test_answers(text, answer):
    assert calculate(text) == answer


@pytest.mark.parametrize("text, says", [
    ("", "empty"), ("1/0", "division by zero"), ("5 % 0", "division by zero"), ("0**-1", "division by zero"), ("2**0.5", "whole number"),
    ("9**9**9", "too large"), ("9**99999999999", "too large"), ("1" * 501, "at most 500"), ("1e999 * 1e999", "too large"),
    ("__import__('os')", "no function __import__"), ("(1).real", "not arithmetic"), ("True + 1", "not arithmetic"), ("0x10", "digits"),
    ("a + 1", "not arithmetic"), ("1 if 2 else 3", "not arithmetic"), ("[1][0]", "not arithmetic"), ("(lambda: 1)()", "not arithmetic"),
    ("1 +", "not an arithmetic expression"), ("(" * 400, "not an arithmetic expression"), ("-" * 490 + "1", "nested|-?1"),
    ("sqrt(-1)", "no square root"), ("abs(1, 2)", "does not take 2"), ("round(1, 1e9)", "number of decimals"), ("二 + 1", "no part of arithmetic"),
    ("1_000", "digits"), ("3j", "not arithmetic"), ("'a' * 9", "not arithmetic"), ("١ + 1", "no part of arithmetic"),
])
def test_mistakes_are_a_sentence_in_no_time(text, says):
    began = time.perf_counter()
    assert re.search(says, calculate(text))
    assert time.perf_counter() - began < 1


@given(st.text(max_size=60))
def test_any_text_has_an_answer(text):
    assert isinstance(calculate(text), str)


@given(st.fractions(max_denominator=10 ** 6), st.fractions(max_denominator=10 ** 6).filter(bool))
def test_arithmetic_is_exact(a, b):
    for operation, right in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a / b)):
        assert value(f"({a}) {operation} ({b})") == right
    assert abs(Fraction(show(a)) - a) <= Fraction(1, 2 * 10 ** 10)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs gsm8k/ in $JAXGPT_DATA")
def test_annotations_of_gsm8k():
    """Each <<expression=result>> of the 8,792 solutions, to the last decimal that the solution gives, rounded or cut."""
    checked, wrong = 0, []
    for path in sorted(DATA.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            for expression, result in re.findall(r"<<([^<>=]*)=([^<>]*)>>", json.loads(line)["answer"]):
                unit = Fraction(1, 10 ** len(result.partition(".")[2]))
                given, exact = value(result), value(expression)
                rounded, cut = abs(given - exact) <= unit / 2, 0 <= abs(exact) - abs(given) < unit
                checked += 1
                if not (rounded or cut):
                    wrong.append(f"{expression} = {show(exact)}, not {result}")
    assert not wrong and checked == 27_998
