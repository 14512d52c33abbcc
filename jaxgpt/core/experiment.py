"""Experiment, Stage, Context: stages run in order, what is complete is skipped, what is not is resumed.

Every stage writes into WORKDIR/STAGE/. `settings.json` is written when it starts; `manifest.json`, which names the
stage's inputs by hash, is written last: a stage is complete when it is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax

import jaxgpt
from jaxgpt.core import distributed, sharding
from jaxgpt.core.config import first_difference, to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, disk_is_full, read_json, write_json
from jaxgpt.core.metrics import TRACKERS, Progress, duration, peak_memory_bytes
from jaxgpt.core.running import Stop, alone_in, listening


STOPPING = "stopping after this step and saving (once more to stop at once)"


class Stopped(Exception):
    """A signal asked for a stop and what had been done is saved.

    Attributes:
      signal: its number; None where another host was asked.
    """

    def __init__(self, signal: int | None = None):
        super().__init__()
        self.signal = signal


@dataclasses.dataclass(frozen=True)
class After:
    """Arguments that another program of the stage puts out.

    Attributes:
      program: its name.
      arguments: from the shardings of what it puts out, known once it is compiled (None before), to the arguments.
    """

    program: str
    arguments: Callable[[Any], tuple]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One chapter of an experiment: settings and a `run`. Subclasses are frozen dataclasses with a default name.

    `every_host`: whether all processes of a run on several hosts run it together; process 0 alone runs the others.
    `redoes`: whether `run` does again what other settings change, and nothing else, in a folder that holds the stage
    with others. As long as no other stage was made from it, those are then not refused.
    """

    name: str
    every_host: ClassVar[bool] = False
    redoes: ClassVar[bool] = False

    def inputs(self) -> tuple[str, ...]:
        """Names of the earlier stages that this one reads."""
        return ()

    def run(self, context: Context) -> dict:
        """Does the work, writes into `context.directory`, returns its outputs (JSON; paths are relative to it)."""
        raise NotImplementedError

    def programs(self, context: Context) -> dict[str, tuple[Any, tuple | After]]:
        """{name: (jitted function, abstract arguments)} of what this stage will run: all that planning needs."""
        return {}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole experiment.

    Attributes:
      name: of the default workdir.
      stages: in the order they run; each name once, inputs before those who read them.
      seed: all chance follows from it; below 2³².
      layout: devices on each mesh axis. It may change between a run and its resumption.
      rules: preset of `sharding.RULES`.
      trackers: where metrics go besides metrics.jsonl: "tensorboard", "wandb".
    """

    name: str
    stages: tuple[Stage, ...]
    seed: int = 0
    layout: sharding.Layout = sharding.Layout()
    rules: str = "fsdp"
    trackers: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 <= self.seed < 2 ** 32:
            raise ValueError(f"seed={self.seed}: from 0 to 4294967295")
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise ValueError(f"trackers: there is no '{tracker}'; valid: {', '.join(TRACKERS)}")
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stages: two are called '{stage.name}'; give one another name=")
            for needed in stage.inputs():
                if needed not in seen:
                    raise ValueError(f"stage '{stage.name}' reads '{needed}', which is not among the stages before it: "
                                     f"{', '.join(seen) or 'none'}")
            seen.append(stage.name)

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
          UserError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"no stage is called '{name}'; valid: {', '.join(stage.name for stage in self.stages)}")


class Context:
    """What a running stage is given: its folder, its inputs, its randomness, the mesh, and a voice."""

    def __init__(self, experiment: Experiment, stage: Stage, workdir: Path, mesh=None, profile: int = 0):
        self.experiment, self.stage, self.workdir, self.profile = experiment, stage, Path(workdir), profile
        self.directory, self.seed = self.workdir / stage.name, experiment.seed
        self.rules = sharding.get_rules(experiment.rules)
        self._mesh, self._progress = mesh, None
        self.stop = Stop()

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh; made when first asked for, since stages of data need no accelerator."""
        if self._mesh is None:
            self._mesh = sharding.make_mesh(self.experiment.layout)
        return self._mesh

    def output(self, stage: str, key: str):
        """What an earlier stage put out.

        Raises:
          UserError: that stage is not complete, or put out no such thing.
        """
        path = self.workdir / stage / "manifest.json"
        if not path.exists():
            raise UserError(f"stage '{self.stage.name}' needs '{stage}', which is not complete in {self.workdir}; "
                            "run it first (without --stage, all that is missing runs)")
        outputs = read_stage(path)["outputs"]
        if key not in outputs:
            raise UserError(f"{path}: stage '{stage}' put out no '{key}'; it has: {', '.join(outputs)}")
        return outputs[key]

    def path(self, stage: str, key: str) -> Path:
        """An output that is a path, from the current folder."""
        return self.workdir / stage / self.output(stage, key)

    def rng(self, *labels) -> jax.Array:
        """A key that follows from the experiment's seed, the stage's name and the labels."""
        text = "/".join([self.stage.name, *map(str, labels)])
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return jax.random.fold_in(jax.random.key(self.seed), number)

    def progress(self, total: int, unit: str, label: str | None = None, *, start: int = 0) -> Progress:
        """A line of progress for this stage."""
        self._progress = Progress(total, unit, label or self.stage.name, start=start, stream=_voice())
        return self._progress

    def log(self, text: str) -> None:
        """Prints a line."""
        (self._progress or Progress(0, "", "", stream=_voice())).log(text)

    def should_stop(self) -> bool:
        """Whether a signal asked for a stop."""
        return self.stop.asked()

    def check_stop(self) -> None:
        """Raises Stopped if a signal asked for one: for work that is begun anew and not resumed."""
        if self.should_stop():
            raise Stopped


