"""Decontamination: documents that hold passages of an evaluation set are dropped, or the passages are cut out.

A document and an evaluation item share a passage when n words in a row are the same, but for case and punctuation.
GPT-3 cut runs of 13 words, datatrove looks for 12, Llama 3 measured with 8. Paraphrases and translations are not found,
and a saying that an item quotes is: `hits` asks for more than one n-gram.

Sources: Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C; Grattafiori et al., "The Llama 3
Herd of Models" (2024), section 5.1.4; datatrove, pipeline/decont/n_grams.py.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, Drop, Value
from jaxgpt.curation.files import find_files, name_of, open_file
from jaxgpt.curation.ngrams import runs, words_of

# --- evaluation sets -------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Benchmark:
    """An evaluation set in a file of JSON lines (`.gz` is unpacked), or in several.

    An item's text is that of its fields one after the other. A field that is a list holds
    alternatives: the item is read once with each of them.

    Attributes:
      path: near or far; `~`, `*` and variables such as `$JAXGPT_DATA` expand (`files.find_files`).
      fields: in the order in which a page would say them; "choices.text" is a field of a field.
      name: in reports; the file's name where empty.
    """

    path: str
    fields: tuple[str, ...] = ("question", "answer")
    name: str = ""

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: must name a file of JSON lines")
        if not self.fields or isinstance(self.fields, str):
            raise ValueError(f"fields: must name at least one field, as in ('question', 'answer'), not {self.fields!r}")

    @property
    def title(self) -> str:
        """Its name in reports."""
        return self.name or name_of(self.path).split(".")[0]

    def items(self) -> Iterator[str]:
        """Yields the text of each item, of each of its alternatives.

        Raises:
          UserError: the file is missing, or a line has not all of the fields (names it).
        """
        for path in find_files(self.path):
            number = 0
            try:
                with open_file(path) as file, gzip.open(file) if path.endswith(".gz") else file as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield from self._texts(f"{path}, line {number}", json.loads(line))
            except ValueError as error:  # of JSON, or of UTF-8
                raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
            except (OSError, EOFError) as error:
                raise UserError(f"{path}, line {number + 1}: cannot be read ({error})") from error

    def _texts(self, where: str, record) -> Iterator[str]:
        alternatives = [_field(where, record, field) for field in self.fields]
        return map("\n".join, itertools.product(*alternatives))


@dataclasses.dataclass(frozen=True)
class Passages:
    """An evaluation set given as it is.

    Attributes:
      name: in reports.
      texts: of the items.
    """

    name: str
    texts: tuple[str, ...]

    def __post_init__(self):
        if isinstance(self.texts, str) or not self.texts:
            raise ValueError("texts: must be a tuple of at least one text")

    @property
    def title(self) -> str:
        """Its name in reports."""
        return self.name

    def items(self) -> Iterator[str]:
        """Yields the texts."""
        return iter(self.texts)


def _field(where: str, record, field: str) -> list[str]:
    """What an item has under a (dotted) name: texts to choose from."""
    value = record
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            has = f"its fields are {', '.join(map(repr, value))}" if isinstance(value, dict) else "it is no JSON object"
            raise UserError(f"{where}: no field '{field}'; {has}")
        value = value[name]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, (str, int, float)) for item in values):
        raise UserError(f"{where}: the field '{field}' must be a text or a list of texts, not {value!r:.80}")
    return [str(item) for item in values]


# --- the index -------------------------------------------------------------------------------------------------------

class Table(NamedTuple):
    """The n-grams of one length, 12 to 14 bytes each.

    Attributes:
      length: n.
      hashes: [n-grams] uint64, sorted.
      owners: [n-grams] uint16, the number of the evaluation set that has it (of the first, where several do).
      sieve: bits, 16 to 32 for each n-gram; that of a hash's leading bits is set where the table may have it.
    """

    length: int
    hashes: np.ndarray
    owners: np.ndarray
    sieve: np.ndarray

    def places(self, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the hashes `run` are in the table, and the numbers of their evaluation sets."""
        slots = run >> np.uint64(61 - _log2(len(self.sieve)))
        maybe = np.flatnonzero(self.sieve[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8) & 1)
        at = np.minimum(np.searchsorted(self.hashes, run[maybe]), len(self.hashes) - 1)
        found = self.hashes[at] == run[maybe]
        return maybe[found], self.owners[at[found]]


