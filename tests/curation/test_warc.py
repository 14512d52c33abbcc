"""WARC files: each record is told, whatever has happened to the file. Real crawls, warcio's records, damage."""

import collections
import functools
import gzip
import http.server
import io
import pickle
import re
import threading
import tracemalloc
import zlib

import brotli
import pytest
import zstandard
from fastwarc.warc import ArchiveIterator
from warcio.archiveiterator import ArchiveIterator as WarcioIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.warc import Warc, decode_text, write_warc
from jaxgpt.curation.warc_records import Damage, records

DATE = "2024-02-20T21:10:55Z"
PAGE = "<!doctype html><html><head><title>Thé</title></head><body><p>Two cups of tea, please.</p></body></html>"
TYPE = ("Content-Type", "text/html; charset=utf-8")
# What each of the files in JAXGPT_DATA/warc holds.
HELD = {
    "ccnet_sample.wet.txt": {"document": 3, "unreadable: wrong length": 1},  # lengths in characters, not bytes
    "dolma_sample-0000.warc.gz": {"document": 22, "not a page: request": 22, "not a page: warcinfo": 1,
                                  "not a page: metadata": 1, "not HTML: text/plain": 2},
    "resiliparse_warcfile.warc.gz": {"document": 16, "not a page: request": 17, "not a page: metadata": 16,
                                     "not a page: warcinfo": 1},
    "warcio_example-digest.warc": {"not a page: request": 4},
    "warcio_example-iana.org-chunked.warc": {"document": 1, "not a page: request": 1, "not a page: warcinfo": 1},
    "warcio_example-resource.warc.gz": {"document": 1, "not a page: warcinfo": 2},
    "warcio_example-space-in-target-uri.warc.gz": {"not HTML: image/png": 1, "not a page: warcinfo": 1},
    "warcio_example.warc.gz": {"document": 1, "not a page: request": 2, "not a page: warcinfo": 2,
                               "not a page: revisit": 1},
}


def response(body, *fields, **headers):
    """One record as warcio writes it, gzipped."""
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    writer.write_record(writer.create_warc_record(
        "http://a.example/tea", "response", payload=io.BytesIO(body),
        http_headers=StatusAndHeaders("200 OK", list(fields), protocol="HTTP/1.1"),
        warc_headers_dict={"WARC-Date": DATE, "WARC-Record-ID": "<urn:uuid:12345678-1234-1234-1234-123456789012>",
                           **headers}))
    return file.getvalue()


def raw(kind, media_type, block):
    """One record that warcio would not write."""
    return (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: <http://a.example/tea>\r\nWARC-Date: {DATE}\r\n"
            f"Content-Type: {media_type}\r\nContent-Length: {len(block)}\r\n\r\n").encode() + block + b"\r\n\r\n"


def read(tmp_path, data, name="crawl.warc.gz", **settings):
    (tmp_path / name).write_bytes(data)
    source = Warc(str(tmp_path / name), **settings)
    path, = source.files()
    return list(source.read(path))


def kinds(items):
    return collections.Counter("document" if isinstance(item, Document) else item.reason for item in items)


def scan(data, limit=1 << 20):
    """Damage as it is, records as what can be compared."""
    return [item if isinstance(item, Damage) else (item.headers.to_tuples(), item.block)
            for item in records(io.BytesIO(data), limit=limit)]


# --- whole files ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", HELD)
def test_real_files_add_up(data_folder, name):
    path = f"{data_folder}/warc/{name}"
    items = list(Warc(path).read(path))
    assert kinds(items) == HELD[name]
    with open(path, "rb") as file:
        data = file.read()
    plain = gzip.decompress(data) if name.endswith(".gz") else data
    assert len(items) == len(re.findall(rb"(?m)^WARC/1\.[01]\r?$", plain))
    if not name.endswith(".txt"):  # which warcio cannot read
        assert len(items) == sum(1 for _ in WarcioIterator(io.BytesIO(data)))


