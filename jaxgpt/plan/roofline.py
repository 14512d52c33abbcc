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
