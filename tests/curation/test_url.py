"""The URL filter, rule by rule, and beside datatrove's on its own lists."""

import gzip
import pickle
import string
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Drop, document
from jaxgpt.curation.url import UrlFilter, host_of, registered_domain

LISTS = {
    "domains": "# a comment\nexample.co.uk\nmirror.example.org\n\n 10.0.0.1 \nBig.example.net\n",
    "urls": "example.com/page?x=1\nhttps://example.com/only-this-scheme\n",
    "words": "Bad-Word\nworse\n***\n",
    "soft_words": "soft\nmild\nfaint\n",
    "subwords": "two words\nsubtle\n",
}


@pytest.fixture
def lists(tmp_path):
    """The filter with the lists above."""
    paths = {}
    for name, text in LISTS.items():
        paths[name] = str(tmp_path / f"{name}.txt")
        Path(paths[name]).write_text(text)
    return UrlFilter(**paths)


def page(url):
    return document("text", "crawl", url=url)


@pytest.mark.parametrize("url, reason, value", [
    ("http://example.co.uk/", "listed domain", "example.co.uk"),
    ("http://deep.www.EXAMPLE.co.uk:8080/tea", "listed domain", "example.co.uk"),
    ("http://mirror.example.org/", "listed host", "mirror.example.org"),
    ("http://BIG.example.net", "listed host", "big.example.net"),
    ("http://10.0.0.1/x", "listed host", "10.0.0.1"),
    ("http://example.com/page?x=1", "listed address", "http://example.com/page?x=1"),
    ("https://example.com/page?x=1", "listed address", "https://example.com/page?x=1"),
    ("https://example.com/only-this-scheme", "listed address", "https://example.com/only-this-scheme"),
    ("http://a.com/badword/", "listed word", "badword"),
    ("http://worse.com/badword", "listed word", "badword"),
    ("http://a.com/soft+mild", "listed soft words", 2),
    ("http://soft.com/mild/faint/soft", "listed soft words", 3),
    ("http://a.com/untwo.WORDsome", "listed part of a word", "twowords"),
    ("http://a.com/?q=SUB.tle+two-words", "listed part of a word", "subtle"),
])
def test_what_is_dropped(lists, url, reason, value):
    assert lists(page(url)) == Drop(reason, value)


@pytest.mark.parametrize("url", [
    "", "http://example.com/", "http://example.org/", "http://other.mirror.example.org/", "http://notexample.co.uk/",
    "http://example.com/page?x=2", "http://example.com/only-this-scheme", "http://a.com/bad-word",
    "http://a.com/BADWORD", "http://a.com/badwords", "http://a.com/soft", "http://a.com/soft/soft",
    "http://a.com/Soft/mild", "http://co.uk/", "not an address", "http://[::1", "//", "http://", "http:///path",
    "http://a.com/\ud800\0é",
])
def test_what_passes(lists, url):
    kept = page(url)
    assert lists(kept) is kept


def test_without_lists_all_pass():
    kept = page("http://badword.example.co.uk/")
    assert UrlFilter()(kept) is kept


def test_soft_limit(lists):
    one = UrlFilter(soft_words=lists.soft_words, soft_limit=1)
    assert one(page("http://a.com/soft")) == Drop("listed soft words", 1)


def test_lists_by_variable_and_packed(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "words.gz", "wt") as file:
        file.write("Tea\n")
    monkeypatch.setenv("URL_LISTS", str(tmp_path))
    step = UrlFilter(words="$URL_LISTS/words.gz")
    assert step(page("http://a.com/tea")) == Drop("listed word", "tea")
    again = pickle.loads(pickle.dumps(step))
    assert again == step and again(page("http://a.com/tea")) == Drop("listed word", "tea")


@pytest.mark.parametrize("url, host", [
    ("http://user:word@a.example.com:80/x", "a.example.com"), ("a.example.com/x", "a.example.com"),
    ("//A.com?x", "a.com"),
    ("http://a.com#b@c.com", "a.com"), ("http://a.com\\@b.com/", "a.com"), ("ftp://a.com.", "a.com"), ("", ""),
    ("https://[2001:DB8::1]:443/", "2001:db8::1"), ("http://[::1", "::1"), ("http://münchen.de/", "münchen.de"),
])
def test_host_of(url, host):
    assert host_of(url) == host


