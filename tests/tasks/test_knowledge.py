"""Modules that exist and modules that do not."""

import sys

import pytest

from jaxgpt.tasks import knowledge
from jaxgpt.tasks.knowledge import PythonKnowledge, first_sentence


def test_summaries_are_short_sentences_of_real_modules():
    summaries = knowledge.summaries()
    assert len(summaries) > 50
    for name, sentence in summaries.items():
        assert name in sys.stdlib_module_names
        assert 2 <= len(sentence.split()) <= knowledge.MOST_WORDS and sentence.endswith(".")
        assert "\n" not in sentence and not sentence.lower().startswith((name + " -", "module " + name))


def test_summaries_are_read_without_importing():
    assert "poplib" not in sys.modules and knowledge.summaries()["poplib"] == "A POP3 client class."


def test_first_sentence():
    assert first_sentence("Random things.\n\nMore.", "random") == "Random things."
    assert first_sentence("One line\nand more. And more.", "x") == "One line and more."
    assert first_sentence("Module difflib -- helpers for\ndeltas.", "difflib") == "Helpers for deltas."
    assert first_sentence("no full stop", "x") == "No full stop."
    assert first_sentence("", "x") == ""


def test_invented_names_are_distinct_and_name_nothing():
    names = {knowledge.invented_name(index) for index in range(0, len(knowledge.INVENTED), 997)}
    assert len(names) == len(range(0, len(knowledge.INVENTED), 997))
    assert all(len(name) == 7 and name not in sys.stdlib_module_names for name in names)


def test_invented_modules_of_the_test_were_never_refused_in_training():
    task = PythonKnowledge(refusals=1.0)
    trained = {p.answer for p in task.problems("train", 3000, seed=0)}
    assert not trained & {p.answer for p in task.problems("test", 300, seed=0)}


@pytest.mark.parametrize("refusals", [0.0, 0.3, 1.0])
def test_the_share_of_refusals(refusals):
    answers = [p.answer for p in PythonKnowledge(refusals=refusals).problems("train", 2000, seed=0)]
    share = sum(answer.startswith("I do not know") for answer in answers) / 2000
    assert share == pytest.approx(refusals, abs=0.04 if refusals % 1 else 0)


def test_refusing_what_is_known_or_naming_the_wrong_module_is_wrong():
    task = PythonKnowledge()
    known = next(p for p in task.problems("train", 50, seed=0) if not p.answer.startswith("I do not"))
    unknown = next(p for p in task.problems("train", 50, seed=0) if p.answer.startswith("I do not"))
    refusal = "I do not know a module named fubabub."
    assert task.well_formed(known, refusal) and task.reward(known, refusal) == 0.0
    assert task.well_formed(unknown, refusal) and task.reward(unknown, refusal) == 0.0
    assert task.reward(unknown, known.answer) == 0.0
    assert not task.well_formed(known, "word " * 30 + "end.") and not task.well_formed(known, "No stop")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="refusals: 2"):
        PythonKnowledge(refusals=2)
