"""From files to a corpus: what is to be done, doing it, and the manifests that say it is done.

    FOLDER/1-extract/ 2-scores/ 3-...   a folder for each phase: PART.parquet, dropped/PART.parquet, PART.json
           N-.../manifest.json          written when all parts have passed: inputs, settings and code by hash, counts
           corpus.json                  written last: where the documents are, and what each step took in and left

What is complete is not done again: a run that was killed goes on, a new threshold repeats the phases from its own on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from jaxgpt.core.config import first_difference, to_json
from jaxgpt.core.errors import UserError
from jaxgpt.curation import store
from jaxgpt.curation.control import Control, Halted
from jaxgpt.curation.document import Document
from jaxgpt.curation.engine import LOCAL, Engine, Job, Task, check_options, check_runner, is_complete, make_tasks, quiet
from jaxgpt.curation.parts import Part, find_parts
from jaxgpt.curation.phases import Phase, cut, keys_of, probe, segments, settings_of
from jaxgpt.curation.split import SPLITS, Split, check_sides
from jaxgpt.curation.work import EXAMPLES, paths_of

SAMPLED = 200  # parts whose examples are read for the report
MESSAGE = 1000  # characters of what Beam says
SCORING, EXTRACTING = 4, 12  # about how much longer these take than reading and writing, for progress


class Voice(Protocol):
    """How a run speaks and listens; an experiment's Context is one."""

    def log(self, text: str) -> None:
        """A line."""

    def progress(self, total: int, unit: str, label: str):
        """A Progress line."""

    def should_stop(self) -> bool:
        """Whether someone asked for a stop."""


def run_pipeline(source, steps: Sequence, folder: str | os.PathLike, *, voice: Voice, split: Split | None = Split(),
                 runner: str = LOCAL, workers: int = 1, options: Sequence[str] = ()) -> dict:
    """Makes a corpus of what a source reads.

    Args:
      source: lists its files and reads one; or several, in a tuple, whose files are read one source after the other.
      steps: the recipe, in order.
      folder: where the corpus goes; a path, or an address that fsspec knows.
      voice: told how it goes.
      split: how it is divided; None leaves it whole.
      runner: Beam's; FnApiRunner is this machine.
      workers: processes of this machine.
      options: for Beam.

    Returns:
      What corpus.json holds.

    Raises:
      UserError: a mistake of a person, a malformed file, a full disk, or nothing is left.
      Halted: a stop was asked for; the same call goes on from there.
    """
    folder = os.fspath(folder)
    check_runner(runner, workers)
    check_options(runner, options)
    phases = cut(steps, split)
    probe(steps)
    sources = source if isinstance(source, tuple) else (source,)
    parts = _parts(sources, folder)
    settings = [settings_of(phase, sources) for phase in phases]
    keys = keys_of(phases, settings, parts)
    todo = [{part.name for part, key in zip(parts, row) if not is_complete(folder, phase, part.name, key)}
            for phase, row in zip(phases, keys)]
    told = all(_is_told(folder, phase, parts, row) for phase, row in zip(phases, keys))
    corpus = store.join(folder, "corpus.json")
    if any(todo) or not told or _read(corpus) is None:
        for name in ("corpus.json", "stats.json", "report.md", "report.html"):
            store.remove(store.join(folder, name))
        _tell_changes(folder, phases, settings, todo, voice)
        if any(todo):
            job = Job(folder, sources, phases, Control(folder, local=runner == LOCAL and store.is_local(folder)))
            tasks = make_tasks(parts, keys, bins=workers if runner == LOCAL else None)
            _do(job, tasks, todo, voice, runner=runner, workers=workers, options=options)
        _finish(folder, phases, settings, parts, keys, source)
    else:
        voice.log(f"{folder}: complete, and nothing has changed")
    return store.read_json(corpus)


def _parts(sources: tuple, folder: str) -> list[Part]:
    """What all sources read, in order.

    Raises:
      UserError: a file is one that the corpus itself holds.
    """
    made = store.join(folder, "source")  # of sources that make their files, or download them
    listed = [(number, path) for number, source in enumerate(sources)
              for path in source.files(made if len(sources) == 1 else store.join(made, str(number)))]
    for _, path in listed:
        if _is_inside(path, folder) and not _is_inside(path, made):
            raise UserError(f"{path}: lies in {folder}, where the corpus goes; choose another folder for the corpus, "
                            "or other files to read")
    found = find_parts([path for _, path in listed], store.join(folder, ".inputs.json"))
    return [dataclasses.replace(part, source=number) for part, (number, _) in zip(found, listed)]


