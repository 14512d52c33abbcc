"""A model as llama2.c plays it: one file of float32 weights in the order in which its `run` maps them.

The format has room for seven numbers and no more; `run` takes the rest for granted, and `refusals` compares it with
every setting of a model. Source: Karpathy 2023, llama2.c, run.c (the format that it calls v0).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.core.files import check_space
from jaxgpt.model.config import Config
from jaxgpt.model.hf_names import path_name

# What `run` takes for granted, by the setting of ours.
ONLY = {"position": "rotary", "rope_theta": 10_000.0, "rope_scaling": None, "norm": "rmsnorm", "norm_scale": True,
        "norm_eps": 1e-5, "activation": "swiglu", "bias": False, "qk_norm": False, "embed_norm": False,
        "logit_soft_cap": None, "experts": None}
# What the header says, and settings that say nothing about what a trained model without experts computes.
SAID = ("vocab_size", "context", "layers", "width", "heads", "kv_heads", "mlp_width", "tied")
SILENT = ("init_std", "zero_init_outputs", "dtype", "attention", "kernels", "remat", "unroll", "loss_chunk",
          "experts_per_token", "norm_topk", "capacity_factor", "balance_loss", "router_z_loss")
# Compared by what they come to: `qkv_bias` may be None, `windows` repeat, and `head_dim` is width / heads.
DERIVED = ("qkv_bias", "windows", "head_dim")


def refusals(config: Config) -> list[str]:
    """The settings of a model that llama2.c cannot say, a clause each; none where it can play the model."""
    wrong = [f"{name} should be {value}, but is {getattr(config, name)}"
             for name, value in ONLY.items() if getattr(config, name) != value]
    if config.qkv_bias:
        wrong.append("qkv_bias should be False, but is True")
    if set(config.windows[:config.layers]) != {None}:
        wrong.append(f"windows should be None, but are {config.windows}")
    if config.H * config.heads != config.width:
        wrong.append(f"head_dim should be {config.width}/{config.heads}, width over heads, but is {config.H}")
    return wrong


def write_model(params: Any, config: Config, path: str | Path, *, rows: np.ndarray) -> None:
    """Writes a model.bin.

    Args:
      params, config: of a model that has no `refusals`.
      path: of the file.
      rows: int [V], the token of ours that is number i there; see `tokenizer.llama2c`.

    Raises:
      UserError: the disk is full.
    """
    header = (config.width, config.F, config.layers, config.heads, config.K,
              config.vocab_size if config.tied else -config.vocab_size, config.context)
    check_space(path, 4 * sum(leaf.size for leaf in jax.tree.leaves(params)))
    with open(path, "wb") as file:
        file.write(np.array(header, "<i4").tobytes())
        for array in _arrays(params, config, rows):
            file.write(np.ascontiguousarray(array, "<f4").tobytes())


def _arrays(params: Any, config: Config, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The weights in their order there, matrices as [out, in]."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def layers(name: str, heads: int | None = None) -> Iterator[np.ndarray]:
        for layer in range(config.layers):
            array = np.asarray(leaves[f"layers/{name}"][layer], np.float32).T
            yield array if heads is None else _interleaved(array, heads)

    yield np.asarray(leaves["embed"], np.float32)[rows]
    yield from layers("attention_norm/scale")
    yield from layers("attention/q/weight", config.heads)
    yield from layers("attention/k/weight", config.K)
    yield from layers("attention/v/weight")
    yield from layers("attention/o/weight")
    yield from layers("mlp_norm/scale")
    yield from layers("mlp/gate/weight")
    yield from layers("mlp/down/weight")
    yield from layers("mlp/up/weight")
    yield np.asarray(leaves["final_norm/scale"], np.float32)
    yield np.zeros(config.context * config.H, np.float32)  # once tables of sines; `run` skips them
    if not config.tied:
        yield np.asarray(leaves["head"], np.float32).T[rows]


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as `run` rotates them: its pairs are neighbours, and ours lie half a head apart."""
    outputs, inputs = weight.shape
    return weight.reshape(heads, 2, outputs // heads // 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)
