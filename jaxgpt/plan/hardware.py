"""Accelerators as their makers describe them, and the names by which Cloud sells them.

Nothing here asks a device: a plan is made for hardware that is not there.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from jaxgpt.core.errors import UserError

GiB = 2 ** 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as `jax.devices()` counts them.

    Attributes:
      name: as in a target, "v5e" or "h100".
      platform: "tpu" or "gpu".
      bf16_flops: dense bfloat16 peak, FLOP/s.
      hbm_bytes: memory that a program can use, bytes.
      hbm_bandwidth: B/s.
      link_bandwidth: B/s in one direction over one link: along one axis of the torus (TPU), all of NVLink (GPU).
      link_axes: axes of the torus; 1 where every chip of a host reaches every other.
      network_bandwidth: the chip's share of its host's network card, B/s in one direction.
      chips_per_host: chips that one process drives where there are several hosts.
      tile: products are padded to multiples of this size.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    bf16_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    link_axes: int
    network_bandwidth: float
    chips_per_host: int
    tile: int


# hbm_bytes of a TPU is what XLA names as its limit when a program is too large ("Used 20G of 15.75G hbm").
CHIPS: dict[str, Chip] = {chip.name: chip for chip in (
    # Source: cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, links 400 GB/s both ways over 2 axes,
    # pod network 6.4 Tbit/s over 256 chips
    Chip("v5e", "tpu", 197e12, 15.75 * GiB, 819e9, 50e9, 2, 3.125e9, 4, 128),
    # Source: cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, links 1200 GB/s both ways over 3 axes,
    # network 50 Gbit/s a chip
    Chip("v5p", "tpu", 459e12, 95.74 * GiB, 2765e9, 100e9, 3, 6.25e9, 4, 128),
    # Source: cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, links 800 GB/s both ways over 2 axes,
    # 4 x 200 Gbit/s for the 8 chips of a host
    Chip("v6e", "tpu", 918e12, 31.25 * GiB, 1638e9, 100e9, 2, 12.5e9, 4, 256),
    # Source: NVIDIA A100 datasheet (SXM, 80 GB): 312 TFLOP/s, 2039 GB/s, NVLink 600 GB/s both ways; network as in DGX
    # A100: 8 x 200 Gbit/s
    Chip("a100", "gpu", 312e12, 80e9, 2039e9, 300e9, 1, 25e9, 8, 128),
    # Source: NVIDIA H100 datasheet (SXM): 989.4 TFLOP/s dense, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100:
    # 8 x 400 Gbit/s
    Chip("h100", "gpu", 989.4e12, 80e9, 3350e9, 450e9, 1, 50e9, 8, 128),
    # Source: NVIDIA H200 datasheet (SXM): as H100 with 141 GB, 4.8 TB/s
    Chip("h200", "gpu", 989.4e12, 141e9, 4800e9, 450e9, 1, 50e9, 8, 128),
)}

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBES = {8: (2, 2, 1), 16: (2, 2, 2), 32: (2, 2, 4), 64: (2, 4, 4), 128: (4, 4, 4), 256: (4, 4, 8), 512: (4, 8, 8),
          1024: (8, 8, 8), 2048: (8, 8, 16), 4096: (8, 16, 16), 8192: (16, 16, 16), 12288: (16, 16, 24)}

# The number in Cloud's name -> the shape of the slice. It counts chips on v5e and v6e, TensorCores, two a chip, on v5p.
# Source: the pages above, "Configurations".
SLICES: dict[str, dict[int, tuple[int, ...]]] = {"v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e"}
_GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Target:
    """What a plan is for.

    Attributes:
      text: as it was asked for.
      chip: of which kind.
      devices: how many chips.
      topology: as libtpu names the slice, "v5p:4x4x4"; None on GPU.
      hosts: machines, one process on each.
    """

    text: str
    chip: Chip
    devices: int
    topology: str | None
    hosts: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The sides of the slice; (devices,) on GPU."""
        return tuple(map(int, self.topology.split(":")[1].split("x"))) if self.topology else (self.devices,)

    @property
    def chips_per_host_bounds(self) -> tuple[int, int, int]:
        """The block of chips that one host drives: `get_topology_desc(topology, chips_per_host_bounds=...)` wants it.

        libtpu takes 2x2x1 where nothing is said, which a slice of one chip does not divide by.
        """
        shape = (*self.shape, 1)[:3]
        return shape if self.hosts == 1 else (2, 2, 1)


