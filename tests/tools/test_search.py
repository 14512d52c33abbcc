import json
import math
import random

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.tools.search import B, K1, SNIPPET, Index, Page, read_pages, words

PAGES = [Page("Otters", "otter river otter"), Page("Rivers", "river water stone bank"), Page("Kettles", "kettle")]


def test_scores_by_hand():
    """Documents of 4, 5 and 2 words with their titles; "otter" is in one of three, three times; "river" in two."""
    hits = Index(PAGES).search("otter river")
    part = lambda f, length: f * (K1 + 1) / (f + K1 * (1 - B + B * length / (11 / 3)))  # noqa: E731
    otter, river = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    assert [hit.page.title for hit in hits] == ["Otters", "Rivers"]
    assert hits[0].score == pytest.approx(otter * part(3, 4) + river * part(1, 4))
    assert hits[1].score == pytest.approx(river * part(2, 5))


def test_a_planted_document_is_found_among_many():
    rng = random.Random(0)
    common = [f"word{n}" for n in range(300)]
    pages = [Page(f"page {n}", " ".join(rng.choices(common, k=400))) for n in range(300)]
    text = " ".join(rng.choices(common, k=400)).split()
    text[200:200] = "the capital of Zembla is Onhava".split()
    pages[137] = Page("page 137", " ".join(text))
    (best, *_) = Index(pages).search("What is the capital of Zembla?")
    assert best.page.title == "page 137" and "capital of Zembla is Onhava" in best.snippet
    assert len(best.snippet.split()) <= SNIPPET + 2


def test_what_a_model_is_shown():
    index = Index(PAGES)
    assert index("Kettles!") == "1. Kettles: kettle"
    assert index("zebra") == "nothing was found" and index("?!") == "error: the query has no words"
    assert Index([])("otter") == "nothing was found"
    assert words("ÉTÉS naïve_2") == ["été", "naïve", "2"]


def test_a_folder_of_documents(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("# On otters\n\nThey swim.")
    (tmp_path / "b.txt").write_text("one line about kettles")
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [{"title": "T", "text": "stone"}, {"text": "river\nwater"}])))
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    assert list(read_pages(tmp_path)) == [Page("b", "one line about kettles"), Page("T", "stone"), Page("river", "water"),
                                          Page("On otters", "They swim.")]


@pytest.mark.parametrize("name, content, says", [
    (None, b"", "no document in it"), ("a.jsonl", b'{"text": "x"}\n{"txt": 1}', "line 2: not a JSON object"),
    ("a.txt", b"\xff\xfe\x00", "cannot be read as text")])
def test_bad_folders(tmp_path, name, content, says):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        list(read_pages(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        list(read_pages(tmp_path / "none"))
