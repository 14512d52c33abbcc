"""tokenizer.json of a Hugging Face folder -> a Tokenizer, and back.

Byte-level BPE (GPT-2, Llama 3, Qwen) runs on tiktoken wherever that gives the same tokens, which `exact_ranks` proves
for each vocabulary; the rest (SentencePiece's BPE: Llama 2, Mistral) runs on the library `tokenizers`, see `engine.py`.

In all of them no text becomes a special token, whatever it spells: their own tokenizers would take "<|eot_id|>" in a
text for the end of a turn.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json, write_json
from jaxgpt.tokenizer.byte_level import byte_characters
from jaxgpt.tokenizer.engine import Engine
from jaxgpt.tokenizer.tokenizer import FILE, Tokenizer

# How GPT-2 cuts text into pieces: what a ByteLevel pre-tokenizer does unless told otherwise.
# Source: Radford et al. 2019; their code, encoder.py.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What a folder may hold beside the weights that belongs to the tokenizer; copied as it is.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model")


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder: one that we saved, or a tokenizer.json.

    Raises:
      UserError: there is none, or one that we cannot run exactly.
    """
    path = Path(path)
    return read(path) if not (path / FILE).exists() and (path / "tokenizer.json").exists() else Tokenizer.load(path)


def read(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises:
      UserError: no tokenizer.json, or one of a kind that we do not have: names file, field, found and supported.
    """
    path = Path(folder) / "tokenizer.json"
    found = read_json(path)
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise UserError(f"{path}: " + (f"model.type is {kind!r}; supported: 'BPE'" if kind else "no model there"))
    for field, right in {"type": "BPE", "dropout": None, "continuing_subword_prefix": None,
                         "end_of_word_suffix": None}.items():
        if (model.get(field, right) or None) != right:
            raise UserError(f"{path}: model.{field} is {model[field]!r}; supported: {right!r}")
    try:
        special = {str(token["content"]): int(token["id"]) for token in found.get("added_tokens") or ()}
        bos, end = _ends(path, special)
        options = {"name": Path(folder).resolve().name, "special": special, "bos": bos, "end": end}
        fast = _fast(found, special)
        if fast:
            ranks, pattern, normalization = fast
            return Tokenizer(ranks, pattern=pattern, normalization=normalization, **options)
        return Engine(json.dumps(found), **options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a usable tokenizer ({type(error).__name__}: {error})") from error


def _ends(path: Path, special: dict[str, int]) -> tuple[str, str]:
    """The tokens that open a document and end what the model says."""
    settings = path.with_name("tokenizer_config.json")
    named = read_json(settings) if settings.exists() else {}
    said = {name: value["content"] if isinstance(value, dict) else value
            for name, value in named.items() if name in ("bos_token", "eos_token") and value}
    spelling = {id: token for token, id in special.items()}
    ids = path.with_name("config.json")
    for name, value in (read_json(ids) if ids.exists() else {}).items():
        first = value[0] if isinstance(value, list) and value else value
        if name in ("bos_token_id", "eos_token_id") and first in spelling:
            said.setdefault(name.removesuffix("_id"), spelling[first])
    end = said.get("eos_token") or said.get("bos_token")
    bos = said.get("bos_token") or end
    for token in (bos, end):
        if token not in special:
            what = f"says {token!r}" if token else "does not say which special token ends a text"
            raise UserError(f"{settings}: {what}; the added_tokens of {path.name} are {', '.join(special) or 'none'}")
    return bos, end


# --- byte-level BPE on tiktoken --------------------------------------------------------------------------------------

def _fast(found: dict, special: dict[str, int]):
    """(ranks, pattern, normalization) by which tiktoken gives the same tokens; None where it might not."""
    pattern, model = _pattern(found.get("pre_tokenizer")), found["model"]
    normalizer = found.get("normalizer")
    if pattern is None or model.get("byte_fallback") or (normalizer and normalizer != {"type": "NFC"}):
        return None
    if (found.get("decoder") or {}).get("type") != "ByteLevel" or not _matches_all(pattern):
        return None
    to_byte = byte_characters()
    if any(character not in to_byte for token in model["vocab"] if token not in special for character in token):
        return None
    spell = lambda token: bytes(to_byte[character] for character in token)  # noqa: E731
    ranks = {spell(token): id for token, id in model["vocab"].items() if token not in special}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    merges = [(spell(left), spell(right)) for left, right in pairs]
    if not exact_ranks(ranks, merges, whole_pieces=bool(model.get("ignore_merges"))):
        return None
    return ranks, pattern, "NFC" if normalizer else None


def _pattern(pre_tokenizer: dict | None) -> str | None:
    """The regular expression of a pre-tokenizer that is one."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") if step else None for step in steps]
    if steps[-1] is None or steps[-1].get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2_PATTERN
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        regex = steps[0]["pattern"].get("Regex")
        alike = regex is not None and regex == in_ruby(regex) and not re.search(r"\(\?[a-z]*[msx]|\^(?!.*\])", regex)
        return regex if alike and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert") else None
    return None


