"""Honest cleaning: what a page repeats from elsewhere is dropped, and the drops are counted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

from jaxgpt.curation.document import Document, document


def drop_exact_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keeps the first of the documents that have the same text.

    >>> [item.source for item in drop_exact_duplicates([document("a", "1"), document("b", "2"), document("a", "3")])]
    ['1', '2']
    """
    first: dict[str, Document] = {}
    for item in documents:
        first.setdefault(item.id, item)
    return list(first.values())


def drop_repeated_paragraphs(documents: Iterable[Document], *, min_characters: int = 40) -> list[Document]:
    """Keeps each paragraph where the corpus says it first; short ones (headings, names) stay wherever they are.

    A paragraph is what stands between blank lines. Two are the same when they differ in white space at most. This
    removes the methods that pydoc lists again under every subclass, and licence texts. A document left with nothing
    goes.

    >>> pages = [document(f"Inherited from object:\\n\\n{name}", "pages") for name in "xy"]
    >>> [item.text for item in drop_repeated_paragraphs(pages, min_characters=10)]
    ['Inherited from object:\\n\\nx', 'y']
    """
    seen, kept = set(), []
    for item in documents:
        paragraphs = []
        for paragraph in item.text.split("\n\n"):
            if len(paragraph) >= min_characters:
                key = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=12).digest()
                if key in seen:
                    continue
                seen.add(key)
            paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs)
        if text.strip():
            kept.append(item if text == item.text else document(text, item.source))
    return kept


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much text there is, in all and by source."""

    documents: int
    bytes: int
    by_source: dict[str, dict[str, int]]


def amount(documents: Iterable[Document]) -> Amount:
    """Counts documents and UTF-8 bytes.

    >>> amount([document("tea", "menu"), document("é", "menu")])
    Amount(documents=2, bytes=5, by_source={'menu': {'documents': 2, 'bytes': 5}})
    """
    by_source: dict[str, dict[str, int]] = {}
    for item in documents:
        entry = by_source.setdefault(item.source, {"documents": 0, "bytes": 0})
        entry["documents"] += 1
        entry["bytes"] += len(item.text.encode("utf-8"))
    total, size = (sum(entry[name] for entry in by_source.values()) for name in ("documents", "bytes"))
    return Amount(total, size, dict(sorted(by_source.items())))
