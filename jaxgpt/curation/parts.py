"""Parts: what a corpus is made of. One input file is one part, and keeps its name from the first phase to the last."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import sha256
from jaxgpt.curation import store

MARKS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "checksum", "mtime", "LastModified")  # of remote files


@dataclasses.dataclass(frozen=True)
class Part:
    """An input file.

    Attributes:
      name: of the files that come of it: the start of its own name, and of its hash.
      path: where it is read.
      bytes: its size; 0 where the place does not say.
      identity: the SHA-256 of a file of this machine; what a remote place says of its version otherwise.
      source: the number of the source that reads it.
    """

    name: str
    path: str
    bytes: int
    identity: str
    source: int = 0


def find_parts(paths: Sequence[str], cache: str) -> list[Part]:
    """The parts of a corpus, in the order of the paths.

    Names follow from what a file is called and what it holds, not from its folder: a corpus may move. A file that
    was hashed before and has the same size and time of change is not hashed again.

    Args:
      paths: local, or addresses that fsspec knows.
      cache: a JSON file, where hashes are kept.

    Raises:
      UserError: there are none, or one is missing.
    """
    if not paths:
        raise UserError("there are no files to read")
    before = _remembered(cache)
    known, found, taken = {}, [], set()
    for path in map(os.fspath, paths):
        size, identity = _local(path, before, known) if store.is_local(path) else _remote(path)
        name = stem = f"{_stem(path)}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        copies = 1
        while name in taken:
            copies += 1
            name = f"{stem}-{copies}"
        taken.add(name)
        found.append(Part(name, path, size, identity))
    if known != before:
        store.write_json(cache, known)
    return found


def _remembered(cache: str) -> dict:
    with contextlib.suppress(UserError):
        held = store.read_json(cache) if store.exists(cache) else {}
        return held if isinstance(held, dict) else {}
    return {}  # damaged: the files are hashed again


def _stem(path: str) -> str:
    """The start of a file's name, of characters that every file system takes.

    >>> _stem("s3://crawl/CC-MAIN-2024-00000.warc.gz")
    'CC-MAIN-2024-00000'
    """
    name = os.path.basename(path.rstrip("/")).split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80] or "part"


def _local(path: str, before: dict, known: dict) -> tuple[int, str]:
    try:
        found = os.stat(path)
        full = os.path.abspath(path)
        seen = [found.st_size, found.st_mtime_ns]
        digest = before[full][2] if before.get(full, [])[:2] == seen else sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    known[full] = [*seen, digest]
    return found.st_size, digest


def _remote(path: str) -> tuple[int, str]:
    system, inner = store.filesystem(path)
    try:
        info = system.info(inner)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error or type(error).__name__})") from error
    size = info.get("size") or 0
    marks = [f"{mark} {info[mark]}" for mark in MARKS if info.get(mark) is not None]
    return size, ", ".join([path, f"{size} bytes", *marks])