@pytest.mark.parametrize("name", ["dolma_sample-0000.warc.gz", "resiliparse_warcfile.warc.gz", "warcio_example.warc.gz",
                                  "warcio_example-iana.org-chunked.warc"])
def test_real_pages_are_what_warcio_reads(data_folder, name):
    path = f"{data_folder}/warc/{name}"
    ours = [item for item in Warc(path).read(path) if isinstance(item, Document)]
    theirs = []
    with open(path, "rb") as file:
        for record in WarcioIterator(file):
            if record.rec_type == "response":
                theirs.append((record.rec_headers["WARC-Target-URI"], record.rec_headers["WARC-Date"],
                               record.content_stream().read()))
    assert [(item.url, item.date) for item in ours] == [entry[:2] for entry in theirs]
    for item, (_, _, body) in zip(ours, theirs):
        assert item.media_type == "text/html" and item.source == name.removesuffix(".gz").removesuffix(".warc")
        try:
            assert item.text == body.decode("utf-8-sig")
        except UnicodeDecodeError:
            said = re.search(rb"charset=\"?([\w-]+)", body)[1].decode()
            assert body == item.text.encode({"gb2312": "gbk", "iso-8859-1": "cp1252"}.get(said, said))


def test_plain_text_of_a_wet_file(data_folder):
    path = f"{data_folder}/warc/ccnet_sample.wet.txt"
    damage, english, chinese, russian = Warc(path, source="sample").read(path)
    assert damage == Drop("unreadable: wrong length", f"{path}, byte 0")
    assert english.text.startswith("Famous Mark Twain Quotes\n") and english.text.endswith("Truth isn't.")
    assert chinese.text.endswith("真理不是。") and russian.text.endswith("Правда нет.")
    assert (russian.url, russian.date) == ("http://sample_russian.ru", "2019-03-18T00:00:02Z")
    assert {item.media_type for item in (english, chinese, russian)} == {"text/plain"}


def test_gzipped_or_not_record_by_record_or_whole():
    record = response(PAGE.encode(), TYPE)
    plain = gzip.decompress(record) * 3
    assert len(scan(plain)) == 3
    assert scan(plain) == scan(record * 3) == scan(gzip.compress(plain)) == scan(record + bytes(512) + record * 2)
    assert scan(b"") == scan(gzip.compress(b"")) == []
    unix = b"WARC/1.0\nWARC-Type: metadata\nContent-Length: 5\n\na\n\nbc\n\n"
    assert [block for _, block in scan(unix * 3)] == [b"a\n\nbc"] * 3


# --- damaged files ----------------------------------------------------------------------------------------------------

SOME = [response(PAGE.encode() * copies, TYPE) for copies in (1, 5)] + [
    gzip.compress(raw("metadata", "application/warc-fields", b"fetchTimeMs: 12\r\n"), mtime=0),
    response(b"\x89PNG" * 30, ("Content-Type", "image/png"))]


def starts(parts):
    return [sum(map(len, parts[:number])) for number in range(len(parts))]


@pytest.mark.parametrize("parts", [SOME, [gzip.decompress(part) for part in SOME]], ids=["gzip", "plain"])
def test_cut_off_anywhere(parts):
    data = b"".join(parts)
    whole = scan(data)
    assert len(whole) == 4 and not any(isinstance(item, Damage) for item in whole)
    for cut in range(len(data)):
        items, begun = scan(data[:cut]), sum(start < cut for start in starts(parts))
        assert len(items) == begun
        assert items[:-1] == whole[:max(0, begun - 1)]
        if begun and items[-1] != whole[begun - 1]:
            assert items[-1].reason == "truncated"


