"""The text of a completion as its tokens come: whole characters only, and nothing that may yet be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


def first_stop(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """Where a text ends, and by which stop string: the one that is whole first, in whatever pieces the text comes.

    >>> first_stop("bab", ["bab", "a"]), first_stop("bab", ["ab", "bab"]), first_stop("bab", ["c"])
    ((1, 'a'), (0, 'bab'), None)
    """
    found = [(at + len(string), at, string) for string in stop if (at := text.find(string)) >= 0]
    return min(found)[1:] if found else None


def begun(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of a text may yet become a stop string.

    >>> begun("a bE", ["END"]), begun("a b", ["END"])
    (1, 0)
    """
    return max((size for string in stop for size in range(1, len(string)) if text.endswith(string[:size])), default=0)


class TextProgress:
    """Bytes in, text out, up to the first stop string.

    >>> text = TextProgress(("STOP",))
    >>> [text.feed(piece) for piece in (b"caf\\xc3", b"\\xa9 S", b"T", b"ART STOP it")], text.stopped_by
    (['caf', 'é ', '', 'START '], 'STOP')
    """

    def __init__(self, stop: tuple[str, ...] = ()):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop, self._held = stop, ""
        self.stopped_by: str | None = None

    def feed(self, piece: bytes) -> str:
        """What can be shown after these bytes; "" once a stop string was found."""
        return "" if self.stopped_by else self._release(self._decoder.decode(piece), last=False)

    def finish(self) -> str:
        """The rest, at the end of a completion."""
        return "" if self.stopped_by else self._release(self._decoder.decode(b"", final=True), last=True)

    def _release(self, new: str, *, last: bool) -> str:
        text = self._held + new
        if found := first_stop(text, self._stop):
            end, self.stopped_by = found
            self._held = ""
            return text[:end]
        held = 0 if last else begun(text, self._stop)
        self._held = text[len(text) - held:]
        return text[:len(text) - held]
