"""Where a GPU spends the time of a program, kernel by kernel. Not run by itself: `train_step.py` and `engine.py` have
`--by-kernel`."""

from __future__ import annotations

import collections
import glob
import tempfile
from collections.abc import Callable

import jax
from side_by_side import table


def print_kernels(run: Callable[[], int], most: int = 30) -> None:
    """Traces one call of `run`, which returns how many steps it took, and prints what a step spends in each kernel."""
    found, calls = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps = run()
        file = max(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True))
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines:
                if "GPU" in plane.name and line.name.startswith("Stream"):
                    for event in line.events:
                        found[event.name] += event.duration_ns
                        calls[event.name] += 1
    print(f"\n{sum(found.values()) / steps / 1e6:.2f} ms of kernels a step\n")
    print(table(["ms a step", "calls", "us each", "kernel"],
                [[f"{ns / steps / 1e6:.3f}", f"{calls[name] / steps:.1f}", f"{ns / calls[name] / 1e3:.1f}", name[:70]]
                 for name, ns in found.most_common(most)]), flush=True)
