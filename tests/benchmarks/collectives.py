"""Bandwidth of the collectives that sharded training uses, by size, on the devices at hand.

  python tests/benchmarks/collectives.py                       # all accelerators of this machine
  python tests/benchmarks/collectives.py --simulate 8          # eight simulated devices of a CPU: shows the forms only

Algorithm bandwidth is the size of the whole array over the time. Bus bandwidth is what each link carried: times
(n - 1) / n for all-gather and reduce-scatter, 2 (n - 1) / n for all-reduce, and 1 / n for a permutation, in which every
device passes its own part on.
"""

from __future__ import annotations

import os
import statistics
import time

from side_by_side import header, hardware, parser, table


def programs(mesh) -> dict:
    """{name: (program on an array, whether its argument is split, share of the bytes that a link carries)}."""
    import jax
    from jax.sharding import PartitionSpec
    n = mesh.size
    split, whole = PartitionSpec("devices"), PartitionSpec()
    ring = [(i, (i + 1) % n) for i in range(n)]

    def on_each(function, given, made):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=made, check_vma=False))

    return {
        "all-gather": (on_each(lambda x: jax.lax.all_gather(x, "devices", tiled=True), split, whole), True,
                       (n - 1) / n),
        "reduce-scatter": (on_each(lambda x: jax.lax.psum_scatter(x, "devices", tiled=True), whole, split), False,
                           (n - 1) / n),
        "all-reduce": (on_each(lambda x: jax.lax.psum(x, "devices"), whole, whole), False, 2 * (n - 1) / n),
        "permute": (on_each(lambda x: jax.lax.ppermute(x, "devices", ring), split, split), True, 1 / n),
    }


def seconds_of(program, x, rounds: int) -> list[float]:
    import jax
    jax.block_until_ready(program(x))
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(program(x))
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--mib", type=float, nargs="*", default=[1, 16, 128, 1024], help="sizes of the whole array")
    arguments.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--simulate", type=int, metavar="N", help="N simulated devices on a CPU")
    given = arguments.parse_args()
    if given.smoke:
        given.simulate, given.mib, given.rounds = given.simulate or 4, [0.0625], 2
    if given.simulate:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["JAX_NUM_CPU_DEVICES"] = str(given.simulate)
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    if jax.device_count() < 2:
        raise SystemExit("collectives need at least 2 devices and there is 1: give --simulate 8 to simulate them")
    print(header("collectives", hardware()))
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    rows = []
    for name, (program, is_split, share) in programs(mesh).items():
        for mib in given.mib:
            width = jnp.dtype(given.dtype).itemsize
            count = max(1, round(mib * 2 ** 20 / width / mesh.size)) * mesh.size
            layout = NamedSharding(mesh, PartitionSpec("devices") if is_split else PartitionSpec())
            x = jax.jit(lambda count=count: jnp.ones(count, given.dtype), out_shardings=layout)()
            median = statistics.median(seconds_of(program, x, given.rounds))
            bandwidth = count * width / median / 1e9
            rows.append([name, f"{count * width / 2 ** 20:g}", f"{median * 1e6:,.0f}", f"{bandwidth:.2f}",
                         f"{bandwidth * share:.2f}"])
    print(f"\n{mesh.size} devices, {given.dtype}, median of {given.rounds}\n")
    print(table(["collective", "MiB", "µs", "algorithm GB/s", "bus GB/s"], rows))


if __name__ == "__main__":
    main()
