"""How long a step takes: products at the pace of their shape, memory, links, and what of each hides behind the rest.

    t_product = max(F / (e · peak), M / bandwidth) + α · min(F / (e · peak), M / bandwidth)        F operations, M bytes
    t_compute = Σ t_product + F_attention / (a · peak) + α · M_elementwise / bandwidth
    t_layers  = max(min(1, f · t / t_compute) · t, t - t_compute)          t: exchanges of parameters, layer by layer
    t_step    = (t_compute + t_layers + g · t_activations) · (1 + j · (√slices - 1)) + max(n · t', t' - t_compute)

F counts products padded to the chip's tiles. Seven constants: e and a, the paces of products and of attention; α, the
memory traffic that does not hide behind operations (above 1 where arrays move more often than counted); f, how soon the
exchange of parameters shows: the more there is of it, the less of it hides; g, what shows of the exchange of
activations; n, of that of gradients over the data axis (t'); j, what waiting for the slowest of many slices adds. On
TPU e and α belong to a kind of chip and the others to all; on GPU all but e are shared. They are fitted to published
step times (`published.py`); `python tests/benchmarks/fit_roofline.py` makes them and prints their errors.

Source: the form is that of Williams et al. 2009, "Roofline", with overlap that is not perfect.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxgpt.plan.cost import Collective, Cost
from jaxgpt.plan.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Constants:
    """e, α, a, f, g, n and j of the equations above."""

    product: float
    memory: float
    attention: float
    layers: float
    activations: float
    gradients: float
    waiting: float


# Made by: python tests/benchmarks/fit_roofline.py. TPUs are fitted on one half of their 62 published steps; on the 31
# left out the mean error of the step time is 2.9%, that of the best constant MFU of each chip 6.4%. With the halves
# exchanged (--reversed) it is 4.2% against 6.9%, with each model left out in turn (--models) 4.6% against 7.4%. GPUs
# are fitted on all of their 11 steps, of four programs that differ more than the chips do: with every second one left
# out, the error is 19%, no better than a constant's 16%.
CONSTANTS: dict[str, Constants] = {
    "v5e": Constants(1.0, 0.984, 0.269, 6.196, 0.402, 0.292, 0.025),
    "v5p": Constants(1.0, 2.306, 0.269, 6.196, 0.402, 0.292, 0.025),
    "v6e": Constants(0.729, 0.587, 0.269, 6.196, 0.402, 0.292, 0.025),
    "a100": Constants(0.801, 0.321, 0.223, 2.213, 0.5, 0.827, 0.002),
    "h100": Constants(0.574, 0.321, 0.223, 2.213, 0.5, 0.827, 0.002),
}

# from where a fit starts, how far a constant may lie from there before it costs (as a logarithm), and its largest value
_START = Constants(0.9, 1.0, 0.35, 1.0, 0.5, 0.5, 0.02)
_SPREAD = Constants(0.2, 0.7, 0.7, 0.7, 0.7, 1.0, 1.0)
_LARGEST = Constants(1.0, 4.0, 1.0, 8.0, 3.0, 4.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time of one step.

    Attributes:
      seconds: of the step.
      compute: seconds of products and attention at the chip's peak.
      memory: seconds of all memory traffic at full bandwidth, hidden or not.
      links: seconds of all exchanges inside a slice or host at full bandwidth, hidden or not.
      network: seconds of exchanges between slices or hosts, likewise.
      binding: which of the four is longest.
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


def step_time(cost: Cost, chip: Chip, *, slice_devices: int | None = None,
              constants: Constants | None = None) -> Estimate:
    """The time of a step by the equations above.

    Args:
      cost: from `cost.train_cost` or `cost.decode_cost`.
      chip: that it runs on.
      slice_devices: devices that links join, beyond them is the network; all on TPU and eight on GPU where None.
      constants: those fitted for the chip where None.
    """
    times = device_times(cost, chip, slice_devices)
    seconds = combine(times, constants or constants_of(chip))
    parts = {"compute": float(times.products.sum() + times.attention), "links": times.links, "network": times.network,
             "memory": float(times.product_memory.sum() + times.elementwise)}
    return Estimate(seconds, binding=max(parts, key=parts.__getitem__), tokens_per_second=cost.tokens / seconds,
                    mfu=cost.model_flops / (cost.devices * chip.bf16_flops * seconds), **parts)


def constants_of(chip: Chip) -> Constants:
    """The constants fitted for a chip; an H200 is an H100 with other memory."""
    return CONSTANTS["h100" if chip.name == "h200" else chip.name]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that each part of a step would take at the maker's figures.

    Attributes:
      products, product_memory: [products], padded operations at the peak, and traffic at full bandwidth.
      attention, elementwise: operations at the peak, traffic at full bandwidth.
      layers: exchanges over the fsdp axis.
      activations: over the tensor and sequence axes.
      gradients: over the data axis.
      links, network: the same three again, by where they run: inside a slice or host, or between.
      slices: or hosts, that wait for one another.
    """

    products: np.ndarray
    product_memory: np.ndarray
    attention: float
    elementwise: float
    layers: float
    activations: float
    gradients: float
    links: float
    network: float
    slices: int


_LANES = 128  # of a TPU's registers: attention with heads of 64 leaves half of each empty
_KIND = {"fsdp": "layers", "tensor": "activations", "sequence": "activations", "data": "gradients",
         "expert": "gradients"}


