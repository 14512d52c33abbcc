"""HTML -> text: the main content of a page by trafilatura or resiliparse, or all that a reader would see of it."""

from __future__ import annotations

import dataclasses
import logging
import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from typing import ClassVar, NamedTuple

from jaxgpt.curation.document import Document, Drop, Measure
from jaxgpt.tokenizer.bpe import valid_unicode

# What takes longer than its length lets expect. None of these is met on pages that people read.
MAX_DEPTH = 200  # of nested elements: libxml2 leaves out what is 256 deep, and extractors go down by recursion
MAX_PIECES = 4000  # elements in one paragraph: they take trafilatura a second, twice as many four
MAX_TAGS = 5  # start tags for each element that is allowed: most that are no elements are in scripts
MAX_ATTRIBUTES = 2000  # of one element: parsers compare each with all others
MAX_DATA = 100_000  # characters of JSON-LD: trafilatura's search in it can take the square of their number

_TAG = re.compile(r"""<[a-zA-Z](?:[^<>"']++|"[^"]*+"|'[^']*+')*+""")
_TAG_START = re.compile("<[a-zA-Z]")
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1f\x7f]")


@dataclasses.dataclass(frozen=True)
class Extract:
    """Turns a page into its text. What is not HTML passes as it is.

      trafilatura  the main content, as FineWeb took it
      resiliparse  the main content by simpler rules, about eight times as fast
      tags         all that a reader would see (`text_of`): for reference pages, where lists and tables are the content

    FineWeb also lets trafilatura drop what it has met three times before in the same process. Then a page's text
    depends on the pages before it, so that is off; duplicates.py drops repeated paragraphs of the whole corpus.

    FineWeb gives up on a page after one second. What that drops depends on the machine, so here the work is bounded by
    what the page is: its length, its elements, and (see above) their depth, number in a paragraph and attributes.
    Within these bounds trafilatura takes a second or two at the worst, and about 20 ms for most pages.

    Sources: Barbaresi, "Trafilatura: A Web Scraping Library and Command-Line Tool for Text Discovery and Extraction"
    (2021); Bevendorff et al., "Elastic ChatNoir: Search Engine for the ClueWeb and the Common Crawl" (2018), of
    Resiliparse's authors; Penedo et al., "The FineWeb Datasets" (2024), for the settings.

    Attributes:
      name: in reports and overrides.
      extractor: "trafilatura", "resiliparse" or "tags".
      precision: rather leave out some content than keep a menu or an advertisement; "tags" keeps both.
      max_characters: of a page. Common Crawl cut pages at 2**20 bytes when FineWeb was made.
      max_elements: of a page. "Pride and Prejudice" on a single page has 3,112.

    >>> from jaxgpt.curation.document import document
    >>> page = document("<h1>Menu</h1><p>Tea &amp; <b>cake</b></p>", "crawl", media_type="text/html")
    >>> Extract(extractor="tags")(page).text
    'Menu\\n\\nTea & cake'
    """

    name: str = "extract"
    extractor: str = "trafilatura"
    precision: bool = True
    max_characters: int = 2**20
    max_elements: int = 10_000
    expensive: ClassVar[bool] = True

    def __post_init__(self):
        if self.extractor not in EXTRACTORS:
            raise ValueError(f"extractor: must be one of {', '.join(EXTRACTORS)}, not {self.extractor!r}")
        for field in ("max_characters", "max_elements"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, not {getattr(self, field)}")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """None: this step makes the text that others measure."""
        return ()

    def __call__(self, document: Document) -> Document | Drop:
        """The document with its text, or why it has none; the value is how much is too much, or the error's name."""
        if document.media_type != "text/html":
            return document
        if len(document.text) > self.max_characters:
            return Drop("page too long", len(document.text))
        page = _repaired(document.text)
        if (tags := len(_TAG_START.findall(page))) > MAX_TAGS * self.max_elements:
            return Drop("too many elements", tags)
        if (attributes := _most_attributes(page)) > MAX_ATTRIBUTES:
            return Drop("too many attributes", attributes)
        use = EXTRACTORS[self.extractor]
        try:
            tree = use.parse(page)
            elements, deep, crowded = use.measure(tree) if tree is not None else (0, False, False)
            if elements > self.max_elements:
                return Drop("too many elements", elements)
            if deep:
                return Drop("elements nested too deep", MAX_DEPTH)
            if crowded:
                return Drop("too many elements in a paragraph", MAX_PIECES)
            text = use.extract(tree, self.precision) if elements else ""
        except (MemoryError, RecursionError):  # of this machine and moment, not of the page
            raise
        except Exception as error:  # in libraries, about what people put on the web
            return Drop("extractor failed", type(error).__name__)
        text = unicodedata.normalize("NFC", _CONTROL.sub("", valid_unicode(text))).strip("\n")
        return document.with_text(text, media_type="text/plain") if text.strip() else Drop("no text")


def _repaired(page: str) -> str:
    """The page without what parsers stop at: lone surrogates, NUL, all but "html" in its document type, and an end of
    its html element right after the beginning."""
    page = valid_unicode(page).replace("\0", "").removeprefix("\ufeff")
    if re.match(r"\s*<!doctype\b", page, re.IGNORECASE):
        page = "<!DOCTYPE html>" + page.partition(">")[2]
    return re.sub(r"(<html\b[^<>]*)/>", r"\1>", page, count=1, flags=re.IGNORECASE)


def _most_attributes(page: str) -> int:
    """About how many attributes the element with the most of them has."""
    long = [found.group() for found in _TAG.finditer(page) if found.end() - found.start() > 2 * MAX_ATTRIBUTES]
    return max((len(_QUOTED.sub(" ", tag).split()) for tag in long), default=0)


# --- extractors ------------------------------------------------------------------------------------------------------

class _Extractor(NamedTuple):
    """How a library turns a page into a tree, what there is too much of in the tree, and how the tree becomes text."""

    parse: Callable  # page -> tree, or None where there is nothing in it
    measure: Callable  # tree -> number of elements, whether some are too deep, whether too many are in a paragraph
    extract: Callable  # (tree, precision) -> text


def _trafilatura_parse(page: str):
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it warns of every page it finds nothing in
    return trafilatura.load_html(page)


def _trafilatura_extract(tree, precision: bool) -> str:
    import trafilatura

    left = MAX_DATA
    for script in tree.iterfind(".//script[@type='application/ld+json']"):
        left -= len(script.text or "")
        if left < 0:
            script.text = None
    return trafilatura.extract(tree, favor_precision=precision, include_comments=False, deduplicate=False) or ""


def _lxml_parse(page: str):
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False)
    try:
        return lxml.html.document_fromstring(page.encode(), parser=parser)
    except lxml.etree.ParserError:  # nothing but comments
        return None


