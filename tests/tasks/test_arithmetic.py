"""Sums: both ways of answering end in one answer that cannot be talked around."""

import re

import pytest

from jaxgpt.tasks.arithmetic import Arithmetic, direct, worked
from jaxgpt.tasks.task import Problem

SUM = Problem.asking("What is 37 + 48?", "7+8=15, 3+4+1=8. It is 85.", task="arithmetic", key="37+48")


def test_worked_sums_by_hand():
    assert worked(37, "+", 48) == "7+8=15, 3+4+1=8. It is 85."
    assert worked(52, "+", 14) == "2+4=6, 5+1+0=6. It is 66."
    assert worked(99, "+", 99) == "9+9=18, 9+9+1=19. It is 198."
    assert worked(105, "+", 895) == "5+5=10, 0+9+1=10, 1+8+1=10. It is 1000."
    assert worked(3, "+", 4) == "3+4=7. It is 7."
    assert worked(62, "-", 37) == "12-7=5, 6-3-1=2. It is 25."
    assert worked(48, "-", 45) == "8-5=3, 4-4-0=0. It is 3."
    assert worked(100, "-", 1 + 99) == "0-0=0, 0-0-0=0, 1-1-0=0. It is 0."
    assert worked(302, "-", 107) == "12-7=5, 10-0-1=9, 3-1-1=1. It is 195."
    assert direct(37, "+", 48) == "It is 85."


@pytest.mark.parametrize("operation", ["+", "-"])
def test_every_step_of_every_worked_sum_is_true_and_leads_to_the_answer(operation):
    for a in range(10, 100):
        for b in range(10, a + 1):
            text = worked(a, operation, b)
            steps, answer = text.split(". It is ")
            results = []
            for step in steps.split(", "):
                left, right = step.split("=")
                assert eval(left) == int(right), text
                results.append(int(right))
            low, high = results
            assert 10 * high + low % 10 == int(answer.rstrip(".")) == eval(f"{a}{operation}{b}"), text


@pytest.mark.parametrize("completion", [
    "It is 85.", "7+8=15, 3+4+1=8. It is 85.", "3+4+1=8, 7+8=15. It is 85.", "1=2. It is 85."])
def test_right_answers(completion):
    assert Arithmetic().well_formed(SUM, completion) and Arithmetic().reward(SUM, completion) == 1.0


@pytest.mark.parametrize("completion", [
    "It is 84.", "It is 850.", "It is 5.", "It is -85.", "7+8=15, 3+4+1=8. It is 75."])
def test_wrong_answers_in_the_right_form(completion):
    assert Arithmetic().well_formed(SUM, completion) and Arithmetic().reward(SUM, completion) == 0.0


@pytest.mark.parametrize("completion", [
    "It is 84. It is 85.", "It is 85. It is 85.", "It is 85. It is 84.", "It is 84.. It is 85.", "85", "85.",
    "It is 85", "It is 85. ", "It is 85.\n", " It is 85.", "It is 85. I think.", "It is 85, or 84.",
    "it is 85.", "It is 085.", "It is +85.", "It is 85.0.", "It is 8 5.", "It is ٨٥.", "It is ８５.",
    "It is 85.<|end|>", "So It is 85.", ". It is 85.", "7+8=15 It is 85.", "7+8=15\n. It is 85.", "It is  85.",
    "It is -0.",
    "It is 84-85. It is 85.", "It is 85.It is 85."])
def test_malformed_answers(completion):
    assert not Arithmetic().well_formed(SUM, completion) and Arithmetic().reward(SUM, completion) == 0.0


def test_a_negative_number_is_right_only_where_it_is():
    below_zero = Problem.asking("What is 3 - 8?", "It is -5.", task="arithmetic", key="3-8")
    assert Arithmetic().reward(below_zero, "It is -5.") == 1.0
    assert Arithmetic().reward(below_zero, "It is 5.") == 0.0


def test_commuted_pairs_share_a_split():
    splits = {}
    for split in ("train", "val", "test"):
        for problem in Arithmetic(operations=("+", "-")).problems(split, 8000, seed=0):
            a, b = map(int, re.findall("[0-9]+", problem.question))
            splits.setdefault(frozenset((a, b)), set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    commuted = {tuple(re.findall("[0-9]+", p.question)) for p in Arithmetic().problems("test", 8100, seed=0)}
    assert commuted == {(b, a) for a, b in commuted}


def test_all_sums_are_there_once_a_round():
    pairs = [tuple(re.findall("[0-9]+", p.question)) for split in ("val", "test")
             for p in Arithmetic().problems(split, 8100, seed=0)]
    train = 8100 - len(pairs)
    twice = Arithmetic().problems("train", 2 * train, seed=0)
    rounds = [tuple(re.findall("[0-9]+", problem.question)) for problem in twice]
    assert len(set(rounds[:train])) == len(set(rounds[train:])) == train
    assert len(set(pairs) | set(rounds)) == 8100


@pytest.mark.parametrize("thinking", [0.0, 0.35, 1.0])
def test_the_share_of_worked_answers(thinking):
    answers = [problem.answer for problem in Arithmetic(thinking=thinking).problems("train", 4000, seed=0)]
    share = sum("=" in answer for answer in answers) / 4000
    assert share == pytest.approx(thinking, abs=0.03 if thinking % 1 else 0)


def test_differences_are_never_negative():
    for problem in Arithmetic(digits=1, operations=("-",)).problems("train", 500, seed=0):
        assert "It is -" not in problem.answer


def test_settings_are_checked():
    with pytest.raises(ValueError, match="digits: 0"):
        Arithmetic(digits=0)
    with pytest.raises(ValueError, match="operations: .*'x'"):
        Arithmetic(operations=("x",))
    with pytest.raises(ValueError, match="thinking: 35"):
        Arithmetic(thinking=35)
