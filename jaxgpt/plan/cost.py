"""What one device does in a step: products, attention, bytes moved in memory and over links. Counted, not compiled.

XLA's own cost analysis counts the body of a loop over layers once and a kernel not at all, so none of it is used here.
Dimension key in `model/transformer.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Iterable, Literal

from jaxgpt.core.sharding import AXES
from jaxgpt.model.transformer import Config
from jaxgpt.plan.mixture import exchanges, of_experts, room, spread

# Products of a layer that the backward pass computes again. XLA leaves out the last one, whose result nobody reads.
RECOMPUTED: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "full": frozenset({"q", "k", "v", "attention", "o", "up", "gate"}),
    "dots": frozenset(),
    "names": frozenset({"up", "gate"}),
    "offload": frozenset({"up", "gate"}),
}
_BACKWARD_ATTENTION = 2.5  # five products for the forward pass's two: Dao et al. 2022, "FlashAttention", appendix B.2


@dataclasses.dataclass(frozen=True)
class Matmul:
    """`count` products [m, k] x [k, n] on one device."""

    name: str
    m: float
    k: float
    n: float
    count: float
    bytes_per_value: int = 2

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n * self.count

    @property
    def traffic(self) -> float:
        """Bytes to and from memory: both factors read, the product written."""
        return self.bytes_per_value * self.count * (self.m * self.k + self.k * self.n + self.m * self.n)


@dataclasses.dataclass(frozen=True)
class Collective:
    """`count` exchanges among the devices of one mesh axis.

    Attributes:
      kind: "all-gather" (bytes: of the whole), "reduce-scatter" (of the whole), "all-reduce", or "all-to-all" (of what
        one device has).
      axis: of the mesh.
      size: devices along it.
      stride: devices between neighbours along it.
      bytes: of one exchange.
      count: a step.
      what: is exchanged.
    """

    kind: Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]
    axis: str
    size: int
    stride: int
    bytes: float
    count: float
    what: str

    def wire_bytes(self, size: int | None = None) -> float:
        """Bytes that leave each device over a ring of `size`: (n - 1) / n of the whole, twice for an all-reduce."""
        size = size or self.size
        return self.count * self.bytes * (size - 1) / size * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """One step on one device.

    Attributes:
      devices: how many take part.
      tokens: of the whole step, over all devices.
      model_flops: of the whole step: each weight and each causal pair of positions once, nothing recomputed.
      matmuls, collectives: see there.
      attention_flops: of scores and weighted sums, with what is recomputed and with half-masked blocks.
      head_dim: H, the depth of those products.
      traffic: (what, bytes) that memory moves outside of products.
    """

    devices: int
    tokens: int
    model_flops: float
    matmuls: tuple[Matmul, ...]
    attention_flops: float
    head_dim: int
    traffic: tuple[tuple[str, float], ...]
    collectives: tuple[Collective, ...]

    @property
    def flops(self) -> float:
        """Of one device, with what is recomputed."""
        return sum(matmul.flops for matmul in self.matmuls) + self.attention_flops

    @property
    def memory_bytes(self) -> float:
        """Moved by the memory of one device."""
        return sum(matmul.traffic for matmul in self.matmuls) + sum(size for _, size in self.traffic)


def positions_seen(config: Config, length: int, block: int = 0) -> float:
    """Σ over layers of the positions that a query sees on average.

        (T + b) / 2 where a layer sees everything,   w (1 - w / 2T) + b / 2 with a window w < T

    Args:
      length: T.
      block: b, the square blocks in which a kernel computes attention; 0 counts what utilisation is measured by.
    """
    windows = (min(config.windows[i % len(config.windows)] or length, length) for i in range(config.layers))
    return sum(window * (1 - window / (2 * length)) + min(block, length) / 2 for window in windows)


def train_cost(config: Config, *, batch: int, length: int, axes: dict[str, int], accumulate: int = 1,
               optimizer: str = "adamw", remat: str | Iterable[str] | None = None, block: int = 512,
               each_token: bool = False) -> Cost:
    """Counts one train step.

    Work is counted as even over all devices; where each holds a stretch of a causal sequence, the last has more of it.

    Args:
      config: the model; `config.dtype` is that of products, parameters are float32.
      batch: rows of the step over all devices and micro-batches.
      length: T.
      axes: devices on each mesh axis; those not named are 1.
      accumulate: micro-batches.
      optimizer: "adamw", "muon" or "sgd".
      remat: a policy of `RECOMPUTED`, or the names of the products that are computed again; the config's where None.
      block: of the attention kernel.
      each_token: whether the loss is more than a sum over tokens (as in reinforcement learning): logits that are made in
        chunks are then computed again in the backward pass.

    Raises:
      ValueError: the batch does not divide, or no such axis or policy.
    """
    axes = _all_axes(axes)
    rows = batch / (_row_devices(axes) * accumulate)
    if rows != int(rows):
        raise ValueError(f"batch={batch}: must divide by the {_row_devices(axes)} devices of data, fsdp and expert x "
                         f"accumulate {accumulate}")
    again = _recomputed(remat or config.remat) if isinstance(remat, str | None) else frozenset(remat)
    m, times = rows * length / axes["sequence"], config.layers * accumulate
    matmuls = []
    for name, k, n in layer_products(config, axes["tensor"]):
        rows_of_one, copies = spread(config, name, m, axes["expert"])
        one = functools.partial(Matmul, count=times * copies, bytes_per_value=_width(config))
        matmuls += [one(name, rows_of_one, k, n), one(name + " dx", rows_of_one, n, k),
                    one(name + " dw", k, rows_of_one, n)]
        matmuls += [one(name + " again", rows_of_one, k, n)] if name in again else []
    matmuls += _head(config, m, axes["tensor"], accumulate, each_token)
    matmuls += _newton_schulz(config, optimizer, math.prod(axes.values()))
    attention = 4.0 * m * config.heads * config.H / axes["tensor"] * positions_seen(config, length, block) * accumulate
    attention *= 1 + ("attention" in again) + _BACKWARD_ATTENTION
    return Cost(math.prod(axes.values()), batch * length, model_flops(config, length) * batch * length, tuple(matmuls),
                attention, config.H, tuple(_train_traffic(config, m, axes, accumulate, optimizer, again)),
                tuple(_train_collectives(config, m, rows * length, axes, accumulate, again)))


def decode_cost(config: Config, *, batch: int, context: int, axes: dict[str, int]) -> Cost:
    """Counts one decode step: a token for each row, its keys and values read from a cache of `context` positions.

    Parameters are read whole (gathered first where fsdp splits them), in the dtype of products.
    """
    axes = _all_axes(axes)
    tensor = axes["tensor"]
    m = math.ceil(batch / _row_devices(axes))
    matmuls = []
    for name, k, n in layer_products(config, tensor):
        rows, copies = spread(config, name, m, axes["expert"])
        read = min(copies, rows * copies)  # experts that nobody chose are not read
        matmuls.append(Matmul(name, rows * copies / read, k, n, config.layers * read, _width(config)))
    matmuls.append(Matmul("head", m, config.width, config.vocab_size / tensor, 1, _width(config)))
    seen = sum(min(config.windows[i % len(config.windows)] or context, context) for i in range(config.layers))
    heads = config.K / min(tensor, config.K)  # on one device; each of each row is one product with its queries
    group, here = config.heads / tensor / heads, seen / axes["sequence"]
    matmuls += [Matmul("scores", group, config.H, here, m * heads, _width(config)),
                Matmul("weighted sum", group, here, config.H, m * heads, _width(config))]
    collectives = []
    if axes["fsdp"] > 1:
        collectives.append(_collective("all-gather", "fsdp", axes, _width(config) * _layer_weights(
            config, tensor, _experts(config, axes)), config.layers, "parameters"))
    if tensor > 1:
        collectives.append(_collective("all-reduce", "tensor", axes, _width(config) * m * config.width,
                                       2 * config.layers + 1, "activations"))
    weights = config.layers * _layer_weights(config, 1, config.experts_per_token) + config.width * config.vocab_size
    pairs = 4.0 * config.heads * config.H * seen
    return Cost(math.prod(axes.values()), batch, batch * (2.0 * weights + pairs), tuple(matmuls), 0.0, config.H, (),
                tuple(collectives))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while it trains."""

    params: float
    grads: float
    optimizer: float
    activations: float

    @property
    def peak(self) -> float:
        return self.params + self.grads + self.optimizer + self.activations


