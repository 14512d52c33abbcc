"""The count of a step against numbers worked by hand."""

import dataclasses

import pytest

from jaxgpt.model import presets, transformer
from jaxgpt.plan.cost import decode_cost, model_flops, positions_seen, train_cost, train_memory

GPT2 = presets.gpt2("124M")
# small enough to count by hand: D 8, N 4, K 2, H 2, F 16, V 32, L 3
TINY = transformer.Config(vocab_size=32, context=16, layers=3, width=8, heads=4, kv_heads=2, mlp_width=16,
                          dtype="bfloat16", loss_chunk=None)


def flops(cost, *names):
    return sum(matmul.flops for matmul in cost.matmuls if matmul.name in names)


def exchanges(cost, axis):
    return {(c.kind, c.what): (c.bytes, c.count, c.size, c.stride) for c in cost.collectives if c.axis == axis}


def test_model_flops_of_gpt2_by_hand():
    # 12 layers of 12 D^2 weights, the head V D; 1024 positions, half of them seen: 12 N H T / 2 a layer
    by_hand = 6 * (12 * 12 * 768 ** 2 + 50257 * 768) + 12 * 768 * 12 * 512
    assert by_hand == 797_815_296
    assert model_flops(GPT2, 1024) == by_hand
    cost = train_cost(GPT2, batch=4, length=1024, axes={})
    assert cost.model_flops == 4 * 1024 * by_hand and cost.tokens == 4096


@pytest.mark.parametrize("config", [GPT2, dataclasses.replace(TINY, windows=(4, None)), presets.llama3("1B")],
                         ids=["gpt2", "windows", "llama3"])
def test_model_flops_are_those_that_training_reports(config):
    """But for biases and scales, which no product multiplies."""
    length = config.context
    ours, theirs = model_flops(config, length), transformer.flops_per_token(config, length)
    leaves = 6 * config.layers * 13 * (config.width + config.F)
    assert 0 <= theirs - ours <= leaves


def test_products_of_the_forward_pass_by_hand():
    cost = train_cost(TINY, batch=2, length=16, axes={})
    tokens = 32
    forward = 2 * tokens * 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)  # q, k and v, o, and the mlp's three
    assert flops(cost, "q", "k", "v", "o", "up", "gate", "down") == forward == 110_592
    assert flops(cost, "head") == 2 * tokens * 8 * 32
    assert sum(m.flops for m in cost.matmuls) == 3 * (forward + 2 * tokens * 8 * 32)  # dx and dw cost the same


@pytest.mark.parametrize("policy, again", [("none", 0), ("dots", 0), ("names", 2 * 8 * 16), ("offload", 2 * 8 * 16),
                                           ("full", 8 * 8 + 2 * 8 * 4 + 8 * 8 + 2 * 8 * 16)])
def test_what_each_policy_computes_again(policy, again):
    once = train_cost(TINY, batch=2, length=16, axes={}, remat="none")
    cost = train_cost(dataclasses.replace(TINY, remat=policy), batch=2, length=16, axes={})
    assert sum(m.flops for m in cost.matmuls) - sum(m.flops for m in once.matmuls) == 2 * 32 * 3 * again
    assert cost.attention_flops / once.attention_flops == (4.5 / 3.5 if policy == "full" else 1)
    assert cost.model_flops == once.model_flops
    assert train_cost(TINY, batch=2, length=16, axes={}, remat=("q",)).flops > once.flops


def test_attention_counts_windows_and_half_blocks():
    # one layer sees 8 of 16 on average; one with a window of 4 sees 1, 2, 3, 4, 4, ...: 4 (1 - 4/32) = 3.5
    windowed = dataclasses.replace(TINY, layers=2, windows=(None, 4))
    assert positions_seen(windowed, 16) == 8 + 3.5
    assert positions_seen(windowed, 16, block=4) == 8 + 3.5 + 2 * 2
    exact = sum(min(t + 0.5, 4) for t in range(16)) / 16
    assert abs(exact - 3.5) < 0.05
    cost = train_cost(TINY, batch=1, length=16, axes={}, block=0)
    # forward and 2.5 of it backward; N H = 8, three layers
    assert cost.attention_flops == 3.5 * 4 * 16 * (4 * 2) * 3 * 8


