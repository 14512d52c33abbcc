"""A recipe cut into phases: what is kept between steps, so that a new threshold repeats only what depends on it.

    read, URL filter, extraction | scores | filters | fingerprints || exact duplicates | fingerprints || MinHash, ...

Each phase goes through the corpus part by part and leaves a folder. Between single bars one part may run ahead of the
others; at a double bar all parts wait, since a search for duplicates needs all fingerprints before its first verdict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence

from jaxgpt.core.config import to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.files import sha256
from jaxgpt.curation.code import code_of
from jaxgpt.curation.document import Document, Drop, Measure, Search, Step, document
from jaxgpt.curation.parts import Part
from jaxgpt.curation.split import Split

PROBE = "A quick probe, so that a missing file is found before the work starts. It has two sentences."
NOT_READING = ("paths", "path")  # fields of a source that say where its files are, not how they are read


@dataclasses.dataclass(frozen=True)
class Phase:
    """One pass over the corpus.

    Attributes:
      folder: where its files go, inside the corpus's.
      kind: "documents" (kept and dropped ones), "scores" (what `measures` find) or "fingerprints" (of `search`).
      reads: the folder of documents that it reads; "" for the source.
      scores: the folder of what is known of them, "" where nothing is.
      search: whose verdicts are applied first, or whose fingerprints are taken.
      measures: of a phase of scores.
      steps: in order.
      split: how the last phase divides the corpus.
    """

    folder: str
    kind: str = "documents"
    reads: str = ""
    scores: str = ""
    search: Search | None = None
    measures: tuple[Measure, ...] = ()
    steps: tuple[Step, ...] = ()
    split: Split | None = None

    @property
    def waits(self) -> bool:
        """Whether it begins only when all parts have passed the phase before: a double bar."""
        return self.kind == "documents" and (self.search is not None or (self.split is not None and self.split.waits))

    @property
    def step_names(self) -> list[str]:
        """The names of what may drop documents, in order."""
        first = ["read"] if not self.reads else [self.search.name] if self.search else []
        return first + [step.name for step in self.steps]


def is_search(step) -> bool:
    """Whether a step of a recipe is a search among all documents."""
    return hasattr(step, "verdicts")


def cut(steps: Sequence, split: Split | None = None) -> tuple[Phase, ...]:
    """The phases of a recipe.

    A step marked `expensive = True`, such as extraction, shares a phase with reading and with the steps before it. What
    several filters need to measure is a phase of its own. Where there is neither, reading and filters are one phase.

    Args:
      steps: Steps and Searches, in order.
      split: how the corpus is divided at the end.

    Raises:
      ValueError: two steps share a name, or two different measures do.

    >>> [phase.folder for phase in cut(())]
    ['1-read']
    """
    _check_names(steps)
    phases: list[Phase] = []

    def add(name: str, **fields) -> None:
        kept = [phase.folder for phase in phases if phase.kind == "documents"]
        number = 1 + sum(phase.kind != "fingerprints" for phase in phases)
        inside = "/fingerprints" if fields.get("kind") == "fingerprints" else ""
        phases.append(Phase(f"{number}-{name}{inside}", reads=kept[-1] if kept else "", **fields))

    for search, run in _runs(steps):
        if search is not None:
            add(search.name, kind="fingerprints", search=search)
        head = 0 if search else _expensive(run)
        opening = search.name if search else run[head - 1].name if head else "read"
        measures = _measures(run[head:])
        if not head and not measures:
            head = len(run)  # nothing that is worth keeping comes before these steps
        add(opening, search=search, steps=run[:head])
        if measures:
            add("scores", kind="scores", measures=measures)
        if run[head:]:
            add(run[head].name, scores=phases[-1].folder if measures else "", steps=run[head:])
    if split is not None and split.waits:
        add("split", split=split)
    else:
        phases[-1] = dataclasses.replace(phases[-1], split=split)
    return tuple(phases)


def segments(phases: Sequence[Phase]) -> list[tuple[int, int]]:
    """The phases between double bars, as ranges of their numbers."""
    starts = [0] + [i for i, phase in enumerate(phases) if phase.waits]
    return list(zip(starts, starts[1:] + [len(phases)]))


def _runs(steps: Sequence) -> Iterator[tuple[Search | None, tuple[Step, ...]]]:
    """Each search (None first) with the steps up to the next."""
    search, run = None, []
    for step in steps:
        if is_search(step):
            yield search, tuple(run)
            search, run = step, []
        else:
            run.append(step)
    yield search, tuple(run)


def measures_of(step: Step) -> tuple[Measure, ...]:
    """What a step needs to know of a text; one that says nothing of it needs nothing."""
    return getattr(step, "measures", ())


def _expensive(run: Sequence[Step]) -> int:
    """How many of the first steps end with the last expensive one."""
    return max((i for i, step in enumerate(run, 1) if getattr(step, "expensive", False)), default=0)


def _measures(run: Sequence[Step]) -> tuple[Measure, ...]:
    found: dict[str, Measure] = {}
    for measure in (measure for step in run for measure in measures_of(step)):
        if found.setdefault(measure.name, measure) != measure:
            raise ValueError(f"measures: two different ones are called '{measure.name}'")
    return tuple(found.values())


def _check_names(steps: Sequence) -> None:
    seen = set()
    for step in steps:
        if isinstance(step, type) or not dataclasses.is_dataclass(step):
            raise ValueError(f"steps: {step!r} is no step; a step is a frozen dataclass, such as GopherQuality()")
        for needed in ("name", "apply" if is_search(step) else "__call__"):
            if not hasattr(step, needed):
                raise ValueError(f"steps: {step!r} is no step (it has no {needed})")
        if not re.fullmatch(r"\w[\w-]*", step.name):
            raise ValueError(f"steps: the name '{step.name}' is that of a folder: letters, digits, _ and - only")
        if step.name in seen:
            raise ValueError(f"steps: two are called '{step.name}'; give one another name=")
        seen.add(step.name)


# --- what makes a result what it is ----------------------------------------------------------------------------------

def settings_of(phase: Phase, sources: Sequence) -> dict:
    """What a phase does, as JSON: settings, the files they name by hash, and the code by hash.

    Where a phase reads several sources, {"sources": its settings for each of them}.
    """
    if not phase.reads and len(sources) > 1:
        return {"sources": [settings_of(phase, [source]) for source in sources]}
    chosen: dict = {"kind": phase.kind}
    if not phase.reads:
        reading = to_json(sources[0])
        chosen["source"] = {name: value for name, value in reading.items() if name not in NOT_READING}
    for field in ("search", "measures", "split"):
        if getattr(phase, field):
            chosen[field] = to_json(getattr(phase, field))
    if phase.steps:  # by name, so that a difference can be told; and in order, which decides what a step is given
        chosen |= {"order": [step.name for step in phase.steps],
                   "steps": {step.name: to_json(step) for step in phase.steps}}
    objects = [*([] if phase.reads else sources), phase.search, phase.measures, phase.steps]
    return {**chosen, "files": _files_named(chosen), "code": code_of(objects)}


def _files_named(value) -> dict[str, str]:
    """{path: SHA-256} of the files that settings name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {path: digest for item in value for path, digest in _files_named(item).items()}
    if isinstance(value, str) and value:
        path = os.path.expandvars(os.path.expanduser(value))
        if len(path) < 4096 and "\0" not in path and os.path.isfile(path):
            return {value: sha256(path)}
    return {}


