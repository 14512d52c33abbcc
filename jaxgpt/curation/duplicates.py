"""Exact duplicates: the same document, paragraph or line, found by its hash wherever in the corpus it stands.

What pages share, such as menus, licences and the methods that a manual lists again under every subclass, teaches a
model to recite it. Copies are equal when they differ in white space at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from jaxgpt.curation.components import Edge, unpack, verdicts_on
from jaxgpt.curation.document import Document, Drop, Fingerprint, Verdict
from jaxgpt.curation.grouping import Place, digest, equals

SEPARATORS = {"document": None, "paragraph": "\n\n", "line": "\n"}


@dataclasses.dataclass(frozen=True)
class ExactDuplicates:
    """Of equal documents, paragraphs or lines the first stays: the one with the smallest (id, part, place).

    That order has nothing to do with which file was read first, so the result is the same for any order of the files.
    A document that loses all its paragraphs is dropped.

    Memory. The embedded runner needs about 270 bytes for each document, paragraph or line until the search ends: it
    groups in memory, which a cluster does not.

    Attributes:
      unit: "document"; "paragraph", what stands between blank lines; or "line".
      min_characters: what is shorter, white space counted as one, stays wherever it is, such as headings.
    """

    name: str = "exact_duplicates"
    unit: str = "document"
    min_characters: int = 0

    def __post_init__(self):
        if self.unit not in SEPARATORS:
            raise ValueError(f"unit: must be one of {', '.join(SEPARATORS)}, not {self.unit!r}")
        if self.min_characters < 0:
            raise ValueError(f"min_characters: must not be negative, not {self.min_characters}")

    def fingerprints(self, document: Document) -> Iterator[Fingerprint]:
        """The hash of each unit, but for blank paragraphs and lines and those that are too short.

        >>> from jaxgpt.curation.document import document
        >>> search = ExactDuplicates(unit="line", min_characters=4)
        >>> [found.place for found in search.fingerprints(document("a  heading\\n\\nof\\na heading", "s"))]
        [0, 3]
        """
        for place, unit in enumerate(self._units(document.text)):
            words = " ".join(unit.split())
            if len(words) >= self.min_characters and (words or self.unit == "document"):
                yield Fingerprint(digest(words.encode("utf-8", "surrogatepass")), place)

    def verdicts(self, fingerprints, documents=None):
        """The Beam part; see Search. `documents` is not needed."""
        import apache_beam as beam

        decide = _documents_that_stay if self.unit == "document" else _places_that_go
        return fingerprints | self.name >> beam.ptransform_fn(decide)()

    def apply(self, document: Document, verdict: Verdict | None) -> Document | Drop:
        """The document, without what others said before it.

        >>> from jaxgpt.curation.document import document
        >>> text = "Chapter 1\\n\\nAll rights reserved.\\n\\nCall me Ishmael."
        >>> ExactDuplicates(unit="paragraph").apply(document(text, "s"), Verdict("1", cut=(0, 1))).text
        'Call me Ishmael.'
        """
        if verdict is None:
            return document
        if not verdict.keep:
            return Drop("duplicate", verdict.cluster)
        if not verdict.cut:
            return document
        cut = set(verdict.cut)
        text = SEPARATORS[self.unit].join(unit for i, unit in enumerate(self._units(document.text)) if i not in cut)
        return document.with_text(text) if text.strip() else Drop("nothing left", len(cut))

    def _units(self, text: str) -> list[str]:
        separator = SEPARATORS[self.unit]
        return text.split(separator) if separator else [text]


def _documents_that_stay(fingerprints):
    """(Key, fingerprints) -> (part, Verdict) of all documents that have an equal."""
    import apache_beam as beam

    return (fingerprints
            | "equals" >> beam.ptransform_fn(equals)()
            | "by the first" >> beam.MapTuple(lambda first, other: (first[0], other[0])).with_output_types(Edge)
            | "clusters" >> beam.GroupByKey()
            | "verdicts" >> beam.FlatMap(verdicts_on))


def _places_that_go(fingerprints):
    """(Key, fingerprints) -> (part, Verdict) of all documents that lose a paragraph or a line."""
    import apache_beam as beam

    return (fingerprints
            | "equals" >> beam.ptransform_fn(equals)()
            | "all but the first" >> beam.MapTuple(lambda first, other: other).with_output_types(Place)
            | "by document" >> beam.GroupByKey()
            | "verdicts" >> beam.MapTuple(_verdict_on_places))


def _verdict_on_places(member: bytes, places: Iterable[int]) -> tuple[str, Verdict]:
    key = unpack(member)
    return key.part, Verdict(key.id, cut=tuple(sorted(places)))
