"""Small models of both families, shared by the tests of this room."""

import dataclasses

import jax
import pytest

from jaxgpt.model import transformer

LLAMA = transformer.Config(vocab_size=61, context=32, layers=3, width=32, heads=4, kv_heads=2, init_std=0.3)
GPT2 = dataclasses.replace(LLAMA, kv_heads=None, position="learned", norm="layernorm", activation="gelu_tanh", bias=True,
                           tied=True)
MODERN = dataclasses.replace(LLAMA, activation="relu2", qk_norm=True, norm_scale=False, embed_norm=True,
                             logit_soft_cap=15.0, windows=(4, None))
CONFIGS = {"llama": LLAMA, "gpt2": GPT2, "modern": MODERN}


@pytest.fixture(scope="session", params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="session")
def params(config):
    return jax.jit(lambda: transformer.init(jax.random.key(0), config))()


@pytest.fixture(scope="session")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 12), 0, 61)
