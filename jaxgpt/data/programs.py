"""The stages of chapter 2: train a tokenizer, turn the text into tokens.

Source: Karpathy, "Deep Dive into LLMs like ChatGPT" (2025), "Tokenization".
"""

from __future__ import annotations

import dataclasses
import itertools
import lzma
from collections.abc import Iterable, Iterator

import numpy as np

from jaxgpt.core.experiment import Context, Stage
from jaxgpt.curation.document import Document
from jaxgpt.curation.pipeline import read_corpus
from jaxgpt.data.shards import TokenDocument, write_shards
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.hf import load as load_tokenizer
from jaxgpt.tokenizer.tokenizer import TIKTOKEN_NAMES, Tokenizer

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class TrainTokenizer(Stage):
    """Byte-level BPE, learned from the training split alone.

    Attributes:
      vocab_size: tokens in all: 256 bytes, the special tokens, and what is learned.
      digits: how many digits a token may hold at most; 1 makes arithmetic easier for a small model.
      corpus: the stage that wrote the documents.
      trainer: "rustbpe", or "reference" for the same result slowly.
    """

    name: str = "tokenizer"
    vocab_size: int = 4096
    digits: int = 1
    corpus: str = "curate"
    trainer: str = "rustbpe"

    def inputs(self) -> tuple[str, ...]:
        return (self.corpus,)

    def run(self, context: Context) -> dict:
        """Writes the tokenizer; reports how many bytes a token stands for on text that it did not see.

        Raises:
          UserError: the vocabulary is too small, or larger than the corpus can fill.
        """
        folder = context.path(self.corpus, "documents")
        pattern = bpe.split_pattern(digits=self.digits)
        texts = (item.text for item in read_corpus(folder, "train"))
        ranks = bpe.train(texts, self.vocab_size, pattern=pattern, trainer=self.trainer)
        tokenizer = Tokenizer(ranks, pattern=pattern, name=f"{context.experiment.name} {self.name}")
        path = tokenizer.save(context.directory)
        held_out = [(size, len(tokens) - 1) for _, tokens, size in encode(tokenizer, read_corpus(folder, "val"))]
        size, tokens = map(sum, zip(*held_out))
        bytes_per_token = size / tokens
        context.log(f"{self.name}: {tokenizer.vocab_size:,} tokens, {bytes_per_token:.2f} bytes each on validation")
        return {"tokenizer": path.name, "fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size,
                "val_bytes_per_token": round(bytes_per_token, 4)}


@dataclasses.dataclass(frozen=True)
class Tokenize(Stage):
    """Both splits as token shards, shuffled, and what a general compressor makes of the validation split.

    Attributes:
      corpus: the stage that wrote the documents.
      tokenizer: the stage that wrote the tokenizer or imported one, or the name of one of tiktoken's encodings, such as
        "gpt2".
      documents_per_shard: a shard's size.
      xz: whether to measure the compressor.
    """

    name: str = "tokenize"
    corpus: str = "curate"
    tokenizer: str = "tokenizer"
    documents_per_shard: int = 65_536
    xz: bool = True

    def inputs(self) -> tuple[str, ...]:
        return (self.corpus,) if self._encoding() else (self.corpus, self.tokenizer)

    def _encoding(self) -> bool:
        return self.tokenizer in TIKTOKEN_NAMES

    def run(self, context: Context) -> dict:
        """Writes shards/ (see shards.py).

        Raises:
          UserError: the corpus or the tokenizer is missing, or the disk is full.
        """
        if self._encoding():
            tokenizer = Tokenizer.from_tiktoken(self.tokenizer)
        else:
            tokenizer = load_tokenizer(context.path(self.tokenizer, "tokenizer"))
        folder = context.path(self.corpus, "documents")
        total = context.output(self.corpus, "steps")
        progress = context.progress(sum(total[split]["documents"] for split in SPLITS), "documents", "tokenize")

        def watched(documents: Iterable[TokenDocument]) -> Iterator[TokenDocument]:
            for item in documents:
                yield item
                progress.update()
                context.check_stop()

        manifest = write_shards(
            context.directory / "shards",
            {split: watched(encode(tokenizer, read_corpus(folder, split))) for split in SPLITS},
            vocab_size=tokenizer.vocab_size, seed=context.seed, documents_per_shard=self.documents_per_shard,
            details={"bos": tokenizer.bos, "tokenizer": tokenizer.fingerprint(),
                     "corpus": context.output(self.corpus, "sha256")})
        progress.close()
        outputs = {"shards": "shards", "vocab_size": tokenizer.vocab_size,
                   "tokenizer": tokenizer.save(context.directory).name,
                   "tokenizer_fingerprint": tokenizer.fingerprint()}
        for split, entry in manifest["splits"].items():
            outputs[split] = {name: entry[name] for name in ("documents", "tokens", "bytes")}
            context.log(f"{self.name}: {split}: {entry['tokens']:,} tokens, {entry['bytes'] / 1e6:.2f} MB")
        if self.xz:
            outputs["xz_bits_per_byte"] = xz_bits_per_byte(item.text for item in read_corpus(folder, "val"))
            context.log(f"{self.name}: xz -9 needs {outputs['xz_bits_per_byte']:.4f} bits per byte on validation")
        return outputs


def encode(tokenizer: Tokenizer, documents: Iterable[Document], *, together: int = 256) -> Iterator[TokenDocument]:
    """Yields (id, tokens, bytes) of each document, `<|bos|>` first; `together` documents are encoded at a time."""
    documents = iter(documents)
    while group := list(itertools.islice(documents, together)):
        for item, tokens in zip(group, tokenizer.encode_batch(item.text for item in group)):
            yield item.id, np.array([tokenizer.bos, *tokens]), len(item.text.encode("utf-8"))


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """What `xz -9` needs when it compresses each text by itself: 8 * compressed bytes / bytes, over all texts.

    The dictionary is no larger than the text, where `xz` would set 64 MB aside: the same bytes, twenty times as fast.

    >>> round(xz_bits_per_byte(["abcd" * 1000]), 2)
    0.19
    """
    compressed = total = 0
    for text in texts:
        data = text.encode("utf-8")
        dictionary = min(max(len(data), 4096), 64 * 2**20)
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
        compressed += len(lzma.compress(data, filters=filters))
        total += len(data)
    return 8 * compressed / max(1, total)
