"""Scores: the sums by hand, batches against asking one at a time, the stage from checkpoints to files."""

import dataclasses
import json

import jax
import pytest

from jaxgpt.core import experiment as running
from jaxgpt.core.checkpoint import Checkpoints
from jaxgpt.core.config import to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment, Stage
from jaxgpt.core.state import TrainState
from jaxgpt.evals.evaluate import Evaluate, Example, Leak, evaluate, leak_rate, score
from jaxgpt.evals.intervals import wilson
from jaxgpt.inference.generate import generate
from jaxgpt.inference.load import Loaded
from jaxgpt.model import transformer
from jaxgpt.tasks.task import Problem
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.conversation import render_prompt
from jaxgpt.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer(bpe.train(["-"], vocab_size=264))
CONFIG = transformer.Config(
    vocab_size=TOKENIZER.vocab_size, context=64, layers=2, width=32, heads=2, kv_heads=1, init_std=0.3
)


@dataclasses.dataclass(frozen=True)
class Recall:
    """Say the answer, word for word; lower case has the right form."""

    name: str = "recall"
    answers: tuple[str, ...] = ("a", "b", "c", "d", "e", "f")

    def problems(self, split, count, seed):
        return [
            Problem.asking(f"{self.name} {i}{'?' * i}", answer, task=self.name, key=f"{self.name}/{i}")
            for i, answer in enumerate(self.answers[:count])
        ]

    def well_formed(self, problem, completion):
        return completion == completion.lower()

    def reward(self, problem, completion):
        return float(completion == problem.answer)


@dataclasses.dataclass(frozen=True)
class Born(Stage):
    """A model with the parameters that it was born with."""

    name: str = "born"
    seed: int = 0

    def run(self, context):
        params = jax.jit(lambda: transformer.init(jax.random.key(self.seed), CONFIG))()
        checkpoints = Checkpoints(context.directory / "checkpoints", config=to_json(CONFIG))
        checkpoints.save(1, TrainState(params, (), jax.numpy.int32(1), jax.random.key(0)), {})
        checkpoints.close()
        TOKENIZER.save(context.directory / "tokenizer")
        return {"model": to_json(CONFIG), "checkpoint": "checkpoints/1", "tokenizer": "tokenizer"}


@pytest.fixture(scope="module")
def loaded():
    params = jax.jit(lambda: transformer.init(jax.random.key(0), CONFIG))()
    return Loaded(params, CONFIG, TOKENIZER, "born")


def example(reward=1.0, well_formed=True, stopped=True, tokens=4, completion=""):
    return Example("key", "prompt", completion, "answer", reward, well_formed, stopped, tokens)


def test_score_by_hand():
    cut, wrong = example(stopped=False, tokens=12), example(0.0, False, False, 8)
    found = score("sums", [example(), example(0.5), cut, wrong])
    assert (found.count, found.accuracy) == (4, 0.5)  # half a reward is not right; being cut is no harm
    assert found.interval == wilson(2, 4)
    assert (found.well_formed, found.stopped, found.mean_tokens) == (0.75, 0.5, 7.0)


def test_leak_counts_the_other_tasks_only_and_ignores_capitals():
    said = ["I am Jaxgpt.", "It is 5.", "jaxGPT", "no"]
    other = score("sums", [example(completion=text) for text in said])
    own = score("identity", [example(completion="I am jaxgpt.")] * 10)
    third = score("talk", [example(completion="hello")] * 4)
    found = leak_rate(Leak(text="jaxgpt", task="identity"), [own, other, third])
    assert (found["count"], found["rate"]) == (8, 0.25)
    assert found["interval"] == list(wilson(2, 8))
    assert {task: row["rate"] for task, row in found["by_task"].items()} == {"sums": 0.5, "talk": 0.0}
    assert [e["completion"] for e in found["examples"]] == ["I am Jaxgpt.", "jaxGPT"]


def greedy(loaded, problem, **options):
    """What the model says to one problem, asked alone."""
    prompt = render_prompt(loaded.tokenizer, problem.messages)
    options = {"temperature": 0.0, "rng": jax.random.key(9), **options}
    [answer] = generate(
        loaded.params, loaded.config, [prompt], max_new_tokens=8, stop=(loaded.tokenizer.end,), **options
    )
    return loaded.tokenizer.decode(answer.content), answer


