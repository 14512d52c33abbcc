"""What a run left behind, collected into plain records: the report's pages are two ways to print one `Run`.

Everything is read from the workdir, by what a stage wrote and not by what it is called: an output `stats` is
the corpus, metrics lines with a `reward` are practice, an output `scores` is the table of scores. A stage
without metrics, a run of some stages only, a manifest without a key: the page shows what there is.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import statistics
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.core.metrics import read_metrics


@dataclass(frozen=True)
class StageRecord:
    """One complete stage: what it was told, what it made, what it measured on the way."""

    name: str
    about: str  # the first line of the stage's docstring
    settings: dict
    outputs: dict
    seconds: float | None
    peak_memory: int | None  # bytes
    metrics: tuple[dict, ...]
    samples: tuple[dict, ...]
    practises: str | None = None  # name of the task that it is rewarded on
    start_from: str | None = None  # name of the stage whose weights it starts from

    @property
    def tokens(self) -> int | None:
        """Tokens trained on, where the stage counted them; a data stage's token counts are another matter."""
        count = self.outputs.get("tokens")
        if isinstance(count, (int, float)):
            return int(count)
        return max(
            (int(line["tokens"]) for line in self.metrics if _number(line.get("tokens"))), default=None
        )

    @property
    def rate(self) -> float | None:
        """Tokens per second: the median of those measured while training, or those of the whole stage."""
        measured = [value for _, value in self.curve("tokens_per_second")]
        if measured:
            return statistics.median(measured)
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    def has(self, key: str) -> bool:
        """Whether any metrics line holds a number under `key`."""
        return any(_number(line.get(key)) for line in self.metrics)

    def last(self, key: str) -> float | None:
        """The last number measured under `key`, or what the outputs call final."""
        final = self.outputs.get("final")
        if isinstance(final, dict) and _number(final.get(key)):
            return final[key]
        points = self.curve(key)
        return points[-1][1] if points else None

    def curve(self, y: str, *, x: str = "step") -> tuple[tuple[float, float], ...]:
        """The points (x, y) of the lines that hold both; of an x written twice the later one."""
        lines = [line for line in self.metrics if _number(line.get(x)) and _number(line.get(y))]
        return tuple(sorted({line[x]: line[y] for line in lines}.items()))


@dataclass(frozen=True)
class Run:
    """A whole run, as the report shows it."""

    name: str
    seed: int | None
    workdir: str
    stages: tuple[StageRecord, ...]
    scores: tuple[
        dict, ...
    ]  # rows {stage, task, count, accuracy, interval, well_formed, stopped, mean_tokens}
    leak: dict | None  # {text, task, rows: ({stage, count, rate, interval}, ...)}
    samples: tuple[dict, ...]  # {kind, prompt, completions: {stage: {text, finished}}}
    corpus: dict  # {step of curation or split: {documents, bytes, by_source: {source: {documents, bytes}}}}
    environment: dict[str, str]
    commit: str | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def peak_memory(self) -> int | None:
        return max((stage.peak_memory for stage in self.stages if stage.peak_memory), default=None)

    @property
    def command(self) -> str | None:
        """What to type to talk to the result, or to have it continue a text if it cannot converse."""
        trained = [stage for stage in self.stages if stage.metrics]
        if not trained:
            return None
        verb = "chat" if any(stage.start_from for stage in trained) else "sample"
        return f"jaxgpt {verb} {shlex.quote(self.workdir)}"

    def output(self, key: str):
        """The first stage's output of that name, or None."""
        return next((stage.outputs[key] for stage in self.stages if key in stage.outputs), None)

    def base(self) -> StageRecord | None:
        """The stage that was measured in bits per byte first: the base model."""
        return next((stage for stage in self.stages if stage.has("val_bpb")), None)

    def practice(self) -> StageRecord | None:
        """The last stage that learned from rewards."""
        return next((stage for stage in reversed(self.stages) if stage.has("reward")), None)

    def score(self, stage: str | None, task: str | None) -> dict | None:
        """The row of a stage on a task, or None."""
        return next(
            (row for row in self.scores if (row.get("stage"), row.get("task")) == (stage, task)), None
        )


