"""Weights laid out for decoding give the same logits as the stack that they come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import lora, presets, transformer
from jaxgpt.model.kv_cache import init_cache
from jaxgpt.model.lay_out import unstack
from jaxgpt.model.quantize import quantize

SIZES = dict(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, head_dim=None, mlp_width=64, init_std=0.3)
GPT2 = dataclasses.replace(presets.gpt2("124M"), **SIZES)
LLAMA = dataclasses.replace(presets.llama3("1B", context=32), **SIZES)


def logits(params, config):
    tokens = jnp.arange(6)[None]
    return transformer.apply(params, tokens, config=config, positions=tokens, cache=init_cache(config, 1, 16))


@pytest.mark.parametrize("config, merged", [
    (GPT2, {"attention": {"qkv", "o"}, "mlp": {"up", "down"}}),
    (LLAMA, {"attention": {"qkv", "o"}, "mlp": {"up_gate", "down"}}),
    (dataclasses.replace(LLAMA, qkv_bias=True), {"attention": {"qkv", "o"}, "mlp": {"up_gate", "down"}}),
    (dataclasses.replace(LLAMA, experts=4), {"attention": {"qkv", "o"}, "mlp": {"up", "gate", "down", "router"}}),
])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_merged_or_not(config, merged, eight_bits):
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    params = quantize(params) if eight_bits else params
    laid_out = unstack(params, layout="merged")
    assert len(laid_out["layers"]) == 2 and all(set(laid_out["layers"][0][part]) == names for part, names in merged.items())
    wanted = logits(unstack(params), config)
    np.testing.assert_allclose(logits(laid_out, config), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits(params, config), wanted, rtol=1e-5, atol=1e-5)
    columns = unstack(params, layout="columns")
    assert set(columns["layers"][0]["attention"]["o"]) >= {"columns"} and "weight" not in columns["layers"][0]["attention"]["o"]
    np.testing.assert_allclose(logits(columns, config), wanted, rtol=1e-5, atol=1e-5)


def test_what_has_an_adapter_stays_apart():
    kind = lora.Lora(rank=2)
    adapter = jax.tree.map(lambda a: a + 0.1, lora.init(jax.random.key(1), LLAMA, kind))
    params = lora.attach(transformer.init(jax.random.key(0), LLAMA), adapter, kind)
    laid_out = unstack(params, layout="merged")
    assert set(laid_out["layers"][0]["attention"]) == {"q", "k", "v", "o"}
    for found in (laid_out, unstack(params, layout="columns")):
        np.testing.assert_allclose(logits(found, LLAMA), logits(params, LLAMA), rtol=1e-5, atol=1e-5)
