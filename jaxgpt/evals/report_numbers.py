"""Numbers as people write them."""

from __future__ import annotations

from jaxgpt.evals.plot import short_number


def about(count: float) -> str:
    """A count as one says it.

    >>> about(1_638_400), about(96_310), about(812)
    ('1.64M', '96.3k', '812')
    """
    return short_number(float(f"{count:.3g}"))


def interval(row: dict) -> str:
    """A row's interval in percent, the space one that does not break.

    >>> interval({"interval": [0.891, 0.962]})
    '[89,\\xa096]'
    """
    low, high = row["interval"]
    return f"[{100 * low:.0f},\N{NO-BREAK SPACE}{100 * high:.0f}]"
