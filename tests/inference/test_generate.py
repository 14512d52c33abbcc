"""Generation: the cache against the full forward pass, batches against single prompts, and what ends a completion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import CountCompilations

from jaxgpt.core.errors import UserError
from jaxgpt.inference.decode import begin_jit, decode_chunk, decode_step, prefill
from jaxgpt.inference.generate import generate, rollout, sampling_options, stream
from jaxgpt.model import transformer
from jaxgpt.model.lay_out import for_decoding
from jaxgpt.model.kv_cache import init_cache

SHAPE = dict(vocab_size=50, context=32, layers=2, width=16, heads=4, mlp_width=32, init_std=0.5)
CONFIGS = {
    "learned": transformer.Config(**SHAPE, position="learned", norm="layernorm", activation="gelu", bias=True,
                                  tied=True),
    "rotary": transformer.Config(**SHAPE, windows=(3, None), kv_heads=2, qk_norm=True, logit_soft_cap=10.0),
}
PROMPTS = [[7, 3, 9], [11, 2, 30, 4, 4, 8, 19, 1, 22], [5], [40, 41, 42, 43, 44, 45]]
RNG = jax.random.key(11)
N = 16  # new tokens: with any of the prompts they need 32 slots, so that few programs are compiled
OPTIONS = dict(rng=RNG, max_new_tokens=N, chunk=8)
full_forward = jax.jit(transformer.apply, static_argnames="config")
initialise = jax.jit(transformer.init, static_argnums=1)


@pytest.fixture(scope="session", params=CONFIGS)
def model(request):
    """(params, config): GPT-2's kind, and the modern kind with grouped queries and a sliding window."""
    config = CONFIGS[request.param]
    return initialise(jax.random.key(1), config), config


@pytest.fixture(scope="session")
def rotary():
    return initialise(jax.random.key(1), CONFIGS["rotary"]), CONFIGS["rotary"]


def logits_of(params, config, tokens):
    """Logits [T, V] by a full forward pass without a cache, of the one shape that is ever compiled."""
    padded = jnp.zeros((1, config.context), jnp.int32).at[0, :len(tokens)].set(jnp.array(tokens))
    return full_forward(params, padded, config=config)[0, :len(tokens)]


def padded(prompts, width, filler=0):
    tokens = np.full((len(prompts), width), filler, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, :len(prompt)] = prompt
    return tokens, np.array([len(prompt) for prompt in prompts], np.int32)


# --- the cache -------------------------------------------------------------------------------------------------------

def test_cached_equals_full_forward(model):
    """Rows of different lengths, padded with noise: prefill, then every further position, against no cache at all."""
    params, config = model
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (4, config.context)).astype(np.int32)
    lengths = np.array([3, 9, 1, 16], np.int32)
    expected = full_forward(params, rows, config=config)
    cache = init_cache(config, 4, config.context)
    logits, cache = jax.jit(prefill, static_argnames="config")(params, rows[:, :16], lengths, cache, config=config)
    np.testing.assert_allclose(logits, expected[np.arange(4), lengths - 1], rtol=1e-4, atol=1e-4)

    step = jax.jit(decode_step, static_argnames="config")
    for positions in (lengths + n for n in range(config.context - lengths.max())):
        logits, cache = step(params, rows[np.arange(4), positions], positions, cache, config=config)
        np.testing.assert_allclose(logits, expected[np.arange(4), positions], rtol=1e-4, atol=1e-4)
    assert np.abs(expected[:, 5] - expected[:, 6]).max() > 0.1  # positions do differ


def test_padding_of_prompts_does_not_matter(rotary):
    params, config = rotary
    zeros, noise = (rollout(params, config, *padded(PROMPTS, 12, filler), rng=RNG, max_new_tokens=N)
                    for filler in (0, 49))
    np.testing.assert_array_equal(zeros.tokens, noise.tokens)
    np.testing.assert_allclose(zeros.logprobs, noise.logprobs, rtol=1e-6)


# --- generate --------------------------------------------------------------------------------------------------------

def test_greedy_equals_an_argmax_loop(model):
    params, config = model
    for prompt, completion in zip(PROMPTS, generate(params, config, PROMPTS, temperature=0, top_k=20, **OPTIONS)):
        tokens = list(prompt)
        for _ in range(N):
            tokens.append(int(logits_of(params, config, tokens)[-1].argmax()))
        assert completion.tokens == tokens[len(prompt):] and not completion.finished


