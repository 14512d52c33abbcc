"""Cleaning by hand."""

from jaxgpt.curation.clean import amount, drop_exact_duplicates, drop_repeated_paragraphs
from jaxgpt.curation.document import document


def test_repeated_paragraphs_stay_where_they_stand_first():
    licence = "You may copy this text as long as you keep this notice."
    wrapped = licence.replace(" as", "\nas")
    documents = [document(f"Alpha\n\n{licence}\n\nbody a", "a"), document(f"Beta\n\n{wrapped}", "b"),
                 document("Alpha\n\nbody a", "c"), document(licence, "d")]
    cleaned = drop_repeated_paragraphs(documents, min_characters=40)
    assert [item.text for item in cleaned] == [documents[0].text, "Beta", "Alpha\n\nbody a"]
    assert cleaned[0] is documents[0]
    assert cleaned[1].id == document("Beta", "b").id


def test_repeats_within_a_document_count():
    text = "\n\n".join(["a paragraph that is long enough", "short", "a paragraph that is long enough", "short"])
    assert drop_repeated_paragraphs([document(text, "s")], min_characters=20)[0].text == (
        "a paragraph that is long enough\n\nshort\n\nshort")


def test_exact_duplicates_and_amount():
    documents = [document("a", "1"), document("é", "2"), document("a", "2")]
    assert drop_exact_duplicates(documents) == documents[:2]
    assert amount(documents).bytes == 4
    assert amount(documents).by_source == {"1": {"documents": 1, "bytes": 1}, "2": {"documents": 2, "bytes": 3}}
    assert amount([]).documents == 0
