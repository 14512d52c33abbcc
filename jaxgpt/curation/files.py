"""Files near and far: a path on this machine, or an address such as `gs://bucket/name` that fsspec can open."""

from __future__ import annotations

import glob
import os
import tempfile
from typing import BinaryIO

from jaxgpt.core.errors import UserError


def find_files(paths: str | tuple[str, ...]) -> list[str]:
    """The files that paths and patterns name, sorted, each once.

    `~` and variables such as `$JAXGPT_DATA` expand; so do `*`, `?`, `[...]` and `**`, but not in http addresses.

    Raises:
      UserError: one of them matches nothing, or needs an environment variable or a package that is not there.

    >>> [name_of(path) for path in find_files((os.__file__, os.path.dirname(os.__file__) + "/o[rs].py"))]
    ['os.py']
    """
    found = set()
    for pattern in (paths,) if isinstance(paths, str) else paths:
        if os.path.isfile(pattern):  # whatever characters its name has
            found.add(pattern)
            continue
        expanded = os.path.expandvars(os.path.expanduser(pattern))
        if not expanded.strip():
            raise UserError(f"{pattern!r}: names no file")
        if "$" in expanded:
            raise UserError(f"{pattern}: names an environment variable that is not set")
        if is_remote(expanded):
            matches = _find_remote(expanded)
        else:
            matches = [path for path in glob.glob(expanded, recursive=True) if os.path.isfile(path)]
        if not matches and os.path.isdir(expanded):
            raise UserError(f"{pattern}: a folder; name the files in it, such as "
                            f"'{os.path.join(pattern, '*.warc.gz')}'")
        if not matches:
            shown = pattern if pattern == expanded else f"{pattern} ({expanded})"
            where = "" if is_remote(expanded) else f" (looked from {os.getcwd()})"
            raise UserError(f"{shown}: no such file{where}")
        found.update(matches)
    once = {path if is_remote(path) else os.path.realpath(path): path for path in sorted(found, reverse=True)}
    for path in once.values():
        if path.encode("utf-8", "replace").decode() != path:
            raise UserError(f"{path!r}: its name is not text in UTF-8; rename it")
    return sorted(once.values())


def open_file(path: str) -> BinaryIO:
    """Opens a file for reading bytes; it can seek. What lies on a web server is first copied to a temporary file.

    Raises:
      OSError: it cannot be opened.
      UserError: its kind of address needs a package that is not there.

    >>> with open_file(os.__file__) as file:
    ...     file.read(3)
    b'r""'
    """
    if not is_remote(path):
        return open(path, "rb")
    if not path.startswith("http"):
        return _file_system(path).open(path, "rb")
    copy = tempfile.TemporaryFile()
    _file_system(path).get_file(path, copy)
    copy.seek(0)
    return copy


def is_remote(path: str) -> bool:
    """Whether a path is an address.

    >>> is_remote("gs://bucket/name"), is_remote("folder/name")
    (True, False)
    """
    return "://" in path


def name_of(path: str) -> str:
    """The last part of a path, without the folders.

    >>> name_of("gs://bucket/folder/page.html")
    'page.html'
    """
    return path.rstrip("/").rpartition("/")[2] if is_remote(path) else os.path.basename(path)


def _find_remote(pattern: str) -> list[str]:
    files = _file_system(pattern)
    try:
        if pattern.startswith("http"):
            return [pattern] if files.isfile(pattern) else []
        found = files.glob(pattern, detail=True).values()  # a plain path gives itself
        return [files.unstrip_protocol(item["name"]) for item in found if item["type"] == "file"]
    except Exception as error:  # every file system has its own: no key, no network, no such bucket
        raise UserError(f"{pattern}: cannot be listed ({type(error).__name__}: {error})") from error


def _file_system(path: str):
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: this kind of address cannot be opened here ({error})") from error
