"""Names of hardware: what Cloud sells, and what it does not."""

import math

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.plan.hardware import CHIPS, SLICES, parse_target


@pytest.mark.parametrize("text, topology, devices, hosts", [
    ("v5e-1", "v5e:1x1", 1, 1), ("v5e-8", "v5e:2x4", 8, 1), ("v5e-16", "v5e:4x4", 16, 4),
    ("v5litepod-256", "v5e:16x16", 256, 64), ("v6e-256", "v6e:16x16", 256, 64), ("v5e:2x4", "v5e:2x4", 8, 1),
    # two TensorCores a chip: 128 of them are 64 chips
    ("v5p-8", "v5p:2x2x1", 4, 1), ("v5p-128", "v5p:4x4x4", 64, 16), ("v5p-12288", "v5p:16x16x24", 6144, 1536),
    ("V5P-128 ", "v5p:4x4x4", 64, 16), ("v5p:4x4x12", "v5p:4x4x12", 192, 48),
    ("h100-8", None, 8, 1), ("h200-1", None, 1, 1), ("a100-64", None, 64, 8)])
def test_names(text, topology, devices, hosts):
    target = parse_target(text)
    assert (target.topology, target.devices, target.hosts) == (topology, devices, hosts)
    assert target.chip is CHIPS[(topology or text).split(":")[0].split("-")[0]]
    assert math.prod(target.shape) == devices


@pytest.mark.parametrize("name", SLICES)
def test_every_slice_has_the_chips_its_name_counts(name):
    for size, shape in SLICES[name].items():
        assert math.prod(shape) * (2 if name == "v5p" else 1) == size
        assert len(shape) == CHIPS[name].link_axes and list(shape) == sorted(shape, key=lambda side: (side == 1, side))


@pytest.mark.parametrize("text, told", [
    ("v5p-100", "v5p-100: no such slice; the nearest are v5p-64 and v5p-128"),
    ("v5e-512", "v5e-512: no such slice; the nearest is v5e-256"), ("v5e-2", "v5e-1 and v5e-4"),
    ("v5e:3x3", "v5e:3x3: no such slice; the nearest is v5e:2x4"), ("v5e:4x2", "v5e:2x4"),
    ("v5p:4x4x5", "v5p:4x4x4"), ("v5p:4x4", "the nearest is v5p:2x2x4"), ("v5p:64x64x64", "v5p:16x16x24"),
    ("v5p:0x4x4", "no such slice"), ("h100-12", "the nearest is h100-16"), ("h100-0", "the nearest is h100-8"),
    ("v9-8", "chips: v5e, v5p, v6e, a100, h100, h200"), ("v5e", "such as v5e-16"), ("", "no such hardware"),
    ("v5e-4x4", "a shape follows a colon, v5e:4x4")])
def test_what_is_not_sold_is_refused_with_the_nearest_that_is(text, told):
    with pytest.raises(UserError) as refused:
        parse_target(text)
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLICES)
def test_libtpu_knows_every_slice(name, monkeypatch):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may hold the lock that real TPUs need
    for size in [size for size in SLICES[name] if size <= 1024]:
        target = parse_target(f"{name}-{size}")
        devices = topologies.get_topology_desc(target.topology, platform="tpu",
                                               chips_per_host_bounds=target.chips_per_host_bounds).devices
        assert len(devices) == target.devices
        assert len({device.process_index for device in devices}) == target.hosts
