"""Byte pair encoding: learns a vocabulary of byte strings from text.

Text is first split into pieces (words, runs of digits, punctuation, whitespace), and no token crosses the
border of a piece. Inside the pieces every byte starts as a token of its own; then, again and again, the pair
of neighbours that occurs most often becomes one new token. The order in which tokens are born is their rank,
and encoding replays it.

There are two trainers behind one function: `rustbpe`, which is fast, and a reference in plain Python that
says what the fast one does. They agree token for token; the tests hold them to it.

Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
algorithm 1; Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2, for
bytes and the split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer.special import SPECIAL_TOKENS

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def split_pattern(digits: int = 3) -> str:
    """The regular expression that cuts text into pieces, in the manner of GPT-4.

    Three Unicode-aware engines read it alike (tiktoken's, rustbpe's, and Python's `regex`): it names both
    cases of a letter rather than asking for case folding. Runs of whitespace are cut at 128 characters:
    without a bound the Rust engines run out of stack on a run of about a million.

    Args:
      digits: the most digits in one piece, at least 1. With 1 each digit is a token of its own, so that a
        number always looks the same to the model, which a small model needs in order to learn arithmetic.

    Raises:
      ValueError: `digits` is less than 1.

    >>> import regex
    >>> regex.findall(split_pattern(digits=2), "We'll pay $1234  now!\\n")
    ['We', "'ll", ' pay', ' $', '12', '34', ' ', ' now', '!\\n']
    """
    if digits < 1:
        raise ValueError(f"digits: got {digits}, but a piece of a number has at least 1 digit")
    return "|".join([
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",  # the endings of I'm, you'll, we've
        r"[^\r\n\p{L}\p{N}]?+\p{L}++",  # a word, with one space or sign before it
        rf"\p{{N}}{{1,{digits}}}+",  # a piece of a number
        r" ?[^\s\p{L}\p{N}]++[\r\n]*+",  # punctuation, with the line break after it
        r"\s{0,128}[\r\n]",  # blank lines
        r"\s{1,128}(?!\S)",  # indentation, but for the last space, which goes with the word
        r"\s",
    ])


PATTERN = split_pattern()


def train(
    texts: Iterable[str], vocab_size: int, *, pattern: str = PATTERN, trainer: str = "rustbpe"
) -> dict[bytes, int]:
    """Learns a vocabulary: the mergeable ranks that `Tokenizer` takes.

    The most frequent pair is merged first; of pairs that are equally frequent, the one with the smaller left
    rank, then the smaller right rank. Overlapping occurrences count: "aaa" holds the pair (a, a) twice. What
    is learned depends only on how often each piece occurs, not on the order of the texts.

    Args:
      texts: the corpus, read once. Surrogates that stand alone, which UTF-8 cannot write, count as U+FFFD.
      vocab_size: how many tokens there will be: 256 bytes, the merges, and `SPECIAL_TOKENS`.
      pattern: how text is split into pieces, see `split_pattern`.
      trainer: "rustbpe", or "reference" for the same result slowly.

    Returns:
      {token: rank}, `vocab_size - len(SPECIAL_TOKENS)` of them, in order of rank; rank b < 256 is the byte b.

    Raises:
      UserError: `vocab_size` is too small, the corpus is empty, or it has too few pairs to merge.

    >>> list(train(["aaabdaaabac"], vocab_size=256 + 3 + 8))[256:]
    [b'aa', b'ab', b'aaab']
    """
    trainers = {"rustbpe": _train_rustbpe, "reference": _train_reference}
    if trainer not in trainers:
        raise ValueError(f"trainer: got {trainer!r}, but there are {' and '.join(trainers)}")
    if isinstance(texts, str):
        raise ValueError("texts: got one string, but a corpus is an iterable of strings; write [text]")
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special "
                        f"tokens make {SMALLEST_VOCABULARY}")
    merges = vocab_size - SMALLEST_VOCABULARY
    tokens = trainers[trainer](_not_empty(texts), merges, pattern)
    if len(tokens) < 256 + merges:
        raise UserError(f"vocab_size {vocab_size} asks for {merges} merges, but the corpus has pairs for "
                        f"only {len(tokens) - 256}: give more text, or a vocab_size of at most "
                        f"{len(tokens) + len(SPECIAL_TOKENS)}")
    return {token: rank for rank, token in enumerate(tokens)}


def _train_rustbpe(texts: Iterator[str], merges: int, pattern: str) -> list[bytes]:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, 256 + merges, pattern=pattern)
    return [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])]


def _train_reference(texts: Iterator[str], merges: int, pattern: str) -> list[bytes]:
    import regex

    split = regex.compile(pattern)
    words = Counter(piece.group().encode() for text in texts for piece in split.finditer(text))
    spelling = {word: list(word) for word in words}  # the ranks a word is made of: at first, its bytes
    counts: Counter[tuple[int, int]] = Counter()  # how often each pair of ranks occurs
    homes = defaultdict(set)  # and in which words

    def tally(word: bytes, sign: int) -> None:
        for pair in pairwise(spelling[word]):
            counts[pair] += sign * words[word]
            homes[pair].add(word)

    for word in words:
        tally(word, +1)
    tokens = [bytes([byte]) for byte in range(256)]
    for rank in range(256, 256 + merges):
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] == 0:
            break
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for word in homes.pop(best):
            tally(word, -1)
            spelling[word] = _merge(spelling[word], best, rank)
            tally(word, +1)
    return tokens


def _merge(ranks: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replaces `pair` by `new` from left to right: (a, a) in "aaa" gives (aa, a)."""
    merged, i = [], 0
    while i < len(ranks):
        found = tuple(ranks[i : i + 2]) == pair
        merged.append(new if found else ranks[i])
        i += 2 if found else 1
    return merged


def valid_unicode(text: str) -> str:
    """Puts U+FFFD for each surrogate that stands alone: such a text cannot be written as UTF-8.

    tiktoken encodes texts by the same rule.

    >>> valid_unicode("a\\ud800b")
    'a\ufffdb'
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    characters = 0
    for text in texts:
        characters += len(text)
        yield valid_unicode(text)
    if characters == 0:
        raise UserError("the corpus is empty: there is no text to learn a vocabulary from")