def keys_of(phases: Sequence[Phase], settings: Sequence[dict], parts: Sequence[Part]) -> list[list[str]]:
    """A hash for each phase and part of all that its files follow from.

    It hashes the settings with the key of the phase before, of the same part; after a double bar with the keys of all
    parts, since there every document may decide the fate of every other. Of several sources that of the part counts.
    """
    keys, before = [], [_hash(part.identity) for part in parts]
    for phase, chosen in zip(phases, settings):
        if phase.waits:
            before = [_hash(before, i) for i in range(len(parts))]
        each = chosen.get("sources")
        before = [_hash(key, each[part.source] if each else chosen, part.name) for key, part in zip(before, parts)]
        keys.append(before)
    return keys


def _hash(*values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def probe(steps: Sequence) -> None:
    """Calls every step once, so that a missing list or model stops a run before its work starts.

    Raises:
      UserError: with the path that was wanted.
    """
    sample = document(PROBE, "probe", url="http://example.com/")
    for step in steps:
        if is_search(step):
            list(step.fingerprints(sample))
            continue
        judged = sample
        try:
            for measure in measures_of(step):
                judged = judged.with_scores(measure)
            check_outcome(step, step(judged))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"step '{step.name}': {type(error).__name__}: {error}") from error


def check_outcome(step: Step, outcome) -> None:
    """Refuses what is neither a document nor a drop.

    Raises:
      UserError: names the step.
    """
    if not isinstance(outcome, (Document, Drop)):
        raise UserError(f"step '{step.name}': gave {type(outcome).__name__}, expected a Document or a Drop")
