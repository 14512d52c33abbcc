"""Practice: GRPO on problems whose answers can be checked.

One step, in four lines:
  1. draw `rollouts` completions of each of `prompts` problems from the policy;
  2. reward each with the task's checker;
  3. compare each with its group: advantage = (reward - mean) / std;
  4. make the better ones likelier, by the clipped ratio, and stay near the reference by a KL penalty.

Source: Shao et al. 2024, "DeepSeekMath", section 4.1 (GRPO); DeepSeek-AI 2025, "DeepSeek-R1", section 2.2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core import distributed, sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.core.state import TrainState
from jaxgpt.evals.evaluate import evaluate as evaluate_task
from jaxgpt.inference.acting import Actor, as_rollouts
from jaxgpt.inference.calls import Caller
from jaxgpt.inference.generate import Rollouts, rollout
from jaxgpt.inference.load import Loaded, template_of
from jaxgpt.model import losses as model_losses
from jaxgpt.model import transformer
from jaxgpt.model.fit import Trainable, abstract_batch, fit, make_trainable, model_of, planned_model
from jaxgpt.model.lora import Lora
from jaxgpt.rl import kl as kl_estimators
from jaxgpt.rl.advantages import group_advantages
from jaxgpt.rl.losses import aggregate, policy_loss
from jaxgpt.tasks.mixture import mixture
from jaxgpt.tokenizer.hf import load as load_tokenizer
from jaxgpt.tokenizer.template import Template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import end_of_turn, prompt_turns
from jaxgpt.tools.choose import choose, described


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(Stage):
    """Reinforcement learning from a checker's rewards, without a value model.

    Attributes:
      start_from: the stage whose model practises; it is the reference too.
      task: problems and their checker.
      rehearse: (task, weight) pairs mixed in, the weight of `task` being 1: what is not practised is soon forgotten
        (DeepSeek-R1, section 2.3.4, "reinforcement learning for all scenarios").
      steps: how long; each is one batch of fresh rollouts.
      prompts, rollouts: P problems a step, R completions of each.
      prompt_tokens, max_new_tokens: the longest prompt and completion, in tokens.
      temperature: of the rollouts. The loss divides logits by it too, so that the ratio is of what was sampled.
      scale: of the advantages, as in `group_advantages`: "group" (GRPO), "none" (Dr. GRPO), "leave_one_out" (RLOO).
      updates: passes over each batch of rollouts. With 1 the ratio is exactly 1 and clipping never acts.
      clip: how far below and above 1 the ratio may go.
      kl_weight: β of the k3 penalty to the reference; 0 saves the reference's forward pass.
      aggregation: of the tokens' losses, as in `rl.losses.aggregate`.
      truncated: completions cut off by max_new_tokens have reward 0, and "penalise" learns from them, "mask" does not.
      accumulate: micro-batches that the P · R rows are divided into.
      optim, loop: as in pretraining; an evaluation is greedy, on held-out problems.
      val_problems: how many.
      tools: what the model may call in its completions, such as "calculator,python,search:FOLDER"; the results are in
        them, and the loss does not see them. Rollouts are then the engine's.
      calls: in a completion, at most.
      lora: an adapter that is trained in place of the model, which is then the reference too; or None.
    """

    name: str = "grpo"
    every_host: ClassVar[bool] = True
    start_from: str = "sft"
    task: Any
    rehearse: tuple[tuple[Any, float], ...] = ()
    steps: int
    prompts: int = 32
    rollouts: int = 8
    prompt_tokens: int = 32
    max_new_tokens: int = 32
    temperature: float = 1.0
    scale: Literal["group", "batch", "none", "leave_one_out"] = "group"
    updates: int = 1
    clip: tuple[float, float] = (0.2, 0.2)
    kl_weight: float = 0.0
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    truncated: Literal["penalise", "mask"] = "penalise"
    accumulate: int = 1
    optim: Optim = Optim(lr=1e-4, schedule="constant")
    loop: Loop = Loop(log_every=1, eval_every=20, save_every=20)
    val_problems: int = 100
    tools: str = ""
    calls: int = 4
    lora: Lora | None = None

    def __post_init__(self):
        if min(self.steps, self.prompts, self.prompt_tokens, self.max_new_tokens, self.updates, self.accumulate,
               self.val_problems) < 1:
            raise ValueError("steps, prompts, prompt_tokens, max_new_tokens, updates, accumulate, val_problems: each is at "
                             "least 1")
        if self.rollouts < 2:
            raise ValueError(f"rollouts={self.rollouts}: a group needs at least 2 completions to compare")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: practice needs chance, so above 0")
        if min(*self.clip, self.kl_weight) < 0:
            raise ValueError(f"clip={self.clip}, kl_weight={self.kl_weight}: none is below 0")
        names = [task.name for task, _ in ((self.task, 1.0), *self.rehearse)]
        if len(set(names)) < len(names):
            raise ValueError(f"rehearse: two tasks are called alike ({', '.join(names)}); each is judged by its name")

    @property
    def rows(self) -> int:
        return self.prompts * self.rollouts

    @property
    def T(self) -> int:
        return self.prompt_tokens + self.max_new_tokens - 1

    @property
    def _holds_the_first(self) -> bool:
        """Whether the model that practice starts from is kept: as the reference, or under an adapter."""
        return self.kl_weight > 0 or self.lora is not None

    def inputs(self) -> tuple[str, ...]:
        return (self.start_from,)

    def trainable(self, context: Context, config: transformer.Config) -> Trainable:
        """The jitted update and the shapes it takes."""
        sharding.check_batch(self.prompts, context.mesh, context.rules, f"{self.name}.prompts")
        sharding.check_batch(self.rows, context.mesh, context.rules, f"{self.name}.prompts x rollouts", self.accumulate)
        sharding.check_length(self.T, context.mesh, context.rules, f"{self.name}.prompt_tokens + max_new_tokens - 1")
        loss_fn = functools.partial(
            grpo_loss, config=config, temperature=self.temperature, clip=self.clip, kl_weight=self.kl_weight,
            aggregation=self.aggregation, max_new_tokens=self.max_new_tokens)
        return make_trainable(context, config, self.optim, loss_fn, steps=self.steps * self.updates,
                              accumulate=self.accumulate, with_reference=self.kl_weight > 0, adapter=self.lora)

    def rollout_program(self, config: transformer.Config, stop: int):
        """(params, prompts [P, L], lengths [P], rng) -> Rollouts, jitted."""
        return jax.jit(lambda params, prompts, lengths, rng: rollout(
            params, config, prompts, lengths, rng=rng, group=self.rollouts, max_new_tokens=self.max_new_tokens,
            temperature=self.temperature, stop=(stop,)))

    def score_program(self, context: Context, config: transformer.Config):
        """(params, batch) -> the log-probabilities before the first of several updates, jitted."""
        @jax.jit
        def score_in_context(params, batch):
            with sharding.in_force(context.mesh, context.rules):
                return score(params, batch, config=config, temperature=self.temperature)

        return score_in_context

    def programs(self, context: Context) -> dict:
        config = planned_model(context, self.start_from)
        trainable = self.trainable(context, config)
        batch = abstract_batch(context, self.rows, self.T, old_logprobs=jnp.float32, sampler_logprobs=jnp.float32)
        row = sharding.batch_sharding(context.mesh, context.rules)
        batch = {name: batch[name] for name in ("tokens", "targets", "loss_mask", "old_logprobs", "sampler_logprobs")}
        batch["advantages"] = jax.ShapeDtypeStruct((self.rows,), jnp.float32, sharding=row)
        params = trainable.abstract_params
        prompts = jax.ShapeDtypeStruct((self.prompts, self.prompt_tokens), jnp.int32, sharding=row)
        lengths = jax.ShapeDtypeStruct((self.prompts,), jnp.int32, sharding=row)
        rng = jax.eval_shape(lambda: jax.random.key(0))
        fresh = {name: value for name, value in batch.items() if name != "old_logprobs"}
        found = {"rollout": (self.rollout_program(config, 0), (params, prompts, lengths, rng))}
        if self.updates > 1:
            found["score"] = (self.score_program(context, config), (params, fresh))
        found["train_step"] = (trainable.step, (trainable.abstract_state, params if self._holds_the_first else (),
                                                batch if self.updates > 1 else fresh))
        return found

    def run(self, context: Context) -> dict:
        config, checkpoint, folder = model_of(context, self.start_from)
        tokenizer, template = load_tokenizer(folder), template_of(context.workdir, self.start_from)
        if self.prompt_tokens + self.max_new_tokens > config.context:
            raise UserError(f"{self.name}: prompt_tokens={self.prompt_tokens} and max_new_tokens={self.max_new_tokens} "
                            f"are more together than the model's context of {config.context}")
        trainable = self.trainable(context, config)
        frozen = trainable.load(checkpoint) if self._holds_the_first else ()
        practice = Practice(self, context, config, tokenizer, template,
                            lambda state: trainable.model(state, frozen))

        def evaluate(state, step: int) -> dict:
            loaded = Loaded(params=trainable.model(state, frozen), config=config, tokenizer=tokenizer, stage=self.name,
                            template=template)
            scores = evaluate_task(loaded, self.task, problems=practice.held_out, max_new_tokens=self.max_new_tokens,
                                   batch=256, rng=context.rng("evaluate"), tools=practice.tools, calls=self.calls)
            context.log(f"{self.name}: step {step:,}: greedy accuracy {scores.accuracy:.1%} of {scores.count} held-out "
                        f"problems, {scores.mean_tokens:.1f} tokens each")
            return {"val_accuracy": scores.accuracy, "val_completion_tokens": scores.mean_tokens}

        def update(state, frozen, batch):
            """`updates` passes over one batch of rollouts."""
            finite = 1.0
            for _ in range(self.updates):
                state, metrics = trainable.step(state, frozen, batch)
                finite = metrics["finite"] * finite
            return state, {**metrics, "finite": finite}

        def create():
            return trainable.create(context.rng("init"), None if self.lora else trainable.load(checkpoint))

        _, outputs = fit(context, trainable, create, loop=self.loop, batches=practice.batches, steps=self.steps,
                         tokens_per_step=None, length=self.T, tokenizer=folder, step_fn=update, frozen=frozen,
                         evaluate=evaluate, start=self.start_from)
        return outputs


class Practice:
    """Makes each step's batch: problems, rollouts, rewards, advantages. Step k follows from (seed, k, params) alone."""

    def __init__(self, stage: GRPO, context: Context, config: transformer.Config, tokenizer: Tokenizer,
                 template: Template | None = None, model: Callable[[TrainState], Any] = lambda state: state.params):
        """`model` gives the policy's parameters.

        Raises UserError where a problem's prompt is longer than `prompt_tokens`."""
        self._stage, self._context, self._config, self._tokenizer = stage, context, config, tokenizer
        self._model, self._template = model, template
        parts = ((stage.task, 1.0), *stage.rehearse)
        self._tasks = {task.name: task for task, _ in parts}
        self._problems = mixture(parts, "train", stage.steps * stage.prompts, context.seed)
        self.held_out = stage.task.problems("val", stage.val_problems, context.seed)
        self._stop = end_of_turn(tokenizer, template)
        self._rollout = stage.rollout_program(config, self._stop)
        self.tools, self._actor = choose(stage.tools), None
        self._caller = Caller(tokenizer, self.tools, template=template, budget=stage.calls) if self.tools else None
        if self.tools and jax.process_count() > 1:
            raise UserError(f"{stage.name}.tools: practice with tools runs in one process, not in {jax.process_count()}")
        self._score = stage.score_program(context, config)
        longest = max(self._problems, key=lambda problem: len(self._prompt(problem)))
        needed = len(self._prompt(longest))
        if needed > stage.prompt_tokens:
            raise UserError(f"{stage.name}.prompt_tokens={stage.prompt_tokens}: the problem {longest.question!r} takes "
                            f"{needed} tokens; set it to at least {needed}")

    def batches(self, start: int):
        """`next_batch(state) -> (batch, metrics)`, from step `start` on."""
        steps = iter(range(start, self._stage.steps))
        return lambda state: self.batch(self._model(state), next(steps))

    def batch(self, params, step: int) -> tuple[dict, dict]:
        """The batch of one step.

        Returns:
          ({"tokens", "targets", "loss_mask", "old_logprobs", "sampler_logprobs" [B, T], "advantages" [B]}, metrics),
          B = P · R rows of T = prompt_tokens + max_new_tokens - 1 positions.
        """
        stage = self._stage
        problems = self._problems[step * stage.prompts:(step + 1) * stage.prompts]
        rows = sharding.batch_sharding(self._context.mesh, self._context.rules)
        prompts, rng = [self._prompt(problem) for problem in problems], self._context.rng("rollout", step)
        rolled = self._act(params, prompts, rng) if self.tools else self._roll(params, prompts, rng, rows)
        problems = [problem for problem in problems for _ in range(stage.rollouts)]
        rewards, well_formed = self._rewards(problems, rolled)
        groups = np.repeat(np.arange(stage.prompts), stage.rollouts)
        advantages = np.asarray(group_advantages(rewards, groups, scale=stage.scale))
        mask = rolled.completion_mask[:, 1:]
        if stage.truncated == "mask":
            mask = mask * rolled.finished[:, None]
        batch = {"tokens": rolled.tokens[:, :-1], "targets": rolled.tokens[:, 1:], "loss_mask": mask,
                 "advantages": advantages, "sampler_logprobs": rolled.logprobs[:, 1:]}
        mine = sharding.rows_here(len(problems), rows)
        batch = {name: array[mine] for name, array in batch.items()}
        if stage.updates > 1:
            batch["old_logprobs"] = self._score(params, sharding.put(batch, rows))
        per_group = rewards.reshape(stage.prompts, stage.rollouts)
        main = np.array([problem.task == stage.task.name for problem in problems])
        return batch, {
            "reward": float(rewards.mean()), "accuracy": float(rewards[main].mean()) if main.any() else None,
            "well_formed": float(np.mean(well_formed)),
            "completion_tokens": float(rolled.completion_mask.sum(axis=1)[main].mean()) if main.any() else None,
            "truncated": float(1 - rolled.finished.mean()),
            "groups_without_signal": float((per_group.max(axis=1) == per_group.min(axis=1)).mean())}

    def _roll(self, params, prompts: list[list[int]], rng, rows) -> Rollouts:
        """Completions by one compiled program, each host's rows on its devices."""
        prompts, lengths = self._pad(prompts)
        mine = sharding.rows_here(len(prompts), rows)
        prompts, lengths = sharding.put((prompts[mine], lengths[mine]), rows)
        return distributed.fetch(self._rollout(params, prompts, lengths, rng))

    def _act(self, params, prompts: list[list[int]], rng) -> Rollouts:
        """Completions with tool calls in them, by the engine."""
        stage, context = self._stage, self._context
        if self._actor is None:
            self._actor = Actor(params, self._config, self._caller, slots=stage.rows, context=stage.T + 1,
                                mesh=context.mesh, rules=context.rules)
        else:
            self._actor.engine.update(params)
        completions = self._actor.complete(prompts, seed=int(jax.random.bits(rng)), max_new_tokens=stage.max_new_tokens,
                                           temperature=stage.temperature, stop=(self._stop,), group=stage.rollouts)
        return as_rollouts([prompt for prompt in prompts for _ in range(stage.rollouts)], completions, stage.T + 1)

    def _prompt(self, problem) -> list[int]:
        return prompt_turns(self._tokenizer, problem.messages, self._template, described(self.tools))

    def _pad(self, prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((len(prompts), self._stage.prompt_tokens), np.int32)
        for row, prompt in zip(padded, prompts):
            row[:len(prompt)] = prompt
        return padded, np.array([len(prompt) for prompt in prompts], np.int32)

    def _rewards(self, problems, rolled) -> tuple[np.ndarray, np.ndarray]:
        """The checker's verdict on each completion; one that never stopped is not an answer. Hosts share the work."""
        rewards, well_formed = np.zeros(len(problems), np.float32), np.zeros(len(problems), np.int32)
        for row, problem in list(enumerate(problems))[jax.process_index()::jax.process_count()]:
            tokens = rolled.tokens[row][rolled.completion_mask[row] > 0]
            if not rolled.finished[row]:
                continue
            said = tokens[:-1] if self._actor is None else self._actor.said(tokens[:-1].tolist())
            text, task = self._tokenizer.decode(said), self._tasks[problem.task]  # without the stop token
            well_formed[row], rewards[row] = task.well_formed(problem, text), task.reward(problem, text)
        return distributed.total(rewards), distributed.total(well_formed)


def score(params: Any, batch: dict, *, config: transformer.Config, temperature: float) -> jax.Array:
    """Log-probabilities [B, T] of a batch's targets under the policy before the update, as the update computes them."""
    x, _, _ = transformer.hidden(params, batch["tokens"], config=config)
    return model_losses.token_logprobs(params, x, batch["targets"], config=config, temperature=temperature)[0]


def grpo_loss(params: Any, frozen: Any, batch: dict, rng: jax.Array, *, config: transformer.Config, temperature: float,
              clip: tuple[float, float], kl_weight: float, aggregation: str, max_new_tokens: int):
    """loss = policy_loss + β · KL(policy ‖ reference), over the tokens that the policy chose, its stop token included.

    Source: Shao et al. 2024, "DeepSeekMath", equation 3, with the estimator of equation 4.

    Args:
      params: the policy.
      frozen: the reference's parameters; () where β is 0.
      batch: as `Practice.batch` says. Without "old_logprobs" the rollouts are the present policy's own.
      rng: not used.
      config: of the model.
      temperature, clip, kl_weight, aggregation, max_new_tokens: as in `GRPO`.

    Returns:
      (loss_sum, weight, metrics).
    """
    x, _, _ = transformer.hidden(params, batch["tokens"], config=config)
    logprobs, entropy = model_losses.token_logprobs(params, x, batch["targets"], config=config, temperature=temperature)
    mask = batch["loss_mask"]
    old_logprobs = batch.get("old_logprobs", jax.lax.stop_gradient(logprobs))
    loss_sum, weight, metrics = policy_loss(logprobs, old_logprobs, batch["advantages"], mask, clip=clip,
                                            aggregation=aggregation, length=max_new_tokens)
    if kl_weight > 0:
        reference = score(frozen, batch, config=config, temperature=temperature)
        # where the mask is 0 anything may stand, even inf: it must not reach the exponential, or its gradient is nan
        kept, held = (jnp.where(mask > 0, x, 0.0) for x in (logprobs, jax.lax.stop_gradient(reference)))
        divergence = kl_estimators.k3(kept, held)
        loss_sum += kl_weight * aggregate(divergence, mask, aggregation=aggregation, length=max_new_tokens)[0]
        metrics["kl"] = aggregate(divergence, mask)
    metrics["entropy"] = aggregate(entropy, mask)
    metrics["sampler_gap"] = aggregate(jnp.abs(logprobs - batch["sampler_logprobs"]), mask)
    return loss_sum, weight, jax.lax.stop_gradient(metrics)
