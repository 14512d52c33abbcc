"""How a recipe is cut, and what makes a phase be done again."""

import dataclasses

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation.code import code_of
from jaxgpt.curation.document import Document, Drop
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.minhash import MinHash
from jaxgpt.curation.parts import Part
from jaxgpt.curation.phases import cut, keys_of, probe, segments, settings_of
from jaxgpt.curation.quality import FineWebQuality, GopherQuality, GopherRepetition
from jaxgpt.curation.sources import Jsonl, TextFiles
from jaxgpt.curation.split import Split

SOURCE = Jsonl("a.jsonl")
PARTS = [Part("a", "a.jsonl", 10, "1"), Part("b", "b.jsonl", 10, "2")]


@dataclasses.dataclass(frozen=True)
class Short:
    """Drops what is longer than `most`."""

    name: str = "short"
    most: int = 10
    words: str = ""
    measures = ()

    def __call__(self, document):
        return document if len(document.text) <= self.most else Drop("too long", len(document.text))


@dataclasses.dataclass(frozen=True)
class Wrong(Short):
    """Gives what no step may give."""

    def __call__(self, document):
        return None


def folders(steps, split=Split()):
    return [phase.folder for phase in cut(steps, split)]


def test_how_recipes_are_cut():
    assert folders(()) == ["1-read"]
    assert folders((), Split("tail", 0.1)) == ["1-read", "2-split"]
    assert folders((Short(),)) == ["1-read"]  # nothing before it is worth keeping
    assert folders((Extract(), Short())) == ["1-extract", "2-short"]
    assert folders((GopherQuality(),)) == ["1-read", "2-scores", "3-gopher_quality"]
    whole = (Short(), Extract(), GopherRepetition(), GopherQuality(), ExactDuplicates(), MinHash(), Short("last"))
    assert folders(whole) == [
        "1-extract", "2-scores", "3-gopher_repetition", "4-exact_duplicates/fingerprints", "4-exact_duplicates",
        "5-minhash/fingerprints", "5-minhash"]
    phases = cut(whole, Split())
    assert [[step.name for step in phase.steps] for phase in phases] == [
        ["short", "extract"], [], ["gopher_repetition", "gopher_quality"], [], [], [], ["last"]]
    assert segments(phases) == [(0, 4), (4, 6), (6, 7)]
    assert [phase.reads for phase in phases] == ["", "1-extract", "1-extract", "3-gopher_repetition",
                                                 "3-gopher_repetition", "4-exact_duplicates", "4-exact_duplicates"]
    assert [phase.split is None for phase in phases] == [True] * 6 + [False]


def test_a_step_that_measures_after_a_search_has_scores_of_its_own():
    steps = (ExactDuplicates(), GopherQuality())
    assert folders(steps) == ["1-read", "2-exact_duplicates/fingerprints", "2-exact_duplicates", "3-scores",
                              "4-gopher_quality"]


def test_measures_are_taken_once():
    phase = cut((GopherQuality(), FineWebQuality()))[1]
    names = [measure.name for measure in phase.measures]
    assert phase.kind == "scores" and len(names) == len(set(names)) >= 2


def test_names_are_unique():
    with pytest.raises(ValueError, match="steps: two are called 'short'; give one another name="):
        cut((Short(), Short(most=3)))
    with pytest.raises(ValueError, match="is no step"):
        cut(("short",))


def keys(steps, source=SOURCE, parts=PARTS, split=Split()):
    sources = source if isinstance(source, tuple) else (source,)
    phases = cut(steps, split)
    return keys_of(phases, [settings_of(phase, sources) for phase in phases], parts)


def same(one, other):
    """For each phase whether all parts, some or none have the same key."""
    return ["all" if a == b else "some" if set(a) & set(b) else "none" for a, b in zip(one, other, strict=True)]


def test_what_changes_a_key():
    steps = (Extract(), GopherQuality(), ExactDuplicates())
    before = keys(steps)
    assert same(before, keys(steps)) == ["all"] * 5
    assert same(before, keys((Extract(), GopherQuality(min_words=40), ExactDuplicates()))) == [
        "all", "all", "none", "none", "none"]
    assert same(before, keys((Extract(), GopherQuality(), ExactDuplicates(min_characters=5)))) == [
        "all", "all", "all", "none", "none"]
    assert same(before, keys(steps, split=Split(val_fraction=0.5))) == ["all"] * 4 + ["none"]
    changed = [PARTS[0], dataclasses.replace(PARTS[1], identity="3")]
    assert same(before, keys(steps, parts=changed)) == ["some"] * 4 + ["none"]  # a search reads all parts
    assert same(before, keys(steps, source=Jsonl("b.jsonl"))) == ["all"] * 5  # where they lie does not count
    assert same(before, keys(steps, source=Jsonl("a.jsonl", field="body"))) == ["none"] * 5
    assert same(before, keys(steps, source=TextFiles("a.txt"))) == ["none"] * 5


def test_another_source_does_not_change_what_the_first_is_read_as():
    steps = (Extract(), GopherQuality(), ExactDuplicates())
    more = [*PARTS, Part("c", "c.txt", 10, "3", source=1)]
    both = [keys(steps, (SOURCE, TextFiles("c.txt", separator=mark)), more) for mark in ("%", "--")]
    assert [row[:2] for row in both[0][:4]] == [row[:2] for row in both[1][:4]] == keys(steps)[:4]
    assert not set(both[0][0][2:]) & set(both[1][0][2:]) and not set(both[0][4]) & set(both[1][4])


def test_a_file_that_settings_name_counts_by_what_it_holds(tmp_path):
    path = tmp_path / "words.txt"
    found = []
    for text in ("a", "b", "a"):
        path.write_text(text)
        found.append(keys((Short(words=str(path)),)))
    assert found[0] == found[2] != found[1]


def test_code_counts(tmp_path):
    found = code_of([GopherQuality()])
    assert {"jaxgpt.curation.quality", "jaxgpt.curation.statistics", "jaxgpt.curation.work"} <= set(found)
    assert not {"jaxgpt.curation.extract", "trafilatura"} & set(found)
    assert {"jaxgpt.curation.extract", "trafilatura"} <= set(code_of([Extract()]))
    ours, = (name for name in code_of([Short()]) if name.endswith("Short"))
    assert code_of([Short()])[ours] != code_of([Wrong()])[ours.replace("Short", "Wrong")]


def test_a_step_that_cannot_work_is_found_before_the_work(tmp_path):
    probe((Short(), Extract(), GopherQuality(), ExactDuplicates()))
    with pytest.raises(UserError, match="step 'short': gave NoneType, expected a Document or a Drop"):
        probe((Wrong(),))
    assert isinstance(Short(most=10**6)(Document("id", "text", "s")), Document)