@pytest.mark.parametrize("parts", [SOME, [gzip.decompress(part) for part in SOME]], ids=["gzip", "plain"])
def test_one_byte_wrong_anywhere(parts):
    """It costs at most the record that it is in, and that one is still counted."""
    data = b"".join(parts)
    whole = scan(data)
    reasons = collections.Counter()
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 1 << place % 8
        items = scan(bytes(wrong))
        assert len(items) == len(whole)
        hit = sum(start <= place for start in starts(parts)) - 1
        assert [item for number, item in enumerate(items) if number != hit] == whole[:hit] + whole[hit + 1:]
        reasons.update(item.reason for item in items if isinstance(item, Damage))
    assert set(reasons) <= {"bad gzip data", "truncated", "not a WARC record", "bad header", "wrong length"}
    assert sum(reasons.values()) > 0


def test_whole_file_gzip_loses_what_follows_the_damage_and_nothing_before():
    plain = b"".join(gzip.decompress(part) for part in SOME) * 200
    data = bytearray(gzip.compress(plain))
    whole, place = scan(bytes(data)), len(data) * 3 // 4
    data[place:place + 40] = bytes(40)
    items = scan(bytes(data))
    before = len(whole) // 2
    assert before < len(items) < len(whole) and items[:before] == whole[:before]
    assert isinstance(items[-1], Damage) and items[-1].offset == 0


def test_what_is_no_record_is_one_stretch():
    junk = bytes(range(1, 256)) * 300
    assert scan(junk) == [Damage("not a WARC record", 0)]
    assert scan(SOME[0] + junk + SOME[1]) == [*scan(SOME[0]), Damage("bad gzip data", len(SOME[0])), *scan(SOME[1])]
    plain = gzip.decompress(SOME[0])
    assert scan(junk + b"\n" + plain) == [Damage("not a WARC record", 0), *scan(plain)]


def test_lengths_that_are_wrong():
    first, second = (gzip.decompress(part) for part in SOME[:2])
    length = re.search(rb"Content-Length: (\d+)", first)[1]
    for less in (b"7", b"0"):  # the next record shows where the block ends
        assert [block for _, block in scan(first.replace(length, less, 1) + second)] == [
            block for _, block in scan(first + second)]
    for more in (b"400", b"99999999999"):
        assert scan(first.replace(length, more, 1) + second)[0] == Damage("wrong length", 0)
        assert scan(first.replace(length, more, 1) + second)[1:] == scan(second)
    for none in (b"-5", b"five", b""):
        assert scan(first.replace(length, none, 1) + second) == [Damage("bad header", 0), *scan(second)]


def test_headers_without_end():
    assert scan(b"WARC/1.0\r\nX: " + b"x" * 10**6 + gzip.decompress(SOME[0])) == [
        Damage("bad header", 0), *scan(gzip.decompress(SOME[0]))]


def test_damage_is_told_with_its_place(tmp_path):
    data = SOME[0] + SOME[1][:-30] + SOME[2] + SOME[0][:-100]
    items = read(tmp_path, data)
    assert kinds(items) == {"document": 1, "unreadable: bad gzip data": 1, "not a page: metadata": 1,
                            "unreadable: truncated": 1}
    assert items[1].value == f"{tmp_path / 'crawl.warc.gz'}, byte {len(SOME[0]):,}"


def test_a_file_that_cannot_be_opened_is_counted(tmp_path):
    path = str(tmp_path / "gone.warc.gz")
    drop, = Warc(path).read(path)
    assert drop.reason == "unreadable: file" and "gone.warc.gz" in drop.value and "No such file" in drop.value


# --- bodies -----------------------------------------------------------------------------------------------------------

def deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def chunks(data, size=20, ends=b"\r\n", head=b"%x", last=b"0\r\n\r\n"):
    parts = [data[place:place + size] for place in range(0, len(data), size)]
    return b"".join(head % len(part) + b"\r\n" + part + ends for part in parts) + last


BODY = PAGE.encode()