def in_ruby(pattern: str) -> str:
    """A pattern as the engine of `tokenizers`, which speaks Ruby's dialect, understands what tiktoken's means by it.

    There, x{1,3}+ repeats x{1,3} where tiktoken's holds on to what it has taken, and $ is the end of a line.

    >>> in_ruby(r"\\p{N}{1,3}+|[^$]+$")
    '(?>\\\\p{N}{1,3})|[^$]+\\\\z'
    """
    one = r"(?:\\[pP]\{\w+\}|\\.|\[(?:\\.|[^\]\\])*\]|[^\\\[\]$()|])"
    found = re.compile(rf"({one}\{{\d+(?:,\d*)?\}})\+|{one}|(\$)")

    def change(match):
        return f"(?>{match[1]})" if match[1] else r"\z" if match[2] else match[0]

    return found.sub(change, pattern)


def _matches_all(pattern: str) -> bool:
    """Whether the pattern takes a character of every kind: tiktoken drops what it leaves out, others keep it."""
    import tiktoken
    bytes_only = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks={bytes([b]): b for b in range(256)},
                                   special_tokens={})
    kinds = {unicodedata.category(chr(code)): chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000}
    return all(bytes_only.encode_ordinary(one) for one in (*kinds.values(), "\n", "\r", " ", "\t"))


def exact_ranks(ranks: dict[bytes, int], merges: list[tuple[bytes, bytes]], *, whole_pieces: bool) -> bool:
    """Whether BPE by ranks (join the neighbours whose union has the lowest id) is BPE by this list of merges (join the
    neighbours that stand first in the list).

    It is, where ids rise along the list and each token either is made by one merge, the one that BPE by ranks ends with
    when it is given the token's bytes, or by every split of it into two tokens. In the first case: what BPE by ranks
    does within a stretch of text that becomes one token does not depend on what surrounds it.

    Args:
      ranks: {token: id}.
      merges: pairs of tokens, first come first.
      whole_pieces: whether a piece that is a token is taken as it is, without merges, as BPE by ranks always does.

    >>> ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"abc": 257}
    >>> exact_ranks(ranks, [(b"a", b"b"), (b"ab", b"c")], whole_pieces=False)
    True
    >>> exact_ranks(ranks, [(b"a", b"b"), (b"a", b"bc")], whole_pieces=False)
    False
    """
    if any(bytes([byte]) not in ranks for byte in range(256)):
        return False
    made, last = defaultdict(set), -1
    for left, right in merges:
        rank = ranks.get(left + right)
        if rank is None or rank < last or left not in ranks or right not in ranks:
            return False
        last = rank
        made[left + right].add((left, right))
    for token, rank in ranks.items():
        if len(token) > 1:
            ends = last_merge(ranks, token, rank)
            if made[token] != {ends}:
                cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
                splits = {cut for cut in cuts if cut[0] in ranks and cut[1] in ranks}
                if made[token] != splits or (not whole_pieces and len(ends) != 2):
                    return False
    return True


def last_merge(ranks: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, ...]:
    """What BPE by ranks makes of a token's bytes with the ranks below its own: the two parts that it was joined of.

    >>> last_merge({b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4}, b"abc", 4)
    (b'ab', b'c')
    """
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
        if best >= rank:
            break
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


# --- the other way ---------------------------------------------------------------------------------------------------

def write(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, from which `transformers` makes the same tokenizer."""
    to_character = {byte: character for character, byte in byte_characters().items()}
    spell = lambda token: "".join(to_character[byte] for byte in token)  # noqa: E731
    merges = [list(map(spell, last_merge(tokenizer.ranks, token, rank)))
              for token, rank in tokenizer.ranks.items() if len(token) > 1]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": in_ruby(tokenizer.pattern)}, "behavior": "Isolated", "invert": False}
    added = [{"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for token, id in tokenizer.special.items()]
    write_json(Path(folder) / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": tokenizer.normalization} if tokenizer.normalization else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {spell(token): rank for token, rank in tokenizer.ranks.items()}, "merges": merges}})
    spelling = {id: token for token, id in tokenizer.special.items()}
    write_json(Path(folder) / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": spelling[tokenizer.bos],
        "eos_token": spelling[tokenizer.end], "clean_up_tokenization_spaces": False})
