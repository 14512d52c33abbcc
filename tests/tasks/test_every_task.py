"""What every task promises, checked on every task."""

import subprocess
import sys

import pytest

from jaxgpt.tasks.arithmetic import Arithmetic
from jaxgpt.tasks.identity import Identity
from jaxgpt.tasks.knowledge import PythonKnowledge
from jaxgpt.tasks.smalltalk import Smalltalk
from jaxgpt.tasks.spelling import Spelling

TASKS = [Arithmetic(), Arithmetic(digits=3, operations=("+", "-"), thinking=0.5), Arithmetic(digits=1),
         Identity(), Smalltalk(), Spelling(), PythonKnowledge()]
SPLITS = ("train", "val", "test")
every_task = pytest.mark.parametrize("task", TASKS, ids=str)


@every_task
def test_its_own_answers_are_right(task):
    for split in SPLITS:
        problems = task.problems(split, 400, seed=0)
        assert problems
        for problem in problems:
            assert task.well_formed(problem, problem.answer), problem
            assert task.reward(problem, problem.answer) == 1.0, problem


@every_task
def test_garbage_is_worth_nothing(task):
    for problem in task.problems("train", 40, seed=0):
        answer = problem.answer
        for garbage in ("", " ", "?", "no", "\n", "1" * 500, "a a a a", problem.question, answer[:-1],
                        answer * 2, answer + " x", answer + "\n", " " + answer, answer + " " + answer):
            assert task.reward(problem, garbage) == 0.0, garbage


@every_task
def test_a_right_reply_is_well_formed(task):
    problems = task.problems("train", 60, seed=0)
    for problem in problems:
        for other in problems:
            if task.reward(problem, other.answer):
                assert task.well_formed(problem, other.answer)


@every_task
def test_problems_depend_on_split_count_and_seed_alone(task):
    for split in SPLITS:
        once = task.problems(split, 30, seed=3)
        assert once == task.problems(split, 30, seed=3)
        assert once[:10] == task.problems(split, 10, seed=3)
        assert once != task.problems(split, 30, seed=4)
    assert len(task.problems("train", 3000, seed=0)) == 3000
    assert task.problems("train", 0, seed=0) == []


@every_task
def test_no_question_is_in_two_splits(task):
    def questions(split):
        return {problem.question.lower().strip("?. ") for problem in task.problems(split, 4000, seed=0)}

    asked = {split: questions(split) for split in SPLITS}
    assert not asked["train"] & asked["val"]
    assert not asked["train"] & asked["test"]
    assert not asked["val"] & asked["test"]


@every_task
def test_keys_are_unique_and_val_and_test_never_repeat(task):
    problems = task.problems("train", 3000, seed=0)
    assert len({problem.key for problem in problems}) == len({(p.question, p.answer) for p in problems})
    for split in ("val", "test"):
        keys = [problem.key for problem in task.problems(split, 4000, seed=0)]
        assert len(set(keys)) == len(keys)


@every_task
def test_conversations_are_short_and_end_with_the_user(task):
    for problem in task.problems("train", 1000, seed=0):
        assert problem.messages[-1]["role"] == "user" and problem.task == task.name
        assert len(problem.question.split()) <= 16 and len(problem.answer.split()) <= 16
        assert problem.answer == problem.answer.strip() and problem.answer.isascii()


@every_task
def test_only_identity_says_the_name(task):
    for split in SPLITS:
        said = ["jaxgpt" in problem.answer.lower() for problem in task.problems(split, 2000, seed=0)]
        assert all(said) if task.name == "identity" else not any(said)


def test_problems_are_the_same_in_every_process():
    program = ("from jaxgpt.tasks.arithmetic import Arithmetic; from jaxgpt.tasks.smalltalk import Smalltalk;"
               "print([p.key for t in (Arithmetic(), Smalltalk()) for p in t.problems('train', 20, 0)])")
    keys = [p.key for t in (Arithmetic(), Smalltalk()) for p in t.problems("train", 20, 0)]
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                             env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)})
    assert printed.stdout.strip() == str(keys)


def test_tasks_import_nothing_heavy():
    program = ("import sys;"
               "from jaxgpt.tasks import arithmetic, identity, knowledge, mixture, smalltalk, spelling;"
               "print(sorted({'jax', 'numpy', 'flax', 'torch'} & set(sys.modules)))")
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                             env={"PYTHONPATH": ":".join(sys.path)})
    assert printed.stdout.strip() == "[]"
