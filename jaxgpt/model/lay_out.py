"""The parameters laid out anew, as decoding reads them best."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def for_decoding(params: Any, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The parameters laid out as the devices here read them best: for `hidden` with a cache, many times.

    Args:
      params: from `transformer.init`; laid out already, they stay as they are.
      mesh: where they lie, if on several devices.
    """
    if isinstance(params["layers"], tuple):
        return params
    one_gpu = jax.default_backend() == "gpu" and (mesh is None or mesh.size == 1)
    return _unstack(params, layout="merged" if one_gpu else "columns" if jax.default_backend() == "cpu" else "plain")


def unstack(params: Any, *, layout: str = "plain") -> Any:
    """The parameters with a tree for each layer, as decoding reads them best: for `hidden` with a cache.

    Cut out of the stack inside the program, a layer's weights are copied at every token.

    Args:
      params: from `transformer.init`.
      layout: "plain"; "columns", where matrices lie as their columns, by which products of up to 256 rows are faster on a CPU,
        see `layers.linear`; or "merged", where the projections of one input are one matrix, "qkv" and "up_gate", which a GPU
        reads faster than three and two.
    """
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    change = {"plain": lambda layer: layer, "columns": _by_columns, "merged": _merge}[layout]
    return {**params, "layers": tuple(change(jax.tree.map(lambda leaf: leaf[i], params["layers"])) for i in range(count))}


_unstack = jax.jit(unstack, static_argnames="layout")


def _merge(layer):
    """A layer with one matrix in place of those of one input, where they are alike."""
    def join(part, name, of):
        found = [part.get(one) for one in of]
        if None in found or len({jax.tree.structure(one) for one in found}) > 1 or "lora" in found[0] or "router" in part:
            return part
        rest = {key: value for key, value in part.items() if key not in of}
        return {**rest, name: jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *found)}

    return {**layer, "attention": join(layer["attention"], "qkv", ("q", "k", "v")),
            "mlp": join(layer["mlp"], "up_gate", ("up", "gate"))}


def _by_columns(tree):
    """A layer's parameters with "columns", [F, D], in place of each "weight" of a `_Linear`."""
    if not isinstance(tree, dict):
        return tree
    tree = {name: part if name == "router" else _by_columns(part) for name, part in tree.items()}
    if len(getattr(tree.get("weight"), "shape", ())) == 2:  # and not one for each expert
        tree["columns"] = tree.pop("weight").T
    return tree
