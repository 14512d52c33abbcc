"""The stage that makes an assistant of a base model: conversations in, a model that answers and stops out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, ClassVar

import jax
import numpy as np

from jaxgpt.core import sharding
from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.data.loader import Batches, ConversationRows
from jaxgpt.data.packing import Example, empty_row, pack, stack
from jaxgpt.inference.load import template_of
from jaxgpt.model import losses, transformer
from jaxgpt.model.fit import Trainable, abstract_batch, check_fits, fit, make_trainable, model_of, planned_model
from jaxgpt.model.lora import Lora
from jaxgpt.tasks.mixture import mixture
from jaxgpt.tasks.task import Problem
from jaxgpt.tokenizer.hf import load as load_tokenizer
from jaxgpt.tokenizer.template import Template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import render_turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT(Stage):
    """Trains on what the assistant says in conversations, its `<|end|>` included, and on nothing else.

    Attributes:
      start_from: the stage whose model is finetuned.
      mixture: (task, weight) pairs.
      conversations: how many, in all; later epochs see them again, packed and ordered alike but in another order.
      turns: how many problems a conversation holds, one after the other; (1, 2) makes every second one of two.
      steps: how long.
      batch: rows in a step, all devices together.
      length: positions in a row; conversations are packed whole.
      optim, accumulate, loop: as in pretraining.
      val_conversations: how many held-out ones the validation loss is over.
      lora: an adapter that is trained in place of the model, or None.
    """

    name: str = "sft"
    every_host: ClassVar[bool] = True
    start_from: str = "pretrain"
    mixture: tuple[tuple[Any, float], ...]
    conversations: int = 4000
    turns: tuple[int, ...] = (1,)
    steps: int
    batch: int = 16
    length: int = 256
    optim: Optim = Optim(lr=3e-4, schedule="linear", final_fraction=0.0)
    accumulate: int = 1
    loop: Loop = Loop(log_every=10, eval_every=100, save_every=100)
    val_conversations: int = 200
    lora: Lora | None = None

    def __post_init__(self):
        if min(self.steps, self.batch, self.conversations, self.val_conversations, self.length) < 1:
            raise ValueError("steps, batch, conversations, val_conversations, length: each is at least 1")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch}: must be divisible by accumulate={self.accumulate}")

    def _problems(self, conversations: int) -> int:
        return sum(itertools.islice(itertools.cycle(self.turns), conversations))

    def inputs(self) -> tuple[str, ...]:
        return (self.start_from,)

    def trainable(self, context: Context, config: transformer.Config) -> Trainable:
        """The jitted step and the shapes it takes."""
        sharding.check_batch(self.batch, context.mesh, context.rules, f"{self.name}.batch", self.accumulate)
        sharding.check_length(self.length, context.mesh, context.rules, f"{self.name}.length")
        loss_fn = functools.partial(losses.next_token_loss, config=config)
        return make_trainable(context, config, self.optim, loss_fn, steps=self.steps, accumulate=self.accumulate,
                              adapter=self.lora)

    def programs(self, context: Context) -> dict:
        trainable = self.trainable(context, planned_model(context, self.start_from))
        batch, params = abstract_batch(context, self.batch, self.length), trainable.abstract_params
        return {"train_step": (trainable.step, (trainable.abstract_state, params if self.lora else (), batch)),
                "evaluate": (self.evaluation_program(context, trainable.config), (params, batch))}

    def evaluation_program(self, context: Context, config: transformer.Config):
        """(params, batch) -> (nats, tokens), jitted."""
        @jax.jit
        def sums(params, batch):
            with sharding.in_force(context.mesh, context.rules):
                return losses.next_token_loss(params, (), batch, None, config=config,
                                              auxiliary=False)[:2]

        return sums

    def run(self, context: Context) -> dict:
        config, checkpoint, folder = model_of(context, self.start_from)
        tokenizer, template = load_tokenizer(folder), template_of(context.workdir, self.start_from)
        check_fits(config, tokenizer, self.length)
        trainable = self.trainable(context, config)
        examples = {split: render_all(tokenizer, mixture(self.mixture, split, self._problems(count), context.seed),
                                      self.turns, template)
                    for split, count in (("train", self.conversations), ("val", self.val_conversations))}
        rows = ConversationRows(examples["train"], length=self.length, seed=context.seed)
        trained = sum(sum(mask) for _, mask in examples["train"])
        context.log(f"{self.name}: {len(examples['train']):,} conversations in {rows.rows_per_epoch:,} rows, "
                    f"{trained:,} tokens of answers; {self.steps * self.batch / rows.rows_per_epoch:.1f} epochs")

        by_rows = sharding.batch_sharding(context.mesh, context.rules)
        mine = sharding.rows_here(self.batch, by_rows)

        def train_batches(start: int):
            found = Batches(rows, batch=self.batch, start_step=start, mine=mine)
            return lambda state: (next(found), {})

        held_out = in_batches(pack(examples["val"], length=self.length, seed=0), self.batch)
        held_out = sharding.put(jax.tree.map(lambda x: x[mine], held_out), by_rows)
        sums = self.evaluation_program(context, config)

        frozen = trainable.load(checkpoint) if self.lora else ()

        def evaluate(state, step: int) -> dict:
            params = trainable.model(state, frozen)
            totals = [jax.device_get(sums(params, batch)) for batch in held_out]
            nats, tokens = np.asarray(totals, np.float64).sum(axis=0)
            return {"val_loss": nats / tokens}

        def create():
            return trainable.create(context.rng("init"), None if self.lora else trainable.load(checkpoint))

        _, outputs = fit(context, trainable, create, loop=self.loop, batches=train_batches, steps=self.steps,
                         tokens_per_step=self.batch * self.length, length=self.length, tokenizer=folder,
                         frozen=frozen, evaluate=evaluate, start=self.start_from)
        return outputs


def render_all(tokenizer: Tokenizer, problems: list[Problem], turns: tuple[int, ...] = (1,),
               template: Template | None = None) -> list[Example]:
    """Problems with their demonstrations as conversations, (tokens, loss mask) each; conversation i holds turns[i] of them.

    `turns` begins again where it ends; the last conversation holds what is left.
    """
    found, rest, sizes = [], iter(problems), itertools.cycle(turns)
    while chosen := list(itertools.islice(rest, next(sizes))):
        messages = [message for problem in chosen
                    for message in (*problem.messages, {"role": "assistant", "content": problem.answer})]
        found.append(render_turns(tokenizer, messages, template))
    return found


def in_batches(rows: list[dict], size: int) -> list[dict]:
    """Rows in batches of `size`, the last one filled with rows that count for nothing."""
    if not rows:
        return []
    rows = rows + [empty_row(len(rows[0]["tokens"]))] * (-len(rows) % size)
    return [stack(rows[start:start + size]) for start in range(0, len(rows), size)]