def _lxml_measure(tree) -> tuple[int, bool, bool]:
    return (int(tree.xpath("count(//*)")), tree.xpath(f"boolean(//*[count(ancestor::*) >= {MAX_DEPTH}])"),
            tree.xpath(f"boolean(//p[count(*[not(self::br)]) > {MAX_PIECES}])"))


def _tags_extract(tree, precision: bool) -> str:
    import lxml.html

    return text_of(lxml.html.tostring(tree, encoding="unicode"))  # well-formed now, so that it is read in linear time


def _resiliparse_parse(page: str):
    from resiliparse.parse.html import HTMLTree

    return HTMLTree.parse(page)


def _resiliparse_measure(tree) -> tuple[int, bool, bool]:
    deep = tree.document.query_selector(" > ".join("*" * (MAX_DEPTH + 1)))
    return len(tree.document.get_elements_by_tag_name("*")), deep is not None, False


def _resiliparse_extract(tree, precision: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(tree, main_content=precision, alt_texts=False)


EXTRACTORS = {
    "trafilatura": _Extractor(_trafilatura_parse, _lxml_measure, _trafilatura_extract),
    "resiliparse": _Extractor(_resiliparse_parse, _resiliparse_measure, _resiliparse_extract),
    "tags": _Extractor(_lxml_parse, _lxml_measure, _tags_extract),
}


# --- all that a reader would see -------------------------------------------------------------------------------------

BLOCKS = frozenset("""
    address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure footer
    form h1 h2 h3 h4 h5 h6 head header hr html li main nav ol p pre section summary table tbody tfoot thead tr ul
""".split())
PARAGRAPHS = frozenset("blockquote dl h1 h2 h3 h4 h5 h6 ol p pre section table ul".split())  # a blank line around them
SILENT = frozenset("script style template noscript svg math iframe object textarea select title".split())


class _Reader(HTMLParser):
    """Collects the pieces of text and of white space that a page shows, in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.silent = 0  # how many elements we are in whose text is never shown
        self.preformatted = 0

    def handle_starttag(self, tag, attributes):
        self.silent += tag in SILENT
        self.preformatted += tag == "pre"
        self._separate(tag)

    def handle_endtag(self, tag):
        self.silent = max(0, self.silent - (tag in SILENT))
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        self._separate(tag)

    def handle_startendtag(self, tag, attributes):
        self._separate(tag)

    def _separate(self, tag):
        if tag == "br":
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append(" ")
        elif tag in PARAGRAPHS:
            self.pieces.append("\v")
        elif tag in BLOCKS:
            self.pieces.append("\f")

    def handle_data(self, data):
        if self.silent:
            return
        if self.preformatted:
            data = data.replace(" ", "\N{NO-BREAK SPACE}").replace("\t", "\N{NO-BREAK SPACE}" * 4)
            self.pieces.append(data.replace("\r\n", "\n"))
        else:
            self.pieces.append(re.sub(r"[ \t\r\n\f\v]+", " ", data))


def text_of(page: str) -> str:
    """The text of an HTML page: blocks on lines of their own, paragraphs divided by one blank line.

    Scripts and styles go, the text of links stays, entities become characters. Runs of spaces shrink to one, except
    that a no-break space stays a space (pages indent code with it) and `<pre>` stays as it is.

    >>> text_of("<h1>Tea &amp; cake</h1><p>Two   <b>cups</b>,<br>one <a href='/c'>cake</a>.<script>x()</script>")
    'Tea & cake\\n\\nTwo cups,\\none cake.'
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    text = "".join(reader.pieces)
    # \f is the edge of a block, \v that of a paragraph: a run of edges is one line end, or one blank line.
    text = re.sub(r"(?<! ) *[\f\v][ \f\v]*", lambda edges: "\n\n" if "\v" in edges.group() else "\n", text)
    return tidy(re.sub(r" {2,}|\n +", lambda run: run.group()[0], text))


def tidy(text: str) -> str:
    """Normalises white space: plain spaces, none at line ends, at most one blank line, none around the text."""
    text = text.replace("\N{NO-BREAK SPACE}", " ").replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"(?<![ \t])[ \t]+\n", "\n", text + "\n")  # one try a run: the time stays linear
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
