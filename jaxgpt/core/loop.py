"""The one training loop: batches, steps, metrics, evaluation, checkpoints, resumption, a clean stop.

Pretraining, finetuning and reinforcement learning all run through `train`; they differ in their loss and in where their
batches come from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any, Callable

import jax

from jaxgpt.core import distributed, sharding
from jaxgpt.core.checkpoint import Checkpoints
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stopped
from jaxgpt.core.metrics import MetricsLog, compilations, peak_flops
from jaxgpt.core.state import TrainState


@dataclasses.dataclass(frozen=True)
class Loop:
    """When things happen, in steps.

    Attributes:
      log_every: a line of metrics.
      eval_every: an evaluation (and at the first and the last step); 0 for none.
      save_every: a checkpoint (and at the last step); 0 for the last only.
      keep: how many checkpoints stay.
    """

    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2

    def __post_init__(self):
        if self.log_every < 1 or min(self.eval_every, self.save_every) < 0 or self.keep < 1:
            raise ValueError(f"log_every={self.log_every}, eval_every={self.eval_every}, save_every={self.save_every}, "
                             f"keep={self.keep}: log_every and keep are at least 1, the others at least 0")


def train(context: Context, loop: Loop, *, step_fn: Callable, create: Callable[[], TrainState],
          abstract_state: TrainState, batches: Callable[[int], Callable[[TrainState], tuple[dict, dict]]], steps: int, config: dict,
          frozen: Any = (), evaluate: Callable[[TrainState, int], dict] | None = None,
          tokens_per_step: int | None = None, flops_per_token: float | None = None) -> TrainState:
    """Trains for `steps` steps, or for those that an earlier run left.

    Args:
      context: of the stage.
      loop: when to log, evaluate and save.
      step_fn: from `make_train_step`.
      create: makes the first state; not called where a checkpoint in the stage's folder takes its place.
      abstract_state: its shapes, types and shardings.
      batches: called with the step to start from; returns `next_batch(state) -> (batch, metrics)`. The batch at step k
        must follow from (seed, k, state) alone: then a resumed run is the uninterrupted one, to the bit.
      steps: in all.
      config: what the checkpoints belong to.
      frozen: second argument of the step.
      evaluate: (state, step) -> metrics of an evaluation.
      tokens_per_step, flops_per_token: for tokens/s and MFU.

    Returns:
      The state after the last step, saved as a checkpoint.

    Raises:
      UserError: a loss that is not finite (names the step), a full disk, a checkpoint of another model.
      Stopped: a signal asked for a stop; a checkpoint is saved.
    """
    checkpoints = Checkpoints(context.directory / "checkpoints", config=config, keep=loop.keep)
    done, pending = 0, None
    with contextlib.ExitStack() as closing:  # each is closed even where another cannot be: the disk may be full
        closing.push(lambda error, *_: checkpoints.close() if distributed.count() == 1 or error in (None, Stopped) else
                     None)  # what fails on one host leaves at once: the others would not come to what closing waits for
        if checkpoints.latest() is None:
            state = create()
        else:
            state, data = checkpoints.restore(abstract_state)
            done = data["next_step"]
            context.log(f"{context.stage.name}: resumed at step {done:,}")
        rows, next_batch = sharding.batch_sharding(context.mesh, context.rules), batches(done)
        agreement = distributed.Agreement()
        journal = _Journal(context, loop, steps, done, tokens_per_step, flops_per_token)
        closing.callback(journal.close)
        profile = closing.enter_context(_Profile(context, done))
        if evaluate is not None and loop.eval_every and done == 0:
            journal.evaluated(0, evaluate(state, 0))
        for step in range(done + 1, steps + 1):
            # The device works on the step before while this batch is made and sent to it, and while this step is put in
            # its queue: a step's metrics are asked for one step late, so that it never waits for the host.
            profile.before(step)
            with journal.preparing():
                batch, extra = next_batch(state)
                batch = sharding.put(batch, rows)
            with journal.computing(step):
                state, metrics = step_fn(state, frozen, batch)
            if pending:
                journal.computed(*pending)
            pending = (step, metrics, extra)
            profile.after(step, metrics)
            stop = agreement.ask(context.should_stop(), after=metrics)
            save = stop or step == steps or (loop.save_every and step % loop.save_every == 0)
            measure = loop.eval_every and (step == steps or step % loop.eval_every == 0)
            if save or measure:
                journal.computed(*pending)
                pending = None
            if measure and evaluate is not None:
                journal.evaluated(step, evaluate(state, step))
            if save:
                checkpoints.save(step, state, {"next_step": step})
            if stop and step < steps:
                raise Stopped
    return state


class _Journal:
    """What a run tells of itself: metrics.jsonl, the line of progress, and that its loss is no longer finite."""

    def __init__(self, context: Context, loop: Loop, steps: int, done: int, tokens_per_step: int | None,
                 flops_per_token: float | None):
        self._context, self._every, self._steps, self._done = context, loop.log_every, steps, done
        self._log = MetricsLog(
            context.directory / "metrics.jsonl", resume=done, trackers=context.experiment.trackers,
            name=f"{context.experiment.name}/{context.stage.name}") if distributed.is_main() else None
        self._began = time.monotonic() - (self._log.last.get("time", 0.0) if self._log else 0.0)
        self._progress = context.progress(steps, "steps", start=done)
        self._tokens, self._rate = tokens_per_step, _Rate(tokens_per_step, flops_per_token)
        self._compiled = False

    def computed(self, step: int, metrics: dict, extra: dict) -> None:
        """Takes the metrics of a step."""
        metrics = {**extra, **{name: float(value) for name, value in jax.device_get(metrics).items()}}
        name = self._context.stage.name
        if not metrics.pop("finite"):
            raise UserError(f"stage '{name}': the loss is not finite at step {step:,} (loss {metrics['loss']}, "
                            f"gradient norm {metrics['grad_norm']}); nothing of it is saved and the last "
                            "checkpoint is good: lower the learning rate or clip_norm and start this stage anew")
        self._rate.step()
        self._progress.update(loss=f"{metrics['loss']:.4f}", **self._rate.shown())
        if step == 1 and self._done == 0:
            self._context.log(f"{name}: first step after {time.monotonic() - self._began:.1f} s, compilation included")
        if step % self._every == 0 or step in (1, self._steps):
            self._write(step, {**metrics, **self._rate.metrics()})

    @contextlib.contextmanager
    def preparing(self):
        """Within this, the next batch is made: for reinforcement learning, the rollouts."""
        began = time.monotonic()
        yield
        self._rate.prepared(time.monotonic() - began)

    @contextlib.contextmanager
    def computing(self, step: int):
        """Within this, a step is put in the device's queue. Only the first may compile: later ones tell of it."""
        before = compilations()
        yield
        if compilations() > before and self._compiled:
            self._context.log(f"{self._context.stage.name}: step {step:,} was compiled anew: its state or batch "
                              "changed in shape, type or sharding, which costs the time of a compilation")
        self._compiled = True

    def evaluated(self, step: int, metrics: dict) -> None:
        """Takes the metrics of an evaluation."""
        self._write(step, metrics)
        self._rate.pause()

    def _write(self, step: int, metrics: dict) -> None:
        seconds = time.monotonic() - self._began
        if self._log:
            self._log.write(step, time=seconds, tokens=self._tokens and step * self._tokens, **metrics)

    def close(self) -> None:
        self._progress.close()
        if self._log:
            self._log.close()


