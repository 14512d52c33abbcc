"""Web pages for benchmarks, as many as one likes: real ones, and copies of them with words changed.

Not run by itself. Every second page is from a WARC file or a book in HTML; the others are Python's enhancement
proposals and novels, set in pages with the menus, notices and footers of a web site. Copies have every fifth word of
their text replaced by another, so that no two are near-duplicates (of 5-grams they have about a fifth in common).
"""

from __future__ import annotations

import dataclasses
import gzip
import html
import pydoc_data.topics
import random
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.curation.document import Document, document
from jaxgpt.curation.warc import Warc, write_warc

PLACE = "https://example.org/"  # of pages that are on no web site
CHANGED = 0.2  # the share of words that a copy has replaced
DATE = "2024-02-20T21:10:55Z"
_PARTS = re.compile(r"(<(script|style)\b.*?</\2>|<!--.*?-->|<[^>]*>|&\w+;)|([^\W\d_]{3,})", re.DOTALL | re.IGNORECASE)


def write_pages(place: Path, count: int, files: int, data: str | None) -> list[str]:
    """Writes `count` pages to WARC files in a folder, about as many to each; returns their paths."""
    held = list(pages(count, data))
    paths = [place / f"pages-{number:03d}.warc.gz" for number in range(files)]
    for number, path in enumerate(paths):
        write_warc(path, held[count * number // files:count * (number + 1) // files])
    return list(map(str, paths))


def pages(count: int, data: str | None) -> Iterator[Document]:
    """The first `count` of an endless web.

    Args:
      data: the folder of real data; what Python's help says where None.
    """
    crawled, rendered, rng = _crawled(data), _rendered(data), random.Random(0)
    vocabulary = sorted({word for page in rendered[::3] for word in re.findall(r"\b[a-z]{3,}\b", page.text)})
    for number in range(count):  # every second page is a crawled one
        kind = crawled if number % 2 and crawled else rendered
        turn, place = divmod(number // 2, len(kind))
        page = kind[place]
        text = _varied(page.text, vocabulary, rng) if turn else page.text
        yield dataclasses.replace(page, id=f"{number:032x}", text=text, url=f"{page.url}?copy={number}")


def _varied(page: str, vocabulary: list[str], rng: random.Random) -> str:
    """The page with a fifth of its words replaced; tags, scripts and styles stay."""
    return _PARTS.sub(lambda found: found[1] or (rng.choice(vocabulary) if rng.random() < CHANGED else found[3]), page)


def _crawled(data: str | None) -> list[Document]:
    """Pages of WARC files, and books in HTML in pieces."""
    found = []
    for path in sorted(Path(data).glob("warc/*.warc*")) if data else ():
        found += [item for item in Warc(str(path)).read(str(path))
                  if isinstance(item, Document) and item.media_type == "text/html" and len(item.text) > 1000]
    for path in sorted(Path(data).glob("html/*.gz")) if data else ():
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        found += [document(f"<html><body>{text[start:start + 60_000]}</body></html>", "book", media_type="text/html",
                           url=f"{PLACE}{path.stem}/{start}") for start in range(0, len(text), 60_000)]
    return [dataclasses.replace(item, date=item.date or DATE) for item in found]


def _rendered(data: str | None) -> list[Document]:
    """Proposals and novels, or what Python's help says, set in pages."""
    if data:
        with tarfile.open(Path(data) / "text" / "peps.tar.gz") as archive:
            texts = {entry.name: archive.extractfile(entry).read().decode() for entry in archive if entry.isfile()}
        for path in Path(data).glob("text/gutenberg/*.gz"):
            texts[path.name] = gzip.decompress(path.read_bytes()).decode("utf-8", "replace").replace("\r\n", "\n")
    else:
        texts = pydoc_data.topics.topics
    found = [document(_set(f"{name} {number}", piece), "rendered", date=DATE, media_type="text/html",
                      url=f"{PLACE}documents/{name}/{number}")
             for name, text in sorted(texts.items()) for number, piece in enumerate(_pieces(text))]
    random.Random(1).shuffle(found)
    return found


def _pieces(text: str, size: int = 6000) -> Iterator[str]:
    """A long text in pieces of whole paragraphs, about as long as what pages say."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        held.append(paragraph)
        if sum(map(len, held)) > size:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def _set(title: str, text: str) -> str:
    """A text as a page of a web site: blank lines divide paragraphs, indented ones stay as they are."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith((" ", "\t")):
            blocks.append(f"<pre>{html.escape(block)}</pre>")
        elif re.search(r"\n[=\-~]{3,}\s*$", block):
            blocks.append(f"<h2>{html.escape(block.split(chr(10))[0])}</h2>")
        else:
            blocks.append(f"<p>{html.escape(block)}</p>")
    places = ("home", "about", "documents", "news", "archive", "search", "contact", "help", "sign in", "register")
    menu = "".join(f'<li class="item"><a href="/{name}.html">{name.title()}</a></li>' for name in places)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body {{ font-family: sans-serif; margin: 0 }} nav li {{ display: inline }} footer {{ color: gray }}</style>
<script>window.dataLayer = window.dataLayer || []; function track() {{ dataLayer.push(arguments); }} track("page");
</script></head><body><header><nav><ul>{menu}</ul></nav></header>
<div class="notice">We use cookies to improve this site. <a href="/privacy">Read our privacy policy</a></div>
<main><article><h1>{html.escape(title)}</h1>{"".join(blocks)}</article></main>
<aside><h3>Related</h3><ul>{menu}</ul></aside>
<footer><p>Copyright 2024. All rights reserved.</p><ul>{menu}</ul></footer></body></html>"""


def data_folder(path: str | None) -> str:
    """The absolute path of a folder of real data; ends the program with one sentence where it is not one."""
    if not path:
        raise SystemExit("no pages: give --data FOLDER, or set JAXGPT_DATA; it has warc/, html/ and text/ in it")
    if not (Path(path) / "text" / "peps.tar.gz").is_file():
        raise SystemExit(f"--data {path}: no text/peps.tar.gz in it")
    return str(Path(path).absolute())