@pytest.mark.parametrize("transfer, content, body", [
    (None, None, BODY),
    (None, "gzip", gzip.compress(BODY, mtime=0)),
    (None, "X-GZIP", gzip.compress(BODY, mtime=0)),
    (None, "deflate", zlib.compress(BODY)),
    (None, "deflate", deflate(BODY)),
    (None, "br", brotli.compress(BODY)),
    (None, "zstd", zstandard.compress(BODY)),
    (None, "identity", BODY),
    (None, "gzip, br", brotli.compress(gzip.compress(BODY, mtime=0))),
    ("chunked", None, chunks(BODY)),
    ("Chunked", None, chunks(BODY, head=b"00%X; name=value")),
    ("chunked", None, chunks(BODY, ends=b"\n")),
    ("chunked", None, chunks(BODY, last=b"")),
    ("chunked", "gzip", chunks(gzip.compress(BODY, mtime=0))),
    # the archive has undone it, and left the header
    ("chunked", "gzip", BODY), (None, "br", BODY), (None, "sdch", BODY), ("chunked", None, b"\n " + BODY),
], ids=lambda value: "body" if isinstance(value, bytes) else None)
def test_encodings_of_the_body(tmp_path, transfer, content, body):
    fields = [TYPE, *([("Transfer-Encoding", transfer)] if transfer else []),
              *([("Content-Encoding", content)] if content else [])]
    item, = read(tmp_path, response(body, *fields))
    assert item.text.strip() == PAGE


@pytest.mark.parametrize("transfer, content, body", [
    ("chunked", None, chunks(BODY).replace(b"\r\n14\r\n", b"\r\nzz\r\n", 1)),
    ("chunked", None, b"-1\r\n" + BODY),
    ("chunked", None, b"nothing of the kind"),
    (None, "gzip", b"nothing of the kind"),
    (None, "gzip", gzip.compress(BODY, mtime=0)[:-8] + bytes(8)),
    (None, "br", b"nothing of the kind"),
    (None, "zstd", zstandard.compress(BODY)[:-20]),
    (None, "sdch", b"nothing of the kind"),
], ids=lambda value: "body" if isinstance(value, bytes) else None)
def test_bodies_that_are_not_what_they_say(tmp_path, transfer, content, body):
    item, = read(tmp_path, response(body, TYPE, ("Transfer-Encoding", transfer or "identity"),
                                    ("Content-Encoding", content or "")))
    assert item.reason == "unreadable: body" and item.value


@pytest.mark.parametrize("content, body", [(None, BODY[:60]), ("gzip", gzip.compress(BODY * 9, mtime=0)[:80]),
                                           ("deflate", zlib.compress(BODY * 9)[:80])])
def test_a_body_that_ends_early_gives_what_there_is(tmp_path, content, body):
    item, = read(tmp_path, response(body, TYPE, ("Content-Encoding", content or ""), **{"WARC-Truncated": "length"}))
    assert item.text and (PAGE * 9).startswith(item.text)


def test_pages_that_are_too_large(tmp_path):
    bomb = gzip.compress(b"<p>" + b" " * 10**7)
    small, image = response(BODY, TYPE), response(BODY * 2000, ("Content-Type", "image/png"))
    items = read(tmp_path, small + response(bomb, TYPE, ("Content-Encoding", "gzip")) + response(BODY * 2000, TYPE)
                 + image + small, max_bytes=len(BODY))
    assert kinds(items) == {"document": 2, "page too large": 2, "not HTML: image/png": 1}
    assert items[1].value == len(BODY) + 1 and items[2].value > len(BODY) * 2000