def parse_target(text: str) -> Target:
    """A target from its name.

    Args:
      text: Cloud's name of a slice ("v5e-16", "v5litepod-16", "v5p-128", "v6e-256"), a slice by its shape
        ("v5p:4x4x4"), or GPUs and how many ("h100-8").

    Raises:
      UserError: there is no such thing, with the nearest that there is.

    >>> parse_target("v5p-128").topology
    'v5p:4x4x4'
    """
    found = re.fullmatch(r"([a-z0-9]+?)(?:([-:])([0-9x]+))?", text.strip().lower())
    name = _ALIASES.get(found[1], found[1]) if found else None
    if name not in CHIPS or not found[3]:
        raise UserError(f"{text}: no such hardware; write a chip and how many, such as v5e-16, v5p-128, v5p:4x4x4 or "
                        f"h100-8 (chips: {', '.join(CHIPS)})")
    chip = CHIPS[name]
    if chip.platform == "gpu":
        return _gpus(text, chip, found[3])
    shape = _by_shape(text, chip, found[3]) if found[2] == ":" else _by_size(text, chip, found[3])
    devices = math.prod(shape)
    hosts = 1 if devices <= (4 if chip.link_axes == 3 else 8) else devices // chip.chips_per_host
    return Target(text, chip, devices, f"{chip.name}:{'x'.join(map(str, shape))}", hosts)


def _gpus(text: str, chip: Chip, number: str) -> Target:
    count = int(number) if number.isdigit() else 0
    if count < 1 or (count > _GPUS_A_HOST and count % _GPUS_A_HOST):
        whole = max(1, round(count / _GPUS_A_HOST)) * _GPUS_A_HOST
        raise UserError(f"{text}: GPUs come {_GPUS_A_HOST} to a machine, so 1 to {_GPUS_A_HOST} or a multiple of it; "
                        f"the nearest is {chip.name}-{whole}")
    return Target(text, chip, count, None, -(-count // _GPUS_A_HOST))


def _by_size(text: str, chip: Chip, number: str) -> tuple[int, ...]:
    sizes = SLICES[chip.name]
    if not number.isdigit():
        raise UserError(f"{text}: a shape follows a colon, {chip.name}:{number}")
    if int(number) not in sizes:
        below = [size for size in sizes if size < int(number)][-1:]
        above = [size for size in sizes if size > int(number)][:1]
        near = [f"{chip.name}-{size}" for size in below + above]
        raise UserError(f"{text}: no such slice; the nearest {'are' if len(near) > 1 else 'is'} {' and '.join(near)}")
    return sizes[int(number)]


def _by_shape(text: str, chip: Chip, sides: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(side) for side in sides.split("x"))
    except ValueError:
        shape = ()
    known = list(SLICES[chip.name].values())
    larger = [max(sides) for sides in zip(*known)]
    # whole hosts of 2 x 2 chips, and whole cubes of 4 x 4 x 4 once a side is longer than 4
    fits = (len(shape) == chip.link_axes and all(0 < side <= top for side, top in zip(sorted(shape), larger))
            and (shape in known or (chip.link_axes == 3 and all(side % 4 == 0 for side in shape))))
    if not fits:
        chips = math.prod(shape)
        near = min(known, key=lambda other: abs(math.log(math.prod(other) / max(chips, 1))))
        raise UserError(f"{text}: no such slice; the nearest is {chip.name}:{'x'.join(map(str, near))}")
    return shape
