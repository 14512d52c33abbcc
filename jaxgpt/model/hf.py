"""Weights in and out: Hugging Face folders -> parameters on a mesh, and back, without PyTorch.

A tensor is read from disk straight into its shards. Parameters of layers, which are stacked here, are filled in place a
layer at a time, so that the host never holds more than one tensor. What is written is what was read, byte for byte.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_json
from jaxgpt.core.sharding import param_shardings
from jaxgpt.model import safetensors, transformer
from jaxgpt.model.config import Config
from jaxgpt.model.hf_config import read_config, write_config
from jaxgpt.model.hf_names import FAMILIES, IGNORED, Place, path_name
from jaxgpt.model.safetensors import DTYPES, Stored

SHARD_BYTES = 5 * 10 ** 9  # of a file, as others write them


# --- in --------------------------------------------------------------------------------------------------------------

def read_params(folder: str | Path, *, mesh: Mesh, rules: dict, dtype: str | None = None) -> tuple[Any, Config, str]:
    """The model of a folder.

    Args:
      folder: with config.json and safetensors files.
      mesh, rules: where each parameter goes; see `core/sharding.py`.
      dtype: "float32", "bfloat16" or "float16"; what the files have where None.

    Returns:
      (params, on the mesh; config; family).

    Raises:
      UserError: see `check_folder`; or the mesh cannot divide a parameter.
    """
    family, config, stored = check_folder(folder)
    found = _one_dtype(folder, stored.values()) if dtype is None else _dtype(dtype)
    shapes = _shapes(config)
    shardings = param_shardings(transformer.logical_axes(config), shapes, mesh, rules)

    def one(path, leaf, sharding):
        name = path_name(path)
        place, stacked = FAMILIES[family][name], name.startswith("layers/")
        layers = [stored[place.name(i)] if "@" not in place.tensor else
                  [stored[place.name(i, expert)] for expert in range(config.experts)]
                  for i in range(config.layers if stacked else 1)]
        read = functools.partial(_read, place=place, size=leaf.shape[-1], dtype=found)
        if not stacked:
            return jax.make_array_from_callback(leaf.shape, sharding, functools.partial(read, layers[0]))
        return _stack(layers, leaf.shape, sharding, read, found)

    return jax.tree.map_with_path(one, shapes, shardings), config, family


def check_folder(folder: str | Path) -> tuple[str, Config, dict[str, Stored]]:
    """Reads what a folder says of itself, and holds it to that before any weight is read.

    Returns:
      (family, config, {name: tensor} of those that the model takes).

    Raises:
      UserError: a file or tensor is missing, has another shape than config.json asks for, is of a type we do not read,
        or is one that the family does not have: names file, tensor, expected and found.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    family, config = read_config(folder)
    stored = safetensors.open_folder(folder)
    if family == "gpt2" and not any(name.startswith("transformer.") for name in stored):  # as OpenAI's were first saved
        stored = {name if name.startswith("lm_head.") else f"transformer.{name}": one for name, one in stored.items()}
    wanted = tensors(config, family)
    for name, (shape, _) in wanted.items():
        if name not in stored:
            raise UserError(f"{folder}: no file there holds tensor {name}, of shape {list(shape)}")
        one = stored[name]
        if one.shape != shape:
            raise UserError(f"{one.file}: {name} should have shape {list(shape)}, as config.json says, but has "
                            f"{list(one.shape)}")
        if one.dtype not in DTYPES:
            raise UserError(f"{one.file}: {name} is of type {one.dtype}; supported: {', '.join(DTYPES)}")
    ignored = (*IGNORED, *((r"^lm_head\.weight$",) if config.tied else ()))
    for name, one in stored.items():
        if name not in wanted and not any(re.search(pattern, name) for pattern in ignored):
            raise UserError(f"{one.file}: holds tensor {name}, which a {family} with these settings does not have")
    return family, config, {name: stored[name] for name in wanted}


def tensors(config: Config, family: str) -> dict[str, tuple[tuple[int, ...], list[tuple[str, tuple[int, ...], Place]]]]:
    """What a folder of the family holds: {tensor: (shape, [(parameter, numbers, place) of each of its parts])}, where
    the numbers are () or those of the layer, or of layer and expert."""
    found: dict = {}
    for path, leaf in jax.tree.leaves_with_path(_shapes(config)):
        name = path_name(path)
        if name not in FAMILIES[family]:
            raise UserError(f"parameter {name}: a {family} has none")
        place = FAMILIES[family][name]
        stacked = ("#" in place.tensor) + ("@" in place.tensor)
        shape = leaf.shape[stacked:]
        shape = shape[::-1] if place.turned else (*shape[:-1], shape[-1] * place.parts)
        for numbers in np.ndindex(leaf.shape[:stacked]):
            found.setdefault(place.name(*numbers), (shape, []))[1].append((name, numbers, place))
    return {name: (shape, sorted(parts, key=lambda part: part[2].part)) for name, (shape, parts) in found.items()}


