"""Exact duplicates: by hand, against a reader who goes through everything in order, and in any order."""

import random
import tarfile

import pytest
import searching
from searching import numbered

from jaxgpt.curation import grouping
from jaxgpt.curation.document import Drop, Fingerprint, Key, Verdict
from jaxgpt.curation.duplicates import ExactDuplicates

LICENCE = "You may copy this text as long as you keep this notice."


def texts(documents):
    return {int(item.id, 16): item.text for item in documents}


def by_a_reader(search, parts):
    """What is left when someone reads all documents in the order of (id, part) and remembers every unit."""
    seen, left = set(), {part: {} for part in parts}
    separator = {"document": None, "paragraph": "\n\n", "line": "\n"}[search.unit]
    for part, item in sorted(((part, item) for part, items in parts.items() for item in items),
                             key=lambda found: (found[1].id, found[0])):
        kept = []
        for unit in item.text.split(separator) if separator else [item.text]:
            words = " ".join(unit.split())
            if len(words) >= search.min_characters and words:
                if words in seen:
                    continue
                seen.add(words)
            kept.append(unit)
        text = (separator or "").join(kept)
        if text.strip() or text == item.text:
            left[part][int(item.id, 16)] = text
    return left


def test_documents_by_hand():
    search = ExactDuplicates()
    parts = {"q": [numbered(4, "tea  for\ntwo"), numbered(1, "Tea for two"), numbered(5, "")],
             "p": [numbered(3, "tea for two"), numbered(4, "tea for two\n"), numbered(2, "tea for 2")]}
    (verdicts,), _ = searching.run([search], parts)
    first, same = numbered(3, "").id, numbered(4, "").id
    assert verdicts == {Key("p", first): Verdict(first, True, first, 3), Key("p", same): Verdict(same, False, first, 3),
                        Key("q", same): Verdict(same, False, first, 3)}
    left = searching.left(search, verdicts, parts)
    assert texts(left["q"]) == {1: "Tea for two", 5: ""} and texts(left["p"]) == {3: "tea for two", 2: "tea for 2"}
    assert search.apply(parts["q"][0], verdicts[Key("q", same)]) == Drop("duplicate", first)
    assert search.apply(parts["p"][0], verdicts[Key("p", first)]) is parts["p"][0]


def test_paragraphs_by_hand():
    search = ExactDuplicates(unit="paragraph", min_characters=20)
    wrapped = LICENCE.replace(" as", "\nas")
    items = [numbered(1, f"Alpha\n\n{LICENCE}\n\nbody a"), numbered(2, f"Beta\n\n{wrapped}"),
             numbered(3, "Alpha\n\nbody a"), numbered(4, f"{LICENCE}\n\n \n\n{LICENCE}"),
             numbered(5, "This one stands twice\n\nbut\n\nThis one stands twice\n\nbut")]
    parts = {"p": items[3:], "q": items[:3]}
    (verdicts,), _ = searching.run([search], parts)
    assert {int(key.id, 16): verdict.cut for key, verdict in verdicts.items()} == {2: (1,), 4: (0, 2), 5: (2,)}
    left = searching.left(search, verdicts, parts)
    assert texts(left["q"]) == {1: items[0].text, 2: "Beta", 3: "Alpha\n\nbody a"}
    assert texts(left["p"]) == {5: "This one stands twice\n\nbut\n\nbut"}
    assert search.apply(items[3], verdicts[Key("p", items[3].id)]) == Drop("nothing left", 2)
    assert search.apply(items[0], None) is items[0]


def test_of_a_record_in_two_files_one_stays():
    parts = {name: [numbered(7, "One line.\nAnother line.")] for name in ("q", "p", "r")}
    searches = [ExactDuplicates(unit=unit, name=unit) for unit in ("document", "paragraph", "line")]
    for search, verdicts in zip(searches, searching.run(searches, parts)[0]):
        left = searching.left(search, verdicts, parts)
        assert {part for part, items in left.items() if items} == {"p"}


def random_parts(seed):
    """Documents of few different lines, some of them in two parts."""
    rng = random.Random(3)
    lines = ["", " ", "a", "b", "c c", "c  c", "a longer line", "another longer line"]
    items = [numbered(i, "\n".join(rng.choices(lines, k=rng.randrange(1, 7)))) for i in range(120)]
    parts = {name: items[rest::3] + items[rest + 1::21] for rest, name in enumerate(["p", "pp", "b"])}
    order = random.Random(seed)
    return {name: order.sample(found, len(found)) for name, found in parts.items()}


def test_any_order_gives_what_a_reader_would_leave(monkeypatch):
    searches = [ExactDuplicates(unit=unit, min_characters=size, name=f"{unit} {size}")
                for unit, size in (("document", 1), ("paragraph", 1), ("line", 1), ("line", 5))]
    parts = random_parts(0)
    first, _ = searching.run(searches, parts)
    for search, verdicts in zip(searches, first):
        left = searching.left(search, verdicts, parts)
        assert {part: texts(items) for part, items in left.items()} == by_a_reader(search, parts)
        assert left != parts
    monkeypatch.setattr(grouping, "BATCH", 7)
    shuffled = dict(reversed(random_parts(1).items()))
    assert searching.run(searches, shuffled, direct_num_workers=3, direct_running_mode="multi_threading")[0] == first


@pytest.mark.slow
def test_processes_change_nothing():
    searches = [ExactDuplicates(name="documents"), ExactDuplicates(name="lines", unit="line")]
    one, _ = searching.run(searches, random_parts(0))
    two, _ = searching.run(searches, random_parts(2), direct_num_workers=2, direct_running_mode="multi_processing")
    assert two == one


def test_real_texts(data_folder):
    """The paragraphs that PEPs share, such as the one that places them in the public domain."""
    with tarfile.open(f"{data_folder}/text/peps.tar.gz") as archive:
        names = [member for member in sorted(archive.getnames()) if member.endswith(".rst")][:200]
        items = [numbered(i, archive.extractfile(name).read().decode()) for i, name in enumerate(names)]
    parts = {"p": items[100:], "q": items[:100]}
    search = ExactDuplicates(unit="paragraph", min_characters=40)
    (verdicts,), _ = searching.run([search], parts)
    left = searching.left(search, verdicts, parts)
    assert {part: texts(items) for part, items in left.items()} == by_a_reader(search, parts)
    words, found = "placed in the public domain", [*left["p"], *left["q"]]
    assert sum(words in item.text for item in items) > 50 > sum(words in item.text for item in found) > 0


def test_a_hash_of_another_size_is_refused():
    with pytest.raises(ValueError, match="a fingerprint must have 12 bytes .part 'p', document 0"):
        grouping._records((Key("p", "0" * 32), (Fingerprint(b"short"),)))


@pytest.mark.parametrize("field, value", [("unit", "word"), ("min_characters", -1)])
def test_settings_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=f"^{field}: must"):
        ExactDuplicates(**{field: value})
