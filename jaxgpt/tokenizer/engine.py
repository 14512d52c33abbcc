"""Tokenizers that tiktoken cannot run exactly, SentencePiece's above all, on the library `tokenizers`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_text
from jaxgpt.tokenizer.bpe import valid_unicode
from jaxgpt.tokenizer.byte_level import byte_characters
from jaxgpt.tokenizer.tokenizer import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece spells a space


class Engine(Tokenizer):
    """A tokenizer.json, run as its authors run it, except that no text becomes a special token.

    Its attributes are those of `Tokenizer`, and `source`, the text of the file; there is no pattern.
    """

    def __init__(self, text: str, *, name: str, special: dict[str, int], bos: str, end: str):
        """Raises ValueError where the library cannot read `text`, or what its tokens stand for is not known."""
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("this tokenizer needs the library tokenizers: pip install tokenizers") from error
        found = json.loads(text)
        plain = {**found, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        try:
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(str(error)) from error
        self.name, self.pattern, self.normalization = name, None, None
        self.source, self._decodes = text, _decoding(found.get("decoder"))
        self.special = dict(sorted(special.items(), key=lambda item: item[1]))
        vocabulary = found["model"]["vocab"]
        self.vocab_size = max(*vocabulary.values(), *special.values()) + 1
        self.bos, self.end = special[bos], special[end]
        self._tokens = [b""] * self.vocab_size
        for token, id in vocabulary.items():
            self._tokens[id] = _bytes_of(token, self._decodes)
        for token, id in special.items():
            self._tokens[id] = token.encode()
        hidden = set(special.values())
        self.ranks = {self._tokens[id]: id for id in sorted(vocabulary.values()) if id not in hidden}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; never a special one."""
        return self._encoder.encode(valid_unicode(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        texts = list(map(valid_unicode, texts))
        return [found.ids for found in self._encoder.encode_batch(texts, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """The text of the tokens, without the space that encoding puts in front; see `Tokenizer.decode`."""
        text = super().decode(tokens, special=special)
        return text[1:] if self._decodes == "spaces, one too many" and text.startswith(" ") else text

    def fingerprint(self) -> str:
        """The SHA-256 of what `save` writes, in hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def save(self, directory: str | os.PathLike) -> Path:
        """Writes `directory`/tokenizer.json, and beside it which tokens open and end a text."""
        spelling = {id: token for token, id in self.special.items()}
        ends = {"bos_token": spelling[self.bos], "eos_token": spelling[self.end]}
        write_text(Path(directory) / "tokenizer_config.json", json.dumps(ends))
        return write_text(Path(directory) / "tokenizer.json", self.source)


def _decoding(decoder: dict | None) -> str:
    """What tokens stand for: "bytes" (each character is one), or text with "spaces", perhaps "one too many"."""
    steps = (decoder or {}).get("decoders", [decoder])
    kinds = [step.get("type") if step else None for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes"
    spaced = any(step and step.get("type") == "Replace" and step.get("content") == " " for step in steps)
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and spaced:
        return "spaces, one too many" if "Strip" in kinds else "spaces"
    if kinds == ["Metaspace"]:
        return "spaces" if steps[0].get("prepend_scheme") == "never" else "spaces, one too many"
    raise ValueError(f"decoder {kinds}; supported: ByteLevel, Metaspace, and SentencePiece's sequence")


def _bytes_of(token: str, decodes: str) -> bytes:
    if decodes == "bytes":
        to_byte = byte_characters()
        return bytes(to_byte[c] for c in token) if all(c in to_byte for c in token) else token.encode()
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()
