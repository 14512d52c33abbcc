"""The tokens of a text, made visible."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata

from jaxgpt.tokenizer.tokenizer import Tokenizer

BACKGROUNDS = ("48;5;153", "48;5;223", "48;5;157", "48;5;218")  # light blue, orange, green, pink
BLACK, DIM, RESET = "30", "\x1b[2m", "\x1b[0m"
VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def coloured(tokenizer: Tokenizer, text: str, *, colour: bool | None = None, width: int | None = None) -> str:
    """The tokens of `text`, each above its id, and a line that counts them.

    Spaces, tabs and line ends are shown as `· ⇥ ⏎ ␍`; bytes that are no whole character, and characters that
    would not show or would move the cursor, as escapes like `\\xe2`. A line of the text begins a line of the
    picture.

    Args:
      tokenizer: any tokenizer.
      text: any text.
      colour: backgrounds that alternate from token to token, or else bars between the tokens. By default
        colour where standard output is a terminal and the environment has no NO_COLOR.
      width: the columns there are; by default those of the terminal. A token that is wider is cut with `…`.

    >>> from jaxgpt.tokenizer import bpe
    >>> tokenizer = Tokenizer(bpe.train(["low lower lowest"], vocab_size=264 + 4))
    >>> print(coloured(tokenizer, "low lower", colour=False))
    low|·lowe|r
    257|259  |114
    3 tokens, 9 bytes, 3.00 bytes per token
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if width is None:
        width = shutil.get_terminal_size().columns
    tokens = tokenizer.encode(text)
    lines = []
    for row in _rows(tokenizer, tokens, max(width, 10), colour):
        lines += _paint(row) if colour else _plain(row)
    size = len(tokenizer.decode_bytes(tokens))
    count = f"{_number(len(tokens), 'token')}, {_number(size, 'byte')}"
    if tokens:
        count += f", {size / len(tokens):.2f} bytes per token"
    return "\n".join([*lines, count])


def visible(token: bytes) -> str:
    """A token as characters that show, and that say what the token is.

    >>> print(visible(b" caf\\xc3"), visible(" né\\n".encode()))
    ·caf\\xc3 ·né⏎
    """
    return "".join(VISIBLE.get(c) or _shown(c) for c in token.decode(errors="backslashreplace"))


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _shown(character: str) -> str:
    """The character, or its escape where it would not show: controls, directions, accents that combine."""
    if character.isprintable() and not unicodedata.category(character).startswith("M"):
        return character
    return character.encode("unicode_escape").decode()


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _rows(tokenizer: Tokenizer, tokens: list[int], width: int, colour: bool):
    """Lays the tokens out in rows of (position, picture, id, columns) that fit the width."""
    gap, bar = (1, 0) if colour else (0, 1)  # a bar parts pictures and ids, a gap only ids
    row, used = [], 0
    for position, token in enumerate(tokens):
        picture, number = _cut(visible(tokenizer.decode_bytes([token])), width), str(token)
        columns = max(_columns(picture), len(number) + gap)
        if row and used + columns > width:
            yield row
            row, used = [], 0
        row.append((position, picture, number, columns))
        used += columns + bar
        if picture.endswith(VISIBLE["\n"]):
            yield row
            row, used = [], 0
    if row:
        yield row


def _cut(picture: str, columns: int) -> str:
    if _columns(picture) <= columns:
        return picture
    while _columns(picture) > columns - 1:
        picture = picture[:-1]
    return picture + "…"


def _pad(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))


def _plain(row) -> list[str]:
    pictures = "|".join(_pad(picture, columns) for _, picture, _, columns in row)
    numbers = "|".join(number.ljust(columns) for _, _, number, columns in row)
    return [pictures.rstrip(), numbers.rstrip()]


def _paint(row) -> list[str]:
    pictures = "".join(
        f"\x1b[{BLACK};{BACKGROUNDS[position % len(BACKGROUNDS)]}m{_pad(picture, columns)}{RESET}"
        for position, picture, _, columns in row)
    numbers = "".join(number.ljust(columns) for _, _, number, columns in row)
    return [pictures, f"{DIM}{numbers.rstrip()}{RESET}"]