def train_memory(config: Config, *, batch: int, length: int, axes: dict[str, int], accumulate: int = 1,
                 optimizer: str = "adamw", remat: str | None = None, moment_bytes: int = 4,
                 scores: bool = False) -> Memory:
    """Estimates what a train step holds at once, for hardware whose compiler is not here.

    Parameters, gradients and moments in float32 lie split over fsdp and tensor, those of experts over their axis too.
    Of each layer the backward pass needs its input, and what the policy does not compute again; on top come one layer
    in full, one layer's gathered weights, and the logits of one chunk, twice in float32.

    Args: as for `train_cost`; moment_bytes: of a value of the optimizer's moments; scores: whether attention holds the
      weights of all pairs of positions, [B, N, T, T], as no kernel does.
    """
    axes = _all_axes(axes)
    again, width, tensor = _recomputed(remat or config.remat), _width(config), axes["tensor"]
    params = 4.0 * _held(config, axes)
    moments = {"adamw": 2, "muon": 1, "sgd": 1}[optimizer] * moment_bytes / 4 * params
    m = batch * length / (_row_devices(axes) * accumulate * axes["sequence"])
    outputs = {name: n for name, _, n in layer_products(config, tensor) if name != "down"}  # the next layer's input
    outputs["attention"] = config.heads * config.H / tensor
    rows = room(config, axes["expert"])
    outputs |= {name: n * rows for name, n in outputs.items() if name in ("up", "gate")}
    # with norms, sums, and what activations make
    whole = width * m * (sum(outputs.values()) + 4 * config.width + rows * config.F / tensor)
    whole += width * m * 2 * rows * config.width if config.experts else 0.0  # tokens at experts, and what comes back
    saved = width * m * (config.width + sum(n for name, n in outputs.items() if name not in again))
    saved = whole if (remat or config.remat) == "none" else saved
    pairs = m * length * config.heads / tensor if scores else 0.0
    whole += 2 * 4.0 * pairs  # in float32, and their gradient
    saved += width * pairs if (remat or config.remat) == "none" else 0.0
    chunk = min(m / tensor, config.loss_chunk or m / tensor)
    head = (width + (4.0 if chunk < m / tensor else width)) * config.width * config.vocab_size  # with its gradient
    logits = 2 * 4.0 * chunk * config.vocab_size + head
    gathered = 2 * width * _layer_weights(config, tensor, _experts(config, axes)) if axes["fsdp"] > 1 else 0.0
    casts = width * _held(config, axes) if width < 4 else 0.0
    return Memory(params, params, moments, saved * config.layers + whole + max(logits, gathered) + casts)


