"""The one file that knows the mesh: its axes, the rules from logical axes to mesh axes, and how state is laid out.

Parameters and activations name logical axes ("embed", "heads", "batch"). A table of rules says on which mesh axes each
is split. `jax.jit` with in_shardings and out_shardings is what used to be called pjit; nothing else is needed.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.core.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence", "expert")

# Logical axis -> the mesh axes that split it. What is not named is not split. Rows go over the expert axis too: between
# the expert layers it is one more data axis, and a model without experts can use it as that. "lookup" is the batch of
# what is looked up in a table whose columns are split over fsdp, "loss" the positions whose logits a device computes.
_ACTIVATIONS = {"batch": ("data", "fsdp", "expert"), "lookup": ("data", "expert")}
RULES: dict[str, dict[str, tuple[str, ...]]] = {
    "replicated": {**_ACTIVATIONS},
    "fsdp": {**_ACTIVATIONS, "embed": ("fsdp",)},
    "fsdp_tensor": {**_ACTIVATIONS, "loss": ("tensor",), "embed": ("fsdp",), "vocab": ("tensor",), "heads": ("tensor",),
                    "kv_heads": ("tensor",), "mlp": ("tensor",), "expert": ("expert",)},
    "fsdp_tensor_sequence": {**_ACTIVATIONS, "seq": ("sequence",), "loss": ("sequence", "tensor"), "embed": ("fsdp",),
                             "vocab": ("tensor",), "heads": ("tensor",), "kv_heads": ("tensor",), "mlp": ("tensor",),
                             "expert": ("expert",)},
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many devices each mesh axis gets; -1 on one axis means all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"layout {dict(zip(AXES, sizes))}: sizes are at least 1, and on at most one axis -1, "
                             "which takes the rest")


def make_mesh(layout: Layout, devices=None) -> Mesh:
    """The mesh of a layout over all devices.

    Raises:
      UserError: the layout does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh puts neighbours on a TPU's torus next to each other; Auto lets the compiler place what is between
    return jax.make_mesh(layout_sizes(layout, len(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES),
                         devices=devices)


def abstract_mesh(layout: Layout, count: int) -> AbstractMesh:
    """The mesh of a layout over `count` devices that need not be there: enough for shapes, not for compiling.

    Raises:
      UserError: the layout does not fit.
    """
    return AbstractMesh(layout_sizes(layout, count), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def layout_sizes(layout: Layout, count: int) -> tuple[int, ...]:
    """The size of each mesh axis over `count` devices.

    Raises:
      UserError: they do not multiply to it, with the nearest layout that does.
    """
    sizes = dataclasses.astuple(layout)
    fixed = math.prod(size for size in sizes if size != -1)
    if count % fixed or (-1 not in sizes and fixed != count):
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes) if size != 1)
        raise UserError(f"layout {asked}: the sizes multiply to {fixed}, but there {_are(count)}; "
                        f"{_nearest_layout(sizes, count)} works")
    return tuple(count // fixed if size == -1 else size for size in sizes)


def _are(count: int) -> str:
    return "is one device" if count == 1 else f"are {count} devices"


def _nearest_layout(sizes: tuple[int, ...], count: int) -> str:
    """The same layout with each axis cut to what divides the devices that are left; the first axis that was free, or
    else the largest, takes the rest."""
    found, left = list(sizes), count
    rest = found.index(-1) if -1 in found else found.index(max(found))
    for axis in range(len(found)):
        if axis != rest:
            found[axis] = math.gcd(found[axis], left)
            left //= found[axis]
    found[rest] = left
    return " x ".join(f"{name} {size}" for name, size in zip(AXES, found) if size != 1) or "data 1"


def get_rules(name: str) -> dict[str, tuple[str, ...]]:
    """The rules of a preset by name.

    Raises:
      UserError: no such preset.
    """
    if name not in RULES:
        raise UserError(f"rules: no preset is called '{name}'; valid: {', '.join(RULES)}")
    return RULES[name]


# --- activations -----------------------------------------------------------------------------------------------------

_IN_FORCE: contextvars.ContextVar[tuple[Mesh, dict] | None] = contextvars.ContextVar("mesh_and_rules", default=None)


@contextlib.contextmanager
def in_force(mesh: Mesh, rules: dict):
    """Within this context, `shard` constrains activations to the mesh by the rules."""
    token = _IN_FORCE.set((mesh, rules))
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays `x` out by its logical axes; the identity where no mesh is in force or it has one device.

    A dimension that its mesh axes cannot divide (one token of a decode step, 2 heads over 4 devices) stays whole.
    """
    found = _IN_FORCE.get()
    if found is None or found[0].size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(found[0], _fitting(x.shape, axes, *found)))


def on_shards(function, *axes: tuple[str | None, ...], out_rank: int | None = None):
    """`function` run by each device on its own part of the arguments: for kernels, which the compiler cannot split, and
    loops, which it splits badly.

    Args:
      function: arrays -> arrays whose dimensions are the first `out_rank` ones of the first argument.
      axes: the logical axes of each argument. A dimension that its mesh axes cannot divide stays whole.
      out_rank: all dimensions of the first argument where None.
    """
    found = _IN_FORCE.get()
    if found is None or found[0].size == 1:
        return function

    def alone(*arrays):
        token = _IN_FORCE.set(None)  # inside, arrays are one device's own
        try:
            return function(*arrays)
        finally:
            _IN_FORCE.reset(token)

    def mapped(*arrays):
        specs = tuple(_fitting(array.shape, names, *found) for array, names in zip(arrays, axes, strict=True))
        out = PartitionSpec(*tuple(specs[0])[:out_rank])
        return jax.shard_map(alone, mesh=found[0], in_specs=specs, out_specs=out, check_vma=False)(*arrays)

    return mapped


def mesh_axes(axis: str, size: int) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of that size now, as `on_shards` has it; () where it stays whole."""
    found = _IN_FORCE.get()
    if found is None:
        return ()
    names = tuple(name for name in found[1].get(axis, ()) if found[0].shape[name] > 1)
    while size % _count(found[0], names):
        names = names[:-1]
    return names


def parts(axis: str, size: int) -> int:
    """In how many parts a logical axis of that size lies on the devices now; 1 where it stays whole."""
    return math.prod(_IN_FORCE.get()[0].shape[name] for name in mesh_axes(axis, size))


def sequence_is_split() -> bool:
    """Whether positions of one sequence live on several devices (then [B, T] must not be flattened to [B*T])."""
    found = _IN_FORCE.get()
    return found is not None and "seq" in found[1] and found[0].shape["sequence"] > 1


def platform() -> str:
    """"tpu", "gpu" or "cpu": that of the mesh in force, which need not be this machine's (programs are compiled for
    devices that are not there)."""
    found = _IN_FORCE.get()
    return jax.default_backend() if found is None else found[0].devices.flat[0].platform


# --- parameters and state --------------------------------------------------------------------------------------------

def partition(axes, rules: dict) -> PartitionSpec:
    """Logical axes of one array -> its PartitionSpec; a mesh axis is used by the first dimension that asks for it.

    >>> tuple(partition(("vocab", "embed"), RULES["fsdp_tensor"]))
    ('tensor', 'fsdp')
    """
    used: set[str] = set()
    spec = []
    for axis in axes:
        mesh_axes = tuple(name for name in rules.get(axis, ()) if name not in used)
        used.update(mesh_axes)
        spec.append(mesh_axes if len(mesh_axes) > 1 else mesh_axes[0] if mesh_axes else None)
    return PartitionSpec(*spec)


def _fitting(shape, axes, mesh: Mesh, rules: dict) -> PartitionSpec:
    """The partition of an activation, without the mesh axes, the last ones first, that do not divide their dimension."""
    def dividing(size: int, names: tuple[str, ...]):
        while size % _count(mesh, names):
            names = names[:-1]
        return names or None

    return PartitionSpec(*(dividing(size, _as_tuple(names)) for size, names in zip(shape, partition(axes, rules))))


def _count(mesh: Mesh, names: Any) -> int:
    """How many devices lie along some mesh axes."""
    return math.prod(mesh.shape[name] for name in _as_tuple(names))


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: dict) -> NamedSharding:
    """How a batch [B, ...] lies on the mesh: rows over the data axes."""
    return NamedSharding(mesh, partition(("batch",), rules))


