"""The global shuffle: the same order whatever comes first, however little memory there is."""

import numpy as np
import pytest

from jaxgpt.data import shuffle
from jaxgpt.data.shuffle import order_key, shuffled


def documents(count):
    rng = np.random.default_rng(0)
    return [(f"näme {i}", rng.bytes(int(rng.integers(0, 200))), i) for i in range(count)]


def run(items, folder, **options):
    return [tuple(item) for item in shuffled(items, directory=folder, **{"seed": 1, **options})]


def test_the_order_is_that_of_the_keys(tmp_path):
    found = run(documents(300), tmp_path)
    assert found == sorted((order_key(1, name), name, data, size) for name, data, size in documents(300))
    assert found != sorted(found, key=lambda item: item[1])
    assert [item[1] for item in found] != [item[1] for item in run(documents(300), tmp_path, seed=2)]


@pytest.mark.parametrize("memory", [1, 5000])
def test_runs_on_disk_are_the_sort_in_memory(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(shuffle, "_MOST_RUNS", 7)  # runs are merged on the way as well
    stream = shuffled(iter(documents(300)[::-1]), seed=1, directory=tmp_path, memory=memory)
    first = next(stream)
    assert 0 < len(list(tmp_path.iterdir())) <= 7
    assert [first, *stream] == [tuple(item) for item in run(documents(300), tmp_path)]
    assert not list(tmp_path.iterdir())


def test_documents_of_one_id_all_stay(tmp_path):
    items = [("a", b"2", 1), ("b", b"", 1), ("a", b"1", 1), ("a", b"1", 1)]
    assert run(items, tmp_path, memory=1) == run(items[::-1], tmp_path) and len(run(items, tmp_path)) == 4
