"""The Beam graph: which worker takes which part through which phases, and how a search reaches every document.

    tasks -> GroupByKey -> segment -> (fingerprints -> search -> verdicts) + tasks -> GroupByKey -> segment -> ...

Texts stay in files; what flows is names of parts, ids and hashes. On this machine Beam's FnApiRunner does the work: it
is named outright, since DirectRunner first tries to download another one. On a cluster the same graph needs a folder
that all its machines reach, such as gs://..., the files that settings name on each of them, and this package installed
there; each part is then a key of its own and goes where the cluster likes. It was not run on one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxgpt.core.errors import UserError
from jaxgpt.curation import store
from jaxgpt.curation.control import Control, Halted, Watch
from jaxgpt.curation.document import Document, Key, Verdict
from jaxgpt.curation.parts import Part
from jaxgpt.curation.phases import Phase, segments
from jaxgpt.curation.work import Cut, paths_of, read_fingerprints, work

LOCAL = "FnApiRunner"
RUNNERS = (LOCAL, "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner")


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker is told.

    Attributes:
      folder: of the corpus.
      sources: what reads the input files.
      phases: of the recipe.
      control: the line to the run.
    """

    folder: str
    sources: tuple
    phases: tuple[Phase, ...]
    control: Control


@dataclasses.dataclass(frozen=True)
class Task:
    """A part, and what its files follow from.

    Attributes:
      number: of the part in the corpus.
      part: the part.
      keys: by phase.
      bin: which worker takes it, or the part's name where the engine decides.
    """

    number: int
    part: Part
    keys: tuple[str, ...]
    bin: str


def make_tasks(parts: Sequence[Part], keys: Sequence[Sequence[str]], *, bins: int | None) -> list[Task]:
    """A task for each part; with a number of bins, parts are put into them so that all hold about as many bytes.

    The largest part goes first into the emptiest bin. The first tasks are of different bins, because the embedded
    runner deals bins out to its workers in the order in which they come.
    """
    loads, homes, names = [0] * (bins or 1), {}, [part.name for part in parts]
    largest = sorted(range(len(parts)), key=lambda i: (-parts[i].bytes, i))
    for i in largest:
        home = loads.index(min(loads))
        loads[home] += parts[i].bytes + 1
        homes[i] = f"{home:04d}" if bins else names[i]
    return [Task(i, parts[i], tuple(row[i] for row in keys), homes[i]) for i in largest]


def is_complete(folder: str, phase: Phase, part: str, key: str) -> bool:
    """Whether a phase has done a part, with these settings."""
    paths = paths_of(folder, phase, part)
    if not store.exists(paths["record"]):
        return False
    try:
        record = store.read_json(paths["record"])
        held = {name: found["bytes"] for name, found in record["files"].items()}
        inside = store.join(folder, phase.folder)
        return record["key"] == key and all(store.size(store.join(inside, name)) == held[name] for name in held)
    except (UserError, KeyError, TypeError, AttributeError):
        return False  # not what was written there


# --- the graph -------------------------------------------------------------------------------------------------------

