"""Connected components on Beam against union-find in memory, on any graph."""

import pickle
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.curation.components import (
    components, large_star, pack, small_star, star_edges, union_find, unpack, verdicts_on)
from jaxgpt.curation.document import Key, Verdict


def on_beam(edges, rounds):
    """{node: root} and how many edges were left to one place."""
    import apache_beam as beam
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "found")
        pipeline = beam.Pipeline(runner="FnApiRunner")
        edges = pipeline | beam.Create(edges).with_output_types(tuple[bytes, bytes])
        (components(edges, rounds=rounds) | beam.combiners.ToList()
         | beam.Map(lambda found: path.write_bytes(pickle.dumps(found))))
        result = pipeline.run()
        result.wait_until_finish()
        found = pickle.loads(path.read_bytes())
    roots = {node: root for root, node in found}
    assert len(roots) == len(found)  # each node once
    return roots, sum(counter.committed for counter in result.metrics().query()["counters"])


def test_union_find_by_hand():
    assert union_find([(4, 5), (0, 2), (5, 2)]) == {0: 0, 2: 0, 4: 0, 5: 0}
    assert union_find([(5, 2), (4, 5), (2, 0)]) == {0: 0, 2: 0, 4: 0, 5: 0}
    assert union_find([("b", "a"), ("d", "c")]) == {"a": "a", "b": "a", "c": "c", "d": "c"}
    assert union_find([]) == {}


def test_keys_sort_by_id_then_part():
    ids, parts = ["0" * 32, "00" * 15 + "a0", "f" * 32], ["", "a", "a-1", "ab", "é"]
    keys = [Key(part, id) for id in ids for part in sorted(parts)]
    assert sorted(map(pack, reversed(keys))) == [pack(key) for key in keys]
    assert [unpack(pack(key)) for key in keys] == keys
    for wrong in ("", "0" * 30, "0" * 34, "G" * 32, "A" * 32):
        with pytest.raises(ValueError, match="id: must be 32"):
            pack(Key("p", wrong))


edge = st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda pair: pair[0] != pair[1])
graphs = st.lists(st.lists(edge, max_size=16), min_size=1, max_size=40)


@given(st.lists(edge, min_size=1, max_size=20))
def test_stars_connect_what_was_connected(edges):
    """Either star on its own, applied around every node of a graph, leaves its components as they were."""
    smaller, both = {}, {}
    for a, b in edges:
        smaller.setdefault(max(a, b), []).append(min(a, b))
        both.setdefault(a, []).append(b)
        both.setdefault(b, []).append(a)
    for groups, star in ((smaller, small_star), (both, large_star)):
        found = [pair for group in groups.items() for pair in star(group)]
        assert all(a > b for a, b in found)
        assert union_find(found) == union_find(edges)


@settings(max_examples=4, deadline=None)
@given(graphs, st.integers(0, 2))
def test_beam_agrees_with_union_find(drawn, rounds):
    edges = [(bytes([i, max(pair)]), bytes([i, min(pair)])) for i, graph in enumerate(drawn) for pair in graph]
    assert on_beam(edges, rounds)[0] == union_find(edges)


def test_long_chains_are_joined_in_one_place():
    """In the worst order of names a round halves a chain; what is then left is joined all the same."""
    chain = [(bytes([i]), bytes([i - 1])) for i in range(1, 17)]
    random.Random(0).shuffle(chain)
    found = {rounds: on_beam(chain, rounds) for rounds in (1, 4)}
    assert all(roots == {bytes([i]): b"\0" for i in range(17)} for roots, _ in found.values())
    assert found[1][1] > 10 and found[4][1] == 0


def test_stars_need_no_place():
    edges = [*star_edges([b"a", b"b", b"c", b"d"]), *star_edges([b"f", b"e"])]
    assert on_beam(edges * 3, 0) == ({b"a": b"a", b"b": b"a", b"c": b"a", b"d": b"a", b"e": b"e", b"f": b"e"}, 0)


def test_verdicts_by_hand():
    first, second, third = (Key(part, digit * 32) for part, digit in (("q", "1"), ("p", "2"), ("q", "3")))
    assert list(verdicts_on((pack(first), [pack(third), pack(second)]))) == [
        ("q", Verdict(first.id, True, first.id, 3)), ("q", Verdict(third.id, False, first.id, 3)),
        ("p", Verdict(second.id, False, first.id, 3))]
