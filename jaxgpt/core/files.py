"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxgpt.core.errors import UserError

_FREE_SOME = ("free some space or choose another folder, then run the same command again (what was complete is "
              "intact)")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Gives a file to write into that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            partial.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Writes `data` to `path` so that a reader sees either all of it or what was there before; see `whole_file`."""
    with whole_file(path) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """`write_bytes` for UTF-8 text."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value) -> Path:
    """`write_text` for a JSON value, indented, keys in the order given."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike) -> str:
    """Reads a text.

    Raises:
      UserError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: str | os.PathLike):
    """Reads a JSON file.

    Raises:
      UserError: the file is missing, or not JSON (names the line).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", "?")
        raise UserError(f"{path}, line {line}: not valid JSON ({getattr(error, 'msg', error)})") from error


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a folder to write into that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
      UserError: `path` is there already and not an empty folder, or cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: is there already; choose another folder, or remove it first")
    partial = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_space(path: str | os.PathLike, size: int) -> None:
    """Refuses to begin what the disk has no room for.

    Args:
      path: what is to be written; its folder exists.
      size: bytes.

    Raises:
      UserError: with both numbers.
    """
    free = shutil.disk_usage(Path(path).parent).free
    if free < size:
        raise UserError(f"{path}: the disk is full: {free / 1e6:,.1f} MB are free and {size / 1e6:,.1f} MB are needed; "
                        + _FREE_SOME)


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; libraries that write by themselves tell it in words only."""
    words = ("No space left", "requested and")  # tensorstore and array_record; NumPy: "64 requested and 0 written"
    return (getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            or any(word in str(error) for word in words))


def cannot_write(path: str | os.PathLike, error: BaseException) -> UserError:
    """Turns a failed write into the sentence a person needs: which path, and what is wrong with the disk."""
    if disk_is_full(error):
        return UserError(f"{path}: the disk is full; {_FREE_SOME}")
    return UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})")
