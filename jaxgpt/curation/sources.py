"""Where documents come from: text files, JSON lines, Parquet, TFDS datasets; web pages are warc.py's.

A source is a frozen dataclass. It names its files, and reads any one of them into documents in a fixed order: each file
is one part of the work, for whatever worker takes it. The same content always has the same id.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, Drop, Source, document
from jaxgpt.curation.files import find_files, name_of, open_file
from jaxgpt.curation.warc import SUFFIXES, Warc
from jaxgpt.tokenizer.bpe import valid_unicode

EMPTY = Drop("empty text")
ROWS = 256  # rows of a Parquet file or a TFDS shard at a time


class _Named:
    """A source whose files are named by `paths`."""

    def __post_init__(self):
        if not self.paths:
            raise ValueError("paths: name at least one file")

    def files(self, cache_dir: str | os.PathLike | None = None) -> list[str]:
        """The files, sorted.

        Raises:
          UserError: a path matches no file.
        """
        return find_files(self.paths)


@dataclasses.dataclass(frozen=True)
class TextFiles(_Named):
    """Plain text in UTF-8: one document a file, or one for each part between `separator`s.

    Attributes:
      paths: a path or several, near or far (`files.find_files`); `.gz` and `.zst` are unpacked.
      separator: what divides a file into documents, for example a blank line; None for one document a file.
    """

    paths: str | tuple[str, ...]
    separator: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.separator == "":
            raise ValueError("separator: an empty text divides nothing; give some characters, or None")

    def read(self, path: str) -> Iterator[Document]:
        """Yields the documents of one file.

        Raises:
          UserError: it is not UTF-8 text (names the line).
        """
        text = "".join(line for _, line in _lines(path))
        for part in text.split(self.separator) if self.separator else [text]:
            if part.strip():
                yield document(part, name_of(path))


@dataclasses.dataclass(frozen=True)
class Jsonl(_Named):
    """JSON lines: every line an object, its `field` the text of one document; `url` and `date` are kept if there.

    Attributes:
      paths: as in `TextFiles`.
      field: which member of the object is the text.
    """

    paths: str | tuple[str, ...]
    field: str = "text"

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields what each line of one file is.

        Raises:
          UserError: a line is not what it should be (names file and line).
        """
        for number, line in _lines(path):
            if line.strip():
                record, place = _json(path, number, line), f"{path}, line {number}"
                if not isinstance(record, dict):
                    raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
                yield _document(record, self.field, place, name_of(path))