def test_fsdp_gathers_each_layer_twice_and_scatters_its_gradients_once():
    cost = train_cost(TINY, batch=8, length=16, axes={"data": 2, "fsdp": 4}, accumulate=1)
    layer = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)  # bytes of one layer's weights in bfloat16
    assert layer == 1152
    found = exchanges(cost, "fsdp")
    assert found["all-gather", "parameters of a layer"] == (layer, 6, 4, 1)
    assert found["reduce-scatter", "gradients of a layer"] == (layer, 3, 4, 1)
    # a quarter of all parameters, in float32, once a step; its neighbours lie four devices apart
    weights = 3 * layer / 2 + 2 * 32 * 8
    assert exchanges(cost, "data") == {("all-reduce", "gradients"): (4 * weights / 4, 1, 2, 4)}
    gather = next(c for c in cost.collectives if c.what == "parameters of a layer")
    assert gather.wire_bytes() == 6 * layer * 3 / 4
    assert not exchanges(train_cost(TINY, batch=8, length=16, axes={}), "fsdp")


def test_tensor_axis_splits_products_and_exchanges_activations():
    whole, split = (train_cost(TINY, batch=2, length=16, axes=axes) for axes in ({}, {"tensor": 2}))
    assert split.flops * 2 == whole.flops
    assert exchanges(split, "tensor") == {("all-reduce", "activations"): (2 * 32 * 8, 4 * 3 + 2, 2, 1)}
    full = train_cost(TINY, batch=2, length=16, axes={"tensor": 2}, remat="full")
    assert exchanges(full, "tensor")["all-reduce", "activations"][1] == 5 * 3 + 2


def test_sequence_axis_gathers_keys_and_values():
    cost = train_cost(TINY, batch=1, length=16, axes={"sequence": 2})
    assert exchanges(cost, "sequence") == {("all-gather", "keys and values"): (2 * 2 * 16 * 2 * 2, 6, 2, 1),
                                           ("reduce-scatter", "their gradients"): (2 * 2 * 16 * 2 * 2, 3, 2, 1)}
    assert cost.flops * 2 == train_cost(TINY, batch=1, length=16, axes={}).flops


def test_accumulation_gathers_parameters_and_sums_gradients_each_time():
    axes = {"data": 2, "fsdp": 2}
    one, four = (train_cost(TINY, batch=16, length=16, axes=axes, accumulate=n) for n in (1, 4))
    assert one.flops == four.flops and one.model_flops == four.model_flops
    gathered = [exchanges(cost, "fsdp")["all-gather", "parameters of a layer"][1] for cost in (one, four)]
    assert gathered == [6, 24]
    summed = [exchanges(cost, "data")["all-reduce", "gradients"][1] for cost in (one, four)]
    assert summed == [1, 4]  # the compiler does not carry unsummed gradients from one micro-batch to the next


def test_muon_adds_its_iterations_split_over_all_devices():
    one = {name: train_cost(TINY, batch=4, length=16, axes={}, optimizer=name) for name in ("adamw", "muon")}
    q = 5 * 3 * (2 * 2 * 8 * 8 * 8 + 2 * 8 ** 3)  # X X^T and one more with X, and a square: 8 x 8
    assert flops(one["muon"], "q muon") == q
    assert flops(train_cost(TINY, batch=4, length=16, axes={"fsdp": 4}, optimizer="muon"), "q muon") == q / 4
    assert not flops(one["adamw"], "q muon")


def test_chunked_head_is_computed_again_for_losses_of_each_token():
    chunked = dataclasses.replace(TINY, loss_chunk=8)
    head = lambda config, **options: flops(train_cost(config, batch=2, length=16, axes={}, **options), "head")  # noqa: E731
    assert head(chunked, each_token=True) == 2 * head(TINY, each_token=True) == 2 * head(chunked) == 2 * head(TINY)


def test_decode_reads_weights_and_cache_once():
    cost = decode_cost(TINY, batch=4, context=16, axes={})
    assert cost.tokens == 4
    weights = 3 * 576 + 8 * 32
    cache = 4 * 3 * 2 * 16 * 2 * 2  # rows, layers, keys and values, positions, K, H
    # what each product reads and writes beside: rows (k + n), and for 2 queries of each of 8 key heads their scores
    beside = 4 * 3 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 3 * (8 + 16)) + 4 * (8 + 32) + 8 * 2 * 2 * (2 + 3 * 16)
    assert cost.memory_bytes == 2 * (weights + cache + beside)
    assert cost.model_flops == 4 * (2 * weights + 4 * 8 * 3 * 16)
    assert cost.flops == cost.model_flops


