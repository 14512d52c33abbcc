"""How long a step takes: products at the pace of their shape, memory, links, and what of each hides behind the rest.

    t_product = max(F / (e · peak) + α · M / bandwidth, M / bandwidth)      F operations, M bytes of one product
    t_compute = Σ t_product + F_attention / (a · peak) + α · M_elementwise / bandwidth
    t_links   = max(f · t_layers, t_layers - t_compute) + g · t_tensor      exchanges of layers hide behind products
    t_step    = (t_compute + t_links) · (1 + j · (√slices - 1)) + n · t_network

Six constants for each kind of chip, each a share between 0 and 1: e and a, the paces of products and attention; α, the
memory traffic that does not hide; f and g, what does not hide of exchanges of parameters and of activations; n, of the
network between slices or hosts; and j, what waiting for the slowest of many slices adds. They are fitted to published
step times (`published.py`); `python tests/benchmarks/fit_roofline.py` makes them and prints their errors.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Iterable

import numpy as np

from jaxgpt.plan.cost import Collective, Cost
from jaxgpt.plan.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Constants:
    """The shares named above."""

    product: float
    attention: float
    memory: float
    layers: float
    tensor: float
    network: float
    waiting: float


CONSTANTS: dict[str, Constants] = {}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time of one step.

    Attributes:
      seconds: of the step.
      compute: seconds of products and attention at their pace.
      memory: seconds of the memory traffic at full bandwidth, hidden or not.
      links: seconds of all exchanges inside a slice or host at full bandwidth, hidden or not.
      network: seconds of exchanges between slices or hosts, likewise.
      binding: which of them decides: "compute", "memory", "links" or "network".
      mfu: model FLOPs (causal, nothing recomputed) over what the chips could do at their peak.
      tokens_per_second: of all devices.
    """

    seconds: float
    compute: float
    memory: float
    links: float
    network: float
    binding: str
    mfu: float
    tokens_per_second: float


def step_time(cost: Cost, chip: Chip, *, slice_devices: int | None = None, constants: Constants | None = None) -> Estimate:
    """The time of a step by the equations above.

    Args:
      cost: from `cost.train_cost` or `cost.decode_cost`.
      chip: that it runs on.
      slice_devices: devices that links join; beyond them is the network. All of them on TPU and eight on GPU where None.
      constants: those fitted for the chip where None.
    """
    times = device_times(cost, chip, slice_devices)
    seconds = combine(times, constants or constants_of(chip))
    parts = {"compute": float(times.products.sum() + times.attention), "links": times.layers + times.tensor,
             "memory": float(times.product_memory.sum() + times.elementwise), "network": times.network}
    return Estimate(seconds, binding=max(parts, key=parts.__getitem__), tokens_per_second=cost.tokens / seconds,
                    mfu=cost.model_flops / (cost.devices * chip.bf16_flops * seconds), **parts)


def constants_of(chip: Chip) -> Constants:
    """The constants fitted for a chip; all GPUs share theirs."""
    return CONSTANTS["gpu" if chip.platform == "gpu" else chip.name]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that each part of a step would take at the maker's figures, one number for each product.

    Attributes:
      products, product_memory: [products], operations at the peak and traffic at full bandwidth.
      attention, elementwise: operations at the peak, traffic at full bandwidth.
      layers: exchanges of parameters and gradients inside a slice or host.
      tensor: exchanges of activations there.
      network: all exchanges beyond.
      slices: or hosts, that wait for one another.
    """

    products: np.ndarray
    product_memory: np.ndarray
    attention: float
    elementwise: float
    layers: float
    tensor: float
    network: float
    slices: int


def device_times(cost: Cost, chip: Chip, slice_devices: int | None = None) -> Times:
    """Counts over the maker's figures: what `combine` weighs by the constants."""
    joined = min(cost.devices, slice_devices or (cost.devices if chip.platform == "tpu" else chip.chips_per_host))
    slow = 2.0 if cost.matmuls and cost.matmuls[0].bytes_per_value == 4 else 1.0
    products = np.array([slow * _padded(m.m, 8) * _padded(m.k, chip.tile) * _padded(m.n, chip.tile) * 2 * m.count
                         for m in cost.matmuls]) / chip.bf16_flops
    spent = {"layers": 0.0, "tensor": 0.0, "network": 0.0}
    for collective in cost.collectives:
        inside, beyond = _exchange(collective, chip, joined)
        spent["layers" if collective.axis in ("data", "fsdp") else "tensor"] += inside
        spent["network"] += beyond
    return Times(products, np.array([m.traffic for m in cost.matmuls]) / chip.hbm_bandwidth,
                 slow * cost.attention_flops / chip.bf16_flops, sum(size for _, size in cost.traffic) / chip.hbm_bandwidth,
                 slices=math.ceil(cost.devices / joined), **spent)


def combine(times: Times, constants: Constants) -> float:
    """Seconds of the step."""
    c = constants
    paced = times.products / c.product + c.memory * times.product_memory
    compute = float(np.maximum(paced, times.product_memory).sum())
    compute += times.attention / c.attention + c.memory * times.elementwise
    links = max(c.layers * times.layers, times.layers - compute) + c.tensor * times.tensor
    network = max(c.network * times.network, times.network - compute)
    return (compute + links) * (1 + c.waiting * (math.sqrt(times.slices) - 1)) + network


def fit(steps: Iterable[tuple[Times, float]], start: Constants) -> Constants:
    """The constants that make the mean of |log(planned / published)| smallest, each between 0 and 1.

    Args:
      steps: (times, published seconds).
      start: where the search begins.
    """
    from scipy.optimize import minimize  # takes a third of a second to import, and only a fit needs it

    steps = list(steps)

    def error(x):
        constants = Constants(*_share(x))
        return np.mean([abs(math.log(combine(times, constants) / seconds)) for times, seconds in steps])

    x = _unbounded(np.array(dataclasses.astuple(start)))
    for _ in range(4):  # a simplex that has collapsed is spread out again
        x = minimize(error, x, method="Nelder-Mead", options={"maxiter": 1500, "xatol": 1e-3, "fatol": 1e-6}).x
    return Constants(*(round(float(value), 4) for value in _share(x)))


# --- parts -----------------------------------------------------------------------------------------------------------

def _share(x):
    return 1 / (1 + np.exp(-x))


def _unbounded(share):
    return np.log(share / (1 - share))


def _padded(size, tile):
    return math.ceil(size / tile) * tile


def _exchange(collective: Collective, chip: Chip, joined: int) -> tuple[float, float]:
    """Seconds inside a slice or host, and beyond it, each the best that a ring can do.

    Beyond, each device exchanges only its own part: what is left after the exchange inside.
    """
    inside = max(1, min(collective.size, joined // collective.stride))
    beyond = collective.size / inside
    share = collective.count * collective.bytes / inside * (beyond - 1) / beyond
    return (collective.wire_bytes(inside) / _ring_bandwidth(chip, inside, joined),
            share * (2 if collective.kind == "all-reduce" else 1) / chip.network_bandwidth)


def _ring_bandwidth(chip: Chip, size: int, joined: int) -> float:
    """B/s out of a chip for rings of `size` chips: both directions of as many axes of the torus as they span."""
    if chip.platform == "gpu" or size == 1:
        return chip.link_bandwidth
    axes = min(chip.link_axes, max(1, round(chip.link_axes * math.log(size) / math.log(joined))))
    closed = joined >= (64 if chip.link_axes == 3 else 256)  # smaller slices are meshes: their axes do not close to rings
    return chip.link_bandwidth * axes * (2 if closed else 1)
