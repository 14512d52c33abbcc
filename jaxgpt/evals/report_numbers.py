"""Numbers as people write them."""

from __future__ import annotations

from jaxgpt.evals.plot import short_number


def about(count: float) -> str:
    """A count as one says it.

    >>> about(1_638_400), about(96_310), about(812)
    ('1.64M', '96.3k', '812')
    """
    return short_number(float(f"{count:.3g}"))


def percent(share: float) -> str:
    """A share of 1 in whole percent; one decimal where rounding would claim all or nothing.

    >>> percent(0.934), percent(0.999), percent(1.0)
    ('93%', '99.9%', '100%')
    """
    return f"{share:.1%}" if 0 < share < 0.005 or 0.995 <= share < 1 else f"{share:.0%}"


def interval(row: dict) -> str:
    """A row's interval in percent, the space one that does not break.

    >>> interval({"interval": [0.891, 0.962]})
    '[89,\\xa096]'
    """
    low, high = row["interval"]
    return f"[{100 * low:.0f},\N{NO-BREAK SPACE}{100 * high:.0f}]"


def size(count: float) -> str:
    """Bytes in words.

    >>> size(1_664_000_000), size(812)
    ('1.66 GB', '812 B')
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f} B"
