"""Where documents lie: Parquet files with JSON beside them, near or far, each whole or not there.

A path is one of this machine or one that fsspec knows, such as gs://bucket/folder. A file is written under another name
and renamed when it is whole, so no reader meets half of one; its hash is taken on the way. Rows are written and read a
row group at a time, so memory does not grow with the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, whole_file
from jaxgpt.curation.document import Document

GROUP_ROWS, GROUP_BYTES = 10_000, 4 * 2**20  # a row group ends at the first of the two

DOCUMENTS = {"id": "string", "text": "string", "url": "string", "date": "string", "source": "string",
             "media_type": "string", "split": "string", "cluster": "string", "cluster_size": "int32"}
DROPPED = {"id": "string", "text": "string", "url": "string", "date": "string", "source": "string",
           "media_type": "string", "step": "string", "reason": "string", "value": "float64", "detail": "string"}
FINGERPRINTS = {"id": "string", "values": "list<binary>", "places": "list<int32>"}
REPETITIVE = ("source", "media_type", "date", "split", "step", "reason")  # columns that a dictionary makes small


class Row(NamedTuple):
    """A document that is kept, and what is known of it beside its text.

    Attributes:
      split: "train", "val", or "" before the corpus is divided.
      cluster: the id of the document that stands for all its duplicates, "" where none were found.
      cluster_size: how many documents it stands for.
    """

    document: Document
    split: str = ""
    cluster: str = ""
    cluster_size: int = 1


class Written(NamedTuple):
    """What a file holds."""

    rows: int
    bytes: int
    sha256: str


# --- files near and far ----------------------------------------------------------------------------------------------

def join(folder: str | os.PathLike, *names: str) -> str:
    """The path of what lies in a folder.

    >>> join("gs://bucket/corpus", "1-extract", "a.parquet")
    'gs://bucket/corpus/1-extract/a.parquet'
    """
    return posixpath.join(os.fspath(folder), *names)


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is of this machine.

    >>> is_local("runs/curate"), is_local("s3://bucket/curate")
    (True, False)
    """
    return "://" not in os.fspath(path)


def filesystem(path: str | os.PathLike):
    """(fsspec's file system, the path within it).

    Raises:
      UserError: there is no such kind of address, or its package is not installed.
    """
    import fsspec
    try:
        return fsspec.core.url_to_fs(os.fspath(path))
    except (ValueError, ImportError) as error:
        raise UserError(f"{path}: {error}") from error


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(path):
        return os.path.exists(path)
    system, inner = filesystem(path)
    return system.exists(inner)


def remove(path: str) -> None:
    """Removes a file, or a folder with all that is in it; nothing happens where there is none."""
    system, inner = filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        system.rm(inner, recursive=system.isdir(inner))