def param_shardings(logical_axes, abstract_params, mesh: Mesh, rules: dict):
    """The sharding of each parameter.

    Args:
      logical_axes: tree like the parameters, each leaf a tuple of logical axis names.
      abstract_params: tree of shapes.

    Raises:
      UserError: a dimension cannot be divided as the rules ask, with the numbers.
    """
    def one(path, axes, leaf):
        spec = partition(axes, rules)
        for size, axis, names in zip(leaf.shape, axes, spec):
            if size % (count := _count(mesh, names)):
                raise UserError(f"parameter {jax.tree_util.keystr(path)}: its '{axis}' dimension is {size}, which the "
                                f"mesh axes {', '.join(_as_tuple(names))} of size {count} cannot divide; "
                                f"{_nearest(size, count)} can be")
        return NamedSharding(mesh, spec)

    return jax.tree.map_with_path(one, logical_axes, abstract_params, is_leaf=lambda x: isinstance(x, tuple))


def state_shardings(abstract_state, shardings_of_params, mesh: Mesh):
    """The sharding of a whole TrainState: what mirrors a parameter (by the end of its path, and shape) lies like it.

    This is what makes optimizer state sharded in the way of ZeRO (Rajbhandari et al. 2020): moments follow parameters.
    """
    params = {}
    flat = jax.tree.leaves_with_path(abstract_state.params)
    for (path, leaf), sharding in zip(flat, jax.tree.leaves(shardings_of_params)):
        params[tuple(map(str, path))] = (leaf.shape, sharding)
    longest = max(map(len, params), default=0)

    def one(path, leaf):
        path = tuple(map(str, path))
        for length in range(min(longest, len(path)), 0, -1):
            shape, sharding = params.get(path[-length:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree.map_with_path(one, abstract_state)


# --- checks at the start ---------------------------------------------------------------------------------------------

def check_batch(size: int, mesh: Mesh, rules: dict, name: str = "batch", accumulate: int = 1) -> None:
    """Refuses a batch that the mesh cannot divide.

    Raises:
      UserError: with the numbers and the nearest batch that fits.
    """
    axes = rules.get("batch", ())
    count = _count(mesh, axes) * accumulate
    if size % count:
        raise UserError(f"{name}={size}: cannot be divided over {count} (mesh axes "
                        + " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes if mesh.shape[axis] > 1)
                        + (f" x accumulate {accumulate}" if accumulate > 1 else "")
                        + f"); {name}={_nearest(size, count)} can")


def check_length(length: int, mesh: Mesh, rules: dict, name: str = "length") -> None:
    """Refuses sequences that the mesh cannot divide.

    Raises:
      UserError: with the numbers and the nearest length that fits.
    """
    count = _count(mesh, rules.get("seq", ()))
    if length % count:
        raise UserError(f"{name}={length}: positions cannot be divided over {count} devices (mesh axis sequence); "
                        f"{_nearest(length, count)} can")


def check_heads(heads: int, kv_heads: int, mesh: Mesh, rules: dict) -> None:
    """Refuses a model whose attention heads the mesh would cut in two.

    Fewer key-value heads than devices are fine where each then serves a whole number of devices.

    Raises:
      UserError: with the numbers and the nearest that fit.
    """
    count, kv_count = _count(mesh, rules.get("heads", ())), _count(mesh, rules.get("kv_heads", ()))
    if heads % count:
        raise UserError(f"model.heads={heads}: heads cannot be divided over {count} devices (mesh axis tensor); "
                        f"{_nearest(heads, count)} can, and so can {heads} over {math.gcd(heads, count)}")
    if kv_heads % kv_count and kv_count % kv_heads:
        raise UserError(f"model.kv_heads={kv_heads}: neither divides nor is divided by {kv_count} devices (mesh axis "
                        f"tensor); {_nearest(kv_heads, kv_count)} can be, and so can {kv_heads} over "
                        f"{math.gcd(kv_heads, kv_count)}")


def check_used(mesh: Mesh, rules: dict) -> None:
    """Refuses a mesh axis that the rules split nothing over: its devices would all do the same work.

    Raises:
      UserError: names the axis and the presets that use it.
    """
    used = {name for names in rules.values() for name in names}
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            fits = [name for name, other in RULES.items() if any(axis in names for names in other.values())]
            raise UserError(f"layout.{axis}={size}: these rules split nothing over it, so {size} devices would do the "
                            f"same work; rules that use it: {', '.join(fits)}")


def _nearest(size: int, count: int) -> int:
    return max(count, count * round(size / count))


def rows_here(size: int, sharding: NamedSharding) -> np.ndarray:
    """Which rows of a batch of `size` this host's devices hold, in order: those that it loads and gives to `put`."""
    return np.concatenate([np.arange(size)[rows] for rows in _slices_here(size, sharding)])


def put(tree, sharding: NamedSharding):
    """Puts host arrays on the mesh; on several hosts each gives the rows that `rows_here` names, and no others."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    names = _as_tuple(next(iter(sharding.spec), None))
    parts = math.prod(sharding.mesh.shape[name] for name in names)

    def one(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)  # it is on the mesh already
        here = _slices_here(parts, sharding)  # parts of one row each; of any batch they come in the same order
        each = len(x) // len(here)
        places = {rows.start * each: place * each for place, rows in enumerate(here)}

        def piece(index):
            place = places[index[0].start or 0]
            return x[place:place + each][(slice(None), *index[1:])]

        return jax.make_array_from_callback((each * parts, *x.shape[1:]), sharding, piece)

    return jax.tree.map(one, tree)


def _slices_here(size: int, sharding: NamedSharding) -> list[slice]:
    """The parts of `size` rows that this host's devices hold, each once, in order."""
    rows = NamedSharding(sharding.mesh, PartitionSpec(*tuple(sharding.spec)[:1]))
    found = {index[0].indices(size)[:2] for index in rows.addressable_devices_indices_map((size,)).values()}
    return [slice(*bounds) for bounds in sorted(found)]


def describe(mesh: Mesh, rules_name: str, rows: int | None = None, length: int | None = None) -> str:
    """One line that says how the devices are laid out, and what each holds of a batch where its size is given."""
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    text = f"{mesh.size} x {mesh.devices.flat[0].device_kind}: {sizes}, rules '{rules_name}'"
    if rows is None or length is None:
        return text
    rules = get_rules(rules_name)
    held = rows / _count(mesh, rules.get("batch", ())), length / _count(mesh, rules.get("seq", ()))
    return f"{text}; each device holds {held[0]:g} of {rows} rows and {held[1]:g} of {length} positions"


def _as_tuple(names: Any) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
