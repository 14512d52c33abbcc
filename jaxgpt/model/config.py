"""What a transformer is: its settings, in one frozen dataclass. Dimension key in `transformer.py`."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from jaxgpt.model.layers import rope_frequencies, yarn_frequencies


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches rotary wavelengths for a context longer than the one trained on; see
    `layers.rope_frequencies`.

    Attributes:
      factor: of the wavelengths that the original context holds less than `low` times.
      low, high: between so many turns within the original context, the stretch fades out.
      context: the original one.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def __post_init__(self):
        if not 1 <= self.factor < math.inf or not 0 < self.low < self.high < math.inf or self.context < 1:
            raise ValueError(f"rope_scaling={self}: factor and context are at least 1, and 0 < low < high")


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All rotary wavelengths are `factor` times as long: positions are interpolated (Chen et al. 2023)."""

    factor: float

    def __post_init__(self):
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"rope_scaling={self}: factor is at least 1")


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN's stretch of rotary wavelengths, as Qwen and DeepSeek have it; see `layers.yarn_frequencies`.

    Attributes:
      factor: of the wavelengths that the original context holds less than `slow` times.
      context: the original one.
      fast, slow: between so many turns within it, the stretch fades in.
      attention: of rotated queries and keys; 1 + 0.1 ln(factor) where None.
      whole: whether the stretch begins and ends at whole pairs.
    """

    factor: float
    context: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    whole: bool = True

    def __post_init__(self):
        if not 1 <= self.factor < math.inf or not 0 < self.slow < self.fast < math.inf or self.context < 1:
            raise ValueError(f"rope_scaling={self}: factor and context are at least 1, and 0 < slow < fast")
        if self.attention is not None and not 0 < self.attention < math.inf:
            raise ValueError(f"rope_scaling={self}: attention is a number above 0")

    @property
    def scale(self) -> float:
        return 1 + 0.1 * math.log(self.factor) if self.attention is None else self.attention


@dataclasses.dataclass(frozen=True)
class Config:
    """What a transformer is. The defaults are today's; `presets.py` has the families.

    Attributes:
      vocab_size: V, rows of the embedding.
      context: the longest sequence.
      layers, width, heads: L, D, N.
      kv_heads: K; as many as `heads` where None (Ainslie et al. 2023).
      head_dim: H; width / heads where None.
      mlp_width: F, of each expert where there are experts; 4 D where None.
      position: "rotary" (Su et al. 2021) or "learned".
      rope_theta, rope_scaling: base of the rotary wavelengths, and how they are stretched, or None.
      norm: "rmsnorm" or "layernorm", before each block and before the head.
      norm_scale, norm_eps: whether norms have a learned scale, and their ε.
      activation: "gelu" (exact), "gelu_tanh" (GPT-2's), "swiglu" or "relu2".
      bias: whether projections and layer norms have biases.
      qkv_bias: whether those of queries, keys and values have; as `bias` where None.
      tied: whether the head is the embedding, transposed.
      qk_norm, embed_norm: normalise queries and keys of each head (Dehghani et al. 2023), and the embedding.
      logit_soft_cap: c of c · tanh(logits / c), or None.
      windows: how far back each layer looks, repeated over the layers: (128, None) alternates; None looks at all.
      init_std: of the weights' normal distribution; None for 1 / √(rows of the matrix), and 1 for embeddings.
      zero_init_outputs: start each block as the identity (its last projection and an untied head at 0); otherwise those
        projections start at 1 / √(2L) of the others, as in GPT-2.
      dtype: of activations and products; parameters are float32.
      attention: the kernel of training: "auto" (by platform), "splash", "ring", "cudnn" or "xla"; see `attention.py`.
      kernels: of norms, GELU and the loss: "auto" takes ours on a GPU in 16 bits, where logits of the loss are then rounded to
        them too, see `kernels.py`; "xla" leaves them to the compiler.
      remat: what the forward pass keeps of each layer besides its input, from most to least: "none" (everything),
        "dots", "names", "offload" (as names, in the host's memory), "full" (nothing); see `remat.py`.
      unroll: how many layers one turn of the loop over layers holds; `layers` leaves no loop.
      experts: E, of each layer's mlp, of which a token goes to `experts_per_token`; None for one mlp; see `experts.py`.
      experts_per_token: k.
      norm_topk: whether the weights of a token's experts add up to 1.
      capacity_factor: an expert takes so many times its even share of a row, and tokens beyond pass it by; None takes
        all. Decoding with a cache always takes all.
      balance_loss, router_z_loss: weights of what training adds to the loss, a mean over layers and the tokens of a
        micro-batch: `experts.balance_loss` and `experts.router_z_loss`.
      loss_chunk: positions whose logits a device has in memory at once, for the loss; None for all.
    """

    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    position: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | LinearScaling | YarnScaling | None = None
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_scale: bool = True
    norm_eps: float = 1e-6
    activation: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = "swiglu"
    bias: bool = False
    qkv_bias: bool | None = None
    tied: bool = False
    qk_norm: bool = False
    embed_norm: bool = False
    logit_soft_cap: float | None = None
    windows: tuple[int | None, ...] = (None,)
    init_std: float | None = 0.02
    zero_init_outputs: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "splash", "ring", "cudnn", "xla"] = "auto"
    kernels: Literal["auto", "xla"] = "auto"
    remat: Literal["none", "full", "dots", "names", "offload"] = "none"
    unroll: int = 1
    loss_chunk: int | None = 1024
    experts: int | None = None
    experts_per_token: int = 2
    norm_topk: bool = True
    capacity_factor: float | None = None
    balance_loss: float = 0.01
    router_z_loss: float = 0.0

    def __post_init__(self):
        for name in ("vocab_size", "context", "layers", "width", "heads", "unroll", "kv_heads", "head_dim", "mlp_width",
                     "loss_chunk", "experts", "experts_per_token"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        for name in ("init_std", "logit_soft_cap", "rope_theta", "norm_eps", "capacity_factor"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: a number above 0")
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            raise ValueError(f"windows={self.windows}: at least one, each None or at least 1")
        if self.heads % self.K:
            raise ValueError(f"kv_heads={self.K}: must divide heads={self.heads}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"heads={self.heads}: must divide width={self.width}, or give head_dim")
        if self.position == "rotary" and self.H % 2:
            raise ValueError(f"head size {self.H}: rotary positions turn pairs, so it must be even")
        for name in ("balance_loss", "router_z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: a weight of 0 or more")
        if self.experts is None and self.capacity_factor is not None:
            raise ValueError(f"capacity_factor={self.capacity_factor}: only where there are experts, but experts=None")
        if self.experts is not None and self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token={self.experts_per_token}: at most experts={self.experts}")
        if self.experts is not None and self.bias:
            raise ValueError("bias=True: experts have none; set bias=False, and qkv_bias=True where attention has them")

    @property
    def K(self) -> int:
        return self.kv_heads or self.heads

    @property
    def H(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def F(self) -> int:
        return self.mlp_width or 4 * self.width


def rope(config: Config) -> tuple[np.ndarray | None, float]:
    """Frequencies of rotary positions where they are not those of θ, and what rotated queries and keys are scaled by."""
    H, theta, scaling = config.H, config.rope_theta, config.rope_scaling
    if scaling is None:
        return None, 1.0
    if isinstance(scaling, LinearScaling):
        return (theta ** (-np.arange(0, H, 2) / H) / scaling.factor).astype(np.float32), 1.0
    if isinstance(scaling, YarnScaling):
        return yarn_frequencies(H, theta=theta, factor=scaling.factor, fast=scaling.fast, slow=scaling.slow,
                                context=scaling.context, whole=scaling.whole), scaling.scale
    return rope_frequencies(H, theta=theta, **dataclasses.asdict(scaling)), 1.0
