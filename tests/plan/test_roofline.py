"""The time of a step: by hand, by what must hold of any step, and against what others have published."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.model import presets
from jaxgpt.plan import published
from jaxgpt.plan.cost import Collective, Cost, Matmul, decode_cost, train_cost
from jaxgpt.plan.hardware import CHIPS
from jaxgpt.plan.roofline import CONSTANTS, Constants, device_times, step_time

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "fit_roofline.py"
PERFECT = Constants(product=1, memory=0, attention=1, layers=0, activations=1, gradients=0, waiting=0)
LLAMA = dataclasses.replace(presets.llama3("8B"), remat="full")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("fit_roofline", PROGRAM)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def cost_of(*matmuls, collectives=(), devices=1, model_flops=0.0):
    return Cost(devices, 1000, model_flops, matmuls, 0.0, 128, (), collectives)


# --- by hand ---------------------------------------------------------------------------------------------------------

def test_a_large_product_is_bound_by_operations_and_a_thin_one_by_memory():
    chip = CHIPS["v5e"]
    large, thin = Matmul("large", 8192, 8192, 8192, 1), Matmul("thin", 8, 8192, 8192, 1)
    found = step_time(cost_of(large, model_flops=large.flops), chip, constants=PERFECT)
    assert found.seconds == pytest.approx(2 * 8192 ** 3 / 197e12) and found.binding == "compute"
    assert found.mfu == pytest.approx(1.0) and found.tokens_per_second == pytest.approx(1000 / found.seconds)
    found = step_time(cost_of(thin), chip, constants=PERFECT)
    assert found.seconds == pytest.approx(2 * (8192 ** 2 + 2 * 8 * 8192) / 819e9) and found.binding == "memory"


def test_products_are_padded_to_tiles():
    exact, ragged = (device_times(cost_of(Matmul("x", 1024, 256, n, 1)), CHIPS["v6e"]).products[0] for n in (512, 257))
    assert exact == ragged == 2 * 1024 * 256 * 512 / 918e12


def test_float32_products_take_twice_as_long_on_gpu_only():
    for name, ratio in (("h200", 2), ("v5p", 1)):
        half, full = (device_times(cost_of(Matmul("x", 1024, 256, 512, 1, size)), CHIPS[name]) for size in (2, 4))
        assert full.products[0] / half.products[0] == ratio and full.product_memory[0] == 2 * half.product_memory[0]


def test_small_heads_leave_lanes_of_a_tpu_empty():
    cost = dataclasses.replace(cost_of(Matmul("x", 8, 128, 128, 1)), attention_flops=1e12)
    for name, head_dim, ratio in (("v5e", 64, 2), ("v5e", 128, 1), ("v5e", 192, 4 / 3), ("h200", 64, 1)):
        chip = CHIPS[name]
        attention = device_times(dataclasses.replace(cost, head_dim=head_dim), chip).attention
        assert attention == pytest.approx(ratio * 1e12 / chip.bf16_flops)


def test_rings_use_the_axes_that_they_span():
    gather = Collective("all-gather", "fsdp", 256, 1, 256e6, 1, "")
    # 16 x 16 chips, both axes, both directions: 4 x 50 GB/s
    times = device_times(cost_of(collectives=(gather,), devices=256), CHIPS["v5e"])
    assert times.layers == times.links == pytest.approx(255e6 / 200e9) and times.network == 0
    # 16 of 256 lie on one axis
    reduce = Collective("all-reduce", "tensor", 16, 1, 256e6, 1, "")
    times = device_times(cost_of(collectives=(reduce,), devices=256), CHIPS["v5e"])
    assert times.activations == pytest.approx(2 * 240e6 / 100e9)


def test_what_leaves_a_slice_goes_over_the_network():
    reduce = Collective("all-reduce", "data", 4, 256, 1e9, 1, "gradients")
    times = device_times(cost_of(collectives=(reduce,), devices=1024), CHIPS["v5e"], slice_devices=256)
    assert times.gradients == times.network == pytest.approx(2 * 0.75e9 / 3.125e9) and times.slices == 4
    # 64 GPUs: eight share NVLink, each then exchanges an eighth with seven others
    gather = Collective("all-gather", "fsdp", 64, 1, 64e6, 1, "")
    times = device_times(cost_of(collectives=(gather,), devices=64), CHIPS["h100"])
    assert times.links == pytest.approx(56e6 / 450e9) and times.network == pytest.approx(7e6 / 50e9)


def test_exchange_of_parameters_hides_until_there_is_too_much_of_it():
    product = Matmul("x", 8192, 8192, 8192, 1)
    seconds = product.flops / 197e12
    hides = dataclasses.replace(PERFECT, layers=0.5)

    def step(share):
        size = share * seconds * 200e9 * 256 / 255
        gather = Collective("all-gather", "fsdp", 256, 1, size, 1, "")
        cost = cost_of(product, collectives=(gather,), devices=256)
        return step_time(cost, CHIPS["v5e"], constants=hides).seconds / seconds

    assert step(0.2) == pytest.approx(1 + 0.5 * 0.2 * 0.2)
    assert step(1.0) == pytest.approx(1.5)
    assert step(3.0) == pytest.approx(4.0)  # nothing hides any more


# --- properties ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["v5e", "v5p", "v6e", "h200"])
def test_a_token_costs_less_the_more_rows_a_device_has(name):
    costs = [train_cost(LLAMA, batch=64 * rows, length=4096, axes={"fsdp": 64}) for rows in (1, 2, 4, 8)]
    rates = [step_time(cost, CHIPS[name]).tokens_per_second for cost in costs]
    assert rates == sorted(rates) and rates[-1] > 1.02 * rates[0]


@pytest.mark.parametrize("name", ["v5e", "v5p", "v6e"])
def test_more_chips_with_as_many_rows_each_take_little_longer(name):
    steps = [step_time(train_cost(LLAMA, batch=2 * chips, length=4096, axes={"fsdp": chips}), CHIPS[name]).seconds
             for chips in (16, 64, 256)]
    assert all(larger < 1.1 * smaller for smaller, larger in zip(steps, steps[1:]))
    assert steps[0] != steps[1] != steps[2]


@pytest.mark.parametrize("name", CHIPS)
def test_no_plan_beats_the_chip(name):
    for config, axes, batch in ((presets.gpt2("124M"), {"data": 8}, 64), (LLAMA, {"fsdp": 32, "tensor": 2}, 64),
                                (presets.llama3("70B"), {"fsdp": 256}, 256)):
        length = config.context
        found = step_time(train_cost(config, batch=batch, length=length, axes=axes), CHIPS[name])
        assert 0.03 < found.mfu < 1 and found.seconds > max(found.compute, 0.5 * found.links)


def test_a_faster_chip_is_faster():
    times = {name: step_time(train_cost(LLAMA, batch=256, length=4096, axes={"fsdp": 64}), CHIPS[name]).seconds
             for name in CHIPS}
    assert times["v6e"] < times["v5p"] < times["v5e"] and times["h200"] < times["h100"] < times["a100"]


def test_remat_costs_time():
    times = [step_time(train_cost(LLAMA, batch=128, length=4096, axes={"fsdp": 64}, remat=policy), CHIPS["v5p"]).seconds
             for policy in ("none", "dots", "names", "full")]
    assert times == sorted(times) and len(set(times)) == 3  # "dots" computes no product again


def test_decoding_few_rows_is_bound_by_memory():
    one, eight = (step_time(decode_cost(LLAMA, batch=batch, context=2048, axes={}), CHIPS["h200"]) for batch in (1, 8))
    assert one.binding == eight.binding == "memory"
    # weights of 8.03e9 parameters less the input embedding, two bytes each, read once
    assert 1 < one.seconds / (2 * 7.5e9 / 4800e9) < 1.3
    assert eight.seconds < 1.3 * one.seconds


# --- what others have published --------------------------------------------------------------------------------------

def test_published_shapes_have_the_sizes_of_their_names():
    for billions in (16, 32, 64, 128, 256, 512, 1024):
        model = next(p.model for p in published.POINTS if p.name.startswith(f"{billions}B,"))
        weights = published.cost.model_flops(model, 1) / 6 / 1e9
        assert 0.9 < weights / billions < 1.15, (billions, weights)


def test_published_steps_are_plausible():
    names = [point.name for point in published.POINTS]
    assert len(set(names)) == len(names)
    for point in published.POINTS:
        axes = dict(point.axes)
        assert np.prod(list(axes.values())) == point.devices, point.name
        executed = point.cost.flops / point.seconds / point.chip.bf16_flops
        assert 0.3 < point.mfu < executed < 0.9, point.name


def test_published_utilisation_by_another_count():
    """Two sources give both seconds and TFLOP/s, the latter by their own causal count."""
    for name, tflops in (("Llama-3.1-8B, v6e-256", 417.397), ("Llama-3.1-70B, v6e-256", 462.297)):
        point = next(p for p in published.POINTS if p.name == name)
        all_pairs = point.cost.model_flops / point.devices + point.rows * point.length * (
            6 * point.model.heads * point.model.H * point.model.layers * point.length)
        ours = [point.mfu * 918, all_pairs / point.seconds / 1e12]
        assert min(abs(value / tflops - 1) for value in ours) < 0.01, (name, ours)


def test_the_split_leaves_out_every_second_step():
    for points in published.families().values():
        fitted, left_out = published.split(points)
        assert not set(fitted) & set(left_out) and sorted(map(id, fitted + left_out)) == sorted(map(id, points))
        assert len(fitted) - len(left_out) in (0, 1)


def test_fitting_again_gives_the_committed_constants(program):
    found = program.shipped()
    assert found.keys() == CONSTANTS.keys()
    for chip, constants in found.items():
        committed = dataclasses.asdict(CONSTANTS[chip])
        assert dataclasses.asdict(constants) == pytest.approx(committed, rel=0.02, abs=2e-3), chip


def test_error_on_the_steps_left_out_is_at_most_half_that_of_a_constant(program):
    """The figures beside CONSTANTS, and which chips they do not hold for: 2.9% and 6.4% over all TPUs."""
    table = program.summary(program.rows(*program.halves()))
    steps, error, constant = table["TPU"]
    assert steps == 31
    assert error == pytest.approx(0.029, abs=0.001) and constant == pytest.approx(0.064, abs=0.001)
    assert error <= constant / 2
    ratios = {chip: error / constant for chip, (_, error, constant) in table.items()}
    assert ratios["v5e"] < 0.5 < ratios["v6e"] < ratios["v5p"] < 1 < ratios["gpu"]


def test_error_with_the_halves_exchanged(program):
    """The same bar is not met the other way round: 4.2% and 6.9%."""
    _, error, constant = program.summary(program.rows(*program.halves(turned=True)))["TPU"]
    assert error == pytest.approx(0.042, abs=0.001) and constant == pytest.approx(0.069, abs=0.001)


@pytest.mark.slow
def test_error_with_each_model_left_out_in_turn(program):
    """Models that no constant has seen: 4.6% and 7.4%."""
    steps, error, constant = program.summary(program.without_each_model())["TPU"]
    assert steps == 62
    assert error == pytest.approx(0.046, abs=0.001) and constant == pytest.approx(0.074, abs=0.001)


def test_our_recipes_reach_what_others_published_for_their_chip_and_size(program):
    """Fits with 5% to spare, and the planned utilisation is at least the published one."""
    assert {recipe.on.split("-")[0] for recipe in program.RECIPES} == {"v5e", "v5p", "v6e"}
    for recipe in program.RECIPES:
        mfu, memory = recipe.planned
        assert memory < 0.95 and mfu >= recipe.published, recipe.on