# --- running ---------------------------------------------------------------------------------------------------------

def run(experiment: Experiment, workdir: str | Path, *, only: str | None = None, profile: int = 0) -> None:
    """Runs what is not yet complete.

    Args:
      experiment: what to run.
      workdir: where it lives.
      only: the one stage to run; those it reads must be complete.
      profile: how many steps of each stage that trains are traced, into WORKDIR/STAGE/profile.

    Raises:
      UserError: the workdir holds another experiment, another run works in it, several hosts do not share it, or a
        stage's own mistakes.
      Stopped: a signal asked for a stop; the same call goes on from there.
    """
    workdir = Path(workdir)
    stages = [experiment.stage(only)] if only else list(experiment.stages)
    with contextlib.ExitStack() as held:
        def begin():
            for stage in stages:
                check_same(experiment, stage, workdir)
            held.enter_context(alone_in(workdir, "--workdir"))

        distributed.all_or_none(begin if distributed.is_main() else lambda: None)
        held.enter_context(distributed.ends_together(workdir, clean=Stopped))
        for number, stage in enumerate(stages, 1):
            label, manifest = f"[{number}/{len(stages)}] {stage.name}", workdir / stage.name / "manifest.json"
            if distributed.is_main():
                changed = check_same(experiment, stage, workdir)  # once more: its inputs may just have been made
                if changed:
                    _say(f"{label}: again, since {changed}")
                    manifest.unlink(missing_ok=True)
            if distributed.from_main(manifest.exists()):
                _say(f"{label}: complete")
                continue
            _say(f"{label}: running")
            context = Context(experiment, stage, workdir, profile=profile if distributed.is_main() else 0)
            seconds = _run_stage(context)
            distributed.seen(manifest)
            _say(f"{label}: done in {duration(seconds)}")
            if number < len(stages) and distributed.total(context.should_stop()):
                raise Stopped(context.stop.signal)


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)


def _voice():
    """Where this process speaks to: nowhere, where process 0 speaks for it."""
    return None if distributed.is_main() else _nowhere()


@functools.cache
def _nowhere():
    return open(os.devnull, "w", encoding="utf-8")


def _run_stage(context: Context) -> float:
    """One stage, on all hosts or the first; all return, or raise Stopped, when it is over."""
    seconds, stopped = 0.0, False
    with listening(context.stop, context.log, STOPPING):
        try:
            if distributed.is_main():
                seconds = _run_and_record(context)
            elif context.stage.every_host:
                _outputs(context)
        except Stopped:
            stopped = True
        distributed.wait()
    if distributed.total(stopped):
        raise Stopped(context.stop.signal)
    return seconds


