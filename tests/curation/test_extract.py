"""HTML -> text: pages written by hand, pydoc's, a book, a crawl's, and pages that nobody should have written."""

import functools
import gzip
import os
import pathlib
import pickle
import pydoc
import subprocess
import sys
import textwrap
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.curation import extract
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.extract import EXTRACTORS, Extract, text_of, tidy

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


# --- the step --------------------------------------------------------------------------------------------------------

SENTENCE = "A sentence of some words that is long enough to be taken for a part of the text. "
ARTICLE = f"""<!DOCTYPE html><html><head><title>Tea</title></head><body><nav><ul><li><a href="/">Home</a></li>
<li><a href="/b">About us</a></li></ul></nav><article><h1>On tea</h1>
{"".join(f"<p>{i}. {SENTENCE * 3}</p>" for i in range(6))}</article>
<footer><p>Copyright by nobody at all</p></footer></body></html>"""


def html(text):
    return document(text, "crawl", media_type="text/html")


@functools.cache
def crawled(folder):
    """The pages of the crawls at hand and the books."""
    warc = pytest.importorskip("fastwarc.warc")
    pages = []
    for path in sorted((pathlib.Path(folder) / "warc").glob("*.warc*")):
        with open(path, "rb") as file:
            for record in warc.ArchiveIterator(file, record_types=warc.WarcRecordType.response):
                if "html" in (record.http_content_type or ""):
                    pages.append(html(record.reader.read().decode("utf-8", "replace")))
    return pages + [html(gzip.decompress(path.read_bytes()).decode("utf-8"))
                    for path in sorted((pathlib.Path(folder) / "html").glob("*.gz"))]


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_an_article(extractor):
    found = Extract(extractor=extractor)(html(ARTICLE))
    assert found.media_type == "text/plain" and found.id == html(ARTICLE).id
    assert "On tea\n" in found.text and all(f"{i}. {SENTENCE * 3}".strip() in found.text for i in range(6))
    assert ("About us" in found.text) == ("Copyright" in found.text) == (extractor == "tags")


def test_tags_are_those_of_text_of():
    page = pydoc.HTMLDoc().docmodule(textwrap)
    assert Extract(extractor="tags")(html(page)).text == text_of(page)
    assert Extract(extractor="tags")(html(PAGE)).text == TEXT


def test_without_precision_more_stays():
    assert "Copyright" in Extract(extractor="resiliparse", precision=False)(html(ARTICLE)).text
    list_page = ARTICLE.replace("<article>", "<div>").replace("</article>", "</div>")
    wide, narrow = (Extract(precision=precision)(html(list_page)).text for precision in (False, True))
    assert len(wide) >= len(narrow) and set(narrow.split()) <= set(wide.split())


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_what_is_no_html_passes(extractor):
    plain = document("<p>not a page</p>", "notes")
    assert Extract(extractor=extractor)(plain) is plain


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("page", [
    "", " \n", "\0", "<!-- only a comment -->", "<!DOCTYPE html>", "<!doctype", "<html></html>",
    "<?xml version='1.0'?>", "<html><body><script>x()</script></body></html>"])
def test_no_text(extractor, page):
    assert Extract(extractor=extractor)(html(page)) == Drop("no text")


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_what_is_odd_in_a_page_does_not_stop_it(extractor):
    step = Extract(extractor=extractor)
    plain = step(html(ARTICLE)).text
    for odd in (ARTICLE.replace("<!DOCTYPE html>", "<?xml version='1.0' encoding='iso-8859-1'?>\n<!DOCTYPE html>"),
                ARTICLE.replace("<!DOCTYPE html>", "<!doctype html PUBLIC '-//W3C//DTD XHTML 1.0/EN' 'w3.org/'>"),
                ARTICLE.replace("<html>", "<html xmlns='http://www.w3.org/1999/xhtml' lang='en'/>"),
                ARTICLE.replace("sentence", "sen\0tence"), ARTICLE.replace("\n", "\r\n"), "\ufeff" + ARTICLE,
                ARTICLE.replace("</body></html>", ""), ARTICLE.replace("</p>", "")):
        assert step(html(odd)).text.split() == plain.split()
    assert step(html(ARTICLE.replace("sentence", "caf\ud800e\u0301"))).text.split() == (
        plain.replace("sentence", "caf\ufffd\u00e9").split())


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_same_text_whatever_came_before(extractor):
    step = pickle.loads(pickle.dumps(Extract(extractor=extractor)))
    found = [step(html(ARTICLE)).text]
    for other in (PAGE, ARTICLE + ARTICLE, ARTICLE.replace("tea", "milk")):
        step(html(other))
        found.append(step(html(ARTICLE)).text)
    assert len(set(found)) == 1


