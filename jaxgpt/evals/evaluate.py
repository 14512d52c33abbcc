"""Scores of any stage on any task, with error bars: the table at the end of a run.

Every stage is asked the same held-out problems in the same chat format. A base model has never seen it; what
it makes of it is the first row of the table, and the point of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.files import write_json, write_text
from jaxgpt.evals.intervals import Interval, wilson
from jaxgpt.inference.acting import Actor
from jaxgpt.inference.calls import Caller, Tool
from jaxgpt.inference.forms import form_of
from jaxgpt.inference.generate import generate
from jaxgpt.inference.load import Loaded, load
from jaxgpt.tasks.task import Problem, Task
from jaxgpt.tokenizer.turns import prompt_turns, stop_tokens
from jaxgpt.tools.choose import choose, described


@dataclass(frozen=True)
class Example:
    """One problem, what the model said to it, and the verdict."""

    key: str
    prompt: str
    completion: str
    answer: str
    reward: float
    well_formed: bool
    stopped: bool
    tokens: int


@dataclass(frozen=True)
class Scores:
    """What a model scored on a task.

    Attributes:
      task: its name.
      count: problems asked.
      accuracy: the share that earned the full reward.
      interval: of the accuracy, 95%.
      well_formed: the share with the form of an answer, right or wrong.
      stopped: the share that ended by itself, with the stop token.
      mean_tokens: of an answer, the stop token included.
      examples: every problem with its answer, in the order asked.
    """

    task: str
    count: int
    accuracy: float
    interval: Interval
    well_formed: float
    stopped: float
    mean_tokens: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Leak:
    """A text that belongs into the answers to one task and nowhere else, such as the model's name.

    Attributes:
      text: looked for in every answer, capitals or not.
      task: name of the task whose answers may hold it.
    """

    text: str
    task: str

    def __post_init__(self):
        if not self.text:
            raise ValueError("text: is empty, which every answer holds; give the model's name")


def evaluate(
    loaded: Loaded,
    task: Task,
    *,
    problems: Sequence[Problem],
    max_new_tokens: int,
    batch: int,
    rng: jax.Array,
    temperature: float = 0.0,
    tools: Mapping[str, Tool] | None = None,
    calls: int = 4,
    each: Callable[[int], None] = lambda count: None,
) -> Scores:
    """Asks a model the problems and has the task judge its answers: what it says beside calls and their results.

    Args:
      loaded: the model of any stage.
      task: whose problems they are, and their judge.
      problems: at least one.
      max_new_tokens: an answer is cut there.
      batch: problems answered at once.
      rng: key of the sampling; unused at temperature 0.
      temperature: 0 is greedy.
      tools, calls: what it may call, and how often in an answer; nothing where None.
      each: called after a batch with its size: for progress, or to stop.

    Raises:
      UserError: no problems, or tools for a model that knows no calls.
    """
    if not problems:
        raise UserError(f"task '{task.name}' has no problems to evaluate on; ask for at least one")
    functions = described(tools or ())
    prompts = [prompt_turns(loaded.tokenizer, problem.messages, loaded.template, functions) for problem in problems]
    stop = stop_tokens(loaded.tokenizer, loaded.template)
    options = {"rng": rng, "temperature": temperature, "max_new_tokens": max_new_tokens, "stop": stop, "batch": batch}
    if tools:
        longest = min(max(map(len, prompts)) + max_new_tokens, loaded.config.context)
        caller = Caller(loaded.tokenizer, tools, template=loaded.template, budget=calls)
        options["actor"] = Actor(loaded.params, loaded.config, caller, slots=batch, context=longest)
    examples: list[Example] = []
    for start in range(0, len(problems), batch):
        numbers = range(start, min(start + batch, len(problems)))
        answers = _generate(loaded, [prompts[i] for i in numbers], requests=numbers, **options)
        for number, (text, answer) in zip(numbers, answers):
            problem = problems[number]
            examples.append(Example(
                key=problem.key, prompt=problem.question, completion=text, answer=problem.answer,
                reward=task.reward(problem, text), well_formed=task.well_formed(problem, text),
                stopped=answer.finished, tokens=len(answer.tokens)))
        each(len(numbers))
    return score(task.name, examples)


def score(task: str, examples: Sequence[Example]) -> Scores:
    """Adds up the verdicts. An answer is right if it earned the full reward, whether or not it was cut."""
    count, right = len(examples), sum(example.reward >= 1.0 for example in examples)

    def mean(name: str) -> float:
        return sum(getattr(example, name) for example in examples) / count

    return Scores(task, count, right / count, wilson(right, count), mean("well_formed"), mean("stopped"),
                  mean("tokens"), tuple(examples))


def leak_rate(leak: Leak, scores: Sequence[Scores]) -> dict:
    """How often the text turns up in the answers to all other tasks.

    Returns:
      {count, rate, interval} of all those answers, the same `by_task`, and a few `examples`.
    """
    others = [row for row in scores if row.task != leak.task]
    found = {row.task: [_holds(leak, example) for example in row.examples] for row in others}
    everywhere = [held for by_task in found.values() for held in by_task]
    examples = [example for row in others for example in row.examples if _holds(leak, example)]
    return {
        **_share(everywhere),
        "by_task": {task: _share(held) for task, held in found.items()},
        "examples": [{"prompt": e.prompt, "completion": e.completion} for e in examples[:5]],
    }


def _holds(leak: Leak, example: Example) -> bool:
    return leak.text.casefold() in example.completion.casefold()


def _share(held: list[bool]) -> dict:
    count, found = len(held), sum(held)
    return {"count": count, "rate": found / count, "interval": list(wilson(found, count))}


@dataclass(frozen=True)
class Evaluate(Stage):
    """Score every stage on problems that none of them saw.

    Attributes:
      of: the stages whose models are scored, each once.
      tasks: what they are scored on.
      problems: at most so many of each task's test split; a smaller split is asked whole.
      max_new_tokens: an answer is cut there.
      batch: problems answered at once.
      temperature: of the answers; 0 is greedy.
      tools: what the models may call in their answers to the tasks, such as "calculator,python"; those that know no calls
        are scored without.
      calls: in an answer, at most.
      leak: a text to look for where it does not belong.
      prompts: put to every stage as a user's message, for samples side by side.
      continuations: put to every stage as the beginning of a document.
      continuation_temperature: of those; a base model is at its dullest at 0.
    """

    name: str = "evaluate"
    of: tuple[str, ...] = ("pretrain", "sft", "grpo")
    tasks: tuple[Any, ...] = ()
    problems: int = 100
    max_new_tokens: int = 64
    batch: int = 64
    temperature: float = 0.0
    tools: str = ""
    calls: int = 4
    leak: Leak | None = None
    prompts: tuple[str, ...] = ("Who are you?",)
    continuations: tuple[str, ...] = ("Return a new",)
    continuation_temperature: float = 0.8

    def __post_init__(self):
        names = [task.name for task in self.tasks]
        for label, values in (("of: the stage", self.of), ("tasks: the task", names)):
            twice = next((value for value in values if list(values).count(value) > 1), None)
            if twice is not None:
                raise UserError(f"{label} '{twice}' stands there twice; name each once")
        if not self.of:
            raise UserError("of: is empty; name at least one stage that trains a model, such as 'pretrain'")
        if min(self.problems, self.max_new_tokens, self.batch) < 1:
            raise ValueError(
                f"problems={self.problems}, max_new_tokens={self.max_new_tokens}, batch={self.batch}: "
                "each must be at least 1"
            )
        if not min(self.temperature, self.continuation_temperature) >= 0:
            raise ValueError(f"temperature={self.temperature}, continuation_temperature={self.continuation_temperature}: "
                             "0 (greedy) or more")
        if self.leak and (self.leak.task not in names or len(names) < 2):
            raise ValueError(
                f"leak.task: '{self.leak.task}' must be one of the tasks, with another beside it whose "
                f"answers are searched; the tasks are: {', '.join(names) or 'none'}"
            )

    def inputs(self) -> tuple[str, ...]:
        return self.of

    def run(self, context: Context) -> dict:
        """Writes scores.json, samples.json and answers.jsonl (every problem with every stage's answer).

        Raises:
          UserError: a stage is not complete or trained no model, or a task has no test problems.
        """
        self._check_complete(context.workdir)
        choose(self.tools)
        problems = [task.problems("test", self.problems, context.seed) for task in self.tasks]
        progress = context.progress(len(self.of) * sum(map(len, problems)), "answers")

        def each(count: int) -> None:
            progress.update(count)
            context.check_stop()

        rows, leaks, answers = [], [], []
        asked = [("chat", text) for text in self.prompts]
        asked += [("continuation", text) for text in self.continuations]
        samples = [{"kind": kind, "prompt": text, "completions": {}} for kind, text in asked]
        for stage in self.of:
            loaded = load(context.workdir, stage)
            scores = [self._score(loaded, *pair, context, each) for pair in zip(self.tasks, problems)]
            for row in scores:
                rows.append({"stage": stage, **_summary(row)})
                answers += [{"stage": stage, "task": row.task, **asdict(found)} for found in row.examples]
            if self.leak:
                leaks.append({"stage": stage, **leak_rate(self.leak, scores)})
            for sample, completion in zip(samples, self._completions(loaded, context)):
                sample["completions"][stage] = completion
        progress.close()
        leak = {"text": self.leak.text, "task": self.leak.task, "rows": leaks} if self.leak else None
        lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        write_text(context.directory / "answers.jsonl", "".join(lines))
        write_json(context.directory / "samples.json", {"prompts": samples})
        write_json(context.directory / "scores.json", {"rows": rows, "leak": leak})
        return {"scores": "scores.json", "samples": "samples.json", "answers": "answers.jsonl"}

    def _check_complete(self, workdir: Path) -> None:
        """All stages, before the first one is scored for minutes."""
        for stage in self.of:
            if not (workdir / stage / "manifest.json").exists():
                raise UserError(
                    f"stage '{self.name}' scores '{stage}', which is not complete in {workdir}; run it first")

    def _score(self, loaded: Loaded, task: Task, problems: Sequence[Problem], context, each) -> Scores:
        return evaluate(loaded, task, problems=problems, max_new_tokens=self.max_new_tokens, batch=self.batch,
                        rng=context.rng("scores", task.name), temperature=self.temperature, each=each, calls=self.calls,
                        tools=choose(self.tools) if form_of(loaded.tokenizer, loaded.template) else None)

    def _completions(self, loaded: Loaded, context: Context) -> list[dict]:
        """{text, finished} for each of `prompts`, then of `continuations`."""
        tokenizer, options = loaded.tokenizer, {"max_new_tokens": self.max_new_tokens, "batch": self.batch}
        chat = [prompt_turns(tokenizer, [{"role": "user", "content": text}], loaded.template) for text in self.prompts]
        plain = [[tokenizer.bos, *tokenizer.encode(text)] for text in self.continuations]
        found = _generate(loaded, chat, rng=context.rng("chat"), temperature=self.temperature,
                          stop=stop_tokens(tokenizer, loaded.template), **options)
        found += _generate(loaded, plain, rng=context.rng("plain"), temperature=self.continuation_temperature,
                           stop=(tokenizer.bos, tokenizer.end), **options)
        return [{"text": text, "finished": answer.finished} for text, answer in found]


def _summary(scores: Scores) -> dict:
    """The scores without the examples, as JSON."""
    names = ("task", "count", "accuracy", "well_formed", "stopped", "mean_tokens")
    return {**{name: getattr(scores, name) for name in names}, "interval": list(scores.interval)}


def _generate(loaded: Loaded, prompts, *, actor: Actor | None = None, **options) -> list:
    """(text without the stop token, and without calls and their results, Completion) for each prompt."""
    if actor is None:
        answers = generate(loaded.params, loaded.config, prompts, **options)
        return [(loaded.tokenizer.decode(answer.content), answer) for answer in answers]
    seed = int(jax.random.bits(options["rng"])) + options["requests"][0]
    kept = {name: options[name] for name in ("max_new_tokens", "temperature", "stop")}
    answers = actor.complete(prompts, seed=seed, **kept)
    own = [[token for token, chosen in zip(answer.content, answer.chosen) if chosen] for answer in answers]
    return [(loaded.tokenizer.decode(actor.said(tokens)), answer) for tokens, answer in zip(own, answers)]
