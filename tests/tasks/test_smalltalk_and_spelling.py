"""Two small tasks, judged by exact replies."""

import pytest

from jaxgpt.tasks import smalltalk
from jaxgpt.tasks.smalltalk import Smalltalk
from jaxgpt.tasks.spelling import WORDS, Spelling


def test_a_reply_to_something_else_is_well_formed_and_wrong():
    hello = next(p for p in Smalltalk().problems("train", 200, seed=0) if p.answer.startswith("Hello"))
    assert Smalltalk().well_formed(hello, "Goodbye!") and Smalltalk().reward(hello, "Goodbye!") == 0.0
    assert not Smalltalk().well_formed(hello, "Goodbye")


def test_no_remark_has_two_replies():
    remarks = [remark for remarks in smalltalk.EXCHANGES.values() for remark in remarks]
    assert len(set(remarks)) == len(remarks)
    texts = {}
    for text, reply in smalltalk.wordings():
        assert texts.setdefault(smalltalk.task.normalised(text), reply) == reply, text


def test_words_are_short_distinct_and_plain():
    assert len(set(WORDS)) == len(WORDS) > 150
    assert all(2 <= len(word) <= 6 and word.isascii() and word.islower() for word in WORDS)


def test_a_word_is_in_one_split():
    words = [{problem.answer.split(":")[0] for problem in Spelling().problems(split, 5000, seed=0)}
             for split in ("train", "val", "test")]
    assert sum(map(len, words)) == len(set.union(*words)) == len(WORDS)


@pytest.mark.parametrize("completion, form, right", [
    ("c a t", True, 1.0), ("c a r", True, 0.0), ("c a t t", True, 0.0), ("cat", False, 0.0),
    ("c-a-t", False, 0.0), ("c a t: 3 letters.", False, 0.0), ("C A T", False, 0.0), ("c  a t", False, 0.0)])
def test_spelling(completion, form, right):
    problem = Spelling()._problem("cat", "Spell {word}.")
    assert Spelling().well_formed(problem, completion) == form
    assert Spelling().reward(problem, completion) == right


@pytest.mark.parametrize("completion, form, right", [
    ("c a t: 3 letters.", True, 1.0), ("c a t: 4 letters.", True, 0.0), ("c a r: 3 letters.", True, 0.0),
    ("c a t", False, 0.0), ("3", False, 0.0), ("c a t: ٣ letters.", False, 0.0)])
def test_counting(completion, form, right):
    problem = Spelling()._problem("cat", "How many letters are in {word}?")
    assert Spelling().well_formed(problem, completion) == form
    assert Spelling().reward(problem, completion) == right
