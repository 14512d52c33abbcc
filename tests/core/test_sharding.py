import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError


def test_partition_uses_each_mesh_axis_once():
    rules = sharding.get_rules("fsdp_tensor")
    assert sharding.partition(("layers", "embed", "heads"), rules) == PartitionSpec(None, "fsdp", "tensor")
    assert sharding.partition(("embed", "embed"), rules) == PartitionSpec("fsdp", None)
    assert sharding.partition(("batch", "seq"), rules) == PartitionSpec(("data", "fsdp", "expert"), None)


def test_the_mesh_always_has_every_axis():
    mesh = sharding.make_mesh(sharding.Layout(fsdp=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1, "expert": 1}


@pytest.mark.parametrize("layout", [sharding.Layout(fsdp=3), sharding.Layout(data=16), sharding.Layout(data=2)])
def test_a_layout_that_does_not_fit_is_refused(layout):
    with pytest.raises(UserError, match="8 device"):
        sharding.make_mesh(layout)


def test_two_rests_are_refused():
    with pytest.raises(ValueError, match="-1"):
        sharding.Layout(data=-1, fsdp=-1)


def test_a_batch_the_mesh_cannot_divide_names_one_that_it_can():
    mesh, rules = sharding.make_mesh(sharding.Layout()), sharding.get_rules("fsdp")
    with pytest.raises(UserError, match=r"batch=12: cannot be divided over 8 .*; batch=16 can"):
        sharding.check_batch(12, mesh, rules)
    sharding.check_batch(16, mesh, rules)


def test_a_parameter_the_mesh_cannot_divide_is_named():
    mesh, rules = sharding.make_mesh(sharding.Layout(data=1, fsdp=8)), sharding.get_rules("fsdp")
    with pytest.raises(UserError, match=r"'w'.*'embed' dimension is 6.*fsdp of size 8"):
        sharding.param_shardings({"w": ("embed",)}, {"w": jax.ShapeDtypeStruct((6,), jnp.float32)}, mesh, rules)


def test_shard_takes_effect_inside_its_context_only():
    mesh, rules = sharding.make_mesh(sharding.Layout()), sharding.get_rules("fsdp")
    x = jnp.zeros((8, 4))
    assert sharding.shard(x, "batch", None) is x
    with sharding.in_force(mesh, rules):
        laid_out = jax.jit(lambda x: sharding.shard(x, "batch", None))(x)
    assert laid_out.sharding.shard_shape(x.shape) == (1, 4)