def layer_products(config: Config, tensor: int = 1) -> list[tuple[str, float, float]]:
    """(name, k, n) of each weight matrix of a layer, as one of `tensor` devices holds it; of experts, those of one."""
    D, F, N, K, H = config.width, config.F, config.heads, config.K, config.H
    products = [("q", D, N * H / tensor), ("k", D, K * H / tensor), ("v", D, K * H / tensor), ("o", N * H / tensor, D),
                ("up", D, F / tensor), ("down", F / tensor, D)]
    products += [("gate", D, F / tensor)] if config.activation == "swiglu" else []
    return products + ([("router", D, config.experts)] if config.experts else [])


def model_flops(config: Config, length: int) -> float:
    """Floating-point operations to train on one token: what utilisation (MFU) is measured by.

        6 · (weights in products) + 12 · N · H · Σ_layers (positions seen on average)

    The same count as `transformer.flops_per_token`, without biases and scales.
    Source: Chowdhery et al. 2022, "PaLM", appendix B, with the half of the pairs that a causal model computes.
    """
    weights = config.layers * _layer_weights(config, 1, config.experts_per_token) + config.width * config.vocab_size
    return 6.0 * weights + 12.0 * config.heads * config.H * positions_seen(config, length)


# --- parts -----------------------------------------------------------------------------------------------------------