@pytest.mark.parametrize("host, domain", [
    ("a.b.example.com", "example.com"), ("example.com", "example.com"), ("com", ""), ("", ""), ("localhost", ""),
    ("www.parliament.co.uk", "parliament.co.uk"), ("co.uk", ""), ("city.kawasaki.jp", "city.kawasaki.jp"),
    ("a.b.kawasaki.jp", "a.b.kawasaki.jp"), ("me.github.io", "github.io"), ("10.0.0.1", ""), ("[x", ""), ("a..b", ""),
    ("www.xn--85x722f.xn--55qx5d.cn", "xn--85x722f.xn--55qx5d.cn"), ("www.食狮.公司.cn", "食狮.公司.cn"),
])
def test_registered_domain(host, domain):
    assert registered_domain(host) == domain


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://a.com/"]))
def test_any_address_has_a_fate(text, start):
    assert host_of(start + text) == host_of(start + text).lower()
    registered_domain(host_of(start + text))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(string.ascii_lowercase + ".", min_size=1, max_size=12), max_size=30), st.text(max_size=9))
def test_a_list_has_its_lines_and_no_others(tmp_path_factory, entries, other):
    path = tmp_path_factory.mktemp("list") / "domains.txt"
    path.write_text("\n".join(entries))
    step = UrlFilter(domains=str(path))
    hosts = {host_of(f"http://{entry}/") for entry in entries} & set(entries) - {""}
    assert all(isinstance(step(page(f"http://{host}/")), Drop) for host in hosts)
    if other and not {host_of(other), registered_domain(host_of(other))} & set(entries):
        assert step(page(other)).url == other


@pytest.mark.parametrize("settings, message", [
    (dict(domains=""), "domains: must be the path of a file, or None"),
    (dict(soft_limit=0), "soft_limit: must be at least 1"),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        UrlFilter(**settings)


def test_lists_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "text.gz").write_bytes(b"not packed")
    for path, message in [(tmp_path / "none.txt", "words: .*none.txt: no such file"), (tmp_path, "no such file"),
                          ("$NO_SUCH_VARIABLE/x", "names a variable that is not set"),
                          (tmp_path / "latin1.txt", "latin1.txt: not a list in UTF-8"),
                          (tmp_path / "text.gz", "text.gz: not a")]:
        with pytest.raises(UserError, match=message):
            UrlFilter(words=str(path))(page("http://a.com/"))


def test_beside_datatrove(data_folder, tmp_path):
    """The same drops for the same rules: addresses made of its words, in most of the ways that words stand in one."""
    pytest.importorskip("tldextract", reason="datatrove's filter needs it")
    pytest.importorskip("ahocorasick", reason="datatrove's filter needs it")
    pytest.importorskip("datatrove")
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.filters import URLFilter
    from tldextract import TLDExtract
    folder, domains = Path(data_folder) / "urlfilter", ["example.co.uk", "bad.example.com", "github.io"]
    paths = {name: str(folder / f"datatrove_{file}.txt") for name, file in
             [("words", "banned_words"), ("soft_words", "soft_banned_words"), ("subwords", "banned_subwords")]}
    lines = {name: Path(path).read_text().splitlines(keepends=True) for name, path in paths.items()}
    theirs = URLFilter(extra_domains=domains, banned_words=lines["words"], soft_banned_words=lines["soft_words"],
                       banned_subwords=lines["subwords"], use_integrated_lists=False)
    theirs.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
    (tmp_path / "domains.txt").write_text("\n".join(domains))
    ours, reasons = UrlFilter(domains=str(tmp_path / "domains.txt"), **paths), {
        "domain": "listed domain", "subdomain": "listed host", "hard_blacklisted": "listed word",
        "soft_blacklisted": "listed soft words", "blacklisted_subword": "listed part of a word", None: None}
    entries = sorted({line.strip() for name in lines for line in lines[name]})
    patterns = ("http://{0}.com/", "https://www.example.com/a/{0}-b/{1}.html", "http://x.org/{0}{1}",
                "http://x.org/?q={0}+{1}", "http://{1}-{0}.co.uk/A", "http://x.org/{0}_{1}", "http://X.org/{0}%20",
                "http://x.org/scun{0}orpe")
    urls = [pattern.format(a, b) for a, b in zip(entries[::2], entries[7::2] + entries[:7]) for pattern in patterns]
    urls += [url.upper() for url in urls[::3]]
    urls += [f"http://{place}{domain}:80/" for domain in domains for place in ("", "www.", "a.b.")]
    found = {reason: 0 for reason in reasons}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for url in urls:
            verdict = theirs.filter(Theirs(text="", id="", metadata={"url": url}))
            expected = None if verdict is True else verdict[1]
            assert getattr(ours(page(url)), "reason", None) == reasons[expected], url
            found[expected] += 1
    assert min(found[reason] for reason in ("hard_blacklisted", "soft_blacklisted", "blacklisted_subword", None)) > 50
    assert found["domain"] == 6 and found["subdomain"] == 1
