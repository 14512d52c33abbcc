"""Step times that others have published, with what is needed to plan the same step.

Left out: runs in int8 or fp8, mixtures of experts, and runs whose layout or rematerialisation is not published with
them. Where one source gives two times for one recipe, the newer counts. TFLOP/s in MaxText's older tables count every
pair of positions, not the causal half, and are turned into seconds with that count. Memory offloaded to the host is not
modelled: what is offloaded counts as kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from jaxgpt.model import presets
from jaxgpt.model.transformer import Config
from jaxgpt.plan import cost
from jaxgpt.plan.hardware import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Point:
    """One published step.

    Attributes:
      name: model and hardware.
      source: where it was published.
      chip_name: of `hardware.CHIPS`.
      slice_devices: chips in one slice; more slices are joined by the network. On GPU, the GPUs of a host.
      slices: how many.
      model: what was trained.
      length: T.
      rows: for each device, over all micro-batches.
      axes: devices on each mesh axis.
      recompute: names of the products that the backward pass computed again.
      seconds: of a step, as published or by `_from_tflops`.
      accumulate: micro-batches.
      network: B/s of each device where the machine's differs from the chip's usual one.
    """

    name: str
    source: str
    chip_name: str
    slice_devices: int
    slices: int
    model: Config
    length: int
    rows: float
    axes: tuple[tuple[str, int], ...]
    recompute: tuple[str, ...]
    seconds: float
    accumulate: int = 1
    network: float | None = None

    @property
    def devices(self) -> int:
        return self.slice_devices * self.slices

    @property
    def chip(self) -> Chip:
        chip = CHIPS[self.chip_name]
        return dataclasses.replace(chip, network_bandwidth=self.network) if self.network else chip

    @functools.cached_property
    def cost(self) -> cost.Cost:
        """What each device does in it."""
        return cost.train_cost(self.model, batch=round(self.rows * self.devices), length=self.length,
                               axes=dict(self.axes), accumulate=self.accumulate, remat=self.recompute)

    @property
    def mfu(self) -> float:
        """Causal model FLOPs over the peak, whatever the source counted."""
        return self.cost.model_flops / (self.devices * self.chip.bf16_flops * self.seconds)


# what each policy computes again
_FULL = ("q", "k", "v", "attention", "o", "up", "gate")
_DOTS = ("attention",)  # MaxText "minimal", AXLearn dots_saveable
_QKV = ("attention", "o", "up", "gate")  # keeps queries, keys and values
_PROJECTIONS = ("attention", "up", "gate")  # keeps what goes into and out of attention
_NONE = ()


def _llama(layers, width, heads, kv_heads, mlp_width, vocab_size, **options) -> Config:
    return Config(vocab_size=vocab_size, context=8192, layers=layers, width=width, heads=heads, kv_heads=kv_heads,
                  mlp_width=mlp_width, dtype="bfloat16", loss_chunk=None, **options)


def _maxtext(billions: int) -> Config:
    """MaxText's model of `global_parameter_scale=billions`: heads and mlp, then width, then layers double, in turn."""
    thirds, rest = divmod(int(math.log2(billions)), 3)
    return _llama(16 * 2 ** thirds, 2048 * 2 ** (thirds + (rest > 1)), 16 * 2 ** (thirds + (rest > 0)), None,
                  7168 * 2 ** (thirds + (rest > 0)), 32000, head_dim=128)


_LLAMA2_7B = _llama(32, 4096, 32, None, 11008, 32000)
_LLAMA2_70B = _llama(80, 8192, 64, 8, 28672, 32000)
_LLAMA3 = {size: dataclasses.replace(presets.llama3(size), loss_chunk=None) for size in ("8B", "70B", "405B")}
_MISTRAL_7B = _llama(32, 4096, 32, 8, 14336, 32000)
_FUJI_7B = _llama(32, 4096, 32, None, 11008, 32768, tied=True)
_FUJI_70B = _llama(80, 8192, 64, 8, 28672, 32768)
_GPT3_175B = Config(vocab_size=50304, context=2048, layers=96, width=12288, heads=96, position="learned",
                    norm="layernorm", activation="gelu_tanh", bias=True, tied=True, dtype="bfloat16", loss_chunk=None)


def _gpt2(size):
    return dataclasses.replace(presets.gpt2(size, vocab_size=50304), dtype="bfloat16", loss_chunk=None)


def _from_tflops(model: Config, length: int, rows: float, tflops: float) -> float:
    """Seconds of a step from TFLOP/s a device that count all pairs of positions, not the causal half."""
    causal = cost.model_flops(model, length)
    all_pairs = causal + 12 * model.heads * model.H * model.layers * length / 2
    return rows * length * all_pairs / (tflops * 1e12)