def _is_inside(path: str, folder: str) -> bool:
    """Whether a file is in a folder, however deep."""
    if store.is_local(path) and store.is_local(folder):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path.startswith(folder.rstrip("/") + "/")


def _is_told(folder: str, phase: Phase, parts: Sequence[Part], keys: Sequence[str]) -> bool:
    """Whether a phase's manifest names these parts."""
    held = _manifest(folder, phase.folder)
    return held is not None and ({entry["part"]: entry["key"] for entry in held["parts"]}
                                 == {part.name: key for part, key in zip(parts, keys)})


def _manifest(folder: str, name: str) -> dict | None:
    """The manifest of a phase, or None where that folder holds none that was written here."""
    held = _read(store.join(folder, name, "manifest.json"))
    return held if held and held.get("phase") == name and {"parts", "settings"} <= set(held) else None


def _read(path: str) -> dict | None:
    """A JSON object, or None where there is none, or a damaged one."""
    with contextlib.suppress(UserError):
        held = store.read_json(path) if store.exists(path) else None
        return held if isinstance(held, dict) else None


def _tell_changes(folder: str, phases: Sequence[Phase], settings: Sequence[dict], todo: Sequence[set], voice) -> None:
    """Says what makes a phase that was complete be done again, and takes its manifest away."""
    for phase, chosen, parts in zip(phases, settings, todo):
        manifest = store.join(folder, phase.folder, "manifest.json")
        if store.exists(manifest):
            held = _manifest(folder, phase.folder)
            difference = first_difference(held["settings"], chosen) if parts and held else None
            if difference:
                brief = difference if len(difference) < 160 else f"{difference.split(' is ')[0]} is another"
                voice.log(f"{phase.folder}: anew, since {brief}")
            store.remove(manifest)


def _do(job: Job, tasks: Sequence[Task], todo: Sequence[set[str]], voice: Voice, **engine) -> None:
    """Runs the segments that are not complete, and watches."""
    cuts = segments(job.phases)
    missing = [number for number, (start, end) in enumerate(cuts) if any(todo[start:end])]
    first, last = missing[0], missing[-1]
    first -= job.phases[cuts[first][0]].waits  # for the fingerprints, or the lengths, of the segment before
    job.control.begin()
    running = Engine(job, tasks, first, last, **engine)
    with quiet():
        try:
            running.start()
            _watch(running, job, tasks, todo, voice)
        finally:
            if running.is_alive():
                job.control.stop()  # a second Ctrl-C, or a worker that was killed: the others stop when they look
    try:
        job.control.check(running.error)
    except UserError:
        raise
    except Exception as error:
        if engine["runner"] == LOCAL:
            raise
        said = str(error).strip().splitlines() or ["no message"]
        raise UserError(f"--runner {engine['runner']}: Beam could not run the job, and says: {said[-1][:MESSAGE]} "
                        f"({type(error).__name__}; options for Beam follow a lone --)") from error
    finally:
        job.control.end()
    if voice.should_stop():
        raise Halted


def _watch(running: Engine, job: Job, tasks: Sequence[Task], todo: Sequence[set[str]], voice: Voice) -> None:
    """Shows progress and hands on a wish to stop until the engine is done."""
    sizes = {task.part.name: task.part.bytes for task in tasks}
    costs = [_cost(phase, job) for phase in job.phases]
    weights = {(number, part): costs[number] * sizes[part] for number, parts in enumerate(todo) for part in parts}
    share = sum(sizes.values()) / max(1, sum(weights.values()))  # so that progress counts bytes of input
    unit, scale = ("MB", 10**6) if sum(sizes.values()) > 10**8 else ("kB", 10**3)
    progress = voice.progress(max(1, round(sum(sizes.values()) / scale)), unit, "curate")
    done, places, asked = {}, {}, False
    while running.is_alive():
        running.join(0.2)
        if voice.should_stop() and not asked:
            asked = True
            job.control.stop()
        phase = ""
        for number, part, fraction in job.control.reported(places):
            if (number, part) in weights:
                done[number, part] = weights[number, part] * fraction
                phase = job.phases[number].folder
        count = round(share * sum(done.values()) / scale) - progress.done
        if count > 0:
            progress.update(count, at=phase or None)
        if done != weights and not job.control.stopping():
            _check_workers(running, places)
    progress.close()


