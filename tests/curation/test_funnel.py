"""The funnel: what it counts, that both pages are whole, that the picture is to scale, that no page's text leaks."""

import copy
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from jaxgpt.curation import funnel
from jaxgpt.curation.funnel_html import page, write_reports
from jaxgpt.curation.funnel_picture import LEFT, STREAM, picture

HOSTILE = '</pre><script>alert("x")</script> ``` <b> & {curly} \ud7ff'


def amount(documents, size=100):
    return {"documents": documents, "bytes": documents * size}


def step(name, taken, dropped, size=100, before=None):
    left = taken - sum(dropped.values())
    return {"step": name, "phase": "1-read", "in": amount(taken, before or size), **amount(left, size),
            "by_source": {"a": amount(left - left // 3, size), "b": amount(left // 3, size)},
            "dropped": {reason: amount(count, before or size) for reason, count in dropped.items()}}


@pytest.fixture
def corpus():
    steps = [step("read", 1000, {"not a page: request": 300, "unreadable: body": 10}, 9000, 9000),
             step("extract", 690, {"no text": 90}, 300, 9000),
             step("gopher_quality", 600, {f"reason {i}": 10 * i for i in range(1, 9)}, 300),
             step("replace_pii", 240, {}, 299, 300)]
    example = {"rank": "0", "step": "gopher_quality", "reason": "reason 8", "value": 0.123456, "id": "ab",
               "url": "http://example.com/?a=1&b=<i>", "source": "a", "text": HOSTILE + "\n" * 3 + "line\n" * 50}
    unread = {**example, "step": "read", "reason": "unreadable: body", "value": "b.warc: broken", "url": "", "text": "",
              "id": "", "source": ""}
    kept = {**example, "step": "", "reason": "kept", "value": None}
    return {"documents": "3-gopher_quality", "steps": steps, "parts": 2, "bytes": 123456, "source": {},
            "splits": {"train": {**steps[-1], "sha256": "ab" * 32},
                       "val": {**amount(0), "by_source": {}, "sha256": "cd"}},
            "settings": {"gopher_quality": {"type": "GopherQuality", "name": "gopher_quality", "min_words": 50,
                                            "max_words": None, "phrases": ["a", "b"]}},
            "examples": [example, unread, kept]}


def test_rows(corpus):
    assert funnel.rows(corpus)[1:3] == [("extract", "690", "600", "90", "13%", "180 kB"),
                                        ("gopher_quality", "600", "240", "360", "60%", "72 kB")]
    assert funnel.rows(corpus)[3] == ("replace_pii", "240", "240", "", "", "71.8 kB")
    assert funnel.reason_rows(corpus["steps"][2])[0] == ("reason 8", "80", "13%", "24 kB")
    assert funnel.source_rows(corpus) == [("a", "460", "160", "35%", "47.8 kB"), ("b", "230", "80", "35%", "23.9 kB")]
    assert funnel.settings_of(corpus, "gopher_quality") == [("min_words", "50"), ("max_words", ""), ("phrases", "a, b")]
    assert funnel.settings_of(corpus, "replace_pii") == []


def test_sentences(corpus):
    assert funnel.summary(corpus) == ("Of 690 documents in 2 files (123 kB) 240 are left (35%), 71.8 kB of text. The "
                                      "step gopher_quality drops most, 360, and most of those for “reason 8”.")
    assert funnel.unread(corpus) == ["unreadable: body: 10, such as b.warc: broken"]
    assert funnel.about_example(corpus["examples"][0]) == "http://example.com/?a=1&b=<i>, 0.1235"


def test_many_sources_share_a_row(corpus):
    for number in (0, -1):
        corpus["steps"][number]["by_source"] = {f"s{i:02d}": amount(50 - i) for i in range(40)}
    rows = funnel.source_rows(corpus)
    assert len(rows) == 31 and rows[-1][0] == "10 others" and rows[-1][1] == str(sum(50 - i for i in range(30, 40)))


def test_the_terminal(corpus):
    lines = funnel.text_table(corpus).splitlines()
    assert lines[0].split() == ["Step", "In", "Kept", "Dropped", "Share", "Text", "kept"]
    assert lines[1] == "read            1,000   690      310    31%    6.21 MB" and len(lines) == 5


class Tags(HTMLParser):
    """The tags that are open, checked to close in order."""

    VOID = {"meta", "link", "path", "rect", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_fetches_nothing(corpus):
    html = page(corpus, "a <corpus>")
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and {"svg", "table", "details", "figure"} <= tags.seen and "script" not in tags.seen
    text = " ".join(tags.text)
    for said in ("a <corpus>", "reason 8", "reason 1", "http://example.com/?a=1&b=<i>", 'alert("x")', "min_words",
                 "b.warc: broken", "What is left"):
        assert said in text
    assert not re.search(r'(src|href)="(?!http://www.w3.org)', html)
    assert html.count("line") < 60  # examples are cut


def test_the_markdown_says_the_same(corpus):
    text = funnel.markdown(corpus, "a <corpus>")
    assert text.startswith("# a \\<corpus>\n") and "| gopher\\_quality | 600 | 240 | 360 | 60% | 72 kB |" in text
    assert "````text\n" + HOSTILE in text  # a fence that the text cannot end
    assert "gopher_quality █" in text


def test_the_picture_is_to_scale(corpus):
    tree = ElementTree.fromstring(picture(corpus))
    rects = [(float(found.get("x")), float(found.get("width"))) for found in tree.iter() if found.tag.endswith("rect")]
    stream = [width for x, width in rects if x == LEFT]
    assert stream == pytest.approx([STREAM, STREAM * 600 / 690, STREAM * 240 / 690, STREAM * 240 / 690], abs=0.1)
    words = [found.text for found in tree.iter() if found.tag.endswith("text")]
    assert "3 other reasons" in words and "reason 8" in words and "reason 1" not in words
    paths = [found.get("d") for found in tree.iter() if found.tag.endswith("path")]
    turns = [path for path in paths if " a9,9 " in path]
    thick = [float(re.search(r" v([\d.]+) ", path)[1]) for path in turns]
    assert thick == pytest.approx([max(1.5, STREAM * count / 690) for count in (90, 80, 70, 60, 50, 40, 60)], abs=0.1)


def test_a_corpus_of_one_step_without_drops(corpus, tmp_path):
    small = copy.deepcopy(corpus)
    small["steps"], small["examples"], small["splits"] = [step("read", 3, {})], [], {}
    assert funnel.summary(small).startswith("Of 3 documents in 2 files")
    ElementTree.fromstring(picture(small))
    write_reports(small, tmp_path, title="small")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html"}
