"""Search over a folder of documents by BM25: titles and the stretch of text that answers best.

Source: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", equation 3.15:

    score(d, q) = Σ_{t in q} log(1 + (n - n_t + ½) / (n_t + ½)) · f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))

with f how often word t is in document d, n_t in how many of the n documents; the logarithm as Lucene has it, never below 0.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxgpt.core.errors import UserError

K1, B = 1.2, 0.75
SNIPPET = 40  # words
KINDS = (".txt", ".md", ".rst", ".jsonl")


@dataclasses.dataclass(frozen=True)
class Page:
    """A document that can be found."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Hit:
    """One that was: its score, and the words around where the query is met most."""

    page: Page
    score: float
    snippet: str


class Index:
    """Documents by the words in them.

    >>> index = Index([Page("Otters", "Otters live by rivers."), Page("Herons", "A heron stands in a river all day.")])
    >>> [(hit.page.title, hit.snippet) for hit in index.search("where does a heron stand")]
    [('Herons', 'A heron stands in a river all day.')]
    """

    def __init__(self, pages: Iterable[Page]):
        self.pages = list(pages)
        self._postings: dict[str, dict[int, int]] = collections.defaultdict(dict)
        self._lengths = []
        for number, page in enumerate(self.pages):
            counts = collections.Counter(words(f"{page.title} {page.text}"))
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._postings[word][number] = count
        self._mean = sum(self._lengths) / max(len(self._lengths), 1)

    def search(self, query: str, count: int = 3) -> list[Hit]:
        """The documents that fit best, at most so many; those without any word of the query are left out."""
        asked = set(words(query))
        scores: dict[int, float] = collections.defaultdict(float)
        for word in sorted(asked):
            found = self._postings.get(word, {})
            rarity = math.log(1 + (len(self.pages) - len(found) + 0.5) / (len(found) + 0.5))
            for number, f in found.items():
                length = K1 * (1 - B + B * self._lengths[number] / self._mean)
                scores[number] += rarity * f * (K1 + 1) / (f + length)
        best = sorted(scores, key=lambda number: (-scores[number], number))[:count]
        return [Hit(self.pages[number], scores[number], snippet(self.pages[number].text, asked)) for number in best]

    def __call__(self, query: str) -> str:
        """What a model is shown: numbered titles with snippets, or a sentence that nothing was found."""
        hits = self.search(query)
        if not hits:
            return "nothing was found" if words(query) else "error: the query has no words"
        return "\n".join(f"{place}. {hit.page.title}: {hit.snippet}" for place, hit in enumerate(hits, start=1))


def read_pages(folder: str | Path) -> Iterator[Page]:
    """The documents of a folder, in the order of their paths: text files, and JSON lines with "text" and maybe "title".

    The title is the first line of a text, if that is short, else the name of the file.

    Raises:
      UserError: no such folder, nothing in it that is read, or a line that is no document.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder to search in")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in KINDS and path.is_file())
    if not paths:
        raise UserError(f"{folder}: no document in it; read are files that end in {', '.join(KINDS)}")
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text in UTF-8") from error
        if path.suffix != ".jsonl":
            yield _page(text, path.stem)
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                found = json.loads(line)
                yield Page(str(found["title"]), found["text"]) if "title" in found else _page(found["text"], path.stem)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f'{path}, line {number}: not a JSON object with a "text"') from None


def words(text: str) -> list[str]:
    """Words as the index has them: letters and digits, in lower case, a plural's s cut off.

    >>> words("The otters' 3 dens, grass")
    ['the', 'otter', '3', 'den', 'grass']
    """
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
            for word in re.findall(r"[^\W_]+", text.casefold())]


def snippet(text: str, asked: set[str]) -> str:
    """The `SNIPPET` words of a text among which most different words of the query are."""
    pieces = text.split()
    hits = [(place, word) for place, piece in enumerate(pieces) for word in words(piece) if word in asked]
    best, most = 0, 0
    for first, (start, _) in enumerate(hits):
        different = len({word for place, word in hits[first:first + SNIPPET] if place < start + SNIPPET})
        if different > most:
            best, most = start, different
    begin = max(0, min(best - SNIPPET // 4, len(pieces) - SNIPPET))
    shown = " ".join(pieces[begin:begin + SNIPPET])
    return ("… " if begin else "") + shown + (" …" if begin + SNIPPET < len(pieces) else "")


def _page(text: str, name: str) -> Page:
    first, _, rest = text.strip().partition("\n")
    title = first.strip().lstrip("#= ").strip()
    return Page(title, rest.strip()) if 0 < len(title) <= 100 and rest.strip() else Page(name, text.strip())
