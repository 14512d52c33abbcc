"""What a model is, in numbers: its parameters, the work and the cache of a token, and its memory on some meshes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax

from jaxgpt.core.sharding import AXES
from jaxgpt.model import transformer
from jaxgpt.plan.cost import positions_seen, train_memory

GIB = 2 ** 30


def describe(config: transformer.Config, *, length: int | None = None,
             devices: tuple[int, ...] = (1, 8, 64, 512)) -> list[str]:
    """The lines that `jaxgpt info` prints.

    Args:
      config: the model.
      length: T, of the sequences that are counted; the model's context where None.
      devices: over how many memory is shown.
    """
    length = length or config.context
    lines = [f"{config.layers} layers, width {config.width}, {config.heads} heads of {config.H} on {config.K} key-"
             f"value heads, mlp {config.F}, vocabulary {config.vocab_size:,}, context {config.context:,}", ""]
    rows = [*parameter_rows(config), ("in all", "", transformer.count_params(config))]
    if config.experts is not None:
        lines[0] = lines[0].replace("mlp", f"{config.experts} experts of which a token goes to "
                                    f"{config.experts_per_token}, each an mlp of")
        rows.append(("met by a token", "", transformer.count_params(config, active=True)))
    names, shapes = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines += [f"  {name:{names}}  {shape:>{shapes}}  {count:>18,}" for name, shape, count in rows]
    train = transformer.flops_per_token(config, length)
    lines += ["", f"FLOPs a token (causal attention, {length:,} positions): {train:.4g} to train, {train / 3:.4g} to "
              f"read; attention is {12 * config.heads * config.H * positions_seen(config, length) / train:.0%}"]
    one = cache_bytes(config)
    lines.append(f"KV cache: {one:,} bytes a token in {config.dtype}, {one * config.context / GIB:.3g} GiB for "
                 f"{config.context:,}")
    lines += ["", f"memory of a device in GiB, one row of {length:,} tokens each (AdamW, float32 state, remat 'full'):"]
    return lines + [f"  {line}" for line in memory_rows(config, length, devices)]


def parameter_rows(config: transformer.Config) -> Iterator[tuple[str, str, int]]:
    """(name, shape, how many values) of each parameter; those of layers are stacked on a first axis."""
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    for path, leaf in jax.tree.leaves_with_path(shapes):
        yield "/".join(str(key.key) for key in path), " x ".join(map(str, leaf.shape)), leaf.size


def cache_bytes(config: transformer.Config) -> int:
    """Bytes of a token's keys and values: 2 · L · K · H · (bytes of a value).

    >>> cache_bytes(transformer.Config(vocab_size=8, context=8, layers=3, width=8, heads=2, kv_heads=1))
    96
    """
    return 2 * config.layers * config.K * config.H * jax.numpy.dtype(config.dtype).itemsize


def memory_rows(config: transformer.Config, length: int, devices: tuple[int, ...]) -> Iterator[str]:
    """What training takes on each device, with the state split over all of them (fsdp), and over tensor as well."""
    yield f"{'mesh':<22}{'weights':>10}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'in all':>9}"
    for count in devices:
        tensor = math.gcd(8, config.K) if count > 8 else 1
        axes = dict.fromkeys(AXES, 1) | {"fsdp": count // tensor, "tensor": tensor}
        found = train_memory(config, batch=count // tensor, length=length, axes=axes, remat="full")
        name = " x ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1) or "one device"
        parts = (found.params, found.grads, found.optimizer, found.activations)
        widths = (10, 11, 11, 13)
        yield (f"{name:<22}" + "".join(f"{part / GIB:>{width}.3g}" for part, width in zip(parts, widths))
               + f"{found.peak / GIB:>9.3g}")