def build(pipeline, job: Job, tasks: str, homes: Mapping[str, str] | None, first: int, last: int) -> None:
    """Adds the graph from one segment to another; the first may be complete, and then gives its fingerprints only.

    Args:
      pipeline: of Beam.
      job: what workers are told.
      tasks: a JSON file of tasks.
      homes: {part: bin}; None where each part is a bin.
      first: number of a segment.
      last: number of a segment.
    """
    import apache_beam as beam

    cuts = segments(job.phases)
    ready = (pipeline | "tasks" >> beam.Create([tasks]) | "each" >> beam.FlatMap(_read_tasks)
             | "spread" >> beam.GroupByKey())
    lengths: dict = {}
    for number in range(first, last + 1):
        name = job.phases[cuts[number][0]].folder
        done = ready | name >> beam.FlatMap(_segment, job, number, **lengths).with_outputs("fingerprints", main="tasks")
        if number == last:
            break
        following, lengths = job.phases[cuts[number + 1][0]], {}
        if following.search is not None:
            search, again = following.search, functools.partial(_documents, job.folder, following.reads)
            verdicts = (done.fingerprints
                        | f"search: {search.name}" >> beam.ptransform_fn(search.verdicts)(documents=again)
                        | f"verdicts: {search.name}" >> beam.Map(_at_home, homes))
            ready = ((done.tasks, verdicts) | f"to: {following.folder}" >> beam.Flatten()
                     | f"group: {following.folder}" >> beam.GroupByKey())
        else:
            lengths = {"lengths": beam.pvalue.AsDict(done.tasks | f"lengths: {number}" >> beam.Map(_length))}
            ready = done.tasks | f"group: {following.folder}" >> beam.GroupByKey()


def _read_tasks(path: str) -> Iterator[tuple[str, tuple]]:
    for task in store.read_json(path):
        yield task["bin"], ("task", task, 0)


def _documents(folder: str, reads: str, part: str) -> Iterator[Document]:
    """The documents of a part once more, for a search that must compare some."""
    return (row.document for row in store.read_rows(store.join(folder, reads, f"{part}.parquet")))


def _at_home(found: tuple[str, Verdict], homes: Mapping[str, str] | None) -> tuple[str, tuple]:
    part, verdict = found
    home = homes[part] if homes is not None else part
    return home, ("verdict", part, dataclasses.astuple(verdict))


def _length(element: tuple[str, tuple]) -> tuple[int, int]:
    _, (_, task, characters) = element
    return task["number"], characters


def _segment(element: tuple[str, Iterable[tuple]], job: Job, number: int, lengths: dict | None = None) -> Iterator:
    """Takes the parts of a bin through the phases of a segment; yields the tasks, and fingerprints beside them.

    A worker that meets a mistake, or is asked to stop, yields no more: the run says why.
    """
    import apache_beam as beam

    home, values = element
    if job.control.stopping():
        return
    tasks, verdicts = [], {}
    for kind, what, more in values:
        if kind == "task":
            tasks.append(what)
        else:
            verdicts.setdefault(what, {})[more[0]] = Verdict(*more)
    start, end = segments(job.phases)[number]
    for task in sorted(tasks, key=lambda task: (-task["part"]["bytes"], task["number"])):
        part = Part(**task["part"])
        try:
            characters = _phases(job, range(start, end), part, task, verdicts.pop(part.name, {}), lengths)
        except Halted:
            return
        except Exception as error:
            if not job.control.local and not isinstance(error, UserError):
                raise  # a cluster tries again
            job.control.fail(error)
            return
        yield home, ("task", task, characters)
        if job.phases[end - 1].kind == "fingerprints":
            for key, fingerprints in read_fingerprints(job.folder, job.phases[end - 1], part.name):
                yield beam.pvalue.TaggedOutput("fingerprints", (Key(part.name, key), fingerprints))


def _phases(job: Job, numbers: Iterable[int], part: Part, task: dict, verdicts: dict, lengths: dict | None) -> int:
    """Takes a part through phases that it has not been through; returns how many characters are kept of it."""
    characters = 0
    for number in numbers:
        phase, key = job.phases[number], task["keys"][number]
        if is_complete(job.folder, phase, part.name, key):
            record = store.read_json(paths_of(job.folder, phase, part.name)["record"])
        else:
            cut = _cut(phase, task["number"], lengths) if phase.split is not None and phase.split.waits else None
            watch = Watch(job.control, number, part.name)
            record = work(job.folder, phase, part, key, watch, source=job.sources[part.source], verdicts=verdicts,
                          cut=cut)
        characters = record.get("characters", characters)
        job.control.report(number, part.name, 1.0)
    return characters


