"""Sampling: filters worked by hand, draws against the exact distribution, keys that belong to rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.inference import sampling

PROBABILITIES = np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32)
LOGITS = jnp.log(PROBABILITIES)[None]
filter_logits, sample, row_keys, largest_threshold = map(
    jax.jit, (sampling.filter_logits, sampling.sample, sampling.row_keys, sampling.largest_threshold))
CHI_SQUARE_999 = {2: 13.82, 4: 18.47}  # the 99.9% point, by degrees of freedom


def kept(**options):
    """The tokens that a filter keeps of PROBABILITIES."""
    return np.flatnonzero(np.isfinite(filter_logits(LOGITS, **options)[0])).tolist()


def chi_square(tokens, probabilities):
    """Pearson's statistic of drawn tokens against probabilities; tokens of probability 0 must not occur."""
    counts = np.bincount(np.asarray(tokens), minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    expected = (probabilities * len(tokens))[probabilities > 0]
    return ((counts[probabilities > 0] - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("options, tokens", [
    (dict(), [0, 1, 2, 3, 4]),
    (dict(top_k=1), [1]),
    (dict(top_k=2), [1, 3]),
    (dict(top_k=0), [0, 1, 2, 3, 4]),
    (dict(top_k=9), [0, 1, 2, 3, 4]),
    (dict(top_p=0.3), [1]),            # 0.4
    (dict(top_p=0.45), [1, 3]),        # 0.4 + 0.3
    (dict(top_p=0.75), [1, 2, 3]),     # 0.4 + 0.3 + 0.15
    (dict(top_p=0.9), [1, 2, 3, 4]),   # 0.4 + 0.3 + 0.15 + 0.1
    (dict(top_p=1.0), [0, 1, 2, 3, 4]),
    (dict(min_p=0.5), [1, 3]),         # at least 0.2
    (dict(min_p=0.2), [1, 2, 3, 4]),   # at least 0.08
    (dict(min_p=0.0), [0, 1, 2, 3, 4]),
    (dict(top_k=3, top_p=0.8), [1, 3]),     # of 0.85: 0.471 + 0.353 = 0.824; without top_k it would be three
    (dict(top_k=3, min_p=0.8), [1]),
    (dict(temperature=0), [1]),
    (dict(temperature=0, top_k=3, min_p=0.1), [1]),
])
def test_filters_by_hand(options, tokens):
    assert kept(**options) == tokens


def test_temperature_comes_before_the_nucleus():
    # At T = 1/2 the probabilities go as their squares: 0.16 of 0.285 is 0.561, 0.09 more makes 0.877.
    assert kept(top_p=0.55) == [1, 3]
    assert kept(temperature=0.5, top_p=0.55) == [1]


def test_filter_keeps_the_values_of_what_it_keeps():
    filtered = filter_logits(LOGITS, temperature=2.0, top_k=2)[0]
    np.testing.assert_allclose(filtered[jnp.array([1, 3])], np.log([0.4, 0.3]) / 2, rtol=1e-6)


def test_ties_are_kept_together():
    tied = jnp.array([[1.0, 2.0, 2.0, 0.0]])
    assert np.isfinite(filter_logits(tied, top_k=1)[0]).tolist() == [False, True, True, False]


def test_options_for_each_row():
    logits = jnp.tile(LOGITS, (4, 1))
    together = filter_logits(logits, temperature=jnp.array([0, 1, 0.5, 1]), top_k=jnp.array([0, 2, 0, 0]),
                                      top_p=jnp.array([1, 1, 0.55, 0.75]))
    alone = [dict(temperature=0), dict(top_k=2), dict(temperature=0.5, top_p=0.55), dict(top_p=0.75)]
    for row, options in enumerate(alone):
        np.testing.assert_array_equal(together[row], filter_logits(LOGITS, **options)[0])


def test_threshold_agrees_with_sorting(n=64):
    values = jax.random.normal(jax.random.key(0), (8, n)) * jnp.array([1e-30, 1e-3, 1, 1, 1, 10, 1e3, 1e30])[:, None]
    for k in (1, 7, n):
        np.testing.assert_array_equal(largest_threshold(values, jnp.ones((8, n)), k)[:, 0],
                                      np.sort(values)[:, -k])
    assert (largest_threshold(values, jnp.ones((8, n)), n + 1) == -jnp.inf).all()


def test_draws_follow_the_distribution():
    draws = 20_000
    logits = jnp.tile(LOGITS, (draws, 1))
    tokens, logprobs = sample(jax.random.key(1), logits)
    assert chi_square(tokens, PROBABILITIES) < CHI_SQUARE_999[4]
    np.testing.assert_allclose(logprobs, np.log(PROBABILITIES)[tokens], atol=1e-5)

    squared = PROBABILITIES ** 2 / (PROBABILITIES ** 2).sum()
    tokens, logprobs = sample(jax.random.key(2), logits, temperature=0.5)
    assert chi_square(tokens, squared) < CHI_SQUARE_999[4] < chi_square(tokens, PROBABILITIES)
    np.testing.assert_allclose(logprobs, np.log(squared)[tokens], atol=1e-5)

    nucleus = np.where(PROBABILITIES >= 0.15, PROBABILITIES, 0) / 0.85
    tokens, logprobs = sample(jax.random.key(3), logits, top_p=0.8)
    assert chi_square(tokens, nucleus) < CHI_SQUARE_999[2]
    np.testing.assert_allclose(logprobs, np.log(nucleus[tokens]), atol=1e-5)


def test_draws_with_a_key_for_each_row_follow_the_distribution():
    draws = 20_000
    logits = jnp.tile(LOGITS, (draws, 1))
    for requests, positions in ((jnp.arange(draws), jnp.full(draws, 3)), (jnp.full(draws, 3), jnp.arange(draws))):
        tokens, _ = sample(row_keys(jax.random.key(4), requests, positions), logits)
        assert chi_square(tokens, PROBABILITIES) < CHI_SQUARE_999[4]


def test_draws_from_a_vocabulary_of_many_blocks():
    """A vocabulary that does not fill its last block; the mass lies in three tokens far apart, none of it between."""
    draws, vocabulary = 20_000, 3 * sampling.BLOCK + 5
    probabilities = np.zeros(vocabulary, np.float32)
    probabilities[[0, sampling.BLOCK, vocabulary - 1]] = 0.2, 0.3, 0.5
    logits = jnp.tile(jnp.log(probabilities), (draws, 1))
    tokens, _ = sample(jax.random.key(5), logits)
    assert chi_square(tokens, probabilities) < CHI_SQUARE_999[2]


def test_inverse_by_hand():
    weights = jnp.array([[0.0, 1.0, 0.0, 3.0, 0.0]] * 5)
    uniform = jnp.array([0.0, 0.24, 0.25, 0.99, 1.0])  # 1 cannot be drawn, but rounding can come to it
    assert sampling.invert_cumulative(weights, uniform).tolist() == [1, 1, 3, 3, 3]


def test_greedy_takes_the_first_of_the_largest_and_reports_the_model():
    logits = jnp.array([[0.0, 3.0, 1.0, 3.0], [5.0, 3.0, 1.0, 3.0]])
    tokens, logprobs = sample(jax.random.key(0), logits, temperature=0, top_k=2)
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[jnp.arange(2), tokens], rtol=1e-6)


def test_greedy_is_temperature_zero():
    logits = jnp.round(jax.random.normal(jax.random.key(0), (64, 130)) * 2)  # many ties
    logits = logits.at[:, ::3].set(-jnp.inf)
    for ours, reference in zip(jax.jit(sampling.greedy)(logits),
                               sampling.sample(jax.random.key(1), logits, temperature=0)):
        np.testing.assert_allclose(ours, reference, rtol=1e-6)
    assert int(sampling.greedy(jnp.full((1, 5), jnp.nan))[0][0]) == 4  # still a token


def test_greedy_and_sampled_rows_in_one_batch():
    logits = jax.random.normal(jax.random.key(0), (6, 300))
    tokens, _ = sample(jax.random.key(1), logits, temperature=jnp.array([0, 1, 0, 2, 0, 1.0]))
    np.testing.assert_array_equal(tokens[::2], jnp.argmax(logits, axis=-1)[::2])
    sampled, _ = sample(jax.random.key(1), logits, temperature=jnp.array([1, 1, 1, 2, 1, 1.0]))
    np.testing.assert_array_equal(tokens[1::2], sampled[1::2])
    assert (tokens[::2] != sampled[::2]).any()


def test_a_row_is_its_own():
    """With a key a row, a request draws the same token alone, elsewhere in a batch and beside other requests."""
    logits = jax.random.normal(jax.random.key(0), (8, 300))
    requests, positions = jnp.arange(8), jnp.arange(8) % 3

    def draw(rows):
        keys = row_keys(jax.random.key(7), requests[rows], positions[rows])
        return sample(keys, logits[rows], temperature=1.5, top_p=0.9)

    tokens, logprobs = draw(jnp.arange(8))
    shuffled = jnp.array([5, 0, 3])
    np.testing.assert_array_equal(draw(shuffled)[0], tokens[shuffled])
    np.testing.assert_allclose(draw(shuffled)[1], logprobs[shuffled], rtol=1e-6)
    other = sample(row_keys(jax.random.key(7), requests, positions + 1), logits, temperature=1.5)
    assert (other[0] != tokens).any()


def test_jitted_equals_eager():
    logits = jax.random.normal(jax.random.key(0), (8, 300)) * 3
    options = dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01)
    eager, jitted = (draw(jax.random.key(1), logits, **options) for draw in (sampling.sample, sample))
    np.testing.assert_array_equal(eager[0], jitted[0])
    np.testing.assert_allclose(eager[1], jitted[1], rtol=1e-5, atol=1e-6)


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match="logits has shape"):
        sample(jax.random.key(0), jnp.zeros(5))