def device_times(cost: Cost, chip: Chip, slice_devices: int | None = None) -> Times:
    """Counts over the maker's figures: what `combine` weighs by the constants."""
    joined = min(cost.devices, slice_devices or (cost.devices if chip.platform == "tpu" else chip.chips_per_host))
    tile, peak = chip.tile, chip.bf16_flops
    # float32 products take TF32's half of the peak on GPU; on TPU their factors are rounded to bfloat16 by default
    slower = {4: 2.0 if chip.platform == "gpu" else 1.0, 2: 1.0}
    padded = [2.0 * m.count * slower[m.bytes_per_value] * _padded(m.m, 8) * _padded(m.k, tile) * _padded(m.n, tile)
              for m in cost.matmuls]
    lanes = _padded(cost.head_dim, _LANES) / cost.head_dim if chip.platform == "tpu" else 1.0
    spent = dict.fromkeys(("layers", "activations", "gradients", "links", "network"), 0.0)
    for collective in cost.collectives:
        links, network = _exchange(collective, chip, joined)
        to_experts = collective.axis == "expert" and collective.what != "gradients"
        spent["activations" if to_experts else _KIND[collective.axis]] += links + network
        spent["links"] += links
        spent["network"] += network
    return Times(np.array(padded) / peak, np.array([m.traffic for m in cost.matmuls]) / chip.hbm_bandwidth,
                 lanes * cost.attention_flops / peak, sum(size for _, size in cost.traffic) / chip.hbm_bandwidth,
                 slices=math.ceil(cost.devices / joined), **spent)


def combine(times: Times, constants: Constants) -> float:
    """Seconds of the step."""
    c = constants
    paced = times.products / c.product
    longer, shorter = np.maximum(paced, times.product_memory), np.minimum(paced, times.product_memory)
    compute = float((longer + c.memory * shorter).sum())
    compute += times.attention / c.attention + c.memory * times.elementwise
    layers = max(min(1.0, c.layers * times.layers / compute) * times.layers, times.layers - compute)
    gradients = max(c.gradients * times.gradients, times.gradients - compute)
    waiting = 1 + c.waiting * (math.sqrt(times.slices) - 1)
    return (compute + layers + c.activations * times.activations) * waiting + gradients


def fit(steps: dict[str, list[tuple[Times, float]]],
        own: tuple[str, ...] = ("product", "memory")) -> dict[str, Constants]:
    """Constants that bring planned steps near to published ones.

        minimise Σ ρ(log(planned / published)) + a little Σ (log(constant / start) / spread)²

    ρ is quadratic near 0 and linear beyond 0.02, so that one odd step does not pull all others. The second sum settles
    what no step decides.

    Args:
      steps: for each chip, (times, published seconds).
      own: names of the constants that each chip has for itself; the others are shared.

    Returns:
      For each chip its constants.
    """
    from scipy.optimize import least_squares  # only a fit needs it

    places = [(field.name, chip) for field in dataclasses.fields(Constants)
              for chip in (steps if field.name in own else [None])]
    start, spread, largest = (np.array([getattr(values, name) for name, _ in places])
                              for values in (_START, _SPREAD, _LARGEST))

    def constants(x):
        values = {chip: {name: math.exp(value) for (name, owner), value in zip(places, x) if owner in (None, chip)}
                  for chip in steps}
        return {chip: Constants(**value) for chip, value in values.items()}

    def residuals(x):
        found = constants(x)
        errors = [math.log(combine(times, found[chip]) / seconds) for chip in steps for times, seconds in steps[chip]]
        return np.concatenate([errors, 0.01 * (x - np.log(start)) / spread])

    found = least_squares(residuals, np.log(start), bounds=(np.full(len(start), -8.0), np.log(largest) + 1e-9),
                          loss="soft_l1", f_scale=0.02, max_nfev=200)
    return {chip: Constants(*(round(value, 3) for value in dataclasses.astuple(of_chip)))
            for chip, of_chip in constants(found.x).items()}


# --- parts -----------------------------------------------------------------------------------------------------------

def _padded(size, tile):
    return math.ceil(size / tile) * tile


def _exchange(collective: Collective, chip: Chip, joined: int) -> tuple[float, float]:
    """Seconds inside a slice or host, and beyond it, each the best that a ring can do.

    Beyond, each device exchanges only its own part: what is left after the exchange inside.
    """
    inside = max(1, min(collective.size, joined // collective.stride))
    beyond = collective.size / inside
    part = collective.count * collective.bytes / inside * (beyond - 1) / beyond
    return (collective.wire_bytes(inside) / _ring_bandwidth(chip, inside, joined),
            part * (2 if collective.kind == "all-reduce" else 1) / chip.network_bandwidth)


def _ring_bandwidth(chip: Chip, size: int, joined: int) -> float:
    """B/s out of a chip for rings of `size` chips: both directions of as many axes of the torus as they span."""
    if chip.platform == "gpu" or size == 1:
        return chip.link_bandwidth
    axes = min(chip.link_axes, max(1, round(chip.link_axes * math.log(size) / math.log(joined))))
    closed = joined >= (64 if chip.link_axes == 3 else 256)  # in smaller slices the axes do not close to rings
    return chip.link_bandwidth * axes * (2 if closed else 1)
