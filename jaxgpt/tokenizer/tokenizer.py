"""The tokenizer: byte strings with ids, a split pattern, special tokens; text in, ids out, and back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_text
from jaxgpt.tokenizer.bpe import PATTERN
from jaxgpt.tokenizer.special import BOS, END, SPECIAL_TOKENS

FILE = "tokenizer.txt"
FORMAT, VERSION = "jaxgpt tokenizer", 1
TIKTOKEN_NAMES = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")

_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()
_FIELDS = dict(name=str, special=dict, pattern=str)  # of a file's header
_OPTIONAL = dict(bos=str, end=str, normalization=str)

class Tokenizer:
    """Turns text into tokens and back. Tokens are byte strings, so any text at all can be written.

    Attributes:
      name: a name for people.
      ranks: {token: id}, in order of id; what BPE learned (see `bpe.train`).
      special: {spelling: id} of the special tokens; ours by default follow the last rank.
      pattern: the regular expression that splits text into pieces.
      vocab_size: one more than the largest id.
      bos, end: the ids of the special tokens that open a document and end a turn: of `<|bos|>` and `<|end|>`, or of
        what another tokenizer has in their place.
      normalization: the Unicode form that text is put into first ("NFC"), or None.

    >>> from jaxgpt.tokenizer import bpe
    >>> tokenizer = Tokenizer(bpe.train(["aaabdaaabac"], vocab_size=267))
    >>> tokenizer.encode("aaabdaaabac")
    [258, 100, 258, 97, 99]
    >>> tokenizer.decode([tokenizer.bos, 258, 100, tokenizer.end])
    '<|bos|>aaabd<|end|>'
    """

    def __init__(
        self, ranks: dict[bytes, int], *, pattern: str = PATTERN, name: str = "bpe",
        special: dict[str, int] | None = None, bos: str = BOS, end: str = END, normalization: str | None = None,
    ):
        """Raises ValueError where an id is used twice, or single bytes or special tokens are missing."""
        import tiktoken

        if special is None:
            first = max(ranks.values(), default=-1) + 1
            special = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        _check_vocabulary(ranks, special, SPECIAL_TOKENS if (bos, end) == (BOS, END) else (bos, end))
        self.name = name
        self.normalization = normalization
        self.pattern = pattern
        self.ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        self.special = dict(sorted(special.items(), key=lambda item: item[1]))
        self.vocab_size = max(*ranks.values(), *special.values()) + 1
        self.bos, self.end = special[bos], special[end]
        self._tokens = [b""] * self.vocab_size  # by id; ids that an encoding leaves unused stay empty
        for token, rank in self.ranks.items():
            self._tokens[rank] = token
        for token, rank in self.special.items():
            self._tokens[rank] = token.encode()
        self._encoding = tiktoken.Encoding(
            f"jaxgpt {name}", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=self.special)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Never a special token: `<|end|>` in a text is seven ordinary characters.

        Raises:
          UserError: the text is one that the engine cannot split (a run of about a million spaces, in
            patterns other than ours).
        """
        return self._guard(self._encoding.encode_ordinary, self._normalized(text))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        return self._guard(self._encoding.encode_ordinary_batch, list(map(self._normalized, texts)))

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize(self.normalization, text) if self.normalization else text

    def _guard(self, encode, argument):
        try:
            return encode(argument)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # Rust's panic: no Exception, no public type
                raise
            raise UserError(f"the tokenizer '{self.name}' cannot split a text; the usual cause is a run of "
                            f"hundreds of thousands of spaces, to be shortened first ({error})") from error

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes that the tokens stand for; special tokens give their spelling, unused ids nothing.

        Ids beyond the vocabulary, which a model with spare rows in its embedding can draw, give U+FFFD.

        Raises:
          ValueError: an id is below 0.
        """
        known = len(self._tokens)
        return b"".join([self._tokens[token] if token < known else _UNKNOWN for token in self._ids(tokens)])

    def decode(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD.

        Args:
          tokens: ids, a sequence or a one-dimensional array.
          special: whether special tokens are spelt out or left out.

        Raises:
          ValueError: an id is below 0.
        """
        if not special:
            hidden = set(self.special.values())
            tokens = [token for token in self._ids(tokens) if token not in hidden]
        return self.decode_bytes(tokens).decode(errors="replace")

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        ids = np.asarray(tokens).tolist()
        if ids and min(ids) < 0:
            raise ValueError(f"tokens: {min(ids)} is no token of '{self.name}', whose ids begin at 0")
        return ids

    def token_bytes(self) -> np.ndarray:
        """How many bytes of text each token stands for, int32 [V]; 0 for special tokens and unused ids."""
        lengths = np.array([len(token) for token in self._tokens], np.int32)
        lengths[list(self.special.values())] = 0
        return lengths

    def bytes_per_token(self, tokens: Sequence[int]) -> float:
        """The mean length in bytes of those tokens that stand for text.

        It turns a loss that knows this tokenizer into one that any tokenizer can be compared by:

          bits per byte = nats per token / (ln 2 * bytes per token)

        Raises:
          ValueError: none of the tokens stands for text.
        """
        lengths = self.token_bytes()[[token for token in self._ids(tokens) if token < self.vocab_size]]
        if not lengths.any():
            raise ValueError("tokens: none of them stands for text, so there is no mean length in bytes")
        return float(lengths[lengths > 0].mean())

    def fingerprint(self) -> str:
        """The SHA-256 of the file that `save` writes, in hexadecimal: of all that makes this tokenizer."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def save(self, directory: str | os.PathLike) -> Path:
        """Writes `directory`/tokenizer.txt: a JSON header, an empty line, and lines `base64-of-token id`."""
        return write_text(Path(directory) / FILE, self._text())

    def _text(self) -> str:
        header = dict(format=FORMAT, version=VERSION, name=self.name, tokens=len(self.ranks),
                      special=self.special, pattern=self.pattern)
        spelling = {id: token for token, id in self.special.items()}
        if (spelling[self.bos], spelling[self.end]) != (BOS, END):
            header |= dict(bos=spelling[self.bos], end=spelling[self.end])
        if self.normalization:
            header |= dict(normalization=self.normalization)
        lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in self.ranks.items()]
        return "\n".join([json.dumps(header, indent=2, ensure_ascii=False), "", *lines, ""])

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Reads what `save` wrote: the file, or the folder that holds it.

        Raises:
          UserError: there is no such file, or it is malformed (names the line).
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text in UTF-8"
            raise UserError(f"{path}: cannot read a tokenizer here ({reason})") from error
        head, _, body = text.partition("\n\n")
        header = _read_header(path, head)
        ranks = _read_ranks(path, body, first_line=head.count("\n") + 3)
        if len(ranks) != header["tokens"]:
            raise UserError(f"{path}: holds {len(ranks)} tokens, but its header promises {header['tokens']}")
        try:
            return cls(ranks, **{field: header[field] for field in (*_FIELDS, *_OPTIONAL) if field in header})
        except ValueError as error:
            raise UserError(f"{path}: not a usable tokenizer ({error})") from error

    @classmethod
    def from_tiktoken(cls, name: str) -> Tokenizer:
        """One of tiktoken's encodings, with our special tokens after its own.

        Text gets the ids that tiktoken gives it. The encoding's own special tokens (`<|endoftext|>`) keep
        their ids, and like ours are never produced from text.

        Raises:
          UserError: there is no such encoding, or its file is neither cached nor to be had.
        """
        import tiktoken

        if name not in TIKTOKEN_NAMES:
            raise UserError(f"no tiktoken encoding is called '{name}'; there are {', '.join(TIKTOKEN_NAMES)}")
        try:
            encoding = tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # no network, or not the file it expects
            raise UserError(f"tiktoken's encoding '{name}' is not cached and cannot be downloaded "
                            f"({type(error).__name__}): set TIKTOKEN_CACHE_DIR to a folder that holds it, or "
                            "connect to a network once") from error
        special = dict(encoding._special_tokens)  # tiktoken's own way to extend an encoding, says its README
        special |= {token: encoding.max_token_value + 1 + i for i, token in enumerate(SPECIAL_TOKENS)}
        return cls(encoding._mergeable_ranks, pattern=encoding._pat_str, name=name, special=special)


def _check_vocabulary(ranks: dict[bytes, int], special: dict[str, int], needed: tuple[str, ...]) -> None:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"ranks: {len(missing)} of the 256 single bytes are missing, first {missing[0]}")
    unknown = [token for token in needed if token not in special]
    if unknown:
        raise ValueError(f"special: {' '.join(unknown)} missing")
    ids = [*ranks.values(), *special.values()]
    if min(ids) < 0:
        raise ValueError(f"ids: {min(ids)} is negative")
    if len(set(ids)) < len(ids):
        twice = next(id for id, seen in zip(sorted(ids), sorted(ids)[1:]) if id == seen)
        raise ValueError(f"ids: {twice} belongs to two tokens")


def _read_header(path: Path, head: str) -> dict:
    try:
        header = json.loads(head)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: the header is not JSON ({error.msg})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{path}, line 1: not the header of a tokenizer file ('format' should be '{FORMAT}')")
    if header.get("version") != VERSION:
        raise UserError(f"{path}: the format's version is {header.get('version')!r}, but this jaxgpt reads "
                        f"version {VERSION}")
    for field, kind in dict(tokens=int, **_FIELDS, **_OPTIONAL).items():
        if not isinstance(header.get(field), kind) and (field in header or field not in _OPTIONAL):
            raise UserError(f"{path}: the header's '{field}' is {header.get(field)!r}, "
                            f"but should be {kind.__name__}")
    for token, rank in header["special"].items():
        if type(rank) is not int:
            raise UserError(f"{path}: the header's special token '{token}' has the id {rank!r}, "
                            "not a whole number")
    return header


def _read_ranks(path: Path, body: str, first_line: int) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(body.removesuffix("\n").split("\n"), start=first_line):
        try:
            encoded, rank = line.split(" ")
            token, rank = base64.b64decode(encoded, validate=True), int(rank)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {line[:60]!r} is not 'base64-of-token id'") from error
        if not token or token in ranks:
            raise UserError(f"{path}, line {number}: {'an empty token' if not token else f'{token!r} again'}")
        ranks[token] = rank
    return ranks