def _v5e_maxtext():
    source = "MaxText, configs/tpu/v5e/README.md and the scripts beside it"
    table = {16: (61.10, 59.37, 59.14, 58.27, 56.56, 54.65), 32: (66.86, 64.81, 64.10, 63.67, 62.26, 60.40),
             64: (59.90, 56.66, 55.85, 54.96, 53.29, 50.18), 128: (56.06, 55.82, 54.93, 52.93, 50.86, 46.25)}
    rows = {16: 6, 32: 4, 64: 2, 128: 1}
    for size, column in table.items():
        for slices, mfu in zip((1, 2, 4, 8, 16, 32), column):
            axes = {"data": slices, "fsdp": 16, "tensor": 16} if size == 128 else {"data": slices, "fsdp": 256}
            model = _maxtext(size)
            yield Point(f"{size}B, {slices} x v5e-256", source, "v5e", 256, slices, model, 2048, rows[size],
                        tuple(axes.items()), _QKV if size == 128 else _FULL,
                        _from_tflops(model, 2048, rows[size], mfu / 100 * 197))


def _v5p_maxtext():
    source = "MaxText, configs/tpu/v5p/README.md and the scripts beside it"
    # billions, chips, (MFU on one slice, on two), rows, tensor axis, recomputed
    table = ((32, 64, (71.47, 69.43), 6, 4, _DOTS), (64, 64, (70.31, 67.26), 3, 4, _DOTS),
             (128, 128, (68.68, 66.34), 1, 8, _DOTS), (128, 256, (68.83, 59.66), 1, 8, _DOTS),
             (256, 512, (67.09, 62.99), 1, 8, _DOTS), (512, 512, (63.99, 61.45), 2, 8, _FULL),
             (1024, 1024, (55.35, 51.55), 2, 16, _FULL), (1024, 2048, (64.80, 60.83), 2, 16, _FULL))
    for size, chips, column, rows, tensor, recompute in table:
        for slices, mfu in zip((1, 2), column):
            model = _maxtext(size)
            yield Point(f"{size}B, {slices} x v5p-{2 * chips}", source, "v5p", chips, slices, model, 2048, rows,
                        (("data", slices), ("fsdp", chips // tensor), ("tensor", tensor)), recompute,
                        _from_tflops(model, 2048, rows, mfu / 100 * 459))


def _v6e_maxtext():
    source = "tpu-recipes, training/trillium/"
    for chips, rows, seconds in ((8, 3, 3.443), (16, 3, 3.393), (32, 3, 3.495), (64, 5, 5.652), (128, 4, 4.602),
                                 (256, 4, 4.546)):
        yield Point(f"Llama-3.1-8B, v6e-{chips}", source + "Llama3.1-8B-MaxText", "v6e", chips, 1, _LLAMA3["8B"], 8192,
                    rows, (("fsdp", chips),), _PROJECTIONS, seconds)
    for chips, rows, seconds in ((32, 2, 17.790), (64, 2, 18.688), (128, 4, 34.786), (256, 5, 42.656)):
        yield Point(f"Llama-3.1-70B, v6e-{chips}", source + "Llama3.1-70B-MaxText", "v6e", chips, 1, _LLAMA3["70B"],
                    8192, rows, (("fsdp", chips),), _QKV, seconds)
    yield Point("Llama-3.1-405B, 2 x v6e-256", source + "Llama3.1-405B-MaxText", "v6e", 256, 2, _LLAMA3["405B"], 8192,
                1, (("fsdp", 512),), _FULL, 54.803)
    yield Point("Llama-2-70B, v6e-256", source + "Llama2-70B-MaxText", "v6e", 256, 1, _LLAMA2_70B, 4096, 2,
                (("fsdp", 256),), _QKV, 9.052)
    yield Point("GPT-3 175B, v6e-256", source + "GPT3-175B-MaxText/bf16", "v6e", 256, 1, _GPT3_175B, 2048, 3,
                (("fsdp", 256),), _FULL, 17.182)
    yield Point("Mistral-7B, v6e-8", source + "Mistral-7B-MaxText", "v6e", 8, 1, _MISTRAL_7B, 8192, 6,
                (("fsdp", 8),), _PROJECTIONS, 6.320)


def _others():
    tiers, fuji = "MaxText, docs/reference/models/tiering.md", "AXLearn, experiments/text/gpt/fuji.py"
    paper = "AXLearn, arXiv:2507.05411, table of iteration times"
    # the page says 512 chips, its recipe v5p-512, which has 256; the planned time is the same within 0.1%
    yield Point("Llama-2-70B, v5p-512", tiers, "v5p", 256, 1, _LLAMA2_70B, 4096, 4, (("fsdp", 256),),
                ("attention", "up", "gate"), 4 * 4096 / 692)
    yield Point("Llama-3.1-405B, v5p-1024", "tpu-recipes, training/v5p/Llama3.1-405B-MaxText", "v5p", 512, 1,
                _LLAMA3["405B"], 8192, 2, (("fsdp", 512),), ("q", "k", "v", "o", "up", "gate"), 131.474)
    yield Point("Fuji-7B, v5p-512", paper, "v5p", 256, 1, _FUJI_7B, 4096, 4, (("data", 4), ("fsdp", 64)), _NONE, 2.5)
    yield Point("Fuji-70B, v5p-1024", paper, "v5p", 512, 1, _FUJI_70B, 4096, 2, (("fsdp", 512),), _QKV, 11.6)
    pods = (("data", 4), ("fsdp", 256))
    yield Point("Fuji-7B, 4 x v5e-256", fuji, "v5e", 256, 4, _FUJI_7B, 4096, 1, pods, _DOTS, 2.21)
    yield Point("Fuji-70B, 4 x v5e-256", fuji, "v5e", 256, 4, _FUJI_70B, 4096, 1, pods, _DOTS, 14.3736)
    yield Point("Fuji-70B, v6e-256", fuji, "v6e", 256, 1, _FUJI_70B, 4096, 4, (("fsdp", 256),), _PROJECTIONS, 19.5, 4)
    yield Point("Fuji-70B, 4 x v6e-256", fuji, "v6e", 256, 4, _FUJI_70B, 4096, 1, pods, _QKV, 4.9)


def _gpu():
    maxtext, titan = "MaxText, configs/gpu/a3/llama_2_7b/", "torchtitan, docs/performance.md"
    paper = "AXLearn, arXiv:2507.05411, table of iteration times"
    for hosts, tflops in ((1, 492), (2, 422), (4, 407), (8, 409), (16, 375)):
        # a3-highgpu: 800 Gbit/s for the eight GPUs of a host
        yield Point(f"Llama-2-7B, h100-{8 * hosts}", maxtext, "h100", 8, hosts, _LLAMA2_7B, 4096, 4,
                    (("data", hosts), ("fsdp", 8)), _NONE, _from_tflops(_LLAMA2_7B, 4096, 4, tflops), network=12.5e9)
    yield Point("Fuji-7B, h100-256", paper, "h100", 8, 32, _FUJI_7B, 4096, 4, (("data", 32), ("fsdp", 8)),
                _PROJECTIONS, 1.4)
    yield Point("Fuji-70B, h100-512", paper, "h100", 8, 64, _FUJI_70B, 4096, 2, (("data", 4), ("fsdp", 128)),
                _PROJECTIONS, 9.2)
    yield Point("GPT-2 124M, h100-8", "llm.c, scripts/run_gpt2_124M.sh; modded-nanogpt, its first record", "h100", 8, 1,
                _gpt2("124M"), 1024, 64, (("data", 8),), _NONE, 0.140)
    yield Point("GPT-2 124M, a100-8", "llm.c, discussion 481", "a100", 8, 1, _gpt2("124M"), 1024, 64, (("data", 8),),
                _NONE, 0.300)
    yield Point("Llama-3-8B, a100-64", titan, "a100", 8, 8, _LLAMA3["8B"], 8192, 1, (("fsdp", 64),), ("o", "up"),
                8192 / 2973)
    yield Point("Llama-3-70B, a100-64", titan, "a100", 8, 8, _LLAMA3["70B"], 8192, 1, (("fsdp", 64),), _FULL,
                8192 / 331)


POINTS: tuple[Point, ...] = (*_v5e_maxtext(), *_v5p_maxtext(), *_v6e_maxtext(), *_others(), *_gpu())


def families() -> dict[str, tuple[Point, ...]]:
    """The points of each kind of chip, GPUs together, in the order of the split: model FLOPs a token, devices, name."""
    kinds: dict[str, list[Point]] = {}
    for point in POINTS:
        kinds.setdefault("gpu" if point.chip.platform == "gpu" else point.chip_name, []).append(point)
    return {kind: tuple(sorted(points, key=lambda point: (cost.model_flops(point.model, point.length), point.devices,
                                                          point.name))) for kind, points in kinds.items()}


def split(points: tuple[Point, ...]) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """(fitted, left out): every second point of the sorted ones is left out, the second, the fourth and so on.

    The rule was set down before anything was fitted.
    """
    return points[::2], points[1::2]