def collect(experiment, workdir: str | os.PathLike, *, before: str | None = None) -> Run:
    """Reads all that the complete stages of `experiment` wrote into `workdir`.

    Args:
      experiment: its name, seed and stages (names, in order).
      workdir: the run's folder.
      before: collect the stages up to this one, the report itself.

    Raises:
      UserError: a manifest, metrics or samples file that is malformed (names the file and the line).
    """
    workdir = Path(workdir)
    stages = []
    for stage in experiment.stages:
        if stage.name == before:
            break
        if (workdir / stage.name / "manifest.json").exists():
            stages.append(_stage_record(stage, workdir / stage.name))
    evaluation = _evaluation(stages, workdir)
    return Run(
        name=experiment.name,
        seed=getattr(experiment, "seed", None),
        workdir=_short_path(workdir),
        stages=tuple(stages),
        scores=tuple(evaluation.get("rows", ())),
        leak=evaluation.get("leak"),
        samples=tuple(evaluation.get("prompts", ())),
        corpus=_first_file(stages, workdir, "stats"),
        environment=environment(),
        commit=git_commit(),
    )


def environment() -> dict[str, str]:
    """The hardware and software of this process, in words."""
    import jax

    devices = jax.devices()
    memory = _physical_memory()
    found = {
        "Platform": f"{platform.system()} {platform.machine()}",
        "Processor": _processor(),
        "Cores": str(_cores()),
        "Memory": f"{memory / 2**30:.0f} GiB" if memory else "",
        "Devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "Python": platform.python_version(),
    }
    for package in ("jax", "flax", "optax", "jaxgpt"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return {name: value for name, value in found.items() if value}


def git_commit() -> str | None:
    """The commit of this code, with `-dirty` if files were changed since; None outside a clone."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # installed inside somebody else's clone: not our commit
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _stage_record(stage, directory: Path) -> StageRecord:
    manifest = read_json(directory / "manifest.json")
    if not isinstance(manifest, dict):
        raise UserError(
            f"{directory / 'manifest.json'}: expected a JSON object, found {type(manifest).__name__}"
        )
    return StageRecord(
        name=stage.name,
        about=_first_line(type(stage).__doc__),
        settings=manifest.get("settings") or {},
        outputs=manifest.get("outputs") or {},
        seconds=manifest.get("seconds"),
        peak_memory=manifest.get("peak_memory_bytes"),
        metrics=_lines(directory / "metrics.jsonl"),
        samples=_lines(directory / "samples.jsonl"),
        practises=getattr(getattr(stage, "task", None), "name", None),
        start_from=getattr(stage, "start_from", None),
    )


def _lines(path: Path) -> tuple[dict, ...]:
    return tuple(read_metrics(path)) if path.exists() else ()


def _evaluation(stages: list[StageRecord], workdir: Path) -> dict:
    """{rows, leak, prompts} of the last stage that evaluated."""
    scored = [stage for stage in reversed(stages) if "scores" in stage.outputs][:1]
    return {**_first_file(scored, workdir, "scores"), **_first_file(scored, workdir, "samples")}


def _first_file(stages: list[StageRecord], workdir: Path, key: str) -> dict:
    """The content of the first output of that name that is a file; {} if there is none."""
    for stage in stages:
        if isinstance(stage.outputs.get(key), str):
            path = workdir / stage.name / stage.outputs[key]
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
            return content
    return {}


def _first_line(text: str | None) -> str:
    """The docstring's first line; the signature that `dataclass` writes in its place does not count."""
    line = (text or "").strip().split("\n")[0].strip()
    return "" if "(" in line and line.split("(")[0].isidentifier() else line


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short_path(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