class Index(NamedTuple):
    """All n-grams of some evaluation sets.

    Attributes:
      names: of the sets.
      tables: by length; those shorter than n hold the items that have fewer words, whole.
      ignored: {name: how many items have fewer words than `min_words`}.
    """

    names: tuple[str, ...]
    tables: tuple[Table, ...]
    ignored: Mapping[str, int]

    def fingerprint(self) -> str:
        """Tells what the index finds: 12 hexadecimal digits of a hash of it."""
        found = hashlib.sha256("\n".join(self.names).encode())
        for table in self.tables:
            found.update(str(table.length).encode() + table.hashes.tobytes() + table.owners.tobytes())
        return found.hexdigest()[:12]


class Hit(NamedTuple):
    """A passage of an evaluation set in a text: where it starts and ends there, and the set's name."""

    start: int
    end: int
    name: str


def build_index(sets: Mapping[str, Iterable[str]], *, n: int = 13, min_words: int = 8) -> Index:
    """The n-grams of evaluation sets.

    Args:
      sets: {name: texts of its items}.
      n: how many words.
      min_words: an item of fewer than n words is looked for as a whole where it has at least so many.

    Raises:
      UserError: all items of a set are too short, so that it would never be found.

    >>> index = build_index({"riddles": ["What has keys but can't open locks? A piano.", "Who?"]}, n=8)
    >>> [(table.length, len(table.hashes)) for table in index.tables], index.ignored
    ([(8, 3)], {'riddles': 1})
    """
    found: dict[int, list[tuple[np.ndarray, int]]] = {}
    ignored, least = dict.fromkeys(sets, 0), min(n, min_words)
    for owner, (name, texts) in enumerate(sets.items()):
        texts, count = iter(texts), 0
        while block := list(itertools.islice(texts, 512)):
            count += len(block)
            short, ngrams = _ngrams(block, n, least)
            ignored[name] += short
            for length, hashes in ngrams.items():
                found.setdefault(length, []).append((hashes, owner))
        if ignored[name] == count:
            raise UserError(f"decontamination against '{name}': none of its {count} items has {least} words; give more "
                            "of its fields, or a smaller min_words")
    tables = tuple(_table(length, parts) for length, parts in sorted(found.items()))
    return Index(tuple(sets), tables, ignored)


def _ngrams(texts: list[str], n: int, least: int) -> tuple[int, dict[int, np.ndarray]]:
    """How many texts have fewer than `least` words, and the n-grams of the others (shorter ones as a whole), by length.

    All texts are taken at once, as one long text.
    """
    words = words_of("\n".join(texts))
    begins = np.cumsum([0] + [len(text) + 1 for text in texts])
    item = np.searchsorted(begins, words.starts, side="right") - 1  # of which text a word is
    count = np.bincount(item, minlength=len(texts))
    found = {}
    for length, run in zip(range(1, n + 1), runs(words.hashes)):
        first, last = item[:len(run)], item[length - 1:]
        inside = (first == last) if length == n else (first == last) & (count[first] == length)
        if length >= least and inside.any():
            found[length] = run[inside]
    return int(np.sum(count < least)), found


def _table(length: int, parts: list[tuple[np.ndarray, int]]) -> Table:
    hashes = np.concatenate([part for part, _ in parts])
    owners = np.repeat(np.array([owner for _, owner in parts], np.uint16), [len(part) for part, _ in parts])
    hashes, first = np.unique(hashes, return_index=True)
    bits = np.zeros(1 << _log2(32 * len(hashes)), bool)
    bits[hashes >> np.uint64(64 - _log2(len(bits)))] = True
    return Table(length, hashes, owners[first], np.packbits(bits, bitorder="little"))


def _log2(number: int) -> int:
    return number.bit_length() - 1


def find(index: Index, text: str) -> list[Hit]:
    """The passages of the evaluation sets in a text, in order.

    >>> index = build_index({"riddles": ["What has keys but can't open locks? A piano."]}, n=8)
    >>> find(index, "Here: what has keys, but can't open locks?")
    [Hit(start=6, end=41, name='riddles')]
    """
    words, hits = words_of(text), []
    tables = {table.length: table for table in index.tables}
    for length, run in zip(range(1, max(tables) + 1), runs(words.hashes)):
        if length in tables:
            for place, owner in zip(*tables[length].places(run)):
                hits.append(Hit(int(words.starts[place]), int(words.ends[place + length - 1]), index.names[owner]))
    return sorted(hits)


