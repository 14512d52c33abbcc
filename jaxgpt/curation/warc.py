"""Web pages from WARC files, as crawls such as Common Crawl publish them, and WARC files from pages.

    records (warc_records.py) -> HTTP body -> decoded -> text -> Document | Drop

What counts as a page follows FineWeb's reader: responses, and the plain text of WET files; HTML by the payload type
that the crawler identified; whatever the HTTP status, since crawls keep failed fetches in files of their own.

Source: Penedo et al., "The FineWeb Datasets" (2024), section 3; datatrove, `WarcReader`.
"""

from __future__ import annotations

import base64
import codecs
import dataclasses
import gzip
import hashlib
import io
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator

from jaxgpt.core.files import whole_file
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.files import find_files, is_remote, name_of, open_file
from jaxgpt.curation.warc_records import Damage, Record, parse_headers, records

HTML = ("text/html", "application/xhtml+xml")
KINDS = ("warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion", "continuation")
SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz", ".wet.txt")

_CRAWL = re.compile(r"CC-MAIN-\d{4}-\d{2}(?!\d)")
_MIME = re.compile(r"\s*([\w.+-]+/[\w.+-]+)")
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_HTTP = re.compile(rb"(?:HTTP|ICY)\b[^\n]*")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")
# How a page begins, by the tags that browsers go by. Source: WHATWG, "MIME Sniffing", 7.1.
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!--|(?:!doctype\s+html|html|head|title|meta|link|"
                   rb"script|style|body|table|div|h1|p|a|b|br|font|iframe)[\s>/])", re.IGNORECASE)
_BYTE_ORDER = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030"}  # what pages that name these are written in


@dataclasses.dataclass(frozen=True)
class Warc:
    """The pages of WARC and WET files, gzipped or not.

    Every record yields one thing: a page its document, anything else a `Drop` that says what it was. So does every
    stretch that is damaged, and what follows it is read.

    Attributes:
      paths: a path or several, near or far (`files.find_files`).
      source: what the documents are counted under; None for the name of the crawl where the path has one, such as
        CC-MAIN-2024-10, or else of the file.
      max_bytes: a page whose body is longer, once it is decoded, is dropped.
    """

    paths: str | tuple[str, ...]
    source: str | None = None
    max_bytes: int = 10_000_000

    def __post_init__(self):
        if not self.paths:
            raise ValueError("paths: name at least one file")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes: must be at least 1, not {self.max_bytes}")

    def files(self, cache_dir: str | os.PathLike | None = None) -> list[str]:
        """The files, sorted.

        Raises:
          UserError: a path matches no file.
        """
        return find_files(self.paths)

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields what each record of one file is, in order. A file that cannot be read is one `Drop`.

        Raises:
          OSError: a file far away cannot be read now.
        """
        source = self.source or crawl_of(path)
        try:
            with open_file(path) as file:
                for item in records(file, limit=self.max_bytes + (1 << 16)):
                    if isinstance(item, Damage):
                        yield Drop(f"unreadable: {item.reason}", f"{path}, byte {item.offset:,}")
                    else:
                        yield page(item, source, max_bytes=self.max_bytes)
        except OSError as error:
            if is_remote(path) and not isinstance(error, FileNotFoundError):
                raise  # it may pass: whoever runs this tries again
            yield Drop("unreadable: file", f"{path}: {error}")


def crawl_of(path: str) -> str:
    """The name of the crawl in a path of Common Crawl's, or else of the file without its suffixes.

    >>> crawl_of("s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segments/1/warc/CC-MAIN-20240220211055-00000.warc.gz")
    'CC-MAIN-2024-10'
    >>> crawl_of("pages/python.warc.gz")
    'python'
    """
    found = _CRAWL.findall(path)
    return found[-1] if found else re.sub(r"(\.(warc|wet|txt|gz))+$", "", name_of(path))


def page(record: Record, source: str, *, max_bytes: int) -> Document | Drop:
    """The document that a record is, or why it is none."""
    kind = (record.headers.get("WARC-Type") or "").strip().lower()
    if kind not in ("response", "resource", "conversion"):
        return Drop(f"not a page: {kind if kind in KINDS else 'unknown type'}")
    fields, body = record.headers, record.block
    if kind == "response" and "application/http" in (record.headers.get("Content-Type") or "application/http"):
        if not _HTTP.match(body):
            return Drop("unreadable: no HTTP header")
        head, body = _halves(body)
        try:
            fields = parse_headers(head)
        except ValueError as error:
            return Drop("unreadable: HTTP header", str(error))
    media_type = _media_type(record.headers.get("WARC-Identified-Payload-Type"), fields.get("Content-Type"))
    if media_type and media_type not in (*HTML, *(("text/plain",) if kind == "conversion" else ())):
        return Drop(f"not HTML: {media_type}")
    if record.length > len(record.block):
        return Drop("page too large", record.length)
    try:
        body = decode_body(body, fields.get("Transfer-Encoding"), fields.get("Content-Encoding"), limit=max_bytes + 1)
    except (OSError, ValueError, zlib.error) as error:
        return Drop("unreadable: body", str(error))
    if len(body) > max_bytes:
        return Drop("page too large", len(body))
    if not media_type and kind != "conversion" and not _PAGE.match(body):
        return Drop("not HTML: no type")
    text = decode_text(body, fields.get("Content-Type") or "")
    if text is None:
        return Drop("unreadable: characters")
    if not text.strip():
        return Drop("empty page")
    plain = kind == "conversion" and media_type not in HTML
    return document(text, source, url=(record.headers.get("WARC-Target-URI") or "").strip("<> "),
                    date=(record.headers.get("WARC-Date") or "").strip(),
                    media_type="text/plain" if plain else "text/html")


def _halves(message: bytes) -> tuple[bytes, bytes]:
    """An HTTP message's header and body."""
    blank = _BLANK_LINE.search(message)
    return (message[:blank.start()], message[blank.end():]) if blank else (message, b"")


