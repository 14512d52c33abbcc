"""Documents, and the sources they come from: text files, JSON lines, and (python_docs.py) the embedded default corpus.

A source is a frozen dataclass with `documents(cache_dir) -> Iterator[Document]`. Documents come in a fixed order, and
the same content always has the same id, so everything further on (duplicates, the split) can go by id alone.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write
from jaxgpt.curation.document import Document, document
from jaxgpt.tokenizer.bpe import valid_unicode


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Plain text in UTF-8 (`.gz` is unpacked): one document a file, or one for each part between `separator`s.

    Attributes:
      paths: a path or several, relative to the current folder; `~`, `*` and variables such as `$JAXGPT_DATA` expand.
      separator: what divides a file into documents, for example a blank line; None for one document a file.
    """

    paths: str | tuple[str, ...]
    separator: str | None = None

    def __post_init__(self):
        if not self.paths:
            raise ValueError("paths: name at least one file")
        if self.separator == "":
            raise ValueError("separator: an empty text divides nothing; give some characters, or None")

    def documents(self, cache_dir: str | os.PathLike | None = None) -> Iterator[Document]:
        """Yields the documents in the order of the sorted paths.

        Raises:
          UserError: a path matches no file, or a file is not UTF-8 text (names the line).
        """
        for path in find_files(self.paths):
            text = "".join(line for _, line in _lines(path))
            for part in text.split(self.separator) if self.separator else [text]:
                if part.strip():
                    yield document(part, path.name)


@dataclasses.dataclass(frozen=True)
class Jsonl:
    """JSON lines (`.gz` is unpacked): every line an object, its `field` the text of one document.

    Attributes:
      paths: as in `TextFiles`.
      field: which member of the object is the text.
    """

    paths: str | tuple[str, ...]
    field: str = "text"

    def __post_init__(self):
        if not self.paths:
            raise ValueError("paths: name at least one file")

    def documents(self, cache_dir: str | os.PathLike | None = None) -> Iterator[Document]:
        """Yields the documents in the order of the sorted paths and of their lines.

        Raises:
          UserError: a path matches no file, or a line is not what it should be (names file and line).
        """
        for path in find_files(self.paths):
            for number, line in _lines(path):
                if not line.strip():
                    continue
                record = _json(path, number, line)
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
                if not isinstance(record.get(self.field), str):
                    raise UserError(f"{path}, line {number}: no text in the field '{self.field}'; "
                                    f"its fields are {', '.join(map(repr, record)) or 'none'}")
                if record[self.field].strip():
                    yield document(valid_unicode(record[self.field]), path.name)


def find_files(paths: str | tuple[str, ...]) -> list[Path]:
    """The files that paths and patterns name, sorted, each once.

    Raises:
      UserError: one of them matches nothing, or needs an environment variable that is not set.
    """
    found = set()
    for pattern in (paths,) if isinstance(paths, str) else paths:
        expanded = os.path.expandvars(os.path.expanduser(pattern))
        if "$" in expanded:
            raise UserError(f"{pattern}: names an environment variable that is not set")
        matches = [path for path in glob.glob(expanded, recursive=True) if os.path.isfile(path)]
        if not matches:
            shown = pattern if pattern == expanded else f"{pattern} ({expanded})"
            raise UserError(f"{shown}: no such file (looked from {os.getcwd()})")
        found.update(map(Path, matches))
    return sorted(found)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, line ends as they are."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8; "
                        "convert the file to UTF-8") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}, line {number + 1}: cannot be read ({error})") from error


def _json(path: Path, number: int, line: str):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno})") from error


def write_documents(path: str | os.PathLike, documents: Iterable[Document]) -> None:
    """Writes documents as JSON lines, whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            for item in documents:
                file.write(json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def read_documents(path: str | os.PathLike) -> Iterator[Document]:
    """Yields what `write_documents` wrote.

    Raises:
      UserError: the file is missing or is not that (names the line).
    """
    path = Path(path)
    for number, line in _lines(path):
        record = _json(path, number, line)
        if not isinstance(record, dict) or not {"id", "text", "source"} <= set(record):
            raise UserError(f"{path}, line {number}: not a document; expected the fields id, text and source")
        yield Document(**record)
