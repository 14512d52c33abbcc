"""The records of a WARC file, whatever has happened to it: each is told, the readable and the damaged.

    file -> gzip members -> records | damage

Headers are parsed by fastwarc. Its iterator is not used, because of what it does with damaged files: it passes a record
that was cut off for a whole one, ends at the first broken gzip member, and tells neither. Here every gzip member is
inflated by itself, and after damage reading goes on with the next member or line that begins a record.

Source: ISO 28500:2017, "WARC file format"; RFC 1952, "GZIP file format specification".
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

CHUNK = 1 << 14  # bytes of the file at a time: little is read twice where records are small
INFLATED = 1 << 17  # bytes at a time that come out of them, at most
LONGEST_HEADER = 1 << 15  # fastwarc takes no longer one

_GZIP = b"\x1f\x8b\x08"
_MAGIC = b"WARC/"
_JUNK = "not a WARC record"
_BEHIND = 8  # bytes looked at behind a block
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_RECORD = re.compile(rb"WARC/1\.[01]\r?\n[A-Za-z][A-Za-z-]*:")
_RECORD_BYTES = 128  # it matches no more than this, or a name that nobody gave a header


class Record(NamedTuple):
    """One record.

    Attributes:
      headers: of WARC; `get` takes a name in any case.
      block: what follows them; only the beginning of one that is longer than the limit.
      length: of the whole block in bytes.
    """

    headers: object
    block: bytes
    length: int


class Damage(NamedTuple):
    """One record that cannot be read, or one stretch of the file in which no record can be made out.

    Attributes:
      reason: "truncated", "bad gzip data", "bad header", "wrong length" or "not a WARC record".
      offset: in bytes from the beginning of the file: of the record, or of the gzip member that holds it.
    """

    reason: str
    offset: int


def records(file: BinaryIO, *, limit: int) -> Iterator[Record | Damage]:
    """Yields all that a WARC file holds, in order.

    A Content-Length that is too small is mended, since the next record shows where the block ends.

    Args:
      file: gzipped or not, open for reading bytes, seekable.
      limit: how many bytes of a block are kept; it bounds the memory.

    >>> whole = b"WARC/1.0\\r\\nWARC-Type: metadata\\r\\nContent-Length: 2\\r\\n\\r\\nhi\\r\\n\\r\\n"
    >>> [item[1:] for item in records(io.BytesIO(whole + whole[:-5]), limit=100)]
    [(b'hi', 2), (58,)]
    """
    beginning = file.read(16)
    if not beginning:
        return
    gzipped = not beginning.lstrip(b"\r\n").startswith(_MAGIC) and (
        _GZIP.startswith(beginning[:len(_GZIP)]) or _next_member(file, 0) is not None)
    if not gzipped:
        file.seek(0)
        yield from _split(_Plain(file), limit)
        return
    start: int | None = 0
    while start is not None:
        member = _Member(file, start)
        yield from _split(member, limit)
        start = member.end if member.error is None else _next_member(file, start + 1)


def parse_headers(head: bytes):
    """The first line and the fields of the header of a WARC record or an HTTP message, as fastwarc's HeaderMap.

    Raises:
      ValueError: it is too long.

    >>> headers = parse_headers(b"HTTP/1.1 200 OK\\nContent-Type: text/html;\\n charset=utf-8\\nnonsense")
    >>> headers.status_line, headers.get("content-type")
    ('HTTP/1.1 200 OK', 'text/html; charset=utf-8')
    """
    from fastwarc.warc import HeaderMap

    if b"\r\n" not in head:
        head = head.replace(b"\n", b"\r\n")
    headers = HeaderMap()
    try:
        headers.parse(io.BytesIO(head + b"\r\n\r\n"))
    except OSError as error:
        raise ValueError(str(error)) from error
    return headers


class _Plain:
    """An uncompressed file as a stream."""

    error = None

    def __init__(self, file: BinaryIO):
        self.read = file.read

    def offset(self, position: int) -> int:
        """Where in the file the byte at `position` of the stream is."""
        return position


class _Member:
    """One gzip member as a stream.

    Attributes:
      error: why it ends early, once it has.
      end: where the next member begins, once this one is read; None at the end of the file.
    """

    def __init__(self, file: BinaryIO, start: int):
        self.error, self.end = None, None
        self._file, self._start, self._inflate = file, start, zlib.decompressobj(31)
        file.seek(start)

    def offset(self, position: int) -> int:
        """Where in the file the member is."""
        return self._start

    def read(self, size: int) -> bytes:
        """At most `size` more bytes; none at the end."""
        while not self._inflate.eof and self.error is None:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK)
            try:
                data = self._inflate.decompress(packed, size)
            except zlib.error:
                self.error = "bad gzip data"
                break
            if data:
                return data
            if not packed:
                self.error = "truncated"
        if self.error is None and self.end is None:
            self.end = self._next()
        return b""

    def _next(self) -> int | None:
        """What lies behind the member and the zeros that some writers add."""
        rest = self._inflate.unused_data or self._file.read(CHUNK)
        while rest and not rest.strip(b"\0"):
            rest = self._file.read(CHUNK)
        return self._file.tell() - len(rest.lstrip(b"\0")) if rest else None


def _next_member(file: BinaryIO, start: int) -> int | None:
    """The offset, at `start` or behind it, of the next gzip member that begins with a WARC record."""
    file.seek(start)
    while len(window := file.read(CHUNK)) >= len(_GZIP):
        found = window.find(_GZIP)
        while found >= 0:
            if _begins_record(file, start + found):
                return start + found
            found = window.find(_GZIP, found + 1)
        start += len(window) - len(_GZIP) + 1
        file.seek(start)
    return None


def _begins_record(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    try:
        return zlib.decompressobj(31).decompress(file.read(CHUNK), len(_MAGIC)) == _MAGIC
    except zlib.error:
        return False


def _split(stream: _Plain | _Member, limit: int) -> Iterator[Record | Damage]:
    """The records of one stream. Damage that shows only at its end, such as a wrong checksum, is the last one's."""
    window, last = _Window(stream), None
    while (item := _take(window, limit)) is not None:
        if stream.error is not None and last is not None and isinstance(item, Damage) and item.reason == _JUNK:
            continue  # what a broken member ends in
        if last is not None:
            yield last
        last = item
    if stream.error is not None:
        last = Damage(stream.error, window.offset())
    if last is not None:
        yield last


