"""From tokens to what is sent: text in whole characters, up to a stop, with calls, results and log-probabilities."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence

from jaxgpt.inference.forms import Form, Turn
from jaxgpt.inference.progress import begun, first_stop
from jaxgpt.tokenizer.conversation import MARKS
from jaxgpt.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Entry:
    """A token that was written.

    Attributes:
      token: its id.
      logprob: of it, under the model's own distribution; None where it was given.
      top: [(id, logprob)] of the likeliest.
      offset: where its text begins, in characters.
    """

    token: int
    logprob: float | None
    top: Sequence[tuple[int, float]]
    offset: int


@dataclasses.dataclass
class Piece:
    """What came of some tokens: text, the tokens themselves, calls and their results [(call, result or None)]."""

    text: str = ""
    entries: list[Entry] = dataclasses.field(default_factory=list)
    calls: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)

    def add(self, piece: Piece) -> Piece:
        """Takes up what came behind it; returns itself."""
        self.text += piece.text
        self.entries += piece.entries
        self.calls += piece.calls
        return self


class Answer:
    """One answer as it comes.

    A piece of text waits while it could be the beginning of a stop string, or of a character; at a stop string the
    answer ends before it. Where a call is a whole turn, a turn waits while it could be one.

    Args:
      tokenizer: of the model.
      stops: strings that end the answer.
      form: of the model's calls.

    Attributes:
      stopped: whether a stop string came.
      count: how many tokens were fed that the model wrote itself.
      offset: where its text begins: behind a prompt that comes back.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), form: Form | None = None):
        self.tokenizer, self.stops, self.form = tokenizer, tuple(stops), form
        self.stopped, self.count = False, 0
        self._marks = {tokenizer.special.get(mark): kind for kind, mark in MARKS.items()}
        self._marks |= {form.opening: "call", form.closing: "call"} if form and form.opening is not None else {}
        self._hidden = set(tokenizer.special.values())
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._inside, self._inner, self._call = None, b"", None  # of a call or a result
        self._turn = Turn(form)
        self._put_in: list[int] = []  # a result, as the template of a model from elsewhere writes it
        self._held, self._sent, self._waiting, self.offset = "", 0, [], 0

    def feed(self, token: int, logprob: float | None = None, top: Sequence[tuple[int, float]] = (), *,
             forced: bool = False) -> Piece:
        """What can be sent once this token is known."""
        self.count += not forced
        if forced and self.form and not self.form.ours:
            self._put_in.append(token)
            return Piece()
        piece = self._result()
        known, call = self._turn.feed(token, logprob, top)
        for one in known:
            piece.add(self._fed(*one))
        if call is not None:
            self._call = self.tokenizer.decode(call)
        return piece

    def _fed(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> Piece:
        if token in self._marks:
            return self._mark(self._marks[token])
        if self._inside:
            if token not in self._hidden:
                self._inner += self.tokenizer.decode_bytes([token])
            return Piece()
        if token in self._hidden:
            return Piece()
        self._waiting.append(Entry(token, logprob, top, self.offset + self._sent + len(self._held)))
        self._held += self._decoder.decode(self.tokenizer.decode_bytes([token]))
        return self._release()

    def end(self) -> Piece:
        """What is left when no token follows."""
        piece = self._result() if self._put_in else Piece(calls=[(self._call, None)] if self._call is not None else [])
        self._call = None
        for one in self._turn.end():
            piece.add(self._fed(*one))
        if self.stopped:
            return piece
        self._held += self._decoder.decode(b"", final=True)
        return piece.add(self._release(final=True))

    def _result(self) -> Piece:
        """The call to which a result was put in, with it."""
        if not self._put_in:
            return Piece()
        call, self._call = self._call or "", None
        result, self._put_in = self.form.result(self._put_in), []
        return Piece(calls=[(call, result)])

    def _mark(self, kind: str) -> Piece:
        if self._inside != kind:
            self._inside, self._inner = kind, b""
            if kind == "call" and self._call is not None:  # the call before has no result
                call, self._call = self._call, None
                return Piece(calls=[(call, None)])
            return Piece()
        text, self._inside = self._inner.decode(errors="replace"), None
        if kind == "call":
            self._call = text
            return Piece()
        call, self._call = self._call or "", None
        return Piece(calls=[(call, text)])

    @property
    def call(self) -> str | None:
        """A call that is complete and has no result yet."""
        return self._call

    def _release(self, final: bool = False) -> Piece:
        if found := first_stop(self._held, self.stops):
            self.stopped, end = True, found[0]
        else:
            end = len(self._held) if final else len(self._held) - begun(self._held, self.stops)
        text, self._held = self._held[:end], self._held[end:]
        self._sent += len(text)
        done = len(self._waiting) if final else sum(entry.offset < self.offset + self._sent for entry in self._waiting)
        entries, self._waiting = self._waiting[:done], self._waiting[done:]
        return Piece(text, entries)


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as OpenAI writes it: its text, or its bytes where they are no text.

    >>> from jaxgpt.tokenizer import bpe
    >>> tokenizer = Tokenizer(bpe.train(["-"], vocab_size=264))
    >>> spelled(tokenizer, 97), spelled(tokenizer, 195)
    ('a', 'bytes:\\\\xc3')
    """
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry], *, ids: bool) -> dict:
    """Of /v1/completions; with `ids` also what the spelling of tokens does not tell apart."""
    found = {
        "tokens": [spelled(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [None if entry.logprob is None else _spelled_top(tokenizer, entry) for entry in entries],
        "text_offset": [entry.offset for entry in entries]}
    if ids:
        found["token_ids"] = [entry.token for entry in entries]
        found["top_tokens"] = [[{"id": token, "token": spelled(tokenizer, token), "logprob": logprob}
                                for token, logprob in entry.top] for entry in entries]
    return found


def _spelled_top(tokenizer: Tokenizer, entry: Entry) -> dict[str, float]:
    return {spelled(tokenizer, token): logprob for token, logprob in [*entry.top][::-1]}


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict:
    """Of /v1/chat/completions."""
    def one(token, logprob):
        return {"token": spelled(tokenizer, token), "logprob": logprob, "bytes": list(tokenizer.decode_bytes([token]))}
    return {"content": [one(entry.token, entry.logprob) | {"top_logprobs": [one(*pair) for pair in entry.top]}
                        for entry in entries], "refusal": None}