def _cost(phase: Phase, job: Job) -> int:
    if any(getattr(step, "expensive", False) for step in phase.steps):
        return EXTRACTING
    return SCORING if phase.kind != "documents" else 1


def _check_workers(running: Engine, places: dict[str, int]) -> None:
    """Notices that a worker process was killed, which the engine would wait for in vain."""
    for pid in (int(name.removeprefix("progress-")) for name in places):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            running.join(5)
            if running.is_alive():
                raise UserError(f"worker process {pid} was killed, perhaps for want of memory; what is complete is "
                                "kept: run the same command again, with fewer --workers if memory was short") from None
            return


# --- manifests -------------------------------------------------------------------------------------------------------

def _finish(folder: str, phases: Sequence[Phase], settings: Sequence[dict], parts: Sequence[Part],
            keys: Sequence[Sequence[str]], source) -> None:
    """Writes the manifests and corpus.json, and removes what is of no part and no phase any more."""
    steps, last, manifests = [], {}, {}
    for phase, chosen, row in zip(phases, settings, keys):
        records = [store.read_json(paths_of(folder, phase, part.name)["record"]) for part in parts]
        for part, record, key in zip(parts, records, row):
            if record["key"] != key:
                raise UserError(f"{folder}: {phase.folder}/{part.name}.json is of another run; is another one at work "
                                "there? Run the same command again")
        last = {"steps": [{**step, "phase": phase.folder} for step in add_steps(records)],
                "splits": add_splits(records) if phase.split else {}}
        steps += last["steps"]
        entries = [{"part": part.name, "path": part.path, "bytes": part.bytes, "identity": part.identity, "key": key,
                    "files": record["files"]} for part, record, key in zip(parts, records, row)]
        manifests[phase.folder] = {"phase": phase.folder, "kind": phase.kind, "reads": phase.reads, "settings": chosen,
                                   **last, "parts": entries}
    verify_counts(steps)
    _check_left(steps, last["splits"], phases[-1].split, source)
    for name, manifest in manifests.items():
        store.write_json(store.join(folder, name, "manifest.json"), manifest)
    _tidy(folder, phases, parts)
    store.write_json(store.join(folder, "corpus.json"), {
        "documents": phases[-1].folder, "steps": steps, "splits": last["splits"], "source": to_json(source),
        "settings": {name: value for chosen in settings for name, value in _by_step(chosen).items()},
        "parts": len(parts), "bytes": sum(part.bytes for part in parts),
        "examples": _examples(folder, phases, parts)})


def _by_step(settings: dict) -> dict:
    settings = settings.get("sources", [settings])[0]
    search = settings.get("search")
    return {**({search["name"]: search} if search else {}), **settings.get("steps", {})}


def add_steps(records: Sequence[dict]) -> list[dict]:
    """The counts of all parts together, step by step.

    >>> one = {"documents": 1, "bytes": 5}
    >>> record = {"steps": [{"step": "read", "in": one, **one, "by_source": {"a": one}, "dropped": {}}]}
    >>> add_steps([record, record])[0]["by_source"]
    {'a': {'documents': 2, 'bytes': 10}}
    """
    found: list[dict] = []
    for number, first in enumerate(records[0].get("steps", ()) if records else ()):
        total = {"step": first["step"], "in": {}, "by_source": {}, "dropped": {}}
        for step in (record["steps"][number] for record in records):
            _add(total["in"], step["in"])
            _add(total, step)
            for group in ("by_source", "dropped"):
                for name, amount in step[group].items():
                    _add(total[group].setdefault(name, {}), amount)
        found.append({"step": total["step"], "in": total["in"], "documents": total["documents"],
                      "bytes": total["bytes"], **{group: dict(sorted(total[group].items()))
                                                  for group in ("by_source", "dropped")}})
    return found


def add_splits(records: Sequence[dict]) -> dict[str, dict]:
    """Documents, bytes and sources of each side, and a hash of the hashes of its parts."""
    found = {}
    for name in SPLITS:
        sides, sources = [record["splits"][name] for record in records], {}
        for side in sides:
            for source, amount in side["by_source"].items():
                _add(sources.setdefault(source, {}), amount)
        found[name] = {"documents": sum(side["documents"] for side in sides),
                       "bytes": sum(side["bytes"] for side in sides), "by_source": dict(sorted(sources.items())),
                       "sha256": hashlib.sha256("\n".join(side["sha256"] for side in sides).encode()).hexdigest()}
    return found


