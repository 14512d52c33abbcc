"""The engine against a plain loop of full forward passes: whatever else is in the batch, and however it arrives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import CountCompilations

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.inference import slots
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Finished, Request, Sampling, Token
from jaxgpt.model import losses, transformer
from jaxgpt.model.quantize import quantize
from jaxgpt.tokenizer.tokenizer import Tokenizer

CONFIG = transformer.Config(vocab_size=300, context=64, layers=2, width=16, heads=4, kv_heads=2, mlp_width=32,
                            windows=(5, None), init_std=0.5)
GREEDY = Sampling(temperature=0)
WATCHED, PUT_IN = 7, (4, 250, 7)


@pytest.fixture(scope="module")
def params():
    return jax.jit(transformer.init, static_argnums=1)(jax.random.key(1), CONFIG)


@pytest.fixture(scope="module")
def tokenizer():
    ranks = {bytes([byte]): byte for byte in range(256)}
    special = dict(zip(("<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|call|>",
                        "<|result|>"), range(256, 264)))
    return Tokenizer(ranks, pattern=r"[\s\S]", name="bytes", special=special)


@pytest.fixture(scope="module")
def engine(params, tokenizer):
    return Engine(params, CONFIG, tokenizer=tokenizer, slots=4, chunk=4, piece=16, alternatives=3)


@pytest.fixture(scope="module")
def forward(params):
    run = jax.jit(lambda tokens: transformer.apply(params, tokens, config=CONFIG)[0])

    def logits(tokens):
        padded = np.zeros((1, CONFIG.context), np.int32)
        padded[0, :len(tokens)] = tokens
        return np.asarray(run(padded))[len(tokens) - 1]
    return logits


def plain(forward, request):
    """(completion, margins between the two best logits): greedy, one full forward pass a token."""
    tokens, margins = list(request.prompt), []
    limit = min(len(tokens) + request.max_new_tokens, CONFIG.context)
    while len(tokens) < limit:
        second, best = np.argsort(logits := forward(tokens))[-2:]
        tokens.append(int(best))
        margins.append(logits[best] - logits[second])
        put_in = request.watcher(tokens[len(request.prompt):])[:limit - len(tokens)] if best in request.watch else []
        if best in request.stop_tokens and not put_in:
            break
        tokens += put_in
        margins += [np.inf] * len(put_in)
    return tokens[len(request.prompt):], margins


def check_equal(output, expected, margins):
    for place, (got, right) in enumerate(zip(output.ids, expected)):
        if got != right:
            assert margins[place] <= 1e-5, f"token {place} is {got}, not {right}, by a margin of {margins[place]}"
            return
    assert len(output.ids) == len(expected)


def a_request(rng):
    """Of any length; some begin alike, some fork, stop or are watched."""
    prompt = tuple(rng.integers(0, 256, rng.integers(1, 50)))
    if rng.random() < 0.3:
        prompt = (*range(100, 120), *prompt[:20])
    stops = tuple(rng.integers(0, 256, 12)) if rng.random() < 0.4 else ()
    watched = {"watch": (WATCHED,), "watcher": lambda tokens: PUT_IN[:len(tokens) % 4]} if rng.random() < 0.4 else {}
    return Request(prompt, int(rng.integers(1, 16)), GREEDY, n=int(rng.choice([1, 1, 1, 2, 3])), stop_tokens=stops, **watched)


def run_arriving(engine, requests, rng):
    """Some of the requests, a few steps, some more: {(place of the request, sample): (tokens, how it ended)}."""
    places, found, left = {}, {}, list(enumerate(requests))
    while left or not engine.idle:
        for place, request in left[:(arriving := rng.integers(0, 4))]:
            places[engine.submit(request)] = place
        left = left[arriving:]
        for event in engine.step():
            tokens, _ = found.setdefault((places[event.request], event.sample), ([], []))
            if isinstance(event, Token):
                tokens.append(event)
            else:
                found[places[event.request], event.sample][1].append(event)
    return found


@pytest.mark.slow
def test_greedy_is_the_plain_loop_for_200_requests_that_arrive_at_random(engine, forward):
    rng = np.random.default_rng(0)
    requests = [a_request(rng) for _ in range(200)]
    found = run_arriving(engine, requests, rng)
    assert len(found) == sum(request.n for request in requests)
    expected = [plain(forward, request) for request in requests]
    reasons, forced = set(), 0
    for (place, _), (tokens, ended) in found.items():
        (end,) = ended
        check_equal(dataclasses.make_dataclass("Ids", ["ids"])([token.token for token in tokens]), *expected[place])
        reasons.add(end.reason)
        forced += sum(token.forced for token in tokens)
    assert reasons == {"stop", "length"} and forced > 20


def test_few_requests_equal_the_plain_loop(engine, forward):
    rng = np.random.default_rng(1)
    requests = [a_request(rng) for _ in range(8)]
    for request, outputs in zip(requests, engine.run(requests)):
        for output in outputs:
            check_equal(output, *plain(forward, request))


@pytest.mark.slow
def test_log_probabilities_are_the_trainers(engine, params):
    request = Request((5, 9, 200, 31), 20, Sampling(temperature=0.7, top_k=50, seed=4), alternatives=3)
    (output,), = engine.run([request])
    tokens = jnp.array([[*request.prompt, *output.ids]])
    x, _, _ = transformer.hidden(params, tokens[:, :-1], config=CONFIG)
    expected, _ = losses.token_logprobs(params, x, tokens[:, 1:], config=CONFIG)
    np.testing.assert_allclose([token.model_logprob for token in output.tokens], expected[0, 3:], atol=1e-5)
    tempered = jax.nn.log_softmax(transformer.unembed(params, x, config=CONFIG)[0, 3:] / 0.7)
    best = jnp.sort(tempered, axis=-1)[:, -50:]
    kept = jax.nn.logsumexp(best, axis=-1)
    expected = jnp.take_along_axis(tempered, tokens[0, 4:, None], axis=-1)[:, 0] - kept
    np.testing.assert_allclose([token.logprob for token in output.tokens], expected, atol=1e-5)
    for token in output.tokens:
        assert [p for _, p in token.alternatives] == sorted((p for _, p in token.alternatives), reverse=True)
        assert all(token.model_logprob == p for other, p in token.alternatives if other == token.token)


@pytest.mark.slow
def test_a_seed_gives_the_same_tokens_in_any_company(engine):
    request = Request((3, 1, 4, 1, 5), 12, Sampling(temperature=1.0, top_p=0.9, seed=2 ** 40 + 7), n=2)
    alone = engine.run([request])[0]
    rng = np.random.default_rng(2)
    crowd = [a_request(rng) for _ in range(6)]
    among = engine.run([*crowd[:3], request, *crowd[3:]])[3]
    assert [output.ids for output in alone] == [output.ids for output in among]
    assert alone[0].ids != alone[1].ids
    other = engine.run([dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=7))])[0]
    assert other[0].ids != alone[0].ids


def test_what_begins_alike_is_read_once(engine):
    prompt = tuple(np.random.default_rng(5).integers(0, 256, 30))
    before = engine.tokens_read
    engine.run([Request(prompt, 4, GREEDY, n=3)])
    assert engine.tokens_read - before == 30 + 2  # each further sample reads the last token again, for its logits
    engine.run([Request((*prompt[:25], 1, 2, 3), 4, GREEDY)])
    assert engine.tokens_read - before == 32 + 3


def test_rows_are_drawn_until_fewer_of_them_go_on(params):
    engine = Engine(params, CONFIG, slots=4, chunk=8, context=32)
    for tokens in (3, 5, 9, 9):
        engine.submit(Request((1, 2), tokens, GREEDY))
    drawn = []
    while not engine.idle:
        drawn.append(len([event for event in engine.step() if isinstance(event, Token)]))
    assert drawn == [4 + 2 + 3 * 4, 2 * 4]  # the first of each after its prompt; then four steps of all, and four of two


@pytest.mark.slow
def test_nothing_is_compiled_after_warming_up(params, tokenizer):
    engine = Engine(params, CONFIG, tokenizer=tokenizer, slots=3, chunk=4, piece=8, alternatives=2)
    assert engine.warm_up(alternatives=True) > 4
    engine.run([Request((1, 2, 3), 4, n=2)])  # the small ones: copy, rest
    rng = np.random.default_rng(3)
    requests = [a_request(rng) for _ in range(12)]
    options = [Sampling(temperature=0.5, top_k=4, seed=1), Sampling(repetition_penalty=1.3, logit_bias={3: 2.0}), GREEDY]
    requests = [dataclasses.replace(request, sampling=options[place % 3], alternatives=place % 3)
                for place, request in enumerate(requests)]
    other = jax.tree.map(lambda leaf: leaf * 1.01, params)
    with CountCompilations() as compiled:
        engine.run(requests)
        engine.update(other)
        engine.run(requests)
    assert compiled.count == 0


@pytest.mark.slow
def test_new_weights_give_their_own_tokens(params, engine):
    request = Request((1, 2, 3), 12, GREEDY)
    before = engine.run([request])[0][0].ids
    engine.update(jax.tree.map(lambda leaf: leaf + 0.3 * jnp.sign(leaf), params))
    changed = engine.run([request])[0][0].ids
    engine.update(params)
    assert engine.run([request])[0][0].ids == before != changed


def test_stop_strings_end_the_text_before_them(engine, tokenizer, forward):
    free = engine.run([Request((65, 66), 12, GREEDY)])[0][0]
    text = tokenizer.decode_bytes([token for token in free.ids if token not in tokenizer.special.values()])
    assert free.text == text.decode("utf-8", "replace")
    spelt = [token for token in free.ids if token < 128]
    stop = chr(spelt[0]) if len(spelt) == 1 else chr(spelt[1])
    (cut,), = engine.run([Request((65, 66), 12, GREEDY, stop=("never there", stop))])
    assert cut.finished.reason == "stop" and cut.finished.stopped_by == stop
    assert cut.text == free.text[:free.text.index(stop)] and len(cut.ids) <= len(free.ids)


def test_a_mask_decides_what_may_come(engine):
    allowed = np.zeros(CONFIG.vocab_size, bool)
    allowed[[10, 20, 30]] = True

    def mask(tokens):  # never twice the same
        return allowed & (np.arange(CONFIG.vocab_size) != (tokens[-1] if tokens else -1))

    (output,), (free,) = engine.run([Request((1, 2), 8, Sampling(seed=3), mask=mask), Request((1, 2), 8, GREEDY)])
    assert set(output.ids) <= {10, 20, 30} and all(a != b for a, b in zip(output.ids, output.ids[1:]))
    assert not set(free.ids) <= {10, 20, 30}


def test_cancelling_frees_the_slot(engine):
    numbers = [engine.submit(Request((place, 2, 3), 50, GREEDY)) for place in range(6)]
    engine.step()
    assert (engine.active, engine.waiting) == (4, 2)
    dropped = [event for number in numbers for event in engine.cancel(number)]
    assert engine.idle and {(type(event), event.reason) for event in dropped} == {(Finished, "cancelled")} and len(dropped) == 6


@pytest.mark.slow
def test_a_mesh_draws_the_same_tokens(params, engine):
    mesh, rules = sharding.make_mesh(sharding.Layout(data=1, fsdp=2, tensor=4)), sharding.get_rules("fsdp_tensor")
    placed = jax.device_put(params, sharding.param_shardings(transformer.logical_axes(CONFIG), params, mesh, rules))
    split = Engine(placed, CONFIG, slots=2, chunk=4, piece=16, mesh=mesh, rules=rules)
    requests = [Request((9, 8, 7), 6, GREEDY), Request((1, 2), 6, Sampling(seed=5))]
    assert [o[0].ids for o in split.run(requests)] == [o[0].ids for o in engine.run(requests)]


# --- a draft ---------------------------------------------------------------------------------------------------------

SMALL = dataclasses.replace(CONFIG, layers=1, width=8, heads=2, kv_heads=1, windows=(None,))


@pytest.fixture(scope="module")
def helped(params, tokenizer):
    """An engine with a draft that was never trained: it guesses wrongly nearly always."""
    draft = jax.jit(transformer.init, static_argnums=1)(jax.random.key(7), SMALL)
    return Engine(params, CONFIG, tokenizer=tokenizer, slots=4, chunk=4, piece=16, alternatives=3, draft=(draft, SMALL), ahead=3)


@pytest.fixture(scope="module")
def doubled(params, tokenizer):
    """An engine whose draft is the model itself: it guesses rightly."""
    return Engine(params, CONFIG, tokenizer=tokenizer, slots=4, chunk=8, piece=16, alternatives=3, draft=(params, CONFIG), ahead=3)


def in_many_ways(rng, count):
    """Requests drawn in every way, with stops, forks, watchers, penalties and alternatives."""
    ways = [GREEDY, Sampling(temperature=0.8, top_k=40, seed=3), Sampling(repetition_penalty=1.4, frequency_penalty=0.3, seed=4),
            Sampling(temperature=0.5, logit_bias={5: 3.0, 9: -np.inf}, seed=2 ** 33)]
    return [dataclasses.replace(a_request(rng), sampling=ways[place % 4], alternatives=place % 3) for place in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["helped", "doubled"])
def test_a_draft_changes_no_token(name, engine, request):
    """Whatever it guesses: the same tokens, and their numbers within rounding."""
    requests = in_many_ways(np.random.default_rng(11), 40)
    drafted = request.getfixturevalue(name)
    found = run_arriving(drafted, requests, np.random.default_rng(12))
    expected = engine.run(requests)
    for (place, sample), (tokens, ended) in found.items():
        right = expected[place][sample]
        assert [token.token for token in tokens] == right.ids and [token.forced for token in tokens] == [
            token.forced for token in right.tokens]
        assert [(end.reason, end.stopped_by) for end in ended] == [(right.finished.reason, right.finished.stopped_by)]
        for a, b in zip(tokens, right.tokens):
            np.testing.assert_allclose([a.logprob, a.model_logprob], [b.logprob, b.model_logprob], atol=2e-5)
            assert [token for token, _ in a.alternatives] == [token for token, _ in b.alternatives]


def test_right_guesses_save_passes(doubled, engine, forward):
    before = doubled.passes, doubled.tokens_drawn
    requests = [Request((5, 9, place), 24, GREEDY) for place in range(4)]
    outputs = doubled.run(requests)
    for request, (output,) in zip(requests, outputs):
        check_equal(output, *plain(forward, request))
    passes, drawn = doubled.passes - before[0], doubled.tokens_drawn - before[1]
    assert drawn == 96 and passes == 4 * 6  # the first token comes with the prompt, 23 others in passes of four


@pytest.mark.slow
def test_a_draft_and_eight_bits_and_warming_up(params, tokenizer):
    small = quantize(params)
    drafted = Engine(small, CONFIG, slots=2, chunk=4, piece=8, alternatives=0, cache_dtype="int8", draft=(small, CONFIG), ahead=2)
    drafted.warm_up()
    requests = [Request((5, 9, 7, 8, 1), 20, GREEDY, n=2), Request((4,), 9, Sampling(seed=3), stop_tokens=(8, 9))]
    with CountCompilations() as compiled:
        found = drafted.run(requests)
        drafted.update(quantize(params), quantize(params))
        drafted.update(quantize(params))
    assert compiled.count == 0
    alone = Engine(small, CONFIG, slots=2, chunk=4, piece=8, alternatives=0, cache_dtype="int8").run(requests)
    assert [o.ids for outputs in found for o in outputs] == [o.ids for outputs in alone for o in outputs]


@pytest.mark.parametrize("change, options, says", [
    ({"vocab_size": 299}, {}, "its vocabulary has 299 tokens and the model's 300"),
    ({"context": 32}, {}, "its context is 32, but has to be at least 64"),
    ({}, {"ahead": 0}, "ahead is 0, but must be 1 to 16"),
])
def test_a_draft_that_does_not_go_with_the_model(params, change, options, says):
    with pytest.raises(UserError, match=says):
        Engine(params, CONFIG, draft=({}, dataclasses.replace(SMALL, **change)), **options)


@pytest.mark.parametrize("change, says", [
    ({"prompt": ()}, "prompt is empty"),
    ({"prompt": (1,) * 64}, "prompt has 64 tokens, but the context is 64"),
    ({"prompt": (1, 300)}, "prompt holds token 300, but the model's vocabulary is 0 to 299"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"n": 0}, "n is 0"),
    ({"alternatives": 4}, "alternatives is 4, but this engine gives 0 to 3"),
    ({"stop_tokens": tuple(range(17))}, "at most 16"),
    ({"stop": ("",)}, "stop holds an empty string"),
    ({"watch": (3,)}, "watch and watcher go together"),
    ({"sampling": Sampling(logit_bias={-1: 2.0})}, "logit_bias holds token -1"),
])
def test_impossible_requests_are_refused_by_field(engine, change, says):
    with pytest.raises(UserError, match=says):
        engine.submit(dataclasses.replace(Request((1, 2), 3), **change))
    assert engine.idle


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.0}, {"repetition_penalty": 0.0},
                                   {"frequency_penalty": float("nan")}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


# --- the draw --------------------------------------------------------------------------------------------------------

def draw(logits, counts=0, **settings):
    """Tokens [B] of rows with the same logits [V], a seed each."""
    rows, V = 20_000, len(logits)
    config = dataclasses.replace(CONFIG, vocab_size=V, layers=1)
    part = slots.init((config,), rows, 2)
    defaults = {"temperature": 1.0, "top_p": 1.0, "repetition": 1.0}
    values = {name: jnp.full(rows, value) for name, value in {**defaults, **settings}.items()}
    values |= {"seed": jnp.arange(rows, dtype=jnp.uint32), "limit": jnp.full(rows, 9)}
    part = part._replace(settings=part.settings._replace(**values), running=jnp.ones(rows, bool),
                         counts=jnp.zeros((rows, V), jnp.int32) + counts, seen=jnp.zeros((rows, V), bool) | (counts > 0))
    return np.asarray(slots._draw(part, jnp.broadcast_to(logits, (rows, V)), 0)[1].tokens)


LOGITS = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]))
COUNTS = np.array([2, 0, 1, 0, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("settings, logits", [
    ({}, LOGITS),
    ({"temperature": 0.5}, LOGITS * 2),
    ({"top_k": 3.0}, [*LOGITS[:3], -np.inf, -np.inf, -np.inf]),
    ({"top_p": 0.6}, [*LOGITS[:2], -np.inf, -np.inf, -np.inf, -np.inf]),
    ({"min_p": 0.2}, [*LOGITS[:4], -np.inf, -np.inf]),
    ({"presence": 0.5, "frequency": 0.3, "counts": COUNTS}, LOGITS - 0.5 * (COUNTS > 0) - 0.3 * COUNTS),
    ({"repetition": 1.5, "counts": COUNTS}, np.where(COUNTS > 0, LOGITS * 1.5, LOGITS)),  # all logits are negative
])
def test_each_sampler_draws_from_its_distribution(settings, logits):
    """Pearson's χ² of 20,000 draws stays below its 99.9% point (Abramowitz & Stegun 1964, table 26.8)."""
    p = np.exp(logits) / np.exp(logits).sum()
    seen = np.bincount(draw(LOGITS, **settings), minlength=6)
    assert not seen[p == 0].any()
    expected = 20_000 * p[p > 0]
    statistic = ((seen[p > 0] - expected) ** 2 / expected).sum()
    assert statistic < {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}[len(expected) - 1]
