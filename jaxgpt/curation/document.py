"""A document, what may happen to it, and the two kinds of steps that a recipe is made of.

    Document -> Document | Drop            a filter or an edit: one document at a time
    Document -> fingerprints -> verdicts   a search for duplicates: all documents at once (duplicates.py, minhash.py)

A step is a frozen dataclass of its thresholds, named as in the report and in `--set curate.steps.NAME.FIELD=VALUE`, and a
pure function: the same document always has the same fate, on whatever worker it is judged.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

Value = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it came from.

    Attributes:
      id: 32 hexadecimal digits, a hash of what was read (see `document`); edits leave it as it is.
      text: what is read; HTML until it is extracted, where `media_type` says so.
      source: what it is counted under in reports, such as a file or a crawl.
      url: its address, or "".
      date: when it was fetched, ISO 8601, or "".
      media_type: "text/html" before extraction, "text/plain" after.
      scores: what was measured of `text`, by measure and by name, such as {"language": {"code": "en", "score": 0.99}}.
    """

    id: str
    text: str
    source: str
    url: str = ""
    date: str = ""
    media_type: str = "text/plain"
    scores: Mapping[str, Mapping[str, Value]] = dataclasses.field(default_factory=dict, hash=False)

    def with_text(self, text: str, *, media_type: str | None = None) -> Document:
        """The same document with another text; what was measured of the old one is forgotten."""
        if text == self.text and media_type in (None, self.media_type):
            return self
        return dataclasses.replace(self, text=text, media_type=media_type or self.media_type, scores={})

    def with_scores(self, measure: Measure) -> Document:
        """The document with what `measure` finds; it measures only where that is not yet known."""
        if measure.name in self.scores:
            return self
        return dataclasses.replace(self, scores={**self.scores, measure.name: measure(self.text)})


def document(text: str, source: str, *, url: str = "", date: str = "", media_type: str = "text/plain") -> Document:
    """The document with this content: its id is the start of the SHA-256 of address, date and text.

    >>> document("hello", "greetings.txt").id
    '2cf24dba5fb0a30e26e83b2ac5b9e29e'
    """
    content = "\n".join([url, date, text]) if url or date else text
    name = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Document(id=name, text=text, source=source, url=url, date=date, media_type=media_type)


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a step leaves a document out, or why a record could not be read.

    Attributes:
      reason: short and the same for all of its kind, such as "too few words": reports count by it.
      value: what was measured, to be held against the threshold; the error for what could not be read.
    """

    reason: str
    value: Value = None


class Source(Protocol):
    """Where documents come from: a frozen dataclass that can be pickled, since other processes read its files."""

    def files(self, cache_dir: str) -> list[str]:
        """Its input files, sorted; where they have to be made or downloaded first, that goes to the folder `cache_dir`."""

    def read(self, path: str) -> Iterator[Document | Drop]:
        """What each record of one of them is, in order; a `Drop` for one that is no document or cannot be read."""


class Step(Protocol):
    """One document at a time: a filter, or an edit.

    Attributes:
      name: in reports and overrides; unique within a recipe.
      measures: what it needs to know of the text, measured once a document and kept in side files.
    """

    name: str
    measures: tuple[Measure, ...]

    def __call__(self, document: Document) -> Document | Drop:
        """The document, edited or as it was, or why it is dropped."""


class Measure(Protocol):
    """A pure function of a text whose results several steps share. A frozen dataclass, so that it can be hashed.

    Attributes:
      name: under which a document keeps the results. Measures with different settings have different names.
    """

    name: str

    def __call__(self, text: str) -> Mapping[str, Value]:
        """Numbers and words, always under the same names."""


class Key(NamedTuple):
    """Which document, in which part of the corpus: texts are only ever joined within their part, by id."""

    part: str
    id: str


class Fingerprint(NamedTuple):
    """Something that duplicates have in common.

    Attributes:
      value: documents with the same value may be duplicates.
      place: where in the document: 0, or which paragraph or line.
    """

    value: bytes
    place: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a search for duplicates decided on one document. Those it says nothing of stay as they are.

    Attributes:
      id: of the document.
      keep: whether it stays.
      cluster: the id of the document that stays for all of its cluster.
      cluster_size: how many documents the cluster has.
      cut: the places (paragraphs or lines) that others said before it.
    """

    id: str
    keep: bool = True
    cluster: str = ""
    cluster_size: int = 1
    cut: tuple[int, ...] = ()


class Search(Protocol):
    """All documents at once: a search for duplicates. It groups ids and hashes, never texts.

    Attributes:
      name: in reports and overrides; unique within a recipe.
    """

    name: str

    def fingerprints(self, document: Document) -> Iterable[Fingerprint]:
        """Of one document."""

    def verdicts(self, fingerprints, documents=None):
        """The Beam part: a PCollection of (Key, tuple of Fingerprints), one element a document, to a PCollection of
        (part, Verdict). `documents(part)` gives the documents of a part again, for a search that must compare some."""

    def apply(self, document: Document, verdict: Verdict | None) -> Document | Drop:
        """What the verdict (None where there is none) makes of the document."""
