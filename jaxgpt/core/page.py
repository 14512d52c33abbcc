"""What reports are built of: numbers in words, tables, and the frame of an HTML page with nothing to fetch."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from jaxgpt.core.style import STYLE


def percent(share: float) -> str:
    """A share of 1 in whole percent; one decimal where rounding would claim all or nothing.

    >>> percent(0.934), percent(0.999), percent(1.0)
    ('93%', '99.9%', '100%')
    """
    return f"{share:.1%}" if 0 < share < 0.005 or 0.995 <= share < 1 else f"{share:.0%}"


def size(count: float) -> str:
    """Bytes in words.

    >>> size(1_664_000_000), size(812)
    ('1.66 GB', '812 B')
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f} B"


# --- HTML ------------------------------------------------------------------------------------------------------------

def html_page(title: str, sections: Iterable[str]) -> str:
    """A whole page of the sections that are not empty."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def definitions(pairs: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    return (
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
        + "</dl>"
    )


def html_table(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], *, numbers: int = 0, strong: int | None = None
) -> str:
    """A table; its last `numbers` columns are set right, a first cell like the one above is left blank."""
    right = len(columns) - numbers

    def style(column: int, again: bool = False) -> str:
        names = ["number"] if column >= right else []
        names += ["first"] if column == 0 else []
        names += ["strong"] if column == strong else []
        names += ["again"] if again and column == 0 else []
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(f"<th{style(i)}>{escape(name)}</th>" for i, name in enumerate(columns))
    body, above = [], None
    for row in rows:
        again = row[0] == above
        cells = "".join(
            f"<td{style(i, again)}>{'' if again and i == 0 else escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        body.append(f"<tr{' class=again' if again else ''}>{cells}</tr>")
        above = row[0]
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'


# --- Markdown --------------------------------------------------------------------------------------------------------

def markdown_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], *, numbers: int = 0) -> str:
    """A pipe table; the last `numbers` columns are set to the right.

    >>> print(markdown_table(("Stage", "Time"), [("sft", "3 s")], numbers=1))
    | Stage | Time |
    |---|---:|
    | sft | 3 s |
    """
    rules = ["---"] * (len(columns) - numbers) + ["---:"] * numbers
    lines = ["| " + " | ".join(map(cell, columns)) + " |", "|" + "|".join(rules) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])


def cell(text: str) -> str:
    r"""Text that stays in its cell and means nothing to Markdown.

    >>> cell("a|b\n*c* <i> [1]")
    'a\\|b \\*c\\* \\<i> [1]'
    """
    for mark in ("\\", "`", "*", "_", "|", "<", "]("):
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split("\n"))


def fence(text: str) -> str:
    """A block of code that `text` cannot end, whatever backticks it holds.

    >>> print(fence("as it is"))
    ```text
    as it is
    ```
    """
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}text\n{text}\n{ticks}"