def _read(stored: Stored | list[Stored], index: tuple[slice, ...], *, place: Place, size: int,
          dtype: np.dtype) -> np.ndarray:
    """The part of a parameter that a device holds, of its own experts where it has some; `size`: of its last
    dimension."""
    if isinstance(stored, list):
        return np.stack([_read(one, index[1:], place=place, size=size, dtype=dtype) for one in stored[index[0]]])
    if place.turned:
        return stored.read(index[::-1]).T.astype(dtype)
    begin, end, _ = index[-1].indices(size)
    return stored.read((*index[:-1], slice(begin + place.part * size, end + place.part * size))).astype(dtype)


def _stack(layers: list[Stored | list[Stored]], shape, sharding: NamedSharding, read, dtype) -> jax.Array:
    """A parameter of all layers, filled in place on the devices, a layer at a time."""
    empty, put = _filling(shape, dtype, sharding)
    inner = NamedSharding(sharding.mesh, PartitionSpec(*tuple(sharding.spec)[1:]))
    stack = empty()
    for number, stored in enumerate(layers):
        piece = jax.make_array_from_callback(shape[1:], inner, functools.partial(read, stored))
        stack = put(stack, piece, number)
        stack.block_until_ready()  # or tensors would queue up in memory
    return stack


@functools.cache
def _filling(shape, dtype, sharding):
    empty = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
    put = jax.jit(lambda stack, piece, number: jax.lax.dynamic_update_index_in_dim(stack, piece, number, 0),
                  out_shardings=sharding, donate_argnums=0)
    return empty, put


def _dtype(name: str) -> np.dtype:
    names = [str(dtype) for dtype in DTYPES.values()]
    if name not in names:
        raise UserError(f"dtype is {name!r}; supported: {', '.join(names)}")
    return np.dtype(jnp.dtype(name))


def _one_dtype(folder, stored) -> np.dtype:
    found = {one.dtype: one for one in stored}
    if len(found) > 1:
        raise UserError(f"{folder}: holds tensors of types {' and '.join(sorted(found))}; say which to take with "
                        "--dtype")
    return DTYPES[next(iter(found))]


def _shapes(config: Config):
    return jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))


# --- out -------------------------------------------------------------------------------------------------------------

def write_params(params: Any, config: Config, folder: str | Path, *, family: str, dtype: str | None = None,
                 tokens: dict | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a model as a Hugging Face folder: config.json, generation_config.json, and the weights.

    Args:
      params, config: of the model.
      folder: an empty one; see `core.files.whole_folder`.
      family: from `hf_config.family_of`.
      dtype: of the weights; that of the parameters where None.
      tokens: ids for config.json: "bos_token_id", "eos_token_id".
      shard_bytes: how large a file may grow; several have an index.

    Raises:
      UserError: the disk is full.
    """
    folder, leaves = Path(folder), {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    found = _dtype(dtype or str(leaves["embed"].dtype))
    files: list[list[str]] = [[]]
    room, wanted = shard_bytes, tensors(config, family)
    sizes = {name: int(np.prod(shape)) * found.itemsize for name, (shape, _) in wanted.items()}
    for name, size in sizes.items():
        if size > room and files[-1]:
            files.append([])
            room = shard_bytes
        files[-1].append(name)
        room -= size
    index = {}
    for number, names in enumerate(files, 1):
        file = safetensors.SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        index |= dict.fromkeys(names, file)
        arrays = [(name, found, wanted[name][0], functools.partial(_tensor, leaves, wanted[name][1], found))
                  for name in names]
        safetensors.write_file(folder / file, arrays)
    if len(files) > 1:
        write_json(folder / safetensors.INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index})
    write_json(folder / "config.json", write_config(config, family, str(found), tokens))
    write_json(folder / "generation_config.json", {"_from_model_config": True, **(tokens or {})})


def _tensor(leaves, parts, dtype) -> np.ndarray:
    """A tensor as the folder has it, from the parameters that are its parts."""
    arrays = []
    for name, numbers, place in parts:
        array = np.asarray(leaves[name][numbers]).astype(dtype)
        arrays.append(array.T if place.turned else array)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