def _cut(phase: Phase, number: int, lengths: dict[int, int]) -> Cut:
    total = sum(lengths.values())
    return Cut(sum(lengths[i] for i in range(number)), int(total * (1 - phase.split.val_fraction)))


# --- running it ------------------------------------------------------------------------------------------------------

def check_runner(name: str, workers: int) -> None:
    """Refuses a runner that there is not.

    Raises:
      UserError: names the valid ones.
    """
    if name == "DirectRunner":
        raise UserError(f"--runner DirectRunner: may download a program when it starts; {LOCAL} is the local one")
    if name not in RUNNERS:
        raise UserError(f"--runner {name}: there is no runner of that name; valid: {', '.join(RUNNERS)}")
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1")


def check_options(name: str, options: Sequence[str]) -> None:
    """Refuses words that are no options, and options that the local runner would ignore.

    Raises:
      UserError: names the word.
    """
    if options and not options[0].startswith("--"):
        raise UserError(f"{options[0]}: not expected there; options for Beam begin with -- and follow a lone --")
    if options and name == LOCAL:
        with quiet():
            from apache_beam.options.pipeline_options import PipelineOptions
            given = PipelineOptions(list(options))
            unknown = set(given.get_all_options(retain_unknown_options=True)) - set(given.get_all_options())
        if unknown:
            raise UserError(f"--{sorted(unknown)[0]}: Beam has no such option for {LOCAL}")


class Engine(threading.Thread):
    """Runs the graph beside the thread that watches it."""

    def __init__(self, job: Job, tasks: Sequence[Task], first: int, last: int, *, runner: str, workers: int,
                 options: Sequence[str]):
        super().__init__(daemon=True, name="curation")
        self._job, self._tasks, self._range = job, tasks, (first, last)
        self._runner, self._workers, self._options = runner, workers, list(options)
        self.error: BaseException | None = None

    def run(self) -> None:
        """What the thread does."""
        try:
            self._run()
        except BaseException as error:  # told by `error`, in the thread that watches
            self.error = error

    def _run(self) -> None:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        path = store.join(self._job.folder, ".run", "tasks.json")
        store.write_json(path, [dataclasses.asdict(task) for task in self._tasks])
        homes = {task.part.name: task.bin for task in self._tasks} if self._runner == LOCAL else None
        steps = (step for phase in self._job.phases for step in (phase.search, *phase.steps))
        pack_by_value([*self._job.sources, *steps])
        options, runner = PipelineOptions(self._options), self._runner
        if self._runner == LOCAL:
            options, runner = _local(self._options, self._workers, store.join(self._job.folder, ".run"))
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline, self._job, path, homes, *self._range)
        pipeline.run().wait_until_finish()


def _local(options: list[str], workers: int, folder: str):
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment
    if workers == 1:
        return PipelineOptions(options), FnApiRunner()
    logs = folder if store.is_local(folder) else os.devnull
    command = f"exec {shlex.quote(sys.executable)} -m jaxgpt.curation.worker {shlex.quote(os.path.abspath(logs))}"
    environment = SubprocessSDKEnvironment.from_command_string(command_string=command)
    return PipelineOptions([*options, f"--direct_num_workers={workers}"]), FnApiRunner(environment)


def pack_by_value(objects: Iterable) -> None:
    """Sends classes that a worker could not import, such as those of an experiment's file, as they are."""
    from apache_beam.internal.cloudpickle import cloudpickle
    for name in {type(item).__module__ for item in objects}:
        top = name.split(".")[0]
        if top == "__main__" or not any(finder.find_spec(top, None) for finder in sys.meta_path):
            cloudpickle.register_pickle_by_value(sys.modules[name])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Beam logs at length, and its threads print their tracebacks; what went wrong is told elsewhere, in a sentence."""
    level, hook = logging.root.manager.disable, threading.excepthook
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda arguments: None
    try:
        yield
    finally:
        logging.disable(level)
        threading.excepthook = hook