def _run_and_record(context: Context) -> float:
    experiment, stage, workdir = context.experiment, context.stage, context.workdir
    inputs = {name: fingerprint(workdir, name) for name in stage.inputs()}
    settings_path, spent_path = context.directory / "settings.json", context.directory / "seconds.json"
    spent = read_json(spent_path) if spent_path.exists() else 0.0
    write_json(settings_path, {**identity(experiment, stage), "inputs": inputs})
    began = time.monotonic()
    try:
        outputs = _outputs(context)
    except BaseException:
        _keep_or_forget(context.directory, spent + time.monotonic() - began)
        raise
    seconds = spent + time.monotonic() - began
    manifest = {
        "stage": stage.name, "settings": to_json(stage), "seed": experiment.seed, "inputs": inputs, "outputs": outputs,
        "seconds": round(seconds, 2), "peak_memory_bytes": peak_memory_bytes(context._mesh is not None),
        "version": jaxgpt.__version__,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    write_json(context.directory / "manifest.json", manifest)
    return seconds


def _outputs(context: Context) -> dict:
    try:
        return context.stage.run(context)
    except OSError as error:
        where = error.filename or context.directory
        raise (cannot_write(where, error) if disk_is_full(error) else
               UserError(f"stage '{context.stage.name}': {where}: {error.strerror or error}")) from error


def _keep_or_forget(folder: Path, seconds: float) -> None:
    """Notes the time spent; a stage that failed before it made anything leaves no folder behind."""
    if {path.name for path in folder.rglob("*") if path.is_file()} <= {"settings.json", "seconds.json"}:
        shutil.rmtree(folder)
    else:
        with contextlib.suppress(UserError):
            write_json(folder / "seconds.json", round(seconds, 2))


def identity(experiment: Experiment, stage: Stage) -> dict:
    """What makes a stage's result what it is: its settings and the seed; the mesh does not."""
    return {"seed": experiment.seed, "settings": json.loads(json.dumps(to_json(stage)))}


def fingerprint(workdir: str | Path, stage: str) -> str:
    """A hash of what a complete stage is and put out: what later stages name it by.

    Raises:
      UserError: the stage is not complete.
    """
    path = Path(workdir) / stage / "manifest.json"
    if not path.exists():
        raise UserError(f"{path.parent}: stage '{stage}' is not complete; run it first")
    manifest = read_stage(path)
    text = json.dumps([manifest[key] for key in MANIFEST], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


MANIFEST = ("stage", "settings", "seed", "inputs", "outputs")  # what makes its fingerprint


def read_stage(path: Path, keys: tuple[str, ...] = MANIFEST) -> dict:
    """A stage's manifest or settings.

    Raises:
      UserError: it is missing, or lacks one of the keys.
    """
    value = read_json(path)
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path}: not what a stage writes there ('{missing[0]}' is missing); remove {path.parent} to "
                        "run this stage anew")
    return value


def check_same(experiment: Experiment, stage: Stage, workdir: Path) -> str | None:
    """Refuses a folder that holds this stage with other settings or other inputs.

    Returns:
      The first setting that differs, where the stage does again what that changes; None where none does.

    Raises:
      UserError: names the first setting that differs.
    """
    folder = workdir / stage.name
    if (folder / "manifest.json").exists():
        before = read_stage(folder / "manifest.json")
    elif (folder / "settings.json").exists():
        before = read_stage(folder / "settings.json", ("settings", "seed"))
    else:
        return None
    difference = first_difference({key: before[key] for key in ("seed", "settings")}, identity(experiment, stage))
    difference = difference.removeprefix("settings.") if difference else None
    readers = [str(workdir / other.name) for other in experiment.stages
               if stage.name in other.inputs() and (workdir / other.name / "settings.json").exists()]
    if difference and not (stage.redoes and not readers):
        remove = (f"remove {folder} to run this stage anew" if not stage.redoes else
                  f"remove what was made from it ({', '.join(readers)}) to do again what that changes")
        raise UserError(f"{folder}: holds a different experiment: {difference}; choose another --workdir, or {remove}")
    for name, old in before.get("inputs", {}).items():
        if (workdir / name / "manifest.json").exists() and fingerprint(workdir, name) != old:
            raise UserError(f"{folder}: was made from another '{name}' than the one in {workdir}; remove {folder} "
                            "to run this stage anew")
    return difference