class _Window:
    """The bytes of a stream that lie ahead, as many as were asked for."""

    def __init__(self, stream: _Plain | _Member):
        self.data, self._position, self._stream = bytearray(), 0, stream

    def offset(self) -> int:
        """Where in the file it begins."""
        return self._stream.offset(self._position)

    def fill(self, size: int) -> bool:
        """Reads on until `size` bytes lie ahead; whether there are so many."""
        while len(self.data) < size and (more := self._stream.read(INFLATED)):
            self.data += more
        return len(self.data) >= size

    def skip(self, size: int) -> None:
        """Leaves `size` bytes behind, read or unread."""
        while size > 0 and self.fill(1):
            step = min(size, len(self.data))
            del self.data[:step]
            self._position += step
            size -= step

    def skip_to_record(self, size: int) -> None:
        """Leaves `size` bytes behind, and more until a record seems to begin."""
        self.skip(size)
        while self.fill(1):
            more = self.fill(INFLATED)
            found = _RECORD.search(self.data)
            if found or not more:
                return self.skip(found.start() if found else len(self.data))
            self.skip(len(self.data) - _RECORD_BYTES)


def _take(window: _Window, limit: int) -> Record | Damage | None:
    """The record or the damage at the beginning of the window, which goes on to what follows; None at the end."""
    while window.fill(1) and window.data[0] in b"\r\n":
        window.skip(len(window.data) - len(window.data.lstrip(b"\r\n")))
    if not window.data:
        return None
    window.fill(len(_MAGIC))
    if not window.data.startswith(_MAGIC):
        return _damage(window, "truncated" if _MAGIC.startswith(bytes(window.data)) else _JUNK, 1)
    blank = _BLANK_LINE.search(window.data, 0, LONGEST_HEADER)
    if blank is None:
        complete = window.fill(LONGEST_HEADER)
        blank = _BLANK_LINE.search(window.data, 0, LONGEST_HEADER)
        if blank is None:
            return _damage(window, "bad header" if complete else "truncated", 1)
    try:
        headers = parse_headers(bytes(window.data[:blank.start()]))
        length = int(headers.get("Content-Length") or "")
        if length < 0:
            raise ValueError
    except ValueError:
        return _damage(window, "bad header", 1)
    return _block(window, headers, blank.end(), length, limit)


def _block(window: _Window, headers, start: int, length: int, limit: int) -> Record | Damage:
    """The record whose header ends at `start`, if its block ends where a block should."""
    end = start + length
    complete = window.fill(start + min(length, limit) + 2 * _BEHIND)
    if len(window.data) >= end:
        whole = _ends_block(bytes(window.data[end:end + _BEHIND]))
    else:
        whole = complete and _RECORD.search(window.data, start) is None  # too long to be sure of
    if whole:
        block = bytes(window.data[start:min(end, start + limit)])
        window.skip(end)
        return Record(headers, block, length)
    complete = window.fill(start + limit)
    found = _RECORD.search(window.data, start)
    if found is None and not complete and len(window.data) < end:
        return _damage(window, "truncated", len(window.data))
    if found is None and complete or found is not None and found.start() < end:
        return _damage(window, "wrong length", start)
    stop = found.start() if found else len(window.data)
    block = bytes(window.data[start:stop]).rstrip(b"\r\n")
    window.skip(stop)
    return Record(headers, block[:limit], len(block))


def _ends_block(behind: bytes) -> bool:
    """Whether what follows a block shows that it is whole: a blank line, another record, the end."""
    rest = behind.lstrip(b"\r\n")
    return behind.startswith(b"\r\n\r\n") or rest.startswith(_MAGIC) or not rest and len(behind) < _BEHIND


def _damage(window: _Window, reason: str, size: int) -> Damage:
    """The damage at the beginning of the window, which goes on to the next record behind its first `size` bytes."""
    offset = window.offset()
    window.skip_to_record(size)
    return Damage(reason, offset)
