"""Mixtures: shares exact to one row at every point, each dataset going on where it was."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.config import to_json
from jaxgpt.data.dataset import TokenDataset
from jaxgpt.data.mixture import Mixture, MixtureRows, Phase, parts, pattern

TWO = Mixture((Phase((("web", 0.9), ("math", 0.1)), until=0.8), Phase((("web", 0.25), ("code", 0.5), ("math", 0.25)))))


class Numbers:
    """A dataset whose row i is i."""

    length = 1

    def __init__(self, number):
        self.number = number

    def take(self, indices, ahead=()):
        return {name: np.asarray(indices)[:, None] + 1_000_000 * self.number
                for name in ("tokens", "targets", "loss_mask", "segment_ids", "positions")}


def rows_of(mixture, steps, batch):
    return MixtureRows({name: Numbers(i) for i, name in enumerate(mixture.names)}, mixture, steps=steps, batch=batch)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_shares_are_exact_to_one_row_at_every_point(weights):
    counts = parts(weights)
    found = pattern(counts)
    had = np.cumsum(found[:, None] == np.arange(len(counts)), axis=0)
    due = np.arange(1, len(found) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(had - due).max() < 1 and had[-1].tolist() == list(counts)
    if len(counts) > 1:
        assert np.abs(had - due).max() <= 1 - 1 / (2 * len(counts) - 2) + 1e-9  # Tijdeman's bound


def test_phases_by_hand():
    rows = rows_of(TWO, steps=10, batch=4)  # phases of 32 and 8 rows
    sources, _ = rows.places(np.arange(40))
    assert np.bincount(sources[:30], minlength=3).tolist() == [27, 3, 0]
    assert np.bincount(sources[32:36]).tolist() == np.bincount(sources[36:]).tolist() == [1, 1, 2]
    assert TWO.names == ("web", "math", "code")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.sampled_from([0.1, 0.33, 0.5, 0.999]))
def test_each_dataset_goes_on_where_it_was(steps, batch, until):
    mixture = Mixture((Phase((("a", 0.7), ("b", 0.3)), until=until), Phase((("b", 2), ("c", 1)))))
    rows = rows_of(mixture, steps, batch)
    sources, places = rows.places(np.arange(steps * batch + 50))
    for number in range(3):
        assert places[sources == number].tolist() == list(range((sources == number).sum()))
    change = round(until * steps) * batch
    for begin, end, shares in ((0, change, (0.7, 0.3, 0)), (change, len(sources), (0, 2 / 3, 1 / 3))):
        had = np.cumsum(sources[begin:end, None] == np.arange(3), axis=0)
        due = np.arange(1, end - begin + 1)[:, None] * np.array(shares)
        assert end == begin or np.abs(had - due).max() < 1
    order = np.random.default_rng(0).permutation(len(sources))
    expected = (places + 1_000_000 * sources)[order]
    assert rows.take(order)["tokens"][:, 0].tolist() == expected.tolist()


def test_one_dataset_is_its_own_stream():
    ids = itertools.count(2)
    documents = [np.array([1, *itertools.islice(ids, n)]) for n in (40, 9, 30)]
    alone = TokenDataset(documents, length=8, seed=3)
    mixed = MixtureRows({"web": TokenDataset(documents, length=8, seed=3)}, Mixture((Phase((("web", 1),)),)),
                        steps=5, batch=4)
    for name, values in mixed.take(np.arange(30)).items():
        np.testing.assert_array_equal(values, alone.take(np.arange(30))[name])


def test_rows_of_each_are_those_of_its_dataset():
    ids = itertools.count(2)
    sets = {name: TokenDataset([np.array([1, *itertools.islice(ids, n)]) for n in (40, 9, 30)], length=8, seed=seed)
            for seed, name in enumerate(TWO.names)}
    rows = MixtureRows(sets, TWO, steps=20, batch=3)
    batch, (sources, places) = rows.take(np.arange(60), ahead=np.arange(60, 70)), rows.places(np.arange(60))
    for i, (number, place) in enumerate(zip(sources, places)):
        for name, values in sets[TWO.names[number]][int(place)].items():
            np.testing.assert_array_equal(batch[name][i], values)


@pytest.mark.parametrize("weights, expected", [
    ([0.9, 0.1], (9, 1)), ([1 / 3, 2 / 3], (1, 2)), ([2 ** 0.5, 1], None), ([1, 2], (1, 2)), ([0.5], (1,)),
    ([1e-4, 1], (1, 10_000)), ([3.5, 7.0], (1, 2))])
def test_weights_are_taken_as_they_are_written(weights, expected):
    if expected is None:
        with pytest.raises(ValueError, match="repeat after .* rows only; .* give fewer digits"):
            parts(weights)
    else:
        assert parts(weights) == expected


def test_impossible_settings():
    for weights in ((("a", 0),), (("a", -1), ("b", 1)), (("a", float("inf")),), (("a", float("nan")),)):
        with pytest.raises(ValueError, match="weights: must be above 0"):
            Phase(weights)
    for weights in ((), (("a", 1), ("a", 2))):
        with pytest.raises(ValueError, match="weights: must name at least one dataset, each once"):
            Phase(weights)
    for until in (0, 1.5):
        with pytest.raises(ValueError, match="until: must be above 0 and at most 1"):
            Phase((("a", 1),), until=until)
    one = Phase((("a", 1),))
    for phases in ((), (one, one), (Phase((("a", 1),), until=0.5),)):
        with pytest.raises(ValueError, match="phases: each must end after the one before, and the last at until=1"):
            Mixture(phases)
    assert to_json(TWO)["phases"][0] == {"type": "Phase", "weights": [["web", 0.9], ["math", 0.1]], "until": 0.8}