def names(folder: str) -> list[str]:
    """The names of what lies in a folder, sorted; none where there is no folder."""
    if is_local(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    system, inner = filesystem(folder)
    found = system.ls(inner, detail=False) if system.isdir(inner) else []
    return sorted(posixpath.basename(name.rstrip("/")) for name in found)


def size(path: str) -> int:
    """Bytes of a file, -1 where there is none."""
    try:
        if is_local(path):
            return os.path.getsize(path)
        system, inner = filesystem(path)
        return system.size(inner)
    except FileNotFoundError:
        return -1


@contextlib.contextmanager
def reading(path: str) -> Iterator:
    """A file's bytes, near or far."""
    if is_local(path):
        with open(path, "rb") as file:
            yield file
    else:
        system, inner = filesystem(path)
        with system.open(inner, "rb") as file:
            yield file


@contextlib.contextmanager
def writing(path: str) -> Iterator[Hashed]:
    """A new file that is there once the block ends well, and not before.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    if is_local(path):
        with whole_file(path) as file:
            yield Hashed(file)
        return
    folder, name = posixpath.split(path)
    partial = join(folder, f".{name}.{os.getpid()}.partial")
    system, inner = filesystem(partial)
    try:
        system.makedirs(posixpath.dirname(inner), exist_ok=True)
        with system.open(inner, "wb") as file:
            yield Hashed(file)
        system.mv(inner, filesystem(path)[1])
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(partial)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


class Hashed:
    """A binary file that is only written, hashed and counted on the way."""

    def __init__(self, file):
        self._file, self._sha, self.bytes, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data) -> int:
        """Appends bytes; once closed, it swallows them."""
        if self.closed:
            return len(data)
        self._file.write(data)
        self._sha.update(data)
        self.bytes += len(data)
        return len(data)

    def sha256(self) -> str:
        """Of all that was written so far."""
        return self._sha.hexdigest()

    def tell(self) -> int:
        """Where the next byte goes."""
        return self.bytes

    def flush(self) -> None:
        """For those who ask; `writing` flushes at the end."""

    def close(self) -> None:
        """For those who ask; `writing` closes at the end."""


def write_json(path: str, value) -> None:
    """Writes a JSON value, indented, keys in the order given."""
    with writing(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: str):
    """Reads a JSON file.

    Raises:
      UserError: it is missing or not JSON.
    """
    try:
        with reading(path) as file:
            return json.loads(file.read())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


# --- tables ----------------------------------------------------------------------------------------------------------

class Table:
    """Rows on their way into a Parquet file; see `writing_table`."""

    def __init__(self, file: Hashed, columns: Mapping[str, str]):
        import pyarrow
        import pyarrow.parquet
        self._schema = pyarrow.schema([(name, _type(kind)) for name, kind in columns.items()])
        self._writer = pyarrow.parquet.ParquetWriter(
            pyarrow.PythonFile(file, mode="w"), self._schema, compression="zstd", write_statistics=False,
            use_dictionary=[name for name in REPETITIVE if name in columns])
        self._file, self._rows, self._size, self.rows = file, [], 0, 0

    def add(self, row: Sequence, size: int = 0) -> None:
        """Appends a row, its values in the order of the columns; `size` is about its bytes."""
        self._rows.append(row)
        self.rows += 1
        self._size += size
        if len(self._rows) >= GROUP_ROWS or self._size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        if self._rows:
            columns = [pyarrow.array(list(values), field.type) for values, field in zip(zip(*self._rows), self._schema)]
            self._writer.write_table(pyarrow.table(columns, schema=self._schema), row_group_size=len(self._rows))
        self._rows, self._size = [], 0

    def close(self) -> Written:
        """What the file now holds."""
        self._flush()
        self._writer.close()
        self._writer = None
        return Written(self.rows, self._file.bytes, self._file.sha256())

    def abandon(self) -> None:
        """Lets go of a file that will not be whole, without a word."""
        self._file.closed = True
        with contextlib.suppress(Exception):
            self._writer.close()


@contextlib.contextmanager
def writing_table(path: str, columns: Mapping[str, str], files: dict[str, dict]) -> Iterator[Table]:
    """A Parquet file (zstd) that is there once the block ends well.

    Args:
      path: of the file.
      columns: {name: type}.
      files: gets {path: what it holds} at the end.
    """
    with writing(path) as file:
        table = Table(file, columns)
        try:
            yield table
            files[path] = table.close()._asdict()
        except BaseException:
            table.abandon()
            raise


AGAIN = "remove the folder of the whole corpus (in an experiment, of the stage) and run the same command again"


def read_table(path: str, columns: Sequence[str] | None = None) -> Iterator[tuple]:
    """Yields rows, their values in the order of the columns asked for, or of all.

    Raises:
      UserError: the file is missing or damaged.
    """
    import pyarrow
    import pyarrow.parquet
    try:
        with reading(path) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                group = parquet.read_row_group(number, columns=columns)
                order = columns or group.column_names
                yield from zip(*(group.column(name).to_pylist() for name in order))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it is named by a manifest, so something removed it: {AGAIN}") from error
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path}: not the Parquet file that was written there ({error}): {AGAIN}") from error


def column_names(path: str) -> list[str]:
    """The columns of a Parquet file."""
    return _footer(path).schema.to_arrow_schema().names


def row_count(path: str) -> int:
    """The rows of a Parquet file."""
    return _footer(path).num_rows


def _footer(path: str):
    import pyarrow
    import pyarrow.parquet
    try:
        with reading(path) as file:
            return pyarrow.parquet.ParquetFile(file).metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not the Parquet file that was written there ({error}): {AGAIN}") from error


def read_rows(path: str) -> Iterator[Row]:
    """Yields the documents of a file with what is known beside their text."""
    for key, text, url, date, source, media_type, *rest in read_table(path, list(DOCUMENTS)):
        yield Row(Document(key, text, source, url, date, media_type), *rest)


def document_row(row: Row) -> tuple:
    """A kept document as a row of DOCUMENTS."""
    item = row.document
    return (item.id, item.text, item.url, item.date, item.source, item.media_type, *row[1:])


def _type(kind: str):
    import pyarrow
    return {"string": pyarrow.string(), "int32": pyarrow.int32(), "int64": pyarrow.int64(),
            "float64": pyarrow.float64(), "list<binary>": pyarrow.list_(pyarrow.binary()),
            "list<int32>": pyarrow.list_(pyarrow.int32())}[kind]