def cut(text: str, hits: Iterable[Hit], window: int) -> list[str]:
    """What is left of a text without the hits and `window` characters on both sides: pieces of at least `window`."""
    pieces, start = [], 0
    for hit in sorted(hits):
        pieces.append(text[start:max(start, hit.start - window)])
        start = max(start, hit.end + window)
    return [piece for piece in [*pieces, text[start:]] if len(piece) >= max(1, window)]


# --- the step --------------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Contamination:
    """How much of a text is in evaluation sets: fields as in `Decontaminate`, a name that follows the sets' content."""

    against: tuple[Benchmark | Passages, ...]
    n: int = 13
    min_words: int = 8

    @property
    def name(self) -> str:
        """Under which scores are kept; reads the evaluation sets where this process has not yet."""
        return _load(self)[1]

    def __call__(self, text: str) -> Mapping[str, Value]:
        """How many n-grams are shared (`hits`), with which set first and what, and how many with each set."""
        index, _ = _load(self)
        hits = find(index, text)
        each = {f"in {name}": sum(hit.name == name for hit in hits) for name in index.names}
        first = hits[0] if hits else Hit(0, 0, "")
        return {"hits": len(hits), "set": first.name, "passage": " ".join(text[first.start:first.end].split()), **each}


@functools.lru_cache(maxsize=8)
def _load(measure: Contamination) -> tuple[Index, str]:
    """The index, made once in a process, and the measure's name."""
    sets = {benchmark.title: benchmark.items() for benchmark in measure.against}
    index = build_index(sets, n=measure.n, min_words=measure.min_words)
    return index, f"contamination {index.fingerprint()}"


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """Drops documents that share n words in a row with an evaluation set, or cuts these passages out of them.

    Cutting is GPT-3's rule: the passage goes with 200 characters on both sides, so do pieces shorter than 200, and a
    document that falls into more than 10 pieces is dropped. The pieces stay one document, blank lines between them.

    Source: Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C.

    Attributes:
      against: the evaluation sets.
      n: how many words in a row.
      min_words: an item of fewer than n words is looked for as a whole where it has at least so many words.
      hits: how many n-grams must be shared before a document counts as contaminated.
      action: "drop", or "cut".
      window: characters cut on both sides of a passage.
      max_pieces: a document cut into more is dropped.

    >>> riddle = "What has many keys but opens no locks? A piano, of course, or so they say."
    >>> step = Decontaminate(against=(Passages("riddles", (riddle,)),))
    >>> from jaxgpt.curation.document import document
    >>> step(document(f"A page of riddles. {riddle.upper()} Good night.", "web"))
    Drop(reason='contaminated', value='riddles: WHAT HAS MANY KEYS BUT OPENS NO LOCKS? A PIANO, OF COURSE, OR')
    """

    against: tuple[Benchmark | Passages, ...]
    n: int = 13
    min_words: int = 8
    hits: int = 1
    action: Literal["drop", "cut"] = "drop"
    window: int = 200
    max_pieces: int = 10
    name: str = "decontaminate"

    def __post_init__(self):
        if not self.against or not isinstance(self.against, tuple):
            raise ValueError("against: must name at least one evaluation set, as in (Benchmark('gsm8k.jsonl'),)")
        titles = [benchmark.title for benchmark in self.against]
        if len(set(titles)) < len(titles):
            raise ValueError(f"against: two are called '{max(titles, key=titles.count)}'; give one another name=")
        for field in ("n", "min_words", "hits", "max_pieces"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, not {getattr(self, field)}")
        if self.window < 0:
            raise ValueError(f"window: must be at least 0, not {self.window}")
        if self.action not in ("drop", "cut"):
            raise ValueError(f"action: must be 'drop' or 'cut', not {self.action!r}")

    @property
    def measures(self) -> tuple[Contamination]:
        """How much of a text is in the evaluation sets."""
        return (Contamination(self.against, self.n, self.min_words),)

    def __call__(self, document: Document) -> Document | Drop:
        """The document, what is left of it, or the drop, whose value is the set and the first passage found."""
        measure, = self.measures
        document = document.with_scores(measure)
        found = document.scores[measure.name]
        if found["hits"] < self.hits:
            return document
        drop = Drop("contaminated", f"{found['set']}: {found['passage']}")
        if self.action == "drop":
            return drop
        pieces = cut(document.text, find(_load(measure)[0], document.text), self.window)
        return document.with_text("\n\n".join(pieces)) if 0 < len(pieces) <= self.max_pieces else drop
