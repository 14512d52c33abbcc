"""The picture of a text's tokens."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.tokenizer.show import _columns, coloured, visible

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def test_by_hand(byte_tokenizer):
    assert coloured(byte_tokenizer, "a é\nb\t", colour=False, width=80).split("\n") == [
        r"a |· |\xc3|\xa9|⏎",
        r"97|32|195 |169 |10",
        r"b |⇥",
        r"98|9",
        "7 tokens, 7 bytes, 1.00 bytes per token",
    ]


def test_colours_by_hand(byte_tokenizer):
    pictures, numbers, count = coloured(byte_tokenizer, "a b", colour=True, width=80).split("\n")
    assert pictures == "\x1b[30;48;5;153ma  \x1b[0m\x1b[30;48;5;223m·  \x1b[0m\x1b[30;48;5;157mb  \x1b[0m"
    assert numbers == "\x1b[2m97 32 98\x1b[0m"
    assert count == "3 tokens, 3 bytes, 1.00 bytes per token"


@pytest.mark.parametrize("text, count", [
    ("", "0 tokens, 0 bytes"),
    ("a", "1 token, 1 byte, 1.00 bytes per token"),
    ("é" * 1000, "2,000 tokens, 2,000 bytes, 1.00 bytes per token"),
])
def test_the_count(byte_tokenizer, text, count):
    assert coloured(byte_tokenizer, text, colour=False).split("\n")[-1] == count


@pytest.mark.parametrize("token, picture", [
    (b" the", "·the"),
    (b"\r\n\t", "␍⏎⇥"),
    ("né".encode(), "né"),
    ("né".encode()[:2], r"n\xc3"),
    ("é!".encode()[1:], r"\xa9!"),
    ("日".encode()[1:], r"\x97\xa5"),
    (b"\x1b[31m\x00", r"\x1b[31m\x00"),
    ("e\u0301\u202e\u00a0\u200d".encode(), r"e\u0301\u202e\xa0\u200d"),
    (b"", ""),
])
def test_visible(token, picture):
    assert visible(token) == picture


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [10, 24, 80])
def test_it_fits_the_terminal_and_shows_every_id_in_order(tokenizer, odd_texts, width, colour):
    for text in odd_texts:
        *rows, _ = ESCAPES.sub("", coloured(tokenizer, text, colour=colour, width=width)).split("\n")
        assert all(_columns(row) <= width for row in rows)
        numbers = [int(number) for row in rows[1::2] for number in re.findall(r"\d+", row)]
        assert numbers == tokenizer.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_nothing_that_moves_the_cursor_gets_through(tokenizer, text):
    plain = coloured(tokenizer, text, colour=False, width=60)
    assert all(character.isprintable() for line in plain.split("\n") for character in line)
    painted = ESCAPES.sub("", coloured(tokenizer, text, colour=True, width=60))
    assert all(character.isprintable() for line in painted.split("\n") for character in line)


def test_colour_by_default_only_on_a_terminal_that_wants_it(byte_tokenizer, monkeypatch, capsys):
    assert "\x1b" not in coloured(byte_tokenizer, "a")  # standard output is captured here: no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in coloured(byte_tokenizer, "a")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in coloured(byte_tokenizer, "a")
    assert "\x1b" in coloured(byte_tokenizer, "a", colour=True)
