"""The hash, the streams and the draw that all tasks are made of."""

from itertools import islice

import pytest

from jaxgpt.tasks import task


def test_fraction_is_fixed_for_ever_and_even():
    assert task.fraction("37+48") == 0.8157465411729984  # a change here moves every split
    values = [task.fraction(f"label {i}") for i in range(4000)]
    assert all(0 <= value < 1 for value in values)
    for tenth in range(10):
        assert sum(tenth <= 10 * value < tenth + 1 for value in values) == pytest.approx(400, abs=80)


def test_splits_have_their_shares():
    splits = [task.split_of(f"problem {i}") for i in range(4000)]
    assert splits.count("test") == pytest.approx(400, abs=80)
    assert splits.count("val") == pytest.approx(400, abs=80)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
def test_shuffled_visits_everything_once(size):
    assert sorted(task.shuffled(size, task.stream("seed", 0))) == list(range(size))


def test_shuffled_orders_are_equally_likely():
    counts = {}
    rng = task.stream("orders")
    for _ in range(6000):
        order = tuple(task.shuffled(3, rng))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and all(count == pytest.approx(1000, abs=150) for count in counts.values())


def test_shuffled_needs_no_memory_for_what_it_does_not_visit():
    assert len(set(islice(task.shuffled(10**15, task.stream(0)), 100))) == 100


def test_train_goes_round_again_and_test_ends():
    def place(item):
        return "train" if item < 6 else "test"

    rounds = list(islice(task.draw(range(8), "train", task.stream(0), place=place), 12))
    assert sorted(rounds[:6]) == sorted(rounds[6:]) == list(range(6))
    assert rounds[:6] != rounds[6:]
    assert sorted(task.draw(range(8), "test", task.stream(0), place=place)) == [6, 7]
    assert list(task.draw(range(8), "val", task.stream(0), place=place)) == []


def test_an_empty_train_split_ends():
    assert list(task.draw(range(3), "train", task.stream(0), place=lambda item: "test")) == []


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev' is not one; choose from train, val, test"):
        next(task.draw(range(3), "dev", task.stream(0), place=task.split_of))


def test_normalised():
    assert task.normalised(" What's  YOUR name?! ") == "whats your name"
