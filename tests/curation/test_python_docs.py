"""The embedded corpus: a small web of real WARC files, the same every time, and nothing of this machine in it."""

import collections
import os
import re
import sys
from pydoc_data.topics import topics

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.curation import _render
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.python_docs import FORBIDDEN, MODULES, PythonDocs, thin

SMALL = PythonDocs(modules=("textwrap", "difflib", "no.such.module"), packages=("tiktoken", "not_installed"))
FOLDERS = {sys.base_prefix, sys.prefix, os.getcwd()} - {"/", "/usr", "/usr/local"}
MACHINE = re.compile(r"\bat 0x[0-9a-fA-F]{6,}|" + "|".join(map(re.escape, FOLDERS)))


def read(source, folder):
    return [item for path in source.files(folder) for item in source.read(path)]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.warc.gz")}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    return folder, read(SMALL, folder)


def test_three_kinds_of_pages(small):
    folder, pages = small
    assert set(map(type, pages)) == {Document}
    assert {item.source for item in pages} == {"python/pydoc", "python/topics", "tiktoken/docstrings"}
    assert {item.media_type for item in pages} == {"text/html"}
    addresses = {item.url for item in pages}
    assert len(addresses) == len(pages) > 80
    assert {"https://python.invalid/pydoc/textwrap.html", "https://python.invalid/topics/for.html",
            "https://tiktoken.invalid/docstrings/tiktoken.core.html"} < addresses
    assert 4 <= len(content(folder)) <= 8


def test_what_cannot_be_read_is_reported(small):
    folder, _ = small
    skipped = read_json(folder / "skipped.json")
    assert set(skipped) == {"no.such.module", "not_installed"}
    assert "ModuleNotFoundError" in skipped["no.such.module"]


def test_same_bytes_under_another_hash_seed(small, tmp_path, monkeypatch):
    folder, pages = small
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "python-9.warc.gz").write_text("of an earlier version")
    assert read(SMALL, tmp_path) == pages
    assert content(tmp_path) == content(folder)


def test_nothing_of_this_machine(small):
    folder, pages = small
    for item in pages:
        assert not MACHINE.search(item.text)
    assert "IS_CHARACTER_JUNK" in "".join(item.text for item in pages)  # a default whose repr has an address


def lost(text, extracted):
    """The part of a text's words, by length, that is not among those extracted; lines under headings aside."""
    text = re.sub(r"(?m)^([*=~-])\1+$", "", text)
    wanted = collections.Counter(text.split())
    missing = wanted - collections.Counter(extracted.split())
    return sum(len(word) * count for word, count in missing.items()) / sum(map(len, text.split()))


def resiliparse(page):
    from resiliparse.extract.html2text import extract_plain_text
    return extract_plain_text(page, main_content=True)


def trafilatura(page):
    import trafilatura
    return trafilatura.extract(page, favor_precision=True, include_comments=False)


@pytest.mark.parametrize("extract", [resiliparse, trafilatura])
def test_extraction_keeps_the_text(small, extract):
    _, pages = small
    extracted = {item.url: extract(item.text) for item in pages if "/topics/" in item.url or "/textwrap" in item.url}
    for name in list(topics)[::5]:
        assert lost(topics[name], extracted[f"https://python.invalid/topics/{name}.html"]) < 0.02
    text = extracted["https://python.invalid/topics/for.html"]
    assert "\n   for i in range(10):\n       print(i)\n" in text  # code stays as it is laid out
    assert 'The "for" statement is used to iterate over the elements of a sequence (such as a string, tuple or ' in text
    import textwrap
    text = extracted["https://python.invalid/pydoc/textwrap.html"]
    for part in (textwrap.dedent, textwrap.TextWrapper, textwrap.TextWrapper.wrap):
        assert lost(part.__doc__, text) < 0.02
    assert "TextWrapper(width=70, initial_indent='', subsequent_indent=''" in text


def test_docstrings_stand_under_their_signatures(small):
    _, pages = small
    page, = [item.text for item in pages if item.url.endswith("/tiktoken.core.html")]
    assert "<h2>Encoding.encode(self, text, *, allowed_special, disallowed_special)</h2>\n<p>Encodes a string" in page
    assert re.search(r"\nEncoding\.encode\(self, text, \*, allowed_special, disallowed_special\)\n+Encodes a string",
                     resiliparse(page))


def test_blocks_of_a_docstring():
    text = """One &lt;two&gt;
three.

Examples
--------
&gt;&gt;&gt; 1 + 1
2

  indented

- a list
Name   Meaning

After."""
    assert _render.blocks(text) == """<p>One &lt;two&gt;
three.</p>
<h3>Examples</h3>
<pre>&gt;&gt;&gt; 1 + 1
2

  indented

- a list
Name   Meaning</pre>
<p>After.</p>"""
    assert _render.blocks("") == _render.blocks("\n \n") == ""


def test_thinning_is_even_and_stable():
    documents = [document(f"<p>{i:04}</p>" * 25, "s") for i in range(100)]
    kept = thin(documents, 5_000)
    assert len(kept) == 50 and kept == [item for item in documents if item in kept]
    assert set(thin(documents, 2_500)) < set(kept)
    assert 10 < sum(documents.index(item) < 50 for item in kept) < 40


def test_thinned_corpus(small, tmp_path):
    pages = read(PythonDocs(modules=(), packages=(), max_megabytes=0.1), tmp_path)
    assert set(pages) < set(small[1])
    assert 0.07e6 < sum(len(re.sub("<[^<>]*>", "", item.text).encode()) for item in pages) <= 0.1e6


def test_list_of_modules():
    assert len(set(MODULES)) == len(MODULES) > 200
    assert not [name for name in MODULES if name.split(".")[0] in FORBIDDEN]
    with pytest.raises(ValueError, match="modules: importing 'turtle' has side effects"):
        PythonDocs(modules=("turtle",))
    with pytest.raises(ValueError, match="max_megabytes"):
        PythonDocs(max_megabytes=0)


def test_pages_are_made_on_this_machine():
    with pytest.raises(UserError, match="memory://docs must be a folder of it"):
        PythonDocs().files("memory://docs")


@pytest.mark.slow
def test_whole_corpus(tmp_path, monkeypatch):
    first = read(PythonDocs(), tmp_path / "a")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert read(PythonDocs(), tmp_path / "b") == first
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sum(len(item.text.encode()) for item in first) > 5e6
    assert not [item.url for item in first if item.source == "python/pydoc" and MACHINE.search(item.text)]
    assert not [item.url for item in first if isinstance(Extract(extractor="resiliparse")(item), Drop)]
    sizes = [len(data) for data in content(tmp_path / "a").values()]
    assert len(sizes) == 8 and max(sizes) < 3 * min(sizes)  # so that workers share the work