def test_logprobs_are_those_of_the_model(model):
    """Sampled at temperature 0.7 among the top 20: the model's own full pass gives the same numbers."""
    params, config = model
    for prompt, completion in zip(PROMPTS, generate(params, config, PROMPTS, temperature=0.7, top_k=20, **OPTIONS)):
        logits = logits_of(params, config, prompt + completion.tokens)[len(prompt) - 1:-1] / 0.7
        logits = np.where(logits >= np.sort(logits)[:, [-20]], logits, -np.inf)
        expected = jax.nn.log_softmax(logits)[np.arange(N), np.array(completion.tokens)]
        np.testing.assert_allclose(completion.logprobs, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_batch_equals_each_prompt_alone(rotary, temperature):
    params, config = rotary
    options = dict(OPTIONS, temperature=temperature)
    together = generate(params, config, PROMPTS, **options)
    alone = [generate(params, config, [prompt], requests=[i], **options)[0] for i, prompt in enumerate(PROMPTS)]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    np.testing.assert_allclose([c.logprobs for c in together], [c.logprobs for c in alone], rtol=1e-4, atol=1e-5)
    reordered = generate(params, config, PROMPTS[::-1], requests=[3, 2, 1, 0], **options)
    assert [c.tokens for c in reordered[::-1]] == [c.tokens for c in together]
    in_four_batches = generate(params, config, PROMPTS, batch=1, **options)
    assert [c.tokens for c in in_four_batches] == [c.tokens for c in together]


def test_requests_and_seeds_differ(rotary):
    params, config = rotary
    same_prompt = generate(params, config, [PROMPTS[0]] * 4, **OPTIONS)
    assert len({tuple(completion.tokens) for completion in same_prompt}) == 4
    assert generate(params, config, [PROMPTS[0]] * 4, **dict(OPTIONS, rng=jax.random.key(12))) != same_prompt


def test_stream_yields_what_generate_returns(rotary):
    params, config = rotary
    expected = generate(params, config, [PROMPTS[1]], requests=[5], **OPTIONS)[0].tokens
    for chunk in (8, 1):
        assert list(stream(params, config, PROMPTS[1], request=5, **dict(OPTIONS, chunk=chunk))) == expected


# --- what ends a completion ------------------------------------------------------------------------------------------

def test_stop_tokens(rotary):
    params, config = rotary
    free = generate(params, config, PROMPTS, **OPTIONS)
    stop = (free[0].tokens[2], free[1].tokens[10])
    stopped = generate(params, config, PROMPTS, stop=stop, **OPTIONS)
    for without, completion in zip(free, stopped):
        ends = [n for n, token in enumerate(without.tokens) if token in stop]
        assert completion.finished == bool(ends)
        assert completion.tokens == without.tokens[:ends[0] + 1 if ends else None]
        assert completion.content == (completion.tokens[:-1] if ends else completion.tokens)
        assert len(completion.logprobs) == len(completion.tokens)
    assert {completion.finished for completion in stopped} == {True, False}
    at_once = generate(params, config, PROMPTS[:1], stop=(free[0].tokens[0],), **OPTIONS)
    assert at_once[0].tokens == free[0].tokens[:1] and at_once[0].finished and at_once[0].content == []


def test_decoding_leaves_early(rotary):
    """When every row has stopped the loop ends: the slots of later positions stay empty."""
    params, config = rotary
    tokens, lengths = padded(PROMPTS, 16)
    stop, options = np.array([-1] * 4), sampling_options(N)
    state, *_ = begin_jit(params, tokens, lengths, lengths + N, np.arange(4, dtype=np.int32), RNG, stop, options,
                                 config=config, slots=32)
    every_token = np.arange(config.vocab_size)
    state, _, _, counts = decode_chunk(params, state, RNG, every_token, options, config=config, steps=8)
    assert counts.tolist() == [1, 1, 1, 1] and state.finished.all() and not state.running.any()
    keys = jax.tree.leaves(state.cache)[0]  # [B, K, S, H]
    written = (jnp.abs(keys).sum((1, 3)) > 0).reshape(-1, 32)
    assert written[:, :16].all() and not written[:, 16:].any()


def test_the_context_ends_a_completion(rotary):
    params, config = rotary
    long = list(range(30))
    completions = generate(params, config, [long, long + [1], long + [1, 2]], **OPTIONS)
    assert [len(completion.tokens) for completion in completions] == [2, 1, 0]  # 32 positions in all
    assert not any(completion.finished for completion in completions)
    rolled = rollout(params, config, *padded([long, [3]], 32), rng=RNG, max_new_tokens=N)
    assert rolled.tokens.shape == (2, 32 + N) and rolled.completion_mask.sum(1).tolist() == [2, N]
    assert not rolled.finished.any()


@pytest.mark.parametrize("change, message", [
    (dict(prompts=[[1] * 33]), "prompt 0 has 33 tokens, but the model's context is 32"),
    (dict(prompts=[[1], []]), "prompt 1 is empty"),
    (dict(prompts=[[1, 50]]), "token 50, but the model's vocabulary is 0 to 49"),
    (dict(max_new_tokens=0), "max_new_tokens is 0, but must be at least 1"),
    (dict(temperature=-1), "temperature is -1"),
    (dict(top_p=0.0), "top_p is 0.0, but must be more than 0"),
    (dict(top_k=-3), "top_k is -3"),
    (dict(min_p=1.0), "min_p is 1.0"),
])
def test_impossible_requests_are_refused(rotary, change, message):
    params, config = rotary
    with pytest.raises(UserError, match=message):
        generate(params, config, **{"prompts": [[1]], "rng": RNG, "max_new_tokens": 2, **change})
    if "prompts" not in change:
        with pytest.raises(UserError, match=message):
            stream(params, config, [1], **{"rng": RNG, "max_new_tokens": 2, **change})


def test_no_prompts_no_completions(rotary):
    assert generate(*rotary, [], rng=RNG, max_new_tokens=2) == []


# --- rollouts --------------------------------------------------------------------------------------------------------

def test_rollout_equals_generate(rotary):
    """The same draws as `generate`, laid out for a loss: contiguous rows, a mask, aligned logprobs."""
    params, config = rotary
    stop = generate(params, config, PROMPTS, **OPTIONS)[0].tokens[4:5]
    expected = generate(params, config, PROMPTS, stop=stop, **OPTIONS)
    assert {completion.finished for completion in expected} == {True, False}
    rolled = jax.device_get(rollout(params, config, *padded(PROMPTS, 12), rng=RNG, max_new_tokens=N, stop=stop))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, expected)):
        start, end = len(prompt), len(prompt) + len(completion.tokens)
        rest = 12 + N - end
        assert rolled.tokens[row].tolist() == prompt + completion.tokens + [0] * rest
        assert rolled.completion_mask[row].tolist() == [0] * start + [1] * (end - start) + [0] * rest
        np.testing.assert_allclose(rolled.logprobs[row, start:end], completion.logprobs, rtol=1e-4, atol=1e-5)
        assert not rolled.logprobs[row, :start].any() and not rolled.logprobs[row, end:].any()
        assert rolled.finished[row] == completion.finished


