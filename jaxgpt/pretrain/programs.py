"""The stage that makes a base model: documents in, a model that continues text out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxgpt.core import distributed, sharding
from jaxgpt.core.config import first_difference, to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.files import write_text
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.data.dataset import PACKINGS
from jaxgpt.data.loader import evaluation_batches, mixed_batches
from jaxgpt.data.mixture import Mixture, Phase
from jaxgpt.inference.generate import generate
from jaxgpt.inference.generate import programs as generation_programs
from jaxgpt.model import losses, transformer
from jaxgpt.model.fit import Trainable, abstract_batch, check_fits, fit, make_trainable, model_of
from jaxgpt.model.lora import Lora
from jaxgpt.pretrain.evaluate import evaluation_program, validation
from jaxgpt.tokenizer.hf import load as load_tokenizer
from jaxgpt.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Stage):
    """Trains a model to predict the next token of documents.

    Attributes:
      model: what is trained.
      optim: how.
      tokens: the budget; rounded down to whole steps.
      batch: rows in a step, all devices together.
      length: positions in a row; the model's context where None.
      accumulate: micro-batches in a step.
      loop: when to log, evaluate and save; an evaluation covers the whole validation split.
      prompts: continued at each evaluation, into samples.jsonl.
      sample_tokens: how far.
      attend_across: whether a document sees those before it in its row, as in GPT-2, nanoGPT and llm.c; on a GPU only
        then attention is cuDNN's.
      data: the stage that made the token shards, or a `Mixture` of several.
      packing: "concat" cuts the stream of all documents into rows; "best_fit" keeps documents whole where they fit.
      workers: processes on each host that make batches; 0 for a thread, which is enough for 20 million tokens a second.
      start_from: the stage whose model is trained further, which must be `model`, with the tokenizer of `data`; None for
        a new one.
      lora: an adapter that is trained in place of that model, or None.
    """

    name: str = "pretrain"
    every_host: ClassVar[bool] = True
    model: transformer.Config
    optim: Optim = Optim()
    tokens: int
    batch: int
    length: int | None = None
    accumulate: int = 1
    loop: Loop = Loop(log_every=10, eval_every=100, save_every=100)
    prompts: tuple[str, ...] = ()
    sample_tokens: int = 48
    attend_across: bool = False
    data: str | Mixture = "tokenize"
    packing: str = "concat"
    workers: int = 0
    start_from: str | None = None
    lora: Lora | None = None

    def __post_init__(self):
        if self.lora and self.start_from is None:
            raise ValueError("lora: an adapter is trained beside a model that is there; name its stage with start_from")
        if self.packing not in PACKINGS:
            raise ValueError(f"packing: must be one of {', '.join(map(repr, PACKINGS))}, not {self.packing!r}")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: at least 0")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length={self.length}: at least 1, or None for the model's context")
        if self.T > self.model.context:
            raise ValueError(f"length={self.length}: longer than the {self.model.context} positions of model.context")
        if min(self.batch, self.accumulate) < 1 or self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch}: at least 1, and divisible by accumulate={self.accumulate}")
        if self.sample_tokens < 1:
            raise ValueError(f"sample_tokens={self.sample_tokens}: at least 1")
        if self.tokens < self.batch * self.T:
            raise ValueError(f"tokens={self.tokens}: fewer than one step of {self.batch} x {self.T}")

    @property
    def T(self) -> int:
        return self.model.context if self.length is None else self.length

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch * self.T)

    @property
    def mixture(self) -> Mixture:
        """What is trained on: one dataset is a mixture too."""
        return self.data if isinstance(self.data, Mixture) else Mixture((Phase(((self.data, 1),)),))

    def inputs(self) -> tuple[str, ...]:
        return (*self.mixture.names, *([self.start_from] if self.start_from else ()))

    def trainable(self, context: Context) -> Trainable:
        """The jitted step and the shapes it takes."""
        sharding.check_batch(self.batch, context.mesh, context.rules, f"{self.name}.batch", self.accumulate)
        sharding.check_length(self.T, context.mesh, context.rules, f"{self.name}.length")
        loss_fn = functools.partial(losses.next_token_loss, config=self.model)
        return make_trainable(context, self.model, self.optim, loss_fn, steps=self.steps, accumulate=self.accumulate,
                              adapter=self.lora)

    def _seen(self, batch: dict) -> dict:
        """What of a batch the model is given: where documents begin, only if they are to be kept apart."""
        hidden = ("segment_ids", "positions") if self.attend_across else ()
        return {name: value for name, value in batch.items() if name not in hidden}

    def programs(self, context: Context) -> dict:
        trainable = self.trainable(context)
        batch = self._seen(abstract_batch(context, self.batch, self.T))
        table = jax.ShapeDtypeStruct((self.model.vocab_size,), jnp.float32, sharding=sharding.replicated(context.mesh))
        evaluate = evaluation_program(self.model, context.mesh, tuple(context.rules.items()))
        params, found = trainable.abstract_params, {}
        if self.prompts:  # a token is at least a byte
            longest = 1 + max(len(prompt.encode()) for prompt in self.prompts)
            found = generation_programs(params, self.model, table.sharding, prompts=len(self.prompts),
                                        prompt_tokens=longest, max_new_tokens=self.sample_tokens)
        return {"train_step": (trainable.step, (trainable.abstract_state, params if self.lora else (), batch)),
                "evaluate": (evaluate, (params, batch, table)), **found}

    def run(self, context: Context) -> dict:
        names = self.mixture.names
        folder = common_tokenizer(context, names)
        tokenizer, shards = load_tokenizer(folder), {name: context.path(name, "shards") for name in names}
        check_fits(self.model, tokenizer, self.T)
        trainable, start = self.trainable(context), self._start(context, tokenizer)
        frozen = trainable.load(start) if self.lora else ()
        mine = sharding.rows_here(self.batch, sharding.batch_sharding(context.mesh, context.rules))

        def train_batches(start: int):
            rows = opened.enter_context(contextlib.closing(mixed_batches(
                shards, self.mixture, "train", steps=self.steps, batch=self.batch, length=self.T, seed=context.seed,
                start_step=start, mine=mine, packing=self.packing, workers=self.workers)))
            return lambda state: (self._seen(next(rows)), {})

        def measure(params, name: str) -> dict:
            rows = map(self._seen, evaluation_batches(shards[name], "val", batch=self.batch, length=self.T, mine=mine))
            return validation(params, rows, config=self.model, token_bytes=tokenizer.token_bytes(), mesh=context.mesh,
                              rules=context.rules)

        def evaluate(state, step: int) -> dict:
            params = trainable.model(state, frozen)
            found = by_dataset({name: measure(params, name) for name in names})
            context.log(f"{self.name}: step {step:,}: validation {found['val_loss']:.4f} nats per token, "
                        f"{found['val_bpb']:.4f} bits per byte" + "".join(
                            f", {found[f'val_bpb/{name}']:.4f} on {name}" for name in names[1:]))
            samples = continuations(params, self.model, tokenizer, self.prompts, self.sample_tokens,
                                    context.rng("samples"))
            if distributed.is_main():
                write_samples(context.directory / "samples.jsonl", step, samples)
            return found

        def create():
            return trainable.create(context.rng("init"), trainable.load(start) if start and not self.lora else None)

        with contextlib.ExitStack() as opened:
            _, outputs = fit(context, trainable, create, loop=self.loop, batches=train_batches, steps=self.steps,
                             tokens_per_step=self.batch * self.T, length=self.T, tokenizer=folder, frozen=frozen,
                             evaluate=evaluate, start=self.start_from)
        return outputs

    def _start(self, context: Context, tokenizer: Tokenizer) -> Path | None:
        """The checkpoint that training starts from, if any.

        Raises:
          UserError: it is of another model, or of another tokenizer than the data.
        """
        if self.start_from is None:
            return None
        config, checkpoint, folder = model_of(context, self.start_from)
        if difference := first_difference(to_json(config), to_json(self.model)):
            raise UserError(f"{self.name}.model: not the model of stage '{self.start_from}': {difference}")
        if load_tokenizer(folder).fingerprint() != tokenizer.fingerprint():
            raise UserError(f"{self.name}.start_from: the model of stage '{self.start_from}' has another tokenizer than "
                            f"'{self.mixture.names[0]}'; make its tokens with tokenizer='{self.start_from}'")
        return checkpoint


def common_tokenizer(context: Context, names: tuple[str, ...]) -> Path:
    """The folder of the tokenizer that all of these stages used.

    Raises:
      UserError: they used different ones.
    """
    prints = {name: context.output(name, "tokenizer_fingerprint") for name in names}
    for name in names[1:]:
        if prints[name] != prints[names[0]]:
            raise UserError(f"stage '{context.stage.name}': '{names[0]}' and '{name}' have different tokenizers, so "
                            "their tokens cannot be mixed; give both stages the same tokenizer=")
    return context.path(names[0], "tokenizer")


def by_dataset(found: dict[str, dict]) -> dict:
    """Metrics of several datasets in one dict: those of the first by their names, those of each as NAME/DATASET.

    >>> by_dataset({"web": {"val_loss": 2.0}, "math": {"val_loss": 1.0}})
    {'val_loss': 2.0, 'val_loss/web': 2.0, 'val_loss/math': 1.0}
    >>> by_dataset({"web": {"val_loss": 2.0}})
    {'val_loss': 2.0}
    """
    first = next(iter(found.values()))
    if len(found) == 1:
        return first
    return {**first, **{f"{key}/{name}": value for name, metrics in found.items() for key, value in metrics.items()}}


def continuations(params, config: transformer.Config, tokenizer: Tokenizer, prompts: tuple[str, ...], tokens: int,
                  rng: jax.Array) -> list[tuple[str, str]]:
    """How a model continues each prompt, at temperature 0.8."""
    if not prompts:
        return []
    encoded = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    completions = generate(params, config, encoded, rng=rng, max_new_tokens=tokens, temperature=0.8,
                           stop=(tokenizer.bos,))
    return [(prompt, tokenizer.decode(completion.content, special=False))
            for prompt, completion in zip(prompts, completions)]


def write_samples(path: Path, step: int, samples: list[tuple[str, str]]) -> None:
    """Appends samples of one step, in place of any from that step or later (of a run that was killed)."""
    kept = []
    if path.exists():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                kept += [line] if json.loads(line)["step"] < step else []
            except (ValueError, KeyError) as error:
                raise UserError(f"{path}, line {number}: not a sample (a JSON object with a 'step')") from error
    kept += [json.dumps({"step": step, "prompt": prompt, "completion": completion}, ensure_ascii=False)
             for prompt, completion in samples]
    write_text(path, "".join(line + "\n" for line in kept))
