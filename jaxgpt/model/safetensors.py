"""safetensors files: arrays with names, read a part at a time and written one after the other.

    8 bytes: length of the header, little-endian | header: {name: {"dtype", "shape", "data_offsets"}}, JSON | the arrays

Source: the format's description, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, read_json

DTYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype("float16")}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in a file.

    Attributes:
      file: which.
      dtype: the format's name of its type; `DTYPES` has those we read.
      shape: its dimensions.
      start: the byte at which it begins.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part of it, in memory of its own; no other part is loaded, and nothing stays mapped."""
        if not math.prod(self.shape):
            return np.empty(self.shape, DTYPES[self.dtype])[index]
        mapped = np.memmap(self.file, np.uint8, "r", self.start, math.prod(self.shape) * DTYPES[self.dtype].itemsize)
        return np.array(mapped.view(DTYPES[self.dtype]).reshape(self.shape)[index])


def open_folder(folder: str | Path) -> dict[str, Stored]:
    """The arrays of a folder by name: of model.safetensors, or of all files that its index names.

    Raises:
      UserError: there are none, a file is missing or damaged, or the index and a file disagree.
    """
    folder = Path(folder)
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            other = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
            raise UserError(f"{folder}: no {SINGLE} and no {INDEX} there"
                            + (f"; {other} are pickles, which run code when they are read" if other else ""))
        return open_file(folder / SINGLE)
    index = read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{folder / INDEX}: 'weight_map' should say which file holds which tensor")
    found: dict[str, Stored] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file or not (folder / file).is_file():
            tensor = next(name for name in names if names[name] == file)
            raise UserError(f"{folder / file}: no such file, but {INDEX} says that it holds {tensor}")
        found |= open_file(folder / file)
    for name, file in names.items():
        if name not in found:
            raise UserError(f"{folder / file}: holds no tensor {name}, but {INDEX} says so")
    return found


def open_file(path: str | Path) -> dict[str, Stored]:
    """The arrays of one file by name.

    Raises:
      UserError: it is not such a file, or is cut short (names the tensor, the byte expected and the byte found).
    """
    path, found = Path(path), {}
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header should have {length} bytes, but the file has {size}")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin)
                width = DTYPES[entry["dtype"]].itemsize if entry["dtype"] in DTYPES else None
                if width and end - begin != width * math.prod(entry["shape"]):
                    raise ValueError(f"{name} of shape {entry['shape']} and type {entry['dtype']} has {end - begin} "
                                     "bytes")
                if 8 + length + end > size:
                    raise UserError(f"{path}: {name} should end at byte {8 + length + end}, but the file has {size}; "
                                    "it was cut short, so copy it again")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a safetensors file ({getattr(error, 'strerror', None) or error})") from error
    return found


Announced = tuple[str, np.dtype, tuple[int, ...], Callable[[], np.ndarray]]


def write_file(path: str | Path, arrays: Iterable[Announced]) -> None:
    """Writes arrays one after the other, so that one at a time is in memory.

    Args:
      path: of the file.
      arrays: (name, type, shape, function that gives the array) of each.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    arrays, header, at = list(arrays), {"__metadata__": {"format": "pt"}}, 0
    code = {dtype: name for name, dtype in DTYPES.items()}
    for name, dtype, shape, _ in arrays:
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, dtype, shape, make in arrays:
                array = np.ascontiguousarray(make())
                if (array.dtype, array.shape) != (dtype, shape):
                    raise ValueError(f"{name}: announced as {dtype} {shape}, but is {array.dtype} {array.shape}")
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
