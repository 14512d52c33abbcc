"""The split: stable, disjoint, both sides."""

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import document
from jaxgpt.curation.split import side, split_by_hash, split_tail

DOCUMENTS = [document(f"text {i}", "s") for i in range(1000)]


def test_fraction_and_stability():
    parts = split_by_hash(DOCUMENTS, 0.1)
    assert 70 < len(parts["val"]) < 130 and len(parts["train"]) + len(parts["val"]) == 1000
    fewer = split_by_hash(DOCUMENTS[::2], 0.1)
    assert set(fewer["val"]) == set(parts["val"]) & set(DOCUMENTS[::2])
    assert {item.id for item in parts["val"]} <= {item.id for item in split_by_hash(DOCUMENTS, 0.2)["val"]}
    assert side(DOCUMENTS[0].id, 0.0) == "train" and side(DOCUMENTS[0].id, 1.0) == "val"


def test_tail_is_the_end_of_the_text():
    text = "".join(item.text for item in DOCUMENTS)
    parts = {name: "".join(item.text for item in items) for name, items in split_tail(DOCUMENTS, 0.1).items()}
    assert parts["train"] == text[:int(len(text) * 0.9)] and parts["train"] + parts["val"] == text


def test_an_empty_side_is_refused():
    with pytest.raises(UserError, match="leaves no document for 'val' .documents: 1"):
        split_by_hash([document("a", "s")], 0.01)
    with pytest.raises(UserError, match="leaves no document for 'train'"):
        split_by_hash([document("a", "s")], 0.9999999)
