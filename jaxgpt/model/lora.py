"""Low-rank adapters: a model is finetuned by two thin matrices beside each projection, and the projections stay.

    y = x W + (α / r) (x A) B,   A: [rows, r],  B: [r, columns]

B starts at zero, so that the model starts as it was. An adapter is a tree of its own, {projection: {"a", "b"}}, stacked
over layers as the model's parameters are; only it has gradients and an optimizer state.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.core.errors import UserError
from jaxgpt.model import transformer
from jaxgpt.model.config import Config

PLACES = {"q": "attention", "k": "attention", "v": "attention", "o": "attention", "gate": "mlp", "up": "mlp",
          "down": "mlp"}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections have adapters, and of what rank.

    Attributes:
      rank: r.
      alpha: α.
      projections: of q, k, v, o, gate, up and down; all that the model has where None.
    """

    rank: int = 16
    alpha: float = 32.0
    projections: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha}: a number above 0")
        for name in self.projections or ():
            if name not in PLACES:
                raise ValueError(f"projections: there is no {name!r}; there are {', '.join(PLACES)}")
        if self.projections is not None and (not self.projections or len(set(self.projections)) < len(self.projections)):
            raise ValueError(f"projections={self.projections}: at least one, each once; None for all")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def projections(config: Config, lora: Lora) -> tuple[str, ...]:
    """The projections of a model that have adapters.

    Raises:
      UserError: the model does not have one that is asked for, or it is one of its experts'.
    """
    there = [name for name in PLACES if name != "gate" or config.activation == "swiglu"]
    if config.experts is not None:
        there = [name for name in there if PLACES[name] == "attention"]
    for name in lora.projections or ():
        if name not in there:
            why = "experts have no adapters" if config.experts is not None else "the model has none"
            raise UserError(f"lora.projections: {name!r} cannot have one ({why}); these can: {', '.join(there)}")
    return tuple(lora.projections or there)


def init(rng: jax.Array, config: Config, lora: Lora) -> dict:
    """An adapter that changes nothing yet: A normal with variance 1 / rows, B zero; float32.

    Returns:
      {projection: {"a": [L, rows, r], "b": [L, r, columns]}}.
    """
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))["layers"]
    found = {}
    for number, name in enumerate(projections(config, lora)):
        L, rows, columns = shapes[PLACES[name]][name]["weight"].shape
        a = jax.random.normal(jax.random.fold_in(rng, number), (L, rows, lora.rank)) / math.sqrt(rows)
        found[name] = {"a": a, "b": jnp.zeros((L, lora.rank, columns))}
    return found


def logical_axes(config: Config, lora: Lora) -> dict:
    """The logical axes of an adapter: its outer dimensions are split as those of the projection are."""
    axes = transformer.logical_axes(config)["layers"]
    found = {}
    for name in projections(config, lora):
        layers, rows, columns = axes[PLACES[name]][name]["weight"]
        found[name] = {"a": (layers, rows, "rank"), "b": (layers, "rank", columns)}
    return found


def attach(params: Any, adapter: dict, lora: Lora) -> Any:
    """Parameters with an adapter beside them: what `transformer.hidden` takes as it takes parameters alone."""
    def beside(name, part):
        return {**part, "lora": {"a": adapter[name]["a"], "b": lora.scale * adapter[name]["b"]}}

    return _with(params, adapter, beside)


def merge(params: Any, adapter: dict, lora: Lora) -> Any:
    """Parameters with an adapter in them: W + (α / r) A B, added up in float32 and of the type of W."""
    def within(name, part):
        weight, ab = part["weight"], jnp.matmul(adapter[name]["a"], adapter[name]["b"], precision="highest")
        return {**part, "weight": (weight.astype(jnp.float32) + lora.scale * ab).astype(weight.dtype)}

    return _with(params, adapter, within)


def count(config: Config, lora: Lora) -> int:
    """How many numbers an adapter has."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config, lora))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _with(params: Any, adapter: dict, change) -> Any:
    layers = dict(params["layers"])
    for name in adapter:
        place = PLACES[name]
        layers[place] = {**layers[place], name: change(name, layers[place][name])}
    return {**params, "layers": layers}