def test_a_group_equals_the_prompt_repeated(rotary):
    params, config = rotary
    tokens, lengths = padded(PROMPTS, 12)
    forked = rollout(params, config, tokens[:2], lengths[:2], group=2, rng=RNG, max_new_tokens=N)
    repeated = rollout(params, config, tokens[[0, 0, 1, 1]], lengths[[0, 0, 1, 1]], rng=RNG, max_new_tokens=N)
    np.testing.assert_array_equal(forked.tokens, repeated.tokens)
    np.testing.assert_allclose(forked.logprobs, repeated.logprobs, rtol=1e-4, atol=1e-5)
    assert (forked.tokens[0] != forked.tokens[1]).any()


def test_the_second_call_compiles_nothing(rotary):
    params, config = rotary
    tokens, lengths = padded(PROMPTS, 12)

    def everything(seed, prompts, **options):
        rng = jax.random.key(seed)
        generate(params, config, prompts, rng=rng, chunk=8, **options)
        list(stream(params, config, prompts[0], rng=rng, chunk=8, **options))
        rollout(params, config, tokens, lengths, rng=rng, max_new_tokens=N, stop=options["stop"])

    everything(0, PROMPTS, max_new_tokens=N, temperature=1.0, stop=())
    with CountCompilations() as counted:
        everything(1, [prompt[::-1] for prompt in PROMPTS], max_new_tokens=N + 1, temperature=0, stop=(3, 4))
    assert counted.count == 0
    with CountCompilations() as counted:
        jax.jit(lambda x: x + 1)(1.0)
    assert counted.count > 0  # the counter does count


def test_weights_laid_out_for_decoding_say_the_same():
    config = transformer.Config(vocab_size=40, context=64, layers=2, width=16, heads=2, init_std=0.3)
    params = jax.jit(transformer.init, static_argnums=1)(RNG, config)
    options = {"rng": RNG, "max_new_tokens": 8, "temperature": 0.0}
    stacked, laid_out = (generate(p, config, [[1, 2], [3]], **options) for p in (params, for_decoding(params)))
    assert [one.tokens for one in laid_out] == [one.tokens for one in stacked]
    assert for_decoding(laid := for_decoding(params)) is laid
