"""HTML -> text: what a reader would see of a page, block by block."""

from __future__ import annotations

import re
from html.parser import HTMLParser

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
    text = re.sub(r" *[\f\v][ \f\v]*", lambda edges: "\n\n" if "\v" in edges.group() else "\n", text)
    return tidy(re.sub(r" {2,}|\n +", lambda run: run.group()[0], text))


def tidy(text: str) -> str:
    """Normalises white space: plain spaces, none at line ends, at most one blank line, none around the text."""
    text = text.replace("\N{NO-BREAK SPACE}", " ").replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[ \t]+\n", "\n", text + "\n")
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
