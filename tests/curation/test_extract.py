"""HTML -> text, on a page written by hand, on pydoc's, and on a book."""

import gzip
import pathlib
import pydoc
import textwrap

import pytest

from jaxgpt.curation.extract import text_of

PAGE = """<!DOCTYPE html><html><head><title>not shown</title><style>p { color: red }</style></head>
<body><script>var x = "<p>no</p>";</script>
<h1>Tea &amp;   cake</h1>
<p>A cup,<br>a <a href="/plate">plate</a> &mdash; and
a spoon&#33;</p><ul><li>milk</li><li><b>sug</b>ar</li></ul>
<table><tr><th>what</th><th>price</th></tr><tr><td>tea</td><td>2&nbsp;&euro;</td></tr></table>
<pre>if hungry:
    eat()   # twice
</pre><div>end<div>really</div></div></body></html>"""

TEXT = """Tea & cake

A cup,
a plate — and a spoon!

milk
sugar

what price
tea 2 €

if hungry:
    eat()   # twice

end
really"""


def test_page_written_by_hand():
    assert text_of(PAGE) == TEXT


def test_pydoc_page_keeps_indentation_and_order():
    text = text_of(pydoc.HTMLDoc().docmodule(textwrap))
    assert "dedent(text)\nRemove any common leading whitespace from every line in `text`." in text
    assert "  tabsize (default: 8)\n    Expand tabs in input text" in text  # &nbsp; is how pydoc indents
    assert not any(mark in text for mark in ("<span", "</", "&nbsp;", "\N{NO-BREAK SPACE}", "\n\n\n", " \n"))


@pytest.mark.parametrize("page, text", [
    ("", ""), ("plain", "plain"), ("a<br/>b", "a\nb"), ("<p>a<p>b", "a\n\nb"), ("a &lt;b&gt; c", "a <b> c"),
    ("<div><div>a</div></div>\n<div>b</div>", "a\nb"), ("<script>x", ""), ("</p></script>a", "a"),
    ("x <b> y </b> z", "x y z"), ("<p>unclosed <b>tag", "unclosed tag"), ("a<!-- no -->b", "ab"),
])
def test_small_pages(page, text):
    assert text_of(page) == text


def test_a_book(data_folder):
    path = pathlib.Path(data_folder) / "html" / "gutenberg_55-h.htm.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    text = text_of(gzip.decompress(path.read_bytes()).decode("utf-8"))
    assert "in the midst of the great Kansas prairies, with Uncle Henry, who was a" in " ".join(text.split())
    assert 190_000 < len(text) < 260_000
    assert not any(mark in text for mark in ("<p", "</", "&nbsp;", "{margin", "\n\n\n"))