def _media_type(*fields: str | None) -> str:
    """What the first field that names a type names, without its parameters; "" where none does."""
    found = next(filter(None, (_MIME.match(field or "") for field in fields)), None)
    return found[1].lower() if found else ""


def decode_body(body: bytes, transfer: str | None, content: str | None, *, limit: int) -> bytes:
    """Undoes the transfer and content encodings of an HTTP body, as far as `limit` bytes.

    Many archives undo them and leave the header as it was: what already looks like a page stays as it is. A body that
    ends early gives what there is.

    Raises:
      OSError, ValueError, zlib.error: it is not what its header says, or is encoded in a way that is not known.

    >>> decode_body(b"4\\r\\n<p>t\\r\\n2\\r\\nea\\r\\n0\\r\\n", "chunked", None, limit=100)
    b'<p>tea'
    """
    if transfer and "chunked" in transfer.lower() and not _PAGE.match(body):
        body = _join_chunks(body)
    for name in reversed((content or "").lower().split(",")):
        if not _PAGE.match(body):
            body = _decompress(body, name.strip(), limit)
    return body[:limit]


def _join_chunks(body: bytes) -> bytes:
    chunks, place = [], 0
    while place < len(body):
        head = _CHUNK.match(body, place)
        if head is None:
            raise ValueError(f"byte {place:,} is not the head of a chunk")
        size = int(head[1], 16)
        if size == 0:
            break
        chunks.append(body[head.end():head.end() + size])
        place = head.end() + size
        place += body.startswith(b"\r\n", place) and 2 or body.startswith(b"\n", place)
    return b"".join(chunks)


def _decompress(body: bytes, name: str, limit: int) -> bytes:
    from fastwarc import stream_io

    if name in ("", "identity", "none") or not body:
        return body
    if name == "deflate" and body[0] & 15 != 8:  # without the header of zlib, as some servers have it
        return zlib.decompressobj(-15).decompress(body, limit)
    if name in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(47).decompress(body, limit)
    readers = {"br": stream_io.BrotliReader, "zstd": stream_io.ZstdReader}
    if name not in readers:
        raise ValueError(f"content encoding {name[:20]!r} is not known")
    reader, data = readers[name](io.BytesIO(body)), b""
    while len(data) < limit and (more := reader.read(limit - len(data))):
        data += more
    return data