class _Rate:
    """Tokens per second since the last pause, model FLOPs utilisation where the device's peak is known, and the share
    of the time in which batches were made and sent. Where that is near 1, the device waits for them."""

    def __init__(self, tokens_per_step: int | None, flops_per_token: float | None):
        self._tokens, self._flops, self._peak = tokens_per_step, flops_per_token, peak_flops()
        self.pause()

    def step(self) -> None:
        if self._began is None:
            self._began, self._preparing = time.monotonic(), 0.0  # what compiled, or came after a pause, is not counted
        else:
            self._steps += 1

    def prepared(self, seconds: float) -> None:
        self._preparing += seconds

    def pause(self) -> None:
        self._began, self._steps, self._preparing = None, 0, 0.0

    def metrics(self) -> dict:
        if not self._steps:
            return {}
        elapsed = time.monotonic() - self._began
        found = {"batch_time": min(self._preparing / elapsed, 1.0)}
        if self._tokens:
            found["tokens_per_second"] = self._tokens * self._steps / elapsed
            if self._flops and self._peak:
                found["mfu"] = found["tokens_per_second"] * self._flops / self._peak
        return found

    def shown(self) -> dict:
        values = self.metrics()
        shown = {"tok/s": f"{values['tokens_per_second']:,.0f}"} if "tokens_per_second" in values else {}
        return {**shown, "MFU": f"{values['mfu']:.1%}"} if "mfu" in values else shown


class _Profile:
    """Traces the steps that were asked for, from the third of this process on: the first two compile and fill caches.
    """

    def __init__(self, context: Context, done: int):
        self._context, self._first, self._last = context, done + 3, done + 2 + context.profile
        self._open, self._done = False, done

    def __enter__(self) -> _Profile:
        return self

    def before(self, step: int) -> None:
        if step == self._first and self._context.profile:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._open = True

    def after(self, step: int, metrics: dict) -> None:
        self._done = step
        if self._open and step == self._last:
            jax.block_until_ready(metrics)
            self._close()

    def _close(self) -> None:
        jax.profiler.stop_trace()
        self._open = False
        trace = max(self._folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
        self._context.log(f"{self._context.stage.name}: a profile of steps {self._first:,} to {self._done:,} is in "
                          f"{trace} (open it in ui.perfetto.dev), and for TensorBoard in {self._folder}")

    @property
    def _folder(self):
        return self._context.directory / "profile"

    def __exit__(self, *error) -> None:
        if self._open:  # the stage ended first
            self._close()
        elif self._context.profile and self._done < self._first:
            self._context.log(f"{self._context.stage.name}: nothing to profile: a profile begins with the third step")