def test_decode_splits_heads_over_the_tensor_axis():
    """Four devices hold one query head each, and two of them share a copy of a key-value head."""
    cost = decode_cost(TINY, batch=4, context=16, axes={"tensor": 4})
    scores = next(matmul for matmul in cost.matmuls if matmul.name == "scores")
    assert (scores.m, scores.k, scores.n, scores.count) == (1, 2, 3 * 16, 4)
    assert cost.flops * 4 == decode_cost(TINY, batch=4, context=16, axes={}).flops


def test_memory_of_a_step():
    config = presets.llama3("8B")
    one = train_memory(config, batch=64, length=8192, axes={"fsdp": 64}, remat="full")
    weights = 32 * (2 * 4096 ** 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 128256 * 4096
    assert one.params == one.grads == 4 * weights / 64 and one.optimizer == 2 * one.params
    assert one.activations > 32 * 2 * 8192 * 4096  # the input of every layer
    assert one.peak == one.params + one.grads + one.optimizer + one.activations
    sizes = [train_memory(config, batch=64, length=8192, axes={"fsdp": 64}, remat=policy).activations
             for policy in ("full", "names", "dots", "none")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    halved = train_memory(config, batch=64, length=8192, axes={"fsdp": 64}, remat="full", moment_bytes=2)
    assert halved.optimizer == one.params


@pytest.mark.parametrize("axes, told", [({"fsdp": 3}, "batch=8: must divide by the 3 devices of data, fsdp and expert x accumulate 1"),
                                        ({"model": 2}, "no such axis as model")])
def test_what_does_not_divide_is_refused(axes, told):
    with pytest.raises(ValueError, match=told):
        train_cost(TINY, batch=8, length=16, axes=axes)


def test_an_unknown_policy_is_refused_with_the_valid_ones():
    for count in (train_cost, train_memory):
        with pytest.raises(ValueError, match="remat=some: no such policy; valid: none, full, dots, names"):
            count(TINY, batch=8, length=16, axes={}, remat="some")


MIXTURE = dataclasses.replace(TINY, experts=4, experts_per_token=2)


def test_a_mixture_by_hand():
    """32 tokens, each at two of four experts; every weight is held and every fourth of the experts on each device."""
    cost = train_cost(MIXTURE, batch=2, length=16, axes={})
    assert flops(cost, "up", "gate", "down") == 2 * 32 * 3 * 2 * (3 * 8 * 16) and flops(cost, "router") == 2 * 32 * 3 * 8 * 4
    assert {m.count for m in cost.matmuls if m.name == "up"} == {3 * 4} and flops(cost, "q") == 2 * 32 * 3 * 8 * 8
    tight = train_cost(dataclasses.replace(MIXTURE, capacity_factor=1.5), batch=2, length=16, axes={})
    assert flops(tight, "up dw") == 1.5 * flops(cost, "up dw")
    weights = 3 * (2 * 8 * 8 + 2 * 8 * 4 + 8 * 4) + 2 * 32 * 8, 3 * 3 * 8 * 16  # all but the experts; one expert
    memory = [train_memory(MIXTURE, batch=8, length=16, axes={"expert": n}).params for n in (1, 4)]
    assert memory == [4 * (weights[0] + 4 * weights[1]), 4 * (weights[0] + weights[1])]
    assert 0 <= transformer.flops_per_token(MIXTURE, 16) - model_flops(MIXTURE, 16) <= 6 * 3 * 2 * 8


def test_exchanges_with_experts_by_hand():
    dropless = exchanges(train_cost(MIXTURE, batch=8, length=16, axes={"expert": 4}), "expert")
    one = 2 * 2 * 16 * 8  # bytes of the tokens of a device
    assert dropless["all-gather", "tokens to experts"][:2] == (4 * one, 2 * 3)
    assert dropless["reduce-scatter", "what experts give back"][:2] == (4 * one, 2 * 3)
    shared = 3 * (2 * 8 * 8 + 2 * 8 * 4 + 8 * 4) + 2 * 32 * 8
    assert dropless["all-reduce", "gradients"][0] == 4 * shared
    bound = exchanges(train_cost(dataclasses.replace(MIXTURE, capacity_factor=1.25), batch=8, length=16, axes={"expert": 4}),
                      "expert")
    assert bound["all-to-all", "tokens to experts and back"][:2] == (2 * 1.25 * one, 4 * 3)


def test_decoding_reads_the_experts_that_are_chosen():
    read = lambda batch: sum(m.k * m.n * m.count for m in decode_cost(  # noqa: E731
        MIXTURE, batch=batch, context=16, axes={}).matmuls if m.name in ("up", "gate", "down"))
    assert [read(batch) for batch in (1, 2, 8)] == [3 * n * 3 * 8 * 16 for n in (2, 4, 4)]