def _all_axes(axes):
    unknown = set(axes) - set(AXES)
    if unknown:
        raise ValueError(f"axes={axes}: no such axis as {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    return {axis: axes.get(axis, 1) for axis in AXES}


def _row_devices(axes):
    """Over how many devices rows are split: the axis of experts is one more for data."""
    return axes["data"] * axes["fsdp"] * axes["expert"]


def _recomputed(policy):
    if policy not in RECOMPUTED:
        raise ValueError(f"remat={policy}: no such policy; valid: {', '.join(RECOMPUTED)}")
    return RECOMPUTED[policy]


def _width(config):
    return 4 if config.dtype == "float32" else 2


def _experts(config, axes):
    """Of a layer, on one device."""
    return config.experts and config.experts / axes["expert"]


def _layer_weights(config, tensor, experts=None):
    """Of one layer with so many of its experts; all where None."""
    experts = config.experts if experts is None else experts
    return sum(k * n * (experts if of_experts(config, name) else 1)
               for name, k, n in layer_products(config, tensor))


def _weights(config, experts=None):
    """Of the whole model, biases and scales left out."""
    rows = config.vocab_size * (1 if config.tied else 2) + (config.context if config.position == "learned" else 0)
    return config.layers * _layer_weights(config, 1, experts) + rows * config.width


def _held(config, axes):
    """Weights on one device."""
    return _weights(config, _experts(config, axes)) / (axes["fsdp"] * axes["tensor"])


def _head(config, m, tensor, times, each_token):
    """The head, chunk by chunk; see `losses.summed_cross_entropy` and `losses.token_logprobs`."""
    again = each_token and config.loss_chunk is not None and m > config.loss_chunk
    D, V, width = config.width, config.vocab_size / tensor, _width(config)
    return [Matmul("head", m, D, V, times * (2 if again else 1), width), Matmul("head dx", m, V, D, times, width),
            Matmul("head dw", D, m, V, times, width)]


def _newton_schulz(config, optimizer, devices):
    """Muon's five iterations on each matrix of the layers, split over all devices: X Xᵀ, its square, and one with X."""
    if optimizer != "muon":
        return []
    matmuls = []
    for name, k, n in layer_products(config):
        short, long = sorted((k, n))
        times = 5 * config.layers * (config.experts if of_experts(config, name) else 1) / devices
        matmuls += [Matmul(f"{name} muon", short, long, short, 2 * times),
                    Matmul(f"{name} muon", short, short, short, times)]
    return matmuls


def _train_traffic(config, m, axes, accumulate, optimizer, again):
    """What elementwise operations read and write: norms, residual sums, rotary positions, activations, optimizer."""
    tensor, width, times = axes["tensor"], _width(config), config.layers * accumulate
    inner = (config.heads + 2 * config.K) * config.H / tensor
    wide = (3 if config.activation == "swiglu" else 2) * config.F / tensor
    if config.experts:
        wide = config.experts_per_token * (wide + 4 * config.width)  # to experts and back, read and written
    once = width * m * (8 * config.width + 2 * inner + wide)  # 8 D: two norms and two sums, each reading and writing
    yield "forward", once * times
    yield "backward", 2 * once * times
    yield "recomputed", once * times * (len(again) / 7)
    yield "logits", 4.0 * 4 * m * config.vocab_size / tensor * accumulate
    values = {"adamw": 7, "muon": 5, "sgd": 5}[optimizer]  # read p, g, moments; write p, moments
    yield "optimizer", 4.0 * values * _held(config, axes)
    yield "casts", (4.0 + width) * _held(config, axes) * accumulate


def _train_collectives(config, m, row_tokens, axes, accumulate, again):
    tensor, width, times = axes["tensor"], _width(config), config.layers * accumulate
    layer = width * _layer_weights(config, tensor, _experts(config, axes))
    table = width * config.vocab_size * config.width / tensor
    if axes["fsdp"] > 1:
        yield _collective("all-gather", "fsdp", axes, layer, 2 * times, "parameters of a layer")
        yield _collective("reduce-scatter", "fsdp", axes, layer, times, "gradients of a layer")
        yield _collective("all-gather", "fsdp", axes, table, 3 * accumulate, "embedding and head")
        yield _collective("reduce-scatter", "fsdp", axes, table, 2 * accumulate, "their gradients")
    for axis in ("data", "expert"):
        if axes[axis] > 1:
            shared = _weights(config, 0) / (axes["fsdp"] * tensor) if axis == "expert" else _held(config, axes)
            yield _collective("all-reduce", axis, axes, 4.0 * shared, accumulate, "gradients")
    if config.experts and axes["expert"] > 1:
        for kind, size, count, what in exchanges(config, width * m * config.width, axes["expert"], "up" in again):
            yield _collective(kind, "expert", axes, size, count * times, what)
    if tensor > 1:
        count = 4 * times + 2 * accumulate + ("o" in again) * times
        yield _collective("all-reduce", "tensor", axes, width * m * config.width, count, "activations")
    if axes["sequence"] > 1:
        keys = 2 * width * row_tokens * config.K * config.H / min(tensor, config.K)
        yield _collective("all-gather", "sequence", axes, keys, (2 + ("attention" in again)) * times, "keys and values")
        yield _collective("reduce-scatter", "sequence", axes, keys, times, "their gradients")


def _collective(kind, axis, axes, size, count, what):
    stride = math.prod(axes[other] for other in AXES[AXES.index(axis) + 1:])
    return Collective(kind, axis, axes[axis], stride, size, count, what)
