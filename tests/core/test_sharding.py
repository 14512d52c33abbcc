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


def test_a_length_the_mesh_cannot_divide_names_one_that_it_can():
    mesh = sharding.make_mesh(sharding.Layout(sequence=4))
    with pytest.raises(UserError, match=r"sft.length=1023: positions cannot be divided over 4 .*; 1024 can"):
        sharding.check_length(1023, mesh, sharding.get_rules("fsdp_tensor_sequence"), "sft.length")
    sharding.check_length(1024, mesh, sharding.get_rules("fsdp_tensor_sequence"))
    sharding.check_length(1023, mesh, sharding.get_rules("fsdp"))


@pytest.mark.parametrize("heads, kv_heads, message", [
    (6, 6, r"model.heads=6: heads cannot be divided over 4 .*8 can, and so can 6 over 2"),
    (12, 3, r"model.kv_heads=3: neither divides nor is divided by 4 .*4 can be, and so can 3 over 1"),
    (12, 2, None), (8, 4, None), (8, 8, None)])
def test_heads_are_never_cut(heads, kv_heads, message):
    """The flattened projections, heads x head size, could be divided in all of these cases."""
    mesh, rules = sharding.make_mesh(sharding.Layout(tensor=4)), sharding.get_rules("fsdp_tensor")
    if message is None:
        sharding.check_heads(heads, kv_heads, mesh, rules)
    else:
        with pytest.raises(UserError, match=message):
            sharding.check_heads(heads, kv_heads, mesh, rules)


def test_an_axis_that_nothing_is_split_over_is_refused():
    mesh = sharding.make_mesh(sharding.Layout(data=2, fsdp=2, sequence=2))
    with pytest.raises(UserError, match="layout.sequence=2: .*rules that use it: fsdp_tensor_sequence"):
        sharding.check_used(mesh, sharding.get_rules("fsdp_tensor"))
    sharding.check_used(mesh, sharding.get_rules("fsdp_tensor_sequence"))


def test_the_expert_axis_takes_rows():
    mesh = sharding.make_mesh(sharding.Layout(data=2, fsdp=2, expert=2))
    for name in sharding.RULES:
        rules = sharding.get_rules(name)
        sharding.check_used(mesh, rules)
        assert sharding.batch_sharding(mesh, rules).shard_shape((8, 4)) == (1, 4)


def test_the_layout_is_told_with_what_a_device_holds():
    mesh = sharding.make_mesh(sharding.Layout(data=2, sequence=4))
    assert sharding.describe(mesh, "fsdp_tensor_sequence", 6, 1024) == (
        "8 x cpu: data 2 x sequence 4, rules 'fsdp_tensor_sequence'; each device holds 3 of 6 rows and 256 of 1024 "
        "positions")
    assert sharding.describe(mesh, "fsdp").endswith("rules 'fsdp'")


def test_what_does_not_divide_stays_whole():
    mesh, rules = sharding.make_mesh(sharding.Layout(data=2, tensor=4)), sharding.get_rules("fsdp_tensor")
    with sharding.in_force(mesh, rules):
        laid_out = jax.jit(lambda x: sharding.shard(x, "batch", "heads"))(jnp.zeros((4, 6)))
        assert laid_out.sharding.shard_shape((4, 6)) == (2, 6)
        assert sharding.parts("heads", 8) == 4 and sharding.parts("heads", 6) == 1
        assert sharding.mesh_axes("heads", 8) == ("tensor",) and sharding.mesh_axes("heads", 6) == ()


def test_on_shards_gives_each_device_its_part():
    mesh, rules = sharding.make_mesh(sharding.Layout(data=2, tensor=4)), sharding.get_rules("fsdp_tensor")
    shapes = []

    def double(x, y):
        shapes.append((x.shape, y.shape))
        return 2 * x + y.sum()

    x, y = jnp.arange(32.0).reshape(4, 8), jnp.ones(3)
    with sharding.in_force(mesh, rules):
        out = jax.jit(sharding.on_shards(double, ("batch", "heads"), (None,)))(x, y)
    assert shapes == [((2, 2), (3,))] and (out == 2 * x + 3).all()
    assert sharding.on_shards(double, ("batch", "heads"), (None,)) is double  # no mesh in force


def test_the_platform_is_that_of_the_mesh():
    assert sharding.platform() == jax.default_backend()
    with sharding.in_force(sharding.make_mesh(sharding.Layout()), sharding.get_rules("fsdp")):
        assert sharding.platform() == "cpu"