def test_memory_does_not_grow_with_a_record(tmp_path):
    with gzip.open(tmp_path / "big.warc.gz", "wb", compresslevel=1) as file:
        file.write(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 30000000\r\n\r\n")
        file.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n".ljust(10**6))
        for _ in range(29):
            file.write(bytes(10**6))
        file.write(b"\r\n\r\n" + gzip.decompress(SOME[0]))
    path = str(tmp_path / "big.warc.gz")
    list(Warc(path).read(path))  # what is imported on the way
    tracemalloc.start()
    items = list(Warc(path, max_bytes=10**6).read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kinds(items) == {"page too large": 1, "document": 1} and items[0].value == 30_000_000
    assert peak < 8e6


# --- what is a page ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fields, headers, body, result", [
    ([("Content-Type", "Text/HTML;charset=utf-8")], {}, BODY, "document"),
    ([("Content-Type", "application/xhtml+xml")], {}, BODY, "document"),
    ([("Content-Type", "image/png")], {}, BODY, "not HTML: image/png"),
    ([("Content-Type", "image/png")], {"WARC-Identified-Payload-Type": "text/html"}, BODY, "document"),
    ([TYPE], {"WARC-Identified-Payload-Type": "application/pdf"}, BODY, "not HTML: application/pdf"),
    ([], {}, BODY, "document"),
    ([("Content-Type", "nonsense")], {}, b" \n<HTML lang=en>", "document"),
    ([], {}, b'<?xml version="1.0"?>\n<!DOCTYPE html>', "document"),
    ([], {}, b'<?xml version="1.0"?>\n<rss>', "not HTML: no type"),
    ([], {}, b"\x89PNG\r\n\x1a\n", "not HTML: no type"),
    ([TYPE], {}, b" \r\n", "empty page"),
    ([TYPE], {}, b"", "empty page"),
])
def test_what_is_html(tmp_path, fields, headers, body, result):
    item, = read(tmp_path, response(body, *fields, **headers))
    assert kinds([item]) == {result: 1}


def test_kinds_of_records(tmp_path):
    http = "application/http; msgtype=response"
    items = read(tmp_path, b"".join([
        raw("conversion", "text/plain", "Tee für zwei".encode()), raw("resource", "text/html", BODY),
        raw("resource", "text/plain", BODY), raw("response", "text/dns", b"192.0.2.1"),
        raw("response", http, b"not HTTP"), raw("revisit", http, b""), raw("continuation", http, b"x"),
        raw("surprise", http, b"")]), source="crawl")
    assert items[0] == document("Tee für zwei", "crawl", url="http://a.example/tea", date=DATE)
    assert items[1].media_type == "text/html"
    assert [item.reason for item in items[2:]] == [
        "not HTML: text/plain", "not HTML: text/dns", "unreadable: no HTTP header", "not a page: revisit",
        "not a page: continuation", "not a page: unknown type"]


def test_http_headers_as_servers_send_them(tmp_path):
    message = b"HTTP/1.1 404\nnot a field\nCONTENT-TYPE:text/html;\n charset=latin-1\nX: \xff\n\n" + b"\xe9" * 9
    item, = read(tmp_path, raw("response", "application/http", message))
    assert item.text == "é" * 9
    endless = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**5 + b"\r\n\r\n" + BODY
    item, = read(tmp_path, raw("response", "application/http", endless))
    assert item.reason == "unreadable: HTTP header"


@pytest.mark.parametrize("text, codec, declared", [
    ("Größe", "utf-8", "iso-8859-1"),  # what is UTF-8 is UTF-8
    ("Größe", "utf-8-sig", ""),
    ("Größe", "latin-1", "iso-8859-1"),
    ("Größe – “quoted”", "cp1252", "iso-8859-1"),
    ("Größe – “quoted”", "cp1252", "utf-8"),
    ("Größe", "utf-16", ""),
    ("Größe", "utf-16-le", "utf-16"),
    ("馬克·吐溫名言", "gb18030", "gb2312"),
    ("日本語のテキスト①", "cp932", "Shift_JIS"),
    ("日本語のテキスト", "iso-2022-jp", "iso-2022-jp"),
    ("Цитаты знаменитого Марка Твена", "koi8-r", "koi8-r"),
    ("Цитаты знаменитого Марка Твена", "cp1251", ""),
    ("Цитаты знаменитого Марка Твена", "cp1251", "no-such-charset"),
])
def test_charsets(text, codec, declared):
    page = f"<p>{text}</p>" * 20
    assert decode_text(page.encode(codec), f"text/html; charset={declared}") == page
    if codec not in ("utf-8", "utf-8-sig") and not codec.startswith("utf-16"):
        tagged = f"<html><head><meta charset='{declared}'></head>{page}"
        assert decode_text(tagged.encode(codec), "text/html") == tagged