def decode_text(body: bytes, content_type: str = "") -> str | None:
    """The characters of a page, or None where they cannot be told.

    In this order: as a byte order mark says; in UTF-8, which few other bytes happen to be, when there are twenty good
    characters beyond ASCII for a broken one; as the HTTP header says; as the page says; as it seems.

    >>> decode_text("cr\u00e8me".encode("latin-1"), "text/html; charset=ISO-8859-1"), decode_text("cr\u00e8me".encode())
    ('cr\u00e8me', 'cr\u00e8me')
    """
    for mark, codec in _BYTE_ORDER:
        if body.startswith(mark):
            return body[len(mark):].decode(codec, "replace")
    if b"\0" not in body and b"\x1b" not in body:  # UTF-16 and ISO 2022 happen to be
        text = _utf8(body)
        if text is not None:
            return text
    for codec in _codecs(body, content_type):
        try:
            return body.decode(_WIDER.get(codec, codec))
        except (UnicodeError, LookupError):
            continue
    return None


def _codecs(body: bytes, content_type: str) -> Iterator[str]:
    """Python's names of what the page may be written in, the likeliest first."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for found in (_CHARSET.search(content_type.encode()), _CHARSET.search(body, 0, 2048)):
        codec = found and (map_encoding_to_html5(found[1].decode(), False) or found[1].decode())
        if codec and not (codec.startswith("utf-16") and b"\0" not in body):  # a tag that can be read denies itself
            yield codec
    yield detect_encoding(body) or ""


def _utf8(body: bytes) -> str | None:
    """UTF-8, whose last character may be cut off and which may be broken in few places."""
    try:
        return codecs.utf_8_decode(body, "strict", False)[0]
    except UnicodeDecodeError:
        text = body.decode("utf-8", "replace")
        broken = text.count("\ufffd")
        beyond = len(text) - len(text.encode("ascii", "ignore"))
        return text if beyond - broken >= 20 * broken else None


def write_warc(path: str | os.PathLike, pages: Iterable[Document]) -> None:
    """Writes documents as `response` records, gzipped each by itself where `path` ends in `.gz`, whole or not at all.

    The same documents give the same bytes: the dates are theirs, the ids of the records are made from theirs.

    Raises:
      UserError: the disk is full or the folder cannot be written.
      ValueError: a document has no address or no date, or one of more than one line.

    >>> import tempfile
    >>> tea = document("<p>tea", "menu", url="http://a.example/", date="2024-02-20T21:10:55Z", media_type="text/html")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_warc(f"{folder}/menu.warc.gz", [tea])
    ...     list(Warc(f"{folder}/*.gz").read(f"{folder}/menu.warc.gz")) == [tea]
    True
    """
    gzipped = os.fspath(path).endswith(".gz")
    with whole_file(path) as file:
        for item in pages:
            record = _response(item)
            file.write(gzip.compress(record, 6, mtime=0) if gzipped else record)


def _response(item: Document) -> bytes:
    for name in ("url", "date"):
        if not getattr(item, name) or len(getattr(item, name).splitlines()) != 1:
            raise ValueError(f"{name}: a record needs one line of it, not {getattr(item, name)!r}")
    body = item.text.encode("utf-8")
    message = (f"HTTP/1.1 200 OK\r\nContent-Type: {item.media_type}; charset=utf-8\r\n"
               f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    fields = {
        "WARC-Type": "response",
        "WARC-Record-ID": f"<urn:uuid:{uuid.UUID(item.id)}>",
        "WARC-Date": item.date,
        "WARC-Target-URI": item.url,
        "WARC-Block-Digest": _digest(message),
        "WARC-Payload-Digest": _digest(body),
        "WARC-Identified-Payload-Type": item.media_type,
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(message)),
    }
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    return head.encode() + message + b"\r\n\r\n"


def _digest(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()
