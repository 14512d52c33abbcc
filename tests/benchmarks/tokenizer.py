"""Encoding and BPE training beside tiktoken, rustbpe and Hugging Face's tokenizers, on the same text and vocabulary.

  pip install tokenizers
  JAXGPT_DATA=data python tests/benchmarks/tokenizer.py
  python tests/benchmarks/tokenizer.py --text book.txt --vocab-size 8192

Encoding: all sides have the vocabulary that ours learned and split text by the same pattern; each gets the text in
pieces of about 10,000 characters, one at a time. Training: the same pieces, the same number of merges.
"""

from __future__ import annotations

import os
import statistics
import string
import time
from pathlib import Path

from side_by_side import hardware, header, parser, ratio, table, version

PEERS = ("tiktoken", "rustbpe", "tokenizers")


def text_of(path: str | None, smoke: bool) -> str:
    """The file given, or the largest text in $JAXGPT_DATA/text."""
    if smoke:
        return " ".join(a + b + c for a in string.ascii_lowercase for b in "aeiou" for c in string.ascii_lowercase) * 4
    if path is None:
        texts = sorted(Path(os.environ.get("JAXGPT_DATA", "")).glob("text/*.txt"), key=lambda file: file.stat().st_size)
        if not os.environ.get("JAXGPT_DATA") or not texts:
            raise SystemExit("no text: give --text FILE, or set JAXGPT_DATA to a folder with text/*.txt in it")
        path = texts[-1]
    if not Path(path).is_file():
        raise SystemExit(f"--text {path}: no such file")
    return Path(path).read_text(encoding="utf-8")


def pieces_of(text: str, size: int = 10_000) -> list[str]:
    return [text[start:start + size] for start in range(0, len(text), size)]


# --- {name: function of the pieces} ----------------------------------------------------------------------------------

def trainers(vocab_size: int) -> dict:
    """Each learns as many merges as ours; ours keeps 8 ids for special tokens."""
    from jaxgpt.tokenizer import bpe
    from jaxgpt.tokenizer.special import SPECIAL_TOKENS
    size = vocab_size - len(SPECIAL_TOKENS)
    found = {"jaxgpt": lambda pieces: bpe.train(pieces, vocab_size)}
    if version("rustbpe"):
        import rustbpe
        found["rustbpe"] = lambda pieces: rustbpe.Tokenizer().train_from_iterator(iter(pieces), size,
                                                                                  pattern=bpe.PATTERN)
    if version("tokenizers"):
        from tokenizers import trainers as theirs

        def train(pieces):
            trainer = theirs.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=byte_alphabet())
            huggingface(bpe.PATTERN).train_from_iterator(pieces, trainer)
        found["tokenizers"] = train
    return found


def encoders(ranks: dict[bytes, int], pieces: list[str]) -> dict:
    """Each encodes the pieces and returns how many tokens they are."""
    from jaxgpt.tokenizer import bpe
    from jaxgpt.tokenizer.tokenizer import Tokenizer
    ours = Tokenizer(ranks)
    found = {"jaxgpt": lambda pieces: sum(len(ours.encode(piece)) for piece in pieces)}
    if version("tiktoken"):
        import tiktoken
        plain = tiktoken.Encoding("benchmark", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={})
        found["tiktoken"] = lambda pieces: sum(len(plain.encode_ordinary(piece)) for piece in pieces)
    if version("rustbpe"):
        import rustbpe
        rust = rustbpe.Tokenizer()
        rust.train_from_iterator(iter(pieces), len(ranks), pattern=bpe.PATTERN)
        found["rustbpe"] = lambda pieces: sum(len(rust.encode(piece)) for piece in pieces)
    if version("tokenizers"):
        from tokenizers import trainers as theirs
        made = huggingface(bpe.PATTERN)
        made.train_from_iterator(pieces, theirs.BpeTrainer(vocab_size=len(ranks), show_progress=False,
                                                           initial_alphabet=byte_alphabet()))
        found["tokenizers"] = lambda pieces: sum(len(made.encode(piece).ids) for piece in pieces)
    return found


def huggingface(pattern: str):
    """An empty byte-level BPE of tokenizers with that pattern; it learns a vocabulary of its own, nearly the same."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return made


def byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers
    return pre_tokenizers.ByteLevel.alphabet()


# --- the comparison --------------------------------------------------------------------------------------------------

def compare(sides: dict, pieces: list[str], rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Seconds of each side in each round, in turns, and what each returned."""
    seconds, values = {name: [] for name in sides}, {}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            values[name] = side(pieces)
            seconds[name].append(time.perf_counter() - began)
    return seconds, values


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--text", metavar="FILE", help="UTF-8; the largest of $JAXGPT_DATA/text where not given")
    arguments.add_argument("--vocab-size", type=int, default=8192)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    if given.smoke:
        given.vocab_size, given.rounds = 300, 1
    text = text_of(given.text, given.smoke)
    pieces, size = pieces_of(text), len(text.encode())
    print(header("tokenizer", hardware(), *PEERS))
    training, learned = compare(trainers(given.vocab_size), pieces, given.rounds)
    print(f"\ntraining on {size / 1e6:.2f} MB, {given.vocab_size} tokens, median of {given.rounds}\n")
    print(table(["", "median s", "least s", "ours / this"],
                [[name, f"{statistics.median(values):.3f}", f"{min(values):.3f}",
                  f"{ratio(training['jaxgpt'], values):.2f}"] for name, values in training.items()]))
    encoding, tokens = compare(encoders(learned["jaxgpt"], pieces), pieces, given.rounds)
    print("\nencoding the same text, one thread\n")
    print(table(["", "median MB/s", "most MB/s", "tokens", "ours / this, of the time"],
                [[name, f"{size / 1e6 / statistics.median(values):.2f}", f"{size / 1e6 / min(values):.2f}",
                  f"{tokens[name]:,}", f"{ratio(encoding['jaxgpt'], values):.2f}"]
                 for name, values in encoding.items()]))


if __name__ == "__main__":
    main()