def test_nearly_utf_8_and_no_charset_at_all():
    page = ("<p>Größe" * 50).encode()
    assert decode_text(page + b"\xff" + page) == ("<p>Größe" * 50) + "\ufffd" + ("<p>Größe" * 50)
    assert decode_text(page + "ö".encode()[:1]) == "<p>Größe" * 50  # cut within a character
    assert decode_text(bytes(range(256)) * 4) is None


def test_what_has_no_charset_is_counted(tmp_path):
    item, = read(tmp_path, response(bytes(range(256)) * 4, ("Content-Type", "text/html")))
    assert item.reason == "unreadable: characters"


# --- writing ----------------------------------------------------------------------------------------------------------

PAGES = [document(PAGE.replace("Two", word), "tea", url=f"https://tea.invalid/{word}", date=DATE,
                  media_type="text/html") for word in ("One", "Two", "Three")]


@pytest.mark.parametrize("name", ["tea.warc.gz", "tea.warc"])
def test_written_records_are_read_by_all(tmp_path, name):
    path = tmp_path / "deep" / name
    write_warc(path, PAGES)
    assert list(Warc(str(path)).read(str(path))) == PAGES
    with open(path, "rb") as file:
        theirs = [(record.rec_type, record.rec_headers["WARC-Target-URI"], record.http_headers.get_statuscode(),
                   record.content_stream().read().decode(), record.digest_checker.passed)
                  for record in WarcioIterator(file, check_digests=True)]
    assert theirs == [("response", item.url, "200", item.text, True) for item in PAGES]
    with open(path, "rb") as file:
        assert [record.reader.read().decode() for record in ArchiveIterator(file, verify_digests=True)] == [
            item.text for item in PAGES]
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_same_pages_same_bytes(tmp_path):
    for name in ("a.warc.gz", "b.warc.gz"):
        write_warc(tmp_path / name, PAGES)
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="url: a record needs one line of it, not ''"):
        write_warc(tmp_path / "a.warc", [document("x", "s", date=DATE)])
    with pytest.raises(ValueError, match="date: a record needs one line"):
        write_warc(tmp_path / "a.warc", [document("x", "s", url="http://a.example", date="1\r\nWARC-Type: request")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_warc(tmp_path / "file" / "a.warc", PAGES)


# --- near and far -----------------------------------------------------------------------------------------------------

def test_from_memory_and_from_a_server(tmp_path):
    pytest.importorskip("aiohttp", reason="http addresses need fsspec[http]")
    import fsspec
    write_warc(tmp_path / "tea.warc.gz", PAGES)
    with fsspec.open("memory://crawl/CC-MAIN-2024-10/tea.warc.gz", "wb") as file:
        file.write((tmp_path / "tea.warc.gz").read_bytes())
    source = pickle.loads(pickle.dumps(Warc("memory://crawl/*/*.warc.gz")))
    path, = source.files()
    items = list(source.read(path))
    assert [item.text for item in items] == [item.text for item in PAGES]
    assert {item.source for item in items} == {"CC-MAIN-2024-10"}
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Warc(f"http://127.0.0.1:{server.server_port}/tea.warc.gz")
        path, = source.files()
        assert list(source.read(path)) == PAGES
        with pytest.raises(UserError, match="no-tea.warc.gz: no such file"):
            Warc(f"http://127.0.0.1:{server.server_port}/no-tea.warc.gz").files()
        (tmp_path / "tea.warc.gz").unlink()
        assert kinds(source.read(path)) == {"unreadable: file": 1}
        server.shutdown()
    with pytest.raises(OSError):  # not counted, since it may pass
        list(source.read(path))


def test_settings():
    with pytest.raises(ValueError, match="paths: name at least one file"):
        Warc(())
    with pytest.raises(ValueError, match="max_bytes: must be at least 1, not 0"):
        Warc("a.warc", max_bytes=0)
