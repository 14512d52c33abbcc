"""A tokenizer as llama2.c reads it: tokens as byte strings with scores, whose pairs its `run` merges best score first.

`run` has fixed ideas of where things are: token 1 opens a text and ends it, token 2 follows, and byte b is token 3 + b.
Llama 2's tokenizer is made so; tokens of ours are put into that order, and the rows of the embedding with them.
Source: Karpathy 2023, llama2.c, run.c (functions build_tokenizer, encode and decode).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer.engine import SPACE, Engine
from jaxgpt.tokenizer.tokenizer import Tokenizer

BOS, FIRST_BYTE = 1, 3


def pieces(tokenizer: Tokenizer, vocab_size: int) -> tuple[np.ndarray, list[bytes], list[float]]:
    """What llama2.c needs to know of a tokenizer.

    Args:
      tokenizer: ours (byte-level BPE), or one laid out as Llama 2's.
      vocab_size: V, rows of the embedding, with those that no token has.

    Returns:
      (int [V], the token of ours that is number i there; byte string of each; score of each).

    Raises:
      UserError: neither of the two.
    """
    found = _llama(tokenizer) if isinstance(tokenizer, Engine) else _ours(tokenizer)
    order = [token for token, _, _ in found]
    spare = sorted(set(range(vocab_size)) - set(order))
    found += [(token, f"<{token}>".encode(), _NEVER) for token in spare]
    order, spelt, scores = zip(*found)
    return np.array(order), list(spelt), list(scores)


_NEVER = -1e11  # a pair with such a score is not merged


def write_tokenizer(path: str | Path, spelt: list[bytes], scores: list[float]) -> None:
    """Writes a tokenizer.bin; arguments as from `pieces`."""
    with open(path, "wb") as file:
        file.write(struct.pack("<I", max(map(len, spelt))))
        for token, score in zip(spelt, scores):
            file.write(struct.pack("<fI", score, len(token)) + token)


def _ours(tokenizer: Tokenizer) -> list[tuple[int, bytes, float]]:
    """(token of ours, byte string, score) in llama2.c's order. What was learned first is merged first."""
    if tokenizer.normalization or tokenizer.bos == tokenizer.end:
        raise UserError(f"llama2.c cannot read the tokenizer {tokenizer.name!r}: " + (
            f"it puts text into the form {tokenizer.normalization} first" if tokenizer.normalization else
            "it opens and ends a text with the same token"))
    spelling = {token: name.encode() for name, token in tokenizer.special.items()}
    others = [token for token in spelling if token not in (tokenizer.bos, tokenizer.end)]
    unknown, *rest = others or [None]
    if unknown is None:
        raise UserError(f"llama2.c cannot read the tokenizer {tokenizer.name!r}: it has no third special token, for 0")
    special = [(token, spelling[token], _NEVER) for token in (unknown, tokenizer.bos, tokenizer.end)]
    single = [(tokenizer.ranks[bytes([byte])], _spelt(bytes([byte])), 0.0) for byte in range(256)]
    merged = [(rank, _spelt(token), -float(rank)) for token, rank in tokenizer.ranks.items() if len(token) > 1]
    return [*special, *single, *merged, *((token, spelling[token], _NEVER) for token in rest)]


def _spelt(token: bytes) -> bytes:
    """As C can hold it, whose strings end at a 0."""
    return token.replace(b"\0", b"<0x00>")


def _llama(tokenizer: Engine) -> list[tuple[int, bytes, float]]:
    """(token, byte string, score) in the order that it has, where that is llama2.c's."""
    model = json.loads(tokenizer.source)["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    if tokenizer.bos != BOS or any(vocabulary.get(f"<0x{byte:02X}>") != FIRST_BYTE + byte for byte in range(256)):
        raise UserError(f"llama2.c cannot read the tokenizer {tokenizer.name!r}: its `run` wants the token that opens a "
                        f"text to be 1 (found: {tokenizer.bos}) and <0x00> to be 3 "
                        f"(found: {vocabulary.get('<0x00>')})")
    scores = {}
    for number, merge in enumerate(merges):
        scores.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), -float(number))
    special = {token: name for name, token in tokenizer.special.items()}
    spelling = {**{token: name for name, token in vocabulary.items()}, **special}
    return [(token, spelling[token].replace(SPACE, " ").encode() if token not in special else spelling[token].encode(),
             scores.get(spelling[token], _NEVER if token in special else 0.0)) for token in sorted(spelling)]