def _add(total: dict, amount: dict) -> None:
    for unit in ("documents", "bytes"):
        total[unit] = total.get(unit, 0) + amount[unit]


def verify_counts(steps: Sequence[dict]) -> None:
    """in = kept + dropped by reason at every step, and what one step keeps the next takes in.

    Raises:
      RuntimeError: it does not add up.
    """
    for number, step in enumerate(steps):
        dropped = sum(amount["documents"] for amount in step["dropped"].values())
        kept = sum(amount["documents"] for amount in step["by_source"].values())
        if not step["in"]["documents"] == step["documents"] + dropped or kept != step["documents"]:
            raise RuntimeError(f"step '{step['step']}': {step['in']['documents']} in, {step['documents']} kept ({kept} "
                               f"by source), {dropped} dropped")
        if number and step["in"] != {unit: steps[number - 1][unit] for unit in ("documents", "bytes")}:
            raise RuntimeError(f"step '{step['step']}': {step['in']} in, but {steps[number - 1]['step']} left "
                               f"{steps[number - 1]['documents']} documents, {steps[number - 1]['bytes']} bytes")


def _check_left(steps: Sequence[dict], splits: dict, split: Split | None, source) -> None:
    for step in steps:
        if not step["documents"]:
            reasons = {name: amount["documents"] for name, amount in step["dropped"].items()}
            why = f"; dropped: {', '.join(f'{name} {count:,}' for name, count in reasons.items())}" if reasons else ""
            raise UserError(f"the corpus is empty after the step '{step['step']}'{why} (source: {source})")
    if split is not None:
        check_sides({name: side["documents"] for name, side in splits.items()}, split)


def _examples(folder: str, phases: Sequence[Phase], parts: Sequence[Part]) -> list[dict]:
    """A few documents for each step and reason, those of the smallest hashes in the first parts."""
    found: dict[tuple[str, str], list[dict]] = {}
    for phase in phases:
        if phase.kind == "documents":
            for part in parts[:SAMPLED]:
                for example in store.read_json(paths_of(folder, phase, part.name)["examples"]):
                    found.setdefault((example["step"], example["reason"]), []).append(example)
    return [example for held in found.values() for example in sorted(held, key=lambda item: item["rank"])[:EXAMPLES]]


def _tidy(folder: str, phases: Sequence[Phase], parts: Sequence[Part]) -> None:
    """Removes files of parts, and folders of phases, that the corpus no longer has."""
    kept = {phase.folder.split("/")[0] for phase in phases}
    for name in store.names(folder):
        if re.match(r"\d+-", name) and name not in kept and _manifest(folder, name):
            store.remove(store.join(folder, name))
    files = {f"{part.name}{ending}" for part in parts for ending in (".parquet", ".json")} | {"manifest.json"}
    for phase in phases:
        for inside in ("", "dropped"):
            place = store.join(folder, phase.folder, inside)
            for name in store.names(place):
                if name not in files and name.endswith((".parquet", ".json", ".partial")):
                    store.remove(store.join(place, name))


# --- reading ---------------------------------------------------------------------------------------------------------

def read_corpus(folder: str | os.PathLike, split: str | None = None) -> Iterator[Document]:
    """Yields the documents of a corpus, or of any phase of it, in order.

    Args:
      folder: of the corpus, or of one of its phases.
      split: "train" or "val"; None for all.

    Raises:
      UserError: it is not complete, or was not divided.
    """
    folder = os.fspath(folder)
    if store.exists(store.join(folder, "corpus.json")):
        folder = store.join(folder, store.read_json(store.join(folder, "corpus.json"))["documents"])
    manifest = store.join(folder, "manifest.json")
    held = store.read_json(manifest) if store.exists(manifest) else {}
    if held.get("kind") != "documents":
        raise UserError(f"{folder}: holds no complete corpus; run the command that makes it (again), it goes on where "
                        "it was")
    if split is not None and split not in held["splits"]:
        raise UserError(f"{folder}: was not divided into {' and '.join(SPLITS)}; read the last phase of the corpus")
    for entry in held["parts"]:
        for row in store.read_rows(store.join(folder, f"{entry['part']}.parquet")):
            if split is None or row.split == split:
                yield row.document
