"""Compiles a program for a TPU that is not there, and reads off what it needs.

`libtpu` holds the TPU compiler and runs on any Linux machine: `jax.experimental.topologies` describes the devices of a
slice, a mesh over them takes the place of the real one, and lowering and compiling give the executable that the slice
would run, kernels included. Only running it needs the slice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.libtpu import quiet_without_tpu
from jaxgpt.core.metrics import duration
from jaxgpt.plan.hardware import Target
from jaxgpt.plan.hlo import Collective, collectives


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one program needs on one device.

    Attributes:
      seconds: that the compiler took.
      arguments: bytes of what goes in: state and batch.
      temporaries: bytes of all that lives in between: activations, gradients, gathered parameters.
      outputs: bytes of what comes out and takes the place of no argument.
      host: bytes that are offloaded to the host's memory.
      peak: bytes in all; where the program does not fit, what the compiler asked for.
      capacity: bytes that the compiler may use, known only where the program does not fit.
      collectives: what is sent between devices; none where the program does not fit.
    """

    seconds: float
    arguments: int
    temporaries: int
    outputs: int
    host: int
    peak: int
    capacity: int | None = None
    collectives: tuple[Collective, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the compiler found room."""
        return self.capacity is None


def topology_devices(target: Target) -> list:
    """The devices of a TPU slice.

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for a TPU needs its compiler: pip install -e '.[tpu]' (on Linux; no TPU is needed)")
    from jax.experimental import topologies
    quiet_without_tpu()
    try:
        with _muffled_stderr():
            return list(topologies.get_topology_desc(target.topology, platform="tpu",
                                                     chips_per_host_bounds=target.chips_per_host_bounds).devices)
    except Exception as error:  # whatever the compiler raises
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{target.text}: libtpu makes no topology {target.topology} ({reason})") from error


def compile_program(jitted, arguments: tuple, label: str = "") -> tuple[Compiled, Any]:
    """Lowers and compiles for the devices that the arguments' shardings name.

    Returns:
      (what it needs, the shardings of what it puts out; None where it does not fit).

    Args:
      jitted: a jitted function.
      arguments: abstract ones, with shardings.
      label: shown with the time while the compiler works; nothing is shown where empty.
    """
    began = time.monotonic()
    with _ticking(label), _no_cache():
        lowered = jitted.lower(*arguments)
        try:
            with _muffled_stderr():
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return _too_large(str(error), time.monotonic() - began, arguments), None
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = Compiled(
        seconds=time.monotonic() - began, arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes, outputs=outputs, host=memory.host_temp_size_in_bytes,
        peak=memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs
        + memory.generated_code_size_in_bytes,
        collectives=tuple(collectives(compiled.as_text(), _device_count(arguments))))
    return found, compiled.output_shardings


def bytes_per_device(tree) -> int:
    """Bytes that one device holds of abstract arrays with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) else leaf.shape
        size = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.dtype(leaf.dtype).itemsize
        total += int(np.prod(shape, dtype=np.int64)) * size
    return total


def _too_large(message: str, seconds: float, arguments: tuple) -> Compiled:
    """What the compiler says when memory runs out: what it would have used, and of how much."""
    size = r"\(?([\d.]+)([KMGT]?)\)?"
    given = sum(map(bytes_per_device, arguments))
    if found := re.search(rf"Used {size} of {size} hbm", message):
        peak, capacity = _size(*found.groups()[:2]), _size(*found.groups()[2:])
    elif found := re.search(rf"HLO temporaries {size} exceeds available HBM {size}", message):  # found out early
        peak, capacity = _size(*found.groups()[:2]) + given, _size(*found.groups()[2:])
    else:
        raise UserError(f"the compiler refused: {' '.join(message.split())[:400]}")
    return Compiled(seconds=seconds, arguments=given, temporaries=peak - given, outputs=0, host=0, peak=peak,
                    capacity=capacity)


def _size(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))


def _device_count(arguments: tuple) -> int:
    return max((len(leaf.sharding.device_set) for leaf in jax.tree.leaves(arguments)
                if getattr(leaf, "sharding", None)), default=1)


@contextlib.contextmanager
def _ticking(label: str) -> Iterator[None]:
    """Shows on a terminal how long the compiler has been working: it tells nothing of how far it is."""
    if not label or not sys.stderr.isatty():
        yield
        return
    done, began, screen = threading.Event(), time.monotonic(), os.fdopen(os.dup(2), "w")

    def tick():
        while not done.wait(0.5):
            screen.write(f"\r\x1b[2K{label}: compiling, {duration(time.monotonic() - began)}")
            screen.flush()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        screen.write("\r\x1b[2K")
        screen.close()


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """JAX would keep the executable and fail to read it again, since no device is there to load it."""
    from jax.experimental.compilation_cache import compilation_cache
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else the setting is looked at once in a process
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _muffled_stderr() -> Iterator[None]:
    """libtpu writes its logs, whole dumps of memory among them, to standard error; what matters it also raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
