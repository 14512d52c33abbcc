"""How experts change the count of a layer: how many matrices there are, how many rows each multiplies, what travels.

Choices are counted as even over experts. Dimension key in `model/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxgpt.model.transformer import Config


def of_experts(config: Config, product: str) -> bool:
    """Whether each expert has a matrix of that name."""
    return config.experts is not None and product in ("up", "gate", "down")


def copies(config: Config) -> float:
    """In how many rows of products a token is, empty places included where experts have a capacity."""
    return config.experts_per_token * (config.capacity_factor or 1.0)


def spread(config: Config, product: str, m: float, over: int) -> tuple[float, float]:
    """(rows, matrices): of m tokens of a device, how many each matrix of that name multiplies, and how many the device has.

    Args:
      config: the model.
      product: one of `cost.layer_products`.
      m: tokens of each device.
      over: how many devices experts are split over.
    """
    if not of_experts(config, product):
        return m, 1
    return m * copies(config) / (config.experts / over), config.experts / over


def room(config: Config, over: int) -> float:
    """Rows that a device keeps in memory for each of its tokens: of dropless experts the most that may come."""
    if config.experts is None:
        return 1
    return copies(config) if config.capacity_factor else over * min(config.experts_per_token, config.experts / over)


def exchanges(config: Config, size: float, over: int, again: bool) -> Iterator[tuple[str, float, int, str]]:
    """(kind, bytes, times, what) of a layer's exchanges over the axis of experts: there and back, twice; and once more
    where the products there are computed again, but for sums, which nobody needs twice.

    Args:
      config: the model.
      size: bytes of a device's tokens.
      over: devices along the axis.
      again: whether they are.
    """
    if config.capacity_factor is None:  # each device sees all tokens, and keeps the part of the sum that is its own
        yield "all-gather", size * over, 2 + again, "tokens to experts"
        yield "reduce-scatter", size * over, 2, "what experts give back"
    else:
        yield "all-to-all", size * copies(config), 4 + 2 * again, "tokens to experts and back"