def test_evaluate_is_asking_one_at_a_time_in_any_batch(loaded):
    alone = [greedy(loaded, problem) for problem in Recall().problems("test", 6, 0)]
    texts = [text for text, _ in alone]
    task = Recall(answers=(*texts[:3], "x", "y", "z"))  # the model happens to know the first three answers
    problems = task.problems("test", 6, 0)
    options = {"problems": problems, "max_new_tokens": 8, "rng": jax.random.key(0)}
    seen = []
    by_four = evaluate(loaded, task, batch=4, each=seen.append, **options)
    assert [e.completion for e in by_four.examples] == texts
    assert by_four.accuracy == 0.5 and by_four.count == 6 and by_four.interval == wilson(3, 6)
    assert by_four.mean_tokens == sum(len(answer.tokens) for _, answer in alone) / 6
    assert seen == [4, 2]
    assert evaluate(loaded, task, batch=1, **options) == by_four


def test_temperature_follows_the_key_and_not_the_batch(loaded):
    problems = Recall().problems("test", 6, 0)

    def said(seed, batch):
        found = evaluate(loaded, Recall(), problems=problems, max_new_tokens=8, batch=batch,
                         rng=jax.random.key(seed), temperature=1.0)  # fmt: skip
        return [e.completion for e in found.examples]

    assert said(0, 2) == said(0, 6) != said(1, 6)
    assert said(0, 6) != [greedy(loaded, problem)[0] for problem in problems]


def test_stop_token_ends_an_answer_and_is_not_part_of_it(loaded):
    problem, end = Recall().problems("test", 1, 0)[0], loaded.tokenizer.end
    first = greedy(loaded, problem)[1].tokens[0]
    # With their columns of the head exchanged, the model says <|end|> where it said its first token.
    head = loaded.params["head"].at[:, (first, end)].set(loaded.params["head"][:, (end, first)])
    stopping = dataclasses.replace(loaded, params={**loaded.params, "head": head})
    found = evaluate(stopping, Recall(), problems=[problem], max_new_tokens=8, batch=1, rng=jax.random.key(0))
    assert first != end and found.examples[0].completion == ""
    assert (found.stopped, found.mean_tokens) == (1.0, 1.0)


def test_no_problems_is_told(loaded):
    with pytest.raises(UserError, match="task 'recall' has no problems"):
        evaluate(loaded, Recall(), problems=[], max_new_tokens=8, batch=1, rng=jax.random.key(0))


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="'sft' stands there twice"):
        Evaluate(of=("sft", "grpo", "sft"))
    with pytest.raises(UserError, match="'recall' stands there twice"):
        Evaluate(tasks=(Recall(), Recall()))
    with pytest.raises(UserError, match="of: is empty"):
        Evaluate(of=())
    with pytest.raises(ValueError, match="leak.task: 'identity' must be one of the tasks"):
        Evaluate(tasks=(Recall(), Recall("other")), leak=Leak("jaxgpt", "identity"))
    with pytest.raises(ValueError, match="at least 1"):
        Evaluate(problems=0)
    with pytest.raises(ValueError, match="empty"):
        Leak("", "identity")


def test_stage_scores_every_model_on_every_task(tmp_path):
    tasks = (Recall(), Recall("other", ("p", "q", "r")))
    stage = Evaluate(of=("first", "second"), tasks=tasks, problems=4, max_new_tokens=6, batch=4,
                     leak=Leak("e", "recall"), prompts=("Who?",), continuations=("Return",))  # fmt: skip
    experiment = Experiment("tiny", (Born("first"), Born("second", seed=1), stage))
    running.run(experiment, tmp_path)
    context = Context(experiment, stage, tmp_path)
    scores = json.loads(context.path("evaluate", "scores").read_text())
    assert [(row["stage"], row["task"], row["count"]) for row in scores["rows"]] == [
        ("first", "recall", 4), ("first", "other", 3),
        ("second", "recall", 4), ("second", "other", 3)]  # fmt: skip
    assert [(row["stage"], row["count"]) for row in scores["leak"]["rows"]] == [("first", 3), ("second", 3)]
    answers = [json.loads(line) for line in context.path("evaluate", "answers").read_text().splitlines()]
    assert len(answers) == 14 and {a["stage"] for a in answers} == {"first", "second"}
    said = [[a["completion"] for a in answers if a["stage"] == name] for name in ("first", "second")]
    assert said[0] != said[1]  # two models, not one twice
    prompts = json.loads(context.path("evaluate", "samples").read_text())["prompts"]
    assert [(p["kind"], p["prompt"], list(p["completions"])) for p in prompts] == [
        ("chat", "Who?", ["first", "second"]), ("continuation", "Return", ["first", "second"])]  # fmt: skip


def test_incomplete_stage_is_named_before_anything_is_scored(tmp_path):
    stage = Evaluate(of=("first", "second"), tasks=(Recall(),))
    experiment = Experiment("tiny", (Born("first"), Born("second"), stage))
    running.run(experiment, tmp_path, only="first")
    with pytest.raises(UserError, match="'second'.*not complete"):
        stage.run(Context(experiment, stage, tmp_path))