@dataclasses.dataclass(frozen=True)
class Parquet(_Named):
    """Parquet: every row one document, its column `field` the text; the columns `url` and `date` are kept if there.

    Attributes:
      paths: as in `TextFiles`.
      field: which column is the text.
    """

    paths: str | tuple[str, ...]
    field: str = "text"

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields what each row of one file is.

        Raises:
          UserError: it is not a Parquet file with that column, or a row has no text in it.
        """
        import pyarrow
        import pyarrow.parquet

        row = 0
        try:
            with open_file(path) as file, pyarrow.parquet.ParquetFile(file) as table:
                names = table.schema_arrow.names
                if self.field not in names:
                    raise UserError(f"{path}: no column '{self.field}'; its columns are {', '.join(map(repr, names))}")
                columns = [name for name in dict.fromkeys((self.field, "url", "date")) if name in names]
                for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                    for record in batch.to_pylist():
                        yield _document(record, self.field, f"{path}, row {row}", name_of(path))
                        row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}, row {row}: cannot be read as Parquet ({error})") from error


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A prepared TFDS dataset in the format array_record, which is read without TensorFlow.

    Attributes:
      name: of the dataset, such as "ag_news_subset", or the folder that holds its files.
      split: a whole one, such as "train".
      field: which feature is the text.
    """

    name: str
    split: str = "train"
    field: str = "text"

    def __post_init__(self):
        if not self.name:
            raise ValueError("name: give the name of a dataset or the folder that holds it")
        if not self.split.isidentifier():
            raise ValueError(f"split: must be the name of a whole split, such as 'train', not {self.split!r}")

    def files(self, cache_dir: str | os.PathLike | None = None) -> list[str]:
        """The shards of the split.

        Raises:
          UserError: the dataset is not there, or not in that format, or has no such split or feature.
        """
        builder = self._builder()
        splits = builder.info.splits
        if not splits:
            raise UserError(f"{self.name}: not prepared here; prepare it with file_format='array_record'")
        found = builder.info.file_format.value if builder.info.file_format else "unknown"
        if found != "array_record":
            raise UserError(f"{self.name}: its files are in the format {found}; prepare it again with "
                            "file_format='array_record'")
        if self.split not in splits:
            raise UserError(f"{self.name}: no split '{self.split}'; its splits are {', '.join(map(repr, splits))}")
        if self.field not in builder.info.features:
            raise UserError(f"{self.name}: no feature '{self.field}'; its features are "
                            f"{', '.join(map(repr, sorted(builder.info.features)))}")
        return sorted(map(str, splits[self.split].filepaths))

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields what each example of one shard is.

        Raises:
          UserError: an example has no text in that feature.
        """
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        info = tfds.builder_from_directory(os.path.dirname(path)).info
        with ArrayRecordDataSource([path]) as shard:
            for start in range(0, len(shard), ROWS):
                numbers = range(start, min(start + ROWS, len(shard)))
                for number, example in zip(numbers, shard.__getitems__(numbers)):
                    record = {name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                              for name, value in info.features.deserialize_example_np(example).items()}
                    yield _document(record, self.field, f"{path}, record {number}", info.name)

    def _builder(self):
        import tensorflow_datasets as tfds

        folder = os.path.expandvars(os.path.expanduser(self.name))
        try:
            return tfds.builder_from_directory(folder) if os.path.isdir(folder) else tfds.builder(self.name)
        except Exception as error:  # of many kinds; the first line says what is missing
            said = str(error).strip().splitlines()
            raise UserError(f"{self.name}: neither a folder with a TFDS dataset nor the name of one that is prepared "
                            f"here ({type(error).__name__}: {said[0] if said else 'no message'})") from error


def source_for(paths: str | tuple[str, ...], *, field: str | None = None) -> Source | tuple[Source, ...]:
    """The source that suits the files which `paths` name, by how the names end; where these are of several kinds, a
    source for each.

    Args:
      paths: a path or several, near or far; or folders with a TFDS dataset.
      field: where the text is, in JSON lines, Parquet and TFDS; None for "text".

    Raises:
      UserError: a path matches no file, or a kind of file that is not known, or one without fields where one is given.

    >>> try:
    ...     source_for(os.__file__)
    ... except UserError as error:
    ...     print(str(error).rpartition("; ")[2])
    those end in .warc, .warc.gz, .wet, .wet.gz, .wet.txt, .jsonl, .ndjson, .parquet, .txt, .md, .rst
    """
    given = (paths,) if isinstance(paths, str) else paths
    folders = [path for path in given if _is_dataset(path)]
    kinds: dict[type, list[str]] = {}
    for path in find_files(tuple(path for path in given if path not in folders)):
        kinds.setdefault(_kind(path), []).append(path)
    if field is not None and not folders and not {Jsonl, Parquet} & set(kinds):
        raise UserError(f"--field {field}: {next(iter(kinds.values()))[0]} has no fields; JSON lines, Parquet and TFDS "
                        "datasets do")
    fields = {"field": field or "text"}
    named = [(Tfds, path) for path in folders]
    named += [(kind, paths if len(kinds) == 1 and not folders else tuple(found)) for kind, found in kinds.items()]
    sources = tuple(kind(where, **(fields if kind in (Tfds, Jsonl, Parquet) else {})) for kind, where in named)
    return sources if len(sources) > 1 else sources[0]


def _is_dataset(path: str) -> bool:
    folder = os.path.expandvars(os.path.expanduser(path))
    return os.path.exists(os.path.join(folder, "dataset_info.json"))


# By how names end; .gz and .zst may follow those of text.
KINDS = {Warc: SUFFIXES, Jsonl: (".jsonl", ".ndjson"), Parquet: (".parquet",), TextFiles: (".txt", ".md", ".rst")}


def _kind(path: str) -> type:
    name = name_of(path).lower()
    unpacked = name.removesuffix(".gz").removesuffix(".zst")
    for kind, suffixes in KINDS.items():
        if name.endswith(suffixes) or kind in (Jsonl, TextFiles) and unpacked.endswith(suffixes):
            return kind
    known = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
    raise UserError(f"{path}: not a kind of file that is read here; those end in {known}")


def _document(record: Mapping, field: str, place: str, source: str) -> Document | Drop:
    """The document in a row of a table."""
    text = record.get(field)
    if not isinstance(text, str):
        if field in record:
            raise UserError(f"{place}: the field '{field}' is {type(text).__name__}, not text")
        raise UserError(f"{place}: no text in the field '{field}'; its fields are "
                        f"{', '.join(map(repr, record)) or 'none'}")
    if not text.strip():
        return EMPTY
    url, date = (value if isinstance(value := record.get(name), str) else "" for name in ("url", "date"))
    return document(valid_unicode(text), source, url=valid_unicode(url), date=valid_unicode(date))


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, line ends as they are."""
    number = 0
    try:
        with open_file(path) as file, _unpacked(path, file) as plain:
            for number, line in enumerate(plain, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8; "
                        "convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}, line {number + 1}: cannot be read ({error})") from error


def _unpacked(path: str, file: BinaryIO) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(file)
    if path.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


def _json(path: str, number: int, line: str):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets without end
        raise UserError(f"{path}, line {number}: not JSON that can be read here ({error})") from error
