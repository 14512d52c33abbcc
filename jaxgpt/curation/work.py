"""One part through one phase: a file of documents in, files of kept and dropped ones out, and a record of the counts.

    in = kept + dropped by reason, at every step; what could not be read is dropped by the step "read"

Record by record, in order: what comes out follows from the part and the settings alone, whoever works and when.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from jaxgpt.curation import store
from jaxgpt.curation.control import Watch
from jaxgpt.curation.document import Document, Drop, Fingerprint, Measure, Verdict
from jaxgpt.curation.parts import Part
from jaxgpt.curation.phases import PROBE, Phase, check_outcome, measures_of
from jaxgpt.curation.split import SPLITS, cut_at, side
from jaxgpt.curation.store import Row
from jaxgpt.tokenizer.bpe import valid_unicode

EXAMPLES, EXCERPT = 3, 600  # examples of a reason, and characters of each
GROWTH = 4.0  # characters that a byte of an input file is guessed to hold, for progress


class Cut(NamedTuple):
    """Where a part lies in a corpus whose end is held out, in characters."""

    start: int
    train: int


def paths_of(folder: str, phase: Phase, part: str) -> dict[str, str]:
    """The files that a phase leaves of a part."""
    inside = lambda *names: store.join(folder, phase.folder, *names)  # noqa: E731
    found = {"table": inside(f"{part}.parquet"), "record": inside(f"{part}.json")}
    if phase.kind == "documents":
        found |= {"dropped": inside("dropped", f"{part}.parquet"), "examples": inside("dropped", f"{part}.json")}
    return found


def work(folder: str, phase: Phase, part: Part, key: str, watch: Watch, *, source=None,
         verdicts: Mapping[str, Verdict] | None = None, cut: Cut | None = None) -> dict:
    """Takes a part through a phase and returns its record, which is written last.

    Args:
      folder: of the corpus.
      phase: what to do.
      part: which part; its files of the phases before are there.
      key: what the result follows from, by hash; kept in the record.
      watch: told of every record.
      source: reads the part's input file, in the first phase.
      verdicts: by document, of the search that the phase applies.
      cut: where the end of the corpus is held out.
    """
    paths = paths_of(folder, phase, part.name)
    store.remove(paths["record"])  # what it says will no longer be true
    files: dict[str, dict] = {}
    if phase.kind == "scores":
        rows = _known(_rows(folder, phase, part, watch))
        record = _score(paths["table"], rows, phase.measures, files)
    elif phase.kind == "fingerprints":
        rows = _known(_rows(folder, phase, part, watch))
        record = _fingerprint(paths["table"], rows, phase.search, files)
    else:
        rows = _read(source, part, watch) if not phase.reads else _rows(folder, phase, part, watch)
        record = _judge(paths, phase, rows, verdicts or {}, cut, files)
    contents = {path.removeprefix(store.join(folder, phase.folder)).lstrip("/"): found for path, found in files.items()}
    record = {"part": part.name, "key": key, **record, "files": contents}
    store.write_json(paths["record"], record)
    return record


# --- what comes in ---------------------------------------------------------------------------------------------------

def _read(source, part: Part, watch: Watch) -> Iterator[Row | Drop]:
    """What a source reads; ids are made unique within the part."""
    seen, copies, characters = set(), {}, 0
    for item in source.read(part.path):
        watch.tick(characters / max(1.0, part.bytes * GROWTH))
        if isinstance(item, Drop):
            yield item
            continue
        characters += len(item.text)
        short = int(item.id[:16], 16)
        if short in seen:
            copies[item.id] = copies.get(item.id, 1) + 1
            item = dataclasses.replace(item, id=copy_id(item.id, copies[item.id]))
        seen.add(short)
        yield Row(_valid(item))


def copy_id(key: str, number: int) -> str:
    """The id of the second, third ... document with one content in a part: a search must tell them apart.

    Its first half is that of the first, so that the split keeps copies on one side.

    >>> copy_id("2cf24dba5fb0a30e26e83b2ac5b9e29e", 2)
    '2cf24dba5fb0a30e2e58c1d23e2a6ab8'
    """
    return key[:16] + hashlib.sha256(f"{key} {number}".encode()).hexdigest()[:16]


def _valid(item: Document) -> Document:
    return item.with_text(valid_unicode(item.text))


def _rows(folder: str, phase: Phase, part: Part, watch: Watch) -> Iterator[Row]:
    """What the phase before kept, with what is known of each document."""
    path = store.join(folder, phase.reads, f"{part.name}.parquet")
    total = max(1, store.row_count(path))
    scores = _scores(store.join(folder, phase.scores, f"{part.name}.parquet")) if phase.scores else None
    for number, row in enumerate(store.read_rows(path)):
        watch.tick(number / total)
        if scores is not None:
            key, known = next(scores)
            if key != row.document.id:
                raise RuntimeError(f"{path}: row {number} is {row.document.id}, its scores are of {key}")
            row = row._replace(document=dataclasses.replace(row.document, scores=known))
        yield row


def _known(rows: Iterable[Row]) -> Iterator[Document]:
    return (row.document for row in rows)


def _scores(path: str) -> Iterator[tuple[str, dict]]:
    """(id, {measure: {name: value}}) of a file of scores."""
    columns = [name.rsplit(":", 1) for name in store.column_names(path)[1:]]
    for key, *values in store.read_table(path):
        known: dict[str, dict] = {}
        for (measure, name), value in zip(columns, values):
            known.setdefault(measure, {})[name] = value
        yield key, known


# --- scores and fingerprints -----------------------------------------------------------------------------------------

def _score(path: str, documents: Iterable[Document], measures: tuple[Measure, ...], files: dict) -> dict:
    names = {measure.name: list(measure(PROBE)) for measure in measures}
    columns = {"id": "string"} | {f"{measure.name}:{name}": _kind(measure, name)
                                  for measure in measures for name in names[measure.name]}
    with store.writing_table(path, columns, files) as table:
        for item in documents:
            found = [measure(item.text) for measure in measures]
            table.add((item.id, *(values[name] for measure, values in zip(measures, found)
                                  for name in names[measure.name])), 16 * len(columns))
    return {"documents": table.rows}


def _kind(measure: Measure, name: str) -> str:
    """The type of a column: a measure gives the same types for any text."""
    found = {type(measure(text)[name]) for text in (PROBE, "", "?")} - {type(None)}
    return "string" if str in found else "float64" if float in found or not found else "int64"


def _fingerprint(path: str, documents: Iterable[Document], search, files: dict) -> dict:
    with store.writing_table(path, store.FINGERPRINTS, files) as table:
        for item in documents:
            found = list(search.fingerprints(item))
            values = [fingerprint.value for fingerprint in found]
            table.add((item.id, values, [fingerprint.place for fingerprint in found]), 32 + 24 * len(found))
    return {"documents": table.rows}


def read_fingerprints(folder: str, phase: Phase, part: str) -> Iterator[tuple[str, tuple[Fingerprint, ...]]]:
    """(id, fingerprints) of the documents of a part."""
    for key, values, places in store.read_table(paths_of(folder, phase, part)["table"]):
        yield key, tuple(map(Fingerprint, values, places))


# --- filters and edits -----------------------------------------------------------------------------------------------

class Amount:
    """Documents and their UTF-8 bytes."""

    def __init__(self):
        self.documents = self.bytes = 0

    def add(self, size: int) -> None:
        """One document more."""
        self.documents += 1
        self.bytes += size

    def json(self) -> dict:
        """As it is recorded."""
        return {"documents": self.documents, "bytes": self.bytes}


class Tally:
    """What one step took in, kept by source, and dropped by reason."""

    def __init__(self, name: str):
        self.name, self.taken, self.kept = name, Amount(), Amount()
        self.sources: dict[str, Amount] = {}
        self.reasons: dict[str, Amount] = {}

    def keep(self, source: str, size: int) -> None:
        """A document stays."""
        self.kept.add(size)
        self.sources.setdefault(source, Amount()).add(size)

    def drop(self, reason: str, size: int) -> None:
        """A document goes."""
        self.reasons.setdefault(reason, Amount()).add(size)

    def json(self) -> dict:
        """As it is recorded."""
        return {"step": self.name, "in": self.taken.json(), **self.kept.json(),
                "by_source": {name: self.sources[name].json() for name in sorted(self.sources)},
                "dropped": {name: self.reasons[name].json() for name in sorted(self.reasons)}}


class Examples:
    """For each step and reason the few documents whose ids have the smallest hashes."""

    def __init__(self):
        self._found: dict[tuple[str, str], list] = {}

    def offer(self, step: str, reason: str, item: Document | None, value) -> None:
        """A document that might be shown."""
        name = item.id if item else str(value)
        rank = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).hexdigest()
        held = self._found.setdefault((step, reason), [])
        if len(held) == EXAMPLES and rank >= held[-1]["rank"]:
            return
        shown = {"rank": rank, "step": step, "reason": reason, "value": value, "id": item.id if item else "",
                 "url": item.url if item else "", "source": item.source if item else "",
                 "text": item.text[:EXCERPT] if item else ""}
        bisect.insort(held, shown, key=lambda example: example["rank"])
        del held[EXAMPLES:]

    def json(self) -> list[dict]:
        """All, by step and reason."""
        return [example for name in sorted(self._found) for example in self._found[name]]


def _judge(paths: dict, phase: Phase, rows: Iterable[Row | Drop], verdicts: Mapping[str, Verdict], cut: Cut | None,
           files: dict) -> dict:
    """Kept and dropped documents, and how many there are of each."""
    tallies = [Tally(name) for name in phase.step_names]
    examples, digests = Examples(), {name: hashlib.sha256() for name in SPLITS if phase.split}
    sides = {name: Tally(name) for name in digests}
    characters = 0
    with contextlib.ExitStack() as held:
        kept = held.enter_context(store.writing_table(paths["table"], store.DOCUMENTS, files))
        dropped = held.enter_context(store.writing_table(paths["dropped"], store.DROPPED, files))
        for row in rows:
            outcome = _through(row, phase, tallies, verdicts)
            if isinstance(outcome, Dropped):
                dropped.add(outcome.row(), len(outcome.item.text) if outcome.item else 0)
                examples.offer(outcome.step, outcome.drop.reason, outcome.item, outcome.drop.value)
                continue
            for found in _divided(outcome, phase, cut, characters):
                item = found.document
                kept.add(store.document_row(found), len(item.text))
                if phase.split:
                    data = item.text.encode()
                    sides[found.split].keep(item.source, len(data))
                    digests[found.split].update(f"{item.id} {len(data)}\n".encode() + data)
                    examples.offer("", "kept", item, None)
            characters += len(outcome.document.text)
    record = {"steps": [tally.json() for tally in tallies], "characters": characters}
    if phase.split:
        record["splits"] = {name: {**{unit: tally.json()[unit] for unit in ("documents", "bytes", "by_source")},
                                   "sha256": digests[name].hexdigest()} for name, tally in sides.items()}
    store.write_json(paths["examples"], examples.json())
    return record


class Dropped(NamedTuple):
    """A document that a step left out, or what could not be read (then without one)."""

    item: Document | None
    step: str
    drop: Drop

    def row(self) -> tuple:
        """As a row of DROPPED."""
        number = isinstance(self.drop.value, (int, float)) and not isinstance(self.drop.value, bool)
        value = (float(self.drop.value), None) if number else (None, None if self.drop.value is None
                                                              else valid_unicode(str(self.drop.value)))
        item = self.item
        described = (item.id, item.text, item.url, item.date, item.source, item.media_type) if item else (None,) * 6
        return (*described, self.step, self.drop.reason, *value)


def _through(row: Row | Drop, phase: Phase, tallies: list[Tally], verdicts: Mapping[str, Verdict]) -> Row | Dropped:
    """A record's way through the steps of a phase."""
    waiting = iter(tallies)
    if not phase.reads:
        tally = next(waiting)
        size = 0 if isinstance(row, Drop) else _size(row.document)
        tally.taken.add(size)
        if isinstance(row, Drop):
            tally.drop(row.reason, 0)
            return Dropped(None, tally.name, row)
        tally.keep(row.document.source, size)
    else:
        size = _size(row.document)
    for tally, step in zip(waiting, (*([phase.search] if phase.search else []), *phase.steps), strict=True):
        before = row.document
        tally.taken.add(size)
        if step is phase.search:
            verdict = verdicts.get(before.id)
            outcome = step.apply(before, verdict)
            if verdict is not None and verdict.cluster_size > 1:
                row = row._replace(cluster=verdict.cluster, cluster_size=verdict.cluster_size)
        else:
            for measure in measures_of(step):
                row = row._replace(document=row.document.with_scores(measure))
            outcome = step(row.document)
            check_outcome(step, outcome)
        if isinstance(outcome, Drop):
            tally.drop(outcome.reason, size)
            return Dropped(before, tally.name, outcome)
        if outcome.text is not before.text:
            outcome = _valid(outcome)
            size = _size(outcome)
        tally.keep(outcome.source, size)
        row = row._replace(document=outcome)
    return row


def _size(item: Document) -> int:
    return len(item.text.encode())


def _divided(row: Row, phase: Phase, cut: Cut | None, before: int) -> Iterator[Row]:
    """A kept document with the side it is on; in two where the end of the corpus begins within it."""
    if phase.split is None:
        yield row
    elif cut is None:
        yield row._replace(split=side(row.document.id, phase.split.val_fraction))
    else:
        for name, item in cut_at(row.document, cut.train - cut.start - before):
            yield row._replace(document=item, split=name)