def test_the_trap_is_there():
    """trafilatura can leave out what it has met before, as it did for FineWeb."""
    import trafilatura
    page = ARTICLE.replace("words", "traps")
    found = [trafilatura.extract(page, favor_precision=True, deduplicate=True) for _ in range(4)]
    assert len(set(found)) > 1


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_same_text_however_deep_in_a_program(extractor):
    page = html("<html><body>" + f"<div><p>{SENTENCE}</p>" * 190 + "</body></html>")

    def call(depth):
        return call(depth - 1) if depth else Extract(extractor=extractor)(page)

    assert call(500).text == call(0).text != ""


BOUNDED = {  # {what: (a page of n of these, how many are too many, the reason)}
    "characters": (lambda n: "<p>" + "word " * 40 * n, 6000, "page too long"),
    "elements": (lambda n: "<html>" + "<p>x</p>" * n, 10_000, "too many elements"),
    "mended": (lambda n: "<html>" + "<a><div>" * n, 26_000, "too many elements"),
    "divs": (lambda n: "<html>" + "<div>" * n + "x", 200, "elements nested too deep"),
    "tables": (lambda n: "<html>" + "<table><tr><td>" * n + "x", 200, "elements nested too deep"),
    "lists": (lambda n: "<html>" + "<ul><li>x" * n, 200, "elements nested too deep"),
    "attributes": (lambda n: "<html><p " + "".join(f"a{i} " for i in range(n)) + ">x", 2001, "too many attributes"),
    "quoted": (lambda n: "<html><p " + "".join(f"a{i}='>'" for i in range(n)) + ">x", 2001, "too many attributes"),
}
SLOW_ELSEWHERE = {  # what takes the square of n, or for ever, in one of the libraries
    "bold": lambda n: "<html><p>" + "<b>bold</b> text " * (n // 4),
    "types": lambda n: "<!doctype html" + " /" * 10 * n,
    "comments": lambda n: "<p>x</p>" + "<!--" * n, "sections": lambda n: "<p>x</p>" + "<![CDATA[" * n,
    "instructions": lambda n: "<p>x</p>" + "<?" * n, "unclosed": lambda n: "<p>x</p>" + "<" * 10 * n,
    "ends": lambda n: "<p>x</p>" + "</" * n, "quotes": lambda n: "<p>x</p>" + "<a b='" * n,
    "spaces": lambda n: "<p>x" + "&nbsp;" * 4 * n,
    "entities": lambda n: "<p>" + "&amp" * n, "html": lambda n: "<html" + " " * 10 * n + "x/>\n<p>x",
    "json": lambda n: "<html><p>x<script type='application/ld+json'>" + '"@type":[' * 4 * n + "</script>",
}


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("what", BOUNDED)
def test_too_much(extractor, what):
    make, limit, reason = BOUNDED[what]
    few, many = (Extract(extractor=extractor)(html(make(n))) for n in (40, limit))
    assert few == Drop("no text") or isinstance(few, Document)
    assert many.reason == reason and many.value >= 200


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("what", SLOW_ELSEWHERE)
def test_no_page_takes_long(extractor, what):
    start = time.process_time()
    found = Extract(extractor=extractor)(html(SLOW_ELSEWHERE[what](20_000)))
    assert isinstance(found, Document) or found.reason == "no text" or found.reason.startswith("too many")
    assert time.process_time() - start < 10  # about one second; without a bound minutes


@pytest.mark.parametrize("text", ["x" + "\N{NO-BREAK SPACE}" * 200_000 + "y", " \t" * 100_000, "<p>" + " \f" * 100_000])
def test_white_space_takes_linear_time(text):
    start = time.process_time()
    assert len(tidy(text_of(text))) <= len(text)
    assert time.process_time() - start < 5


def test_limits_are_settings():
    assert Extract(max_characters=99)(html(ARTICLE)) == Drop("page too long", len(ARTICLE))
    assert Extract(max_elements=9)(html(ARTICLE)).reason == "too many elements"
    assert Extract(max_elements=30)(html(ARTICLE)) == Extract()(html(ARTICLE))


def test_a_failing_library_is_told(monkeypatch):
    def fail(tree, precision):
        raise LookupError("no such thing")
    monkeypatch.setitem(extract.EXTRACTORS, "tags", EXTRACTORS["tags"]._replace(extract=fail))
    assert Extract(extractor="tags")(html(ARTICLE)) == Drop("extractor failed", "LookupError")


@pytest.mark.parametrize("settings, message", [
    (dict(extractor="bs4"), "extractor: must be one of trafilatura, resiliparse, tags, not 'bs4'"),
    (dict(max_characters=0), "max_characters: must be at least 1"), (dict(max_elements=-1), "max_elements: must be"),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Extract(**settings)


MARKUP = st.lists(st.one_of(
    st.text(max_size=8),
    st.sampled_from([SENTENCE, "<", ">", "</", "&", "&#0;", "&#xD800;", "&#1;", "\0", "\ud800", "\r", "e\u0301", "=",
                     "'", '"', "<!--", "-->", "<!DOCTYPE", "<![CDATA[", "]]>", "<?xml encoding='utf-16'?>", "<html/>"]),
    st.builds("<{}{}{}>".format, st.sampled_from(["", "/"]), st.sampled_from(
        "html head body p div table tr td ul li pre a b br script style title svg math template textarea select "
        "frameset article dl dt noscript plaintext h1 img".split()), st.sampled_from(["", " class=x", " id='x", "/"])),
), max_size=40).map("".join)


@pytest.mark.parametrize("extractor", EXTRACTORS)
@settings(max_examples=100, deadline=None)
@given(page=MARKUP)
def test_any_page_has_a_fate(extractor, page):
    found = Extract(extractor=extractor)(html(page))
    assert found == Extract(extractor=extractor)(html(page))
    if isinstance(found, Drop):
        assert found == Drop("no text")
    else:
        assert found.text.strip() and found.text == unicodedata.normalize("NFC", found.text)
        assert not set(found.text.encode()) & {*range(9), 0x0e, 0x1f}  # and it can be written


@pytest.mark.slow
def test_crawled_pages_are_as_trafilatura_leaves_them(data_folder):
    import trafilatura
    pages = crawled(data_folder)
    found = [Extract()(page) for page in pages]
    theirs = [trafilatura.extract(page.text, favor_precision=True, include_comments=False) for page in pages]
    assert [getattr(item, "text", None) for item in found] == [text or None for text in theirs]
    assert len(pages) > 40 and sum(isinstance(item, Document) for item in found) >= 40


@pytest.mark.parametrize("extractor", ["resiliparse", "tags"])
def test_crawled_pages(extractor, data_folder):
    found = [Extract(extractor=extractor)(page) for page in crawled(data_folder)[:-3]]
    assert sum(isinstance(item, Document) for item in found) >= 39
    assert {item.reason for item in found if isinstance(item, Drop)} <= {"no text"}


@pytest.mark.slow
def test_the_same_text_in_another_process(data_folder):
    """Sets of texts are walked in another order there."""
    code = textwrap.dedent(f"""
        import hashlib, sys
        sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
        from test_extract import EXTRACTORS, Extract, crawled
        for name in EXTRACTORS:
            texts = [str(Extract(extractor=name)(page)) for page in crawled({data_folder!r})[:-3]]
            print(name, len(texts), hashlib.sha256("".join(texts).encode()).hexdigest())
    """)
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")]
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 3
