"""Shape checks for mathematical functions: one line at the top, errors that name the argument, at trace time."""

from __future__ import annotations


def check(spec: str | dict, /, **arrays) -> dict[str, int]:
    """Checks arrays against a spec of dimension names and returns the size of each name.

    A name stands for one size wherever it appears, a number for itself, `...` for any leading dimensions and `_` for
    any one dimension. Several specs are checked together when given as a dictionary.

    Args:
      spec: "B T" with the arrays as keywords, or {"B T": {"tokens": tokens}, "B": {"lengths": lengths}}.
      **arrays: what the single spec applies to; anything with a `.shape`.

    Returns:
      {"B": 2, "T": 3}: the size that each name took.

    Raises:
      ValueError: an array does not fit, naming the argument, what was expected and what was found.

    >>> import numpy as np
    >>> check("B T", tokens=np.zeros((2, 3)))
    {'B': 2, 'T': 3}
    >>> check("B T", tokens=np.zeros((2, 3)), mask=np.zeros((2, 4)))
    Traceback (most recent call last):
    ValueError: mask has shape (2, 4), expected B T with B=2, T=3
    """
    sizes: dict[str, int] = {}
    for text, named in (spec if isinstance(spec, dict) else {spec: arrays}).items():
        for name, array in named.items():
            if not _fits(text.split(), tuple(array.shape), sizes):
                known = ", ".join(f"{key}={size}" for key, size in sizes.items() if key in text.split())
                raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {text or 'a scalar'}"
                                 + (f" with {known}" if known else ""))
    return sizes


def _fits(names: list[str], shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether `shape` matches `names`; new names are entered into `sizes` when it does."""
    if names and names[0] == "...":
        names = names[1:]
        shape = shape[max(len(shape) - len(names), 0):]
    if len(names) != len(shape):
        return False
    found = dict(sizes)
    for name, size in zip(names, shape):
        if name != "_" and size != (int(name) if name.isdigit() else found.setdefault(name, size)):
            return False
    sizes.update(found)
    return True
