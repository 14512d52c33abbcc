"""What an address says of a page: lists of places and of words that a corpus can do without.

The lists are given as files and do not come with this package. FineWeb takes the adult category of UT1 Toulouse's
blocklists and three short lists of words; all of them are in datatrove's repository.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import os
import re
from collections.abc import Container, Iterable, Iterator

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, Drop, Measure

LISTS = ("domains", "urls", "words", "soft_words", "subwords")

_SCHEME = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?//")
_BETWEEN_WORDS = re.compile(r"[^a-zA-Z0-9]+")


@dataclasses.dataclass(frozen=True)
class UrlFilter:
    """Drops what comes from a listed place, or has an address of listed words.

    A list is a text file (`.gz` is unpacked) with one entry a line; lines that begin with # are comments, and `~` and
    variables such as `$JAXGPT_DATA` expand in its path. A list that is None has no entries, and what has no address
    passes. The rules, in this order:

      domains     the registered domain (example.co.uk) or the whole host (www.example.co.uk) is listed;
      urls        the whole address is listed, with or without its scheme;
      words       a listed word stands in the address, between characters that are neither letters nor digits;
      soft_words  so do at least `soft_limit` different ones of these;
      subwords    a listed word is anywhere in the letters and digits of the address, read without what is between.

    As in datatrove, entries of the three lists of words are read in lower case and without what is neither letter nor
    digit, but addresses as they are, except for subwords: `words` does not see a word in capitals. Three things
    do what the lists mean where datatrove does nothing: an entry of `urls` without a scheme, as all but one of UT1's
    are, stands for that address with any scheme; an entry of `domains` may be an IP address; a host may be in capitals.

    Source: Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024);
    the rules are datatrove's (pipeline/filters/url_filter.py).

    Attributes:
      name: in reports and overrides.
      domains, urls, words, soft_words, subwords: paths of the lists.
      soft_limit: how many soft words are too many.

    >>> from jaxgpt.curation.document import document
    >>> page = document("Tea", "crawl", url="https://example.com/tea")
    >>> UrlFilter()(page) is page
    True
    """

    name: str = "url_filter"
    domains: str | None = None
    urls: str | None = None
    words: str | None = None
    soft_words: str | None = None
    subwords: str | None = None
    soft_limit: int = 2

    def __post_init__(self):
        for field in LISTS:
            if getattr(self, field) == "":
                raise ValueError(f"{field}: must be the path of a file, or None for no list; this is an empty text")
        if self.soft_limit < 1:
            raise ValueError(f"soft_limit: must be at least 1, not {self.soft_limit}")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """None: the text is not looked at."""
        return ()

    def __call__(self, document: Document) -> Document | Drop:
        """The document, or the rule that its address breaks; the value is what was found, or how many soft words.

        Raises:
          UserError: a list is not there, or is no text in UTF-8.
        """
        if not document.url:
            return document
        return self._place(document.url) or self._words(document.url) or document

    def _place(self, url: str) -> Drop | None:
        host = host_of(url)
        for kind, place in ("domain", registered_domain(host)), ("host", host):
            if place and place in _list("domains", self.domains):
                return Drop(f"listed {kind}", place)
        addresses = _list("urls", self.urls)
        if url in addresses or _SCHEME.sub("", url, count=1) in addresses:
            return Drop("listed address", url)
        return None

    def _words(self, url: str) -> Drop | None:
        words = frozenset(_BETWEEN_WORDS.split(url))
        if found := words & _list("words", self.words):
            return Drop("listed word", min(found))
        count = len(words & _list("soft_words", self.soft_words))
        if count >= self.soft_limit:
            return Drop("listed soft words", count)
        run = _letters(url)
        if found := [word for word in _list("subwords", self.subwords) if word in run]:
            return Drop("listed part of a word", min(found))
        return None


def host_of(url: str) -> str:
    """The host of an address in lower case, without user, port and final dot; "" where there is none.

    >>> host_of("https://me@WWW.Example.co.uk.:8080/tea?milk=1"), host_of("//[::1]:80/")
    ('www.example.co.uk', '::1')
    """
    scheme = _SCHEME.match(url)
    place = re.split(r"[/?#\\]", url[scheme.end() if scheme else 0:], maxsplit=1)[0].rpartition("@")[2]
    bracket, _, _ = place.removeprefix("[").partition("]")
    return (bracket if place.startswith("[") else place.partition(":")[0]).strip().rstrip(".").lower()


@functools.lru_cache(maxsize=4096)
def registered_domain(host: str) -> str:
    """The part of a host that somebody registered, one label and a public suffix; "" where there is none.

    Public suffixes are those of Mozilla's list as it comes with the package tld, the private ones (github.io) left out:
    what tldextract does by default, without a download.

    >>> registered_domain("www.example.co.uk"), registered_domain("me.github.io"), registered_domain("10.0.0.1")
    ('example.co.uk', 'github.io', '')
    """
    from tld import get_tld

    try:
        readable = host.encode("ascii").decode("idna") if "xn--" in host else host
        found = get_tld(f"http://{readable}/", as_object=True, search_private=False, fail_silently=True)
    except ValueError:  # no host at all, such as "[x"
        return ""
    if found is None or found.domain == found.tld:
        return ""
    return ".".join(host.split(".")[-1 - found.tld.count(".") - 1:])


@functools.lru_cache(maxsize=64)
def _list(field: str, path: str | None) -> Container[str]:
    """The entries of a list, read once in a process."""
    if path is None:
        return frozenset()
    expanded = os.path.expandvars(os.path.expanduser(path))
    if not os.path.isfile(expanded):
        why = "names a variable that is not set" if "$" in expanded else "no such file"
        raise UserError(f"url filter, {field}: {expanded}: {why}; a list is a text file with one entry a line")
    if field == "domains":
        return _Hashes(line.lower() for line in _lines(expanded))
    if field == "urls":
        return _Hashes(_lines(expanded))
    return frozenset(map(_letters, _lines(expanded))) - {""}


def _lines(path: str) -> Iterator[str]:
    """The lines of a file without white space around them, blank ones and comments."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            for line in map(str.strip, file):
                if line and not line.startswith("#"):
                    yield line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a list in UTF-8 with one entry a line: {error}") from error


def _letters(text: str) -> str:
    return _BETWEEN_WORDS.sub("", text).lower()


class _Hashes:
    """A set of many texts, kept as their 64-bit hashes: the 4.6 million domains of UT1 take 37 MB instead of 600.

    A text that is not in the set passes for one that is with probability size / 2**64, for UT1's one in 4e12.
    """

    def __init__(self, texts: Iterable[str]):
        self._sorted = np.sort(np.fromiter(map(hash, texts), dtype=np.int64))

    def __contains__(self, text: str) -> bool:
        place = np.searchsorted(self._sorted, hash(text))
        return place < len(self._sorted) and self._sorted[place] == hash(text)
