"""Collectives read from a program's text: counted as often as they run, and as large as they are."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgpt.plan.hlo import Collective, collectives

TEXT = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %carry = (s32[], bf16[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%carry), index=1
  %kernel = bf16[8,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config="
}
{ a kernel's text has lines of any kind }"
  %gathered = bf16[32,16]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %again = bf16[8,16]{1,0} slice(%gathered), slice={[0:8], [0:16]}
  ROOT %next = (s32[], bf16[8,16]) tuple(%i, %again)
}

%condition (carry: (s32[], bf16[8,16])) -> pred[] {
  %carry = (s32[], bf16[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {
  %p = f32[64] parameter(0)
  %whole = f32[64] all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = f32[8] dynamic-slice(%whole), dynamic_slice_sizes={8}
}

ENTRY %main (x: bf16[8,16], g: f32[64], h: f32[10], k: f32[6]) -> f32[8] {
  %x = bf16[8,16] parameter(0)
  %g = f32[64] parameter(1)
  %h = f32[10] parameter(2)
  %k = f32[6] parameter(3)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,16]) tuple(%zero, %x)
  %loop = (s32[], bf16[8,16]) while(%start), condition=%condition, body=%body
  %sums = (f32[10], f32[6]) all-reduce(%h, %k), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
  %begun = (f32[10], f32[10]) collective-permute-start(%h), source_target_pairs={{0,1},{1,0}}
  %moved = f32[10] collective-permute-done(%begun)
  ROOT %scattered = f32[8] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_program_worked_by_hand():
    assert set(collectives(TEXT, 8)) == {
        Collective("all-gather", 32 * 16 * 2, 4, 12),  # in a loop of 12
        Collective("reduce-scatter", 64 * 4, 8, 1),  # a fusion of all-reduce and slice
        Collective("all-reduce", (10 + 6) * 4, 4, 1),
        Collective("collective-permute", 10 * 4, 8, 1)}


@pytest.mark.parametrize("kind, sent", [("all-gather", 700.0), ("reduce-scatter", 700.0), ("all-to-all", 700.0),
                                        ("all-reduce", 1400.0), ("collective-permute", 800.0)])
def test_bytes_that_leave_a_device_over_a_ring(kind, sent):
    assert Collective(kind, 100, 8, 8).sent == pytest.approx(sent)


def test_a_real_program_of_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def layers(x, weights):
        def layer(x, weight):  # the rows of the weight are split: they are gathered in each of 5 layers
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), rows), None
        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    compiled = jax.jit(layers, in_shardings=(rows, split), out_shardings=whole).lower(
        jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((5, 128, 128), jnp.float32)).compile()
    found = {one.kind: one for one in collectives(compiled.as_text(), 8)}
    assert found["all-gather"] == Collective("all-gather", 128 * 128 * 4, 8, 5)
    assert found["all-reduce"] == Collective("all-reduce", 4, 8, 1)
