"""The split: stable, disjoint, both sides."""

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import document
from jaxgpt.curation.split import Split, check_sides, cut_at, side
from jaxgpt.curation.work import copy_id

IDS = [document(f"text {i}", "s").id for i in range(1000)]


def test_fraction_and_stability():
    held_out = {key for key in IDS if side(key, 0.1) == "val"}
    assert 70 < len(held_out) < 130
    assert held_out <= {key for key in IDS if side(key, 0.2) == "val"}
    assert side(IDS[0], 0.0) == "train" and side(IDS[0], 1.0) == "val"
    assert all(side(copy_id(key, 2), 0.1) == side(key, 0.1) for key in IDS)


def test_a_document_is_divided_where_the_tail_begins():
    item = document("0123456789", "digits", url="http://example.com/", date="2024-01-01")
    assert list(cut_at(item, 10)) == [("train", item)] and list(cut_at(item, 11)) == [("train", item)]
    assert list(cut_at(item, 0)) == [("val", item)] and list(cut_at(item, -3)) == [("val", item)]
    (name, head), (other, tail) = cut_at(item, 4)
    assert (name, head.text, other, tail.text) == ("train", "0123", "val", "456789")
    assert head.id != tail.id != item.id and (head.url, tail.date) == (item.url, item.date)


def test_an_empty_side_is_refused():
    for counts, name in (({"train": 3, "val": 0}, "val"), ({"val": 3}, "train")):
        with pytest.raises(UserError, match=f"leaves no document for '{name}' .documents: 3"):
            check_sides(counts, Split(val_fraction=0.1))
    check_sides({"train": 3}, Split(val_fraction=0))


def test_settings():
    for wrong, message in (({"val_fraction": 1.0}, "val_fraction"),
                           ({"kind": "random"}, "split: must be 'hash' or 'tail'")):
        with pytest.raises(ValueError, match=message):
            Split(**wrong)
