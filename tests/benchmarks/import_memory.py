"""What importing a model takes of the host's memory, beside the bytes that the devices must hold.

  python tests/benchmarks/import_memory.py                 # the shape of Llama 3.1 8B in bfloat16: 16 GB
  python tests/benchmarks/import_memory.py --layers 8      # the same with fewer layers

A folder of that shape is written, with random weights, and read into eight simulated devices of this machine, over
the axes fsdp and tensor. Their memory is the host's here, so that the process should hold the parameters once, and
beside them what reading takes: it should stay below 1.3 times the parameters and the largest tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from side_by_side import hardware, header, parser, table


def write_folder(folder: Path, config, shards: int) -> int:
    """A Hugging Face folder of random bfloat16 weights; returns the bytes of its largest tensor."""
    import jax.numpy as jnp

    from jaxgpt.model import hf, hf_config, safetensors
    wanted, dtype, rng = hf.tensors(config, "llama"), np.dtype(jnp.bfloat16), np.random.default_rng(0)
    names, files = list(wanted), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[number::shards]
        files |= dict.fromkeys(chosen, file)
        random = lambda shape: (rng.integers(0x3C00, 0x3D00, shape, np.uint16)).view(dtype)  # noqa: E731
        safetensors.write_file(folder / file, [(name, dtype, wanted[name][0], lambda name=name: random(wanted[name][0]))
                                               for name in chosen])
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(hf_config.write_config(config, "llama", "bfloat16")))
    return max(math.prod(shape) for shape, _ in wanted.values()) * dtype.itemsize


def resident() -> int:
    """Bytes of this process in memory."""
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


class Peak:
    """The most memory within a `with`, above what there was before."""

    def __enter__(self):
        self.bytes, self._before, self._over = 0, resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, resident() - self._before)

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--layers", type=int, default=32)
    arguments.add_argument("--folder", default=tempfile.gettempdir(), help="where the weights are written for a while")
    given = arguments.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    import jax

    from jaxgpt.core import sharding
    from jaxgpt.model import hf, presets
    config = dataclasses.replace(presets.llama3_1("8B"), layers=given.layers)
    if given.smoke:
        config = dataclasses.replace(config, layers=2, width=256, heads=8, mlp_width=512, vocab_size=512)
    mesh, rules = sharding.make_mesh(sharding.Layout(data=1, fsdp=4, tensor=2)), sharding.get_rules("fsdp_tensor")
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        largest = write_folder(Path(temporary), config, shards=4)
        jax.block_until_ready(jax.device_put(np.ones(8), sharding.replicated(mesh)))
        began = time.perf_counter()
        with Peak() as peak:
            params = jax.block_until_ready(hf.read_params(temporary, mesh=mesh, rules=rules)[0])
        seconds = time.perf_counter() - began
    held = sum(piece.data.nbytes for leaf in jax.tree.leaves(params) for piece in leaf.addressable_shards)
    print(header("import_memory", hardware(), "jaxlib"))
    print(f"\nLlama 3.1 8B with {config.layers} layers, bfloat16, read in {seconds:.1f} s\n")
    gb = lambda size: f"{size / 1e9:.2f}"  # noqa: E731
    print(table(["held by the devices, GB", "largest tensor, GB", "peak, GB", "(peak - largest) / held"],
                [[gb(held), gb(largest), gb(peak.bytes), f"{(peak.bytes - largest) / held:.2f}"]]))


if __name__ == "__main__":
    main()
