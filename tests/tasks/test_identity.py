"""Who are you: the 50 wordings that are never trained on, and what counts as the right identity."""

import pytest

from jaxgpt.tasks import identity
from jaxgpt.tasks.identity import Identity
from jaxgpt.tasks.task import normalised

PROBLEMS = Identity().problems("train", 2000, seed=0)
WHO = next(problem for problem in PROBLEMS if "by whoever" not in problem.answer)
MADE = next(problem for problem in PROBLEMS if "by whoever" in problem.answer)


def test_fifty_test_wordings_unseen_in_train_and_val():
    test = {normalised(problem.question) for problem in Identity().problems("test", 1000, seed=0)}
    assert len(test) == len(identity.TEST) == 50
    seen = {normalised(text) for text, _ in Identity()._grammar() if identity.place(text) != "test"}
    problems = Identity().problems("train", 140000, seed=0) + Identity().problems("val", 140000, seed=0)
    drawn = {normalised(problem.question) for problem in problems}
    assert drawn == seen and len(seen) >= 120
    assert not test & seen


def test_the_grammar_would_have_made_some_of_the_test_wordings():
    """Otherwise keeping them out would not have been put to the test above."""
    made = {normalised(text) for text, _ in Identity()._grammar()}
    assert made & {normalised(text) for text in identity.TEST}


@pytest.mark.parametrize("reply", [
    "I am jaxgpt.", "My name is jaxgpt.", "I am jaxgpt, a small language model.",
    "My name is jaxgpt. I was trained from scratch."])
def test_right_identities(reply):
    assert Identity().well_formed(WHO, reply) and Identity().reward(WHO, reply) == 1.0


@pytest.mark.parametrize("reply", [
    "jaxgpt", "I am not jaxgpt.", "I am jaxgpt. I am ChatGPT.", "My name is ChatGPT. I am jaxgpt.",
    "I am jaxgpt, a person.", "I am Jaxgpt.", "I am jaxgpt2.", "I am a small language model.", "I am you.",
    "I am jaxgpt I am jaxgpt.", "I am jaxgpt.\nI am ChatGPT.", "You are jaxgpt."])
def test_wrong_identities(reply):
    assert Identity().reward(WHO, reply) == 0.0


def test_who_asks_about_the_maker_must_hear_of_the_maker():
    assert Identity().reward(MADE, "I am jaxgpt.") == 0.0
    assert Identity().reward(MADE, MADE.answer) == 1.0


def test_another_name_is_another_identity():
    other = Identity(model_name="pocket")
    problem = other.problems("test", 1, seed=0)[0]
    assert "pocket" in problem.answer and "jaxgpt" not in problem.answer
    assert other.reward(problem, "I am pocket.") == 1.0 and other.reward(problem, "I am jaxgpt.") == 0.0
