"""Models by name, and the one dial: GPT-2, Llama, Qwen, Mistral, Mixtral, and `depth(d)`.

Every preset returns a plain `Config`; change it with `dataclasses.replace`.
"""

from __future__ import annotations

import dataclasses
import math

from jaxgpt.core.optim import Optim
from jaxgpt.model.config import RopeScaling
from jaxgpt.model.transformer import Config, count_params

# layers, heads, width
_GPT2 = {"124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280), "1558M": (48, 25, 1600)}

# layers, heads, kv_heads, width, mlp_width
_LLAMA2 = {"7B": (32, 32, 32, 4096, 11008), "13B": (40, 40, 40, 5120, 13824), "70B": (80, 64, 8, 8192, 28672)}

# the same, tied
_LLAMA3 = {"1B": (16, 32, 8, 2048, 8192, True), "3B": (28, 24, 8, 3072, 8192, True),
           "8B": (32, 32, 8, 4096, 14336, False), "70B": (80, 64, 8, 8192, 28672, False),
           "405B": (126, 128, 8, 16384, 53248, False)}

# the same, vocab_size, context, norm_eps
_QWEN2_5 = {"0.5B": (24, 14, 2, 896, 4864, True, 151936, 32768, 1e-6),
            "1.5B": (28, 12, 2, 1536, 8960, True, 151936, 32768, 1e-6),
            "3B": (36, 16, 2, 2048, 11008, True, 151936, 32768, 1e-6),
            "7B": (28, 28, 4, 3584, 18944, False, 152064, 131072, 1e-6),
            "14B": (48, 40, 8, 5120, 13824, False, 152064, 131072, 1e-5),
            "32B": (64, 40, 8, 5120, 27648, False, 152064, 131072, 1e-5),
            "72B": (80, 64, 8, 8192, 29568, False, 152064, 131072, 1e-5)}

# layers, heads, kv_heads, width, mlp_width, tied
_QWEN3 = {"0.6B": (28, 16, 8, 1024, 3072, True), "1.7B": (28, 16, 8, 2048, 6144, True),
          "4B": (36, 32, 8, 2560, 9728, True), "8B": (36, 32, 8, 4096, 12288, False),
          "14B": (40, 40, 8, 5120, 17408, False), "32B": (64, 64, 8, 5120, 25600, False)}

# layers, heads, kv_heads, width, mlp_width of an expert, vocab_size, context, balance_loss
_MIXTRAL = {"8x7B": (32, 32, 8, 4096, 14336, 32000, 32768, 0.02),
            "8x22B": (56, 48, 8, 6144, 16384, 32000, 65536, 0.001)}

# layers, heads, kv_heads, width, mlp_width of an expert
_QWEN3_MOE = {"30B-A3B": (48, 32, 4, 2048, 768), "235B-A22B": (94, 64, 4, 4096, 1536)}


def gpt2(size: str = "124M", *, vocab_size: int = 50257, context: int = 1024) -> Config:
    """GPT-2. Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2.

    Args:
      size: "124M", "355M", "774M" or "1558M".
      vocab_size: 50257; 50304 is quicker on accelerators.
      context: T at most.

    Raises:
      ValueError: no such size.
    """
    layers, heads, width = _lookup(_GPT2, size, "gpt2")
    return Config(vocab_size=vocab_size, context=context, layers=layers, width=width, heads=heads, position="learned",
                  norm="layernorm", norm_eps=1e-5, activation="gelu_tanh", bias=True, tied=True)


def llama3(size: str = "8B", *, vocab_size: int = 128256, context: int = 8192) -> Config:
    """Llama 3. Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", table 3; 1B and 3B are those of 3.2.

    Args:
      size: "1B", "3B", "8B", "70B" or "405B".
      vocab_size: 128256.
      context: T at most; beyond 8192 see `llama3_1` and `llama3_2`.

    Raises:
      ValueError: no such size.
    """
    *shape, tied = _lookup(_LLAMA3, size, "llama3")
    return _llama(shape, vocab_size=vocab_size, context=context, rope_theta=500_000.0, norm_eps=1e-5, tied=tied)


def llama3_1(size: str = "8B") -> Config:
    """Llama 3.1 and, at 70B, Llama 3.3: Llama 3 with wavelengths stretched 8 times for a context of 131,072.

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", table 3; the configurations published in 2024.

    Args:
      size: "8B", "70B" or "405B".

    Raises:
      ValueError: no such size.
    """
    _lookup(dict.fromkeys(("8B", "70B", "405B")), size, "llama3_1")
    return dataclasses.replace(llama3(size, context=131_072), rope_scaling=RopeScaling(factor=8.0))


def llama3_2(size: str = "1B") -> Config:
    """Llama 3.2: the head is the embedding, wavelengths are stretched 32 times for a context of 131,072.

    Source: the configurations published in 2024.

    Args:
      size: "1B" or "3B".

    Raises:
      ValueError: no such size.
    """
    _lookup(dict.fromkeys(("1B", "3B")), size, "llama3_2")
    return dataclasses.replace(llama3(size, context=131_072), rope_scaling=RopeScaling(factor=32.0))


def llama3_3(size: str = "70B") -> Config:
    """Llama 3.3: the shape of Llama 3.1 70B, trained further. Source: the configuration published in 2024.

    Args:
      size: "70B".

    Raises:
      ValueError: no such size.
    """
    _lookup(dict.fromkeys(("70B",)), size, "llama3_3")
    return llama3_1(size)


def llama2(size: str = "7B") -> Config:
    """Llama 2. Source: Touvron et al. 2023, "Llama 2", table 1 and the configurations published with it.

    Args:
      size: "7B", "13B" or "70B".

    Raises:
      ValueError: no such size.
    """
    return _llama(_lookup(_LLAMA2, size, "llama2"), vocab_size=32000, context=4096, norm_eps=1e-5)


def mistral(size: str = "7B") -> Config:
    """Mistral 7B v0.1: every layer sees 4,096 positions back. Source: Jiang et al. 2023, "Mistral 7B", table 1.

    Args:
      size: "7B".

    Raises:
      ValueError: no such size.
    """
    shape = _lookup({"7B": (32, 32, 8, 4096, 14336)}, size, "mistral")
    return _llama(shape, vocab_size=32000, context=32768, norm_eps=1e-5, windows=(4096,))


def qwen2_5(size: str = "0.5B") -> Config:
    """Qwen 2.5: queries, keys and values have biases. Source: Qwen Team 2024, "Qwen2.5 Technical Report", table 1, and
    the configurations published with it.

    Args:
      size: "0.5B", "1.5B", "3B", "7B", "14B", "32B" or "72B".

    Raises:
      ValueError: no such size.
    """
    *shape, tied, vocab_size, context, norm_eps = _lookup(_QWEN2_5, size, "qwen2_5")
    return _llama(shape, vocab_size=vocab_size, context=context, rope_theta=1e6, norm_eps=norm_eps, tied=tied,
                  qkv_bias=True)


def qwen3(size: str = "0.6B") -> Config:
    """Qwen 3, dense: heads of 128 whatever the width, queries and keys normalised in each. Source: Qwen Team 2025,
    "Qwen3 Technical Report", table 1, and the configurations published with it.

    Args:
      size: "0.6B", "1.7B", "4B", "8B", "14B" or "32B".

    Raises:
      ValueError: no such size.
    """
    *shape, tied = _lookup(_QWEN3, size, "qwen3")
    return _llama(shape, vocab_size=151936, context=40960, rope_theta=1e6, norm_eps=1e-6, tied=tied, head_dim=128,
                  qk_norm=True)


def mixtral(size: str = "8x7B") -> Config:
    """Mixtral: of 8 experts in each layer a token goes to 2. Source: Jiang et al. 2024, "Mixtral of Experts", table 1,
    and the configurations published with it and with 8x22B.

    Args:
      size: "8x7B" or "8x22B".

    Raises:
      ValueError: no such size.
    """
    *shape, vocab_size, context, balance = _lookup(_MIXTRAL, size, "mixtral")
    return _llama(shape, vocab_size=vocab_size, context=context, rope_theta=1e6, norm_eps=1e-5, experts=8,
                  experts_per_token=2, balance_loss=balance)


def qwen3_moe(size: str = "30B-A3B") -> Config:
    """Qwen 3, mixtures: of 128 experts in each layer a token goes to 8. Source: Qwen Team 2025, "Qwen3 Technical
    Report", table 2, and the configurations published with it.

    Args:
      size: "30B-A3B" or "235B-A22B".

    Raises:
      ValueError: no such size.
    """
    return _llama(_lookup(_QWEN3_MOE, size, "qwen3_moe"), vocab_size=151936, context=40960, rope_theta=1e6,
                  norm_eps=1e-6, head_dim=128, qk_norm=True, experts=128, experts_per_token=8, balance_loss=0.001)


def _llama(shape, **settings) -> Config:
    """What Llama, Qwen and Mistral share; shape: layers, heads, kv_heads, width, mlp_width."""
    layers, heads, kv_heads, width, mlp_width = shape
    return Config(layers=layers, width=width, heads=heads, kv_heads=kv_heads, mlp_width=mlp_width, position="rotary",
                  norm="rmsnorm", activation="swiglu", dtype="bfloat16", **settings)


def _lookup(table: dict, size: str, name: str):
    if size not in table:
        raise ValueError(f"{name}({size!r}): no such size; valid: {', '.join(table)}")
    return table[size]


@dataclasses.dataclass(frozen=True)
class Size:
    """What `depth` chooses: the model, the optimizer, rows in a batch, and the token budget."""

    model: Config
    optim: Optim
    batch: int
    tokens: int


def depth(layers: int, *, vocab_size: int, context: int = 1024, width_per_layer: int = 64,
          tokens_per_param: float = 10.0) -> Size:
    """The one dial: everything that should grow with a model follows from its number of layers.

        D = width_per_layer · L,   H = 64 (32 below a width of 256),   batch ∝ tokens^0.65,   lr ∝ (D / 768)^(-1/2)

    Tokens follow from parameters (Hoffmann et al. 2022: 10 to 20 a parameter, less on a laptop). The batch follows from
    the tokens by the line through two runs: 2,048 tokens for 1.6M in all, half a million for 8.4B. The learning rate of
    embedding and head follows from the width; Muon's does not change.

    Args:
      layers: L, the dial. 2 to 4 train on a laptop, 20 is of GPT-2's class.
      vocab_size: V.
      context: T.
      width_per_layer: D / L.
      tokens_per_param: tokens for each weight of layers and head.
    """
    head_dim = 64 if layers * width_per_layer >= 256 else 32
    width = math.ceil(layers * width_per_layer / head_dim) * head_dim
    model = Config(vocab_size=vocab_size, context=context, layers=layers, width=width, heads=width // head_dim,
                   position="rotary", norm="rmsnorm", norm_scale=False, activation="relu2", qk_norm=True,
                   embed_norm=True, logit_soft_cap=15.0, zero_init_outputs=True)
    tokens = int(tokens_per_param * (count_params(model) - vocab_size * width))
    batch_tokens = 2 ** 19 * (tokens / 8.4e9) ** 0.65
    batch = max(8, 2 ** round(math.log2(batch_tokens / context)))  # rows
    optim = Optim(kind="muon", lr=0.02, adam_lr=0.008 * (width / 768) ** -0.5 if width > 256 else 0.01,
                  schedule="wsd", decay_fraction=0.6, final_fraction=0.05, beta1=0.9, beta2=0.95, clip_norm=1.0)
    return Size(model=model, optim=optim, batch=batch, tokens=tokens)


def on_cpu(config: Config) -> Config:
    """The same model as a CPU runs it best: no loop over layers."""
    return dataclasses.replace(config, unroll=config.layers)


def on_gpu(config: Config, *, loss_chunk: int = 8192) -> Config:
    """The same model as a GPU with room for it runs it best: products in bfloat16, no loop over layers, all kept.

    Args:
      config: of any preset.
      loss_chunk: positions whose logits a device has in memory at once.
    """
    return dataclasses.replace(config, dtype="bfloat16", remat="none", unroll=config.layers, loss_chunk=loss_chunk)


def on_tpu(config: Config, *, remat: str = "names", loss_chunk: int = 1024) -> Config:
    """The same model as a TPU runs it best: products in bfloat16, one compiled layer for all, little kept.

    Args:
      config: of any preset.
      remat: what the forward pass keeps, as in `Config`; `jaxgpt plan --sweep` tells which is best.
      loss_chunk: positions whose logits a device has in memory at once.
    """
    return dataclasses.replace(config, dtype="bfloat16", remat=remat, unroll=1, loss_chunk=loss_chunk)
